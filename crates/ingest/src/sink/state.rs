//! What a sink must not forget of a partition: cursor, intent, held lanes, counts; replaced whole.
//!
//! It lies in a file, where the log is this machine's, or where the log's owner keeps it
//! ([`StateStore`]); as text it is the same:
//!
//! ```text
//! <data dir>/sinks/<name>-<partition>.json :=
//!     {"format":1,"crc32c":"<8 hex digits: CRC-32C of the text of `state`>","state":{…}}
//! ```

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use tidegate_event::{Offset, OffsetRange, Partition};

use super::{
    rows::Lane,
    start::Began,
    status::{LaneCounts, Written},
};
use crate::storage::{self, Storage};

const FORMAT: u32 = 1;

/// Where the state of one sink and partition lies. Only its owner changes it.
pub trait StateStore: Send + Sync {
    /// Where that is, for people.
    fn place(&self) -> String;
    /// What was saved last; `None`: nothing ever was.
    ///
    /// # Errors
    /// As reading a file.
    fn load(&self) -> io::Result<Option<Vec<u8>>>;
    /// Replaces it whole; durable on return.
    ///
    /// # Errors
    /// [`SaveError`].
    fn save(&self, bytes: &[u8]) -> Result<(), SaveError>;
    /// False while it may be that somebody else owns the partition: nothing is to be begun then.
    fn may_write(&self) -> bool {
        true
    }
}

/// Where the states of the sinks of one partition lie.
pub trait StateStores {
    /// That of one sink.
    fn of(&self, sink: &str) -> Box<dyn StateStore>;
}

/// Why a state was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Try again.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Somebody else owns the partition now: nothing of it may be changed here any more.
    #[error("another process has taken the partition over")]
    Fenced,
}

/// States in files of a folder.
pub struct Files {
    /// The file system.
    pub storage: Arc<dyn Storage>,
    /// The folder.
    pub dir: PathBuf,
    /// Which partition of the log.
    pub partition: Partition,
}

impl StateStores for Files {
    fn of(&self, sink: &str) -> Box<dyn StateStore> {
        let path = self.dir.join(format!("{sink}-{}.json", self.partition));
        Box::new(FileStore { storage: Arc::clone(&self.storage), path })
    }
}

/// One file.
struct FileStore {
    storage: Arc<dyn Storage>,
    path: PathBuf,
}

impl StateStore for FileStore {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        match self.storage.read(&self.path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn save(&self, bytes: &[u8]) -> Result<(), SaveError> {
        Ok(storage::replace(&*self.storage, &self.path, bytes)?)
    }
}

/// A window that is being written: once durable it is never cut again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// Its offsets.
    pub window: OffsetRange,
    /// How many rows: of every lane for the sink's own, of the lane for a held lane's.
    pub rows: u64,
    /// A hash over them.
    pub hash: String,
    /// The schemas they were judged by, by hash.
    pub schemas: Vec<String>,
}

/// A lane that waits alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// Which.
    pub lane: Lane,
    /// All before it is written.
    pub cursor: Offset,
    /// The window that could not be written.
    pub intent: Option<Intent>,
    /// Its rows between its cursor and the sink's.
    pub pending_rows: u64,
    /// Their bytes, about.
    pub pending_bytes: u64,
    /// When the oldest of them was received: microseconds since 1970.
    pub oldest: i64,
}

/// The counts of one lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CountsRow {
    #[serde(flatten)]
    lane: Lane,
    #[serde(flatten)]
    counts: LaneCounts,
}

/// All that a sink must not forget about one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Of which log the offsets are.
    pub log_id: String,
    /// Which partition.
    pub partition: Partition,
    /// Where it began, if not at the very first offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<Began>,
    /// All before it is written, skipped or held.
    pub cursor: Offset,
    /// The window that is being written.
    pub intent: Option<Intent>,
    /// The lanes that wait alone.
    pub held: Vec<Held>,
    /// Offsets passed because the log had lost them (it counts and alarms them itself).
    pub lost_in_log: u64,
    #[serde(with = "counts_as_list")]
    /// What became of the rows before the cursor.
    pub counts: BTreeMap<Lane, LaneCounts>,
}

mod counts_as_list {
    use super::{BTreeMap, CountsRow, Deserialize, Lane, LaneCounts, Serialize};

