"""What is in a lake, whether it lies in a folder or in a bucket, as pyarrow reads it and DuckDB counts it."""

import dataclasses
import os

import duckdb
import pyarrow
import pyarrow.fs
import pyarrow.parquet

COLUMNS = ["log_id", "log_partition", "log_offset", "event_id", "received_at"]


@dataclasses.dataclass
class File:
    """One published file: when it could be seen, and the oldest event in it."""

    visible_at: float
    oldest: float
    events: int


class Lake:
    """All of one lake: its files, and its events as a table."""

    def __init__(self, filesystem, root, visible_at):
        """`visible_at(path)`: when a file could first be seen, in seconds of the wall clock."""
        self.files, tables = [], []
        for area in ("events", "dead_letters"):
            selector = pyarrow.fs.FileSelector(f"{root}/{area}", recursive=True, allow_not_found=True)
            for one in filesystem.get_file_info(selector):
                if not one.path.endswith(".parquet"):
                    continue
                with filesystem.open_input_file(one.path) as file:
                    table = pyarrow.parquet.ParquetFile(file).read(columns=COLUMNS)
                oldest = min(table["received_at"].to_pylist()).timestamp()
                self.files.append(File(visible_at(one.path), oldest, len(table)))
                tables.append(table)
        self.files.sort(key=lambda file: file.visible_at)
        empty = pyarrow.table({name: pyarrow.array([], pyarrow.string()) for name in COLUMNS})
        self.table = pyarrow.concat_tables(tables) if tables else empty

    def ids(self):
        return set(self.table["event_id"].to_pylist())

    def doubled(self):
        """Events that are there more often than once, by their place in the log."""
        connection = duckdb.connect()
        connection.register("lake", self.table)
        query = "select count(*), count(distinct (log_id, log_partition, log_offset)) from lake"
        rows, places = connection.sql(query).fetchall()[0]
        return rows - places

    def events_between(self, begin, end):
        """How many could first be seen in that time."""
        return sum(file.events for file in self.files if begin <= file.visible_at < end)

    def longest_gap(self, begin, end):
        """The longest time in which nothing arrived."""
        times = [begin, *(f.visible_at for f in self.files if begin <= f.visible_at < end), end]
        return max(after - before for before, after in zip(times, times[1:]))

    def longest_wait(self, begin, end):
        """How long an event that was received in that time waited at most until it could be seen."""
        return max((f.visible_at - f.oldest for f in self.files if begin <= f.oldest < end), default=0.0)


def local(root):
    # The change time: a file is written beside its place and then linked there.
    return Lake(pyarrow.fs.LocalFileSystem(), str(root), lambda path: os.stat(path).st_ctime)


def on(s3):
    return Lake(s3.files(), f"{s3.bucket}/lake", lambda path: s3.put_at[f"/{path}"])
