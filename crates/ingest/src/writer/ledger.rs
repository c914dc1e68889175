//! The partition's ledger: per tenant, type and minute, what the log was given, as of an offset.
//!
//! `ledger.json` is a file of records (`books::record`): the first is the whole, each later one what
//! was added up to a later offset. Only the writer's thread changes it, at most once a second. What
//! it says up to its last `as_of` is exact, and what came after is read from the log: so it is exact
//! after any crash.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use tidegate_event::{BatchView, EventType, Offset, Partition, TenantId, record::TypeView};

use crate::{
    books::{
        Added, Books, Counts, Minute, ROWS_MAX, Sheet, Tally,
        record::{self, Durable, RecordFile},
    },
    faults::{Bug, planted},
    log::{Entry, Frame, LogHandle, ReadError},
    storage::Storage,
};

const VERSION: u32 = 2;

/// What the log was given, of one tenant and type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Durable and valid.
    pub accepted: u64,
    /// Durable with a reason.
    pub dead_lettered: u64,
    /// Durable, and found to be there already by its id: where the append cannot know it.
    #[serde(default, skip_serializing_if = "is_none")]
    pub deduplicated: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // what serde calls
fn is_none(count: &u64) -> bool {
    *count == 0
}

impl Totals {
    /// As the books count them.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let Self { accepted, dead_lettered, deduplicated } = *self;
        let received = accepted + dead_lettered + deduplicated;
        Tally { received, accepted, dead_lettered, deduplicated, ..Tally::default() }
    }
}

impl Counts for Totals {
    fn merge(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.dead_lettered += other.dead_lettered;
        self.deduplicated += other.deduplicated;
    }
}

/// A partition's ledger at one moment.
#[derive(Clone, Debug, Default)]
pub struct LedgerCopy {
    /// Which partition.
    pub partition: Partition,
    /// All below this offset is counted, nothing behind it.
    pub as_of: Offset,
    /// Offsets that were damaged before they were counted: of no tenant and type.
    pub lost: u64,
    /// Per tenant and type.
    pub types: BTreeMap<(TenantId, EventType), Totals>,
}

/// The first record.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    version: u32,
    log_id: String,
    as_of: u64,
    lost: u64,
    tenants: Sheet<Totals>,
}

/// Each later one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    as_of: u64,
    added: Added<Totals>,
}

pub(super) struct Ledger {
    file: RecordFile,
    whole: Whole,
    /// In `whole`, and in no record yet.
    added: Added<Totals>,
    changed: bool,
}

/// What a ledger was found to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Whole,
    Missing,
    Damaged,
}

impl Ledger {
    /// A copy of what it says, and up to where.
    pub fn copy(&self, partition: Partition) -> LedgerCopy {
        let each = self.whole.tenants.iter().flat_map(|(tenant, leaf)| {
            leaf.types.iter().map(move |(kind, totals)| ((tenant.clone(), kind.clone()), *totals))
        });
        let (as_of, lost) = (self.as_of(), self.whole.lost);
        LedgerCopy { partition, as_of, lost, types: each.collect() }
    }

    /// Loads what was written last; empty where that is missing or damaged.
    pub fn load(
        storage: Arc<dyn Storage>,
        path: PathBuf,
        log_id: &str,
    ) -> io::Result<(Self, Found)> {
        let empty = Whole {
            version: VERSION,
            log_id: log_id.to_owned(),
            as_of: 0,
            lost: 0,
            tenants: Sheet::default(),
        };
        let (whole, found) = match record::read(&*storage, &path) {
            Ok(records) => match decode(&records, log_id) {
                Some(whole) => (whole, Found::Whole),
                None => (empty, Found::Damaged),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => (empty, Found::Missing),
            Err(e) => return Err(e),
        };
        let file = RecordFile::new(storage, path);
        Ok((Self { file, whole, added: Added::default(), changed: false }, found))
    }

    pub fn as_of(&self) -> Offset {
        Offset(self.whole.as_of)
    }

    pub fn add(&mut self, tenant: &TenantId, kind: &EventType, minute: Minute, more: Totals) {
        if more == Totals::default() {
            return;
        }
        self.whole.tenants.add(tenant, kind, Some(minute), &more);
        self.added.add(tenant, kind, minute, ROWS_MAX, &more);
        self.changed = true;
    }

    pub fn set_as_of(&mut self, offset: Offset) {
        self.changed |= self.whole.as_of != offset.0;
        self.whole.as_of = offset.0;
    }

    /// Adds what the log holds from `as_of` on. Returns how many events those were.
    pub fn catch_up(&mut self, log: &LogHandle) -> Result<u64, ReadError> {
        let latest = log.latest();
        let from = self.as_of().max(log.earliest());
        let mut events = 0;
        if from < latest && !planted(Bug::LedgerAhead) {
            let mut reader = log.read_from(from)?;
            while reader.position() < latest {
                match reader.next()? {
                    Some(Entry::Frame(frame)) => events += self.add_frame(&frame),
                    Some(Entry::Quarantined(range)) => self.whole.lost += range.count(),
                    None => break,
                }
            }
        }
        self.set_as_of(latest);
        Ok(events)
    }

    fn add_frame(&mut self, frame: &Frame) -> u64 {
        let Some((tenant, totals)) = count(&frame.body) else {
            tracing::error!(
                "a whole frame of the log holds no batch; its events are not in the ledger"
            );
            return 0;
        };
        let minute = Minute::of(frame.received_at);
        totals
            .into_iter()
            .map(|(event_type, totals)| {
                self.add(&tenant, &event_type, minute, totals);
                totals.accepted + totals.dead_lettered
            })
            .sum()
    }

    /// Opens the books with it.
    pub fn restore(&self, books: &Books) {
        books.restore(&self.whole.tenants, Totals::tally);
    }

    /// Writes what is new, durably. After a failure all of it is written with the next try.
    pub fn save(&mut self) -> io::Result<()> {
        if !self.changed {
            return Ok(());
        }
        // A failed write is followed by the whole: what was added need not be kept for it.
        let since = Since { as_of: self.whole.as_of, added: std::mem::take(&mut self.added) };
        if self.file.wants_whole() {
            self.whole.tenants.trim();
            self.file.replace(&self.whole)?;
        } else {
            self.file.append(&since, Durable::Now)?;
        }
        self.changed = false;
        Ok(())
    }
}

fn decode(records: &[Box<serde_json::value::RawValue>], log_id: &str) -> Option<Whole> {
    let (first, later) = records.split_first()?;
    let mut whole: Whole = serde_json::from_str(first.get()).ok()?;
    if whole.version != VERSION || whole.log_id != log_id {
        return None;
    }
    for record in later {
        let since: Since = serde_json::from_str(record.get()).ok()?;
        whole.as_of = since.as_of;
        whole.tenants.apply(&since.added);
    }
    Some(whole)
}

/// What one batch holds, per type; `None` where it cannot be read.
fn count(body: &[u8]) -> Option<(TenantId, Vec<(EventType, Totals)>)> {
    let view = BatchView::parse(body).ok()?;
    let tenant = TenantId::new(view.tenant).ok()?;
    let name = |kind: &TypeView<'_>| EventType::new(kind.name).ok();
    let mut totals: Vec<_> = view
        .types
        .iter()
        .map(|kind| Some((name(kind)?, Totals::default())))
        .collect::<Option<_>>()?;
    for record in view.records() {
        let record = record.ok()?;
        let (_, totals) = totals.get_mut(record.type_index)?;
        match record.dead {
            None => totals.accepted += 1,
            Some(_) => totals.dead_lettered += 1,
        }
    }
    Some((tenant, totals))
}
