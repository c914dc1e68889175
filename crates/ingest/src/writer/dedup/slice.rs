//! One file of the index: the ids of one window's length, over a stretch of the log.
//!
//! ```text
//! <sequence, 20 digits>-<class>.ids
//! slice := head block*
//! head  := magic "TGI1" · version u8 (1) · 0 u8 · class u16
//!          · mark [16]                         log, partition, key and all configured windows
//!          · from u64                          goes on where the slice before ended
//!          · before i64                        no id of an earlier slice was received after this
//!          · crc u32                           over all before
//! block := count u32
//!          · to u64                            the ids of all offsets below are here, or in an earlier slice
//!          · lost i64                          ids received up to then were forgotten: too many
//!          · crc u32                           over all before and the ids, starting from the crc before it
//!          · (hash u128 · received_at i64) [count]
//! ```
//!
//! Integers are little-endian. A block says only what was durable in the log when it was written. What
//! follows a block that is not whole counts for nothing: the crc of each begins with that of the one
//! before it.

use bytes::{Buf, BufMut};

use super::{
    memory::{NEVER, Seen},
    windows::Class,
};

const MAGIC: [u8; 4] = *b"TGI1";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 44;
const BLOCK_BYTES: usize = 24;
pub(super) const ID_BYTES: usize = 24;

/// What stands at the head of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub class: Class,
    pub mark: [u8; 16],
    pub from: u64,
    pub before: i64,
}

impl Head {
    /// The bytes, and the crc that the first block's begins with.
    pub fn encode(&self) -> (Vec<u8>, u32) {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        bytes.put_slice(&MAGIC);
        bytes.put_slice(&[VERSION, 0]);
        bytes.put_u16_le(self.class);
        bytes.put_slice(&self.mark);
        bytes.put_u64_le(self.from);
        bytes.put_i64_le(self.before);
        let crc = crc32c::crc32c(&bytes);
        bytes.put_u32_le(crc);
        (bytes, crc)
    }

    fn decode(bytes: &[u8]) -> Option<(Self, u32)> {
        let head = bytes.get(..HEAD_BYTES)?;
        let (covered, crc) = head.split_last_chunk::<4>()?;
        let crc = u32::from_le_bytes(*crc);
        let mut at = covered.strip_prefix(&MAGIC)?;
        if crc32c::crc32c(covered) != crc || at.get_u8() != VERSION {
            return None;
        }
        at.advance(1);
        let class = at.get_u16_le();
        let mut mark = [0; 16];
        at.copy_to_slice(&mut mark);
        Some((Self { class, mark, from: at.get_u64_le(), before: at.get_i64_le() }, crc))
    }
}

/// Adds a block to `into`; returns its crc.
pub(super) fn put_block(into: &mut Vec<u8>, ids: &[Seen], to: u64, lost: i64, chain: u32) -> u32 {
    let start = into.len();
    into.reserve(BLOCK_BYTES + ids.len() * ID_BYTES);
    into.put_u32_le(u32::try_from(ids.len()).unwrap_or(u32::MAX));
    into.put_u64_le(to);
    into.put_i64_le(lost);
    let crc_at = into.len();
    into.put_u32_le(0);
    for seen in ids {
        into.put_u128_le(seen.hash());
        into.put_i64_le(seen.at);
    }
    let head = into.get(start..crc_at).unwrap_or_default();
    let body = into.get(crc_at + 4..).unwrap_or_default();
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(chain, head), body);
    if let Some(place) = into.get_mut(crc_at..crc_at + 4) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
    crc
}

/// What a slice says, as far as it is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub head: Head,
    pub ids: Vec<Seen>,
    /// The end of what it covers. Below `head.from` while its first blocks are not all there.
    pub to: u64,
    pub lost: i64,
    /// When its latest id was received.
    pub newest: i64,
}

impl Slice {
    /// `None` where it says nothing.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, mut chain) = Head::decode(bytes)?;
        let mut rest = bytes.get(HEAD_BYTES..)?;
        let mut slice = Self { head, ids: Vec::new(), to: 0, lost: NEVER, newest: NEVER };
        let mut blocks = 0;
        while let Some((to, lost, ids, crc)) = block(rest, chain) {
            rest = rest.get(BLOCK_BYTES + ids.len()..).unwrap_or_default();
            (chain, slice.to, slice.lost) = (crc, to, lost);
            slice.ids.reserve(ids.len() / ID_BYTES);
            for mut id in ids.chunks_exact(ID_BYTES) {
                let seen = Seen::new(id.get_u128_le(), id.get_i64_le());
                slice.newest = slice.newest.max(seen.at);
                slice.ids.push(seen);
            }
            blocks += 1;
        }
        (blocks > 0 && slice.to >= head.from).then_some(slice)
    }
}

