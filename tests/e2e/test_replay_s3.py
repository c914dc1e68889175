"""A window of a lake on S3 (moto's server) promoted and reverted, with a kill on either side of the word that decides, and a
reader who lists and reads the bucket meanwhile."""

import io
import subprocess
import threading

import pyarrow.parquet
import pytest
from fast_clock import FastClock, why_no_fast_clock
from harness import tally, wait_until
from test_replay_cuts import begin, phase
from test_replay_promote import STRICT, fill, replay
from test_s3 import KEYS, lake_on, make_s3  # noqa: F401

# What may still come of a request that nobody waits for any more is waited for, a minute long: the server's minute.
FACTOR = 20


def promoted_lake(make_server, s3, tmp_path):
    """A server whose lake is on `s3`, with dead letters in a window, and its replay in which these heal."""
    clock = FastClock(tmp_path / "clock")
    # Told in the address of the store's options: how long a reader may take to list a folder.
    server = lake_on(make_server, s3, environment={**KEYS, **clock.environment}, schemas={"order": STRICT})
    server.write_config(sink=f'[sink.options]\nmerge = {{ after = "1h", settle = "400ms" }}\n{server.parts["sink"]}')
    server.start()
    fill(server, server.add_tenant())
    return server, clock, replay(server, sinks=1)


def live_of(s3):
    """What a reader finds who lists and reads live's objects: rows, or nothing where one of them is told not to be read."""
    client, rows, names = s3.client(), [], []
    for prefix in ("lake/dead_letters/", "lake/events/"):
        listed = client.list_objects_v2(Bucket=s3.bucket, Prefix=prefix)
        assert not listed["IsTruncated"]
        names += [item["Key"] for item in listed.get("Contents", [])]
    for name in names:
        try:
            body = client.get_object(Bucket=s3.bucket, Key=name)["Body"].read()
            table = pyarrow.parquet.read_table(io.BytesIO(body), columns=["log_offset", "schema_version"], partitioning=None)
        except (client.exceptions.NoSuchKey, pyarrow.ArrowInvalid):
            return None
        rows += [(name.split("/")[1], row["log_offset"], row["schema_version"]) for row in table.to_pylist()]
    return sorted(rows)


def objects_of(s3):
    """Live's objects, to the byte."""
    return {name: data for area in ("events", "dead_letters") for name, data in s3.objects(f"lake/{area}/").items()}


class Reader:
    """Lists and reads all the time, and keeps what differs of what it saw."""

    def __init__(self, s3):
        self.s3, self.ends, self.seen, self.told = s3, threading.Event(), [], 0
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.ends.is_set():
            found = live_of(self.s3)
            if found is None:
                self.told += 1
            elif found not in self.seen:
                self.seen.append(found)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ends.set()
        self.thread.join()


@pytest.mark.skipif(why_no_fast_clock() is not None, reason=str(why_no_fast_clock()))
def test_a_window_on_s3_is_promoted_and_reverted_and_a_kill_leaves_the_old_or_the_new(make_server, make_s3, tmp_path):  # noqa: F811
    """Scenario: a window of a lake on S3 is promoted and reverted while a reader lists and reads; then the server is killed while
    what comes is made ready, and again while files change.
    Guarantees: old or new, to the byte; a reader sees the one, the other, or a file that it cannot read; the books balance."""
    s3 = make_s3()
    server, clock, plan = promoted_lake(make_server, s3, tmp_path)
    before, old = objects_of(s3), live_of(s3)
    with Reader(s3) as reader:
        assert server.ctl("replay", "promote", plan, "--yes")["state"] == "promoted"
        new = live_of(s3)
        assert server.ctl("replay", "revert", plan, "--yes")["state"] == "reverted"
    assert objects_of(s3) == before
    assert len(old) == len(new) == 300 and old != new
    assert all(window in (old, new) for window in reader.seen), [len(window) for window in reader.seen]
    assert reader.told and old in reader.seen, "the reader met the exchange"
    clock.go(FACTOR)

    def killed_at(is_there, act):
        """The server dies at the first put of which `is_there` says so; what it comes to after a start."""
        reached = threading.Event()

        def fault(request):
            if request.method == "PUT" and is_there(request.path) and not reached.is_set():
                reached.set()
                server.process.kill()
                return "drop"
            return None

        server.ctl("replay", "compare", plan, status=1) if act == "promote" else None
        s3.fault = fault
        running = begin(server, act, plan)
        assert running.wait(timeout=60) != 0
        assert reached.is_set(), "the put was never met"
        server.process.wait()
        s3.fault = None
        server.start()
        wait_until(f"{act} to be at its end", lambda: phase(server, plan) in (None, "done", "reverted"), timeout=90)
        return phase(server, plan)

    assert killed_at(lambda path: "/promotion/new/" in path, "promote") in (None, "reverted")
    assert objects_of(s3) == before, "not decided yet: as it was"
    is_live = lambda path: "/lake/events/" in path and "promoting" not in path  # noqa: E731
    assert killed_at(is_live, "promote") == "done"
    assert live_of(s3) == new
    assert killed_at(lambda path: "/lake/dead_letters/" in path and "promoting" not in path, "revert") == "reverted"
    assert objects_of(s3) == before
    audit = server.audit()
    assert audit["balanced"] is True and audit["difference"] == 0, audit
    assert subprocess.run(server.ctl_command("replay", "rm", plan), env=server.ctl_environment(), check=False).returncode == 0
    assert not s3.objects(f"lake/shadow/{plan}/")
    tally("e2e::replay_s3", "kill -9", ["P2", "P6"], 3)
