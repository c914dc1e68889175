"""Events in over HTTP, documents out of a real OpenSearch: all of them, each once, with their digits as sent.

OpenSearch runs behind a loopback proxy (tests/search/front.py) that loses, delays and spoils bulks and their answers.
What this does not prove: Elasticsearch itself, clusters of several nodes, an engine that loses power. OpenSearch comes
without its security plugin here: who may write is checked by the proxy.
"""

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import opensearchpy
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import Load, PATIENCE, exact, http, journal_ids, lake_ids, tally, toml, wait_until  # noqa: E402
from search import OpenSearch, why_no_opensearch  # noqa: E402
from search.front import Front  # noqa: E402

KILLS = int(os.environ.get("ELASTICSEARCH_KILLS", "8"))
# How often the engine itself is killed, and stopped.
TURNS = int(os.environ.get("ELASTICSEARCH_TURNS", "2"))
# How many answers or bulks are lost in a row; each waits longer than the one before.
LOST = 3


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """The engine that all tests here have one after the other; a start takes seconds."""
    if why_no_opensearch():
        pytest.skip(why_no_opensearch())
    engine = OpenSearch(tmp_path_factory.mktemp("opensearch")).start()
    yield engine
    engine.end()


@pytest.fixture
def opensearch(node):
    """The engine, running and empty."""
    if node.process.poll() is not None:
        node.start()
    for what in ("_data_stream/*", "*", "_index_template/*"):
        gone = http("DELETE", f"{node.url}/{what}?expand_wildcards=all" if what == "*" else f"{node.url}/{what}", timeout=PATIENCE)
        assert gone.status in (200, 404), gone
    yield node
    node.resume()


@pytest.fixture
def front(opensearch):
    proxy = Front(opensearch)
    yield proxy
    proxy.end()


class Reader:
    """What a user of OpenSearch sees, with OpenSearch's own client, past the proxy."""

    def __init__(self, engine):
        self.engine = engine
        self.client = opensearchpy.OpenSearch(engine.url, timeout=PATIENCE)

    def streams(self):
        return sorted(stream["name"] for stream in self.client.indices.get_data_stream(name="*")["data_streams"])

    def indices(self, stream):
        return len(self.client.indices.get_data_stream(name=stream)["data_streams"][0]["indices"])

    def raw(self, stream):
        """Every document as the engine's own bytes say it, by place in the log: numbers exact."""
        self.client.indices.refresh(index=stream)
        body = json.dumps({"size": 10_000, "query": {"match_all": {}}}).encode()
        answer = http("POST", f"{self.engine.url}/{stream}/_search", body, {"Content-Type": "application/json"}, timeout=PATIENCE)
        assert answer.status == 200, answer
        hits = exact(answer.body)["hits"]["hits"]
        assert len(hits) < 10_000
        return sorted((hit["_source"] for hit in hits), key=lambda one: (one["tidegate"]["partition"], one["tidegate"]["offset"]))

    def documents(self, stream):
        """(id, log id, partition, offset, event id) of every document, and how many there are."""
        self.client.indices.refresh(index=stream)
        found, after = [], None
        fields = ["tidegate.log_id", "tidegate.partition", "tidegate.offset", "event.id"]
        while True:
            body = {"size": 10_000, "sort": ["tidegate.offset", "_index"], "_source": False, "docvalue_fields": fields}
            page = self.client.search(index=stream, body=body | ({"search_after": after} if after else {}))["hits"]["hits"]
            found += [(hit["_id"], *(hit["fields"][field][0] for field in fields)) for hit in page]
            if len(page) < 10_000:
                return found
            after = page[-1]["sort"]

    def rollover(self, stream):
        """Goes on in a new index. It is refused where the stream changes at that moment (a new field, for instance)."""

        def done():
            try:
                return self.client.indices.rollover(alias=stream)["rolled_over"]
            except opensearchpy.TransportError as error:
                assert "Concurrent modification" in str(error), error

        wait_until(f"{stream} is rolled over", done)


@pytest.fixture
def reader(opensearch):
    return Reader(opensearch)


def sink(front, age="200ms", more=""):
    return f"""
[[sink]]
name = "search"
kind = "elasticsearch"
url = {toml(front.url)}
flush = {{ age = {toml(age)} }}
[sink.options]
{more}
"""


