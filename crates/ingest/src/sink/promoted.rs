//! What replays were promoted into a sink: which rows are a shadow's now, and how the books moved by that.
//!
//! `<data dir>/sinks/<name>-promotions.json`, replaced whole. A sink's own counts (`state`) go on
//! saying what it wrote; what a promotion made of that is told here, so that promoting and
//! reverting is one change of one file.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tidegate_event::{Offset, Partition, ReceivedAt};

use super::rows::Lane;
use crate::{
    replay::{PlanId, Selection, Slice},
    sealed,
    storage::Storage,
};

/// Every promotion that holds, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promotions {
    /// The one that is being made or reverted: nothing else touches old rows meanwhile.
    pub open: Option<PlanId>,
    /// Those that hold.
    pub applied: Vec<Applied>,
}

/// Offsets `[from, to)` of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// Which partition.
    pub partition: Partition,
    /// The first offset.
    pub from: Offset,
    /// The first behind it.
    pub to: Offset,
}

impl Span {
    /// That of a plan's slice.
    #[must_use]
    pub fn of(slice: &Slice) -> Self {
        Self { partition: slice.partition, from: slice.from, to: slice.to }
    }

    fn has(self, partition: Partition, offset: Offset) -> bool {
        self.partition == partition && self.from <= offset && offset < self.to
    }

    fn meets(self, other: Self) -> bool {
        self.partition == other.partition && self.from < other.to && other.from < self.to
    }
}

/// One promotion that holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    /// Which plan's.
    pub plan: PlanId,
    /// Of which log the offsets are.
    pub log_id: String,
    /// Its offsets.
    pub window: Vec<Span>,
    /// Which events of them.
    pub selection: Selection,
    /// When.
    pub at: ReceivedAt,
    /// Who did it.
    pub who: String,
    /// How each lane's rows moved.
    pub moves: Vec<Move>,
    /// Files that it cut, as they were called before.
    pub cut: Vec<String>,
}

/// How the rows of one lane moved: what is to be added to a sink's own counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Which lane.
    #[serde(flatten)]
    pub lane: Lane,
    /// Rows at the destination.
    pub stored: i64,
    /// Rows that were set aside and are at the destination now.
    pub quarantined: i64,
    /// Rows that were skipped and are at the destination now.
    pub skipped: i64,
}

impl Applied {
    /// True where the row, as the log has it, was exchanged: it is at the destination, as the shadow had
    /// it. `lane` is the one it was recorded in.
    #[must_use]
    pub fn has(&self, log_id: &str, partition: Partition, lane: &Lane, offset: Offset) -> bool {
        self.log_id == log_id
            && self.selection.takes(lane)
            && self.window.iter().any(|span| span.has(partition, offset))
    }

    /// True where it and a window of the same log have offsets in common.
    #[must_use]
    pub fn meets(&self, log_id: &str, window: &[Span]) -> bool {
        self.log_id == log_id
            && self.window.iter().any(|own| window.iter().any(|other| own.meets(*other)))
    }
}

fn path(data_dir: &Path, sink: &str) -> PathBuf {
    data_dir.join("sinks").join(format!("{sink}-promotions.json"))
}

impl Promotions {
    /// Those of a sink.
    ///
    /// # Errors
    /// The file's, and `InvalidData` where it is damaged.
    pub fn load(storage: &dyn Storage, data_dir: &Path, sink: &str) -> io::Result<Self> {
        Ok(sealed::load(storage, &path(data_dir, sink))?.unwrap_or_default())
    }

    /// Replaces them, durable on return.
    ///
    /// # Errors
    /// As writing a file.
    pub fn save(&self, storage: &dyn Storage, data_dir: &Path, sink: &str) -> io::Result<()> {
        let path = path(data_dir, sink);
        if let Some(dir) = path.parent() {
            storage.create_dir_all(dir)?;
        }
        sealed::save(storage, &path, self)
    }

    /// The promotion of this plan, if it holds.
    #[must_use]
    pub fn of(&self, plan: &PlanId) -> Option<&Applied> {
        self.applied.iter().find(|applied| applied.plan == *plan)
    }

