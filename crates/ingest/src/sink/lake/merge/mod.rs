//! Small files of an hour that is over are joined into fewer (docs/lake.md, "Joining small files").
//!
//! | file | purpose |
//! | --- | --- |
//! | `choose` | which files become one |
//! | `read` | a Parquet file as the table it was made of |
//! | `build` | one file of several, in memory, read back |
//! | `publish` | takes their place: the order of the steps, also after a crash |
//! | `journal` | what was begun, and up to where files were joined |

pub(super) mod build;
mod choose;
mod journal;
pub(super) mod publish;
pub(super) mod read;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use object_store::path::Path;
use serde::Deserialize;
use tidegate_event::{Offset, Partition};

use super::{
    super::{
        promoted::Promotions,
        rows::Lane,
        status::JoinStatus,
        upkeep::{self, Room, Turn},
    },
    layout::{FileName, Format},
    store::LakeStore,
};
use crate::{
    config::{Size, Span},
    metrics,
    storage::Storage,
};
use build::{BuildError, Small};
use journal::Journal;
use publish::{Prepared, Published};

/// The fact of a joined file that says which offsets its parts had.
const WINDOWS: &str = "tidegate.joined";
/// When to try again what could not be done.
const RETRY: Duration = Duration::from_secs(5);
/// Folders that are remembered; the oldest are forgotten first, and found again at the next start.
const FOLDERS_MAX: usize = 100_000;
const HOUR_MICROS: i64 = 3_600_000_000;

/// One at a time, whatever there is to be joined.
static JOINING: Mutex<()> = Mutex::new(());

/// While there is one no file of the lake is joined.
pub(super) struct Still<'m>(&'m AtomicUsize);

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// `options.merge`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How long after an hour's begin its files are joined.
    after: Span,
    /// How often there is a round.
    every: Span,
    /// Files of this size are left as they are.
    small: Size,
    /// How long a reader may take to list one folder; 1 s on a local folder, 10 s on an object store.
    settle: Option<Span>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            after: Span::seconds(75 * 60),
            every: Span::seconds(60),
            small: Size::mib(16),
            settle: None,
        }
    }
}

impl Settings {
    /// `true`, `false` or a table.
    pub fn read(value: &toml::Value) -> Result<Option<Self>, String> {
        match value {
            toml::Value::Boolean(on) => Ok(on.then(Self::default)),
            toml::Value::Table(_) => {
                let settings: Self =
                    value.clone().try_into().map_err(|e| e.to_string().trim().to_owned())?;
                if settings.settle.is_some_and(|span| Duration::from_secs(600) < span.0) {
                    return Err("settle: 10m at most, since readers fail for twice as long".into());
                }
                Ok(Some(settings))
            }
            _ => Err("write true, false or a table with after, every, small, settle".to_owned()),
        }
    }
}

/// One lane's hour.
type Folder = (i64, Lane);

/// Joins the files of one lake.
pub struct Merger {
    settings: Option<Settings>,
    settle: Duration,
    format: Format,
    sink: String,
    storage: Arc<dyn Storage>,
    data_dir: PathBuf,
    path: PathBuf,
    journal: Mutex<Journal>,
    /// How many want that no file is joined.
    still: AtomicUsize,
    /// A promotion may be open that an earlier run began.
    promoting: AtomicBool,
    todo: Mutex<Todo>,
    removed: AtomicU64,
    made: AtomicU64,
    failures: AtomicU64,
}

/// Folders with small files, and how many.
#[derive(Default)]
struct Todo {
    scanned: bool,
    folders: BTreeMap<Folder, u64>,
    error: Option<String>,
}

impl Todo {
    fn add(&mut self, folder: Folder) {
        *self.folders.entry(folder).or_default() += 1;
        if FOLDERS_MAX < self.folders.len() {
            self.folders.pop_first();
        }
    }
}

/// A round's files, and the memory they take.
#[derive(Default)]
struct Batch {
    prepared: Vec<Prepared>,
    rooms: BTreeMap<Partition, (Room, u64)>,
}

