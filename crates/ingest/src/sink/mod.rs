//! Where events go: one cursor per partition and sink.

use serde::{Deserialize, Serialize};

use crate::config::{Size, Span};

/// `[[sink]]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SinkConfig {
    /// Its name, in cursors, metrics and `status`: as an event type's.
    pub name: String,
    /// Which sink: a row of `SINKS`.
    pub kind: String,
    /// Where to: for the lake a folder, `file://`, `s3://`, `gs://` or `az://` URL.
    #[serde(default)]
    pub url: Option<String>,
    /// Which events.
    #[serde(default)]
    pub filter: Filter,
    /// When a window is cut.
    #[serde(default)]
    pub flush: Flush,
    /// What happens when its backlog reaches `log.backlog_bytes`.
    #[serde(default)]
    pub policy: Policy,
    /// Settings of this kind of sink alone.
    #[serde(default)]
    pub options: toml::Table,
}

/// Which events a sink takes. Empty lists: all.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Only these tenants.
    pub tenants: Vec<String>,
    /// Only these event types.
    pub event_types: Vec<String>,
}

/// When a window is cut: at whichever comes first.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flush {
    /// Bytes of log; 64 MiB if absent.
    pub bytes: Option<Size>,
    /// Events; 1,000,000 if absent.
    pub rows: Option<u64>,
    /// Age of the oldest event; 5 s on a local folder, 60 s on an object store if absent.
    pub age: Option<Span>,
}

/// What happens when a sink's backlog reaches its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// New events are refused until it has caught up.
    #[default]
    Block,
    /// The oldest events are skipped for this sink: counted, alarmed.
    Expire,
}
