"""Where a sweep works: plots that are renewed, what is counted, and what happens when a promise breaks."""

import collections
import contextlib
import random
import shutil
import time
import traceback
from pathlib import Path

from .rig import Broken, Client, EndedAtStart, Plot, end_all, verify, verify_lake, wait_until

LIVES_OF_A_PLOT = 50
TURNS_AT_ONCE = 4


class Skip(Exception):
    """This machine cannot do it; the text says what and why."""


class Field:
    """One worker's: a random source of its own, a plot, counters, and the time that is left."""

    def __init__(self, folder, seed, deadline, tell=lambda counts: None):
        self.folder, self.seed, self.deadline, self.tell = Path(folder), seed, deadline, tell
        self.random = random.Random(seed)
        self.counts = collections.Counter()
        self.hits = collections.Counter()
        self.broken, self.skipped = [], []
        self.plots = 0
        self.current = None
        self._turns = collections.Counter()

    def over(self):
        return time.monotonic() > self.deadline

    def turns(self, key, most):
        """The next few turns of a sweep, from where it stood: so that all sweeps come forward together."""
        for _ in range(TURNS_AT_ONCE):
            if self._turns[key] >= most:
                break
            self._turns[key] += 1
            yield self._turns[key]
        else:
            return
        self.from_the_first(key)

    def from_the_first(self, key):
        """A sweep has come to its end."""
        self._turns[key] = 0

    def plot(self, fresh=False):
        """The data folder to go on with; after fifty lives its lake is checked to the last row and a new one begun.
        Of those that are given up earlier for a fresh one, one in four is."""
        if self.current and self.current.lives >= LIVES_OF_A_PLOT:
            self.close()
        elif self.current and fresh:
            self.close(lake=self.random.random() < 0.25)
        if not self.current:
            self.plots += 1
            self.current = Plot(self.folder / f"plot-{self.plots}")
        return self.current

    def close(self, lake=True):
        """Checks a plot's lake, and removes what held."""
        plot, self.current = self.current, None
        if plot is None:
            return
        with self.guard(plot, "the lake at the end of a plot"):
            if lake and plot.data.exists():
                server = plot.server().start()
                verify(server, plot.journal)
                self.counts["rows"] += verify_lake(server, plot.journal)
                if (status := server.stop()) != 0:
                    raise Broken(f"a sound server did not stop well: {status}")
            self.counts["acknowledged"] += plot.journal.acknowledged()
            self.counts["resent"] += plot.journal.resent
            shutil.rmtree(plot.folder)

    @contextlib.contextmanager
    def guard(self, plot, label):
        """Keeps the folder of what broke, and goes on with another."""
        try:
            yield
        except Skip as skip:
            end_all()
            self.skipped.append(str(skip))
        except (Broken, EndedAtStart, OSError, AssertionError) as fault:
            end_all()
            kind = getattr(fault, "kind", "other")
            text = str(fault) if isinstance(fault, (Broken, EndedAtStart)) else traceback.format_exc()
            self.counts["broken"] += 1
            self.counts[f"broken {kind}"] += 1
            self.broken.append(f"{label} (seed {self.seed}): {text[:3000]}\n  kept: {plot and plot.folder}")
            if self.current is plot:
                self.current = None

    @contextlib.contextmanager
    def cycle(self, label, fresh=False):
        """One try: yields the plot. What breaks in it is written down and does not end the sweep."""
        plot = self.plot(fresh)
        broken, skipped = self.counts["broken"], len(self.skipped)
        with self.guard(plot, label):
            yield plot
        if len(self.skipped) > skipped:
            return
        self.counts["cycles"] += 1
        self.counts["survived"] += self.counts["broken"] == broken
        self.tell(self.counts)

    def recover(self, plot, then_kill=True):
        """The plain server on what is there: verified, and ended by a kill under load at a random moment."""
        server = plot.server().start()
        verify(server, plot.journal)
        if then_kill:
            self.kill_under_load(server, plot)
        else:
            server.kill()

    def kill_under_load(self, server, plot, threads=2):
        """SIGKILL from outside, while several clients send."""
        client = Client(server, plot.journal, seed=self.random.getrandbits(32))
        client.begin(threads)
        time.sleep(self.random.random() ** 2 * 0.06)
        server.kill()
        client.end()
        self.counts["killed"] += 1


def load_until_death(field, server, plot, batches=30, after=0.25, large=0.08):
    """Sends, then waits a moment for what the sinks do. The server's status if it ended by itself, else None."""
    client = Client(server, plot.journal, seed=field.random.getrandbits(32), large=large)
    client.run(batches=batches)
    deadline = time.monotonic() + after
    with contextlib.suppress(Broken):
        wait_until("dead or idle", lambda: not server.alive() or time.monotonic() > deadline, after + 1)
    return None if server.alive() else server.wait()
