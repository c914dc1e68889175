"""A real server that is ended and started again, a client with a journal of its own, and what must hold afterwards.

    plot = Plot(folder)                              # a data folder over many lives, and its journal
    server = Server(plot.data, binary=FAULTS, env={"TIDEGATE_KILL_AT": "K9:3"}, scratch=plot.scratch).start()
    client = Client(server, plot.journal, seed=7)
    client.run(batches=20)                           # returns early when the server is gone
    server.kill()
    verify(Server(plot.data, scratch=plot.scratch).start(), plot.journal)
    verify_lake(server, plot.journal)                # every now and then: it waits for the sinks

The journal is kept here, outside of the system under test. An event whose answer never came is unknown until the
same bytes have been sent again and answered: it may be there or not, but never twice.
"""

import atexit
import contextlib
import dataclasses
import http.client
import json
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
BINARIES = Path(os.environ.get("TIDEGATE_BIN_DIR", TARGET / "debug"))
PLAIN, FAULTS = BINARIES / "ingestd", BINARIES / "ingestd-faults"
PATIENCE = float(os.environ.get("PATIENCE_SECONDS", "60"))
PAUSE = 0.002
KEY, TENANT = "tgk_dev", "dev"
TYPES = ("page_view", "click")
# Answers after which a client sends again: nothing is promised about what it had sent.
TRY_AGAIN = (429, 500, 502, 503, 504)


class Broken(Exception):
    """A promise was broken. `kind`: "lost", "doubled", "books" or "other"."""

    def __init__(self, text, kind="other"):
        super().__init__(text)
        self.kind = kind


class EndedAtStart(Exception):
    """The server ended before it was ready."""

    def __init__(self, returncode, said):
        super().__init__(f"ended with {returncode} before it was ready: {said[-2000:]}")
        self.returncode, self.said = returncode, said


def wait_until(what, holds, timeout=PATIENCE, pause=PAUSE):
    """Waits until `holds()` is true and returns its value."""
    deadline = time.monotonic() + timeout
    while not (value := holds()):
        if time.monotonic() > deadline:
            raise Broken(f"after {timeout:.0f} s still not so: {what}")
        time.sleep(pause)
    return value


# the server ---------------------------------------------------------------------------------------------------------

_alive = set()


@atexit.register
def end_all():
    """Kills every server that this process started and that still runs."""
    for server in list(_alive):
        server.kill()


def configuration(lake, log="", sink="", edge="", flush_age="50ms"):
    """Small segments, short flushes; `--dev` adds the tenant."""
    return f"""[edge]
{edge}
[log]
segment_bytes = "1MiB"
{log}
[[sink]]
name = "lake"
kind = "lake"
url = {json.dumps(str(lake))}
flush = {{ age = "{flush_age}" }}
{sink}
"""


