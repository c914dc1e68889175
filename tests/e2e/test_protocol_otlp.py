"""OTLP: the SDKs for Python and JavaScript, the OpenTelemetry Collector and telemetrygen send; what they were told is safe is in
the lake, value by value."""

import base64
import json
import subprocess
from dataclasses import dataclass
from typing import Callable

import grpc_front
import otlp_clients as clients
import protocol_front
import pytest
from harness import DATA as FILES
from harness import Server, exact, http, tally, wait_until
from test_protocols import some_names


@dataclass(frozen=True)
class Client:
    """What is known of a client; `docs/protocols.md` says the same."""

    name: str
    send: Callable
    signal: str
    grpc: bool = False
    data: dict = None
    # It sends again what was refused for now, or lost.
    again: bool = True

    @property
    def event_type(self):
        return {"spans": "otel.span", "logs": "otel.log", "metrics": "otel.metric"}[self.signal]


JS = {"amount": 12.5, "large": 9007199254740991, "note": "naïve 日本 😀", "empty": "", "items": ["a", ""]}
CLIENTS = [
    *(
        Client(f"python-{form}-{signal.__name__}", clients.python(signal, form), signal.__name__, form == "grpc", clients.DATA)
        for form in ("http", "grpc")
        for signal in (clients.spans, clients.logs, clients.metrics)
    ),
    *(
        Client(f"js-{kind}", clients.javascript(kind), signal, kind.endswith("grpc"), JS, not kind.endswith("grpc"))
        for kind, signal in [
            ("trace-http", "spans"), ("trace-proto", "spans"), ("trace-grpc", "spans"), ("logs-proto", "logs"), ("metrics-proto", "metrics"),
        ]
    ),
    Client("collector-otlp_http", None, "logs", False, clients.DATA),
    Client("collector-otlp_grpc", None, "logs", True, clients.DATA),
]  # fmt: skip
each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)


class Rig:
    """One server that takes events, one that takes only small bodies, one that has nobody behind it."""

    def __init__(self, folder):
        self.folder = folder
        self.server = Server(folder / "server", flush_age="200ms").start()
        self.key = self.server.add_tenant()
        tenants = f'tenants_dir = "{self.server.data / "tenants"}"\n'
        self.small = Server(folder / "small", edge='[edge.limits]\nbody_bytes = "100"\n', top=tenants).start()
        nobody = '[hop]\nnormalizers = ["127.0.0.1:1"]\n'
        self.busy = Server(folder / "busy", sink=nobody, top=f'role = "edge"\n{tenants}')
        self.busy.spawn()
        wait_until("the edge without normalizers answers", lambda: http("GET", f"{self.busy.url}/healthz").status == 200)
        self.fronts = []

    def front(self, client, *faults, server=None):
        front = (grpc_front if client.grpc else protocol_front).Front(server or self.server, self.busy, faults)
        self.fronts.append(front)
        return front

    def send(self, client, url, key, names):
        send = client.send or clients.through_collector(client.name.removeprefix("collector-"), self.folder / client.name)
        return send(url, key, names)

    def end(self):
        for front in self.fronts:
            front.end()
        for server in (self.server, self.small, self.busy):
            server.end()

    def refusals(self):
        """Requests that were answered with 429, whatever that is called in gRPC."""
        text = http("GET", f"{self.server.admin}/metrics").body.decode()
        lines = [line for line in text.splitlines() if line.startswith("tidegate_edge_requests_total{") and 'status="429"' in line]
        return sum(int(line.split()[-1]) for line in lines if 'protocol="otlp"' in line)

    def rows(self, client, names, tenant="acme"):
        """The rows of each of `names`, with their events."""
        self.server.settle()
        found = {name: [] for name in names}
        if self.server.count(client.event_type, tenant):
            for row in self.server.rows(client.event_type, tenant):
                event = exact(row["custom"])
                name = event["body"] if client.signal == "logs" else event["name"]
                if name in found:
                    found[name].append((row, event))
        return found


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    rig = Rig(tmp_path_factory.mktemp("otlp"))
    yield rig
    rig.end()


def times(rig, client, told, names, tenant="acme"):
    """How often each name is there; what was told is safe must be."""
    found = {name: len(rows) for name, rows in rig.rows(client, names, tenant).items()}
    missing = [name for name in told if not found[name]]
    assert not missing, f"{client.name} was told that {missing} are safe, and they are not in the lake"
    return found


