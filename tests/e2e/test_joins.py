"""Small files are joined while four readers list and read, and while the server is killed: whoever reads has
each row once, or is told to list again."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import http, tally, wait_until

# How long events come, and files are joined, while the readers read.
SECONDS = float(os.environ.get("JOINS_SECONDS", "12"))
READERS = ["duckdb", "pyarrow", "polars", "clickhouse"]
MERGE = """[sink.options.merge]
after = "0s"
every = "500ms"
settle = "{settle}"
"""


def joining(server):
    return http("GET", f"{server.admin}/api/v1/status").json()["sinks"][0]["joining"]


def readers(server, tmp_path, folder):
    stop = tmp_path / "stop"
    script = Path(__file__).parent / "beside.py"
    command = [sys.executable, str(script)]
    started = [subprocess.Popen([*command, name, str(folder), str(stop)], stdout=subprocess.PIPE, text=True) for name in READERS]

    def end():
        stop.touch()
        return {name: json.loads(reader.communicate(timeout=60)[0]) for name, reader in zip(READERS, started)}

    return end


def send_while(server, key, seconds, kills=0):
    """A few events every few milliseconds, so that there are many files; returns how many were taken."""
    sent, began = 0, time.monotonic()
    dice = random.Random(7)
    due = sorted(dice.uniform(1, seconds) for _ in range(kills))
    while time.monotonic() < began + seconds:
        if due and began + due[0] < time.monotonic():
            due.pop(0)
            server.kill()
            server.start()
        server.accept([{"event_type": "view", "n": n} for n in range(5)], key)
        sent += 5
        time.sleep(0.02)
    return sent


@pytest.mark.parametrize("kills", [0, 4])
def test_readers_see_each_row_once_or_are_told(make_server, tmp_path, kills):
    server = make_server(flush_age="100ms", sink=MERGE.format(settle="300ms")).start()
    key = server.add_tenant()
    server.accept([{"event_type": "view", "n": n} for n in range(5)], key)
    wait_until("there is a file", lambda: any(server.folder_of("view").glob("**/*.parquet")))
    end = readers(server, tmp_path, server.folder_of("view"))
    sent = 5 + send_while(server, key, SECONDS, kills)
    server.settle()
    status = joining(server)
    seen = end()
    print(f"{kills} kills, {sent} events, {status}")
    for name, reader in seen.items():
        print(f"{name}: {reader}")
        assert not reader["wrong"], f"{name} read rows twice or not at all: {reader['wrong'][:3]}"
        assert not reader["unexpected"], f"{name}: {reader['unexpected']}"
        assert reader["whole"] > 0, f"{name} never read the folder: {reader}"
    assert status["made_files"] > 0 and status["failures"] == 0, status

    def joined():
        files = [path.name for path in server.folder_of("view").glob("**/*")]
        return not any(".joining." in name for name in files)

    wait_until("no join is under way", joined)
    assert server.count("view") == sent
    audit = server.audit()
    assert audit["balanced"] is True and audit["difference"] == 0, audit
    [line] = audit["tenants"]
    lake = line["sinks"]["lake"]
    assert lake.pop("stored") == sent and not any(lake.values()), line
    tally("e2e::joins", "kill -9", ["P2", "P5"], kills)
