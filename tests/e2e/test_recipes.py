"""The runbook's recipes for incidents, each pasted into a shell as a person on call would, on a server that has the incident."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import duckdb
import pytest
from harness import BINARIES, tally

RUNBOOK = Path(__file__).resolve().parents[2] / "docs" / "runbook.md"
STRICT = {"type": "object", "x-version": 1, "properties": {"n": {"type": "integer"}, "size": {"type": "integer"}}}
# How many events the transcript of an incident has: `make incident` takes ten million.
INCIDENT_EVENTS = int(os.environ.get("INCIDENT_EVENTS", "20000"))
# What `size` is told to be now: nothing, so that texts are taken as well.
LOOSE = {"type": "object", "x-version": 2, "properties": {"n": {"type": "integer"}}}


def recipe(title):
    """The lines of the shell blocks below a heading of the runbook."""
    section = re.search(rf"^### {re.escape(title)}$(.*?)(?=^##)", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
    assert section, f"the runbook has no recipe {title!r}"
    blocks = re.findall(r"^```sh$(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


class OnCall:
    """A shell in the server's folder; remembers the plan that a line printed."""

    def __init__(self, server):
        self.server, self.plan, self.said = server, None, []
        self.environment = {
            **os.environ, "PATH": f"{BINARIES}:{os.environ['PATH']}", "TIDEGATE_ADMIN_URL": server.admin, "USER": "ana",
        }  # fmt: skip

    def paste(self, line, may_differ=True):
        if "PLAN_ID" in line:
            assert self.plan, f"no line before printed a plan: {line}"
            line = line.replace("PLAN_ID", self.plan)
        began = time.monotonic()
        done = subprocess.run(["bash", "-c", line], cwd=self.server.folder, env=self.environment, capture_output=True, text=True, timeout=600)
        took = time.monotonic() - began
        # What a comparison finds is told by status 1.
        allowed = (0, 1) if " compare " in line and may_differ else (0,)
        assert done.returncode in allowed, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        found = re.search(r"replay ([0-9a-f]{16})", done.stdout)
        self.plan = found[1] if found else self.plan
        self.said.append(f"$ {line}\n{done.stdout}{done.stderr}# {took:.1f} s")
        return done.stdout

    def follow(self, title):
        for line in recipe(title):
            self.paste(line)
        print("\n".join(self.said))

    def compared(self):
        return json.loads((self.server.data / "replay" / self.plan / "compared.json").read_text())


def orders(server, key, count=200):
    """Every tenth has a text for its size."""
    events = [{"event_type": "order", "event_id": f"o{n}", "n": n, "size": f"{n} kg" if n % 10 == 0 else n} for n in range(count)]
    assert server.send(events, key).status == 200
    server.settle()


def offsets(server):
    """Of the events in the lake, without dead letters."""
    return [row["log_offset"] for row in server.rows("order")] if server.count("order") else []


def test_a_schema_was_wrong(make_server):
    """Scenario: a deploy made a schema that refuses what clients send. Guarantees: after the recipe every event is in the lake."""
    server = make_server(schemas={"order": STRICT}).start()
    key = server.add_tenant("acme")
    on_call = OnCall(server)
    on_call.paste("ingestctl mark deploy:v4")
    orders(server, key)
    assert len(offsets(server)) == 180
    server.write_schema("order", LOOSE)
    on_call.follow("A schema was wrong")
    assert offsets(server) == list(range(200))
    compared = on_call.compared()
    assert (compared["healed"], compared["missing"], compared["extra"]) == (20, 0, 0), compared
    assert (server.folder / "report.html").read_text().startswith("<!doctype html>")
    on_call.paste(f"ingestctl replay revert {on_call.plan} --yes")
    assert len(offsets(server)) == 180
    tally("e2e::recipes", "poison event", ["P5", "P6"], 1)


