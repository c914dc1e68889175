//! One frame: a header of 60 bytes and a batch's body, maybe compressed; encode and decode.

use bytes::{Buf, BufMut, Bytes};
use tidegate_event::ReceivedAt;

use super::Codec;

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 60;
/// Bytes of a body at most, before compression.
pub const BODY_BYTES_MAX: usize = 1 << 30;

pub(super) const MAGIC: [u8; 4] = *b"TGF1";
const VERSION: u8 = 1;

/// Why a body cannot be a frame, or a frame's body cannot be had back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A body larger than [`BODY_BYTES_MAX`].
    #[error("a body of {0} bytes is larger than 1 GiB")]
    TooLarge(usize),
    /// A body of no events.
    #[error("a body must hold at least one event")]
    Empty,
    /// The checksum is right and yet the body cannot be decompressed to its length.
    #[error("the body cannot be decompressed")]
    Decompress,
}

/// A body ready to be appended: compressed and summed up, off the writer's thread.
#[derive(Clone, Debug)]
pub struct FrameBody {
    pub(super) stored: Bytes,
    pub(super) raw_bytes: u32,
    pub(super) codec: Codec,
    pub(super) count: u32,
    pub(super) received_at: ReceivedAt,
    pub(super) crc: u32,
}

impl FrameBody {
    /// Compresses `body` (kept as it is where that saves nothing) and sums it up. `count`: how many
    /// events it holds, each of which gets an offset.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] and [`FrameError::Empty`].
    pub fn prepare(
        body: Bytes,
        count: u32,
        received_at: ReceivedAt,
        codec: Codec,
    ) -> Result<Self, FrameError> {
        let raw_bytes = u32::try_from(body.len())
            .ok()
            .filter(|_| body.len() <= BODY_BYTES_MAX)
            .ok_or(FrameError::TooLarge(body.len()))?;
        if count == 0 {
            return Err(FrameError::Empty);
        }
        let (stored, codec) = match codec {
            Codec::None => (body, Codec::None),
            Codec::Lz4 => {
                let compressed = lz4_flex::block::compress(&body);
                if compressed.len() < body.len() {
                    (compressed.into(), Codec::Lz4)
                } else {
                    (body, Codec::None)
                }
            }
        };
        let crc = crc32c::crc32c(&stored);
        Ok(Self { stored, raw_bytes, codec, count, received_at, crc })
    }

    /// Bytes it takes in the log, header included.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.stored.len()
    }

    /// How many events it holds.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn header(&self, base: u64, epoch: u32, durable: u64, chain: u32) -> FrameHeader {
        FrameHeader {
            codec: self.codec,
            stored_bytes: u32::try_from(self.stored.len()).unwrap_or(u32::MAX),
            raw_bytes: self.raw_bytes,
            base,
            received_at: self.received_at,
            count: self.count,
            epoch,
            durable,
            previous_crc: chain,
            body_crc: self.crc,
        }
    }
}

/// What stands before a body. See docs/log-format.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub codec: Codec,
    pub stored_bytes: u32,
    pub raw_bytes: u32,
    pub base: u64,
    pub received_at: ReceivedAt,
    pub count: u32,
    pub epoch: u32,
    /// Every offset below was durable when this frame was written.
    pub durable: u64,
    /// The header checksum of the frame before: the chain.
    pub previous_crc: u32,
    pub body_crc: u32,
}

impl FrameHeader {
    /// The header's bytes and its checksum, which the next frame carries. `seed` binds it to its log.
    pub fn encode(&self, seed: u32) -> ([u8; FRAME_HEADER_BYTES], u32) {
        let mut bytes = [0u8; FRAME_HEADER_BYTES];
        let mut at = bytes.as_mut_slice();
        at.put_slice(&MAGIC);
        at.put_u8(VERSION);
        at.put_u8(match self.codec {
            Codec::None => 0,
            Codec::Lz4 => 1,
        });
        at.put_u16_le(0);
        at.put_u32_le(self.stored_bytes);
        at.put_u32_le(self.raw_bytes);
        at.put_u64_le(self.base);
        at.put_i64_le(self.received_at.0);
        at.put_u32_le(self.count);
        at.put_u32_le(self.epoch);
        at.put_u64_le(self.durable);
        at.put_u32_le(self.previous_crc);
        at.put_u32_le(self.body_crc);
        let (covered, _) = bytes.split_at(FRAME_HEADER_BYTES - 4);
        let crc = crc32c::crc32c_append(seed, covered);
        if let Some(end) = bytes.last_chunk_mut::<4>() {
            *end = crc.to_le_bytes();
        }
        (bytes, crc)
    }

