"""kill -9 at the Nth system call of a kind, N = 1, 2, 3, …, until a run does not get that far; a few at a time."""

import contextlib
import time

from .field import Field, load_until_death
from .rig import Broken, Client, EndedAtStart, wait_until
from .strace import Attached, check, wrapper

KILLED = -9
MOST = 400
LINKED = ("K24", "link")
HELD_MICROS = 300_000
# Where calls are counted: from the start in a new folder, from the start in a used one, or in one thread of a
# server that is ready.
FRESH, USED = "fresh", "used"
FROM_START = (
    *("pwritev", "fdatasync", "fsync", "rename", "unlink", "link"),
    *("mkdir", "openat", "write", "answer", "ftruncate"),
)
THREADS = {
    "writer-0": ("pwritev", "fdatasync", "fsync", "rename", "unlink", "openat"),
    "sink-lake-0": ("pwritev", "fdatasync", "fsync", "rename", "unlink", "mkdir", "openat", "pread64"),
}


def sweeps():
    """Where and which call; what matters most first."""
    threads = [(name, call) for name, calls in THREADS.items() for call in calls]
    started = [(where, call) for where in (USED, FRESH) for call in FROM_START]
    both = zip(started, threads + [None] * len(started))
    return [LINKED, *(pair for two in both for pair in two if pair)]


def sweep(field: Field, where_and_call):
    check()
    where, call = where_and_call
    if where_and_call == LINKED:
        return sweep_linked(field)
    for number in field.turns(where_and_call, MOST):
        dead = False
        with field.cycle(f"{call} of {where}:{number}", fresh=where == FRESH) as plot:
            kill = kill_started if where in (FRESH, USED) else kill_thread
            dead = kill(field, plot, where, call, f"signal=SIGKILL:when={number}")
            if dead:
                field.hits[f"{call} ({where})"] += 1
                field.counts["killed"] += 1
            field.recover(plot)
        if not dead:
            field.counts["sweeps ended"] += 1
            field.from_the_first(where_and_call)
            return
        if field.over():
            return


def kill_started(field, plot, where, call, effect):
    out = plot.scratch / "trace"
    try:
        server = plot.server(wrapper=wrapper(call, effect, out)).start()
        status = load_until_death(field, server, plot, batches=10, after=0.15)
        if status is None:
            server.kill()
    except EndedAtStart as ended:
        if ended.returncode != KILLED:
            raise
        status = KILLED
    return status == KILLED


def kill_thread(field, plot, where, call, effect):
    server = plot.server().start()
    with Attached(server, call, effect, plot.scratch / "trace", only=where):
        status = load_until_death(field, server, plot, batches=12, after=0.15, large=0.2)
    if status is None:
        server.kill()
    return status == KILLED


def sweep_linked(field, cycles=5):
    """K24: a file has its name and nobody knows whether for good. Each link is held where it returns; killed there."""
    for number in range(cycles):
        with field.cycle(f"K24 #{number}") as plot:
            held = wrapper("link", f"delay_exit={HELD_MICROS}", plot.scratch / "trace")
            server = plot.server(wrapper=held).start()
            client = Client(server, plot.journal, seed=field.random.getrandbits(32))
            client.begin(threads=1, batches=200)
            with contextlib.suppress(Broken):
                wait_until("a file has a second name", lambda: linked(server.lake), timeout=5)
                time.sleep(field.random.random() * HELD_MICROS / 4e6)
                field.hits["K24"] += linked(server.lake)
            server.kill()
            client.end()
            field.counts["killed"] += 1
            field.recover(plot)
        if field.over() and field.hits["K24"]:
            return


def linked(lake):
    """True while a file is in `staging/` and has its final name too."""
    for path in (lake / "staging").glob("*.parquet"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_nlink == 2:
                return True
    return False
