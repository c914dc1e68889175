//! What a comparison came to, as it is told and as it is kept in `compared.json`.

use std::{io, path::Path};

use serde::{Deserialize, Serialize};
use tidegate_event::{EventType, Offset, Partition, ReceivedAt, TenantId};

use super::super::plan::PlanId;
use crate::storage::{self, Storage};

/// The format of `compared.json`.
pub const FORMAT: u32 = 1;
/// The file's name in the job's folder.
pub const FILE: &str = "compared.json";

/// A comparison as it is kept in the job's folder: who compared what, when, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// Of this file: [`FORMAT`].
    pub format: u32,
    /// Which plan's shadow.
    pub plan_id: PlanId,
    /// When it began.
    pub at: ReceivedAt,
    /// Who asked for it.
    pub by: String,
    /// What came of it.
    #[serde(flatten)]
    pub result: Comparison,
}

/// `compared.json` cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ComparedError {
    /// The disk does not take or give it.
    #[error("{FILE}: {0}")]
    Disk(#[from] io::Error),
    /// It is not what it should be.
    #[error("{FILE} makes no sense: {0}; compare again")]
    Shape(#[from] serde_json::Error),
    /// Another version of the program wrote it.
    #[error("{FILE} is of format {0}, this program knows {FORMAT}; compare again")]
    Format(u32),
}

impl Compared {
    /// Keeps it in the job's folder, in the place of the one before; durable on return.
    ///
    /// # Errors
    /// [`ComparedError::Disk`].
    pub fn save(&self, storage: &dyn Storage, folder: &Path) -> Result<(), ComparedError> {
        let text = serde_json::to_vec(self)?;
        Ok(storage::replace(storage, &folder.join(FILE), &text)?)
    }

    /// Reads it from the job's folder; `None` where nothing was compared yet.
    ///
    /// # Errors
    /// [`ComparedError`].
    pub fn load(storage: &dyn Storage, folder: &Path) -> Result<Option<Self>, ComparedError> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let text = match storage.read(&folder.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let head: Head = serde_json::from_slice(&text)?;
        if head.format != FORMAT {
            return Err(ComparedError::Format(head.format));
        }
        Ok(Some(serde_json::from_slice(&text)?))
    }

    /// What came of one sink.
    #[must_use]
    pub fn sink(&self, name: &str) -> Option<&SinkCompared> {
        self.result.sinks.iter().find(|sink| sink.sink == name)
    }
}

/// What came of all sinks of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// True where no sink that could be compared differs, and one could be.
    pub identical: bool,
    /// The differences of all sinks together.
    #[serde(flatten)]
    pub differences: Differences,
    /// Sinks that cannot be compared: nobody knows whether they differ.
    pub not_compared: Vec<String>,
    /// What came of each sink, in the order of the plan.
    pub sinks: Vec<SinkCompared>,
}

/// How many events differ, and how. One offset counts in one of them at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Differences {
    /// In live, not in the shadow (events and dead letters).
    pub missing: u64,
    /// In the shadow, not in live.
    pub extra: u64,
    /// In both, with another content.
    pub changed: u64,
    /// A dead letter in live, an event in the shadow.
    pub healed: u64,
    /// An event in live, a dead letter in the shadow.
    pub newly_dead: u64,
    /// Rows that live has of an offset beyond the first.
    pub doubled_in_live: u64,
    /// Rows that the shadow has of an offset beyond the first.
    pub doubled_in_shadow: u64,
}

impl Differences {
    /// True where there is none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.missing += other.missing;
        self.extra += other.extra;
        self.changed += other.changed;
        self.healed += other.healed;
        self.newly_dead += other.newly_dead;
        self.doubled_in_live += other.doubled_in_live;
        self.doubled_in_shadow += other.doubled_in_shadow;
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        let doubled = self.doubled_in_live + self.doubled_in_shadow;
        self.missing + self.extra + self.changed + self.healed + self.newly_dead + doubled
    }
}

/// What came of one sink.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SinkCompared {
    /// Its name.
    pub sink: String,
    /// Its kind.
    pub kind: String,
    /// Why it cannot be compared; absent where it was. Nothing below says anything then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_compared: Option<String>,
    /// True where it was compared and nothing differs.
    pub identical: bool,
    /// The differences.
    #[serde(flatten)]
    pub differences: Differences,
    /// What live was when the comparison began, and still was when it ended.
    pub live_fingerprint: String,
    /// The same of the shadow.
    pub shadow_fingerprint: String,
    /// Offsets of the window that the live sink has not passed: their events are only in the shadow.
    #[serde(default)]
    pub live_behind: u64,
    /// Rows of each side.
    pub rows: Rows,
    /// How often each field differs in changed events, the most frequent first.
    pub fields: Vec<FieldChanges>,
    /// Fields that differ beyond those.
    pub fields_left_out: u64,
    /// Each tenant and event type, those that differ first where there are too many.
    pub lanes: Vec<LaneCompared>,
    /// Tenants and types beyond those.
    pub lanes_left_out: u64,
    /// Each tenant, type and hour, those that differ first where there are too many.
    pub hours: Vec<HourCompared>,
    /// Hours of tenants and types beyond those.
    pub hours_left_out: u64,
    /// All tenants and types together, by the hour in which they were received.
    pub by_hour: Vec<HourTotal>,
    /// Some of the differences, by their kind.
    pub samples: Vec<Sample>,
    /// What cannot be read: its rows count as not there.
    pub unreadable: Vec<Unreadable>,
    /// Unreadable files beyond those.
    pub unreadable_left_out: u64,
}

