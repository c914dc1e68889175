"""A minute of `make torture`: every kill point once, and one of each other fault against the real server.

What this does not prove: what only many turns show. `make torture BUDGET=600` takes them all."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torture import disk, errors, points, process, syscalls, wire  # noqa: E402
from torture.field import Field, Skip  # noqa: E402
from torture.rig import FAULTS, Tally, end_all  # noqa: E402


@pytest.fixture
def field(tmp_path):
    """Its time is over from the start: each sweep makes the least it makes."""
    yield Field(tmp_path, seed=7, deadline=time.monotonic())
    end_all()


def hold(field, module, sweeps, fault, promises=("P1", "P2", "P5")):
    """Runs the sweeps; nothing may break and nothing be skipped in silence."""
    tally = Tally(f"e2e::torture::{module.__name__.rpartition('.')[2]}", fault, promises)
    before = field.counts.copy()
    try:
        for what in sweeps:
            try:
                module.sweep(field, what)
            except Skip as skip:
                pytest.skip(str(skip))
        field.close()
    finally:
        tally.add(*(field.counts[one] - before[one] for one in ("cycles", "survived")))
        tally.write()
    assert not field.broken, "\n".join(field.broken)
    if field.skipped:
        pytest.skip("; ".join(sorted(set(field.skipped))))
    print(dict(field.counts), dict(field.hits))


def test_a_kill_at_every_point_of_the_program_loses_nothing_and_doubles_nothing(field):
    assert FAULTS.exists(), f"{FAULTS}: cargo build -p tidegate-ingest --features faults --bin ingestd-faults --locked"
    hold(field, points, points.sweeps(), "kill -9")
    never = [point for point in points.names() if not field.hits[point]]
    assert not never, f"never reached: {never}"


def test_a_kill_with_half_a_request_or_answer_on_the_wire_loses_nothing(field):
    hold(field, wire, ["K1", "K2", "K11"], "kill -9")
    assert all(field.hits[point] for point in ("K1", "K2", "K11")), field.hits


def test_a_kill_inside_of_a_system_call_loses_nothing(field):
    kills = [syscalls.LINKED, ("used", "fsync"), ("writer-0", "fdatasync"), ("writer-0", "pwritev"), ("used", "answer")]
    hold(field, syscalls, kills, "kill -9")
    assert field.hits["K24"] > 0, field.hits


def test_a_disk_that_fails_is_told_as_503_and_a_failed_sync_ends_the_process(field):
    failing = [("writer", "EIO", "fdatasync"), ("writer", "EIO", "pwritev"), ("lasting", "EIO", "pwritev")]
    hold(field, errors, failing, "EIO")
    assert field.hits["EIO fdatasync writer"] > 0, field.hits


def test_a_full_disk_is_told_as_503_and_taken_up_again_when_there_is_space(field):
    promises = ("P1", "P2", "P4", "P5")
    hold(field, errors, [("lasting", "ENOSPC", "pwritev"), ("lasting", "ENOSPC", "link")], "ENOSPC", promises)
    hold(field, disk, ["full", "fsize"], "ENOSPC", promises)


def test_a_process_that_stands_still_goes_on_where_it_was(field):
    hold(field, process, ["pause and second start"], "process pause")


def test_a_second_start_is_refused_and_the_first_does_not_notice(field):
    hold(field, process, ["second start"], "double start")
