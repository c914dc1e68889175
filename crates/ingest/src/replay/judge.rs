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
pub(crate) const OF_THE_VERDICT: &[&str] = &["field", "message", "pii", "source_name"];

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
        let Session { scratch, tenants } = session;
        // Once a batch, not once an event.
        let judging = self.normalizer.as_deref().and_then(|normalizer| {
            let known = tenants.entry(tenant.clone());
            let known = known.or_insert_with(|| self.tenants.get(&tenant).map(|t| lenient(&t)));
            Some((normalizer, known.as_ref()?))
        });
        let mut out =
            Out { frame, view: &view, tenant: &tenant, judging, made: Vec::new(), open: None };
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
            match out.judging.filter(|_| !stays) {
                Some(judging) => out.judge(judging, scratch, &record, offset, lane),
                None => out.put(offset, &as_recorded(&record, lane)),
            }
        }
        out.close();
        Ok(out.made)
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
    /// By whom and for whom; `None`: all stays as it was recorded.
    judging: Option<(&'a Normalizer, &'a Tenant)>,
    made: Vec<SourceFrame>,
    /// The offset of its first event, and what it holds so far.
    open: Option<(Offset, BatchEncoder)>,
}

impl Out<'_> {
    fn judge(
        &mut self,
        (normalizer, tenant): (&Normalizer, &Tenant),
        scratch: &mut Scratch,
        record: &RecordView<'_>,
        offset: Offset,
        lane: &Lane,
    ) {
        let facts = Facts::of(record.note);
        let judged = judge(normalizer, scratch, self.view, record, tenant, &facts);
        let dead = match &judged.verdict {
            Verdict::Accepted => None,
            Verdict::DeadLetter(reason) => Some(reason.code),
            // What could be kept once, and cannot be read by today's limits.
            Verdict::Rejected(_) => return self.put(offset, &as_recorded(record, lane)),
        };
        let note = facts.with(&judged.note);
        self.put(offset, &again(record, &judged, dead, &note));
    }

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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
pub(super) mod tests {
    use proptest::prelude::*;
    use tidegate_event::{EventTime, OffsetRange, ReceivedAt, SchemaRef};

    use super::*;
    use crate::{
        json::ScanLimits,
        normalize::{Schema, SchemaEntry, SchemaStore},
        storage::Disk,
    };

    fn name(text: &str) -> EventType {
        EventType::new(text).unwrap()
    }

    /// One event: its type, whether it was a dead letter, the text of its one field.
    type Event = (&'static str, bool, &'static str);

    pub(in crate::replay) fn frame(base: u64, tenant: &str, events: &[Event]) -> SourceFrame {
        let tenant = TenantId::new(tenant).unwrap();
        let mut encoder = BatchEncoder::new(tenant, "events", ReceivedAt(5), [1; 16], 100);
        for (index, (event_type, dead, value)) in events.iter().enumerate() {
            let index = u32::try_from(index).unwrap();
            let raw = format!("{{\"event_type\":\"{event_type}\",\"n\":{value}}}");
            let note = r#"{"field":"/n","message":"m","source_name":"N","redrive_of":{"a":1}}"#;
            encoder.push(&Record {
                index,
                event_type: &name(event_type),
                schema: SchemaRef::default(),
                client_id: index.is_multiple_of(2).then_some("c"),
                event_time: EventTime(7),
                dead: dead.then_some(Code::TypeMismatch),
                pii_changed: false,
                note: if *dead { note } else { "" },
                raw: raw.as_bytes(),
            });
        }
        let batch = encoder.finish();
        let (base, received_at) = (Offset(base), batch.received_at);
        SourceFrame { base, count: batch.count, received_at, body: batch.body }
    }

    /// Judges as a plan would whose tenant is configured and whose type `a` wants an integer.
    pub(in crate::replay) fn again(
        dir: &std::path::Path,
        selection: Selection,
        judges: bool,
    ) -> Again {
        let store = SchemaStore::open(Arc::new(Disk), dir.join("schemas")).unwrap();
        let schema = br#"{"type":"object","x-version":3,"properties":{"n":{"type":"integer"}}}"#;
        let schema = Arc::new(Schema::parse("a.json", schema).unwrap());
        let entry = SchemaEntry { tenant: None, event_type: name("a"), schema };
        let limits = ScanLimits { depth: 10, fields: 100 };
        let normalizer = Normalizer::pinned(vec![entry], false, Arc::new(store), limits);
        let clock = Arc::new(crate::clock::SystemClock);
        let tenants = Tenants::load(&dir.join("tenants"), crate::tenants::Quota::default(), clock);
        let tenants = Arc::new(tenants.unwrap().with_dev("tgk_dev"));
        let normalizer = judges.then(|| Arc::new(normalizer));
        Again { normalizer, tenants, selection, kept_dead: Vec::new() }
    }

