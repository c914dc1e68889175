//! Where events go: one cursor per partition and sink.
//!
//! | file | purpose |
//! | --- | --- |
//! | `source` | what a sink needs of a log |
//! | `rows` | the frames of a window, sorted into lanes |
//! | `state` | the cursor file: cursor, intent, held lanes, counts |
//! | `start` | where a sink begins that has no cursor yet |
//! | `runner` | starts, drains and asks the workers: what the rest of the program sees |
//! | `worker` | read, cut, intent, write, cursor: once, for all sinks; `window` cuts, `expire` skips |
//! | `crew`, `delivery`, `held` | its threads: a window's writer; lanes that wait alone, and catch up |
//! | `desk` | what these threads share: board, state file, how rows are written |
//! | `pace`, `memory`, `pressure` | which lane is slow; how large a window may be; what is shed |
//! | `back` | a row as it is read back from a destination |
//! | `shadow` | the shadow of a sink: where replay writes to |
//! | `reconcile` | holds a destination against the log, writes what it lost |
//! | `exchange`, `exchangeable`, `promoted` | rows of a window exchanged for a shadow's, and what of that holds |
//! | `freshness` | how old events are when they become visible, and what was promised |
//! | `upkeep` | work beside writing, behind all else |
//! | `blackhole` | the shortest sink, meant to be copied (docs/add-a-sink.md) |
//! | `clickhouse` | inserts into tables of ClickHouse |
//! | `elasticsearch` | creates documents in data streams of Elasticsearch or OpenSearch |
//! | `kafka` | produces messages to topics of Apache Kafka |
//! | `lake` | Parquet and JSONL files in a folder or an object store |
//! | `names`, `secret`, `web` | names by a template, secrets, HTTP: what sinks of servers share |
//!
//! Exactly once, in short: a window `[from, to)` is cut, its intent is made durable, each lane's
//! rows are written under names that follow from the rows alone, the cursor is made durable at `to`.
//! After a crash the same window is read again (its hash says that it is the same), and writing it
//! again changes nothing.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tidegate_event::{Partition, ReceivedAt};
use tokio::runtime::Handle;

use crate::{
    config::{Size, Span},
    storage::Storage,
};

mod apart;
pub mod back;
mod blackhole;
mod clickhouse;
mod crew;
mod delivery;
mod desk;
mod elasticsearch;
pub mod exchange;
mod exchangeable;
mod expire;
pub mod freshness;
mod held;
mod kafka;
pub mod lake;
mod memory;
mod names;
mod pace;
mod poison;
mod pressure;
pub mod promoted;
mod quarantine;
pub mod reconcile;
pub mod rows;
pub mod runner;
mod secret;
pub mod shadow;
pub mod source;
pub mod start;
pub mod state;
pub mod status;
pub mod upkeep;
mod web;
mod window;
mod worker;

pub use clickhouse::{BackRows, ClickHouseReader, Stretch, Sum};
pub use freshness::Objective;
pub use memory::{FACTOR as MEMORY_FACTOR, ROW_BYTES};
pub use reconcile::Found;
pub use rows::{Lane, LaneRows};
pub use runner::{SinkParts, SinkStartError, Sinks, start, start_with};
pub use start::Start;
pub use status::{Counts, HeldLane, JoinStatus, LaneCounts, SinkState, SinkStatus};

/// Every kind of sink. To add one, add a row.
pub const SINKS: &[SinkKind] =
    &[blackhole::KIND, clickhouse::KIND, elasticsearch::KIND, kafka::KIND, lake::KIND];

/// One kind of sink.
pub struct SinkKind {
    /// As it stands in `kind`.
    pub name: &'static str,
    /// What is wrong with its configuration, as far as can be told without opening anything.
    pub check: fn(&SinkConfig) -> Result<(), SinkConfigError>,
    /// Checks its configuration and opens it. Makes no request.
    pub open: OpenSink,
    /// Where its shadows lie: never where a live sink of this kind writes.
    pub shadow: shadow::MakeShadow,
    /// Several runners may write windows of one partition at the same time: nothing is kept by partition.
    pub side_by_side: bool,
}

impl SinkKind {
    /// The kind that a configuration names.
    ///
    /// # Errors
    /// It names none; the message says which there are.
    pub fn of(config: &SinkConfig) -> Result<&'static Self, SinkConfigError> {
        SINKS.iter().find(|kind| kind.name == config.kind).ok_or_else(|| {
            let kinds: Vec<_> = SINKS.iter().map(|kind| kind.name).collect();
            SinkConfigError(format!("kind {:?} is none of {}", config.kind, kinds.join(", ")))
        })
    }
}

/// Opens one sink.
pub type OpenSink = fn(&SinkConfig, &SinkContext) -> Result<Arc<dyn Sink>, SinkConfigError>;

/// What a sink may use.
#[derive(Clone)]
pub struct SinkContext {
    /// The log whose events it gets: 8 characters; empty where there is none.
    pub log_id: String,
    /// What this process is called among those that have the log too; `None`: no others do.
    pub shared_as: Option<String>,
    /// The data folder.
    pub data_dir: PathBuf,
    /// The file system.
    pub storage: Arc<dyn Storage>,
    /// Schemas by their hash.
    pub schemas: Arc<dyn lake::Schemas>,
    /// Where futures are run.
    pub runtime: Handle,
}

/// A sink's configuration is wrong, or its place cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SinkConfigError(pub String);

