"""What the tests share: servers that end with their test, and skips that are failures where they must not happen."""

import os
import sys
from pathlib import Path

import pytest
from clickhouse_engine import ClickHouse
from harness import BINARIES, Server, free_ports, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brokers import Kafka, why_no_kafka  # noqa: E402


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


def without_topics(kafka):
    """Deletes all topics but Kafka's own: who comes next finds a broker as a new one is."""
    from kafka import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=kafka.servers, request_timeout_ms=10_000)
    try:

        def topics():
            return [name for name in admin.list_topics() if not name.startswith("__")]

        if there := topics():
            admin.delete_topics(there)
            wait_until("the topics are gone", lambda: not topics())
    finally:
        admin.close()


@pytest.fixture(scope="session")
def lasting_broker(tmp_path_factory):
    """Holds the broker that tests have one after the other; a start takes seconds."""
    held = []
    yield held
    for kafka in held:
        kafka.end()


@pytest.fixture
def one(lasting_broker, tmp_path_factory):
    """One broker without topics, for tests that neither kill it nor need settings of their own. They may pause it."""
    if why_no_kafka():
        pytest.skip(why_no_kafka())
    if not lasting_broker or lasting_broker[0].processes[1].poll() is not None:
        folder = tmp_path_factory.mktemp("broker")
        lasting_broker[:] = [Kafka(folder, free_ports, wait_until, 1, group_min_session_timeout_ms=1000)]
    kafka = lasting_broker[0]
    without_topics(kafka)
    yield kafka
    kafka.resume(1)


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    terminalreporter.write_line(f"skipped: {len(skipped)}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    report = (yield).get_result()
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped, which must not happen in CI: {report.longrepr}"
