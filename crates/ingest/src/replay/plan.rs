//! A plan: what exactly is replayed, by which schemas, and where it goes. Its id is a hash of that.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tidegate_event::{EventType, Offset, OffsetRange, Partition, ReceivedAt, TenantId};

use crate::sink::Lane;

/// The format of a plan's file.
pub const FORMAT: u32 = 1;

/// The id of a plan: 16 hexadecimal digits of the hash of its [`Content`]. It may stand in a path, in a
/// table's and in a topic's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PlanId(String);

/// A text is no plan's id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no plan's id: 16 digits of 0-9 and a-f, as `ingestctl replay list` shows them")]
pub struct PlanIdError(String);

impl FromStr for PlanId {
    type Err = PlanIdError;
    fn from_str(text: &str) -> Result<Self, PlanIdError> {
        let fits = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if fits { Ok(Self(text.to_owned())) } else { Err(PlanIdError(text.to_owned())) }
    }
}

impl TryFrom<String> for PlanId {
    type Error = PlanIdError;
    fn try_from(text: String) -> Result<Self, PlanIdError> {
        text.parse()
    }
}

impl From<PlanId> for String {
    fn from(id: PlanId) -> Self {
        id.0
    }
}

impl fmt::Display for PlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PlanId {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A plan as it is kept, shown and written to a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Of this file: 1.
    pub format: u32,
    /// The hash of what follows from `content`.
    pub plan_id: PlanId,
    /// When it was made; not part of the hash.
    pub made_at: ReceivedAt,
    /// What it is about.
    #[serde(flatten)]
    pub content: Content,
    /// For each sink where its shadow will be, for people; it follows from the id.
    pub shadow: BTreeMap<String, String>,
}

/// All that a plan's id stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// Of which log the offsets are.
    pub log_id: String,
    /// What is read of each partition, by partition.
    pub window: Vec<Slice>,
    /// Which events of it.
    pub selection: Selection,
    /// By which schemas they are judged.
    pub judging: Judging,
    /// Into the shadows of which sinks.
    pub targets: Vec<Target>,
    /// What the window holds, lane by lane as it was recorded.
    pub counts: Vec<LaneCount>,
    /// Dead letters that were re-driven since: they stay dead letters, or they would be there twice.
    pub kept_dead: Vec<KeptDead>,
}

/// What is read of one partition: `[from, to)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// Which partition.
    pub partition: Partition,
    /// The first offset.
    pub from: Offset,
    /// The first offset behind it.
    pub to: Offset,
    /// Events in it that the selection takes.
    pub events: u64,
    /// Their bytes: the events as they lie in the log.
    pub bytes: u64,
    /// Bytes of log that are read for them.
    pub log_bytes: u64,
    /// The first event of the slice that the selection takes.
    pub first: Option<EventAt>,
    /// The last one.
    pub last: Option<EventAt>,
}

impl Slice {
    /// Its offsets; `None` where it is empty.
    #[must_use]
    pub fn range(&self) -> Option<OffsetRange> {
        OffsetRange::new(self.from, self.to)
    }
}

/// One event, enough to know it by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventAt {
    /// Where it lies.
    pub offset: Offset,
    /// When the edge had it.
    pub received_at: ReceivedAt,
    /// Whose.
    pub tenant: TenantId,
    /// Of which type.
    pub event_type: EventType,
    /// Its id.
    pub event_id: String,
}

/// Which events of a window. Empty lists: all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Only these tenants'.
    pub tenants: Vec<TenantId>,
    /// Only these types.
    pub event_types: Vec<EventType>,
    /// Only what was recorded as a dead letter.
    pub dead_letters_only: bool,
}

impl Selection {
    /// True for events that were recorded in this lane.
    #[must_use]
    pub fn takes(&self, recorded: &Lane) -> bool {
        self.takes_names(&recorded.tenant, &recorded.event_type)
            && (recorded.dead || !self.dead_letters_only)
    }

    /// True for this tenant and type, whatever the verdict was.
    #[must_use]
    pub fn takes_names(&self, tenant: &TenantId, event_type: &EventType) -> bool {
        (self.tenants.is_empty() || self.tenants.contains(tenant))
            && (self.event_types.is_empty() || self.event_types.contains(event_type))
    }

