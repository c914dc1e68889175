"""ClickHouse where there are many inserts and many servers: a cap on inserts, tenants over shards."""

import time

import pytest
from clickhouse_engine import ClickHouse, check_once, sink, sink_status
from harness import tally, wait_until


@pytest.fixture
def engines(tmp_path):
    made = [ClickHouse(tmp_path / f"clickhouse-{number}").start() for number in range(2)]
    yield made
    for engine in made:
        if engine.process.poll() is None:
            engine.kill()


def test_more_inserts_than_are_allowed_make_windows_wait_and_grow(make_server, engines):
    """Scenario: 24 event types a window where 4 inserts a second are allowed; then few.
    Guarantees: the windows wait, `status` says why, no row is lost or doubled; with few inserts nothing waits any more."""
    engine = engines[0]
    server = make_server(sink=sink(engine, age="100ms", more="inserts_per_second = 4")).start()
    key, rounds, told = server.add_tenant(), 0, []
    began = time.monotonic()

    def said():
        # Making 24 tables takes a slow machine so long that nothing has to wait meanwhile.
        nonlocal rounds
        server.accept([{"event_type": f"type_{kind}", "n": rounds} for kind in range(24)], key)
        rounds += 1
        told.append(sink_status(server).get("paused"))
        return rounds >= 40 and [text for text in told if text]

    words = wait_until("status says why windows wait", said, pause=0.2)
    assert "inserts_per_second" in words[0], told
    server.settle()
    # Each window of all types costs 24 inserts, 6 s of what is allowed: 8 s of sending make two or three, not 40.
    inserts, allowed = len(engine.inserts()), 4 * (time.monotonic() - began) + 48
    assert inserts <= min(allowed, 24 * rounds // 4), f"{inserts} inserts of {rounds} rounds: the windows did not wait"
    for kind in range(24):
        check_once(server, engine, f"type_{kind}", rounds)
    wait_until("nothing waits any more", lambda: sink_status(server).get("paused") is None)


def test_each_tenant_is_on_one_shard_and_a_dead_shard_holds_up_only_its_own(make_server, engines):
    """Scenario: twelve tenants over two engines; one is killed among inserts, and comes back.
    Guarantees: a tenant's rows are on one engine alone; the other tenants go on; each row is there once."""
    server = make_server(sink=sink(engines)).start()
    tenants = [f"tenant{number}" for number in range(12)]
    keys, sent = [server.add_tenant(tenant) for tenant in tenants], 0

    def send(count=20):
        for key in keys:
            server.accept([{"event_type": "view", "n": n} for n in range(count)], key)
        return count

    def rows(engine):
        found = engine.ask("SELECT tenant, count() AS n, uniqExact(log_offset) AS places FROM tidegate.view GROUP BY tenant FORMAT JSONEachRow")
        assert all(row["n"] == row["places"] for row in found), found
        return {row["tenant"]: row["n"] for row in found}

    sent += send()
    server.settle()
    homes = [rows(engine) for engine in engines]
    assert all(homes) and not set(homes[0]) & set(homes[1]) and set(homes[0]) | set(homes[1]) == set(tenants), homes

    engines[0].kill()
    sent += send()
    wait_until("the other shard goes on", lambda: rows(engines[1]) == dict.fromkeys(homes[1], sent))
    held = wait_until("the dead shard's lanes wait", lambda: {lane["tenant"] for lane in sink_status(server)["held"]})
    assert held <= set(homes[0]), held
    engines[0].start()
    sent += send()
    server.settle()
    assert rows(engines[0]) == dict.fromkeys(homes[0], sent) and rows(engines[1]) == dict.fromkeys(homes[1], sent)
    audit = server.audit()
    assert audit["balanced"] is True and audit["difference"] == 0, audit
    tally("e2e::clickhouse", "sink down", ["P2", "P3", "P5"], 1)
