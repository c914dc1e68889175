//! Makes a plan: finds the window, reads it once, pins what it is judged by and where it goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tidegate_event::{EventType, Offset, OffsetRange, Partition, ReceivedAt, TenantId};

use super::{
    address::{Address, Side},
    marks::{self, MarkName},
    pins,
    plan::{Content, FORMAT, Judging, KeptDead, LaneCount, Plan, Selection, Slice, Target},
    request::PlanRequest,
    resolve::{Bounds, Extent, Places, Window, WindowError},
    scan::{self, Counting, Lanes, Pace, ScanError},
};
use crate::{
    pipeline::Pipeline,
    sink::{
        SinkConfig,
        shadow::ShadowPlace,
        source::{LogSource, SourceEntry, SourceHold},
    },
};

/// How often it is told how far the reading is.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// Names shown at most where one is unknown.
const NAMED: usize = 20;
/// By how much a re-drive's clock may be behind that of what it re-drives, in another partition.
const CLOCK_SLACK_MICROS: i64 = 3_600_000_000;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The question: sentences that say what would be right.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// It cannot be found out now.
    #[error("{0}")]
    Failed(String),
    /// Nobody wants to know any more.
    #[error("nobody listens")]
    Stopped,
}

impl From<WindowError> for PlanError {
    fn from(error: WindowError) -> Self {
        match error {
            WindowError::Refused(why) => Self::Refused(why),
            WindowError::Failed(why) => Self::Failed(why),
        }
    }
}

fn refused(why: impl Into<String>) -> PlanError {
    PlanError::Refused(vec![why.into()])
}

/// How far the reading is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Progress {
    /// Offsets that were read.
    pub events: u64,
    /// Of so many.
    pub events_total: u64,
}

/// How long a replay takes.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// So long; where it is the scan's rate, at least.
    pub seconds: f64,
    /// At this rate.
    pub events_per_second: f64,
    /// Where the rate comes from: `max_rate`, `scan` (that of reading), or `sinks`: that of the slowest live one.
    pub by: &'static str,
}

/// A plan, and what else was found out.
#[derive(Clone, Debug)]
pub struct Made {
    /// The plan.
    pub plan: Plan,
    /// Both ends as they were asked for.
    pub asked: [String; 2],
    /// How long it takes.
    pub estimate: Estimate,
}

/// A window that is known and pinned, to be read.
pub struct Prepared {
    pipeline: Arc<Pipeline>,
    asked: [String; 2],
    made_at: ReceivedAt,
    bounds: Vec<Bounds>,
    /// Where each partition ended before the window was looked for.
    ends: BTreeMap<Partition, Offset>,
    selection: Selection,
    sinks: Vec<SinkConfig>,
    judges: pins::Judges,
    max_rate: Option<u64>,
    /// Retention waits for them.
    _holds: Vec<Box<dyn SourceHold>>,
}

/// What is asked of a pipeline while addresses are resolved.
struct Here<'a>(&'a Pipeline);

impl Places for Here<'_> {
    fn mark(&self, name: &MarkName) -> Result<BTreeMap<Partition, Offset>, WindowError> {
        let all = marks::all(&self.0.control, &self.0.log_id)
            .map_err(|e| WindowError::Failed(format!("the control log cannot be read: {e}")))?;
        if let Some(mark) = all.iter().find(|mark| mark.name == *name) {
            return Ok(mark.offsets.clone());
        }
        let names: Vec<String> = all.iter().rev().map(|mark| mark.name.to_string()).collect();
        let known = there_are(&names, "no mark was set yet: `ingestctl mark deploy:TAG` sets one");
        Err(WindowError::refused(format!("{name}: no such mark; {known}")))
    }

    fn at(
        &self,
        partition: Partition,
        side: Side,
        time: ReceivedAt,
    ) -> Result<Offset, WindowError> {
        let log = self.0.logs.iter().find(|log| log.partition() == partition);
        let log = log.ok_or_else(|| WindowError::Failed(format!("no partition {partition}")))?;
        first_at(&**log, side, time)
            .map_err(|e| WindowError::Failed(format!("partition {partition} cannot be read: {e}")))
    }

    fn now(&self) -> ReceivedAt {
        self.0.clock.now()
    }
}

