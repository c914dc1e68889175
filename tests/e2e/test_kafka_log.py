"""The log on Apache Kafka: real brokers, killed, paused and led by others, under load; several ingestds on one topic."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fast_clock import FastClock, why_no_fast_clock
from harness import Load, check_nothing_missing, free_ports, journal_ids, lake_ids, tally, toml, wait_until
from harness import http as request_of
from kafka_log import certificate, on_kafka, owned, settle, shares

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brokers import Kafka, why_no_kafka  # noqa: E402

pytestmark = pytest.mark.skipif(why_no_kafka() is not None, reason=str(why_no_kafka()))
TYPE = "view"
# How often a server is killed in a row, and how often one is paused past its session.
KILLS = int(os.environ.get("KAFKA_LOG_KILLS", "3"))
ZOMBIES = int(os.environ.get("KAFKA_ZOMBIES", "2"))


@pytest.fixture
def three(tmp_path):
    """Three brokers of this test's own, soon aware that one is gone."""
    kafka = Kafka(
        tmp_path / "kafka", free_ports, wait_until, 3, broker_session_timeout_ms=3000, broker_heartbeat_interval_ms=500,
        replica_lag_time_max_ms=5000, group_min_session_timeout_ms=1000,
    )  # fmt: skip
    yield kafka
    kafka.end()


def readiness(server):
    return request_of("GET", f"{server.admin}/readyz", timeout=5)


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
    assert (status["log"]["kind"], status["log"]["promise_kept"], status["log"]["deduplication"]) == ("kafka", False, "on")
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


def test_a_server_killed_again_and_again_loses_nothing_and_doubles_nothing(make_server, one):
    """Scenario: load; the server is killed and started again, several times.
    Guarantees: every acknowledged event is in the lake, no offset twice; the books balance."""
    server = make_server(log=on_kafka(one, "killed")).start()
    key = server.add_tenant()
    acknowledged = set()
    for run in range(KILLS):
        load = Load(server, key, f"kill-{run}", rate=1500, seconds=30)
        before = server.offsets_given()
        wait_until("the load is under way", lambda: server.offsets_given() > before + 1500 + 700 * run)
        server.kill()
        load.stop()
        acknowledged |= journal_ids(load.journal)
        server.start()
    settle(server)
    check_nothing_missing(server, acknowledged)
    assert server.audit()["balanced"] is True
    tally("e2e kafka log: kill", "kill -9", ["P1", "P2", "P5"], KILLS)


def test_brokers_that_die_and_leaders_that_move_lose_nothing(make_server, three):
    """Scenario: three brokers, load; the leader of a partition is killed, comes back; a broker is stopped as operators do
    (its leaders move first), comes back; the leader is killed once more.
    Guarantees: answers are 200 or a 503 or 429 that may be tried again; what was acknowledged is in the lake, once."""
    server = make_server(log=on_kafka(three, "led", safe=True)).start()
    key = server.add_tenant()
    assert server.status()["log"]["promise_kept"] is True
    load = Load(server, key, "leaders", rate=800, seconds=300)
    for how in (three.kill, three.stop, three.kill):
        before = server.offsets_given()
        wait_until("events are taken", lambda: server.offsets_given() > before + 1000)
        victim = wait_until("a broker leads", lambda: max(three.leader("led"), 0))
        how(victim)
        wait_until("another broker leads", lambda: three.leader("led") not in (-1, victim))
        before = server.offsets_given()
        wait_until("events are taken again", lambda: server.offsets_given() > before + 500)
        three.start(victim)
    report = load.enough()
    assert set(report["codes"]) <= {"200", "429", "503"}, report["codes"]
    settle(server)
    check_nothing_missing(server, journal_ids(load.journal))
    assert server.audit()["balanced"] is True
    tally("e2e kafka log: leaders", "broker restart", ["P1", "P2", "P5"], 3)


