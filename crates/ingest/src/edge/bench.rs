//! Where the items of one request are sorted: judged, encoded, counted. On the edge's thread, or in a
//! normalizer of its own for an edge elsewhere.

use std::{collections::HashMap, ops::ControlFlow};

use tidegate_event::{
    BatchEncoder, Code, EncodedBatch, EventType, Reason, TenantId, record::Record,
    record::generated_id,
};

use super::{
    answer::{ItemError, Refusal},
    judge::Judge,
    problem::Problem,
    protocol::{Arrived, DecodeFault, Found, Place},
};
use crate::{
    books::ByReason,
    budget::{Full, Permit, Share},
    faults::{Bug, planted},
    normalize::{Item, JudgeContext, Judged, Verdict, unreadable},
    quota,
};

/// How many kinds of (type, schema) one batch can hold.
const KINDS_MAX: usize = 65_535;

/// Bytes that one more event type costs while its request is worked on, about.
const KIND_BYTES: usize = 512;

/// Bytes taken from the budget at once while a batch grows: as many as it has, within these.
const STEP_BYTES: (u64, u64) = (4 << 10, 256 << 10);

/// Which event types a tenant may name.
pub(crate) trait TypeGate {
    /// True where it has named this type before.
    fn knows(&self, event_type: &EventType) -> bool;
    /// True where it has, or may name one more, which it now has.
    fn take(&self, event_type: &EventType) -> bool;
    /// How many it may name.
    fn most(&self) -> u64;
}

impl TypeGate for quota::Types {
    fn knows(&self, event_type: &EventType) -> bool {
        Self::knows(self, event_type)
    }
    fn take(&self, event_type: &EventType) -> bool {
        Self::take(self, event_type)
    }
    fn most(&self) -> u64 {
        Self::most(self)
    }
}

/// The items of one type in one body.
#[derive(Default)]
pub(crate) struct Items {
    /// All of them.
    pub received: u64,
    /// Those that cannot be kept, by reason.
    pub rejected: ByReason<Code>,
}

/// What the rejected items of a body have in common.
#[derive(Clone, Debug)]
pub(crate) struct Nothing {
    pub problem: Problem,
    pub detail: String,
}

impl Nothing {
    /// The answer to a request of which nothing was kept.
    pub(crate) fn refusal(self, errors: Vec<ItemError>, errors_truncated: bool) -> Refusal {
        let refusal = Refusal::problem(self.problem, self.detail);
        Refusal { errors, errors_truncated, ..refusal }
    }
}

/// What one request's items are judged by.
pub(crate) struct Order<'a> {
    pub context: JudgeContext<'a>,
    /// Whose batch it becomes.
    pub tenant: TenantId,
    pub protocol: &'a str,
    pub base_id: [u8; 16],
    /// Bytes of one event, and how many events.
    pub event_bytes: usize,
    pub events: u32,
    pub errors_max: usize,
    /// Bounds the types the tenant may name.
    pub types: Option<&'a dyn TypeGate>,
    /// A guess of the batch's bytes.
    pub capacity: usize,
}

/// Takes the items one by one.
pub(crate) type Take<'t> = dyn FnMut(Arrived<'_>, Option<&str>) -> ControlFlow<()> + 't;

