"""A reader beside a promotion: lists and reads a lake again and again until told to end, and counts which of the two
windows it saw. It reads as docs/replay.md asks readers to: all that was listed, in one go, and again after an error.

    python beside_promotion.py duckdb|pyarrow LAKE STOP_FILE EXPECTED_FILE

EXPECTED_FILE has `{"old": [[area, offset, schema version], …], "new": […]}`, sorted.
"""

import json
import sys
from pathlib import Path

from beside import EXPECTED

AREAS = ("dead_letters", "events")


def with_duckdb(lake):
    import duckdb

    globs = [f"{lake}/{area}/**/*.parquet" for area in AREAS if any((lake / area).glob("**/*.parquet"))]
    table = duckdb.sql(f"select filename, log_offset, schema_version from read_parquet({globs}, union_by_name=true, filename=true)")
    return [[name.removeprefix(f"{lake}/").split("/")[0], offset, version] for name, offset, version in table.fetchall()]


def with_pyarrow(lake):
    import pyarrow.parquet

    rows = []
    for area in AREAS:
        table = pyarrow.parquet.read_table(lake / area, columns=["log_offset", "schema_version"])
        rows += [[area, row["log_offset"], row["schema_version"]] for row in table.to_pylist()]
    return rows


def main(name, lake, stop, expected):
    read = globals()[f"with_{name}"]
    windows = json.loads(Path(expected).read_text())
    seen = {"old": 0, "new": 0, "told": 0, "wrong": [], "unexpected": []}
    while not Path(stop).exists():
        try:
            rows = sorted(read(Path(lake)))
        except Exception as error:
            seen["told"] += 1
            if not any(word in str(error).lower() for word in (*EXPECTED, "promoting")):
                seen["unexpected"].append(str(error)[:300])
            continue
        which = next((name for name, window in windows.items() if window == rows), None)
        if which:
            seen[which] += 1
        elif len(seen["wrong"]) < 3:
            offsets = [row[1] for row in rows]
            versions = sorted({row[2] for row in rows})
            seen["wrong"].append(f"{len(rows)} rows, {len(set(offsets))} offsets, versions {versions}")
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
