"""Two of each role on loopback ports, with one configuration file for all of them."""

import json
import os
import signal
import subprocess
from pathlib import Path

import duckdb
from harness import BINARIES, PATIENCE, free_ports, http, toml, wait_until
from kafka_log import settle

ROLES = ("edge", "normalizer", "writer")


class Replica:
    """One process of one role."""

    def __init__(self, fleet, role, number, ports):
        self.fleet, self.role, self.name = fleet, role, f"{role}-{number}"
        self.port, self.admin_port = ports
        self.folder = fleet.folder / self.name
        self.folder.mkdir()
        self.process, self.starts = None, 0

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def admin(self):
        return f"http://127.0.0.1:{self.admin_port}"

    def logs(self):
        return "".join(p.read_text(errors="replace") for p in sorted(self.folder.glob("ingestd-*.log")))

    def spawn(self):
        self.starts += 1
        listen = ("--listen" if self.role == "edge" else "--hop", self.address)
        command = [
            BINARIES / "ingestd", "--role", self.role, "--config", self.fleet.config, *listen,
            "--admin", f"127.0.0.1:{self.admin_port}", "--data-dir", self.folder / "data",
        ]  # fmt: skip
        with open(self.folder / f"ingestd-{self.starts}.log", "wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **self.fleet.environment}
            )

    def ready(self):
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self.process.returncode} at its start:\n{self.logs()[-3000:]}")
        return http("GET", f"{self.admin}/readyz", timeout=5).status == 200

    def start(self):
        self.spawn()
        wait_until(f"{self.name} is ready", self.ready)
        wait_until(f"{self.name} is reached", self.reached)
        return self

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """kill -9, this process and no other."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; it must end well."""
        self.signal(signal.SIGTERM)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end after SIGTERM:\n{self.logs()[-3000:]}") from None
        assert status == 0, f"{self.name} ended with {status} after SIGTERM:\n{self.logs()[-3000:]}"

    def reached(self):
        """True once every replica of the role before reaches it: what `minReadySeconds` waits for."""
        before = {"writer": "normalizer", "normalizer": "edge"}.get(self.role)
        for one in self.fleet.replicas.get(before, []):
            if one.process is None or one.process.poll() is not None:
                continue
            peers = http("GET", f"{one.admin}/api/v1/status", timeout=5).json()["peers"]
            if not any(peer["reached"] and peer["name"].endswith(self.address) for peer in peers):
                return False
        return True

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()

    def ctl(self, *arguments, status=0):
        command = [str(BINARIES / "ingestctl"), *map(str, arguments), "--admin", self.admin, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == status, f"{command} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return json.loads(done.stdout)


class Fleet:
    """All of them."""

    def __init__(self, folder, *, replicas=2, hop="", schemas=None, top="", log="", partitions=None):
        """`log`: the `[log]` that all writers share, with so many partitions; without it each has a log of its own."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config, self.lake = self.folder / "tidegate.toml", self.folder / "lake"
        self.schemas = self.folder / "schemas"
        self.schemas.mkdir()
        for name, schema in (schemas or {}).items():
            (self.schemas / f"{name}.json").write_text(json.dumps(schema))
        self.environment = {}
        self.log, self.partitions = log, partitions
        ports = free_ports(2 * replicas * len(ROLES))
        self.replicas = {
            role: [Replica(self, role, n, (ports.pop(), ports.pop())) for n in range(replicas)] for role in ROLES
        }
        self.write_config(hop, top)

    def write_config(self, hop="", top="", host="127.0.0.1"):
        names = {role: [f"{host}:{one.port}" for one in self.replicas[role]] for role in ROLES}
        self.config.write_text(
            f"""tenants_dir = {toml(self.folder / "tenants")}
{top}
[hop]
normalizers = {toml(names["normalizer"])}
writers = {toml(names["writer"])}
{hop}
{"[log]" if self.log else ""}
{self.log}
[schemas]
dir = {toml(self.schemas)}
[[sink]]
name = "lake"
kind = "lake"
url = {toml(self.lake)}
flush = {{ age = "300ms" }}
"""
        )

    def all(self):
        return [one for role in ROLES for one in self.replicas[role]]

    def start(self):
        for one in self.all():
            one.spawn()
        for one in self.all():
            wait_until(f"{one.name} is ready", one.ready)
        return self

    def end(self):
        for one in self.all():
            one.end()

    def logs(self):
        return "".join(f"--- {one.name}\n{one.logs()[-1500:]}\n" for one in self.all())

    def add_tenant(self, name, *arguments):
        """A key that every edge takes."""
        edges = self.replicas["edge"]
        key = edges[0].ctl("tenant", "add", name, *arguments)["key"]
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

        def known():
            codes = [http("POST", f"http://{one.address}/v1/events", b"[]", headers).status for one in edges]
            return not {401, 403} & set(codes)

        wait_until(f"the key of {name} is known", known, timeout=20)
        return key

    def settle(self):
        """Waits until every writer's sinks have made everything visible."""
        if self.partitions is not None:
            return settle(*self.replicas["writer"], partitions=self.partitions)

        def caught_up():
            states = [http("GET", f"{one.admin}/api/v1/status", timeout=5).json() for one in self.replicas["writer"]]
            return all(sink["lag_events"] == 0 for state in states for sink in state["sinks"])

        wait_until("every sink has caught up", caught_up)

    def audits(self):
        """What each process has in its books; each must balance by itself."""
        found = {one.name: one.ctl("audit") for one in self.all()}
        for name, audit in found.items():
            assert audit["balanced"] and audit["difference"] == 0, (name, audit)
        return found

    def lake_rows(self):
        """(rows, places in a log, {event id: how often}) of events, as DuckDB reads them."""
        if not any(self.lake.glob("events/**/*.parquet")):
            return 0, 0, {}
        rows = duckdb.sql(
            "select log_id, log_partition, log_offset, event_id"
            f" from read_parquet('{self.lake}/events/**/*.parquet', union_by_name=true)"
        ).fetchall()
        ids = {}
        for row in rows:
            ids[row[3]] = ids.get(row[3], 0) + 1
        return len(rows), len({row[:3] for row in rows}), ids