def sink_status(server):
    return next(sink for sink in server.status()["sinks"] if sink["name"] == "search")


def check_once(server, reader, expected, streams=None):
    """As many documents as places in the log as expected; what is in the lake is there and no more. The event ids."""
    found = [document for stream in streams or reader.streams() for document in reader.documents(stream)]
    places = {document[1:4] for document in found}
    assert len(found) == len(places) == expected, f"{len(found)} documents of {len(places)} places, {expected} expected"
    assert all(one == f"{log}-{partition}-{offset}" for one, log, partition, offset, _ in found)
    assert {document[1:] for document in found} == set(lake_ids(server))
    audit = server.audit()
    assert audit["balanced"] is True and audit["difference"] == 0, audit
    return {document[4] for document in found}


VIEW = {
    "type": "object",
    "x-version": 3,
    "properties": {
        "path": {"type": "string"},
        "took": {"type": "number", "x-unit": "s", "x-accept": {"took_ms": "ms"}},
        "clicks": {"type": "integer"},
        "first": {"type": "boolean"},
        "tags": {"type": "array"},
        "event": {"type": "string"},
        "at": {"type": "object"},
    },
}


def test_documents_are_as_sent_value_by_value(make_server, front, reader):
    """Scenario: two tenants, types with and without a schema, types that differ by capitals alone, odd values, dead letters.
    Guarantees: each type has its stream; every value is there, integers beyond 2^53 and decimals digit by digit."""
    server = make_server(schemas={"PageView": VIEW}, sink=sink(front)).start()
    keys = {name: server.add_tenant(name) for name in ("acme", "be-ta")}
    text = "/ä\"\\'\n\u0007\u2028😀"
    sent = [
        {"path": text, "took": 0.1, "clicks": 2**63 - 1, "first": True, "tags": ["a", "b"], "event": "mine", "at": {"x": {"y": 1}}},
        {"path": "", "took_ms": 1500, "clicks": -(2**63), "first": False, "rest": {"a": [1, "b", None]}},
        {"event_id": "mine'\"", "event_time": "2026-01-02T03:04:05.678901Z"},
    ]
    digits = b'{"event_type":"pageview","n":9007199254740993,"d":1.50,"big":123456789012345678901234567890,"tiny":1e-400,"x":[1,"a",{}]}'
    for key in keys.values():
        for value in sent:
            server.accept({"event_type": "PageView", **value}, key)
        server.accept(digits, key)
        server.accept([{"event_type": "Other-type", "n": n if n % 2 else {"n": n}, "text": "x" * n} for n in range(200)], key)
        assert server.send([{"event_type": "PageView", "clicks": "many", "n": 1}], key).json()["dead_lettered"] == 1
    server.settle()
    tenants = {"acme": "tidegate-acme", "be-ta": "tidegate-be-ta"}
    assert reader.streams() == sorted(
        f"{start}.{name}" for start in tenants.values() for name in ("~page~view", "pageview", "~other-type", "_dead_letters")
    )
    for tenant, start in tenants.items():
        views = reader.raw(f"{start}.~page~view")
        ours = [{key: value for key, value in view.items() if key not in ("@timestamp", "event", "tidegate")} for view in views]
        assert ours == [
            {"path": text, "took": exact("0.1"), "clicks": 2**63 - 1, "first": True, "tags": ["a", "b"], "field_event": "mine",
             "at": {"x": {"y": 1}}, "custom": {}},
            {"path": "", "took": exact("1.5"), "clicks": -(2**63), "first": False, "custom": {"rest": {"a": [1, "b", None]}}},
            {"custom": {}},
        ]  # fmt: skip
        assert views[2]["@timestamp"] == "2026-01-02T03:04:05.678901Z" and views[2]["event"] == {"id": "mine'\""}
        told = views[0]["tidegate"]
        assert (told["tenant"], told["event_type"], told["schema_version"]) == (tenant, "PageView", 3)
        custom = b'"custom":{"n":9007199254740993,"d":1.50,"big":123456789012345678901234567890,"tiny":1e-400,"x":[1,"a",{}]}'
        assert len(reader.raw(f"{start}.pageview")) == 1
        assert custom in http("GET", f"{front.url}/{start}.pageview/_search").body
        others = reader.raw(f"{start}.~other-type")
        assert [other["custom"] for other in others] == [
            {"n": n if n % 2 else {"n": n}, "text": "x" * n} for n in range(200)
        ]
        (dead,) = reader.raw(f"{start}._dead_letters")
        assert dead["dead_letter"]["reason"] == "type_mismatch" and dead["dead_letter"]["field"] == "/clicks", dead
        assert json.loads(dead["dead_letter"]["raw"]) == {"event_type": "PageView", "clicks": "many", "n": 1}
    # The template of ours makes typed fields searchable.
    assert reader.client.count(index="tidegate-acme.~page~view", body={"query": {"range": {"took": {"gt": 1}}}})["count"] == 1
    check_once(server, reader, 2 * 205)


