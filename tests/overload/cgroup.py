"""A memory cgroup with a limit and no swap, in either version; needs root and a hierarchy that may be written."""

import contextlib
import os
import time
from pathlib import Path


class Skip(Exception):
    """Cannot be done on this machine, and why."""


def mounts(kind):
    """Where hierarchies of that file system type are mounted, with their options."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, found, options, *_ = line.split()
        if found == kind:
            yield Path(place), options.split(",")


def own(controllers):
    """This process's group in the hierarchy with these controllers ("" in version 2)."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, found, path = line.split(":", 2)
        if controllers in found.split(","):
            return path.lstrip("/")
    return ""


class Cgroup:
    """Made for one process; removed by `end`."""

    def __init__(self, limit):
        if os.geteuid() != 0:
            raise Skip("a memory cgroup needs root")
        self.limit = limit
        name = f"tidegate-{os.getpid()}"
        for place, options in mounts("cgroup"):
            if "memory" in options:
                self.version = 1
                self.path = self.made([place / own("memory"), place], name, "memory.limit_in_bytes")
                break
        else:
            for place, _ in mounts("cgroup2"):
                # A group that has processes of its own gives its children no memory controller: try above it.
                self.version = 2
                here = place / own("")
                self.path = self.made([here, here.parent, place], name, "memory.max")
                break
            else:
                raise Skip("no cgroup hierarchy is mounted")
        if self.version == 1:
            self.write("memory.limit_in_bytes", limit)
            # Memory and swap together: no swap. Where the kernel does not count swap there is no such file.
            if (self.path / "memory.memsw.limit_in_bytes").exists():
                self.write("memory.memsw.limit_in_bytes", limit)
        else:
            self.write("memory.max", limit)
            if (self.path / "memory.swap.max").exists():
                self.write("memory.swap.max", 0)

    def made(self, parents, name, limit_file):
        why = ""
        for parent in parents:
            path = parent / name
            try:
                if self.version == 2:
                    with contextlib.suppress(OSError):
                        (parent / "cgroup.subtree_control").write_text("+memory")
                path.mkdir()
            except OSError as error:
                why = str(error)
                continue
            if (path / limit_file).exists():
                return path
            path.rmdir()
            why = f"{path} has no {limit_file}"
        raise Skip(f"no memory cgroup can be made: {why}")

    def write(self, name, value):
        (self.path / name).write_text(str(value))

    def command(self, command):
        """The command, started inside of it."""
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', self.path / "cgroup.procs", *command]

    def numbers(self, name):
        """A file of `key value` lines."""
        lines = (line.split() for line in (self.path / name).read_text().splitlines())
        return {line[0]: int(line[1]) for line in lines if len(line) == 2}

    def own_bytes(self):
        """What its processes hold themselves, without the page cache that goes when it is needed elsewhere."""
        stat = self.numbers("memory.stat")
        return stat["total_rss"] if self.version == 1 else stat["anon"]

    def kills(self):
        """How many processes were ended for want of memory."""
        return self.numbers("memory.oom_control" if self.version == 1 else "memory.events")["oom_kill"]

    def at_limit(self):
        """How often the limit was met, page cache included: what is reclaimed then costs nobody anything."""
        if self.version == 1:
            return int((self.path / "memory.failcnt").read_text())
        return self.numbers("memory.events")["max"]

    def end(self):
        for _ in range(100):
            try:
                return self.path.rmdir()
            except OSError:
                time.sleep(0.05)
        return self.path.rmdir()
