"""Elasticsearch's clients through everything that `test_protocols` puts its clients through, and what they ask besides."""

import gzip
import json

import elastic_clients as clients
import pytest
from elasticsearch import ApiError, ConflictError, Elasticsearch, helpers
from harness import exact, http, lake_ids, tally
from protocol_clients import DATA
from protocol_front import Front
from test_protocols import Client, Rig, check, own, some_names
from tracker_clients import JS_DATA

PYTHON, JAVASCRIPT = clients.INDEX, "logs-js"


def message(row):
    return exact(own(row)["message"])


CLIENTS = [
    Client("elasticsearch-py-streaming", clients.streaming, PYTHON, own),
    Client("elasticsearch-py-bulk", clients.bulk, PYTHON, own),
    Client("elasticsearch-py-parallel", clients.parallel, PYTHON, own),
    Client("elasticsearch-py-async", clients.asynchronous, PYTHON, own),
    Client("elasticsearch-js", clients.javascript, JAVASCRIPT, own),
    Client("elasticsearch-js-helper", clients.javascript_helper, JAVASCRIPT, own),
    Client("rsyslog", clients.rsyslog, "logs-rsyslog", message),
]
# They tell of a refusal and try no document again.
ONCE = {"elasticsearch-py-parallel", "elasticsearch-js"}
each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    rig = Rig(tmp_path_factory.mktemp("elasticsearch"), CLIENTS)
    yield rig
    rig.end()


@pytest.fixture
def client(rig):
    with Elasticsearch(rig.server.url, api_key=rig.key) as client:
        yield client


@each_client
def test_what_a_client_sends_is_in_the_lake_value_by_value(rig, client):
    names = some_names(3)
    assert client.send(rig.server.url, rig.key, names) == set(names)
    data = JS_DATA if client.event_type == JAVASCRIPT else DATA
    for name, rows in rig.rows(client, names).items():
        [(row, event)] = rows
        assert event == exact(json.dumps({**data, "name": name})), "it is not what was sent"
        assert client.name == "rsyslog" or row["event_id"] == name
        if client.name == "rsyslog":
            assert own(row)["host"] == "web-1"
            assert row["event_time"].isoformat().startswith("2026-03-01T12:00:00.123456")


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
    statuses = {status for _, status in front.seen}
    assert 413 in statuses and statuses <= {413, 200}, front.seen
    assert len([status for _, status in front.seen if status == 413]) <= 2 or client.name == "rsyslog", front.seen


@each_client
def test_over_its_quota_a_client_waits_and_loses_nothing_it_was_told_is_safe(rig, client):
    key, names = rig.slow_keys[client.name], some_names(7)
    told = set()
    front = rig.front()
    for part in (names[:3], names[3:5], names[5:]):
        told |= client.send(front.url, key, part)
    times = check(rig, client, told, names, tenant=f"slow-{client.name}")
    assert client.name == "rsyslog" or set(times.values()) <= {0, 1}, times
    if client.name not in ONCE:
        assert told == set(names), f"{client.name} gave up on {set(names) - told}: {front.seen}"


@each_client
@pytest.mark.parametrize("fault", ["busy", "lost request", "lost answer"])
def test_a_server_that_is_busy_or_lost_costs_nothing_that_was_told_is_safe(rig, client, fault):
    names = some_names()
    front = rig.front(fault)
    told = client.send(front.url, rig.key, names)
    assert fault in [done for done, _ in front.seen], front.seen
    times = check(rig, client, told, names)
    if fault == "busy" and client.name in ONCE:
        assert told == set() and set(times.values()) == {0}, "what is refused for now is neither there nor told to be"
        return
    assert told == set(names), f"{client.name} gave up: {front.seen}"
    assert set(times.values()) == {1}, (times, front.seen)
    tally("e2e::protocols", "client duplicates" if fault == "lost answer" else "partial network", ["P1"], 1)


def test_each_item_that_is_refused_for_now_is_sent_again_until_it_is_there(rig):
    """The helpers wait for single documents, not for the body, where the body was read."""
    name = "slow-items"
    key = rig.server.ctl("tenant", "add", name, "--events-per-second", 2, "--events-burst", 2)["key"]
    names = some_names(2) + some_names(2)
    with Elasticsearch(rig.server.url, api_key=key) as client:
        first = client.bulk(operations=lines(names[:2]))
        second = client.bulk(operations=lines(names[2:]))
    assert first["errors"] is False and second["errors"] is True
    statuses = [item["create"]["status"] for item in second["items"]]
    assert statuses == [429, 429]
    assert {item["create"]["error"]["type"] for item in second["items"]} == {"es_rejected_execution_exception"}


def lines(names, index=PYTHON, op="create"):
    return [part for name in names for part in ({op: {"_index": index, "_id": name}}, {"name": name})]


def test_what_is_created_twice_is_a_conflict_and_what_is_indexed_twice_is_there_once(rig, client):
    [name] = some_names(1)
    assert client.create(index=PYTHON, id=name, document={"name": name})["result"] == "created"
    with pytest.raises(ConflictError) as error:
        client.create(index=PYTHON, id=name, document={"name": name})
    assert error.value.error == "version_conflict_engine_exception"
    assert client.index(index=PYTHON, id=name, document={"name": "other"})["result"] == "noop"
    answer = client.bulk(operations=lines([name]) + lines([name], op="index"))
    assert [(op, item["status"]) for each in answer["items"] for op, item in each.items()] == [("create", 409), ("index", 200)]
    made = client.index(index=PYTHON, document={"name": name})
    found = rig.rows(CLIENTS[0], [name])[name]
    assert sorted(row["event_id"] for row, _ in found) == sorted([name, made["_id"]]), "the id told is not the event's"


