//! What can become of an event, and the sums of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tidegate_event::Code;

use crate::shed::ShedReason;

/// What became of an event: each has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Durable and valid.
    Accepted,
    /// Durable with a reason.
    DeadLettered,
    /// Known already by its id.
    Deduplicated,
    /// The client was told that it cannot be kept, and why.
    Rejected(Code),
    /// The client was told to send it again, and why.
    Shed(ShedReason),
}

/// What became of the events of one tenant and type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tally {
    /// Events counted when the request was decoded.
    pub received: u64,
    /// Durable and valid.
    pub accepted: u64,
    /// Durable with a reason.
    pub dead_lettered: u64,
    /// Known already by their id.
    pub deduplicated: u64,
    /// Told the client that they cannot be kept.
    pub rejected: u64,
    /// Told the client to send them again.
    pub shed: u64,
}

impl Tally {
    /// Adds another tally, field by field.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.accepted += other.accepted;
        self.dead_lettered += other.dead_lettered;
        self.deduplicated += other.deduplicated;
        self.rejected += other.rejected;
        self.shed += other.shed;
    }

    /// Adds `events` of one outcome.
    pub fn settle(&mut self, outcome: Outcome, events: u64) {
        match outcome {
            Outcome::Accepted => self.accepted += events,
            Outcome::DeadLettered => self.dead_lettered += events,
            Outcome::Deduplicated => self.deduplicated += events,
            Outcome::Rejected(_) => self.rejected += events,
            Outcome::Shed(_) => self.shed += events,
        }
    }

    /// Received minus every outcome: what is in flight, if the books are right.
    #[must_use]
    pub fn unsettled(&self) -> i128 {
        let outcomes =
            [self.accepted, self.dead_lettered, self.deduplicated, self.rejected, self.shed];
        i128::from(self.received) - outcomes.iter().map(|n| i128::from(*n)).sum::<i128>()
    }
}

/// Numbers that can be added up.
pub trait Counts: Clone + Default {
    /// Adds another.
    fn merge(&mut self, other: &Self);
}

impl Counts for Tally {
    fn merge(&mut self, other: &Self) {
        self.add(other);
    }
}

/// A reason out of a closed set.
pub trait Reason: Copy + PartialEq + 'static {
    /// The set.
    const SET: &'static [Self];
    /// As it stands in answers, metrics and books.
    fn text(self) -> &'static str;
}

impl Reason for Code {
    const SET: &'static [Self] = Self::ALL;
    fn text(self) -> &'static str {
        self.as_str()
    }
}

impl Reason for ShedReason {
    const SET: &'static [Self] = Self::ALL;
    fn text(self) -> &'static str {
        self.as_str()
    }
}

/// Events by reason: only the reasons that occurred, so nothing for those without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByReason<R>(Vec<(R, u64)>);

impl<R> Default for ByReason<R> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<R: Reason> ByReason<R> {
    /// Adds `events` of one reason.
    pub fn add(&mut self, reason: R, events: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, sum)) => *sum += events,
            None => self.0.push((reason, events)),
        }
    }

    /// Each reason that occurred.
    pub fn iter(&self) -> impl Iterator<Item = (R, u64)> + '_ {
        self.0.iter().copied()
    }

    /// All reasons together.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.0.iter().map(|(_, events)| events).sum()
    }

    /// True where none occurred.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<R: Reason> Counts for ByReason<R> {
    fn merge(&mut self, other: &Self) {
        other.iter().for_each(|(reason, events)| self.add(reason, events));
    }
}

impl<R: Reason> Serialize for ByReason<R> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let sorted: BTreeMap<_, _> = self.iter().map(|(r, events)| (r.text(), events)).collect();
        sorted.serialize(to)
    }
}

impl<'de, R: Reason> Deserialize<'de> for ByReason<R> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut by_reason = Self::default();
        for (text, events) in BTreeMap::<String, u64>::deserialize(from)? {
            let reason = R::SET.iter().find(|reason| reason.text() == text);
            let unknown = || de::Error::custom(format!("no such reason: {text}"));
            by_reason.add(*reason.ok_or_else(unknown)?, events);
        }
        Ok(by_reason)
    }
}

/// The outcomes that leave nothing in the log, with their reasons.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Unlogged {
    /// Known already by their id.
    #[serde(skip_serializing_if = "is_zero")]
    pub deduplicated: u64,
    /// Rejected, by code.
    #[serde(skip_serializing_if = "ByReason::is_empty")]
    pub rejected: ByReason<Code>,
    /// Shed, by reason.
    #[serde(skip_serializing_if = "ByReason::is_empty")]
    pub shed: ByReason<ShedReason>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Unlogged {
    /// One outcome, where it is of those.
    #[must_use]
    pub fn of(outcome: Outcome, events: u64) -> Option<Self> {
        let mut one = Self::default();
        match outcome {
            Outcome::Accepted | Outcome::DeadLettered => return None,
            Outcome::Deduplicated => one.deduplicated = events,
            Outcome::Rejected(code) => one.rejected.add(code, events),
            Outcome::Shed(reason) => one.shed.add(reason, events),
        }
        Some(one)
    }

    /// As the books count them.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let (deduplicated, rejected, shed) =
            (self.deduplicated, self.rejected.sum(), self.shed.sum());
        let received = deduplicated + rejected + shed;
        Tally { received, deduplicated, rejected, shed, ..Tally::default() }
    }
}

impl Counts for Unlogged {
    fn merge(&mut self, other: &Self) {
        self.deduplicated += other.deduplicated;
        self.rejected.merge(&other.rejected);
        self.shed.merge(&other.shed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_back_as_they_were_written_and_unknown_ones_are_refused() {
        let mut all = Unlogged { deduplicated: 7, ..Unlogged::default() };
        for (n, code) in (1..).zip(Code::ALL) {
            all.merge(&Unlogged::of(Outcome::Rejected(*code), n).unwrap());
        }
        for (n, reason) in (1..).zip(ShedReason::ALL) {
            all.merge(&Unlogged::of(Outcome::Shed(*reason), n).unwrap());
            all.merge(&Unlogged::of(Outcome::Shed(*reason), n).unwrap());
        }
        let text = serde_json::to_string(&all).unwrap();
        let again: Unlogged = serde_json::from_str(&text).unwrap();
        assert_eq!(again.tally(), all.tally());
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
        assert_eq!(all.tally().unsettled(), 0);
        serde_json::from_str::<Unlogged>("{\"shed\":{\"mood\":1}}").unwrap_err();
    }
}
