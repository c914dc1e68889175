"""A server whose clock can be made to go faster, so that its hour is a test's minute: fast_clock.c, built where it is needed."""

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

from harness import BINARIES


def why_no_fast_clock():
    """What is missing to build it; `None` where nothing is."""
    missing = [program for program in ("cc", "nm") if not shutil.which(program)]
    return f"a fast clock needs {' and '.join(missing)}" if missing else None


def kafkas_client():
    """Where librdkafka lies in the program: its functions lie together, as they were in its archive."""
    listed = subprocess.run(["nm", "--numeric-sort", "--defined-only", BINARIES / "ingestd"], capture_output=True, text=True, check=True)
    functions = [line.split() for line in listed.stdout.splitlines() if " t " in line or " T " in line]
    at = [n for n, (_, _, name) in enumerate(functions) if name.startswith(("rd_kafka_", "rd_dl_"))]
    return f"{functions[at[0]][0]}-{functions[at[-1] + 1][0]}" if at else ""


class FastClock:
    """The clock of one server. It goes as all clocks do until it is told otherwise, `ahead` seconds from the true time of day.
    Nothing that it measures ever goes back: neither time of day nor time since a start. Kafka's client, where it is part of the
    program, keeps the true time, as the brokers do with which it agrees on times."""

    def __init__(self, folder, ahead=0):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        library, orders = folder / "fast_clock.so", folder / "fast_clock"
        source = Path(__file__).with_name("fast_clock.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=60)
        orders.write_bytes(struct.pack("=qq", 1, ahead * 1_000_000_000))
        with open(orders, "r+b") as file:
            self.orders = mmap.mmap(file.fileno(), 16)
        self.environment = {"LD_PRELOAD": str(library), "FAST_CLOCK": str(orders), "FAST_CLOCK_SPARES": kafkas_client()}

    def go(self, factor):
        """From now on so many times as fast."""
        self.orders[0:8] = struct.pack("=q", factor)
