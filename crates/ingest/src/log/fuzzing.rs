//! The log's frame for fuzz/: a header, and the body behind it.

use bytes::Bytes;

use super::frame::{FRAME_HEADER_BYTES, FrameBody, FrameError, FrameHeader};

/// A frame's header as its own encoder writes it, and what its body opens to.
#[derive(Debug)]
pub struct Opened {
    /// The header, encoded again.
    pub header: Vec<u8>,
    /// The first offset, and the one behind the last.
    pub offsets: (u64, u64),
    /// The body.
    pub body: Result<Bytes, FrameError>,
}

/// Reads a frame: 60 bytes of header, then the body as stored.
#[must_use]
pub fn open(bytes: &Bytes, seed: u32) -> Option<Opened> {
    let (header, _) = FrameHeader::decode(bytes, seed)?;
    let stored = bytes.slice(FRAME_HEADER_BYTES..);
    Some(Opened {
        header: header.encode(seed).0.to_vec(),
        offsets: (header.base, header.end()),
        body: header.open_body(stored),
    })
}

/// A frame as an append writes it.
#[must_use]
pub fn encode(body: &FrameBody, base: u64, chain: u32, seed: u32) -> Vec<u8> {
    let mut bytes = body.header(base, 1, base, chain).encode(seed).0.to_vec();
    bytes.extend_from_slice(&body.stored);
    bytes
}
