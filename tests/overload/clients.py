"""Clients that note what they were told: every status, and whether a refusal said why and when to come again."""

import collections
import http.client
import json
import threading
import time

REASONS = {
    "quota_events", "quota_bytes", "tenant_lane", "edge_full", "log_full", "storage", "draining", "unreachable", "outcome_unknown",
}  # fmt: skip


class Plain(threading.Thread):
    """Sends single events one after the other, and never again what was refused."""

    def __init__(self, server, key, name, pause=0.02):
        super().__init__(daemon=True)
        self.port, self.key, self.client, self.pause = server.port, key, name, pause
        self.over = threading.Event()
        # (when, status, Retry-After, X-Shed-Reason, seconds it took); status 0: no answer.
        self.told = []
        self.acknowledged = set()

    def run(self):
        connection = None
        number = 0
        while not self.over.is_set():
            event_id = f"{self.client}-{number}"
            number += 1
            body = json.dumps({"event_type": "plain", "event_id": event_id, "n": number})
            headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
            start = time.time()
            try:
                connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                connection.request("POST", "/v1/events", body, headers)
                answer = connection.getresponse()
                answer.read()
                after, reason = answer.getheader("Retry-After"), answer.getheader("X-Shed-Reason")
                status = answer.status
                if answer.will_close:
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                connection, status, after, reason = None, 0, None, repr(error)
            self.told.append((start, status, after, reason, time.time() - start))
            if status == 200:
                self.acknowledged.add(event_id)
            self.over.wait(self.pause)

    def stop(self):
        self.over.set()
        self.join(60)
        assert not self.is_alive(), "a client still waits for its answer"


def codes(told, begin=0.0, end=float("inf")):
    """{status: how often} of what was sent in that time."""
    return dict(sorted(collections.Counter(one[1] for one in told if begin <= one[0] < end).items()))


def check_told(told):
    """Every answer is a success or a refusal that says why and when to come again; what the refusals were."""
    refusals = collections.Counter()
    for when, status, after, reason, _ in told:
        if 200 <= status < 300:
            continue
        assert status in (429, 503), f"at {when:.1f} a client was told {status} ({reason})"
        assert after and after.isdigit() and int(after) >= 1, f"{status} {reason} with Retry-After {after!r}"
        assert reason in REASONS, f"{status} without a reason: {reason!r}"
        refusals[status, reason] += 1
    return refusals


def shown(counts):
    """`200: 17, 503: 4`, or a dash."""
    return ", ".join(f"{code}: {n}" for code, n in counts.items()) or "-"
