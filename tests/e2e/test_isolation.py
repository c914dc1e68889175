"""What one tenant does, or suffers, costs no other tenant anything, and the server no memory without bound.

What this does not prove: by how much latencies grow under full load (`ingestctl load --scenario`)."""

import json
import random
import signal
import socket
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import duckdb  # noqa: E402
from harness import Load, check_nothing_missing, journal_ids, tally, wait_until  # noqa: E402
from overload import clients  # noqa: E402

# The stated bound on resident memory with the default configuration.
RESIDENT_BYTES_MAX = 512 << 20


class Resident(threading.Thread):
    """The most memory the server held."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.most, self.over = server, 0, threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(0.1):
            self.most = max(self.most, self.server.resident_bytes())

    def stop(self):
        self.over.set()
        self.join(30)
        assert 0 < self.most < RESIDENT_BYTES_MAX, f"{self.most >> 20} MiB resident"
        return self.most


def balances(server, *arguments):
    audit = server.audit(*arguments)
    assert audit["balanced"] and audit["difference"] == 0, json.dumps(audit)[:2000]
    return audit


def neighbour_is_served(server, key, seconds, requests=100):
    """A neighbour's single events are all taken; its client."""
    neighbour = clients.Plain(server, key, "neighbour", pause=0.002)
    neighbour.start()
    time.sleep(seconds)
    wait_until("the neighbour has sent enough", lambda: len(neighbour.told) >= requests)
    neighbour.stop()
    assert set(clients.codes(neighbour.told)) == {200}, f"told {clients.codes(neighbour.told)}: {neighbour.told[-3:]}"
    return neighbour


def test_clients_that_stand_still_cost_their_neighbour_nothing(server):
    """Scenario: a tenant's 300 connections send half a request and stop, or send many and read no answer: a network
    that lets one direction through, or none. Guarantees: its neighbour is served, all it was told is true, memory is
    bounded, and when the silent connections end nothing is held for them."""
    silent, key = server.add_tenant("silent"), server.add_tenant("neighbour")
    resident = Resident(server)
    event = b'{"event_type":"silent","n":1}'
    head = f"POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {silent}\r\nContent-Type: application/json\r\n"
    half = f"{head}Content-Length: 20000\r\n\r\n".encode() + event
    whole = f"{head}Content-Length: {len(event)}\r\n\r\n".encode() + event
    sockets = []
    for number in range(300):
        one = socket.create_connection(("127.0.0.1", server.port))
        sockets.append(one)
        one.setblocking(False)
        try:
            # A third of a head, half a body, or requests until nothing more goes out.
            one.send((half[:50], half, whole * 2000)[number % 3])
        except BlockingIOError:
            pass
    neighbour = neighbour_is_served(server, key, seconds=2)
    most = resident.stop()
    for one in sockets:
        one.close()
    wait_until("nothing is held any more", lambda: all(s["held_bytes"] == 0 for s in server.status()["stages"]))
    server.settle()
    assert server.count("plain", "neighbour") == len(neighbour.acknowledged)
    balances(server)
    print(f"{len(neighbour.told)} requests beside 300 silent connections; at most {most >> 20} MiB")
    tally("e2e::isolation::silent", "partial network", ["P3", "P4", "P5"], len(neighbour.told))


def test_a_tenant_at_a_hundred_times_its_quota_is_bounded_in_memory_too(server):
    """Scenario: a tenant sends large batches on 16 connections as fast as it is answered, at a hundred times its quota.
    Guarantees: it is told 429 and when to come again, its neighbour is served, memory is bounded."""
    loud = server.add_tenant("loud", "--bytes-per-second", "100000", "--events-per-second", "1000")
    key = server.add_tenant("neighbour")
    resident = Resident(server)
    load = Load(server, loud, "loud", rate=100_000, batch=2000, seconds=4, event_bytes=1000)
    teller = clients.Plain(server, loud, "loud-teller")
    teller.start()
    neighbour = neighbour_is_served(server, key, seconds=4)
    report = load.finish()
    teller.stop()
    most = resident.stop()
    assert set(report["codes"]) <= {"200", "429"} and report["codes"]["429"] > 0, report["codes"]
    assert clients.check_told(teller.told), "the loud tenant was told why and when to come again"
    server.settle()
    balances(server)
    print(f"{len(neighbour.told)} requests beside {report['codes']}; at most {most >> 20} MiB")
    tally("e2e::isolation::loud", "tenant at 100x", ["P3", "P4", "P5"], len(neighbour.told))


