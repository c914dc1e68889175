"""Every process of every role restarted, one after the other, under load: what was lost, doubled and refused.

    make demo-roles                              two of each role, restarted with SIGTERM, then each killed and started again
    python -m roles.rolling --rounds 3           longer
    python -m roles.rolling --only rolling       without the kills
"""

import argparse
import tempfile
import time

from .check import figures
from .fleet import ROLES, Fleet
from .senders import Crowd
from harness import wait_until


def flows(crowd, more=200, timeout=30):
    """Waits until so many more events were acknowledged."""
    before = crowd.total()
    wait_until("events are acknowledged", lambda: before + more <= crowd.total(), timeout=timeout)


def run(folder, *, rounds=1, kill=False, only=ROLES, hop="", **settings):
    """One run in `folder`; asserts what is promised, returns the figures."""
    fleet = Fleet(folder, hop=hop)
    try:
        fleet.start()
        with Crowd(fleet, **settings) as crowd:
            flows(crowd)
            for _ in range(rounds):
                for role in only:
                    for replica in fleet.replicas[role]:
                        if kill:
                            replica.kill()
                            # The others serve meanwhile.
                            flows(crowd)
                        else:
                            replica.stop()
                        replica.start()
                        flows(crowd)
        found = figures(fleet, crowd)
        if not kill:
            told = {reason for (code, reason) in found.refusals}
            assert told <= {"draining"}, f"a restart in order is told as such: {found.refusals}"
            assert found.unanswered == 0, f"{found.unanswered} requests got no answer"
        return found
    except BaseException:
        print(fleet.logs())
        raise
    finally:
        fleet.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="how often each process is restarted (default 1)")
    parser.add_argument("--only", choices=["rolling", "kill"], help="one of the two")
    arguments = parser.parse_args()
    for name, kill, title in (
        ("rolling", False, "Rolling restart: SIGTERM to each of two edges, two normalizers, two writers, under load"),
        ("kill", True, "kill -9 of each of them, under load, started again"),
    ):
        if arguments.only in (None, name):
            begun = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="tidegate-roles-") as folder:
                found = run(folder, rounds=arguments.rounds, kill=kill)
            print(f"\n## {title} ({time.monotonic() - begun:.0f} s)\n\n{found.table()}", flush=True)
    print("\nnothing acknowledged is lost, no offset is there twice, every answer was 2xx or told when to come again")


if __name__ == "__main__":
    main()