@pytest.mark.parametrize(
    "what",
    ["drop_answer", "rollover_and_drop_answer", "drop_request", "bad_gateway", "proxy_page", "late_answer", "unsure", "some_in_trouble"],
)
def test_an_answer_that_never_comes_doubles_nothing(make_server, front, reader, what):
    """Scenario: bulks are applied and their answers lost, also with a rollover right behind, or never applied, or answered
    by something else, or said to be in trouble although they were applied.
    Guarantees: each document is there once."""
    server = make_server(sink=sink(front, more='timeout = "1s"')).start()
    key, sent = server.add_tenant(), 1
    server.accept({"event_type": "view", "n": -1}, key)
    server.settle()
    front.spoil(what, LOST, seconds=2)

    def all_came():
        nonlocal sent
        server.accept([{"event_type": "view", "n": sent + n} for n in range(100)], key)
        sent += 100
        return front.left == 0

    wait_until("the faults came", all_came, pause=0.3)
    server.accept([{"event_type": "view", "n": sent + n} for n in range(100)], key)
    sent += 100
    server.settle()
    check_once(server, reader, sent)
    ids = [one for bulk in front.bulks for one in bulk["ids"]]
    if what in ("drop_answer", "rollover_and_drop_answer", "bad_gateway", "unsure"):
        assert len(ids) == len(set(ids)), "the documents were there, and were sent again all the same"
    if what == "rollover_and_drop_answer":
        assert reader.indices("tidegate-acme.view") == LOST + 1
    if what in ("drop_request", "proxy_page"):
        assert len(ids) > len(set(ids)), "what never arrived was to be sent again"
    tally("e2e::elasticsearch", "partial network", ["P2", "P5"], LOST)


def test_a_bulk_that_is_applied_after_its_second_try_doubles_nothing(make_server, front, reader):
    """Scenario: a bulk lies somewhere on its way until its second try is done, and is applied then.
    Guarantees: the question finds nothing, and the ids alone keep the documents from being there twice."""
    server = make_server(sink=sink(front, more='timeout = "1s"')).start()
    key = server.add_tenant()
    server.accept({"event_type": "view", "n": -1}, key)
    server.settle()
    front.spoil("late_request", 1, seconds=6)
    server.accept([{"event_type": "view", "n": n} for n in range(100)], key)
    server.settle()
    assert [bulk["ended"] for bulk in front.bulks] == [True, False, True], "the second try was to be done before the first"
    wait_until("the first try is applied", lambda: all(bulk["ended"] for bulk in front.bulks))
    assert front.bulks[1]["ids"] == front.bulks[2]["ids"]
    check_once(server, reader, 101)
    tally("e2e::elasticsearch", "partial network", ["P2", "P5"], 1)


