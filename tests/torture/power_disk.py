"""File systems that lose their power: an image behind a loop device, mounted, cut off, mounted again.

A cut is the file system's own shutdown ioctl without a flush of its journal: from that instant nothing more reaches
the image, and what the page cache held is gone with the unmount. The next mount replays the journal, as after a real
power cut. What this leaves out: the disk's own cache. What the file system handed to the device, the device has.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
# EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are the same number: _IOR('X', 125, __u32).
SHUTDOWN = 0x8004587D
# What is written out before the file system goes: all of it, its journal alone, nothing (a power cut).
FLUSH_ALL, FLUSH_JOURNAL, FLUSH_NOTHING = 0, 1, 2
FLUSH_NAMES = {FLUSH_ALL: "all flushed", FLUSH_JOURNAL: "journal flushed", FLUSH_NOTHING: "nothing flushed"}
PREFIX = "tidegate-power-"


class Unavailable(Exception):
    """This machine cannot do it; the text says why."""


@dataclass(frozen=True)
class Kind:
    """One file system with one way of mounting it."""

    name: str
    family: str
    options: str
    bytes: int = 96 * MIB
    make: tuple = field(default=())
    has_shutdown: bool = True

    def program(self):
        return f"mkfs.{self.family}"


EXT4 = ("-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", "-m", "0")
KINDS = {
    kind.name: kind
    for kind in (
        Kind("ext4-ordered", "ext4", "data=ordered", make=EXT4),
        Kind("ext4-writeback", "ext4", "data=writeback", make=EXT4),
        Kind("ext4-async-commit", "ext4", "data=writeback,journal_async_commit", make=EXT4),
        Kind("ext4-journal", "ext4", "data=journal", make=EXT4),
        Kind("xfs", "xfs", "", bytes=320 * MIB, make=("-q", "-f", "-K")),
        Kind("btrfs", "btrfs", "", bytes=160 * MIB, make=("-q", "-f", "-K", "--mixed"), has_shutdown=False),
    )
}


def run(*command, timeout=60):
    """Runs a system command; its failure is an `OSError` with what it said."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise OSError(errno.EIO, f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()[:500]}")
    return done.stdout


def mounts_below(folder):
    """Mount points below a folder, the last mounted first."""
    folder = f"{folder}/"
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
        points = [line.split(" ")[1].replace("\\040", " ") for line in mounts]
    return [point for point in reversed(points) if point.startswith(folder)]


def loops_below(folder):
    """Loop devices whose backing file lies below a folder."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it may go while we look
            if backing.read_text().startswith(f"{folder}/"):
                found.append(f"/dev/{backing.parts[3]}")
    return found


def processes_below(folder):
    """Processes that were started with something below `folder` among their arguments: servers of ours."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if f"{folder}/".encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def unmount(point, patience=10.0):
    """Unmounts; a process that is just ending may hold it for an instant."""
    deadline = time.monotonic() + patience
    while True:
        try:
            run("umount", point)
            return
        except OSError as error:
            if "not mounted" in str(error):
                return
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def tear_down(folder):
    """Leaves nothing of a work folder behind: its processes, mounts, loop devices, files."""
    for pid in processes_below(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    for device in loops_below(folder):
        queue = Path("/sys/block", Path(device).name, "queue")
        with contextlib.suppress(OSError):  # what `Image.mount` may have changed; the device may be gone by now
            (queue / "max_sectors_kb").write_text((queue / "max_hw_sectors_kb").read_text())
    for point in mounts_below(folder):
        unmount(point)
        for device in loops_below(folder):
            with contextlib.suppress(OSError):  # the unmount frees it by itself; or it is still mounted
                run("losetup", "--detach", device)
    shutil.rmtree(folder)


class WorkFolder:
    """A folder for images and mounts, in memory where there is room; held by a lock as long as its owner lives."""

    def __init__(self, base=None):
        self.base = Path(base) if base else default_base()
        self.base.mkdir(parents=True, exist_ok=True)
        making = os.open(self.base, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(making, fcntl.LOCK_EX)  # one makes or cleans at a time
            self.clean_leftovers()
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.base))
            self.lock = open(self.path / "lock", "w", encoding="utf-8")
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(making)

    def clean_leftovers(self):
        """Takes away what a run that was killed left: folders of our name whose lock nobody holds."""
        for folder in self.base.glob(f"{PREFIX}*"):
            with contextlib.suppress(BlockingIOError, FileNotFoundError, NotADirectoryError):
                with open(folder / "lock", encoding="utf-8") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    tear_down(folder)

    def close(self):
        tear_down(self.path)
        self.lock.close()

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        self.close()


