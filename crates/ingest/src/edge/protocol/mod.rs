//! The protocols: each turns a request into items, and outcomes into its own answer.
//!
//! A protocol is one file with one row, and one line in [`PROTOCOLS`]. It knows paths, media types
//! and where the key stands; it knows nothing of quotas, limits, schemas or the log.

mod cloudevents;
mod elasticsearch;
mod events;
mod firehose;
mod hec;
mod loki;
mod members;
pub(crate) mod naming;
mod noted;
mod otlp;
mod outcomes;
mod path;
mod posthog;
mod protobuf;
mod segment;
mod snowplow;
mod telemetry;
mod track;
mod whole;

use std::ops::ControlFlow;

use http::{Method, request::Parts};
use tidegate_event::{EventType, Reason};

use super::{
    answer::{Answer, Refusal},
    coding::Coding,
    cors::Cors,
    credentials::Carrier,
    problem::Problem,
};
use crate::normalize::Item;

pub(super) use elasticsearch::Notes;
pub(super) use noted::Noted;
pub(super) use outcomes::Sorted;
pub use outcomes::{Outcomes, Slot};
pub(super) use path::percent_decoded;

/// Every protocol. Where several share a path, the first whose `takes` says yes serves the request.
pub const PROTOCOLS: &[Protocol] = &[
    cloudevents::PROTOCOL,
    events::PROTOCOL,
    telemetry::PROTOCOL,
    track::PROTOCOL,
    hec::PROTOCOL,
    segment::PROTOCOL,
    posthog::PROTOCOL,
    firehose::PROTOCOL,
    firehose::http_endpoint::PROTOCOL,
    snowplow::PROTOCOL,
    otlp::PROTOCOL,
    loki::PROTOCOL,
    elasticsearch::PROTOCOL,
];

/// Every kind of request that brings no events, but needs a key and its body.
const QUESTIONS: &[Question] = &[firehose::QUESTION];

/// A kind of request that brings no events, but needs a key and its body.
pub(super) struct Question {
    /// Of which protocol, by its name.
    pub protocol: &'static str,
    /// True where a request is one, by its head.
    pub asked: fn(&Parts) -> bool,
    /// The answer.
    pub answer: fn(&Asked<'_>) -> Answer,
}

/// What an answer to a [`Question`] is made from.
pub(super) struct Asked<'a> {
    pub call: Call<'a>,
    /// Decoded.
    pub body: &'a [u8],
    /// The event types the key may send; `None`: all.
    pub allowed: Option<&'a [String]>,
    /// Those that the tenant has sent, as far as this server knows.
    pub known: Vec<EventType>,
}

impl Question {
    /// The answer to a request that is there whole.
    pub(super) fn ask(
        &self,
        call: Call<'_>,
        (body, coding): (&[u8], Coding),
        allowed: Option<&[String]>,
        known: Vec<EventType>,
    ) -> Result<Answer, Refusal> {
        if coding != Coding::Identity {
            let detail = "this is taken without a content coding";
            return Err(Refusal::problem(Problem::CONTENT_CODING, detail));
        }
        Ok((self.answer)(&Asked { call, body, allowed, known }))
    }
}

/// What answers a request that brings no events.
pub(super) fn question(protocol: &Protocol, parts: &Parts) -> Option<&'static Question> {
    let mut of_it = QUESTIONS.iter().filter(|question| question.protocol == protocol.name);
    of_it.find(|question| (question.asked)(parts))
}

