"""The CloudEvents SDK from PyPI sends, in binary and in structured mode; every value is read back."""

import json
from datetime import datetime, timezone

import pytest
import requests
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from harness import exact

TIME = datetime(2026, 3, 1, 12, 30, 45, 123456, tzinfo=timezone.utc)
DATA = {"amount": 12.5, "currency": "EUR", "note": "naïve 日本 😀", "items": [{"sku": "a", "count": 2}]}


def order(name):
    return CloudEvent(
        {"id": name, "source": "/shop/1", "type": "com.example.order", "subject": "order 7", "time": TIME, "region": "eu"},
        DATA,
    )


@pytest.mark.parametrize("encode", [to_binary_event, to_structured_event])
def test_an_event_of_the_sdk_comes_back(server, encode):
    key = server.add_tenant()
    message = encode(order("order-1"))
    answer = requests.post(
        f"{server.url}/v1/events",
        data=message.body,
        headers={**message.headers, "Authorization": f"Bearer {key}"},
        timeout=30,
    )
    assert answer.status_code == 200 and answer.json()["accepted"] == 1, answer.text
    server.settle()
    [row] = server.rows("com.example.order")
    assert row["event_id"] == "/shop/1 order-1", "source and id together identify a CloudEvent, and so the event"
    assert row["event_time"] == TIME, "the CloudEvent's time is the event's time"
    custom = exact(row["custom"])
    found = custom.get("data", custom)
    for name, value in exact(json.dumps(DATA)).items():
        assert found[name] == value, f"{name} of the data is not what was sent: {custom}"
    for name, value in (("source", "/shop/1"), ("subject", "order 7"), ("region", "eu")):
        assert name in row["custom"] and value in row["custom"], f"attribute {name} was lost: {custom}"


def test_a_cloud_event_sent_twice_is_kept_once(server):
    key = server.add_tenant()
    message = to_structured_event(order("order-2"))
    headers = {**message.headers, "Authorization": f"Bearer {key}"}
    first, second = (
        requests.post(f"{server.url}/v1/events", data=message.body, headers=headers, timeout=30).json() for _ in range(2)
    )
    assert (first["accepted"], second["accepted"], second["deduplicated"]) == (1, 0, 1), (first, second)
    server.settle()
    assert len(server.rows("com.example.order")) == 1
