"""Firehose, as a producer's API and as what a delivery stream sends: the public SDKs and a sender by the letter of the contract
send, are refused in every way, and what they were told is safe is in the lake, value by value."""

import datetime
import json
import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import boto3
import botocore.auth
import duckdb
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError
from firehose_sender import Sender
from harness import REPOSITORY, Server, exact, http, tally, wait_until
from protocol_clients import DATA
from protocol_front import Front

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from roles.fleet import Fleet  # noqa: E402

JS = REPOSITORY / "tests" / "clients" / "js"
STREAM = "clicks"


def made(name):
    """The event of a name; its id makes it one event, however often it is sent."""
    return {"name": name, "event_id": name, **DATA}


def sdk(url, pair, mode="standard", attempts=8):
    return boto3.client(
        "firehose", endpoint_url=url, region_name="eu-central-1", aws_access_key_id=pair["access_key_id"],
        aws_secret_access_key=pair["secret_access_key"],
        config=Config(retries={"mode": mode, "total_max_attempts": attempts}, connect_timeout=10, read_timeout=30),
    )  # fmt: skip


def boto_batch(url, pair, names, mode="standard"):
    """PutRecordBatch; what failed is sent again, as the documentation asks."""
    client, told, left = sdk(url, pair, mode), set(), list(names)
    try:
        for _ in range(12):
            records = [{"Data": json.dumps(made(name)).encode()} for name in left]
            answer = client.put_record_batch(DeliveryStreamName=STREAM, Records=records)
            failed = [name for name, one in zip(left, answer["RequestResponses"], strict=True) if "ErrorCode" in one]
            assert answer["FailedPutCount"] == len(failed)
            told |= set(left) - set(failed)
            left = failed
            if not left:
                break
            time.sleep(0.5)
    except (ClientError, BotoCoreError) as error:
        boto_batch.error = error
    return told


def boto_adaptive(url, pair, names):
    return boto_batch(url, pair, names, "adaptive")


def boto_single(url, pair, names):
    """PutRecord, one by one."""
    client, told = sdk(url, pair), set()
    for name in names:
        try:
            answer = client.put_record(DeliveryStreamName=STREAM, Record={"Data": json.dumps(made(name)).encode() + b"\n"})
            assert answer["RecordId"] and answer["Encrypted"] is False
            told.add(name)
        except (ClientError, BotoCoreError) as error:
            boto_batch.error = error
    return told


