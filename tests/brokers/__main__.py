"""`python -m brokers FOLDER [--brokers N] [setting=value…]`: a cluster that lives until standard input ends.

Prints one line of JSON, `{"servers": "127.0.0.1:…"}`, once it is ready. Then it takes one command a line, `kill N`, `stop N`,
`pause N`, `resume N`, `start N`, and answers each with `ok`.
"""

import argparse
import faulthandler
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from harness import free_ports, wait_until  # noqa: E402

from brokers import Kafka, why_no_kafka  # noqa: E402

# Seconds; fetching Apache Kafka with Maven has its own bound.
READY_WITHIN = 900
COMMANDS = ("kill", "stop", "pause", "resume", "start")


def main():
    arguments = argparse.ArgumentParser(prog="python -m brokers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--brokers", type=int, default=1)
    arguments.add_argument("--remove", action="store_true", help="the folder is removed at the end")
    arguments.add_argument("settings", nargs="*", help="broker settings, KEY=VALUE")
    given = arguments.parse_args()
    if why_no_kafka():
        sys.exit(why_no_kafka())
    # Whoever waits for the line below would wait as long as this does: what hangs tells where, and ends.
    faulthandler.dump_traceback_later(READY_WITHIN, exit=True)
    settings = dict(setting.split("=", 1) for setting in given.settings)
    kafka = Kafka(given.folder, free_ports, wait_until, given.brokers, **settings)
    faulthandler.cancel_dump_traceback_later()
    try:
        print(json.dumps({"servers": kafka.servers}), flush=True)
        for line in sys.stdin:
            command, number = line.split()
            if command not in COMMANDS:
                sys.exit(f"{command}: none of {', '.join(COMMANDS)}")
            getattr(kafka, command)(int(number))
            print("ok", flush=True)
    finally:
        kafka.end()
        if given.remove:
            shutil.rmtree(given.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
