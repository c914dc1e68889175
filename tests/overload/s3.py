"""An S3 server that can be told to answer 503: moto behind a loopback proxy, and who sent what when."""

import http.client
import subprocess
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow.fs
from harness import free_ports, http as ask, wait_until

REGION = "us-east-1"
# Moto checks no signature, but takes an object's rights from who is named.
CREDENTIALS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "aws_region": REGION}
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
# Headers that concern one connection only.
OF_ONE_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


class S3:
    """A bucket on moto, reached by the server under test through a proxy that fails when told to."""

    def __init__(self, folder, bucket="lake"):
        self.bucket = bucket
        (self.port,) = free_ports(1)
        self.broken = threading.Event()
        # True: it takes requests and answers none of them until it is well again.
        self.hangs = False
        self.well = threading.Event()
        self.well.set()
        self.turned_away = 0
        # {object: when its put was answered with 200}, by the wall clock, as a file's times are.
        self.put_at = {}
        self.lock = threading.Lock()
        with open(folder / "moto.log", "wb") as log:
            self.moto = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            wait_until("moto answers", lambda: ask("GET", f"http://127.0.0.1:{self.port}/").status == 200, timeout=60)
            made = self.files().create_dir(bucket)
            assert made is None
            self.proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        except BaseException:
            self.moto.kill()
            raise
        self.proxy.daemon_threads = True
        threading.Thread(target=self.proxy.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.proxy.server_address[1]}"

    def files(self):
        """The buckets as pyarrow sees them, past the proxy."""
        return pyarrow.fs.S3FileSystem(
            access_key="test", secret_key="test", region=REGION, scheme="http", allow_bucket_creation=True,
            endpoint_override=f"127.0.0.1:{self.port}",
        )  # fmt: skip

    def fail(self):
        self.well.clear()
        self.broken.set()

    def mend(self):
        self.broken.clear()
        self.well.set()

    def sink(self, name, flush_age):
        """A lake on it, as `[[sink]]`."""
        store = {**CREDENTIALS, "aws_endpoint": self.url, "aws_allow_http": "true"}
        options = ", ".join(f'{key} = "{value}"' for key, value in store.items())
        return (
            f'[[sink]]\nname = "{name}"\nkind = "lake"\nurl = "s3://{self.bucket}/lake"\n'
            f'flush = {{ age = "{flush_age}" }}\noptions = {{ store = {{ {options} }} }}\n'
        )

    def end(self):
        self.mend()
        self.proxy.shutdown()
        self.proxy.server_close()
        self.moto.kill()
        self.moto.wait()


def handler(s3):
    """One connection of the proxy: passes everything on, or answers 503 to everything."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # An answer is one write; waiting for more of it would add 40 ms to each.
        wbufsize = -1
        disable_nagle_algorithm = True

        def log_message(self, *_):
            pass

        def answer(self, status, headers, body):
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in OF_ONE_HOP:
                    self.send_header(name, value)
            length = dict((n.lower(), v) for n, v in headers).get("content-length", "0")
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if s3.broken.is_set():
                with s3.lock:
                    s3.turned_away += 1
                if s3.hangs:
                    # The caller may have given up when this is passed on: a write it knows nothing of.
                    s3.well.wait()
                else:
                    return self.answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            upstream = http.client.HTTPConnection("127.0.0.1", s3.port, timeout=60)
            try:
                headers = {n: v for n, v in self.headers.items() if n.lower() not in OF_ONE_HOP}
                upstream.request(self.command, self.path, body, headers)
                got = upstream.getresponse()
                content = got.read()
            finally:
                upstream.close()
            if self.command == "PUT" and got.status == 200:
                with s3.lock:
                    s3.put_at.setdefault(urllib.parse.unquote(self.path.split("?")[0]), time.time())
            return self.answer(got.status, got.getheaders(), content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

    return Handler