    /// The header and its checksum, or `None` where these bytes are no header of this log.
    pub fn decode(bytes: &[u8], seed: u32) -> Option<(Self, u32)> {
        let bytes = bytes.first_chunk::<FRAME_HEADER_BYTES>()?;
        let (covered, crc) = bytes.split_last_chunk::<4>()?;
        let crc = u32::from_le_bytes(*crc);
        if !covered.starts_with(&MAGIC) || crc32c::crc32c_append(seed, covered) != crc {
            return None;
        }
        let mut at = covered.get(MAGIC.len()..)?;
        if at.get_u8() != VERSION {
            return None;
        }
        let codec = match at.get_u8() {
            0 => Codec::None,
            1 => Codec::Lz4,
            _ => return None,
        };
        at.advance(2);
        let header = Self {
            codec,
            stored_bytes: at.get_u32_le(),
            raw_bytes: at.get_u32_le(),
            base: at.get_u64_le(),
            received_at: ReceivedAt(at.get_i64_le()),
            count: at.get_u32_le(),
            epoch: at.get_u32_le(),
            durable: at.get_u64_le(),
            previous_crc: at.get_u32_le(),
            body_crc: at.get_u32_le(),
        };
        Some((header, crc))
    }

    /// Header and body.
    pub fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.stored_bytes)
    }

    /// The first offset behind it.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.count.into())
    }

    /// The body as it was appended; no copy where it was not compressed.
    pub fn open_body(&self, stored: Bytes) -> Result<Bytes, FrameError> {
        match self.codec {
            Codec::None => Ok(stored),
            Codec::Lz4 => {
                if self.raw_bytes as usize > BODY_BYTES_MAX {
                    return Err(FrameError::Decompress);
                }
                let mut raw = vec![0; self.raw_bytes as usize];
                match lz4_flex::block::decompress_into(&stored, &mut raw) {
                    Ok(n) if n == raw.len() => Ok(raw.into()),
                    _ => Err(FrameError::Decompress),
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_frame_reads_back_as_it_was_prepared(
            body in proptest::collection::vec(0u8..4, 0..600), count in 1u32.., at: i64, lz4: bool,
            base in 0..u64::MAX / 2, epoch: u32, durable: u64, chain: u32, seed: u32,
        ) {
            let codec = if lz4 { Codec::Lz4 } else { Codec::None };
            let body = Bytes::from(body);
            let frame = FrameBody::prepare(body.clone(), count, ReceivedAt(at), codec).unwrap();
            let header = frame.header(base, epoch, durable, chain);
            let (bytes, crc) = header.encode(seed);
            prop_assert_eq!(FrameHeader::decode(&bytes, seed), Some((header, crc)));
            prop_assert_eq!(FrameHeader::decode(&bytes, seed ^ 1), None);
            prop_assert_eq!(header.open_body(frame.stored).unwrap(), body);
        }

        #[test]
        fn a_flipped_bit_is_no_header(seed: u32, bit in 0..FRAME_HEADER_BYTES * 8) {
            let frame = FrameBody::prepare(Bytes::from_static(b"x"), 1, ReceivedAt(5), Codec::None);
            let (mut bytes, _) = frame.unwrap().header(7, 1, 7, 9).encode(seed);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(FrameHeader::decode(&bytes, seed), None);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(FrameHeader::decode(&bytes, 0), None);
        }
    }

    #[test]
    fn a_body_without_events_is_refused() {
        let fault = FrameBody::prepare(Bytes::new(), 0, ReceivedAt(0), Codec::None).unwrap_err();
        assert_eq!(fault, FrameError::Empty);
    }
}