    /// Each event of the frames: offset, type, dead or not, schema version, client's id, note, bytes.
    type Seen = (u64, String, bool, i32, Option<String>, String, Vec<u8>);

    fn seen(frames: &[SourceFrame]) -> Vec<Seen> {
        let mut all = Vec::new();
        for frame in frames {
            let view = BatchView::parse(&frame.body).unwrap();
            assert_eq!((view.count, view.base_id, view.received_at.0), (frame.count, [1; 16], 5));
            for record in view.records() {
                let r = record.unwrap();
                let offset = r.offset(frame.base).0;
                let id = r.client_id.map(str::to_owned);
                let version = r.kind.schema.version;
                let (name, note) = (r.kind.name.to_owned(), r.note.to_owned());
                all.push((offset, name, r.dead.is_some(), version, id, note, r.raw.to_vec()));
            }
        }
        all
    }

    fn all(again: &Again, frame: &SourceFrame, window: (u64, u64)) -> Vec<Seen> {
        let window = (Offset(window.0), Offset(window.1));
        let frames = again.frames(&mut Session::default(), Partition(0), frame, window);
        seen(&frames.unwrap())
    }

    #[test]
    fn verdicts_are_made_anew_and_who_an_event_is_stays() {
        let dir = tempfile::tempdir().unwrap();
        let events = [("a", true, "1"), ("a", false, "\"x\""), ("b", false, "2"), ("b", true, "3")];
        let frame = frame(10, "dev", &events);
        let judged = all(&again(dir.path(), Selection::default(), true), &frame, (0, 100));
        let brief: Vec<_> = judged.iter().map(|e| (e.0, e.1.as_str(), e.2, e.3)).collect();
        // `a` by its schema, `b` has none: what was dead for another reason is accepted now.
        let wanted =
            [(10, "a", false, 3), (11, "a", true, 3), (12, "b", false, 0), (13, "b", false, 0)];
        assert_eq!(brief, wanted);
        let ids: Vec<_> = judged.iter().map(|e| e.4.as_deref()).collect();
        assert_eq!(ids, [Some("c"), None, Some("c"), None]);
        let [first, second, ..] = judged.as_slice() else { panic!("{judged:?}") };
        // What a verdict has no say in stays noted, what it said before does not.
        let note: Map<String, Value> = serde_json::from_str(&first.5).unwrap();
        let names: Vec<_> = note.keys().map(String::as_str).collect();
        assert_eq!(names, ["source_name", "redrive_of"]);
        let note: Map<String, Value> = serde_json::from_str(&second.5).unwrap();
        assert_eq!(note.get("field").and_then(Value::as_str), Some("/n"));
    }

    #[test]
    fn what_is_kept_dead_and_whose_tenant_is_gone_stay_as_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let events = [("a", true, "1"), ("a", true, "2")];
        let mut again = again(dir.path(), Selection::default(), true);
        let range = OffsetRange::new(Offset(11), Offset(12)).unwrap();
        again.kept_dead = vec![KeptDead { partition: Partition(0), offsets: vec![range] }];
        let judged = all(&again, &frame(10, "dev", &events), (0, 100));
        assert_eq!(judged.iter().map(|e| e.2).collect::<Vec<_>>(), [false, true]);
        let gone = frame(10, "gone", &events);
        let judged = all(&again, &gone, (0, 100));
        again.normalizer = None;
        assert_eq!(judged, all(&again, &gone, (0, 100)));
    }

    proptest! {
        #[test]
        fn exactly_the_selected_offsets_of_the_window_come_and_from_any_cut_the_same(
            events in prop::collection::vec((prop::sample::select(vec!["a", "b", "c"]), any::<bool>(),
                prop::sample::select(vec!["1", "\"x\""])), 1..30),
            from in 0u64..40, length in 0u64..40, cut in 0u64..80, dead in any::<bool>(),
            types in prop::sample::subsequence(vec!["a", "b", "c"], 0..3), judges in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let selection = Selection {
                event_types: types.iter().map(|t| name(t)).collect(),
                dead_letters_only: dead,
                ..Selection::default()
            };
            let again = again(dir.path(), selection, judges);
            let frame = frame(10, "dev", &events);
            let (to, cut) = (from + length, from + cut.min(length));
            let whole = all(&again, &frame, (from, to));
            let wanted = events.iter().zip(10u64..).filter(|((kind, was_dead, _), offset)| {
                (from..to).contains(offset) && (types.is_empty() || types.contains(kind))
                    && (*was_dead || !dead)
            });
            let wanted: Vec<_> = wanted.map(|(_, offset)| offset).collect();
            let offsets: Vec<_> = whole.iter().map(|event| event.0).collect();
            prop_assert_eq!(offsets, wanted);
            let mut parts = all(&again, &frame, (from, cut));
            parts.extend(all(&again, &frame, (cut, to)));
            prop_assert_eq!(parts, whole);
        }
    }
}
