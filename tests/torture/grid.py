"""The fault grid: which fault was tried against which promise, how often, and how often the promise held.

    python tests/torture/grid.py --budget 600        run everything, the sweeps for that many seconds, then print
    python tests/torture/grid.py --from a.jsonl …    print what earlier runs tallied

Tests and sweeps append lines to the file in `TIDEGATE_TALLY`; this adds them up. A cell shows `survived/tried`. `later`
stands where the part of the product that makes the promise is not built yet, nothing where the fault cannot touch the
promise. Exit status 1 where a run failed, a cell lost something, or a cell that is due was never tried.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROMISES = {
    "P1": "acked = durable",
    "P2": "exactly once",
    "P3": "isolation",
    "P4": "bounded memory",
    "P5": "books balance",
    "P6": "replay",
    "P7": "reload",
}
# Which promises each fault can touch.
ROWS = {
    "kill -9": "P1 P2 P5 P6 P7",
    "power loss": "P1 P2 P5 P6 P7",
    "torn write": "P1 P2 P5 P7",
    "ENOSPC": "P1 P2 P4 P5 P6 P7",
    "EIO": "P1 P2 P5 P6",
    "bit flip": "P1 P2 P5 P6",
    "clock jump": "P2 P3 P5 P6 P7",
    "sink down": "P2 P3 P4 P5 P6",
    "slow sink": "P2 P3 P4 P5",
    "broker restart": "P1 P2 P4 P5 P6",
    "client duplicates": "P2 P5",
    "partial network": "P1 P2 P3 P4 P5",
    "tenant at 100x": "P3 P4 P5 P6",
    "poison event": "P2 P3 P5",
    "broken reload": "P5 P7",
    "process pause": "P1 P2 P4 P5 P6",
    "double start": "P1 P2 P5 P6",
    "replay interrupted": "P5 P6",
}


def runs(budget):
    """What is run, with the share of the budget the sweeps get."""
    python = str(REPOSITORY / ".venv" / "bin" / "python")
    torture = [python, "-m", "torture", "--budget", str(budget * 2 // 3)]
    power = [python, "-m", "torture.power", "--budget", str(budget // 3)]
    tests = REPOSITORY / "tests"
    return [
        ("the workspace's tests", ["cargo", "test", "--workspace", "--locked", "--quiet"], REPOSITORY),
        ("the programs", ["cargo", "build", "--workspace", "--locked", "--quiet", "--bins"], REPOSITORY),
        ("end to end", [python, "-m", "pytest", "-q"], tests / "e2e"),
        ("kill sweep", torture, tests),
        ("power cuts", power, tests),
    ]


def run_all(budget, tally, log):
    """Runs everything with the tally; returns what failed."""
    failed = []
    for name, command, folder in runs(budget):
        start = time.monotonic()
        print(f"{name} …", file=sys.stderr, flush=True)
        with open(log, "a") as output:
            output.write(f"=== {name}: {' '.join(command)}\n")
            output.flush()
            environment = {**os.environ, "TIDEGATE_TALLY": str(tally)}
            code = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
        verdict = "done" if code == 0 else f"FAILED (exit {code}, see {log})"
        print(f"{name}: {verdict} after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        if code != 0:
            failed.append(name)
    return failed


def add_up(files):
    """{(fault, promise): [survived, tried]}, and the same by who tried it."""
    cells = collections.defaultdict(lambda: [0, 0])
    for file in files:
        for number, line in enumerate(Path(file).read_text().splitlines(), 1):
            one = json.loads(line)
            strange = [p for p in one["promises"] if p not in PROMISES]
            if one["fault"] not in ROWS or strange:
                sys.exit(f"{file}:{number}: the grid has no {one['fault']!r} × {one['promises']}")
            for promise in one["promises"]:
                cell = cells[one["fault"], promise]
                cell[0] += one["survived"]
                cell[1] += one["tried"]
    return cells


def cell_text(cells, fault, promise):
    """What a cell shows, and whether it is well."""
    survived, tried = cells.get((fault, promise), (0, 0))
    if tried:
        return f"{survived}/{tried}" if survived < tried else str(tried), survived == tried
    if promise not in ROWS[fault].split():
        return "", True
    return "NOT TRIED", False


def show(cells):
    """Prints the grid; true where every cell is well."""
    well = True
    heads = [f"{promise} {meaning}" for promise, meaning in PROMISES.items()]
    rows = []
    for fault in ROWS:
        texts = []
        for promise in PROMISES:
            text, fine = cell_text(cells, fault, promise)
            well &= fine
            texts.append(text)
        rows.append([fault, *texts])
    widths = [max(len(row[i]) for row in [["fault", *heads], *rows]) for i in range(len(heads) + 1)]
    for row in [["fault", *heads], ["-" * width for width in widths], *rows]:
        first, *rest = [cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row)]
        print("| " + " | ".join([first, *rest]) + " |")
    return well


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=600, help="seconds for the sweeps (default 600)")
    parser.add_argument("--from", dest="files", nargs="+", metavar="FILE", help="run nothing, add these tallies up")
    parser.add_argument("--keep", metavar="FILE", help="append the tallies to this file too")
    arguments = parser.parse_args()
    if arguments.files:
        return 0 if show(add_up(arguments.files)) else 1
    with tempfile.TemporaryDirectory(prefix="tidegate-grid-") as folder:
        tally = Path(folder, "tally.jsonl")
        tally.touch()
        log = REPOSITORY / "target" / "grid.log"
        log.parent.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        failed = run_all(arguments.budget, tally, log)
        if arguments.keep:
            with open(arguments.keep, "a") as kept:
                kept.write(tally.read_text())
        well = show(add_up([tally]))
    for name in failed:
        print(f"FAILED: {name}")
    return 0 if well and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
