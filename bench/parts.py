#!/usr/bin/env python3
"""What each log and each sink costs: `ingestctl load` against a release `ingestd` with one of them at a time.

One row each: events a second acknowledged and visible, and CPU-seconds per million events, of the server (by its threads) and of the engine
behind it. Reference rows stand beside them: ClickHouse's own insert of the same rows, Kafka's own producer-perf. With --fit FILE it
measures the shapes (events a request, bytes an event) that `ingestctl capacity` reckons from, and writes its figures.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests" / "e2e"), str(REPOSITORY / "tests")]
os.environ.setdefault("TIDEGATE_BIN_DIR", str(REPOSITORY / "target" / "release"))

import numpy  # noqa: E402
from clickhouse_engine import ClickHouse  # noqa: E402
from clickhouse_engine import sink as clickhouse_sink  # noqa: E402
from harness import Server, free_ports, wait_until  # noqa: E402
from overload.s3 import REGION, S3  # noqa: E402
from search import OpenSearch  # noqa: E402

import brokers  # noqa: E402
from brokers import Kafka  # noqa: E402

# Threads by their names; all others are the edge's.
STAGES = {
    "writer": re.compile(r"writer-\d+$"),
    "sink": re.compile(r"(sink|writer|lane|probe|held|merge)-"),
    "kafka": re.compile(r"(rdk:|producer poll)"),
}
TICKS = os.sysconf("SC_CLK_TCK")
# Events a request and bytes an event: enough to tell apart what a request, an event and a byte cost.
SHAPES = [(1, 500), (20, 500), (500, 100), (500, 500), (100, 4000)]
# For a fit each shape is sent at this rate of bytes and requests, at most: nothing may be near its limit.
FIT_BYTES_PER_SECOND = 25e6
FIT_REQUESTS_PER_SECOND = 3000


@dataclass
class Part:
    """One log or sink to be measured: how it is configured, and what runs behind it."""

    name: str
    # The sink's name in the configuration.
    sink: str = "lake"
    server: dict = field(default_factory=dict)
    engines: list = field(default_factory=list)
    # What runs behind it, for who asks it more.
    engine: object = None


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=15, help="how long each is sent to (15)")
    parser.add_argument("--events", type=int, default=500, help="events a request (500)")
    parser.add_argument("--event-bytes", type=int, default=500, help="bytes an event (500)")
    parser.add_argument("--connections", type=int, default=8, help="requests in flight (8)")
    parser.add_argument("--rate", type=int, help="events a second, open loop; without it as fast as answers come")
    parser.add_argument("--runs", type=int, default=3, help="how often each; the median is shown (3)")
    parser.add_argument("--only", help="only these rows, by a part of their name")
    parser.add_argument("--fit", type=Path, metavar="FILE", help="measure the shapes and write the figures of `ingestctl capacity`")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured here too")
    return parser.parse_args()


def cpu_of(pid):
    """CPU-seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def cpu_by_stage(pid):
    """CPU-seconds of a server's threads so far, by what they do; what ended threads took counts for `edge`."""
    stages = dict.fromkeys(STAGES, 0.0)
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            text = (task / "stat").read_text()
        except OSError:
            continue
        name = text[text.index("(") + 1 : text.rindex(")")]
        fields = text.rpartition(")")[2].split()
        stage = next((stage for stage, pattern in STAGES.items() if pattern.match(name)), None)
        if stage:
            stages[stage] += (int(fields[11]) + int(fields[12])) / TICKS
    stages["edge"] = cpu_of(pid) - sum(stages.values())
    return stages


def machine():
    model = next((l.split(":")[1].strip() for l in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in l), "?")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) >> 20
    return f"{model}, {os.cpu_count()} cores, {memory} GiB, Linux {platform.release()}"


@contextlib.contextmanager
def blackhole(folder):
    yield Part("embedded log, no sink", sink="lake", server={"sink_kind": "blackhole"})


@contextlib.contextmanager
def lake(folder):
    yield Part("embedded log, lake (local Parquet)")


