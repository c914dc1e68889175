"""SIGTERM under load: a clean exit, nothing acknowledged lost, no file half written, nothing to see in the logs."""

import json
import signal
import time

import pyarrow.parquet
from harness import Load, check_nothing_missing, http, journal_ids, temporary_files, wait_until


def loud_lines(text):
    """Log lines an operator would have to look at."""
    found = []
    for line in text.splitlines():
        try:
            level = json.loads(line).get("level", "")
        except (ValueError, AttributeError):
            level = "ERROR" if "panicked" in line else ""
        if level in ("ERROR", "WARN"):
            found.append(line)
    return found


def test_sigterm_under_load_drains_and_loses_nothing(make_server):
    server = make_server(flush_age="200ms").start()
    key = server.add_tenant()
    load = Load(server, key, "term", rate=4000, batch=50, seconds=30)
    try:
        wait_until("load is acknowledged", lambda: server.offsets_given() > 2000, timeout=30)
        assert server.stop(timeout=40) == 0, f"a drained server exits with 0:\n{server.logs()[-3000:]}"
    finally:
        load.stop()
    # No restart in between: the drain itself made everything visible.
    check_nothing_missing(server, journal_ids(load.journal))
    assert temporary_files(server.lake) == [], "no temporary file is left"
    for path in server.lake.rglob("*.parquet"):
        pyarrow.parquet.ParquetFile(path)  # opens: the footer is whole
    assert loud_lines(server.logs()) == [], "the log is clean"

    server.start()
    assert not any("torn" in line for line in server.log_file().read_text().splitlines()), "a clean stop leaves no torn tail"
    assert server.audit("--journal", load.journal)["balanced"] is True


def test_a_draining_server_says_so_and_is_not_ready(make_server):
    server = make_server(flush_age="200ms").start()
    key = server.add_tenant()
    server.accept([{"event_type": "before"}], key)
    answer = http("POST", f"{server.admin}/api/v1/drain", b"{}", {"Content-Type": "application/json"})
    assert answer.status == 200 and answer.json()["draining"] is True, answer

    def refused():
        try:
            ready = http("GET", f"{server.admin}/readyz", timeout=5)
        except OSError:
            return True
        return ready.status == 503 and b"drain" in ready.body

    wait_until("it is not ready any more and says why, or has gone", refused, timeout=10)
    try:
        answer = server.send([{"event_type": "late"}], key, timeout=5)
    except OSError:
        return  # closed already: nothing was promised
    assert answer.status == 503 and answer.headers["X-Shed-Reason"] == "draining", answer
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_second_sigterm_does_not_spoil_the_first(make_server):
    server = make_server(flush_age="5s").start()
    key = server.add_tenant()
    server.accept([{"event_type": "kept", "n": n} for n in range(100)], key)
    server.signal(signal.SIGTERM)
    time.sleep(0.01)
    if server.process.poll() is None:
        server.signal(signal.SIGTERM)
    assert server.process.wait(40) == 0, server.logs()[-3000:]
    assert server.count("kept") == 100, "the drain flushed what was young"
