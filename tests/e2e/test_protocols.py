"""The protocols that clients already speak: each public client sends, is refused in every way, and what it was told is safe
is in the lake, value by value."""

import json
import os
import re
import subprocess
import sys
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import protocol_clients as clients
import pytest
from harness import BINARIES, REPOSITORY, Server, exact, free_ports, http, tally, wait_until
from protocol_front import Front

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from roles.fleet import Fleet  # noqa: E402


@dataclass(frozen=True)
class Client:
    """What is known of a client; `docs/protocols.md` says the same."""

    name: str
    send: Callable
    event_type: str
    # The row's event as it was given to the client.
    event: Callable
    # It sends again after 429, 503 and a cut connection.
    again: bool = True
    # What it sends again has an id, so that it is there once.
    once: bool = True


def own(row):
    return exact(row["custom"])


def properties(row):
    return own(row)["properties"]


CLIENTS = [
    Client("curl", clients.curl, "kibana-ui", own, once=False),
    Client("browser", clients.browser, "browser", own, again=False),
    Client("requests", clients.track, "signup", own),
    Client("splunk-handler", clients.splunk, "hec", lambda row: exact(own(row)["event"]), once=False),
    Client("segment-analytics-python", clients.segment, "segment.track", properties),
    Client("posthog", clients.posthog, "posthog.capture", properties),
]
each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


class Rig:
    """One server that takes events, one that takes only small bodies, one that has nobody behind it."""

    def __init__(self, folder, clients=CLIENTS, edge=""):
        self.server = Server(folder / "server", flush_age="200ms", edge=edge).start()
        self.key = self.server.add_tenant()
        # Two events at once, and two a second.
        self.slow_keys = {client.name: self.slow_key(client) for client in clients}
        tenants = f'tenants_dir = "{self.server.data / "tenants"}"\n'
        small = '[edge.limits]\nbody_bytes = "100"\n'
        self.small = Server(folder / "small", edge=small, top=tenants).start()
        nobody = '[hop]\nnormalizers = ["127.0.0.1:1"]\n'
        self.busy = Server(folder / "busy", sink=nobody, top=f'role = "edge"\n{tenants}')
        self.busy.spawn()
        wait_until("the edge without normalizers answers", lambda: http("GET", f"{self.busy.url}/healthz").status == 200)
        self.fronts = []

    def slow_key(self, client):
        name = f"slow-{client.name}"
        return self.server.ctl("tenant", "add", name, "--events-per-second", 2, "--events-burst", 2)["key"]

    def front(self, *faults):
        self.fronts.append(Front(self.server, self.busy, faults))
        return self.fronts[-1]

    def end(self):
        for front in self.fronts:
            front.end()
        for server in (self.server, self.small, self.busy):
            server.end()

    def rows(self, client, names, tenant="acme"):
        """How often each of `names` is in the lake, and the events."""
        self.server.settle()
        found = {name: [] for name in names}
        if self.server.count(client.event_type, tenant):
            for row in self.server.rows(client.event_type, tenant):
                event = client.event(row)
                if event["name"] in found:
                    found[event["name"]].append((row, event))
        return found


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    rig = Rig(tmp_path_factory.mktemp("protocols"))
    yield rig
    rig.end()


def some_names(count=2):
    return [f"event-{uuid.uuid4()}" for _ in range(count)]


def check(rig, client, told, names, tenant="acme"):
    """What the client was told is safe is in the lake; returns how often each name is there."""
    found = rig.rows(client, names, tenant)
    missing = [name for name in told if not found[name]]
    assert not missing, f"{client.name} was told that {missing} are safe, and they are not in the lake"
    return {name: len(rows) for name, rows in found.items()}