@contextlib.contextmanager
def lake_s3(folder):
    """moto's server: what S3 itself takes is not its cost; the server's is."""
    (folder / "s3").mkdir()
    engine = S3(folder / "s3")
    try:
        options = '[sink.options.store]\naws_allow_http = "true"\n'
        environment = {
            "AWS_ENDPOINT": f"http://127.0.0.1:{engine.port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION,
        }  # fmt: skip
        place = f"s3://{engine.bucket}/lake"
        yield Part("embedded log, lake (S3: moto)", server={"sink": options, "environment": environment, "lake": place}, engines=[engine.store.pid])
    finally:
        engine.end()


@contextlib.contextmanager
def clickhouse(folder):
    engine = ClickHouse(folder / "clickhouse").start()
    try:
        yield Part("embedded log, ClickHouse", "clickhouse", {"sink": clickhouse_sink(engine, age="1s"), "alone": True}, [engine.process.pid], engine)
    finally:
        engine.kill()


@contextlib.contextmanager
def kafka_broker(folder):
    """One broker: what three cost, and what their copies cost, is Kafka's own."""
    kafka = Kafka(folder / "kafka", free_ports, wait_until)
    try:
        yield kafka
    finally:
        kafka.end()


@contextlib.contextmanager
def kafka_log(folder):
    with kafka_broker(folder) as kafka:
        log = (
            f'kind = "kafka"\ndedup_window = "0s"\n[log.kafka]\nservers = {json.dumps(kafka.servers)}\ntopic = "bench"\n'
            "create = true\npartitions = 2\nreplication = 1\nmin_insync = 1\n"
        )
        pids = [process.pid for process in kafka.processes.values()]
        yield Part("log on Kafka (one broker), no sink", server={"sink_kind": "blackhole", "log": log}, engines=pids)


@contextlib.contextmanager
def kafka(folder):
    with kafka_broker(folder) as cluster:
        sink = (
            f'[[sink]]\nname = "kafka"\nkind = "kafka"\nflush = {{ age = "1s" }}\n[sink.options]\n'
            f"servers = {json.dumps(cluster.servers)}\ncreate_topics = {{ partitions = 2, replication = 1 }}\n"
        )
        pids = [process.pid for process in cluster.processes.values()]
        yield Part("embedded log, Kafka sink (one broker)", "kafka", {"sink": sink, "alone": True}, pids)


@contextlib.contextmanager
def elasticsearch(folder):
    engine = OpenSearch(folder / "opensearch").start()
    try:
        url = json.dumps(engine.url)
        sink = f'[[sink]]\nname = "search"\nkind = "elasticsearch"\nurl = {url}\nflush = {{ age = "1s" }}\n[sink.options]\ncreate_template = true\n'
        yield Part("embedded log, OpenSearch", "search", {"sink": sink, "alone": True}, [engine.process.pid])
    finally:
        engine.end()


# A row each; what a part needs runs as long as it is measured.
PARTS = [blackhole, lake, lake_s3, clickhouse, kafka_log, kafka, elasticsearch]


def own_producer(events, event_bytes):
    """Kafka's own producer-perf into one broker, every copy acknowledged: events a second."""
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "target") as folder, kafka_broker(Path(folder)) as cluster:
        cluster.make_topic("bench", partitions=2)
        before = sum(cpu_of(process.pid) for process in cluster.processes.values())
        printed = brokers.tool(
            "ProducerPerformance", "--topic", "bench", "--num-records", str(events), "--record-size", str(event_bytes),
            "--throughput", "-1", "--producer-props", f"bootstrap.servers={cluster.servers}", "acks=all", "linger.ms=5",
        )  # fmt: skip
        engine = (sum(cpu_of(process.pid) for process in cluster.processes.values()) - before) / (events / 1e6)
        return float(re.findall(r"([\d.]+) records/sec", printed)[-1]), engine


def own_insert(events, event_bytes):
    """ClickHouse's own insert of the same rows, from one of its tables into another like it: rows a second."""
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "target") as folder, clickhouse(Path(folder)) as part:
        server, engine = server_of(part, Path(folder)), part.engine
        try:
            key = server.add_tenant("bench")
            command = server.ctl_command("load", "--events", events, "--batch", 500, "--event-bytes", event_bytes, "--json")
            subprocess.run(command, env=server.ctl_environment(key), check=True, capture_output=True)
            server.settle()
            table = engine.ask("SELECT name FROM system.tables WHERE database = 'tidegate' ORDER BY total_rows DESC LIMIT 1 FORMAT JSONEachRow")[0]
            name = f"tidegate.`{table['name']}`"
            rows = engine.ask(f"SELECT count() AS n FROM {name} FORMAT JSONEachRow")[0]["n"]
            engine.ask(f"CREATE TABLE tidegate.copy AS {name}")
            before, started = cpu_of(engine.process.pid), time.monotonic()
            engine.ask(f"INSERT INTO tidegate.copy SELECT * FROM {name}")
            took = time.monotonic() - started
            return rows / took, (cpu_of(engine.process.pid) - before) / (rows / 1e6)
        finally:
            server.stop()


