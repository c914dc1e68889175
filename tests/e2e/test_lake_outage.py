"""The lake cannot be written for a while and load goes on: memory stays bounded, and it catches up by itself."""

import os
import time

from harness import Load, check_nothing_missing, journal_ids, tally, wait_until

OUTAGE_SECONDS = float(os.environ.get("LAKE_OUTAGE_SECONDS", "8"))
RATE = int(os.environ.get("LAKE_OUTAGE_RATE", "5000"))
# The stated bound on resident memory with the default configuration.
RESIDENT_BYTES_MAX = 512 << 20


def test_memory_is_bounded_while_the_lake_is_away_and_it_catches_up_by_itself(make_server):
    """Scenario: the lake's root is renamed away and a plain file stands in its place, while load goes on.
    Guarantees: every answer stays 200, resident memory stays under its bound, and once the root is back all that was
    acknowledged becomes visible without anybody's help."""
    server = make_server(flush_age="200ms").start()
    key = server.add_tenant()
    load = Load(server, key, "outage", rate=RATE, batch=100, seconds=OUTAGE_SECONDS + 60, event_bytes=500)
    away = server.folder / "lake-away"
    resident = []
    try:
        wait_until("load is acknowledged", lambda: server.offsets_given() > 1000, timeout=30)
        wait_until("the lake is being written", lambda: any(server.lake.rglob("*.parquet")), timeout=30)
        os.rename(server.lake, away)
        server.lake.write_text("no folder")
        before, end = server.offsets_given(), time.monotonic() + OUTAGE_SECONDS
        while time.monotonic() < end:
            resident.append(server.resident_bytes())
            time.sleep(0.2)
        assert server.offsets_given() > before + 1000, "events were acknowledged all through the outage"
        sink = server.status()["sinks"][0]
        assert sink["lag_events"] > 0 and sink["freshness_seconds"] > OUTAGE_SECONDS / 2, f"status shows the outage: {sink}"
        server.lake.unlink()
        os.rename(away, server.lake)
        before = server.offsets_given()
        wait_until("events keep coming", lambda: server.offsets_given() > before + RATE)
        report = load.enough()
    finally:
        load.stop()
    print(
        f"outage {OUTAGE_SECONDS:.0f} s, {report['accepted']} events: resident memory at most "
        f"{max(resident) >> 20} MiB, bound {RESIDENT_BYTES_MAX >> 20} MiB"
    )
    assert set(report["codes"]) == {"200"}, f"a lake that is away is no reason to refuse: {report['codes']}"
    assert max(resident) < RESIDENT_BYTES_MAX, f"{max(resident) >> 20} MiB resident"
    server.settle(timeout=120)
    assert server.resident_bytes() < RESIDENT_BYTES_MAX, "the catching up is bounded too"
    check_nothing_missing(server, journal_ids(load.journal))
    assert server.audit("--journal", load.journal)["balanced"] is True
    tally("e2e::lake_outage", "sink down", ["P2", "P4", "P5"], 1)
