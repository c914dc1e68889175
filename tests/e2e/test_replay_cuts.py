"""A window of ClickHouse promoted and reverted while the connection is cut, or the engine dies, at one statement after the
other, and while events come in: live has the old window or the new one, and no row outside of it goes."""

import itertools
import os
import subprocess
import threading

import pytest
from clickhouse_engine import sink
from harness import tally, wait_until
from test_replay_promote import STRICT, fill, replay, tables

CUTS = ("drop_answer", "die_after", "drop_request")
# Every fifth statement and the last, by another kind of cut each; with 1 all statements by all of them.
STEP = int(os.environ.get("PROMOTE_CUT_STEP", "5"))


def phase(server, plan):
    promotion = server.ctl("replay", "status", plan)["promotion"]
    return promotion["phase"] if promotion else None


def begin(server, what, plan):
    return subprocess.Popen(
        server.ctl_command("replay", what, plan, "--yes"), env=server.ctl_environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def changes_of(server, clickhouse, what, plan):
    """The statements that it takes when nothing is cut."""
    clickhouse.cut(-1, "")
    assert server.ctl("replay", what, plan, "--yes")["state"] in ("promoted", "reverted")
    return clickhouse.changes()


def cut_once(server, clickhouse, plan, act, at, what):
    """Promotes or reverts, cut at one of its statements; waits for the end, and says which it was."""
    clickhouse.cut(at, what)
    running = begin(server, act, plan)
    if what == "die_after":
        wait_until("the engine is dead", lambda: clickhouse.process.poll() is not None or running.poll() is not None)
        assert clickhouse.process.poll() is not None, f"{act}: there is no statement {at}"
        clickhouse.process.wait()
        clickhouse.start()
    assert running.wait(timeout=120) is not None
    wait_until(f"{act} to be at its end", lambda: phase(server, plan) in (None, "done", "reverted"))
    if what != "die_after":
        assert len(clickhouse.changes()) > at, f"{act}: there is no statement {at}"
    return phase(server, plan) == "done"


def cuts(statements):
    """Which statements are cut, and how."""
    if STEP == 1:
        return list(itertools.product(range(len(statements)), CUTS))
    places = sorted({*range(1, len(statements), STEP), len(statements) - 1})
    return list(zip(places, itertools.cycle(CUTS)))


def test_a_promotion_cut_at_one_statement_after_the_other_leaves_the_old_window_or_the_new(make_server, clickhouse):
    """Scenario: the connection is cut before a statement comes, or before its answer goes, or the engine dies between the two:
    at one statement of a promotion after the other, and of a revert.
    Guarantees: each ends by itself; live is, to the row, what it was or what it is to be; in the end nothing is left beside."""
    server = make_server(schemas={"order": STRICT}, sink=sink(clickhouse)).start()
    key = server.add_tenant()
    fill(server, key)
    old = tables(clickhouse)
    plan = replay(server, "--sink", "clickhouse", sinks=1)
    # The first time columns are added: behind the two statements for each of two tables by which what goes is kept.
    assert cut_once(server, clickhouse, plan, "promote", 4, "drop_answer")
    assert "ADD COLUMN" in clickhouse.changes()[4], clickhouse.changes()
    new = tables(clickhouse)
    assert len(new) == len(old) == 300 and new != old
    back = changes_of(server, clickhouse, "revert", plan)
    assert tables(clickhouse) == old
    server.ctl("replay", "compare", plan, status=1)
    forward = changes_of(server, clickhouse, "promote", plan)
    assert len(forward) > 8 and len(back) > 4, (forward, back)
    left = {"promote": cuts(forward), "revert": cuts(back)}
    tried, outcomes, is_new = len(left["promote"]) + len(left["revert"]) + 1, set(), True
    while left["promote"] or left["revert"]:
        act = "revert" if is_new else "promote"
        if act == "promote":
            server.ctl("replay", "compare", plan, status=1)
        if not left[act]:
            changes_of(server, clickhouse, act, plan)
            is_new = not is_new
            continue
        at, what = left[act].pop(0)
        is_new = cut_once(server, clickhouse, plan, act, at, what)
        assert tables(clickhouse) == (new if is_new else old), f"{act}: {what} at {at} of {forward if act == 'promote' else back}"
        outcomes.add((act, is_new))
    assert outcomes == {("promote", True), ("promote", False), ("revert", False)}, "some were given up, some went on"
    if is_new:
        changes_of(server, clickhouse, "revert", plan)
    assert tables(clickhouse) == old
    names = [t["name"] for t in clickhouse.ask("SELECT name FROM system.tables WHERE database = 'tidegate' FORMAT JSONEachRow")]
    assert not [name for name in names if "__before_" in name or "__next_" in name], names
    assert server.audit()["balanced"] is True
    tally("e2e::replay_cuts", "partial network", ["P2", "P6"], tried - tried // 3)
    tally("e2e::replay_cuts", "sink down", ["P2", "P6"], tried // 3)


@pytest.mark.parametrize("alone", [False, True], ids=["tried again", "cut until then"])
def test_rows_that_come_while_partitions_are_replaced_are_neither_lost_nor_doubled(make_server, clickhouse, alone):
    """Scenario: events of the very table and day come in all the time, while a window is promoted and reverted; the first
    `REPLACE PARTITION` is cut, and runs only later, when another was run in its place, or while none can be.
    Guarantees: the window is the new one, then the old one; every event is there once."""
    server = make_server(schemas={"order": STRICT}, sink=sink(clickhouse, age="50ms")).start()
    key = server.add_tenant()
    fill(server, key)
    old = tables(clickhouse)
    plan = replay(server, "--sink", "clickhouse", sinks=1)
    found = {act: changes_of(server, clickhouse, act, plan) for act in ("promote", "revert")}
    server.ctl("replay", "compare", plan, status=1)
    ends, sent = threading.Event(), itertools.count()

    def send():
        while not ends.wait(0.02):
            n = next(sent)
            server.send([{"event_type": "order", "n": n, "size": n if n % 4 else "x"} for _ in range(5)], key)

    sending = threading.Thread(target=send)
    sending.start()
    try:
        for act in ("promote", "revert"):
            at = next(at for at, statement in enumerate(found[act]) if "REPLACE PARTITION" in statement)
            clickhouse.cut(at, "late", seconds=2.7, alone=alone)
            before = next(sent)
            assert server.ctl("replay", act, plan, "--yes")["state"] in ("promoted", "reverted")
            wait_until("the late one has run", lambda: any(s.startswith("late") for s in clickhouse.changes()))
            wait_until("events still come", lambda: next(sent) > before + 10)
    finally:
        ends.set()
        sending.join()
    server.settle()
    now = tables(clickhouse)
    assert {offset: now[offset] for offset in old} == old
    assert sorted(now) == list(range(server.offsets_given())), "an event is missing"
    audit = server.audit()
    assert audit["balanced"] is True, audit
    assert server.ctl("sink", "reconcile", "clickhouse")["whole"]
    tally("e2e::replay_cuts", "partial network", ["P2", "P5", "P6"], 2)
