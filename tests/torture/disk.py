"""A disk that is really full, and files that may not grow: no fault is made up here."""

import contextlib
import os
import shutil
import subprocess
import time

from .field import Skip
from .rig import Broken, Client, EndedAtStart, Plot, verify, verify_lake, wait_until

DISK_MIB, BALLAST_MIB = 24, 12
FILE_BYTES = 550_000  # less than a large batch
TOO_LARGE = -25  # SIGXFSZ


def sweeps():
    return ["full", "full at start", "fsize", "fsize fatal"]


def sweep(field, what):
    {"full": full, "full at start": full_at_start, "fsize": file_size, "fsize fatal": file_size_fatal}[what](field)


@contextlib.contextmanager
def small_disk(plot):
    """Puts the plot's data on a disk of its own; what is on it when a promise breaks is copied."""
    if os.geteuid() != 0:
        raise Skip("full disk: only root may mount a small one")
    plot.data.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tidegate-torture", plot.data],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        raise Skip(f"full disk: this machine mounts none: {mounted.stderr.strip()[-200:]}")
    try:
        yield
    except BaseException:
        shutil.copytree(plot.data, plot.folder / "kept")
        raise
    finally:
        subprocess.run(["umount", "--lazy", plot.data], check=True)


def full_under_load(field, plot, server):
    """Sends until the log is full; nothing else may be answered than 200 and 503 `storage` (or a full backlog)."""
    client = Client(server, plot.journal, seed=field.random.getrandbits(32), large=0.6)
    deadline = time.monotonic() + 30
    while not client.refused and time.monotonic() < deadline:
        client.run(batches=5, again=0)
    if not client.refused:
        raise Broken("a small disk did not fill up")
    client.run(batches=10, again=0)
    if not set(client.refused) <= {"503 storage", "503 log_full"} or not server.alive():
        raise Broken(f"a full disk was answered by {client.refused}: {server.said()[-1500:]}")
    return client


def full(field):
    """Fills up under load, is given space, and goes on in the same life; then dies and starts."""
    with field.cycle("a full disk", fresh=True) as plot, small_disk(plot):
        ballast = plot.data / "ballast"
        ballast.write_bytes(bytes(BALLAST_MIB << 20))
        server = plot.server().start()
        client = full_under_load(field, plot, server)
        ballast.unlink()
        wait_until("it takes events again", client.taken, timeout=30, pause=0.05)
        verify(server, plot.journal)
        field.kill_under_load(server, plot)
        server = plot.server().start()
        verify(server, plot.journal)
        verify_lake(server, plot.journal)
        server.kill()
        field.counts["killed"] += 1
        field.hits["a full disk"] += 1
    field.close(lake=False)  # its disk is gone


def full_at_start(field):
    """Killed while the disk is full and started on it: it serves or refuses in words; given space, it recovers."""
    with field.cycle("a start on a full disk", fresh=True) as plot, small_disk(plot):
        ballast = plot.data / "ballast"
        ballast.write_bytes(bytes(BALLAST_MIB << 20))
        server = plot.server().start()
        full_under_load(field, plot, server)
        server.kill()
        field.counts["killed"] += 1
        crammed = plot.data / "crammed"
        with contextlib.suppress(OSError), open(crammed, "wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        try:
            plot.server().start().kill()
        except EndedAtStart as ended:
            if ended.returncode != 3 or "panicked" in ended.said:
                raise Broken(f"on a full disk: {ended}") from None
        crammed.unlink()
        ballast.unlink()
        server = plot.server().start()
        verify(server, plot.journal)
        verify_lake(server, plot.journal)
        server.kill()
        field.counts["killed"] += 1
        field.hits["a start on a full disk"] += 1
    field.close(lake=False)


def limited(field, plot, ignoring):
    for program in ("prlimit", "env"):
        if not shutil.which(program):
            raise Skip(f"file size: {program} is not installed")
    before = ["env", "--ignore-signal=XFSZ"] if ignoring else []
    server = plot.server(wrapper=[*before, "prlimit", f"--fsize={FILE_BYTES}"]).start()
    client = Client(server, plot.journal, seed=field.random.getrandbits(32), large=0.5)
    client.run(batches=25, again=0)
    return server, client


def file_size(field):
    """A write stops short at the limit, then fails: that batch is refused, and those that fit go on."""
    with field.cycle("files that may not grow", fresh=True) as plot:
        server, client = limited(field, plot, ignoring=True)
        if not server.alive():
            raise Broken(f"ended with {server.wait()}: {server.said()[-2000:]}")
        if set(client.refused) != {"503 storage"} or not plot.journal.answers:
            raise Broken(f"a file that may not grow was answered by {client.refused}")
        server.kill()
        field.counts["killed"] += 1
        field.recover(plot)
        field.hits["files that may not grow"] += 1


def file_size_fatal(field):
    """The same where the system ends the process for it, in the middle of a frame."""
    with field.cycle("ended by the limit of a file's size", fresh=True) as plot:
        server, _ = limited(field, plot, ignoring=False)
        status = server.wait(10)
        if status != TOO_LARGE:
            raise Broken(f"ended with {status}, not by the limit: {server.said()[-2000:]}")
        field.recover(plot)
        field.hits["ended by the limit of a file's size"] += 1
