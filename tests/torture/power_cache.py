"""A disk with a cache that a power cut empties: what was not flushed may be kept, lost, or torn into sectors.

A file in a file system of our own (FUSE, spoken raw), for a loop device to stand on. It takes writes at once, as a disk
does, and remembers what each sector held when it was last told to flush. A cut gives back some of those: so a flush
that was left out, a barrier that was not waited for, comes to light. Any file system can be cut this way.

It runs as a process of its own: `python power_cache.py FOLDER IMAGE`; commands come as lines on its standard input, and
each is answered by a line: `cut SEED`, `on`, `fail-syncs N`, `fail-writes N`, `stats`.
"""

import contextlib
import ctypes
import errno
import os
import random
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

SECTOR = 512
BLOCK = 4096
MAX_WRITE = 1 << 20
ROOT, FILE = 1, 2
NAME = b"disk.img"

# The requests of FUSE that a loop device and a `stat` make (include/uapi/linux/fuse.h).
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE = 1, 2, 3, 4, 14, 15, 16, 17, 18
FSYNC, FLUSH, INIT, OPENDIR, RELEASEDIR, ACCESS, INTERRUPT, DESTROY, BATCH_FORGET = 20, 25, 26, 27, 29, 34, 36, 38, 42
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
OPEN_DIRECT = 1
SILENT = {FORGET, BATCH_FORGET, INTERRUPT}