/// One protocol.
pub struct Protocol {
    /// As it stands in the log and in metrics; at most 255 bytes.
    pub name: &'static str,
    /// Which methods at which paths bring events.
    pub routes: &'static [Route],
    /// What is answered without events.
    pub probes: &'static [Probe],
    /// Who may send.
    pub login: Login,
    /// What pages of other origins may do; `None`: nothing.
    pub cors: Option<Cors>,
    /// What the media types are that it takes, for people.
    pub media_types: &'static str,
    /// True where this request is one of its own, by its head.
    pub takes: fn(&Parts) -> bool,
    /// The one event type of the whole request, where the head settles it.
    pub only_type: fn(&Parts) -> Option<String>,
    /// Finds the items in a body.
    pub decode: Decode,
    /// What its answer tells of single items.
    pub tells: Tells,
    /// Its answer once the outcomes are known.
    pub encode: fn(&Call<'_>, &Outcomes) -> Answer,
    /// Its answer where the request as a whole is refused, in a way that its clients honour.
    pub refuse: fn(&Call<'_>, &Refusal) -> Answer,
}

/// Hands each item to the callback, in order; stops early when that says so.
pub type Decode =
    fn(&Parts, &[u8], &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>) -> Result<(), DecodeFault>;

/// A path and its methods.
pub struct Route {
    /// Which methods.
    pub methods: &'static [Method],
    /// The whole path; `{name}` stands for one segment.
    pub path: &'static str,
}

/// A request that brings no events, needs no key, and is answered from its head.
pub struct Probe {
    /// Which methods.
    pub methods: &'static [Method],
    /// The whole path, as [`Route::path`].
    pub path: &'static str,
    /// The answer; the second argument says whether an event would be taken now.
    pub answer: fn(&Parts, bool) -> Answer,
}

/// Who may send by a protocol, and how that is shown.
pub struct Login {
    /// Where in the head a key may stand.
    pub carriers: &'static [Carrier],
    /// Finds the key in the decoded body, where the head has none. Such a body is read before anybody
    /// is known, up to `edge.limits.unauthenticated_bytes`.
    pub in_body: Option<FindKey>,
    /// True where `[edge.open]` may name a tenant for requests without a key.
    pub may_be_open: bool,
    /// `WWW-Authenticate` of a 401.
    pub challenge: &'static str,
}

/// Finds the key in a body.
pub type FindKey = fn(&[u8]) -> Option<String>;

/// How our own protocols are logged in to.
const OWN_LOGIN: Login = Login {
    carriers: &[Carrier::Bearer, Carrier::ApiKeyHeader],
    in_body: None,
    may_be_open: false,
    challenge: "Bearer realm=\"tidegate\"",
};

/// What an answer tells of single items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tells {
    /// At most so many reasons. Where nothing could be kept, the request as a whole is refused.
    Reasons(usize),
    /// What became of each item, also where none could be kept: [`Outcomes::slots`].
    EachItem,
}

impl Tells {
    /// How many reasons are to be kept for it.
    #[must_use]
    pub fn reasons(self) -> usize {
        match self {
            Self::Reasons(most) => most,
            Self::EachItem => usize::MAX,
        }
    }
}

/// The request that is answered.
pub struct Call<'a> {
    /// Its head.
    pub parts: &'a Parts,
    /// Its id.
    pub request_id: &'a str,
    /// What the ids of events that came without one are made from.
    pub base_id: &'a [u8; 16],
    /// How many items it holds; `None` where it was refused before they were counted.
    pub items: Option<u64>,
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

/// How a body is coded where the head need not say so.
pub(super) fn implied_coding(parts: &Parts) -> Option<Coding> {
    loki::coding(parts)
}

/// What serves a path and method.
pub(super) enum Routed {
    /// Those that share it, at least one.
    Protocols(Vec<&'static Protocol>),
    /// A request without events.
    Probe(&'static Protocol, &'static Probe),
    /// A browser's question before a request.
    Preflight(&'static Protocol),
    /// The path takes only these.
    WrongMethod(Vec<&'static Method>),
    Nothing,
}

/// Finds what serves a path.
pub(super) fn route(method: &Method, path: &str) -> Routed {
    let mut protocols = Vec::new();
    let mut methods: Vec<&'static Method> = Vec::new();
    for protocol in PROTOCOLS {
        let mut browsers = false;
        for route in protocol.routes.iter().filter(|route| path::matches(route.path, path)) {
            if route.methods.contains(method) {
                protocols.push(protocol);
            }
            methods.extend(route.methods);
            browsers = true;
        }
        for probe in protocol.probes.iter().filter(|probe| path::matches(probe.path, path)) {
            if probe.methods.contains(method) {
                return Routed::Probe(protocol, probe);
            }
            methods.extend(probe.methods);
            browsers = true;
        }
        if browsers && protocol.cors.is_some() {
            if *method == Method::OPTIONS {
                return Routed::Preflight(protocol);
            }
            methods.push(&Method::OPTIONS);
        }
    }
    methods.dedup();
    match (protocols.is_empty(), methods.is_empty()) {
        (false, _) => Routed::Protocols(protocols),
        (true, false) => Routed::WrongMethod(methods),
        (true, true) => Routed::Nothing,
    }
}
