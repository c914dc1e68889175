"""A sink that is added to a server with a history begins where `start` says, and the books still balance."""

import subprocess
from datetime import datetime, timezone

import pyarrow.dataset
import pytest
from harness import http, toml, wait_until


def with_archive(server, start):
    """The server's configuration with a second lake, which begins at `start`."""
    folder = server.folder / "archive"
    server.write_config(
        sink=f'[[sink]]\nname = "archive"\nkind = "lake"\nurl = {toml(folder)}\n'
        f'start = {toml(start)}\nflush = {{ age = "200ms" }}\n'
    )
    return folder


def ids_in(folder):
    ids = pyarrow.dataset.dataset(folder / "events", partitioning="hive").to_table()["event_id"].to_pylist()
    assert len(ids) == len(set(ids)), "an event is there twice"
    return set(ids)


def send(server, key, name, count=20):
    ids = [f"{name}-{i}" for i in range(count)]
    server.accept([{"event_type": "view", "event_id": event_id} for event_id in ids], key)
    return set(ids)


@pytest.mark.parametrize("how", ["now", "offset", "time"])
def test_a_sink_added_later_begins_where_it_is_told_to(make_server, how):
    """Scenario: three requests, a restart with a second lake that begins behind the first two (or behind all), more
    events, kill -9, a start with the same configuration, more events.
    Guarantees: the second lake has what came from there on, once; the first has all; `status` and the books know."""
    server = make_server().start()
    key = server.add_tenant()
    old = send(server, key, "a") | send(server, key, "b")
    noon = datetime.now(timezone.utc).isoformat()
    third = send(server, key, "c")
    server.settle()
    assert server.stop() == 0

    start, at = {"now": ("now", 60), "offset": ("offset:40", 40), "time": (noon, 40)}[how]
    folder = with_archive(server, start)
    server.start()
    added = set() if how == "now" else third
    began = server.status()["sinks"][1]["partitions"][0]["began"]
    assert began["at"] == at, began
    shown = subprocess.run(
        server.ctl_command("status"), env=server.ctl_environment(), capture_output=True, text=True, timeout=60
    ).stdout
    assert f"archive: began at offset {at} of partition 0" in shown, shown
    server.kill()
    server.start()
    added |= send(server, key, "d")
    server.settle()
    assert ids_in(folder) == added
    assert ids_in(server.lake) == old | third | added
    audit = server.audit()
    assert audit["balanced"] is True, audit
    line = next(line for line in audit["tenants"] if line["event_type"] == "view")
    assert (line["sinks"]["archive"]["skipped"], line["sinks"]["archive"]["stored"]) == (at, 80 - at), line


def test_a_start_that_is_not_there_keeps_the_server_from_starting_and_says_why(make_server):
    server = make_server().start()
    send(server, server.add_tenant(), "a")
    server.settle()
    server.stop()
    with_archive(server, "offset:21")
    server.spawn()
    wait_until("it ends", lambda: server.process.poll() is not None)
    assert server.process.returncode == 3
    assert "is beyond the end of the log: the next offset it gives is 20" in server.log_file().read_text()
    with_archive(server, "noon")
    checked = subprocess.run(
        server.ctl_command("config", "check", server.config), capture_output=True, text=True, timeout=60
    )
    assert checked.returncode != 0 and "offset:N" in checked.stdout + checked.stderr, checked


@pytest.mark.parametrize("start", ["first", "now", "offset:1"])
def test_the_books_balance_for_a_sink_added_after_retention_has_passed(make_server, start):
    """Scenario: retention has removed the log's beginning when a second lake is added.
    Guarantees: it begins with the oldest event left (or the next); the audit balances and keeps apart what was gone."""
    server = make_server(log='segment_bytes = "1MiB"\nretention_bytes = "1MiB"').start()
    key = server.add_tenant()
    text = "x" * 4000
    for _ in range(12):
        server.accept([{"event_type": "view", "text": text} for _ in range(50)], key)
    server.settle()

    def earliest():
        return http("GET", f"{server.admin}/api/v1/offsets").json()["partitions"][0]["earliest"]

    def kept():
        return http("GET", f"{server.admin}/api/v1/offsets").json()["partitions"][0]["bytes"]

    # All of it, or it passes further on while this looks.
    wait_until("retention has passed", lambda: kept() <= 1 << 20)
    gone = earliest()
    assert gone > 0
    assert server.stop() == 0
    folder = with_archive(server, start)
    server.start()
    assert earliest() == gone
    server.accept([{"event_type": "view"} for _ in range(10)], key)
    server.settle()
    rows = len(ids_in(folder))
    assert rows == (10 if start == "now" else 610 - gone)
    audit = server.audit()
    assert audit["balanced"] is True, audit
    line = next(line for line in audit["tenants"] if line["event_type"] == "view")
    archive = line["sinks"]["archive"]
    assert (archive["stored"], archive["skipped"]) == (rows, 610 - gone - rows), (line, gone)