def test_helpers_tell_errors_of_single_documents_and_go_on(rig, client):
    [good, also] = some_names(2)
    actions = [
        {"_index": PYTHON, "_id": good, "name": good},
        {"_index": PYTHON, "_op_type": "update", "_id": good, "doc": {"name": "changed"}},
        {"_index": PYTHON, "_op_type": "delete", "_id": good},
        {"_index": PYTHON, "_id": also, "name": also},
    ]
    count, errors = helpers.bulk(client, actions, raise_on_error=False)
    assert (count, [(op, item["status"]) for error in errors for op, item in error.items()]) == (2, [("update", 400), ("delete", 400)])
    with pytest.raises(helpers.BulkIndexError) as raised:
        helpers.bulk(client, actions[1:3])
    assert len(raised.value.errors) == 2
    assert helpers.bulk(client, [], stats_only=True) == (0, 0)
    chunks = list(helpers.streaming_bulk(client, actions[:1] + actions[3:], chunk_size=1))
    assert [(ok, item["index"]["result"]) for ok, item in chunks] == [(True, "noop"), (True, "noop")]
    # A document of its own serializer is a text already.
    text = f'{{"name":"{good}","exact":1.50,"large":123456789012345678901234567890}}'
    answer = client.bulk(operations=['{"create":{"_index":"logs-raw"}}', text])
    assert answer["items"][0]["create"]["status"] == 201
    rig.server.settle()
    [row] = rig.server.rows("logs-raw")
    assert row["custom"] == text, "values are not byte for byte what was sent"


def test_a_dead_letter_is_durable_and_says_so(rig, client):
    [name] = some_names(1)
    answer = client.bulk(operations=[{"create": {"_index": PYTHON, "_id": name}}, {"name": name, "@timestamp": "soon"}])
    assert answer["errors"] is False
    item = answer["items"][0]["create"]
    assert (item["status"], item["failure_store"]) == (201, "used")
    rig.server.settle()
    assert name in {event_id for *_, event_id in lake_ids(rig.server)}


def test_times_of_all_forms_come_out_and_nanoseconds_stay_in_the_event(rig, client):
    forms = {
        "2026-03-01T12:00:00.123456789Z": "12:00:00.123456",
        "2026-03-01T13:00:00+0100": "12:00:00",
        "2026-03-01T12:00": "12:00:00",
        1772366400250: "12:00:00.250000",
        "1772366400250": "12:00:00.250000",
        "2026-03-01": "00:00:00",
    }
    names = some_names(len(forms))
    operations = []
    for name, sent in zip(names, forms):
        operations += [{"create": {"_index": PYTHON, "_id": name}}, {"name": name, "@timestamp": sent}]
    assert client.bulk(operations=operations)["errors"] is False
    found = rig.rows(CLIENTS[0], names)
    for name, (sent, expected) in zip(names, forms.items()):
        [(row, event)] = found[name]
        assert row["event_time"].time().isoformat() == expected and event["@timestamp"] == sent


def test_a_shipper_that_sets_up_its_templates_first_comes_to_send(rig):
    """The requests of Filebeat, in its order: who is there, license, policy, template, pipeline, data stream, then documents."""
    headers = {
        "Authorization": f"ApiKey {rig.key}", "Accept": "application/json", "Content-Type": "application/json",
        "X-Elastic-Product-Origin": "beats", "User-Agent": "Elastic-filebeat/9.2.0",
    }  # fmt: skip

    def ask(method, path, body=None, **more):
        return http(method, rig.server.url + path, body, {**headers, **more})

    assert ask("GET", "/").json()["version"]["number"] == "9.2.0"
    assert ask("GET", "/_license?human=false").json()["license"]["status"] == "active"
    for path in ("/_ilm/policy/filebeat", "/_index_template/filebeat-9.2.0", "/_ingest/pipeline/filebeat-9.2.0-nginx", "/_data_stream/filebeat-9.2.0"):
        assert ask("GET", path).status == 200, path
        if path.startswith("/_i"):
            # As with `setup.template.overwrite`.
            assert ask("PUT", path, b"{" + b" " * 300_000 + b"}").json() == {"acknowledged": True}, path
    names = some_names()
    actions = "".join(
        json.dumps({"create": {"_index": "filebeat-9.2.0"}}) + "\n"
        + json.dumps({"@timestamp": "2026-03-01T12:00:00.000Z", "message": name, "agent": {"type": "filebeat"}}) + "\n"
        for name in names
    )  # fmt: skip
    wanted = "/_bulk?filter_path=errors%2Citems.%2A.error%2Citems.%2A.status"
    more = {"Content-Encoding": "gzip", "Content-Type": "application/json; charset=UTF-8"}
    answer = ask("POST", wanted, gzip.compress(actions.encode()), **more)
    assert answer.json() == {"errors": False, "items": [{"create": {"status": 201}}] * 2}
    # Its events of one module go to a pipeline, and Logstash's to an index of the path.
    assert ask("PUT", "/filebeat-9.2.0/_bulk?pipeline=nginx", b'{"create":{}}\n{"message":"x"}\n').status == 200
    rig.server.settle()
    assert rig.server.count("filebeat-9.2.0") == 3


def test_every_answer_says_the_product_and_errors_are_read_by_the_client(rig):
    with Elasticsearch(rig.server.url, api_key=rig.key) as client:
        assert client.ping() and client.info()["tagline"] == "You Know, for Search"
        with pytest.raises(ApiError) as error:
            client.bulk(operations=['{"index":{}}', "{}"])
        assert (error.value.status_code, error.value.error) == (400, "illegal_argument_exception")
    with Elasticsearch(rig.server.url, api_key="none") as client, pytest.raises(ApiError) as error:
        client.bulk(operations=lines(["x"]))
    assert (error.value.status_code, error.value.error) == (401, "security_exception")