def server_of(part, folder):
    """A server with this part and nothing else."""
    settings = dict(part.server)
    kind, alone = settings.pop("sink_kind", None), settings.pop("alone", False)
    environment, place = settings.pop("environment", {}), settings.pop("lake", None)
    server = Server(folder / "server", flush_age="1s", **settings)
    server.environment = environment
    if place:
        server.lake = place
        server.write_config()
    text = server.config.read_text()
    if kind:
        text = text.replace('kind = "lake"', f'kind = "{kind}"')
        text = "\n".join(line for line in text.splitlines() if not line.startswith("url = "))
    if alone:
        # The part's own sink is behind the harness's lake.
        first = text.index("[[sink]]")
        text = text[:first] + text[text.index("[[sink]]", first + 1) :]
    server.config.write_text(text)
    return server.start()


def check_stored(server, part, accepted):
    """What did not arrive was not measured."""
    audit = server.audit()
    stored = sum(line["sinks"][part.sink]["stored"] for line in audit["tenants"])
    if not audit["balanced"] or stored != accepted:
        raise SystemExit(f"{part.name}: {accepted} events were accepted, {stored} are in the sink's books; balanced: {audit['balanced']}")


def measure(make, events, event_bytes, seconds, connections, rate):
    """One part once: rates, and CPU-seconds per million events."""
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "target") as folder, make(Path(folder)) as part:
        server = server_of(part, Path(folder))
        try:
            wait_until("its sinks run", lambda: server.status()["log"].get("partitions_owned", [0]) != [])
            key = server.add_tenant("bench")
            command = server.ctl_command(
                "load", "--duration", f"{seconds}s", "--batch", events, "--event-bytes", event_bytes, "--connections", connections,
                "--seed", 1, "--json", *(["--rate", rate] if rate else []),
            )  # fmt: skip
            before, engines_before = cpu_by_stage(server.pid), sum(map(cpu_of, part.engines))
            started, client_before = time.monotonic(), os.times()
            load = json.loads(subprocess.run(command, env=server.ctl_environment(key), check=True, capture_output=True).stdout)
            client_after = os.times()

            def sink():
                return next(one for one in server.status()["sinks"] if one["name"] == part.sink)

            wait_until("the sink has caught up", lambda: sink()["lag_events"] == 0, timeout=600)
            took = time.monotonic() - started
            after, engines_after = cpu_by_stage(server.pid), sum(map(cpu_of, part.engines))
            check_stored(server, part, load["accepted"])
        finally:
            if server.stop() != 0:
                raise SystemExit(f"{part.name}: the server did not end well")
        millions = load["accepted"] / 1e6
        stages = {name: (after[name] - before[name]) / millions for name in after}
        return {
            "part": part.name,
            "events": load["accepted"],
            "acknowledged_per_second": load["events_per_second"],
            "visible_per_second": load["accepted"] / took,
            "server": stages,
            "engine": (engines_after - engines_before) / millions,
            "client": (sum(client_after[2:4]) - sum(client_before[2:4])) / millions,
            "latency_ms": load["latency_ms"],
        }


def median(runs, *path):
    def value(run):
        for name in path:
            run = run[name]
        return run

    return float(numpy.median([value(run) for run in runs]))


def table(rows):
    head = ["", "acknowledged/s", "visible/s", "edge", "writer", "sink", "kafka", "server", "engine", "client"]
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for name, runs in rows.items():
        stages = [median(runs, "server", stage) for stage in ("edge", "writer", "sink", "kafka")]
        cells = [f"{median(runs, key):,.0f}" for key in ("acknowledged_per_second", "visible_per_second")]
        cells += [f"{value:.2f}" for value in (*stages, sum(stages), median(runs, "engine"), median(runs, "client"))]
        print("| " + " | ".join([name, *cells]) + " |", flush=True)


