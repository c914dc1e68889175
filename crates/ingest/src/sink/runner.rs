//! Starts the sinks' workers, drains them, and answers for them.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tidegate_event::{EventType, Offset, Partition};
use tokio::{runtime::Handle, sync::watch};

use super::{
    Sink, SinkConfig, SinkContext, SinkKind, clickhouse,
    crew::Crew,
    desk::{Board, Desk, Shared},
    freshness::Freshness,
    lake::{self, Schemas},
    memory::Memory,
    pressure::{Bound, PressureCache, Running},
    quarantine::Quarantine,
    rows::{Lane, Lanes},
    source::{LogSource, SourceEntry, SourceError},
    start::{Before, Began},
    state::{State, StateFault},
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
    threads: Mutex<Vec<JoinHandle<()>>>,
    pub(super) pressure: Mutex<PressureCache>,
    pub(super) clock: Arc<dyn Clock>,
}

/// Opens every sink of the configuration and starts it where its cursor stands.
///
/// # Errors
/// [`SinkStartError`]; no thread is left running.
pub fn start(configs: &[SinkConfig], parts: &SinkParts) -> Result<Sinks, SinkStartError> {
    let context = SinkContext {
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
    let mut sinks = Vec::new();
    let mut workers = Vec::new();
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
        let mut partitions = Vec::new();
        for log in &parts.logs {
            let worker = worker(&config, &sink, log, parts, (&quarantine, &freshness, share))?;
            partitions.push(Arc::clone(&worker.desk.shared));
            workers.push(worker);
        }
        let lane_bytes = lane_bytes(&config, parts.backlog_bytes)?;
        let bound = Bound::new(parts.backlog_bytes, parts.sink_delay);
        sinks.push(Running {
            config,
            lane_bytes,
            bound,
            partitions,
            sink,
            freshness,
            rests: watch::Sender::new(true),
        });
    }
    let sinks = Sinks {
        sinks,
        threads: Mutex::default(),
        pressure: Mutex::default(),
        clock: Arc::clone(&parts.clock),
    };
    for worker in workers {
        let desk = &worker.desk;
        let (sink, path) = (desk.shared.name.clone(), desk.path.clone());
        let name = format!("sink-{sink}-{}", desk.shared.log.partition());
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            give_way();
            worker.run();
        });
        let thread = thread.map_err(|source| SinkStartError::Io { sink, path, source })?;
        sinks.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }
    start_upkeep(&sinks, parts)?;
    Ok(sinks)
}

/// One thread for each sink that has something to do beside writing.
fn start_upkeep(sinks: &Sinks, parts: &SinkParts) -> Result<(), SinkStartError> {
    for running in sinks.sinks.iter().filter(|running| upkeep::is_needed(&*running.sink)) {
        let (sink, partitions) = (Arc::clone(&running.sink), running.partitions.clone());
        let (clock, name) = (Arc::clone(&parts.clock), running.config.name.clone());
        let rests = running.rests.clone();
        rests.send_replace(false);
        let thread = std::thread::Builder::new().name(format!("upkeep-{name}")).spawn(move || {
            let _farewell = upkeep::Farewell(rests);
            give_way();
            upkeep::run(&*sink, &partitions, &*clock);
        });
        let path = parts.data_dir.join("sinks");
        let thread = thread.map_err(|source| SinkStartError::Io { sink: name, path, source })?;
        sinks.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }
    Ok(())
}

/// Puts this thread, and those it starts, behind the threads that answer clients: what is late in a
/// sink lies safe in the log, what is late in an answer is sent again.
fn give_way() {
    const NICE: i32 = 10;
    // On Linux it counts for the calling thread alone. Where it is refused all are equal, as before.
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "the sinks' threads run at the priority of all others");
    }
}

/// Two sinks never share a name, a lake or a database.
fn check_apart<'a>(
    configs: impl Iterator<Item = &'a SinkConfig>,
    parts: &SinkParts,
) -> Result<(), SinkStartError> {
    let (mut names, mut lakes) = (HashSet::new(), HashSet::new());
    let mut databases = HashSet::new();
    for config in configs {
        let fault =
            |cause: &str| SinkStartError::Config { sink: config.name.clone(), cause: cause.into() };
        if !EventType::is_valid(&config.name) {
            return Err(fault("its name must be a letter and then letters, digits, '.', '_', '-'"));
        }
        if !names.insert(config.name.clone()) {
            return Err(fault("another sink has this name"));
        }
        if config.kind == "lake" {
            let url = lake::url(config, &parts.data_dir);
            if !lakes.insert(url.trim_end_matches('/').to_owned()) {
                return Err(fault("another lake has this url"));
            }
        }
        if let Some(place) = clickhouse::place(config)
            && !databases.insert(place)
        {
            return Err(fault("another sink has this ClickHouse url and database"));
        }
    }
    Ok(())
}

