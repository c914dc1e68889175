"""Ids on Apache Kafka: clients that send again across lost answers, kills, leaders that move and other owners."""

import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import duckdb
import pytest
from harness import lake_ids, tally, toml, wait_until
from harness import http as request_of
from kafka_log import on_kafka, owned, settle
from test_kafka_log import TYPE, ids_of, messages, refusal, three  # noqa: F401 (one is a fixture)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brokers import why_no_kafka  # noqa: E402

pytestmark = pytest.mark.skipif(why_no_kafka() is not None, reason=str(why_no_kafka()))
PARTITIONS = 2


def lake_of(root):
    """Every (partition, offset, event id) of a lake's events."""
    sql = f"select log_partition, log_offset, event_id from read_parquet('{root}/events/**/*.parquet', union_by_name=true)"
    return sorted(duckdb.sql(sql).fetchall())


def sums(*audits):
    """What several servers' books come to, all types together."""
    lines = [line for audit in audits for line in audit["tenants"]]
    return {name: sum(line[name] for line in lines) for name in ("received", "accepted", "dead_lettered", "deduplicated")}


def test_what_comes_twice_is_in_the_topic_twice_and_in_the_lake_once(make_server, one):
    """Scenario: requests sent again as they were, before and after a restart; an id as a dead letter and mended; the same id
    of another type; a re-drive.
    Guarantees: one copy each in the lake, where it should be one; the answer says `accepted`, the books `deduplicated`; they
    balance, for the sink too; `status`, `tail` and `dead-letters` know it."""
    schema = {"x-version": 1, "type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}
    server = make_server(log=on_kafka(one, "twice"), schemas={TYPE: schema}).start()
    key = server.add_tenant()
    events = [{"event_type": TYPE, "event_id": f"e-{i}", "n": i} for i in range(40)]
    for _ in range(3):
        assert server.accept(events, key)["deduplicated"] == 0, "the append does not know what others append"
    server.accept([{"event_type": "other", "event_id": "e-1"}], key)
    bad, mended = {"event_type": TYPE, "event_id": "bad"}, {"event_type": TYPE, "event_id": "bad", "n": 7}
    for event in (bad, bad, mended, mended, bad):
        assert server.send(event, key).status == 200
    settle(server)
    status = server.status()
    assert status["log"]["deduplication"] == "on"
    ids = {one["partition"]: one for one in status["dedup"]}
    assert sorted(ids) == [0, 1] and sum(one["ids"] for one in ids.values()) == 43, ids
    assert all(one["windows"] == [{"window_seconds": 600, "kept_seconds": 600}] for one in ids.values()), ids
    assert server.stop() == 0
    server.start()
    wait_until("every partition is owned again", lambda: owned(server) == [0, 1])
    server.accept(events[:5], key)
    server.accept([{"event_type": TYPE, "event_id": "new", "n": 1}], key)
    settle(server)
    copies = Counter(ids_of(messages(one, "twice")))
    assert (copies["e-0"], copies["e-30"], copies["bad"]) == (4, 3, 5)
    assert Counter(row["event_id"] for row in server.rows(TYPE)) == Counter([e["event_id"] for e in events] + ["bad", "new"])
    assert len(lake_ids(server)) == 40 + 2 + 1 + 1, "one dead letter, and one of another type"
    audit = server.audit()
    assert audit["balanced"] is True, audit
    assert sums(audit) == {"received": 132, "accepted": 43, "dead_lettered": 1, "deduplicated": 88}, sums(audit)
    line = next(line for line in audit["tenants"] if line["event_type"] == TYPE)
    assert line["sinks"]["lake"] == {**line["sinks"]["lake"], "stored": 42, "pending": 0, "quarantined": 0, "skipped": 0}
    letters = server.ctl("dead-letters", "list")["dead_letters"]
    assert [letter["event_id"] for letter in letters] == ["bad"], "the second one is known"
    metrics = request_of("GET", f"{server.admin}/metrics").body.decode()
    told = [line for line in metrics.splitlines() if line.startswith("tidegate_kafka_deduplicated_events_total")]
    assert sum(float(line.split()[-1]) for line in told) == 5, told

    # Now it is valid: the id is known, and the re-drive is there all the same; after it the id is known.
    server.write_schema(TYPE, {**schema, "x-version": 2, "required": []})
    server.ctl("reload")
    assert server.ctl("dead-letters", "redrive", "--event-type", TYPE, "--yes")["accepted"] == 1
    server.send(bad, key)
    settle(server)
    assert Counter(row["event_id"] for row in server.rows(TYPE))["bad"] == 2
    assert server.audit()["balanced"] is True
    tally("e2e kafka dedup: twice", "client duplicates", ["P2", "P5"], 1)


def test_where_an_id_may_go_to_any_partition_that_is_said_before_the_start(make_server, one):
    server = make_server(log=on_kafka(one, "ids", 'partition_by = "request"').replace('dedup_window = "0s"', ""))
    assert "an id that is sent again goes to another partition" in refusal(server)


class Client:
    """Sends each batch until it is answered 200, to whichever server; now and then one again that was answered."""

    def __init__(self, servers, tenant, key):
        self.servers, self.tenant, self.key = servers, tenant, key
        self.dice, self.sent, self.again, self.lost = random.Random(tenant), [], 0, 0
        self.stopping = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stopping:
            batch = [{"event_type": TYPE, "event_id": f"{self.tenant}-{len(self.sent)}-{i}"} for i in range(20)]
            self.send(batch)
            self.sent.append(batch)
            if self.dice.random() < 0.2:
                self.again += 1
                self.send(self.dice.choice(self.sent[-50:]))

    def send(self, batch):
        """Also after the end was called for: what was sent once is sent until it is in."""
        until = time.monotonic() + 120
        while True:
            try:
                answer = self.dice.choice(self.servers).send(batch, self.key, timeout=25)
                if answer.status == 200:
                    return
                assert answer.status in (429, 503), answer
            except OSError:
                self.lost += 1
            assert time.monotonic() < until, "nobody takes it"
            time.sleep(0.05)

    def finish(self):
        self.stopping = True
        self.thread.join(150)
        assert not self.thread.is_alive()
        return {event["event_id"] for batch in self.sent for event in batch}


def test_resends_across_kills_moved_leaders_and_other_owners_leave_one_copy(make_server, three):
    """Scenario: two servers, three brokers, two lakes; clients send each request until it is answered, and some of them again.
    A server is killed and comes back; a leader is killed and comes back; the other server is paused past its session while
    the first takes over, and wakes; the first is killed once more.
    Guarantees: every id is in both lakes exactly once, at the same offset; the books of both servers together say how many
    were dropped: as many as the topic has more messages than ids."""
    first = make_server(log=on_kafka(three, "resends", partitions=PARTITIONS, safe=True))
    copy = first.folder / "second-lake"
    sink = f'[[sink]]\nname = "copy"\nkind = "lake"\nurl = {toml(copy)}\nflush = {{ age = "1s" }}'
    first.write_config(top=f"tenants_dir = {toml(first.folder / 'tenants')}", sink=sink)
    second = make_server(log=first.parts["log"], top=first.parts["top"], sink=sink)
    second.lake = first.lake
    second.write_config()
    first.start()
    second.start()
    tenants = ("acme", "other", "third")
    keys = {name: first.add_tenant(name) for name in tenants}
    for key in keys.values():
        wait_until("both know the key", lambda key=key: second.send(b"[]", key).status not in (401, 403))
    wait_until("each has a part", lambda: all(len(owned(server)) == 1 for server in (first, second)))
    clients = [Client((first, second), name, key) for name, key in keys.items()]

    def go_on(more=60):
        goal = sum(len(client.sent) for client in clients) + more
        wait_until("requests are answered", lambda: sum(len(client.sent) for client in clients) > goal)

    try:
        for turn in range(2):
            go_on()
            first.kill()
            wait_until("the second has all", lambda: owned(second) == [0, 1])
            go_on()
            first.start()
            victim = wait_until("a broker leads", lambda: max(three.leader("resends"), 0))
            three.kill(victim)
            wait_until("another broker leads", lambda victim=victim: three.leader("resends") not in (-1, victim))
            go_on()
            three.start(victim)
            wait_until("each has a part again", lambda: all(len(owned(server)) == 1 for server in (first, second)))
            if turn == 0:
                second.signal(19)
                try:
                    wait_until("the first has all", lambda: owned(first) == [0, 1])
                    time.sleep(1)
                finally:
                    second.signal(18)
    finally:
        sent = set().union(*(client.finish() for client in clients))
    wait_until("each has a part at the end", lambda: all(len(owned(server)) == 1 for server in (first, second)))
    settle(first, second, partitions=PARTITIONS)
    found = ids_of(messages(three, "resends"))
    assert sum(client.lost for client in clients) > 0, "no answer was lost"
    assert set(found) == sent
    assert len(found) > len(sent) + 20 * sum(client.again for client in clients) - 1, "nothing came twice"
    lakes = [lake_of(first.lake), lake_of(copy)]
    assert lakes[0] == lakes[1], "the sinks differ"
    assert Counter(row[2] for row in lakes[0]) == Counter(sent), "not each id once"
    audits = [server.audit() for server in (first, second)]
    assert all(audit["balanced"] is True for audit in audits), audits
    books = sums(*audits)
    assert (books["accepted"], books["deduplicated"]) == (len(sent), len(found) - len(sent)), books
    print(f"{len(sent)} ids, {len(found)} messages, {sum(client.lost for client in clients)} lost answers")
    for fault, times in (("kill -9", 2), ("broker restart", 2), ("process pause", 1), ("client duplicates", 1)):
        tally("e2e kafka dedup: resends", fault, ["P1", "P2", "P5"], times)
