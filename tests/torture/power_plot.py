"""One machine under power cuts: data folder and lake on one file system, many lives of a server, what must hold."""

import collections
import contextlib
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from .power_cache import CachedDisk
from .power_disk import FLUSH_ALL, FLUSH_JOURNAL, FLUSH_NAMES, FLUSH_NOTHING, Image
from .rig import Broken, Client, EndedAtStart, Journal, Server, lake_rows, verify, verify_lake, wait_until

# How often each scene is played, of 100.
SCENES = {"load": 55, "start": 15, "drain": 10, "twice": 10, "idle": 10}
LAKE_EVERY = 20
# A file system so full is left for a fresh one: a disk that is full is another fault.
FULL = 0.6
KEEP_SMALL = 'retention_bytes = "2MiB"\nbacklog_bytes = "64MiB"'


class FileSystemLost(Exception):
    """A failing disk or a cut has taken the file system itself: nothing can be asked of the server."""


class GatedJournal(Journal):
    """A journal that stops believing at the instant of a cut.

    ext4's and XFS's shutdown ioctl let an fdatasync that runs at that moment return 0 for bytes that never got to the
    disk: a loop of pwrite and fdatasync shows it in one cut of ten. A real cut takes the processor with it. So what is
    answered after the ioctl began is of unknown outcome; what came before counts."""

    def __init__(self):
        super().__init__()
        self.open = True

    def answered(self, batch, answer):
        if self.open:
            super().answered(batch, answer)
        else:
            self.not_answered(batch)


@dataclass
class Counts:
    """What happened to one kind of machine."""

    cycles: int = 0
    cuts: int = 0
    images: int = 0
    acknowledged: int = 0
    resent: int = 0
    lake_checks: int = 0
    broken: int = 0
    lost: int = 0
    doubled: int = 0
    books: int = 0
    seconds: float = 0.0
    unflushed: int = 0
    recoveries_cut: int = 0
    aborted: int = 0
    recovered: int = 0
    file_systems_lost: int = 0

    def add(self, other):
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Mode:
    """What is cut: a kind of file system, the disk below it, and how the log is kept."""

    kind: object
    disk: str = "plain"  # or "cached": one whose own cache is lost too
    retention: bool = False
    lie: str = ""  # "sync": the server's syncs do nothing; "barrier": the file system does not flush the disk

    @property
    def name(self):
        words = [self.kind.name]
        words += ["disk cache lost"] if self.disk == "cached" else []
        words += ["retention"] if self.retention else []
        words += [f"LIE: {self.lie}"] if self.lie else []
        return ", ".join(words)


