"""Trackers of product events and senders of logs, by the contract of `protocol_clients`; those for JavaScript are programs in
`tests/clients/js`."""

import functools
import json
import logging
import subprocess
import threading

import requests
from protocol_clients import DATA, PROGRAMS, in_chromium

# JavaScript has no integers beyond this.
JS_DATA = {**DATA, "large": 9007199254740991}
SCHEMA = "iglu:com.example/signed_up/jsonschema/1-0-0"
# How long a client is let try again, in seconds.
PATIENCE = 15


def node(program, url, key, names, **more):
    """Runs one of the programs; the names that it was told are safe."""
    task = {"url": url, "key": key, "names": names, "data": JS_DATA, "patience": PATIENCE * 1000, **more}
    done = subprocess.run(
        ["node", f"{program}.mjs"], cwd=PROGRAMS, input=json.dumps(task), capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, f"{program}: {done.stdout}\n{done.stderr}"
    return set(json.loads(done.stdout))


def snowplow(url, key, names, method="post"):
    """snowplow-tracker for Python; the key goes along by the session that it takes."""
    from snowplow_tracker import Emitter, SelfDescribing, SelfDescribingJson, Tracker

    told, statuses, ended = set(), [], threading.Event()

    def name(event):
        return json.loads(event["ue_pr"])["data"]["data"]["name"]

    def success(events):
        told.update(map(name, events))
        if told == set(names):
            ended.set()

    def failure(_count, _events):
        if statuses and statuses[-1] in (400, 401, 403, 410, 422):
            ended.set()

    with requests.Session() as session:
        if key:
            session.headers["Authorization"] = f"Bearer {key}"
        session.hooks["response"].append(lambda answer, **_: statuses.append(answer.status_code))
        emitter = Emitter(url, method=method, batch_size=len(names) + 1, session=session, on_success=success, on_failure=failure)
        tracker = Tracker("test", emitter, app_id="shop", encode_base64=False)
        for each in names:
            context = SelfDescribingJson("iglu:com.example/shop/jsonschema/1-0-0", {"cart": 7.5})
            tracker.track(SelfDescribing(SelfDescribingJson(SCHEMA, {**DATA, "name": each}), context=[context]))
        emitter.flush()
        ended.wait(PATIENCE)
        emitter.retry_timer.cancel()
        emitter.timer.cancel()
    return told


def snowplow_node(url, key, names):
    """@snowplow/node-tracker, base64."""
    return node("snowplow", url, key, names, schema=SCHEMA, method="post")


@functools.cache
def snowplow_bundle():
    command = [PROGRAMS / "node_modules" / ".bin" / "esbuild", "snowplow_page.mjs", "--bundle", "--format=esm", "--log-level=error"]
    return subprocess.run(command, cwd=PROGRAMS, capture_output=True, text=True, timeout=60, check=True).stdout


def snowplow_browser(url, key, names, method="post"):
    """@snowplow/browser-tracker in headless Chromium, with cookies as it sends them."""
    task = {"url": url, "key": key, "names": names, "data": JS_DATA, "schema": SCHEMA, "method": method, "patience": PATIENCE * 1000}
    page = f'<!doctype html><script>window.task = {json.dumps(task)}</script><script type="module" src="/page.js"></script>'
    return set(in_chromium({"/": page, "/page.js": snowplow_bundle()}))


def segment_node(url, key, names):
    """@segment/analytics-node."""
    return node("segment", url, key, names)


def rudderstack_node(url, key, names):
    """@rudderstack/rudder-sdk-node, gzip."""
    return node("rudderstack", url, key, names)


def posthog_node(url, key, names):
    """posthog-node, gzip."""
    return node("posthog", url, key, names)


def rudderstack(url, key, names):
    """rudder-sdk-python, gzip, in the background as it comes."""
    from rudderstack.analytics.client import Client

    failed = set()
    client = Client(
        key, host=url, gzip=True, max_retries=3, upload_interval=0.05,
        on_error=lambda error, items: failed.update(item["messageId"] for item in items),
    )  # fmt: skip
    for name in names:
        client.track("user-1", "Signed Up", {"name": name, **DATA}, message_id=name)
    client.flush()
    client.join()
    return set(names) - failed


def loki(url, key, names):
    """python-logging-loki, a request for each line."""
    from logging_loki import LokiHandler

    failed = set()

    class Handler(LokiHandler):
        def handleError(self, record):
            self.emitter.close()
            failed.add(json.loads(record.getMessage())["name"])

    handler = Handler(url=f"{url}/loki/api/v1/push", tags={"app": "shop"}, auth=("shop", key), version="1")
    logger = logging.Logger("shop")
    logger.addHandler(handler)
    for name in names:
        logger.info(json.dumps({**DATA, "name": name}), extra={"tags": {"page": "/"}})
    return set(names) - failed


def winston_json(url, key, names):
    """winston-loki, JSON."""
    return node("loki", url, key, names, json=True)


def winston_protobuf(url, key, names):
    """winston-loki, protobuf in snappy's block format."""
    return node("loki", url, key, names, json=False)


# Not for the screen: each client says what it could not send.
for _name in ("snowplow_tracker", "snowplow_tracker.emitters", "rudderstack", "backoff"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