class Cache:
    """The image, and what each sector held that was written since the last flush."""

    def __init__(self, image):
        self.image = os.open(image, os.O_RDWR)
        self.bytes = os.fstat(self.image).st_size
        self.old = {}
        self.on = True
        self.fail_syncs = self.fail_writes = 0
        self.flushes = self.writes = self.failed = 0
        self.kept = self.lost = 0

    def read(self, offset, size):
        return os.pread(self.image, size, offset) if self.on else -errno.EIO

    def write(self, offset, data):
        if not self.on:
            return -errno.EIO
        if self.fail_writes:
            self.fail_writes -= 1
            self.failed += 1
            return -errno.EIO
        self.writes += 1
        first, end = offset // SECTOR, -(-(offset + len(data)) // SECTOR)
        before = os.pread(self.image, (end - first) * SECTOR, first * SECTOR)
        for number in range(first, end):
            if number not in self.old:
                at = (number - first) * SECTOR
                self.old[number] = before[at : at + SECTOR]
        return os.pwrite(self.image, data, offset)

    def flush(self):
        if not self.on:
            return -errno.EIO
        if self.fail_syncs:
            self.fail_syncs -= 1
            self.failed += 1
            return -errno.EIO
        self.flushes += 1
        self.old.clear()
        return 0

    def cut(self, seed):
        """What was not flushed: all lost, all kept, or each block or each sector for itself."""
        dice = random.Random(seed)
        odds = dice.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        unit = dice.choice((SECTOR, BLOCK)) // SECTOR
        fate = {}
        self.kept = self.lost = 0
        for number in sorted(self.old):
            keep = fate.setdefault(number // unit, dice.random() < odds)
            if keep:
                self.kept += 1
            else:
                self.lost += 1
                os.pwrite(self.image, self.old[number], number * SECTOR)
        self.old.clear()
        self.on = False
        return f"kept {self.kept} lost {self.lost}"

    def command(self, line):
        word, _, number = line.strip().partition(" ")
        if word == "cut":
            return self.cut(int(number))
        if word == "on":
            self.on, self.fail_syncs, self.fail_writes = True, 0, 0
            return "on"
        if word == "fail-syncs":
            self.fail_syncs = int(number)
            return "armed"
        if word == "fail-writes":
            self.fail_writes = int(number)
            return "armed"
        if word == "stats":
            return f"flushes {self.flushes} writes {self.writes} failed {self.failed}"
        return f"unknown: {word}"


def attributes(node, size):
    """`struct fuse_attr`."""
    mode = 0o040700 if node == ROOT else 0o100600
    return struct.pack("<QQQQQQIIIIIIIIII", node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


class Server:
    """Answers the kernel, one request after the other."""

    def __init__(self, cache):
        self.cache = cache
        self.handlers = {
            INIT: self.init, LOOKUP: self.lookup, GETATTR: self.getattr, SETATTR: self.getattr, OPEN: self.open,
            OPENDIR: self.open, READ: self.read, WRITE: self.write, FSYNC: self.fsync, STATFS: self.statfs,
        }  # fmt: skip
        for plain in (FLUSH, RELEASE, RELEASEDIR, ACCESS, DESTROY):
            self.handlers[plain] = lambda node, body: b""

    def init(self, _, body):
        major, minor, readahead, _flags = struct.unpack_from("<IIII", body)
        if major != 7:
            return -errno.EPROTO
        # INIT_BIG_WRITES and INIT_MAX_PAGES; one request at a time is enough for one loop device.
        flags = (1 << 5) | (1 << 22)
        return struct.pack(
            "<IIIIHHIIHHI28x", 7, min(minor, 31), readahead, flags, 64, 48, MAX_WRITE, 1, MAX_WRITE // 4096, 0, 0
        )

    def lookup(self, node, body):
        if node != ROOT or body.rstrip(b"\0") != NAME:
            return -errno.ENOENT
        return struct.pack("<QQQQII", FILE, 0, 3600, 3600, 0, 0) + attributes(FILE, self.cache.bytes)

    def getattr(self, node, _):
        size = self.cache.bytes if node == FILE else 0
        return struct.pack("<QII", 3600, 0, 0) + attributes(node, size)

    def open(self, node, _):
        return struct.pack("<QII", 0, OPEN_DIRECT if node == FILE else 0, 0)

    def read(self, _, body):
        _handle, offset, size = struct.unpack_from("<QQI", body)
        return self.cache.read(offset, size)

    def write(self, _, body):
        _handle, offset, size = struct.unpack_from("<QQI", body)
        written = self.cache.write(offset, body[40 : 40 + size])
        return written if written < 0 else struct.pack("<II", written, 0)

    def fsync(self, _node, _body):
        failed = self.cache.flush()
        return failed if failed else b""

    def statfs(self, _node, _body):
        return struct.pack("<QQQQQIII4x24x", 1 << 20, 1 << 19, 1 << 19, 100, 90, 4096, 255, 4096)

    def answer(self, request):
        length, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
        if opcode in SILENT:
            return None
        handler = self.handlers.get(opcode)
        result = handler(node, request[IN_HEADER.size : length]) if handler else -errno.ENOSYS
        if isinstance(result, int):
            return OUT_HEADER.pack(OUT_HEADER.size, result, unique)
        return OUT_HEADER.pack(OUT_HEADER.size + len(result), 0, unique) + result

    def run(self, device):
        """Until the kernel has unmounted us, or whoever started us has gone."""
        while True:
            ready, _, _ = select.select([device, sys.stdin], [], [])
            if sys.stdin in ready:
                line = sys.stdin.readline()
                if not line:
                    return
                print(self.cache.command(line), flush=True)
            if device in ready:
                try:
                    reply = self.answer(os.read(device, MAX_WRITE + 8192))
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        return
                    if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                        continue
                    raise
                if reply is not None:
                    with contextlib.suppress(FileNotFoundError):  # the request was given up
                        os.write(device, reply)


def mount_here(folder):
    """Mounts a FUSE file system on `folder`; its device."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tidegate-power", os.fsencode(folder), b"fuse", ctypes.c_ulong(0), options) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mounting FUSE on {folder}: {os.strerror(number)}")
    return device


def main():
    folder, image = sys.argv[1:3]
    server = Server(Cache(image))
    device = mount_here(folder)
    print("mounted", flush=True)
    server.run(device)


class CachedDisk:
    """The other side: starts that process for an image, and tells it when the power goes."""

    def __init__(self, folder, image):
        self.point = Path(folder) / "disk"
        self.point.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self.point), str(image)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        if self.process.stdout.readline().strip() != "mounted":
            self.process.wait()
            raise OSError(errno.ENODEV, "the disk with a cache did not start (FUSE)")
        self.image = self.point / NAME.decode()

    def tell(self, command):
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self):
        subprocess.run(["umount", str(self.point)], check=False, capture_output=True)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        deadline = time.monotonic() + 5
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


if __name__ == "__main__":
    main()
