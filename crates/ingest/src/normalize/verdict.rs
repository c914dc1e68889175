//! The normalizer's question and answer: one item in, one verdict out.

use std::borrow::Cow;

use tidegate_event::{EventTime, EventType, Reason, ReceivedAt, SchemaRef};

use crate::tenants::Tenant;

/// What holds for every item of a request.
#[derive(Clone, Copy, Debug)]
pub struct JudgeContext<'a> {
    /// Whose items.
    pub tenant: &'a Tenant,
    /// When the edge had the whole request.
    pub received_at: ReceivedAt,
    /// The event types the key may send; `None`: all.
    pub key_types: Option<&'a [String]>,
}

/// When the sender says it happened, as the protocol carries it beside the event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ItemTime<'a> {
    /// Not said (for a reserved body: not outside of it).
    #[default]
    None,
    /// RFC 3339 text, not checked yet.
    Rfc3339(&'a str),
    /// Microseconds since 1970, UTC.
    Micros(i64),
}

/// One item of a request, as its protocol found it.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// The event's bytes, not checked yet.
    pub raw: &'a [u8],
    /// Its type, as told outside of the event; a reserved `event_type` in the body goes over it.
    pub event_type: Option<&'a str>,
    /// Its id, as told outside of the event; a reserved `event_id` in the body goes over it.
    pub event_id: Option<&'a str>,
    /// Its time, as told outside of the event; a reserved `event_time` in the body goes over it.
    pub event_time: ItemTime<'a>,
    /// True where `event_type`, `event_id` and `event_time` in the body are ours.
    pub reserved: bool,
    /// The type's name as it came, where the protocol mapped it already.
    pub source_name: Option<&'a str>,
    /// True where a foreign type name is mapped to one that fits; false: it is a dead letter.
    pub map_names: bool,
}

/// What becomes of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Valid.
    Accepted,
    /// A JSON object that is not valid: kept with the reason.
    DeadLetter(Reason),
    /// Cannot be kept.
    Rejected(Reason),
}

/// An item, judged.
#[derive(Clone, Debug)]
pub struct Judged<'s> {
    /// Its type; [`EventType::UNNAMED`] where it has none.
    pub event_type: EventType,
    /// The schema it was judged by.
    pub schema: SchemaRef,
    /// The id the client gave, if any.
    pub client_id: Option<Cow<'s, str>>,
    /// When it happened.
    pub event_time: EventTime,
    /// True where a personal-data rule changed `raw`.
    pub pii_changed: bool,
    /// What else is to be known, for the log; see `tidegate_event::record`.
    pub note: Cow<'s, str>,
    /// The bytes to keep.
    pub raw: Cow<'s, [u8]>,
    /// The verdict.
    pub verdict: Verdict,
}
