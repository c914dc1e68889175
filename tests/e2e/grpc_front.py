"""Stands between a client of gRPC and servers: passes connections on frame by frame, or does to one what a test says."""

import socket
import struct
import threading
from collections import deque

PREFACE = 24
DATA, HEADERS, RESET = 0, 1, 3
END_STREAM = 1


class Front:
    """`faults` are used up one by one, each by one connection; later ones are passed on.

    "busy": the call goes to `busy`, a server that refuses everything, and the connection ends behind its answer. "lost request":
    the connection is cut when a call begins, before anybody is asked. "lost answer": the server is asked, and the connection cut
    instead of its answer.
    """

    def __init__(self, server, busy, faults=()):
        self.server, self.busy, self.faults, self.seen = server, busy, deque(faults), []
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with self.lock:
                fault = self.faults.popleft() if self.faults else "pass"
            threading.Thread(target=self.serve, args=(client, fault), daemon=True).start()

    def serve(self, client, fault):
        target = self.busy if fault == "busy" else self.server
        try:
            server = socket.create_connection(("127.0.0.1", target.port), timeout=30)
        except OSError:
            client.close()
            return
        client.settimeout(60)
        server.settimeout(60)
        threading.Thread(target=self.ask, args=(client, server, fault), daemon=True).start()
        try:
            for kind, flags, stream, frame in frames(server):
                answer = stream != 0 and kind in (DATA, HEADERS, RESET)
                if not (answer and fault == "lost answer"):
                    client.sendall(frame)
                if answer and kind == HEADERS and flags & END_STREAM:
                    self.seen.append(fault)
                    if fault != "pass":
                        break
        except OSError:
            pass
        finally:
            cut(client, server)

    def ask(self, client, server, fault):
        try:
            server.sendall(exactly(client, PREFACE))
            for kind, _, stream, frame in frames(client):
                if fault == "lost request" and stream != 0 and kind == HEADERS:
                    self.seen.append(fault)
                    break
                server.sendall(frame)
        except OSError:
            pass
        finally:
            if fault == "lost request":
                cut(client, server)

    def end(self):
        self.listener.close()


def cut(*sockets):
    for one in sockets:
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        one.close()


def exactly(stream, count):
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise OSError("it ended")
        data += more
    return data


def frames(stream):
    """HTTP/2's frames: kind, flags, stream, all of its bytes."""
    while True:
        head = exactly(stream, 9)
        length = int.from_bytes(head[:3], "big")
        kind, flags, number = struct.unpack(">BBI", head[3:])
        yield kind, flags, number & 0x7FFFFFFF, head + exactly(stream, length)
