"""A lane that cannot be written waits alone; its neighbours flow, and it catches up by itself."""

from harness import http, wait_until


def sink_status(server):
    return http("GET", f"{server.admin}/api/v1/status").json()["sinks"][0]


def test_a_blocked_lane_waits_alone_and_catches_up(server):
    key = server.add_tenant()
    # A plain file where the lane's folder belongs: this type cannot be written, all others can.
    blocked = server.folder_of("stuck")
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("in the way")
    server.accept([{"event_type": "stuck", "n": n} for n in range(20)], key)
    for round_number in range(5):
        server.accept([{"event_type": "flowing", "n": n, "round": round_number} for n in range(10)], key)
        wait_until(
            f"round {round_number} of the neighbour is visible beside the blocked lane",
            lambda: server.count("flowing") == 10 * (round_number + 1),
            timeout=30,
        )
    wait_until("the held lane's events are all of the lag", lambda: sink_status(server)["lag_events"] == 20)
    status = sink_status(server)
    assert status["freshness_seconds"] > 0, f"the oldest waiting event has an age: {status}"
    audit = server.audit()
    assert audit["balanced"] is True, audit
    page = next(t for t in audit["tenants"] if t["event_type"] == "stuck")
    assert page["sinks"]["lake"]["pending"] == 20 and page["sinks"]["lake"]["stored"] == 0, page

    blocked.unlink()
    server.settle()
    assert server.count("stuck") == 20, "the lane caught up once it could be written"
    assert server.count("flowing") == 50
    assert server.audit()["balanced"] is True


def test_a_held_lane_survives_a_restart(server):
    key = server.add_tenant()
    blocked = server.folder_of("stuck")
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("in the way")
    server.accept([{"event_type": "stuck", "n": n} for n in range(7)], key)
    server.accept([{"event_type": "flowing", "n": n} for n in range(7)], key)
    wait_until("the neighbour is visible", lambda: server.count("flowing") == 7, timeout=30)
    server.kill()
    server.start()
    server.accept([{"event_type": "flowing", "n": n} for n in range(7)], key)
    wait_until("the neighbour flows after the restart", lambda: server.count("flowing") == 14, timeout=30)
    blocked.unlink()
    server.settle()
    assert (server.count("stuck"), server.count("flowing")) == (7, 14)
    assert server.audit()["balanced"] is True
