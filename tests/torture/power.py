"""Power cuts, failing disks and full disks, on the real program and real file systems.

    cd tests && python -m torture.power --cycles 2000           cuts, on every file system this machine has
    cd tests && python -m torture.power --what eio,enospc       disks that fail, disks that are full
    cd tests && python -m torture.power --lie sync --cycles 20  a server whose syncs do nothing: must be caught

Needs root and loop devices; says what it skips, and why. Exit status: 0 all promises held (with --lie: the lie was
caught), 1 one was broken (the lie was not caught), 2 usage.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from .power_disk import KINDS, MIB, Unavailable, WorkFolder, check_machine
from .power_faults import FailingDisk, FullBacking, FullDisk
from .power_plot import Counts, FileSystemLost, Machine, Mode
from .rig import PLAIN, Tally

PROMISES = ("P1", "P2", "P5")
FAULTS = {"power": "power loss", "eio": "EIO", "enospc": "ENOSPC"}
# Cycles on one image: each check reads the whole log, and where retention takes that away, the whole lake.
CYCLES, CYCLES_RETENTION = 50, 20
FINDINGS_SHOWN = 5
SYNC_LIE = "int fsync(int f){(void)f;return 0;} int fdatasync(int f){(void)f;return 0;}"


def modes(what, lie=""):
    """(what is tried, with which machine, in which mode), in the order of the table."""
    small = dataclasses.replace(KINDS["ext4-ordered"], bytes=40 * MIB)
    found = []
    if "power" in what:
        plain = [Mode(kind) for kind in KINDS.values() if kind.has_shutdown]
        # Without journal_async_commit: with it ext4 itself cannot be mounted any more after 6 of 274 cuts that take the
        # disk's cache, whatever is written; without it after none.
        cached = [Mode(kind, "cached") for kind in KINDS.values() if kind.name != "ext4-async-commit"]
        kept = [Mode(KINDS["ext4-ordered"], retention=True), Mode(KINDS["ext4-writeback"], "cached", retention=True)]
        if lie:
            plain, kept = [] if lie == "barrier" else plain[:1], []
            cached = cached[:1]
        found += [("power", Machine, dataclasses.replace(mode, lie=lie)) for mode in plain + cached + kept]
    if "eio" in what:
        names = ("ext4-ordered", "ext4-writeback", "xfs")
        found += [("eio", FailingDisk, Mode(KINDS[name], "cached")) for name in names]
        found += [("eio", FullBacking, Mode(KINDS["ext4-ordered"]))]
    if "enospc" in what:
        found += [("enospc", FullDisk, Mode(small)), ("enospc", FullDisk, Mode(KINDS["xfs"]))]
    return found


def probe(found):
    """The modes that this machine can do, and a line for each that it cannot."""
    usable, skipped, verdicts = [], [], {}
    for what, machine, mode in found:
        key = (mode.kind.name, mode.disk)
        if key not in verdicts:
            try:
                check_machine(mode.kind, mode.disk)
                verdicts[key] = None
            except Unavailable as why:
                verdicts[key] = str(why)
        if verdicts[key] is None:
            usable.append((what, machine, mode))
        else:
            skipped.append(f"SKIPPED: {FAULTS[what]} on {mode.name}: {verdicts[key]}")
    return usable, skipped


@dataclasses.dataclass
class Finding:
    """One broken promise: where, what, and how to come back to it."""

    row: tuple
    number: int
    cycle: int
    text: str
    kept: str


@dataclasses.dataclass
class Plan:
    """What all jobs share."""

    usable: list
    seed: int
    cycles: int
    deadline: float
    environment: dict
    keep: str
    only_machine: int = -1


def play(folder, plan, number, take, tell):
    """One image, from its making to its last check; what was counted, and what was found."""
    what, kind_of_machine, mode = plan.usable[number % len(plan.usable)]
    counts, began, row = Counts(), time.monotonic(), (what, mode.name, kind_of_machine.__name__)
    home = Path(folder) / f"machine-{number}"
    home.mkdir()
    machine, finding = None, None
    most = min(CYCLES_RETENTION if mode.retention else CYCLES, max(2, plan.cycles // len(plan.usable)))
    try:
        machine = kind_of_machine(home, mode, f"{plan.seed}-{number}", counts, plan.environment)
        while counts.cycles < most and not machine.is_full() and take():
            tried = counts.cuts
            machine.cycle()
            tell(("cycle", counts.cuts - tried))
        machine.finish()
    except FileSystemLost:
        machine.note_totals()
    except Exception as fault:  # a broken promise, or this tool's own failure: both are told, none passes
        text = f"{type(fault).__name__}: {fault}"
        text += "" if type(fault).__name__ == "Broken" else f"\n{traceback.format_exc()}"
        kept = Path(plan.keep) / f"seed-{plan.seed}-machine-{number}"
        if machine:
            machine.keep(kept)
            machine.count_damage()
        else:
            counts.broken += 1
        finding = Finding(row, number, counts.cycles, text, str(kept))
    finally:
        if machine:
            machine.close()
    counts.seconds = time.monotonic() - began
    tell(("machine", row, counts, finding))


def job(plan, left, next_number, results):
    """Takes machine after machine until the cycles or the time are used up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parent = os.getppid()

    def take():
        if time.monotonic() > plan.deadline or os.getppid() != parent:
            return False
        with left.get_lock():
            left.value -= 1
            return left.value >= 0

    try:
        with WorkFolder() as folder:
            while left.value > 0 and time.monotonic() < plan.deadline:
                with next_number.get_lock():
                    number, next_number.value = next_number.value, next_number.value + 1
                if plan.only_machine >= 0:
                    play(folder, plan, plan.only_machine, take, results.put)
                    break
                play(folder, plan, number, take, results.put)
    except Exception:  # told to the parent, which fails
        results.put(("crash", traceback.format_exc()))
    results.put(("end",))


