"""A replay promoted and reverted, in the lake and in ClickHouse's own engine, with events before and after each step: rows and
the books, a server killed in between, and ClickHouse gone in between."""

import subprocess
import time

import pytest
from clickhouse_engine import sink, table_rows
from harness import tally, wait_until

MENDED = {"type": "object", "x-version": 2, "properties": {"n": {"type": "integer"}, "text": {"type": "string"}}}
STRICT = {"type": "object", "x-version": 1, "properties": {"n": {"type": "integer"}, "size": {"type": "integer"}}}
LAST = 300
WINDOW = ("0:50", "0:250")


def fill(server, key):
    """Every third is dead by the schema that is live then."""
    for first in range(0, LAST, 50):
        numbers = range(first, first + 50)
        events = [{"event_id": f"o{n}", "n": n, "size": n if n % 3 else f"{n} kg"} for n in numbers]
        server.send([{"event_type": "order", **event} for event in events], key)
    server.settle()


def replay(server, *more, sinks=2):
    server.write_schema("order", MENDED)
    server.ctl("reload")
    done = server.ctl("replay", "--from", WINDOW[0], "--to", WINDOW[1], "--shadow", "--yes", "--wait", *more)
    plan = done["plan_id"]
    compared = server.ctl("replay", "compare", plan, status=1)
    # In each of the sinks.
    assert compared["healed"] == sinks * sum(n % 3 == 0 for n in range(50, 250)), compared
    return plan


def tables(clickhouse):
    """Offset to table and row, of live; each offset once."""
    rows = {}
    for table in ("order", "_dead_letters"):
        if not clickhouse.has(table):
            continue
        for row in table_rows(clickhouse, table):
            assert row["log_offset"] not in rows, row
            rows[row["log_offset"]] = (table, {k: v for k, v in row.items() if v is not None})
    return rows


def check_promoted(clickhouse, before, healed=True):
    now = tables(clickhouse)
    assert set(before) <= set(now), "no row went"
    for offset, (table, row) in before.items():
        if healed and 50 <= offset < 250:
            assert now[offset][0] == "order" and now[offset][1]["schema_version"] == 2, now[offset]
        else:
            assert now[offset] == (table, row)
    return now


def test_a_window_is_promoted_and_reverted_between_events(make_server, clickhouse):
    """Scenario: a schema turned a third into dead letters; the window is replayed by a mended one, promoted into the
    lake and ClickHouse at once, then more events come in, then it is reverted.
    Guarantees: each row once; the window healed; all else as it was; then all as it was; the books balance."""
    server = make_server(schemas={"order": STRICT}, sink=sink(clickhouse)).start()
    key = server.add_tenant()
    fill(server, key)
    before = tables(clickhouse)
    assert len(before) == LAST
    plan = replay(server)
    server.accept([{"event_type": "order", "n": n} for n in range(100)], key)
    server.settle()
    before = tables(clickhouse)
    outline = server.ctl("replay", "promote", plan, "--dry-run")
    assert {part["sink"]: (part["rows_go"], part["rows_come"]) for part in outline["sinks"]} == {
        "lake": (200, 200),
        "clickhouse": (200, 200),
    }, outline
    assert tables(clickhouse) == before
    assert server.ctl("replay", "promote", plan, "--yes")["state"] == "promoted"
    check_promoted(clickhouse, before)
    server.accept([{"event_type": "order", "n": n} for n in range(50)], key)
    server.settle()
    now = check_promoted(clickhouse, before)
    assert len(now) == LAST + 150
    audit = server.audit()
    line = next(line for line in audit["tenants"] if line["event_type"] == "order")
    healed = sum(n % 3 == 0 for n in range(50, 250))
    for name in ("lake", "clickhouse"):
        part = line["sinks"][name]
        assert part["promoted"] == healed and part["stored"] == line["accepted"] + healed, line
    assert server.ctl("sink", "reconcile", "clickhouse")["whole"]
    assert server.ctl("replay", "revert", plan, "--yes")["state"] == "reverted"
    back = check_promoted(clickhouse, before, healed=False)
    assert len(back) == LAST + 150
    assert server.ctl("sink", "reconcile", "clickhouse")["whole"]
    server.audit()
    names = clickhouse.ask("SELECT name FROM system.tables WHERE database = 'tidegate' FORMAT JSONEachRow")
    assert not [t for t in names if "__before_" in t["name"] or "__next_" in t["name"]], names


@pytest.mark.parametrize("what", ["server", "clickhouse"])
def test_what_is_killed_while_a_window_is_promoted_ends_in_the_old_or_the_new(make_server, clickhouse, what):
    """Scenario: the server, or ClickHouse, is killed while a window is promoted, and started again.
    Guarantees: once nothing is open any more, live has the window from before or the healed one, all of it."""
    server = make_server(schemas={"order": STRICT}, sink=sink(clickhouse)).start()
    key = server.add_tenant()
    fill(server, key)
    before = tables(clickhouse)
    plan = replay(server)
    outcomes = set()
    for kill_after in (0.02, 0.1, 0.3, 0.7):
        running = subprocess.Popen(
            server.ctl_command("replay", "promote", plan, "--yes"), env=server.ctl_environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        time.sleep(kill_after)
        victim = server if what == "server" else clickhouse
        victim.kill()
        victim.start()
        running.wait(timeout=120)

        def settled():
            state = server.ctl("replay", "status", plan).get("promotion")
            return state is None or state["phase"] in ("done", "reverted")

        wait_until("the promotion to be at an end", settled)
        state = server.ctl("replay", "status", plan).get("promotion")
        is_new = state is not None and state["phase"] == "done"
        outcomes.add(is_new)
        check_promoted(clickhouse, before, healed=is_new)
        server.settle()
        server.audit()
        if is_new:
            assert server.ctl("replay", "revert", plan, "--yes")["state"] == "reverted"
            check_promoted(clickhouse, before, healed=False)
            server.ctl("replay", "compare", plan, status=1)
    fault = "kill -9" if what == "server" else "sink down"
    tally("e2e::replay_promote", fault, ["P2", "P6"], 4)
