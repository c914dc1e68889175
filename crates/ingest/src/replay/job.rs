//! One job: a plan, what was last known of it, and the work itself: the ordinary runner of sinks, over a
//! window of the log, into shadows.
//!
//! Why a job that is killed anywhere ends as if it had not been: its sinks write as live ones do (intent,
//! rows under names that follow from them, cursor), their log gives the same rows again (the same
//! window, judged by the schemas that the plan pins), and their state lies in the job's own folder.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tidegate_event::{Offset, ReceivedAt, SchemaRef};

use super::{
    Judging, Plan, SchemaPin, ShadowPlace, ShadowSink, Slice,
    folder::Folder,
    jobs::JobsParts,
    judge::Again,
    memory::Memory,
    pace::{Pace, Processors},
    parts::{self, Part},
    source::WindowSource,
};
use crate::{
    budget::Permit,
    normalize::{Normalizer, Schema, SchemaEntry},
    sink::{
        self, Sink, SinkConfig, SinkContext, SinkParts, SinkState, Sinks,
        lake::{Project, Schemas},
        source::{LogSource, SourceHold},
    },
};

/// Of what is kept.
pub(super) const FORMAT: u32 = 1;
const TICK: Duration = Duration::from_millis(100);

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// For its turn.
    Waiting,
    /// At work.
    Running,
    /// Until an operator resumes it.
    Paused,
    /// The shadow holds the window.
    Done,
    /// It cannot go on; the error says why. It may be resumed.
    Failed,
    /// An operator ended it.
    Cancelled,
}

impl JobState {
    /// True where it may still write.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Running | Self::Paused | Self::Failed)
    }
}

/// What is kept of a job beside its plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    pub(super) format: u32,
    /// How it stands.
    pub state: JobState,
    /// Who applied the plan.
    pub by: String,
    /// When.
    pub applied_at: ReceivedAt,
    /// When it came to this state.
    pub since: ReceivedAt,
    /// No faster than this: events a second.
    pub max_rate: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Saved {
    /// Of a plan that was just applied.
    #[must_use]
    pub fn new(by: &str, now: ReceivedAt, max_rate: Option<u64>) -> Self {
        Self {
            format: FORMAT,
            state: JobState::Waiting,
            by: by.to_owned(),
            applied_at: now,
            since: now,
            max_rate,
            error: None,
        }
    }

    /// The same job in another state.
    #[must_use]
    pub fn come_to(&self, state: JobState, since: ReceivedAt, error: Option<String>) -> Self {
        Self { state, since, error, ..self.clone() }
    }
}

/// Keeps what the window holds from retention until the job needs it no more.
pub fn hold(parts: &JobsParts, plan: &Plan) -> Vec<Box<dyn SourceHold>> {
    let name = format!("replay {}", plan.plan_id);
    let slices = plan.content.window.iter();
    let hold = |slice: &Slice| {
        let log = parts.logs.iter().find(|log| log.partition() == slice.partition)?;
        let mut hold = log.hold(&name);
        hold.advance(slice.from);
        Some(hold)
    };
    slices.filter_map(hold).collect()
}

/// How the work ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The shadow holds the window.
    Done,
    /// It was told to stop.
    Stopped,
}

/// Hears why the job does not go on at the moment, if it does not; true: it is to stop.
pub type Told<'a> = &'a mut dyn FnMut(Option<String>) -> bool;

/// The work of one job, until it is done or told to stop. Blocks.
///
/// # Errors
/// Why it cannot go on, and what to do.
pub fn run(
    parts: &JobsParts,
    plan: &Plan,
    folder: &Folder,
    pace: &Arc<Pace>,
    told: Told<'_>,
) -> Result<Ended, String> {
    let work = Work::prepare(parts, plan, folder, pace)?;
    let Some(permit) = work.memory(told) else { return Ok(Ended::Stopped) };
    let targets = plan.content.targets.len().max(1) as u64;
    let memory = Memory::divide(permit.bytes(), targets);
    for together in parts::of(plan, &parts.sinks).chunks(memory.parts_at_once(targets)) {
        if let Ended::Stopped = work.write(together, memory, told)? {
            return Ok(Ended::Stopped);
        }
    }
    for progress in folder.progress(parts, plan) {
        let wrote = progress.stored + progress.quarantined;
        if wrote != progress.events {
            return Err(format!(
                "the shadow of {} holds {wrote} events, the plan has {}: the window is not what it was; \
                 remove this job and plan again",
                progress.sink, progress.events
            ));
        }
    }
    Ok(Ended::Done)
}