def lying_library(folder):
    """A library whose fsync and fdatasync do nothing, to be loaded before the C library."""
    source, library = Path(folder) / "lie.c", Path(folder) / "lie.so"
    source.write_text(SYNC_LIE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library)}


def torture(plan, jobs, show=lambda *_: None):
    """Plays the plan; rows of counts, findings, and crashes of the tool itself."""
    context = multiprocessing.get_context("fork")
    left, next_number, results = context.Value("q", plan.cycles), context.Value("q", 0), context.Queue()
    workers = [context.Process(target=job, args=(plan, left, next_number, results)) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    end_early(left)
    rows, findings, crashes, ended, cycles, cuts = {}, [], [], 0, 0, 0
    try:
        while ended < jobs:
            try:
                said = results.get(timeout=1)
            except queue.Empty:
                if not any(worker.is_alive() for worker in workers) and results.empty():
                    crashes.append("a job ended without a word")
                    break
                continue
            if said[0] == "cycle":
                cycles, cuts = cycles + 1, cuts + said[1]
                show(cycles, cuts, len(findings))
            elif said[0] == "machine":
                rows.setdefault(said[1], Counts()).add(said[2])
                findings += [said[3]] if said[3] else []
            elif said[0] == "crash":
                crashes.append(said[1])
            else:
                ended += 1
    finally:
        for worker in workers:
            if worker.is_alive() and ended < jobs:
                worker.terminate()
            worker.join(30)
    return rows, findings, crashes


def end_early(left):
    """A first Ctrl-C or SIGTERM ends it after the cycles under way, with last checks and table; a second, at once."""

    first = []

    def stop(*_):
        if first and time.monotonic() > first[0] + 1:  # not the same signal, sent to the group and to us
            sys.exit(1)
        first.append(time.monotonic())
        left.value = 0

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)


def table(rows):
    """What was done and what came of it."""
    numbers = ("images", "cycles", "cuts", "acked", "lost", "doubled", "books off", "broken", "fs lost", "s/cycle")
    heads = ("fault", "file system, disk", *numbers)
    lines = [heads]
    total = Counts()
    for (what, name, machine), counts in sorted(rows.items()):
        total.add(counts)
        fault = FAULTS[what] + {"FailingDisk": " (disk)", "FullBacking": " (backing full)"}.get(machine, "")
        lines.append((fault, name, *columns(counts)))
    lines.append(("all", "", *columns(total)))
    widths = [max(len(str(line[n])) for line in lines) for n in range(len(heads))]
    text = []
    for line in lines:
        words = [str(word).rjust(w) if n > 1 else str(word).ljust(w) for n, (word, w) in enumerate(zip(line, widths))]
        text.append("  ".join(words).rstrip())
    return "\n".join(text), total


def columns(c):
    each = f"{c.seconds / c.cycles:.2f}" if c.cycles else "-"
    return c.images, c.cycles, c.cuts, c.acknowledged, c.lost, c.doubled, c.books, c.broken, c.file_systems_lost, each


def file_systems_lost_to_cuts(rows):
    """Of 100 cuts, on the worst file system; few cuts say nothing."""
    worst = [100 * c.file_systems_lost / c.cuts for (what, *_), c in rows.items() if what == "power" and c.cuts >= 100]
    return max(worst, default=0.0)


