//! What leaves nothing in the log, so that the books survive a restart: `<log.dir>/books.json`.
//!
//! What is in the log is counted from the log, and so exact after any crash. Duplicates, rejected and
//! shed events and refused requests leave no other trace: they are written here once a second. Each
//! record says up to when it counts, and the last one of a clean stop says so. Where a start finds
//! another last record, what was refused since then is not known: that gap is noted, told and kept.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::Path,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tidegate_event::{ReceivedAt, TenantId};

use super::{
    Added, Books, Counts, Refused, Sheet, Unlogged,
    record::{self, Durable, RecordFile},
};
use crate::{quota::Usage, storage::Storage};

/// The file's name in the data folder.
pub const FILE: &str = "books.json";

const VERSION: u32 = 2;

/// Gaps kept, the newest; all are counted.
const GAPS_KEPT: usize = 100;

/// A time in which it is not known what was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// The last record before it; `None` where nothing before is known.
    pub from: Option<ReceivedAt>,
    /// The start behind it.
    pub to: ReceivedAt,
}

/// The gaps there were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gaps {
    /// How many.
    pub count: u64,
    /// The newest of them, in order.
    pub spans: VecDeque<Gap>,
}

/// The first record of the file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    version: u32,
    log_id: String,
    at: ReceivedAt,
    clean: bool,
    gaps: Gaps,
    refused: BTreeMap<TenantId, Refused>,
    tenants: Sheet<Unlogged>,
    /// What tenants have used of their day.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    usage: BTreeMap<TenantId, Usage>,
}

/// Each later one: what was added up to `at`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    at: ReceivedAt,
    clean: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    refused: BTreeMap<TenantId, Refused>,
    #[serde(default, skip_serializing_if = "Added::is_empty")]
    added: Added<Unlogged>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    usage: BTreeMap<TenantId, Usage>,
}

/// What was found in the file.
enum Found {
    Nothing,
    /// Not one sound record: why.
    Damaged(String),
    Records(Whole),
}

/// Writes what was added; once a second is meant.
pub struct UnloggedLedger {
    file: RecordFile,
    whole: Whole,
    /// What the next record says of the day, where that is news.
    usage: BTreeMap<TenantId, Usage>,
}

impl UnloggedLedger {
    /// Reads what an earlier run left, adds it to the books, and notes the gap behind an unclean stop.
    /// Where the log is not empty (`log_is_empty`) a missing file is such a gap too. A damaged file is
    /// said loudly, set aside as `books.json.damaged`, and begun anew.
    ///
    /// # Errors
    /// As reading, renaming and writing the file.
    pub fn open(
        storage: Arc<dyn Storage>,
        dir: &Path,
        log_id: &str,
        log_is_empty: bool,
        books: &Books,
        now: ReceivedAt,
    ) -> io::Result<Self> {
        let path = dir.join(FILE);
        let (mut whole, gap) = match find(&*storage, &path, log_id)? {
            Found::Records(whole) => {
                let gap = (!whole.clean).then_some(Some(whole.at));
                (whole, gap)
            }
            Found::Nothing => (Whole::default(), (!log_is_empty).then_some(None)),
            Found::Damaged(why) => {
                tracing::error!(file = %path.display(), why, "the ledger of refusals is damaged; set aside and begun anew");
                set_aside(&*storage, &path)?;
                (Whole::default(), Some(None))
            }
        };
        if let Some(from) = gap {
            note(&mut whole.gaps, Gap { from, to: from.map_or(now, |from| from.max(now)) });
        }
        books.restore(&whole.tenants, Unlogged::tally);
        books.restore_reasons(&whole.tenants);
        whole.refused.iter().for_each(|(tenant, refused)| books.restore_refused(tenant, refused));
        let whole =
            Whole { version: VERSION, log_id: log_id.to_owned(), at: now, clean: false, ..whole };
        let mut file = RecordFile::new(Arc::clone(&storage), path);
        if let Err(error) = file.replace(&whole) {
            // A full disk must not keep the sinks from making room. But no record of a clean stop
            // may be the last one while events are refused.
            tracing::error!(%error, "the ledger of refusals cannot be written; it is tried again");
            storage.rename(file.path(), &unclosed(file.path()))?;
            storage.sync_dir(dir)?;
        }
        Ok(Self { file, whole, usage: BTreeMap::new() })
    }

    /// Writes what was added up to `now`, durably; where nothing was, only that.
    ///
    /// # Errors
    /// As writing; all of it is in the next record.
    pub fn write(&mut self, books: &Books, now: ReceivedAt) -> io::Result<()> {
        self.record(books, now, false)
    }

    /// The last record of a clean stop: nothing is counted any more. Where something still is on its
    /// way it is a record like any other, and the next start notes the gap.
    ///
    /// # Errors
    /// As writing.
    pub fn close(&mut self, books: &Books, now: ReceivedAt) -> io::Result<()> {
        let standing = books.standing();
        self.record(books, now, standing.in_flight == 0 && standing.unread == 0)
    }

