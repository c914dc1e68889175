//! `ingestctl status`: is the server well, and if not, why.

use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Context,
    admin::{self, Admin},
    elsewhere::Away,
    fault::{Fault, Verdict},
    human,
    log::Stretch,
    offsets::Offsets,
    out::Tone,
    table::Table,
};
use crate::config::Span;

const PATH: &str = "/api/v1/status";
const OFFSETS: &str = "/api/v1/offsets";
/// With it the table fits into 80 columns.
const BAR_WIDTH: usize = 10;

/// Tell whether the server is well: stages, offsets, sinks, freshness
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status 0 if the server would accept an event now and nothing in its log is damaged that nobody
has acknowledged, 1 if not, 3 if it cannot be reached.

  HELD       how full a stage is, of the bytes it may hold; for a sink, its backlog in the log
  BOUND      what it may hold: what drains in budget.delay, for a sink in budget.sink_delay
  DRAIN      what it passes on, measured
  DELAY      how long what it holds takes at that speed
  WINDOWS    bytes a sink holds in memory; it may take three times as much for them
  LAG        events accepted that a sink has not made visible yet
  FRESHNESS  the age of the oldest of those
  MEASURED   how old events were, lately, when they became visible: so many were not older
  LATE       events older than the objective allows, those included that are not visible yet

Examples:
  ingestctl status
  ingestctl status --watch --every 5s
  ingestctl status --json | jq '.sinks[] | {name, lag_events}'")]
pub struct StatusArgs {
    /// Show it again and again until interrupted
    #[arg(long, short)]
    watch: bool,
    /// How often, with --watch
    #[arg(long, value_name = "SPAN", default_value = "2s", requires = "watch")]
    every: Span,
}

/// What the server answers. Fields a server leaves out read as nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    ready: bool,
    reasons: Vec<String>,
    recovery: Vec<String>,
    version: Option<String>,
    generation: Option<u64>,
    uptime_seconds: Option<f64>,
    stages: Vec<Stage>,
    sinks: Vec<Sink>,
    dedup: Vec<Dedup>,
    log: Log,
    log_quarantine: Damage,
}

/// Which log it is; of a log on Kafka what an operator should see.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Log {
    kind: String,
    topic: String,
    notes: Vec<String>,
    partitions_owned: Vec<u32>,
    partitions_elsewhere: Vec<Away>,
    problems: Vec<String>,
    throttled_milliseconds: u64,
    error: Option<String>,
}

/// What a partition remembers of clients' ids.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Dedup {
    partition: u32,
    ids_bound: u64,
    windows: Vec<Window>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Window {
    window_seconds: u64,
    kept_seconds: u64,
}

/// What of the log is damaged.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Damage {
    stretches: u64,
    events: u64,
    open_stretches: u64,
    open_events: u64,
    more_than_recorded: bool,
    first_open: Vec<Stretch>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Stage {
    name: String,
    bound_bytes: u64,
    held_bytes: u64,
    floor_bytes: Option<u64>,
    ceiling_bytes: Option<u64>,
    drain_bytes_per_second: Option<f64>,
    delay_seconds: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sink {
    name: String,
    lag_events: u64,
    freshness_seconds: f64,
    policy: String,
    backlog_bytes: Option<u64>,
    bound_bytes: u64,
    floor_bytes: Option<u64>,
    ceiling_bytes: Option<u64>,
    pinned_bytes: u64,
    drain_bytes_per_second: Option<f64>,
    delay_seconds: Option<f64>,
    held_bytes: Option<u64>,
    memory_bytes: Option<u64>,
    paused: Option<String>,
    partitions: Vec<Progress>,
    held: Vec<Lane>,
    freshness: Freshness,
    joining: Option<Joining>,
}

/// What was measured of a sink's freshness lately.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Freshness {
    objective: Option<String>,
    state: Option<String>,
    over_seconds: f64,
    quantile: f64,
    measured_seconds: Option<f64>,
    events: u64,
    late: u64,
    unconfirmed: u64,
    error: Option<String>,
    lanes_missed: u64,
    missed: Vec<Missed>,
}

/// A lane that misses its sink's objective.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Missed {
    tenant: String,
    event_type: String,
    dead_letters: bool,
    events: u64,
    late: u64,
    worst_seconds: f64,
}

/// How a lake's small files are joined.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Joining {
    waiting_folders: u64,
    waiting_files: u64,
    removed_files: u64,
    made_files: u64,
    error: Option<String>,
}

/// How a sink does in one partition.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Progress {
    partition: u32,
    state: String,
    error: Option<String>,
    began: Option<Began>,
}

/// Where a sink began that was added later.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Began {
    at: u64,
    start: String,
}

/// A lane that waits alone.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Lane {
    tenant: String,
    event_type: String,
    dead: bool,
    pending_events: u64,
    pending_bytes: u64,
    error: String,
}

