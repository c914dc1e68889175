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


# Not for the screen: each client says what it could not send.
for _name in ("snowplow_tracker", "snowplow_tracker.emitters", "rudderstack", "backoff"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