def test_without_enough_copies_nothing_is_acknowledged_until_they_are_back(make_server, three):
    """Scenario: two of three brokers are killed; events are sent; the brokers come back.
    Guarantees: 503 `outcome_unknown` while two copies cannot have an event, not ready; then 200 again, all of it in the lake."""
    server = make_server(log=on_kafka(three, "copies", safe=True, delivery="6s")).start()
    key = server.add_tenant()
    server.accept([{"event_type": TYPE, "event_id": "before"}], key)
    leader = wait_until("a broker leads", lambda: max(three.leader("copies"), 0))
    gone = [number for number in three.numbers if number != leader][:2]
    for number in gone:
        three.kill(number)
    refused = server.send([{"event_type": TYPE, "event_id": "meanwhile"}], key, timeout=60)
    assert (refused.status, refused.headers["X-Shed-Reason"]) == (503, "outcome_unknown"), refused
    assert refused.headers["Retry-After"]
    for number in gone:
        three.spawn(number)
    three.wait()
    wait_until("events are taken again", lambda: server.send([{"event_type": TYPE, "event_id": "after"}], key).status == 200)
    settle(server)
    check_nothing_missing(server, {"before", "after"})
    assert server.audit()["balanced"] is True
    tally("e2e kafka log: copies", "broker restart", ["P1", "P5"], 1)


def test_a_broker_that_stands_still_is_waited_for_and_then_refused(make_server, one):
    """Scenario: the only broker is paused for longer than an append may take, and goes on.
    Guarantees: 503 meanwhile, 200 afterwards; what was acknowledged is in the lake, once; the books balance."""
    server = make_server(log=on_kafka(one, "paused", delivery="6s")).start()
    key = server.add_tenant()
    server.accept([{"event_type": TYPE, "event_id": "before"}], key)
    one.pause(1)
    try:
        refused = server.send([{"event_type": TYPE, "event_id": "meanwhile"}], key, timeout=60)
        assert (refused.status, refused.headers["X-Shed-Reason"]) == (503, "outcome_unknown"), refused
        ready = wait_until("it is not ready", lambda: readiness(server).status == 503 and readiness(server))
        assert "Kafka has not answered" in ready.json()["reasons"][0], ready
    finally:
        one.resume(1)
    wait_until("events are taken again", lambda: server.send([{"event_type": TYPE, "event_id": "after"}], key).status == 200)
    settle(server)
    check_nothing_missing(server, {"before", "after"})
    assert server.audit()["balanced"] is True
    tally("e2e kafka log: paused broker", "process pause", ["P1", "P2", "P5"], 1)


@pytest.mark.skipif(why_no_fast_clock() is not None, reason=str(why_no_fast_clock()))
def test_a_broker_that_is_silent_for_minutes_stops_no_sink_for_good(make_server, one, tmp_path):
    """Scenario: the only broker is paused under load for some four minutes of the server's clock and its Kafka client's (six
    seconds), longer than any transaction of the sinks' state may take to be committed or undone; it goes on. Twice.
    Guarantees: all that was acknowledged is in the lake, once, without a restart; the books balance."""
    clock = FastClock(tmp_path / "clock", ahead=-3600)
    # Many partitions, so that some transaction is just being ended.
    server = make_server(log=on_kafka(one, "silent", 'partition_by = "request"', partitions=6), flush_age="50ms")
    # Nothing is spared: its client is as impatient.
    server.environment = {**clock.environment, "FAST_CLOCK_SPARES": ""}
    server.start()
    key = server.add_tenant()
    load = Load(server, key, "silent", rate=300, batch=10, seconds=300)
    try:
        for _ in range(2):
            before = server.offsets_given()
            wait_until("events are taken", lambda before=before: server.offsets_given() > before + 500)
            one.pause(1)
            try:
                clock.go(40)
                time.sleep(6)
            finally:
                clock.go(1)
                one.resume(1)
        before = server.offsets_given()
        wait_until("events are taken again", lambda: server.offsets_given() > before + 500)
    finally:
        load.stop()
    settle(server, partitions=6)
    check_nothing_missing(server, journal_ids(load.journal))
    assert server.audit()["balanced"] is True
    tally("e2e kafka log: silent broker", "process pause", ["P1", "P2", "P5"], 2)