class Server:
    """One life of `ingestd --dev` on 127.0.0.1 and ports that the system chooses.

    `wrapper` goes before the program; `strace` must be given `-D`, so that the child is the server itself.
    `scratch` takes configuration and what the server says: it may lie outside of a disk that fails.
    `parts` are lines for the sections of the configuration: `log=`, `sink=`, `edge=`, `flush_age=`."""

    def __init__(self, data_dir, binary=PLAIN, env=None, wrapper=(), scratch=None, lake=None, **parts):
        self.data = Path(data_dir)
        self.lake = Path(lake) if lake else self.data / "lake"
        self.scratch = Path(scratch) if scratch else self.data.parent
        self.binary, self.env, self.wrapper, self.parts = Path(binary), dict(env or {}), list(wrapper), parts
        self.process = self.public = self.admin = None
        self._admin = None

    def spawn(self):
        """Starts it and waits for nothing."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        tag = f"{time.monotonic_ns():x}"
        config, self.said_file = self.scratch / "tidegate.toml", self.scratch / f"said-{tag}.log"
        config.write_text(configuration(self.lake, **self.parts))
        command = [*self.wrapper, self.binary, "--dev", "--config", config, "--data-dir", self.data]
        command += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-format", "json"]
        with open(self.said_file, "wb") as said:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env={**os.environ, "RUST_BACKTRACE": "0", "TIDEGATE_EDGE__ALSO_LISTEN": "[]", **self.env},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
            )  # fmt: skip
        _alive.add(self)
        return self

    def start(self, timeout=PATIENCE):
        """Starts it and waits for its line `ready`; `EndedAtStart` when it ended first."""
        self.spawn()
        wait_until("the server is ready or gone", lambda: self._addresses() or not self.alive(), timeout)
        if self.public is None and self._addresses() is None:
            raise EndedAtStart(self.wait(), self.said())
        return self

    def _addresses(self):
        for line in self.said().splitlines(keepends=True):
            if '"ready"' in line and line.endswith("\n"):
                fields = json.loads(line)["fields"]
                self.public, self.admin = (
                    (host, int(port)) for host, port in (fields[name].split(":") for name in ("listen", "admin"))
                )
                return self.public
        return None

    def said(self):
        """What it logged in this life."""
        return self.said_file.read_text(errors="replace")

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        return self.process.poll() is None

    def signal(self, number):
        """This process and no other."""
        self.process.send_signal(number)

    def kill(self):
        """kill -9, if it still runs; its status."""
        self.process.kill()
        return self.wait()

    def stop(self, timeout=PATIENCE):
        """SIGTERM; its status."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout=PATIENCE):
        """Its status: minus the signal that ended it."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Broken(f"the server did not end within {timeout:.0f} s: {self.said()[-2000:]}") from None
        _alive.discard(self)
        self._close_admin()
        return status

    # the admin side ------------------------------------------------------------------------------------------------

    def ask(self, method, path, body=None):
        """One question to the admin side: status and JSON. Errors of the connection are the caller's."""
        if self._admin is None:
            self._admin = http.client.HTTPConnection(*self.admin, timeout=PATIENCE)
        try:
            self._admin.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = self._admin.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        except BaseException:
            self._close_admin()
            raise

    def _close_admin(self):
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def audit(self):
        status, document = self.ask("GET", "/api/v1/audit")
        if status != 200:
            raise Broken(f"audit answered {status}: {document}")
        return document

    def settle(self, timeout=PATIENCE):
        """Waits until the sinks have made everything visible."""

        def caught_up():
            sinks = self.ask("GET", "/api/v1/status")[1]["sinks"]
            return sinks and all(sink["lag_events"] == 0 for sink in sinks)

        wait_until("the sinks have caught up", caught_up, timeout, pause=0.005)


# what was sent, and what was answered -------------------------------------------------------------------------------


@dataclasses.dataclass
class Batch:
    """One request's body and what it must come to: `good` and `dead` are ids, `rejected` a number."""

    body: bytes
    good: list
    dead: list
    rejected: int

    @property
    def events(self):
        return len(self.good) + len(self.dead) + self.rejected


class Journal:
    """What the server owes: acknowledged ids by kind, and batches whose outcome nobody knows."""

    def __init__(self):
        self._lock = threading.Lock()
        self.accepted, self.dead = {}, {}  # id -> number of the answer: keeps their order
        self.unknown = []
        self.answers = 0
        self.resent = 0

    def acknowledged(self):
        return len(self.accepted) + len(self.dead)

    def answered(self, batch, answer):
        """A 200: holds its counts against the batch, then believes it."""
        told = {k: answer[k] for k in ("accepted", "dead_lettered", "deduplicated", "rejected")}
        with self._lock:
            known = sum(i in self.accepted for i in batch.good) + sum(i in self.dead for i in batch.dead)
            fits = (
                sum(told.values()) == batch.events
                and told["rejected"] == batch.rejected
                and told["accepted"] <= len(batch.good)
                and told["dead_lettered"] <= len(batch.dead)
            )
            if not fits:
                raise Broken(f"an answer does not add up: {told} for {batch.events} events, {batch.rejected} unfit")
            if told["deduplicated"] < known:
                again = known - told["deduplicated"]
                raise Broken(f"{again} of {known} ids that were acknowledged before were taken again", "doubled")
            self.accepted.update(dict.fromkeys(batch.good, self.answers))
            self.dead.update(dict.fromkeys(batch.dead, self.answers))
            self.answers += 1

    def not_answered(self, batch):
        """The connection was cut, or the server said to try again."""
        with self._lock:
            self.unknown.append(batch)

    def take_unknown(self):
        with self._lock:
            taken, self.unknown = self.unknown, []
            return taken


