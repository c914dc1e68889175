"""The test bench (`ingestctl load --scenario`) in a short form: what must hold however slow the machine is."""

import json
import os
import signal
import subprocess
import time

import pytest
from harness import BINARIES, tally, wait_until

CTL = str(BINARIES / "ingestctl")
# What does not depend on speed, by the words that the report's checks begin with.
ALWAYS = ("the sinks catch up", "the audit of", "acknowledged events in the books", "the server's end")


def scenario(name, folder, seconds, *more):
    """Runs one and returns its report. Exit status 1 says that a figure did not hold: which, the tests look at."""
    command = [CTL, "load", "--scenario", name, "--duration", f"{seconds}s", "--data-dir", str(folder), "--json", *more]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), f"ended with {done.returncode}: {done.stderr[-3000:]}"
    report = json.loads(done.stdout)
    assert report["holds"] == (done.returncode == 0), "the exit status says what the report says"
    assert not list(folder.iterdir()), "the scenario's folder is gone"
    return report


def check_always(report):
    for words in ALWAYS:
        found = [check for check in report["checks"] if check["name"].startswith(words)]
        assert found, f"nothing was checked about: {words}"
        assert all(check["holds"] for check in found), found


@pytest.mark.parametrize("name", ["noisy-requests", "noisy-tiny", "noisy-slow-bodies"])
def test_a_tenant_far_over_its_quota_costs_no_other_a_refusal(name, tmp_path):
    """Scenario: four tenants within their quotas, a fifth at 100 times its own.
    Guarantees: no victim is refused, the fifth gets no more than its quota, nothing acknowledged is missing."""
    report = scenario(name, tmp_path, 3, "--no-pin")
    victims = [party for party in report["parties"] if not party["attacks"]]
    attackers = [party for party in report["parties"] if party["attacks"]]
    assert len(victims) == 4 and attackers
    for victim in victims:
        assert victim["accepted_events"] > 0, f"it was served: {victim}"
        assert not {"429", "503"} & set(victim["codes"]), f"it was not refused: {victim}"
    quota = report["facts"]["attacker_quota"]
    accepted = sum(party["measured_events_per_second"] for party in attackers)
    # Bodies that never end are charged too: those who are polite beside them may get nothing for a while.
    least = 0 if name == "noisy-slow-bodies" else 1
    assert least <= accepted <= quota * 1.05, f"{accepted:.1f} events/s for a quota of {quota}"
    assert any("429" in party["codes"] for party in attackers), f"it was refused: {attackers}"
    assert all(party["without_retry_after"] == 0 for party in attackers), f"and told when to come again: {attackers}"
    check_always(report)
    tally(f"e2e::overload {name}", "tenant at 100x", ["P3", "P4", "P5"], 1)


def test_a_slow_sink_makes_clients_wait_and_loses_nothing(tmp_path):
    """Scenario: three times as much is offered as the only sink takes.
    Guarantees: once its backlog is full clients are told to wait, memory stays bounded, the books balance afterwards."""
    report = scenario("slow-sink", tmp_path, 8, "--no-pin")
    assert report["parties"]
    refused = [party["shed"] for party in report["parties"] if party["shed"]]
    assert refused, "somebody was refused"
    assert {reason for shed in refused for reason in shed} <= {"log_full", "tenant_lane"}, refused
    assert all(party["without_retry_after"] == 0 for party in report["parties"])
    memory = [check for check in report["checks"] if check["name"] == "peak memory"]
    assert memory and memory[0]["holds"], memory
    check_always(report)
    tally("e2e::overload slow-sink", "slow sink", ["P4", "P5"], 1)


def test_a_scenario_that_is_broken_off_leaves_nothing_behind(tmp_path):
    """Scenario: Ctrl-C while the server is under load.
    Guarantees: exit status 3, the server has ended, its folder is gone."""
    command = [CTL, "load", "--scenario", "capacity", "--duration", "60s", "--data-dir", str(tmp_path), "--no-pin"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            log = wait_until("the server is started", lambda: list(tmp_path.glob("*/ingestd.log")))[0]
            wait_until("it is ready", lambda: '"ready"' in log.read_text())
            servers = [pid for pid in os.listdir("/proc") if pid.isdigit() and str(tmp_path) in command_line(pid)]
            servers = [pid for pid in servers if int(pid) != process.pid]
            assert servers, "the server is a process of its own"
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 3, process.stderr.read()
        finally:
            process.kill()
    assert not list(tmp_path.iterdir()), "its folder is gone"
    assert not [pid for pid in servers if str(tmp_path) in command_line(pid)], "its server has ended"


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