def as_json(value):
    """A value of an attribute as an event has it."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, (list, tuple)) else value


@each_client
def test_what_a_client_sends_is_in_the_lake_value_by_value(rig, client):
    names = some_names(3)
    assert rig.send(client, rig.server.url, rig.key, names) == set(names)
    for name, rows in rig.rows(client, names).items():
        [(row, event)] = rows
        data = {**client.data, **(clients.NESTED if client.signal == "logs" and client.data is not JS else {})}
        assert event["attributes"] == exact(json.dumps(as_json(data))), event
        assert event["scope"]["name"] == "lib" and event["scope"]["version"] == "1.0"
        js = client.data is JS
        assert event["service.name"] == event["resource"]["attributes"]["service.name"] == ("shop-js" if js else "shop")
        if not js:
            assert event["resource"]["attributes"]["host.cpus"] == 8
        nanos = event["start_time_unix_nano" if client.signal == "spans" else "time_unix_nano"]
        assert nanos // 1000 == int(row["event_time"].timestamp()) * 10**6 + row["event_time"].microsecond
        if client.signal == "spans":
            assert len(event["trace_id"]) == 32 and len(event["span_id"]) == 16 and event["kind"] == 1
            assert event["end_time_unix_nano"] >= nanos
            if not js:
                expected = [{"time_unix_nano": 1772366400123456789, "name": "paid", "attributes": {"count": 1}}]
                assert event["events"] == expected
        if client.signal == "logs":
            assert (event["severity_number"], event["severity_text"]) == (9, "INFO")
            assert js or (nanos, event["event_name"]) == (1772366400123456789, "paid")
        if client.signal == "metrics":
            assert (event["type"], event["value"], event["is_monotonic"]) == ("sum", exact("12.5"), True)
            assert event["aggregation_temporality"] == 2 and (js or event["unit"] == "s")


@each_client
def test_a_wrong_key_is_told_and_nothing_is_kept(rig, client):
    names = some_names(2)
    assert rig.send(client, rig.server.url, "tgk_000000000000_" + "0" * 49, names) == set()
    assert set(times(rig, client, set(), names).values()) == {0}


@each_client
def test_a_body_that_is_too_large_is_told_and_not_taken_for_overload(rig, client):
    names = some_names(2)
    front = rig.front(client, server=rig.small)
    assert rig.send(client, front.url, rig.key, names) == set()
    assert set(times(rig, client, set(), names).values()) == {0}
    if not client.grpc:
        assert [status for _, status in front.seen] == [413], "nobody tries again what will never fit"
    else:
        assert len(front.seen) <= 1, front.seen


@each_client
def test_over_its_quota_a_client_waits_and_loses_nothing_it_was_told_is_safe(rig, client):
    # Two events at once, and two in three seconds.
    tenant = f"slow-{client.name.replace('_', '-')}"
    added = rig.server.ctl("tenant", "add", tenant, "--events-per-second", 1, "--events-burst", 2)
    names, before = some_names(4), rig.refusals()
    front = rig.front(client)
    told = rig.send(client, front.url, added["key"], names[:2]) | rig.send(client, front.url, added["key"], names[2:])
    assert told == set(names) or not client.again, f"{client.name} gave up on {set(names) - told}"
    found = times(rig, client, told, names, tenant)
    assert found == {name: int(name in told) for name in names}, found
    assert rig.refusals() > before, "nothing was refused"


@each_client
@pytest.mark.parametrize("fault", ["busy", "lost request", "lost answer"])
def test_a_server_that_is_busy_or_lost_costs_nothing_that_was_told_is_safe(rig, client, fault):
    names = some_names(2)
    front = rig.front(client, fault)
    told = rig.send(client, front.url, rig.key, names)
    assert fault in [seen if client.grpc else seen[0] for seen in front.seen], front.seen
    assert told == set(names) or not client.again, f"{client.name} gave up: {front.seen}"
    found = times(rig, client, told, names)
    if not client.again:
        assert told == set() and set(found.values()) == {1 if fault == "lost answer" else 0}, (told, found)
        return
    # OTLP has no ids: what is sent again after an answer that was lost is there twice.
    assert set(found.values()) == {2 if fault == "lost answer" else 1}, (found, front.seen)
    tally("e2e::otlp", "client duplicates" if fault == "lost answer" else "partial network", ["P1"], 1)


@pytest.mark.parametrize("signal", ["traces", "logs", "metrics"])
@pytest.mark.parametrize("form", ["grpc", "http"])
def test_telemetrygen_sends_what_it_says(rig, signal, form):
    tenant = f"telemetrygen-{signal}-{form}"
    key = rig.server.ctl("tenant", "add", tenant)["key"]
    command = [clients.CLIENTS / "go" / "bin" / "telemetrygen", signal, "--otlp-insecure", "--otlp-endpoint", f"127.0.0.1:{rig.server.port}"]
    command += ["--otlp-header", f'authorization="Bearer {key}"', f"--{signal}", "20", "--workers", "1", "--rate", "0"]
    command += ["--otlp-http"] if form == "http" else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rig.server.settle()
    event_type = {"traces": "otel.span", "logs": "otel.log", "metrics": "otel.metric"}[signal]
    # A trace of it has two spans.
    assert rig.server.count(event_type, tenant) == (40 if signal == "traces" else 20), done.stderr


@pytest.mark.parametrize("signal", ["traces", "logs", "metrics"])
def test_the_protocols_json_is_the_same_telemetry_as_its_protobuf(rig, signal):
    """Requests in the form of the specification's examples; protobuf's own library makes the other form of them."""
    from google.protobuf import json_format
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest, ExportMetricsServiceResponse
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

    request, response = {
        "traces": (ExportTraceServiceRequest, ExportTraceServiceResponse),
        "logs": (ExportLogsServiceRequest, ExportLogsServiceResponse),
        "metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse),
    }[signal]
    key = rig.server.ctl("tenant", "add", f"example-{signal}")["key"]
    text = (FILES / "otlp" / f"{signal}.json").read_bytes()

    def hex_to_base64(name, value):
        """OTLP's ids are hexadecimal, protobuf's bytes base64."""
        return base64.b64encode(bytes.fromhex(value)).decode() if name in ("traceId", "spanId", "parentSpanId") else value

    sent = json.loads(text, object_pairs_hook=lambda pairs: {name: hex_to_base64(name, value) for name, value in pairs})
    message = json_format.ParseDict(sent, request())

    def post(body, media_type):
        headers = {"Authorization": f"Bearer {key}", "Content-Type": media_type}
        answer = http("POST", f"{rig.server.url}/v1/{signal}", body, headers)
        assert answer.status == 200 and answer.headers["Content-Type"] == media_type, answer
        return answer.body

    assert json.loads(post(text, "application/json")) == {}
    assert not response.FromString(post(message.SerializeToString(), "application/x-protobuf")).HasField("partial_success")
    rig.server.settle()
    event_type = {"traces": "otel.span", "logs": "otel.log", "metrics": "otel.metric"}[signal]
    events = [exact(row["custom"]) for row in rig.server.rows(event_type, f"example-{signal}")]
    half = len(events) // 2
    assert half and events[:half] == events[half:], events


def test_a_partial_success_says_how_many_and_a_dead_letter_is_no_loss(rig):
    from google.rpc.status_pb2 import Status
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

    request = ExportLogsServiceRequest()
    records = request.resource_logs.add().scope_logs.add().log_records
    records.add(body={"string_value": "good"})
    twice = records.add(body={"string_value": "twice"})
    twice.attributes.add(key="a", value={"int_value": 1})
    twice.attributes.add(key="a", value={"int_value": 2})
    deep = records.add()
    value = deep.body
    for _ in range(33):
        value = value.array_value.values.add()
    value.int_value = 1
    key = rig.server.ctl("tenant", "add", "partial")["key"]

    def post(body, key=key):
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/x-protobuf"}
        return http("POST", f"{rig.server.url}/v1/logs", body, headers)

    answer = ExportLogsServiceResponse.FromString(post(request.SerializeToString()).body).partial_success
    assert answer.rejected_log_records == 1
    assert "duplicate_key" in answer.error_message and "too_deep" in answer.error_message, answer
    refused = post(b"\xff")
    assert refused.status == 400 and Status.FromString(refused.body).code == 3
    assert Status.FromString(post(b"", "tgk_none").body).code == 16
    rig.server.settle()
    assert rig.server.count("otel.log", "partial") == 1
