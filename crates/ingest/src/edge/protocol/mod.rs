//! The protocols: each turns a request into items, and outcomes into its own answer.
//!
//! A protocol is one file with one row, and one line in [`PROTOCOLS`]. It knows paths, media types
//! and where the key stands; it knows nothing of quotas, limits, schemas or the log.

mod cloudevents;
mod events;

use std::ops::ControlFlow;

use http::{Method, request::Parts};
use tidegate_event::Reason;

use super::{
    answer::{Answer, ItemError, Refusal},
    head::Credentials,
    problem::Problem,
};
use crate::normalize::Item;

/// Every protocol. Where several share a path, the first whose `takes` says yes serves the request.
pub const PROTOCOLS: &[Protocol] = &[cloudevents::PROTOCOL, events::PROTOCOL];

/// One protocol.
pub struct Protocol {
    /// As it stands in the log and in metrics; at most 255 bytes.
    pub name: &'static str,
    /// Which methods at which paths.
    pub routes: &'static [Route],
    /// Where the key stands.
    pub key: for<'a> fn(&'a Parts) -> Credentials<'a>,
    /// What the media types are that it takes, for people.
    pub media_types: &'static str,
    /// True where this request is one of its own, by its head.
    pub takes: fn(&Parts) -> bool,
    /// The one event type of the whole request, where the head settles it.
    pub only_type: fn(&Parts) -> Option<String>,
    /// Finds the items in a body.
    pub decode: Decode,
    /// How many reasons it wants in [`Outcomes::errors`].
    pub errors_max: usize,
    /// Its answer once the outcomes are known and at least one item was kept.
    pub encode: fn(&Outcomes) -> Answer,
    /// Its answer where the request as a whole is refused.
    pub refuse: fn(&Refusal, request_id: &str) -> Answer,
}

/// Hands each item to the callback, in order; stops early when that says so.
pub type Decode =
    fn(&Parts, &[u8], &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>) -> Result<(), DecodeFault>;

/// A path and its methods.
pub struct Route {
    /// Which methods.
    pub methods: &'static [Method],
    /// The whole path.
    pub path: &'static str,
}

/// One item, and where in the body it stands.
#[derive(Debug)]
pub struct Arrived<'a> {
    /// Where.
    pub place: Place,
    /// What.
    pub found: Found<'a>,
}

/// What stands at a place of the body.
#[derive(Debug)]
pub enum Found<'a> {
    /// An item, to be judged.
    Item(Item<'a>),
    /// Something the protocol itself cannot take.
    Rejected(Reason),
}

/// Where an item begins, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Counted from 1.
    Line(usize),
    /// Counted from 0.
    Byte(usize),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(n) => write!(f, "line {n}"),
            Self::Byte(n) => write!(f, "byte {n}"),
        }
    }
}

/// The body as a whole cannot be read; nothing of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeFault {
    /// What kind.
    pub problem: Problem,
    /// What, where, and how to mend it.
    pub detail: String,
}

impl DecodeFault {
    fn new(problem: Problem, detail: impl Into<String>) -> Self {
        Self { problem, detail: detail.into() }
    }
}

/// What became of a request's items.
#[derive(Debug)]
pub struct Outcomes {
    /// The request's id.
    pub request_id: String,
    /// How many are durable and valid.
    pub accepted: u64,
    /// How many are durable with a reason.
    pub dead_lettered: u64,
    /// How many were known already by their id.
    pub deduplicated: u64,
    /// How many cannot be kept.
    pub rejected: u64,
    /// Items that were not accepted, in order.
    pub errors: Vec<ItemError>,
    /// True where `errors` does not list all.
    pub errors_truncated: bool,
}

/// What serves a path: the protocols there, or none of that method, or nothing.
pub(super) enum Routed {
    Protocols(Vec<&'static Protocol>),
    WrongMethod(Vec<&'static Method>),
    Nothing,
}

/// Finds what serves a path.
pub(super) fn route(method: &Method, path: &str) -> Routed {
    let mut protocols = Vec::new();
    let mut methods: Vec<&'static Method> = Vec::new();
    for protocol in PROTOCOLS {
        for route in protocol.routes.iter().filter(|route| route.path == path) {
            if route.methods.contains(method) {
                protocols.push(protocol);
            }
            methods.extend(route.methods);
        }
    }
    methods.dedup();
    match (protocols.is_empty(), methods.is_empty()) {
        (false, _) => Routed::Protocols(protocols),
        (true, false) => Routed::WrongMethod(methods),
        (true, true) => Routed::Nothing,
    }
}
