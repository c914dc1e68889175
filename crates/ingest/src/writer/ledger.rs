//! The partition's ledger: per tenant and type, what the log was given, as of an offset.
//!
//! `ledger.json` is `{"crc32c":n,"ledger":{"version":1,"log_id":…,"as_of":offset,"tenants":{…}}}`, the
//! checksum over the bytes of `ledger`. Only the writer's thread changes it, and it replaces the file
//! whole: what it says up to `as_of` is exact, and what came after is read from the log. Only the
//! number of duplicates since the last write is lost in a crash.

use std::{collections::BTreeMap, io, path::PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidegate_event::{BatchView, EventType, Offset, Partition, TenantId, record::TypeView};

use crate::{
    books::{Books, Tally},
    log::{Entry, LogHandle, ReadError},
    storage::{self, Storage},
};

const VERSION: u32 = 1;

/// What the log was given, of one tenant and type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Durable and valid.
    pub accepted: u64,
    /// Durable with a reason.
    pub dead_lettered: u64,
    /// Known already by their id; not in the log.
    pub deduplicated: u64,
}

/// A partition's ledger at one moment.
#[derive(Clone, Debug, Default)]
pub struct LedgerCopy {
    /// Which partition.
    pub partition: Partition,
    /// All below this offset is counted, nothing behind it.
    pub as_of: Offset,
    /// Per tenant and type.
    pub types: BTreeMap<(TenantId, EventType), Totals>,
}

type Tenants = BTreeMap<TenantId, BTreeMap<EventType, Totals>>;

#[derive(Serialize, Deserialize)]
struct File<'a> {
    crc32c: u32,
    #[serde(borrow)]
    ledger: &'a RawValue,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    log_id: String,
    as_of: u64,
    tenants: Tenants,
}

#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    content: Content,
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
        let tenants = &self.content.tenants;
        let each = tenants.iter().flat_map(|(tenant, types)| {
            types.iter().map(move |(kind, totals)| ((tenant.clone(), kind.clone()), *totals))
        });
        LedgerCopy { partition, as_of: self.as_of(), types: each.collect() }
    }

    /// Loads what was written last; empty where that is missing or damaged.
    pub fn load(storage: &dyn Storage, path: PathBuf, log_id: &str) -> io::Result<(Self, Found)> {
        let empty = Content {
            version: VERSION,
            log_id: log_id.to_owned(),
            as_of: 0,
            tenants: BTreeMap::new(),
        };
        let (content, found) = match storage.read(&path) {
            Ok(bytes) => match decode(&bytes, log_id) {
                Some(content) => (content, Found::Whole),
                None => (empty, Found::Damaged),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => (empty, Found::Missing),
            Err(e) => return Err(e),
        };
        Ok((Self { path, content, changed: false }, found))
    }

    pub fn as_of(&self) -> Offset {
        Offset(self.content.as_of)
    }

    pub fn add(&mut self, tenant: &TenantId, event_type: &EventType, more: Totals) {
        let types = match self.content.tenants.get_mut(tenant) {
            Some(types) => types,
            None => self.content.tenants.entry(tenant.clone()).or_default(),
        };
        let totals = match types.get_mut(event_type) {
            Some(totals) => totals,
            None => types.entry(event_type.clone()).or_default(),
        };
        let sum = |mine: &mut u64, more: u64| *mine = mine.saturating_add(more);
        sum(&mut totals.accepted, more.accepted);
        sum(&mut totals.dead_lettered, more.dead_lettered);
        sum(&mut totals.deduplicated, more.deduplicated);
        self.changed = true;
    }

    pub fn set_as_of(&mut self, offset: Offset) {
        self.changed |= self.content.as_of != offset.0;
        self.content.as_of = offset.0;
    }

    /// Adds what the log holds from `as_of` on. Returns how many events those were.
    pub fn catch_up(&mut self, log: &LogHandle) -> Result<u64, ReadError> {
        let latest = log.latest();
        let from = self.as_of().max(log.earliest());
        let mut events = 0;
        if from < latest {
            let mut reader = log.read_from(from)?;
            while reader.position() < latest {
                match reader.next()? {
                    Some(Entry::Frame(frame)) => events += self.add_frame(&frame.body),
                    Some(Entry::Quarantined(_)) => {}
                    None => break,
                }
            }
        }
        self.set_as_of(latest);
        Ok(events)
    }

    fn add_frame(&mut self, body: &[u8]) -> u64 {
        let Some((tenant, totals)) = count(body) else {
            tracing::error!(
                "a whole frame of the log holds no batch; its events are not in the ledger"
            );
            return 0;
        };
        totals
            .into_iter()
            .map(|(event_type, totals)| {
                self.add(&tenant, &event_type, totals);
                totals.accepted + totals.dead_lettered
            })
            .sum()
    }

    /// Opens the books with it.
    pub fn restore(&self, books: &Books) {
        for (tenant, types) in &self.content.tenants {
            for (event_type, totals) in types {
                let Totals { accepted, dead_lettered, deduplicated } = *totals;
                let received = accepted.saturating_add(dead_lettered).saturating_add(deduplicated);
                let tally =
                    Tally { received, accepted, dead_lettered, deduplicated, ..Tally::default() };
                books.restore(tenant, event_type, &tally);
            }
        }
    }

    /// Replaces the file, if there is anything new.
    pub fn save(&mut self, storage: &dyn Storage) -> io::Result<()> {
        if !self.changed {
            return Ok(());
        }
        let ledger = serde_json::value::to_raw_value(&self.content)?;
        let crc32c = crc32c::crc32c(ledger.get().as_bytes());
        let mut bytes = serde_json::to_vec(&File { crc32c, ledger: &ledger })?;
        bytes.push(b'\n');
        storage::replace(storage, &self.path, &bytes)?;
        self.changed = false;
        Ok(())
    }
}

fn decode(bytes: &[u8], log_id: &str) -> Option<Content> {
    let file: File<'_> = serde_json::from_slice(bytes).ok()?;
    if crc32c::crc32c(file.ledger.get().as_bytes()) != file.crc32c {
        return None;
    }
    let content: Content = serde_json::from_str(file.ledger.get()).ok()?;
    (content.version == VERSION && content.log_id == log_id).then_some(content)
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
