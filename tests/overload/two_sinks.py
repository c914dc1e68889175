"""One source, a healthy sink, and one that answers 503 for a while: two rows, and what the clients were told.

    make demo-two-sinks                                     both variations, 15 s of outage each
    python -m overload.two_sinks --outage 3 --rate 500      shorter
    python -m overload.two_sinks --hang                     the sink takes requests and never answers them

First the outage is shorter than what the log may hold back for a sink: nobody is refused. Then it is longer
(`log.backlog_bytes` is small): clients are told so, and the healthy sink still misses nothing.
"""

import argparse
import dataclasses
import tempfile
import threading
import time
from pathlib import Path

from . import clients, lakes
from .s3 import S3
from harness import Load, Server, http, journal_ids, wait_until

FLUSH = "1s"
# What a busy machine may add to the longest wait before the healthy sink is said to have waited for the other.
NOISE_SECONDS = 1.0
# The stated bound on resident memory with the default configuration.
RESIDENT_BYTES_MAX = 512 << 20


@dataclasses.dataclass
class Outcome:
    """What one run showed."""

    table: str
    reasons: dict
    refused: int
    events: int


class Watch(threading.Thread):
    """Notes the memory the server holds, and how far behind it says its sinks are."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.over = server, threading.Event()
        self.resident, self.lag = 0, {}

    def run(self):
        while not self.over.wait(0.2):
            self.resident = max(self.resident, self.server.resident_bytes())
            for sink in http("GET", f"{self.server.admin}/api/v1/status", timeout=30).json()["sinks"]:
                self.lag[sink["name"]] = max(self.lag.get(sink["name"], 0), sink["lag_events"])

    def stop(self):
        self.over.set()
        self.join(60)


def run(folder, *, outage, rate, before=5.0, after=5.0, backlog=None, hangs=False):
    """One run in `folder`; asserts what is promised, returns what to print."""
    folder = Path(folder)
    s3 = S3(folder)
    s3.hangs = hangs
    # Space is given back by whole segments.
    log = f"backlog_bytes = {backlog}\nsegment_bytes = {max(1 << 20, backlog // 8)}" if backlog else ""
    server = Server(folder / "server", flush_age=FLUSH, log=log, sink=s3.sink("broken", FLUSH))
    try:
        server.start()
        key = server.add_tenant()
        load = Load(server, key, "load", rate=rate, batch=20, seconds=before + outage + after)
        plain = [clients.Plain(server, key, f"plain-{n}") for n in range(2)]
        watch = Watch(server)
        begin = time.time()
        for thread in [*plain, watch]:
            thread.start()
        try:
            wait_until("both lakes are being written", lambda: s3.put_at and any(server.lake.rglob("*.parquet")))
            time.sleep(max(0.0, begin + before - time.time()))
            broke = time.time()
            s3.fail()
            time.sleep(outage)
            s3.mend()
            mended = time.time()
            report = load.finish()
        finally:
            load.stop()
            for thread in [*plain, watch]:
                thread.stop()
        end = time.time()
        server.settle(timeout=180)
        caught_up = time.time()
        told = sorted(one for client in plain for one in client.told)
        acknowledged = journal_ids(load.journal).union(*(client.acknowledged for client in plain))
        healthy, broken = lakes.local(server.lake), lakes.on(s3)
        times = (begin, broke, mended, end)
        reasons = check(server, load, report, told, acknowledged, (healthy, broken), times, backlog is not None)
        assert s3.turned_away > 0, "the broken sink was never asked"
        assert watch.resident < RESIDENT_BYTES_MAX, f"{watch.resident >> 20} MiB resident"
        text = table(report, told, acknowledged, (healthy, broken), times)
        text += (
            f"\nthe broken sink {'did not answer' if hangs else 'answered 503 to'} {s3.turned_away} requests and lagged by at most {watch.lag['broken']} events;"
            f" all caught up {caught_up - mended:.1f} s after it was well again"
            f"\nthe server held at most {watch.resident >> 20} MiB"
        )
        refused = report["codes"].get("503", 0) + report["codes"].get("429", 0)
        return Outcome(text, reasons, refused, len(acknowledged))
    except BaseException:
        print(server.logs()[-3000:])
        raise
    finally:
        server.end()
        s3.end()


def check(server, load, report, told, acknowledged, both, times, refusing):
    """What must hold; returns what the refusals were."""
    begin, broke, mended, end = times
    reasons = clients.check_told(told)
    assert not report["errors"], f"connections ended without an answer: {report['errors']}"
    assert set(report["codes"]) <= {"200", "429", "503"}, report["codes"]
    assert sum(report["shed"].values()) == sum(n for code, n in report["codes"].items() if code != "200"), report
    if refusing:
        assert set(report["shed"]) == {"log_full"}, f"a backlog at its bound is log_full: {report['shed']}"
        assert reasons, "the plain clients were refused too"
    else:
        assert not reasons and set(report["codes"]) == {"200"}, f"nobody is refused: {reasons} {report['codes']}"
    for name, lake in zip(("healthy", "broken"), both):
        missing = acknowledged - lake.ids()
        assert not missing, f"{len(missing)} acknowledged events are not in the {name} lake: {sorted(missing)[:3]}"
        assert lake.doubled() == 0, f"{lake.doubled()} events are twice in the {name} lake"
    healthy, broken = both
    assert len(healthy.table) == len(broken.table), "both sinks have the same"
    # The healthy sink never waits: an event is visible as soon as it would be without the outage.
    usual, during = healthy.longest_wait(begin, broke), healthy.longest_wait(broke, mended)
    assert during <= usual + NOISE_SECONDS, f"the healthy sink's events waited {during:.1f} s, {usual:.1f} s before"
    assert broken.longest_wait(begin, mended) > during, "the broken sink's events did wait"
    audit = server.audit("--journal", load.journal)
    assert audit["balanced"] and audit["difference"] == 0, audit
    return reasons


def table(report, told, acknowledged, both, times):
    """The two rows, and what the clients were told."""
    begin, broke, mended, end = times
    lines = [
        "| sink | events received during the outage | in all | longest gap without one | longest wait of an event |"
        " acknowledged and lost | doubled |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = ("healthy (local folder)", f"broken for {mended - broke:.0f} s (S3)")
    for name, lake in zip(names, both):
        lines.append(
            f"| {name} | {lake.events_between(broke, mended)} | {len(lake.table)} | {lake.longest_gap(begin, end):.1f} s"
            f" | {lake.longest_wait(begin, end):.1f} s | {len(acknowledged - lake.ids())} | {lake.doubled()} |"
        )
    lines += ["", "| clients | before | during | after |", "| --- | --- | --- | --- |"]
    phases = [(0.0, broke), (broke, mended), (mended, float("inf"))]
    lines.append(
        "| two that send single events, codes | " + " | ".join(clients.shown(clients.codes(told, *p)) for p in phases) + " |"
    )
    slowest = [max((o[4] for o in told if p[0] <= o[0] < p[1]), default=0) * 1000 for p in phases]
    lines.append("| their slowest answer | " + " | ".join(f"{ms:.0f} ms" for ms in slowest) + " |")
    codes = ", ".join(f"{code}: {n}" for code, n in report["codes"].items())
    shed = ", ".join(f"{reason}: {n}" for reason, n in report["shed"].items()) or "nobody"
    lines.append(
        f"\nthe load: {report['requests']} requests answered ({codes}), {report['accepted']} events acknowledged, refused: {shed};"
        f" {len(report['errors'])} connections without an answer"
    )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outage", type=float, default=15.0, help="seconds (default 15)")
    parser.add_argument("--rate", type=int, default=2000, help="events a second (default 2000)")
    parser.add_argument("--hang", action="store_true", help="no answers at all in place of 503")
    arguments = parser.parse_args()
    # About 400 bytes of log an event: the bound is reached in the first half of the outage.
    backlog = max(2 << 20, int(arguments.rate * arguments.outage * 400 * 0.4))
    for title, bound in (
        ("The outage is shorter than the backlog's bound", None),
        (f"The outage is longer: log.backlog_bytes = {backlog}", backlog),
    ):
        with tempfile.TemporaryDirectory(prefix="tidegate-two-sinks-") as folder:
            outcome = run(folder, outage=arguments.outage, rate=arguments.rate, backlog=bound, hangs=arguments.hang)
        print(f"\n## {title}\n\n{outcome.table}", flush=True)
    print("\nboth variations: nothing acknowledged is missing or doubled in either sink, every refusal said when to come again")


if __name__ == "__main__":
    main()
