"""Edges, normalizers and writers as processes of their own, two of each: killed, paused and restarted under load."""

import datetime
import json
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brokers import why_no_kafka  # noqa: E402
from harness import http, tally, wait_until  # noqa: E402
from roles import rolling  # noqa: E402
from roles.check import figures, total  # noqa: E402
from roles.fleet import Fleet  # noqa: E402
from roles.senders import Crowd  # noqa: E402


NEEDS_KAFKA = pytest.mark.skipif(why_no_kafka() is not None, reason=str(why_no_kafka()))


@pytest.mark.parametrize("log", ["embedded", pytest.param("kafka", marks=NEEDS_KAFKA)])
def test_a_rolling_restart_of_all_loses_nothing_and_refuses_only_for_now(tmp_path, log, request):
    """Scenario: SIGTERM to each of six processes in turn, started again, while clients of four tenants send; the writers
    have a log each, or share one on Kafka.
    Guarantees: nothing acknowledged is lost, no offset is twice, every answer is 200 or 503 `draining`, none is missing."""
    broker = request.getfixturevalue("one") if log == "kafka" else None
    found = rolling.run(tmp_path, log=log, broker=broker)
    print(found.table())
    assert found.lost == 0 and found.doubled_offsets == 0 and found.unanswered == 0


@pytest.mark.parametrize("role", ["edge", "normalizer", "writer"])
def test_either_replica_of_a_role_may_be_killed(tmp_path, role):
    """Scenario: kill -9 of each replica of one role under load; the other serves meanwhile, then it is started again.
    Guarantees: nothing acknowledged is lost, no offset is twice, all answers are 2xx or say when to come again."""
    check_kills(rolling.run(tmp_path, kill=True, only=(role,)), role, 2)


@NEEDS_KAFKA
def test_over_a_log_on_kafka_any_process_may_be_killed(tmp_path, one):
    """Scenario: the writers share a log on Kafka and its partitions; kill -9 of each of the six processes in turn.
    Guarantees: the same."""
    check_kills(rolling.run(tmp_path, kill=True, log="kafka", broker=one), "kafka", 6)


def check_kills(found, what, kills):
    print(found.table())
    # A client that sends again what nobody knows the outcome of may have it twice, never more often than it was told so.
    unknown = sum(n for (_, reason), n in found.refusals.items() if reason == "outcome_unknown") + found.unanswered
    assert found.sent_again <= unknown * 20, found
    tally(f"e2e::roles::{what}", "kill -9", ["P1", "P2", "P5"], kills)


@pytest.mark.parametrize("role", ["normalizer", "writer"])
def test_a_replica_that_is_paused_is_passed_over_and_wakes_up_harmless(tmp_path, role):
    """Scenario: SIGSTOP to one replica under load until the others have served for a while, then SIGCONT.
    Guarantees: as for a kill; what it holds when it wakes is appended once or not at all."""
    fleet = Fleet(tmp_path, hop='timeout = "3s"')
    try:
        fleet.start()
        with Crowd(fleet) as crowd:
            rolling.flows(crowd)
            paused = fleet.replicas[role][0]
            paused.signal(signal.SIGSTOP)
            try:
                rolling.flows(crowd, more=2000, timeout=60)
            finally:
                paused.signal(signal.SIGCONT)
            rolling.flows(crowd)
        found = figures(fleet, crowd)
        print(found.table())
    except BaseException:
        print(fleet.logs())
        raise
    finally:
        fleet.end()
    tally(f"e2e::roles::{role}", "process pause", ["P1", "P2", "P5"], 1)


