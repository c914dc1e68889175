//! Reads a lake back, for audits: which files hold which offsets, which ids.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path as FilePath,
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, Bytes, buf::Reader};
use object_store::path::Path;
use parquet::{
    column::reader::ColumnReader,
    data_type::ByteArray,
    errors::{ParquetError, Result as ParquetResult},
    file::reader::{ChunkReader, FileReader, Length, SerializedFileReader},
};
use serde::Serialize;
use tidegate_event::{EventType, Offset, Partition, TenantId};
use tokio::runtime::Handle;

use super::{
    super::{SinkConfig, SinkConfigError, rows::Lane},
    Options, jsonl,
    layout::{FileName, Format},
    merge::read::guarded,
    store::{LakeStore, StoreError},
    url,
};

/// The lake could not be read.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The store does not give a file or a list of them.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file is not what its name says.
    #[error("{path}: {cause}")]
    File {
        /// Which file.
        path: String,
        /// What is wrong.
        cause: String,
    },
    /// Files of this folder are being joined; it did not end while this was asked.
    #[error(
        "{path}: files of this folder are being joined; the server that did so ends it, at its next \
         start at the latest"
    )]
    Joining {
        /// What stands there meanwhile.
        path: String,
    },
}

impl InventoryError {
    /// Which file it is about.
    fn path(&self) -> &str {
        match self {
            Self::Store(error) => &error.path,
            Self::File { path, .. } | Self::Joining { path } => path,
        }
    }
}

/// How often files are listed again that were being joined, and how long after.
const TRIES: usize = 120;
const AGAIN: Duration = Duration::from_millis(500);

/// What one file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileFacts {
    /// Where it lies.
    pub path: String,
    /// Whose rows, of which type, dead letters or not.
    #[serde(flatten)]
    pub lane: Lane,
    /// Of which log.
    pub log_id: String,
    /// Of which partition.
    pub partition: Partition,
    /// The offset of its first row.
    pub first: Offset,
    /// The offset of its last row.
    pub last: Offset,
    /// How many rows.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
}

/// One lane's offsets in one partition, counted from the files' `log_offset` columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LaneCheck {
    /// Of which log.
    pub log_id: String,
    /// Of which partition.
    pub partition: Partition,
    /// Rows.
    pub count: u64,
    /// Offsets; fewer than `count` where one is there twice.
    pub distinct: u64,
    /// The lowest offset.
    pub min: Offset,
    /// The highest.
    pub max: Offset,
}

/// A lake, opened for reading. All calls block.
pub struct LakeReader {
    pub(super) store: Arc<LakeStore>,
}

impl LakeReader {
    /// Opens the lake of a sink. Changes nothing in it.
    ///
    /// # Errors
    /// [`SinkConfigError`] as at the start of the sink, and where a local lake's folder is missing.
    pub fn open(
        config: &SinkConfig,
        data_dir: &FilePath,
        runtime: Handle,
    ) -> Result<Self, SinkConfigError> {
        let mut config = config.clone();
        config.options.remove("lane_bytes");
        let options = Options::read(&config)?;
        let url = url(&config, data_dir);
        let store = LakeStore::open_to_read(&url, &options.store, runtime);
        Ok(Self { store: Arc::new(store.map_err(|e| SinkConfigError(e.to_string()))?) })
    }

    /// A lake that is open already.
    pub(super) fn of(store: &Arc<LakeStore>) -> Self {
        Self { store: Arc::clone(store) }
    }

    /// Where it lies.
    pub(super) fn store(&self) -> &LakeStore {
        &self.store
    }

