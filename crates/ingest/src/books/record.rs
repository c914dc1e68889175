//! A small file of records, one JSON document a line: the first is the whole, each later one what
//! was added to it.
//!
//! `{"crc32c":n,"ledger":…}`: the checksum goes on from that of the line before, over the bytes of
//! `ledger`, so that a line counts only behind the lines it was written behind. A crash can leave
//! the end torn: reading stops at the first line that does not fit. A file is read once, at the
//! start, and replaced whole then; after a failed write it is replaced whole too. So nothing is ever
//! written behind a torn end.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::storage::{self, Storage, StorageFile, write_all_at};

/// What was added may take this much before the whole is written anew.
const ADDED_BYTES_MIN: u64 = 2 << 20;
/// And this many times the whole.
const ADDED_TIMES: u64 = 4;

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    crc32c: u32,
    #[serde(borrow)]
    ledger: &'a RawValue,
}

/// Whether an added record must be on the disk when [`RecordFile::append`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// It must.
    Now,
    /// It may come with the next one that must.
    Later,
}

/// The file, written by one thread.
pub struct RecordFile {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    /// Open since it was last replaced; `None` where its end is not known.
    open: Option<Open>,
}

struct Open {
    file: Arc<dyn StorageFile>,
    crc32c: u32,
    whole_bytes: u64,
    end: u64,
}

/// Every record of the file at `path`, as JSON, up to the first that is damaged or torn; empty where
/// not even the first is sound.
///
/// # Errors
/// As reading the file.
pub fn read(storage: &dyn Storage, path: &Path) -> io::Result<Vec<Box<RawValue>>> {
    Ok(decode(&storage.read(path)?))
}

/// The records in the bytes of such a file.
#[must_use]
pub fn decode(bytes: &[u8]) -> Vec<Box<RawValue>> {
    let mut records = Vec::new();
    let mut crc32c = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(line) = line.strip_suffix(b"\n") else { break };
        let Ok(line) = serde_json::from_slice::<Line<'_>>(line) else { break };
        crc32c = crc32c::crc32c_append(crc32c, line.ledger.get().as_bytes());
        if line.crc32c != crc32c {
            break;
        }
        records.push(line.ledger.to_owned());
    }
    records
}

fn encode(record: &impl Serialize, before: u32) -> io::Result<(Vec<u8>, u32)> {
    let ledger = serde_json::value::to_raw_value(record)?;
    let crc32c = crc32c::crc32c_append(before, ledger.get().as_bytes());
    let mut line = serde_json::to_vec(&Line { crc32c, ledger: &ledger })?;
    line.push(b'\n');
    Ok((line, crc32c))
}

impl RecordFile {
    /// The file at `path`, to be replaced before anything is added.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>, path: PathBuf) -> Self {
        Self { storage, path, open: None }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True where the whole is to be written before anything is added: at the start, after a failed
    /// write, and where what was added has grown long.
    #[must_use]
    pub fn wants_whole(&self) -> bool {
        self.open.as_ref().is_none_or(|open| {
            open.end - open.whole_bytes > ADDED_BYTES_MIN.max(ADDED_TIMES * open.whole_bytes)
        })
    }

    /// Replaces the file by its first record, durably.
    ///
    /// # Errors
    /// As [`storage::replace`]. The old file stays, or the new one is there whole.
    pub fn replace(&mut self, whole: &impl Serialize) -> io::Result<()> {
        self.open = None;
        let (line, crc32c) = encode(whole, 0)?;
        storage::replace(&*self.storage, &self.path, &line)?;
        let file = self.storage.open(&self.path)?;
        let end = line.len() as u64;
        self.open = Some(Open { file, crc32c, whole_bytes: end, end });
        Ok(())
    }

    /// Adds a record.
    ///
    /// # Errors
    /// As writing and syncing; the file wants to be replaced then.
    pub fn append(&mut self, record: &impl Serialize, durable: Durable) -> io::Result<()> {
        let Some(mut open) = self.open.take() else {
            return Err(io::Error::other("nothing may be added before the whole was written"));
        };
        let (line, crc32c) = encode(record, open.crc32c)?;
        write_all_at(&*open.file, &mut [io::IoSlice::new(&line)], open.end)?;
        if durable == Durable::Now {
            open.file.sync_data()?;
        }
        (open.crc32c, open.end) = (crc32c, open.end + line.len() as u64);
        self.open = Some(open);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::storage::Disk;

    fn texts(records: &[Box<RawValue>]) -> Vec<&str> {
        records.iter().map(|record| record.get()).collect()
    }

    #[test]
    fn records_are_read_up_to_the_first_that_is_torn_or_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some.json");
        let mut file = RecordFile::new(Arc::new(Disk), path.clone());
        assert!(file.wants_whole());
        file.append(&1, Durable::Now).unwrap_err();
        file.replace(&"old").unwrap();
        file.replace(&"whole").unwrap();
        file.append(&[1], Durable::Later).unwrap();
        file.append(&[2], Durable::Now).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(texts(&read(&Disk, &path).unwrap()), ["\"whole\"", "[1]", "[2]"]);
        let ends: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at] == b'\n').collect();
        for cut in 0..bytes.len() {
            let whole = ends.iter().filter(|end| **end < cut).count();
            assert_eq!(decode(&bytes[..cut]).len(), whole, "cut at {cut}");
            let mut flipped = bytes.clone();
            flipped[cut] ^= 4;
            let before = ends.iter().filter(|end| **end < cut).count();
            assert_eq!(decode(&flipped).len(), before, "flipped at {cut}");
        }
    }

    #[test]
    fn a_line_counts_only_behind_the_one_it_was_written_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut lines = Vec::new();
        for whole in ["first", "second"] {
            let path = dir.path().join(whole);
            let mut file = RecordFile::new(Arc::new(Disk), path.clone());
            file.replace(&whole).unwrap();
            file.append(&1, Durable::Now).unwrap();
            lines.push(std::fs::read_to_string(&path).unwrap());
        }
        let (first, second) = (lines[0].lines().next().unwrap(), lines[1].lines().nth(1).unwrap());
        assert_eq!(texts(&decode(format!("{first}\n{second}\n").as_bytes())), ["\"first\""]);
    }

    #[test]
    fn the_whole_is_wanted_again_once_much_was_added() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = RecordFile::new(Arc::new(Disk), dir.path().join("some.json"));
        file.replace(&"whole").unwrap();
        let long = "x".repeat(1 << 20);
        file.append(&long, Durable::Later).unwrap();
        assert!(!file.wants_whole());
        file.append(&long, Durable::Later).unwrap();
        assert!(file.wants_whole());
    }
}
