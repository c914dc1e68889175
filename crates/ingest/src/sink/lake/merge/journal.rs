//! What is being joined, and up to where files were: one small file, replaced whole.
//!
//! ```text
//! <data dir>/sinks/<name>-joins.json :=
//!     {"format":1,"crc32c":"<8 hex digits: CRC-32C of the text of `journal`>","journal":{…}}
//! ```

use std::{collections::BTreeMap, io, path::Path};

use serde::{Deserialize, Serialize};
use tidegate_event::{Offset, Partition};

use super::super::super::rows::Lane;
use crate::storage::{self, Storage};

const FORMAT: u32 = 1;

/// Some files of one folder that become fewer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The file that no reader can read, while others come and go.
    pub blocker: String,
    /// What becomes one file each.
    pub groups: Vec<Group>,
}

/// Files that become one. Places are those below the lake's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The file they become.
    pub path: String,
    /// Its content's SHA-256.
    pub sha256: String,
    /// What it is made of.
    pub parts: Vec<String>,
}

/// A lane's files below it may have been joined: nobody writes there again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Floor {
    partition: Partition,
    #[serde(flatten)]
    lane: Lane,
    below: Offset,
}

/// All that must not be forgotten of joining.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journal {
    /// Of which log the offsets are; empty: of none yet.
    pub log_id: String,
    /// What blockers say, so that each server knows its own.
    pub owner: String,
    /// By partition and lane: all files below may have been joined.
    pub floors: BTreeMap<(Partition, Lane), Offset>,
    /// What is being joined.
    pub joins: Vec<Join>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    log_id: String,
    owner: String,
    floors: Vec<Floor>,
    joins: Vec<Join>,
}

#[derive(Serialize, Deserialize)]
struct File<T> {
    format: u32,
    crc32c: String,
    journal: T,
}

impl Journal {
    /// The file's content; an empty journal where there is no file.
    ///
    /// # Errors
    /// The storage's, and `InvalidData` for a file that is damaged or of another version.
    pub fn load(storage: &dyn Storage, path: &Path) -> io::Result<Self> {
        let bytes = match storage.read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let damaged = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let file: File<&serde_json::value::RawValue> =
            serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if file.format != FORMAT {
            return Err(damaged(format!("its format {} is none of this version", file.format)));
        }
        let text = file.journal.get();
        if file.crc32c != format!("{:08x}", crc32c::crc32c(text.as_bytes())) {
            return Err(damaged("its checksum does not hold".to_owned()));
        }
        let content: Content = serde_json::from_str(text).map_err(|e| damaged(e.to_string()))?;
        let floors = content.floors.into_iter().map(|f| ((f.partition, f.lane), f.below));
        Ok(Self {
            log_id: content.log_id,
            owner: content.owner,
            floors: floors.collect(),
            joins: content.joins,
        })
    }

    /// Replaces the file, durable on return.
    ///
    /// # Errors
    /// As [`storage::replace`].
    pub fn save(&self, storage: &dyn Storage, path: &Path) -> io::Result<()> {
        let floor = |((partition, lane), below): (&(Partition, Lane), &Offset)| Floor {
            partition: *partition,
            lane: lane.clone(),
            below: *below,
        };
        let content = Content {
            log_id: self.log_id.clone(),
            owner: self.owner.clone(),
            floors: self.floors.iter().map(floor).collect(),
            joins: self.joins.clone(),
        };
        let text = serde_json::to_string(&content)?;
        let crc32c = format!("{:08x}", crc32c::crc32c(text.as_bytes()));
        let journal = serde_json::value::RawValue::from_string(text)?;
        let mut bytes = serde_json::to_vec(&File { format: FORMAT, crc32c, journal })?;
        bytes.push(b'\n');
        storage::replace(storage, path, &bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use tidegate_event::{EventType, TenantId};

    fn journal() -> Journal {
        let lane = Lane {
            tenant: TenantId::new("acme").unwrap(),
            event_type: EventType::new("view").unwrap(),
            dead: true,
        };
        let group =
            Group { path: "a".into(), sha256: "b".into(), parts: vec!["c".into(), "d".into()] };
        Journal {
            log_id: "abcd1234".into(),
            owner: "me".into(),
            floors: [((Partition(3), lane), Offset(7))].into(),
            joins: vec![Join { blocker: "e".into(), groups: vec![group] }],
        }
    }

    #[test]
    fn a_journal_reads_back_and_a_flipped_bit_is_never_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lake-joins.json");
        assert_eq!(Journal::load(&storage::Disk, &path).unwrap(), Journal::default());
        journal().save(&storage::Disk, &path).unwrap();
        assert_eq!(Journal::load(&storage::Disk, &path).unwrap(), journal());
        let good = std::fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes).unwrap();
            if let Ok(read) = Journal::load(&storage::Disk, &path) {
                assert_eq!(read, journal(), "bit {bit}");
            }
        }
    }
}