class Client:
    """Makes batches from a seed, sends them, and writes down what came back.

    Each id is made once. Some events are dead letters, some items are rejected, some batches are sent a second time
    although they were answered, and now and then one is large, so that segments end."""

    def __init__(self, server, journal, seed=0, large=0.08, **more):
        self.server, self.journal, self.large = server, journal, large
        self.random = random.Random(seed)
        self.name = f"{self.random.getrandbits(40):010x}"
        self.made, self.refused = 0, {}
        self.events_most = more.get("events_most", 8)
        self._lock = threading.Lock()
        self._threads, self._ended = [], threading.Event()
        self.fault = None

    def batch(self, events=None, large=None):
        """A new batch."""
        with self._lock:
            r, items, good, dead, rejected = self.random, [], [], [], 0
            for _ in range(events or r.randint(1, self.events_most)):
                one = f"{self.name}-{self.made}"
                self.made += 1
                event = {"event_type": r.choice(TYPES), "event_id": one, "n": self.made, "pad": "x" * r.randint(0, 400)}
                what = r.random()
                if what < 0.04:
                    items.append(7)
                    rejected += 1
                elif what < 0.12:
                    items.append({**event, "event_time": 1})  # seconds for milliseconds: before 1990
                    dead.append(one)
                else:
                    items.append(event)
                    good.append(one)
            if not good:  # a body of which nothing can be kept is no 200
                one = f"{self.name}-{self.made}"
                self.made += 1
                items.append({"event_type": TYPES[0], "event_id": one})
                good.append(one)
            if r.random() < self.large if large is None else large:
                items[-1] = {**items[-1], "pad": "y" * 600_000} if isinstance(items[-1], dict) else items[-1]
            return Batch(json.dumps(items).encode(), good, dead, rejected)

    def connect(self):
        return http.client.HTTPConnection(*self.server.public, timeout=PATIENCE)

    def send(self, connection, batch):
        """Sends a batch and writes down its outcome: the status, or None where the connection was cut."""
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        try:
            connection.request("POST", "/v1/events", batch.body, headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            self.journal.not_answered(batch)
            connection.close()
            return None
        if answer.status == 200:
            self.journal.answered(batch, json.loads(text))
        elif answer.status in TRY_AGAIN:
            self.journal.not_answered(batch)
            reason = f"{answer.status} {answer.headers.get('X-Shed-Reason', '-')}"
            self.refused[reason] = self.refused.get(reason, 0) + 1
        else:
            raise Broken(f"answered {answer.status} to a sound batch: {text[:500]!r}")
        return answer.status

    def run(self, batches=None, seconds=None, again=0.1):
        """Sends batch after batch until that many were sent, the time is over, it is stopped, or the server is gone."""
        connection, last, sent = self.connect(), None, 0
        deadline = time.monotonic() + seconds if seconds else None
        with contextlib.closing(connection):
            while not self._ended.is_set() and (batches is None or sent < batches):
                if deadline and time.monotonic() > deadline:
                    break
                with self._lock:
                    resend = last is not None and self.random.random() < again
                batch = last if resend else self.batch()
                status = self.send(connection, batch)
                if status is None:
                    break
                if status in TRY_AGAIN:
                    time.sleep(PAUSE)
                else:
                    last = batch
                sent += 1
        return sent

    def taken(self):
        """True where a new batch is answered 200."""
        with contextlib.closing(self.connect()) as connection:
            return self.send(connection, self.batch()) == 200

    def begin(self, threads=2, **run):
        """The same in threads, in the background."""

        def guarded():
            try:
                self.run(**run)
            except Exception as fault:  # told by `end`
                self.fault = fault

        self._threads = [threading.Thread(target=guarded, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()
        return self

    def busy(self):
        return any(thread.is_alive() for thread in self._threads)

    def end(self):
        """Ends the threads; raises what broke in them."""
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            if thread.is_alive():
                raise Broken("a client waits for an answer that does not come")
        self._threads = []
        self._ended.clear()
        if self.fault:
            fault, self.fault = self.fault, None
            raise fault

    def resend_unknown(self):
        """Sends every batch of unknown outcome again, byte for byte."""
        batches = self.journal.take_unknown()
        self.journal.resent += len(batches)
        with contextlib.closing(self.connect()) as connection:
            for batch in batches:
                self.send(connection, batch)


# what must hold -----------------------------------------------------------------------------------------------------


def verify(server, journal, exact=True):
    """Each acknowledged id is in the log and the books balance. With `exact` the unknown batches are sent again first,
    and then the log has exactly as many events of each kind as were acknowledged: none is lost, none is double."""
    if exact:
        Client(server, journal).resend_unknown()
        if journal.unknown:
            raise Broken(f"{len(journal.unknown)} batches are still not answered by a sound server")
    owed = [*journal.accepted, *journal.dead]
    for start in range(0, len(owed), 50_000):
        lines = "".join(f'{{"tenant":"{TENANT}","event_id":"{one}"}}\n' for one in owed[start : start + 50_000])
        status, found = server.ask("POST", "/api/v1/audit/ids", lines)
        if status != 200:
            raise Broken(f"audit/ids answered {status}: {found}")
        if found["missing_count"] != 0 or found["checked"] != len(owed[start : start + 50_000]):
            told = f"{found['missing_count']} of {found['checked']}: {found}"
            raise Broken(f"acknowledged and not in the log: {told}", "lost")
    audit = server.audit()
    if audit["balanced"] is not True or audit["difference"] != 0 or audit["log_quarantined"]["events"] != 0:
        raise Broken(f"the books do not balance: {json.dumps(audit)}", "books")
    if not exact:
        return audit
    for kind, ids in (("accepted", journal.accepted), ("dead_lettered", journal.dead)):
        counted = sum(line[kind] for line in audit["tenants"])
        if counted != len(ids):
            told = f"{kind}: the log has {counted}, acknowledged were {len(ids)}: {json.dumps(audit)}"
            raise Broken(told, "lost" if counted < len(ids) else "doubled")
    return audit


def lake_rows(lake):
    """(log id, partition, offset, event id) of every row, by area, as pyarrow reads them."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.set_cpu_count(1)
    columns = ["log_id", "log_partition", "log_offset", "event_id"]
    rows = {}
    for area in ("events", "dead_letters"):
        rows[area] = []
        for path in sorted(Path(lake, area).glob("**/*.parquet")):
            table = pyarrow.parquet.ParquetFile(path).read(columns=columns, use_threads=False)
            rows[area] += zip(*(table.column(name).to_pylist() for name in columns))
    return rows


def verify_lake(server, journal):
    """After everything is delivered: each acknowledged event is in the lake once, each offset once, nothing else."""
    server.settle()
    rows = lake_rows(server.lake)
    places = [row[:3] for area in rows.values() for row in area]
    if len(places) != len(set(places)):
        raise Broken(f"the lake has {len(places) - len(set(places))} offsets twice", "doubled")
    for area, ids in (("events", journal.accepted), ("dead_letters", journal.dead)):
        found = [row[3] for row in rows[area]]
        if len(found) != len(set(found)):
            twice = sorted({one for one in found if found.count(one) > 1})[:20]
            raise Broken(f"{area}: {len(found) - len(set(found))} ids are twice in the lake: {twice}", "doubled")
        lacking = set(ids) - set(found)
        if lacking:
            raise Broken(f"{area}: {len(lacking)} acknowledged ids are not in the lake: {sorted(lacking)[:20]}", "lost")
        unknown = {one for batch in journal.unknown for one in (batch.good if area == "events" else batch.dead)}
        foreign = set(found) - set(ids) - unknown
        if foreign:
            raise Broken(f"{area}: {len(foreign)} rows nobody sent: {sorted(foreign)[:20]}", "doubled")
    left = [str(path) for path in Path(server.lake, "staging").glob("*")]
    if left:
        raise Broken(f"files that nobody needs are still in the lake: {left[:5]}")
    return len(places)


class Plot:
    """A data folder over many lives of a server, with its journal and a place for what the server says."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.data, self.scratch = self.folder / "data", self.folder / "scratch"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.journal = Journal()
        self.lives = 0

    def server(self, **more):
        self.lives += 1
        return Server(self.data, scratch=self.scratch, **more)


# the grid -----------------------------------------------------------------------------------------------------------


class Tally:
    """Counts what is tried for the fault grid: `{"by","fault","promises","tried","survived"}`, one line in the file
    that `TIDEGATE_TALLY` names, as the tests of the crate do."""

    def __init__(self, by, fault, promises):
        self.by, self.fault, self.promises = by, fault, list(promises)
        self.tried = self.survived = 0

    def add(self, tried, survived):
        self.tried += tried
        self.survived += survived

    def write(self):
        path = os.environ.get("TIDEGATE_TALLY")
        if path and self.tried:
            with open(path, "a") as file:
                file.write(json.dumps(vars(self)) + "\n")
