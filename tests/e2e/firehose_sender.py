"""Sends as Amazon Data Firehose does to an HTTP endpoint, by the letter of its published contract.

"HTTP endpoint delivery request and response specifications", Amazon Data Firehose Developer Guide: the headers, the body, what
counts as delivered, what is sent again under the same request id, and what is given up.
"""

import base64
import gzip
import http.client
import json
import time
import uuid
from dataclasses import dataclass, field
from urllib.parse import urlsplit

ACCOUNT = "123456789012"
ANSWER_BYTES_MAX = 1 << 20


@dataclass
class Sender:
    """One delivery stream with an HTTP endpoint as its destination."""

    url: str
    access_key: str
    stream: str = "clicks"
    compress: bool = True
    attributes: dict = field(default_factory=dict)
    # The documented retry duration is 300 s, of which a test waits less.
    duration: float = 30.0
    # Every answer: status, body.
    answers: list = field(default_factory=list)

    def request(self, records, request_id):
        """The head and body of one delivery; the same each time that it is sent."""
        data = [{"data": base64.b64encode(record).decode()} for record in records]
        body = json.dumps({"requestId": request_id, "timestamp": int(time.time() * 1000), "records": data}).encode()
        headers = {
            "X-Amz-Firehose-Protocol-Version": "1.0",
            "X-Amz-Firehose-Request-Id": request_id,
            "X-Amz-Firehose-Source-Arn": f"arn:aws:firehose:us-east-1:{ACCOUNT}:deliverystream/{self.stream}",
            "X-Amz-Firehose-Access-Key": self.access_key,
            "Content-Type": "application/json",
            "User-Agent": "Amazon Kinesis Data Firehose Agent/1.0",
        }
        if self.attributes:
            headers["X-Amz-Firehose-Common-Attributes"] = json.dumps({"commonAttributes": self.attributes})
        if self.compress:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body)
        headers["Content-Length"] = str(len(body))
        return headers, body

    def once(self, headers, body):
        """One attempt: its status and answer; `None` where none came."""
        address = urlsplit(self.url)
        # The endpoint has three minutes to answer.
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=180)
        try:
            connection.request("POST", address.path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read(ANSWER_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def deliver(self, records, request_id=None):
        """Delivers; true where the endpoint said that it has the records."""
        request_id = request_id or str(uuid.uuid4())
        headers, body = self.request(records, request_id)
        until, wait = time.monotonic() + self.duration, 0.2
        while True:
            answer = self.once(headers, body)
            self.answers.append(answer and (answer[0], answer[2]))
            if answer and self.is_delivered(answer, request_id):
                return True
            # A request that is too large is too large each time.
            if (answer and answer[0] == 413) or until < time.monotonic() + wait:
                return False
            time.sleep(wait)
            wait = min(wait * 2, 5.0)

    @staticmethod
    def is_delivered(answer, request_id):
        status, headers, body = answer
        check_form(headers, body, request_id, failed=status != 200)
        return status == 200


def check_form(headers, body, request_id, failed):
    """An answer of another form counts as a failure there; here it fails the test."""
    media_type = {name.lower(): value for name, value in headers.items()}["content-type"]
    assert media_type == "application/json", media_type
    assert len(body) <= ANSWER_BYTES_MAX
    answer = json.loads(body)
    assert set(answer) == ({"requestId", "timestamp", "errorMessage"} if failed else {"requestId", "timestamp"}), answer
    assert answer["requestId"] == request_id
    assert isinstance(answer["timestamp"], int) and abs(answer["timestamp"] / 1000 - time.time()) < 3600, answer
    assert not failed or 0 < len(answer["errorMessage"]) <= 8192
