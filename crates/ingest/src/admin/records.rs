//! Reads the log for people: events and dead letters as JSON.

use serde_json::{Map, Value, json};
use tidegate_event::{BatchView, Offset, OffsetRange, Partition, RecordView};

use super::Problem;
use crate::sink::source::{LogSource, SourceEntry};

/// One event of the log and where it lies.
pub(super) struct Located<'a> {
    pub partition: Partition,
    pub offset: Offset,
    pub batch: &'a BatchView<'a>,
    pub record: RecordView<'a>,
}

/// What a reader of the log wants next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Continue,
    Stop,
}

/// Reads `[from, to)` of one partition, event by event. Damaged stretches are passed over: the books
/// count them.
pub(super) fn scan(
    log: &dyn LogSource,
    from: Offset,
    to: Offset,
    visit: impl FnMut(&Located<'_>) -> Result<Next, Problem>,
) -> Result<(), Problem> {
    scan_all(log, from, to, |_| (), visit)
}

/// The same, and `empty` is told of the offsets that never were an event's.
pub(super) fn scan_all(
    log: &dyn LogSource,
    from: Offset,
    to: Offset,
    mut empty: impl FnMut(OffsetRange),
    mut visit: impl FnMut(&Located<'_>) -> Result<Next, Problem>,
) -> Result<(), Problem> {
    let fault =
        |e: &dyn std::fmt::Display| Problem::internal(format!("the log could not be read: {e}"));
    let from = from.max(log.earliest());
    if to <= from {
        return Ok(());
    }
    let mut reader = log.read_from(from).map_err(|e| fault(&e))?;
    let mut at = from;
    while at < to {
        let frame = match reader.next().map_err(|e| fault(&e))? {
            None => break,
            Some(SourceEntry::Frame(frame)) => frame,
            Some(SourceEntry::Quarantined(range)) => {
                at = range.to();
                continue;
            }
            Some(SourceEntry::Empty(range)) => {
                empty(range);
                at = range.to();
                continue;
            }
        };
        at = frame.end();
        if frame.base >= to {
            break;
        }
        let batch = BatchView::parse(&frame.body).map_err(|e| fault(&e))?;
        for record in batch.records() {
            let record = record.map_err(|e| fault(&e))?;
            let offset = record.offset(frame.base);
            if offset < from {
                continue;
            }
            if offset >= to {
                return Ok(());
            }
            let located = Located { partition: log.partition(), offset, batch: &batch, record };
            if visit(&located)? == Next::Stop {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Microseconds since 1970 as RFC 3339; the number itself where no calendar reaches.
pub(super) fn time_text(micros: i64) -> String {
    jiff::Timestamp::from_microsecond(micros)
        .map_or_else(|_| micros.to_string(), |t| format!("{t:.6}"))
}

impl Located<'_> {
    /// What is known of it beside its bytes.
    pub fn facts(&self) -> Map<String, Value> {
        let mut facts = Map::new();
        let mut put = |name: &str, value: Value| facts.insert(name.to_owned(), value);
        put("partition", self.partition.0.into());
        put("offset", self.offset.0.into());
        put("tenant", self.batch.tenant.into());
        put("event_type", self.record.kind.name.into());
        put("event_id", self.record.event_id(&self.batch.base_id).into());
        put("event_time", time_text(self.record.event_time.0).into());
        put("received_at", time_text(self.batch.received_at.0).into());
        put("protocol", self.batch.protocol.into());
        facts
    }

    /// The record's note as JSON; empty for none.
    pub fn note(&self) -> Map<String, Value> {
        serde_json::from_str(self.record.note).unwrap_or_default()
    }

    /// A dead letter's code, field and message beside its facts.
    pub fn dead_letter(&self) -> Map<String, Value> {
        let mut facts = self.facts();
        let note = self.note();
        let code = self.record.dead.map_or("accepted", |code| code.as_str());
        facts.insert("code".to_owned(), code.into());
        for name in ["field", "message"] {
            facts.insert(name.to_owned(), note.get(name).cloned().unwrap_or(json!("")));
        }
        facts
    }

    /// True when it is of `tenant` and `event_type`, where those are given.
    pub fn is_of(&self, tenant: Option<&str>, event_type: Option<&str>) -> bool {
        tenant.is_none_or(|t| t == self.batch.tenant)
            && event_type.is_none_or(|e| e == self.record.kind.name)
    }
}
