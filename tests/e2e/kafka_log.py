"""What servers with their log on Kafka share in tests: the section of their file, and when all of it has come through."""

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
        for name in {sink["name"] for sink in sinks}:
            runs = sorted(part["partition"] for sink in sinks if sink["name"] == name for part in sink["partitions"])
            if runs != everything:
                return False
        return sorted(sum(owners, [])) == everything and all(sink["lag_events"] == 0 for sink in sinks)

    wait_until("every partition is owned, and every sink has caught up", caught_up, **patience)