/// Shadows, and how each is configured.
type Opened = Vec<(SinkConfig, Arc<dyn Sink>)>;

struct Work<'a> {
    parts: &'a JobsParts,
    folder: &'a Folder,
    pace: &'a Arc<Pace>,
    again: Arc<Again>,
    schemas: Arc<JobSchemas>,
    places: Vec<ShadowPlace>,
}

impl<'a> Work<'a> {
    fn prepare(
        parts: &'a JobsParts,
        plan: &Plan,
        folder: &'a Folder,
        pace: &'a Arc<Pace>,
    ) -> Result<Self, String> {
        let schemas = Arc::new(JobSchemas::read(parts, &plan.content.judging)?);
        let again = Arc::new(Again {
            normalizer: schemas.normalizer(parts, &plan.content.judging)?,
            tenants: Arc::clone(&parts.tenants),
            selection: plan.content.selection.clone(),
            kept_dead: plan.content.kept_dead.clone(),
        });
        let place = |target: &super::Target| {
            let live = parts.sinks.iter().find(|sink| sink.name == target.sink);
            let live = live.ok_or_else(|| format!("sink {} is not configured", target.sink))?;
            ShadowPlace::of(live, plan.plan_id.as_str(), &parts.data_dir).map_err(|e| e.to_string())
        };
        let places = plan.content.targets.iter().map(place).collect::<Result<_, _>>()?;
        Ok(Self { parts, folder, pace, again, schemas, places })
    }

    /// Waits for its part of the memory that requests share; `None` where it was told to stop.
    fn memory(&self, told: Told<'_>) -> Option<Permit> {
        let bytes = Memory::wanted(self.parts.budget.bound());
        let share = self.parts.budget.unshared();
        let why = || Some("it waits for memory that requests have".to_owned());
        while !told(why()) {
            match share.try_take(bytes) {
                Ok(permit) => return Some(permit),
                Err(_) => std::thread::sleep(TICK),
            }
        }
        None
    }

    /// Writes some parts, all at the same time.
    fn write(&self, parts: &[Part], memory: Memory, told: Told<'_>) -> Result<Ended, String> {
        let readers = (parts.len() * self.places.len()) as u64;
        // The parts of one number are one runner's.
        let mut logs: BTreeMap<usize, Vec<Arc<dyn LogSource>>> = BTreeMap::new();
        for part in parts {
            let log = self.parts.logs.iter().find(|log| log.partition() == part.partition);
            let log = log.ok_or_else(|| format!("there is no partition {}", part.partition))?;
            let Some(log) = self.readable(log, told) else { return Ok(Ended::Stopped) };
            if part.from < log.earliest() {
                return Err(gone(part, log.earliest()));
            }
            let window = (part.from, part.to);
            let (again, pace) = (Arc::clone(&self.again), Arc::clone(self.pace));
            let log = WindowSource::new(log, window, again, pace, memory.ahead_each(readers));
            logs.entry(part.number).or_default().push(Arc::new(log));
        }
        let Some(first) = logs.values().flatten().next() else { return Ok(Ended::Done) };
        let opened = self.open(first.log_id())?;
        let mut runners = Runners(Vec::new());
        for (number, logs) in logs {
            let bytes = memory.windows / parts.len() as u64 * logs.len() as u64;
            runners.0.push(self.start(number, logs, opened.clone(), bytes)?);
        }
        runners.0.iter().for_each(Sinks::finish);
        let ended = self.wait(&runners, told);
        // What waits for its turn must not: it would not see that it is to end.
        if !matches!(ended, Ok(Ended::Done)) {
            self.pace.stop();
        }
        drop(runners);
        ended
    }

