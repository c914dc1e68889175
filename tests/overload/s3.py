"""A real S3 server (moto's, or S3Proxy) behind a loopback proxy that can be told to fail, and who sent what when."""

import contextlib
import http.client
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import botocore.config
import maven
import pyarrow.fs
from harness import free_ports, http as ask, wait_until

REGION = "us-east-1"
# Moto checks no signature, but takes an object's rights from who is named.
CREDENTIALS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "aws_region": REGION}
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
CONFLICT = (
    b"<Error><Code>ConditionalRequestConflict</Code><Message>A conflicting conditional operation is currently in progress"
    b" against this resource. Please try again.</Message></Error>"
)
# From Maven's registry; a second implementation of S3, which checks signatures and keeps files in a folder.
S3PROXY = "org.gaul:s3proxy:2.9.0:jar:jar-with-dependencies"
S3PROXY_JAR = "org/gaul/s3proxy/2.9.0/s3proxy-2.9.0-jar-with-dependencies.jar"
# Headers that concern one connection only.
OF_ONE_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclass
class Request:
    """One request as the proxy passed it on, and what the store said."""

    method: str
    path: str
    bytes: int
    create_only: bool
    authorization: str
    status: int


def moto(port, folder):
    """Moto's server: keeps all in memory and takes any key."""
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


def s3proxy(port, folder):
    """S3Proxy on a folder; takes the key `test` with the secret `test` and no other."""
    jar = maven.MAVEN / S3PROXY_JAR
    if not jar.exists():
        maven.maven("dependency:get", f"-Dartifact={S3PROXY}", "-Dtransitive=false")
    files = folder / "s3proxy"
    files.mkdir()
    settings = folder / "s3proxy.properties"
    settings.write_text(
        f"s3proxy.endpoint=http://127.0.0.1:{port}\ns3proxy.authorization=aws-v2-or-v4\ns3proxy.identity=test\n"
        f"s3proxy.credential=test\njclouds.provider=filesystem-nio2\njclouds.filesystem.basedir={files}\n"
    )
    return ["java", "-Xmx256m", "-jar", str(jar), "--properties", str(settings)]


def why_no_s3proxy():
    """What is missing to run it; `None` where nothing is."""
    missing = [program for program in ("java", "mvn") if not shutil.which(program)]
    return f"S3Proxy needs {' and '.join(missing)}" if missing else None


class S3:
    """A bucket on a real server, reached by the server under test through a proxy that fails when told to."""

    def __init__(self, folder, bucket="lake", engine=moto):
        self.bucket = bucket
        (self.port,) = free_ports(1)
        self.broken = threading.Event()
        # True: it takes requests and answers none of them until it is well again.
        self.hangs = False
        # Called with a Request before a request is passed on (its status is 0) and after; what it returns
        # is what the proxy does instead: "503", "409", "drop" (no answer), "overwrite" (without its condition).
        self.fault = None
        self.requests = []
        self.well = threading.Event()
        self.well.set()
        self.turned_away = 0
        # {object: when its put was answered with 200}, by the wall clock, as a file's times are.
        self.put_at = {}
        self.lock = threading.Lock()
        command = engine(self.port, folder)
        with open(folder / f"{engine.__name__}.log", "wb") as log:
            self.store = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until("the store answers", lambda: ask("GET", f"http://127.0.0.1:{self.port}/").status, timeout=60)
            if bucket:
                self.make_bucket()
            self.proxy = None
            self.back()
        except BaseException:
            self.store.kill()
            raise

    def back(self):
        """The proxy listens (again), always on the same port."""
        port, self.gone = self.proxy.server_address[1] if self.proxy else 0, False
        self.proxy = ThreadingHTTPServer(("127.0.0.1", port), handler(self))
        self.proxy.daemon_threads = True
        threading.Thread(target=self.proxy.serve_forever, daemon=True).start()

    def away(self):
        """Connections are refused from now on, and those that are open end."""
        self.gone = True
        self.proxy.shutdown()
        self.proxy.server_close()

    def client(self):
        """The store as boto3 sees it, past the proxy."""
        config = botocore.config.Config(
            s3={"addressing_style": "path"}, request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )  # fmt: skip
        return boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.port}", aws_access_key_id="test", aws_secret_access_key="test",
            region_name=REGION, config=config,
        )  # fmt: skip

    def make_bucket(self):
        self.client().create_bucket(Bucket=self.bucket)

    def objects(self, prefix=""):
        """{name: bytes} of all objects under `prefix`. One that goes between list and get is left out:
        S3Proxy lists an object under another name while it is being written."""
        client, found = self.client(), {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                with contextlib.suppress(client.exceptions.NoSuchKey):
                    found[item["Key"]] = client.get_object(Bucket=self.bucket, Key=item["Key"])["Body"].read()
        return found

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
        self.away()
        self.store.kill()
        self.store.wait()


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
            if s3.gone:
                self.close_connection = True
                return None
            if s3.broken.is_set():
                with s3.lock:
                    s3.turned_away += 1
                if s3.hangs:
                    # The caller may have given up when this is passed on: a write it knows nothing of.
                    s3.well.wait()
                else:
                    return self.answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            headers = {n: v for n, v in self.headers.items() if n.lower() not in OF_ONE_HOP}
            condition = next((n for n in headers if n.lower() == "if-none-match"), None)
            named = self.headers.get("Authorization", "")
            request = Request(self.command, urllib.parse.unquote(self.path), len(body), condition is not None, named, 0)
            fault = s3.fault(request) if s3.fault else None
            if fault == "503":
                return self.answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            if fault == "409":
                return self.answer(409, [("Content-Type", "application/xml")], CONFLICT)
            if fault == "overwrite" and condition:
                del headers[condition]
            upstream = http.client.HTTPConnection("127.0.0.1", s3.port, timeout=60)
            try:
                upstream.request(self.command, self.path, body, headers)
                got = upstream.getresponse()
                content = got.read()
            finally:
                upstream.close()
            request.status = got.status
            with s3.lock:
                s3.requests.append(request)
                if self.command == "PUT" and got.status == 200:
                    s3.put_at.setdefault(request.path.split("?")[0], time.time())
            fault = s3.fault(request) if s3.fault else None
            if fault == "drop":
                self.close_connection = True
                return None
            if fault == "503":
                return self.answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            return self.answer(got.status, got.getheaders(), content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

    return Handler