impl Merger {
    /// Reads the journal of a sink.
    ///
    /// # Errors
    /// The journal cannot be used; the message says which file.
    pub fn open(
        settings: Option<Settings>,
        (sink, format, is_local): (&str, Format, bool),
        storage: &Arc<dyn Storage>,
        data_dir: &std::path::Path,
    ) -> Result<Self, String> {
        let path = data_dir.join("sinks").join(format!("{sink}-joins.json"));
        let journal = Journal::load(&**storage, &path);
        let journal = journal.map_err(|e| format!("{}: {e}", path.display()))?;
        let settle = settings.and_then(|settings| settings.settle).map(|span| span.0);
        Ok(Self {
            settings,
            settle: settle.unwrap_or(Duration::from_secs(if is_local { 1 } else { 10 })),
            format,
            sink: sink.to_owned(),
            storage: Arc::clone(storage),
            data_dir: data_dir.to_owned(),
            path,
            journal: Mutex::new(journal),
            still: AtomicUsize::new(0),
            promoting: AtomicBool::new(true),
            todo: Mutex::default(),
            removed: AtomicU64::new(0),
            made: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })
    }

    /// True where it has something to do: files are to be joined, or an earlier run was cut.
    pub fn is_on(&self) -> bool {
        self.settings.is_some() || !self.lock().joins.is_empty()
    }

    /// A file was written.
    pub fn wrote(&self, name: &FileName, bytes: usize) {
        if self.settings.is_some_and(|settings| (bytes as u64) < settings.small.0) {
            self.todo().add((name.hour, name.lane.clone()));
        }
    }

    /// Up to where the lane's files were joined: nothing may be written below it.
    pub fn floor(&self, name: &FileName) -> Option<Offset> {
        let journal = self.lock();
        if journal.log_id != name.log_id {
            return None;
        }
        journal.floors.get(&(name.partition, name.lane.clone())).copied()
    }