@pytest.fixture
def pair(make_server, one, request):
    """Two servers on one topic, with one lake and the same tenants."""
    topic = f"pair-{request.node.name.replace('_', '-')[:60]}"
    first = make_server(log=on_kafka(one, topic, 'partition_by = "request"', partitions=4, session="3s"))
    tenants = first.folder / "tenants"
    first.write_config(top=f"tenants_dir = {toml(tenants)}")
    second = make_server(log=first.parts["log"], top=first.parts["top"])
    second.lake = first.lake
    second.write_config()
    first.start()
    second.start()
    key = first.add_tenant()
    wait_until("both know the key", lambda: second.send(b"[]", key).status not in (401, 403))
    return first, second, key


def test_two_servers_share_the_partitions_and_take_over_from_one_that_was_killed(pair):
    """Scenario: two servers on one topic under load on both; one is killed, comes back.
    Guarantees: each has partitions; the other takes over; every acknowledged event is in the lake, no offset twice."""
    first, second, key = pair
    wait_until("each has a part", lambda: all(len(share) == 2 for share in shares(first, second)))
    loads = [Load(server, key, "pair", rate=600, seconds=300) for server in (first, second)]
    before = second.offsets_given()
    wait_until("the load is under way", lambda: second.offsets_given() > before + 3000)
    second.kill()
    loads[1].stop()
    wait_until("the first has all", lambda: len(owned(first)) == 4)
    second.start()
    wait_until("each has a part again", lambda: all(len(share) == 2 for share in shares(first, second)))
    loads[0].stop()
    settle(first, second, partitions=4)
    check_nothing_missing(first, journal_ids(loads[0].journal) | journal_ids(loads[1].journal))
    for server in (first, second):
        assert server.audit()["balanced"] is True
    tally("e2e kafka log: shared, killed", "kill -9", ["P1", "P2", "P5"], 1)


def test_servers_that_start_at_once_on_a_new_topic_agree_on_one_log(make_server, one):
    """Scenario: three servers are started at the same moment, and the topic is not there yet.
    Guarantees: all of them start, on one log, and share its partitions."""
    servers = [make_server(log=on_kafka(one, "begun", partitions=3)) for _ in range(3)]
    for server in servers:
        server.spawn()
    for server in servers:
        wait_until("it is ready", lambda server=server: alive(server) and readiness(server).status == 200)
    assert len({server.status()["log"]["group"] for server in servers}) == 1
    wait_until("each has a part", lambda: sorted(sum(shares(*servers), [])) == [0, 1, 2] and all(shares(*servers)))


def alive(server):
    assert server.process.poll() is None, f"it ended with {server.process.returncode}:\n{server.log_file().read_text()[-2000:]}"
    return True


def test_a_server_that_was_paused_past_its_session_writes_nothing_twice(pair):
    """Scenario: two servers on one topic under load; one is paused, in the middle of its windows, until the other has
    taken its partitions over and gone on; then it wakes. Several times.
    Guarantees: every acknowledged event is in the lake, no offset twice; the one that woke goes on as a member."""
    first, second, key = pair
    load = Load(first, key, "zombie", rate=800, seconds=300)
    for _ in range(ZOMBIES):
        wait_until("each has a part", lambda: all(len(share) == 2 for share in shares(first, second)))
        before = first.offsets_given()
        wait_until("the load is under way", lambda: first.offsets_given() > before + 2000)
        second.signal(19)
        try:
            wait_until("the first has all", lambda: len(owned(first)) == 4)
            before = first.offsets_given()
            wait_until("it goes on", lambda: first.offsets_given() > before + 1500)
        finally:
            second.signal(18)
    load.stop()
    wait_until("each has a part", lambda: all(len(share) == 2 for share in shares(first, second)))
    settle(first, second, partitions=4)
    check_nothing_missing(first, journal_ids(load.journal))
    for server in (first, second):
        assert server.audit()["balanced"] is True
    tally("e2e kafka log: zombie", "process pause", ["P1", "P2", "P5"], ZOMBIES)