@each_client
def test_what_a_client_sends_is_in_the_lake_value_by_value(rig, client):
    names = some_names(3)
    assert client.send(rig.server.url, rig.key, names) == set(names)
    for name, rows in rig.rows(client, names).items():
        [(row, event)] = rows
        expected = {**clients.DATA, "name": name}
        if client.name == "requests":
            # Strings only; its id is the event's.
            expected = {"name": name, "note": clients.DATA["note"], "empty": "", "amount": "12.50"}
            assert row["event_id"] == name
        if client.name == "browser":
            expected["large"] = 9007199254740991
        expected = exact(json.dumps(expected))
        for field, value in expected.items():
            # posthog leaves out what is None.
            if not (client.name == "posthog" and value is None):
                assert event[field] == value, f"{field} is not what was sent: {event}"
        assert row["event_time"] is not None and row["event_id"]


def test_what_the_head_says_of_the_sender_is_a_field(rig):
    [name] = some_names(1)
    clients.curl(rig.server.url, rig.key, [name])
    [(_, event)] = rig.rows(CLIENTS[0], [name])[name]
    headers = event["request_headers"]
    assert headers["x-elastic-product-origin"] == "kibana" and headers["user-agent"].startswith("curl/")
    assert not any("authorization" in header for header in headers), "a key is in the lake"


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
    # Nobody tries again what will never fit; `--retry-all-errors` does, as it was told.
    assert set(statuses) == {413}, statuses
    assert len(statuses) <= (5 if client.name == "curl" else 2), statuses


@each_client
def test_over_its_quota_a_client_waits_and_loses_nothing_it_was_told_is_safe(rig, client):
    key, names, told, front = rig.slow_keys[client.name], [], set(), rig.front()
    # A client may take a while to start, in which the quota fills up again: then once more. A browser sends more at once.
    for _ in range(4):
        for more in (some_names(2), some_names(2 if client.again else 5)):
            names += more
            told |= client.send(front.url, key, more)
        if 429 in {status for _, status in front.seen}:
            break
    assert 429 in {status for _, status in front.seen}, front.seen
    times = check(rig, client, told, names, tenant=f"slow-{client.name}")
    assert told == set(names) or not client.again, f"{client.name} gave up on {set(names) - told}"
    assert not client.again or set(times.values()) == {1}, times


@each_client
@pytest.mark.parametrize("fault", ["busy", "lost request", "lost answer"])
def test_a_server_that_is_busy_or_lost_costs_nothing_that_was_told_is_safe(rig, client, fault):
    names = some_names()
    front = rig.front(*(["pass"] if client.name == "browser" else []), fault)
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


def examples():
    """The examples of docs/protocols.md: event type, how many events, language, text."""
    text = (REPOSITORY / "docs" / "protocols.md").read_text()
    found = re.findall(r"<!-- example: (\S+) (\d+) -->\n```(\w+)\n(.*?)```", text, re.DOTALL)
    assert len(found) == text.count("<!-- example:") and found
    return found


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    """`ingestd --dev`, as somebody who tries it has it."""
    folder = tmp_path_factory.mktemp("dev")
    port, admin = free_ports(2)
    with open(folder / "ingestd.log", "wb") as log:
        process = subprocess.Popen(
            [BINARIES / "ingestd", "--dev", "--data-dir", folder / "data", "--listen", f"127.0.0.1:{port}",
             "--admin", f"127.0.0.1:{admin}"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "TIDEGATE_EDGE__ALSO_LISTEN": "[]"},
        )  # fmt: skip
    server = Server.__new__(Server)
    server.folder, server.lake, server.port, server.admin_port = folder, folder / "data" / "lake", port, admin
    server.scheme, server.process, server.starts = "http", process, 0
    wait_until("ingestd --dev is ready", lambda: http("GET", f"{server.admin}/readyz").status == 200)
    yield server
    process.kill()
    process.wait()