    pub fn serialize<S: serde::Serializer>(
        counts: &BTreeMap<Lane, LaneCounts>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let row = |(lane, counts): (&Lane, &LaneCounts)| CountsRow {
            lane: lane.clone(),
            counts: *counts,
        };
        counts.iter().map(row).collect::<Vec<_>>().serialize(to)
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<Lane, LaneCounts>, D::Error> {
        let rows = Vec::<CountsRow>::deserialize(from)?;
        Ok(rows.into_iter().map(|row| (row.lane, row.counts)).collect())
    }
}

/// A state file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateFault {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Read(io::Error),
    /// It is of a version this program does not know.
    #[error("its format is {0}, this program knows {FORMAT}; use the program that wrote it")]
    Format(u32),
    /// It is damaged.
    #[error(
        "it is damaged ({0}); restore it, or move it away: the sink then begins at the start of the \
         log and writes what is in it again under other names"
    )]
    Damaged(String),
    /// It is of another log.
    #[error(
        "its offsets are of log {theirs}, this is log {ours}; move it away to begin at the start of \
         this log, or give the sink another name"
    )]
    OtherLog {
        /// The log it was written for.
        theirs: String,
        /// The log that is there.
        ours: String,
    },
    /// It is of another partition.
    #[error("it is of partition {0}; it was renamed")]
    OtherPartition(Partition),
}

#[derive(Serialize, Deserialize)]
struct File<T> {
    format: u32,
    crc32c: String,
    state: T,
}

impl State {
    /// The start of a log, or of a sink: all from `cursor` on is to be written.
    #[must_use]
    pub fn new(log_id: &str, partition: Partition, cursor: Offset) -> Self {
        Self {
            log_id: log_id.to_owned(),
            partition,
            began: None,
            cursor,
            intent: None,
            held: Vec::new(),
            lost_in_log: 0,
            counts: BTreeMap::new(),
        }
    }

    /// A sink that begins there.
    #[must_use]
    pub fn begun(log_id: &str, partition: Partition, began: Began) -> Self {
        Self { began: Some(began.clone()), ..Self::new(log_id, partition, began.at) }
    }

    /// As it stands in the file.
    ///
    /// # Errors
    /// As the encoder's; a state can always be encoded.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let text = serde_json::to_string(self)?;
        let crc32c = format!("{:08x}", crc32c::crc32c(text.as_bytes()));
        let state = serde_json::value::RawValue::from_string(text)?;
        let mut bytes = serde_json::to_vec(&File { format: FORMAT, crc32c, state })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a file's content.
    ///
    /// # Errors
    /// [`StateFault::Format`], [`StateFault::Damaged`].
    pub fn decode(bytes: &[u8]) -> Result<Self, StateFault> {
        let damaged = |e: serde_json::Error| StateFault::Damaged(e.to_string());
        let file: File<&serde_json::value::RawValue> =
            serde_json::from_slice(bytes).map_err(damaged)?;
        if file.format != FORMAT {
            return Err(StateFault::Format(file.format));
        }
        let text = file.state.get();
        if file.crc32c != format!("{:08x}", crc32c::crc32c(text.as_bytes())) {
            return Err(StateFault::Damaged("checksum".to_owned()));
        }
        serde_json::from_str(text).map_err(damaged)
    }

    /// The state that is kept; `None` where there is none.
    ///
    /// # Errors
    /// [`StateFault`]: the sink must not start with it.
    pub fn load(
        store: &dyn StateStore,
        log_id: &str,
        partition: Partition,
    ) -> Result<Option<Self>, StateFault> {
        let Some(bytes) = store.load().map_err(StateFault::Read)? else { return Ok(None) };
        let state = Self::decode(&bytes)?;
        if state.log_id != log_id {
            return Err(StateFault::OtherLog { theirs: state.log_id, ours: log_id.to_owned() });
        }
        if state.partition != partition {
            return Err(StateFault::OtherPartition(state.partition));
        }
        Ok(Some(state))
    }

    /// Replaces what is kept, durable on return.
    ///
    /// # Errors
    /// [`SaveError`].
    pub fn save(&self, store: &dyn StateStore) -> Result<(), SaveError> {
        store.save(&self.encode()?)
    }

    /// The first offset that the sink still needs.
    #[must_use]
    pub fn lowest(&self) -> Offset {
        self.held.iter().map(|held| held.cursor).fold(self.cursor, Ord::min)
    }

    /// The held lane, if it is one.
    #[must_use]
    pub fn held(&self, lane: &Lane) -> Option<&Held> {
        self.held.iter().find(|held| held.lane == *lane)
    }