def write_tallies(rows):
    """For the fault grid: cuts and faults that were tried, and those after which all was there."""
    for what, fault in FAULTS.items():
        counts = Counts()
        for row, one in rows.items():
            if row[0] == what:
                counts.add(one)
        tally = Tally(f"torture.power {what}", fault, PROMISES)
        # A cut that broke a promise is among the cuts; a cycle that did is not among the cycles.
        # What took the file system with it is no try at all.
        tried = counts.cuts - counts.file_systems_lost if what == "power" else counts.cycles + counts.broken
        tally.add(tried, tried - counts.broken)
        tally.write()


def arguments(argv):
    parser = argparse.ArgumentParser(prog="python -m torture.power", description=__doc__.splitlines()[0])
    parser.add_argument("--what", default="power,eio,enospc", help="of power, eio, enospc (all)")
    parser.add_argument("--cycles", type=int, default=0, help="cycles together (default: 200, or what --budget allows)")
    parser.add_argument("--budget", type=float, default=0, metavar="SECONDS", help="stop after so long")
    parser.add_argument("--jobs", type=int, default=1, help="images at once, each in a process of its own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose file system or disk contains this")
    parser.add_argument("--machine", type=int, default=-1, metavar="N", help="only the machine that a finding names")
    parser.add_argument("--lie", choices=("sync", "barrier"), help="a system that lies: must be caught")
    parser.add_argument("--keep", default="", metavar="FOLDER", help="where findings are put aside")
    given = parser.parse_args(argv)
    given.what = given.what.split(",")
    if unknown := set(given.what) - set(FAULTS):
        parser.error(f"--what: not {', '.join(sorted(unknown))}; {', '.join(FAULTS)}")
    if given.lie:
        given.what = ["power"]
    given.cycles = given.cycles or (200 if not given.budget else 1 << 40)
    return given


def progress(began):
    """A line that is written over, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda *_: None


    def show(cycles, cuts, found):
        text = f"\r{cycles} cycles, {cuts} cuts, {found} findings, {time.monotonic() - began:.0f} s "
        print(text, end="", file=sys.stderr, flush=True)

    return show


def main(argv=None):
    given, began = arguments(argv), time.monotonic()
    if not PLAIN.exists():
        print(f"{PLAIN} is missing: cargo build --workspace --locked --bins", file=sys.stderr)
        return 2
    found = [row for row in modes(given.what, given.lie or "") if given.only in row[2].name]
    usable, skipped = probe(found)
    for line in skipped:
        print(line)
    if not usable:
        print(f"nothing tried, {len(skipped)} skipped")
        return 0
    with contextlib.ExitStack() as stack:
        lie = {}
        if given.lie == "sync":
            lie = lying_library(stack.enter_context(tempfile.TemporaryDirectory()))
        deadline = began + given.budget if given.budget else float("inf")
        keep = given.keep or str(Path(tempfile.gettempdir()) / "tidegate-power-findings")
        plan = Plan(usable, given.seed, given.cycles, deadline, lie, keep, given.machine)
        rows, findings, crashes = torture(plan, given.jobs, progress(began))
    text, total = table(rows)
    print(f"\n{text}\n{len(skipped)} skipped, seed {given.seed}, {time.monotonic() - began:.0f} s")
    print(
        f"{total.recoveries_cut} starts were cut, {total.unflushed} sectors were at stake in disk caches,"
        f" {total.aborted} aborts after a failed sync, {total.recovered} recoveries without a restart,\n"
        f"the lake was read {total.lake_checks} times; fs lost: could not be mounted after a cut, or was damaged by a"
        " failing disk as its own checker says: nothing could be asked of the server"
    )
    for finding in findings[:FINDINGS_SHOWN]:
        where = f"{finding.row[1]}, machine {finding.number}, after cycle {finding.cycle}"
        print(f"\nBROKEN: {where}: {finding.text[:1500]}")
        print(f"put aside: {finding.kept}")
    for crash in crashes:
        print(f"\nthe tool itself failed: {crash}")
    if given.lie:
        print("the lie was caught" if findings else "THE LIE WAS NOT CAUGHT")
        return 0 if findings and not crashes else 1
    write_tallies(rows)
    if (lost := file_systems_lost_to_cuts(rows)) > 1:
        print(f"{lost:.1f} of 100 cuts took the file system itself: this shows too little of the server")
        return 1
    return 1 if findings or crashes else 0


if __name__ == "__main__":
    sys.exit(main())