/// The first event received at `time` or later. What is damaged right before it may be, too: a window
/// that begins there begins with the damage, one that ends there has it, so that both are refused.
fn first_at(log: &dyn LogSource, side: Side, time: ReceivedAt) -> Result<Offset, ScanError> {
    let end = log.latest();
    let mut at = log.offset_at(time).max(log.earliest());
    let mut damaged = None;
    if end <= at {
        return Ok(end);
    }
    let mut reader = log.read_from(at)?;
    while at < end {
        match reader.next()? {
            None => break,
            Some(SourceEntry::Empty(range)) => at = range.to(),
            Some(SourceEntry::Quarantined(range)) => {
                damaged = damaged.or(Some(range.from().max(log.earliest())));
                at = range.to();
            }
            Some(SourceEntry::Frame(frame)) if frame.received_at < time => {
                damaged = None;
                at = frame.end();
            }
            Some(SourceEntry::Frame(frame)) => {
                at = frame.base;
                break;
            }
        }
    }
    Ok(match (side, damaged) {
        (Side::From, Some(damaged)) => damaged,
        _ => at.min(end),
    })
}

fn there_are(names: &[String], none: &str) -> String {
    match names {
        [] => none.to_owned(),
        names => {
            let more = names.len().saturating_sub(NAMED);
            let shown = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
            if more == 0 {
                format!("there are {shown}")
            } else {
                format!("there are {shown} and {more} more")
            }
        }
    }
}

/// Finds the window and pins it. Blocks.
///
/// # Errors
/// [`PlanError`].
pub fn prepare(pipeline: &Arc<Pipeline>, request: &PlanRequest) -> Result<Prepared, PlanError> {
    if pipeline.logs.is_empty() {
        let role = pipeline.config.role.as_str();
        return Err(refused(format!(
            "this process ({role}) has no log: name the admin address of one that has, with --admin"
        )));
    }
    let (from, to) = request
        .written()
        .read()
        .map_err(|errors| PlanError::Refused(errors.iter().map(ToString::to_string).collect()))?;
    let selection = selection(request)?;
    let sinks = sinks(&pipeline.config.sink, &request.sinks)?;
    if request.max_rate == Some(0) {
        return Err(refused("--max-rate 0 would never end: write --max-rate 1 or more"));
    }
    let judges = pins::Judges::of(pipeline, request).map_err(PlanError::Refused)?;
    known_names(pipeline, &selection, None)?;
    let made_at = {
        // A re-drive under way is in the log whole before this goes on; a later one is recorded later.
        let _none = pipeline.redrives.blocking_lock();
        pipeline.clock.now()
    };
    let mut holds: Vec<(Partition, Box<dyn SourceHold>)> =
        pipeline.logs.iter().map(|log| (log.partition(), log.hold("replay plan"))).collect();
    let extents: Vec<Extent> = pipeline
        .logs
        .iter()
        .map(|log| {
            let (partition, earliest, latest) = (log.partition(), log.earliest(), log.latest());
            Extent { partition, earliest, latest }
        })
        .collect();
    let window = Window { from: &from, to: &to, partition: request.partition };
    let bounds = window.resolve(&extents, &Here(pipeline))?;
    for (partition, hold) in &mut holds {
        if let Some(bounds) = bounds.iter().find(|bounds| bounds.partition == *partition) {
            hold.advance(bounds.from);
        }
    }
    let read = |bounds: &Bounds| bounds.partition;
    let partitions: BTreeSet<Partition> = bounds.iter().map(read).collect();
    holds.retain(|(partition, _)| partitions.contains(partition));
    let spelled = |address: &Address, side| match request.partition {
        Some(partition) if side == Side::From => {
            format!("--partition {partition} {}", address.spelled(side))
        }
        _ => address.spelled(side),
    };
    Ok(Prepared {
        pipeline: Arc::clone(pipeline),
        asked: [spelled(&from, Side::From), spelled(&to, Side::To)],
        made_at,
        bounds,
        ends: extents.iter().map(|extent| (extent.partition, extent.latest)).collect(),
        selection,
        sinks,
        judges,
        max_rate: request.max_rate,
        _holds: holds.into_iter().map(|(_, hold)| hold).collect(),
    })
}

