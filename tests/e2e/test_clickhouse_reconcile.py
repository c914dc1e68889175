"""A ClickHouse server that lost parts it had answered for: found row by row, and written again."""

import subprocess

from clickhouse_engine import check_once, check_same, sink
from harness import Load, tally

# There is no schema: the field stands in `custom`.
N = "JSONExtractInt(custom, 'n')"


def reconcile(server, *more, status=1):
    return server.ctl("sink", "reconcile", "clickhouse", *more, status=status)


def refused(server, *arguments):
    """What is said where it cannot be done."""
    command = server.ctl_command("sink", "reconcile", *arguments)
    done = subprocess.run(command, env=server.ctl_environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done
    return done.stderr


def total(report):
    return {name: report["total"][name] for name in ("rows", "missing", "repaired", "refused", "twice")}


def test_parts_that_a_server_lost_are_found_and_written_again(make_server, clickhouse):
    """Scenario: two types and dead letters; the server loses whole parts, with its memory of their inserts
    intact, and single rows; events keep coming.
    Guarantees: a look finds just those and changes nothing; a repair writes them, under tokens of its own, and no other row;
    a second loss of the same rows is repaired too."""
    server = make_server(sink=sink(clickhouse, age="100ms")).start()
    key = server.add_tenant()
    for batch in range(6):
        server.accept([{"event_type": "view", "n": batch * 100 + n} for n in range(100)], key)
        server.accept([{"event_type": "order", "n": n} for n in range(10)], key)
        server.send([{"event_type": "order", "event_time": 7}], key)
        server.settle()
    assert total(reconcile(server, status=0)) == dict(rows=666, missing=0, repaired=0, refused=0, twice=0)

    part = clickhouse.ask(
        "SELECT name, rows FROM system.parts WHERE database = 'tidegate' AND table = 'view' AND active ORDER BY name LIMIT 1 FORMAT JSONEachRow"
    )[0]
    clickhouse.ask(f"ALTER TABLE tidegate.view DROP PART '{part['name']}'")
    clickhouse.ask(f"ALTER TABLE tidegate.`order` DELETE WHERE {N} IN (3, 9) SETTINGS mutations_sync = 2")
    clickhouse.ask("DROP TABLE tidegate._dead_letters SYNC")
    lost = part["rows"] + 12 + 6
    inserts = len(clickhouse.inserts())
    load = Load(server, server.add_tenant("beta"), "beta", rate=500, batch=10, seconds=300)
    try:
        looked = reconcile(server)
        assert looked["total"]["missing"] == lost and looked["total"]["repaired"] == 0, looked
        assert [insert for insert in clickhouse.inserts()[inserts:] if "repair" in insert["insert_deduplication_token"]] == []
        repaired = reconcile(server, "--repair", status=0)
        assert (repaired["total"]["missing"], repaired["total"]["repaired"]) == (lost, lost), repaired
        lanes = {(lane["event_type"], lane["dead_letters"]): lane["repaired"] for lane in repaired["lanes"]}
        assert (lanes["view", False], lanes["order", False], lanes["order", True]) == (part["rows"], 12, 6), lanes
        assert reconcile(server, status=0)["total"]["missing"] == 0
    finally:
        report = load.enough()
    server.settle()
    check_once(server, clickhouse, "view", 600)
    check_once(server, clickhouse, "order", 60)
    check_once(server, clickhouse, "_dead_letters", 6)
    assert check_same(server, clickhouse, "view") == 600
    assert report["accepted"] > 0, report

    clickhouse.ask(f"ALTER TABLE tidegate.view DELETE WHERE {N} < 50 SETTINGS mutations_sync = 2")
    assert total(reconcile(server, "--repair", status=0))["repaired"] == 50
    check_once(server, clickhouse, "view", 600)
    clickhouse.ask(f"ALTER TABLE tidegate.view DELETE WHERE {N} < 50 SETTINGS mutations_sync = 2")
    assert total(reconcile(server, "--repair", status=0))["repaired"] == 50
    check_once(server, clickhouse, "view", 600)
    tally("e2e::clickhouse", "power loss", ["P2", "P5"], 3)


def test_a_repair_whose_answers_are_lost_writes_each_row_once(make_server, clickhouse):
    """Scenario: the answers of a repair's first inserts are lost, or its requests; a row was set aside before.
    Guarantees: each row is there once; what was set aside is not missed; a window is only looked at as far as it is asked."""
    server = make_server(sink=sink(clickhouse, more='timeout = "2s"')).start()
    key = server.add_tenant()
    server.accept([{"event_type": "view", "n": n} for n in range(100)], key)
    server.settle()
    clickhouse.ask("ALTER TABLE tidegate.view ADD CONSTRAINT small CHECK " + N + " < 1000")
    server.accept([{"event_type": "view", "n": n} for n in (500, 5000, 501)], key)
    server.settle()
    for what in ("drop_answer", "drop_request"):
        clickhouse.ask("ALTER TABLE tidegate.view DELETE WHERE log_offset BETWEEN 10 AND 69 SETTINGS mutations_sync = 2")
        few = reconcile(server, "--partition", "0", "--from", "40", "--to", "50")
        assert (total(few)["rows"], total(few)["missing"]) == (10, 10), few
        clickhouse.spoil(what, 2)
        assert total(reconcile(server, "--repair", status=0))["repaired"] == 60
        check_once(server, clickhouse, "view", 102)
    tally("e2e::clickhouse", "partial network", ["P2", "P5"], 2)


def test_what_cannot_be_reconciled_says_so(make_server, clickhouse):
    """Scenario: a sink that cannot be asked, one that is not there, offsets that are not; a server that is away.
    Guarantees: each says what is wrong."""
    server = make_server(sink=sink(clickhouse)).start()
    server.accept({"event_type": "view"}, server.add_tenant())
    server.settle()
    for arguments, words in [
        (["lake"], "cannot be asked"),
        (["nothing"], "no sink"),
        (["clickhouse", "--partition", "7"], "no such partition"),
        (["clickhouse", "--partition", "0", "--to", "99"], "has stored 0 to 1"),
    ]:
        told = refused(server, *arguments)
        assert words in told, told
    clickhouse.kill()
    assert "acme/view" in refused(server, "clickhouse")
