//! One segment file: its name, its header (kept twice) and how it comes to be.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Buf, BufMut};
use tidegate_event::ReceivedAt;

use crate::{
    faults::{self, Bug, Point, planted},
    storage::{Storage, StorageFile, write_all_at},
};

const HEADER_BYTES: usize = 80;
/// Where the frames begin: behind two copies of the header.
pub(super) const FRAMES_AT: u64 = 2 * HEADER_BYTES as u64;

const MAGIC: [u8; 4] = *b"TGS1";
const VERSION: u8 = 1;
const NO_PREVIOUS: u64 = u64::MAX;

/// How the segment before ended, when this one was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Previous {
    /// Its name.
    pub base: u64,
    /// Its valid bytes; what lies behind them is what a failed write left.
    pub bytes: u64,
}

/// What stands at the head of a segment. See docs/log-format.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub log_id: [u8; 8],
    /// Random, the same in all segments of a partition: keys the frames' checksums and the hash of
    /// clients' ids.
    pub key: [u8; 16],
    pub partition: u32,
    pub epoch: u32,
    pub base: u64,
    pub created_at: ReceivedAt,
    pub previous: Option<Previous>,
    /// The header checksum of the last frame before this segment; 0 where there is none.
    pub chain: u32,
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; FRAMES_AT as usize] {
        let previous = self.previous.unwrap_or(Previous { base: NO_PREVIOUS, bytes: 0 });
        let mut copy = [0u8; HEADER_BYTES];
        let mut at = copy.as_mut_slice();
        at.put_slice(&MAGIC);
        at.put_slice(&[VERSION, 0, 0, 0]);
        at.put_slice(&self.log_id);
        at.put_slice(&self.key);
        at.put_u32_le(self.partition);
        at.put_u32_le(self.epoch);
        at.put_u64_le(self.base);
        at.put_i64_le(self.created_at.0);
        at.put_u64_le(previous.base);
        at.put_u64_le(previous.bytes);
        at.put_u32_le(self.chain);
        let (covered, _) = copy.split_at(HEADER_BYTES - 4);
        let crc = crc32c::crc32c(covered);
        if let Some(end) = copy.last_chunk_mut::<4>() {
            *end = crc.to_le_bytes();
        }
        let mut both = [0u8; FRAMES_AT as usize];
        let (first, second) = both.split_at_mut(HEADER_BYTES);
        first.copy_from_slice(&copy);
        second.copy_from_slice(&copy);
        both
    }

    /// Whichever copy is whole, and whether both were; `None` where neither is.
    pub fn decode(bytes: &[u8]) -> Option<(Self, bool)> {
        let first = bytes.get(..HEADER_BYTES).and_then(Self::decode_copy);
        let second = bytes.get(HEADER_BYTES..2 * HEADER_BYTES).and_then(Self::decode_copy);
        let both = first.is_some() && first == second;
        first.or(second).map(|header| (header, both))
    }

    fn decode_copy(copy: &[u8]) -> Option<Self> {
        let (covered, crc) = copy.split_last_chunk::<4>()?;
        let mut at = covered.strip_prefix(&MAGIC)?;
        if crc32c::crc32c(covered) != u32::from_le_bytes(*crc) || at.get_u8() != VERSION {
            return None;
        }
        at.advance(3);
        let (mut log_id, mut key) = ([0; 8], [0; 16]);
        at.copy_to_slice(&mut log_id);
        at.copy_to_slice(&mut key);
        let (partition, epoch) = (at.get_u32_le(), at.get_u32_le());
        let (base, created_at) = (at.get_u64_le(), ReceivedAt(at.get_i64_le()));
        let previous = Previous { base: at.get_u64_le(), bytes: at.get_u64_le() };
        let previous = (previous.base != NO_PREVIOUS).then_some(previous);
        let chain = at.get_u32_le();
        Some(Self { log_id, key, partition, epoch, base, created_at, previous, chain })
    }
}

/// What the checksums of a partition's frame headers start from: frames of another log, another
/// partition, or bytes that a client sent, do not pass for frames of this one.
pub(super) fn seed(log_id: &[u8; 8], key: &[u8; 16], partition: u32) -> u32 {
    let seed = crc32c::crc32c_append(crc32c::crc32c(key), log_id);
    crc32c::crc32c_append(seed, &partition.to_le_bytes())
}

pub(super) fn path(dir: &Path, base: u64) -> PathBuf {
    dir.join(format!("{base:020}.seg"))
}

/// The base offset in a segment's name.
pub(super) fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

/// Which step of making something durable failed: a write may be tried elsewhere, a sync never again.
#[derive(Debug)]
pub(super) enum Fault {
    Write(io::Error),
    Sync(io::Error),
}

/// Makes a segment appear under its name with its header, and what `fill` writes behind that, all
/// durable; replaces one of the same name. Until then it is called `.seg.new`, which recovery removes.
/// Returns the file and its length.
pub(super) fn install(
    storage: &dyn Storage,
    dir: &Path,
    header: &SegmentHeader,
    fill: impl FnOnce(&dyn StorageFile) -> io::Result<u64>,
) -> Result<(Arc<dyn StorageFile>, u64), Fault> {
    let path = path(dir, header.base);
    let temporary = path.with_extension("seg.new");
    match storage.remove(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Fault::Write(e)),
        _ => {}
    }
    let made = (|| {
        let file = storage.create_new(&temporary).map_err(Fault::Write)?;
        let head = header.encode();
        if faults::due(Point::SegmentHead) {
            let half = head.get(..head.len() / 2).unwrap_or_default();
            write_all_at(&*file, &mut [io::IoSlice::new(half)], 0).map_err(Fault::Write)?;
            faults::die();
        }
        write_all_at(&*file, &mut [io::IoSlice::new(&head)], 0).map_err(Fault::Write)?;
        let bytes = fill(&*file).map_err(Fault::Write)?;
        file.sync_data().map_err(Fault::Sync)?;
        storage.rename(&temporary, &path).map_err(Fault::Write)?;
        faults::at(Point::SegmentCreated);
        if !planted(Bug::SegmentNameNotSynced) {
            storage.sync_dir(dir).map_err(Fault::Sync)?;
        }
        faults::at(Point::SegmentNamed);
        Ok((file, bytes))
    })();
    if let (Err(Fault::Write(_)), Err(error)) = (&made, storage.remove(&temporary)) {
        tracing::warn!(path = %temporary.display(), %error, "a half made segment stays until the next start");
    }
    made
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            log_id: *b"abcd1234",
            key: [7; 16],
            partition: 3,
            epoch: 9,
            base: 1234,
            created_at: ReceivedAt(-5),
            previous: Some(Previous { base: 1000, bytes: 4096 }),
            chain: 77,
        }
    }

    proptest! {
        #[test]
        fn either_copy_is_enough(bit in 0..FRAMES_AT as usize * 8) {
            let mut bytes = header().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(SegmentHeader::decode(&bytes), Some((header(), false)));
        }
    }

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        for header in [header(), SegmentHeader { previous: None, ..header() }] {
            assert_eq!(SegmentHeader::decode(&header.encode()), Some((header, true)));
        }
        assert_eq!(SegmentHeader::decode(&[0; 160]), None);
        assert_eq!(SegmentHeader::decode(&[]), None);
    }

    #[test]
    fn names_sort_as_their_offsets() {
        assert_eq!(parse_name("00000000000000000042.seg"), Some(42));
        for bad in ["42.seg", "0000000000000000004x.seg", "00000000000000000042.seg.new", "clean"] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }
}