/// A destination. Called from several threads per partition, blocking; never twice at once for one
/// lane of one partition. Every call must come back: a write that never does keeps its thread, and
/// its lane waits until the server is started again.
pub trait Sink: Send + Sync {
    /// Writes all rows of one lane of one window, durably and visibly, under names (or tokens) that
    /// follow from the rows alone: the same rows are written again after a fault or a crash, and
    /// that must change nothing.
    ///
    /// # Errors
    /// [`WriteError`]: what the runner must do next.
    fn write(&self, rows: &LaneRows<'_>) -> Result<(), WriteError>;

    /// Asks whether the destination takes anything at all: tells its outage from one lane's.
    ///
    /// # Errors
    /// Its own words when it does not.
    fn probe(&self) -> Result<(), String>;

    /// This process begins with a partition, of which another one may have written meanwhile: what is
    /// remembered of it counts for nothing any more.
    fn begins_with(&self, _partition: Partition) {}

    /// How old the oldest event may grow before a window is cut, where the configuration is silent.
    fn flush_age(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// True where what is written is visible only once [`Sink::are_visible`] says so.
    fn asks(&self) -> bool {
        false
    }

    /// Which of these rows, all of which were written, can be read at the destination.
    ///
    /// # Errors
    /// Its own words when it cannot be asked.
    fn are_visible(&self, marks: &[freshness::Mark]) -> Result<Vec<bool>, String> {
        Ok(vec![true; marks.len()])
    }

    /// What there is to do beside writing, by a thread of its own.
    fn upkeep(&self) -> Option<&dyn upkeep::Upkeep> {
        None
    }

    /// True where it can be asked which rows it has.
    fn can_reconcile(&self) -> bool {
        false
    }

    /// Which of these rows, all of which it had stored, the destination does not have; `repair` (the
    /// name of a repair): writes those, so that a second try under the same name changes nothing.
    ///
    /// # Errors
    /// [`WriteError`], with what was found where all was asked.
    fn reconcile(
        &self,
        rows: &LaneRows<'_>,
        repair: Option<&str>,
        now: ReceivedAt,
    ) -> Result<Found, (Option<Found>, WriteError)> {
        let _ = (rows, repair, now);
        Err((None, WriteError::Conflict { cause: "it cannot be asked which rows it has".into() }))
    }

    /// Its way to exchange rows of a window for those of a shadow.
    ///
    /// # Errors
    /// Why it has none, and what to do instead.
    fn exchange(&self) -> Result<&dyn exchange::Exchange, &'static str> {
        Err("what it has written cannot be exchanged")
    }

    /// Removes all that it holds: a shadow's last step.
    ///
    /// # Errors
    /// What could not be removed, and what to do.
    fn erase(&self, _: &shadow::Erase) -> Result<(), String> {
        Err("a sink of this kind removes nothing: remove it by its own tools".to_owned())
    }

    /// No window is cut larger than so many bytes of events for now: as long as it is not known how long
    /// writing takes.
    fn window_bytes(&self) -> Option<u64> {
        None
    }

    /// What the destination is to be spared, if anything now: windows that are not full wait for it.
    fn pause(&self) -> Option<Pause> {
        None
    }
}

/// Why windows that are old enough wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Until then.
    pub until: Instant,
    /// Why, in words for `status`.
    pub why: String,
}

/// What the runner must do next. Variants are actions, not causes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Try the same rows again later: the sink waits if its probe fails too, else the lane alone.
    #[error("not written: {cause}")]
    Retry {
        /// The destination's own words.
        cause: String,
    },
    /// What is there already is not what these rows make: alarm, never overwrite, hold the lane.
    #[error("there is something else already: {cause}")]
    Conflict {
        /// Where, and what.
        cause: String,
    },
    /// These rows can never be written: set them aside and write the others.
    #[error("{} rows can never be written", rows.len())]
    Reject {
        /// Their places in the rows given, in order, and why.
        rows: Vec<(usize, String)>,
    },
}

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
    /// Where it begins as long as it has no cursor.
    #[serde(default)]
    pub start: Start,
    /// Which events.
    #[serde(default)]
    pub filter: Filter,
    /// When a window is cut.
    #[serde(default)]
    pub flush: Flush,
    /// How fresh what it makes visible is to be, such as `"p95 < 3s"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
    /// What happens when its backlog reaches `log.backlog_bytes`.
    #[serde(default)]
    pub policy: Policy,
    /// Settings of this kind of sink alone.
    #[serde(default)]
    pub options: toml::Table,
    /// What its shadows have in place of `options`, such as credentials of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<toml::Table>,
    /// Behind the name of every table, topic or stream: a shadow's, and empty for a live sink. No
    /// configuration sets it.
    #[serde(skip)]
    pub suffix: String,
}

impl SinkConfig {
    /// Without what the runner takes for itself: what is for the sink.
    pub(crate) fn own(&self) -> Self {
        let mut own = self.clone();
        own.options.remove("lane_bytes");
        own
    }

    /// A lake at `url` with all else as it is by default.
    #[must_use]
    pub fn lake(name: &str, url: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: lake::KIND.name.to_owned(),
            url: Some(url.to_owned()),
            start: Start::First,
            filter: Filter::default(),
            flush: Flush::default(),
            objective: None,
            policy: Policy::default(),
            options: toml::Table::new(),
            shadow: None,
            suffix: String::new(),
        }
    }
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

impl Filter {
    /// True for a lane whose events it takes.
    #[must_use]
    pub fn takes(&self, lane: &Lane) -> bool {
        let listed =
            |list: &[String], name: &str| list.is_empty() || list.iter().any(|n| n == name);
        listed(&self.tenants, lane.tenant.as_str())
            && listed(&self.event_types, lane.event_type.as_str())
    }
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
