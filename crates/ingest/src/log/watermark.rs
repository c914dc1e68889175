//! How far the log is durable, told after each sync: what a crash of the process cannot take away.
//!
//! `durable` is two slots of 32 bytes, written in turn and never synced: a killed process leaves it in
//! the cache, and after a power cut it may be behind, or gone. It never is ahead: it says only what a
//! sync has returned for. So it proves the last group after a kill, which no later frame does.

use std::{io, path::Path, sync::Arc};

use bytes::{Buf, BufMut};

use crate::storage::{Storage, StorageFile, write_all_at};

/// The file, in the partition's folder.
pub(super) const NAME: &str = "durable";
const SLOT_BYTES: usize = 32;

/// Where the log ended when a sync returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Durable {
    /// The segment that was written to.
    pub base: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Every offset below was durable.
    pub latest: u64,
}

impl Durable {
    fn encode(self, seed: u32) -> [u8; SLOT_BYTES] {
        let mut slot = [0u8; SLOT_BYTES];
        let mut at = slot.as_mut_slice();
        at.put_u64_le(self.base);
        at.put_u64_le(self.bytes);
        at.put_u64_le(self.latest);
        let (covered, _) = slot.split_at(SLOT_BYTES - 4);
        let crc = crc32c::crc32c_append(seed, covered);
        if let Some(end) = slot.last_chunk_mut::<4>() {
            *end = crc.to_le_bytes();
        }
        slot
    }

    fn decode(slot: &[u8], seed: u32) -> Option<Self> {
        let (covered, crc) = slot.split_last_chunk::<4>()?;
        if crc32c::crc32c_append(seed, covered) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut at = covered;
        let found = Self { base: at.get_u64_le(), bytes: at.get_u64_le(), latest: at.get_u64_le() };
        (found.latest > 0).then_some(found)
    }

    /// What was told last; `None` where nothing, or nothing whole, is there.
    pub fn read(storage: &dyn Storage, dir: &Path, seed: u32) -> io::Result<Option<Self>> {
        let bytes = match storage.read(&dir.join(NAME)) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let slots = bytes.chunks_exact(SLOT_BYTES).take(2);
        Ok(slots.filter_map(|slot| Self::decode(slot, seed)).max_by_key(|found| found.latest))
    }
}

/// Tells it. What cannot be written is not told: the log goes on without.
pub(super) struct Watermark {
    file: Option<Arc<dyn StorageFile>>,
    slot: u64,
    failed: bool,
}

impl Watermark {
    /// Goes on with the file that is there. With `keep`, what it says is made durable first: it may be
    /// all that tells of damage.
    pub fn open(storage: &dyn Storage, dir: &Path, keep: bool) -> io::Result<Self> {
        let path = dir.join(NAME);
        let file = match storage.open(&path) {
            Ok(file) => Some(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        if let Some(file) = file.as_ref().filter(|_| keep) {
            file.sync_data()?;
        }
        let file = file.map_or_else(|| storage.create_new(&path), Ok);
        if let Err(error) = &file {
            tracing::warn!(path = %path.display(), %error, "cannot be made; the log goes on without");
        }
        Ok(Self { file: file.ok(), slot: 0, failed: false })
    }

    /// Everything up to `durable` is.
    pub fn tell(&mut self, durable: Durable, seed: u32) {
        let Some(file) = &self.file else { return };
        let slot = durable.encode(seed);
        let at = self.slot * SLOT_BYTES as u64;
        match write_all_at(&**file, &mut [io::IoSlice::new(&slot)], at) {
            Ok(()) => (self.slot, self.failed) = (1 - self.slot, false),
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(%error, "how far the log is durable cannot be noted; it goes on without");
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::storage::Disk;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_slot_reads_back_and_no_flip_or_other_log_passes(
            base: u64, bytes: u64, latest in 1u64.., seed: u32, bit in 0..SLOT_BYTES * 8
        ) {
            let durable = Durable { base, bytes, latest };
            let mut slot = durable.encode(seed);
            prop_assert_eq!(Durable::decode(&slot, seed), Some(durable));
            prop_assert_eq!(Durable::decode(&slot, seed ^ 1), None);
            slot[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Durable::decode(&slot, seed), None);
        }
    }

    #[test]
    fn the_newest_whole_slot_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let read = || Durable::read(&Disk, dir.path(), 7).unwrap();
        let told = |latest| Durable { base: 0, bytes: 160 + latest, latest };
        assert_eq!(read(), None);
        let mut watermark = Watermark::open(&Disk, dir.path(), false).unwrap();
        assert_eq!(read(), None, "made, and nothing told");
        for latest in 1..6 {
            watermark.tell(told(latest), 7);
            assert_eq!(read(), Some(told(latest)));
        }
        let path = dir.path().join(NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(), Some(told(4)), "the other slot");
        bytes[40] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(), None);
        let mut watermark = Watermark::open(&Disk, dir.path(), true).unwrap();
        watermark.tell(told(9), 7);
        assert_eq!(read(), Some(told(9)));
    }
}
