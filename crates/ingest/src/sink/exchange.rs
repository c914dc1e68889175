//! Rows of a window exchanged for those of a shadow: what a sink does that can do it (docs/replay.md,
//! "Promote and revert").
//!
//! ```text
//! survey ─▶ stage ─▶ (the caller's journal says: committed) ─▶ exchange ─▶ the books ─▶ finish
//!             └─▶ discard, where it is not to be
//! ```
//!
//! Up to the word of the journal live is as it was, and [`Exchange::discard`] leaves nothing; from it on
//! [`Exchange::exchange`] is repeated until it succeeds. The way back is the same exchange backwards.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use tidegate_event::{Offset, Partition};

use super::{SinkConfig, promoted::Span, rows::Lane};
use crate::replay::{PlanId, Selection};

/// What is exchanged.
pub struct Order<'a> {
    /// Of which log the offsets are.
    pub log_id: &'a str,
    /// Which plan's.
    pub plan: &'a PlanId,
    /// Its offsets.
    pub window: &'a [Span],
    /// Which events of them.
    pub selection: &'a Selection,
    /// The lanes that its events were recorded in.
    pub lanes: &'a [Lane],
    /// Where the shadow is, as a sink's configuration.
    pub shadow: &'a SinkConfig,
    /// Asked now and then; true: nobody wants it any more.
    pub stop: &'a dyn Fn() -> bool,
    /// Hears what is being done.
    pub tell: &'a dyn Fn(&str),
}

impl Order<'_> {
    /// The span of a partition.
    #[must_use]
    pub fn span(&self, partition: Partition) -> Option<Span> {
        self.window.iter().find(|span| span.partition == partition).copied()
    }
}

/// Which way rows are exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The shadow's rows come, live's go.
    Forward,
    /// What was before comes back.
    Back,
}

/// Why rows are not exchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// It cannot be, and trying again is of no use; the message says what to do.
    #[error("{0}")]
    Refused(String),
    /// The destination did not do it, or nobody knows; what was committed is tried again.
    #[error("{0}")]
    Failed(String),
}

/// What would change; nothing has.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// For people and programs.
    pub changes: Changes,
    /// Offsets that the shadow has and live has not: set aside or skipped by live.
    pub gained: BTreeMap<Partition, Marked>,
}

/// What a promotion changes at one sink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// A hash over all of it: the same, as long as nothing of live and shadow changed.
    pub hash: String,
    /// Rows of live that go.
    pub rows_go: u64,
    /// Rows of the shadow that come.
    pub rows_come: u64,
    /// Rows outside the window that are written anew, with the same values.
    pub rows_kept: u64,
    /// By lane: rows that go and rows that come.
    pub lanes: Vec<LaneChange>,
    /// What is touched: folders of a lake, partitions of tables.
    pub places: u64,
    /// Files (or tables' partitions) that go whole.
    pub go: Vec<String>,
    /// Those that are cut: written anew without the window's rows.
    pub cut: Vec<String>,
    /// Those that come.
    pub come: Vec<String>,
}

/// Rows of one lane that go and that come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneChange {
    /// Which lane.
    #[serde(flatten)]
    pub lane: Lane,
    /// Rows of live that go.
    pub go: u64,
    /// Rows of the shadow that come.
    pub come: u64,
}

impl Changes {
    /// The changes of each lane.
    pub fn set_lanes(&mut self, lanes: &BTreeMap<Lane, (u64, u64)>) {
        let change = |(lane, (go, come)): (&Lane, &(u64, u64))| LaneChange {
            lane: lane.clone(),
            go: *go,
            come: *come,
        };
        self.lanes = lanes.iter().map(change).collect();
        self.rows_go = lanes.values().map(|(go, _)| go).sum();
        self.rows_come = lanes.values().map(|(_, come)| come).sum();
    }
}

/// What was made ready: the sink's own, kept in the journal.
pub type Staged = serde_json::Value;

/// Nothing else touches old rows while it is held.
pub trait Turn {}

/// A sink that can exchange rows. All calls block.
pub trait Exchange: Send + Sync {
    /// Waits until nothing else touches rows below the cursors (joining small files), and keeps it so.
    ///
    /// # Errors
    /// [`ExchangeError::Failed`] where `stop` said so.
    fn turn(&self, stop: &dyn Fn() -> bool) -> Result<Box<dyn Turn + '_>, ExchangeError>;

