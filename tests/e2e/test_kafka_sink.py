"""Events in over HTTP, messages out of real Apache Kafka brokers: all of them, each once for who reads what is committed.

Read back with kafka-python, which shares no code with librdkafka. What this does not prove: TLS and SASL to the brokers,
and brokers that lose power.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.partitioner.default import murmur2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brokers import Kafka, why_no_kafka  # noqa: E402
from brokers.front import END_TRANSACTION, INIT_PRODUCER_ID, PRODUCE, Front  # noqa: E402
from conftest import without_topics  # noqa: E402
from harness import Load, exact, free_ports, journal_ids, lake_ids, tally, toml, wait_until  # noqa: E402

KILLS = int(os.environ.get("KAFKA_SINK_KILLS", "6"))
# How often a broker is stopped, and a process taken over from.
TURNS = int(os.environ.get("KAFKA_SINK_TURNS", "3"))
COLUMNS = ("log_id", "log_partition", "log_offset", "event_id")


@pytest.fixture
def make_kafka(tmp_path):
    """Starts clusters that a test may kill; all are gone when it ends."""
    if why_no_kafka():
        pytest.skip(why_no_kafka())
    made = []

    def make(brokers=1, **settings):
        made.append(Kafka(tmp_path / f"kafka-{len(made)}", free_ports, wait_until, brokers, **settings))
        return made[-1]

    yield make
    for cluster in made:
        cluster.end()


def sink(kafka, age="100ms", more="", create=True, servers=None):
    copies = min(3, len(kafka.numbers))
    return f"""
