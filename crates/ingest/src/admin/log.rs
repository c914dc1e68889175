//! Damage of the log: what is known, its bytes, who acknowledged it; and looking for more.

use std::{
    io,
    time::{Duration, Instant},
};

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State},
    response::Response,
};
use bytes::Bytes;
use futures_util::stream;
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tidegate_event::{Offset, Partition};
use tokio::sync::mpsc;

use super::{
    Problem, Shared,
    lines::{Lines, follow},
    records::time_text,
};
use crate::log::{
    AcknowledgeError, LogHandle, QuarantineTotals, ReadError, Stretch, Verified, Verifier,
    read_some,
};

/// Stretches that `status` names.
const NAMED: usize = 5;
/// How often a verification tells how far it is.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// Verified at once; then others have their turn.
const TURN_BYTES: u64 = 4 << 20;
/// A turn of others is as long as ours was, and at most this.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Bytes of damage sent at once.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces that may wait for a slow reader; then the work waits.
const WAITING: usize = 4;

/// A stretch for people and programs.
pub(crate) fn shown(partition: Partition, stretch: &Stretch) -> Value {
    let acknowledged = stretch
        .acknowledged
        .as_ref()
        .map(|done| json!({ "at": time_text(done.at.0), "by": done.by, "reason": done.reason }));
    json!({
        "partition": partition,
        "from": stretch.range.from(),
        "to": stretch.range.to(),
        "events": stretch.range.count(),
        "segment": format!("partition-{partition}/{:020}.seg", stretch.segment.0),
        "position": stretch.position,
        "bytes": stretch.bytes,
        "seen_at": time_text(stretch.seen_at.0),
        "seen_by": stretch.seen_by.as_str(),
        "acknowledged": acknowledged,
    })
}

/// What a verification found, for people and programs.
pub(crate) fn report(found: &Verified) -> Value {
    let again: Vec<Value> = found
        .whole_again
        .iter()
        .map(|range| json!({ "from": range.from(), "to": range.to() }))
        .collect();
    json!({
        "partition": found.partition,
        "from": found.from,
        "to": found.to,
        "segments": found.segments,
        "frames": found.frames,
        "events": found.events,
        "bytes": found.bytes,
        "whole": found.is_whole(),
        "damaged_events": found.damaged_events,
        "damaged": found.damaged.iter().map(|s| shown(found.partition, s)).collect::<Vec<_>>(),
        "whole_again": again,
        "torn_bytes": found.torn_bytes,
        "notes": found.notes,
    })
}

fn totals(logs: &[LogHandle]) -> QuarantineTotals {
    logs.iter().map(LogHandle::quarantine_totals).fold(QuarantineTotals::default(), |sum, one| {
        QuarantineTotals {
            stretches: sum.stretches + one.stretches,
            events: sum.events + one.events,
            open_stretches: sum.open_stretches + one.open_stretches,
            open_events: sum.open_events + one.open_events,
            is_full: sum.is_full || one.is_full,
        }
    })
}

fn counted(totals: &QuarantineTotals) -> Value {
    json!({
        "stretches": totals.stretches,
        "events": totals.events,
        "open_stretches": totals.open_stretches,
        "open_events": totals.open_events,
        "more_than_recorded": totals.is_full,
    })
}

/// For `status`: the numbers and the first that wait for an operator; true where there are such.
pub(super) fn summary(logs: &[LogHandle]) -> (Value, bool) {
    let totals = totals(logs);
    let mut summary = counted(&totals);
    let damaged = totals.open_stretches > 0;
    if damaged && let Value::Object(summary) = &mut summary {
        let open = stretches(logs).into_iter().filter(|(_, s)| s.acknowledged.is_none());
        let first: Vec<Value> = open.take(NAMED).map(|(p, s)| shown(p, &s)).collect();
        summary.insert("first_open".to_owned(), first.into());
    }
    (summary, damaged)
}

fn stretches(logs: &[LogHandle]) -> Vec<(Partition, Stretch)> {
    let of = |log: &LogHandle| {
        let partition = log.partition();
        log.quarantined().into_iter().map(move |stretch| (partition, stretch))
    };
    logs.iter().flat_map(of).collect()
}

/// What concerns segment files is not for a log that has none.
fn own(pipeline: &Shared) -> Result<(), Problem> {
    if !pipeline.embedded.is_empty() {
        return Ok(());
    }
    let detail = "the log is Kafka's: it keeps copies and checks each batch itself; look at it with \
                  kafka-log-dirs, kafka-dump-log and kafka-topics --describe (docs/kafka.md)";
    Err(Problem::new(StatusCode::CONFLICT, "log_is_kafkas", detail))
}