class Machine:
    """One image from its making to its last check."""

    fault = "power loss"

    def __init__(self, folder, mode, seed, counts, environment=None):
        self.folder, self.mode, self.counts, self.environment = Path(folder), mode, counts, environment or {}
        self.dice = random.Random(seed)
        self.scratch = self.folder / "scratch"
        self.scratch.mkdir()
        self.journal = GatedJournal()
        self.server = self.client = self.disk = None
        self.story = collections.deque(maxlen=40)
        plain = self.make_image()
        if mode.disk == "cached":
            self.disk = CachedDisk(self.folder, plain.file)
        self.image = Image(self.folder, mode.kind, image=self.disk.image, request_kib=256) if self.disk else plain
        self.mount()
        counts.images += 1

    def make_image(self):
        image = Image(self.folder, self.mode.kind)
        image.make()
        return image

    # power -----------------------------------------------------------------------------------------------------------

    def mount(self):
        self.image.mount("nobarrier" if self.mode.lie == "barrier" else "")

    def cut(self):
        """The power goes: nothing more reaches the disk, the processes are gone, the cache too. Then it comes back."""
        self.counts.cuts += 1
        if self.disk:
            said = self.disk.tell(f"cut {self.dice.getrandbits(32)}")
            self.counts.unflushed += sum(int(word) for word in said.split() if word.isdigit())
            self.story.append(f"cut: {said} sectors that were not flushed")
        else:
            self.cut_by_ioctl()
        self.end_processes()
        self.journal.open = True
        self.image.unmount()
        if self.disk:
            self.disk.tell("on")
        try:
            self.mount()
        except OSError as error:
            self.counts.file_systems_lost += 1
            raise FileSystemLost(str(error)) from None

    def cut_by_ioctl(self):
        """Half of the time the processor stops first, and every answer counts; else the cut falls into the middle of
        writes and syncs, and what is answered behind it does not."""
        flush = self.dice.choices((FLUSH_NOTHING, FLUSH_JOURNAL, FLUSH_ALL), (90, 5, 5))[0]
        stopped = self.dice.random() < 0.5 and self.server.alive() and stop_all_threads(self.server)
        if not stopped:
            self.journal.open = False
        self.image.cut(flush)
        self.story.append(f"cut: {FLUSH_NAMES[flush]}, server {'stopped before' if stopped else 'running'}")

    def end_processes(self):
        """The server first, so that no client waits for it."""
        if self.server:
            self.server.kill()
            self.server = None
        if self.client:
            client, self.client = self.client, None
            client.end()

    # a life ----------------------------------------------------------------------------------------------------------

    def new_server(self):
        for old in sorted(self.scratch.glob("said-*.log"))[:-4]:
            old.unlink()
        log = KEEP_SMALL if self.mode.retention else ""
        more = {"env": self.environment, "scratch": self.scratch, "log": log, "flush_age": "30ms"}
        self.server = Server(self.image.point / "data", **more)
        return self.server

    def start(self):
        began = time.monotonic()
        try:
            self.new_server().start()
        except EndedAtStart as ended:
            raise Broken(f"the server does not start after a cut: {ended}") from None
        self.story.append(f"started in {time.monotonic() - began:.3f} s")

    def load(self, threads=2):
        """Load in the background, running for sure: something was acknowledged in this life."""
        before = self.journal.answers
        large = 0.05 if self.mode.retention else 0.01
        self.client = Client(self.server, self.journal, seed=self.dice.getrandbits(40), large=large)
        self.client.begin(threads)
        wait_until("a first batch is acknowledged", lambda: self.journal.answers > before or not self.client.busy())
        if self.journal.answers == before:
            self.client.end()
            raise Broken(f"the load ended before anything was acknowledged: {self.server.said()[-2000:]}")

    def pause(self, most):
        """Somewhere in the next `most` seconds, near as likely as far."""
        time.sleep(most * self.dice.random() ** 2)

    def cycle(self):
        """One scene with its cuts, then a start on what is left, and the check."""
        cuts, began = self.counts.cuts, time.monotonic()
        if self.server is None:
            self.start()
        scene = self.dice.choices(list(SCENES), list(SCENES.values()))[0]
        self.story.append(f"scene {scene}")
        getattr(self, f"scene_{scene}")()
        self.start()
        verify(self.server, self.journal, exact=not self.mode.retention)
        self.counts.cycles += 1
        if self.counts.cycles % LAKE_EVERY == 0:
            self.check_lake()
        self.story.append(f"{self.counts.cuts - cuts} cuts in {time.monotonic() - began:.2f} s, all there")

    def scene_load(self):
        self.load()
        self.pause(0.25)
        self.cut()

    def scene_idle(self):
        """All is delivered, nothing is under way; or nearly."""
        self.load()
        self.pause(0.1)
        self.client.end()
        self.client = None
        if self.dice.random() < 0.5:
            self.server.settle()
        self.cut()

    def scene_drain(self):
        self.load()
        self.pause(0.1)
        self.server.signal(15)
        self.pause(0.12)
        self.cut()

    def scene_twice(self):
        """Cut, and again as soon as it has said yes to something new."""
        self.scene_load()
        self.start()
        self.load()
        if self.dice.random() < 0.5:
            self.pause(0.02)
        self.cut()

    def scene_start(self):
        """Starts that are cut, up to three in a row: recovery works on what an earlier recovery left."""
        self.scene_load()
        for _ in range(self.dice.randint(1, 3)):
            self.new_server().spawn()
            self.pause(0.12)
            self.counts.recoveries_cut += 1
            self.cut()

    # checks ----------------------------------------------------------------------------------------------------------

    def is_full(self):
        room = os.statvfs(self.image.point)
        return room.f_bavail < room.f_blocks * (1 - FULL)

    def check_lake(self):
        verify_lake(self.server, self.journal)
        self.counts.lake_checks += 1
        self.story.append("lake read: each event once")

    def finish(self):
        """The last check: a clean stop and a start, everything delivered, the lake read by DuckDB and pyarrow."""
        if self.server is None:
            self.start()
        self.server.settle()
        if (status := self.server.stop()) != 0:
            raise Broken(f"a clean stop ended with {status}: {self.server.said()[-2000:]}")
        self.start()
        verify(self.server, self.journal, exact=not self.mode.retention)
        self.check_lake()
        check_with_duckdb(self.server.lake, self.journal)
        self.note_totals()

    def note_totals(self):
        self.counts.acknowledged += self.journal.acknowledged()
        self.counts.resent += self.journal.resent

    def count_damage(self):
        """After a broken promise: how much is lost, double, or wrong in the books, as far as it can be asked."""
        self.counts.broken += 1
        self.note_totals()
        with contextlib.suppress(Exception):  # the finding itself is told already; this only measures it
            if not self.image.is_mounted():
                return
            if self.server is None or not self.server.alive():
                self.start()
            rows = lake_rows(self.server.lake)
            places = [row[:3] for area in rows.values() for row in area]
            ids = collections.Counter(row[3] for row in rows["events"])
            self.counts.doubled += max(len(places) - len(set(places)), sum(n - 1 for n in ids.values()))
            owed = "".join(f'{{"event_id":"{one}"}}\n' for one in (*self.journal.accepted, *self.journal.dead))
            self.counts.lost += self.server.ask("POST", "/api/v1/audit/ids", owed)[1]["missing_count"]
            self.counts.books += self.server.audit()["difference"]

    def keep(self, folder):
        """Puts aside what a finding can be looked into with: the data, the lake, what the servers said, the story."""
        folder = Path(folder)
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(self.image.point, folder / "disk", dirs_exist_ok=True)
        shutil.copytree(self.scratch, folder / "scratch", dirs_exist_ok=True)
        (folder / "story.txt").write_text("\n".join(self.story) + "\n")

    def close(self):
        """Nothing is left: no process, no mount, no loop device, no file."""
        self.close_but_files()
        shutil.rmtree(self.folder)

    def close_but_files(self):
        with contextlib.suppress(Exception):  # a client's fault was told before, or this is the way out
            self.end_processes()
        if self.image.is_mounted():
            self.image.unmount()
        if self.disk:
            self.disk.close()


