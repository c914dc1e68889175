//! The jobs of one server: kept in its data folder, one at work at a time, resumed after a start.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use tokio::runtime::Handle;

pub use super::view::{JobView, ShadowView};
use super::{
    Plan, PlanId, ShadowPlace, ShadowSink,
    folder::{Folder, Progress},
    job::{self, Ended, JobState, Saved},
    pace::Pace,
    view::{Meter, SavedView, word},
};
use crate::{
    budget::Budget,
    clock::Clock,
    json::ScanLimits,
    normalize::SchemaStore,
    sink::{
        SinkConfig, SinkContext,
        source::{LogSource, SourceHold},
    },
    storage::Storage,
    tenants::Tenants,
    writer::LogWriter,
};

/// What jobs stand on.
#[derive(Clone)]
pub struct JobsParts {
    /// Every partition of the log, to read.
    pub logs: Vec<Arc<dyn LogSource>>,
    /// As a replay reads them; from the start of the work on.
    pub writers: Arc<OnceLock<Arc<dyn LogWriter>>>,
    /// The live sinks' configurations.
    pub sinks: Vec<SinkConfig>,
    /// Schemas by their hash.
    pub schemas: Arc<SchemaStore>,
    /// How events are read.
    pub limits: ScanLimits,
    /// Whose events.
    pub tenants: Arc<Tenants>,
    /// The file system.
    pub storage: Arc<dyn Storage>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The data folder.
    pub data_dir: PathBuf,
    /// The memory that requests share.
    pub budget: Arc<Budget>,
    /// Where the shadows' futures are run.
    pub runtime: Handle,
}

/// Why a job is not what was asked.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// No job has this id.
    #[error("there is no replay {0}; `ingestctl replay list` shows them")]
    Unknown(PlanId),
    /// The same plan was applied before.
    #[error(
        "this plan was applied before, and its job is {state}: look with `ingestctl replay status {id}`; \
         to run it again remove it first: `ingestctl replay rm {id}`"
    )]
    Exists {
        /// Which.
        id: PlanId,
        /// How its job stands.
        state: String,
    },
    /// It stands so that this makes no sense.
    #[error("{0}")]
    State(String),
    /// A plan that cannot be run.
    #[error("{0}")]
    Plan(String),
    /// It could not be done.
    #[error("{0}")]
    Io(String),
}

impl JobError {
    /// That there is this job already.
    #[must_use]
    pub fn exists(view: &JobView) -> Self {
        Self::Exists { id: view.plan_id.clone(), state: word(view.state) }
    }
}

struct Entry {
    plan: Plan,
    folder: Folder,
    saved: Saved,
    /// Keeps the window from retention while the job may still read it.
    holds: Vec<Box<dyn SourceHold>>,
    pace: Arc<Pace>,
    meter: Meter,
    /// Why it does not go on at the moment.
    trouble: Option<String>,
    /// How far a job came that has ended: that changes no more.
    last: Option<Vec<Progress>>,
}

#[derive(Default)]
struct Table {
    jobs: BTreeMap<PlanId, Entry>,
    /// The one at work.
    running: Option<PlanId>,
    /// Those that are being removed.
    removing: BTreeSet<PlanId>,
}

struct Inner {
    parts: JobsParts,
    table: Mutex<Table>,
    /// Something is to be done.
    wake: Condvar,
    ends: AtomicBool,
}

