"""`python -m torture`: ends and starts real servers until the time is over, and says what was lost. From `tests/`."""

import argparse
import collections
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from . import disk, errors, points, process, syscalls, wire
from .field import Field
from .rig import FAULTS, PLAIN, Tally, end_all

# Each with its share of the time, its row of the fault grid, and the promises held against it.
MODES = {
    "wire": (wire, 20, "kill -9", ("P1", "P2", "P5")),
    "points": (points, 30, "kill -9", ("P1", "P2", "P5")),
    "syscalls": (syscalls, 30, "kill -9", ("P1", "P2", "P5")),
    "errors": (errors, 15, None, ("P1", "P2", "P4", "P5")),
    "disk": (disk, 4, "ENOSPC", ("P1", "P2", "P4", "P5")),
    "pause": (process, 6, None, ("P1", "P2", "P5")),
}
COLUMNS = ("cycles", "killed", "acknowledged", "resent", "rows", "lost", "doubled", "books", "other")


def fault_of(mode, label):
    """The row of the grid that a cycle belongs to."""
    if mode == "errors":
        return "ENOSPC" if label.startswith("ENOSPC") else "EIO"
    if mode == "pause":
        return "double start" if label.startswith("second") else "process pause"
    return MODES[mode][2]


def arguments(given=None):
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--budget", type=float, default=600, metavar="SECONDS", help="in all (default: %(default)s)")
    parser.add_argument("--only", default=",".join(MODES), metavar="MODES", help="of %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is left to chance (default: %(default)s)")
    parser.add_argument("--dir", type=Path, help="where data folders go (default: a temporary folder)")
    chosen = parser.parse_args(given)
    chosen.modes = chosen.only.split(",")
    unknown = [mode for mode in chosen.modes if mode not in MODES]
    if unknown or chosen.jobs < 1 or chosen.budget <= 0:
        parser.error(f"no such mode: {', '.join(unknown)}" if unknown else "--jobs and --budget are above 0")
    return chosen


def work(mode, folder, seed, seconds, taken, results):
    """One worker: takes sweep after sweep until the time is over, but each at least once."""
    try:
        take_sweeps(mode, folder, seed, seconds, taken, results)
    except KeyboardInterrupt:
        sys.exit(1)
    finally:
        end_all()


def take_sweeps(mode, folder, seed, seconds, taken, results):
    module, deadline = MODES[mode][0], time.monotonic() + seconds
    sweeps = module.sweeps()
    field = Field(folder, seed, deadline, tell=lambda counts: results.put(("counts", mode, seed, dict(counts))))
    tallies = collections.Counter()
    while True:
        with taken.get_lock():
            number, taken.value = taken.value, taken.value + 1
        if number >= len(sweeps) and (field.over() or not field.counts["cycles"]):
            break  # the time is over, or this machine can do none of it
        what = sweeps[number % len(sweeps)]
        before = field.counts.copy()
        with field.guard(None, f"{mode} {what}"):
            module.sweep(field, what)
        label = what if isinstance(what, str) else " ".join(what[1:] if mode == "errors" else what)
        tallies[fault_of(mode, label), "tried"] += field.counts["cycles"] - before["cycles"]
        tallies[fault_of(mode, label), "survived"] += field.counts["survived"] - before["survived"]
    field.close()
    results.put(("counts", mode, seed, dict(field.counts)))
    results.put(("done", mode, dict(field.hits), field.broken, field.skipped, dict(tallies)))


