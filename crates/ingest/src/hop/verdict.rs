//! What a normalizer answers before anything is appended: each item's verdict, summed up.
//!
//! ```text
//! verdict := version u8 (1) · kind u8
//!            · 0: judged | 1: a problem: code · detail | 2: shed: reason · after u64 (ms)
//! judged  := kept u32 · rejected u64 · dead · types · errors · truncated u8 · [nothing: code · detail]
//! type    := name · received u64 · (code u8 · events u64)*
//! error   := index u32 · [id] · code u8 · field · message
//! ```

use std::time::Duration;

use tidegate_event::{Code, EventType};

use super::wire::{Malformed, Reader, Writer};
use crate::shed::ShedReason;

const VERSION: u8 = 1;

/// What became of a request's items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Each has one; nothing is appended yet.
    Judged(Judged),
    /// The request as a whole is at fault.
    Problem(Fault),
    /// Refused for now; nothing is kept.
    Shed(ShedReason, Duration),
}

/// A problem by its code, as docs/wire.md lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its code.
    pub code: String,
    /// What, where, and how to mend it.
    pub detail: String,
}

/// The verdicts, summed up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// How many would be appended.
    pub kept: u32,
    /// How many cannot be kept.
    pub rejected: u64,
    /// The indexes of the dead letters, in order.
    pub dead: Vec<u32>,
    /// Items of each type.
    pub types: Vec<TypeItems>,
    /// Why items are not accepted, as many as the protocol wants.
    pub errors: Vec<ItemFault>,
    /// True where `errors` does not list all.
    pub errors_truncated: bool,
    /// Why nothing can be kept, where that is so.
    pub nothing: Option<Fault>,
}

/// The items of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeItems {
    /// Which type.
    pub event_type: EventType,
    /// All of them.
    pub received: u64,
    /// Those that cannot be kept.
    pub rejected: Vec<(Code, u64)>,
}

/// Why one item is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemFault {
    /// Its place in the request, from 0.
    pub index: u32,
    /// Its id.
    pub event_id: Option<String>,
    /// Which rule.
    pub code: Code,
    /// Where.
    pub field: String,
    /// What, and how to mend it.
    pub message: String,
}

impl Verdict {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.u8(VERSION);
        match self {
            Self::Judged(judged) => {
                to.u8(0);
                judged.encode(&mut to);
            }
            Self::Problem(fault) => {
                to.u8(1);
                fault.encode(&mut to);
            }
            Self::Shed(reason, after) => {
                to.u8(2);
                put_shed(&mut to, *reason, *after);
            }
        }
        to.0
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader(bytes);
        if from.u8()? != VERSION {
            return Err(Malformed("unknown version"));
        }
        let verdict = match from.u8()? {
            0 => Self::Judged(Judged::decode(&mut from)?),
            1 => Self::Problem(Fault::decode(&mut from)?),
            2 => {
                let (reason, after) = shed(&mut from)?;
                Self::Shed(reason, after)
            }
            _ => return Err(Malformed("unknown kind")),
        };
        from.end()?;
        Ok(verdict)
    }
}

impl Fault {
    fn encode(&self, to: &mut Writer) {
        to.text(&self.code);
        to.text(&self.detail);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { code: from.text()?.to_owned(), detail: from.text()?.to_owned() })
    }
}