    fn lock(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn todo(&self) -> MutexGuard<'_, Todo> {
        self.todo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the journal, durably or not at all.
    fn keep(&self, change: impl FnOnce(&mut Journal)) -> Result<(), String> {
        let mut journal = self.lock().clone();
        change(&mut journal);
        let saved = journal.save(&*self.storage, &self.path);
        saved.map_err(|e| format!("{}: {e}", self.path.display()))?;
        *self.lock() = journal;
        Ok(())
    }

    /// How it does.
    pub fn status(&self) -> JoinStatus {
        let todo = self.todo();
        let waiting = todo.folders.values().filter(|files| 1 < **files);
        JoinStatus {
            waiting_folders: waiting.clone().count() as u64,
            waiting_files: waiting.sum(),
            removed_files: self.removed.load(Ordering::Relaxed),
            made_files: self.made.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            error: todo.error.clone(),
        }
    }

    /// One round: ends what was begun, joins what is ripe.
    pub fn turn(&self, store: &LakeStore, turn: &Turn<'_>) -> Duration {
        let _one_at_a_time = match JOINING.try_lock() {
            Ok(guard) => guard,
            // One that panicked left its journal, as a crash would.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return RETRY,
        };
        if 0 < self.still.load(Ordering::Acquire) {
            return RETRY;
        }
        match self.round(store, turn) {
            Ok(wait) => {
                self.todo().error = None;
                wait
            }
            Err(error) => {
                let sink = &self.sink;
                tracing::error!(sink, error, "small files could not be joined; tried again");
                self.failures.fetch_add(1, Ordering::Relaxed);
                metrics::lake_join_failures(sink, 1);
                self.todo().error = Some(error);
                RETRY
            }
        }
    }

    /// Keeps files from being joined, once none are and what was begun is ended.
    pub fn keep_still(
        &self,
        store: &LakeStore,
        stop: &dyn Fn() -> bool,
    ) -> Result<Still<'_>, String> {
        self.still.fetch_add(1, Ordering::AcqRel);
        let still = Still(&self.still);
        loop {
            let _one_at_a_time = match JOINING.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if stop() => {
                    return Err("small files are being joined; try again in a moment".to_owned());
                }
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
            };
            self.resume(store, stop)?;
            return Ok(still);
        }
    }

    /// How long a reader may take to list one folder.
    pub fn settle(&self) -> Duration {
        self.settle
    }

    /// True while rows are being exchanged that an earlier run has begun with: the server ends that, and
    /// files that are to go must keep their names until then.
    fn is_promoting(&self) -> Result<bool, String> {
        if !self.promoting.load(Ordering::Acquire) {
            return Ok(false);
        }
        let promotions = Promotions::load(&*self.storage, &self.data_dir, &self.sink);
        let open = promotions.map_err(|e| e.to_string())?.open.is_some();
        // Those of this run keep this one still meanwhile.
        self.promoting.store(open, Ordering::Release);
        Ok(open)
    }

    fn round(&self, store: &LakeStore, turn: &Turn<'_>) -> Result<Duration, String> {
        if self.is_promoting()? {
            return Ok(RETRY);
        }
        let ended = self.resume(store, &|| turn.stop())?;
        self.count(ended);
        let Some(settings) = self.settings else { return Ok(Duration::from_secs(3_600)) };
        if turn.busy() {
            return Ok(RETRY);
        }
        self.adopt(turn.log_id())?;
        if !self.todo().scanned {
            self.scan(store, settings, turn.log_id())?;
        }
        // Taken out before they are listed: what is written meanwhile is noted anew.
        let mut taken = Vec::new();
        let joined = self.join(store, settings, turn, &mut taken);
        let mut todo = self.todo();
        for (folder, files, is_done) in taken {
            if !is_done || joined.is_err() {
                *todo.folders.entry(folder).or_default() += files;
            }
        }
        joined.map(|()| settings.every.0)
    }

    fn join(
        &self,
        store: &LakeStore,
        settings: Settings,
        turn: &Turn<'_>,
        taken: &mut Vec<(Folder, u64, bool)>,
    ) -> Result<(), String> {
        // Behind all else while it takes long; what readers wait for is not.
        let batch = std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name(format!("join-{}", self.sink));
            let prepare = || {
                upkeep::step_back();
                self.prepare(store, settings, turn, taken)
            };
            let thread = builder.spawn_scoped(scope, prepare).map_err(|e| e.to_string())?;
            thread.join().unwrap_or_else(|_| Err("the thread that joins had panicked".to_owned()))
        })?;
        if !batch.prepared.is_empty() && !turn.stop() {
            let published = self.publish(store, &batch.prepared, &|| turn.stop())?;
            self.count(published);
        }
        Ok(())
    }

    fn count(&self, published: Published) {
        let Published { removed, made } = published;
        if 0 < made {
            tracing::info!(sink = self.sink, removed, made, "small files were joined");
        }
        self.removed.fetch_add(removed, Ordering::Relaxed);
        self.made.fetch_add(made, Ordering::Relaxed);
        metrics::lake_joined_files(&self.sink, removed);
        metrics::lake_made_files(&self.sink, made);
    }

    /// The journal is of this log from now on.
    fn adopt(&self, log_id: &str) -> Result<(), String> {
        if self.lock().log_id == log_id {
            return Ok(());
        }
        self.keep(|journal| {
            journal.floors.clear();
            log_id.clone_into(&mut journal.log_id);
            if journal.owner.is_empty() {
                journal.owner = uuid::Uuid::now_v7().to_string();
            }
        })
    }

    /// Looks through the lake for what earlier runs left.
    fn scan(&self, store: &LakeStore, settings: Settings, log_id: &str) -> Result<(), String> {
        let mut found = Todo::default();
        for area in ["events", "dead_letters"] {
            let area: Path = store.root().parts().chain([area.into()]).collect();
            let mut tell = |path: Path, bytes: u64| {
                let named =
                    FileName::parse(store.root(), &path).filter(|_| bytes < settings.small.0);
                if let Some((name, _)) = named
                    .filter(|(name, format)| name.log_id == log_id && *format == self.format)
                    .filter(|(name, _)| name.plan.is_none())
                {
                    found.add((name.hour, name.lane));
                }
            };
            store.scan(&area, &mut tell).map_err(|e| e.to_string())?;
        }
        let mut todo = self.todo();
        for (folder, files) in found.folders {
            // What was written since this start is counted in it already, or will be looked at anyway.
            let known = todo.folders.entry(folder).or_default();
            *known = (*known).max(files);
        }
        todo.scanned = true;
        Ok(())
    }

    /// Joins in memory what is ripe, as much of it as there is memory for.
    fn prepare(
        &self,
        store: &LakeStore,
        settings: Settings,
        turn: &Turn<'_>,
        taken: &mut Vec<(Folder, u64, bool)>,
    ) -> Result<Batch, String> {
        let after = i64::try_from(settings.after.0.as_micros()).unwrap_or(i64::MAX);
        let is_ripe = |(hour, _): &Folder| {
            hour.saturating_mul(HOUR_MICROS).saturating_add(after) <= turn.now().0
        };
        let ripe: Vec<Folder> =
            self.todo().folders.keys().filter(|f| is_ripe(f)).cloned().collect();
        let mut batch = Batch::default();
        for folder in ripe {
            if turn.stop() {
                break;
            }
            let files = self.todo().folders.remove(&folder).unwrap_or_default();
            taken.push((folder.clone(), files, false));
            let is_done = match self.look_at(store, settings, turn, &folder, &mut batch) {
                Ok(is_done) => is_done,
                Err(BuildError::Store(error)) => return Err(error.to_string()),
                Err(error @ BuildError::File { .. }) => {
                    // The same again would be of no use; a human must look, the others go on.
                    tracing::error!(sink = self.sink, %error, "files are not joined");
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    metrics::lake_join_failures(&self.sink, 1);
                    true
                }
            };
            if let Some((_, _, done)) = taken.last_mut() {
                *done = is_done;
            }
        }
        Ok(batch)
    }

    /// Joins one folder's files; true where it needs no other look.
    fn look_at(
        &self,
        store: &LakeStore,
        settings: Settings,
        turn: &Turn<'_>,
        (hour, lane): &Folder,
        batch: &mut Batch,
    ) -> Result<bool, BuildError> {
        let mut by_partition: BTreeMap<Partition, Vec<(Small, u64)>> = BTreeMap::new();
        let example = FileName {
            lane: lane.clone(),
            hour: *hour,
            log_id: turn.log_id().to_owned(),
            partition: Partition(0),
            first: Offset(0),
            last: Offset(0),
            plan: None,
        };
        let folder = publish::folder_of(&example.path(store.root(), self.format));
        store.scan(&folder, &mut |path, bytes| {
            // What came by a promotion keeps its name, so that a revert finds it.
            if let Some((name, format)) = FileName::parse(store.root(), &path)
                && (format, &name.log_id) == (self.format, &example.log_id)
                && name.plan.is_none()
            {
                by_partition.entry(name.partition).or_default().push((Small { path, name }, bytes));
            }
        })?;
        let mut done = true;
        for (partition, files) in by_partition {
            let Some(passed) = turn.passed(partition, lane) else {
                done = false;
                continue;
            };
            done &= files.iter().all(|(file, _)| file.name.last < passed);
            let room = match batch.rooms.entry(partition) {
                std::collections::btree_map::Entry::Occupied(room) => room.into_mut(),
                std::collections::btree_map::Entry::Vacant(free) => match turn.room(partition) {
                    Some(room) => free.insert((room, 0)),
                    None => {
                        done = false;
                        continue;
                    }
                },
            };
            // What is made of a group takes as much again, and is read back beside it.
            let most = room.0.bytes / 4;
            let small = settings.small.0.min(most);
            let ours =
                files.into_iter().filter(|(f, bytes)| f.name.last < passed && *bytes < small);
            let ours: Vec<_> = ours.map(|(file, _)| file).collect();
            if ours.len() < 2 {
                continue;
            }
            let left = most.saturating_sub(room.1);
            let bounds = build::Bounds { group: most, all: left };
            let (joined, all) = build::join(store, self.format, &ours, bounds, &|| turn.stop())?;
            done &= all;
            room.1 += joined.iter().map(|joined| joined.bytes.len() as u64).sum::<u64>();
            if !joined.is_empty() {
                let name = FileName { partition, ..example.clone() };
                batch.prepared.push(Prepared { name, joined });
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Settings>, String> {
        let table: toml::Table = text.parse().unwrap();
        Settings::read(table.get("merge").unwrap())
    }

    #[test]
    fn joining_is_switched_on_by_true_or_by_a_table() {
        assert_eq!(read("merge = false").unwrap(), None);
        assert_eq!(read("merge = true").unwrap(), Some(Settings::default()));
        assert_eq!(read("merge = {}").unwrap(), Some(Settings::default()));
        let settings = read("merge = { after = '0s', small = '1MiB', settle = '2s' }").unwrap();
        let expected = Settings {
            after: Span::seconds(0),
            small: Size::mib(1),
            settle: Some(Span::seconds(2)),
            ..Settings::default()
        };
        assert_eq!(settings, Some(expected));
        for text in ["merge = 3", "merge = { x = 1 }", "merge = { settle = '11m' }", "merge = 'on'"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_oldest_folders_are_forgotten_first() {
        let mut todo = Todo::default();
        let lane = |n: usize| Lane {
            tenant: tidegate_event::TenantId::new(&format!("t{n}")).unwrap(),
            event_type: tidegate_event::EventType::new("view").unwrap(),
            dead: false,
        };
        for n in 0..FOLDERS_MAX + 5 {
            todo.add((n as i64, lane(n)));
        }
        assert_eq!(todo.folders.len(), FOLDERS_MAX);
        assert_eq!(todo.folders.first_key_value().unwrap().0.0, 5);
    }
}
