"""Plans of replays as an operator makes them: which windows are found, what is refused word for word, when none is run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness import free_ports, wait_until
from kafka_log import on_kafka, settle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brokers import Kafka, why_no_kafka  # noqa: E402

TYPE = "order"
TENANTS = ["acme", "globex", "initech", "umbrella", "hooli", "stark"]


def schema(version, maximum):
    return {"x-version": version, "type": "object", "properties": {"n": {"type": "integer", "maximum": maximum}}}


def said(server, *arguments, status=2):
    """What `ingestctl replay` says on stderr when it ends with `status`."""
    done = subprocess.run(
        server.ctl_command("replay", *arguments, "--shadow"), env=server.ctl_environment(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == status, done
    return done.stderr.removeprefix("ingestctl: ").removesuffix("\n")


def planned(server, *arguments):
    """The plan, and the file it was written to."""
    file = server.folder / "plan.json"
    shown = server.ctl("replay", *arguments, "--shadow", "--plan", file)
    plan = json.loads(file.read_text())
    assert shown["plan_id"] == plan["plan_id"] and shown["live"] == "nothing", shown
    return plan, file


def filled(server, rounds=3):
    """Three orders of each tenant a round: two valid ones and one that is not; returns the keys."""
    keys = {tenant: server.add_tenant(tenant) for tenant in TENANTS}
    for _ in range(rounds):
        for key in keys.values():
            answer = server.send([{"event_type": TYPE, "n": n} for n in (1, 2, 99)], key).json()
            assert (answer["accepted"], answer["dead_lettered"]) == (2, 1), answer
    return keys


def ends_of(server):
    return [part["latest"] for part in server.ctl("offsets")["partitions"]]


def listed(offsets):
    return ",".join(f"{partition}:{offset}" for partition, offset in enumerate(offsets))


def plans_and_refuses(server, partitions):
    """The same on every log: a whole window is planned twice alike, bad ones are refused, a changed schema is noticed."""
    keys = filled(server)
    ends = wait_until("every event is in the log", lambda: sum(ends_of(server)) >= 54 and ends_of(server))
    assert len(ends) == partitions
    plan, file = planned(server, "--from", "earliest", "--to", "latest")
    assert sum(slice["events"] for slice in plan["window"]) == 54
    counts = {(lane["tenant"], lane["dead_letters"]): lane["events"] for lane in plan["counts"]}
    assert counts == {(tenant, dead): (3 if dead else 6) for tenant in TENANTS for dead in (False, True)}
    assert [slice["to"] for slice in plan["window"]] == [end for end in ends if end]
    window = [slice for slice in plan["window"]]
    assert all(slice["last"]["offset"] < slice["to"] and slice["from"] <= slice["first"]["offset"] for slice in window)

    # The same window, written otherwise and after more came in, is the same plan.
    server.accept([{"event_type": TYPE, "n": 3}], keys["acme"])
    places = {slice["partition"]: slice for slice in window}
    begin = ",".join(f"{p}:{slice['from']}" for p, slice in places.items())
    end = ",".join(f"{p}:{slice['to']}" for p, slice in places.items())
    again, _ = planned(server, "--from", begin, "--to", end)
    assert again["plan_id"] == plan["plan_id"]
    assert {**again, "made_at": 0} == {**plan, "made_at": 0}

    bare = ",".join(f"{p}:5" for p in range(partitions))
    assert said(server, "--from", "5", "--to", "latest") == (
        f"--from 5 is an offset of which partition? The log has {partitions}: write --from {bare}, or"
        " --partition 0 --from 5 for one alone"
    )
    assert said(server, "--from", "1,234", "--to", "latest") == (
        '--from "1,234" is an offset in groups of digits: write --from 1234'
    )
    assert said(server, "--from", f"{partitions}:0", "--to", "latest") == (
        f"--from names partition {partitions}; the log has {', '.join(map(str, range(partitions)))}"
    )
    assert said(server, "--from-time", "2026-11-21T10:00", "--to", "latest") == (
        '--from-time "2026-11-21T10:00" has no zone: write --from-time 2026-11-21T10:00Z for UTC, or with its offset,'
        " such as --from-time 2026-11-21T10:00+01:00"
    )
    assert said(server, "--from", "deploy:v1", "--to", "latest") == (
        "deploy:v1: no such mark; no mark was set yet: `ingestctl mark deploy:TAG` sets one"
    )
    assert said(server, "--from", "earliest", "--to", "latest", "--sink", "house") == (
        "--sink house: no such sink; there are lake"
    )
    assert said(server, "--from", "earliest", "--to", "latest") == (
        "to replay 55 events into the shadow add --yes; --plan FILE keeps the plan for `ingestctl replay apply FILE`"
    )
    busy = next(iter(places))
    last = ends_of(server)[busy]
    assert said(server, "--from", f"{busy}:0", "--to", f"{busy}:{last + 9}") == (
        f"--to {busy}:{last + 9} is past the end: partition {busy} ends at {last} (the offset that the next event gets):"
        f" write --to {busy}:{last} or --to latest"
    )
    assert not (server.lake / "shadow").exists()

    # Another schema, another world.
    server.write_schema(TYPE, schema(2, 50))
    server.ctl("reload")
    refused = subprocess.run(
        server.ctl_command("replay", "apply", file, "--yes"), env=server.ctl_environment(), capture_output=True, text=True
    )
    assert refused.returncode == 3, refused
    for tenant in TENANTS:
        assert f"the schema of {tenant}/{TYPE} was version 1 (" in refused.stderr, refused.stderr
    assert server.ctl("replay", "list")["jobs"] == []


def test_windows_of_an_own_log_are_planned_or_refused(make_server):
    server = make_server(log="partitions = 3", schemas={TYPE: schema(1, 10)}).start()
    plans_and_refuses(server, 3)
    # Made again, the plan is run, and the shadow holds what it says.
    plan, file = planned(server, "--from", "earliest", "--to", "latest")
    done = server.ctl("replay", "apply", file, "--yes", "--wait")
    assert done == {"plan_id": plan["plan_id"], "state": "done", "events": 55}
    twice = subprocess.run(
        server.ctl_command("replay", "apply", file, "--yes"), env=server.ctl_environment(), capture_output=True, text=True
    )
    assert twice.returncode == 3 and "409" in twice.stderr, twice


@pytest.mark.skipif(why_no_kafka() is not None, reason=str(why_no_kafka()))
def test_windows_of_a_log_on_kafka_are_planned_or_refused(make_server, one):
    server = make_server(log=on_kafka(one, "events"), schemas={TYPE: schema(1, 10)}).start()
    settle(server)
    plans_and_refuses(server, 2)


def test_what_retention_has_removed_is_refused_and_says_which_part(make_server):
    """Scenario: a mark at the log's beginning, then more than is kept.
    Guarantees: neither the mark nor an offset below what is left makes a plan; the spelling that is advised does."""
    log = 'segment_bytes = "1MiB"\nretention_bytes = "3MiB"\nretention_age = "1h"'
    server = make_server(log=log).start()
    key = server.add_tenant()
    server.accept([{"event_type": "pad", "n": 0}], key)
    server.ctl("mark", "deploy:first")
    pad = "x" * 50_000

    def removed():
        server.accept([{"event_type": "pad", "n": n, "pad": f"{n}{pad}"} for n in range(20)], key)
        return server.ctl("offsets")["partitions"][0]["earliest"]

    wait_until("retention has removed something", removed, pause=0.2)
    server.settle()
    earliest = wait_until("retention rests", lambda: server.ctl("offsets")["partitions"][0]["earliest"])
    gone = f"retention has removed partition 0 below {earliest}; that part of the window is gone: write --from 0:{earliest}"
    assert said(server, "--from", "0", "--to", "latest") == f"--from 0: {gone}"
    marked = said(server, "--from", "deploy:first", "--to", "latest")
    assert marked == f"--from deploy:first: {gone}"
    plan, _ = planned(server, "--from", f"0:{earliest}", "--to", "latest")
    assert plan["window"][0]["from"] == earliest
    since = said(server, "--from-time", "2020-01-01T00:00Z", "--to", "latest")
    assert since == (
        f"--from-time 2020-01-01T00:00Z: retention has removed partition 0 below {earliest}; part of it may have been"
        f" received at that time or later, and nobody can tell: write --from 0:{earliest}"
    )
