"""Replay where the log is Apache Kafka: what came twice stays out, and a shared topic's partitions are replayed by who has them."""

import sys
import time
from pathlib import Path

import pytest
from harness import Load, tally, wait_until
from kafka_log import on_kafka, owned, settle
from test_replay import files_of_live, replay, replay_job, shadow_rows, within

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clickhouse_engine import lake_rows  # noqa: E402

from brokers import why_no_kafka  # noqa: E402

pytestmark = pytest.mark.skipif(bool(why_no_kafka()), reason=f"Kafka: {why_no_kafka()}")


def test_a_window_of_a_topic_is_replayed_under_load_and_kills(make_server, one):
    """Scenario: two partitions, events sent twice by their ids; a window of both is replayed while load goes on; the server is
    killed twice.
    Guarantees: the shadow holds the window as live has it, without what came twice; live files are as they were."""
    server = make_server(log=on_kafka(one, "replayed")).start()
    keys = [server.add_tenant(name) for name in ("acme", "beta", "gamma", "delta")]
    for part in range(8):
        for key in keys:
            events = [{"event_type": "order", "event_id": f"o{part}-{n}", "n": n} for n in range(50)]
            for _ in range(2 if part % 2 else 1):
                assert server.send(events, key).status == 200
    settle(server)
    assert owned(server) == [0, 1]
    ends = {part["partition"]: part["latest"] for part in server.ctl("offsets")["partitions"]}
    assert sum(ends.values()) >= 8 * 4 * 50 * 1.5 and all(ends.values()), f"both partitions have events: {ends}"
    live, files = lake_rows(server, "order"), files_of_live(server)
    assert len(live) == 8 * 4 * 50
    window = {partition: (end // 5, end - end // 7) for partition, end in ends.items()}
    load = Load(server, keys[0], "live", rate=200, batch=10, seconds=120)
    wait_until("live traffic flows", lambda: load.journal.exists() and load.journal.stat().st_size)
    first, last = (",".join(f"{partition}:{bounds[side]}" for partition, bounds in window.items()) for side in (0, 1))
    plan_id = replay(server, "--from", first, "--to", last, "--shadow", "--yes", "--max-rate", 300)["plan_id"]
    for _ in range(2):
        time.sleep(1)
        server.kill()
        server.start()
        wait_until("the partitions are its own again", lambda: owned(server) == [0, 1])

    def ended():
        job = replay_job(server, plan_id)
        assert job["state"] != "failed", job
        return job["state"] == "done"

    wait_until("the replay is done", ended, timeout=180)
    load.stop()
    expected = [row for row in live if within([row], *window[row["log_partition"]])]
    shadow = shadow_rows(server, plan_id, "order")
    assert expected and shadow == expected, f"{len(shadow)} rows in the shadow, {len(expected)} in the window of live"
    after = files_of_live(server)
    assert {path: after.get(path) for path in files} == files, "a live file is gone or has changed"
    settle(server)
    audit = server.audit()
    assert audit["balanced"] is True and audit["difference"] == 0, audit
    tally("e2e::replay_kafka", "replay interrupted", ["P5", "P6"], 2)