[[sink]]
name = "fan-out"
kind = "kafka"
flush = {{ age = {toml(age)} }}
[sink.options]
servers = {toml(servers or kafka.servers)}
{f"create_topics = {{ partitions = 3, replication = {copies} }}" if create else ""}
{more}
"""


def sink_status(server):
    return next(sink for sink in server.status()["sinks"] if sink["name"] == "fan-out")


def told(server, *words):
    return any(all(word in lane["error"] for word in words) for lane in sink_status(server)["held"])


def topics(kafka):
    admin = KafkaAdminClient(bootstrap_servers=kafka.servers)
    try:
        return sorted(name for name in admin.list_topics() if not name.startswith("__"))
    finally:
        admin.close()


def read(kafka, names, isolation="read_committed"):
    """All messages of these topics, to the end of every partition."""
    consumer = KafkaConsumer(
        bootstrap_servers=kafka.servers, isolation_level=isolation, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    try:
        parts = [TopicPartition(name, part) for name in names for part in sorted(consumer.partitions_for_topic(name))]
        consumer.assign(parts)
        consumer.seek_to_beginning()
        everything = KafkaConsumer(bootstrap_servers=kafka.servers)
        try:
            ends = everything.end_offsets(parts)
        finally:
            everything.close()
        found = []

        def at_the_end():
            for messages in consumer.poll(500).values():
                found.extend(messages)
            return all(consumer.position(part) >= ends[part] for part in parts)

        wait_until("all is read", at_the_end, timeout=120, pause=0)
        return found
    finally:
        consumer.close()


def place(message):
    row = json.loads(message.value)
    return tuple(row[column] for column in COLUMNS)


def check_once(server, kafka, expected, progress="tidegate.progress"):
    """As many messages as places in the log as expected, the same as in the lake. The event ids."""
    names = [name for name in topics(kafka) if name != progress]
    found = [place(message) for message in read(kafka, names)]
    assert len(found) == len({one[:3] for one in found}) == expected, (
        f"{len(found)} messages of {len({one[:3] for one in found})} places, {expected} expected"
    )
    assert set(found) == set(lake_ids(server))
    audit = server.audit()
    assert audit["balanced"] is True and audit["difference"] == 0, audit
    return {one[3] for one in found}


VIEW = {
    "type": "object",
    "x-version": 3,
    "properties": {
        "path": {"type": "string"},
        "took": {"type": "number", "x-unit": "s", "x-accept": {"took_ms": "ms"}},
        "clicks": {"type": "integer"},
        "tags": {"type": "array"},
    },
}


def test_messages_are_as_sent_value_by_value(make_server, one):
    """Scenario: two tenants, types with and without a schema, odd values, dead letters.
    Guarantees: each type has its topic; every value is there digit by digit; keys, partitions and headers are as said."""
    server = make_server(schemas={"page.view": VIEW}, sink=sink(one)).start()
    keys = {name: server.add_tenant(name) for name in ("acme", "be-ta")}
    text = "/ä\"\\'\n\u0007\u2028😀"
    digits = b'{"event_type":"Other","n":9007199254740993,"d":1.50,"big":123456789012345678901234567890,"tiny":1e-400,"x":[1,"a",{}]}'
    for key in keys.values():
        server.accept({"event_type": "page.view", "event_id": "mine'\"", "path": text, "took_ms": 1500, "clicks": 2**63 - 1, "tags": [1, "a"]}, key)
        server.accept([{"event_type": "page.view", "rest": {"n": n}} for n in range(200)], key)
        server.accept(digits, key)
        assert server.send([{"event_type": "page.view", "clicks": "many", "n": 1}], key).json()["dead_lettered"] == 1
    server.settle()
    assert topics(one) == sorted(
        [f"{tenant}.{name}" for tenant in keys for name in ("page.view", "Other", "_dead_letters")] + ["tidegate.progress"]
    )
    for tenant in keys:
        views = read(one, [f"{tenant}.page.view"])
        for part in range(3):
            offsets = [json.loads(view.value)["log_offset"] for view in views if view.partition == part]
            assert offsets == sorted(offsets) and offsets, "order holds within a partition"
        for view in views:
            row, headers = json.loads(view.value), {name: value.decode() for name, value in view.headers}
            assert (row["tenant"], row["event_type"]) == (tenant, "page.view")
            assert view.key.decode() == row["event_id"] == headers.pop("event_id")
            assert view.partition == (murmur2(view.key) & 0x7FFFFFFF) % 3, "the same partition as by a client in Java"
            assert headers == {
                "tenant": tenant, "event_type": "page.view", "verdict": "accepted", "schema_version": "3", "log_id": row["log_id"],
                "log_partition": str(row["log_partition"]), "log_offset": str(row["log_offset"]),
            }  # fmt: skip
        first = next(row for row in map(lambda view: exact(view.value), views) if row["event_id"] == "mine'\"")
        assert (first["path"], str(first["took"]), first["clicks"], first["tags"]) == (text, "1.5", 2**63 - 1, [1, "a"])
        assert sorted(json.loads(view.value)["custom"]["rest"]["n"] for view in views if view.key != b"mine'\"") == list(range(200))
        (other,) = read(one, [f"{tenant}.Other"])
        custom = b'"custom":{"n":9007199254740993,"d":1.50,"big":123456789012345678901234567890,"tiny":1e-400,"x":[1,"a",{}]}'
        assert other.value.endswith(custom + b"}"), other.value
        (dead,) = read(one, [f"{tenant}._dead_letters"])
        row = json.loads(dead.value)
        assert (row["event_type"], row["reason"], row["field"]) == ("page.view", "type_mismatch", "/clicks")
        assert dict(dead.headers)["verdict"] == b"type_mismatch"
        assert json.loads(row["raw"]) == {"event_type": "page.view", "clicks": "many", "n": 1}
    check_once(server, one, 2 * 203)


@pytest.mark.parametrize("key", ["tenant", "field:user", "none"])
def test_a_key_is_what_the_configuration_says(make_server, one, key):
    """Scenario: the key is the tenant, a field that half of the events have, or nothing; zstd besides.
    Guarantees: messages have that key."""
    server = make_server(sink=sink(one, more=f'key = "{key}"\ncompression = "zstd"')).start()
    server.accept([{"event_type": "view", **({"user": f"u {n}"} if n % 2 else {})} for n in range(100)], server.add_tenant())
    server.settle()
    for message in read(one, ["acme.view"]):
        user = json.loads(message.value)["custom"].get("user")
        expected = {"tenant": "acme", "field:user": user, "none": None}[key]
        assert message.key == (expected.encode() if expected else None)
    check_once(server, one, 100)


def test_kills_among_transactions_lose_nothing_and_double_nothing(make_server, one):
    """Scenario: kill -9 of `ingestd` at moments spread over its load.
    Guarantees: what was acknowledged is there once for who reads what is committed, the same as in the lake."""
    server = make_server(flush_age="50ms", sink=sink(one, age="20ms"))
    key, acknowledged, under_load = None, set(), 0
    for cycle in range(KILLS):
        server.start()
        key = key or server.add_tenant()
        load = Load(server, key, cycle, rate=3000, batch=20, seconds=60)
        try:
            wait_until("events come", lambda: load.journal.exists() and load.journal.stat().st_size, timeout=60, pause=0.005)
            time.sleep((cycle * 37 % 100) / 100)
            server.kill()
        finally:
            load.stop()
        seen = journal_ids(load.journal)
        acknowledged |= seen
        under_load += bool(seen)
    server.start()
    server.settle(timeout=180)
    given = server.offsets_given()
    ids = check_once(server, one, given)
    names = [name for name in topics(one) if name != "tidegate.progress"]
    dirty = len(read(one, names, isolation="read_uncommitted"))
    print(f"{KILLS} kills, {under_load} under load; {len(acknowledged)} acknowledged, {given} messages, {dirty - given} more that were not committed")
    assert under_load >= KILLS * 9 // 10
    assert not acknowledged - ids, f"{len(acknowledged - ids)} acknowledged events are missing"
    assert dirty >= given
    tally("e2e::kafka_sink", "kill -9", ["P1", "P2"], KILLS)


@pytest.fixture(scope="module")
def fronted(tmp_path_factory):
    """A broker behind a proxy that loses answers, and the proxy."""
    if why_no_kafka():
        pytest.skip(why_no_kafka())
    front = Front()

    def ports(count):
        found = free_ports(count)
        # The broker is found there before it is ready.
        front.broker = found[0]
        return found

    settings = {"advertised.listeners": f"PLAINTEXT://{front.address}"}
    kafka = Kafka(tmp_path_factory.mktemp("fronted"), ports, wait_until, 1, **settings)
    yield kafka, front
    kafka.end()
    front.end()


@pytest.mark.parametrize("kind", [END_TRANSACTION, PRODUCE, INIT_PRODUCER_ID])
def test_an_answer_that_never_comes_doubles_nothing(make_server, fronted, kind):
    """Scenario: the broker does what it is asked, a commit, a batch or a taking over, and its answer is lost, also after a
    kill -9 right behind.
    Guarantees: each message is there once."""
    kafka, front = fronted
    without_topics(kafka)
    server = make_server(sink=sink(kafka, more='timeout = "2s"')).start()
    key, sent, lost = server.add_tenant(), 0, front.lost
    for cycle in range(6):
        front.lose(kind, 1 + cycle % 2)
        before = front.lost
        if cycle % 2:
            server.kill()
            server.start()
        for _ in range(5):
            server.accept([{"event_type": f"view-{n % 3}", "n": sent + n} for n in range(100)], key)
            sent += 100
        if kind != INIT_PRODUCER_ID or cycle % 2 or cycle == 0:
            wait_until("an answer is lost", lambda: front.lost > before)  # noqa: B023
    front.lose(None, 0)
    server.settle(timeout=120)
    check_once(server, kafka, sent)
    assert front.lost - lost >= 4
    tally("e2e::kafka_sink", "partial network", ["P2", "P5"], front.lost - lost)


def test_a_broker_that_is_stopped_for_longer_than_a_transaction_lasts(make_server, one):
    """Scenario: under load the only broker is stopped for longer than messages and commits may take, several times.
    Guarantees: every answer to clients stays 200, and each message is there once."""
    server = make_server(flush_age="50ms", sink=sink(one, age="20ms", more='timeout = "1s"')).start()
    key = server.add_tenant()
    load = Load(server, key, "stopped", rate=1000, batch=20, seconds=300)
    try:
        wait_until("messages come", lambda: "acme.load" in topics(one), timeout=60)
        for cycle in range(TURNS):
            time.sleep(0.7 + cycle * 0.11)
            one.pause(1)
            time.sleep(5)
            one.resume(1)
        before = server.offsets_given()
        wait_until("events keep coming", lambda: server.offsets_given() > before + 1000)
        report = load.enough()
    finally:
        load.stop()
    assert set(report["codes"]) == {"200"}, report
    server.settle(timeout=120)
    assert server.offsets_given() == report["accepted"]
    check_once(server, one, report["accepted"])
    tally("e2e::kafka_sink", "process pause", ["P2", "P5"], TURNS)


def test_brokers_that_are_killed_and_restarted(make_server, make_kafka):
    """Scenario: of three brokers one after the other is killed under load, and started again.
    Guarantees: every answer to clients stays 200, and each message is there once."""
    kafka = make_kafka(3, min_insync_replicas=2)
    server = make_server(flush_age="50ms", sink=sink(kafka, age="50ms", more='timeout = "5s"')).start()
    key = server.add_tenant()
    load = Load(server, key, "brokers", rate=1000, batch=20, seconds=300)
    try:
        wait_until("messages come", lambda: "acme.load" in topics(kafka), timeout=60)
        for number in kafka.numbers:
            time.sleep(1)
            kafka.kill(number)
            time.sleep(3)
            kafka.start(number)
        before = server.offsets_given()
        wait_until("events keep coming", lambda: server.offsets_given() > before + 1000)
        report = load.enough()
    finally:
        load.stop()
    assert set(report["codes"]) == {"200"}, report
    server.settle(timeout=180)
    assert server.offsets_given() == report["accepted"]
    check_once(server, kafka, report["accepted"])
    tally("e2e::kafka_sink", "broker restart", ["P2", "P5"], 3)


def test_a_process_that_was_taken_over_writes_nothing_any_more(make_server, one):
    """Scenario: `ingestd` is stopped under load; another starts on a copy of its data and writes what the first had begun;
    then the first goes on. Several times.
    Guarantees: each message is there once, and the first says that it was taken over."""
    options = sink(one, age="10ms")
    server = make_server(sink=options).start()
    key, fenced, messages = server.add_tenant(), 0, {}
    server.accept({"event_type": "load"}, key)
    server.settle()
    for cycle in range(TURNS):
        load = Load(server, key, cycle, rate=3000, batch=10, seconds=60)
        try:
            wait_until("events come", lambda: load.journal.exists() and load.journal.stat().st_size, timeout=60, pause=0.005)  # noqa: B023
            time.sleep(0.5 + cycle * 0.013)
            server.signal(19)
            other = make_server(sink=options)
            shutil.copytree(server.data, other.data, dirs_exist_ok=True)
        finally:
            load.process.kill()
            load.process.wait()
        other.start()
        other.settle()
        given = other.offsets_given()
        server.signal(18)
        server.accept([{"event_type": "load", "n": n} for n in range(10)], key)
        wait_until("the first says so", lambda: told(server, "another process writes as"), timeout=60)  # noqa: B023
        fenced += told(server, "another process writes as")
        server.kill()
        for message in read(one, [name for name in topics(one) if name != "tidegate.progress"]):
            messages[message.topic, message.partition, message.offset] = place(message)
        places = [one[:3] for one in messages.values()]
        assert len(places) == len(set(places)), f"{len(places) - len(set(places))} messages are there twice"
        assert {one for one in places if one[2] < given} == {(one[0], one[1], offset) for one in places[:1] for offset in range(given)}
        # The other goes on.
        server = other
    assert fenced == TURNS
    tally("e2e::kafka_sink", "double start", ["P2"], TURNS)


def test_a_message_that_is_too_large_is_set_aside_alone(make_server, one):
    """Scenario: a topic takes messages of 20 kB; of a thousand small events five are larger, also larger than the sink's own
    bound; then `ingestd` is killed.
    Guarantees: those are quarantined, all others are there once, the lane goes on."""
    one.make_topic("acme.order", 1, max_message_bytes=20_000)
    server = make_server(sink=sink(one, more='compression = "none"\nmessage_bytes = 50000')).start()
    key = server.add_tenant()
    guilty = {3: 30_000, 4: 60_000, 500: 30_000, 777: 60_000, 999: 30_000}
    server.accept([{"event_type": "order", "n": n, "text": "x" * guilty.get(n, 100)} for n in range(1000)], key)
    server.settle()
    line = next(t for t in server.audit()["tenants"] if t["event_type"] == "order")["sinks"]["fan-out"]
    assert (line["stored"], line["quarantined"]) == (995, 5), line
    lines = (server.data / "sinks" / "fan-out-quarantine.jsonl").read_text().splitlines()
    causes = {json.loads(json.loads(one)["raw"])["n"]: json.loads(one)["cause"] for one in lines}
    assert set(causes) == set(guilty)
    assert all(("options.message_bytes" if guilty[n] == 60_000 else "max.message.bytes") in cause for n, cause in causes.items()), causes
    server.kill()
    server.start()
    server.accept({"event_type": "order", "n": 5}, key)
    server.settle()
    found = [place(message) for message in read(one, ["acme.order"])]
    assert len(found) == len(set(found)) == 996
    tally("e2e::kafka_sink", "poison event", ["P2", "P5"], 5)


def test_status_says_which_topic_is_missing_and_the_lane_goes_on_once_it_is_there(make_server, one):
    """Scenario: no topics are made by the sink; the operator makes them one by one, the markers' first with a policy that
    deletes.
    Guarantees: status says what is missing each time; nothing is lost; another type is not held up."""
    server = make_server(sink=sink(one, create=False)).start()
    key = server.add_tenant()
    server.accept([{"event_type": "view", "n": n} for n in range(10)], key)
    server.accept([{"event_type": "other", "n": n} for n in range(10)], key)
    wait_until("status says which", lambda: told(server, "acme.view", "not there") and told(server, "acme.other", "create_topics"))
    one.make_topic("acme.view")
    wait_until("status says which else", lambda: told(server, "tidegate.progress", "cleanup.policy=compact"))
    one.make_topic("tidegate.progress", cleanup_policy="delete")
    wait_until("status says what is wrong with it", lambda: told(server, "tidegate.progress", "'delete'") or told(server, '"delete"'))
    assert not read(one, ["acme.view"])
    admin = KafkaAdminClient(bootstrap_servers=one.servers)
    admin.delete_topics(["tidegate.progress"])
    wait_until("it is gone", lambda: "tidegate.progress" not in topics(one))
    admin.close()
    one.make_topic("tidegate.progress", cleanup_policy="compact")
    wait_until("the one type is there", lambda: len(read(one, ["acme.view"])) == 10)
    assert told(server, "acme.other", "not there")
    one.make_topic("acme.other")
    server.settle()
    check_once(server, one, 20)


def test_a_cursor_that_is_set_back_doubles_nothing(make_server, one):
    """Scenario: messages came in many transactions, some of them in several of one window; the sink's state is deleted; what is read again is cut into other windows.
    Guarantees: nothing is there twice, and what comes afterwards is there once."""
    server = make_server(sink=sink(one, age="20ms", more="message_bytes = 2000\nqueue_bytes = 2000")).start()
    key = server.add_tenant()
    for batch in range(12):
        server.accept([{"event_type": "view", "n": batch * 50 + n, "text": "x" * 90} for n in range(50)], key)
        time.sleep(0.1)
    server.settle()
    check_once(server, one, 600)
    markers = [json.loads(message.value) for message in read(one, ["tidegate.progress"]) if b"/live/" in message.key]
    assert len(markers) >= 48 and sum(marker["rows"] for marker in markers) == 600
    assert server.stop() == 0
    (server.data / "sinks" / "fan-out-0.json").unlink()
    server.write_config(sink=sink(one).replace('age = "100ms"', 'age = "100ms", rows = 130'))
    server.start()
    server.accept([{"event_type": "view", "n": n} for n in range(50)], key)
    server.settle()
    check_once(server, one, 650)
