//! An answer that goes on while work is done: NDJSON, a line for each step, the last one the result.

use std::convert::Infallible;

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::stream;
use http::header;
use serde_json::Value;
use tokio::sync::mpsc;

use super::Problem;

/// Lines that may wait for a slow reader; then the work waits.
const WAITING: usize = 4;

/// Where the work says how far it is.
pub(super) struct Lines(mpsc::Sender<Bytes>);

impl Lines {
    /// False where nobody listens any more.
    pub fn tell(&self, line: &Value) -> bool {
        self.0.blocking_send(format!("{line}\n").into()).is_ok()
    }
}

/// Does `work` on a thread of its own, called `name`; what it tells is the answer.
pub(super) fn follow(
    name: &str,
    work: impl FnOnce(&Lines) + Send + 'static,
) -> Result<Response, Problem> {
    let (lines, received) = mpsc::channel::<Bytes>(WAITING);
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || work(&Lines(lines)))
        .map_err(|e| Problem::internal(format!("no thread to do it: {e}")))?;
    let lines = stream::unfold(received, async |mut received| {
        let line = received.recv().await?;
        Some((Ok::<_, Infallible>(line), received))
    });
    Response::builder()
        .header(header::CONTENT_TYPE, "application/x-ndjson")
        .body(Body::from_stream(lines))
        .map_err(|e| Problem::internal(e.to_string()))
}
