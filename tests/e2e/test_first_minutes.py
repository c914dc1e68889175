"""The README's lines, taken out of it and pasted one by one into a shell."""

import os
import re
import signal
import subprocess

import pytest
from harness import REPOSITORY, free_ports, http, wait_until

ENTRIES = ["Makefile", "config", "target", "tests", ".venv", "scripts"]
# These start this very test, or install for good: they are run by people and by CI, not from here.
NOT_FROM_HERE = {"make test"}


def shell_lines(text):
    """The lines of the `sh` blocks, with continued lines joined."""
    lines = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines += [line for line in block.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return lines


class Shell:
    """A folder with what the README's lines need beside them, and a server on ports of its own."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        for entry in ENTRIES:
            if (REPOSITORY / entry).exists():
                (folder / entry).symlink_to(REPOSITORY / entry)
        self.public, self.admin = free_ports(2)
        self.server = None

    def text(self, line):
        return line.replace("127.0.0.1:8080", f"127.0.0.1:{self.public}").replace("127.0.0.1:8081", f"127.0.0.1:{self.admin}")

    def start(self):
        arguments = f"--dev --listen 127.0.0.1:{self.public} --admin 127.0.0.1:{self.admin} --data-dir {self.folder}/tidegate-data"
        log = open(self.folder / "server.log", "wb")
        self.server = subprocess.Popen(
            ["make", "--no-print-directory", "-C", REPOSITORY, "run", f"RUN_ARGUMENTS={arguments}"],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "TIDEGATE_EDGE__ALSO_LISTEN": "[]"},
        )  # fmt: skip
        log.close()

        def ready():
            assert self.server.poll() is None, (self.folder / "server.log").read_text()[-3000:]
            return http("GET", f"http://127.0.0.1:{self.admin}/readyz").status == 200

        wait_until("`make run` is ready", ready, timeout=900)

    def try_line(self, line):
        environment = dict(
            os.environ,
            TIDEGATE_ADMIN_URL=f"http://127.0.0.1:{self.admin}",
            TIDEGATE_URL=f"http://127.0.0.1:{self.public}",
        )
        return subprocess.run(
            ["bash", "-c", self.text(line)], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
        )

    def run(self, line):
        done = self.try_line(line)
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"README line ended with {done.returncode}:\n{line}\n{said[-3000:]}"
        assert '"status":4' not in said and '"status":5' not in said, f"README line was refused:\n{line}\n{said}"
        return said

    def end(self):
        """Ends what `make run` started: its own session, nothing else."""
        if self.server and self.server.poll() is None:
            os.killpg(self.server.pid, signal.SIGTERM)
            try:
                self.server.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(self.server.pid, signal.SIGKILL)


@pytest.fixture
def shell(tmp_path):
    made = Shell(tmp_path / "first-minutes")
    yield made
    made.end()


def test_each_line_of_the_readme_works_when_pasted(shell):
    lines = shell_lines((REPOSITORY / "README.md").read_text())
    assert "make run" in lines and "make test" in lines, "the README shows its two commands"
    said = {}
    for line in lines:
        if line in NOT_FROM_HERE:
            continue
        if line == "make run":
            shell.start()
            continue
        if "duckdb" in line:  # what the lines before it sent is visible within seconds
            shown = "PushEvent" if "github_event" in line else "first_visit"
            wait_until("the lake shows what was sent", lambda: shown in shell.try_line(line).stdout, timeout=30)
        said[line] = shell.run(line)
    everything = "".join(said.values())
    assert '"accepted":1' in everything and '"accepted":30' in everything, "one event, and the thirty of the file"
    printed = (shell.folder / "server.log").read_text()
    assert "tgk_dev" in printed and "curl" in printed, "the server said how to send a first event"