    /// The partition as it is replayed: waits until it is this server's; `None` where it was told to stop.
    fn readable(&self, log: &Arc<dyn LogSource>, told: Told<'_>) -> Option<Arc<dyn LogSource>> {
        let mut trouble = None;
        while !told(trouble.clone()) {
            match self.parts.writers.get().map(|writers| writers.to_replay(log)) {
                Some(Ok(log)) => return Some(log),
                Some(Err(why)) => {
                    if trouble.is_none() {
                        tracing::warn!(why, "the replay waits");
                    }
                    trouble = Some(why);
                }
                None => {}
            }
            std::thread::sleep(TICK);
        }
        None
    }

    /// The shadows.
    fn open(&self, log_id: &str) -> Result<Opened, String> {
        let context = SinkContext {
            log_id: log_id.to_owned(),
            shared_as: None,
            data_dir: self.folder.path().to_owned(),
            storage: Arc::clone(&self.parts.storage),
            schemas: Arc::<JobSchemas>::clone(&self.schemas),
            runtime: self.parts.runtime.clone(),
        };
        let open = |place| Ok(ShadowSink::open(place, &context)?.into_parts());
        let opened = self.places.iter().map(open).collect::<Result<_, sink::SinkConfigError>>();
        opened.map_err(|e| e.to_string())
    }

    /// Who writes into them what `logs` hold.
    fn start(
        &self,
        part: usize,
        logs: Vec<Arc<dyn LogSource>>,
        opened: Opened,
        memory_bytes: u64,
    ) -> Result<Sinks, String> {
        let parts = SinkParts {
            logs,
            shared_as: None,
            schemas: Arc::<JobSchemas>::clone(&self.schemas),
            storage: Arc::clone(&self.parts.storage),
            clock: Arc::clone(&self.parts.clock),
            data_dir: self.folder.part(part),
            // Nobody sheds for a shadow's sake.
            backlog_bytes: u64::MAX,
            sink_delay: Duration::MAX,
            memory_bytes,
            runtime: self.parts.runtime.clone(),
            background: true,
        };
        sink::start_with(opened, &parts).map_err(|e| e.to_string())
    }

    fn wait(&self, runners: &Runners, told: Told<'_>) -> Result<Ended, String> {
        let mut machine = Machine::new(self.parts);
        loop {
            if let Some(error) = runners.0.iter().find_map(stopped) {
                return Err(error);
            }
            if runners.0.iter().all(Sinks::has_ended) {
                return Ok(Ended::Done);
            }
            if told(runners.0.iter().find_map(trouble)) {
                return Ok(Ended::Stopped);
            }
            machine.look(self.pace);
            std::thread::sleep(TICK);
        }
    }
}

/// Those that write the parts of a job. Whichever is started is stopped.
struct Runners(Vec<Sinks>);

impl Drop for Runners {
    fn drop(&mut self) {
        self.0.iter().for_each(Sinks::stop);
    }
}

fn gone(part: &Part, earliest: Offset) -> String {
    format!(
        "partition {}: offsets {} to {earliest} are gone: retention has removed them; plan again from there",
        part.partition, part.from
    )
}

/// Why a sink ended that is not through.
fn stopped(sinks: &Sinks) -> Option<String> {
    let status = sinks.status();
    let states = status.iter().flat_map(|sink| sink.partitions.iter().map(move |p| (sink, p)));
    states.into_iter().find_map(|(sink, partition)| match &partition.state {
        SinkState::Stopped { error } => Some(format!("{}: {error}", sink.name)),
        _ => None,
    })
}

/// What a shadow waits for, in its own words.
fn trouble(sinks: &Sinks) -> Option<String> {
    sinks.status().iter().find_map(|sink| {
        let waits = sink.partitions.iter().find_map(|partition| match &partition.state {
            SinkState::Waiting { error, .. } => Some(error),
            _ => None,
        });
        let held = sink.held.first().map(|held| &held.error);
        waits.or(held).map(|error| format!("{}: {error}", sink.name))
    })
}

