//! Judges what the log holds again, by the schemas that a plan pins.

use std::{collections::HashMap, sync::Arc};

use serde_json::{Map, Value};
use tidegate_event::{
    BatchEncoder, BatchView, Code, EventType, Offset, Partition, RecordView, TenantId,
    record::{DecodeError, EncodedBatch, Record, TypeView},
};

use super::{KeptDead, Selection};
use crate::{
    normalize::{Item, ItemTime, JudgeContext, Judged, Normalizer, Scratch, Verdict, reserved_in},
    sink::{Lane, source::SourceFrame},
    tenants::{Tenant, Tenants},
};

/// What a plan makes of an event.
pub struct Again {
    /// By which schemas; `None`: all stays as it was recorded.
    pub normalizer: Option<Arc<Normalizer>>,
    /// Whose events: the rules and secrets of a tenant that is configured now.
    pub tenants: Arc<Tenants>,
    /// Which events.
    pub selection: Selection,
    /// Those that stay dead letters.
    pub kept_dead: Vec<KeptDead>,
}

/// One reader's memory.
#[derive(Default)]
pub struct Session {
    scratch: Scratch,
    /// Tenants as a replay judges for them: nothing that was kept is rejected.
    tenants: HashMap<TenantId, Option<Tenant>>,
}

/// The note's members that a verdict writes anew; all others stay.
const OF_THE_VERDICT: &[&str] = &["field", "message", "pii", "source_name"];

impl Again {
    /// The selected events of `frame` within `[from, to)`, judged again: each stretch of offsets without
    /// a gap is a frame of its own, with the offsets, times and ids that were recorded.
    ///
    /// # Errors
    /// [`DecodeError`] for a frame that is no batch.
    pub fn frames(
        &self,
        session: &mut Session,
        partition: Partition,
        frame: &SourceFrame,
        (from, to): (Offset, Offset),
    ) -> Result<Vec<SourceFrame>, DecodeError> {
        let view = BatchView::parse(&frame.body)?;
        let tenant = TenantId::new(view.tenant).map_err(|_| DecodeError("no tenant's name"))?;
        let lanes = lanes(&view, &tenant)?;
        let kept = self.kept_dead.iter().find(|kept| kept.partition == partition);
        let whole = from <= frame.base && frame.end() <= to && self.selection.is_all();
        if whole && self.normalizer.is_none() {
            return Ok(vec![frame.clone()]);
        }
        let mut out = Out { frame, view: &view, tenant: &tenant, made: Vec::new(), open: None };
        for record in view.records() {
            let record = record?;
            let offset = record.offset(frame.base);
            let [live, dead] = lanes.get(record.type_index).ok_or(DecodeError("unknown type"))?;
            let lane = if record.dead.is_some() { dead } else { live };
            if offset < from || to <= offset || !self.selection.takes(lane) {
                out.close();
                continue;
            }
            let stays = kept.is_some_and(|kept| kept.has(offset));
            self.put(session, &mut out, &record, offset, lane, stays);
        }
        out.close();
        Ok(out.made)
    }

    fn put(
        &self,
        session: &mut Session,
        out: &mut Out<'_>,
        record: &RecordView<'_>,
        offset: Offset,
        lane: &Lane,
        stays: bool,
    ) {
        let tenant = match (&self.normalizer, stays) {
            (Some(_), false) => session
                .tenants
                .entry(out.tenant.clone())
                .or_insert_with_key(|id| self.tenants.get(id).map(|tenant| lenient(&tenant)))
                .as_ref(),
            _ => None,
        };
        let (Some(normalizer), Some(tenant)) = (&self.normalizer, tenant) else {
            return out.put(offset, &as_recorded(record, lane));
        };
        let facts = Facts::of(record.note);
        let judged = judge(normalizer, &mut session.scratch, out.view, record, tenant, &facts);
        let dead = match &judged.verdict {
            Verdict::Accepted => None,
            Verdict::DeadLetter(reason) => Some(reason.code),
            // What could be kept once, and cannot be read by today's limits.
            Verdict::Rejected(_) => return out.put(offset, &as_recorded(record, lane)),
        };
        let note = facts.with(&judged.note);
        out.put(offset, &again(record, &judged, dead, &note));
    }
}

