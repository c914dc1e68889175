//! Reads a body whole, within bounds of bytes, memory and time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use crate::budget::{Full, Permit, Share};

/// Bytes taken from the budget at once. Small, so that who sends slowly holds what came, not what was
/// declared.
const STEP_BYTES: u64 = 4 << 10;

/// A body up to this size is read through the buffer that its connection has anyway.
const SMALL_BYTES: u64 = 8 << 10;
/// What a larger one is read through: a connection's buffer of at most 32 KiB (HTTP/1.1), and the one
/// before it, part of which the last frame still is. In a heap profile 52 KiB for each connection.
pub(super) const READ_BUFFER_BYTES: u64 = 64 << 10;

/// Bounds of one body.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadLimits {
    /// Bytes.
    pub bytes: u64,
    /// For the whole.
    pub total: Duration,
    /// Between two reads.
    pub idle: Duration,
}

/// Why a body was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReadError {
    #[error("the body has more than {limit} bytes; send it in parts")]
    TooLarge { limit: u64 },
    #[error("the body came too slowly; send it within {} s", total.as_secs_f64())]
    Slow { total: Duration },
    #[error("no memory left for the body")]
    Full(#[from] Full),
    #[error("the body ended before all of it was there")]
    Cut,
}

/// How much room is made where `bytes` are held: twice that, as far as more was declared. What is allocated
/// is what is taken from the budget, so who declares much and sends little holds little.
fn capacity(bytes: usize, declared: Option<u64>) -> usize {
    let declared = declared.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    bytes.max(declared.min(bytes.saturating_mul(2)))
}

/// Has the permit hold `bytes`, or a little more.
fn take(permit: &mut Permit, bytes: u64) -> Result<(), Full> {
    match bytes.saturating_sub(permit.bytes()) {
        0 => Ok(()),
        missing => permit.grow(missing.next_multiple_of(STEP_BYTES)),
    }
}

/// Reads all of `body`. What comes back is in the permit.
pub(super) async fn read<B>(
    mut body: B,
    limits: ReadLimits,
    share: &Share,
) -> Result<(Bytes, Permit), ReadError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let declared = body.size_hint().exact();
    let too_large = ReadError::TooLarge { limit: limits.bytes };
    if declared.is_some_and(|n| limits.bytes < n) {
        return Err(too_large);
    }
    // What would not fit is not begun; what does is taken as it comes, not as it was declared.
    share.check(declared.unwrap_or(0))?;
    // Beside the bytes themselves: where many come, the HTTP library reads them through a larger buffer.
    let large = declared.is_none_or(|n| SMALL_BYTES < n);
    let buffer = if large { READ_BUFFER_BYTES } else { 0 };
    let mut permit = share.try_take(buffer)?;
    let deadline = Instant::now() + limits.total;
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    while !body.is_end_stream() {
        let next = deadline.min(Instant::now() + limits.idle);
        let frame = timeout_at(next, body.frame()).await;
        let frame = frame.map_err(|_| ReadError::Slow { total: limits.total })?;
        let Some(frame) = frame else { break };
        // Trailers are read over.
        let Ok(data) = frame.map_err(|_| ReadError::Cut)?.into_data() else { continue };
        let held = rest.as_ref().map_or(first.len(), BytesMut::len);
        let bytes = held + data.len();
        if limits.bytes < bytes as u64 {
            return Err(too_large);
        }
        // Most small bodies are one frame, and are not copied.
        if rest.is_none() && first.is_empty() {
            take(&mut permit, bytes as u64 + buffer)?;
            first = data;
            continue;
        }
        let all = rest.get_or_insert_with(BytesMut::new);
        if all.capacity() < bytes {
            let capacity = capacity(bytes, declared);
            take(&mut permit, capacity as u64 + buffer)?;
            // Not `reserve`, which may make twice the room that it is asked for.
            let mut larger = BytesMut::with_capacity(capacity);
            larger.extend_from_slice(all);
            *all = larger;
        }
        all.extend_from_slice(&std::mem::take(&mut first));
        all.extend_from_slice(&data);
    }
    let whole = rest.map_or(first, BytesMut::freeze);
    if declared.is_some_and(|n| n != whole.len() as u64) {
        return Err(ReadError::Cut);
    }
    permit.shrink_to(permit.bytes() - buffer);
    Ok((whole, permit))
}
