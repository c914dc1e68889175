"""kill -9 while a request or its answer is half on the wire: K1, K2 and K11, which no point inside can name."""

import contextlib
import json
import re
import socket
import time

from .rig import KEY, PATIENCE, Batch, Broken, Client

TINY, ANSWERS = 4096, 8


def sweeps():
    return ["K1", "K2", "K11", "timed"]


def sweep(field, what, cycles=10):
    """Some kills of one kind."""
    for number in range(cycles):
        with field.cycle(f"{what} #{number}") as plot:
            server = plot.server().start()
            if what == "timed":
                field.kill_under_load(server, plot, threads=3)
                field.hits["timed"] += 1
            else:
                hit = {"K1": half_head, "K2": half_body, "K11": half_answer}[what](field, server, plot)
                field.hits[what] += hit
                field.counts["killed"] += 1
            field.recover(plot)
        if field.over() and field.hits[what]:
            return


def request(batch):
    head = (
        "POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(batch.body)}\r\n\r\n"
    )
    return head.encode(), batch.body


def among_others(field, server, plot, cut):
    """Does `cut` on a connection while another client is served, then kills."""
    client = Client(server, plot.journal, seed=field.random.getrandbits(32))
    batch = client.batch(events=20, large=False)
    client.begin(threads=1)
    with socket.create_connection(server.public, timeout=PATIENCE) as half:
        cut(half, *request(batch))
        time.sleep(field.random.random() * 0.01)
        server.kill()
    client.end()
    plot.journal.not_answered(batch)
    return 1


def half_head(field, server, plot):
    return among_others(field, server, plot, lambda half, head, body: half.sendall(head[: len(head) // 2]))


def half_body(field, server, plot):
    return among_others(field, server, plot, lambda half, head, body: half.sendall(head + body[: len(body) // 2]))


def half_answer(field, server, plot):
    """Large answers, asked for in a row, to a client that hardly reads: killed while one of them is being written."""
    client = Client(server, plot.journal, seed=field.random.getrandbits(32))
    batches = [of_dead_letters(f"{client.name}-half-{number}-") for number in range(ANSWERS)]
    with socket.socket() as half:
        half.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TINY)
        half.settimeout(PATIENCE)
        half.connect(server.public)
        # What the server does not take while it cannot answer need not be there either.
        half.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            for batch in batches:
                half.sendall(b"".join(request(batch)))
        half.settimeout(PATIENCE)
        got = half.recv(512)
        server.kill()
        with contextlib.suppress(ConnectionResetError):  # the kernel gave the rest up: cut all the same
            while more := half.recv(65536):
                got += more
    cut = 0
    for batch in batches:
        head, _, rest = got.partition(b"\r\n\r\n")
        if head and not head.startswith(b"HTTP/1.1 200"):
            raise Broken(f"not the answer that was asked for: {head[:300]!r}")
        length = re.search(rb"content-length: ([0-9]+)", head.lower())
        if length and len(rest) >= int(length[1]):
            plot.journal.answered(batch, json.loads(rest[: int(length[1])]))
            got = rest[int(length[1]) :]
        else:
            cut += bool(got)
            plot.journal.not_answered(batch)
            got = b""
    return cut


def of_dead_letters(name):
    """A batch that comes to the longest answer: a hundred errors that name long ids."""
    ids = [f"{name}{n}-".ljust(500, "z") for n in range(100)]
    events = [{"event_type": "click", "event_id": one, "event_time": 1} for one in ids]
    return Batch(json.dumps(events).encode(), [], ids, 0)
