"""Stands between a client and servers: passes requests on, or does to one what a test says."""

import http.client
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


class Front:
    """`faults` are used up one by one, each by one request; later ones are passed on.

    "busy": the request goes to `busy`, a server that refuses everything. "lost request": the connection is cut before
    anybody is asked. "lost answer": the server is asked, and the connection cut instead of its answer.
    """

    def __init__(self, server, busy, faults=()):
        self.server, self.busy, self.faults = server, busy, deque(faults)
        # (what was done, the status it answered or None)
        self.seen = []
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def body(self):
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def serve(self):
                body = self.body()
                with front.lock:
                    fault = front.faults.popleft() if front.faults else "pass"
                status = None
                if fault != "lost request":
                    status, headers, answer = front.ask(front.busy if fault == "busy" else front.server, self, body)
                front.seen.append((fault, status))
                if fault.startswith("lost"):
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_OPTIONS = serve

        self.lock = threading.Lock()
        self.listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.listener.daemon_threads = True
        self.port = self.listener.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.listener.serve_forever, args=(0.02,), daemon=True).start()

    @staticmethod
    def ask(server, request, body):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        try:
            headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def end(self):
        self.listener.shutdown()
        self.listener.server_close()
