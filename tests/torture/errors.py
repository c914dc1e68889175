"""System calls that fail: EIO and ENOSPC, once at the Nth call, from the Nth on, and for as long as a fault lasts.

Expected: what was acknowledged stays; while the log cannot be written the answer is 503 `storage`; after a failed sync
of the log the process ends by itself; a server that cannot start says so and does not crash; without the fault it
recovers, where it goes on by itself, without a restart."""

import time

from .field import Field, load_until_death
from .rig import Broken, Client, EndedAtStart, verify, wait_until
from .strace import Attached, check, wrapper

MOST = 200
ABORTED, KILLED = -6, -9
# Not `write`: it is also how the runtime wakes itself, which no disk can make fail; `disk` has it for files.
# The loader's own calls fail too: then the program never began.
CALLS = {
    "EIO": ("pwritev", "fdatasync", "fsync", "rename", "openat", "pread64", "link", "unlink", "mkdir", "getdents64"),
    "ENOSPC": ("pwritev", "openat", "mkdir", "rename", "link"),
}
# In the writer's thread alone, on a server that is ready: what the answer must be is known.
WRITER = (("EIO", "pwritev"), ("ENOSPC", "pwritev"), ("EIO", "fdatasync"))
LASTING = (("ENOSPC", "pwritev"), ("EIO", "pwritev"), ("ENOSPC", "openat"), ("ENOSPC", "link"), ("EIO", "rename"))


def sweeps():
    """(how, error, call)."""
    at_all = [(how, error, call) for error, calls in CALLS.items() for call in calls for how in ("once", "from")]
    return [("writer", *one) for one in WRITER] + [("lasting", *one) for one in LASTING] + at_all


def sweep(field: Field, one):
    check()
    how, error, call = one
    if how == "lasting":
        with field.cycle(f"{error} of {call} while it lasts") as plot:
            lasting(field, plot, error, call)
        return
    number = 1
    while number < MOST:
        hit = False
        with field.cycle(f"{error} of {call} {how} {number}", fresh=field.random.random() < 0.15) as plot:
            if how == "writer":
                hit = in_writer(field, plot, error, call, number)
            else:
                hit = anywhere(field, plot, f"error={error}:when={number}{'+' if how == 'from' else ''}", call)
            field.recover(plot)
            field.hits[f"{error} {call} {how}"] += hit
        # From some call on: what differs is where it begins, and early is where that is.
        number += 1 if how != "from" or number < 4 else number // 2
        if not hit or (field.over() and number > 2):
            field.counts["sweeps ended"] += not hit
            return


def sound_end(server, status):
    """A process that ended by itself did so on purpose: it aborted, or said why it does not start."""
    said = server.said()
    if "panicked" in said:
        raise Broken(f"a panic, status {status}: {said[-3000:]}")
    if status not in (ABORTED, 1, 3, 127):
        raise Broken(f"ended with {status}: {said[-3000:]}")


def anywhere(field, plot, effect, call):
    """True if the fault came."""
    out = plot.scratch / "trace"
    out.unlink(missing_ok=True)
    server = plot.server(wrapper=wrapper(call, effect, out))
    try:
        server.start()
        status = load_until_death(field, server, plot, batches=8, after=0.15)
        if status is None:
            said = server.said()
            if "panicked" in said:
                raise Broken(f"a panic: {said[-3000:]}")
            server.kill()
            field.counts["killed"] += 1
        else:
            sound_end(server, status)
    except EndedAtStart as ended:
        sound_end(server, ended.returncode)
    return "(INJECTED)" in out.read_text(errors="replace") if out.exists() else False


def in_writer(field, plot, error, call, number):
    """True if the fault came: once, where a group is appended."""
    server = plot.server().start()
    client = Client(server, plot.journal, seed=field.random.getrandbits(32))
    with Attached(server, call, f"error={error}:when={number}", plot.scratch / "trace", only="writer-0") as attached:
        client.run(batches=12, again=0)
        hit = attached.injected() > 0
        if hit and call == "fdatasync":
            status = server.wait(10)
            if status != ABORTED:
                raise Broken(f"after a failed sync of the log the process ended with {status}, not by its own hand")
            return True
    if not server.alive():
        raise Broken(f"ended although no sync failed: {server.said()[-2000:]}")
    # A full disk is tried again in a new segment; nobody hears of one failure. A small file's write is the ledger's.
    if client.refused and (error == "ENOSPC" or set(client.refused) != {"503 storage"}):
        raise Broken(f"refused {client.refused} for one {error} of {call}")
    verify(server, plot.journal)
    server.kill()
    field.counts["killed"] += 1
    return hit


def lasting(field, plot, error, call):
    """The fault stays while events are sent, and goes while the server runs: it must take up again by itself."""
    server = plot.server().start()
    client = Client(server, plot.journal, seed=field.random.getrandbits(32))
    client.run(batches=5)
    with Attached(server, call, f"error={error}:when=1+", plot.scratch / "trace") as attached:
        before = plot.journal.answers
        client.run(batches=10, again=0)
        if not server.alive():
            raise Broken(f"ended: {server.said()[-2000:]}")
        if call == "pwritev" and (plot.journal.answers > before or set(client.refused) != {"503 storage"}):
            taken = plot.journal.answers - before
            raise Broken(f"acknowledged {taken} batches that cannot be written; refused {client.refused}")
        wait_until("the fault came", attached.injected, timeout=5)
        time.sleep(0.2)  # what the sinks do meanwhile
    wait_until("it takes events again", client.taken, timeout=15, pause=0.05)
    field.hits[f"{error} {call} lasting"] += 1
    verify(server, plot.journal)
    server.settle()
    server.kill()
    field.counts["killed"] += 1

