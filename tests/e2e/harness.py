"""Starts a real `ingestd` in a folder of its own, talks to it, and reads its lake with other people's programs."""

import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from decimal import Decimal
from pathlib import Path

import duckdb

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "tests" / "data"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
BINARIES = Path(os.environ.get("TIDEGATE_BIN_DIR", TARGET / "debug"))
PATIENCE = float(os.environ.get("PATIENCE_SECONDS", "60"))


# Below those that the system gives to whoever asks for any: none of these is taken between a look and its use.
PORTS = range(10_000, 32_000)


def free_ports(count):
    """Loopback ports that were free a moment ago; all held at once, so that they differ."""
    sockets, picked = [], random.SystemRandom()
    try:
        for _ in range(100 * count):
            one = socket.socket()
            sockets.append(one)
            try:
                one.bind(("127.0.0.1", picked.choice(PORTS)))
            except OSError:
                sockets.pop().close()
                continue
            if len(sockets) == count:
                return [one.getsockname()[1] for one in sockets]
        raise RuntimeError(f"no {count} ports of {PORTS} are free")
    finally:
        for one in sockets:
            one.close()


def wait_until(what, condition, timeout=PATIENCE, pause=0.05):
    """Waits until `condition()` is true and returns its value; the failure names what did not happen."""
    deadline = time.monotonic() + timeout
    last = None
    while True:
        try:
            value = condition()
            if value:
                return value
            last = value
        except (OSError, duckdb.Error, ValueError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout:.0f} s still not so: {what} (last seen: {last!r})")
        time.sleep(pause)