def references(options):
    """What the engines do by themselves with as many and as large."""
    events = 1_000_000
    for name, own in {"Kafka's producer-perf, acks=all": own_producer, "ClickHouse, INSERT SELECT of the rows": own_insert}.items():
        runs = [own(events, options.event_bytes) for _ in range(options.runs)]
        rate, engine = (float(numpy.median([run[at] for run in runs])) for at in (0, 1))
        print(f"| {name} | {rate:,.0f} | {rate:,.0f} | | | | | | {engine:.2f} | |", flush=True)


def fit(samples):
    """What a request, an event and a byte cost (µs), the closest that are not negative, by thread group."""
    from itertools import combinations

    names = ("request", "event", "byte")
    shapes = numpy.array([[1 / events, 1.0, event_bytes] for events, event_bytes, _ in samples])
    found = {}
    for stage in ("edge", "writer", "sink", "kafka", "engine"):
        cost = numpy.array([run["engine"] if stage == "engine" else run["server"][stage] for *_, run in samples])
        # Relative errors count, else the dearest shape would be all that is fitted.
        weight = 1 / numpy.maximum(cost, 0.05)
        best = None
        for size in (3, 2, 1):
            for columns in combinations(range(3), size):
                part, *_ = numpy.linalg.lstsq(shapes[:, columns] * weight[:, None], cost * weight, rcond=None)
                if (part < 0).any():
                    continue
                whole = numpy.zeros(3)
                whole[list(columns)] = part
                error = float((((shapes @ whole - cost) * weight) ** 2).sum())
                if best is None or error < best[0] - 1e-9:
                    best = (error, whole)
        found[stage] = dict(zip(names, map(float, best[1]), strict=True))
    return found


def write_figures(path, fits):
    lines = [
        "# What the parts cost, in microseconds of one core: measured by `bench/parts.py --fit`, read by `ingestctl capacity`.",
        f'machine = "{machine()}"',
        f'measured = "{time.strftime("%Y-%m-%d")}"',
    ]
    for name, stages in fits.items():
        for stage, cost in stages.items():
            if any(cost.values()):
                values = ", ".join(f"{what} = {value:.5f}" for what, value in cost.items())
                lines.append(f'[parts."{name}".{stage}]\n' + values.replace(", ", "\n"))
    path.write_text("\n".join(lines) + "\n")


def main():
    options = parse()
    parts = [make for make in PARTS if make.__name__ == options.only]
    parts = parts or [make for make in PARTS if not options.only or options.only in make.__name__]
    if options.fit:
        # It takes a small part of the rates that are sent, and would be measured for hours.
        parts = [make for make in parts if make is not elasticsearch]
    kept, rows, fits, base = [], {}, {}, None
    for make in parts:
        if options.fit:
            samples = []
            for events, event_bytes in SHAPES:
                rate = int(min(FIT_BYTES_PER_SECOND / event_bytes, FIT_REQUESTS_PER_SECOND * events))
                for _ in range(options.runs):
                    run = measure(make, events, event_bytes, options.seconds, 64 if events == 1 else 16, rate)
                    samples.append((events, event_bytes, run))
                    kept.append({"shape": [events, event_bytes], **run})
                stages = {name: round(value, 2) for name, value in run["server"].items()}
                print(f"{run['part']}, {events} of {event_bytes} B: {stages}, engine {run['engine']:.2f}", flush=True)
            if make is blackhole:
                base = {run_shape[:2]: run_shape[2]["server"]["edge"] for run_shape in samples}
            elif base and make is not kafka_log:
                # What a sink costs beside its own threads, those that have ended among it.
                for events, event_bytes, run in samples:
                    more = max(0.0, run["server"]["edge"] - base[events, event_bytes])
                    run["server"]["sink"] += more
                    run["server"]["edge"] -= more
            fits[make.__name__] = fit(samples)
        else:
            runs = [
                measure(make, options.events, options.event_bytes, options.seconds, options.connections, options.rate)
                for _ in range(options.runs)
            ]
            kept += runs
            rows[runs[0]["part"]] = runs
    if options.fit:
        write_figures(options.fit, fits)
    else:
        print(f"{machine()}; {options.events} events of {options.event_bytes} bytes a request; CPU in seconds per million events\n")
        table(rows)
        if not options.only:
            references(options)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "runs": kept}, indent=1))


if __name__ == "__main__":
    main()
