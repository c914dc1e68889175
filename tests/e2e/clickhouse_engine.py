"""An engine of ClickHouse behind a loopback front (clickhouse_front.py), in a process of its own, and what tests ask of it."""

import json
import ssl
import subprocess
import sys
from pathlib import Path

import duckdb
from harness import PATIENCE, http, toml

PASSWORD = "it's a \\ secret"


class ClickHouse:
    """An engine of this test's own, in a folder that outlives its process."""

    def __init__(self, folder, pem=None):
        self.folder, self.port, self.process, self.pem = Path(folder), 0, None, pem
        self.folder.mkdir(parents=True)

    def start(self):
        front = Path(__file__).with_name("clickhouse_front.py")
        with open(self.folder / "front.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, front, self.folder / "data", str(self.port), PASSWORD, *([self.pem] if self.pem else [])],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        line = self.process.stdout.readline()
        assert line, f"the engine did not start: {(self.folder / 'front.log').read_text()[-2000:]}"
        self.port = int(line)
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()

    @property
    def url(self):
        return f"{'https' if self.pem else 'http'}://127.0.0.1:{self.port}"

    def ask(self, statement):
        """What a statement answers; with FORMAT JSONEachRow its rows."""
        query = "/?output_format_json_quote_64bit_integers=0" if "FORMAT" in statement else "/"
        context = ssl.create_default_context(cafile=self.pem) if self.pem else None
        headers = {"X-ClickHouse-Key": PASSWORD}
        answer = http("POST", self.url + query, statement.encode(), headers, timeout=PATIENCE, context=context)
        assert answer.status == 200, f"{statement}: {answer}"
        return [json.loads(line) for line in answer.body.splitlines()]

    def spoil(self, what, left, **more):
        assert http("POST", f"{self.url}/spoil", json.dumps({"what": what, "left": left, **more}).encode()).status == 200

    def cut(self, at, what, **more):
        """From now on changes are counted anew; what is to happen at one of them."""
        order = json.dumps({"at": at, "what": what, **more}).encode()
        assert http("POST", f"{self.url}/cut", order).status == 200

    def changes(self):
        """The changes of tables that came since: the statements."""
        return http("POST", f"{self.url}/changes", b"").json()

    def inserts(self):
        """The inserts that came since its start, spoiled or not: their tokens and settings."""
        return http("POST", f"{self.url}/inserts", b"").json()

    def has(self, table):
        return bool(self.ask(f"SELECT 1 AS x FROM system.tables WHERE database = 'tidegate' AND name = '{table}' FORMAT JSONEachRow"))

    def places(self, table):
        """Rows, different places in the log, the first and the last offset."""
        row = self.ask(
            "SELECT count() AS n, uniqExact(log_id, log_partition, log_offset) AS places,"
            f" min(log_offset) AS first, max(log_offset) AS last FROM tidegate.`{table}` FORMAT JSONEachRow"
        )[0]
        return row["n"], row["places"], row["first"], row["last"]


def sink(clickhouse, age="200ms", more=""):
    """A sink on one engine, or on several as shards."""
    several = isinstance(clickhouse, list)
    where = "" if several else f"url = {toml(clickhouse.url)}"
    shards = f"shards = {toml([engine.url for engine in clickhouse])}" if several else ""
    return f"""
[[sink]]
name = "clickhouse"
kind = "clickhouse"
{where}
flush = {{ age = {toml(age)} }}
[sink.options]
password = {toml(PASSWORD)}
{shards}
{more}
"""


def sink_status(server):
    return next(sink for sink in server.status()["sinks"] if sink["name"] == "clickhouse")


def lake_rows(server, event_type, root="events"):
    """The lake's rows by tenant and offset; times as microseconds."""
    files = f"{server.lake}/{root}/*/event_type={event_type}/**/*.parquet"
    table = duckdb.sql(
        "select * exclude (date, hour, event_type) replace (epoch_us(event_time) as event_time, epoch_us(received_at) as received_at)"
        f" from read_parquet('{files}', hive_partitioning=true, union_by_name=true) order by log_partition, log_offset"
    )
    return [dict(zip(table.columns, row)) for row in table.fetchall()]


def table_rows(clickhouse, table, where="1"):
    return clickhouse.ask(
        "SELECT * REPLACE (toUnixTimestamp64Micro(event_time) AS event_time, toUnixTimestamp64Micro(received_at) AS received_at)"
        f" FROM tidegate.`{table}` WHERE {where} ORDER BY log_partition, log_offset FORMAT JSONEachRow"
    )


def check_same(server, clickhouse, event_type):
    """Row by row and value by value the same in the lake and in ClickHouse; how many rows."""
    lake, table = lake_rows(server, event_type), table_rows(clickhouse, event_type)
    assert len(lake) == len(table), f"{event_type}: {len(lake)} rows in the lake, {len(table)} in ClickHouse"
    for ours, theirs in zip(lake, table):
        assert set(ours) == set(theirs), f"columns: {set(ours) ^ set(theirs)}"
        assert ours == theirs
    return len(lake)


def check_once(server, clickhouse, table, expected):
    rows, places, *_ = clickhouse.places(table)
    assert (rows, places) == (expected, expected), f"{rows} rows at {places} places, {expected} expected"
    audit = server.audit()
    assert audit["balanced"] is True and audit["difference"] == 0, audit
