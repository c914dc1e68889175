"""Disks that fail and disks that are full, for real: what the server says meanwhile, and what is there afterwards."""

import contextlib
import errno
import os
import shutil
import signal
import time
from pathlib import Path

from .power_disk import MIB, Image, run, unmount
from .power_plot import FileSystemLost, Machine
from .rig import PATIENCE, Broken, Client, EndedAtStart, lake_rows, verify, wait_until

NOT_SYNCED = "could not be synced"
STORAGE = "503 storage"


def fill_up(path, spare):
    """A file that takes all that is free on its file system but `spare` bytes, while others write there as well."""
    with open(path, "wb", buffering=0) as file:
        while True:
            room = os.statvfs(path.parent)
            left = room.f_bavail * room.f_frsize - spare
            if left <= 0 and spare:
                return
            try:
                file.write(bytes(min(max(left, 4096), MIB)))
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    return
                raise


class MendedDisk(Machine):
    """What disks have in common that fail and are mended: a file system may not survive that."""

    fault = "EIO"

    def mount_mended(self):
        """Mounts again; where the file system's own checker finds damage, blocks that were synced may be gone."""
        if not self.image.is_sound():
            self.counts.file_systems_lost += 1
            raise FileSystemLost
        self.mount()


class FailingDisk(MendedDisk):
    """A disk that fails some writes or flushes under load, is mended, and sometimes loses its cache on top."""

    scenes = ("fail-syncs", "fail-writes")

    def cycle(self):
        if self.server is None:
            self.start()
        self.load()
        self.pause(0.1)
        how = self.dice.choice(self.scenes)
        # One, a few, or all from here on.
        number = self.dice.choice((1, 1, 3, 1_000_000))
        # ext4 may answer 0 to an fdatasync that comes right after a failed journal commit (kernel 6.18: three loops of
        # pwrite and fdatasync lose a synced write in 11 of 160 runs; on XFS in none of 60). So there, only what was
        # answered before the fault counts. XFS, and a full backing below, are held to every answer.
        self.journal.open = self.mode.kind.family != "ext4"
        self.story.append(f"{how} {number}: {self.disk.tell(f'{how} {number}')}")
        wait_until("a fault is met", lambda: self.failed() or not self.server.alive(), timeout=10)
        self.see_it_end()
        cut = self.dice.random() < 0.5
        if cut:
            self.counts.cuts += 1
            self.story.append(self.disk.tell(f"cut {self.dice.getrandbits(32)}"))
        self.end_processes()
        self.journal.open = True
        if not cut:
            with contextlib.suppress(OSError):  # what it cannot write out any more is what this is about
                run("sync", "-f", self.image.point)
        self.image.unmount()
        self.disk.tell("on")
        self.mount_mended()
        self.start()
        verify(self.server, self.journal)
        self.counts.cycles += 1

    def failed(self):
        words = self.disk.tell("stats").split()
        met, self.failed_before = int(words[words.index("failed") + 1]), getattr(self, "failed_before", 0)
        if met > self.failed_before:
            self.failed_before = met
            return True
        return False

    def see_it_end(self):
        """A log that could not be synced ends its process by itself, and nothing is answered 200 by it after that."""
        deadline = time.monotonic() + 1.0
        while self.server.alive() and NOT_SYNCED not in self.server.said() and time.monotonic() < deadline:
            time.sleep(0.005)
        if NOT_SYNCED in self.server.said():
            status = self.server.wait(PATIENCE)
            if status != -signal.SIGABRT:
                raise Broken(f"after a failed sync the process ended with {status}, not by abort")
            self.counts.aborted += 1
            self.story.append("the server aborted after a failed sync")


