"""The log on Apache Kafka: real brokers, killed, paused and led by others, under load; several ingestds on one topic."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from harness import Load, check_nothing_missing, free_ports, journal_ids, lake_ids, tally, toml, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brokers import Kafka, tool, why_no_kafka  # noqa: E402

pytestmark = pytest.mark.skipif(why_no_kafka() is not None, reason=str(why_no_kafka()))
TYPE = "view"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One broker, shared by the tests that hurt none."""
    kafka = Kafka(tmp_path_factory.mktemp("kafka"), free_ports, wait_until, 1)
    yield kafka
    kafka.end()


@pytest.fixture
def three(tmp_path):
    """Three brokers of this test's own, soon aware that one is gone."""
    kafka = Kafka(
        tmp_path / "kafka", free_ports, wait_until, 3, broker_session_timeout_ms=3000, broker_heartbeat_interval_ms=500,
        replica_lag_time_max_ms=5000, group_min_session_timeout_ms=1000,
    )  # fmt: skip
    yield kafka
    kafka.end()


def on_kafka(kafka, topic, more="", *, partitions=2, safe=False):
    """What a server's `[log]` says to have its log on `topic`."""
    copies = "replication = 3\nmin_insync = 2" if safe else "replication = 1\nmin_insync = 1"
    return f"""kind = "kafka"
dedup_window = "0s"
[log.kafka]
servers = {toml(kafka.servers)}
topic = {toml(topic)}
create = true
partitions = {partitions}
{copies}
session_timeout = "6s"
delivery_timeout = "15s"
{more}
"""


def owned(server):
    return server.status()["log"]["partitions_owned"]


def settle(*servers, partitions=2):
    """Waits until every partition is somebody's, and every sink has made everything visible."""
    everything = list(range(partitions))
    wait_until("every partition is owned", lambda: sorted(sum(map(owned, servers), [])) == everything)
    for server in servers:
        server.settle()


def messages(kafka, topic):
    """Every message of the topic, as a client that is none of ours reads it."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=kafka.servers, isolation_level="read_committed", enable_auto_commit=False)
    try:
        parts = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
        consumer.assign(parts)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(parts)
        found = []
        while any(consumer.position(part) < ends[part] for part in parts):
            for records in consumer.poll(timeout_ms=1000).values():
                found += records
        return found
    finally:
        consumer.close()


def ids_of(found):
    return [dict(message.headers)["event_id"].decode() for message in found]


def test_each_event_is_a_message_that_any_client_can_read(make_server, one):
    """Scenario: valid events and dead letters of two tenants, read back by another client, and from the lake.
    Guarantees: value and headers are what was sent; offsets in the lake are Kafka's own; the books balance, also after a
    restart; `offsets`, `tail`, `dead-letters` and `status` know the log."""
    schema = {"x-version": 3, "type": "object", "properties": {"duration": {"type": "number"}}}
    server = make_server(log=on_kafka(one, "plain", "compression = \"gzip\""), schemas={TYPE: schema}).start()
    acme, other = server.add_tenant(), server.add_tenant("other")
    sent = [{"event_type": TYPE, "event_id": f"a-{i}", "duration": i, "text": "é\"\\"} for i in range(50)]
    server.accept(sent, acme)
    server.accept([{"event_type": TYPE, "event_id": "o-1", "duration": 7}], other)
    answer = server.send([{"event_type": TYPE, "event_id": "bad", "duration": "x"}], acme).json()
    assert (answer["accepted"], answer["dead_lettered"]) == (0, 1), answer
    settle(server)

    found = messages(one, "plain")
    by_id = {dict(m.headers)["event_id"].decode(): m for m in found}
    assert len(found) == len(by_id) == 52
    for event in sent:
        message = by_id[event["event_id"]]
        headers = {name: value.decode(errors="replace") for name, value in message.headers}
        assert json.loads(message.value) == event
        assert (headers["tenant"], headers["event_type"], headers["protocol"]) == ("acme", TYPE, "events")
        assert (headers["verdict"], headers["schema_version"]) == ("accepted", "3")
        assert headers["received_at"].endswith("Z")
    assert dict(by_id["bad"].headers)["verdict"] == b"type_mismatch"
    assert dict(by_id["o-1"].headers)["tenant"] == b"other"
    assert len({m.partition for m in found if dict(m.headers)["tenant"] == b"acme"}) == 1, "a tenant has one partition"

    rows = server.rows(TYPE)
    placed = {row["event_id"]: (row["log_partition"], row["log_offset"]) for row in rows}
    assert placed == {e["event_id"]: (by_id[e["event_id"]].partition, by_id[e["event_id"]].offset) for e in sent}
    offsets = server.ctl("offsets")
    assert sum(p["latest"] - p["earliest"] for p in offsets["partitions"]) == 52
    assert [letter["event_id"] for letter in server.ctl("dead-letters", "list")["dead_letters"]] == ["bad"]
    status = server.status()
    assert (status["log"]["kind"], status["log"]["promise_kept"], status["log"]["deduplication"]) == ("kafka", False, "off")
    assert status["log"]["partitions_owned"] == [0, 1], status["log"]

    assert server.audit()["balanced"] is True
    assert server.stop() == 0
    server.start()
    server.accept([{"event_type": TYPE, "event_id": "later"}], acme)
    settle(server)
    audit = server.audit()
    assert audit["balanced"] is True, audit
    assert sum(line["accepted"] for line in audit["tenants"]) == 52
    check_nothing_missing(server, set(ids_of(messages(one, "plain"))))
