#!/usr/bin/env python3
"""How fast a window replays, beside how fast it came in: `ingestctl load` into a local lake, then the whole log again into its shadow, as recorded and
judged again.

Prints a table, and with --json FILE all figures. Uses a data folder of its own, on --folder's disk, and needs about three times --gigabytes there.
Everything listens on 127.0.0.1. --build may be repeated: the builds take turns on the same log in each round.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import duckdb
from run import REPOSITORY, free_port, get, machine, peak_bytes, wait_for

JUDGING = {"as recorded": ["--as-recorded"], "judged again": []}
# A job's threads by their names, of which the system keeps 15 characters: who judges ahead, the sink's, the window's writer.
OF_A_JOB = ("replay-ahead", "sink-shadow.", "writer-shadow.")
# What the load generator gives an event beside its bytes in the log, nearly.
RECORD_BYTES = 26


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4, help="how much log is written and replayed (4)")
    parser.add_argument("--events", type=int, default=500, help="events a request (500)")
    parser.add_argument("--event-bytes", type=int, default=500, help="bytes an event (500)")
    parser.add_argument("--schema", help="a schema's file: what the events are judged by; without it they have none")
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is replayed (1)")
    parser.add_argument("--only", choices=list(JUDGING), help="replay in this way alone")
    parser.add_argument("--live-rate", type=int, help="then also: answers at this rate of live events a second, alone and during a replay")
    parser.add_argument("--live-seconds", type=int, default=12, help="how long each time (12)")
    parser.add_argument("--build", action="append", help="a folder with ingestd and ingestctl; may be repeated (target/release)")
    parser.add_argument("--folder", help="where the data folder is made (target/bench)")
    parser.add_argument("--seconds", type=int, default=1800, help="how long one step may take at most (1800)")
    parser.add_argument("--json", help="write the result here too")
    return parser.parse_args()


class Threads(threading.Thread):
    """What each of a job's threads took of the processors, in seconds; those that end between two looks lose a little."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.tasks, self.seen, self.stopped = Path(f"/proc/{pid}/task"), {}, threading.Event()

    def run(self):
        while not self.stopped.wait(0.05):
            for task in self.tasks.iterdir():
                # A thread may end while it is looked at.
                with contextlib.suppress(OSError):
                    name = (task / "comm").read_text().strip()
                    if name.startswith(OF_A_JOB):
                        self.seen[task.name] = (name, int((task / "schedstat").read_text().split()[0]) / 1e9)

    def seconds(self):
        self.stopped.set()
        self.join()
        names = sorted({name for name, _ in self.seen.values()})
        return {name: sum(took for other, took in self.seen.values() if other == name) for name in names}


class Bench:
    """One data folder, and the server of one build on it at a time."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.public, self.admin = free_port(), free_port()
        (folder / "schemas").mkdir()
        if options.schema:
            shutil.copy(options.schema, folder / "schemas" / "load.json")
        self.config = folder / "tidegate.toml"
        self.config.write_text(
            f"""[edge]