/// Rows of both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rows {
    /// Events in live.
    pub live_events: u64,
    /// Dead letters in live.
    pub live_dead_letters: u64,
    /// Events in the shadow.
    pub shadow_events: u64,
    /// Dead letters in the shadow.
    pub shadow_dead_letters: u64,
}

impl Rows {
    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.live_events += other.live_events;
        self.live_dead_letters += other.live_dead_letters;
        self.shadow_events += other.shadow_events;
        self.shadow_dead_letters += other.shadow_dead_letters;
    }

    /// Rows of live.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.live_events + self.live_dead_letters
    }

    /// Rows of the shadow.
    #[must_use]
    pub fn shadow(&self) -> u64 {
        self.shadow_events + self.shadow_dead_letters
    }
}

/// How often one field differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChanges {
    /// The column.
    pub field: String,
    /// In how many changed events.
    pub changes: u64,
}

/// One tenant's events of one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneCompared {
    /// Whose.
    pub tenant: TenantId,
    /// Of which type.
    pub event_type: EventType,
    /// Rows of each side.
    #[serde(flatten)]
    pub rows: Rows,
    /// The differences.
    #[serde(flatten)]
    pub differences: Differences,
}

/// One tenant's events of one type that were received in one hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HourCompared {
    /// Whose.
    pub tenant: TenantId,
    /// Of which type.
    pub event_type: EventType,
    /// When the hour begins.
    pub hour: String,
    /// Rows of each side.
    #[serde(flatten)]
    pub rows: Rows,
    /// The differences.
    #[serde(flatten)]
    pub differences: Differences,
}

/// All that was received in one hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HourTotal {
    /// When it begins.
    pub hour: String,
    /// Rows of each side.
    #[serde(flatten)]
    pub rows: Rows,
    /// The differences.
    #[serde(flatten)]
    pub differences: Differences,
}

/// How an event differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// In live, not in the shadow.
    Missing,
    /// In the shadow, not in live.
    Extra,
    /// Another content.
    Changed,
    /// A dead letter in live, an event in the shadow.
    Healed,
    /// An event in live, a dead letter in the shadow.
    NewlyDead,
}

impl Difference {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 5] =
        [Self::Missing, Self::Extra, Self::Changed, Self::Healed, Self::NewlyDead];

    /// As people read it.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Missing => "missing in the shadow",
            Self::Extra => "only in the shadow",
            Self::Changed => "changed",
            Self::Healed => "healed dead letters",
            Self::NewlyDead => "new dead letters",
        }
    }
}

/// One event that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// How.
    pub difference: Difference,
    /// Where it lies in the log: the partition,
    pub partition: Partition,
    /// and the offset.
    pub offset: Offset,
    /// Whose.
    pub tenant: TenantId,
    /// Of which type.
    pub event_type: EventType,
    /// Its id.
    pub event_id: String,
    /// True for a dead letter on the side that has it (on both, where it changed).
    pub dead_letter: bool,
    /// The fields that differ, cut short. Of a healed or a new dead letter: why it is one.
    pub fields: Vec<FieldDifference>,
    /// Fields that differ beyond those.
    pub fields_left_out: u64,
}

/// One field with both values, as JSON, cut short. Absent: no value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldDifference {
    /// The column.
    pub field: String,
    /// In live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<String>,
    /// In the shadow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<String>,
}

/// Which side of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// What is live.
    Live,
    /// What the replay wrote.
    Shadow,
}

/// Something that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// On which side.
    pub side: Side,
    /// Where.
    pub path: String,
    /// What is wrong with it.
    pub cause: String,
}

/// How far a comparison is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Which sink is being compared.
    pub sink: String,
    /// Rows looked at, of both sides and all sinks.
    pub rows: u64,
    /// Bytes of files looked at (or offsets, of a server's tables), of all sinks,
    pub done: u64,
    /// out of so many.
    pub total: u64,
    /// What differs so far.
    pub differences: Differences,
}
