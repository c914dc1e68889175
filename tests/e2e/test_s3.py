"""The lake on S3: real servers of S3 (moto's and S3Proxy) on loopback, with every fault a network has between.

What this does not prove: what Amazon's own S3 does beyond its documentation; TLS to the store.
"""

import http.server
import io
import json
import os
import random
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import Load, journal_ids, tally, toml, wait_until  # noqa: E402
from overload.s3 import REGION, S3, moto, s3proxy, why_no_s3proxy  # noqa: E402

KILLS = int(os.environ.get("S3_KILLS", "12"))
# How long files are joined while somebody reads.
SECONDS = float(os.environ.get("JOINS_SECONDS", "12"))
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION}


@pytest.fixture
def make_s3(tmp_path):
    """Starts S3 servers; all are gone when the test ends."""
    made = []

    def make(engine=moto, bucket="lake"):
        if engine is s3proxy and why_no_s3proxy():
            pytest.skip(why_no_s3proxy())
        folder = tmp_path / f"s3-{len(made)}"
        folder.mkdir()
        made.append(S3(folder, bucket, engine))
        return made[-1]

    yield make
    for s3 in made:
        s3.end()


def lake_on(make_server, s3, environment=KEYS, store=(), flush_age="200ms", **settings):
    """A server whose lake is on `s3`: credentials from the environment, as an operator gives them."""
    options = "".join(f"{key} = {toml(value)}\n" for key, value in {"aws_allow_http": "true", **dict(store)}.items())
    server = make_server(sink=f"[sink.options.store]\n{options}", flush_age=flush_age, **settings)
    server.lake = f"s3://{s3.bucket}/lake"
    server.write_config()
    server.environment = {"AWS_ENDPOINT": s3.url, **environment}
    return server


def files_of(s3):
    """{name: table} of the lake's files."""
    names = {name: data for name, data in s3.objects("lake/").items() if not name.startswith("lake/staging/")}
    assert all(name.endswith(".parquet") for name in names), sorted(names)
    return {name: pyarrow.parquet.read_table(io.BytesIO(data), partitioning=None) for name, data in names.items()}


def rows_of(s3):
    return [row for table in files_of(s3).values() for row in table.to_pylist()]


def check_once(s3, acknowledged):
    """Every acknowledged id is in the bucket, and no offset is there twice."""
    assert acknowledged, "nothing was acknowledged"
    rows = rows_of(s3)
    places = [(row["log_id"], row["log_partition"], row["log_offset"]) for row in rows]
    assert len(set(places)) == len(places), f"{len(places) - len(set(places))} offsets are there twice"
    missing = acknowledged - {row["event_id"] for row in rows}
    assert not missing, f"{len(missing)} of {len(acknowledged)} acknowledged events are missing"
    return rows


def is_put_of_a_file(request):
    return request.method == "PUT" and request.path.endswith(".parquet")


def sink_of(server):
    return server.status()["sinks"][0]


def error_of(server, *words):
    """What `status` says of the sink, or of a lane that waits alone, once that has these words."""

    def said():
        sink = sink_of(server)
        errors = [part["error"] for part in sink["partitions"] if part["state"] == "waiting"]
        errors += [lane["error"] for lane in sink["held"]]
        return next((error for error in errors if all(word in error for word in words)), None)

    return wait_until(f"status says {' and '.join(words)}", said)


