//! Starts the sinks' workers, drains them, and answers for them.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tidegate_event::{Offset, Partition};
use tokio::{runtime::Handle, sync::watch};

use super::{
    Sink, SinkConfig, SinkContext, SinkKind,
    apart::{check_apart, lane_bytes},
    crew::Crew,
    desk::{Board, Desk, Shared},
    freshness::Freshness,
    lake::Schemas,
    memory::Memory,
    pressure::{Bound, PressureCache, Running},
    promoted::Promotions,
    quarantine::Quarantine,
    rows::{Lane, Lanes},
    source::{LogSource, SourceEntry, SourceError},
    start::{Before, Began},
    state::{Files, SaveError, State, StateFault, StateStore, StateStores},
    status::Counts,
    upkeep,
    window::{Cut, Gatherer},
    worker::Worker,
};
use crate::{clock::Clock, config::Size, storage::Storage};

/// What the sinks stand on.
#[derive(Clone)]
pub struct SinkParts {
    /// Every partition of the log.
    pub logs: Vec<Arc<dyn LogSource>>,
    /// What this process is called where others run sinks of this log too: none runs here until
    /// [`Sinks::own`] says which. `None`: all of them do, with their state in files.
    pub shared_as: Option<String>,
    /// Schemas by their hash.
    pub schemas: Arc<dyn Schemas>,
    /// The file system of the data folder and of local lakes.
    pub storage: Arc<dyn Storage>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The data folder.
    pub data_dir: PathBuf,
    /// `log.backlog_bytes`: the bound of each sink's backlog, over all partitions.
    pub backlog_bytes: u64,
    /// `budget.sink_delay`: a sink that blocks may be behind by what it drains in this time.
    pub sink_delay: Duration,
    /// What all sinks and partitions together may hold of events in memory.
    pub memory_bytes: u64,
    /// Where the sinks' futures are run.
    pub runtime: Handle,
    /// Behind the threads of live sinks too: a replay's.
    pub background: bool,
}

