//! The part of a request that only computes: decode, split, judge, encode. Runs on one thread.

use std::{collections::HashMap, ops::ControlFlow, sync::Arc};

use bytes::Bytes;
use http::request::Parts;
use tidegate_event::{
    BatchEncoder, Code, EncodedBatch, EventType, Reason, ReceivedAt, TenantId, record::Record,
    record::generated_id,
};

use super::{
    Limits,
    answer::{ItemError, Refusal},
    coding::{Coding, DecodeError, DecodeLimits},
    judge::Judge,
    problem::Problem,
    protocol::{Arrived, Found, Place, Protocol},
};
use crate::{
    books::ByReason,
    budget::{Full, Permit, Share},
    faults::{Bug, planted},
    normalize::{Item, JudgeContext, Judged, Verdict},
    quota::Types,
    tenants::Caller,
};

/// How many kinds of (type, schema) one batch can hold.
const KINDS_MAX: usize = 65_535;

/// Bytes that one more event type costs while its request is worked on, about.
const KIND_BYTES: usize = 512;

/// Bytes taken from the budget at once while a batch grows: as many as it has, within these.
const STEP_BYTES: (u64, u64) = (4 << 10, 256 << 10);

/// A body, read whole, with all that is needed to judge it.
pub(super) struct Work {
    pub parts: Parts,
    pub body: Bytes,
    pub coding: Coding,
    pub protocol: &'static Protocol,
    pub caller: Caller,
    pub judge: Arc<dyn Judge>,
    pub limits: Arc<Limits>,
    pub received_at: ReceivedAt,
    pub base_id: [u8; 16],
    /// Bounds the types the tenant may name.
    pub types: Option<Types>,
    pub permit: Permit,
}

/// A body, judged.
pub(super) struct Done {
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
    /// Holds the memory of the batch.
    pub permit: Permit,
}

/// The items of one type in one body.
#[derive(Default)]
pub(super) struct Items {
    /// All of them.
    pub received: u64,
    /// Those that cannot be kept, by reason.
    pub rejected: ByReason<Code>,
}

/// What the rejected items of a body have in common.
#[derive(Clone, Debug)]
pub(super) struct Nothing {
    problem: Problem,
    detail: String,
}

impl Nothing {
    /// The answer to a request of which nothing was kept.
    pub(super) fn refusal(self, errors: Vec<ItemError>, errors_truncated: bool) -> Refusal {
        let refusal = Refusal::problem(self.problem, self.detail);
        Refusal { errors, errors_truncated, ..refusal }
    }
}

impl Work {
    /// Does it all. `Err`: nothing was kept, and no event was counted.
    pub(super) fn run(mut self) -> Result<Done, Refusal> {
        let body = self.decoded()?;
        let encoder = BatchEncoder::new(
            self.tenant(),
            self.protocol.name,
            self.received_at,
            self.base_id,
            // Grown in steps below, within the budget.
            body.len().min(64 << 10),
        );
        let context = JudgeContext {
            tenant: &self.caller.tenant,
            received_at: self.received_at,
            key_types: self.caller.event_types(),
        };
        let mut bench = Bench {
            encoder,
            context,
            limits: &self.limits,
            base_id: self.base_id,
            types: self.types.as_ref(),
            errors_max: self.protocol.errors_max,
            permit: &mut self.permit,
            held: 0,
            index: 0,
            kinds: Kinds::default(),
            dead: Vec::new(),
            rejected: Rejected::default(),
            errors: Vec::new(),
            errors_truncated: false,
            stopped: None,
        };
        let mut session = self.judge.session();
        let outcome = (self.protocol.decode)(&self.parts, &body, &mut |arrived: Arrived<'_>| {
            let Arrived { place, found } = arrived;
            match found {
                Found::Rejected(reason) => bench.reject(None, None, place, reason),
                Found::Item(item) => match bench.refused_unjudged(&item) {
                    Some(reason) => bench.reject(None, item.event_id, place, reason),
                    None => {
                        let judged = session.judge(&bench.context, &item);
                        bench.take(judged, place)
                    }
                },
            }
        });
        outcome.map_err(|fault| Refusal::problem(fault.problem, fault.detail))?;
        let parts = bench.finish()?;
        drop(session);
        Ok(parts.done(self.permit))
    }

    /// Whose the events are: the key's owner, whatever a header or the body says.
    fn tenant(&self) -> TenantId {
        let named = self.parts.headers.get("x-tenant").and_then(|name| name.to_str().ok());
        let named = named.filter(|_| planted(Bug::TenantFromHeader));
        let named = named.and_then(|name| TenantId::new(name).ok());
        named.unwrap_or_else(|| self.caller.tenant.id.clone())
    }

    /// The decoded body; gives the raw one's memory back.
    fn decoded(&mut self) -> Result<Bytes, Refusal> {
        let raw = std::mem::take(&mut self.body);
        let (bytes, ratio) = (self.limits.decoded_bytes.0.min(1 << 30), self.limits.ratio);
        if self.coding == Coding::Identity {
            return if bytes < raw.len() as u64 {
                Err(undecodable(&DecodeError::TooLarge { limit: bytes }, &self.permit))
            } else {
                Ok(raw)
            };
        }
        let decoded = self.coding.decode(&raw, DecodeLimits { bytes, ratio }, &mut self.permit);
        let decoded = decoded.map_err(|error| undecodable(&error, &self.permit))?;
        drop(raw);
        self.permit.shrink_to(decoded.capacity() as u64);
        Ok(decoded.into())
    }
}

