"""Faults in system calls, by strace: a signal or an error at the Nth call of a kind, of one thread or of any.

strace counts per thread: `when=3` is the third call of whichever thread gets there first. Up to 6.1 it delivers no
signal with `--seccomp-bpf`, which makes everything else free; so kills go without."""

import functools
import shutil
import signal
import subprocess
from pathlib import Path

from .field import Skip
from .rig import Broken, wait_until

# Names that one machine has and another not are marked, so that strace does not mind.
CALLS = {
    "pwritev": "pwritev,?pwritev2,?pwrite64",
    "write": "write",
    "fdatasync": "fdatasync",
    "fsync": "fsync",
    "rename": "?rename,?renameat,?renameat2",
    "unlink": "?unlink,?unlinkat",
    "link": "?link,?linkat",
    "mkdir": "?mkdir,?mkdirat",
    "openat": "?open,openat",
    "answer": "writev,?sendto,?sendmsg",
    "pread64": "pread64",
    "read": "read",
    "getdents64": "getdents64",
    "ftruncate": "ftruncate",
}


@functools.cache
def check():
    """`Skip` where strace is not there or may not trace."""
    if not shutil.which("strace"):
        raise Skip("system calls: strace is not installed")
    tried = subprocess.run(["strace", "-f", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        raise Skip(f"system calls: strace may not trace here: {tried.stderr.strip()[-200:]}")


def options(call, effect, out):
    """`effect` is what follows `inject=CALLS:`, for instance `signal=SIGKILL:when=3` or `error=EIO:when=2+`."""
    return ["-f", "-qq", "-o", str(out), "-e", f"trace={CALLS[call]}", "-e", f"inject={CALLS[call]}:{effect}"]


def wrapper(call, effect, out):
    """Goes before a program: it stays our child, strace is its grandchild."""
    check()
    quick = [] if "signal=" in effect else ["--seccomp-bpf"]
    return ["strace", "-D", *quick, *options(call, effect, out)]


def thread(server, name):
    """The id of a server's thread."""

    def named():  # a thread takes its name after it was made
        for task in Path(f"/proc/{server.pid}/task").iterdir():
            if (task / "comm").read_text().strip() == name:
                return int(task.name)
        return None

    return wait_until(f"the server has a thread {name}", named, timeout=10)


class Attached:
    """strace on a running server, or on one of its threads; leaves it running when it lets go."""

    def __init__(self, server, call, effect, out, only=None):
        check()
        self.server, self.out = server, Path(out)
        self.out.unlink(missing_ok=True)
        self.traced = thread(server, only) if only else server.pid
        lines = options(call, effect, out)
        self.command = ["strace", *(lines[1:] if only else lines), "-p", str(self.traced)]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE)
        status = Path(f"/proc/{self.server.pid}/task/{self.traced}/status")

        def traced():
            try:
                return "TracerPid:\t0\n" not in status.read_text() or self.process.poll() is not None
            except FileNotFoundError:
                return True

        wait_until("strace is attached", traced)
        return self

    def injected(self):
        """How often the fault was injected so far."""
        return self.out.read_text(errors="replace").count("(INJECTED)") if self.out.exists() else 0

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Broken("strace did not let go") from None
        finally:
            self.process.stderr.close()

