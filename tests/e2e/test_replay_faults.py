"""A replay on a disk that is really full, under its shadow and under its own state: it waits and says why, and goes on once
there is space; live is as it was."""

import contextlib
import os
import subprocess

import pytest
from clickhouse_engine import lake_rows
from harness import http, tally, wait_until
from test_replay import done, files_of_live, replay, replay_job, shadow_rows, within

MIB = 1 << 20


@pytest.fixture
def small_disk():
    """Mounts small disks; all are gone when the test ends."""
    mounted = []

    def mount(folder, size):
        if os.geteuid() != 0:
            pytest.skip("full disk: only root may mount a small one")
        folder.mkdir(parents=True, exist_ok=True)
        options = ["-t", "tmpfs", "-o", f"size={size}", "tidegate-replay"]
        done = subprocess.run(["mount", *options, folder], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"full disk: this machine mounts none: {done.stderr.strip()[-200:]}")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


def cram(folder):
    """Takes all the space that is left; what takes it."""
    crammed = folder / "crammed"
    with contextlib.suppress(OSError), open(crammed, "wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    return crammed


def fill(server, key, events=400):
    for first in range(0, events, 50):
        server.accept([{"event_type": "order", "n": n, "text": os.urandom(1000).hex()} for n in range(first, first + 50)], key)
    server.settle()


def trouble(server, plan_id):
    return replay_job(server, plan_id)["trouble"]


def check_window(server, plan_id, first, end):
    live = within(lake_rows(server, "order"), first, end)
    assert len(live) == end - first and shadow_rows(server, plan_id, "order") == live


def test_a_replay_whose_shadow_finds_no_space_goes_on_once_there_is(make_server, small_disk):
    """Scenario: the lake's disk is full while a window is written into its shadow; the server is killed meanwhile too.
    Guarantees: `status` says what it waits for; with space the shadow holds exactly the window; live is as it was."""
    server = make_server()
    small_disk(server.lake, f"{16 * MIB}")
    server.start()
    key = server.add_tenant()
    fill(server, key)
    files = files_of_live(server)
    crammed = cram(server.lake)
    plan_id = replay(server, "--from", 30, "--to", 370, "--shadow", "--as-recorded", "--yes")["plan_id"]
    wait_until("it says what it waits for", lambda: "No space" in (trouble(server, plan_id) or ""))
    said = subprocess.run(
        server.ctl_command("replay", "status", plan_id), env=server.ctl_environment(), capture_output=True, text=True
    )
    assert "it waits: shadow.lake" in said.stdout and "No space" in said.stdout, said
    server.kill()
    server.start()
    wait_until("it says so after a start", lambda: "No space" in (trouble(server, plan_id) or ""))
    assert replay_job(server, plan_id)["state"] == "running"
    # Events are taken all the same, and come into the lake later.
    server.accept([{"event_type": "order", "n": n} for n in range(20)], key)
    crammed.unlink()
    done(server, plan_id)
    assert trouble(server, plan_id) is None
    server.settle()
    check_window(server, plan_id, 30, 370)
    after = files_of_live(server)
    assert {path: after.get(path) for path in files} == files, "a live file is gone or has changed"
    assert server.ctl("replay", "compare", plan_id)["identical"] is True
    assert server.audit()["balanced"] is True
    tally("e2e::replay_faults", "ENOSPC", ["P6"], 1)


def test_a_replay_whose_own_state_finds_no_space_is_refused_or_waits_and_comes_to_the_same(make_server, small_disk):
    """Scenario: no space for the states of replays: when one is applied, while it runs, when it is paused, over a kill.
    Guarantees: what cannot be written down is refused and leaves nothing; a job that runs goes on once there is space; the
    shadow holds exactly the window."""
    server = make_server()
    # Small windows: many intents and cursors.
    server.config.write_text(server.config.read_text().replace("flush = {", "flush = { rows = 40,"))
    # One disk for the jobs, another for the rest of the data.
    jobs = server.data / "replay"
    small_disk(jobs, "256k")
    server.start()
    key = server.add_tenant()
    fill(server, key)
    files = files_of_live(server)
    plan = server.folder / "plan.json"
    plan_id = replay(server, "--from", 30, "--to", 370, "--shadow", "--as-recorded", "--plan", plan)["plan_id"]
    crammed = cram(jobs)
    command = server.ctl_command("replay", "apply", plan, "--yes", "--max-rate", 100)
    refused = subprocess.run(command, env=server.ctl_environment(), capture_output=True, text=True)
    assert refused.returncode == 3 and "No space" in refused.stderr, refused
    server.kill()
    server.start()
    listed = http("GET", f"{server.admin}/api/v1/replay/jobs").json()
    assert listed["jobs"] == [], "what was refused is no job, after a start neither"
    crammed.unlink()

    replay(server, "apply", plan, "--yes", "--max-rate", 100)
    wait_until("it is at work", lambda: replay_job(server, plan_id)["done_events"] > 0)
    cram(jobs)
    wait_until("it says what it waits for", lambda: "No space" in (trouble(server, plan_id) or ""))
    command = server.ctl_command("replay", "pause", plan_id)
    refused = subprocess.run(command, env=server.ctl_environment(), capture_output=True, text=True)
    assert refused.returncode == 3 and "No space" in refused.stderr, refused
    server.kill()
    server.start()
    # It cannot even be written down that it goes on; nothing is done meanwhile.
    assert replay_job(server, plan_id)["state"] in ("waiting", "running")
    wait_until("it says so after a start", lambda: "No space" in (trouble(server, plan_id) or ""))
    (jobs / "crammed").unlink()
    done(server, plan_id)
    check_window(server, plan_id, 30, 370)
    # All but the last word: it is found when there is space.
    replay(server, "rm", plan_id)
    replay(server, "apply", plan, "--yes", "--max-rate", 300)
    wait_until("all is written", lambda: replay_job(server, plan_id)["done_events"] == 340, pause=0.01)
    cram(jobs)
    wait_until("it is told or done", lambda: trouble(server, plan_id) or replay_job(server, plan_id)["state"] == "done")
    (jobs / "crammed").unlink()
    done(server, plan_id)
    check_window(server, plan_id, 30, 370)
    assert files_of_live(server) == files
    assert server.audit()["balanced"] is True
    tally("e2e::replay_faults", "ENOSPC", ["P6"], 2)