/// There is no memory for the request now.
pub(super) fn no_memory(full: Full, share: &Share) -> Refusal {
    Refusal::shed(full.reason(), share.wait())
}

fn undecodable(error: &DecodeError, permit: &Permit) -> Refusal {
    let problem = match error {
        DecodeError::Corrupt { .. } => Problem::BODY_CORRUPT,
        DecodeError::TooLarge { .. } => Problem::DECODED_TOO_LARGE,
        DecodeError::Ratio { .. } => Problem::RATIO_TOO_LARGE,
        DecodeError::Full(full) => return no_memory(*full, permit.share()),
    };
    Refusal::problem(problem, error.to_string())
}

fn empty() -> Refusal {
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
    limits: &'a Limits,
    base_id: [u8; 16],
    types: Option<&'a Types>,
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
    stopped: Option<Refusal>,
}

impl Bench<'_> {
    /// What needs no look inside.
    fn refused_unjudged(&self, item: &Item<'_>) -> Option<Reason> {
        let (bytes, most) = (item.raw.len(), self.limits.event_bytes.get());
        (most < bytes).then(|| {
            let message = format!("the event has {bytes} bytes; at most {most} are taken");
            Reason::new(Code::EventTooLarge, "", message)
        })
    }

    fn stop(&mut self, refusal: Refusal) -> ControlFlow<()> {
        self.stopped = Some(refusal);
        ControlFlow::Break(())
    }

    /// Counts one more item, if the request may have it.
    fn next(&mut self) -> Result<u32, Refusal> {
        let (index, most) = (self.index, self.limits.events);
        if most <= index {
            let detail = format!("the body holds more than {most} events; send it in parts");
            return Err(Refusal::problem(Problem::TOO_MANY_EVENTS, detail));
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
                    let most = self.types.map_or(0, Types::most);
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
        (self.encoder.bytes() + self.kinds.types.len() * KIND_BYTES) as u64
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
            self.errors.push(ItemError { index, event_id, code: code.as_str(), field, message });
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
        Code::EnvelopeInvalid => "send CloudEvents 1.0",
        _ => "see the reasons",
    }
}

struct Finished {
    types: Vec<(EventType, Items)>,
    batch: Option<EncodedBatch>,
    dead: Vec<u32>,
    rejected: u64,
    errors: Vec<ItemError>,
    errors_truncated: bool,
    nothing: Option<Nothing>,
    held: u64,
}

impl Finished {
    /// The body is gone by now: only the batch's memory is still held.
    fn done(self, mut permit: Permit) -> Done {
        permit.shrink_to(self.held);
        Done {
            types: self.types,
            batch: self.batch,
            dead: self.dead,
            rejected: self.rejected,
            errors: self.errors,
            errors_truncated: self.errors_truncated,
            nothing: self.nothing,
            permit,
        }
    }
}
