"""A loopback proxy before one broker, which loses the answers to requests of one kind when it is told to."""

import contextlib
import socket
import struct
import threading

# Numbers of requests in Kafka's protocol.
PRODUCE, INIT_PRODUCER_ID, END_TRANSACTION = 0, 22, 26


class Front:
    """Stands where the broker says that it is: give its address as `advertised.listeners`."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.broker = None
        # Which kind of request loses its answer, and how often still; and how many did.
        self.kind, self.left, self.lost = None, 0, 0
        self.lock = threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    @property
    def address(self):
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def lose(self, kind, left):
        with self.lock:
            self.kind, self.left = kind, left

    def takes(self, kind):
        with self.lock:
            if kind != self.kind or self.left <= 0:
                return False
            self.left -= 1
            return True

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        try:
            broker = socket.create_connection(("127.0.0.1", self.broker))
        except OSError:
            client.close()
            return
        # Correlation ids of requests whose answer is not passed on.
        doomed = set()
        back = threading.Thread(target=self.back, args=(broker, client, doomed), daemon=True)
        back.start()
        with contextlib.suppress(OSError):
            while frame := read(client):
                kind, _, correlation = struct.unpack(">hhi", frame[:8])
                if self.takes(kind):
                    doomed.add(correlation)
                broker.sendall(struct.pack(">i", len(frame)) + frame)
        end(broker)

    def back(self, broker, client, doomed):
        with contextlib.suppress(OSError):
            while frame := read(broker):
                if struct.unpack(">i", frame[:4])[0] in doomed:
                    # The broker has done it, and nobody hears of it.
                    self.lost += 1
                    break
                client.sendall(struct.pack(">i", len(frame)) + frame)
        end(client)
        end(broker)

    def end(self):
        self.listener.close()


def read(connection):
    """One frame; nothing at the end."""
    length = exactly(connection, 4)
    return exactly(connection, struct.unpack(">i", length)[0]) if length else b""


def exactly(connection, count):
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            return b""
        parts += part
    return bytes(parts)


def end(connection):
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
