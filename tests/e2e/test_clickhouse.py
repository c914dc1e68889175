"""Events in over HTTP, rows out of ClickHouse's own engine: all of them, each once, the same as in the lake.

The engine is chdb behind a loopback front (clickhouse_front.py), in a process of its own that is killed for real.
What this does not prove: replicated tables, and a server that loses power.
"""

import json
import os
import subprocess
import time

import pytest
from clickhouse_engine import PASSWORD, ClickHouse, check_once, check_same, lake_rows, sink, sink_status, table_rows
from harness import Load, journal_ids, tally, toml, wait_until

KILLS = int(os.environ.get("CLICKHOUSE_KILLS", "10"))
# How many answers or requests are lost in a row; each waits longer than the one before.
LOST = 3
WINDOW = "non_replicated_deduplication_window"


VIEW = {
    "type": "object",
    "x-version": 1,
    "properties": {
        "path": {"type": "string"},
        "took": {"type": "number", "x-unit": "s", "x-accept": {"took_ms": "ms"}},
        "clicks": {"type": "integer"},
        "first": {"type": "boolean"},
        "tags": {"type": "array"},
        "odd `name\\'": {"type": "string"},
    },
}


def test_rows_are_the_same_as_in_the_lake(make_server, clickhouse):
    """Scenario: two tenants, types with and without a schema, odd names and values, dead letters; then the schema
    gets one more field.
    Guarantees: each table holds the lake's rows, value by value; units stand in the columns' comments."""
    server = make_server(schemas={"page.view": VIEW}, sink=sink(clickhouse)).start()
    keys = [server.add_tenant("acme"), server.add_tenant("beta")]
    values = [
        {"path": "/ä\"\\'\n\u0007😀", "took": 0.1, "clicks": 2**63 - 1, "first": True, "tags": [1, "a", None], "odd `name\\'": "x"},
        {"path": "", "took_ms": 1500, "clicks": -(2**63), "first": False, "rest": {"a": [1.50, 1e30]}},
        {"event_id": "mine'", "event_time": "2026-01-02T03:04:05.678901Z"},
        {"took": -0.0},
    ]
    for key in keys:
        for value in values:
            server.accept({"event_type": "page.view", **value}, key)
        server.accept([{"event_type": "Other-type", "n": n, "text": "x" * n} for n in range(200)], key)
        answer = server.send([{"event_type": "page.view", "clicks": "many"}, {"event_type": "page.view", "first": 1}], key)
        assert answer.json()["dead_lettered"] == 2, answer
    server.settle()
    assert check_same(server, clickhouse, "page.view") == 8
    assert check_same(server, clickhouse, "Other-type") == 400
    lake = lake_rows(server, "page.view", root="dead_letters")
    assert [{**row, "event_type": "page.view"} for row in lake] == table_rows(clickhouse, "_dead_letters")
    assert len(lake) == 4

    wider = {**VIEW, "x-version": 2, "properties": {**VIEW["properties"], "weight": {"type": "number", "x-unit": "kg"}}}
    server.write_schema("page.view", wider)
    server.ctl("reload")
    server.accept({"event_type": "page.view", "path": "/", "weight": 2.5}, keys[0])
    server.settle()
    assert check_same(server, clickhouse, "page.view") == 9
    comments = clickhouse.ask(
        "SELECT name, comment FROM system.columns WHERE database = 'tidegate' AND table = 'page.view' FORMAT JSONEachRow"
    )
    comments = {column["name"]: column["comment"] for column in comments}
    assert (comments["took"], comments["weight"], comments["tags"]) == ("unit: s", "unit: kg", "JSON"), comments
    for insert in clickhouse.inserts():
        assert insert["async_insert"] == "0" and insert["insert_deduplicate"] == "1", insert
        assert insert["insert_deduplication_token"].startswith("tidegate:1:"), insert
    check_once(server, clickhouse, "page.view", 9)