class Answer:
    """One HTTP answer: status, headers, body."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:500]!r}"


def http(method, url, body=None, headers=None, timeout=30, context=None):
    """One request; an error status is an answer like any other."""
    request = urllib.request.Request(url, data=body, headers=headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout, context=context) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def toml(value):
    """A TOML value; JSON's spelling of strings, numbers, booleans and lists is TOML's too."""
    return json.dumps(str(value) if isinstance(value, Path) else value)


class Server:
    """An `ingestd` of this test's own: configuration, data and logs in one folder, loopback ports."""

    def __init__(self, folder, *, flush_age="300ms", schemas=None, edge="", log="", sink="", top=""):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = self.folder / "data"
        self.lake = self.folder / "lake"
        self.schemas = self.folder / "schemas"
        self.schemas.mkdir(exist_ok=True)
        for name, schema in (schemas or {}).items():
            self.write_schema(name, schema)
        self.port, self.admin_port = free_ports(2)
        self.scheme = "http"
        self.config = self.folder / "tidegate.toml"
        self.parts = dict(flush_age=flush_age, edge=edge, log=log, sink=sink, top=top)
        self.write_config()
        # Beside this process's own environment.
        self.environment = {}
        self.process = None
        self.starts = 0

    def write_config(self, **changes):
        self.parts.update(changes)
        parts = self.parts
        self.config.write_text(
            f"""{parts["top"]}
[edge]
listen = "127.0.0.1:{self.port}"
{parts["edge"]}
[admin]
listen = "127.0.0.1:{self.admin_port}"
[log]
dir = {toml(self.data)}
{parts["log"]}
[schemas]
dir = {toml(self.schemas)}
[[sink]]
name = "lake"
kind = "lake"
url = {toml(self.lake)}
flush = {{ age = {toml(parts["flush_age"])} }}
{parts["sink"]}
"""
        )

    def write_schema(self, name, schema):
        path = self.schemas / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(schema))

    # life ------------------------------------------------------------------------------------------

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def admin(self):
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def pid(self):
        return self.process.pid

    def log_file(self):
        return self.folder / f"ingestd-{self.starts}.log"

    def logs(self):
        return "".join(p.read_text(errors="replace") for p in sorted(self.folder.glob("ingestd-*.log")))

    def spawn(self):
        """Starts the process and does not wait for anything."""
        self.starts += 1
        with open(self.log_file(), "wb") as log:
            self.process = subprocess.Popen(
                [BINARIES / "ingestd", "--config", self.config], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **self.environment},
            )  # fmt: skip

    def start(self):
        """Starts it and waits until it would take an event."""
        self.spawn()

        def ready():
            if self.process.poll() is not None:
                raise AssertionError(
                    f"ingestd ended with {self.process.returncode} at its start:\n{self.log_file().read_text()}"
                )
            return http("GET", f"{self.admin}/readyz", timeout=5).status == 200

        try:
            wait_until("ingestd is ready", ready)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_file().read_text()[-3000:]}") from None
        return self

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """kill -9, this process and no other."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout=PATIENCE):
        """SIGTERM, and the exit status."""
        self.signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"ingestd did not end within {timeout} s of SIGTERM:\n{self.logs()[-3000:]}") from None

    def end(self):
        """Whatever happened before: the process is gone afterwards."""
        if self.process and self.process.poll() is None:
            self.kill()

    def resident_bytes(self):
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS in /proc/<pid>/status")

    # talking to it ---------------------------------------------------------------------------------

    def ctl_command(self, *arguments):
        return [str(BINARIES / "ingestctl"), *map(str, arguments)]

    def ctl_environment(self, key=None):
        environment = dict(os.environ, TIDEGATE_ADMIN_URL=self.admin, TIDEGATE_URL=self.url)
        if key:
            environment["TIDEGATE_KEY"] = key
        return environment

    def ctl(self, *arguments, key=None, status=0, timeout=120, stdin=None):
        """`ingestctl … --json`: what it printed. `status` is the exit status it must have."""
        done = subprocess.run(
            self.ctl_command(*arguments, "--json"),
            env=self.ctl_environment(key),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode != status:
            raise AssertionError(
                f"ingestctl {' '.join(map(str, arguments))} ended with {done.returncode}, not {status}\n"
                f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
        return json.loads(done.stdout) if done.stdout.strip() else None

    def add_tenant(self, name="acme", *arguments):
        """Makes a tenant and returns its key, once the server takes it."""
        key = self.ctl("tenant", "add", name, *arguments)["key"]
        wait_until(f"the key of {name} is known", lambda: self.send(b"[]", key).status not in (401, 403), timeout=10)
        return key

    def send(self, body, key, content_type="application/json", query="", headers=None, context=None, timeout=30):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        all_headers = {"Authorization": f"Bearer {key}", "Content-Type": content_type, **(headers or {})}
        return http("POST", f"{self.url}/v1/events{query}", body, all_headers, timeout, context)

    def accept(self, events, key, **more):
        """Sends events and insists that every one of them is accepted."""
        answer = self.send(events, key, **more)
        count = len(events) if isinstance(events, list) else 1
        assert answer.status == 200, f"not taken: {answer}"
        assert answer.json()["accepted"] == count, f"not all accepted: {answer}"
        return answer.json()

    def status(self):
        return self.ctl("status")

    def standing(self):
        """What `status` says, whether all is well or not yet."""
        return http("GET", f"{self.admin}/api/v1/status", timeout=10).json()

    def offsets_given(self):
        """How many offsets the log has given so far."""
        answer = http("GET", f"{self.admin}/api/v1/offsets", timeout=5)
        return sum(partition["latest"] for partition in answer.json()["partitions"])

    def settle(self, timeout=PATIENCE):
        """Waits until every sink has made everything visible."""

        def caught_up():
            answer = http("GET", f"{self.admin}/api/v1/status", timeout=5)
            sinks = answer.json()["sinks"]
            return sinks and all(sink["lag_events"] == 0 for sink in sinks)

        wait_until("every sink has caught up", caught_up, timeout)

    def audit(self, *arguments, status=0):
        return self.ctl("audit", *arguments, status=status)

    # reading its lake ------------------------------------------------------------------------------

    def folder_of(self, event_type, tenant="acme"):
        return self.lake / "events" / f"tenant={tenant}" / f"event_type={event_type}"

    def count(self, event_type, tenant="acme"):
        """Rows that DuckDB sees of an event type; 0 while there is no file."""
        folder = self.folder_of(event_type, tenant)
        if not any(folder.glob("**/*.parquet")):
            return 0
        return duckdb.sql(f"select count(*) from read_parquet('{folder}/**/*.parquet')").fetchall()[0][0]

    def rows(self, event_type, tenant="acme"):
        """All rows of an event type as DuckDB reads them, by offset."""
        folder = self.folder_of(event_type, tenant)
        table = duckdb.sql(
            f"select * from read_parquet('{folder}/**/*.parquet', hive_partitioning=true, union_by_name=true)"
            " order by log_id, log_partition, log_offset"
        )
        return [dict(zip(table.columns, row)) for row in table.fetchall()]


def exact(text):
    """JSON with nothing lost: numbers with a point as decimals, integers whole."""
    return json.loads(text, parse_float=Decimal)


def lake_ids(server):
    """Every (log id, partition, offset, event id) in the lake, dead letters included, as DuckDB reads them."""
    found = []
    for root in ("events", "dead_letters"):
        if any((server.lake / root).glob("**/*.parquet")):
            found += duckdb.sql(
                "select log_id, log_partition, log_offset, event_id"
                f" from read_parquet('{server.lake}/{root}/**/*.parquet', union_by_name=true)"
            ).fetchall()
    return found


def journal_ids(path):
    """The ids a client's journal says were acknowledged. A last line cut by a kill counts for nothing."""
    ids = set()
    for line in Path(path).read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            ids.add(json.loads(line)["event_id"])
    return ids