/// Sorts what `feed` hands over. The second argument of what it calls is the id of an item that the
/// protocol or the edge rejects.
pub(crate) fn sort(
    order: Order<'_>,
    judge: &dyn Judge,
    permit: &mut Permit,
    feed: impl FnOnce(&mut Take<'_>) -> Result<(), DecodeFault>,
) -> Result<Finished, Refusal> {
    let mut bench = Bench {
        // Grown in steps below, within the budget.
        encoder: BatchEncoder::new(
            order.tenant,
            order.protocol,
            order.context.received_at,
            order.base_id,
            order.capacity.min(64 << 10),
        ),
        context: order.context,
        event_bytes: order.event_bytes,
        events: order.events,
        base_id: order.base_id,
        types: order.types,
        errors_max: order.errors_max,
        permit,
        held: 0,
        index: 0,
        kinds: Kinds::default(),
        dead: Vec::new(),
        rejected: Rejected::default(),
        errors: Vec::new(),
        errors_truncated: false,
        told: 0,
        stopped: None,
    };
    let mut session = judge.session();
    let keeps = unreadable::keeps(order.protocol);
    let outcome = feed(&mut |Arrived { place, found }, id| {
        let item = match found {
            Found::Rejected(reason) => return bench.reject(None, id, place, reason),
            Found::Item(item) => item,
        };
        let unreadable = match too_large(&item, bench.event_bytes) {
            Some(reason) if keeps => reason,
            Some(reason) => return bench.reject(None, item.event_id, place, reason),
            None => match session.judge(&bench.context, &item) {
                Judged { verdict: Verdict::Rejected(reason), .. }
                    if keeps && unreadable::is_about(reason.code) =>
                {
                    reason
                }
                judged => return bench.take(judged, place),
            },
        };
        let wrapped = unreadable::wrap(item.raw, &unreadable);
        let item = Item { raw: wrapped.as_bytes(), ..item };
        let judged = session.judge(&bench.context, &item);
        bench.take(judged, place)
    });
    outcome.map_err(|fault| Refusal::problem(fault.problem, fault.detail))?;
    bench.finish()
}

/// What needs no look inside.
pub(super) fn too_large(item: &Item<'_>, most: usize) -> Option<Reason> {
    let bytes = item.raw.len();
    (most < bytes).then(|| {
        let message = format!("the event has {bytes} bytes; at most {most} are taken");
        Reason::new(Code::EventTooLarge, "", message)
    })
}

/// The body holds more items than a request may.
pub(super) fn too_many(most: u32) -> Refusal {
    let detail = format!("the body holds more than {most} events; send it in parts");
    Refusal::problem(Problem::TOO_MANY_EVENTS, detail)
}

/// There is no memory for the request now.
pub(super) fn no_memory(full: Full, share: &Share) -> Refusal {
    Refusal::shed(full.reason(), share.wait())
}

pub(super) fn empty() -> Refusal {
    Refusal::problem(Problem::BODY_EMPTY, "send at least one event, a JSON object")
}

/// Counts per type; most requests are of one.
#[derive(Default)]
struct Kinds {
    types: Vec<(EventType, Items)>,
    places: HashMap<EventType, usize>,
    last: usize,
}

impl Kinds {
    fn knows(&self, event_type: &EventType) -> bool {
        let last = self.types.get(self.last).is_some_and(|(known, _)| known == event_type);
        last || self.places.contains_key(event_type)
    }

    fn count(&mut self, event_type: &EventType) -> Option<&mut Items> {
        if self.types.get(self.last).is_none_or(|(known, _)| known != event_type) {
            self.last = match self.places.get(event_type) {
                Some(place) => *place,
                None => {
                    self.places.insert(event_type.clone(), self.types.len());
                    self.types.push((event_type.clone(), Items::default()));
                    self.types.len() - 1
                }
            };
        }
        let (_, items) = self.types.get_mut(self.last)?;
        items.received += 1;
        Some(items)
    }
}

#[derive(Default)]
struct Rejected {
    count: u64,
    /// Those that would be dead letters but for strict checking.
    invalid: u64,
    forbidden: u64,
    first: Option<(Place, Reason)>,
}

/// Where the items of one request are sorted.
struct Bench<'a> {
    encoder: BatchEncoder,
    context: JudgeContext<'a>,
    event_bytes: usize,
    events: u32,
    base_id: [u8; 16],
    types: Option<&'a dyn TypeGate>,
    errors_max: usize,
    permit: &'a mut Permit,
    /// Bytes of the permit that are the batch's.
    held: u64,
    index: u32,
    kinds: Kinds,
    dead: Vec<u32>,
    rejected: Rejected,
    errors: Vec<ItemError>,
    errors_truncated: bool,
    /// Bytes of the reasons.
    told: usize,
    stopped: Option<Refusal>,
}