def run_example(dev, folder, language, text):
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{dev.port}").replace("port=8080", f"port={dev.port}")
    command = {"sh": ["bash", "-euo", "pipefail", "-c", text], "python": [sys.executable, "-c", text]}.get(language)
    if language == "javascript":
        command = ["node", "--input-type=module", "--eval", text]
        folder = clients.PROGRAMS
    if language == "html":
        (folder / "page.html").write_text(text)
        command = [
            clients.chromium(), "--headless", "--disable-gpu", "--disable-dev-shm-usage", *clients.SANDBOX,
            f"--user-data-dir={folder / 'chromium'}", "--virtual-time-budget=3000", "--dump-dom", str(folder / "page.html"),
        ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.returncode == 0, f"{text}\n{done.stderr}"


def test_each_example_of_the_documentation_does_what_it_says(dev, tmp_path):
    expected = Counter()
    for event_type, count, language, text in examples():
        run_example(dev, tmp_path, language, text)
        expected[event_type] += int(count)

    def found():
        return {event_type: dev.count(event_type, "dev") for event_type in expected}

    wait_until("the examples' events are in the lake", lambda: found() == dict(expected), timeout=30)


def test_in_dev_a_page_sends_without_a_key(dev):
    names = some_names()
    assert {status for _, status, _ in clients.browser_answers(dev.url, None, names)} == {200}


def test_with_roles_the_answers_are_the_same(tmp_path):
    """An edge, a normalizer and a writer as processes of their own: what became of each item comes back over two hops."""
    strict = {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]}
    fleet = Fleet(tmp_path / "fleet", replicas=1, schemas={"orders": strict})
    try:
        key = fleet.start().add_tenant("acme")
        [edge] = fleet.replicas["edge"]
        url = f"http://{edge.address}"

        def post(path, body, authorization=f"Bearer {key}"):
            answer = http("POST", f"{url}{path}", body.encode(), {"Authorization": authorization})
            return answer.status, answer.json()

        assert post("/v3/send/orders", '{"amount":1}\n{"amount":"much"}') == (200, {"status": "ok"}), "a dead letter is durable"
        status, answer = post("/services/collector", '{"event":"a"}{"host":"h"}{"event":"b"}', f"Splunk {key}")
        assert (status, answer["code"], answer["invalid-event-number"]) == (400, 12, 1)
        assert post("/track", "[]")[0] == 400
        batch = json.dumps({"batch": [{"type": "track", "messageId": "m-1"}], "writeKey": key})
        answers = [http("POST", f"{url}/v1/batch", batch.encode()) for _ in range(2)]
        assert [answer.json() for answer in answers] == [{"success": True}] * 2
        names = some_names(2)
        assert clients.posthog(url, key, names) == set(names)
        fleet.settle()
        rows, _, ids = fleet.lake_rows()
        assert rows == 1 + 2 + 1 + 2, "one order, two of the collector's events, one track, two of PostHog's"
        assert ids["m-1"] == 1
        fleet.audits()
    except BaseException:
        print(fleet.logs())
        raise
    finally:
        fleet.end()


def test_a_splunk_token_that_is_none_is_answered_as_splunk_does(rig):
    def post(authorization, body=b'{"event":"x"}'):
        headers = {"Authorization": authorization} if authorization else {}
        answer = http("POST", f"{rig.server.url}/services/collector/event", body, headers)
        return answer.status, answer.json()["code"]

    assert post(None) == (401, 2)
    assert post("Splunk tgk_none") == (403, 4)
    key = f"Splunk {rig.key}"
    assert post(key) == (200, 0)
    assert post(key, b"") == (400, 5)
    assert post(key, b"{") == (400, 6)
    assert post(key, b'{"host":"h"}') == (400, 12)
    assert post(key, b'{"event":""}') == (400, 13)
    health = http("GET", f"{rig.server.url}/services/collector/health")
    assert (health.status, health.json()["code"]) == (200, 17)
    health = http("GET", f"{rig.busy.url}/services/collector/health")
    assert (health.status, health.json()["code"]) == (503, 18)