def events(count, event_type="page_view", first=0, size=50):
    text = random.Random(first).randbytes(size // 2).hex()
    return [
        {"event_type": event_type, "event_id": f"{event_type}-{first + i}", "n": first + i, "text": f"{text} ü {i}"}
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("engine", [moto, s3proxy], ids=lambda engine: engine.__name__)
def test_the_bucket_has_what_was_accepted_once_and_value_by_value(make_server, make_s3, engine):
    """Scenario: two tenants, three types, one window of 12 MB; the files are read back by pyarrow, value by value.
    Guarantees: each event once; every file one create-only PUT, also the large one; a name that is taken is kept."""
    s3 = make_s3(engine)
    server = lake_on(make_server, s3).start()
    keys = {tenant: server.add_tenant(tenant) for tenant in ("acme", "beta")}
    sent = {}
    for tenant, key in keys.items():
        for event_type in ("page_view", "order"):
            batch = events(300, event_type)
            server.accept(batch, key)
            sent.update({(tenant, event_type, event["event_id"]): event for event in batch})
    large = [{**event, "text": random.Random(event["n"]).randbytes(200_000).hex()} for event in events(30, "large")]
    server.accept(large, keys["acme"])
    sent.update({("acme", "large", event["event_id"]): event for event in large})
    server.settle()

    found = {}
    for name, table in files_of(s3).items():
        parts = dict(part.split("=", 1) for part in name.split("/") if "=" in part)
        for row in table.to_pylist():
            place = (parts["tenant"], parts["event_type"], row["event_id"])
            assert place not in found, f"{place} is there twice"
            found[place] = {"event_type": parts["event_type"], "event_id": row["event_id"], **json.loads(row["custom"])}
    assert found == sent
    puts = [request for request in s3.requests if is_put_of_a_file(request)]
    assert all(put.create_only and put.status == 200 for put in puts), puts
    assert len({put.path for put in puts}) == len(puts), "no name was put twice"
    assert max(put.bytes for put in puts) > 5 << 20, "one is larger than what clients send in parts"
    assert not [r.path for r in s3.requests if "uploads" in r.path or "uploadId" in r.path], "nothing goes in parts"
    assert server.audit()["balanced"] is True, "the audit reads the same bucket"
    if engine is moto:
        options = dict(access_key="test", secret_key="test", region=REGION, scheme="http")
        files = pyarrow.fs.S3FileSystem(endpoint_override=f"127.0.0.1:{s3.port}", **options)
        folder = f"{s3.bucket}/lake/events/tenant=acme/event_type=order"
        table = pyarrow.dataset.dataset(folder, filesystem=files, partitioning="hive").to_table()
        assert sorted(table["event_id"].to_pylist()) == sorted(f"order-{n}" for n in range(300))


@pytest.mark.parametrize("engine", [moto, s3proxy], ids=lambda engine: engine.__name__)
def test_a_name_that_is_taken_by_something_else_is_an_alarm_and_is_kept(make_server, make_s3, engine):
    """Scenario: where the sink's first file must go, and in the hours around, lies somebody else's object.
    Guarantees: the store's 412 holds that lane and says why; the object is not touched; other lanes go on."""
    s3 = make_s3(engine)
    server = lake_on(make_server, s3).start()
    key, log_id = server.add_tenant(), server.status()["log_id"]
    now, foreign = datetime.now(timezone.utc), {}
    for hour in range(-1, 2):
        folder = (now + timedelta(hours=hour)).strftime("date=%Y-%m-%d/hour=%H")
        name = f"lake/events/tenant=acme/event_type=page_view/{folder}/{log_id}-0-0-2.parquet"
        s3.client().put_object(Bucket=s3.bucket, Key=name, Body=b"not yours")
        foreign[name] = b"not yours"
    server.accept(events(3), key)
    held = wait_until("the lane is held", lambda: sink_of(server)["held"])
    assert "it was not touched" in held[0]["error"] and held[0]["event_type"] == "page_view", held
    server.accept(events(3, "order"), key)
    orders = "lake/events/tenant=acme/event_type=order/"
    wait_until("the other lane is written", lambda: s3.objects(orders))
    assert {name: data for name, data in s3.objects().items() if name in foreign} == foreign
    assert any(is_put_of_a_file(r) and r.status == 412 for r in s3.requests), "the store itself refused"


def test_kills_during_puts_lose_nothing_and_double_nothing(make_server, make_s3):
    """Scenario: kill -9 while a file is on its way to the bucket, in turn: before the store has it (the request of
    the dead goes on), after it was applied and before the answer, and at random moments; many times under load.
    Guarantees: each acknowledged id is in the bucket, each offset once; the books balance."""
    s3 = make_s3()
    server = lake_on(make_server, s3, flush_age="50ms")
    acknowledged, key, hits = set(), None, {"before": 0, "applied": 0, "random": 0}
    for cycle in range(KILLS):
        how = ("before", "applied", "random")[cycle % 3]
        server.start()
        key = key or server.add_tenant()
        load = Load(server, key, cycle, rate=1000, batch=20, seconds=60)
        skip, struck = cycle % 4, threading.Event()

        def strike(request, how=how, struck=struck, left=[skip]):
            moment = "applied" if request.status else "before"
            if not is_put_of_a_file(request) or moment != how or struck.is_set():
                return None
            left[0] -= 1
            if left[0] < 0:
                server.process.kill()
                struck.set()
                return "drop" if request.status else None
            return None

        seen = len(s3.requests)
        try:
            if how == "random":
                wait_until("files are put", lambda: any(map(is_put_of_a_file, s3.requests[seen:])))
                time.sleep((cycle * 37 % 100) / 100)
            else:
                s3.fault = strike
                wait_until(f"a kill {how}", struck.is_set)
            server.kill()
            hits[how] += 1
        finally:
            s3.fault = None
            load.stop()
        if load.journal.exists():
            acknowledged |= journal_ids(load.journal)
    server.start()
    server.settle()
    rows = check_once(s3, acknowledged)
    again = sum(is_put_of_a_file(request) and request.status == 412 for request in s3.requests)
    print(f"{KILLS} kills ({hits}), {len(acknowledged)} acknowledged, {len(rows)} rows; {again} puts found their own file")
    assert again > 0, "no kill fell between a put and its cursor"
    assert server.audit()["balanced"] is True
    assert server.stop() == 0
    tally("e2e::s3", "kill -9", ["P1", "P2", "P5"], KILLS)


@pytest.mark.parametrize("how", ["drop", "503"])
def test_an_answer_lost_after_the_put_leaves_one_file(make_server, make_s3, how):
    """Scenario: the store applies each file's first PUT, and its answer is lost: the connection ends, or a 503 comes.
    Guarantees: the second try finds the file and goes on; the same bytes, no double."""
    s3, lost = make_s3(), {}

    def lose(request):
        if is_put_of_a_file(request) and request.status == 200 and request.path not in lost:
            lost[request.path] = request.bytes
            return how
        return None

    s3.fault = lose
    server = lake_on(make_server, s3).start()
    key, ids = server.add_tenant(), set()
    for first in range(0, 500, 100):
        batch = events(100, first=first)
        server.accept(batch, key)
        ids |= {event["event_id"] for event in batch}
        time.sleep(0.3)
    server.settle()
    assert len(check_once(s3, ids)) == 500
    assert lost, "no answer was lost"
    for path, size in lost.items():
        statuses = [r.status for r in s3.requests if r.method == "PUT" and r.path == path]
        assert statuses == [200, 412], f"{path}: {statuses}"
        assert len(s3.objects()[path.removeprefix(f"/{s3.bucket}/")]) == size
    assert server.audit()["balanced"] is True
    tally("e2e::s3", "partial network", ["P1", "P2"], len(lost))


def test_a_409_for_another_request_under_way_is_tried_again(make_server, make_s3):
    """Scenario: the store says 409 to each file's first PUT, as Amazon's does while another request for that name is
    under way, and nothing is there.
    Guarantees: it is no success and no alarm; the second try puts the file."""
    s3, refused = make_s3(), set()

    def conflict(request):
        if is_put_of_a_file(request) and not request.status and request.path not in refused:
            refused.add(request.path)
            return "409"
        return None

    s3.fault = conflict
    server = lake_on(make_server, s3).start()
    batch = events(50)
    server.accept(batch, server.add_tenant())
    server.settle()
    assert len(check_once(s3, {event["event_id"] for event in batch})) == 50
    assert refused and server.audit()["balanced"] is True


def test_a_bucket_that_is_away_is_waited_for_and_told_in_few_words(make_server, make_s3):
    """Scenario: 503 to everything for 3 s, then refused connections for 3 s, while load goes on.
    Guarantees: every answer to clients stays 200; `status` says that the sink waits; it catches up by itself; the
    server's log has lines of the sink and none of each retry inside the client."""
    s3 = make_s3()
    server = lake_on(make_server, s3).start()
    key = server.add_tenant()
    load = Load(server, key, "away", rate=500, batch=20, seconds=300)
    try:
        wait_until("files are put", lambda: any(map(is_put_of_a_file, s3.requests)))
        s3.fail()
        error_of(server, "SlowDown")
        time.sleep(3)
        s3.mend()
        put = len(s3.put_at)
        wait_until("it writes again", lambda: len(s3.put_at) > put)
        s3.away()
        error_of(server, "the store cannot be reached")
        time.sleep(3)
        s3.back()
        put = len(s3.put_at)
        wait_until("it writes again", lambda: len(s3.put_at) > put)
        report = load.enough()
    finally:
        load.stop()
    assert set(report["codes"]) == {"200"}, report["codes"]
    server.settle()
    check_once(s3, journal_ids(load.journal))
    assert server.audit("--journal", load.journal)["balanced"] is True
    lines = [json.loads(line) for line in server.logs().splitlines()]
    assert [line for line in lines if "the sink waits" in line["fields"]["message"]], "the operator is told"
    assert not [line for line in lines if line["target"].startswith("object_store")], "and not of each retry"
    tally("e2e::s3", "sink down", ["P2", "P4", "P5"], 2)


def test_a_bucket_that_does_not_exist_is_said_and_waited_for(make_server, make_s3):
    s3 = make_s3(bucket="")
    s3.bucket = "later"
    server = lake_on(make_server, s3).start()
    batch = events(10)
    server.accept(batch, server.add_tenant())
    error = error_of(server, "there is no such bucket: make it, or mend the sink's url", "s3://later/lake")
    assert "<" not in error, f"no XML for people: {error}"
    s3.make_bucket()
    server.settle()
    check_once(s3, {event["event_id"] for event in batch})


@pytest.mark.parametrize(
    "environment, words",
    [
        ({**KEYS, "AWS_SECRET_ACCESS_KEY": "mistyped"}, "does not know these credentials: mend AWS_ACCESS_KEY_ID"),
        ({**KEYS, "AWS_ACCESS_KEY_ID": "nobody"}, "does not know these credentials: mend AWS_ACCESS_KEY_ID"),
        ({"AWS_METADATA_ENDPOINT": "http://127.0.0.1:9"}, "there are no credentials, and no instance or task gives any"),
    ],
    ids=["wrong secret", "unknown key", "none"],
)
def test_wrong_credentials_are_said_with_the_way_out(make_server, make_s3, environment, words):
    """Scenario: a store that checks signatures; the credentials are wrong; then they are mended and it is restarted.
    Guarantees: clients are answered meanwhile, `status` says what to mend, and nothing is missing afterwards."""
    s3 = make_s3(s3proxy)
    server = lake_on(make_server, s3, environment).start()
    batch = events(10)
    server.accept(batch, server.add_tenant())
    error = error_of(server, words)
    assert "mistyped" not in error, f"no secret in it: {error}"
    server.kill()
    server.environment = {"AWS_ENDPOINT": s3.url, **KEYS}
    server.start()
    server.settle()
    check_once(s3, {event["event_id"] for event in batch})


def test_plain_http_must_be_allowed_by_name(make_server, make_s3):
    s3 = make_s3()
    server = lake_on(make_server, s3, store={"aws_allow_http": "false"}).start()
    server.accept(events(1), server.add_tenant())
    error_of(server, "the endpoint is plain HTTP", "options.store.aws_allow_http")


def test_a_store_that_does_not_answer_in_time_is_said_and_waited_for(make_server, make_s3):
    s3 = make_s3()
    s3.hangs = True
    s3.fail()
    server = lake_on(make_server, s3, store={"timeout": "1s"}).start()
    batch = events(10)
    server.accept(batch, server.add_tenant())
    error_of(server, "the store took longer than options.store.timeout")
    s3.mend()
    server.settle()
    assert len(check_once(s3, {event["event_id"] for event in batch})) == 10
    tally("e2e::s3", "slow sink", ["P2", "P4"], 1)


def test_credentials_of_a_container_are_fetched(make_server, make_s3, tmp_path):
    """Scenario: no key in the environment, but the address and the token file that EKS and ECS give a container.
    Guarantees: the sink asks there, with the token, and writes."""
    s3, asked = make_s3(), []

    class Agent(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Authorization"))
            ends = (datetime.now(timezone.utc) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
            body = json.dumps({"AccessKeyId": "ASIAFETCHED", "SecretAccessKey": "s", "Token": "t", "Expiration": ends}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    agent = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Agent)
    threading.Thread(target=agent.serve_forever, daemon=True).start()
    try:
        token = tmp_path / "token"
        token.write_text("let me in")
        environment = {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{agent.server_address[1]}/keys",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token), "AWS_REGION": REGION,
        }  # fmt: skip
        server = lake_on(make_server, s3, environment).start()
        batch = events(10)
        server.accept(batch, server.add_tenant())
        server.settle()
        check_once(s3, {event["event_id"] for event in batch})
        assert asked and set(asked) == {"let me in"}, asked
        named = {request.authorization.split("Credential=")[-1].split("/")[0] for request in s3.requests}
        assert named == {"ASIAFETCHED"}, named
    finally:
        agent.shutdown()
        agent.server_close()


def test_a_store_that_puts_over_what_is_there_is_refused_unless_named(make_server, make_s3):
    """Scenario: a store that ignores `If-None-Match` (the proxy takes it away); then the operator opts down by name,
    and an answer is lost after the put.
    Guarantees: before, nothing is written and `status` says why; after, each event is there once: the client's own
    second try puts the same bytes again, and nobody else puts anything there."""
    s3, lost = make_s3(), []
    s3.fault = lambda request: "overwrite" if not request.status else None
    server = lake_on(make_server, s3).start()
    batch = events(10)
    server.accept(batch, server.add_tenant())
    error_of(server, "ignores If-None-Match", 'store = { aws_conditional_put = "disabled" }')
    assert files_of(s3) == {}
    server.kill()

    def lose(request):
        if is_put_of_a_file(request) and request.status == 200 and not lost:
            lost.append(request.path)
            return "drop"
        return "overwrite" if not request.status else None

    s3.fault = lose
    server.write_config(sink=server.parts["sink"] + 'aws_conditional_put = "disabled"\n')
    server.start()
    server.settle()
    check_once(s3, {event["event_id"] for event in batch})
    puts = [request for request in s3.requests if is_put_of_a_file(request)]
    assert lost and {put.path for put in puts} == set(lost) and not any(put.create_only for put in puts), puts
    assert "a second server with this log's id could put over it" in server.logs()


MERGE = '[sink.options.merge]\nafter = "0s"\nevery = "1s"\nsettle = "1s"\n'


def test_small_files_are_joined_in_the_bucket_while_a_reader_lists_and_reads(make_server, make_s3):
    """Scenario: files every 100 ms, joined every second, the answers to some puts and deletes lost; pyarrow lists and
    reads the bucket all the time. Guarantees: what it reads has each row once, or it fails; nothing is lost."""
    s3 = make_s3()
    server = lake_on(make_server, s3, flush_age="100ms")
    server.parts["sink"] = MERGE + server.parts["sink"]
    server.write_config()
    server.start()
    key = server.add_tenant()
    server.accept(events(5), key)
    server.settle()
    options = dict(access_key="test", secret_key="test", region=REGION, scheme="http")
    seen = {"whole": 0, "told": 0, "wrong": [], "rows": 0}
    ended = threading.Event()

    def read():
        files = pyarrow.fs.S3FileSystem(endpoint_override=f"127.0.0.1:{s3.port}", **options)
        folder = f"{s3.bucket}/lake/events/tenant=acme/event_type=page_view"
        while not ended.is_set():
            least = seen["rows"]
            try:
                table = pyarrow.dataset.dataset(folder, filesystem=files).to_table(columns=["log_offset"])
            except (OSError, pyarrow.ArrowInvalid):
                seen["told"] += 1
                continue
            offsets = sorted(table["log_offset"].to_pylist())
            if offsets != list(range(len(offsets))) or len(offsets) < least:
                seen["wrong"].append(f"{len(offsets)} rows of at least {least}, {len(set(offsets))} different")
            seen["whole"] += 1
            seen["rows"] = max(least, len(offsets))

    reader = threading.Thread(target=read)
    reader.start()
    dice, lost = random.Random(3), []

    def strike(request):
        if request.status and request.method in ("PUT", "DELETE") and dice.random() < 0.05:
            lost.append(request.method)
            return "drop"
        return None

    s3.fault = strike
    sent, until = 5, time.monotonic() + SECONDS
    while time.monotonic() < until:
        server.accept(events(5, first=sent), key)
        sent += 5
        time.sleep(0.05)
    s3.fault = None
    server.settle()
    wait_until("files were joined", lambda: sink_of(server)["joining"]["made_files"] > 0)
    ended.set()
    reader.join()
    joining = sink_of(server)["joining"]
    print(f"{sent} events, {joining}, reader {seen}, answers lost: {len(lost)}")
    assert not seen["wrong"], seen["wrong"]
    assert seen["whole"] > 0 and joining["removed_files"] > joining["made_files"] > 0, (seen, joining)
    assert joining["failures"] == 0 or joining["error"] is None, joining
    assert server.audit()["balanced"] is True, "also while files are joined"
    server.stop()
    rows = check_once(s3, {f"page_view-{n}" for n in range(sent)})
    assert len(rows) == sent
    tally("e2e::s3::joins", "partial network", ["P2", "P5"], max(len(lost), 1))