/// What live leaves of the machine.
struct Machine<'a> {
    parts: &'a JobsParts,
    at: Instant,
    latest: u64,
    processors: Option<Processors>,
}

/// How often it is looked at; whether live events come in at each tick.
const LOOK: Duration = Duration::from_millis(500);

impl<'a> Machine<'a> {
    fn new(parts: &'a JobsParts) -> Self {
        let latest = latest(parts);
        Self { parts, at: Instant::now(), latest, processors: Processors::now() }
    }

    fn look(&mut self, pace: &Pace) {
        let latest = latest(self.parts);
        let live = self.latest < latest;
        if live {
            pace.give_way();
        }
        if self.at.elapsed() < LOOK {
            return;
        }
        let processors = Processors::now();
        // Where the system does not tell, live has its way by the threads' priority alone.
        let idle = processors.zip(self.processors).map(|(now, before)| now.idle_since(before));
        pace.look(live, idle);
        (self.at, self.latest, self.processors) = (Instant::now(), latest, processors);
    }
}

/// Grows with every live event.
fn latest(parts: &JobsParts) -> u64 {
    parts.logs.iter().map(|log| log.latest().0).sum()
}

/// The schemas of a job: a candidate's, and those that are kept anyway.
struct JobSchemas {
    own: HashMap<[u8; 16], Arc<Schema>>,
    store: Arc<dyn Schemas>,
}

impl JobSchemas {
    fn read(parts: &JobsParts, judging: &Judging) -> Result<Self, String> {
        let store: Arc<dyn Schemas> = Arc::<crate::normalize::SchemaStore>::clone(&parts.schemas);
        let mut own = HashMap::new();
        if let Judging::Candidate { contents, .. } = judging {
            for (hash, text) in contents {
                let schema = Schema::parse(&format!("{hash}.json"), text.as_bytes());
                let schema = schema.map_err(|faults| {
                    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
                    lines.join("; ")
                })?;
                if hex::encode(schema.hash()) != *hash {
                    return Err(format!("the candidate's schema {hash} has another hash"));
                }
                own.insert(schema.hash(), Arc::new(schema));
            }
        }
        Ok(Self { own, store })
    }

    /// By which events are judged; `None`: they are not.
    fn normalizer(
        &self,
        parts: &JobsParts,
        judging: &Judging,
    ) -> Result<Option<Arc<Normalizer>>, String> {
        let refuse_unknown = match judging {
            Judging::AsRecorded => return Ok(None),
            Judging::Today { refuse_unknown, .. } | Judging::Candidate { refuse_unknown, .. } => {
                *refuse_unknown
            }
        };
        let entry = |pin: &SchemaPin| {
            let missing =
                || format!("the schema {} of {} is not kept here", pin.hash, pin.event_type);
            let mut hash = [0; 16];
            hex::decode_to_slice(&pin.hash, &mut hash).map_err(|_| missing())?;
            let own = self.own.get(&hash).map(Arc::clone);
            let schema = own.or_else(|| parts.schemas.get(hash)).ok_or_else(missing)?;
            let (tenant, event_type) = (Some(pin.tenant.clone()), pin.event_type.clone());
            Ok::<_, String>(SchemaEntry { tenant, event_type, schema })
        };
        let entries = judging.pins().iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        let store = Arc::clone(&parts.schemas);
        Ok(Some(Arc::new(Normalizer::pinned(entries, refuse_unknown, store, parts.limits))))
    }
}

impl Schemas for JobSchemas {
    fn get(&self, schema: SchemaRef) -> Option<Arc<dyn Project>> {
        match self.own.get(&schema.hash) {
            Some(own) => Some(Arc::<Schema>::clone(own)),
            None => self.store.get(schema),
        }
    }
    fn none(&self) -> Arc<dyn Project> {
        self.store.none()
    }
}