def default_base():
    """Memory, where it has room for images: no cut then waits for this machine's own disk."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30:
        return memory
    return Path(tempfile.gettempdir())


def check_machine(kind, disk="plain"):
    """Raises `Unavailable` where a cut cannot be made here, after trying one for real."""
    if os.geteuid() != 0:
        raise Unavailable("not root: loop devices and mounts need it")
    if not Path("/dev/loop-control").exists():
        raise Unavailable("no /dev/loop-control: loop devices are missing")
    for program in (kind.program(), "mount", "umount", "losetup"):
        if shutil.which(program) is None:
            raise Unavailable(f"{program} is not installed")
    if disk == "cached" and not Path("/dev/fuse").exists():
        raise Unavailable("no /dev/fuse: the disk with a cache is a file system of this tool's own")
    try:
        with WorkFolder() as folder:
            image = Image(folder, kind)
            image.make()
            image.mount()
            if disk == "plain":
                image.cut(FLUSH_NOTHING)
            image.unmount()
            image.mount()
            image.unmount()
    except OSError as error:
        raise Unavailable(error.strerror or str(error)) from None


class Image:
    """One image, and where it is mounted."""

    def __init__(self, folder, kind, image=None, request_kib=None):
        self.kind, self.request_kib, self.request_before = kind, request_kib, None
        self.file = Path(image) if image else Path(folder) / "disk.img"
        self.point = Path(folder) / "mnt"
        self.point.mkdir(exist_ok=True)

    def make(self):
        """A new, empty file system; what was in the image is gone."""
        self.file.unlink(missing_ok=True)
        with open(self.file, "wb") as image:
            image.truncate(self.kind.bytes)
        run(self.kind.program(), *self.kind.make, self.file)

    def mount(self, more=""):
        """Mounts it; after a cut this is where the journal is replayed."""
        options = ",".join(filter(None, ("loop", self.kind.options, more)))
        run("mount", "-t", self.kind.family, "-o", options, self.file, self.point)
        if self.request_kib:
            self.request_before = self.request_limit().read_text()
            self.request_limit().write_text(str(self.request_kib))

    def request_limit(self):
        """How much the loop device takes in one request.

        A loop device tells its file system that a request is done when its backing file took only the first part of it
        (kernel 6.18: a loop of pwrite and fdatasync loses synced bytes on a full backing in 12 runs of 12). On disks
        that fail, a request must be so small that the backing takes it whole or not at all: then 0 of 12."""
        for line in Path("/proc/self/mounts").read_text().splitlines():
            device, point = line.split(" ")[:2]
            if point == str(self.point):
                return Path("/sys/block", Path(device).name, "queue/max_sectors_kb")
        raise OSError(errno.ENOENT, f"{self.point} is not mounted")

    def cut(self, flush):
        """The power goes: from here on nothing more reaches the image."""
        folder = os.open(self.point, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(folder, SHUTDOWN, struct.pack("I", flush))
        finally:
            os.close(folder)

    def unmount(self):
        if self.request_before:
            self.request_limit().write_text(self.request_before)  # the device outlives its image
            self.request_before = None
        unmount(self.point)

    def is_mounted(self):
        return os.path.ismount(self.point)

    def is_sound(self):
        """What the file system's own checker says of the unmounted image, once a mount has replayed its journal."""
        try:
            self.mount()
        except OSError:
            return False
        self.unmount()
        command = {"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n"], "btrfs": ["btrfs", "check", "--readonly"]}
        done = subprocess.run([*command[self.kind.family], self.file], capture_output=True, timeout=120)
        return done.returncode == 0
