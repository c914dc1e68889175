//! Positions in the log.

use std::fmt;

/// One partition of the log, counted from 0.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Partition(pub u32);

/// Position of one event in one partition of the log. The first event is 0; never reused.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset `count` events further on.
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }

    /// How many events lie in `[from, self)`; 0 when `from` is not before `self`.
    #[must_use]
    pub fn since(self, from: Self) -> u64 {
        self.0.saturating_sub(from.0)
    }
}

/// A half-open range of offsets, never empty: `from` is in it, `to` is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct OffsetRange {
    from: Offset,
    to: Offset,
}

impl OffsetRange {
    /// `[from, to)`, or `None` where that would be empty.
    #[must_use]
    pub fn new(from: Offset, to: Offset) -> Option<Self> {
        (from < to).then_some(Self { from, to })
    }

    /// The first offset in it.
    #[must_use]
    pub fn from(&self) -> Offset {
        self.from
    }

    /// The first offset after it.
    #[must_use]
    pub fn to(&self) -> Offset {
        self.to
    }

    /// How many offsets it holds, at least 1.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.to.0 - self.from.0
    }

    /// True when `offset` lies in it.
    #[must_use]
    pub fn contains(&self, offset: Offset) -> bool {
        self.from <= offset && offset < self.to
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.from, self.to)
    }
}