def elsewhere(server):
    """What a server tells of the partitions that it does not have: partition -> (whether somebody has it, how far the lake is behind)."""
    told = server.standing()["log"]["partitions_elsewhere"]
    return {one["partition"]: (one["owned"], {sink["sink"]: sink["lag_events"] for sink in one["sinks"]}["lake"]) for one in told}


def gauges(server, name):
    lines = request_of("GET", f"{server.admin}/metrics", timeout=10).body.decode().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith(name)}


def test_what_waits_in_a_partition_that_nobody_has_is_told_by_those_who_are_there(make_server, one):
    """Scenario: two servers share two partitions; one is killed, and until its session ends the group has it as the owner; then
    the other has both. Somebody else begins transactions as the owner of one: the server gives it back, and takes it only later.
    Guarantees: `status` and the metrics tell how many events wait there, and, in the second case, that nobody has it; afterwards
    nothing waits any more, and all is in the lake once."""
    from kafka import KafkaProducer

    log = on_kafka(one, "strays", 'partition_by = "request"', session="8s")
    first = make_server(log=log)
    first.write_config(top=f"tenants_dir = {toml(first.folder / 'tenants')}")
    second = make_server(log=log, top=first.parts["top"])
    second.lake = first.lake
    second.write_config()
    first.start()
    second.start()
    key, sent = first.add_tenant(), set()

    def send(count=40):
        for n in range(count):
            first.accept([{"event_type": TYPE, "event_id": f"s-{len(sent)}"}], key)
            sent.add(f"s-{len(sent)}")

    wait_until("each has a part", lambda: all(len(share) == 1 for share in shares(first, second)))
    send()
    settle(first, second)
    (theirs,) = owned(second)
    wait_until("the other one is known to be well", lambda: elsewhere(first) == {theirs: (True, 0)})
    second.kill()
    send()
    behind = wait_until("what waits there is told", lambda: elsewhere(first).get(theirs, (None, 0))[1])
    assert 10 <= behind <= 40, behind
    series = f'tidegate_kafka_elsewhere_lag_events{{partition="{theirs}",sink="lake"}}'
    assert gauges(first, "tidegate_kafka_elsewhere_lag_events")[series] >= 10
    settle(first)
    wait_until("nothing is elsewhere any more", lambda: elsewhere(first) == {} and gauges(first, series) == {series: 0})

    log_id = first.standing()["log_id"]
    stranger = KafkaProducer(bootstrap_servers=one.servers, transactional_id=f"{log_id}-{theirs}")
    stranger.init_transactions()
    stranger.close()
    send()
    wait_until("it is given back", lambda: owned(first) == [1 - theirs])
    assert wait_until("that nobody has it is told", lambda: elsewhere(first).get(theirs))[0] is False
    waits = wait_until("and what waits there", lambda: elsewhere(first)[theirs][1])
    assert gauges(first, "tidegate_kafka_unowned_partitions") == {"tidegate_kafka_unowned_partitions": 1}
    shown = subprocess.run(first.ctl_command("status"), env=first.ctl_environment(), capture_output=True, text=True, timeout=60).stdout
    assert f"partition {theirs} is nobody's at the moment: lake is {waits} event" in shown, shown
    settle(first)
    wait_until("that is over", lambda: gauges(first, "tidegate_kafka_unowned_partitions") == {"tidegate_kafka_unowned_partitions": 0})
    check_nothing_missing(first, sent)