def node(url, pair, names, mode="standard"):
    events = json.dumps([made(name) for name in names])
    # A number that JavaScript cannot hold would be changed before it is sent.
    events = events.replace("9007199254740993", "9007199254740991")
    command = ["node", JS / "firehose.mjs", url, pair["access_key_id"], pair["secret_access_key"], STREAM, mode]
    done = subprocess.run(command, input=events, capture_output=True, text=True, timeout=120, cwd=JS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def js_batch(url, pair, names):
    return set(node(url, pair, names)["safe"])


def js_single(url, pair, names):
    return set(node(url, pair, names, "single")["safe"])


def delivery(url, pair, names):
    """What a delivery stream sends: one request for all."""
    sender = Sender(f"{url}/v1/firehose", pair["key"], STREAM, duration=20)
    records = [json.dumps({"name": name, **DATA}).encode() for name in names]
    return set(names) if sender.deliver(records) else set()


@dataclass(frozen=True)
class Client:
    name: str
    send: Callable
    statuses: tuple = (403,)


CLIENTS = [
    Client("boto3-batch", boto_batch),
    Client("boto3-single", boto_single),
    Client("boto3-adaptive", boto_adaptive),
    Client("js-batch", js_batch),
    Client("js-single", js_single),
    Client("delivery", delivery, (401,)),
]
each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


class Rig:
    """One server that takes events, one that takes only small bodies, one that has nobody behind it."""

    def __init__(self, folder):
        self.server = Server(folder / "server", flush_age="200ms").start()
        self.pair = {"key": self.server.add_tenant(), **self.new_pair("acme")}
        self.slow = {client.name: self.slow_pair(client) for client in CLIENTS}
        tenants = f'tenants_dir = "{self.server.data / "tenants"}"\n'
        self.small = Server(folder / "small", edge='[edge.limits]\nbody_bytes = "100"\n', top=tenants).start()
        nobody = '[hop]\nnormalizers = ["127.0.0.1:1"]\n'
        self.busy = Server(folder / "busy", sink=nobody, top=f'role = "edge"\n{tenants}')
        self.busy.spawn()
        wait_until("the edge without normalizers answers", lambda: http("GET", f"{self.busy.url}/healthz").status == 200)
        self.fronts = []

    def new_pair(self, tenant):
        pair = self.server.ctl("tenant", "sigv4", tenant)
        return {name: pair[name] for name in ("access_key_id", "secret_access_key")}

    def slow_pair(self, client):
        name = f"slow-{client.name}"
        key = self.server.ctl("tenant", "add", name, "--events-per-second", 2, "--events-burst", 2)["key"]
        return {"key": key, **self.new_pair(name)}

    def front(self, *faults):
        self.fronts.append(Front(self.server, self.busy, faults))
        return self.fronts[-1]

    def end(self):
        for front in self.fronts:
            front.end()
        for server in (self.server, self.small, self.busy):
            server.end()

    def rows(self, names, tenant="acme", event_type=STREAM):
        self.server.settle()
        found = {name: [] for name in names}
        if self.server.count(event_type, tenant):
            for row in self.server.rows(event_type, tenant):
                event = exact(row["custom"])
                if event.get("name") in found:
                    found[event["name"]].append((row, event))
        return found

    def check(self, told, names, tenant="acme"):
        """What the client was told is safe is in the lake, once; nothing is there twice."""
        found = {name: len(rows) for name, rows in self.rows(names, tenant).items()}
        missing = [name for name in told if not found[name]]
        assert not missing, f"{missing} are not in the lake, though they were told to be safe"
        assert set(found.values()) <= {0, 1}, found
        return found


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    rig = Rig(tmp_path_factory.mktemp("firehose"))
    yield rig
    rig.end()


def some_names(count=2):
    return [f"event-{uuid.uuid4()}" for _ in range(count)]


@each_client
def test_what_a_client_sends_is_in_the_lake_value_by_value(rig, client):
    names = some_names(3)
    assert client.send(rig.server.url, rig.pair, names) == set(names)
    for name, rows in rig.rows(names).items():
        [(row, event)] = rows
        expected = exact(json.dumps({"name": name, **DATA}))
        if client.name.startswith("js"):
            expected["large"] = exact("9007199254740991")
        for field, value in expected.items():
            assert event[field] == value, f"{field} is not what was sent: {event}"
        assert client.name == "delivery" or row["event_id"] == name
        assert row["event_time"] is not None


@each_client
def test_a_wrong_key_is_told_and_nothing_is_kept(rig, client):
    front = rig.front()
    names = some_names()
    for wrong in (
        {"key": "tgk_000000000000_" + "0" * 49, "access_key_id": "TG000000000000000000", "secret_access_key": "x" * 43},
        {"key": "tgk_wrong", "access_key_id": rig.pair["access_key_id"], "secret_access_key": "x" * 43},
    ):
        send = client.send
        if client.name == "delivery":
            sender = Sender(f"{front.url}/v1/firehose", wrong["key"], STREAM, duration=0.5)
            assert not sender.deliver([b"{}"])
        else:
            assert send(front.url, wrong, names) == set()
    assert {status for _, status in front.seen} == set(client.statuses), front.seen
    assert set(rig.check(set(), names).values()) == {0}


@each_client
def test_a_body_that_is_too_large_is_told_and_not_taken_for_overload(rig, client):
    front = Front(rig.small, rig.busy)
    try:
        assert client.send(front.url, rig.pair, some_names()) == set()
    finally:
        front.end()
    statuses = [status for _, status in front.seen]
    assert set(statuses) == {413} and len(statuses) <= 2, statuses


@each_client
def test_over_its_quota_a_client_loses_nothing(rig, client):
    pair, names, tenant = rig.slow[client.name], some_names(4), f"slow-{client.name}"
    front = rig.front()
    told = client.send(front.url, pair, names[:2]) | client.send(front.url, pair, names[2:])
    shed = rig.server.ctl("audit")["tenants"]
    refused = any(status == 429 for _, status in front.seen)
    assert refused or any(row["tenant"] == tenant and row["shed"] for row in shed), front.seen
    assert told == set(names), f"gave up on {set(names) - told}: {front.seen}"
    assert set(rig.check(told, names, tenant).values()) == {1}


@each_client
@pytest.mark.parametrize("fault", ["busy", "lost request", "lost answer"])
def test_a_server_that_is_busy_or_lost_costs_nothing(rig, client, fault):
    names = some_names()
    front = rig.front(fault)
    told = client.send(front.url, rig.pair, names)
    assert front.seen[0] == (fault, {"busy": 503, "lost request": None, "lost answer": 200}[fault]), front.seen
    assert told == set(names), f"{client.name} gave up: {front.seen}"
    assert set(rig.check(told, names).values()) == {1}
    tally("e2e::protocols", "client duplicates" if fault == "lost answer" else "partial network", ["P1"], 1)


def signed(rig, body, *, pair=None, at=None, operation="PutRecord", headers=None):
    """A request as botocore signs it, at some time."""
    pair = pair or rig.pair
    url = f"{rig.server.url}/"
    head = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"Firehose_20150804.{operation}", **(headers or {})}
    request = AWSRequest("POST", url, data=body, headers=head)
    clock = botocore.auth.get_current_datetime
    at = at or datetime.datetime.now(datetime.timezone.utc)
    botocore.auth.get_current_datetime = lambda *_, **__: at
    try:
        SigV4Auth(Credentials(pair["access_key_id"], pair["secret_access_key"]), "firehose", "us-east-1").add_auth(request)
    finally:
        botocore.auth.get_current_datetime = clock
    return dict(request.headers.items())