    /// True where the row, as the log has it, is a shadow's now.
    #[must_use]
    pub fn has(&self, log_id: &str, partition: Partition, lane: &Lane, offset: Offset) -> bool {
        self.applied.iter().any(|applied| applied.has(log_id, partition, lane, offset))
    }

    /// The later promotion that lies on top of this plan's, if there is one.
    #[must_use]
    pub fn above(&self, plan: &PlanId) -> Option<&Applied> {
        let at = self.applied.iter().position(|applied| applied.plan == *plan)?;
        let own = self.applied.get(at)?;
        let later = self.applied.get(at + 1..).unwrap_or_default();
        later.iter().find(|later| later.meets(&own.log_id, &own.window))
    }

    /// How the rows of each lane moved, by all of them.
    #[must_use]
    pub fn moves(&self, log_id: &str) -> std::collections::BTreeMap<Lane, (i64, i64, i64)> {
        let mut moves = std::collections::BTreeMap::<Lane, (i64, i64, i64)>::new();
        let applied = self.applied.iter().filter(|applied| applied.log_id == log_id);
        for by in applied.flat_map(|applied| &applied.moves) {
            let sum = moves.entry(by.lane.clone()).or_default();
            *sum = (sum.0 + by.stored, sum.1 + by.quarantined, sum.2 + by.skipped);
        }
        moves
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::storage::Disk;
    use tidegate_event::{EventType, TenantId};

    fn lane(tenant: &str, dead: bool) -> Lane {
        Lane {
            tenant: TenantId::new(tenant).unwrap(),
            event_type: EventType::new("view").unwrap(),
            dead,
        }
    }

    fn applied(plan: char, from: u64, to: u64) -> Applied {
        let span = Span { partition: Partition(1), from: Offset(from), to: Offset(to) };
        Applied {
            plan: plan.to_string().repeat(16).parse().unwrap(),
            log_id: "abcd1234".into(),
            window: vec![span],
            selection: Selection::default(),
            at: ReceivedAt(7),
            who: "kim".into(),
            moves: vec![
                Move { lane: lane("acme", false), stored: 2, quarantined: -1, skipped: 0 },
                Move { lane: lane("acme", true), stored: -1, quarantined: 0, skipped: 0 },
            ],
            cut: vec!["x".into()],
        }
    }

    #[test]
    fn they_read_back_and_none_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let load = || Promotions::load(&Disk, dir.path(), "lake").unwrap();
        assert_eq!(load(), Promotions::default());
        let both = Promotions {
            open: "c".repeat(16).parse().ok(),
            applied: vec![applied('a', 0, 10), applied('b', 5, 20)],
        };
        both.save(&Disk, dir.path(), "lake").unwrap();
        assert_eq!(load(), both);
        assert_eq!(both.moves("abcd1234").get(&lane("acme", false)), Some(&(4, -2, 0)));
        assert!(both.moves("zzzz0000").is_empty());
    }

    #[test]
    fn a_promotion_lies_on_top_of_those_before_it_whose_offsets_it_has() {
        let all = Promotions {
            open: None,
            applied: vec![applied('a', 0, 10), applied('b', 10, 20), applied('c', 5, 6)],
        };
        let above = |plan: char| {
            let plan = plan.to_string().repeat(16).parse().unwrap();
            all.above(&plan).map(|later| later.plan.to_string())
        };
        assert_eq!((above('a'), above('b'), above('c')), (Some("c".repeat(16)), None, None));
    }

    #[test]
    fn a_row_is_a_shadows_where_log_partition_offset_and_selection_say_so() {
        let mut one = applied('a', 5, 10);
        one.selection.dead_letters_only = true;
        let has = |log: &str, partition, dead, offset| {
            one.has(log, Partition(partition), &lane("acme", dead), Offset(offset))
        };
        assert!(has("abcd1234", 1, true, 5) && has("abcd1234", 1, true, 9));
        assert!(!has("abcd1234", 1, true, 10) && !has("abcd1234", 1, true, 4));
        assert!(!has("abcd1234", 1, false, 5) && !has("abcd1234", 0, true, 5));
        assert!(!has("zzzz1234", 1, true, 5));
    }
}
