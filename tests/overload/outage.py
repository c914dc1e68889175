"""No sink takes anything for minutes, at full load: memory stays within its bound, clients are told, nothing is lost.

    make overload-outage                                    five minutes, 4 GiB of backlog
    python -m overload.outage --outage 10 --backlog 256MiB  shorter

The server runs in a memory cgroup of `budget.bytes` and 20 %, without swap. The lake's folder is replaced by a file,
so that no sink can write. Three kinds of clients send as fast as they are answered: one that waits as told and
sends again, one that never waits, and a few that note what each refusal said. Refusing begins when the log holds
`log.backlog_bytes` for the sink; when the folder is back everything goes on by itself.
"""

import argparse
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

from . import clients
from .cgroup import Cgroup, Skip
from harness import REPOSITORY, Server, http, wait_until

UNITS = {"KiB": 10, "MiB": 20, "GiB": 30}


def size(text):
    for unit, shift in UNITS.items():
        if text.endswith(unit):
            return int(text.removesuffix(unit)) << shift
    return int(text)


class Caged(Server):
    """A server in a memory cgroup."""

    cgroup = None

    def spawn(self):
        self.starts += 1
        binary = Path(os.environ.get("TIDEGATE_BIN_DIR", REPOSITORY / "target" / "debug"), "ingestd")
        with open(self.log_file(), "wb") as log:
            self.process = subprocess.Popen(
                self.cgroup.command([binary, "--config", self.config]), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


class Watch(threading.Thread):
    """Twice a second: the memory it holds, and what its stages say they hold; the most of each, phase by phase."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.over, self.phase = server, threading.Event(), "before"
        self.most = {}
        self.last = None

    def note(self, what, value):
        phase = self.most.setdefault(self.phase, {})
        phase[what] = max(phase.get(what, 0), value)

    def run(self):
        while not self.over.wait(0.5):
            if self.server.process.poll() is not None:
                return
            self.note("held by the process", self.server.cgroup.own_bytes())
            status = http("GET", f"{self.server.admin}/api/v1/status", timeout=60).json()
            for stage in status["stages"]:
                self.note(f"stage {stage['name']}", stage["held_bytes"])
            for sink in status["sinks"]:
                self.note(f"backlog of {sink['name']} (on disk)", sink["backlog_bytes"])

    def stop(self):
        self.over.set()
        self.join(90)

    def shown(self):
        names = list(dict.fromkeys(name for phase in self.most.values() for name in phase))
        lines = ["| most of, MiB | " + " | ".join(self.most) + " |", "| --- |" + " --- |" * len(self.most)]
        for name in names:
            lines.append(f"| {name} | " + " | ".join(str(p.get(name, 0) >> 20) for p in self.most.values()) + " |")
        return "\n".join(lines)


class Load:
    """`ingestctl load`, closed loop, until it is stopped."""

    def __init__(self, server, key, name, *more):
        self.journal = server.folder / f"journal-{name}.ndjson"
        self.output, self.errors = server.folder / f"load-{name}.json", server.folder / f"load-{name}.log"
        command = server.ctl_command("load", "--duration", "10h", "--journal", self.journal, "--json", *more)
        with open(self.output, "wb") as output, open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                command, env=server.ctl_environment(key), stdin=subprocess.DEVNULL, stdout=output, stderr=errors
            )

    def stop(self):
        """As Ctrl-C does: what is under way is finished, then it reports."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait(120)
        assert status == 0, f"ingestctl load ended with {status}: {self.errors.read_text()[-2000:]}"
        return json.loads(self.output.read_text())


def count(server, journals, acknowledged):
    """Acknowledged, of these missing in the lake, rows, rows that are there twice: counted by DuckDB."""
    database = duckdb.connect(str(server.folder / "count.duckdb"))
    database.execute("set memory_limit = '4GB'")
    database.execute(f"set temp_directory = '{server.folder}/spill'")
    database.execute("create table acknowledged (event_id varchar)")
    for journal in journals:
        database.execute(
            "insert into acknowledged select event_id from"
            f" read_json('{journal}', format = 'newline_delimited', columns = {{event_id: 'varchar'}})"
        )
    plain = server.folder / "plain.csv"
    plain.write_text("event_id\n" + "".join(f"{one}\n" for one in sorted(acknowledged)))
    database.execute(f"insert into acknowledged select event_id from read_csv('{plain}', header = true, columns = {{event_id: 'varchar'}})")
    lake = f"read_parquet('{server.lake}/events/**/*.parquet', union_by_name = true)"
    rows, places = database.sql(f"select count(*), count(distinct (log_id, log_partition, log_offset)) from {lake}").fetchall()[0]
    told = database.sql("select count(*) from acknowledged").fetchall()[0][0]
    missing = database.sql(
        f"select count(*) from acknowledged anti join (select event_id from {lake}) as lake using (event_id)"
    ).fetchall()[0][0]
    return told, missing, rows, rows - places


def run(folder, cgroup, arguments):
    log = f'backlog_bytes = "{arguments.backlog}"\nsegment_bytes = "{arguments.segment}"'
    top = f'[budget]\nbytes = "{arguments.budget}"'
    server = Caged(folder, flush_age="1s", log=log, top=top)
    server.cgroup = cgroup
    watch = None
    try:
        server.start()
        key = server.add_tenant()
        begin = time.time()
        watch = Watch(server)
        patient = Load(server, key, "patient", "--retry", "--connections", arguments.connections, "--seed", 1)
        hasty = Load(server, key, "hasty", "--connections", arguments.connections, "--seed", 2)
        plain = [clients.Plain(server, key, f"plain-{n}", pause=0.005) for n in range(4)]
        for thread in [*plain, watch]:
            thread.start()
        away = server.folder / "lake-away"
        try:
            wait_until("the lake is being written", lambda: any(server.lake.rglob("*.parquet")))
            time.sleep(arguments.before)
            os.rename(server.lake, away)
            server.lake.write_text("no folder")
            broke, watch.phase = time.time(), "outage"
            while time.time() < broke + arguments.outage and server.process.poll() is None:
                time.sleep(0.2)
            alive(server, cgroup, watch)
            server.lake.unlink()
            os.rename(away, server.lake)
            mended, watch.phase = time.time(), "catching up"
            taken = server.offsets_given()
            wait_until("events are taken again", lambda: server.offsets_given() > taken + 10_000, timeout=300)
            taken_again = time.time()
            time.sleep(arguments.after)
        finally:
            reports = {load: load.stop() for load in (patient, hasty)} if server.process.poll() is None else {}
            for client in plain:
                client.stop()
        alive(server, cgroup, watch)
        server.settle(timeout=1800)
        caught_up = time.time()
        alive(server, cgroup, watch)
        watch.stop()
        told = sorted(one for client in plain for one in client.told)
        journals = [load.journal for load in reports]
        counted = count(server, journals, set().union(*(client.acknowledged for client in plain)))
        audit = server.ctl("audit", timeout=900)
        assert audit["balanced"] and audit["difference"] == 0, audit
        show(arguments, cgroup, watch, reports.values(), told, counted, (begin, broke, mended, taken_again, caught_up))
    except BaseException:
        if watch and watch.most:
            print(watch.shown())
        print(server.logs()[-3000:])
        raise
    finally:
        for load in [one for one in (locals().get("patient"), locals().get("hasty")) if one]:
            if load.process.poll() is None:
                load.process.kill()
                load.process.wait()
        server.end()


def alive(server, cgroup, watch):
    if server.process.poll() is None and cgroup.kills() == 0:
        return
    raise AssertionError(
        f"the server ended with {server.process.poll()} while {watch.phase}, killed for memory: {cgroup.kills()};"
        f" the limit is {cgroup.limit >> 20} MiB"
    )


def show(arguments, cgroup, watch, reports, told, counted, times):
    begin, broke, mended, taken_again, caught_up = times
    refusals = clients.check_told(told)
    acknowledged, missing, rows, doubled = counted
    codes, shed, errors = {}, {}, {}
    for report in reports:
        for into, name in ((codes, "codes"), (shed, "shed"), (errors, "errors")):
            for key, n in report[name].items():
                into[key] = into.get(key, 0) + n
    held = max(phase.get("held by the process", 0) for phase in watch.most.values())
    print(watch.shown())
    print(f"\nlimit {cgroup.limit >> 20} MiB (cgroup version {cgroup.version}), the process held at most {held >> 20} MiB;")
    print(f"the limit was met {cgroup.at_limit()} times with the page cache, processes killed for memory: {cgroup.kills()}")
    print(f"the load was answered: {clients.shown(codes)}; refused: {clients.shown(shed)}; without an answer: {clients.shown(errors)}")
    print("clients that send single events were told, before the outage, in it, after it:")
    for phase in ((0, broke), (broke, mended), (mended, float("inf"))):
        print(f"  {clients.shown(clients.codes(told, *phase))}")
    print(f"  each refusal with its reason and Retry-After: {dict(refusals)}")
    print(f"events were taken again {taken_again - mended:.1f} s after the lake was back, all caught up after {caught_up - mended:.0f} s")
    print(f"acknowledged {acknowledged}, missing {missing}; in the lake {rows}, twice {doubled}")
    assert refusals, f"the outage of {mended - broke:.0f} s was too short to reach the backlog's bound: nobody was refused"
    assert set(codes) <= {"200", "429", "503"}, f"a client was told something else: {codes}"
    refused = sum(n for code, n in codes.items() if code != "200")
    assert refused == sum(shed.values()), f"{refused} refusals, {sum(shed.values())} of them with a reason"
    assert not errors, f"connections that got no answer: {errors}"
    assert missing == 0, f"{missing} acknowledged events are missing"
    assert doubled == 0, f"{doubled} events are twice in the lake"
    assert cgroup.kills() == 0
    assert held <= cgroup.limit, f"{held >> 20} MiB held, the limit is {cgroup.limit >> 20} MiB"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outage", type=float, default=300, help="seconds without any sink (300)")
    parser.add_argument("--before", type=float, default=10, help="seconds of load before it (10)")
    parser.add_argument("--after", type=float, default=15, help="seconds of load after it (15)")
    parser.add_argument("--backlog", default="4GiB", help="log.backlog_bytes (4GiB)")
    parser.add_argument("--segment", default="64MiB", help="log.segment_bytes (64MiB)")
    parser.add_argument("--budget", default="384MiB", help="budget.bytes (384MiB, the default)")
    parser.add_argument("--connections", type=int, default=8, help="of each of the two loads (8)")
    parser.add_argument("--limit", type=float, default=1.2, help="the cgroup's limit in budgets (1.2)")
    parser.add_argument("--folder", help="where the data folder is made (target/overload)")
    arguments = parser.parse_args()
    place = Path(arguments.folder or REPOSITORY / "target" / "overload")
    place.mkdir(parents=True, exist_ok=True)
    try:
        cgroup = Cgroup(int(size(arguments.budget) * arguments.limit))
    except Skip as skip:
        if os.environ.get("CI") == "true":
            sys.exit(f"skipped, which must not happen in CI: overload.outage: {skip}")
        print(f"SKIPPED: overload.outage: {skip}\nskipped: 1")
        return
    folder = tempfile.mkdtemp(prefix="outage-", dir=place)
    try:
        run(folder, cgroup, arguments)
        print("skipped: 0")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        cgroup.end()


if __name__ == "__main__":
    main()