listen = "127.0.0.1:{self.public}"
[admin]
listen = "127.0.0.1:{self.admin}"
[log]
dir = {json.dumps(str(folder / "data"))}
retention_bytes = {int(options.gigabytes * 4e9) + (10 << 30)}
[schemas]
dir = {json.dumps(str(folder / "schemas"))}
[[sink]]
name = "lake"
kind = "lake"
url = {json.dumps(str(folder / "lake"))}
"""
        )
        self.environment = dict(
            os.environ, TIDEGATE_ADMIN_URL=f"http://127.0.0.1:{self.admin}", TIDEGATE_URL=f"http://127.0.0.1:{self.public}"
        )
        self.peak = 0

    @contextlib.contextmanager
    def server(self, build):
        self.build = Path(build)
        with open(self.folder / "ingestd.log", "ab") as log:
            server = subprocess.Popen([self.build / "ingestd", "--config", self.config], stdout=log, stderr=log)
        self.pid = server.pid
        try:
            wait_for("ingestd is ready", lambda: self.is_ready(server), 60)
            yield
            self.peak = max(self.peak, peak_bytes(server.pid))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(120)

    def is_ready(self, server):
        if server.poll() is not None:
            raise SystemExit(f"ingestd has ended with {server.returncode}: see its log")
        return get(f"http://127.0.0.1:{self.admin}/readyz")["ready"]

    def ctl(self, *words):
        command = [str(self.build / "ingestctl"), *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=self.options.seconds)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    def load(self, *words):
        options = self.options
        size = ["--batch", str(options.events), "--event-bytes", str(options.event_bytes)]
        report = json.loads(self.ctl("load", *words, *size, "--seed", "1", "--json"))
        # What is refused is no part of the log; where anything is, the machine was asked for more than it can take.
        if set(report["codes"]) != {"200"}:
            print(f"answers: {report['codes']}", file=sys.stderr)
        return report

    def caught_up(self):
        def has():
            return all(sink["lag_events"] == 0 for sink in get(f"http://127.0.0.1:{self.admin}/api/v1/status")["sinks"])

        wait_for("the lake has caught up", has, self.options.seconds)

    def ingest(self):
        self.environment["TIDEGATE_KEY"] = json.loads(self.ctl("tenant", "add", "bench", "--json"))["key"]
        events = int(self.options.gigabytes * 1e9 / (self.options.event_bytes + RECORD_BYTES))
        began = time.monotonic()
        report = self.load("--events", str(events))
        self.caught_up()
        took = time.monotonic() - began
        return {
            "events": report["accepted"],
            "seconds": took,
            "events_per_second": report["accepted"] / took,
            "acknowledged_events_per_second": report["events_per_second"],
        }

    def begin(self, how, *more):
        """Plans and applies; gives the plan's id and how long the plan took."""
        file, began = self.folder / "plan.json", time.monotonic()
        self.ctl("replay", "--from", "earliest", "--to", "latest", "--shadow", *JUDGING[how], "--plan", str(file), *more)
        planning = time.monotonic() - began
        self.ctl("replay", "apply", str(file), "--yes")
        return json.loads(file.read_text())["plan_id"], planning

    def job(self, plan_id):
        job = get(f"http://127.0.0.1:{self.admin}/api/v1/replay/jobs/{plan_id}")
        if job["state"] in ("failed", "cancelled", "paused"):
            raise SystemExit(f"the replay has {job['state']}: {job}")
        return job

    def wait(self, plan_id):
        wait_for("the replay is done", lambda: self.job(plan_id)["state"] == "done", self.options.seconds)

    def replay(self, how, events):
        """One replay of everything, with its plan; its shadow is counted, and removed."""
        sampled = Threads(self.pid)
        sampled.start()
        began = time.monotonic()
        plan_id, planning = self.begin(how)
        self.wait(plan_id)
        took = time.monotonic() - began
        millions = events / 1e6
        processors = {name: seconds / millions for name, seconds in sampled.seconds().items()}
        files = self.folder / "lake" / "shadow" / plan_id
        stored = duckdb.sql(f"select count(*) from read_parquet('{files}/*/**/*.parquet', union_by_name = true)").fetchall()[0][0]
        if stored != events:
            raise SystemExit(f"the log has {events} events, the shadow {stored}: no result")
        self.ctl("replay", "rm", plan_id)
        return {
            "seconds": took,
            "plan_seconds": planning,
            "events_per_second": events / took,
            "cpu_seconds_per_million_events": processors,
        }

    def beside_live(self):
        """What clients notice: the 99th percentile of answers alone, and while a replay runs."""
        options = self.options
        rate = ["--rate", str(options.live_rate), "--duration", f"{options.live_seconds}s"]
        alone = self.load(*rate)["latency_ms"]
        self.caught_up()
        plan_id, _ = self.begin("judged again")
        began, before = time.monotonic(), self.job(plan_id)["done_events"]
        beside = self.load(*rate)["latency_ms"]
        job = self.job(plan_id)
        wrote = (job["done_events"] - before) / (time.monotonic() - began)
        if job["state"] == "done":
            print("the replay was over before the load was: take more --gigabytes or fewer --live-seconds", file=sys.stderr)
        self.wait(plan_id)
        self.ctl("replay", "rm", plan_id)
        return {"alone_ms": alone, "beside_ms": beside, "p99_ratio": beside["p99"] / alone["p99"], "replayed_events_per_second": wrote}


def measure(options, folder):
    builds = options.build or [str(REPOSITORY / "target" / "release")]
    bench = Bench(options, folder)
    with bench.server(builds[0]):
        ingest = bench.ingest()
    rows = []
    for number in range(options.rounds):
        for how in [options.only] if options.only else JUDGING:
            for build in builds:
                with bench.server(build):
                    bench.caught_up()
                    row = {"round": number + 1, "how": how, "build": build, **bench.replay(how, ingest["events"])}
                row["of_the_ingest"] = row["events_per_second"] / ingest["events_per_second"]
                rows.append(row)
                show(row)
    live = []
    for build in builds if options.live_rate else []:
        with bench.server(build):
            live.append({"build": build, **bench.beside_live()})
    return {
        "machine": machine(),
        "command": " ".join(sys.argv),
        "ingest": ingest,
        "replays": rows,
        "live": live,
        "peak_resident_mebibytes": bench.peak / (1 << 20),
    }


def show(row):
    print(
        f"round {row['round']}, {row['how']}: {row['seconds']:.1f} s ({row['plan_seconds']:.1f} s of it the plan),"
        f" {row['events_per_second']:,.0f} events/s, {row['of_the_ingest']:.2f} of the ingest   {row['build']}\n  CPU-seconds a million events: "
        + ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["cpu_seconds_per_million_events"].items()),
        flush=True,
    )


def summary(result):
    ingest = result["ingest"]
    print(
        f"ingest: {ingest['events']:,} events in {ingest['seconds']:.1f} s until the last was visible: {ingest['events_per_second']:,.0f}/s"
        f" ({ingest['acknowledged_events_per_second']:,.0f}/s acknowledged)"
    )
    for build, how in dict.fromkeys((row["build"], row["how"]) for row in result["replays"]):
        of = sorted(row["of_the_ingest"] for row in result["replays"] if (row["build"], row["how"]) == (build, how))
        print(f"{how}: {of[0]:.2f} / {of[len(of) // 2]:.2f} / {of[-1]:.2f} of the ingest (min, median, max)   {build}")
    for row in result["live"]:
        print(
            f"live: p99 {row['alone_ms']['p99']:.1f} ms alone, {row['beside_ms']['p99']:.1f} ms beside a replay of"
            f" {row['replayed_events_per_second']:,.0f} events/s: {row['p99_ratio']:.2f} times   {row['build']}"
        )
    print(f"peak resident memory: {result['peak_resident_mebibytes']:.0f} MiB; {result['machine']}")


def main():
    options = arguments()
    base = Path(options.folder) if options.folder else REPOSITORY / "target" / "bench"
    base.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="replay-", dir=base))
    try:
        result = measure(options, folder)
    except (Exception, SystemExit):
        print(f"the data folder and the server's log are kept: {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
    summary(result)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
