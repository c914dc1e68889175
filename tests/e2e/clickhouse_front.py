"""ClickHouse's own engine (chdb) behind its HTTP interface: `python clickhouse_front.py FOLDER PORT [PASSWORD [PEM]]`.

Nothing but a transport: statements, settings and blocks go to the engine as they come, its answers and exceptions
back. It prints its port once it listens on it. Besides, it can be told to spoil what comes between the two:
`POST /spoil` with `{"what": "drop_answer", "left": 3}` does so to the next three inserts,
`POST /cut` with `{"at": 2, "what": "drop_answer"}` to the third statement from now on that changes tables.
"""

import json
import os
import re
import socket
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import chdb

# What is no setting of the statement's.
TRANSPORT = ("query", "query_id", "wait_end_of_query", "database")
# What makes, fills, changes or drops tables, and is no insert of rows from outside.
CHANGE = re.compile(r"\s*(CREATE|DROP|ALTER|INSERT)\b", re.S)
INSERT = re.compile(r"\s*(INSERT INTO .*) FORMAT (\w+)\s*", re.S)
FORMAT = re.compile(r"(.*) FORMAT (\w+)\s*", re.S)
CODE = re.compile(r"Code: (\d+)\.")


class Engine:
    """One engine, asked one thing at a time."""

    def __init__(self, folder):
        self.connection = chdb.connect(folder)
        self.block = Path(folder) / "block"
        self.lock = threading.Lock()

    def run(self, statement, settings, data):
        # An insert reads its data from a file: the engine's stream of pieces loses exceptions, and behind a
        # statement it takes two line ends for the end.
        insert, asked = INSERT.fullmatch(statement), FORMAT.fullmatch(statement)
        with self.lock:
            if insert:
                self.block.write_bytes(data)
                path = str(self.block).replace("\\", "\\\\").replace("'", "\\'")
                self.connection.query(f"{insert[1]} FROM INFILE '{path}'{clause(settings)} FORMAT {insert[2]}")
            elif asked:
                return self.connection.query(asked[1] + clause(settings), asked[2]).bytes()
            else:
                self.connection.query(statement)
        return b""


def clause(settings):
    if not settings:
        return ""
    pairs = []
    for name, value in settings:
        if not re.fullmatch(r"[a-z_0-9]+", name):
            raise RuntimeError(f"Code: 115. DB::Exception: no setting is named {name!r}")
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        pairs.append(f"{name} = '{quoted}'")
    return " SETTINGS " + ", ".join(pairs)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine = None
    # What is to be spoiled, how often still, and how many inserts came.
    spoil = {"what": "", "left": 0}
    inserts = []
    # The changes that came, and what is to happen at which of them: "drop_request", "drop_answer", "die_before",
    # "die_after", or "late": cut at once and run some seconds later; "alone": what comes until then is cut too.
    changes = []
    cut_at = {"at": -1, "what": ""}
    user = ("default", "")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        if url.path == "/spoil":
            Handler.spoil = json.loads(body)
            return self.answer(200, b"")
        if url.path == "/cut":
            Handler.changes, Handler.cut_at = [], json.loads(body)
            return self.answer(200, b"")
        if url.path == "/changes":
            return self.answer(200, json.dumps(Handler.changes).encode())
        if url.path == "/inserts":
            return self.answer(200, json.dumps(Handler.inserts).encode())
        fields = parse_qsl(url.query, keep_blank_values=True)
        given = dict(fields)
        settings = [(name, value) for name, value in fields if name not in TRANSPORT]
        statement, data = (given["query"], body) if "query" in given else (body.decode(), b"")
        told = (self.headers.get("X-ClickHouse-User", "default"), self.headers.get("X-ClickHouse-Key", ""))
        if told != Handler.user:
            return self.refuse("Code: 516. DB::Exception: default: Authentication failed", 403)
        spoiled, insert = "", {}
        if CHANGE.match(statement) and not INSERT.fullmatch(statement):
            Handler.changes.append(statement)
            if len(Handler.changes) == Handler.cut_at["at"] + 1:
                spoiled = Handler.cut_at["what"]
            elif Handler.cut_at.get("pending"):
                spoiled = "drop_request"
        if INSERT.fullmatch(statement):
            insert = {"statement": statement, "bytes": len(data), "ended": False, "held_up": False, "number": len(Handler.inserts)}
            insert.update(settings)
            Handler.inserts.append(insert)
            if Handler.spoil["left"] > 0:
                Handler.spoil["left"] -= 1
                spoiled = Handler.spoil["what"]
        if spoiled == "drop_request":
            return self.cut()
        if spoiled == "die_before":
            os._exit(1)
        if spoiled == "late":
            Handler.cut_at["pending"] = Handler.cut_at["alone"]
            threading.Timer(Handler.cut_at["seconds"], self.run_late, [statement, settings]).start()
            return self.cut()
        if spoiled == "proxy_page":
            return self.answer(200, b"<html>Welcome</html>")
        if spoiled == "late_request":
            self.hold_up(insert)
        try:
            found = self.engine.run(statement, settings, data)
        except Exception as error:  # whatever the engine raises is its answer
            return self.refuse(str(error))
        insert["ended"] = True
        if spoiled == "die_after":
            os._exit(1)
        if spoiled == "drop_answer":
            return self.cut()
        if spoiled == "late_answer":
            self.hold_up(insert)
        if spoiled == "bad_gateway":
            return self.answer(502, b"no answer from upstream")
        self.answer(200, found, {"X-ClickHouse-Query-Id": given.get("query_id", "")})

    def run_late(self, statement, settings):
        try:
            self.engine.run(statement, settings, b"")
            Handler.changes.append(f"late: {statement}")
        except Exception as error:  # nobody waits for it any more
            Handler.changes.append(f"late and refused: {error}")
        Handler.cut_at["pending"] = False

    def hold_up(self, insert):
        """For some seconds, or until something else is to be spoiled, or nothing."""
        orders = Handler.spoil
        insert["held_up"] = True
        if orders.get("until_told"):
            while Handler.spoil is orders:
                time.sleep(0.02)
        else:
            time.sleep(orders.get("seconds", 2))
        insert["held_up"] = False

    def refuse(self, text, status=500):
        text = text[max(text.find("Code: "), 0) :]
        code = CODE.match(text)
        self.answer(status, text.encode(), {"X-ClickHouse-Exception-Code": code[1]} if code else {})

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def cut(self):
        """Ends the connection without a word."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_):
        pass


def main():
    folder, port = sys.argv[1], int(sys.argv[2])
    Handler.engine = Engine(folder)
    if len(sys.argv) > 3:
        Handler.user = ("default", sys.argv[3])
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    if len(sys.argv) > 4:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[4])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
