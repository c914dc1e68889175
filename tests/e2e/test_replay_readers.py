"""Readers who list and read a lake in a loop, with DuckDB and with pyarrow, while a window of it is promoted and reverted."""

import json
import subprocess
import sys
from pathlib import Path

from beside_promotion import with_duckdb
from harness import tally
from test_replay_promote import STRICT, fill, replay

ROUNDS = 2
READERS = ("duckdb", "pyarrow")


def test_who_reads_while_a_window_is_promoted_sees_the_old_the_new_or_an_error(make_server):
    """Scenario: two readers read events and dead letters of a lake in a loop, while a window in which a third of the dead
    heals is promoted and reverted, twice.
    Guarantees: each read that ends well has all rows from before or all from after, each once; every other says that it
    cannot read a file, as docs/replay.md says; both windows and the error are met."""
    server = make_server(schemas={"order": STRICT}).start()
    key = server.add_tenant()
    fill(server, key)
    old = sorted(with_duckdb(server.lake))
    plan = replay(server, sinks=1)
    server.ctl("replay", "promote", plan, "--yes")
    new = sorted(with_duckdb(server.lake))
    assert server.ctl("replay", "revert", plan, "--yes")["state"] == "reverted"
    assert sorted(with_duckdb(server.lake)) == old
    changed = [row for row in new if row not in old]
    assert len(old) == len(new) == 300 and len(changed) == 200, (len(old), len(new), len(changed))
    expected, stop = server.folder / "expected.json", server.folder / "stop"
    expected.write_text(json.dumps({"old": old, "new": new}))
    readers = {
        name: subprocess.Popen(
            [sys.executable, Path(__file__).with_name("beside_promotion.py"), name, server.lake, stop, expected],
            stdout=subprocess.PIPE, text=True,
        )
        for name in READERS
    }  # fmt: skip
    try:
        for _ in range(ROUNDS):
            server.ctl("replay", "compare", plan, status=1)
            assert server.ctl("replay", "promote", plan, "--yes")["state"] == "promoted"
            assert server.ctl("replay", "revert", plan, "--yes")["state"] == "reverted"
        assert sorted(with_duckdb(server.lake)) == old
    finally:
        stop.touch()
        said = {name: reader.communicate(timeout=60)[0] for name, reader in readers.items()}
    for name, line in said.items():
        seen = json.loads(line)
        print(name, seen)
        assert seen["wrong"] == [] and seen["unexpected"] == [], f"{name}: {seen}"
        assert seen["old"] and seen["told"], f"{name} saw too little: {seen}"
    assert any(json.loads(line)["new"] for line in said.values()), said
    tally("e2e::replay_readers", "replay interrupted", ["P6"], 2 * ROUNDS)