fn selection(request: &PlanRequest) -> Result<Selection, PlanError> {
    let unfit = |option: &str, name: &str, error: tidegate_event::NameError| {
        refused(format!("{option} {name:?}: {error}"))
    };
    let mut selection = Selection {
        tenants: Vec::new(),
        event_types: Vec::new(),
        dead_letters_only: request.dead_letters_only,
    };
    for name in &request.tenants {
        let tenant = TenantId::new(name).map_err(|e| unfit("--tenant", name, e))?;
        selection.tenants.push(tenant);
    }
    for name in &request.event_types {
        let event_type = EventType::new(name).map_err(|e| unfit("--event-type", name, e))?;
        selection.event_types.push(event_type);
    }
    // Named twice or in another order: the same plan.
    selection.tenants.sort();
    selection.tenants.dedup();
    selection.event_types.sort();
    selection.event_types.dedup();
    Ok(selection)
}

fn sinks(configured: &[SinkConfig], wanted: &[String]) -> Result<Vec<SinkConfig>, PlanError> {
    let names: Vec<String> = configured.iter().map(|sink| sink.name.clone()).collect();
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(name)) {
        let known = there_are(&names, "none is configured");
        return Err(refused(format!("--sink {unknown}: no such sink; {known}")));
    }
    if names.is_empty() {
        return Err(refused("no sink is configured: there is nothing that could have a shadow"));
    }
    let is_wanted = |sink: &&SinkConfig| wanted.is_empty() || wanted.contains(&sink.name);
    Ok(configured.iter().filter(is_wanted).cloned().collect())
}

/// Refuses tenants and types that nobody ever heard of. Before the window is read that is known of an
/// own log alone, whose books have every event; `seen` is what the window holds.
fn known_names(
    pipeline: &Pipeline,
    selection: &Selection,
    seen: Option<&[LaneCount]>,
) -> Result<(), PlanError> {
    if seen.is_none() && pipeline.embedded.is_empty() {
        return Ok(());
    }
    let mut tenants: BTreeSet<String> =
        pipeline.tenants.list().iter().map(|tenant| tenant.id.to_string()).collect();
    let schemas = pipeline.normalizer.schemas();
    let mut types: BTreeSet<String> =
        schemas.entries().iter().map(|entry| entry.event_type.to_string()).collect();
    for (tenant, page) in pipeline.books.copy() {
        tenants.insert(tenant.to_string());
        types.extend(page.types.keys().map(ToString::to_string));
    }
    for count in seen.unwrap_or_default() {
        tenants.insert(count.lane.tenant.to_string());
        types.insert(count.lane.event_type.to_string());
    }
    let mut unknown = Vec::new();
    for tenant in selection.tenants.iter().filter(|name| !tenants.contains(name.as_str())) {
        let known = there_are(&tenants.iter().cloned().collect::<Vec<_>>(), "there is none");
        unknown.push(format!("--tenant {tenant}: no such tenant; {known}"));
    }
    for event_type in selection.event_types.iter().filter(|name| !types.contains(name.as_str())) {
        let known = there_are(&types.iter().cloned().collect::<Vec<_>>(), "there is none");
        unknown.push(format!("--event-type {event_type}: no such event type; {known}"));
    }
    if unknown.is_empty() { Ok(()) } else { Err(PlanError::Refused(unknown)) }
}

/// What reading the window came to.
struct Read {
    window: Vec<Slice>,
    counts: Vec<LaneCount>,
    kept_dead: Vec<KeptDead>,
    busy: Duration,
}

/// Tells how far the reading is, as long as somebody listens.
struct Telling<'a> {
    tell: &'a mut dyn FnMut(Progress) -> bool,
    told: Instant,
    so_far: Progress,
}

impl Telling<'_> {
    fn add(&mut self, events: u64) -> Result<(), ScanError> {
        self.so_far.events += events;
        if self.told.elapsed() < TELL_EVERY {
            return Ok(());
        }
        self.told = Instant::now();
        if (self.tell)(self.so_far) { Ok(()) } else { Err(ScanError::Stopped) }
    }
}

