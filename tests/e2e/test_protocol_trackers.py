"""Trackers and log senders through everything that `test_protocols` puts its clients through."""

import json

import pytest
import tracker_clients as clients
from harness import exact, http, tally
from protocol_front import Front
from test_protocols import Client, Rig, check, own, properties, some_names


def unstruct(row):
    return own(row)["unstruct_event"]["data"]["data"]


def line(row):
    return exact(own(row)["line"])


SNOWPLOW = "snowplow.signed_up"
CLIENTS = [
    Client("snowplow-tracker", clients.snowplow, SNOWPLOW, unstruct),
    Client("snowplow-node", clients.snowplow_node, SNOWPLOW, unstruct),
    Client("snowplow-browser", clients.snowplow_browser, SNOWPLOW, unstruct),
    Client("segment-node", clients.segment_node, "segment.track", properties),
    Client("rudderstack-node", clients.rudderstack_node, "segment.track", properties),
    Client("rudder-sdk-python", clients.rudderstack, "segment.track", properties),
    Client("posthog-node", clients.posthog_node, "posthog.capture", properties),
    Client("python-logging-loki", clients.loki, "loki", line, again=False),
    Client("winston-loki-json", clients.winston_json, "loki", line, once=False),
    Client("winston-loki-protobuf", clients.winston_protobuf, "loki", line, once=False),
]
SNOWPLOWS = [client.name for client in CLIENTS if client.event_type == SNOWPLOW]
LOKIS = [client.name for client in CLIENTS if client.event_type == "loki"]
PYTHON = {"snowplow-tracker", "rudder-sdk-python", "python-logging-loki"}
each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    rig = Rig(tmp_path_factory.mktemp("trackers"), CLIENTS)
    yield rig
    rig.end()


@each_client
def test_what_a_client_sends_is_in_the_lake_value_by_value(rig, client):
    names = some_names(3)
    assert client.send(rig.server.url, rig.key, names) == set(names)
    data = clients.DATA if client.name in PYTHON else clients.JS_DATA
    for name, rows in rig.rows(client, names).items():
        [(row, event)] = rows
        expected = exact(json.dumps({**data, "name": name}))
        for field, value in expected.items():
            # Snowplow's trackers leave out what is None.
            if not (value is None and client.name in SNOWPLOWS):
                assert event[field] == value, f"{field} is not what was sent: {event}"
        assert row["event_time"] is not None and row["event_id"]
        if client.name in SNOWPLOWS:
            whole = own(row)
            assert row["event_id"] == whole["eid"] and whole["aid"] == "shop"
            assert int(row["event_time"].timestamp() * 1000) == int(whole["dtm"])
            if client.name != "snowplow-browser":
                contexts = [context["data"] for context in whole["contexts"]["data"]]
                assert {"cart": exact("7.5")} in contexts
        elif client.name in LOKIS:
            whole = own(row)
            assert whole["labels"]["app"] == "shop" and "info" in whole["labels"].values()
            assert int(whole["timestamp_ns"]) // 1_000_000 == int(row["event_time"].timestamp() * 1000)
            # winston-loki sends it by JSON only.
            expected = {"trace": "7", "level": "info"} if client.name == "winston-loki-json" else None
            assert whole.get("structured_metadata") == expected
        elif client.event_type == "segment.track":
            assert row["event_id"] == name


@each_client
def test_a_wrong_key_is_told_and_nothing_is_kept(rig, client):
    names = some_names()
    assert client.send(rig.server.url, "tgk_000000000000_" + "0" * 49, names) == set()
    assert set(check(rig, client, set(), names).values()) == {0}


@each_client
def test_a_body_that_is_too_large_is_told_and_not_taken_for_overload(rig, client):
    names = some_names()
    front = Front(rig.small, rig.busy)
    try:
        assert client.send(front.url, rig.key, names) == set()
    finally:
        front.end()
    statuses = [status for _, status in front.seen if status != 204]
    # Snowplow's trackers would send again after 413, for ever.
    assert set(statuses) == {400 if client.name in SNOWPLOWS else 413}, statuses
    # posthog-node halves what it sends until it is one event.
    assert len(statuses) <= (5 if client.name == "posthog-node" else 2), statuses


@each_client
def test_over_its_quota_a_client_waits_and_loses_nothing_it_was_told_is_safe(rig, client):
    # A browser takes a while to start, in which the quota fills up again: more at once.
    key, names = rig.slow_keys[client.name], some_names(7)
    front = rig.front()
    told = client.send(front.url, key, names[:2]) | client.send(front.url, key, names[2:])
    assert 429 in {status for _, status in front.seen}, front.seen
    times = check(rig, client, told, names, tenant=f"slow-{client.name}")
    assert told == set(names) or not client.again, f"{client.name} gave up on {set(names) - told}"
    assert not client.again or set(times.values()) == {1}, times


@each_client
@pytest.mark.parametrize("fault", ["busy", "lost request", "lost answer"])
def test_a_server_that_is_busy_or_lost_costs_nothing_that_was_told_is_safe(rig, client, fault):
    names = some_names()
    front = rig.front(*(["pass"] if client.name == "snowplow-browser" else []), fault)
    told = client.send(front.url, rig.key, names)
    assert (fault, 503 if fault == "busy" else None) in [
        (done, status if done == "busy" else None) for done, status in front.seen
    ], front.seen
    times = check(rig, client, told, names)
    if client.again:
        assert told == set(names), f"{client.name} gave up: {front.seen}"
        twice = fault == "lost answer" and not client.once
        assert set(times.values()) <= ({1, 2} if twice else {1}), (times, front.seen)
    tally("e2e::protocols", "client duplicates" if fault == "lost answer" else "partial network", ["P1"], 1)


@pytest.mark.parametrize("send", [clients.snowplow, clients.snowplow_browser], ids=["python", "browser"])
def test_by_its_pixel_a_tracker_sends_the_same(rig, send):
    names = some_names()
    assert send(rig.server.url, rig.key, names, method="get") == set(names)
    assert set(check(rig, CLIENTS[0], set(names), names).values()) == {1}


def test_a_page_that_sends_cookies_may_read_the_answer(rig):
    answer = http("POST", f"{rig.server.url}/com.snowplowanalytics.snowplow/tp2", b"{}", {"Origin": "https://shop.example"})
    assert answer.status == 401 and answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