class Run:
    """What the workers told so far."""

    def __init__(self, chosen):
        self.chosen, self.began = chosen, time.monotonic()
        self.counts = collections.defaultdict(dict)  # mode -> seed -> counts
        self.hits, self.tallies = collections.Counter(), collections.Counter()
        self.broken, self.skipped = [], []
        self.seconds = {}

    def totals(self, mode):
        total = collections.Counter()
        for counts in self.counts[mode].values():
            total.update(counts)
        total.update({kind: total[f"broken {kind}"] for kind in ("lost", "doubled", "books", "other")})
        return total

    def mode(self, mode, seconds, folder):
        results, taken = multiprocessing.Queue(), multiprocessing.Value("i", 0)
        began = time.monotonic()
        workers = []
        for job in range(self.chosen.jobs):
            seed = self.chosen.seed * 1000 + job
            parts = (mode, folder / f"{mode}-{job}", seed, seconds, taken, results)
            workers.append(multiprocessing.Process(target=work, args=parts))
            workers[-1].start()
        open_workers = len(workers)
        while open_workers:
            try:
                told = results.get(timeout=1)
            except queue.Empty:
                if not any(worker.is_alive() for worker in workers):
                    self.broken.append(f"{mode}: a worker ended without a word")
                    break
                continue
            if told[0] == "counts":
                _, _, seed, self.counts[mode][seed] = told
                self.progress(mode, began, seconds)
            else:
                open_workers -= 1
                _, _, hits, broken, skipped, tallies = told
                self.hits.update(hits)
                self.broken += broken
                self.skipped += skipped
                self.tallies.update({(mode, *key): n for key, n in tallies.items()})
        for worker in workers:
            worker.join()
            if worker.exitcode != 0:
                self.broken.append(f"{mode}: a worker ended with {worker.exitcode}")
        self.seconds[mode] = time.monotonic() - began

    def progress(self, mode, began, seconds):
        if sys.stderr.isatty():
            total, spent = self.totals(mode), time.monotonic() - began
            text = f"{mode} {spent:.0f}/{seconds:.0f} s: {total['cycles']} cycles, {total['killed']} killed, "
            sys.stderr.write(f"\r\033[K{text}{total['broken']} broken")
            sys.stderr.flush()

    def report(self):
        """The tables, and whether all is well."""
        if sys.stderr.isatty():
            sys.stderr.write("\r\033[K")
        rows = [("mode", *COLUMNS, "seconds")]
        together = collections.Counter()
        for mode in self.chosen.modes:
            total = self.totals(mode)
            together.update(total)
            rows.append((mode, *(str(total[name]) for name in COLUMNS), f"{self.seconds[mode]:.0f}"))
        seconds = sum(self.seconds.values())
        rows.append(("together", *(str(together[name]) for name in COLUMNS), f"{seconds:.0f}"))
        widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
        for row in rows:
            cells = [cell.rjust(width) if n else cell.ljust(width) for n, (cell, width) in enumerate(zip(row, widths))]
            print("  ".join(cells))
        rate = together["killed"] / seconds * 60
        print(f"\n{rate:.0f} kills a minute; seed {self.chosen.seed}, {self.chosen.jobs} at a time")
        never = self.kill_points()
        if self.broken:
            print(f"\nBROKEN: {len(self.broken)}")
        for text in self.broken:
            print(f"\n{text}")
        for text, times in sorted(collections.Counter(self.skipped).items()):
            print(f"SKIPPED: {text} ({times} times)")
        return not self.broken and not never

    def kill_points(self):
        """How often each was hit; those that never were."""
        meant = points.names() if "points" in self.chosen.modes else {}
        for mode, named in (("wire", ("K1", "K2", "K11")), ("syscalls", ("K24",))):
            if mode in self.chosen.modes:
                meant.update(dict.fromkeys(named, "from outside"))
        order = sorted(meant, key=lambda name: (int("".join(filter(str.isdigit, name))), name))
        skipped = any("system calls" in text or "kill points" in text for text in self.skipped)
        excused = {"K24"} if FAULTS.exists() else set(order)
        never = [name for name in order if not self.hits[name] and not (skipped and name in excused)]
        if order:
            print("\nkill points: " + "  ".join(f"{name} {self.hits[name]}" for name in order))
        if never:
            print(f"NEVER HIT: {', '.join(never)}")
        ended = sum(self.totals(mode)["sweeps ended"] for mode in self.chosen.modes)
        print(f"sweeps that came to their end: {ended}")
        others = {name: n for name, n in sorted(self.hits.items()) if name not in meant}
        if others:
            print("also: " + ", ".join(f"{name} {n}" for name, n in others.items()))
        return never

    def tally(self):
        for mode, fault in sorted({key[:2] for key in self.tallies}):
            line = Tally(f"torture::{mode}", fault, MODES[mode][3])
            line.add(self.tallies[mode, fault, "tried"], self.tallies[mode, fault, "survived"])
            line.write()


def main(given=None):
    chosen = arguments(given)
    if not PLAIN.exists():
        print(f"{PLAIN} is not built: cargo build --workspace --locked --bins", file=sys.stderr)
        return 2
    base = Path(tempfile.mkdtemp(prefix="tidegate-torture-", dir=chosen.dir))
    run, shares = Run(chosen), sum(MODES[mode][1] for mode in chosen.modes)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for mode in chosen.modes:
            run.mode(mode, chosen.budget * MODES[mode][1] / shares, base)
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGINT)
            worker.join()
        print(f"interrupted; what was tried is in {base}", file=sys.stderr)
        return 1
    run.tally()
    well = run.report()
    if not run.broken:
        shutil.rmtree(base)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