@pytest.mark.parametrize("what", ["drop_answer", "drop_request", "bad_gateway", "proxy_page", "late_answer"])
def test_an_answer_that_never_comes_doubles_nothing(make_server, clickhouse, what):
    """Scenario: inserts are applied and their answers lost, or never applied, or answered by something else.
    Guarantees: each row is there once; what was applied is not even sent again."""
    server = make_server(sink=sink(clickhouse, more='timeout = "1s"')).start()
    key, sent = server.add_tenant(), 0
    server.accept({"event_type": "view", "n": -1}, key)
    server.settle()
    clickhouse.spoil(what, LOST, seconds=2)
    for batch in range(8):
        server.accept([{"event_type": "view", "n": batch * 100 + n} for n in range(100)], key)
        sent += 100
        time.sleep(0.3)
    server.settle()
    check_once(server, clickhouse, "view", sent + 1)
    assert check_same(server, clickhouse, "view") == sent + 1
    tokens = [insert["insert_deduplication_token"] for insert in clickhouse.inserts()]
    if what in ("drop_answer", "bad_gateway"):
        assert len(tokens) == len(set(tokens)), "the rows were there, and were sent again all the same"
    if what in ("drop_request", "proxy_page"):
        assert len(tokens) == len(set(tokens)) + LOST, "what never arrived was sent again under the same token"
    tally("e2e::clickhouse", "partial network", ["P2", "P5"], LOST)


def test_an_insert_that_is_applied_after_its_second_try_doubles_nothing(make_server, clickhouse):
    """Scenario: an insert lies somewhere on its way until its second try is done, and is applied then.
    Guarantees: the question finds nothing, and the token alone keeps the rows from being there twice."""
    server = make_server(sink=sink(clickhouse, more='timeout = "1s"')).start()
    key = server.add_tenant()
    server.accept({"event_type": "view", "n": -1}, key)
    server.settle()
    clickhouse.spoil("late_request", 1, seconds=8)
    server.accept([{"event_type": "view", "n": n} for n in range(100)], key)
    server.settle()
    ended = [insert["ended"] for insert in clickhouse.inserts()]
    assert ended == [True, False, True], f"the second try was to be done before the first: {ended}"
    wait_until("the first try is applied", lambda: all(insert["ended"] for insert in clickhouse.inserts()))
    tokens = [insert["insert_deduplication_token"] for insert in clickhouse.inserts()]
    assert tokens[1] == tokens[2]
    check_once(server, clickhouse, "view", 101)
    tally("e2e::clickhouse", "partial network", ["P2", "P5"], 1)


def test_kills_around_inserts_lose_nothing_and_double_nothing(make_server, clickhouse):
    """Scenario: kill -9 of `ingestd` at moments spread over its load, answers of inserts lost besides.
    Guarantees: what was acknowledged is in ClickHouse, each offset once, the same as in the lake."""
    server = make_server(flush_age="50ms", sink=sink(clickhouse, age="50ms"))
    key, acknowledged, under_load = None, set(), 0
    for cycle in range(KILLS):
        server.start()
        key = key or server.add_tenant()
        inserts = len(clickhouse.inserts())
        if cycle % 3 == 0:
            clickhouse.spoil("drop_answer", 2)
        load = Load(server, key, cycle, rate=2000, batch=20, seconds=60)
        try:
            wait_until("inserts are made", lambda: len(clickhouse.inserts()) > inserts, timeout=60, pause=0.005)
            time.sleep((cycle * 37 % 100) / 400)
            server.kill()
        finally:
            load.stop()
        seen = journal_ids(load.journal) if load.journal.exists() else set()
        acknowledged |= seen
        under_load += bool(seen)
    clickhouse.spoil("", 0)
    server.start()
    server.settle(timeout=180)
    tables = clickhouse.ask("SELECT name FROM system.tables WHERE database = 'tidegate' FORMAT JSONEachRow")
    ids, rows = set(), 0
    for table in tables:
        count, places, *_ = clickhouse.places(table["name"])
        assert count == places, f"{count - places} rows of {table['name']} are there twice"
        found = clickhouse.ask(f"SELECT event_id FROM tidegate.`{table['name']}` FORMAT JSONEachRow")
        ids |= {row["event_id"] for row in found}
        rows += count
        assert check_same(server, clickhouse, table["name"]) == count
    print(f"{KILLS} kills, {under_load} under load; {len(acknowledged)} acknowledged, {rows} rows, {len(clickhouse.inserts())} inserts")
    assert under_load >= KILLS * 9 // 10
    assert not acknowledged - ids, f"{len(acknowledged - ids)} acknowledged events are missing"
    assert rows == server.offsets_given()
    tally("e2e::clickhouse", "kill -9", ["P1", "P2"], KILLS)


