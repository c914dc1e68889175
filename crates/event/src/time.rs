//! Two clocks, two types: the sender's and ours do not compare.

/// When the sender says it happened: microseconds since 1970-01-01T00:00:00Z.
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
pub struct EventTime(pub i64);

/// When the edge had the whole request: microseconds since 1970-01-01T00:00:00Z, UTC.
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
pub struct ReceivedAt(pub i64);

impl ReceivedAt {
    /// Hours since 1970-01-01T00:00Z: what the lake's `date=` and `hour=` folders are made from.
    #[must_use]
    pub fn hour(self) -> i64 {
        self.0.div_euclid(3_600_000_000)
    }

    /// The event time of an event that brought none.
    #[must_use]
    pub fn as_event_time(self) -> EventTime {
        EventTime(self.0)
    }
}