impl Judged {
    fn encode(&self, to: &mut Writer) {
        to.u32(self.kept);
        to.u64(self.rejected);
        to.len(self.dead.len());
        self.dead.iter().for_each(|index| to.u32(*index));
        to.len(self.types.len());
        for one in &self.types {
            to.text(one.event_type.as_str());
            to.u64(one.received);
            to.len(one.rejected.len());
            for (code, events) in &one.rejected {
                to.u8(*code as u8);
                to.u64(*events);
            }
        }
        to.len(self.errors.len());
        for error in &self.errors {
            to.u32(error.index);
            to.optional(error.event_id.as_deref());
            to.u8(error.code as u8);
            to.text(&error.field);
            to.text(&error.message);
        }
        to.u8(u8::from(self.errors_truncated));
        to.u8(u8::from(self.nothing.is_some()));
        if let Some(nothing) = &self.nothing {
            nothing.encode(to);
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (kept, rejected) = (from.u32()?, from.u64()?);
        let count = from.count(4)?;
        let dead: Result<Vec<_>, _> = (0..count).map(|_| from.u32()).collect();
        let count = from.count(16)?;
        let types: Result<Vec<_>, _> = (0..count).map(|_| type_items(from)).collect();
        let count = from.count(14)?;
        let errors: Result<Vec<_>, _> = (0..count).map(|_| item_fault(from)).collect();
        let errors_truncated = from.flag()?;
        let nothing = if from.flag()? { Some(Fault::decode(from)?) } else { None };
        let (dead, types, errors) = (dead?, types?, errors?);
        let all = types.iter().try_fold(0u64, |sum, one| sum.checked_add(one.received));
        if all != Some(u64::from(kept).saturating_add(rejected)) {
            return Err(Malformed("another number of items than of verdicts"));
        }
        Ok(Self { kept, rejected, dead, types, errors, errors_truncated, nothing })
    }
}

fn code(from: &mut Reader<'_>) -> Result<Code, Malformed> {
    Code::from_number(from.u8()?).ok_or(Malformed("unknown code"))
}

fn type_items(from: &mut Reader<'_>) -> Result<TypeItems, Malformed> {
    let name = EventType::new(from.text()?);
    let event_type = match name {
        Ok(name) => name,
        Err(_) => return Err(Malformed("no event type's name")),
    };
    let (received, count) = (from.u64()?, from.count(9)?);
    let rejected: Result<Vec<_>, _> = (0..count).map(|_| Ok((code(from)?, from.u64()?))).collect();
    let rejected = rejected?;
    let sum = rejected.iter().try_fold(0u64, |sum, (_, events)| sum.checked_add(*events));
    if sum.is_none_or(|sum| received < sum) {
        return Err(Malformed("more rejected than received"));
    }
    Ok(TypeItems { event_type, received, rejected })
}

fn item_fault(from: &mut Reader<'_>) -> Result<ItemFault, Malformed> {
    Ok(ItemFault {
        index: from.u32()?,
        event_id: from.optional()?.map(str::to_owned),
        code: code(from)?,
        field: from.text()?.to_owned(),
        message: from.text()?.to_owned(),
    })
}

pub(super) fn put_shed(to: &mut Writer, reason: ShedReason, after: Duration) {
    to.text(reason.as_str());
    to.u64(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
}

pub(super) fn shed(from: &mut Reader<'_>) -> Result<(ShedReason, Duration), Malformed> {
    let text = from.text()?;
    let reason = ShedReason::ALL.iter().find(|reason| reason.as_str() == text);
    let reason = reason.ok_or(Malformed("unknown reason"))?;
    Ok((*reason, Duration::from_millis(from.u64()?)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_code() -> impl Strategy<Value = Code> {
        prop::sample::select(Code::ALL)
    }

    fn fault() -> impl Strategy<Value = Fault> {
        (".{0,9}", ".{0,40}").prop_map(|(code, detail)| Fault { code, detail })
    }

    fn judged() -> impl Strategy<Value = Judged> {
        let rejected = prop::collection::vec((any_code(), 0..1000u64), 0..3);
        let one = ("[A-Za-z][a-z0-9_]{0,9}", 0..1000u32, rejected);
        let error = (any::<u32>(), prop::option::of(".{0,9}"), any_code(), ".{0,9}", ".{0,9}");
        let lists = (prop::collection::vec(one, 0..4), prop::collection::vec(error, 0..4));
        let rest = (prop::collection::vec(any::<u32>(), 0..4), any::<bool>());
        (lists, rest, prop::option::of(fault())).prop_map(
            |((types, errors), (dead, errors_truncated), nothing)| {
                let (mut kept, mut all) = (0, 0);
                let types = types.into_iter().map(|(name, own, rejected)| {
                    let sum: u64 = rejected.iter().map(|(_, events)| events).sum();
                    (kept, all) = (kept + own, all + sum);
                    let event_type = EventType::new(&name).unwrap();
                    TypeItems { event_type, received: u64::from(own) + sum, rejected }
                });
                let types = types.collect();
                let error = |(index, event_id, code, field, message)| ItemFault {
                    index,
                    event_id,
                    code,
                    field,
                    message,
                };
                let errors = errors.into_iter().map(error).collect();
                Judged { kept, rejected: all, dead, types, errors, errors_truncated, nothing }
            },
        )
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        let shed = (prop::sample::select(ShedReason::ALL), any::<u32>());
        prop_oneof![
            judged().prop_map(Verdict::Judged),
            fault().prop_map(Verdict::Problem),
            shed.prop_map(|(reason, ms)| Verdict::Shed(reason, Duration::from_millis(ms.into()))),
        ]
    }

    proptest! {
        #[test]
        fn a_verdict_reads_back_as_it_was_written(verdict in verdict()) {
            prop_assert_eq!(Verdict::decode(&verdict.encode()).unwrap(), verdict);
        }

        #[test]
        fn what_is_cut_is_none_and_what_is_flipped_never_panics(
            verdict in verdict(), at in any::<prop::sample::Index>(), bit in 0..8u32,
        ) {
            let mut bytes = verdict.encode();
            let at = at.index(bytes.len());
            prop_assert!(Verdict::decode(&bytes[..at]).is_err());
            bytes[at] ^= 1 << bit;
            let _ = Verdict::decode(&bytes);
        }
    }
}
