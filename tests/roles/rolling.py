"""Every process of every role restarted, one after the other, under load: what was lost, doubled and refused.

    make demo-roles                              two of each role, restarted with SIGTERM, then each killed and started again
    python -m roles.rolling --rounds 3           longer
    python -m roles.rolling --only rolling       without the kills
    python -m roles.rolling --log kafka          both writers share a log on Kafka, and its partitions
"""

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

from .check import figures
from .fleet import ROLES, Fleet
from .senders import Crowd
from brokers import Kafka, why_no_kafka
from harness import free_ports, wait_until
from kafka_log import on_kafka

PARTITIONS = 4


def flows(crowd, more=200, timeout=30):
    """Waits until so many more events were acknowledged."""
    before = crowd.total()
    wait_until("events are acknowledged", lambda: before + more <= crowd.total(), timeout=timeout)


@contextlib.contextmanager
def log_of(kind, folder, broker):
    """What a fleet of this kind of log is made with; for Kafka a broker that ends with it, where none is given."""
    if kind == "embedded":
        yield {}
        return
    kafka = broker or Kafka(Path(folder) / "kafka", free_ports, wait_until, 1, group_min_session_timeout_ms=1000)
    try:
        # Each request to the next partition: all of them, and so both writers' sinks, have work.
        log = on_kafka(kafka, "fleet", 'partition_by = "request"', partitions=PARTITIONS, session="3s")
        yield {"log": log, "partitions": PARTITIONS}
    finally:
        if kafka is not broker:
            kafka.end()


def run(folder, *, rounds=1, kill=False, only=ROLES, hop="", log="embedded", broker=None, **settings):
    """One run in `folder`; asserts what is promised, returns the figures."""
    with log_of(log, folder, broker) as logged:
        return run_on(Fleet(folder, hop=hop, **logged), rounds=rounds, kill=kill, only=only, **settings)


def run_on(fleet, *, rounds, kill, only, **settings):
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
    parser.add_argument("--log", choices=["embedded", "kafka"], default="embedded", help="the writers' (default embedded)")
    arguments = parser.parse_args()
    if arguments.log == "kafka" and why_no_kafka():
        parser.exit(2, f"{why_no_kafka()}\n")
    for name, kill, title in (
        ("rolling", False, "Rolling restart: SIGTERM to each of two edges, two normalizers, two writers, under load"),
        ("kill", True, "kill -9 of each of them, under load, started again"),
    ):
        if arguments.only in (None, name):
            begun = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="tidegate-roles-") as folder:
                found = run(folder, rounds=arguments.rounds, kill=kill, log=arguments.log)
            print(f"\n## {title} ({time.monotonic() - begun:.0f} s)\n\n{found.table()}", flush=True)
    print("\nnothing acknowledged is lost, no offset is there twice, every answer was 2xx or told when to come again")


if __name__ == "__main__":
    main()