def test_a_process_that_stood_still_holds_no_more_memory_for_it(server):
    """Scenario: the process is stopped for seconds under load, again and again, while clients go on connecting.
    Guarantees: all that was acknowledged is there once, and what waited for it is taken within the bound."""
    key = server.add_tenant()
    load = Load(server, key, "paused", rate=5000, batch=100, seconds=300)
    resident = Resident(server)
    try:
        wait_until("load is acknowledged", lambda: server.offsets_given() > 1000, timeout=30)
        for _ in range(3):
            server.signal(signal.SIGSTOP)
            time.sleep(2)
            server.signal(signal.SIGCONT)
            taken = server.offsets_given()
            wait_until("it goes on", lambda: server.offsets_given() > taken + 1000, timeout=30)
        report = load.enough()
    finally:
        server.signal(signal.SIGCONT)
        load.stop()
    most = resident.stop()
    assert set(report["codes"]) <= {"200", "429", "503"}, report["codes"]
    server.settle()
    check_nothing_missing(server, journal_ids(load.journal))
    balances(server, "--journal", load.journal)
    print(f"{report['accepted']} events over three pauses; at most {most >> 20} MiB")
    tally("e2e::isolation::paused", "process pause", ["P1", "P2", "P4", "P5"], 3)


def test_poison_of_one_tenant_holds_up_no_other(make_server):
    """Scenario: a tenant sends what its schema refuses and what no column holds, beside a neighbour of the same types.
    Guarantees: each poisonous event is a dead letter or told as rejected, the neighbour's are all in the lake."""
    schema = {"type": "object", "x-version": 1, "properties": {"n": {"type": "integer"}, "at": {"type": "string"}}}
    server = make_server(schemas={"shared": schema}).start()
    poison, key = server.add_tenant("poison"), server.add_tenant("neighbour")
    kinds = [
        '{"event_type":"shared","n":"seven"}',
        '{"event_type":"shared","n":1,"n":2}',
        '{"event_type":"shared","n":99999999999999999999999999}',
        '{"event_type":"shared","n":1e999}',
        '{"event_type":"shared","at":"\\u0000"}',
        '{"event_type":"shared","at":"\\ud800"}',
        '{"event_type":"shared","event_time":"yesterday"}',
        '{"event_type":"shared","x":' + "[" * 30 + "1" + "]" * 30 + "}",
        "[1]",
        "nonsense",
    ]
    dice = random.Random(7)
    sent = 0
    for number in range(100):
        body = "\n".join(dice.choices(kinds, k=50)).encode()
        answer = server.send(body, poison, content_type="application/x-ndjson")
        assert answer.status in (200, 400), answer
        server.accept([{"event_type": "shared", "event_id": f"{number}-{n}", "n": n} for n in range(10)], key)
        sent += 10
    server.settle()
    assert server.count("shared", "neighbour") == sent
    audit = balances(server)
    own = [row for row in audit["tenants"] if row["tenant"] == "poison"]
    assert sum(row["dead_lettered"] for row in own) > 1000 and sum(row["rejected"] for row in own) > 200, own
    letters = f"read_parquet('{server.lake}/dead_letters/tenant=*/**/*.parquet', hive_partitioning = true)"
    assert duckdb.sql(f"select distinct tenant from {letters}").fetchall() == [("poison",)]
    tally("e2e::isolation::poison", "poison event", ["P3", "P5"], 100)