/// Every lane that the events of a batch can be of: by type, accepted and dead.
fn lanes(view: &BatchView<'_>, tenant: &TenantId) -> Result<Vec<[Lane; 2]>, DecodeError> {
    let lanes = |kind: &TypeView<'_>| {
        let event_type = EventType::new(kind.name);
        let event_type = event_type.map_err(|_| DecodeError("no event type's name"))?;
        let lane = |dead| Lane { tenant: tenant.clone(), event_type: event_type.clone(), dead };
        Ok([lane(false), lane(true)])
    };
    view.types.iter().map(lanes).collect()
}

/// The tenant, for whom invalid events are kept.
fn lenient(tenant: &Tenant) -> Tenant {
    Tenant { strict: false, ..tenant.clone() }
}

fn as_recorded<'a>(record: &RecordView<'a>, lane: &'a Lane) -> Record<'a> {
    Record {
        index: record.index,
        event_type: &lane.event_type,
        schema: record.kind.schema,
        client_id: record.client_id,
        event_time: record.event_time,
        dead: record.dead,
        pii_changed: record.pii_changed,
        note: record.note,
        raw: record.raw,
    }
}

/// The record as it is judged now. Who it is (its id) stays what was recorded.
fn again<'a>(
    record: &RecordView<'a>,
    judged: &'a Judged<'_>,
    dead: Option<Code>,
    note: &'a str,
) -> Record<'a> {
    Record {
        index: record.index,
        event_type: &judged.event_type,
        schema: judged.schema,
        client_id: record.client_id,
        event_time: judged.event_time,
        dead,
        pii_changed: judged.pii_changed || record.pii_changed,
        note,
        raw: &judged.raw,
    }
}

fn judge<'s>(
    normalizer: &Normalizer,
    scratch: &mut Scratch,
    view: &BatchView<'s>,
    record: &RecordView<'s>,
    tenant: &'s Tenant,
    facts: &'s Facts,
) -> Judged<'s> {
    let reserved = reserved_in(view.protocol);
    let named = record.kind.name != EventType::UNNAMED;
    let item = Item {
        raw: record.raw,
        event_type: named.then_some(record.kind.name),
        event_id: record.client_id,
        event_time: match reserved {
            true => ItemTime::None,
            false => ItemTime::Micros(record.event_time.0),
        },
        reserved,
        source_name: facts.source_name.as_deref(),
        map_names: false,
    };
    let context = JudgeContext { tenant, received_at: view.received_at, key_types: None };
    normalizer.judge_again(&context, &item, &facts.pii, scratch)
}

/// What a record's note says that a verdict does not find out.
#[derive(Default)]
struct Facts {
    source_name: Option<String>,
    /// The fields that a rule for personal data changed when the event came in.
    pii: Vec<String>,
    /// All that a verdict has no say in.
    others: Map<String, Value>,
}

impl Facts {
    fn of(note: &str) -> Self {
        // Most events have none.
        if note.is_empty() {
            return Self::default();
        }
        let mut note: Map<String, Value> = serde_json::from_str(note).unwrap_or_default();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let source_name = note.get("source_name").and_then(text);
        let pii = note.get("pii").and_then(Value::as_array);
        let pii = pii.into_iter().flatten().filter_map(text).collect();
        note.retain(|name, _| !OF_THE_VERDICT.contains(&name.as_str()));
        Self { source_name, pii, others: note }
    }

    /// The note of a verdict, and what else there was to be known.
    fn with(&self, judged: &str) -> String {
        if self.others.is_empty() {
            return judged.to_owned();
        }
        let mut note: Map<String, Value> = serde_json::from_str(judged).unwrap_or_default();
        note.extend(self.others.clone());
        Value::Object(note).to_string()
    }
}

/// Frames as they are made.
struct Out<'a> {
    frame: &'a SourceFrame,
    view: &'a BatchView<'a>,
    tenant: &'a TenantId,
    made: Vec<SourceFrame>,
    /// The offset of its first event, and what it holds so far.
    open: Option<(Offset, BatchEncoder)>,
}

impl Out<'_> {
    fn put(&mut self, offset: Offset, record: &Record<'_>) {
        let (_, encoder) = self.open.get_or_insert_with(|| {
            let (view, capacity) = (self.view, self.frame.body.len());
            let tenant = self.tenant.clone();
            let at = view.received_at;
            (offset, BatchEncoder::new(tenant, view.protocol, at, view.base_id, capacity))
        });
        encoder.push(record);
    }

    fn close(&mut self) {
        let Some((base, encoder)) = self.open.take() else { return };
        let EncodedBatch { count, body, .. } = encoder.finish();
        self.made.push(SourceFrame { base, count, received_at: self.frame.received_at, body });
    }
}