def put(name):
    import base64

    data = base64.b64encode(json.dumps(made(name)).encode()).decode()
    return json.dumps({"DeliveryStreamName": STREAM, "Record": {"Data": data}}).encode()


def post(rig, body, headers):
    answer = http("POST", f"{rig.server.url}/", body, headers)
    return answer.status, answer.json().get("__type"), answer


def test_a_signature_that_is_wrong_old_or_of_another_body_is_refused_and_an_identical_one_is_not(rig):
    [name] = some_names(1)
    body = put(name)
    headers = signed(rig, body)
    assert post(rig, put("another"), headers)[:2] == (403, "InvalidSignatureException"), "another body"
    broken = dict(headers, Authorization=headers["Authorization"][:-1] + ("0" if headers["Authorization"][-1] != "0" else "1"))
    assert post(rig, body, broken)[:2] == (403, "InvalidSignatureException")
    retargeted = dict(headers, **{"X-Amz-Target": "Firehose_20150804.CreateDeliveryStream"})
    assert post(rig, body, retargeted)[:2] == (403, "InvalidSignatureException")
    now = datetime.datetime.now(datetime.timezone.utc)
    for minutes in (-16, 16):
        off = signed(rig, body, at=now + datetime.timedelta(minutes=minutes))
        status, kind, answer = post(rig, body, off)
        assert (status, kind) == (403, "InvalidSignatureException"), answer
        assert "15 minutes" in answer.json()["message"]
    within = signed(rig, body, at=now - datetime.timedelta(minutes=14))
    unsigned = dict(headers, **{"X-Amz-Content-Sha256": "0" * 64})
    assert post(rig, body, unsigned)[:2] == (403, "IncompleteSignatureException")
    # A hash that is signed, and is another body's: known before and after the body is read.
    lying = signed(rig, body, headers={"X-Amz-Content-Sha256": "0" * 64})
    assert post(rig, body, lying)[:2] == (403, "InvalidSignatureException")
    session = signed(rig, body, headers={"X-Amz-Security-Token": "session"})
    assert post(rig, body, session)[:2] == (403, "UnrecognizedClientException")
    assert post(rig, body, {"X-Amz-Target": "Firehose_20150804.PutRecord"})[:2] == (403, "MissingAuthenticationTokenException")
    assert rig.check(set(), [name]) == {name: 0}
    for head in (headers, headers, within):
        status, _, answer = post(rig, body, head)
        assert status == 200 and answer.json()["RecordId"], answer
    assert rig.check({name}, [name]) == {name: 1}