fn block(rest: &[u8], chain: u32) -> Option<(u64, i64, &[u8], u32)> {
    let (head, body) = rest.split_at_checked(BLOCK_BYTES)?;
    let (covered, crc) = head.split_last_chunk::<4>()?;
    let mut at = covered;
    let (count, to, lost) = (at.get_u32_le() as usize, at.get_u64_le(), at.get_i64_le());
    let ids = body.get(..count.checked_mul(ID_BYTES)?)?;
    let crc = u32::from_le_bytes(*crc);
    let found = crc32c::crc32c_append(crc32c::crc32c_append(chain, covered), ids);
    (found == crc).then_some((to, lost, ids, crc))
}

/// The name of a slice's file.
pub(super) fn name(sequence: u64, class: Class) -> String {
    format!("{sequence:020}-{class}.ids")
}

/// The sequence and the class in a slice's name.
pub(super) fn parse_name(name: &str) -> Option<(u64, Class)> {
    let (sequence, class) = name.strip_suffix(".ids")?.split_once('-')?;
    let parsed = (sequence.parse().ok()?, class.parse().ok()?);
    (self::name(parsed.0, parsed.1) == name).then_some(parsed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Block = (Vec<(u128, i64)>, u64, i64);

    fn head() -> Head {
        Head { class: 3, mark: [9; 16], from: 5, before: -7 }
    }

    /// The bytes, and where each block ends.
    fn encode(blocks: &[Block]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut crc) = head().encode();
        let mut ends = Vec::new();
        for (ids, to, lost) in blocks {
            let ids: Vec<_> = ids.iter().map(|(hash, at)| Seen::new(*hash, *at)).collect();
            crc = put_block(&mut bytes, &ids, *to, *lost, crc);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn expected(blocks: &[Block]) -> Option<Slice> {
        let (_, to, lost) = blocks.last()?;
        let ids: Vec<_> =
            blocks.iter().flat_map(|b| b.0.iter().map(|(h, at)| Seen::new(*h, *at))).collect();
        let newest = ids.iter().map(|seen| seen.at).max().unwrap_or(NEVER);
        (*to >= 5).then_some(Slice { head: head(), ids, to: *to, lost: *lost, newest })
    }

    fn blocks() -> impl Strategy<Value = Vec<Block>> {
        let ids = proptest::collection::vec((any::<u128>(), any::<i64>()), 0..5);
        let block = (ids, 5..u64::MAX, any::<i64>());
        proptest::collection::vec(block, 0..5)
    }

    proptest! {
        #[test]
        fn a_slice_reads_back_as_it_was_written(blocks in blocks()) {
            prop_assert_eq!(Slice::decode(&encode(&blocks).0), expected(&blocks));
        }

        #[test]
        fn a_cut_or_damaged_slice_says_what_lies_before_the_damage(
            blocks in blocks(), place in any::<prop::sample::Index>(), bit in 0..8u32, cut in any::<bool>()
        ) {
            let (mut bytes, ends) = encode(&blocks);
            let at = place.index(bytes.len());
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 1 << bit;
            }
            let whole = if at < HEAD_BYTES { 0 } else { ends.iter().filter(|e| **e <= at).count() };
            prop_assert_eq!(Slice::decode(&bytes), expected(&blocks[..whole]));
        }

        #[test]
        fn blocks_of_another_slice_count_for_nothing(blocks in blocks()) {
            let (own, ends) = encode(&blocks);
            let (other, _) = Head { class: 4, ..head() }.encode();
            let mut mixed = other;
            mixed.extend_from_slice(&own[HEAD_BYTES..]);
            prop_assert_eq!(Slice::decode(&mixed), None);
            if let [first, .., last] = ends[..] {
                // A stale block behind one that was written anew.
                let (mut bytes, crc) = head().encode();
                put_block(&mut bytes, &[Seen::new(1, 1)], 77, 0, crc);
                bytes.extend_from_slice(&own[first..last]);
                prop_assert_eq!(Slice::decode(&bytes).unwrap().to, 77);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (mut whole, _) = head().encode();
            whole.extend_from_slice(&bytes);
            prop_assert_eq!(Slice::decode(&whole), None);
            prop_assert_eq!(Slice::decode(&bytes), None);
        }
    }

    #[test]
    fn a_slice_whose_first_ids_are_not_all_there_says_nothing() {
        let part = vec![(vec![(1, 1)], 0, NEVER)];
        assert_eq!(Slice::decode(&encode(&part).0), None);
        let whole = vec![(vec![(1, 1)], 0, NEVER), (vec![(2, 2)], 9, NEVER)];
        assert_eq!(Slice::decode(&encode(&whole).0).unwrap().ids.len(), 2);
    }

    #[test]
    fn names_are_taken_as_they_are_given() {
        assert_eq!(parse_name(&name(7, 2)), Some((7, 2)));
        for bad in ["7-2.ids", "00000000000000000007-02.ids", "00000000000000000007.ids", "x"] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }
}