def test_only_documents_that_a_busy_server_refuses_are_sent_again(make_server, front, reader):
    """Scenario: of some bulks every third document is answered with 429, others are with all they have.
    Guarantees: those alone are sent again, and all are there once; nobody is held or quarantined."""
    server = make_server(sink=sink(front)).start()
    key = server.add_tenant()
    server.accept({"event_type": "view", "n": -1}, key)
    server.settle()
    before = len(front.bulks)
    front.spoil("some_busy", 2)
    server.accept([{"event_type": "view", "n": n} for n in range(90)], key)
    server.settle()
    sizes = [len(bulk["ids"]) for bulk in front.bulks[before:]]
    assert sizes == [90, 30, 10], sizes
    front.spoil("busy", 2)
    server.accept([{"event_type": "view", "n": n} for n in range(90)], key)
    server.settle()
    assert [len(bulk["ids"]) for bulk in front.bulks[before + 3 :]] == [90, 90, 90]
    line = next(t for t in server.audit()["tenants"] if t["event_type"] == "view")["sinks"]["search"]
    assert (line["stored"], line["quarantined"]) == (181, 0), line
    check_once(server, reader, 181)
    tally("e2e::elasticsearch", "slow sink", ["P2", "P5"], 4)


def test_a_bulk_that_is_too_large_is_halved_and_bulks_have_a_bound(make_server, front, reader):
    """Scenario: a proxy takes no bulk of more than 20 documents; then bulks of 64 KiB at most, compressed.
    Guarantees: all documents are there once; none but the bound's bulks are sent, as gzip."""
    server = make_server(sink=sink(front, more='bulk_bytes = "64KiB"\ncompression = "gzip"')).start()
    key = server.add_tenant()
    front.spoil("too_large", 1_000, documents=20)
    server.accept([{"event_type": "view", "n": n} for n in range(100)], key)
    server.settle()
    front.spoil("", 0)
    server.accept([{"event_type": "view", "text": "x" * 1_000} for _ in range(500)], key)
    server.settle()
    check_once(server, reader, 600)
    assert all(bulk["bytes"] <= 64 << 10 for bulk in front.bulks)
    assert all(bulk["headers"]["content-encoding"] == "gzip" for bulk in front.bulks)


def test_kills_among_bulks_and_rollovers_lose_nothing_and_double_nothing(make_server, front, reader):
    """Scenario: kill -9 of `ingestd` at moments spread over its load, answers of bulks lost besides, a rollover after
    every other kill.
    Guarantees: what was acknowledged is in OpenSearch, each offset once, the same as in the lake."""
    server = make_server(flush_age="50ms", sink=sink(front, age="50ms"))
    key, acknowledged, under_load, rollovers = None, set(), 0, 0
    for cycle in range(KILLS):
        server.start()
        key = key or server.add_tenant()
        bulks = len(front.bulks)
        if cycle % 3 == 0:
            front.spoil("rollover_and_drop_answer" if cycle % 6 else "drop_answer", 2)
        load = Load(server, key, cycle, rate=2000, batch=20, seconds=60)
        try:
            wait_until("bulks are sent", lambda: len(front.bulks) > bulks, timeout=60, pause=0.005)
            time.sleep((cycle * 37 % 100) / 400)
            server.kill()
        finally:
            load.stop()
        if cycle % 2:
            for stream in reader.streams():
                reader.rollover(stream)
                rollovers += 1
        seen = journal_ids(load.journal) if load.journal.exists() else set()
        acknowledged |= seen
        under_load += bool(seen)
    front.spoil("", 0)
    server.start()
    server.settle(timeout=180)
    given = server.offsets_given()
    ids = check_once(server, reader, given)
    print(f"{KILLS} kills, {under_load} under load, {rollovers} rollovers; {len(acknowledged)} acknowledged, {given} documents, {len(front.bulks)} bulks")
    assert under_load >= KILLS * 9 // 10 and rollovers
    assert not acknowledged - ids, f"{len(acknowledged - ids)} acknowledged events are missing"
    tally("e2e::elasticsearch", "kill -9", ["P1", "P2"], KILLS)


