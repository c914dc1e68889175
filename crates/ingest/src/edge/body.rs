//! Reads a body whole, within bounds of bytes, memory and time.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::budget::{Budget, Permit};

/// Bytes taken from the budget at once where a body's length was not declared.
const STEP_BYTES: u64 = 64 << 10;

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
    Full,
    #[error("the body ended before all of it was there")]
    Cut,
}

/// Reads all of `body`. What comes back is in the permit.
pub(super) async fn read<B>(
    mut body: B,
    limits: ReadLimits,
    budget: &Arc<Budget>,
) -> Result<(Bytes, Permit), ReadError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let declared = body.size_hint().exact();
    let too_large = ReadError::TooLarge { limit: limits.bytes };
    if declared.is_some_and(|n| limits.bytes < n) {
        return Err(too_large);
    }
    let mut permit = budget.try_take(declared.unwrap_or(0)).ok_or(ReadError::Full)?;
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
        let bytes = held as u64 + data.len() as u64;
        if limits.bytes < bytes {
            return Err(too_large);
        }
        if permit.bytes() < bytes && !permit.grow((bytes - permit.bytes()).max(STEP_BYTES)) {
            return Err(ReadError::Full);
        }
        match &mut rest {
            // Most small bodies are one frame, and are not copied.
            None if first.is_empty() => first = data,
            None => {
                let capacity = declared.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
                let mut all = BytesMut::with_capacity(capacity.max(held + data.len()));
                all.extend_from_slice(&first);
                all.extend_from_slice(&data);
                first = Bytes::new();
                rest = Some(all);
            }
            Some(all) => all.extend_from_slice(&data),
        }
    }
    let whole = rest.map_or(first, BytesMut::freeze);
    if declared.is_some_and(|n| n != whole.len() as u64) {
        return Err(ReadError::Cut);
    }
    Ok((whole, permit))
}
