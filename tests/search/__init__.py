"""OpenSearch on loopback, as its own makers publish it: one node that a test may kill, pause and start again."""

import shutil
import signal
import subprocess
from pathlib import Path

import maven

HERE = Path(__file__).resolve().parent
HEAP = "512m"


def why_no_opensearch():
    """What is missing to run it; `None` where nothing is."""
    missing = [program for program in ("java", "mvn") if not shutil.which(program)]
    if not missing and "jdk.compiler" not in subprocess.run(["java", "--list-modules"], capture_output=True, text=True).stdout:
        missing = ["a JDK"]
    return f"OpenSearch needs {' and '.join(missing)}" if missing else None


def class_path():
    """Its jars, fetched by Maven where they are not here yet."""
    return maven.class_path(HERE / "pom.xml", "search")


class OpenSearch:
    """One node; its folder outlives its process."""

    def __init__(self, folder):
        self.folder, self.port, self.process = Path(folder), 0, None
        # It looks for its settings there; it gets them from `Engine.java`.
        (self.folder / "config").mkdir(parents=True)

    def start(self):
        """Starts it, always on the same port, and waits until it answers."""
        command = [
            "java", f"-Xmx{HEAP}", f"-Xms{HEAP}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", class_path(),
            str(HERE / "Engine.java"), str(self.folder), str(self.port),
        ]  # fmt: skip
        with open(self.folder / "engine.log", "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        for line in self.process.stdout:
            if line.startswith(b"listening on "):
                self.port = int(line.split()[-1])
                return self
        raise AssertionError(f"OpenSearch did not start: {(self.folder / 'engine.log').read_text()[-3000:]}")

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def end(self):
        """Whatever happened before: it does not run afterwards."""
        if self.process and self.process.poll() is None:
            self.kill()