class FullBacking(MendedDisk):
    """A file system on a loop device whose backing file cannot grow: the kernel's own error at fdatasync."""

    def __init__(self, folder, mode, seed, counts, environment=None):
        self.tiny = Path(folder) / "tiny"
        self.tiny.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={mode.kind.bytes + 8 * MIB}", "tidegate-power", self.tiny)
        try:
            super().__init__(folder, mode, seed, counts, environment)
        except BaseException:
            unmount(self.tiny)
            raise

    def make_image(self):
        image = Image(self.folder, self.mode.kind, image=self.tiny / "disk.img", request_kib=4)
        image.make()
        if self.dice.random() < 0.8:  # only what is written for the first time meets the end of the disk: data
            with open(image.file, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, 8 * MIB)
            self.age_journal(image)
        return image

    @staticmethod
    def age_journal(image):
        """Goes once through the journal, so that it has its blocks."""
        image.mount()
        for number in range(600):
            path = image.point / f"age-{number % 20}"
            with open(path, "wb") as file:
                file.write(b"a" * 512)
                os.fsync(file.fileno())
            path.unlink()
        image.unmount()

    def cycle(self):
        if self.server is None:
            self.start()
        ballast = self.tiny / "ballast"
        fill_up(ballast, self.dice.randint(100_000, 2_000_000))
        self.client = Client(self.server, self.journal, seed=self.dice.getrandbits(40), large=0.02).begin()
        wait_until("the disk fails and the server ends or says so", self.has_met_it, timeout=20)
        if NOT_SYNCED in self.server.said():
            status = self.server.wait(PATIENCE)
            if status != -signal.SIGABRT:
                raise Broken(f"after a failed sync the process ended with {status}, not by abort")
            self.counts.aborted += 1
        self.end_processes()
        self.image.unmount()
        ballast.unlink()
        self.mount_mended()
        self.start()
        verify(self.server, self.journal)
        self.counts.cycles += 1

    def has_met_it(self):
        return not self.server.alive() or NOT_SYNCED in self.server.said() or bool(self.client.refused)

    def close(self):
        super().close_but_files()
        unmount(self.tiny)
        shutil.rmtree(self.folder)


class FullDisk(Machine):
    """A file system without a free block: refused with `storage`, readers served, well again when there is room."""

    fault = "ENOSPC"

    def cycle(self):
        if self.server is None:
            self.start()
        self.load()
        self.pause(0.1)
        self.fill()
        wait_until(f"a full disk is told: {STORAGE}", lambda: self.is_refused() or not self.server.alive(), timeout=20)
        if not self.server.alive():
            raise Broken(f"a full disk ended the server: {self.server.said()[-2000:]}")
        self.look_around()
        self.story.append(str(self.client.refused))
        getattr(self, self.dice.choice(("recover", "recover", "cut_while_full", "start_while_full")))()
        verify(self.server, self.journal)
        self.counts.cycles += 1

    @property
    def ballast(self):
        return self.image.point / "ballast"

    def fill(self):
        """Takes what is free, now and then all but a little."""
        spare = self.dice.choice((0, 0, 50_000, 300_000))
        fill_up(self.ballast, spare)

    def is_refused(self):
        if (other := set(self.client.refused) - {STORAGE, "503 log_full", "429 tenant_lane"}) != set():
            raise Broken(f"a full disk is told as {other}")
        return STORAGE in self.client.refused

    def look_around(self):
        """Health, status, books and the lake's readers go on."""
        for path in ("/api/v1/status", "/api/v1/offsets"):
            status, document = self.server.ask("GET", path)
            if status != 200:
                raise Broken(f"{path} answers {status} while the disk is full: {document}")
        audit = self.server.audit()
        if not audit["balanced"]:
            raise Broken(f"the books do not balance while the disk is full: {audit}")
        rows = lake_rows(self.server.lake)
        places = [row[:3] for area in rows.values() for row in area]
        if len(places) != len(set(places)):
            raise Broken("a reader sees an offset twice while the disk is full")

    def recover(self):
        """Room comes back: the same process takes events again, and delivers all it owes."""
        process, before = self.server.pid, self.journal.answers
        self.ballast.unlink()
        wait_until(
            "events are taken again", lambda: self.journal.answers > before + 2 or not self.client.busy(), timeout=30
        )
        self.client.end()
        self.client = None
        if not self.server.alive() or self.server.pid != process:
            raise Broken(f"it did not recover by itself: {self.server.said()[-2000:]}")
        self.counts.recovered += 1

    def cut_while_full(self):
        self.cut()
        # Never synced: the cut may have taken its name.
        self.ballast.unlink(missing_ok=True)
        self.start()

    def start_while_full(self):
        """A start without room may refuse, loudly; it must not harm what is there."""
        self.end_processes()
        try:
            self.new_server().start()
            self.story.append("started on a full disk")
        except EndedAtStart as ended:
            if "o space left" not in ended.said:
                raise Broken(f"a start on a full disk ends without saying so: {ended}") from None
            self.story.append("refused to start on a full disk")
        self.end_processes()
        self.ballast.unlink()
        self.start()
