//! The rows of a lake's file one after the other: a few in memory at a time, whatever the file is.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read},
    sync::Arc,
};

use bytes::{Buf as _, Bytes};
use object_store::path::Path;
use parquet::{
    column::reader::ColumnReader,
    errors::ParquetError,
    file::{
        reader::{FileReader as _, SerializedFileReader},
        statistics::Statistics,
    },
};
use serde_json::value::RawValue;
use tidegate_event::OffsetRange;

use super::{
    columns::{Table, Values},
    held::HeldFile,
    inventory::{InventoryError, LakeReader, StoredFile, fault},
    jsonl,
    layout::Format,
    merge::read,
    store::StoreError,
};
use crate::sink::back::{BackRow, Owner};

/// Rows that are read at a time,
const BATCH_ROWS: usize = 2_048;
/// fewer where they are so long that these would take more.
const BATCH_BYTES: u64 = 4 << 20;
/// Files up to this size are read in one piece.
const WHOLE_BYTES_MAX: u64 = 16 << 20;
/// A line of JSON that is longer is no row.
const LINE_BYTES_MAX: u64 = 256 << 20;
/// The column that says where a row stands in its partition.
const OFFSET: &str = "log_offset";

/// The rows of one file within some offsets, in order.
pub struct FileRows {
    rows: Rows,
    file: HeldFile,
    range: OffsetRange,
    owner: Arc<Owner>,
    last: Option<u64>,
}

enum Rows {
    Parquet(Box<Groups>),
    Lines(Lines),
}

impl LakeReader {
    /// Reads the rows of `file` that lie in `range`.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn rows_of(
        &self,
        file: &HeldFile,
        range: OffsetRange,
        owner: &Arc<Owner>,
    ) -> Result<FileRows, InventoryError> {
        let rows = match file.format {
            Format::Parquet => {
                let whole = match file.bytes <= WHOLE_BYTES_MAX {
                    true => Some(self.store.get(&file.path)?),
                    false => None,
                };
                let stored = StoredFile {
                    store: Arc::clone(&self.store),
                    path: file.path.clone(),
                    bytes: whole.as_ref().map_or(file.bytes, |whole| whole.len() as u64),
                    whole,
                };
                let groups = read::guarded(|| Groups::open(stored, range));
                let groups = groups.map_err(|e| broken(&file.path, e))?;
                Rows::Parquet(Box::new(groups))
            }
            format => {
                let bytes = self.store.get(&file.path)?;
                Rows::Lines(Lines::of(bytes, format).map_err(|e| fault(&file.path, e))?)
            }
        };
        let owner = Arc::clone(owner);
        Ok(FileRows { rows, file: file.clone(), range, owner, last: None })
    }
}

impl FileRows {
    /// Which file.
    #[must_use]
    pub fn file(&self) -> &HeldFile {
        &self.file
    }

    /// Fills `row` with the next row; false behind the last.
    ///
    /// # Errors
    /// [`InventoryError::File`] where the file is not what its name says.
    pub fn next(&mut self, row: &mut BackRow) -> Result<bool, InventoryError> {
        loop {
            let read = match &mut self.rows {
                Rows::Parquet(groups) => {
                    groups.next(row).map_err(|e| broken(&self.file.path, e))?
                }
                Rows::Lines(lines) => lines.next(row).map_err(|e| fault(&self.file.path, e))?,
            };
            let Some(offset) = read else { return Ok(false) };
            if self.last.is_some_and(|last| offset < last) {
                return Err(fault(&self.file.path, "its rows are not in order of their offsets"));
            }
            let name = &self.file.name;
            if offset < name.first.0 || name.last.0 < offset {
                let why = format!("it holds offset {offset}, which its name does not");
                return Err(fault(&self.file.path, why));
            }
            self.last = Some(offset);
            if self.range.to().0 <= offset {
                return Ok(false);
            }
            if self.range.from().0 <= offset {
                row.offset = offset;
                row.dead = self.file.name.lane.dead;
                row.hour = self.file.name.hour;
                row.owner = Arc::clone(&self.owner);
                return Ok(true);
            }
        }
    }
}

/// What the store does not give is not the file's fault.
fn broken(path: &Path, error: ParquetError) -> InventoryError {
    match error {
        ParquetError::External(inner) => match inner.downcast::<StoreError>() {
            Ok(error) => InventoryError::Store(*error),
            Err(error) => fault(path, error),
        },
        error => fault(path, error),
    }
}

/// The row groups of a Parquet file.
struct Groups {
    file: SerializedFileReader<StoredFile>,
    names: Arc<[String]>,
    /// Where the column of offsets stands.
    offset: usize,
    /// The groups that are still to be read, the next one last.
    left: Vec<usize>,
    readers: Vec<ColumnReader>,
    batch_rows: usize,
    batch: Table,
    row: usize,
    /// Of each column, where the row's value lies if it has one, and where the next one does.
    at: Vec<Option<usize>>,
    next: Vec<usize>,
}

impl Groups {
    fn open(stored: StoredFile, range: OffsetRange) -> Result<Self, ParquetError> {
        let file = SerializedFileReader::new(stored)?;
        let batch = read::empty(file.metadata())?;
        let names: Arc<[String]> = batch.columns.iter().map(|c| c.name.clone()).collect();
        let offset = names.iter().position(|name| name == OFFSET);
        let offset =
            offset.ok_or_else(|| ParquetError::General(format!("there is no column {OFFSET}")))?;
        let mut left = Vec::new();
        for (index, group) in file.metadata().row_groups().iter().enumerate() {
            let facts = group.columns().get(offset).and_then(|column| column.statistics());
            if overlaps(facts, range) {
                left.push(index);
            }
        }
        left.reverse();
        let columns = batch.columns.len();
        Ok(Self {
            file,
            names,
            offset,
            left,
            readers: Vec::new(),
            batch_rows: BATCH_ROWS,
            batch,
            row: 0,
            at: vec![None; columns],
            next: vec![0; columns],
        })
    }

