"""A reader beside a server: lists and reads a folder again and again until told to end, and says what it saw.

    python beside.py duckdb|pyarrow|polars|clickhouse FOLDER STOP_FILE
"""

import json
import sys
from pathlib import Path

# What a reader may say of a folder whose files are being joined, or were since it listed them.
EXPECTED = ("joining", "no such file", "not found", "no files found", "does not exist", "doesn't exist", "cannot open file", "par1", "magic bytes")


def with_duckdb(folder):
    import duckdb

    return [row[0] for row in duckdb.sql(f"select log_offset from read_parquet('{folder}/**/*.parquet')").fetchall()]


def with_pyarrow(folder):
    import pyarrow.parquet

    return pyarrow.parquet.read_table(folder, columns=["log_offset"])["log_offset"].to_pylist()


def with_polars(folder):
    import polars

    return polars.scan_parquet(folder).select("log_offset").collect()["log_offset"].to_list()


def with_clickhouse(folder):
    import chdb

    text = chdb.query(f"select log_offset from file('{folder}/**/*.parquet', Parquet)", "TabSeparated").bytes()
    return [int(line) for line in text.split()]


def main(name, folder, stop):
    read = globals()[f"with_{name}"]
    seen = {"whole": 0, "rows": 0, "told": 0, "wrong": [], "unexpected": [], "words": []}
    while not Path(stop).exists():
        # All that was there when an earlier read ended is there in this one.
        least = seen["rows"]
        try:
            offsets = sorted(read(folder))
        except Exception as error:
            words = str(error).splitlines()[0][:300]
            seen["told"] += 1
            kind = "words" if any(word in str(error).lower() for word in EXPECTED) else "unexpected"
            if words not in seen[kind] and len(seen[kind]) < 3:
                seen[kind].append(words)
            continue
        if offsets != list(range(len(offsets))) or len(offsets) < least:
            doubled = len(offsets) - len(set(offsets))
            seen["wrong"].append(f"{len(offsets)} rows of at least {least}, {doubled} doubled, up to {offsets[-1:]}")
        seen["whole"] += 1
        seen["rows"] = max(least, len(offsets))
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
