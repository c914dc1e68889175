"""One quota over two edges that share a Redis: what the fleet accepts, with Redis there, stopped, hanging, and back.

    make overload-fleet
    python -m overload.fleet --quota 2000 --seconds 20

Two servers share the tenants' folder and a Redis of this run's own. A tenant sends three times its quota to each of
them, or six times to one. While Redis answers the fleet as a whole must accept the quota within 5 %; while it does not
it must never accept more, and must not stop.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Server, free_ports, wait_until

BATCH = 5


class Redis:
    def __init__(self, folder):
        self.folder = folder
        (self.port,) = free_ports(1)
        self.process = None

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/"

    def start(self):
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        with open(self.folder / "redis.log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--dir", str(self.folder)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        ping = ["redis-cli", "-p", str(self.port), "ping"]
        wait_until("redis answers", lambda: subprocess.run(ping, capture_output=True, text=True).stdout.strip() == "PONG")

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def edge(folder, name, redis, tenants, lease):
    top = f'tenants_dir = "{tenants}"\n[quota_store]\nurl = "{redis.url}"\nedges = 2\nlease = "{lease}"'
    return Server(folder / name, top=top)


def load(server, key, rate, seconds):
    command = server.ctl_command("load", "--rate", rate, "--batch", BATCH, "--duration", f"{seconds}s", "--json")
    return subprocess.Popen(
        command, env=server.ctl_environment(key), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def accepted(edges):
    """Before and after the look, and what each edge has accepted so far."""
    before = time.monotonic()
    given = [server.offsets_given() for server in edges]
    return before, time.monotonic(), given


def measure(name, edges, key, rates, arguments):
    """What part of the quota the fleet accepts once what was saved up is used: about, and surely."""
    loads = [load(s, key, rate, arguments.warm + arguments.seconds + 2) for s, rate in zip(edges, rates) if rate]
    try:
        time.sleep(arguments.warm)
        first, start, before = accepted(edges)
        time.sleep(arguments.seconds)
        end, last, after = accepted(edges)
    finally:
        for one in loads:
            one.send_signal(signal.SIGINT)
            said = one.communicate(timeout=60)[1]
            # 1: nothing was accepted, which the figures will say.
            assert one.returncode in (0, 1), said.decode()[-1000:]
    shares = [(b - a) / (end - start) for a, b in zip(before, after)]
    rate = sum(shares)
    each = " + ".join(f"{share:.0f}" for share in shares)
    print(f"| {name} | {' + '.join(map(str, rates))} | {rate:.0f} ({each}) | {100 * (rate / arguments.quota - 1):+.1f} % |", flush=True)
    # Surely: in all the time between the two looks, and apart from one request at each edge, taken whole.
    events = sum(after) - sum(before) - BATCH * len(edges)
    return rate / arguments.quota, events / (last - first) / arguments.quota


def run(folder, arguments):
    redis = Redis(folder)
    tenants = folder / "tenants"
    tenants.mkdir()
    edges = [edge(folder, name, redis, tenants, arguments.lease) for name in ("one", "two")]
    try:
        redis.start()
        for server in edges:
            server.start()
        key = edges[0].add_tenant("acme", "--events-per-second", arguments.quota)
        wait_until("the other edge knows the tenant", lambda: edges[1].send(b"[]", key).status not in (401, 403))
        both, one = (3 * arguments.quota, 3 * arguments.quota), (6 * arguments.quota, 0)
        print(f"quota: {arguments.quota} events/s; edges: 2; leases every {arguments.lease}; {arguments.seconds:.0f} s each\n")
        print("| Redis | offered to each edge, events/s | accepted by the fleet (by each edge) | against the quota |")
        print("| --- | --- | --- | --- |")
        here = [measure("there, load on both", edges, key, both, arguments)]
        here.append(measure("there, load on one", edges, key, one, arguments))
        redis.kill()
        away = [measure("stopped, load on both", edges, key, both, arguments)]
        away.append(measure("stopped, load on one", edges, key, one, arguments))
        redis.start()
        here.append(measure("back, load on both", edges, key, both, arguments))
        redis.process.send_signal(signal.SIGSTOP)
        away.append(measure("hanging, load on both", edges, key, both, arguments))
        redis.process.send_signal(signal.SIGCONT)
        here.append(measure("well again, load on both", edges, key, both, arguments))
        for server in edges:
            audit = server.audit()
            assert audit["balanced"] and audit["difference"] == 0, audit
    except BaseException:
        for server in edges:
            print(server.logs()[-2000:])
        raise
    finally:
        for server in edges:
            server.end()
        redis.kill()
    off = max(abs(about - 1) for about, _ in here)
    most, least = max(surely for _, surely in away), min(about for about, _ in away)
    assert off <= 0.05, f"with Redis the fleet is {100 * off:.1f} % off its quota"
    assert most <= 1, f"without Redis the fleet accepts {100 * most:.1f} % of its quota"
    assert least >= 0.25, f"without Redis the fleet accepts only {100 * least:.1f} % of its quota"
    print(f"\nwith Redis at most {100 * off:.1f} % off the quota (5), without at most {100 * most:.1f} % of it (100)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quota", type=int, default=2000, help="events a second (2000)")
    parser.add_argument("--seconds", type=float, default=15, help="each measurement (15)")
    parser.add_argument("--warm", type=float, default=5, help="seconds of load before each, uncounted (5)")
    parser.add_argument("--lease", default="200ms", help="how often leases are taken (200ms)")
    arguments = parser.parse_args()
    if not shutil.which("redis-server"):
        sys.exit("redis-server is not installed: scripts/need.sh redis")
    with tempfile.TemporaryDirectory(prefix="tidegate-fleet-") as folder:
        run(Path(folder), arguments)


if __name__ == "__main__":
    main()
