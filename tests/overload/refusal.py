"""What a refusal costs: CPU time of the server for each request that it refuses, by reason.

    make overload-refusal                       fails above 20 µs
    python -m overload.refusal --profile        also where the time goes (needs perf)

Keep-alive connections send requests of one small event, as fast as they are answered, each answered before the next is
sent. User and system time of the server are divided by the answers. `/healthz` beside it is what the HTTP library and
the sockets cost with nothing behind them.
"""

import argparse
import collections
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Server, wait_until

TICKS = os.sysconf("SC_CLK_TCK")
EVENT = b'{"event_type":"refused","n":1,"text":"' + b"x" * 400 + b'"}'


def cpu(pid):
    """User and system seconds so far, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


class Flood:
    """Connections that send the same request again and again."""

    def __init__(self, port, request, connections):
        self.port, self.request = port, request
        self.poll = select.epoll()
        self.open, self.partial = {}, {}
        self.answers, self.opened = collections.Counter(), 0
        for _ in range(connections):
            self.connect()

    def connect(self):
        one = socket.create_connection(("127.0.0.1", self.port))
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.open[one.fileno()] = one
        self.partial[one.fileno()] = b""
        self.poll.register(one, select.EPOLLIN)
        self.opened += 1
        one.sendall(self.request)

    def leave(self, number):
        self.poll.unregister(number)
        self.open.pop(number).close()
        del self.partial[number]

    def run(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for number, _ in self.poll.poll(0.1):
                self.turn(number)

    def turn(self, number):
        one = self.open[number]
        try:
            data = one.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            self.leave(number)
            return self.connect()
        data = self.partial[number] + data
        head, found, body = data.partition(b"\r\n\r\n")
        lower = head.lower()
        length = int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0]) if found else 0
        if not found or len(body) < length:
            self.partial[number] = data
            return None
        self.partial[number] = b""
        reason = lower.partition(b"x-shed-reason: ")[2].split(b"\r\n")[0].decode()
        self.answers[int(head[9:12]), reason] += 1
        if b"connection: close" in lower:
            self.leave(number)
            return self.connect()
        return one.sendall(self.request)

    def end(self):
        for number in list(self.open):
            self.leave(number)
        self.poll.close()


def post(key, declared=len(EVENT), body=EVENT):
    head = f"POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {declared}\r\n\r\n".encode() + body


def measure(server, name, request, expected, arguments):
    """CPU microseconds, user and system, for each answer."""
    flood = Flood(server.port, request, arguments.connections)
    try:
        flood.run(1)
        flood.answers.clear()
        opened, before = flood.opened, cpu(server.pid)
        profile = profiler(server, name, arguments) if arguments.profile else None
        start = time.monotonic()
        flood.run(arguments.seconds)
        elapsed = time.monotonic() - start
        after = cpu(server.pid)
    finally:
        flood.end()
    answers = sum(flood.answers.values())
    assert set(flood.answers) == {expected}, f"{name}: {dict(flood.answers)}"
    user, system = ((b - a) * 1e6 / answers for a, b in zip(before, after))
    again = (flood.opened - opened) / answers
    print(f"| {name} | {answers / elapsed:,.0f} | {again:.2f} | {user:.1f} | {system:.1f} | {user + system:.1f} |", flush=True)
    if profile:
        report(profile)
    return user + system


def profiler(server, name, arguments):
    data = Path(tempfile.gettempdir(), f"tidegate-refusal-{os.getpid()}.perf")
    command = ["perf", "record", "-q", "-F", "2999", "-g", "-p", str(server.pid), "-o", str(data)]
    command += ["--", "sleep", str(arguments.seconds - 0.5)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), data


def report(profile):
    process, data = profile
    process.wait(60)
    command = ["perf", "report", "-i", str(data), "--no-children", "-g", "none", "--percent-limit", "0.8", "--stdio"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("#")]
    print("\n".join(lines[:45]))
    data.unlink(missing_ok=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8, help="for each reason (8)")
    parser.add_argument("--connections", type=int, default=64, help="at once (64)")
    parser.add_argument("--most", type=float, default=20, help="microseconds that a refusal may cost (20)")
    parser.add_argument("--profile", action="store_true", help="where the time goes, by perf")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidegate-refusal-") as folder:
        log = 'segment_bytes = "1MiB"\nbacklog_bytes = "2MiB"'
        server = Server(folder, log=log, edge='[edge.timeouts]\nbody = "5s"\nbody_idle = "5s"')
        try:
            costs = all_reasons(server.start(), arguments)
        finally:
            server.end()
    dear = {name: cost for name, cost in costs.items() if cost > arguments.most}
    if dear:
        sys.exit(f"dearer than {arguments.most:.0f} µs: " + ", ".join(f"{n} {c:.1f} µs" for n, c in dear.items()))
    print(f"every refusal costs at most {max(costs.values()):.1f} µs of CPU (bound: {arguments.most:.0f})")


def all_reasons(server, arguments):
    over_events = server.add_tenant("over-events", "--events-per-second", "1")
    over_bytes = server.add_tenant("over-bytes", "--bytes-per-second", "100")
    free = server.add_tenant("free")
    # More than the burst passes once while the bucket is full, and leaves a debt for the whole run.
    many = b'{"event_type":"refused"}\n' * 50_000
    for key in (over_events, over_bytes):
        sent = lambda key=key: server.send(many, key, content_type="application/x-ndjson").status == 200  # noqa: E731
        wait_until("more than the burst passes while the bucket is full", sent)
    print("| what | answers/s | connections an answer | user µs | system µs | CPU µs |\n| --- | --- | --- | --- | --- | --- |")
    health = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    measure(server, "200 /healthz, for comparison", health, (200, ""), arguments)
    costs = {}
    for reason, key, status in (("quota_bytes", over_bytes, 429), ("quota_events", over_events, 429)):
        costs[reason] = measure(server, f"{status} {reason}", post(key), (status, reason), arguments)
    # No sink writes any more: the backlog's bound is reached.
    server.settle()
    server.lake.rename(server.folder / "away")
    server.lake.write_text("no folder")
    fill = b"{" + b'"event_type":"refused","x":"' + b"y" * 200_000 + b'"}'
    wait_until("the backlog is full", lambda: server.send(fill, free).status == 503)
    costs["log_full"] = measure(server, "503 log_full", post(free), (503, "log_full"), arguments)
    return costs


if __name__ == "__main__":
    main()
