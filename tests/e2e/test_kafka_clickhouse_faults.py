"""The log on Kafka and ClickHouse behind it, several servers: a writer that wakes up as a zombie, answers that are lost, an
engine that dies in the middle of an insert."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from clickhouse_engine import sink
from harness import Load, check_nothing_missing, journal_ids, tally, toml, wait_until
from kafka_log import on_kafka, owned, settle, shares

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brokers import why_no_kafka  # noqa: E402

pytestmark = pytest.mark.skipif(why_no_kafka() is not None, reason=str(why_no_kafka()))
PARTITIONS = 4
# How often a writer is paused in the middle of an insert.
ZOMBIES = int(os.environ.get("KAFKA_ZOMBIES", "2"))


@pytest.fixture
def engine(clickhouse):
    return clickhouse


@pytest.fixture
def pair(make_server, one, engine):
    """Two servers on one topic, with one ClickHouse, one lake and the same tenants; and a key."""
    log = on_kafka(one, "pair", 'partition_by = "request"', partitions=PARTITIONS, session="3s")
    first = make_server(log=log, sink=sink(engine))
    first.write_config(top=f"tenants_dir = {toml(first.folder / 'tenants')}")
    second = make_server(log=log, sink=first.parts["sink"], top=first.parts["top"])
    second.lake = first.lake
    second.write_config()
    first.start()
    second.start()
    key = first.add_tenant()
    wait_until("both know the key", lambda: second.send(b"[]", key).status not in (401, 403))
    wait_until("each has a part", lambda: halves(first, second))
    return first, second, key


def halves(*servers):
    return all(len(share) == PARTITIONS // 2 for share in shares(*servers))


def check(servers, engine, acknowledged):
    """All that was acknowledged is in ClickHouse and the lake, each place in the log once, and all books balance."""
    settle(*servers, partitions=PARTITIONS, timeout=120)
    given = servers[0].offsets_given()
    rows, places, *_ = engine.places("load")
    ids = {row["event_id"] for row in engine.ask("SELECT event_id FROM tidegate.load FORMAT JSONEachRow")}
    assert acknowledged and not acknowledged - ids, f"{len(acknowledged - ids)} of {len(acknowledged)} acknowledged events are missing"
    assert rows == places == given, f"{rows} rows at {places} places, {given} in the log"
    check_nothing_missing(servers[0], acknowledged)
    audits = [server.audit() for server in servers]
    assert all(audit["balanced"] and audit["difference"] == 0 for audit in audits), audits
    assert sum(line["accepted"] for audit in audits for line in audit["tenants"]) == given, audits
    print(f"{len(acknowledged)} acknowledged, {rows} rows, as many places, {len(engine.inserts())} inserts")


def partition_of(insert):
    """Which partition of the log an insert is of: `tidegate:1:<log id>:<partition>:…`."""
    return int(insert["insert_deduplication_token"].split(":")[3])


def held_up(engine):
    """The insert that is held up, on its way or with its answer."""
    return next((insert for insert in engine.inserts() if insert["held_up"]), None)


def goes_on(engine, zombie_has):
    """True once somebody else has written that partition on: another insert of it ended while this one is held up."""
    return any(i["ended"] and not i["held_up"] and partition_of(i) == partition_of(zombie_has) for i in engine.inserts()[zombie_has["number"] + 1 :])


@pytest.mark.parametrize("what", ["late_request", "late_answer"])
def test_a_writer_that_wakes_in_the_middle_of_an_insert_doubles_nothing(pair, engine, what):
    """Scenario: two servers share the log under load. An insert lies on its way to ClickHouse, or its answer on its way back; the
    server that sent it is paused, the other takes its partitions over, writes its window again and goes on. Then the late insert
    is made (or answered), and the server wakes in the middle of its window. Each server in turn.
    Guarantees: as in `check`; the one that woke goes on as a member."""
    first, second, key = pair
    loads = [Load(first, key, "zombie", rate=300, batch=10, seconds=300), Load(second, key, "zombie-too", rate=100, batch=10, seconds=300)]
    try:
        wait_until("rows arrive", lambda: engine.has("load") and engine.places("load")[0] > 0)
        for _ in range(ZOMBIES):
            engine.spoil(what, 1, until_told=True)
            insert = wait_until("an insert is held up", lambda: held_up(engine), pause=0.01)
            zombie, other = (first, second) if partition_of(insert) in owned(first) else (second, first)
            zombie.signal(signal.SIGSTOP)
            try:
                wait_until("the other has all", lambda other=other: len(owned(other)) == PARTITIONS)
                wait_until("the other goes on with that partition", lambda insert=insert: goes_on(engine, insert))
                # What was held up comes when its sender is still away, and long after its token was used again.
                engine.spoil("", 0)
                wait_until("it is made", lambda: held_up(engine) is None)
            finally:
                zombie.signal(signal.SIGCONT)
            wait_until("each has a part", lambda: halves(first, second))
    finally:
        for load in loads:
            load.stop()
    check((first, second), engine, journal_ids(loads[0].journal) | journal_ids(loads[1].journal))
    tally("e2e::kafka_clickhouse::zombie", "process pause", ["P1", "P2", "P5"], ZOMBIES)


def test_a_writer_that_is_paused_at_any_moment_doubles_nothing(pair, engine):
    """Scenario: two servers share the log under load; one after the other is paused at some moment of its windows until the
    other has its partitions and has gone on, and wakes.
    Guarantees: as in `check`."""
    first, second, key = pair
    loads = [Load(first, key, "any", rate=300, batch=10, seconds=300), Load(second, key, "any-too", rate=300, batch=10, seconds=300)]
    moments = [0.0, 0.1, 0.3][: 1 + ZOMBIES]
    try:
        for n, moment in enumerate(moments):
            zombie, other = ((first, second), (second, first))[n % 2]
            wait_until("each has a part", lambda: halves(first, second))
            inserts = len(engine.inserts())
            wait_until("inserts are made", lambda inserts=inserts: len(engine.inserts()) > inserts + 3, pause=0.005)
            time.sleep(moment)
            zombie.signal(signal.SIGSTOP)
            try:
                wait_until("the other has all", lambda other=other: len(owned(other)) == PARTITIONS)
                inserts = len(engine.inserts())
                wait_until("it goes on", lambda inserts=inserts: len(engine.inserts()) > inserts + 2 * PARTITIONS)
            finally:
                zombie.signal(signal.SIGCONT)
        wait_until("each has a part", lambda: halves(first, second))
    finally:
        for load in loads:
            load.stop()
    check((first, second), engine, journal_ids(loads[0].journal) | journal_ids(loads[1].journal))
    tally("e2e::kafka_clickhouse::zombie", "process pause", ["P1", "P2", "P5"], len(moments))


def test_answers_that_are_lost_and_an_engine_that_dies_in_the_middle_of_an_insert_double_nothing(pair, engine):
    """Scenario: two servers share the log under load; inserts are applied and their answers lost, or never applied; the engine
    is killed while it makes an insert, and started again; twice.
    Guarantees: as in `check`."""
    first, second, key = pair
    loads = [Load(first, key, "lost", rate=300, batch=10, seconds=300), Load(second, key, "lost-too", rate=300, batch=10, seconds=300)]
    try:
        wait_until("rows arrive", lambda: engine.has("load") and engine.places("load")[0] > 0)
        for _ in range(2):
            for what in ("drop_answer", "drop_request"):
                inserts = len(engine.inserts())
                engine.spoil(what, 4)
                wait_until("that is over", lambda inserts=inserts: len(engine.inserts()) > inserts + 8)
            wait_until("an insert is being made", lambda: any(not insert["ended"] for insert in engine.inserts()), pause=0.001)
            engine.kill()
            before = sum(len(journal_ids(load.journal)) for load in loads)
            wait_until("events are taken", lambda before=before: sum(len(journal_ids(load.journal)) for load in loads) > before + 300)
            engine.start()
            wait_until("inserts are made again", lambda: len(engine.inserts()) > 2 * PARTITIONS)
    finally:
        for load in loads:
            load.stop()
    check((first, second), engine, journal_ids(loads[0].journal) | journal_ids(loads[1].journal))
    tally("e2e::kafka_clickhouse::answers", "partial network", ["P2", "P5"], 16)
    tally("e2e::kafka_clickhouse::engine", "sink down", ["P1", "P2", "P5"], 2)