    fn next(&mut self, row: &mut BackRow) -> Result<Option<u64>, ParquetError> {
        if self.batch.rows <= self.row && !read::guarded(|| self.fill())? {
            return Ok(None);
        }
        row.clear(&self.names);
        let columns = self.batch.columns.iter().zip(&mut self.at).zip(&mut self.next);
        for ((column, at), next) in columns {
            let levels = column.present.as_ref();
            let is_there = levels.is_none_or(|p| p.get(self.row).is_some_and(|level| 0 < *level));
            *at = is_there.then_some(*next);
            *next += usize::from(is_there);
            row.push(|text| match at {
                Some(at) => jsonl::value(column, *at, text),
                None => Ok(()),
            })
            .map_err(|e| ParquetError::External(Box::new(e)))?;
        }
        self.row += 1;
        let at = self.at.get(self.offset).copied().flatten();
        let values = self.batch.columns.get(self.offset).map(|column| &column.values);
        let offset = match (values, at) {
            (Some(Values::I64(values)), Some(at)) => {
                values.get(at).and_then(|offset| u64::try_from(*offset).ok())
            }
            _ => None,
        };
        offset.map(Some).ok_or_else(|| ParquetError::General(format!("a row without {OFFSET}")))
    }

    /// Reads the next rows; false behind the last.
    fn fill(&mut self) -> Result<bool, ParquetError> {
        loop {
            if self.readers.is_empty() {
                let Some(index) = self.left.pop() else { return Ok(false) };
                let group = self.file.get_row_group(index)?;
                let facts = group.metadata();
                let (rows, bytes) = (facts.num_rows().max(1), facts.total_byte_size().max(1));
                let row_bytes = bytes.unsigned_abs().div_ceil(rows.unsigned_abs());
                let most = usize::try_from(BATCH_BYTES / row_bytes.max(1)).unwrap_or(BATCH_ROWS);
                self.batch_rows = most.clamp(1, BATCH_ROWS);
                let columns = 0..self.batch.columns.len();
                self.readers =
                    columns.map(|c| group.get_column_reader(c)).collect::<Result<_, _>>()?;
            }
            self.batch = read::empty(self.file.metadata())?;
            let mut rows = None;
            for (reader, column) in self.readers.iter_mut().zip(&mut self.batch.columns) {
                let read = read::read_some(reader, column, self.batch_rows)?;
                if *rows.get_or_insert(read) != read {
                    let why = "a column is shorter than its table".to_owned();
                    return Err(ParquetError::General(why));
                }
            }
            self.batch.rows = rows.unwrap_or(0);
            self.row = 0;
            self.next.fill(0);
            if 0 < self.batch.rows {
                return Ok(true);
            }
            self.readers.clear();
        }
    }
}

/// False where a group says that none of its rows lies in the range.
fn overlaps(facts: Option<&Statistics>, range: OffsetRange) -> bool {
    let Some(Statistics::Int64(facts)) = facts else { return true };
    let bound = |value: Option<&i64>| value.and_then(|value| u64::try_from(*value).ok());
    match (bound(facts.min_opt()), bound(facts.max_opt())) {
        (Some(min), Some(max)) => min < range.to().0 && range.from().0 <= max,
        _ => true,
    }
}

/// The lines of a file of JSON.
struct Lines {
    from: Box<dyn BufRead + Send>,
    line: Vec<u8>,
    names: Arc<[String]>,
}

impl Lines {
    fn of(bytes: Bytes, format: Format) -> io::Result<Self> {
        let bytes = bytes.reader();
        let from: Box<dyn BufRead + Send> = match format {
            Format::Parquet | Format::Jsonl => Box::new(bytes),
            Format::JsonlGz => Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(bytes))),
            Format::JsonlZst => Box::new(BufReader::new(zstd::stream::read::Decoder::new(bytes)?)),
        };
        Ok(Self { from, line: Vec::new(), names: Arc::default() })
    }

    fn next(&mut self, row: &mut BackRow) -> io::Result<Option<u64>> {
        self.line.clear();
        (&mut self.from).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line)?;
        if self.line.is_empty() {
            return Ok(None);
        }
        let values: Line<'_> = serde_json::from_slice(&self.line)?;
        if !values.keys().map(|k| k.as_ref()).eq(self.names.iter().map(String::as_str)) {
            self.names = values.keys().map(|name| name.clone().into_owned()).collect();
        }
        row.clear(&self.names);
        for value in values.values() {
            row.push(|text| -> io::Result<()> {
                if value.get() != "null" {
                    text.extend_from_slice(value.get().as_bytes());
                }
                Ok(())
            })?;
        }
        let none =
            || io::Error::new(io::ErrorKind::InvalidData, format!("a line without {OFFSET}"));
        let offset = values.get(OFFSET).ok_or_else(none)?;
        Ok(Some(offset.get().parse().map_err(|_| none())?))
    }
}

/// The values of a line by the names of their columns.
type Line<'l> = BTreeMap<Cow<'l, str>, &'l RawValue>;
