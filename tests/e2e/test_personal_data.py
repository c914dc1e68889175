"""What must not be kept is not kept anywhere: the secret values are looked for in every file, Parquet decompressed."""

import json

import pyarrow.parquet
from harness import http

CANARIES = {
    "email": "canary-email-7f3a@example.org",
    "card": "canary-card-4929-8810-2231",
    "token": "canary-token-c0ffee-91",
    "phone": "+49-canary-phone-30-1234",
}
SCHEMA = {
    "x-version": 1,
    "type": "object",
    "properties": {
        "email": {"type": "string", "x-pii": "hash"},
        "card": {"type": "string", "x-pii": "mask"},
        "token": {"type": "string", "x-pii": "drop"},
        "phone": {"type": "string", "pattern": "^[0-9]+$", "x-pii": "hash"},
        "visits": {"type": "integer"},
    },
}


def texts(path):
    """A file's bytes, and for Parquet every value in it as text."""
    yield path.read_bytes()
    if path.suffix == ".parquet":
        yield json.dumps(pyarrow.parquet.read_table(path, partitioning=None).to_pylist(), default=str).encode()


def check_absent(server, where):
    looked_at = 0
    for path in server.folder.rglob("*"):
        if not path.is_file() or path.parent == server.schemas:
            continue
        looked_at += 1
        for text in texts(path):
            for name, value in CANARIES.items():
                for spelling in (value.encode(), json.dumps(value).encode()):
                    assert spelling not in text, f"{where}: the value of {name} stands in {path}"
    assert looked_at > 5, "there were files to look through"


def test_secret_values_stand_nowhere_under_the_data_folder(make_server):
    server = make_server(schemas={"signup": SCHEMA}).start()
    key = server.add_tenant()
    good = {"event_type": "signup", "visits": 1, **{k: v for k, v in CANARIES.items() if k != "phone"}}
    server.accept([good], key)
    # Dead letters keep the raw event and a message: both must be clean too.
    bad = [
        {"event_type": "signup", "visits": "many", **CANARIES},
        {"event_type": "signup", **CANARIES},
        {"event_type": "signup", "email": {"value": CANARIES["email"]}, "card": [CANARIES["card"]], "token": 1},
    ]
    answer = server.send(bad, key)
    assert answer.status == 200 and answer.json()["dead_lettered"] == len(bad), answer
    for value in CANARIES.values():
        assert value not in answer.body.decode(), "an answer does not say the value back"
    # Broken in ways that leave the rule's field to be found all the same.
    email, card, token = (json.dumps(CANARIES[name]) for name in ("email", "card", "token"))
    odd = [
        f'{{"event_type":"signup","email":{email},"email":{email}}}',
        f'{{"event_type":"signup","em\\u0061il":{email},"visits":1.5}}',
        f'{{"event_type":"signup","card":{card},"visits":"\\ud800"}}',
        f'{{"event_type":"signup","token":{token},"event_time":"never"}}',
        f'{{"event_type":"signup","token":{token},"event_id":7}}',
        f'{{"event_type":"signup","card":{card},"email":{email}',
    ]
    answer = server.send("\n".join(odd).encode(), key, content_type="application/x-ndjson")
    counts = answer.json()
    assert answer.status == 200 and counts["dead_lettered"] == 5 and counts["rejected"] == 1, answer
    cloud = {"specversion": "1.0", "id": "c1", "source": "/s", "type": "signup", "data": {"visits": "x", **CANARIES}}
    answer = server.send(cloud, key, content_type="application/cloudevents+json")
    assert answer.status == 200 and answer.json()["dead_lettered"] == 1, answer
    server.settle()

    [row] = server.rows("signup")
    assert row["email"] and row["email"] != CANARIES["email"], "a hashed value is there, and is another"
    assert row["card"] != CANARIES["card"]
    assert row.get("token") is None and "canary" not in (row["custom"] or "")

    admin = [http("GET", f"{server.admin}{path}").body for path in
             ("/api/v1/dead-letters", "/api/v1/status", "/api/v1/audit", "/metrics")]  # fmt: skip
    for value in CANARIES.values():
        assert all(value.encode() not in body for body in admin), "an operator's answer does not hold it"
    check_absent(server, "while running")
    assert server.stop() == 0
    check_absent(server, "after the end")


def test_the_same_value_hashes_alike_in_a_tenant_and_differently_in_another(make_server):
    server = make_server(schemas={"signup": SCHEMA}).start()
    keys = {name: server.add_tenant(name) for name in ("acme", "umbrella")}
    for key in keys.values():
        server.accept([{"event_type": "signup", "email": CANARIES["email"], "n": n} for n in range(2)], key)
    server.settle()
    hashes = {name: {row["email"] for row in server.rows("signup", name)} for name in keys}
    assert all(len(one) == 1 for one in hashes.values()), hashes
    assert hashes["acme"] != hashes["umbrella"], "the secret is the tenant's own"