def certificate(folder, name, ca=None):
    """A certificate for 127.0.0.1 and its key, signed by `ca` or by itself; the pair for signing others."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer, signer = (ca[0].subject, ca[1]) if ca else (subject, key)
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    built = x509.CertificateBuilder(
        issuer_name=issuer, subject_name=subject, public_key=key.public_key(),
        serial_number=x509.random_serial_number(), not_valid_before=now - day, not_valid_after=now + day,
    ).add_extension(x509.BasicConstraints(ca=ca is None, path_length=None), critical=True)  # fmt: skip
    if ca:
        import ipaddress

        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signed = built.sign(signer, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (folder / f"{name}.pem").write_bytes(signed.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(private)
    return signed, key


def tls(folder, name, ca):
    return f'[hop.tls]\ncert = "{folder}/{name}.pem"\nkey = "{folder}/{name}.key"\nca = "{folder}/{ca}.pem"\n'


def test_roles_speak_mutual_tls_and_a_stranger_with_a_certificate_of_its_own_is_nobody(tmp_path):
    """Scenario: all hops with mutual TLS; then an edge whose certificate somebody else signed.
    Guarantees: events pass; the stranger's edge reaches nobody, is not ready, and says why."""
    folder = tmp_path / "tls"
    folder.mkdir()
    ours, theirs = certificate(folder, "ca"), certificate(folder, "other-ca")
    certificate(folder, "role", ours)
    certificate(folder, "stranger", theirs)
    fleet = Fleet(tmp_path / "fleet", replicas=2, hop=tls(folder, "role", "ca"))
    try:
        fleet.start()
        with Crowd(fleet, tenants=2, each=1) as crowd:
            rolling.flows(crowd, more=400)
            stranger = fleet.replicas["edge"][1]
            stranger.stop()
            fleet.write_config(hop=tls(folder, "stranger", "ca"))
            stranger.spawn()

            def refused():
                answer = http("GET", f"{stranger.admin}/readyz", timeout=5)
                return answer.status == 503 and answer.json()["reasons"][0].startswith("unreachable")

            wait_until("the stranger says that it reaches nobody", refused)
            rolling.flows(crowd, more=400)
            logs = "".join(one.logs() for one in fleet.replicas["normalizer"])
            assert "its certificate is not taken" in logs, logs[-2000:]
            stranger.stop()
            fleet.write_config(hop=tls(folder, "role", "ca"))
            stranger.start()
        print(figures(fleet, crowd).table())
    finally:
        fleet.end()
    tally("e2e::roles::tls", "partial network", ["P1", "P2", "P5"], 1)


def test_a_fleet_judges_and_stores_as_one_process_does(tmp_path):
    """Scenario: a schema with units and personal data that only the normalizers have; events of each verdict.
    Guarantees: the answers are those of one process; the writers' lake has typed columns, and nobody's books differ."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "x-version": 1, "type": "object",
        "properties": {"duration": {"type": "number", "x-unit": "s", "x-accept": {"duration_ms": "ms"}},
                       "email": {"type": "string", "x-pii": "drop"}},
    }  # fmt: skip
    fleet = Fleet(tmp_path, schemas={"view": schema})
    writers_only = tmp_path / "no-schemas"
    writers_only.mkdir()
    try:
        # The writers' own folder of schemas is empty: what they need they are told.
        fleet.environment = {"TIDEGATE_SCHEMAS__DIR": str(writers_only)}
        for one in fleet.replicas["writer"]:
            one.spawn()
        fleet.environment = {}
        for role in ("normalizer", "edge"):
            for one in fleet.replicas[role]:
                one.spawn()
        for one in fleet.all():
            wait_until(f"{one.name} is ready", one.ready)
        strict = fleet.add_tenant("strict")
        key = fleet.add_tenant("acme")
        url = f"http://{fleet.replicas['edge'][0].address}/v1/events"
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/x-ndjson", "traceparent": "no trace"}
        lines = [
            {"event_type": "view", "event_id": "one", "duration_ms": 1500, "email": "a@b.c", "more": 1},
            {"event_type": "view", "duration": "long"},
            {"event_type": "view", "event_id": "one", "duration": 2},
            [1],
            {"event_type": "view", "duration": 3},
        ]
        body = "\n".join(map(json.dumps, lines)).encode()
        answer = http("POST", url, body, headers)
        counts = answer.json()
        assert answer.status == 200, answer
        told = {name: counts[name] for name in ("accepted", "dead_lettered", "deduplicated", "rejected")}
        assert told == {"accepted": 2, "dead_lettered": 1, "deduplicated": 1, "rejected": 1}, counts
        assert [(e["index"], e["code"]) for e in counts["errors"]] == [(1, "type_mismatch"), (3, "not_an_object")], counts
        nothing = http("POST", url, b"[1]", {**headers, "Content-Type": "application/json"})
        assert (nothing.status, nothing.json()["code"]) == (400, "nothing_kept"), nothing
        foreign = http("POST", url, b'{"event_type":"view"}', {**headers, "Authorization": f"Bearer {strict}", "X-Tenant": "acme"})
        assert foreign.status == 200, foreign
        fleet.settle()
        import duckdb

        rows = duckdb.sql(
            f"select tenant, duration, custom from read_parquet('{fleet.lake}/events/**/*.parquet', hive_partitioning=true)"
            " order by tenant, duration"
        ).fetchall()
        assert rows == [("acme", 1.5, '{"more":1}'), ("acme", 3.0, "{}"), ("strict", None, "{}")] or rows == [
            ("acme", 1.5, '{"more":1}'), ("acme", 3.0, None), ("strict", None, None)
        ], rows  # fmt: skip
        audits = fleet.audits()
        assert total(audits, "writer", "accepted") == 3 and total(audits, "writer", "deduplicated") == 1
        assert total(audits, "edge", "rejected") == 2 and total(audits, "edge", "received") == 2, "rejected where it was told"
    finally:
        fleet.end()
