//! Judges dead letters again by today's schemas; those that are valid now become new events, each
//! linked to the old one by its note.

use std::sync::Arc;

use serde_json::{Map, Value};
use tidegate_event::{
    BatchEncoder, BatchView, EventType, RecordView,
    record::{Record, base_id},
};

use super::Pipeline;
use crate::{
    normalize::{Item, ItemTime, JudgeContext, Judged, Scratch, Verdict, reserved_in},
    replay::OF_THE_VERDICT,
    tenants::Tenant,
};

/// One dead letter, out of the log.
pub struct Letter {
    raw: Vec<u8>,
    event_type: Option<String>,
    event_id: String,
    event_time: i64,
    pii_changed: bool,
    origin: Value,
    /// The fields that a personal-data rule changed when it came in.
    pii: Vec<String>,
    /// The name its type had before it was made to fit.
    source_name: Option<String>,
    /// All else its note says that a verdict has no say in.
    others: Map<String, Value>,
}

/// What became of them.
pub struct Outcome {
    /// Valid now, and appended.
    pub accepted: u64,
    /// Not valid now either.
    pub dead_lettered: u64,
}

impl Letter {
    /// Takes a copy of `record`; `origin` is where it lies, kept in the new event's note.
    #[must_use]
    pub fn of(batch: &BatchView<'_>, record: &RecordView<'_>, origin: Value) -> Self {
        let named = record.kind.name != EventType::UNNAMED;
        let mut note: Map<String, Value> = serde_json::from_str(record.note).unwrap_or_default();
        let pii = note.get("pii").map(strings).unwrap_or_default();
        let source_name = note.get("source_name").and_then(Value::as_str).map(str::to_owned);
        note.retain(|name, _| !OF_THE_VERDICT.contains(&name.as_str()));
        Self {
            raw: record.raw.to_vec(),
            event_type: named.then(|| record.kind.name.to_owned()),
            event_id: record.event_id(&batch.base_id).into_owned(),
            event_time: record.event_time.0,
            pii_changed: record.pii_changed,
            origin,
            pii,
            source_name,
            others: note,
        }
    }
}

impl Letter {
    /// What the new event's note says: as judged, and where the event came from.
    fn note(&self, judged: &Judged<'_>) -> String {
        let anew: Map<String, Value> = serde_json::from_str(&judged.note).unwrap_or_default();
        let mut note = self.others.clone();
        note.extend(anew);
        note.insert("redrive_of".to_owned(), self.origin.clone());
        if !self.pii.is_empty() {
            note.insert("pii".to_owned(), self.pii.clone().into());
        }
        Value::Object(note).to_string()
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// Appends those of `letters` that are valid by today's schemas as one batch of `tenant`, durably,
/// under the protocol they came by. The others are left as they are.
///
/// # Errors
/// Why the log did not take them; none was appended.
pub async fn append(
    pipeline: &Arc<Pipeline>,
    tenant: &Arc<Tenant>,
    protocol: &str,
    letters: Vec<Letter>,
) -> Result<Outcome, String> {
    let received_at = pipeline.clock.now();
    let base = base_id(*uuid::Uuid::now_v7().as_bytes());
    let bytes = letters.iter().map(|l| l.raw.len() + 64).sum();
    let mut batch = BatchEncoder::new(tenant.id.clone(), protocol, received_at, base, bytes);
    let mut scratch = Scratch::default();
    let reserved = reserved_in(protocol);
    let mut dead_lettered = 0;
    for letter in &letters {
        let context = JudgeContext { tenant, received_at, key_types: None };
        let event_time = match reserved {
            true => ItemTime::None,
            false => ItemTime::Micros(letter.event_time),
        };
        let item = Item {
            raw: &letter.raw,
            event_type: letter.event_type.as_deref(),
            event_id: Some(&letter.event_id),
            event_time,
            reserved,
            source_name: letter.source_name.as_deref(),
            map_names: false,
        };
        let judged = pipeline.normalizer.judge_again(&context, &item, &letter.pii, &mut scratch);
        if judged.verdict != Verdict::Accepted {
            dead_lettered += 1;
            continue;
        }
        let note = letter.note(&judged);
        batch.push(&Record {
            index: batch.count(),
            event_type: &judged.event_type,
            schema: judged.schema,
            client_id: Some(&letter.event_id),
            event_time: judged.event_time,
            dead: None,
            pii_changed: judged.pii_changed || letter.pii_changed,
            note: &note,
            raw: &judged.raw,
        });
    }
    let accepted = batch.count().into();
    if accepted == 0 {
        return Ok(Outcome { accepted, dead_lettered });
    }
    let mut batch = batch.finish();
    // These ids are known to the log: the dead letters themselves brought them.
    batch.bypass_dedup = true;
    let counted = batch.tallies.iter().map(|t| (t.event_type.clone(), t.accepted));
    let entry = pipeline.books.open(&tenant.id, received_at, counted.collect());
    pipeline.writers.append(batch, entry).await.map_err(|e| e.to_string())?;
    Ok(Outcome { accepted, dead_lettered })
}