    /// The lake's files with what their names and footers say, in the order of their paths. Of a
    /// Parquet file only the footer is read.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn inventory(&self) -> Result<Vec<FileFacts>, InventoryError> {
        self.steadily(|| self.list_facts())
    }

    /// Lists and reads again where files were joined meanwhile.
    pub(super) fn steadily<T>(
        &self,
        read: impl Fn() -> Result<T, InventoryError>,
    ) -> Result<T, InventoryError> {
        for _ in 1..TRIES {
            let error = match read() {
                Ok(read) => return Ok(read),
                Err(error) => error,
            };
            let is_joining = matches!(error, InventoryError::Joining { .. });
            if !is_joining && self.store.is_there(&Path::from(error.path()))? {
                return Err(error);
            }
            if is_joining {
                std::thread::sleep(AGAIN);
            }
        }
        read()
    }

    /// Rows by lane, of each file those below the offset that `end` gives for it.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn rows_below(
        &self,
        end: impl Fn(&FileFacts) -> Option<Offset>,
    ) -> Result<BTreeMap<Lane, u64>, InventoryError> {
        self.steadily(|| {
            let mut rows = BTreeMap::<Lane, u64>::new();
            for facts in self.list_facts()? {
                let Some(end) = end(&facts).filter(|end| facts.first < *end) else { continue };
                *rows.entry(facts.lane.clone()).or_default() += self.part_below(&facts, end)?;
            }
            Ok(rows)
        })
    }

    /// A file of one window is below a cursor or behind it; one that was joined may be both.
    fn part_below(&self, facts: &FileFacts, end: Offset) -> Result<u64, InventoryError> {
        if facts.last < end {
            return Ok(facts.rows);
        }
        let path = Path::from(facts.path.as_str());
        let Some((_, format)) = FileName::parse(self.store.root(), &path) else { return Ok(0) };
        let mut offsets = Vec::new();
        self.offsets(&path, format, facts.bytes, &mut offsets)?;
        Ok(offsets.iter().filter(|offset| **offset < end.0).count() as u64)
    }

    fn list_facts(&self) -> Result<Vec<FileFacts>, InventoryError> {
        let mut facts = Vec::new();
        for (path, name, format, bytes) in self.files()? {
            let rows = match format {
                Format::Parquet => {
                    let rows = self.parquet(&path, bytes)?.metadata().file_metadata().num_rows();
                    u64::try_from(rows).unwrap_or(0)
                }
                Format::Jsonl | Format::JsonlGz | Format::JsonlZst => {
                    self.lines(&path, format)?.iter().filter(|b| **b == b'\n').count() as u64
                }
            };
            facts.push(FileFacts {
                path: path.to_string(),
                lane: name.lane,
                log_id: name.log_id,
                partition: name.partition,
                first: name.first,
                last: name.last,
                rows,
                bytes,
            });
        }
        Ok(facts)
    }

    /// Reads the `log_offset` column of every file of a lane: 8 bytes of memory a row.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn check_lane(&self, lane: &Lane) -> Result<Vec<LaneCheck>, InventoryError> {
        self.steadily(|| self.look_at_lane(lane))
    }

    fn look_at_lane(&self, lane: &Lane) -> Result<Vec<LaneCheck>, InventoryError> {
        let mut found: BTreeMap<(String, Partition), Vec<u64>> = BTreeMap::new();
        for (path, name, format, bytes) in self.files()? {
            if name.lane == *lane {
                let offsets = found.entry((name.log_id, name.partition)).or_default();
                self.offsets(&path, format, bytes, offsets)?;
            }
        }
        let check = |((log_id, partition), mut offsets): ((String, Partition), Vec<u64>)| {
            let count = offsets.len() as u64;
            offsets.sort_unstable();
            offsets.dedup();
            LaneCheck {
                log_id,
                partition,
                count,
                distinct: offsets.len() as u64,
                min: Offset(offsets.first().copied().unwrap_or(0)),
                max: Offset(offsets.last().copied().unwrap_or(0)),
            }
        };
        Ok(found.into_iter().map(check).collect())
    }

    /// Those of `ids` that stand in an `event_id` column of the tenant's files (of the event type,
    /// if one is given; dead letters too).
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn find_ids(
        &self,
        tenant: &TenantId,
        event_type: Option<&EventType>,
        ids: &HashSet<String>,
    ) -> Result<HashSet<String>, InventoryError> {
        self.steadily(|| self.look_for_ids(tenant, event_type, ids))
    }

    fn look_for_ids(
        &self,
        tenant: &TenantId,
        event_type: Option<&EventType>,
        ids: &HashSet<String>,
    ) -> Result<HashSet<String>, InventoryError> {
        let mut found = HashSet::new();
        for (path, name, format, bytes) in self.files()? {
            let wanted = name.lane.tenant == *tenant
                && event_type.is_none_or(|event_type| name.lane.event_type == *event_type);
            if !wanted {
                continue;
            }
            let mut note = |id: &str| {
                if let Some(id) = ids.get(id) {
                    found.insert(id.clone());
                }
            };
            match format {
                Format::Parquet => self.ids(&path, bytes, &mut note)?,
                Format::Jsonl | Format::JsonlGz | Format::JsonlZst => {
                    for line in self.rows(&path, format)? {
                        note(&line.event_id);
                    }
                }
            }
        }
        Ok(found)
    }

    fn files(&self) -> Result<Vec<(Path, FileName, Format, u64)>, InventoryError> {
        let mut files = Vec::new();
        for area in ["events", "dead_letters"] {
            for (path, bytes) in self.store.list(area)? {
                if FileName::is_blocker(&path) {
                    return Err(InventoryError::Joining { path: path.to_string() });
                }
                if let Some((name, format)) = FileName::parse(self.store.root(), &path) {
                    files.push((path, name, format, bytes));
                }
            }
        }
        files.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(files)
    }

    fn parquet(
        &self,
        path: &Path,
        bytes: u64,
    ) -> Result<SerializedFileReader<StoredFile>, InventoryError> {
        let store = Arc::clone(&self.store);
        let file = StoredFile { store, path: path.clone(), bytes, whole: None };
        guarded(|| SerializedFileReader::new(file)).map_err(|e| fault(path, e))
    }

    fn lines(&self, path: &Path, format: Format) -> Result<Vec<u8>, InventoryError> {
        jsonl::decode(&self.store.get(path)?, format).map_err(|e| fault(path, e))
    }

    fn rows(&self, path: &Path, format: Format) -> Result<Vec<Line>, InventoryError> {
        let lines = self.lines(path, format)?;
        let lines = lines.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).map_err(|e| fault(path, e))).collect()
    }

    /// The offsets of a file's rows, in their order.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub(super) fn offsets(
        &self,
        path: &Path,
        format: Format,
        bytes: u64,
        into: &mut Vec<u64>,
    ) -> Result<(), InventoryError> {
        if format != Format::Parquet {
            into.extend(self.rows(path, format)?.iter().map(|line| line.log_offset));
            return Ok(());
        }
        let file = self.parquet(path, bytes)?;
        let read = |reader: ColumnReader| -> ParquetResult<()> {
            let ColumnReader::Int64ColumnReader(mut reader) = reader else {
                return Err(ParquetError::General("log_offset is no INT64 column".into()));
            };
            let mut values: Vec<i64> = Vec::new();
            while 0 < reader.read_records(BATCH, None, None, &mut values)?.0 {
                into.extend(values.drain(..).filter_map(|value| u64::try_from(value).ok()));
            }
            Ok(())
        };
        each_group(&file, "log_offset", read).map_err(|e| fault(path, e))
    }

    fn ids(
        &self,
        path: &Path,
        bytes: u64,
        note: &mut dyn FnMut(&str),
    ) -> Result<(), InventoryError> {
        let file = self.parquet(path, bytes)?;
        let read = |reader: ColumnReader| -> ParquetResult<()> {
            let ColumnReader::ByteArrayColumnReader(mut reader) = reader else {
                return Err(ParquetError::General("event_id is no BYTE_ARRAY column".into()));
            };
            let mut values: Vec<ByteArray> = Vec::new();
            while 0 < reader.read_records(BATCH, None, None, &mut values)?.0 {
                for value in values.drain(..) {
                    note(value.as_utf8()?);
                }
            }
            Ok(())
        };
        each_group(&file, "event_id", read).map_err(|e| fault(path, e))
    }
}