def test_a_sink_reads_events_that_were_judged_by_a_schema_its_own_process_never_had(make_server, one):
    """Scenario: a server with a schema that another one never had takes events and ends before its sink has written them;
    the other one, with a folder of its own and an older schema, takes over.
    Guarantees: the rows have the columns of the schema they were judged by."""
    newer = {"x-version": 2, "type": "object", "properties": {"duration": {"type": "number"}, "colour": {"type": "string"}}}
    older = {"x-version": 1, "type": "object", "properties": {"duration": {"type": "number"}}}
    first = make_server(log=on_kafka(one, "schemas"), schemas={TYPE: newer}, flush_age="1h").start()
    key = first.add_tenant()
    first.accept([{"event_type": TYPE, "event_id": f"n-{i}", "duration": i, "colour": "red"} for i in range(10)], key)
    first.kill()
    second = make_server(log=on_kafka(one, "schemas"), schemas={TYPE: older}).start()
    settle(second)
    rows = second.rows(TYPE)
    assert [(row["schema_version"], row["colour"], row["custom"]) for row in rows] == [(2, "red", "{}")] * 10, rows


def refusal(server):
    """What a server says that does not start, spawned already or not."""
    if server.process is None:
        server.spawn()
    wait_until("it ends", lambda: server.process.poll() is not None)
    assert server.process.returncode == 3, server.log_file().read_text()
    return server.log_file().read_text()


def test_a_topic_that_cannot_keep_the_promise_is_refused_with_what_to_do(make_server, one):
    """Guarantees: one copy, compaction, short retention, a topic that is missing: each is named, with how to mend it; the
    same topic is taken where the operator opted down by name, and `status` shows that."""
    one.make_topic("unsafe", 2, 1, cleanup_policy="compact", retention_ms=1000)
    said = refusal(make_server(log=on_kafka(one, "unsafe", "create = false", safe=True).replace("create = true\n", "")))
    assert "is not there: make it" in said and "unsafe.state" in said, said
    one.make_topic("unsafe.state", 2, 1, cleanup_policy="compact")
    said = refusal(make_server(log=on_kafka(one, "unsafe", safe=True)))
    for fault in ("min.insync.replicas is 1", "1 copies", "cleanup.policy is compact", "max.message.bytes", "retention.ms is 1000"):
        assert fault in said, said
    one.make_topic("modest", 1, 1, max_message_bytes=2000000)
    one.make_topic("modest.state", 1, 1, cleanup_policy="compact")
    server = make_server(log=on_kafka(one, "modest")).start()
    status = server.status()
    assert status["log"]["promise_kept"] is False and "min_insync = 1" in status["recovery"][0], status


def test_a_topic_made_anew_under_the_old_name_is_found_out(make_server, one):
    """Scenario: the topic is deleted and made anew beside the old state; it has as many events as the old one had.
    Guarantees: its offsets are not taken for the old ones: no sink runs, and `status` says why."""
    from kafka import KafkaAdminClient

    server = make_server(log=on_kafka(one, "anew", partitions=1)).start()
    key = server.add_tenant()
    server.accept([{"event_type": TYPE, "event_id": f"old-{i}"} for i in range(20)], key)
    settle(server, partitions=1)
    assert server.stop() == 0
    admin = KafkaAdminClient(bootstrap_servers=one.servers)
    admin.delete_topics(["anew"])
    wait_until("it is gone", lambda: "anew" not in admin.list_topics())
    admin.close()
    server.start()
    server.accept([{"event_type": TYPE, "event_id": f"new-{i}"} for i in range(30)], key)
    problems = wait_until("it is found out", lambda: server.standing()["log"]["problems"])
    assert "is not the one its state was written for" in problems[0], problems
    assert {row[3] for row in lake_ids(server)} == {f"old-{i}" for i in range(20)}


