"""Replay as an operator does it: a window into shadows of the lake and of ClickHouse's engine, under live load, killed
again and again. What is held against each other are files and rows, read by DuckDB and by the engine itself.
"""

import hashlib
import sys
import time
from pathlib import Path

import duckdb
import pytest
from clickhouse_engine import lake_rows, sink, table_rows
from harness import Load, http, tally, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torture.strace import Attached  # noqa: E402

ORDER = {"type": "object", "x-version": 1, "properties": {"n": {"type": "integer"}, "size": {"type": "integer"}}}
LOOSER = {"type": "object", "x-version": 2, "properties": {"n": {"type": "integer"}}}


def files_of_live(server):
    """Each file that is live, with a hash: the lake without its shadows."""
    found = {}
    for area in ("events", "dead_letters"):
        for path in sorted((server.lake / area).rglob("*.parquet")):
            found[path.relative_to(server.lake).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def rows_of_live(engine, table, below):
    """A hash over the rows of a table below an offset."""
    return engine.ask(
        f"SELECT count() AS n, sum(cityHash64(*)) AS hash FROM tidegate.`{table}` WHERE log_offset < {below} FORMAT JSONEachRow"
    )[0]


def replay(server, *arguments, **more):
    return server.ctl("replay", *arguments, "--by", "ana", **more)


def shadow_rows(server, plan_id, event_type, root="events"):
    class Shadow:
        lake = server.lake / "shadow" / plan_id

    return lake_rows(Shadow, event_type, root)


def within(rows, first, end):
    return [row for row in rows if first <= row["log_offset"] < end]


def done(server, plan_id):
    def ended():
        job = replay_job(server, plan_id)
        assert job["state"] != "failed", job
        return job["state"] == "done"

    wait_until("the replay is done", ended, timeout=180)


def replay_state(server):
    """Of the newest replay; nothing where the server does not answer (any more)."""
    try:
        return http("GET", f"{server.admin}/api/v1/replay/jobs", timeout=5).json()["jobs"][0]["state"]
    except OSError:
        return None


def replay_job(server, plan_id):
    return server.ctl("replay", "status", plan_id)


def test_a_replay_under_load_and_kills_leaves_live_as_it_was(make_server, clickhouse):
    """Scenario: two tenants, dead letters; a window that begins and ends inside requests is replayed, slowly, while load
    goes on; the server is killed three times meanwhile, and the engine once.
    Guarantees: the shadows hold exactly the window, as live has it; every live file and every live row is as it was."""
    server = make_server(schemas={"order": ORDER}, sink=sink(clickhouse)).start()
    keys = [server.add_tenant("acme"), server.add_tenant("beta")]
    for part in range(20):
        for key in keys:
            events = [{"event_type": "order" if n % 3 else "view", "n": n, "size": "x" if n % 20 == 0 else n} for n in range(50)]
            server.send(events, key)
    server.settle()
    first, end = 333, 1777
    below = server.offsets_given()
    files, tables = files_of_live(server), {table: rows_of_live(clickhouse, table, below) for table in ("order", "view", "_dead_letters")}
    load = Load(server, keys[0], "live", rate=300, batch=10, seconds=120)
    wait_until("live traffic flows", lambda: load.journal.exists() and load.journal.stat().st_size)
    plan = server.folder / "plan.json"
    made = replay(server, "--from", first, "--to", end, "--shadow", "--max-rate", 400, "--plan", plan)
    assert made["window"][0]["events"] == end - first, made
    plan_id = made["plan_id"]
    replay(server, "apply", plan, "--max-rate", 400, "--yes")
    for turn in range(3):
        time.sleep(0.7)
        server.kill()
        if turn == 1:
            clickhouse.kill()
            clickhouse.start()
        server.start()
    done(server, plan_id)
    load.stop()
    server.settle()

    for table in ("order", "view"):
        live = within(lake_rows(server, table), first, end)
        assert live and shadow_rows(server, plan_id, table) == live, f"{table}: the lake's shadow is not the window"
        live = within(table_rows(clickhouse, table), first, end)
        assert live and table_rows(clickhouse, f"{table}__shadow_{plan_id}") == live, f"{table}: ClickHouse's shadow is not the window"
    dead = within(lake_rows(server, "order", root="dead_letters"), first, end)
    assert dead and shadow_rows(server, plan_id, "order", root="dead_letters") == dead
    after = files_of_live(server)
    assert {path: after.get(path) for path in files} == files, "a live file is gone or has changed"
    assert {table: rows_of_live(clickhouse, table, below) for table in tables} == tables, "live rows have changed"
    new = duckdb.sql(f"select min(log_offset) from read_parquet({[str(server.lake / p) for p in after if p not in files]}, union_by_name=true)")
    assert new.fetchall()[0][0] >= below, "a new live file holds old rows"
    audit = server.audit()
    assert audit["balanced"] is True and audit["difference"] == 0, audit
    replay(server, "rm", plan_id)
    assert not list((server.lake / "shadow").rglob("*.parquet"))
    assert not clickhouse.has(f"order__shadow_{plan_id}")
    for fault in ("kill -9", "replay interrupted", "sink down"):
        tally("e2e::replay", fault, ["P5", "P6"], 1)


@pytest.mark.parametrize("call", ["rename", "fdatasync", "openat", "link", "pwritev"])
def test_a_replay_killed_at_each_of_its_writes_ends_as_one_that_was_not(make_server, tmp_path, call):
    """Scenario: dead letters that today's schema takes are replayed; the server is killed at the first, second, third … call
    of a kind that any of its threads makes, and started again.
    Guarantees: the shadow is that of the same replay that nobody killed; live is as it was."""
    server = make_server(schemas={"order": ORDER}).start()
    key = server.add_tenant("acme")
    for part in range(6):
        server.send([{"event_type": "order", "n": n, "size": "x" if n % 7 == 0 else n} for n in range(100)], key)
    server.settle()
    server.write_schema("order", LOOSER)
    server.ctl("reload")
    # Another plan for the same events, which nobody kills.
    whole = replay(server, "--from", 50, "--to", 550, "--shadow", "--tenant", "acme", "--yes", "--wait")["plan_id"]
    files = files_of_live(server)
    server.stop()
    # Small windows: many intents, files and cursors.
    text = server.config.read_text()
    server.config.write_text(text.replace("flush = {", "flush = { rows = 40,"))
    server.start()
    plan_id = replay(server, "--from", 50, "--to", 550, "--shadow", "--yes", "--max-rate", 150)["plan_id"]
    assert plan_id != whole
    kills = 0
    for number in range(1, 9):
        with Attached(server, call, f"signal=SIGKILL:when={number}", tmp_path / "trace"):

            def over():
                return server.process.poll() is not None or replay_state(server) == "done"

            wait_until("the server is killed, or the replay is done", over)
        dead = server.process.poll() is not None
        kills += dead
        if not dead:
            break
        server.start()
    done(server, plan_id)
    print(f"{call}: killed {kills} times")
    assert kills, "no call was hit"
    healed = shadow_rows(server, plan_id, "order")
    assert healed == shadow_rows(server, whole, "order")
    assert [row["log_offset"] for row in healed] == list(range(50, 550))
    assert files_of_live(server) == files
    tally("e2e::replay", "replay interrupted", ["P6"], kills)
