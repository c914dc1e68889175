"""Real power cuts on real file systems, a few of each; `python -m torture.power` goes on for as long as you like."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torture import power  # noqa: E402


def play(what, only, cycles, tmp_path, lie=None, seed=11):
    """What `python -m torture.power` does, without its table; a machine that cannot do it skips by name."""
    usable, skipped = power.probe([row for row in power.modes([what], lie or "") if row[2].name in only])
    if skipped:
        pytest.skip("; ".join(skipped))
    assert len(usable) == len(only), f"these are not modes any more: {only}"
    environment = power.lying_library(tmp_path) if lie == "sync" else {}
    plan = power.Plan(usable, seed, cycles, float("inf"), environment, str(tmp_path))
    rows, findings, crashes = power.torture(plan, jobs=1)
    assert not crashes, crashes
    _, total = power.table(rows)
    print(f"{total.cycles} cycles, {total.cuts} cuts, {total.acknowledged} events acknowledged")
    return rows, findings, total


def holds(what, only, cycles, tmp_path):
    rows, findings, total = play(what, only, cycles, tmp_path)
    power.write_tallies(rows)
    assert not findings, findings
    assert total.file_systems_lost == 0, "the file system itself was lost: nothing could be asked of the server"
    assert total.cycles >= cycles - len(only) and total.acknowledged > 0 and total.lake_checks >= len(only), total
    return total


def test_power_cuts_lose_nothing_acknowledged_and_double_nothing(tmp_path):
    """Scenario: load, and ext4's power cut: under load, in a start, in a drain, twice in a row.
    Guarantees: each acknowledged id is in log and lake once, and the books balance, after every cut."""
    total = holds("power", {"ext4-ordered"}, 12, tmp_path)
    assert total.cuts >= total.cycles


def test_power_cuts_that_take_the_disks_own_cache_lose_nothing(tmp_path):
    """Scenario: the same on a disk that loses, keeps or tears what was not flushed to it."""
    total = holds("power", {"ext4-ordered, disk cache lost"}, 8, tmp_path)
    assert total.cuts >= total.cycles


def test_a_disk_that_fails_at_a_sync_ends_the_server_and_loses_nothing(tmp_path):
    """Scenario: what the file system stands on is full, so that fdatasync fails for real; it is mended, and started.
    Guarantees: the process aborts, nothing acknowledged is lost."""
    total = holds("eio", {"ext4-ordered"}, 3, tmp_path)
    assert total.aborted > 0, "no sync failed: nothing was tried"


def test_a_full_disk_is_told_and_recovered_from(tmp_path):
    """Scenario: no free block under load; then room again, or a kill, or a power cut.
    Guarantees: 503 `storage`, status, books and lake readable meanwhile, all there afterwards."""
    holds("enospc", {"ext4-ordered"}, 6, tmp_path)


@pytest.mark.parametrize("lie", ["sync", "barrier"])
def test_a_system_that_lies_about_durability_is_caught(tmp_path, lie):
    """Scenario: syncs that do nothing, or a file system that never flushes its disk.
    Guarantees: of these tests, not of the server: what is lost is seen."""
    name = f"ext4-ordered, disk cache lost, LIE: {lie}"
    _, findings, _ = play("power", {name}, 6, tmp_path, lie)
    assert any("acknowledged" in finding.text for finding in findings), f"{lie}: nothing was found missing: {findings}"