    /// True where nothing is left out.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.tenants.is_empty() && self.event_types.is_empty() && !self.dead_letters_only
    }
}

/// By which schemas the events are judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case", deny_unknown_fields)]
pub enum Judging {
    /// By those that were live when the plan was made, pinned.
    Today {
        /// For each tenant and type of the window that has one.
        schemas: Vec<SchemaPin>,
        /// Types without one are dead letters.
        refuse_unknown: bool,
    },
    /// By a candidate's (`--schemas DIR`), pinned.
    Candidate {
        /// For each tenant and type of the window that has one.
        schemas: Vec<SchemaPin>,
        /// Types without one are dead letters.
        refuse_unknown: bool,
        /// The text of each schema, by its hash.
        contents: BTreeMap<String, String>,
    },
    /// Not at all: verdicts and schemas as they were recorded.
    AsRecorded,
}

impl Judging {
    /// The pinned schemas.
    #[must_use]
    pub fn pins(&self) -> &[SchemaPin] {
        match self {
            Self::Today { schemas, .. } | Self::Candidate { schemas, .. } => schemas,
            Self::AsRecorded => &[],
        }
    }
}

/// The schema by which a tenant's events of one type are judged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchemaPin {
    /// Whose events.
    pub tenant: TenantId,
    /// Of which type.
    pub event_type: EventType,
    /// The schema's `x-version`.
    pub version: i32,
    /// Its hash: 32 hexadecimal digits.
    pub hash: String,
}

/// One sink, and what it is now: the plan refuses to be applied once that is another place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Its name.
    pub sink: String,
    /// Its kind.
    pub kind: String,
    /// A hash over the live place and the shadow's, without secrets.
    pub place: String,
}

/// What the window holds of one lane, as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneCount {
    /// Which lane.
    #[serde(flatten)]
    pub lane: Lane,
    /// Events.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The schemas they were judged by, with how many events each.
    pub schemas_then: Vec<SchemaCount>,
}

/// How many events were judged by one schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchemaCount {
    /// The schema's `x-version`; 0: none.
    pub version: i32,
    /// Its hash; zeros: none.
    pub hash: String,
    /// How many.
    pub events: u64,
}

/// Offsets that stay what they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptDead {
    /// Which partition.
    pub partition: Partition,
    /// Which offsets of it, each a dead letter that was re-driven.
    pub offsets: Vec<OffsetRange>,
}

impl KeptDead {
    /// True for an offset that is one of them. They are in order.
    #[must_use]
    pub fn has(&self, offset: Offset) -> bool {
        let at = self.offsets.partition_point(|range| range.to() <= offset);
        self.offsets.get(at).is_some_and(|range| range.contains(offset))
    }
}

impl Content {
    /// The id of a plan of this content.
    ///
    /// # Errors
    /// As the encoder's; a content can always be encoded.
    pub fn id(&self) -> serde_json::Result<PlanId> {
        let text = serde_json::to_vec(self)?;
        Ok(PlanId(hex::encode(Sha256::digest(&text).iter().take(8).copied().collect::<Vec<_>>())))
    }

    /// Events that the plan takes, of all partitions.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.window.iter().map(|slice| slice.events).sum()
    }

    /// The slice of one partition.
    #[must_use]
    pub fn slice(&self, partition: Partition) -> Option<&Slice> {
        self.window.iter().find(|slice| slice.partition == partition)
    }
}

/// Why a plan's file is not one.
#[derive(Debug, thiserror::Error)]
pub enum PlanFileError {
    /// It cannot be read as one.
    #[error("it is no plan: {0}; make it with `ingestctl replay … --plan FILE`")]
    Shape(#[from] serde_json::Error),
    /// It is of a version this program does not know.
    #[error("its format is {0}, this program knows {FORMAT}; make the plan again")]
    Format(u32),
    /// It was changed by hand.
    #[error(
        "it says that its id is {said}, its content's is {is}: it was changed; make the plan again"
    )]
    Changed {
        /// The id in it.
        said: PlanId,
        /// The hash of its content.
        is: PlanId,
    },
}

