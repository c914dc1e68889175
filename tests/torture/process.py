"""A process that stands still for a while, and a second one on the same data folder."""

import signal
import time

from .rig import Broken, Client, EndedAtStart, Server, verify, wait_until

SWEEPS = ("pause", "pause and second start", "second start")


def sweeps():
    return list(SWEEPS)


def sweep(field, what, cycles=3):
    disturb = dict(zip(SWEEPS, (pause, pause_and_second, second)))
    for number in range(cycles):
        with field.cycle(f"{what} #{number}") as plot:
            server = plot.server().start()
            client = Client(server, plot.journal, seed=field.random.getrandbits(32)).begin(threads=2)
            wait_until("load is running", lambda: plot.journal.answers > 0 or not client.busy(), timeout=10)
            disturb[what](field, plot, server)
            if not server.alive():
                raise Broken(f"the first server ended: {server.said()[-2000:]}")
            before = plot.journal.answers
            wait_until("the first goes on", lambda: plot.journal.answers > before + 5, timeout=20)
            client.end()
            verify(server, plot.journal)
            server.kill()
            field.counts["killed"] += 1
            field.recover(plot)
            field.hits[what] += 1
        if field.over():
            return


def pause(field, plot, server):
    """Stands still under load, and goes on."""
    server.signal(signal.SIGSTOP)
    time.sleep(1 + field.random.random())
    server.signal(signal.SIGCONT)


def second(field, plot, server):
    """Must be refused, in words; the first is asked nothing."""
    rival = Server(plot.data, scratch=plot.folder / "rival")
    try:
        rival.start()
    except EndedAtStart as ended:
        if ended.returncode != 3 or "in use" not in ended.said:
            raise Broken(f"the second start was not refused in words: {ended}") from None
        return
    rival.kill()
    raise Broken("a second server started on a folder in use", "doubled")


def pause_and_second(field, plot, server):
    server.signal(signal.SIGSTOP)
    try:
        second(field, plot, server)
        time.sleep(0.5 + field.random.random())
    finally:
        server.signal(signal.SIGCONT)
