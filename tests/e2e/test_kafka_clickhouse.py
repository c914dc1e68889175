"""The log on Kafka and ClickHouse behind it: each of the three killed under load, one after the other."""

import sys
import time
from pathlib import Path

import pytest
from clickhouse_engine import ClickHouse, sink
from harness import Load, free_ports, journal_ids, tally, toml, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brokers import Kafka, why_no_kafka  # noqa: E402

pytestmark = pytest.mark.skipif(why_no_kafka() is not None, reason=str(why_no_kafka()))


@pytest.fixture
def parts(tmp_path):
    kafka = Kafka(tmp_path / "kafka", free_ports, wait_until, 1)
    engine = None
    try:
        engine = ClickHouse(tmp_path / "clickhouse").start()
        yield kafka, engine
    finally:
        kafka.end()
        if engine and engine.process.poll() is None:
            engine.kill()


def test_the_server_the_engine_and_the_broker_killed_in_turn_lose_and_double_nothing(make_server, parts):
    """Scenario: load over several seconds; ingestd, ClickHouse and Kafka's only broker are killed and started again, twice.
    Guarantees: every acknowledged event is in ClickHouse, count = different places, and the books balance."""
    kafka, engine = parts
    log = f"""kind = "kafka"
[log.kafka]
servers = {toml(kafka.servers)}
topic = "events"
create = true
partitions = 2
replication = 1
min_insync = 1
session_timeout = "6s"
delivery_timeout = "15s"
"""
    server = make_server(log=log, sink=sink(engine)).start()
    key, acknowledged = server.add_tenant(), set()
    for turn in range(2):
        load = Load(server, key, f"turn-{turn}", rate=500, batch=10, seconds=60)
        wait_until("something is acknowledged", lambda load=load: load.journal.exists() and journal_ids(load.journal))
        time.sleep(1)
        server.kill()
        server.start()
        time.sleep(1)
        engine.kill()
        time.sleep(1)
        engine.start()
        kafka.kill(1)
        time.sleep(1)
        kafka.start(1)
        before = len(journal_ids(load.journal))
        wait_until("it is acknowledged again", lambda load=load, before=before: len(journal_ids(load.journal)) > before + 100)
        load.stop()
        acknowledged |= journal_ids(load.journal)
    wait_until("every partition is owned", lambda: server.standing()["log"]["partitions_owned"] == [0, 1])
    server.settle()
    rows, places, *_ = engine.places("load")
    ids = {row["event_id"] for row in engine.ask("SELECT event_id FROM tidegate.load FORMAT JSONEachRow")}
    assert rows == places, f"{rows} rows at {places} places"
    assert acknowledged <= ids, f"{len(acknowledged - ids)} of {len(acknowledged)} acknowledged events are missing"
    audit = server.audit()
    assert audit["balanced"] is True and audit["difference"] == 0, audit
    print(f"{len(acknowledged)} acknowledged, {rows} rows, as many places")
    for fault in ("kill -9", "sink down", "broker restart"):
        tally("e2e::kafka_clickhouse", fault, ["P1", "P2", "P5"], 2)
