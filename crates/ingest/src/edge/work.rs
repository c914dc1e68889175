//! The part of a request that only computes: decode, split, judge, encode. Runs on one thread.

use std::{ops::ControlFlow, sync::Arc};

use bytes::Bytes;
use http::request::Parts;
use tidegate_event::{EventType, ReceivedAt, TenantId};

use super::{
    Limits,
    answer::{ItemError, Refusal},
    away::Kept,
    bench::{self, Finished, Items, Nothing, Order, TypeGate, empty, no_memory, too_large},
    coding::{Coding, DecodeError, DecodeLimits},
    judge::Judge,
    problem::Problem,
    protocol::{Arrived, Found, Notes, Protocol},
};
use crate::{
    budget::Permit,
    faults::{Bug, planted},
    hop::ask::{Head, ItemsEncoder},
    normalize::{Item, JudgeContext, unreadable},
    quota::Types,
    tenants::Caller,
};

/// Bytes taken from the budget at once while items are put together, at least.
const STEP_BYTES: u64 = 64 << 10;

/// A body, read whole, with all that is needed to judge it.
pub(super) struct Work {
    pub parts: Arc<Parts>,
    pub body: Bytes,
    pub coding: Coding,
    pub protocol: &'static Protocol,
    pub caller: Caller,
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
    pub kept: Option<Kept>,
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

/// A body's items, for a normalizer elsewhere.
pub(super) struct Packed {
    pub head: Head,
    pub items: Bytes,
    /// Bounds the types the tenant may name.
    pub types: Option<Types>,
    /// Holds the memory of the items.
    pub permit: Permit,
}

impl Work {
    /// Does it all. `Err`: nothing was kept, and no event was counted.
    pub(super) fn run(mut self, judge: &dyn Judge) -> Result<Done, Refusal> {
        let body = self.decoded()?;
        let order = Order {
            context: JudgeContext {
                tenant: &self.caller.tenant,
                received_at: self.received_at,
                key_types: self.caller.event_types(),
            },
            tenant: self.tenant(),
            protocol: self.protocol.name,
            base_id: self.base_id,
            event_bytes: self.limits.event_bytes.get(),
            events: self.limits.events,
            errors_max: self.protocol.tells.reasons(),
            types: self.types.as_ref().map(|types| types as &dyn TypeGate),
            capacity: body.len(),
        };
        let (parts, decode) = (&self.parts, self.protocol.decode);
        let finished = bench::sort(order, judge, &mut self.permit, |take| {
            decode(parts, &body, &mut |arrived: Arrived<'_>| take(arrived, None))
        })?;
        self.pay_for_notes()?;
        drop(body);
        Ok(Done::new(finished, self.permit))
    }

    /// Puts the items together for whoever judges them. `Err`: nothing was kept, and no event was
    /// counted.
    pub(super) fn pack(mut self) -> Result<Packed, Refusal> {
        let body = self.decoded()?;
        let (event_bytes, events) = (self.limits.event_bytes.get(), self.limits.events);
        let mut items = ItemsEncoder::with_capacity(body.len().min(64 << 10));
        let (permit, mut held, mut stopped) = (&mut self.permit, 0u64, None);
        let decode = self.protocol.decode;
        let outcome = decode(&self.parts, &body, &mut |Arrived { place, found }| {
            if items.count() == events {
                stopped = Some(bench::too_many(events));
                return ControlFlow::Break(());
            }
            match found {
                Found::Rejected(reason) => items.rejected(place, None, &reason),
                Found::Item(item) => match too_large(&item, event_bytes) {
                    Some(reason) if unreadable::keeps(self.protocol.name) => {
                        let wrapped = unreadable::wrap(item.raw, &reason);
                        items.item(place, &Item { raw: wrapped.as_bytes(), ..item });
                    }
                    Some(reason) => items.rejected(place, item.event_id, &reason),
                    None => items.item(place, &item),
                },
            }
            let owed = (items.bytes() as u64).saturating_sub(held);
            if owed != 0 {
                let step = owed.max(held.min(STEP_BYTES));
                if let Err(full) = permit.grow(step) {
                    stopped = Some(no_memory(full, permit.share()));
                    return ControlFlow::Break(());
                }
                held += step;
            }
            ControlFlow::Continue(())
        });
        outcome.map_err(|fault| Refusal::problem(fault.problem, fault.detail))?;
        if let Some(refusal) = stopped {
            return Err(refusal);
        }
        if items.count() == 0 {
            return Err(empty());
        }
        drop(body);
        permit.shrink_to(held);
        self.pay_for_notes()?;
        let tenant = &self.caller.tenant;
        let head = Head {
            tenant: self.tenant(),
            protocol: self.protocol.name.to_owned(),
            received_at: self.received_at,
            base_id: self.base_id,
            strict: tenant.strict,
            secret: tenant.pii_secret.clone(),
            key_types: self.caller.event_types().map(<[String]>::to_vec),
            named: None,
            errors_max: u32::try_from(self.protocol.tells.reasons()).unwrap_or(u32::MAX),
        };
        let items = items.finish().into();
        Ok(Packed { head, items, types: self.types, permit: self.permit })
    }

    /// What a protocol noted for its answer outlives the body.
    fn pay_for_notes(&self) -> Result<(), Refusal> {
        let share = self.permit.share();
        Notes::pay(&self.parts, share).map_err(|full| no_memory(full, share))
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

pub(super) fn undecodable(error: &DecodeError, permit: &Permit) -> Refusal {
    let problem = match error {
        DecodeError::Corrupt { .. } => Problem::BODY_CORRUPT,
        DecodeError::TooLarge { .. } => Problem::DECODED_TOO_LARGE,
        DecodeError::Ratio { .. } => Problem::RATIO_TOO_LARGE,
        DecodeError::Full(full) => return no_memory(*full, permit.share()),
    };
    Refusal::problem(problem, error.to_string())
}

impl Done {
    /// The body is gone by now: only the batch's memory is still held.
    fn new(finished: Finished, mut permit: Permit) -> Self {
        permit.shrink_to(finished.held);
        Self {
            types: finished.types,
            kept: finished.batch.map(Kept::Here),
            dead: finished.dead,
            rejected: finished.rejected,
            errors: finished.errors,
            errors_truncated: finished.errors_truncated,
            nothing: finished.nothing,
            permit,
        }
    }
}