impl Prepared {
    /// Reads the window and makes the plan. Blocks; `tell` returns false where nobody listens any more.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn make(self, tell: &mut dyn FnMut(Progress) -> bool) -> Result<Made, PlanError> {
        let read = self.read(tell)?;
        let events: u64 = read.window.iter().map(|slice| slice.events).sum();
        let judging = self.judges.pin(&self.pipeline, &read.counts);
        let (targets, places) = self.targets()?;
        let content = Content {
            log_id: self.pipeline.log_id.clone(),
            window: read.window,
            selection: self.selection,
            judging,
            targets,
            counts: read.counts,
            kept_dead: read.kept_dead,
        };
        let unfit = |e: &dyn std::fmt::Display| PlanError::Failed(e.to_string());
        let plan_id = content.id().map_err(|e| unfit(&e))?;
        let mut shadow = BTreeMap::new();
        for sink in &places {
            let place = ShadowPlace::of(sink, plan_id.as_str(), &self.pipeline.config.log.dir)
                .map_err(|e| refused(format!("sink {}: {e}", sink.name)))?;
            shadow.insert(sink.name.clone(), place.shown().to_owned());
        }
        let live = live_rate(&self.pipeline, &content);
        let estimate = estimate(events, self.max_rate, read.busy, live);
        let plan = Plan { format: FORMAT, plan_id, made_at: self.made_at, content, shadow };
        Ok(Made { plan, asked: self.asked, estimate })
    }

    fn targets(&self) -> Result<(Vec<Target>, Vec<SinkConfig>), PlanError> {
        let mut targets = Vec::new();
        for sink in &self.sinks {
            let place = ShadowPlace::fingerprint(sink, &self.pipeline.config.log.dir)
                .map_err(|e| refused(format!("sink {}: {e}", sink.name)))?;
            targets.push(Target { sink: sink.name.clone(), kind: sink.kind.clone(), place });
        }
        Ok((targets, self.sinks.clone()))
    }

    fn read(&self, tell: &mut dyn FnMut(Progress) -> bool) -> Result<Read, PlanError> {
        let events_total = self.bounds.iter().map(|b| b.to.since(b.from)).sum();
        let so_far = Progress { events: 0, events_total };
        let mut telling = Telling { tell, told: Instant::now(), so_far };
        let (mut taken, mut all) = (Lanes::default(), Lanes::default());
        let mut pace = Pace::new();
        let mut window = Vec::new();
        for bounds in &self.bounds {
            let log = self.log(bounds.partition)?;
            let mut counting = Counting::new(*bounds, &self.selection, &mut taken, &mut all);
            let read = scan::frames(&*log, *bounds, |frame| {
                counting.frame(frame)?;
                pace.read(frame.body.len() as u64);
                telling.add(frame.end().min(bounds.to).since(frame.base.max(bounds.from)))
            });
            let slice = read.and_then(|()| counting.finish());
            window.push(slice.map_err(|error| self.unreadable(*bounds, error))?);
        }
        let busy = pace.busy();
        let inside = |error| PlanError::Failed(format!("the window cannot be read: {error}"));
        let counts = taken.counts().map_err(inside)?;
        let everything = all.counts().map_err(inside)?;
        known_names(&self.pipeline, &self.selection, Some(&everything))?;
        if counts.is_empty() {
            return Err(refused(self.nothing_taken(&everything)));
        }
        let kept_dead = if counts.iter().any(|count| count.lane.dead) {
            self.kept_dead(&window, &mut telling, &mut pace)?
        } else {
            Vec::new()
        };
        Ok(Read { window, counts, kept_dead, busy })
    }

    fn log(&self, partition: Partition) -> Result<Arc<dyn LogSource>, PlanError> {
        let log = self.pipeline.logs.iter().find(|log| log.partition() == partition);
        let log = log.ok_or_else(|| PlanError::Failed(format!("no partition {partition}")))?;
        self.pipeline.writers.to_replay(log).map_err(refused)
    }

    fn unreadable(&self, bounds: Bounds, error: ScanError) -> PlanError {
        let Bounds { partition, from, to } = bounds;
        match error {
            ScanError::Stopped => PlanError::Stopped,
            ScanError::Read(why) => {
                PlanError::Failed(format!("partition {partition} cannot be read: {why}"))
            }
            ScanError::Gone(earliest) => refused(format!(
                "partition {partition}: retention has removed {from} to {earliest} meanwhile: write --from {partition}:{earliest}"
            )),
            ScanError::Damaged(range) => {
                let (first, behind) = (range.from(), range.to());
                let before = (from < first).then(|| format!("before it: --to {partition}:{first}"));
                let after =
                    (behind < to).then(|| format!("behind it: --from {partition}:{behind}"));
                let parts: Vec<String> = before.into_iter().chain(after).collect();
                let right = match parts.as_slice() {
                    [] => "nothing of the window is left".to_owned(),
                    parts => format!("take the part {}", parts.join(", or ")),
                };
                refused(format!(
                    "partition {partition}: {first} to {behind} is damaged (`ingestctl log quarantine show {partition}/{first}`), so that part of the window is gone; {right}"
                ))
            }
        }
    }

    fn nothing_taken(&self, everything: &[LaneCount]) -> String {
        let held: Vec<String> = everything
            .iter()
            .take(NAMED)
            .map(|count| format!("{} ({} events)", count.lane, count.events))
            .collect();
        let [from, to] = &self.asked;
        match held.as_slice() {
            [] => format!("{from} {to} holds no event: nothing is to be replayed"),
            held => format!(
                "{from} {to} holds no event that these filters take; it holds {}",
                held.join(", ")
            ),
        }
    }

    /// The dead letters of the window that were re-driven since.
    fn kept_dead(
        &self,
        window: &[Slice],
        telling: &mut Telling<'_>,
        pace: &mut Pace,
    ) -> Result<Vec<KeptDead>, PlanError> {
        let mut kept: BTreeMap<Partition, BTreeSet<u64>> = BTreeMap::new();
        let first = window.iter().filter_map(|slice| slice.first.as_ref());
        let since = first.map(|event| event.received_at.0).min().unwrap_or(0);
        let since = ReceivedAt(since.saturating_sub(CLOCK_SLACK_MICROS));
        for log in &self.pipeline.logs {
            let partition = log.partition();
            let slice = window.iter().find(|slice| slice.partition == partition);
            // A re-drive lies behind what it re-drives, or in another partition.
            let from = slice.map_or_else(|| log.offset_at(since), |slice| slice.from);
            let to = self.ends.get(&partition).copied().unwrap_or(from);
            let bounds = Bounds { partition, from: from.max(log.earliest()), to };
            telling.so_far.events_total += to.since(bounds.from);
            let found = |partition: Partition, offset: Offset| {
                let inside =
                    |s: &&Slice| s.partition == partition && s.from <= offset && offset < s.to;
                if window.iter().any(|slice| inside(&slice)) {
                    kept.entry(partition).or_default().insert(offset.0);
                }
            };
            scan::redriven(&**log, bounds, found, |frame| {
                pace.read(frame.body.len() as u64);
                telling.add(frame.count.into())
            })
            .map_err(|error| self.unreadable(bounds, error))?;
        }
        let ranges = |offsets: &BTreeSet<u64>| {
            let mut ranges: Vec<OffsetRange> = Vec::new();
            for offset in offsets {
                let (from, to) = (Offset(*offset), Offset(*offset).plus(1));
                let before = ranges.pop_if(|last| last.to() == from);
                ranges.extend(OffsetRange::new(before.map_or(from, |last| last.from()), to));
            }
            ranges
        };
        let each = kept.iter();
        Ok(each.map(|(p, offsets)| KeptDead { partition: *p, offsets: ranges(offsets) }).collect())
    }
}

