"""An event type is one table: DuckDB, pyarrow, Polars and ClickHouse read its folder by path alone, and with each
reader's documented option once a field was added."""

import json

import chdb
import duckdb
import polars
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import pytest
from harness import http, wait_until

FIRST = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "x-version": 1,
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "duration": {"type": "number", "x-unit": "s", "x-accept": {"duration_ms": "ms"}},
        "visits": {"type": "integer"},
        "member": {"type": "boolean"},
    },
    "required": ["path"],
}
SECOND = {**FIRST, "x-version": 2, "properties": {**FIRST["properties"], "referrer": {"type": "string"}}}

EARLY = [
    {"event_type": "page_view", "event_id": "e0", "path": "/é", "duration": 1.5, "visits": 2**53 + 1, "member": True, "more": {"a": [1]}},
    {"event_type": "page_view", "event_id": "e1", "path": "/b", "duration_ms": 250},
]
LATE = [
    {"event_type": "page_view", "event_id": "e2", "path": "/c", "duration": "3 s", "referrer": "news"},
    {"event_type": "page_view", "event_id": "e3", "path": "/d", "visits": -1},
]
PLAIN = {
    "e0": ("/é", 1.5, 2**53 + 1, True, {"more": {"a": [1]}}),
    "e1": ("/b", 0.25, None, None, {}),
    "e2": ("/c", 3.0, None, None, {}),
    "e3": ("/d", None, -1, None, {}),
}
REFERRERS = {"e0": None, "e1": None, "e2": "news", "e3": None}


def with_duckdb(folder, added):
    option = ", union_by_name=true" if added else ""
    table = duckdb.sql(f"select * from read_parquet('{folder}/**/*.parquet', hive_partitioning=true{option})")
    return [dict(zip(table.columns, row)) for row in table.fetchall()]


def with_pyarrow(folder, added):
    if not added:
        return pyarrow.parquet.read_table(folder).to_pylist()
    table = pyarrow.dataset.dataset(folder, partitioning="hive")
    schemas = [fragment.physical_schema for fragment in table.get_fragments()]
    whole = pyarrow.unify_schemas([table.schema, *schemas])
    return pyarrow.dataset.dataset(folder, partitioning="hive", schema=whole).to_table().to_pylist()


def with_polars(folder, added):
    if not added:
        return polars.read_parquet(folder, hive_partitioning=True).to_dicts()
    newest = max(folder.glob("**/*.parquet"), key=lambda path: int(path.name.split("-")[2]))
    whole = {**polars.read_parquet_schema(newest), "date": polars.String, "hour": polars.String}
    table = polars.scan_parquet(folder, hive_partitioning=True, schema=whole, missing_columns="insert")
    return table.collect().to_dicts()


def with_clickhouse(folder, added):
    option = " settings schema_inference_mode='union'" if added else ""
    text = chdb.query(f"select * from file('{folder}/**/*.parquet', Parquet){option}", "JSONEachRow").bytes()
    rows = [json.loads(line) for line in text.splitlines()]
    for row in rows:  # ClickHouse writes 64-bit integers as text in JSON, unless told otherwise
        row["visits"] = int(row["visits"]) if row["visits"] is not None else None
    return rows


READERS = [with_duckdb, with_pyarrow, with_polars, with_clickhouse]


def check(rows, ids, referrers):
    assert sorted(row["event_id"] for row in rows) == sorted(ids)
    for row in rows:
        path, duration, visits, member, custom = PLAIN[row["event_id"]]
        # ClickHouse takes Parquet's JSON type for its own and shows an object, the others show text.
        rest = row["custom"] if isinstance(row["custom"], dict) else json.loads(row["custom"] or "{}")
        found = (row["path"], row["duration"], row["visits"], row["member"], rest)
        assert found == (path, duration, visits, member, custom), f"{row['event_id']} differs"
        assert str(row["date"])[:2] == "20" and 0 <= int(row["hour"]) < 24, "the path's columns are there"
        if referrers:
            assert row["referrer"] == REFERRERS[row["event_id"]]


@pytest.fixture
def table(make_server):
    server = make_server(schemas={"page_view": FIRST}).start()
    return server, server.add_tenant()


def test_four_readers_take_the_folder_by_path_alone(table):
    server, key = table
    server.accept(EARLY[:1], key)
    server.settle()
    server.accept(EARLY[1:], key)
    server.settle()
    assert len(list(server.folder_of("page_view").glob("**/*.parquet"))) >= 2, "two flushes are at least two files"
    for reader in READERS:
        check(reader(server.folder_of("page_view"), False), ["e0", "e1"], False)


def test_four_readers_take_the_folder_after_a_field_was_added(table):
    server, key = table
    server.accept(EARLY, key)
    server.settle()
    server.write_schema("page_view", SECOND)
    server.ctl("reload")

    def second_is_live():
        schemas = http("GET", f"{server.admin}/api/v1/schemas").json()["schemas"]
        return any(s["event_type"] == "page_view" and s["version"] == 2 for s in schemas)

    wait_until("version 2 of the schema is live", second_is_live, timeout=10)
    server.accept(LATE, key)
    server.settle()
    versions = {row["event_id"]: row["schema_version"] for row in server.rows("page_view")}
    assert versions == {"e0": 1, "e1": 1, "e2": 2, "e3": 2}
    for reader in READERS:
        check(reader(server.folder_of("page_view"), True), ["e0", "e1", "e2", "e3"], True)


def test_one_schema_version_with_other_content_is_refused_and_the_old_one_stays(table):
    server, key = table
    changed = {**FIRST, "properties": {**FIRST["properties"], "visits": {"type": "string"}}}
    server.write_schema("page_view", changed)
    answer = http("POST", f"{server.admin}/api/v1/reload", b"{}", {"Content-Type": "application/json"})
    assert answer.status == 422 and answer.json()["errors"], f"the reload had to be refused: {answer}"
    server.accept([{"event_type": "page_view", "path": "/x", "visits": 1}], key)
