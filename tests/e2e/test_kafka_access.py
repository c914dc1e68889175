"""Whom brokers let in by a certificate, and whom they slow down by a quota."""

import concurrent.futures
import itertools
import os
import sys
import threading
from pathlib import Path

import pytest
from harness import check_nothing_missing, free_ports, http, toml, wait_until
from kafka_log import certificate, on_kafka, settle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brokers import Kafka, tool, why_no_kafka  # noqa: E402

pytestmark = pytest.mark.skipif(why_no_kafka() is not None, reason=str(why_no_kafka()))
TYPE = "view"


def refusal(server):
    """What a server says that was spawned and does not start."""
    wait_until("it ends", lambda: server.process.poll() is not None)
    assert server.process.returncode == 3, server.log_file().read_text()
    return server.log_file().read_text()


def test_a_client_certificate_lets_in_and_none_or_a_strangers_does_not(make_server, tmp_path):
    """Scenario: the broker asks every client for a certificate (mutual TLS); ours is trusted, a stranger's is not.
    Guarantees: with ours events pass and reach the lake; without one, or with another, the server does not start and says why."""
    folders = [tmp_path / name for name in ("broker", "ours", "strangers")]
    for folder in folders:
        folder.mkdir()
    (both, broker), (_, ours), (_, strangers) = [certificate(folder, folder.name) for folder in folders]
    kafka = Kafka(tmp_path / "kafka", free_ports, wait_until, 1, tls=both, callers=ours)
    try:

        def log(more):
            section = f"[log.kafka.tls]\nca = {toml(broker)}\n{more}"
            return on_kafka(kafka, "mutual", section, partitions=1).replace(kafka.servers, kafka.sasl_servers)

        def shows(alone):
            return f"certificate = {toml(alone)}\nkey = {toml(alone.parent / 'key.pem')}"

        server = make_server(log=log(shows(ours))).start()
        server.accept([{"event_type": TYPE, "event_id": "in"}], server.add_tenant())
        settle(server, partitions=1)
        assert server.count(TYPE) == 1
        others = [make_server(log=log(more)) for more in ("", shows(strangers))]
        for other in others:
            other.spawn()
        for said in map(refusal, others):
            assert "cannot be asked" in said and "ssl" in said.lower(), said
    finally:
        kafka.end()


def quota(kafka, *change):
    """Sets, or takes away, what clients of our name may send."""
    tool("kafka.admin.ConfigCommand", "--bootstrap-server", kafka.servers, "--alter", "--entity-type", "clients", "--entity-name", "tidegate", *change)


def sample(server, name):
    """The value of a metric without labels; 0 where there is none."""
    lines = http("GET", f"{server.admin}/metrics", timeout=10).body.decode().splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)


def test_a_quota_of_the_brokers_slows_the_server_which_says_so_and_loses_nothing(make_server, one):
    """Scenario: the broker lets our client send 2 MB a second; clients of four tenants send much more, 4 MB a request, until one is
    refused for a full log; then the quota is taken away, and what was refused is sent again.
    Guarantees: `status` and the metric show that brokers throttle; beyond what may be under way clients are told 503 `log_full` with
    a Retry-After; without the quota all of it is taken, and is in the lake once."""
    log = on_kafka(one, "slow", 'compression = "none"\n[log.kafka.options]\n"client.id" = "tidegate"', delivery="2m")
    server = make_server(log=log).start()
    keys = [server.add_tenant(f"tenant{n}") for n in range(4)]
    quota(one, "--add-config", "producer_byte_rate=2000000")
    numbers, begun, taken, told = itertools.count(), set(), set(), {}
    full = threading.Event()

    def send(n):
        events = [{"event_type": TYPE, "event_id": f"{n}-{i}", "text": os.urandom(10_000).hex()} for i in range(200)]
        answer = server.send(events, keys[n % 4], timeout=150)
        reason = answer.headers["X-Shed-Reason"]
        told.setdefault((answer.status, reason), answer.headers["Retry-After"])
        if answer.status == 200:
            assert answer.json()["accepted"] == 200, answer
            taken.add(n)
        if reason == "log_full":
            full.set()

    def send_on():
        while not full.is_set():
            n = next(numbers)
            begun.add(n)
            send(n)

    def throttled():
        status = http("GET", f"{server.admin}/api/v1/status", timeout=10).json()
        return status["log"]["throttled_milliseconds"] > 0 and sample(server, "tidegate_kafka_throttled_milliseconds") > 0

    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        clients = [threads.submit(send_on) for _ in range(12)]
        try:
            wait_until("the server says that it is throttled", throttled, pause=0.02)
            wait_until("a client is told that the log is full", full.is_set, timeout=120)
        finally:
            full.set()
            quota(one, "--delete-config", "producer_byte_rate")
        for client in clients:
            client.result(150)
    assert int(told[503, "log_full"]) >= 1, told

    def all_taken():
        for n in begun - taken:
            send(n)
        return taken == begun

    wait_until("all of it is taken", all_taken, timeout=120, pause=0.5)
    assert set(told) <= {(200, None), (503, "log_full"), (429, "tenant_lane")}, told
    settle(server)
    check_nothing_missing(server, {f"{n}-{i}" for n in begun for i in range(200)})
    assert server.audit()["balanced"] is True