def test_an_engine_that_is_killed_among_inserts_has_each_row_once(make_server, clickhouse):
    """Scenario: the engine itself is killed under load and started again, five times.
    Guarantees: every answer to clients stays 200, and each row is there once."""
    server = make_server(flush_age="50ms", sink=sink(clickhouse, age="50ms", more='timeout = "5s"')).start()
    key = server.add_tenant()
    load = Load(server, key, "engine", rate=2000, batch=20, seconds=300)
    try:
        for cycle in range(5):
            wait_until("inserts are made", lambda: len(clickhouse.inserts()) > 3, timeout=60, pause=0.01)
            time.sleep(cycle * 0.03)
            clickhouse.kill()
            clickhouse.start()
        wait_until("inserts are made", lambda: len(clickhouse.inserts()) > 3, timeout=60, pause=0.01)
        report = load.enough()
    finally:
        load.stop()
    assert set(report["codes"]) == {"200"}, report
    server.settle(timeout=120)
    tables = clickhouse.ask("SELECT name FROM system.tables WHERE database = 'tidegate' FORMAT JSONEachRow")
    rows = sum(clickhouse.places(table["name"])[0] for table in tables)
    for table in tables:
        check_once(server, clickhouse, table["name"], check_same(server, clickhouse, table["name"]))
    assert rows == server.offsets_given() == report["accepted"]
    tally("e2e::clickhouse", "sink down", ["P2", "P5"], 5)


def test_only_the_rows_that_a_table_refuses_are_set_aside(make_server, clickhouse):
    """Scenario: the table has a constraint that five of a thousand rows violate; then `ingestd` is killed.
    Guarantees: those five are quarantined, all others are there once, the lane goes on."""
    server = make_server(sink=sink(clickhouse)).start()
    key = server.add_tenant()
    server.accept({"event_type": "order", "n": -1}, key)
    server.settle()
    clickhouse.ask("ALTER TABLE tidegate.`order` ADD CONSTRAINT small CHECK JSONExtractInt(custom, 'n') < 100000")
    guilty = {3, 4, 500, 777, 999}
    server.accept([{"event_type": "order", "n": 100_000 + n if n in guilty else n} for n in range(1000)], key)
    server.settle()
    line = next(t for t in server.audit()["tenants"] if t["event_type"] == "order")["sinks"]["clickhouse"]
    assert (line["stored"], line["quarantined"]) == (996, 5), line
    lines = (server.data / "sinks" / "clickhouse-quarantine.jsonl").read_text().splitlines()
    refused = [json.loads(line) for line in lines]
    assert {json.loads(event["raw"])["n"] - 100_000 for event in refused} == guilty
    assert all("Constraint `small`" in event["cause"] for event in refused), refused[0]
    server.kill()
    server.start()
    server.accept({"event_type": "order", "n": 5}, key)
    server.settle()
    check_once(server, clickhouse, "order", 997)
    tally("e2e::clickhouse", "poison event", ["P2", "P5"], 5)


def test_a_table_that_cannot_keep_the_promise_is_refused_and_taken_once_mended(make_server, clickhouse):
    """Scenario: a table stands there already, with too small a window for tokens; then it is mended.
    Guarantees: nothing is inserted before, status says why, other tables go on; afterwards all is there once."""
    clickhouse.ask("CREATE DATABASE tidegate")
    clickhouse.ask(
        "CREATE TABLE tidegate.view (tenant LowCardinality(String), event_id String, event_time DateTime64(6, 'UTC'),"
        " received_at DateTime64(6, 'UTC'), log_id String, log_partition Int32, log_offset Int64, schema_version Int32,"
        f" custom String) ENGINE = MergeTree PARTITION BY toYYYYMM(received_at) ORDER BY event_time SETTINGS {WINDOW} = 100"
    )
    server = make_server(sink=sink(clickhouse)).start()
    key = server.add_tenant()
    server.accept([{"event_type": "view", "n": n} for n in range(10)], key)
    server.accept([{"event_type": "other", "n": n} for n in range(10)], key)

    def told(*words):
        held = sink_status(server)["held"]
        return any(all(word in lane["error"] for word in words) for lane in held)

    wait_until("status says why", lambda: told(WINDOW, "100", "10000"))
    wait_until("the other table goes on", lambda: clickhouse.has("other") and clickhouse.places("other")[0] == 10)
    assert clickhouse.places("view")[0] == 0
    clickhouse.ask(f"ALTER TABLE tidegate.view MODIFY SETTING {WINDOW} = 10000")
    wait_until("status says what else", lambda: told("fsync_after_insert", "options.fsync"))
    assert clickhouse.places("view")[0] == 0
    clickhouse.ask("ALTER TABLE tidegate.view MODIFY SETTING fsync_after_insert = 1, fsync_part_directory = 1")
    server.settle()
    check_once(server, clickhouse, "view", 10)
    assert check_same(server, clickhouse, "view") == 10