pub(super) async fn list(State(pipeline): State<Shared>) -> Result<Json<Value>, Problem> {
    own(&pipeline)?;
    let mut answer = counted(&totals(&pipeline.embedded));
    let all: Vec<Value> = stretches(&pipeline.embedded).iter().map(|(p, s)| shown(*p, s)).collect();
    if let Value::Object(answer) = &mut answer {
        answer.insert("quarantine".to_owned(), all.into());
    }
    Ok(Json(answer))
}

fn find(pipeline: &Shared, partition: u32, offset: u64) -> Result<(&LogHandle, Stretch), Problem> {
    own(pipeline)?;
    let log = pipeline.embedded.iter().find(|log| log.partition() == Partition(partition));
    let log = log.ok_or_else(|| Problem::not_found(format!("no partition {partition}")))?;
    let holds = |stretch: &Stretch| stretch.range.contains(Offset(offset));
    let found = log.quarantined().into_iter().find(holds);
    let unknown = || {
        let detail = format!("no damage is known at partition {partition}, offset {offset}");
        Problem::not_found(detail)
    };
    Ok((log, found.ok_or_else(unknown)?))
}

pub(super) async fn show(
    State(pipeline): State<Shared>,
    Path((partition, offset)): Path<(u32, u64)>,
) -> Result<Json<Value>, Problem> {
    let (_, stretch) = find(&pipeline, partition, offset)?;
    Ok(Json(shown(Partition(partition), &stretch)))
}

/// The damaged bytes as they lie on the disk.
pub(super) async fn bytes(
    State(pipeline): State<Shared>,
    Path((partition, offset)): Path<(u32, u64)>,
) -> Result<Response, Problem> {
    let (log, stretch) = find(&pipeline, partition, offset)?;
    let log = log.clone();
    let fault = |e: &io::Error| Problem::internal(format!("the damage cannot be read: {e}"));
    let length = stretch.bytes;
    let (pieces, received) = mpsc::channel::<Result<Bytes, io::Error>>(WAITING);
    let opening = tokio::task::spawn_blocking(move || {
        let file = log.segment_of(&stretch)?;
        // Read on a thread of its own, piece by piece as the other side takes them.
        std::thread::Builder::new().name("damage".to_owned()).spawn(move || {
            let (mut at, end) = (stretch.position, stretch.position + stretch.bytes);
            while at < end {
                let want = usize::try_from(end - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
                let piece = match read_some(&*file, at, want) {
                    Ok(some) if some.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
                    read => read,
                };
                at += piece.as_ref().map_or(0, |some| some.len() as u64);
                let failed = piece.is_err();
                if pieces.blocking_send(piece.map(Bytes::from)).is_err() || failed {
                    return;
                }
            }
        })
    });
    opening.await.map_err(|e| Problem::internal(e.to_string()))?.map_err(|e| fault(&e))?;
    let pieces = stream::unfold(received, async |mut received| {
        let piece = received.recv().await?;
        Some((piece, received))
    });
    Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, length)
        .body(Body::from_stream(pieces))
        .map_err(|e| Problem::internal(e.to_string()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rest {
    /// Those that hold these offsets.
    #[serde(default)]
    stretches: Vec<Place>,
    /// Every one that is open.
    #[serde(default)]
    all: bool,
    by: String,
    reason: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    partition: u32,
    offset: u64,
}

pub(super) async fn acknowledge(
    State(pipeline): State<Shared>,
    Json(wanted): Json<Rest>,
) -> Result<Json<Value>, Problem> {
    if wanted.all != wanted.stretches.is_empty() {
        return Err(Problem::bad_request("say which: stretches, or all"));
    }
    let work = move || rest(&pipeline, &wanted);
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Problem::internal(e.to_string()))?.map(Json)
}

fn rest(pipeline: &Shared, wanted: &Rest) -> Result<Value, Problem> {
    own(pipeline)?;
    let mut places = Vec::new();
    for place in &wanted.stretches {
        let (_, stretch) = find(pipeline, place.partition, place.offset)?;
        places.push((Partition(place.partition), stretch.range.from()));
    }
    if wanted.all {
        let open =
            stretches(&pipeline.embedded).into_iter().filter(|(_, s)| s.acknowledged.is_none());
        places.extend(open.map(|(partition, stretch)| (partition, stretch.range.from())));
    }
    let mut rested = Vec::new();
    for log in &pipeline.embedded {
        let partition = log.partition();
        let own: Vec<Offset> =
            places.iter().filter(|(p, _)| *p == partition).map(|(_, from)| *from).collect();
        let done = log.acknowledge(&own, &wanted.by, &wanted.reason).map_err(|e| match e {
            AcknowledgeError::Unknown(_) => Problem::not_found(e.to_string()),
            AcknowledgeError::Text(_) => Problem::bad_request(e.to_string()),
            AcknowledgeError::Storage(cause) => {
                let detail = format!("not acknowledged: the record cannot be written: {cause}");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "storage", detail)
            }
        })?;
        rested.extend(done.iter().map(|stretch| shown(partition, stretch)));
    }
    let mut answer = counted(&totals(&pipeline.embedded));
    if let Value::Object(answer) = &mut answer {
        answer.insert("acknowledged".to_owned(), rested.into());
    }
    Ok(answer)
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    partition: Option<u32>,
    from: Option<u64>,
    to: Option<u64>,
    bytes_per_second: Option<u64>,
}

/// Verifies the log, telling how far it is as NDJSON; the last line is the report.
pub(super) async fn verify(
    State(pipeline): State<Shared>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    own(&pipeline)?;
    let asked = |log: &&LogHandle| wanted.partition.is_none_or(|p| log.partition() == Partition(p));
    let logs: Vec<LogHandle> = pipeline.embedded.iter().filter(asked).cloned().collect();
    if logs.is_empty() {
        return Err(Problem::not_found("no such partition"));
    }
    if wanted.bytes_per_second == Some(0) {
        return Err(Problem::bad_request("bytes_per_second must be more than 0"));
    }
    follow("verify", move |lines| verify_all(&logs, &wanted, lines))
}

fn verify_all(logs: &[LogHandle], wanted: &Wanted, lines: &Lines) {
    let (from, to) = (Offset(wanted.from.unwrap_or(0)), Offset(wanted.to.unwrap_or(u64::MAX)));
    let ahead = |log: &LogHandle| {
        log.bytes_since(from.max(log.earliest())).saturating_sub(log.bytes_since(to))
    };
    let mut pace = Pace::new(wanted.bytes_per_second, logs.iter().map(ahead).sum());
    let mut reports = Vec::new();
    for log in logs {
        let found = log.verify(from, to).and_then(|work| verify_one(work, &mut pace, lines));
        match found {
            Ok(Some(found)) => {
                pace.before += found.bytes;
                reports.push(report(&found));
            }
            Ok(None) => return,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let why = cause.map_or_else(|| error.to_string(), |c| format!("{error}: {c}"));
                tracing::error!(partition = log.partition().0, why, "the log cannot be verified");
                lines.tell(&json!({ "failed": why }));
                return;
            }
        }
    }
    let whole = reports.iter().all(|report| report.get("whole") == Some(&Value::Bool(true)));
    lines.tell(&json!({ "whole": whole, "partitions": reports }));
}