/// The sinks cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SinkStartError {
    /// The configuration is wrong, or a place cannot be opened.
    #[error("sink {sink:?}: {cause}")]
    Config {
        /// Which sink.
        sink: String,
        /// What is wrong, and what to write instead.
        cause: String,
    },
    /// A cursor cannot be used.
    #[error("sink {sink:?}: its cursor file {} cannot be used: {fault}", path.display())]
    State {
        /// Which sink.
        sink: String,
        /// Which file.
        path: PathBuf,
        /// Why.
        fault: StateFault,
    },
    /// A folder cannot be made or a thread not be started.
    #[error("sink {sink:?}: {}: {source}", path.display())]
    Io {
        /// Which sink.
        sink: String,
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The running sinks.
pub struct Sinks {
    pub(super) sinks: Vec<Running>,
    threads: Mutex<Vec<(Partition, JoinHandle<()>)>>,
    upkeep: Mutex<Vec<JoinHandle<()>>>,
    /// True once what is done beside writing is to end.
    ends: Arc<AtomicBool>,
    parts: SinkParts,
    share: u64,
    pub(super) pressure: Mutex<PressureCache>,
    pub(super) clock: Arc<dyn Clock>,
}

/// Opens every sink of the configuration and starts it where its cursor stands.
///
/// # Errors
/// [`SinkStartError`]; no thread is left running.
pub fn start(configs: &[SinkConfig], parts: &SinkParts) -> Result<Sinks, SinkStartError> {
    let context = SinkContext {
        log_id: parts.logs.first().map_or_else(String::new, |log| log.log_id().to_owned()),
        shared_as: parts.shared_as.clone(),
        data_dir: parts.data_dir.clone(),
        storage: Arc::clone(&parts.storage),
        schemas: Arc::clone(&parts.schemas),
        runtime: parts.runtime.clone(),
    };
    let mut opened = Vec::new();
    for config in configs {
        let fault = |cause: String| SinkStartError::Config { sink: config.name.clone(), cause };
        let kind = SinkKind::of(config).map_err(|e| fault(e.to_string()))?;
        let sink = (kind.open)(&config.own(), &context).map_err(|e| fault(e.to_string()))?;
        opened.push((config.clone(), sink));
    }
    start_with(opened, parts)
}

/// Starts sinks that are open already.
///
/// # Errors
/// As [`start`].
pub fn start_with(
    opened: Vec<(SinkConfig, Arc<dyn Sink>)>,
    parts: &SinkParts,
) -> Result<Sinks, SinkStartError> {
    check_apart(opened.iter().map(|(config, _)| config), parts)?;
    let share = share(&opened, parts)?;
    let mut running = Vec::new();
    for (config, sink) in opened {
        let dir = parts.data_dir.join("sinks");
        let io =
            |source| SinkStartError::Io { sink: config.name.clone(), path: dir.clone(), source };
        // A cursor that is seen here lets retention go on: a power cut must not take it back.
        let made = parts.storage.create_dir_all(&dir);
        made.and_then(|()| parts.storage.sync_dir(&dir)).map_err(io)?;
        let path = dir.join(format!("{}-quarantine.jsonl", config.name));
        let quarantine = Arc::new(Quarantine::new(Arc::clone(&parts.storage), path));
        let freshness = Arc::new(Freshness::new(config.objective, sink.asks()));
        let lane_bytes = lane_bytes(&config, parts.backlog_bytes)?;
        let bound = Bound::new(parts.backlog_bytes, parts.sink_delay);
        let (partitions, reconciling) = (Arc::default(), Mutex::default());
        running.push(Running {
            config,
            sink,
            quarantine,
            lane_bytes,
            bound,
            partitions,
            reconciling,
            freshness,
            rests: watch::Sender::new(true),
        });
    }
    let sinks = Sinks {
        sinks: running,
        threads: Mutex::default(),
        upkeep: Mutex::default(),
        ends: Arc::default(),
        parts: parts.clone(),
        share,
        pressure: Mutex::default(),
        clock: Arc::clone(&parts.clock),
    };
    if parts.shared_as.is_none() {
        let mut workers = Vec::new();
        for log in &parts.logs {
            let storage = Arc::clone(&parts.storage);
            let (dir, partition) = (parts.data_dir.join("sinks"), log.partition());
            workers.append(&mut sinks.workers(log, &Files { storage, dir, partition })?);
        }
        sinks.launch(workers)?;
    }
    start_upkeep(&sinks, parts)?;
    Ok(sinks)
}

/// One thread for each sink that has something to do beside writing.
fn start_upkeep(sinks: &Sinks, parts: &SinkParts) -> Result<(), SinkStartError> {
    for running in sinks.sinks.iter().filter(|running| upkeep::is_needed(&*running.sink)) {
        let name = running.config.name.clone();
        let beside = upkeep::Beside {
            name: name.clone(),
            sink: Arc::clone(&running.sink),
            freshness: Arc::clone(&running.freshness),
            partitions: Arc::clone(&running.partitions),
            clock: Arc::clone(&parts.clock),
            ends: Arc::clone(&sinks.ends),
            alone: parts.shared_as.is_none(),
        };
        let (rests, background) = (running.rests.clone(), parts.background);
        rests.send_replace(false);
        let thread = std::thread::Builder::new().name(format!("upkeep-{name}")).spawn(move || {
            let _farewell = upkeep::Farewell(rests);
            give_way(background);
            beside.run();
        });
        let path = parts.data_dir.join("sinks");
        let thread = thread.map_err(|source| SinkStartError::Io { sink: name, path, source })?;
        sinks.upkeep.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }
    Ok(())
}

/// Puts this thread, and those it starts, behind the threads that answer clients: what is late in a
/// sink lies safe in the log, what is late in an answer is sent again.
fn give_way(background: bool) {
    let nice = if background { 19 } else { 10 };
    // On Linux it counts for the calling thread alone. Where it is refused all are equal, as before.
    if let Err(error) = rustix::process::nice(nice) {
        tracing::debug!(%error, "the sinks' threads run at the priority of all others");
    }
}

fn worker(
    running: &Running,
    log: &Arc<dyn LogSource>,
    store: Box<dyn StateStore>,
    parts: &SinkParts,
    share: u64,
) -> Result<Worker, SinkStartError> {
    let config = &running.config;
    // Held before the state is read, so that retention cannot pass in between.
    let mut hold = log.hold(&format!("sink {}", config.name));
    let state = State::load(&*store, log.log_id(), log.partition());
    let state = state.map_err(|fault| SinkStartError::State {
        sink: config.name.clone(),
        path: store.place().into(),
        fault,
    })?;
    let state = match state {
        Some(state) => state,
        None => first_state(config, log, parts, &*store)?,
    };
    hold.advance(state.lowest());
    let cut = Cut::new(&config.flush, running.sink.flush_age());
    let gatherer = Gatherer::new(Arc::clone(log), cut, state.cursor);
    let shared = Arc::new(Shared {
        name: config.name.clone(),
        policy: config.policy,
        filter: config.filter.clone(),
        freshness: Arc::clone(&running.freshness),
        log: Arc::clone(log),
        // Each partition has its share of the bound.
        bound_bytes: parts.backlog_bytes / (parts.logs.len().max(1) as u64),
        memory: Memory::new(share),
        board: Mutex::new(Board::new(state)),
        hold: Mutex::new(hold),
        flush: AtomicBool::new(false),
        quit: AtomicBool::new(false),
        done: watch::Sender::new(false),
    });
    let desk = Arc::new(Desk {
        shared,
        sink: Arc::clone(&running.sink),
        clock: Arc::clone(&parts.clock),
        store,
        quarantine: Arc::clone(&running.quarantine),
        cut,
        pace: Mutex::default(),
        committing: Mutex::default(),
        failed: Mutex::default(),
    });
    Ok(Worker { crew: Crew::new(Arc::clone(&desk)), desk, gatherer, drains_to: None })
}

/// A sink that has no cursor. Where it begins is durable on return: the next start must not find
/// another place, a later "now" least of all.
fn first_state(
    config: &SinkConfig,
    log: &Arc<dyn LogSource>,
    parts: &SinkParts,
    store: &dyn StateStore,
) -> Result<State, SinkStartError> {
    let sink = || config.name.clone();
    let began = Began::of(config.start, &**log, parts.logs.len(), parts.clock.now());
    let began = began.map_err(|cause| SinkStartError::Config { sink: sink(), cause })?;
    let Some(began) = began else {
        return Ok(State::new(log.log_id(), log.partition(), Offset(0)));
    };
    let state = State::begun(log.log_id(), log.partition(), began);
    state.save(store).map_err(|error| SinkStartError::Io {
        sink: sink(),
        path: store.place().into(),
        source: match error {
            SaveError::Io(source) => source,
            SaveError::Fenced => std::io::Error::other(error),
        },
    })?;
    Ok(state)
}

/// What each sink may hold of each partition in memory.
fn share(opened: &[(SinkConfig, Arc<dyn Sink>)], parts: &SinkParts) -> Result<u64, SinkStartError> {
    let workers = (opened.len() * parts.logs.len()).max(1) as u64;
    let (share, least) = (parts.memory_bytes / workers, Memory::share_min());
    match opened.first() {
        Some((config, _)) if share < least => Err(SinkStartError::Config {
            sink: config.name.clone(),
            cause: format!(
                "the sinks' part of budget.bytes is {} for {workers} windows ({} sinks, {} \
                 partitions), and each takes {} at least: raise budget.bytes so that the part is {}, \
                 or have fewer sinks or log.partitions",
                Size(parts.memory_bytes),
                opened.len(),
                parts.logs.len(),
                Size(least),
                Size(least * workers),
            ),
        }),
        _ => Ok(share),
    }
}

impl Sinks {
    /// The sinks' names.
    pub fn names(&self) -> Vec<String> {
        self.sinks.iter().map(|running| running.config.name.clone()).collect()
    }

    /// Writes all that the log holds now, whatever its age, then ends the sinks' threads; after
    /// `deadline` they end with what they have, and go on from there at the next start.
    pub async fn drain(&self, deadline: Duration) {
        self.ends.store(true, Ordering::Release);
        self.finish();
        let all = async {
            for shared in self.shared() {
                // The sender lives in `shared`: the wait cannot end for want of one.
                let mut done = shared.done.subscribe();
                let _ended = done.wait_for(|done| *done).await;
            }
            for sink in &self.sinks {
                let mut rests = sink.rests.subscribe();
                let _ended = rests.wait_for(|rests| *rests).await;
            }
        };
        if tokio::time::timeout(deadline, all).await.is_err() {
            tracing::warn!("the sinks were not drained in time; they go on at the next start");
        }
        for shared in self.shared() {
            shared.quit.store(true, Ordering::Release);
        }
    }

    /// From now on what is there is written whatever its age; who has come to the end of its log ends.
    pub fn finish(&self) {
        for shared in self.shared() {
            shared.flush.store(true, Ordering::Release);
        }
    }

    /// True once all threads that write have ended, for whatever reason.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.shared().iter().all(|shared| *shared.done.borrow())
    }

    /// Ends the threads at their next safe point and waits for them. Blocks.
    pub fn stop(&self) {
        self.ends.store(true, Ordering::Release);
        for shared in self.shared() {
            shared.quit.store(true, Ordering::Release);
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.drain(..).for_each(|(_, thread)| join(thread));
        let mut upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        upkeep.drain(..).for_each(join);
    }

    /// Runs every sink's work on a partition of a shared log, with its state as it lies there.
    ///
    /// # Errors
    /// [`SinkStartError`]; none runs then.
    pub fn own(
        &self,
        log: &Arc<dyn LogSource>,
        states: &dyn StateStores,
    ) -> Result<(), SinkStartError> {
        self.sinks.iter().for_each(|running| running.sink.begins_with(log.partition()));
        let launched = self.workers(log, states).and_then(|workers| self.launch(workers));
        if launched.is_err() {
            self.disown(log.partition(), Duration::ZERO);
        }
        launched
    }

    /// Ends every sink's work on a partition at its next safe point, waiting `patience` for that; true
    /// where all have ended. One that has not ends later, and changes no state that is not its own.
    pub fn disown(&self, partition: Partition, patience: Duration) -> bool {
        let own = |shared: &Arc<Shared>| shared.log.partition() == partition;
        for shared in self.shared().iter().filter(|shared| own(shared)) {
            shared.quit.store(true, Ordering::Release);
        }
        let until = Instant::now() + patience;
        let ended = loop {
            let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
            let (done, rest): (Vec<_>, Vec<_>) = threads
                .drain(..)
                .partition(|(of, thread)| *of == partition && thread.is_finished());
            *threads = rest;
            let ended = !threads.iter().any(|(of, _)| *of == partition);
            drop(threads);
            done.into_iter().for_each(|(_, thread)| join(thread));
            if ended || until <= Instant::now() {
                break ended;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        for sink in &self.sinks {
            let mut partitions = sink.partitions.lock().unwrap_or_else(PoisonError::into_inner);
            partitions.retain(|shared| !own(shared));
        }
        ended
    }

    /// Who does the work on one partition, one for each sink.
    fn workers(
        &self,
        log: &Arc<dyn LogSource>,
        states: &dyn StateStores,
    ) -> Result<Vec<Worker>, SinkStartError> {
        let one = |running: &Running| {
            let store = states.of(&running.config.name);
            worker(running, log, store, &self.parts, self.share)
        };
        self.sinks.iter().map(one).collect()
    }

    fn launch(&self, workers: Vec<Worker>) -> Result<(), SinkStartError> {
        for worker in workers {
            let (shared, place) = (Arc::clone(&worker.desk.shared), worker.desk.store.place());
            let partition = shared.log.partition();
            if let Some(sink) = self.sinks.iter().find(|sink| sink.config.name == shared.name) {
                let mut partitions = sink.partitions.lock().unwrap_or_else(PoisonError::into_inner);
                partitions.push(Arc::clone(&shared));
                partitions.sort_by_key(|shared| shared.log.partition());
            }
            let name = format!("sink-{}-{partition}", shared.name);
            let background = self.parts.background;
            let thread = std::thread::Builder::new().name(name).spawn(move || {
                give_way(background);
                worker.run();
            });
            let thread = thread.map_err(|source| SinkStartError::Io {
                sink: shared.name.clone(),
                path: place.into(),
                source,
            })?;
            let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
            threads.push((partition, thread));
        }
        Ok(())
    }

    /// Each sink's cursor in each partition.
    #[must_use]
    pub fn cursors(&self) -> Vec<(String, Partition, Offset)> {
        let cursor = |shared: &Arc<Shared>| {
            (shared.name.clone(), shared.log.partition(), shared.board().state.cursor)
        };
        self.shared().iter().map(cursor).collect()
    }

    /// Each sink's side of the books. Reads the log from the lowest cursors to its end. Blocks.
    ///
    /// # Errors
    /// [`SourceError`] when the log cannot be read, or retention passed meanwhile: try again.
    pub fn counts(&self) -> Result<Vec<Counts>, SourceError> {
        let mut all = Vec::new();
        for sink in &self.sinks {
            let read = |e: std::io::Error| SourceError::Read { cause: e.to_string() };
            let promotions = self.promotions(&sink.config.name).map_err(read)?;
            let sink_name = sink.config.name.clone();
            let mut counts = Counts { sink: sink_name, promotions, ..Counts::default() };
            for shared in &sink.partitions() {
                count(shared, &mut counts)?;
            }
            all.push(counts);
        }
        Ok(all)
    }

    /// What replays were promoted into a sink.
    ///
    /// # Errors
    /// As reading a file.
    pub fn promotions(&self, sink: &str) -> std::io::Result<Promotions> {
        Promotions::load(&*self.parts.storage, &self.parts.data_dir, sink)
    }

    pub(super) fn shared(&self) -> Vec<Arc<Shared>> {
        self.sinks.iter().flat_map(Running::partitions).collect()
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        for shared in self.shared() {
            shared.quit.store(true, Ordering::Release);
        }
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a sink's thread had panicked");
    }
}

fn count(shared: &Shared, counts: &mut Counts) -> Result<(), SourceError> {
    let state = shared.board().state.clone();
    for (lane, passed) in &state.counts {
        let lane = counts.lanes.entry(lane.clone()).or_default();
        lane.stored += passed.stored;
        lane.quarantined += passed.quarantined;
        lane.skipped += passed.skipped;
    }
    counts.lost_in_log += state.lost_in_log;
    if let Some(began) = &state.began {
        let before = Before::read(&*shared.log, began, || Ok::<_, SourceError>(()))?;
        for (lane, rows) in before.lanes {
            counts.lanes.entry(lane).or_default().skipped += rows;
        }
        counts.lost_in_log += before.lost;
        counts.gone += began.gone + before.gone;
    }
    counts.cursors.insert(state.partition, state.cursor);
    for held in &state.held {
        counts.held.insert((state.partition, held.lane.clone()), held.cursor);
    }
    let (mut at, end) = (state.lowest(), shared.log.latest());
    let mut reader = shared.log.read_from(at)?;
    while at < end {
        match reader.next()? {
            None => break,
            Some(SourceEntry::Empty(range)) => at = range.to(),
            Some(SourceEntry::Quarantined(range)) => {
                let from = state.cursor.max(range.from());
                counts.lost_in_log += range.to().since(from);
                at = range.to();
            }
            Some(SourceEntry::Frame(frame)) => {
                at = frame.end();
                let cursor =
                    |lane: &Lane| state.held(lane).map_or(state.cursor, |held| held.cursor);
                let frames = [frame];
                let lanes = Lanes::sort(&frames, |lane, offset| cursor(lane) <= offset);
                for (lane, rows) in lanes.rows {
                    let rows = rows.len() as u64;
                    if shared.takes(&lane) {
                        *counts.pending.entry(lane).or_default() += rows;
                    } else {
                        counts.lanes.entry(lane).or_default().skipped += rows;
                    }
                }
            }
        }
    }
    counts.up_to.insert(shared.log.partition(), at.max(state.cursor));
    Ok(())
}
