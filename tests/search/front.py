"""A loopback proxy before OpenSearch that passes everything on, and spoils bulks when it is told to."""

import contextlib
import gzip
import http.client
import json
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Headers that concern one connection only.
OF_ONE_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


class Front:
    """`spoil("drop_answer", 3)` does so to the next three bulks."""

    def __init__(self, engine, pem=None, authorization=None):
        self.engine, self.pem, self.authorization = engine, pem, authorization
        self.what, self.left, self.options = "", 0, {}
        # Every bulk that came: its stream, its ids, its headers, its bytes, and whether it was passed on.
        self.bulks = []
        self.searches = 0
        self.endless_bytes = 0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.server.daemon_threads = True
        if pem:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"{'https' if self.pem else 'http'}://127.0.0.1:{self.server.server_address[1]}"

    def spoil(self, what, left, **options):
        with self.lock:
            self.what, self.left, self.options = what, left, options

    def take(self):
        """What happens to the bulk that came now."""
        with self.lock:
            if self.left <= 0:
                return "", {}
            self.left -= 1
            return self.what, self.options

    def end(self):
        self.server.shutdown()
        self.server.server_close()


def items(ids, index, **answer):
    """An answer to a bulk in which every document has the same fate."""
    return json.dumps({"errors": True, "items": [{"create": {"_index": index, "_id": one, **answer}} for one in ids]}).encode()


BUSY = {"status": 429, "error": {"type": "es_rejected_execution_exception", "reason": "rejected execution of primary operation"}}
TROUBLE = {"status": 503, "error": {"type": "unavailable_shards_exception", "reason": "primary shard is not active"}}


def handler(front):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # An answer is one write; waiting for more of it would add 40 ms to each.
        wbufsize = -1
        disable_nagle_algorithm = True

        def log_message(self, *_):
            pass

        def answer(self, status, body, content_type="application/json"):
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def cut(self):
            """Ends the connection without a word."""
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def endless(self):
            """An answer that has no end, until nobody reads it any more."""
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b" " * (1 << 20))
                    front.endless_bytes += 1 << 20

        def upstream(self, body, method=None, path=None):
            headers = {n: v for n, v in self.headers.items() if n.lower() not in OF_ONE_HOP}
            connection = http.client.HTTPConnection("127.0.0.1", front.engine.port, timeout=60)
            try:
                connection.request(method or self.command, path or self.path, body, headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
            finally:
                connection.close()

        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if front.authorization and self.headers.get("Authorization") != front.authorization:
                reason = {"type": "security_exception", "reason": "missing authentication credentials"}
                return self.answer(401, json.dumps({"error": reason, "status": 401}).encode())
            path = self.path.split("?")[0]
            try:
                if path.endswith("/_bulk"):
                    return self.bulk(path.split("/")[-2], body)
                front.searches += path.endswith("/_search")
                self.answer(*self.upstream(body))
            except OSError:
                # The engine is away, or the client is.
                self.cut()

        def bulk(self, stream, body):
            lines = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            ids = [json.loads(line)["create"]["_id"] for line in lines.splitlines()[::2]]
            bulk = {"stream": stream, "ids": ids, "headers": {n.lower(): v for n, v in self.headers.items()}, "bytes": len(lines), "ended": False}
            what, options = front.take()
            front.bulks.append(bulk)
            if what == "drop_request":
                return self.cut()
            if what == "endless":
                return self.endless()
            if what == "proxy_page":
                return self.answer(200, b"<html>Welcome</html>", "text/html")
            if what == "busy":
                return self.answer(429, json.dumps({"error": BUSY["error"], "status": 429}).encode())
            if what == "too_large" and len(ids) > options["documents"]:
                return self.answer(413, b"<html>Request Entity Too Large</html>", "text/html")
            if what == "late_request":
                time.sleep(options["seconds"])
            if what in ("some_busy", "some_in_trouble"):
                return self.some(what, lines, ids, bulk)
            status, found = self.upstream(body)
            bulk["ended"] = True
            if what.startswith("rollover"):
                self.upstream(b"", "POST", f"/{stream}/_rollover")
            if what in ("drop_answer", "rollover_and_drop_answer"):
                return self.cut()
            if what == "late_answer":
                time.sleep(options["seconds"])
            if what == "bad_gateway":
                return self.answer(502, b"no answer from upstream", "text/plain")
            if what == "unsure":
                return self.answer(200, items(ids, stream, **TROUBLE))
            self.answer(status, found)

        def some(self, what, lines, ids, bulk):
            """Every third document is refused; those in trouble are applied all the same."""
            lines = lines.splitlines(keepends=True)
            kept = [n for n in range(len(ids)) if what == "some_in_trouble" or n % 3]
            body = b"".join(lines[2 * n] + lines[2 * n + 1] for n in kept)
            del self.headers["Content-Encoding"]
            path = self.path.split("?")[0]
            status, found = self.upstream(body, path=path) if body else (200, b'{"items":[]}')
            assert status == 200, found
            answered, fate = iter(json.loads(found)["items"]), {}
            for n in kept:
                fate[n] = next(answered)
            for n in range(0, len(ids), 3):
                told = BUSY if what == "some_busy" else TROUBLE
                fate[n] = {"create": {"_index": bulk["stream"], "_id": ids[n], **told}}
            bulk["ended"] = True
            self.answer(200, json.dumps({"errors": True, "items": [fate[n] for n in range(len(ids))]}).encode())

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

    return Handler
