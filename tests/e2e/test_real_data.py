"""Real events, sent by curl as the README shows, read back value by value with DuckDB and with pyarrow."""

import json
import subprocess
import uuid

import pyarrow.dataset
import pytest
from harness import DATA, exact


def curl_file(server, key, path, event_type):
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--fail-with-body",
         "-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/x-ndjson",
         "--data-binary", f"@{path}", f"{server.url}/v1/events?event_type={event_type}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"curl failed: {done.stdout} {done.stderr}"
    return json.loads(done.stdout)


def check_rows(rows, lines):
    assert len(rows) == len(lines), "as many rows as lines were sent"
    rows = sorted(rows, key=lambda row: row["log_offset"])
    assert len({row["event_id"] for row in rows}) == len(rows), "an id of its own for each event"
    for row, line in zip(rows, lines):
        assert uuid.UUID(row["event_id"]).version == 7
        assert row["event_time"] == row["received_at"], "no event_time was sent: it is the receive time"
        assert exact(row["custom"]) == exact(line), f"the event at offset {row['log_offset']} is not what was sent"


@pytest.mark.parametrize(
    "file, event_type, count", [("github_events.ndjson", "github_event", 30), ("tweets.ndjson", "tweet", 100)]
)
def test_real_events_come_back_value_by_value(server, file, event_type, count):
    key = server.add_tenant()
    lines = (DATA / file).read_text().splitlines()
    answer = curl_file(server, key, DATA / file, event_type)
    assert answer["accepted"] == count == len(lines), f"not all accepted: {answer}"
    assert answer["dead_lettered"] == answer["rejected"] == answer["deduplicated"] == 0, answer
    assert answer["errors"] == [] and answer["errors_truncated"] is False, answer
    server.settle()

    check_rows(server.rows(event_type), lines)
    table = pyarrow.dataset.dataset(server.folder_of(event_type), partitioning="hive").to_table()
    check_rows(table.to_pylist(), lines)

    audit = server.audit()
    page = next(t for t in audit["tenants"] if t["event_type"] == event_type)
    assert page["received"] == page["accepted"] == page["sinks"]["lake"]["stored"] == count, page


def test_sixty_four_bit_numbers_and_odd_text_keep_every_character(server):
    key = server.add_tenant()
    raw = (
        '{"event_type":"odd","big":18446744073709551615,"small":-9223372036854775808,"float":1.10,'
        '"exp":1E400,"long":3.14159265358979323846264338327950288,"text":"\\u65e5\\u672c \\ud83d\\ude00 é","nest":{"a":[1,{"b":null}]}}'
    )
    answer = server.send(raw.encode(), key)
    assert answer.status == 200 and answer.json()["accepted"] == 1, answer
    server.settle()
    custom = server.rows("odd")[0]["custom"]
    expected = exact(raw)
    del expected["event_type"]
    assert exact(custom) == expected
    for literal in ("18446744073709551615", "-9223372036854775808", "1.10", "1E400",
                    "3.14159265358979323846264338327950288"):  # fmt: skip
        assert literal in custom, f"{literal} is not in the lake as it was sent: {custom}"
