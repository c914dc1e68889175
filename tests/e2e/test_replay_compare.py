"""`ingestctl replay compare`: live against a shadow that a job wrote, in the lake and in ClickHouse, held against what other readers see."""

import json
import re
import subprocess

import duckdb
from clickhouse_engine import sink
from harness import http, tally

FOUND = ("missing", "extra", "changed", "healed", "newly_dead", "doubled_in_live", "doubled_in_shadow")


def view(version, fields, required=()):
    """A schema of `view`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "x-version": version,
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in fields.items()},
        "required": list(required),
    }


def replay(server, *more, window=("--from", "earliest", "--to", "latest")):
    return server.ctl("replay", *window, "--shadow", "--yes", "--wait", *more)["plan_id"]


def compare(server, plan, *more, status):
    report = server.ctl("replay", "compare", plan, *more, status=status)
    assert report["identical"] == (status == 0)
    return report


def found(report):
    return {name: report[name] for name in FOUND if report[name]}


def of_sink(report, name):
    return next(sink for sink in report["sinks"] if sink["sink"] == name)


def lake_sides(server, plan):
    """Live's and the shadow's rows of `view` as DuckDB reads them, by offset."""
    sides = []
    for root in (server.lake, server.lake / "shadow" / plan):
        rows = {}
        for area in ("events", "dead_letters"):
            if any((root / area).glob("**/*.parquet")):
                table = duckdb.sql(f"select * from read_parquet('{root}/{area}/**/*.parquet', union_by_name=true, hive_partitioning=true)")
                for row in table.fetchall():
                    row = dict(zip(table.columns, row))
                    rows[row["log_offset"]] = (area, {name: value for name, value in row.items() if value is not None})
        sides.append(rows)
    return sides


def model(live, shadow):
    """What differs, offset by offset."""
    counts = dict.fromkeys(FOUND, 0)
    fields = {}
    for offset in sorted(live.keys() | shadow.keys()):
        if offset not in shadow:
            counts["missing"] += 1
        elif offset not in live:
            counts["extra"] += 1
        elif live[offset][0] != shadow[offset][0]:
            counts["healed" if live[offset][0] == "dead_letters" else "newly_dead"] += 1
        elif live[offset] != shadow[offset]:
            counts["changed"] += 1
            (_, a), (_, b) = live[offset], shadow[offset]
            for name in a.keys() | b.keys():
                if a.get(name) != b.get(name):
                    fields[name] = fields.get(name, 0) + 1
    return {name: count for name, count in counts.items() if count}, fields


def fill(server, key):
    """300 events, of which a third is valid by the second schema alone and a third by the first alone; another type without a schema."""
    for batch in range(3):
        events = []
        for n in range(batch * 100, batch * 100 + 100):
            events.append({"event_type": "view", "n": n, "page": f"/{n}", "price": n / 4, **({"old": 1} if n % 3 else {})})
            if n % 5 == 0:
                events.append({"event_type": "click", "n": n, "text": "é \\ \" 'x' \n"})
        server.send(events, key)
    server.settle()


FIRST = view(1, {"n": "integer", "page": "string", "old": "integer"}, required=["old"])
SECOND = view(2, {"n": "integer", "page": "string", "price": "number", "old": "integer"})


def test_a_shadow_by_the_same_schemas_is_identical_and_one_by_others_is_told_field_by_field(make_server, clickhouse, tmp_path):
    """Scenario: a lake and ClickHouse; a replay by the schemas of today, then one after a new version with another field and a rule less.
    Guarantees: the first is identical; of the second each count, each field's too, is what DuckDB finds offset by offset, the same
    in both sinks; compared.json holds it; the page needs nothing from elsewhere; live traffic behind the window changes nothing."""
    server = make_server(schemas={"view": FIRST}, sink=sink(clickhouse)).start()
    key = server.add_tenant()
    fill(server, key)
    same = replay(server)
    report = compare(server, same, status=0)
    assert found(report) == {}
    for name in ("lake", "clickhouse"):
        rows = of_sink(report, name)["rows"]
        assert rows == dict(live_events=260, shadow_events=260, live_dead_letters=100, shadow_dead_letters=100), (name, rows)
        assert sum(hour["live_events"] for hour in of_sink(report, name)["hours"]) == 260
    assert model(*lake_sides(server, same)) == ({}, {})

    server.write_schema("view", SECOND)
    server.ctl("reload")
    plan = replay(server, window=("--from", "10", "--to", "350"))
    fill(server, key)
    page = tmp_path / "compared.html"
    report = compare(server, plan, "--html", page, "--by", "jo", status=1)
    live, shadow = lake_sides(server, plan)
    live = {offset: row for offset, row in live.items() if 10 <= offset < 350}
    counts, fields = model(live, shadow)
    assert counts["healed"] > 90 and counts["changed"] > 180, counts
    for name in ("lake", "clickhouse"):
        told = of_sink(report, name)
        assert found(told) == counts, name
        assert {field["field"]: field["changes"] for field in told["fields"]} == fields, name
        assert told["live_behind"] == 0 and told["unreadable"] == []
        sample = next(sample for sample in told["samples"] if sample["difference"] == "changed")
        assert {"field": "schema_version", "live": "1", "shadow": "2"} in sample["fields"], sample
    assert found(report) == {name: 2 * count for name, count in counts.items()}
    kept = json.loads((server.data / "replay" / plan / "compared.json").read_text())
    assert kept == report and kept["by"] == "jo"
    text = page.read_text()
    assert "<h1 class=\"bad\">Different</h1>" in text and not re.search(r"https?://|<script|src=|url\(", text)

    shown = subprocess.run(server.ctl_command("replay", "compare", plan), env=server.ctl_environment(), capture_output=True, text=True)
    assert shown.returncode == 1, shown
    assert f"different: {2 * counts['changed']} changed, {2 * counts['healed']} healed" in shown.stdout, shown.stdout
    assert "schema_version: 1 → 2" in shown.stdout and "changed, for example:" in shown.stdout, shown.stdout

    # Only what may have healed; only one tenant and type.
    healed = replay(server, "--dead-letters-only", window=("--from", "10", "--to", "350"))
    report = compare(server, healed, status=1)
    assert found(of_sink(report, "lake")) == found(of_sink(report, "clickhouse")) == {"healed": counts["healed"]}
    clicks = replay(server, "--event-type", "click", "--tenant", "acme")
    assert of_sink(compare(server, clicks, status=0), "clickhouse")["rows"]["live_events"] == 120


def test_what_live_lost_or_has_otherwise_is_found(make_server, clickhouse):
    """Scenario: of live a file is removed, one garbled, rows of ClickHouse deleted, changed, doubled.
    Guarantees: each is found as what it is, and what is compared again after that has other fingerprints."""
    server = make_server(sink=sink(clickhouse)).start()
    key = server.add_tenant()
    for batch in range(3):
        server.accept([{"event_type": "view", "n": batch * 50 + n} for n in range(50)], key)
        server.settle()
    plan = replay(server)
    before = compare(server, plan, status=0)
    lake, table = (of_sink(before, name) for name in ("lake", "clickhouse"))
    again = compare(server, plan, status=0)
    for name, was in (("lake", lake), ("clickhouse", table)):
        for side in ("live_fingerprint", "shadow_fingerprint"):
            assert of_sink(again, name)[side] == was[side]

    files = sorted((server.lake / "events").glob("**/*.parquet"))
    assert len(files) == 3
    files[0].unlink()
    files[1].write_bytes(b"PAR1 no more")
    clickhouse.ask("ALTER TABLE tidegate.view DELETE WHERE log_offset IN (3, 77) SETTINGS mutations_sync = 2")
    clickhouse.ask("ALTER TABLE tidegate.view UPDATE custom = '{}' WHERE log_offset = 9 SETTINGS mutations_sync = 2")
    clickhouse.ask("INSERT INTO tidegate.view SELECT * FROM tidegate.view WHERE log_offset = 100")
    report = compare(server, plan, status=1)
    assert found(of_sink(report, "lake")) == {"extra": 100}
    (unreadable,) = of_sink(report, "lake")["unreadable"]
    assert unreadable["side"] == "live" and files[1].name in unreadable["path"]
    told = of_sink(report, "clickhouse")
    assert found(told) == {"extra": 2, "changed": 1, "doubled_in_live": 1}
    sample = next(sample for sample in told["samples"] if sample["difference"] == "changed")
    assert (sample["offset"], sample["fields"][0]["field"]) == (9, "custom"), sample
    for name, was in (("lake", lake), ("clickhouse", table)):
        assert of_sink(report, name)["live_fingerprint"] != was["live_fingerprint"]
        assert of_sink(report, name)["shadow_fingerprint"] == was["shadow_fingerprint"]
    tally("e2e::replay_compare", "bit flip", ["P6"], 1)


def test_what_cannot_be_compared_says_so(make_server, clickhouse):
    """Scenario: no such replay; a sink that cannot be read back, alone and beside one that can; a server that is away.
    Guarantees: each says what is wrong; none is called identical."""
    hole = '[[sink]]\nname = "hole"\nkind = "blackhole"\n'
    server = make_server(sink=sink(clickhouse) + hole).start()
    server.accept([{"event_type": "view", "n": n} for n in range(9)], server.add_tenant())
    server.settle()

    def refused(*arguments):
        command = server.ctl_command("replay", "compare", *arguments)
        done = subprocess.run(command, env=server.ctl_environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 3, done
        return done.stdout + done.stderr

    assert "no replay 0123456789abcdef" in refused("0123456789abcdef")
    alone = replay(server, "--sink", "hole")
    assert "cannot be compared" in refused(alone)
    both = replay(server)
    report = compare(server, both, status=0)
    assert report["not_compared"] == ["hole"] and not of_sink(report, "hole")["identical"]
    answer = http("POST", f"{server.admin}/api/v1/replay/jobs/{both}/compare", b"{}", {"Content-Type": "application/json"})
    assert answer.status == 422 and b"by" in answer.body, answer
    clickhouse.kill()
    assert "127.0.0.1" in refused(both) or "connect" in refused(both)
    recorded = [json.loads(line)["action"] for line in (server.data / "control.jsonl").read_text().splitlines()]
    assert [one["plan_id"] for one in recorded if one["action"] == "replay.compare"][:2] == [alone, both]
