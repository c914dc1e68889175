"""What the tests share: servers that end with their test, and skips that are failures where they must not happen."""

import os

import pytest
from clickhouse_engine import ClickHouse
from harness import BINARIES, Server


def pytest_configure():
    for program in ("ingestd", "ingestctl"):
        if not (BINARIES / program).exists():
            pytest.exit(f"{BINARIES / program} is missing: run `cargo build --workspace --locked --bins`", 2)


@pytest.fixture
def make_server(tmp_path):
    """Makes servers, each in a folder of its own; all are gone when the test ends."""
    made = []

    def make(**settings):
        server = Server(tmp_path / f"server-{len(made)}", **settings)
        made.append(server)
        return server

    yield make
    for server in made:
        server.end()


@pytest.fixture
def server(make_server):
    """A running server without tenants and schemas, with a lake that is flushed often."""
    return make_server().start()


@pytest.fixture
def clickhouse(tmp_path):
    """ClickHouse's engine, of this test's own."""
    engine = ClickHouse(tmp_path / "clickhouse").start()
    yield engine
    if engine.process.poll() is None:
        engine.kill()


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    terminalreporter.write_line(f"skipped: {len(skipped)}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    report = (yield).get_result()
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped, which must not happen in CI: {report.longrepr}"
