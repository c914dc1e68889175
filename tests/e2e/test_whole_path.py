"""NDJSON sent by `ingestctl send`, through Kafka into ClickHouse and S3, read back and compared with the input value by value.

`WHOLE_PATH_MEGABYTES=200 pytest test_whole_path.py` is the full length; a twentieth of that in the normal suite.
"""

import decimal
import io
import json
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
from clickhouse_engine import sink
from harness import toml, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brokers import why_no_kafka  # noqa: E402
from overload.s3 import REGION, S3  # noqa: E402

pytestmark = pytest.mark.skipif(why_no_kafka() is not None, reason=str(why_no_kafka()))
BYTES = int(float(os.environ.get("WHOLE_PATH_MEGABYTES", "10")) * 1e6)
# What a schema says becomes a column; the rest of an event stands in `custom`, as it was sent.
SCHEMA = {
    "x-version": 1,
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "first": {"type": "boolean"},
        "took": {"type": "number", "x-unit": "s", "x-accept": {"took_ms": "ms"}},
    },
}
COLUMNS = list(SCHEMA["properties"])


def write_input(path):
    """Lines of two types, made of real tweets and of values that are easily bent; returns how many."""
    dice = random.Random(20261122)
    tweets = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "tweets.ndjson").open()]
    texts = [tweet["text"] for tweet in tweets]
    numbers = ["0.1", "1e-7", "123456789012345678901234567890", "-0", "3.0", "2.50", str(2**63 - 1), str(-(2**63))]
    written = lines = 0
    with path.open("w", encoding="utf-8") as out:
        while written < BYTES:
            event = {
                "event_id": f"e{lines}",
                "event_type": ("measured", "free")[lines % 2],
                "text": dice.choice(texts) + dice.choice(["", "\n", '"', "\\", "\u0007", "😀", "ä"]) * dice.randrange(3),
                "count": dice.choice([0, -1, 2**63 - 1, -(2**63), dice.randrange(10**9)]),
                "ratio": dice.choice([0.1, -0.0, 1e300, 5e-324, dice.random()]),
                "first": dice.random() < 0.5,
                "empty": {},
                "nothing": None,
                "list": [dice.randrange(9), "x", [], None],
                "tweet": dice.choice(tweets)["user"],
            }
            event["took_ms" if dice.random() < 0.5 else "took"] = dice.randrange(1, 100_000)
            for name in dice.sample(["text", "count", "ratio", "first"], dice.randrange(3)):
                del event[name]
            # A number as people write it: `custom` keeps its digits.
            line = json.dumps(event, ensure_ascii=False)[:-1] + f', "digits": {dice.choice(numbers)}}}\n'
            written += len(line.encode())
            out.write(line)
            lines += 1
    return lines


def exactly(text):
    """JSON with every number as it was written."""
    return json.loads(text, parse_float=decimal.Decimal, parse_int=lambda digits: decimal.Decimal(digits))


def spelled(value):
    """The same as a text that differs wherever the values do, `3.0` and `3` among them."""
    return json.dumps(value, sort_keys=True, default=lambda number: {"number": str(number)})


def check_row(row, line):
    """One row against the line it was made of."""
    sent = exactly(line)
    kind = sent.pop("event_type")
    assert row["event_id"] == sent.pop("event_id")
    if kind == "measured":
        took = sent.pop("took_ms") / 1000 if "took_ms" in sent else sent.pop("took")
        expected = {name: sent.pop(name, None) for name in COLUMNS if name != "took"}
        for name, value in expected.items():
            there = row[name]
            if name == "ratio" and value is not None:
                assert there == float(value) and str(there) == str(float(value)), (name, there, value)
            elif name == "count" and value is not None:
                assert there == int(value), (name, there, value)
            else:
                assert there == value, (name, there, value)
        assert row["took"] == float(took), (row["took"], took)
    custom = exactly(row["custom"])
    assert spelled(custom) == spelled(sent), row["event_id"]


