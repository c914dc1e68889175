"""What an operator does: send, watch, mend, audit; with exit statuses that scripts can rely on."""

import json
import subprocess
import time

from harness import DATA, wait_until

STRICT = {"x-version": 1, "type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"]}
MENDED = {**STRICT, "x-version": 2, "required": [], "properties": {"amount": {"type": "integer"}, "note": {"type": "string"}}}


def test_a_file_is_sent_and_the_books_balance(server):
    key = server.add_tenant()
    journal = server.folder / "sent.ndjson"
    server.ctl("send", DATA / "tweets.ndjson", "--event-type", "tweet", "--journal", journal, key=key)
    assert server.offsets_given() == 100
    server.settle()
    assert server.count("tweet") == 100
    audit = server.audit("--journal", journal)
    assert audit["balanced"] is True and audit["difference"] == 0


def test_a_file_missing_from_the_lake_is_found_by_the_audit(server):
    key = server.add_tenant()
    server.accept([{"event_type": "counted", "n": n} for n in range(10)], key)
    server.settle()
    [path] = server.folder_of("counted").glob("**/*.parquet")
    aside = server.folder / path.name
    path.rename(aside)
    audit = server.audit(status=1)
    assert audit["balanced"] is False and audit["difference"] != 0, audit
    aside.rename(path)
    assert server.audit()["balanced"] is True


def test_an_id_nobody_acknowledged_is_missed_by_the_audit(server):
    key = server.add_tenant()
    server.accept([{"event_type": "counted", "event_id": "known"}], key)
    server.settle()
    journal = server.folder / "journal.ndjson"
    journal.write_text(json.dumps({"tenant": "acme", "event_type": "counted", "event_id": "known"}) + "\n")
    server.audit("--journal", journal)
    with journal.open("a") as file:
        file.write(json.dumps({"tenant": "acme", "event_type": "counted", "event_id": "lost"}) + "\n")
    server.audit("--journal", journal, status=1)


def test_dead_letters_are_shown_and_accepted_once_their_schema_is_mended(make_server):
    server = make_server(schemas={"order": STRICT}).start()
    key = server.add_tenant()
    answer = server.send([{"event_type": "order", "event_id": "o1", "note": "no amount"}], key)
    assert answer.status == 200 and answer.json()["dead_lettered"] == 1, answer
    assert answer.json()["errors"][0]["code"] == "field_missing", answer

    [letter] = server.ctl("dead-letters", "list")["dead_letters"]
    assert (letter["event_type"], letter["event_id"], letter["code"]) == ("order", "o1", "field_missing"), letter
    shown = server.ctl("dead-letters", "show", f"{letter['partition']}/{letter['offset']}")
    assert json.loads(shown["raw"])["note"] == "no amount"
    server.settle()
    assert list((server.lake / "dead_letters").glob("**/*.parquet")), "dead letters lie beside the lake's events"

    server.write_schema("order", MENDED)
    server.ctl("reload")
    redriven = server.ctl("dead-letters", "redrive", "--event-type", "order", "--yes")
    assert redriven["accepted"] == 1, redriven
    server.settle()
    [row] = server.rows("order")
    assert row["event_id"] == "o1" and row["note"] == "no amount"
    assert server.audit()["balanced"] is True
    again = server.ctl("dead-letters", "redrive", "--event-type", "order", "--yes")
    assert again["accepted"] == 0, f"a dead letter is accepted once: {again}"
    server.settle()
    assert server.count("order") == 1


def test_tail_shows_events_as_they_are_accepted(server):
    key = server.add_tenant()
    output = server.folder / "tail.ndjson"
    with open(output, "wb") as file:
        tail = subprocess.Popen(
            server.ctl_command("tail", "--event-type", "seen", "--json"), env=server.ctl_environment(), stdout=file
        )
    try:

        def shown():
            server.accept([{"event_type": "seen", "n": 1}, {"event_type": "other", "n": 2}], key)
            time.sleep(0.1)
            return output.read_text().count("\n")

        wait_until("tail shows an event", shown, timeout=20)
    finally:
        tail.terminate()
        tail.wait(20)
    events = [json.loads(line) for line in output.read_text().splitlines()]
    assert {event["event_type"] for event in events} == {"seen"}, "the filter holds"
    assert events[0]["tenant"] == "acme" and events[0]["verdict"] == "accepted" and events[0]["event"]["n"] == 1


def test_a_changed_field_type_is_refused_by_schema_check(tmp_path, server):
    server.write_schema("order", STRICT)
    server.ctl("schema", "check", server.schemas)
    server.ctl("reload")
    changed = {**STRICT, "x-version": 2, "properties": {"amount": {"type": "string"}}}
    server.write_schema("order", changed)
    server.ctl("schema", "check", server.schemas, "--against-server", status=1)


def test_a_server_that_is_not_there_is_status_3(server):
    server.stop()
    done = subprocess.run(server.ctl_command("status"), env=server.ctl_environment(), capture_output=True, timeout=30)
    assert done.returncode == 3, done


def test_keys_rotate_without_a_refused_request_and_a_disabled_tenant_is_refused(server):
    old = server.add_tenant()
    new = server.ctl("tenant", "rotate", "acme")["key"]
    assert new != old
    wait_until("both keys are taken", lambda: all(server.send([{"event_type": "x"}], k).status == 200 for k in (old, new)), 10)
    server.ctl("tenant", "disable", "acme")
    wait_until("a disabled tenant is refused", lambda: server.send([{"event_type": "x"}], new).status in (401, 403), 10)
    text = "".join(path.read_text() for path in (server.data / "tenants").iterdir() if path.is_file())
    assert new.rpartition("_")[2] not in text, "the secret itself is not kept"