def test_an_engine_that_is_killed_or_stopped_among_bulks_has_each_document_once(make_server, opensearch, front, reader):
    """Scenario: under load the engine is killed and started again, and stopped for longer than a bulk may take, several
    times, with a rollover as soon as it goes on.
    Guarantees: every answer to clients stays 200, and each document is there once."""
    server = make_server(flush_age="50ms", sink=sink(front, age="50ms", more='timeout = "1s"')).start()
    key = server.add_tenant()
    load = Load(server, key, "engine", rate=1000, batch=20, seconds=300)
    try:
        wait_until("bulks are sent", lambda: len(front.bulks) > 3, timeout=60, pause=0.01)
        for cycle in range(TURNS):
            time.sleep(1 + cycle * 0.03)
            opensearch.kill()
            opensearch.start()
            time.sleep(1)
            opensearch.pause()
            time.sleep(2.5)
            opensearch.resume()
            for stream in reader.streams():
                reader.rollover(stream)
        before = server.offsets_given()
        wait_until("events keep coming", lambda: server.offsets_given() > before + 1000)
        report = load.enough()
    finally:
        load.stop()
    assert set(report["codes"]) == {"200"}, report
    server.settle(timeout=120)
    given = server.offsets_given()
    assert given == report["accepted"]
    check_once(server, reader, given)
    tally("e2e::elasticsearch", "sink down", ["P2", "P5"], TURNS)
    tally("e2e::elasticsearch", "process pause", ["P2", "P5"], TURNS)


def test_only_the_documents_that_the_engine_refuses_are_set_aside(make_server, opensearch, front, reader):
    """Scenario: an operator's own template has a strict field, which five of a thousand events violate; then `ingestd`
    is killed.
    Guarantees: those five are quarantined with the engine's words, all others are there once, the lane goes on."""
    mapping = {"dynamic": "false", "properties": {"custom": {"properties": {"n": {"type": "long"}}}}}
    own = {"index_patterns": ["tidegate-acme.order"], "data_stream": {}, "priority": 500, "template": {"mappings": {
        **mapping, "properties": mapping["properties"] | {
            "tidegate": {"properties": {"log_id": {"type": "keyword"}, "partition": {"type": "long"}, "offset": {"type": "long"}}},
            "event": {"properties": {"id": {"type": "keyword"}}},
        },
    }}}  # fmt: skip
    reader.client.indices.put_index_template(name="mine", body=own)
    server = make_server(sink=sink(front, more="create_template = false")).start()
    key = server.add_tenant()
    guilty = {3, 4, 500, 777, 999}
    server.accept([{"event_type": "order", "n": f"bad {n}" if n in guilty else n} for n in range(1000)], key)
    server.settle()
    line = next(t for t in server.audit()["tenants"] if t["event_type"] == "order")["sinks"]["search"]
    assert (line["stored"], line["quarantined"]) == (995, 5), line
    lines = (server.data / "sinks" / "search-quarantine.jsonl").read_text().splitlines()
    refused = [json.loads(line) for line in lines]
    assert {int(json.loads(event["raw"])["n"].split()[1]) for event in refused} == guilty
    assert all("failed to parse field [custom.n] of type [long]" in event["cause"] for event in refused), refused[0]
    server.kill()
    server.start()
    server.accept({"event_type": "order", "n": 5}, key)
    server.settle()
    found = reader.documents("tidegate-acme.order")
    assert len(found) == len({document[0] for document in found}) == 996
    assert sum(len(bulk["ids"]) for bulk in front.bulks) == 1001, "what was there was sent again"
    tally("e2e::elasticsearch", "poison event", ["P2", "P5"], 5)


def test_status_says_what_is_missing_and_the_lane_goes_on_once_it_is_there(make_server, front, reader):
    """Scenario: no template makes the name a data stream, and none is made; then an index of that name stands there; then
    one that answers before its translog is on disk; then all is well.
    Guarantees: nothing goes into an index that is no data stream, status says why each time; afterwards all is there once."""
    server = make_server(sink=sink(front, more="create_template = false")).start()
    key = server.add_tenant()
    server.accept([{"event_type": "view", "n": n} for n in range(10)], key)

    def told(*words):
        return any(all(word in lane["error"] for word in words) for lane in sink_status(server)["held"])

    wait_until("status says what it needs", lambda: told("tidegate-acme.view", "index template", "data_stream"))
    assert not reader.client.indices.exists(index="tidegate-acme.view")
    reader.client.indices.create(index="tidegate-acme.view")
    body = {"index_patterns": ["tidegate-*"], "data_stream": {}, "template": {
        "settings": {"index.translog.durability": "async"},
        "mappings": {"properties": {"tidegate": {"properties": {"log_id": {"type": "keyword"}}}, "event": {"properties": {"id": {"type": "keyword"}}}}},
    }}  # fmt: skip
    reader.client.indices.put_index_template(name="mine", body=body)
    wait_until("status says what stands there", lambda: told("tidegate-acme.view", "conflicts with index"))
    assert reader.client.count(index="tidegate-acme.view")["count"] == 0
    reader.client.indices.delete(index="tidegate-acme.view")
    wait_until("status says what is lax", lambda: told("index.translog.durability", "options.fsync"))
    assert reader.client.count(index="tidegate-acme.view")["count"] == 0
    reader.client.indices.put_settings(index="tidegate-acme.view", body={"index.translog.durability": "request"})
    server.settle()
    check_once(server, reader, 10)
    templates = [one["name"] for one in reader.client.indices.get_index_template()["index_templates"]]
    assert templates == ["mine"], templates


