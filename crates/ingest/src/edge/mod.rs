//! The public side: TLS, keys, limits, protocols.

pub mod answer;
mod away;
mod bare;
pub(crate) mod bench;
mod body;
mod coding;
mod connection;
mod cors;
mod credentials;
mod crowd;
mod door;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod grpc;
mod head;
pub mod judge;
mod keyed;
mod listed;
mod login;
mod over;
pub mod problem;
pub mod protocol;
mod request;
mod routing;
mod server;
mod sigv4;
mod tls;
pub(crate) mod turns;
mod work;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use tidegate_event::TenantId;

use crate::{
    config::{Size, Span},
    quota::GraceConfig,
};

pub use away::{Answered, Away, Behind, Keep};
pub(crate) use server::{CONNECTION_BYTES, TLS_CONNECTION_BYTES};
pub use server::{Edge, EdgeError, EdgeHandle, EdgeParts, EdgeStats, bind};
pub use tls::TlsError;

/// `[edge]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EdgeConfig {
    /// Where to listen.
    pub listen: String,
    /// Where else, with the same protocols and TLS; absent: nowhere, or in `--dev` where OTLP's clients
    /// send if nobody tells them.
    pub also_listen: Option<Vec<String>>,
    /// The same, but it starts where one of these is taken.
    #[serde(skip)]
    pub optional_listen: Vec<String>,
    /// `[edge.tls]`; absent: plain HTTP.
    pub tls: Option<TlsConfig>,
    /// `[edge.limits]`
    pub limits: Limits,
    /// `[edge.timeouts]`
    pub timeouts: Timeouts,
    /// `[edge.open]`: by protocol, the tenant to whom belongs what comes without a key.
    pub open: BTreeMap<String, TenantId>,
    /// `[edge.event_types]`: by protocol, what names the types of its events.
    pub event_types: BTreeMap<String, String>,
    /// `[edge.grace]`
    pub grace: GraceConfig,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".to_owned(),
            also_listen: None,
            optional_listen: Vec::new(),
            tls: None,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            open: BTreeMap::new(),
            event_types: BTreeMap::new(),
            grace: GraceConfig::default(),
        }
    }
}

/// `[edge.tls]`: PEM files, read again on reload and when they change.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificate chain, leaf first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// `[edge.limits]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of all headers together (431).
    pub header_bytes: Size,
    /// How many headers (431).
    pub headers: usize,
    /// Bytes of a body as sent (413).
    pub body_bytes: Size,
    /// Bytes of a body decoded (413); at most 1 GiB.
    pub decoded_bytes: Size,
    /// Decoded bytes for one byte sent, past the first MiB decoded (413).
    pub ratio: u64,
    /// Bytes of one event (rejected).
    pub event_bytes: Size,
    /// Events of one request (413).
    pub events: u32,
    /// Nesting of one event: objects and arrays inside each other (rejected).
    pub depth: usize,
    /// Fields of one event, at all depths together (rejected).
    pub fields: usize,
    /// Bytes of a body that is read for the key in it, as sent and decoded (413); at most 4 MiB.
    pub unauthenticated_bytes: Size,
    /// Connections at once; at the bound whoever holds most gives one back.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: Size(16 << 10),
            headers: 64,
            body_bytes: Size::mib(16),
            decoded_bytes: Size::mib(64),
            ratio: 100,
            event_bytes: Size::mib(1),
            events: 50_000,
            depth: 32,
            fields: 512,
            unauthenticated_bytes: Size(512 << 10),
            connections: 2_500,
        }
    }
}

/// `[edge.timeouts]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// TLS handshake.
    pub handshake: Span,
    /// From a request's first byte to the end of its headers.
    pub header: Span,
    /// The whole body.
    pub body: Span,
    /// Between two reads of a body.
    pub body_idle: Span,
    /// A connection without a request.
    pub idle: Span,
    /// From SIGTERM to the end of what is in flight, sinks included.
    pub drain: Span,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Span::seconds(5),
            header: Span::seconds(10),
            body: Span::seconds(30),
            body_idle: Span::seconds(10),
            idle: Span::seconds(60),
            drain: Span::seconds(30),
        }
    }
}