impl Bench<'_> {
    fn stop(&mut self, refusal: Refusal) -> ControlFlow<()> {
        self.stopped = Some(refusal);
        ControlFlow::Break(())
    }

    /// Counts one more item, if the request may have it.
    fn next(&mut self) -> Result<u32, Refusal> {
        let (index, most) = (self.index, self.events);
        if most <= index {
            return Err(too_many(most));
        }
        self.index += 1;
        Ok(index)
    }

    /// True where events may be counted under this type. One that the key may not send must be known
    /// already: it takes no place of the tenant's.
    fn may_name(&self, judged: &Judged<'_>) -> bool {
        let Some(types) = self.types else { return true };
        if self.kinds.knows(&judged.event_type) || judged.event_type == EventType::unnamed() {
            return true;
        }
        match &judged.verdict {
            Verdict::Rejected(_) => types.knows(&judged.event_type),
            Verdict::Accepted | Verdict::DeadLetter(_) => types.take(&judged.event_type),
        }
    }

    fn take(&mut self, judged: Judged<'_>, place: Place) -> ControlFlow<()> {
        if !self.may_name(&judged) {
            let reason = match judged.verdict {
                Verdict::Rejected(reason) => reason,
                Verdict::Accepted | Verdict::DeadLetter(_) => {
                    let most = self.types.map_or(0, TypeGate::most);
                    let message = format!(
                        "the tenant may send {most} event types, and has named as many already"
                    );
                    Reason::new(Code::TooManyTypes, "", message)
                }
            };
            return self.reject(None, judged.client_id.as_deref(), place, reason);
        }
        let dead = match judged.verdict {
            Verdict::Accepted => None,
            Verdict::DeadLetter(reason) if !self.context.tenant.strict => Some(reason),
            Verdict::DeadLetter(reason) | Verdict::Rejected(reason) => {
                let id = judged.client_id.as_deref();
                return self.reject(Some(&judged.event_type), id, place, reason);
            }
        };
        let index = match self.next() {
            Ok(index) => index,
            Err(refusal) => return self.stop(refusal),
        };
        self.encoder.push(&Record {
            index,
            event_type: &judged.event_type,
            schema: judged.schema,
            client_id: judged.client_id.as_deref(),
            event_time: judged.event_time,
            dead: dead.as_ref().map(|reason| reason.code),
            pii_changed: judged.pii_changed,
            note: &judged.note,
            raw: &judged.raw,
        });
        self.kinds.count(&judged.event_type);
        if let Some(reason) = dead {
            if planted(Bug::PayloadLogged) {
                tracing::info!(raw = %String::from_utf8_lossy(&judged.raw), "dead letter");
            }
            self.dead.push(index);
            let id = match judged.client_id {
                Some(id) => id.into_owned(),
                None => generated_id(&self.base_id, index),
            };
            self.tell(index, Some(id), reason);
        }
        if KINDS_MAX <= self.encoder.types() {
            let detail =
                format!("the body holds {KINDS_MAX} event types or more; send it in parts");
            return self.stop(Refusal::problem(Problem::TOO_MANY_TYPES, detail));
        }
        self.pay()
    }

    /// Takes memory for what the batch has grown.
    fn pay(&mut self) -> ControlFlow<()> {
        let owed = self.bytes().saturating_sub(self.held);
        if owed == 0 {
            return ControlFlow::Continue(());
        }
        let (least, most) = STEP_BYTES;
        let step = owed.max(self.held.clamp(least, most));
        if let Err(full) = self.permit.grow(step) {
            let refusal = no_memory(full, self.permit.share());
            return self.stop(refusal);
        }
        self.held += step;
        ControlFlow::Continue(())
    }

    /// Bytes of the batch so far, about.
    fn bytes(&self) -> u64 {
        (self.encoder.bytes() + self.kinds.types.len() * KIND_BYTES + self.told) as u64
    }

    fn reject(
        &mut self,
        event_type: Option<&EventType>,
        id: Option<&str>,
        place: Place,
        reason: Reason,
    ) -> ControlFlow<()> {
        let index = match self.next() {
            Ok(index) => index,
            Err(refusal) => return self.stop(refusal),
        };
        let unnamed = EventType::unnamed();
        if let Some(items) = self.kinds.count(event_type.unwrap_or(&unnamed)) {
            items.rejected.add(reason.code, 1);
        }
        self.rejected.count += 1;
        self.rejected.invalid += u64::from(!reason.code.is_rejection());
        self.rejected.forbidden += u64::from(reason.code == Code::TypeForbidden);
        if self.rejected.first.is_none() {
            self.rejected.first = Some((place, reason.clone()));
        }
        self.tell(index, id.map(str::to_owned), reason);
        self.pay()
    }

    fn tell(&mut self, index: u32, event_id: Option<String>, reason: Reason) {
        if self.errors.len() < self.errors_max {
            let Reason { code, field, message } = reason;
            let error = ItemError { index, event_id, code: code.as_str(), field, message };
            self.told += error.bytes();
            self.errors.push(error);
        } else {
            self.errors_truncated = true;
        }
    }

    fn finish(self) -> Result<Finished, Refusal> {
        if let Some(refusal) = self.stopped {
            return Err(refusal);
        }
        if self.index == 0 {
            return Err(empty());
        }
        let kept = self.encoder.count() != 0;
        let held = self.bytes().min(self.held);
        Ok(Finished {
            nothing: (!kept).then(|| self.rejected.nothing()),
            batch: kept.then(|| self.encoder.finish()),
            types: self.kinds.types,
            dead: self.dead,
            rejected: self.rejected.count,
            errors: self.errors,
            errors_truncated: self.errors_truncated,
            held,
        })
    }
}