/// All jobs of a server.
pub struct Jobs {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Jobs {
    /// Reads what is in the data folder, and holds the log for what is not done. No job runs yet.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn open(parts: JobsParts) -> Result<Self, String> {
        let mut table = Table::default();
        for id in listed(&parts)? {
            let folder = Folder::of(&parts.data_dir, &id);
            match folder.load(&*parts.storage) {
                Ok(Some((plan, mut saved))) => {
                    if saved.state == JobState::Running {
                        saved.state = JobState::Waiting;
                    }
                    let entry = Entry::new(&parts, plan, folder, saved);
                    table.jobs.insert(id, entry);
                }
                // A crash before it was a job.
                Ok(None) => {}
                // One job that cannot be read is no reason not to start.
                Err(error) => {
                    tracing::error!(plan = %id, error, "a replay cannot be read: it is left alone")
                }
            }
        }
        let inner = Inner {
            parts,
            table: Mutex::new(table),
            wake: Condvar::new(),
            ends: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner), thread: Mutex::default() })
    }

    /// Begins to work, on the log as `writers` has it read.
    ///
    /// # Errors
    /// As the system's, for a thread.
    pub fn start(&self, writers: &Arc<dyn LogWriter>) -> std::io::Result<()> {
        self.inner.parts.writers.get_or_init(|| Arc::clone(writers));
        let inner = Arc::clone(&self.inner);
        let thread = std::thread::Builder::new().name("replay".to_owned());
        let thread = thread.spawn(move || inner.work())?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Ends the work at its next safe point; it goes on at the next start. Blocks.
    pub fn stop(&self) {
        self.inner.ends.store(true, Ordering::Release);
        self.inner.wake.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the replays' thread had panicked");
        }
    }

    /// Takes a plan: durable on return, and at work as soon as it is its turn. `check` must have said
    /// that the world is as the plan has it.
    ///
    /// # Errors
    /// [`JobError`]; there is no job then that was not there before.
    pub fn apply(&self, plan: Plan, by: &str, max_rate: Option<u64>) -> Result<JobView, JobError> {
        let inner = &self.inner;
        if max_rate == Some(0) {
            return Err(JobError::Plan("max_rate: 1 at least, or leave it out".to_owned()));
        }
        let is = plan.content.id().map_err(|e| JobError::Plan(e.to_string()))?;
        if is != plan.plan_id {
            return Err(JobError::Plan(format!(
                "the plan's id is {}, its content's {is}",
                plan.plan_id
            )));
        }
        let mut table = inner.table();
        if let Some(there) = table.jobs.get(&is) {
            let state = word(there.saved.state);
            return Err(JobError::Exists { id: is, state });
        }
        let folder = Folder::of(&inner.parts.data_dir, &is);
        let saved = Saved::new(by, inner.parts.clock.now(), max_rate);
        let created = folder.create(&*inner.parts.storage, &plan, &saved);
        created.map_err(|e| JobError::Io(format!("{}: {e}", folder.path().display())))?;
        let mut entry = Entry::new(&inner.parts, plan, folder, saved);
        let view = inner.view(&is, &mut entry, false);
        table.jobs.insert(is, entry);
        inner.wake.notify_all();
        Ok(view)
    }

    /// All jobs, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<JobView> {
        let mut table = self.inner.table();
        let Table { jobs, running, .. } = &mut *table;
        let view = |(id, entry): (&PlanId, &mut Entry)| {
            (entry.saved.applied_at, self.inner.view(id, entry, running.as_ref() == Some(id)))
        };
        let mut views: Vec<_> = jobs.iter_mut().map(view).collect();
        views.sort_by_key(|(at, view)| (std::cmp::Reverse(*at), view.plan_id.clone()));
        views.into_iter().map(|(_, view)| view).collect()
    }

    /// One job.
    ///
    /// # Errors
    /// [`JobError::Unknown`]
    pub fn get(&self, id: &PlanId) -> Result<JobView, JobError> {
        let mut table = self.inner.table();
        let at_work = table.running.as_ref() == Some(id);
        let entry = table.jobs.get_mut(id).ok_or_else(|| JobError::Unknown(id.clone()))?;
        Ok(self.inner.view(id, entry, at_work))
    }

    /// The plan of a job, and how it stands.
    ///
    /// # Errors
    /// [`JobError::Unknown`]
    pub fn plan(&self, id: &PlanId) -> Result<(Plan, JobState), JobError> {
        let table = self.inner.table();
        let entry = table.jobs.get(id).ok_or_else(|| JobError::Unknown(id.clone()))?;
        Ok((entry.plan.clone(), entry.saved.state))
    }

    /// The folder of a job.
    #[must_use]
    pub fn folder(&self, id: &PlanId) -> Folder {
        Folder::of(&self.inner.parts.data_dir, id)
    }

    /// Stands still until it is resumed.
    ///
    /// # Errors
    /// [`JobError`]
    pub fn pause(&self, id: &PlanId) -> Result<JobView, JobError> {
        self.change(id, JobState::Paused, |state| {
            matches!(state, JobState::Waiting | JobState::Running)
        })
    }

    /// Goes on where it was.
    ///
    /// # Errors
    /// [`JobError`]
    pub fn resume(&self, id: &PlanId) -> Result<JobView, JobError> {
        self.change(id, JobState::Waiting, |state| {
            matches!(state, JobState::Paused | JobState::Failed)
        })
    }

    /// Ends for good; what it wrote stays until it is removed.
    ///
    /// # Errors
    /// [`JobError`]
    pub fn cancel(&self, id: &PlanId) -> Result<JobView, JobError> {
        self.change(id, JobState::Cancelled, JobState::is_open)
    }

    fn change(
        &self,
        id: &PlanId,
        to: JobState,
        from: impl Fn(JobState) -> bool,
    ) -> Result<JobView, JobError> {
        let inner = &self.inner;
        let mut table = inner.table();
        table.check_stays(id)?;
        let at_work = table.running.as_ref() == Some(id);
        let entry = table.jobs.get_mut(id).ok_or_else(|| JobError::Unknown(id.clone()))?;
        if !from(entry.saved.state) {
            let (is, to) = (word(entry.saved.state), word(to));
            return Err(JobError::State(format!("replay {id} is {is}: it cannot become {to}")));
        }
        inner.set(entry, to, None)?;
        let view = inner.view(id, entry, at_work);
        // Who is at work stops at the next safe point, and is waited for: what is told then is true.
        while table.running.as_ref() == Some(id) && to != JobState::Waiting {
            table = inner.wake.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        inner.wake.notify_all();
        Ok(view)
    }

    /// Removes the shadow and all that is kept of the job. Blocks. Once it has begun the job is cancelled,
    /// whatever it was: no half of a shadow passes for a whole one.
    ///
    /// # Errors
    /// [`JobError`]: it stays then, and can be removed again.
    pub fn remove(&self, id: &PlanId) -> Result<(), JobError> {
        let inner = &self.inner;
        let (plan, folder) = {
            let mut table = inner.table();
            table.check_stays(id)?;
            let entry = table.jobs.get_mut(id).ok_or_else(|| JobError::Unknown(id.clone()))?;
            if matches!(entry.saved.state, JobState::Waiting | JobState::Running) {
                return Err(JobError::State(format!(
                    "replay {id} is at work: `ingestctl replay cancel {id}` first"
                )));
            }
            let begun = "its removal has begun, and not all of the shadow may be there any more: \
                         remove it again";
            inner.set(entry, JobState::Cancelled, Some(begun.to_owned()))?;
            // What is read from now on is of a job that goes.
            entry.last = None;
            let found = (entry.plan.clone(), entry.folder.clone());
            table.removing.insert(id.clone());
            found
        };
        let removed = inner.erase(&plan, &folder).and_then(|()| {
            let removed = folder.remove(&*inner.parts.storage);
            removed.map_err(|e| format!("{}: {e}", folder.path().display()))
        });
        let mut table = inner.table();
        table.removing.remove(id);
        removed.map_err(JobError::Io)?;
        table.jobs.remove(id);
        Ok(())
    }
}

