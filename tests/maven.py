"""What the tests fetch with Maven: one process at a time, since its local repository is not made for several."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

MAVEN = Path(os.environ.get("MAVEN_REPOSITORY", Path.home() / ".m2" / "repository"))


def maven(*arguments):
    """Runs Maven on the local repository."""
    MAVEN.mkdir(parents=True, exist_ok=True)
    with open(MAVEN / "tidegate.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["mvn", "-q", "-B", "-Dstyle.color=never", f"-Dmaven.repo.local={MAVEN}", *map(str, arguments)]
        # Even silent it writes there (an end of colours it never began): who calls may have something to say there itself.
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=600)


def class_path(pom, name):
    """The jars of a pom's dependencies, fetched where they are not here yet; remembered under `name`."""
    kept = MAVEN / f"tidegate-{name}.classpath"
    fresh = kept.exists() and kept.stat().st_mtime >= pom.stat().st_mtime
    if not fresh or not all(Path(jar).exists() for jar in kept.read_text().split(":")):
        beside = MAVEN / f"tidegate-{name}.{os.getpid()}"
        maven("-f", pom, "dependency:build-classpath", f"-Dmdep.outputFile={beside}")
        beside.replace(kept)
    return kept.read_text()
