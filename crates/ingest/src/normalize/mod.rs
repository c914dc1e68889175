//! Gives each event its verdict: a pure function of the event and its schema.
//!
//! ```text
//! judge:    scan → our fields → type → key's types → flaws → schema: units, fields → verdict → PII
//! project:  an accepted event as a row: the schema's columns, the rest in `custom`
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | `judge` | the order of the rules |
//! | `reserved` | `event_type`, `event_id`, `event_time` |
//! | `fields`, `check` | one field: unit, type, range, keywords |
//! | `exact`, `unit` | numbers without rounding, UCUM |
//! | `pii` | drop, hash, mask |
//! | `project` | rows |
//! | `schema`, `set`, `store`, `fault` | one schema, all of a folder, contents by hash, what is wrong |
//! | `unreadable` | what can be no event, kept whole |
//! | `guess` | where the previous event had its fields |

mod check;
mod exact;
mod fault;
mod fields;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod guess;
mod judge;
mod pii;
mod project;
mod reserved;
mod schema;
mod set;
mod store;
#[cfg(test)]
mod tests;
mod unit;
pub mod unreadable;

pub use fault::SchemaFault;
pub use fields::Cell;
pub use judge::Scratch;
pub use project::{ProjectError, ProjectScratch, Row};
pub use reserved::is_rfc3339;
pub use schema::{ColumnSpec, ColumnType, OWN_COLUMNS, Schema};
pub use set::{
    Before, SchemaEntry, SchemaSet, check_dir, check_entries, check_evolution, evolution_notes,
    read_dir, succession,
};
pub use store::{SchemaStore, SharedContents, StoreError};

use std::{borrow::Cow, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tidegate_event::{EventTime, EventType, Reason, ReceivedAt, SchemaRef};

use crate::{json::ScanLimits, tenants::Tenant};

/// `[schemas]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchemasConfig {
    /// The folder of schemas; absent: none.
    pub dir: Option<PathBuf>,
    /// What becomes of types without a schema.
    pub unknown_types: UnknownTypes,
}

/// What becomes of events whose type has no schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownTypes {
    /// Accepted, all their fields in `custom`.
    #[default]
    Accept,
    /// Dead letters.
    Refuse,
}

/// Who sent, when it came, and what the key may send.
#[derive(Clone, Copy, Debug)]
pub struct JudgeContext<'a> {
    /// Whose event it is.
    pub tenant: &'a Tenant,
    /// When the edge had the whole request.
    pub received_at: ReceivedAt,
    /// The event types this key may send; `None`: all.
    pub key_types: Option<&'a [String]>,
}

/// When an event happened, as its protocol says it beside the event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ItemTime<'a> {
    /// It does not say.
    #[default]
    None,
    /// As RFC 3339 text.
    Rfc3339(&'a str),
    /// Microseconds since 1970-01-01T00:00:00Z.
    Micros(i64),
}

/// One event as its protocol module hands it over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Item<'a> {
    /// The event's bytes.
    pub raw: &'a [u8],
    /// Its type, where the body says none.
    pub event_type: Option<&'a str>,
    /// Its id, where the body says none.
    pub event_id: Option<&'a str>,
    /// Its time, where the body says none.
    pub event_time: ItemTime<'a>,
    /// True: `event_type`, `event_id` and `event_time` in the body are ours; false: the event's own.
    pub reserved: bool,
    /// The name its type had before the protocol module changed it.
    pub source_name: Option<&'a str>,
    /// True: a type's name that does not fit is mapped; false: it makes a dead letter.
    pub map_names: bool,
}

/// The verdict on one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Valid.
    Accepted,
    /// Kept, with the reason.
    DeadLetter(Reason),
    /// Not kept.
    Rejected(Reason),
}

/// One event, judged: what goes into the log of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged<'s> {
    /// Its type; [`EventType::unnamed`] where it has none.
    pub event_type: EventType,
    /// The schema it was judged by; version 0 for none.
    pub schema: SchemaRef,
    /// The id the client gave.
    pub client_id: Option<Cow<'s, str>>,
    /// When it happened; the receive time where it does not say, or says what cannot be.
    pub event_time: EventTime,
    /// True where `raw` is not what was sent.
    pub pii_changed: bool,
    /// The record's note (see [`tidegate_event::record`]).
    pub note: Cow<'s, str>,
    /// The event's bytes, after the personal-data rules.
    pub raw: Cow<'s, [u8]>,
    /// What became of it.
    pub verdict: Verdict,
}

/// True where `event_type`, `event_id` and `event_time` in the bodies of this protocol are ours, by
/// the protocol's name in the batch.
#[must_use]
pub fn reserved_in(protocol: &str) -> bool {
    matches!(protocol, "events" | "track")
}

/// Judges events by the schemas of the live generation.
#[derive(Debug)]
pub struct Normalizer {
    config: SchemasConfig,
    store: Arc<SchemaStore>,
    limits: ScanLimits,
    set: ArcSwap<SchemaSet>,
}

impl Normalizer {
    /// Reads the folder of schemas and makes their contents durable.
    ///
    /// # Errors
    /// Every fault of every file.
    pub fn load(
        config: &SchemasConfig,
        store: Arc<SchemaStore>,
        limits: ScanLimits,
    ) -> Result<Self, Vec<SchemaFault>> {
        let set = Self::read(config, &store, 1)?;
        Ok(Self { config: config.clone(), store, limits, set: ArcSwap::from_pointee(set) })
    }

    /// Judges by these schemas alone, whatever the folder holds.
    #[must_use]
    pub fn pinned(
        entries: Vec<SchemaEntry>,
        refuse_unknown: bool,
        store: Arc<SchemaStore>,
        limits: ScanLimits,
    ) -> Self {
        let unknown_types =
            if refuse_unknown { UnknownTypes::Refuse } else { UnknownTypes::Accept };
        let set = SchemaSet::new(entries, unknown_types, 1);
        let config = SchemasConfig { dir: None, unknown_types };
        Self { config, store, limits, set: ArcSwap::from_pointee(set) }
    }

    fn read(
        config: &SchemasConfig,
        store: &SchemaStore,
        generation: u64,
    ) -> Result<SchemaSet, Vec<SchemaFault>> {
        let entries = match &config.dir {
            Some(dir) => read_dir(dir)?,
            None => Vec::new(),
        };
        store.keep(&entries)?;
        Ok(SchemaSet::new(entries, config.unknown_types, generation))
    }

    /// Reads the folder again, for [`Normalizer::install`]. Changes nothing yet.
    ///
    /// # Errors
    /// Every fault of every file.
    pub fn prepare(&self) -> Result<SchemaSet, Vec<SchemaFault>> {
        Self::read(&self.config, &self.store, self.set.load().generation() + 1)
    }

    /// Makes what [`Normalizer::prepare`] read the live generation.
    pub fn install(&self, set: SchemaSet) {
        self.set.store(Arc::new(set));
    }

    /// The live generation's schemas.
    #[must_use]
    pub fn schemas(&self) -> Arc<SchemaSet> {
        self.set.load_full()
    }
}