/// `None` where nobody listens any more.
fn verify_one(
    mut work: Verifier,
    pace: &mut Pace,
    lines: &Lines,
) -> Result<Option<Verified>, ReadError> {
    while work.step()? {
        let found = work.so_far();
        let bytes = pace.before + found.bytes;
        loop {
            let is_due = pace.wait_for(bytes);
            let told = !pace.should_tell()
                || lines.tell(&json!({ "progress": {
                    "partition": found.partition,
                    "offset": work.position(),
                    "to": found.to,
                    "bytes": bytes,
                    "bytes_total": pace.total.max(bytes),
                    "events": found.events,
                    "damaged_events": found.damaged_events,
                }}));
            if !told {
                return Ok(None);
            }
            if is_due {
                break;
            }
        }
    }
    Ok(Some(work.finish()))
}

/// Keeps a verification from taking the disk from those who live on it.
struct Pace {
    bytes_per_second: Option<u64>,
    /// Bytes of partitions before this one.
    before: u64,
    total: u64,
    started: Instant,
    told: Instant,
    turn: (Instant, u64),
}

impl Pace {
    fn new(bytes_per_second: Option<u64>, total: u64) -> Self {
        let now = Instant::now();
        Self { bytes_per_second, before: 0, total, started: now, told: now, turn: (now, 0) }
    }

    /// Waits a little where `bytes` are too many for the time that went by; true where they are not.
    fn wait_for(&mut self, bytes: u64) -> bool {
        if let Some(rate) = self.bytes_per_second {
            let micros = u128::from(bytes) * 1_000_000 / u128::from(rate.max(1));
            let due = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
            let left = due.saturating_sub(self.started.elapsed());
            std::thread::sleep(left.min(TELL_EVERY));
            return left <= TELL_EVERY;
        }
        if self.turn.1 + TURN_BYTES <= bytes {
            std::thread::sleep(self.turn.0.elapsed().min(PAUSE_MAX));
            self.turn = (Instant::now(), bytes);
        }
        true
    }

    fn should_tell(&mut self) -> bool {
        let due = TELL_EVERY <= self.told.elapsed();
        if due {
            self.told = Instant::now();
        }
        due
    }
}
