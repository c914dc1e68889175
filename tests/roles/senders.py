"""Clients as they stand before a load balancer: refused by one edge they ask another, and send again what was not kept."""

import collections
import http.client
import json
import random
import threading
import time

REASONS = {"draining", "unreachable", "outcome_unknown", "edge_full", "log_full", "storage", "tenant_lane"}


class Sender(threading.Thread):
    """Sends batches of events with ids of its own, each until it is acknowledged."""

    def __init__(self, name, addresses, tenant, key, *, batch=20, pause=0.01, event_type="page_view"):
        super().__init__(daemon=True)
        self.client, self.addresses, self.tenant, self.key = name, list(addresses), tenant, key
        self.batch, self.pause, self.event_type = batch, pause, event_type
        self.over = threading.Event()
        self.dice = random.Random(name)
        self.codes, self.refusals = collections.Counter(), collections.Counter()
        # Connections refused before anything was sent, and requests that got no answer.
        self.refused, self.unanswered = 0, 0
        self.acknowledged = set()
        self.slowest = 0.0
        self.faults = []

    def run(self):
        number, at, connection = 0, self.dice.randrange(len(self.addresses)), None
        while not self.over.is_set():
            ids = [f"{self.client}-{number + n}" for n in range(self.batch)]
            number += self.batch
            lines = [{"event_type": self.event_type, "event_id": one, "n": n} for n, one in enumerate(ids)]
            body = "\n".join(map(json.dumps, lines)).encode()
            begun = time.monotonic()
            # What was begun is finished: the journal is then all that was ever sent.
            while True:
                if connection is None:
                    connection = http.client.HTTPConnection(self.addresses[at], timeout=40)
                kept, connection, wait = self.post(connection, body)
                if kept:
                    break
                at = (at + 1) % len(self.addresses)
                if connection is not None:
                    connection.close()
                    connection = None
                time.sleep(wait)
            self.slowest = max(self.slowest, time.monotonic() - begun)
            self.acknowledged.update(ids)
            self.over.wait(self.pause)

    def post(self, connection, body):
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/x-ndjson"}
        try:
            if connection.sock is None:
                connection.connect()
        except OSError:
            self.refused += 1
            return False, None, 0.05
        try:
            connection.request("POST", "/v1/events", body, headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            self.unanswered += 1
            return False, None, 0.05
        self.codes[answer.status] += 1
        left = None if answer.will_close else connection
        if answer.status == 200:
            counts = json.loads(text)
            if counts["accepted"] + counts["deduplicated"] != self.batch:
                self.faults.append(f"not all kept: {text[:300]!r}")
            return True, left, 0
        reason, after = answer.getheader("X-Shed-Reason"), answer.getheader("Retry-After")
        self.refusals[answer.status, reason] += 1
        if answer.status not in (429, 503) or reason not in REASONS or not (after or "").isdigit():
            self.faults.append(f"{answer.status} {reason} Retry-After {after}: {text[:300]!r}")
        # There is another edge: its turn comes at once, and ours again soon.
        return False, left, 0.1

    def stop(self):
        self.over.set()
        self.join(90)
        assert not self.is_alive(), "a client still waits for its answer"


class Crowd:
    """Several of them, of several tenants."""

    def __init__(self, fleet, *, tenants=4, each=2, **settings):
        addresses = [one.address for one in fleet.replicas["edge"]]
        keys = [(f"tenant{n}", fleet.add_tenant(f"tenant{n}")) for n in range(tenants)]
        self.senders = [
            Sender(f"c{number}-{n}", addresses, *key, **settings) for number, key in enumerate(keys) for n in range(each)
        ]

    def __enter__(self):
        for one in self.senders:
            one.start()
        return self

    def __exit__(self, *error):
        for one in self.senders:
            one.over.set()
        for one in self.senders:
            one.stop()

    def total(self):
        return sum(len(one.acknowledged) for one in self.senders)

    def acknowledged(self):
        return set().union(*(one.acknowledged for one in self.senders))

    def told(self):
        """(codes, refusals, connections refused, requests without an answer, slowest acknowledgement in seconds)"""
        codes, refusals = collections.Counter(), collections.Counter()
        for one in self.senders:
            codes.update(one.codes)
            refusals.update(one.refusals)
            assert not one.faults, one.faults[:3]
        slowest = max(one.slowest for one in self.senders)
        return codes, refusals, sum(o.refused for o in self.senders), sum(o.unanswered for o in self.senders), slowest