    /// What would change.
    ///
    /// # Errors
    /// [`ExchangeError`].
    fn survey(&self, order: &Order<'_>) -> Result<Survey, ExchangeError>;

    /// Makes ready what comes and keeps what goes. Live stays as it is.
    ///
    /// # Errors
    /// [`ExchangeError`]; [`Exchange::discard`] removes what was made until then.
    fn stage(&self, order: &Order<'_>) -> Result<Staged, ExchangeError>;

    /// Removes what staging made. Also where it made nothing.
    ///
    /// # Errors
    /// [`ExchangeError`].
    fn discard(&self, plan: &PlanId, staged: Option<&Staged>) -> Result<(), ExchangeError>;

    /// Whether what came is there as it came, and what went is kept as it was.
    ///
    /// # Errors
    /// [`ExchangeError::Refused`] where it is not.
    fn check_kept(&self, staged: &Staged) -> Result<(), ExchangeError>;

    /// Exchanges the rows. Repeating it changes nothing. In the moment in which `books` is called the
    /// rows are exchanged, and whoever counts them waits.
    ///
    /// # Errors
    /// [`ExchangeError::Failed`]: again.
    fn exchange(
        &self,
        plan: &PlanId,
        staged: &Staged,
        how: &How<'_>,
        books: &mut dyn FnMut() -> Result<(), ExchangeError>,
    ) -> Result<(), ExchangeError>;

    /// The promotion is at its end, by this process or an earlier one: nothing of it is under way any more.
    fn ended(&self) {}
}

/// How rows are exchanged.
pub struct How<'a> {
    /// Which way.
    pub way: Way,
    /// True where an earlier attempt was cut: what it had sent and nobody answered may still come.
    pub doubt: bool,
    /// How long a reader may take to list what it reads, where that is not as the sink has it.
    pub settle: Option<Duration>,
    /// True once the server ends: what was not begun is left for the next start.
    pub stop: &'a dyn Fn() -> bool,
    /// Hears what is being done.
    pub tell: &'a dyn Fn(&str),
}

/// Offsets of one partition's span, one bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marked {
    from: Offset,
    bits: Vec<u64>,
}

/// A window that would take too much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooWide(u64);

/// Bits of one window's partition at most: 128 MiB.
const BITS_MAX: u64 = 1 << 30;

impl fmt::Display for TooWide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the window has {} offsets of one partition, {BITS_MAX} at most: replay it in parts",
            self.0
        )
    }
}

impl Marked {
    /// None of a span.
    ///
    /// # Errors
    /// [`TooWide`].
    pub fn none_of(span: Span) -> Result<Self, TooWide> {
        let offsets = span.to.since(span.from);
        if BITS_MAX < offsets {
            return Err(TooWide(offsets));
        }
        let words = usize::try_from(offsets.div_ceil(64)).unwrap_or(0);
        Ok(Self { from: span.from, bits: vec![0; words] })
    }

    fn place(&self, offset: Offset) -> Option<(usize, u64)> {
        let at = offset.0.checked_sub(self.from.0)?;
        Some((usize::try_from(at / 64).ok()?, 1 << (at % 64)))
    }

    /// Marks an offset; false where it was marked, or lies outside.
    pub fn add(&mut self, offset: Offset) -> bool {
        let Some((word, bit)) = self.place(offset) else { return false };
        let Some(word) = self.bits.get_mut(word) else { return false };
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// True for one that is marked.
    #[must_use]
    pub fn has(&self, offset: Offset) -> bool {
        let place = self.place(offset);
        place.and_then(|(word, bit)| Some(self.bits.get(word)? & bit != 0)).unwrap_or(false)
    }

    /// Those that are marked here and not there.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let word = |(index, word): (usize, &u64)| word & !other.bits.get(index).unwrap_or(&0);
        Self { from: self.from, bits: self.bits.iter().enumerate().map(word).collect() }
    }

    /// How many are marked.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.bits.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The first and the last that are marked.
    #[must_use]
    pub fn ends(&self) -> Option<(Offset, Offset)> {
        let at = |index: usize, bit: u32| self.from.plus(index as u64 * 64 + u64::from(bit));
        let mut some = self.bits.iter().enumerate().filter(|(_, word)| **word != 0);
        let first = some.clone().next().map(|(i, word)| at(i, word.trailing_zeros()))?;
        let last = some.next_back().map(|(i, word)| at(i, 63 - word.leading_zeros()))?;
        Some((first, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn marked_offsets_are_a_set(
            from in 0u64..200,
            some in proptest::collection::vec(0u64..500, 0..60),
            others in proptest::collection::vec(0u64..500, 0..60),
        ) {
            let span = Span { partition: Partition(0), from: Offset(from), to: Offset(from + 300) };
            let within = |n: &&u64| (from..from + 300).contains(*n);
            let make = |all: &[u64]| {
                let mut marked = Marked::none_of(span).unwrap_or_default();
                all.iter().filter(within).for_each(|n| { marked.add(Offset(*n)); });
                (marked, all.iter().filter(within).copied().collect::<BTreeSet<u64>>())
            };
            let ((a, set), (b, other)) = (make(&some), make(&others));
            let left: BTreeSet<u64> = set.difference(&other).copied().collect();
            for n in 0..600 {
                prop_assert_eq!(a.has(Offset(n)), set.contains(&n));
                prop_assert_eq!(a.without(&b).has(Offset(n)), left.contains(&n));
            }
            prop_assert_eq!(a.without(&b).count(), left.len() as u64);
            let ends = left.first().zip(left.last()).map(|(a, b)| (Offset(*a), Offset(*b)));
            prop_assert_eq!(a.without(&b).ends(), ends);
        }
    }

    #[test]
    fn a_window_without_bounds_is_refused() {
        let span = Span { partition: Partition(0), from: Offset(0), to: Offset(u64::MAX) };
        assert!(Marked::none_of(span).is_err());
    }
}