/// `options.lane_bytes`: what one tenant's held lanes may hold back before that tenant is told to
/// wait; a quarter of the backlog's bound if absent.
fn lane_bytes(config: &SinkConfig, backlog_bytes: u64) -> Result<u64, SinkStartError> {
    let fault = |cause: String| SinkStartError::Config { sink: config.name.clone(), cause };
    match config.options.get("lane_bytes") {
        None => Ok(backlog_bytes / 4),
        Some(toml::Value::Integer(n)) => {
            u64::try_from(*n).map_err(|_| fault("options.lane_bytes is negative".to_owned()))
        }
        Some(toml::Value::String(text)) => {
            text.parse::<crate::config::Size>().map(|size| size.0).map_err(fault)
        }
        Some(_) => Err(fault("options.lane_bytes is a number of bytes or a size".to_owned())),
    }
}

fn worker(
    config: &SinkConfig,
    sink: &Arc<dyn Sink>,
    log: &Arc<dyn LogSource>,
    parts: &SinkParts,
    (quarantine, freshness, share): (&Arc<Quarantine>, &Arc<Freshness>, u64),
) -> Result<Worker, SinkStartError> {
    // Held before the state is read, so that retention cannot pass in between.
    let mut hold = log.hold(&format!("sink {}", config.name));
    let path =
        parts.data_dir.join("sinks").join(format!("{}-{}.json", config.name, log.partition()));
    let state = State::load(&*parts.storage, &path, log.log_id(), log.partition());
    let state = state.map_err(|fault| SinkStartError::State {
        sink: config.name.clone(),
        path: path.clone(),
        fault,
    })?;
    let state = match state {
        Some(state) => state,
        None => first_state(config, log, parts, &path)?,
    };
    hold.advance(state.lowest());
    let cut = Cut::new(&config.flush, sink.flush_age());
    let gatherer = Gatherer::new(Arc::clone(log), cut, state.cursor);
    let shared = Arc::new(Shared {
        name: config.name.clone(),
        policy: config.policy,
        filter: config.filter.clone(),
        freshness: Arc::clone(freshness),
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
        sink: Arc::clone(sink),
        storage: Arc::clone(&parts.storage),
        clock: Arc::clone(&parts.clock),
        path,
        quarantine: Arc::clone(quarantine),
        cut,
        pace: Mutex::default(),
        committing: Mutex::default(),
        failed: Mutex::default(),
    });
    Ok(Worker { crew: Crew::new(Arc::clone(&desk)), desk, gatherer })
}

/// A sink that has no cursor. Where it begins is durable on return: the next start must not find
/// another place, a later "now" least of all.
fn first_state(
    config: &SinkConfig,
    log: &Arc<dyn LogSource>,
    parts: &SinkParts,
    path: &Path,
) -> Result<State, SinkStartError> {
    let sink = || config.name.clone();
    let began = Began::of(config.start, &**log, parts.logs.len(), parts.clock.now());
    let began = began.map_err(|cause| SinkStartError::Config { sink: sink(), cause })?;
    let Some(began) = began else {
        return Ok(State::new(log.log_id(), log.partition(), Offset(0)));
    };
    let state = State::begun(log.log_id(), log.partition(), began);
    state.save(&*parts.storage, path).map_err(|source| SinkStartError::Io {
        sink: sink(),
        path: path.to_owned(),
        source,
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
    /// Writes all that the log holds now, whatever its age, then ends the sinks' threads; after
    /// `deadline` they end with what they have, and go on from there at the next start.
    pub async fn drain(&self, deadline: Duration) {
        for shared in self.shared() {
            shared.flush.store(true, Ordering::Release);
        }
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

    /// Ends the threads at their next safe point and waits for them. Blocks.
    pub fn stop(&self) {
        for shared in self.shared() {
            shared.quit.store(true, Ordering::Release);
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a sink's thread had panicked");
            }
        }
    }

    /// Each sink's cursor in each partition.
    #[must_use]
    pub fn cursors(&self) -> Vec<(String, Partition, Offset)> {
        let cursor = |shared: &Arc<Shared>| {
            (shared.name.clone(), shared.log.partition(), shared.board().state.cursor)
        };
        self.shared().map(cursor).collect()
    }

    /// Each sink's side of the books. Reads the log from the lowest cursors to its end. Blocks.
    ///
    /// # Errors
    /// [`SourceError`] when the log cannot be read, or retention passed meanwhile: try again.
    pub fn counts(&self) -> Result<Vec<Counts>, SourceError> {
        let mut all = Vec::new();
        for sink in &self.sinks {
            let mut counts = Counts { sink: sink.config.name.clone(), ..Counts::default() };
            for shared in &sink.partitions {
                count(shared, &mut counts)?;
            }
            all.push(counts);
        }
        Ok(all)
    }

    pub(super) fn shared(&self) -> impl Iterator<Item = &Arc<Shared>> {
        self.sinks.iter().flat_map(|sink| &sink.partitions)
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        for shared in self.shared() {
            shared.quit.store(true, Ordering::Release);
        }
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
