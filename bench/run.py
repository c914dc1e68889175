#!/usr/bin/env python3
"""The whole pipeline on one machine: `ingestctl load` against a release `ingestd`, and what it cost.

Prints a table, and with --json FILE the same as JSON. Uses a data folder of its own, on --folder's disk.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import duckdb

REPOSITORY = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=30, help="how long to send (30)")
    parser.add_argument("--events", type=int, default=500, help="events a request (500)")
    parser.add_argument("--event-bytes", type=int, default=500, help="bytes an event (500)")
    parser.add_argument("--connections", type=int, default=8, help="requests in flight (8)")
    parser.add_argument("--rate", type=int, help="events a second, open loop; without it as fast as answers come")
    parser.add_argument("--ids", action="store_true", help="an event_id in each event")
    parser.add_argument("--dedup-window", default="10m", help="how long ids are remembered; 0s: not at all (10m)")
    parser.add_argument("--flush-age", default="1s", help="the lake's flush age (1s)")
    parser.add_argument("--profile", default="release", help="which build (release)")
    parser.add_argument("--folder", help="where the data folder is made (target/bench)")
    parser.add_argument("--json", help="write the result here too")
    return parser.parse_args()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read() or b"null")


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_bytes(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmHWM in /proc/<pid>/status")


class Visible(threading.Thread):
    """Notes when each file of the lake got its name; looks every 20 ms, which is the error of the result."""

    def __init__(self, root):
        super().__init__(daemon=True)
        self.root, self.seen, self.stopped = root, {}, threading.Event()

    def look(self):
        now = time.time()
        for folder, _, names in os.walk(self.root):
            for name in names:
                if name.endswith(".parquet"):
                    self.seen.setdefault(os.path.join(folder, name), now)

    def run(self):
        while not self.stopped.wait(0.02):
            self.look()

    def percentiles(self):
        """Received to visible over events, in seconds: p50, p95, p99."""
        connection = duckdb.connect()
        connection.execute("create table seen (filename varchar, visible_at double)")
        connection.executemany("insert into seen values (?, ?)", list(self.seen.items()))
        return connection.execute(
            "select quantile_cont(visible_at - epoch(received_at), [0.5, 0.95, 0.99]) from"
            f" read_parquet('{self.root}/**/*.parquet', filename = true, union_by_name = true) join seen using (filename)"
        ).fetchall()[0][0]


def wait_for(what, condition, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(0.05)
    raise SystemExit(f"after {seconds} s still not so: {what}")


def machine():
    model = next((l.split(":")[1].strip() for l in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in l), "?")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) >> 20
    return f"{model}, {os.cpu_count()} cores, {memory} GiB, Linux {platform.release()}"


def measure(options, folder):
    binaries = REPOSITORY / "target" / options.profile
    public, admin = free_port(), free_port()
    lake = folder / "lake"
    config = folder / "tidegate.toml"
    config.write_text(
        f"""[edge]
listen = "127.0.0.1:{public}"
[admin]
listen = "127.0.0.1:{admin}"
[log]
dir = {json.dumps(str(folder / "data"))}
dedup_window = {json.dumps(options.dedup_window)}
[[sink]]
name = "lake"
kind = "lake"
url = {json.dumps(str(lake))}
flush = {{ age = {json.dumps(options.flush_age)} }}
"""
    )
    environment = dict(os.environ, TIDEGATE_ADMIN_URL=f"http://127.0.0.1:{admin}", TIDEGATE_URL=f"http://127.0.0.1:{public}")
    with open(folder / "ingestd.log", "wb") as log:
        server = subprocess.Popen([binaries / "ingestd", "--config", config], stdout=log, stderr=log)
    try:
        wait_for("ingestd is ready", lambda: get(f"http://127.0.0.1:{admin}/readyz")["ready"], 30)
        added = subprocess.run(
            [binaries / "ingestctl", "tenant", "add", "bench", "--json"], env=environment, check=True, capture_output=True
        )
        environment["TIDEGATE_KEY"] = json.loads(added.stdout)["key"]
        command = [
            str(binaries / "ingestctl"), "load", "--duration", f"{options.seconds}s", "--batch", str(options.events),
            "--event-bytes", str(options.event_bytes), "--connections", str(options.connections), "--seed", "1", "--json",
        ]  # fmt: skip
        if options.ids:
            command.append("--ids")
        if options.rate:
            command += ["--rate", str(options.rate)]
        visible = Visible(lake / "events")
        visible.start()
        server_before, started = cpu_seconds(server.pid), time.monotonic()
        client_before = os.times()
        report = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
        client_after = os.times()
        def caught_up():
            return all(s["lag_events"] == 0 for s in get(f"http://127.0.0.1:{admin}/api/v1/status")["sinks"])
        wait_for("the lake has caught up", caught_up, 300)
        whole = time.monotonic() - started
        visible.stopped.set()
        visible.join()
        visible.look()
        server_cpu = cpu_seconds(server.pid) - server_before
        peak = peak_bytes(server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    client_cpu = sum(client_after[2:4]) - sum(client_before[2:4])
    stored = duckdb.sql(f"select count(*) from read_parquet('{lake}/events/**/*.parquet')").fetchall()[0][0]
    if stored != report["accepted"]:
        raise SystemExit(f"{report['accepted']} events were acknowledged, {stored} are in the lake: no result")
    millions = report["accepted"] / 1e6
    p50, p95, p99 = visible.percentiles()
    return {
        "machine": machine(),
        "command": " ".join(["ingestctl", *command[1:]]),
        "events": report["accepted"],
        "codes": report["codes"],
        "acknowledged_events_per_second": report["events_per_second"],
        "megabytes_per_second": report["events_per_second"] * options.event_bytes / 1e6,
        "end_to_end_events_per_second": report["accepted"] / whole,
        "cpu_seconds_per_million_events": {"server": server_cpu / millions, "client": client_cpu / millions},
        "peak_resident_mebibytes": peak / (1 << 20),
        "answer_latency_ms": report["latency_ms"],
        "received_to_visible_seconds": {"p50": p50, "p95": p95, "p99": p99},
    }


def show(result, indent=""):
    for name, value in result.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            show(value, indent + "  ")
        else:
            print(f"{indent}{name}: {value:,.3f}" if isinstance(value, float) else f"{indent}{name}: {value}")


def main():
    options = arguments()
    base = Path(options.folder) if options.folder else REPOSITORY / "target" / "bench"
    base.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=base))
    try:
        result = measure(options, folder)
    except (Exception, SystemExit):
        print(f"the data folder and the server's log are kept: {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
    show(result)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