def check_all(rows, lines, what):
    """Every line is a row, once, and each row is its line."""
    found = 0
    seen = bytearray(len(lines))
    for row in rows:
        number = int(row["event_id"][1:])
        assert not seen[number], f"{what}: {row['event_id']} is there twice"
        seen[number] = 1
        check_row(row, lines[number])
        found += 1
    assert found == len(lines), f"{what}: {found} of {len(lines)} are there"


def rows_of_s3(s3):
    for name, data in s3.objects("lake/events/").items():
        if name.endswith(".parquet"):
            yield from pyarrow.parquet.read_table(io.BytesIO(data), partitioning=None).to_pylist()


def rows_of_clickhouse(engine, lines):
    for table in ("measured", "free"):
        for start in range(0, len(lines), 20_000):
            # JSON says `-0` for -0.0, which is read as a whole number: a float comes as its bits.
            bits = "reinterpretAsInt64(ratio) AS bits, " if table == "measured" else ""
            condition = f"toUInt64(substring(event_id, 2)) >= {start} AND toUInt64(substring(event_id, 2)) < {start + 20_000}"
            for row in engine.ask(f"SELECT {bits}* FROM tidegate.{table} WHERE {condition} FORMAT JSONEachRow"):
                if bits and row["ratio"] is not None:
                    row["ratio"] = struct.unpack("<d", struct.pack("<q", row["bits"]))[0]
                yield row


@pytest.fixture
def parts(one, clickhouse, tmp_path):
    """Kafka, ClickHouse and S3, each real and on loopback."""
    (tmp_path / "s3").mkdir()
    s3 = S3(tmp_path / "s3", "lake")
    yield one, clickhouse, s3
    s3.end()


def test_what_comes_out_of_clickhouse_and_s3_is_what_was_sent(make_server, parts, tmp_path):
    """Scenario: a file of NDJSON with odd values goes through Kafka into ClickHouse and S3.
    Guarantees: each line is a row of both, once; columns, units and `custom` hold the values that were sent."""
    kafka, engine, s3 = parts
    file = tmp_path / "input.ndjson"
    count = write_input(file)
    log = f"""kind = "kafka"
dedup_window = "0s"
[log.kafka]
servers = {toml(kafka.servers)}
topic = "events"
create = true
partitions = 2
replication = 1
min_insync = 1
"""
    server = make_server(
        log=log, schemas={"measured": SCHEMA}, flush_age="2s", sink='[sink.options.store]\naws_allow_http = "true"\n' + sink(engine, age="1s")
    )
    server.lake = f"s3://{s3.bucket}/lake"
    server.write_config()
    server.environment = {
        "AWS_ENDPOINT": s3.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION,
    }  # fmt: skip
    server.start()
    keys = [server.add_tenant("acme"), server.add_tenant("beta")]
    began = time.monotonic()
    # Two tenants, so that both partitions have their part.
    halves = [tmp_path / "a.ndjson", tmp_path / "b.ndjson"]
    lines = file.read_text(encoding="utf-8").splitlines()
    for at, half in enumerate(halves):
        half.write_text("".join(line + "\n" for line in lines[at * count // 2 : (at + 1) * count // 2]), encoding="utf-8")
    senders = [
        subprocess.Popen(server.ctl_command("send", half, "--json"), env=server.ctl_environment(key), stdout=subprocess.PIPE)
        for half, key in zip(halves, keys, strict=True)
    ]
    reports = [json.loads(sender.communicate(timeout=600)[0]) for sender in senders]
    assert [sender.returncode for sender in senders] == [0, 0], reports
    assert sum(report["accepted"] for report in reports) == count, reports
    wait_until("its sinks run", lambda: server.standing()["log"]["partitions_owned"] == [0, 1])
    wait_until("all is visible", lambda: all(sink["lag_events"] == 0 for sink in server.standing()["sinks"]), timeout=600)
    took = time.monotonic() - began
    audit = server.audit()
    assert audit["balanced"] is True and audit["difference"] == 0, audit
    check_all(rows_of_clickhouse(engine, lines), lines, "ClickHouse")
    check_all(rows_of_s3(s3), lines, "S3")
    print(f"\n{file.stat().st_size / 1e6:.0f} MB, {count} events, sent and visible in both after {took:.1f} s, equal value by value")