impl Table {
    /// Nothing is done to a job that is being removed.
    fn check_stays(&self, id: &PlanId) -> Result<(), JobError> {
        if self.removing.contains(id) {
            return Err(JobError::State(format!("replay {id} is being removed: wait for the end")));
        }
        Ok(())
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Entry {
    fn new(parts: &JobsParts, plan: Plan, folder: Folder, saved: Saved) -> Self {
        let holds = if saved.state.is_open() { job::hold(parts, &plan) } else { Vec::new() };
        let pace = Arc::new(Pace::new(saved.max_rate));
        let meter = Meter::default();
        Self { plan, folder, saved, holds, pace, meter, trouble: None, last: None }
    }
}

impl Entry {
    fn come_to(&mut self, saved: Saved) {
        if !saved.state.is_open() {
            self.holds.clear();
        }
        self.saved = saved;
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a job's state, durably.
    fn set(&self, entry: &mut Entry, to: JobState, error: Option<String>) -> Result<(), JobError> {
        let since = self.parts.clock.now();
        let saved = entry.saved.come_to(to, since, error);
        let done = entry.folder.save(&*self.parts.storage, &saved);
        done.map_err(|e| JobError::Io(format!("{}: {e}", entry.folder.path().display())))?;
        entry.come_to(saved);
        Ok(())
    }

    /// How far its shadows are. Of a job that has ended that was read once.
    fn progress(&self, entry: &mut Entry, at_work: bool) -> Vec<Progress> {
        if let Some(last) = &entry.last {
            return last.clone();
        }
        let progress = entry.folder.progress(&self.parts, &entry.plan);
        let is_whole = |p: &Progress| p.stored + p.quarantined == p.events;
        let has_ended = match entry.saved.state {
            // What could not be read counts as nothing: that is not kept.
            JobState::Done => progress.iter().all(is_whole),
            JobState::Cancelled => !at_work,
            _ => false,
        };
        if has_ended {
            entry.last = Some(progress.clone());
        }
        progress
    }

    fn view(&self, id: &PlanId, entry: &mut Entry, at_work: bool) -> JobView {
        let progress = self.progress(entry, at_work);
        let done = |progress: &Progress| progress.stored + progress.quarantined;
        let events = progress.iter().map(|p| p.events).max().unwrap_or(0);
        let slowest = progress.iter().min_by_key(|p| done(p) + (events - p.events));
        let done_events = slowest.map_or(0, |p| done(p) + (events - p.events));
        let runs = entry.saved.state == JobState::Running;
        let is_to_run = runs || entry.saved.state == JobState::Waiting;
        let rate = if runs { entry.meter.look(done_events) } else { 0.0 };
        let left = events.saturating_sub(done_events) as f64;
        let shadow = |progress: Progress| ShadowView {
            shadow: entry.plan.shadow.get(&progress.sink).cloned().unwrap_or_default(),
            progress,
        };
        JobView {
            plan_id: id.clone(),
            state: entry.saved.state,
            events,
            done_events,
            events_per_second: rate,
            seconds_left: (0.0 < rate).then(|| left / rate),
            duty: entry.pace.duty(),
            trouble: entry.trouble.clone().filter(|_| is_to_run),
            sinks: progress.into_iter().map(shadow).collect(),
            saved: SavedView::of(&entry.saved),
        }
    }

    /// The thread: one job after the other, the oldest first.
    fn work(&self) {
        while let Some((id, plan, folder, pace)) = self.next() {
            tracing::info!(plan = %id, events = plan.content.events(), "the replay begins");
            let mut told = |trouble| self.ends.load(Ordering::Acquire) || !self.runs(&id, trouble);
            let ended = job::run(&self.parts, &plan, &folder, &pace, &mut told);
            self.end(&id, ended);
        }
    }

    /// Whether a job is to go on, which says why it does not at the moment.
    fn runs(&self, id: &PlanId, trouble: Option<String>) -> bool {
        let mut table = self.table();
        let Some(entry) = table.jobs.get_mut(id) else { return false };
        entry.trouble = trouble;
        entry.saved.state == JobState::Running
    }

    /// The next job, running from now on; `None` at the end.
    fn next(&self) -> Option<(PlanId, Plan, Folder, Arc<Pace>)> {
        let mut table = self.table();
        loop {
            if self.ends.load(Ordering::Acquire) {
                return None;
            }
            let waiting =
                table.jobs.iter_mut().filter(|(_, job)| job.saved.state == JobState::Waiting);
            let next = waiting.min_by_key(|(_, job)| job.saved.applied_at);
            if let Some((id, entry)) = next {
                let id = id.clone();
                // A new one: what stopped the last run would stop this.
                entry.pace = Arc::new(Pace::new(entry.saved.max_rate));
                let found =
                    (id.clone(), entry.plan.clone(), entry.folder.clone(), Arc::clone(&entry.pace));
                match self.set(entry, JobState::Running, None) {
                    Ok(()) => {
                        table.running = Some(id);
                        return Some(found);
                    }
                    Err(error) => {
                        tracing::warn!(plan = %id, %error, "the replay waits");
                        entry.trouble = Some(error.to_string());
                    }
                }
            }
            let wait = std::time::Duration::from_secs(1);
            table = self.wake.wait_timeout(table, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn end(&self, id: &PlanId, ended: Result<Ended, String>) {
        let mut table = self.table();
        table.running = None;
        if let Some(entry) = table.jobs.get_mut(id) {
            entry.trouble = None;
            let (to, error) = match ended {
                Ok(Ended::Done) => (JobState::Done, None),
                // As whoever told it has it; at the end of the process it is running still.
                Ok(Ended::Stopped) => (entry.saved.state, None),
                Err(error) => (JobState::Failed, Some(error)),
            };
            tracing::info!(plan = %id, state = word(to), error, "the replay has ended");
            if to != entry.saved.state
                && let Err(fault) = self.set(entry, to, error.clone())
            {
                // It is running still, as far as the disk knows: the next start ends it again.
                tracing::error!(plan = %id, error = %fault, "how the replay ended cannot be written down");
                let (state, error) = match error {
                    Some(error) => (JobState::Failed, Some(error)),
                    // Its next turn finds all written.
                    None => (JobState::Waiting, None),
                };
                entry.come_to(entry.saved.come_to(state, self.parts.clock.now(), error));
                entry.trouble = Some(fault.to_string());
            }
        }
        self.wake.notify_all();
    }

    fn erase(&self, plan: &Plan, folder: &Folder) -> Result<(), String> {
        let context = SinkContext {
            log_id: plan.content.log_id.clone(),
            shared_as: None,
            data_dir: folder.path().to_owned(),
            storage: Arc::clone(&self.parts.storage),
            schemas: Arc::<SchemaStore>::clone(&self.parts.schemas),
            runtime: self.parts.runtime.clone(),
        };
        for target in &plan.content.targets {
            let fault = |e: &dyn std::fmt::Display| format!("the shadow of {}: {e}", target.sink);
            let Some(live) = self.parts.sinks.iter().find(|sink| sink.name == target.sink) else {
                return Err(fault(&"its sink is not configured any more; remove it by hand"));
            };
            let data_dir = &self.parts.data_dir;
            let place =
                ShadowPlace::of(live, plan.plan_id.as_str(), data_dir).map_err(|e| fault(&e))?;
            let shadow = ShadowSink::open(&place, &context).map_err(|e| fault(&e))?;
            shadow.erase().map_err(|e| fault(&e))?;
        }
        Ok(())
    }
}

/// The plans of which there is a folder.
fn listed(parts: &JobsParts) -> Result<Vec<PlanId>, String> {
    let dir = parts.data_dir.join("replay");
    match parts.storage.list(&dir) {
        Ok(names) => Ok(names.iter().filter_map(|name| name.parse().ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("{}: {error}", dir.display())),
    }
}
