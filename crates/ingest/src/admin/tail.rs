//! Live events as they become durable, one JSON object a line.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Query, State},
    response::Response,
};
use bytes::Bytes;
use futures_util::stream;
use http::header;
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};
use tidegate_event::Offset;
use tokio::sync::mpsc;

use super::{
    Problem, Shared,
    records::{Located, Next, scan},
};
use crate::sink::source::LogSource;

/// Lines that may wait for a slow reader; then the tail waits, and the log does not notice.
const LINES_WAITING: usize = 64;
/// How often a tail without events looks whether its reader has gone.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    tenant: Option<String>,
    event_type: Option<String>,
}

#[derive(serde::Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    facts: Map<String, Value>,
    verdict: &'a str,
    event: &'a RawValue,
}

pub(super) async fn tail(
    State(pipeline): State<Shared>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    let (lines, received) = mpsc::channel::<Bytes>(LINES_WAITING);
    let wanted = Arc::new(wanted);
    for log in pipeline.logs.clone() {
        let (lines, wanted) = (lines.clone(), Arc::clone(&wanted));
        let pipeline = Arc::clone(&pipeline);
        std::thread::Builder::new()
            .name(format!("tail-{}", log.partition()))
            .spawn(move || follow(&pipeline, &log, &wanted, &lines))
            .map_err(|e| Problem::internal(format!("no thread to follow the log: {e}")))?;
    }
    drop(lines);
    let lines = stream::unfold(received, async |mut received| {
        let line = received.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line), received))
    });
    Response::builder()
        .header(header::CONTENT_TYPE, "application/x-ndjson")
        .body(Body::from_stream(lines))
        .map_err(|e| Problem::internal(e.to_string()))
}

fn follow(
    pipeline: &Shared,
    log: &Arc<dyn LogSource>,
    wanted: &Wanted,
    lines: &mpsc::Sender<Bytes>,
) {
    let mut at = pipeline.writers.as_read(log).latest();
    while !lines.is_closed() {
        // Whose the partition is may change meanwhile.
        let log = pipeline.writers.as_read(log);
        if !log.wait_past(at, LOOK_AGAIN) {
            continue;
        }
        let to = log.latest();
        if let Err(problem) = scan(&*log, at, to, |event| Ok(show(event, wanted, lines))) {
            tracing::warn!(?problem, partition = log.partition().0, "a tail ended early");
            return;
        }
        at = Offset::max(at, to);
    }
}

fn show(event: &Located<'_>, wanted: &Wanted, lines: &mpsc::Sender<Bytes>) -> Next {
    if !event.is_of(wanted.tenant.as_deref(), wanted.event_type.as_deref()) {
        return Next::Continue;
    }
    // What is in the log is a JSON object that the edge checked; anything else is not shown.
    let Ok(raw) = serde_json::from_slice::<&RawValue>(event.record.raw) else {
        return Next::Continue;
    };
    let verdict = event.record.dead.map_or("accepted", |code| code.as_str());
    let line = Line { facts: event.facts(), verdict, event: raw };
    let Ok(mut text) = serde_json::to_vec(&line) else { return Next::Continue };
    text.push(b'\n');
    match lines.blocking_send(text.into()) {
        Ok(()) => Next::Continue,
        Err(_) => Next::Stop,
    }
}