def sasl(kafka, topic, mechanism, password, more="", ca=None):
    """A log on `topic` for who says who it is."""
    section = f"""[log.kafka.tls]
ca = {toml(ca or kafka.certificate)}
[log.kafka.sasl]
mechanism = "{mechanism}"
user = "tidegate"
password = {toml(password)}
{more}"""
    return on_kafka(kafka, topic, section, partitions=1).replace(kafka.servers, kafka.sasl_servers)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_password_lets_in_over_tls_and_a_wrong_one_is_told(make_server, guarded, mechanism):
    topic = f"guarded-{mechanism.lower()}"
    # It tries for seconds before it gives up.
    wrong = make_server(log=sasl(guarded, topic, mechanism, "wrong"))
    wrong.spawn()
    server = make_server(log=sasl(guarded, topic, mechanism, "right")).start()
    server.accept([{"event_type": TYPE, "event_id": "in"}], server.add_tenant())
    settle(server, partitions=1)
    assert server.count(TYPE) == 1
    shown = request_of("GET", f"{server.admin}/api/v1/config")
    assert shown.json()["log"]["kafka"]["sasl"] == {"mechanism": mechanism, "user": "tidegate", "password": "[secret]"}, shown
    assert b"right" not in shown.body and "right" not in server.log_file().read_text()
    said = refusal(wrong)
    assert "cannot be asked" in said and "Authentication failed" in said, said
    assert "wrong" not in said


def test_a_broker_whose_certificate_nobody_vouches_for_is_not_talked_to(make_server, guarded, tmp_path):
    _, other = certificate(tmp_path)
    said = refusal(make_server(log=sasl(guarded, "guarded-tls", "PLAIN", "right", ca=other)))
    assert "cannot be asked" in said and "certificate verify failed" in said, said


def known(log):
    """The operator has made the topics, and looked at them."""
    return log.replace("create = true", "unchecked = true")


def unsigned_token(user):
    def part(claims):
        return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")

    now = int(time.time())
    return f"{part({'alg': 'none'})}.{part({'sub': user, 'iat': now, 'exp': now + 3600})}."


class Tokens(http.server.BaseHTTPRequestHandler):
    """Gives a token to who knows the secret."""

    asked = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.asked.append(body)
        known = self.headers["Authorization"] == "Basic " + base64.b64encode(b"tidegate:right").decode()
        answer = json.dumps({"access_token": unsigned_token("tidegate"), "expires_in": 3600}).encode()
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(answer if known else b"")

    def log_message(self, *_):
        pass


def test_a_token_lets_in_and_a_wrong_secret_is_told(make_server, guarded):
    """Guarantees: OAUTHBEARER asks the token endpoint with id, secret and scope, and comes in with what it gives out."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tokens) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        guarded.make_topic("guarded-oauth", 1, 1, max_message_bytes=2000000)
        guarded.make_topic("guarded-oauth.state", 1, 1, cleanup_policy="compact")
        more = f'token_url = "http://127.0.0.1:{endpoint.server_port}/token"\nscope = "kafka"'
        wrong = make_server(log=known(sasl(guarded, "guarded-oauth", "OAUTHBEARER", "wrong", more)))
        wrong.spawn()
        server = make_server(log=known(sasl(guarded, "guarded-oauth", "OAUTHBEARER", "right", more))).start()
        assert "log.kafka.unchecked" in server.status()["log"]["notes"][0]
        server.accept([{"event_type": TYPE, "event_id": "in"}], server.add_tenant())
        settle(server, partitions=1)
        assert server.count(TYPE) == 1
        assert "grant_type=client_credentials&scope=kafka" in Tokens.asked
        said = refusal(wrong)
        endpoint.shutdown()
    assert "cannot be asked" in said and "401" in said, said


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """One broker that asks who one is, over TLS."""
    folder = tmp_path_factory.mktemp("guarded")
    both, alone = certificate(folder)
    kafka = Kafka(folder, free_ports, wait_until, 1, users={"tidegate": "right"}, tls=both)
    kafka.certificate = alone
    yield kafka
    kafka.end()