    fn record(&mut self, books: &Books, at: ReceivedAt, clean: bool) -> io::Result<()> {
        // `at` was read before: all that was settled until then is in what is taken now.
        let (added, refused) = books.take_unwritten();
        let usage = std::mem::take(&mut self.usage);
        let since = Since { at, clean, refused, added, usage };
        let nothing = since.added.is_empty() && since.refused.is_empty() && since.usage.is_empty();
        if nothing && self.whole.clean && !self.file.wants_whole() {
            // Closed: the last record stays the last.
            return Ok(());
        }
        self.whole.apply(&since);
        if self.file.wants_whole() {
            self.whole.tenants.trim();
            return self.file.replace(&self.whole);
        }
        // That nothing was refused need not survive a power cut: the gap is longer without it.
        let idle = nothing && !clean;
        self.file.append(&since, if idle { Durable::Later } else { Durable::Now })
    }

    /// What tenants have used of their day, for the next record.
    pub fn set_usage(&mut self, usage: BTreeMap<TenantId, Usage>) {
        let news =
            usage.into_iter().filter(|(tenant, day)| self.whole.usage.get(tenant) != Some(day));
        self.usage = news.collect();
    }

    /// What they had used of it by the last record.
    #[must_use]
    pub fn usage(&self) -> &BTreeMap<TenantId, Usage> {
        &self.whole.usage
    }

    /// The times in which it is not known what was refused.
    #[must_use]
    pub fn gaps(&self) -> &Gaps {
        &self.whole.gaps
    }
}

impl Whole {
    fn apply(&mut self, since: &Since) {
        (self.at, self.clean) = (since.at, since.clean);
        for (tenant, refused) in &since.refused {
            self.refused.entry(tenant.clone()).or_default().merge(refused);
        }
        self.tenants.apply(&since.added);
        self.usage.extend(since.usage.iter().map(|(tenant, day)| (tenant.clone(), *day)));
    }
}

fn set_aside(storage: &dyn Storage, path: &Path) -> io::Result<()> {
    for path in [path.to_owned(), unclosed(path)] {
        match storage.rename(&path, &path.with_added_extension("damaged")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn note(gaps: &mut Gaps, gap: Gap) {
    let shown = |at: ReceivedAt| {
        jiff::Timestamp::from_microsecond(at.0).map_or_else(|_| at.0.to_string(), |t| t.to_string())
    };
    let from = gap.from.map_or_else(|| "the beginning".to_owned(), shown);
    tracing::warn!(
        from,
        to = shown(gap.to),
        "the last stop was not clean: what was refused between is not in the books (what is in the log is)"
    );
    gaps.count += 1;
    gaps.spans.push_back(gap);
    while gaps.spans.len() > GAPS_KEPT {
        gaps.spans.pop_front();
    }
}

/// The file under this name was left by a run that could not write one of its own.
fn unclosed(path: &Path) -> std::path::PathBuf {
    path.with_extension("json.unclosed")
}

fn find(storage: &dyn Storage, path: &Path, log_id: &str) -> io::Result<Found> {
    let missing = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    let (records, closed) = match record::read(storage, path) {
        Ok(records) => (records, true),
        Err(e) if missing(&e) => match record::read(storage, &unclosed(path)) {
            Ok(records) => (records, false),
            Err(e) if missing(&e) => return Ok(Found::Nothing),
            Err(e) => return Err(e),
        },
        Err(e) => return Err(e),
    };
    let damaged = |why: &dyn std::fmt::Display| Found::Damaged(why.to_string());
    let mut records = records.iter().map(|record| record.get());
    let Some(first) = records.next() else { return Ok(damaged(&"its first record is not sound")) };
    let mut whole: Whole = match serde_json::from_str(first) {
        Ok(whole) => whole,
        Err(error) => return Ok(damaged(&error)),
    };
    if whole.log_id != log_id || whole.version != VERSION {
        let (of, version) = (&whole.log_id, whole.version);
        return Ok(damaged(&format!("it is of log {of}, version {version}")));
    }
    for record in records {
        match serde_json::from_str::<Since>(record) {
            Ok(since) => whole.apply(&since),
            Err(error) => return Ok(damaged(&error)),
        }
    }
    whole.clean &= closed;
    Ok(Found::Records(whole))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::storage::Disk;

    #[test]
    fn what_was_used_of_a_day_is_there_after_a_kill_as_of_the_last_record() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let (disk, now) = (Arc::new(Disk), ReceivedAt(1));
            let books = Books::default();
            UnloggedLedger::open(disk, dir.path(), "abcd1234", true, &books, now).unwrap()
        };
        let usage = |name: &str, events| {
            (TenantId::new(name).unwrap(), Usage { day: 20_000, events, bytes: 10 * events })
        };
        let mut ledger = open();
        let books = Books::default();
        for events in 1..=200 {
            ledger.set_usage([usage("a", events), usage("b", 7)].into());
            ledger.write(&books, ReceivedAt(2)).unwrap();
        }
        ledger.set_usage([usage("a", 999)].into());
        drop(ledger);
        assert_eq!(*open().usage(), [usage("a", 200), usage("b", 7)].into());
    }
}