impl Plan {
    /// Reads a plan's file.
    ///
    /// # Errors
    /// [`PlanFileError`].
    pub fn read(text: &[u8]) -> Result<Self, PlanFileError> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Head = serde_json::from_slice(text)?;
        if head.format != FORMAT {
            return Err(PlanFileError::Format(head.format));
        }
        let plan: Self = serde_json::from_slice(text)?;
        let is = plan.content.id()?;
        if is != plan.plan_id {
            return Err(PlanFileError::Changed { said: plan.plan_id, is });
        }
        Ok(plan)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn content() -> Content {
        let acme = TenantId::new("acme").unwrap();
        let view = EventType::new("page_view").unwrap();
        Content {
            log_id: "abcd1234".to_owned(),
            window: vec![Slice {
                partition: Partition(0),
                from: Offset(10),
                to: Offset(20),
                events: 9,
                bytes: 900,
                log_bytes: 1_200,
                first: Some(EventAt {
                    offset: Offset(10),
                    received_at: ReceivedAt(1),
                    tenant: acme.clone(),
                    event_type: view.clone(),
                    event_id: "a".to_owned(),
                }),
                last: None,
            }],
            selection: Selection { tenants: vec![acme.clone()], ..Selection::default() },
            judging: Judging::Today {
                schemas: vec![SchemaPin {
                    tenant: acme.clone(),
                    event_type: view.clone(),
                    version: 2,
                    hash: "0".repeat(32),
                }],
                refuse_unknown: false,
            },
            targets: vec![Target { sink: "lake".into(), kind: "lake".into(), place: "ab".into() }],
            counts: vec![LaneCount {
                lane: Lane { tenant: acme, event_type: view, dead: true },
                events: 9,
                bytes: 900,
                schemas_then: vec![SchemaCount { version: 1, hash: "1".repeat(32), events: 9 }],
            }],
            kept_dead: vec![KeptDead {
                partition: Partition(0),
                offsets: vec![OffsetRange::new(Offset(3), Offset(5)).unwrap()],
            }],
        }
    }

    fn plan() -> Plan {
        let content = content();
        let plan_id = content.id().unwrap();
        let shadow = BTreeMap::from([("lake".to_owned(), format!("/lake/shadow/{plan_id}"))]);
        Plan { format: FORMAT, plan_id, made_at: ReceivedAt(7), content, shadow }
    }

    #[test]
    fn a_plan_reads_back_and_one_that_was_changed_is_refused() {
        let text = serde_json::to_string(&plan()).unwrap();
        assert_eq!(Plan::read(text.as_bytes()).unwrap(), plan());
        let changed = text.replace("\"to\":20", "\"to\":21");
        assert!(matches!(Plan::read(changed.as_bytes()), Err(PlanFileError::Changed { .. })));
        let newer = text.replace("\"format\":1", "\"format\":2");
        assert!(matches!(Plan::read(newer.as_bytes()), Err(PlanFileError::Format(2))));
    }

    #[test]
    fn an_id_follows_from_the_content_alone() {
        let other = Content { log_id: "abcd1235".to_owned(), ..content() };
        assert_eq!(content().id().unwrap(), content().id().unwrap());
        assert_ne!(other.id().unwrap(), content().id().unwrap());
        assert!("0123456789abcdef".parse::<PlanId>().is_ok());
        for text in
            ["", "0123456789ABCDEF", "0123456789abcde", "../456789abcdef0", "0123456789abcdeg"]
        {
            assert!(text.parse::<PlanId>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_kept_dead_is_found() {
        let range = |a, b| OffsetRange::new(Offset(a), Offset(b)).unwrap();
        let kept = KeptDead { partition: Partition(0), offsets: vec![range(3, 5), range(7, 8)] };
        let found: Vec<_> = (0..10).filter(|n| kept.has(Offset(*n))).collect();
        assert_eq!(found, [3, 4, 7]);
    }

    #[test]
    fn a_selection_looks_at_what_was_recorded() {
        let lane = |tenant: &str, dead| Lane {
            tenant: TenantId::new(tenant).unwrap(),
            event_type: EventType::new("page_view").unwrap(),
            dead,
        };
        let dead = Selection { dead_letters_only: true, ..Selection::default() };
        assert!(dead.takes(&lane("acme", true)) && !dead.takes(&lane("acme", false)));
        let acme = content().selection;
        assert!(acme.takes(&lane("acme", false)) && !acme.takes(&lane("other", false)));
        assert!(Selection::default().is_all() && !acme.is_all());
    }
}