def test_a_wrong_password_is_told_and_nothing_is_lost(make_server, clickhouse):
    """Scenario: the password in the configuration is wrong, then right.
    Guarantees: the sink waits and status has the server's words; afterwards all rows are there."""
    wrong = sink(clickhouse).replace(toml(PASSWORD), '"no"')
    server = make_server(sink=wrong, edge='[edge.timeouts]\ndrain = "1s"').start()
    key = server.add_tenant()
    server.accept([{"event_type": "view", "n": n} for n in range(10)], key)
    wait_until("status says why", lambda: "Authentication failed" in json.dumps(sink_status(server)))
    assert server.stop() == 0
    server.write_config(sink=sink(clickhouse))
    server.start()
    server.settle()
    check_once(server, clickhouse, "view", 10)


def test_a_cursor_that_is_set_back_doubles_nothing_and_fills_holes(make_server, clickhouse):
    """Scenario: rows came in many small inserts; the sink's state is deleted, and some rows are; what is read again is
    cut into other windows.
    Guarantees: no row is there twice, and those that were deleted are back."""
    server = make_server(sink=sink(clickhouse, age="50ms")).start()
    key = server.add_tenant()
    for batch in range(12):
        server.accept([{"event_type": "view", "n": batch * 50 + n} for n in range(50)], key)
        time.sleep(0.1)
    server.settle()
    check_once(server, clickhouse, "view", 600)
    before = len(clickhouse.inserts())
    assert before >= 6, "too few inserts to be cut otherwise"
    assert server.stop() == 0
    (server.data / "sinks" / "clickhouse-0.json").unlink()
    clickhouse.ask("ALTER TABLE tidegate.view DELETE WHERE log_offset IN (7, 300, 301, 599) SETTINGS mutations_sync = 2")
    assert clickhouse.places("view")[0] == 596
    server.write_config(sink=sink(clickhouse, age="50ms").replace('age = "50ms"', 'age = "50ms", rows = 130'))
    server.start()
    server.settle()
    check_once(server, clickhouse, "view", 600)
    assert check_same(server, clickhouse, "view") == 600
    server.accept({"event_type": "view", "n": -1}, key)
    server.settle()
    check_once(server, clickhouse, "view", 601)


def test_a_server_with_a_certificate_is_talked_to_and_another_is_not(make_server, tmp_path):
    """Scenario: the engine speaks TLS with a certificate of its own; the sink trusts it, or does not.
    Guarantees: rows arrive in the one case; in the other the sink waits and says why."""
    key_file, pem = tmp_path / "key.pem", tmp_path / "server.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=engine", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
         "-keyout", key_file, "-out", pem],
        check=True, capture_output=True,
    )  # fmt: skip
    ca = tmp_path / "ca.pem"
    ca.write_bytes(pem.read_bytes())
    pem.write_bytes(pem.read_bytes() + key_file.read_bytes())
    engine = ClickHouse(tmp_path / "tls", pem=str(pem)).start()
    try:
        server = make_server(sink=sink(engine), edge='[edge.timeouts]\ndrain = "1s"').start()
        key = server.add_tenant()
        server.accept([{"event_type": "view", "n": n} for n in range(10)], key)
        wait_until("status says why", lambda: "certificate" in json.dumps(sink_status(server)))
        assert server.stop() == 0
        server.write_config(sink=sink(engine, more=f"ca = {toml(ca)}"))
        server.start()
        server.settle()
        check_once(server, engine, "view", 10)
    finally:
        engine.kill()