def test_a_pair_can_be_replaced_and_the_old_one_taken_back(rig):
    rig.server.add_tenant("paired")
    first = rig.server.ctl("tenant", "sigv4", "paired")
    second = rig.server.ctl("tenant", "sigv4", "paired", "--expire-old-after", "0s")
    names = some_names(1)
    assert boto_single(rig.server.url, first, names) == set(), "the former pair is good no more"
    assert boto_batch.error.response["Error"]["Code"] == "UnrecognizedClientException"
    assert boto_single(rig.server.url, second, names) == set(names)
    shown = rig.server.ctl("tenant", "show", "paired")
    assert {pair["access_key_id"] for pair in shown["sigv4"]} == {first["access_key_id"], second["access_key_id"]}
    stored = "".join(path.read_text() for path in (rig.server.data / "tenants").iterdir())
    assert second["secret_access_key"] not in stored + json.dumps(shown), "a secret can be read"


def test_a_record_that_is_no_event_has_an_id_and_is_a_dead_letter_with_its_bytes(rig):
    client, names = sdk(rig.server.url, rig.pair), some_names(3)
    both = b"".join(json.dumps(made(name)).encode() for name in names[:2])
    records = [both, b"not json", json.dumps(made(names[2])).encode() + b"\n", b"\xff\x00", b"", b"[1]", b'{"a":1,"a":2}']
    answer = client.put_record_batch(DeliveryStreamName="mixed", Records=[{"Data": record} for record in records])
    assert answer["FailedPutCount"] == 0 and len(answer["RequestResponses"]) == len(records)
    assert len({one["RecordId"] for one in answer["RequestResponses"]}) == len(records)
    rig.server.settle()
    assert {row["event_id"] for row in rig.server.rows("mixed")} == set(names)
    dead = f"{rig.server.lake}/dead_letters/tenant=acme/event_type=mixed/**/*.parquet"
    query = f"select reason, raw from read_parquet('{dead}', hive_partitioning = true)"
    found = [(reason, exact(raw)) for reason, raw in duckdb.sql(query).fetchall() if reason == "unreadable"]
    kept = [event["tidegate.unreadable"] for _, event in found]
    assert sorted(one.get("text", one.get("base64")) for one in kept) == sorted(["not json", "/wA=", "", "[1]"]), kept
    [again] = [name for name in names[:1]]
    assert client.put_record(DeliveryStreamName="mixed", Record={"Data": json.dumps(made(again)).encode()})["RecordId"]
    assert len(rig.rows([again], event_type="mixed")[again]) == 1


def test_documented_limits_and_errors_are_the_services(rig):
    client = sdk(rig.server.url, rig.pair, attempts=1)

    def refused(call, **arguments):
        with pytest.raises(ClientError) as caught:
            call(**arguments)
        response = caught.value.response
        assert response["ResponseMetadata"]["RequestId"], response
        return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]

    one = {"Data": b"{}"}
    batch = client.put_record_batch
    assert refused(batch, DeliveryStreamName="a", Records=[one] * 501) == (400, "InvalidArgumentException")
    assert refused(batch, DeliveryStreamName="a", Records=[{"Data": b"x" * 1_024_001}]) == (400, "InvalidArgumentException")
    full = {"Data": b'{"a":"' + b"x" * (1_024_000 - 8) + b'"}'}
    assert batch(DeliveryStreamName="full", Records=[full] * 4)["FailedPutCount"] == 0
    assert refused(batch, DeliveryStreamName="a", Records=[full] * 5) == (413, "RequestEntityTooLargeException")
    assert refused(client.delete_delivery_stream, DeliveryStreamName="a") == (400, "UnknownOperationException")
    for _ in range(2):
        arn = client.create_delivery_stream(DeliveryStreamName="made")["DeliveryStreamARN"]
        assert arn == "arn:aws:firehose:eu-central-1:000000000000:deliverystream/made"
    described = client.describe_delivery_stream(DeliveryStreamName="made")["DeliveryStreamDescription"]
    assert (described["DeliveryStreamStatus"], described["DeliveryStreamARN"]) == ("ACTIVE", arn)
    assert "full" in client.list_delivery_streams(Limit=100)["DeliveryStreamNames"]
    told = node(rig.server.url, rig.pair, [], "streams")
    assert told["status"] == "ACTIVE" and not told["errors"], told
    assert rig.server.audit()["balanced"]


