"""kill -9 during load, again and again; what was acknowledged is in the lake, once.

What this does not prove: a power cut. The kernel goes on here and writes out what it holds.
"""

import json
import os
import signal
import time

from harness import Load, check_nothing_missing, journal_ids, tally, temporary_files, wait_until

KILLS = int(os.environ.get("KILLS", "20"))
CUTS_BETWEEN = min(KILLS, int(os.environ.get("KILLS_BETWEEN_INTENT_AND_CURSOR", "5")))


def intent_is_open(server):
    """True while an intent of the lake is durable and its cursor has not moved past it yet."""
    try:
        state = json.loads((server.data / "sinks" / "lake-0.json").read_text())["state"]
    except FileNotFoundError:
        return False
    return state["intent"] is not None


def kill_between_intent_and_cursor(server, patience):
    """Stops the process, looks, and kills it where an intent is open; otherwise lets it go on and tries again.

    The process stands still while the file is read, so what was seen is what the kill left behind."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if intent_is_open(server):
            server.signal(signal.SIGSTOP)
            time.sleep(0.002)
            if intent_is_open(server):
                server.kill()
                return intent_is_open(server)
            server.signal(signal.SIGCONT)
        time.sleep(0.0002)
    server.kill()
    return False


def test_kills_in_a_row_lose_nothing_acknowledged_and_double_nothing(make_server):
    """Scenario: load with a journal; kill -9 at moments spread over the first second, or aimed between an intent and
    its cursor; start again on the same folder; twenty times.
    Guarantees: each acknowledged id is in the lake, each offset once, and the books balance."""
    server = make_server(flush_age="50ms")
    key, acknowledged, between, loaded = None, set(), 0, 0
    for cycle in range(KILLS):
        server.start()
        key = key or server.add_tenant()
        before = server.offsets_given()
        load = Load(server, key, cycle, rate=3000, batch=20, seconds=60)
        try:
            wait_until("load is running", lambda: server.offsets_given() > before, timeout=30, pause=0.005)
            if cycle % 2 == 0 or between < CUTS_BETWEEN - (KILLS - cycle) // 2:
                between += kill_between_intent_and_cursor(server, patience=3)
            else:
                time.sleep((cycle * 37 % 100) / 200)  # somewhere in the first half second of load
                server.kill()
        finally:
            load.stop()
        seen = journal_ids(load.journal) if load.journal.exists() else set()
        acknowledged |= seen
        loaded += bool(seen)
    print(
        f"{KILLS} kills, {loaded} of them under load, {between} between an intent and its cursor; "
        f"{len(acknowledged)} events acknowledged"
    )
    assert loaded >= KILLS * 9 // 10, f"only {loaded} of {KILLS} kills hit a server that had acknowledged something"
    assert between >= CUTS_BETWEEN, f"only {between} kills fell between an intent and its cursor"

    server.start()
    server.settle()
    check_nothing_missing(server, acknowledged)
    audit = server.audit()
    assert audit["balanced"] is True and audit["difference"] == 0, audit
    for cycle in range(KILLS):
        journal = server.folder / f"journal-{cycle}.ndjson"
        if journal.exists() and journal.stat().st_size:
            server.audit("--journal", journal)
    assert temporary_files(server.lake) == [], "a temporary file of a killed process is still in the lake"
    assert server.stop() == 0
    tally("e2e::kill", "kill -9", ["P1", "P2", "P5"], KILLS)
