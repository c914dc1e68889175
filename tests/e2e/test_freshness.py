"""From received to visible: measured per sink, tenant and type, held against what the configuration promises, and told."""

import re
import time

from clickhouse_engine import sink
from harness import http, tally, wait_until

SCHEMAS = {name: {"type": "object", "properties": {"n": {"type": "integer"}}} for name in ("view", "click")}
OBJECTIVE = 'flush = { age = "200ms" }\nobjective = "p95 < 3s over 10s"'


def sinks(server):
    return {sink["name"]: sink for sink in http("GET", f"{server.admin}/api/v1/status").json()["sinks"]}


def metrics(server, name):
    text = http("GET", f"{server.admin}/metrics").body.decode()
    found = re.findall(rf"^{name}(?:{{(.*?)}})? (\S+)$", text, re.M)
    return {labels: float(value) for labels, value in found}


def send(server, key, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        server.accept([{"event_type": "view", "n": n} for n in range(10)] + [{"event_type": "click"}], key)
        time.sleep(0.1)


def test_an_objective_is_met_missed_while_the_server_is_away_and_met_again(make_server, clickhouse):
    both = sink(clickhouse).replace('flush = { age = "200ms" }', OBJECTIVE)
    assert OBJECTIVE in both
    server = make_server(sink='objective = "p95 < 1h"\n' + both, schemas=SCHEMAS).start()
    key = server.add_tenant()
    server.accept([{"event_type": "view"}, {"event_type": "click"}], key)
    wait_until("the tables are there", lambda: clickhouse.has("view") and clickhouse.has("click"))
    # The first insert of a table makes it: seconds on a slow machine.
    wait_until("all is confirmed", lambda: sinks(server)["clickhouse"]["freshness"]["unconfirmed"] == 0)
    send(server, key, 12)
    wait_until("it is met", lambda: sinks(server)["clickhouse"]["freshness"]["state"] == "met")
    wait_until("all is confirmed", lambda: sinks(server)["clickhouse"]["freshness"]["unconfirmed"] == 0)
    fresh = sinks(server)["clickhouse"]["freshness"]
    print(fresh)
    assert fresh["objective"] == "p95 < 3s over 10s" and 0 < fresh["measured_seconds"] < 3, fresh
    assert fresh["events"] > 100 and fresh["lanes_missed"] == 0, fresh
    lake = sinks(server)["lake"]["freshness"]
    assert (lake["objective"], lake["state"]) == ("p95 < 1h over 10m", "met"), lake

    clickhouse.kill()
    send(server, key, 5)
    wait_until("it is missed", lambda: sinks(server)["clickhouse"]["freshness"]["state"] == "missed")
    assert metrics(server, "tidegate_sink_objective_met") == {'sink="clickhouse"': 0, 'sink="lake"': 1}
    assert metrics(server, "tidegate_sink_oldest_waiting_milliseconds")['sink="clickhouse"'] > 3000

    clickhouse.start()
    server.settle()
    send(server, key, 13)
    wait_until("it is met again", lambda: sinks(server)["clickhouse"]["freshness"]["state"] == "met")
    wait_until("all is confirmed", lambda: sinks(server)["clickhouse"]["freshness"]["unconfirmed"] == 0)
    # As many events have an age as are in the table: each was asked for, none counted twice.
    count = metrics(server, "tidegate_sink_event_age_seconds_count")
    for event_type in ("view", "click"):
        labels = f'sink="clickhouse",tenant="acme",event_type="{event_type}",dead_letters="0"'
        assert count[labels] == clickhouse.places(event_type)[0], count
    tally("e2e::freshness", "sink down", ["P2", "P5"], 1)


def test_an_event_type_of_the_lake_is_measured_by_tenant(make_server):
    server = make_server(schemas=SCHEMAS).start()
    for tenant in ("acme", "beta"):
        key = server.add_tenant(tenant)
        server.accept([{"event_type": "view", "n": n} for n in range(7)], key)
        # A type that somebody made up makes no series of its own.
        server.accept([{"event_type": "made_up"}, {"event_type": "made_up_too"}], key)
    server.settle()
    count = metrics(server, "tidegate_sink_event_age_seconds_count")
    kinds = [(tenant, kind, n) for tenant in ("acme", "beta") for kind, n in (("view", 7), ("", 2))]
    wanted = {f'sink="lake",tenant="{tenant}",event_type="{kind}",dead_letters="0"': n for tenant, kind, n in kinds}
    assert count == wanted
    last = metrics(server, "tidegate_sink_lane_age_seconds")
    assert last.keys() == wanted.keys() and all(0 < age < 30 for age in last.values()), last