def test_overload_behind_the_body_is_told_record_by_record(rig):
    tenant = "one-by-one"
    rig.server.ctl("tenant", "add", tenant, "--events-per-second", 1, "--events-burst", 1)
    client = sdk(rig.server.url, rig.new_pair(tenant), attempts=1)
    answers = []
    for name in some_names(3):
        try:
            records = [{"Data": json.dumps(made(f"{name}-{n}")).encode()} for n in range(3)]
            answers.append(client.put_record_batch(DeliveryStreamName=STREAM, Records=records))
        except ClientError as error:
            answers.append(error.response)
    codes = [answer.get("Error", {}).get("Code") for answer in answers]
    failed = [answer.get("FailedPutCount") for answer in answers]
    assert set(codes) <= {None, "ThrottlingException"} and failed[0] == 0, answers
    assert any(answer["ResponseMetadata"]["HTTPHeaders"].get("retry-after") for answer in answers[1:]), answers
    assert set(failed[1:]) & {3, None}, failed


@pytest.mark.parametrize("compress", [True, False], ids=["gzip", "plain"])
def test_a_delivery_is_kept_with_its_attributes_under_its_ids(rig, compress):
    sender = Sender(f"{rig.server.url}/v1/firehose", rig.pair["key"], "page.views", compress, {"env": "test", "team": "ä"})
    request_id, names = str(uuid.uuid4()), some_names(4)
    lines = "\n".join(json.dumps({"name": name}) for name in names[1:3]).encode()
    own = json.dumps({"name": names[3], "event_id": names[3]}).encode()
    records = [json.dumps({"name": names[0]}).encode() + b"\n", lines, own]
    for _ in range(2):
        assert sender.deliver(records, request_id), sender.answers
    found = rig.rows(names, event_type="page.views")
    ids = [rows[0][0]["event_id"] for rows in found.values()]
    assert ids == [f"{request_id}/0", f"{request_id}/1", f"{request_id}/1/1", names[3]]
    for rows in found.values():
        [(_, event)] = rows
        assert event["common_attributes"] == {"env": "test", "team": "ä"}


def test_a_delivery_may_name_its_type_in_the_path_and_is_told_what_is_wrong(rig):
    [name] = some_names(1)
    sender = Sender(f"{rig.server.url}/v1/firehose/views", rig.pair["key"], "other")
    assert sender.deliver([json.dumps({"name": name}).encode()])
    assert len(rig.rows([name], event_type="views")[name]) == 1
    headers, body = sender.request([b"{}"], "r-1")
    headers["Content-Encoding"] = "identity"
    status, _, answer = sender.once(headers, body)
    assert status == 400 and json.loads(answer)["requestId"] == "r-1", answer
    assert sender.deliver([]), "a delivery of nothing is delivered"
    # What is no event is a dead letter: sent again it would be the same.
    assert sender.deliver([b"plain text"])


def test_with_roles_a_record_that_is_no_event_is_kept_all_the_same(tmp_path):
    """The edge has the records, a normalizer judges them, and the answer says record by record what became of them."""
    fleet = Fleet(tmp_path / "fleet", replicas=1)
    try:
        key = fleet.start().add_tenant("acme")
        [edge] = fleet.replicas["edge"]
        pair = edge.ctl("tenant", "sigv4", "acme")
        url, names = f"http://{edge.address}", some_names(3)

        def known():
            told = boto_single(url, pair, names[:1])
            return told == set(names[:1])

        wait_until("the pair is known to the edge", known)
        records = [{"Data": json.dumps(made(names[1])).encode() * 2}, {"Data": b"no event"}]
        answer = sdk(url, pair).put_record_batch(DeliveryStreamName=STREAM, Records=records)
        assert answer["FailedPutCount"] == 0 and len(answer["RequestResponses"]) == 2
        sender = Sender(f"{url}/v1/firehose", key, STREAM)
        assert sender.deliver([json.dumps({"name": names[2]}).encode(), b"no event", os.urandom(900_000)])
        fleet.settle()
        rows, _, ids = fleet.lake_rows()
        assert rows == 3, "the same event_id twice in a record is one event"
        assert all(ids[name] == 1 for name in names[:2])
        fleet.audits()
    except BaseException:
        print(fleet.logs())
        raise
    finally:
        fleet.end()
