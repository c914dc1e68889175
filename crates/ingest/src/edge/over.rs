//! A body that is refused for now is read over, so that the connection stays open for the next try.
//!
//! To begin a connection again costs both sides more than to throw away what has come already, and a
//! slot that is promised is its connection's. What comes slowly is read over after the answer, a little
//! each second: a client that dribbles costs less on the connection it has than on one after another.

use std::{sync::Arc, time::Duration};

use http::{header, request::Parts};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep, timeout};

use super::{
    answer::{Kind, Refusal},
    body::READ_BUFFER_BYTES,
    connection::{Busy, Receiving},
    request::Shared,
};
use crate::budget::{Permit, Share};

/// Bodies up to this size, of a client that has not come too early.
const POLITE_BYTES: u64 = 1 << 20;
/// The same of one that does not wait as it is told: next to nothing is done for it.
const IMPOLITE_BYTES: u64 = 64 << 10;
/// How long the answer waits for that: most bodies come with their head.
const MOST: Duration = Duration::from_millis(50);
/// What comes later is looked for so often, and read for so long each time.
const STEP: Duration = Duration::from_secs(1);
const A_LOOK: Duration = Duration::from_millis(5);

/// True where a body is read over, if it is refused for now. Who waits to be told before it sends its
/// body (`Expect`) does not send it.
pub(super) fn is_passed(parts: &Parts, declared: Option<u64>, impolite: u32) -> bool {
    let most = if impolite == 0 { POLITE_BYTES } else { IMPOLITE_BYTES };
    !parts.headers.contains_key(header::EXPECT) && declared.is_some_and(|bytes| bytes <= most)
}

/// A body that is refused for now, still to be read over.
pub(super) struct Refused<'a> {
    pub body: Incoming,
    pub busy: &'a Busy,
    pub share: &'a Share,
    /// True where other requests may stand on the connection beside it (HTTP/2).
    pub multiplexed: bool,
}

/// Reads over the body, now or after the answer; false where its connection has to be closed.
pub(super) async fn pass(shared: &Arc<Shared>, mut refused: Refused<'_>) -> bool {
    match timeout(MOST, read_over(&mut refused.body)).await {
        Ok(whole) => return whole,
        Err(_) if refused.multiplexed => return false,
        Err(_) => {}
    }
    let Ok(memory) = refused.share.try_take(READ_BUFFER_BYTES) else { return false };
    // Who knows when it could send again.
    refused.busy.lets_slot_go();
    let rest = Rest { body: refused.body, _coming: refused.busy.still_coming(), _memory: memory };
    tokio::spawn(rest.read_over(Arc::clone(shared)));
    true
}

/// True where a refused body is to be read over at all.
pub(super) fn may_pass(refusal: &Refusal, passes_over: bool) -> bool {
    passes_over && matches!(refusal.kind, Kind::Shed(..))
}

/// What is left of a body whose request is answered. When it goes unread, its connection ends.
struct Rest {
    body: Incoming,
    _coming: (Busy, Receiving),
    _memory: Permit,
}

impl Rest {
    async fn read_over(mut self, shared: Arc<Shared>) {
        let until = Instant::now() + shared.timeouts.body.0;
        while Instant::now() < until && !shared.is_draining() {
            sleep(STEP).await;
            if timeout(A_LOOK, read_over(&mut self.body)).await.is_ok() {
                return;
            }
        }
    }
}

/// Reads to the end; true where it came there.
async fn read_over(body: &mut Incoming) -> bool {
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return false;
        }
    }
    true
}