/// How long `events` take at the slowest of these rates: reading's, that of the live sinks (once they were
/// behind, and so known), and `max_rate`.
fn estimate(events: u64, max_rate: Option<u64>, busy: Duration, sinks: Option<f64>) -> Estimate {
    let scanned = events as f64 / busy.as_secs_f64().max(1e-6);
    let asked = max_rate.map(|rate| (rate as f64, "max_rate"));
    let known = [Some((scanned, "scan")), sinks.map(|rate| (rate, "sinks")), asked];
    let slowest = known.into_iter().flatten().min_by(|a, b| a.0.total_cmp(&b.0));
    let (rate, by) = slowest.unwrap_or((scanned, "scan"));
    Estimate { seconds: events as f64 / rate.max(1e-6), events_per_second: rate, by }
}

/// Events a second of the window that the slowest of these live sinks wrote when it was behind.
fn live_rate(pipeline: &Pipeline, content: &Content) -> Option<f64> {
    let bytes: u64 = content.window.iter().map(|slice| slice.log_bytes).sum();
    let is_target = |name: &str| content.targets.iter().any(|target| target.sink == name);
    let status = pipeline.sinks.status();
    let drains =
        status.iter().filter(|sink| is_target(&sink.name)).map(|s| s.drain_bytes_per_second);
    let slowest = drains.filter(|drain| 0 < *drain).min()?;
    Some(slowest as f64 / (bytes.max(1) as f64 / content.events().max(1) as f64))
}

/// What a plan of these sinks and schemas would pin now, for whoever looks whether the world changed.
pub(crate) fn pinned_now(pipeline: &Pipeline, counts: &[LaneCount]) -> Judging {
    pins::Judges::Today.pin(pipeline, counts)
}