    /// Adds what became of rows of a lane.
    pub fn count(&mut self, lane: &Lane, written: Written, rows: u64) {
        if rows == 0 {
            return;
        }
        match self.counts.get_mut(lane) {
            Some(counts) => counts.add(written, rows),
            None => self.counts.entry(lane.clone()).or_default().add(written, rows),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{super::start::Start, *};
    use proptest::prelude::*;
    use tidegate_event::{EventType, TenantId};

    fn lane() -> impl Strategy<Value = Lane> {
        ("[a-z][a-z0-9_-]{0,8}", "[A-Za-z][A-Za-z0-9_-]{0,8}", any::<bool>()).prop_map(
            |(tenant, event_type, dead)| Lane {
                tenant: TenantId::new(&tenant).unwrap(),
                event_type: EventType::new(&event_type).unwrap(),
                dead,
            },
        )
    }

    fn intent() -> impl Strategy<Value = Option<Intent>> {
        proptest::option::of((any::<u32>(), 1u64..1_000, any::<u64>(), "[0-9a-f]{32}").prop_map(
            |(from, count, rows, hash)| Intent {
                window:
                    OffsetRange::new(Offset(from.into()), Offset(from.into()).plus(count)).unwrap(),
                rows,
                schemas: vec![hash.clone()],
                hash,
            },
        ))
    }

    fn state() -> impl Strategy<Value = State> {
        let held = (lane(), any::<u64>(), intent(), any::<u64>(), any::<i64>()).prop_map(
            |(lane, cursor, intent, n, oldest)| Held {
                lane,
                cursor: Offset(cursor),
                intent,
                pending_rows: n,
                pending_bytes: n,
                oldest,
            },
        );
        let counts = (lane(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
            |(lane, stored, quarantined, skipped)| {
                (lane, LaneCounts { stored, quarantined, skipped })
            },
        );
        (
            any::<u64>(),
            any::<u32>(),
            intent(),
            proptest::collection::vec(held, 0..3),
            proptest::collection::btree_map(lane(), any::<u8>(), 0..1),
            proptest::collection::vec(counts, 0..4),
        )
            .prop_map(|(cursor, partition, intent, held, _, counts)| State {
                began: (cursor % 3 != 0).then(|| Began {
                    at: Offset(cursor),
                    start: Start::Offset(Offset(cursor)),
                    gone: cursor / 2,
                    uncounted: (cursor % 3 == 1).then_some(Offset(cursor / 2)),
                }),
                cursor: Offset(cursor),
                intent,
                held,
                lost_in_log: cursor / 2,
                counts: counts.into_iter().collect(),
                ..State::new("abcd1234", Partition(partition), Offset(0))
            })
    }

    proptest! {
        #[test]
        fn a_state_reads_back_as_it_was_written(state in state()) {
            prop_assert_eq!(State::decode(&state.encode().unwrap()).unwrap(), state);
        }

        #[test]
        fn a_flipped_bit_is_never_believed(
            state in state(), at in any::<prop::sample::Index>(), bit in 0..8u32
        ) {
            let mut bytes = state.encode().unwrap();
            let at = at.index(bytes.len());
            *bytes.get_mut(at).unwrap() ^= 1 << bit;
            match State::decode(&bytes) {
                Err(_) => {}
                // A flip in the white space behind the object, or in the case of a digit of the sum.
                Ok(back) => prop_assert_eq!(back, state),
            }
        }
    }

    #[test]
    fn a_state_of_another_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, partition) = (Arc::new(storage::Disk), Partition(0));
        let files = Files { storage, dir: dir.path().to_owned(), partition };
        let store = files.of("lake");
        assert!(State::load(&*store, "abcd1234", Partition(0)).unwrap().is_none());
        State::new("abcd1234", Partition(0), Offset(5)).save(&*store).unwrap();
        assert!(dir.path().join("lake-0.json").is_file());
        let back = State::load(&*store, "abcd1234", Partition(0)).unwrap().unwrap();
        assert_eq!(back.cursor, Offset(5));
        let fault = State::load(&*store, "zzzz9999", Partition(0)).unwrap_err().to_string();
        assert!(fault.contains("abcd1234") && fault.contains("zzzz9999"), "{fault}");
        assert!(State::load(&*store, "abcd1234", Partition(1)).is_err());
    }
}