/// Asks and shows, once or until interrupted.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached; with `--watch` that is shown instead.
pub async fn run(args: &StatusArgs, context: &Context) -> Result<Verdict, Fault> {
    let admin = context.admin()?;
    if !args.watch {
        let (document, offsets) = ask(&admin).await?;
        if context.out.json {
            context.out.document(&document)?;
        } else {
            context.out.line(&page(context, &document, &offsets)?)?;
        }
        return Ok(Verdict::when(is_healthy(&document)));
    }
    let every = args.every.0.max(Duration::from_millis(100));
    loop {
        match ask(&admin).await {
            Ok((document, _)) if context.out.json => context.out.document(&document)?,
            Ok((document, offsets)) => {
                let page = page(context, &document, &offsets)?;
                context.out.screen(&format!("{}\n\n{page}\n", admin.shown()))?;
            }
            Err(fault) if context.out.json => return Err(fault),
            // Watched while it restarts: said, and tried again.
            Err(fault) => {
                let text = context.out.paint(Tone::Bad, &fault.to_string());
                context.out.screen(&format!("{}\n\n{text}\n", admin.shown()))?;
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// Ready, and nothing waits for a person. A server that does not say the second is believed.
fn is_healthy(document: &Value) -> bool {
    document.get("ready") == Some(&Value::Bool(true))
        && document.get("healthy") != Some(&Value::Bool(false))
}

async fn ask(admin: &Admin) -> Result<(Value, Value), Fault> {
    Ok((admin.get(PATH).await?, admin.get(OFFSETS).await?))
}

fn page(context: &Context, document: &Value, offsets: &Value) -> Result<String, Fault> {
    let status: Status = admin::shape(PATH, document)?;
    let offsets: Offsets = admin::shape(OFFSETS, offsets)?;
    let mut lines = headline(context, &status);
    let mut section = |table: Table| {
        lines.push(String::new());
        for (i, line) in table.lines().into_iter().enumerate() {
            lines.push(if i == 0 { context.out.paint(Tone::Strong, &line) } else { line });
        }
    };
    section(stages(&status));
    section(offsets.table());
    section(sinks(&status));
    if status.sinks.iter().any(|sink| 0 < sink.freshness.events || sink.freshness.state.is_some()) {
        section(freshness(&status));
    }
    lines.extend(kafka(context, &status.log));
    lines.extend(damage(context, &status.log_quarantine));
    lines.extend(troubles(context, &status));
    Ok(lines.join("\n"))
}

fn headline(context: &Context, status: &Status) -> Vec<String> {
    let mut facts = Vec::new();
    facts.extend(status.version.as_ref().map(|v| format!("version {}", human::safe(v))));
    facts.extend(status.generation.map(|g| format!("configuration {g}")));
    facts.extend(status.uptime_seconds.map(|s| format!("up {}", human::seconds(s))));
    let facts = if facts.is_empty() { String::new() } else { format!("   {}", facts.join(", ")) };
    if status.ready {
        return vec![format!("{}{facts}", context.out.paint(Tone::Good, "READY"))];
    }
    let mut lines = vec![format!("{}{facts}", context.out.paint(Tone::Bad, "NOT READY"))];
    if status.reasons.is_empty() {
        lines.push("  the server gives no reason".to_owned());
    }
    lines.extend(status.reasons.iter().map(|r| format!("  {}", human::safe(r))));
    lines
}

/// What there is to say of a log on Kafka.
fn kafka(context: &Context, log: &Log) -> Vec<String> {
    if log.kind != "kafka" {
        return Vec::new();
    }
    let owned: Vec<String> = log.partitions_owned.iter().map(u32::to_string).collect();
    let owned = if owned.is_empty() { "none".to_owned() } else { owned.join(", ") };
    let topic = human::safe(&log.topic);
    let mut lines = vec![String::new()];
    lines.push(format!("log on Kafka, topic {topic}; partitions whose sinks run here: {owned}"));
    let mut worry = |text: String| {
        lines.push(context.out.paint(Tone::Bad, &format!("  {}", human::safe(&text))));
    };
    log.notes.iter().cloned().for_each(&mut worry);
    if 0 < log.throttled_milliseconds {
        let n = log.throttled_milliseconds;
        worry(format!("a quota of the brokers makes the producer wait, {n} ms of late"));
    }
    log.problems.iter().cloned().for_each(&mut worry);
    log.partitions_elsewhere.iter().filter_map(Away::worry).for_each(&mut worry);
    log.error.iter().cloned().for_each(worry);
    lines
}

fn stages(status: &Status) -> Table {
    let mut table = Table::new(&["STAGE", "HELD", ">BYTES", ">BOUND", ">DRAIN", ">DELAY", ""]);
    for stage in &status.stages {
        table.row(bound(&stage.name, stage.held_bytes, stage));
    }
    for sink in &status.sinks {
        let Some(held) = sink.backlog_bytes else { continue };
        let stage = Stage {
            bound_bytes: sink.bound_bytes,
            floor_bytes: sink.floor_bytes,
            ceiling_bytes: sink.ceiling_bytes,
            drain_bytes_per_second: sink.drain_bytes_per_second,
            delay_seconds: sink.delay_seconds,
            ..Stage::default()
        };
        table.row(bound(&format!("sink {}", sink.name), held, &stage));
    }
    table
}

/// One bound: how much there is of it, how fast it goes, and what that comes to.
fn bound(name: &str, held: u64, stage: &Stage) -> Vec<String> {
    let bound = stage.bound_bytes;
    let drain = stage.drain_bytes_per_second.filter(|drain| 0.0 < *drain);
    let delay = stage.delay_seconds.or_else(|| drain.map(|drain| held as f64 / drain));
    // Which end of its range a bound is at says what to change.
    let end = match bound {
        0 => "",
        _ if stage.floor_bytes == stage.ceiling_bytes => "",
        bound if Some(bound) == stage.floor_bytes => "least",
        bound if Some(bound) == stage.ceiling_bytes => "most",
        _ => "",
    };
    vec![
        human::safe(name),
        human::bar(held, bound, BAR_WIDTH),
        human::bytes(held),
        if bound == 0 { "-".to_owned() } else { human::bytes(bound) },
        drain.map_or("-".to_owned(), rate),
        delay.map_or("-".to_owned(), human::seconds),
        end.to_owned(),
    ]
}

fn rate(per_second: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float cast saturates, and this is for people"
    )]
    let whole = per_second.max(0.0) as u64;
    format!("{}/s", human::bytes(whole))
}

fn sinks(status: &Status) -> Table {
    let mut table = Table::new(&["SINK", ">LAG", ">FRESHNESS", ">WINDOWS", "STATE"]);
    for sink in &status.sinks {
        let worst = ["stopped", "waiting", "drained"]
            .iter()
            .find(|state| sink.partitions.iter().any(|p| p.state == **state));
        let state = match (worst, sink.held.len()) {
            (Some(worst), _) => (*worst).to_owned(),
            (None, 0) => "ok".to_owned(),
            (None, lanes) => format!("{} held", human::things(lanes as u64, "lane", "lanes")),
        };
        table.row(vec![
            human::safe(&sink.name),
            human::things(sink.lag_events, "event", "events"),
            human::seconds(sink.freshness_seconds),
            match (sink.held_bytes, sink.memory_bytes) {
                (None, _) => "-".to_owned(),
                (Some(held), None) => human::bytes(held),
                (Some(held), Some(memory)) => {
                    format!("{} of {}", human::bytes(held), human::bytes(memory))
                }
            },
            state,
        ]);
    }
    table
}

/// What was promised of each sink's freshness, and what was measured.
fn freshness(status: &Status) -> Table {
    let mut table = Table::new(&["VISIBLE", "OBJECTIVE", ">MEASURED", ">EVENTS", ">LATE", "STATE"]);
    for sink in &status.sinks {
        let own = &sink.freshness;
        let quantile = format!("p{}", (own.quantile * 100_000.0).round() / 1_000.0);
        table.row(vec![
            human::safe(&sink.name),
            match &own.objective {
                Some(objective) => human::safe(objective),
                None => format!("none over {}", human::seconds(own.over_seconds)),
            },
            match own.measured_seconds {
                Some(measured) => format!("{quantile} {}", human::seconds(measured)),
                None => "-".to_owned(),
            },
            human::count(own.events),
            human::count(own.late),
            own.state.as_deref().map_or("-".to_owned(), human::safe),
        ]);
    }
    table
}

/// What of freshness and of small files a person should know.
fn upkeep(sink: &Sink, say: &mut dyn FnMut(Tone, String)) {
    let (name, own) = (human::safe(&sink.name), &sink.freshness);
    let objective = own.objective.as_deref().map(human::safe).unwrap_or_default();
    for lane in &own.missed {
        let what = if lane.dead_letters { " (dead letters)" } else { "" };
        let late = human::count(lane.late);
        say(
            Tone::Warning,
            format!(
                "{name}: {}/{}{what} misses {objective}: {late} of {} late, the oldest {}",
                human::safe(&lane.tenant),
                human::safe(&lane.event_type),
                human::things(lane.events, "event", "events"),
                human::seconds(lane.worst_seconds),
            ),
        );
    }
    let more = own.lanes_missed.saturating_sub(own.missed.len() as u64);
    if 0 < more {
        say(Tone::Warning, format!("{name}: … and {} more", human::things(more, "lane", "lanes")));
    }
    if let Some(error) = own.error.as_deref().filter(|_| 0 < own.unconfirmed) {
        let events = human::things(own.unconfirmed, "event", "events");
        let error = human::safe(error);
        say(Tone::Warning, format!("{name}: {events} written, not confirmed: {error}"));
    }
    let Some(joining) = &sink.joining else { return };
    if let Some(error) = &joining.error {
        say(Tone::Warning, format!("{name}: small files: {}", human::safe(error)));
    }
    if 0 < joining.waiting_files + joining.made_files {
        say(
            Tone::Strong,
            format!(
                "{name}: {} joined into {} since the start, {} in {} wait",
                human::things(joining.removed_files, "small file", "small files"),
                human::count(joining.made_files),
                human::count(joining.waiting_files),
                human::things(joining.waiting_folders, "folder", "folders"),
            ),
        );
    }
}

/// Damaged stretches of the log: those that wait for a person first, the others in one line.
fn damage(context: &Context, damage: &Damage) -> Vec<String> {
    let mut lines = Vec::new();
    if 0 < damage.open_stretches {
        lines.push(String::new());
        let text = format!(
            "DAMAGED: {} lost in {} of the log; see ingestctl log quarantine",
            human::things(damage.open_events, "event", "events"),
            human::things(damage.open_stretches, "stretch", "stretches"),
        );
        lines.push(context.out.paint(Tone::Bad, &text));
        lines.extend(damage.first_open.iter().map(|stretch| format!("  {}", stretch.place())));
        let more = damage.open_stretches.saturating_sub(damage.first_open.len() as u64);
        if 0 < more {
            lines.push(format!("  … and {} more", human::count(more)));
        }
    }
    if damage.more_than_recorded {
        let text = "more of the log is damaged than is recorded: replace the disk";
        lines.push(context.out.paint(Tone::Bad, text));
    }
    let (stretches, events) = (
        damage.stretches.saturating_sub(damage.open_stretches),
        damage.events.saturating_sub(damage.open_events),
    );
    if 0 < stretches {
        lines.push(String::new());
        lines.push(format!(
            "{} lost in {} of the log, acknowledged",
            human::things(events, "event", "events"),
            human::things(stretches, "damaged stretch", "damaged stretches"),
        ));
    }
    lines
}

/// What a person must look at, said in words.
fn troubles(context: &Context, status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |tone, text: String| lines.push(context.out.paint(tone, &text));
    for sink in &status.sinks {
        let name = human::safe(&sink.name);
        for progress in &sink.partitions {
            if let Some(Began { at, start }) = &progress.began {
                let (at, partition) = (human::count(*at), progress.partition);
                let start = human::safe(start);
                say(
                    Tone::Strong,
                    format!(
                        "{name}: began at offset {at} of partition {partition} (start = \"{start}\")"
                    ),
                );
            }
            if let Some(error) = &progress.error {
                let (state, at) = (human::safe(&progress.state), progress.partition);
                let error = human::safe(error);
                say(Tone::Bad, format!("{name}: {state} at partition {at}: {error}"));
            }
        }
        if let Some(why) = &sink.paused {
            say(Tone::Strong, format!("{name}: its windows wait: {}", human::safe(why)));
        }
        if sink.policy == "block" && 0 < sink.pinned_bytes {
            let pinned = human::bytes(sink.pinned_bytes);
            say(Tone::Warning, format!("{name}: its held lanes keep {pinned} of the log"));
        }
        for lane in &sink.held {
            let what = if lane.dead { " (dead letters)" } else { "" };
            let lane_name =
                format!("{}/{}{what}", human::safe(&lane.tenant), human::safe(&lane.event_type));
            let held = format!(
                "{}, {}",
                human::things(lane.pending_events, "event", "events"),
                human::bytes(lane.pending_bytes)
            );
            let error = human::safe(&lane.error);
            say(Tone::Warning, format!("{name}: {lane_name} is held ({held}): {error}"));
        }
        upkeep(sink, &mut say);
    }
    for dedup in &status.dedup {
        for window in dedup.windows.iter().filter(|w| w.kept_seconds < w.window_seconds) {
            let (at, ids) = (dedup.partition, dedup.ids_bound);
            let kept = human::seconds(window.kept_seconds as f64);
            let meant = human::seconds(window.window_seconds as f64);
            say(
                Tone::Warning,
                format!(
                    "partition {at} remembers ids for {kept}, not {meant}: more come than log.dedup_ids ({ids})"
                ),
            );
        }
    }
    for done in &status.recovery {
        say(Tone::Strong, format!("at the last start: {}", human::safe(done)));
    }
    if !lines.is_empty() {
        lines.insert(0, String::new());
    }
    lines
}