def temporary_files(root):
    """Files below `root` that are not what the lake publishes."""
    published = (".parquet", ".jsonl", ".jsonl.zst", ".jsonl.gz")
    return [str(p) for p in Path(root).rglob("*") if p.is_file() and not p.name.endswith(published)]


class Load:
    """`ingestctl load` in the background, with a journal of what was acknowledged."""

    def __init__(self, server, key, name, *, rate=2000, batch=50, seconds=10, event_bytes=300):
        self.journal = server.folder / f"journal-{name}.ndjson"
        self.output = server.folder / f"load-{name}.json"
        self.errors = server.folder / f"load-{name}.log"
        command = server.ctl_command(
            "load", "--rate", rate, "--batch", batch, "--event-bytes", event_bytes, "--duration", f"{seconds}s",
            "--seed", 7, "--journal", self.journal, "--json",
        )  # fmt: skip
        with open(self.output, "wb") as output, open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                command, env=server.ctl_environment(key), stdin=subprocess.DEVNULL, stdout=output, stderr=errors
            )

    def enough(self):
        """Ends it, and what it reports."""
        self.stop()
        return self.finish()

    def finish(self, timeout=120):
        """Waits for its end; what it reports."""
        status = self.process.wait(timeout)
        assert status == 0, f"ingestctl load ended with {status}: {self.errors.read_text()[-2000:]}"
        return json.loads(self.output.read_text())

    def stop(self):
        """Ends it early, as Ctrl-C does, and waits for the answers under way; what was acknowledged is in its journal."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError("ingestctl load did not end on Ctrl-C") from None


def check_nothing_missing(server, acknowledged):
    """Every acknowledged id is in the lake, and no offset is there twice: counted by DuckDB."""
    assert acknowledged, "the journal is empty: the load acknowledged nothing"
    found = lake_ids(server)
    missing = acknowledged - {row[3] for row in found}
    assert not missing, f"{len(missing)} of {len(acknowledged)} acknowledged events are missing, for instance {sorted(missing)[:3]}"
    places = duckdb.sql(
        "select count(*), count(distinct (log_id, log_partition, log_offset))"
        f" from read_parquet('{server.lake}/events/**/*.parquet', union_by_name=true)"
    ).fetchall()[0]
    assert places[0] == places[1], f"{places[0] - places[1]} rows have an offset that is in the lake already"


def tally(by, fault, promises, survived):
    """Counts for the fault grid, as the workspace's own tests do."""
    path = os.environ.get("TIDEGATE_TALLY")
    if path:
        line = {"by": by, "fault": fault, "promises": promises, "tried": survived, "survived": survived}
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")