def test_an_index_that_takes_a_streams_place_is_told(make_server, front, reader):
    """Scenario: while the sink runs, its stream and its template are deleted, so that the server makes a plain index of
    that name; then both are mended.
    Guarantees: that is seen at the first document, and held; what went astray is in the stream afterwards, once."""
    server = make_server(sink=sink(front)).start()
    key = server.add_tenant()
    server.accept({"event_type": "view", "n": -1}, key)
    server.settle()
    template = reader.client.indices.get_index_template(name="tidegate")["index_templates"][0]["index_template"]
    reader.client.indices.delete_data_stream(name="tidegate-acme.view")
    reader.client.indices.delete_index_template(name="tidegate")
    server.accept([{"event_type": "view", "n": n} for n in range(10)], key)
    wait_until("status says so", lambda: any("no data stream" in lane["error"] for lane in sink_status(server)["held"]))
    reader.client.indices.put_index_template(name="tidegate", body=template)
    reader.client.indices.delete(index="tidegate-acme.view")
    server.settle()
    assert [one["custom"]["n"] for one in reader.raw("tidegate-acme.view")] == list(range(10))


def test_an_answer_without_end_is_not_read_to_its_end(make_server, front, reader):
    """Scenario: three bulks are answered with bytes that do not end.
    Guarantees: each is read up to its bound, the server stays as small as it was, and all is there once."""
    server = make_server(sink=sink(front, more='timeout = "20s"')).start()
    key = server.add_tenant()
    server.accept({"event_type": "view", "n": -1}, key)
    server.settle()
    before = server.resident_bytes()
    front.spoil("endless", 3)
    server.accept([{"event_type": "view", "n": n} for n in range(100)], key)
    server.settle()
    assert 3 * (32 << 20) <= front.endless_bytes <= 3 * (64 << 20), front.endless_bytes
    assert server.resident_bytes() - before < 96 << 20
    check_once(server, reader, 101)


def test_a_template_of_somebody_else_is_left_alone(make_server, front, reader):
    """Scenario: a template of the name that ours would have is there already.
    Guarantees: it is used as it is."""
    body = {"index_patterns": ["tidegate-*"], "data_stream": {}, "priority": 7}
    reader.client.indices.put_index_template(name="tidegate", body=body)
    server = make_server(sink=sink(front)).start()
    server.accept({"event_type": "view", "n": 1}, server.add_tenant())
    server.settle()
    (template,) = reader.client.indices.get_index_template()["index_templates"]
    assert template["index_template"]["priority"] == 7 and "template" not in template["index_template"], template
    assert reader.client.count(index="tidegate-acme.view")["count"] <= 1
    assert len(reader.raw("tidegate-acme.view")) == 1


def test_a_cursor_that_is_set_back_doubles_nothing_and_fills_holes(make_server, front, reader):
    """Scenario: documents came in many small bulks, into two indices; the sink's state is deleted, and some documents are;
    what is read again is cut into other windows.
    Guarantees: no document is there twice, and those that were deleted are back; nothing else was sent."""
    server = make_server(sink=sink(front, age="50ms")).start()
    key = server.add_tenant()
    for batch in range(12):
        server.accept([{"event_type": "view", "n": batch * 50 + n} for n in range(50)], key)
        if batch == 6:
            server.settle()
            reader.rollover("tidegate-acme.view")
        time.sleep(0.1)
    server.settle()
    check_once(server, reader, 600)
    assert server.stop() == 0
    (server.data / "sinks" / "search-0.json").unlink()
    gone = {"query": {"terms": {"tidegate.offset": [7, 300, 301, 599]}}}
    gone = reader.client.search(index="tidegate-acme.view", body=gone)["hits"]["hits"]
    assert len({hit["_index"] for hit in gone}) == 2
    for hit in gone:
        reader.client.delete(index=hit["_index"], id=hit["_id"], refresh=True)
    before = len(front.bulks)
    server.write_config(sink=sink(front).replace('age = "200ms"', 'age = "200ms", rows = 130'))
    server.start()
    server.settle()
    check_once(server, reader, 600)
    assert sum(len(bulk["ids"]) for bulk in front.bulks[before:]) == 4
    assert reader.indices("tidegate-acme.view") == 2