/// Values read at a time.
const BATCH: usize = 8_192;

/// What is looked at in a line of JSONL.
#[derive(serde::Deserialize)]
struct Line {
    event_id: String,
    log_offset: u64,
}

pub(super) fn fault(path: &Path, error: impl std::fmt::Display) -> InventoryError {
    InventoryError::File { path: path.to_string(), cause: error.to_string() }
}

fn each_group(
    file: &SerializedFileReader<StoredFile>,
    column: &str,
    mut read: impl FnMut(ColumnReader) -> ParquetResult<()>,
) -> ParquetResult<()> {
    let schema = file.metadata().file_metadata().schema_descr();
    let index = schema
        .columns()
        .iter()
        .position(|c| c.name() == column)
        .ok_or_else(|| ParquetError::General(format!("there is no column {column}")))?;
    guarded(|| {
        (0..file.num_row_groups())
            .try_for_each(|group| read(file.get_row_group(group)?.get_column_reader(index)?))
    })
}

/// The value of `key` in a Parquet file's key-value metadata; `None` for what is no Parquet file.
pub(super) fn fact(file: Bytes, key: &str) -> Option<String> {
    let file = SerializedFileReader::new(file).ok()?;
    let facts = file.metadata().file_metadata().key_value_metadata()?;
    facts.iter().find(|fact| fact.key == key)?.value.clone()
}

/// A file of the lake, read in ranges, of a small one in memory.
pub(super) struct StoredFile {
    pub(super) store: Arc<LakeStore>,
    pub(super) path: Path,
    pub(super) bytes: u64,
    pub(super) whole: Option<Bytes>,
}

impl StoredFile {
    fn range(&self, start: u64, end: u64) -> ParquetResult<Bytes> {
        let Some(whole) = &self.whole else {
            let range = self.store.get_range(&self.path, start..end);
            return range.map_err(|e| ParquetError::External(Box::new(e)));
        };
        let place = |at: u64| usize::try_from(at).ok().filter(|at| *at <= whole.len());
        match (place(start), place(end)) {
            (Some(start), Some(end)) if start <= end => Ok(whole.slice(start..end)),
            _ => Err(ParquetError::EOF(format!("bytes {start} to {end} of {}", self.path))),
        }
    }
}

impl Length for StoredFile {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for StoredFile {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        // Page headers are small; what is read too much is a page's begin at most.
        let end = self.bytes.min(start.saturating_add(64 << 10));
        Ok(self.range(start, end)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        self.range(start, start.saturating_add(length as u64))
    }
}
