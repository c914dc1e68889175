//! A body that is refused for now is read over, so that the connection stays open for the next try.
//!
//! To begin a connection again costs both sides more than to throw away what has come already, and a
//! slot that is promised is its connection's.

use std::time::Duration;

use http::{header, request::Parts};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::answer::{Kind, Refusal};

/// Bodies up to this size, of a client that has not come too early.
const POLITE_BYTES: u64 = 1 << 20;
/// The same of one that does not wait as it is told: next to nothing is done for it.
const IMPOLITE_BYTES: u64 = 64 << 10;
/// How long it may take: most bodies come with their head.
const MOST: Duration = Duration::from_millis(50);

/// True where a body is read over, if it is refused for now. Who waits to be told before it sends its
/// body (`Expect`) does not send it.
pub(super) fn is_passed(parts: &Parts, declared: Option<u64>, impolite: u32) -> bool {
    let most = if impolite == 0 { POLITE_BYTES } else { IMPOLITE_BYTES };
    !parts.headers.contains_key(header::EXPECT) && declared.is_some_and(|bytes| bytes <= most)
}

/// Reads over the body of a request that is refused for now; true where nothing of it is left.
pub(super) async fn pass(refusal: &Refusal, passes_over: bool, mut body: Incoming) -> bool {
    if body.is_end_stream() {
        return true;
    }
    if !passes_over || !matches!(refusal.kind, Kind::Shed(..)) {
        return false;
    }
    let over = async {
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(MOST, over).await.unwrap_or(false)
}