def stop_all_threads(server, patience=0.2):
    """SIGSTOP, until no thread can run another instruction: each stands, or waits in the kernel and then will."""
    server.signal(signal.SIGSTOP)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        states = []
        for task in Path(f"/proc/{server.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread may end while we look
                states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
        if "T" in states and set(states) <= {"T", "D"}:
            return True
        if not server.alive():
            return False
    return False


def check_with_duckdb(lake, journal):
    """The same again by other people's reader: counts and distinct counts."""
    import duckdb

    for area, ids in (("events", journal.accepted), ("dead_letters", journal.dead)):
        if not any(Path(lake, area).glob("**/*.parquet")):
            if ids:
                raise Broken(f"DuckDB sees no {area}, {len(ids)} were acknowledged")
            continue
        with duckdb.connect() as reader:
            reader.execute("set threads = 1")
            query = (
                "select count(*), count(distinct event_id), count(distinct (log_id, log_partition, log_offset))"
                f" from read_parquet('{lake}/{area}/**/*.parquet', union_by_name=true)"
            )
            rows, different, places = reader.execute(query).fetchone()
        if not (len(ids) <= different == rows == places):
            raise Broken(f"{area}: DuckDB sees {rows} rows, {different} ids, {places} places; acknowledged {len(ids)}")
