"""ClickHouse away for an hour: the server's hour, which a clock that goes 120 times as fast makes half a minute (fast_clock)."""

import os
import sys
from pathlib import Path

import pytest
from clickhouse_engine import sink
from fast_clock import FastClock, why_no_fast_clock
from harness import Load, check_nothing_missing, http, journal_ids, tally, wait_until
from kafka_log import on_kafka, settle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brokers import why_no_kafka  # noqa: E402

pytestmark = pytest.mark.skipif(why_no_fast_clock() is not None, reason=str(why_no_fast_clock()))
NEEDS_KAFKA = pytest.mark.skipif(why_no_kafka() is not None, reason=str(why_no_kafka()))
# As long as the outage is for the server, and how much faster its clock goes meanwhile.
SECONDS = int(os.environ.get("OUTAGE_SECONDS", "3600"))
FACTOR = int(os.environ.get("OUTAGE_FACTOR", "120"))
RATE = int(os.environ.get("OUTAGE_RATE", "300"))
# The clients' clocks go as ever: to the server they are so many times as slow meanwhile. Kafka's and its client's do too.
TIMEOUTS = '[edge.timeouts]\nheader = "20m"\nbody = "20m"\nidle = "20m"\n'


@pytest.fixture
def engine(clickhouse):
    return clickhouse


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=NEEDS_KAFKA)])
def log(request):
    """The section `[log]`, and how many partitions that log has."""
    if request.param == "embedded":
        return "", 1
    # A session that ends neither for the broker nor, so many times as soon, for the server.
    return on_kafka(request.getfixturevalue("one"), "hour", session="5m"), 2


def told(server):
    """What `status` has, whether or not the server is healthy."""
    return http("GET", f"{server.admin}/api/v1/status", timeout=30).json()


def test_clickhouse_down_for_an_hour_loses_nothing_and_doubles_nothing(make_server, engine, log, tmp_path):
    """Scenario: ClickHouse is killed under load; for an hour of the server's clock it does not come back, while events keep
    coming; then it does.
    Guarantees: answers are 200, or a 429 or 503 that may be tried again; every acknowledged event is in ClickHouse and in the
    lake, each offset once, and the books balance."""
    section, partitions = log
    # Kafka takes no message that is more than an hour ahead: the server's clock begins as much behind.
    clock = FastClock(tmp_path / "clock", ahead=-SECONDS - 600)
    server = make_server(log=section, sink=sink(engine), edge=TIMEOUTS)
    server.environment = clock.environment
    server.start()
    key = server.add_tenant()
    load = Load(server, key, "hour", rate=RATE, batch=10, seconds=900)
    try:
        wait_until("rows arrive", lambda: engine.has("load") and engine.places("load")[0] > 0)
        engine.kill()
        begun = told(server)["uptime_seconds"]
        clock.go(FACTOR)
        patience = 60 + 3 * SECONDS / FACTOR
        wait_until("an hour has passed", lambda: begun + SECONDS <= told(server)["uptime_seconds"], patience, 0.5)
        clock.go(1)
        meanwhile = len(journal_ids(load.journal))
        engine.start()
        wait_until("events keep coming", lambda: len(journal_ids(load.journal)) > meanwhile + 500)
    finally:
        load.stop()
    if partitions == 1:
        server.settle(timeout=120)
    else:
        settle(server, partitions=partitions, timeout=120)
    acknowledged, given = journal_ids(load.journal), server.offsets_given()
    rows, places, *_ = engine.places("load")
    minutes = engine.ask("SELECT uniqExact(toStartOfMinute(received_at)) AS n FROM tidegate.load FORMAT JSONEachRow")[0]["n"]
    assert minutes >= SECONDS // 60 * 3 // 4, f"events came in {minutes} minutes of {SECONDS // 60}"
    found = engine.ask("SELECT event_id FROM tidegate.load FORMAT JSONEachRow")
    missing = acknowledged - {row["event_id"] for row in found}
    print(f"{len(acknowledged)} acknowledged, {given} in the log, {rows} rows at {places} places after {SECONDS} s of outage, from {minutes} minutes of it")
    assert not missing, f"{len(missing)} of {len(acknowledged)} acknowledged events are missing"
    assert rows == places == given, f"{rows} rows at {places} places, {given} in the log"
    check_nothing_missing(server, acknowledged)
    audit = server.audit()
    assert audit["balanced"] is True and audit["difference"] == 0, audit
    tally("e2e::outage_hour", "sink down", ["P1", "P2", "P5"], 1)
