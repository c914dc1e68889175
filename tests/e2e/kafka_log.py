"""What servers with their log on Kafka share in tests: the section of their file, and when all of it has come through."""

import subprocess

from harness import http, toml, wait_until


def on_kafka(kafka, topic, more="", *, partitions=2, safe=False, session="6s", delivery="15s"):
    """What a server's `[log]` says to have its log on `topic`."""
    ids = 'dedup_window = "0s"' if "request" in more else ""
    copies = "replication = 3\nmin_insync = 2" if safe else "replication = 1\nmin_insync = 1"
    return f"""kind = "kafka"
{ids}
[log.kafka]
servers = {toml(kafka.servers)}
topic = {toml(topic)}
create = true
partitions = {partitions}
{copies}
session_timeout = {toml(session)}
delivery_timeout = {toml(delivery)}
{more}
"""


def owned(server):
    return server.standing()["log"]["partitions_owned"]


def shares(*servers):
    return [owned(server) for server in servers]


def settle(*servers, partitions=2, **patience):
    """Waits until every partition is somebody's, and every sink has made everything visible: both at one moment, since a
    partition that is nobody's has no sink that could lag."""

    def caught_up():
        told = [http("GET", f"{server.admin}/api/v1/status", timeout=5).json() for server in servers]
        owners = [one["log"]["partitions_owned"] for one in told]
        sinks = [sink for one in told for sink in one["sinks"]]
        everything = list(range(partitions))
        # Whoever took an event knows that it is there; a partition's owner may hear of it half a second later.
        ends = {p: max(part["latest"] for one in told for part in one["partitions"] if part["partition"] == p) for p in everything}
        for name in {sink["name"] for sink in sinks}:
            runs = {part["partition"]: part["cursor"] for sink in sinks if sink["name"] == name for part in sink["partitions"]}
            if sorted(runs) != everything or any(runs[p] < ends[p] for p in everything):
                return False
        return sorted(sum(owners, [])) == everything and all(sink["lag_events"] == 0 for sink in sinks)

    wait_until("every partition is owned, and every sink has caught up", caught_up, **patience)


def certificate(folder, name="broker"):
    """A key with a certificate for 127.0.0.1 that vouches for itself: both in one file, and the certificate alone."""
    key, alone, both = folder / "key.pem", folder / "certificate.pem", folder / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", alone, "-days", "2",
         "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    both.write_text(key.read_text() + alone.read_text())
    return both, alone