def test_a_document_that_is_there_twice_holds_its_lane(make_server, front, reader):
    """Scenario: somebody else wrote one of the ids a second time, beside a rollover; the lane's state is deleted.
    Guarantees: the lane is held with both places in its words, and goes on once one is deleted."""
    server = make_server(sink=sink(front)).start()
    key = server.add_tenant()
    server.accept([{"event_type": "view", "n": n} for n in range(5)], key)
    server.settle()
    one = reader.documents("tidegate-acme.view")[2][0]
    source = reader.raw("tidegate-acme.view")[2]
    reader.rollover("tidegate-acme.view")
    written = reader.client.index(index="tidegate-acme.view", id=one, body=json.loads(json.dumps(source)), op_type="create")
    assert server.stop() == 0
    (server.data / "sinks" / "search-0.json").unlink()
    server.start()
    wait_until("status says which", lambda: any(one in lane["error"] and "twice" in lane["error"] for lane in sink_status(server)["held"]))
    reader.client.delete(index=written["_index"], id=one, refresh=True)
    server.settle()
    check_once(server, reader, 5)


def test_each_way_to_log_in_is_sent_and_a_wrong_one_is_told(make_server, opensearch, reader, tmp_path):
    """Scenario: TLS with a certificate of its own and each way to log in; first a wrong secret, and a certificate that is not
    trusted.
    Guarantees: the sink waits with the server's words and loses nothing; other headers are sent too."""
    pem, ca = certificate(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("s3 cret\n")
    basic = "Basic " + base64.b64encode(b"me:s3 cret").decode()
    ways = [
        (f'user = "me"\npassword = "file:{secret}"', basic),
        (f'api_key = "file:{secret}"', "ApiKey s3 cret"),
        ('bearer = "env:SEARCH_TOKEN"', "Bearer s3 cret"),
    ]
    server = make_server(edge='[edge.timeouts]\ndrain = "1s"')
    server.environment["SEARCH_TOKEN"] = "s3 cret"
    key = None
    proxies = []
    try:
        for number, (way, header) in enumerate(ways):
            front = Front(opensearch, pem=pem, authorization=header)
            proxies.append(front)
            for more, why in [('bearer = "wrong"', "certificate"), (f'bearer = "wrong"\nca = {toml(ca)}', "missing authentication")]:
                server.write_config(sink=sink(front, more=more))
                server.start()
                key = key or server.add_tenant()
                if more == 'bearer = "wrong"':
                    server.accept([{"event_type": "view", "n": n} for n in range(10)], key)
                wait_until("status says why", lambda: why in json.dumps(sink_status(server)))  # noqa: B023
                assert server.stop() == 0
            server.write_config(sink=sink(front, more=f'{way}\nca = {toml(ca)}\nheaders = {{ "X-Cluster" = "one" }}'))
            server.start()
            server.settle()
            assert front.bulks[-1]["headers"]["x-cluster"] == "one"
            check_once(server, reader, 10 * (number + 1))
            assert server.stop() == 0
        assert "s3 cret" not in server.logs()
    finally:
        for front in proxies:
            front.end()


def certificate(folder):
    """A certificate for 127.0.0.1 with its key behind it, and without."""
    key, pem, ca = folder / "key.pem", folder / "server.pem", folder / "ca.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=engine", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
         "-keyout", key, "-out", pem],
        check=True, capture_output=True,
    )  # fmt: skip
    ca.write_bytes(pem.read_bytes())
    pem.write_bytes(pem.read_bytes() + key.read_bytes())
    return str(pem), ca