impl Rejected {
    fn nothing(&self) -> Nothing {
        if self.forbidden == self.count {
            let detail = "this key may send none of the event types in the body; use another key";
            return Nothing { problem: Problem::TYPES_FORBIDDEN, detail: detail.to_owned() };
        }
        let problem =
            if self.invalid == 0 { Problem::NOTHING_KEPT } else { Problem::NOTHING_VALID };
        let detail = match &self.first {
            Some((place, reason)) => {
                let Reason { code, field, message } = reason;
                let field = if field.is_empty() { String::new() } else { format!(" at {field}") };
                format!(
                    "the first of {} items, at {place} of the body: {}{field}: {message}; {}",
                    self.count,
                    code.as_str(),
                    mend(*code),
                )
            }
            None => String::new(),
        };
        Nothing { problem, detail }
    }
}

/// How to mend what was rejected, in general.
fn mend(code: Code) -> &'static str {
    match code {
        Code::InvalidJson | Code::NotAnObject => {
            "send one JSON object, an array of objects, or one object a line as \
             application/x-ndjson"
        }
        Code::InvalidUtf8 => "send JSON in UTF-8",
        Code::EventTooLarge | Code::TooDeep | Code::TooManyFields => "send smaller events",
        Code::EnvelopeInvalid => "send what its protocol asks for",
        _ => "see the reasons",
    }
}

/// What one request's items came to.
pub(crate) struct Finished {
    /// Items of each type, and which of them were rejected.
    pub types: Vec<(EventType, Items)>,
    /// What is to be appended; `None` where nothing can be kept.
    pub batch: Option<EncodedBatch>,
    /// The indexes of the dead letters in the batch, in order.
    pub dead: Vec<u32>,
    pub rejected: u64,
    pub errors: Vec<ItemError>,
    pub errors_truncated: bool,
    /// Why nothing can be kept, where that is so.
    pub nothing: Option<Nothing>,
    /// Bytes of the permit that are the batch's.
    pub held: u64,
}