def test_a_schema_was_wrong_for_a_whole_load(make_server):
    """Scenario: the schema takes no status above 400, which a quarter of a load has. Guarantees: after the recipe every event of
    the load is in the lake once. Prints the transcript (`-s`), each line with the seconds it took."""
    status = {"type": "object", "x-version": 1, "properties": {"status": {"type": "integer", "maximum": 400}}}
    server = make_server(schemas={"order": status}).start()
    key = server.add_tenant("acme")
    on_call = OnCall(server)
    on_call.paste("ingestctl mark deploy:v4")
    server.ctl("load", "--event-type", "order", "--events", INCIDENT_EVENTS, key=key, timeout=600)
    server.settle(timeout=600)
    refused = INCIDENT_EVENTS - server.count("order")
    assert INCIDENT_EVENTS // 5 < refused < INCIDENT_EVENTS // 3, "about a quarter"
    mended = {"type": "object", "x-version": 2, "properties": {"status": {"type": "integer", "maximum": 599}}}
    server.write_schema("order", mended)
    began = time.monotonic()
    on_call.follow("A schema was wrong")
    print(f"# {INCIDENT_EVENTS} events, {refused} of them refused; all lines together {time.monotonic() - began:.1f} s")
    lake = f"read_parquet('{server.folder_of('order')}/**/*.parquet')"
    rows = duckdb.sql(f"select count(*), count(distinct log_offset) from {lake}").fetchall()
    assert rows == [(INCIDENT_EVENTS, INCIDENT_EVENTS)], rows
    assert on_call.compared()["healed"] == refused


@pytest.mark.parametrize("title", ["A sink was corrupted", "A sink was down for a day"])
def test_what_the_lake_lost_comes_back(make_server, title):
    """Scenario: a file of the lake is gone. Guarantees: after the recipe every row is there once, as it was."""
    server = make_server().start()
    key = server.add_tenant("acme")
    for first in (0, 100):
        server.accept([{"event_type": "order", "n": n, "size": n} for n in range(first, first + 60)], key)
        server.settle()
    before = server.rows("order")
    min((server.lake / "events").rglob("*.parquet")).unlink()
    assert len(offsets(server)) < 120
    on_call = OnCall(server)
    on_call.follow(title)
    assert server.rows("order") == before
    compared = on_call.compared()
    assert (compared["missing"], compared["changed"]) == (0, 0) and compared["extra"] > 0, compared


def test_one_tenants_bad_data(make_server):
    """Scenario: a tenant sends another unit than the schema says. Guarantees: after the recipe its rows, and no others', are mended."""
    watt = {"type": "object", "x-version": 1, "properties": {"n": {"type": "integer"}, "load": {"type": "number", "x-unit": "W"}}}
    kilowatt = {**watt, "x-version": 2, "properties": {**watt["properties"], "load": {"type": "number", "x-unit": "W", "x-accept": {"load_kw": "kW"}}}}
    server = make_server(schemas={"order": watt}).start()
    keys = {name: server.add_tenant(name) for name in ("acme", "beta")}
    for key in keys.values():
        server.accept([{"event_type": "order", "n": n, "load_kw": 1.5} for n in range(50)], key)
    server.settle()
    candidate = server.folder / "candidate" / "acme"
    candidate.mkdir(parents=True)
    (candidate / "order.json").write_text(json.dumps(kilowatt))
    OnCall(server).follow("One tenant's bad data")
    assert {row["load"] for row in server.rows("order", "acme")} == {1500.0}
    assert all(row.get("load") is None for row in server.rows("order", "beta"))


def test_dead_letters_after_a_fix(make_server):
    """Scenario: a schema was mended. Guarantees: after the recipe each dead letter is an event, at its own offset."""
    server = make_server(schemas={"order": STRICT}).start()
    key = server.add_tenant("acme")
    orders(server, key)
    server.write_schema("order", LOOSE)
    on_call = OnCall(server)
    on_call.follow("Dead letters after a fix")
    assert offsets(server) == list(range(200))
    assert server.offsets_given() == 200, "nothing was appended"
    assert not list((server.lake / "dead_letters").rglob("*.parquet"))
