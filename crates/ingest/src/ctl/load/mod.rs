//! `ingestctl load`: puts load on a server and measures what it does.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use http::HeaderValue;
use tokio::sync::Semaphore;

use super::{
    Context,
    fault::{Fault, Verdict},
    journal::Journal,
    public::Compression,
    tail::event_type_name,
};
use crate::config::{Size, Span};

mod engine;
mod pace;
mod payload;
mod protocol;
mod report;
mod scenario;
mod stall;
mod stats;
mod worker;

use engine::Running;
use payload::{Shape, Template};
use protocol::Protocol;
use stats::Run;
use worker::{Body, Plan, Refused, lock};

/// Distinct bodies; enough that nothing on the way can know them all by heart.
const BODIES: u64 = 64;
/// All bodies together take at most this much, so that large batches make fewer.
const BODIES_BYTES_MAX: usize = 64 << 20;

/// Put load on a server and measure what it does
#[derive(Debug, Args)]
#[command(after_help = "\
With --rate requests are due at fixed times whatever the server does (open loop), and latency is
measured from when a request was due, so that a stall shows in every request it delays. Without it
each connection sends as soon as its last request is answered (closed loop).

Bodies are made before the start: events of 13 fields, drawn from --seed. Connections that end are
counted and opened again until the run is over. Ctrl-C ends it early with the report so far.

Exit status 1 if no event was accepted.

With --scenario it is a test bench: it starts a server of its own in a temporary folder, puts it
under the load that the scenario names, prints what came of it, and asserts it: exit status 1 if a
figure is not what it has to be. --duration is then how long the attack lasts.

Examples:
  ingestctl load --duration 30s                             as much as 8 connections can
  ingestctl load --rate 50000 --duration 1m                 50,000 events/s, 500 a request
  ingestctl load --rate 4000 --batch 1 --event-bytes 4096   single events of 4 KiB
  ingestctl load --events 1000000 --journal acked.ndjson && ingestctl audit --journal acked.ndjson
  ingestctl load --key acme=tgk_… --key umbrella=tgk_…      two tenants in turn
  ingestctl load --scenario list                            what the test bench can do
  ingestctl load --scenario noisy-requests --duration 20s   one tenant at 100 times its quota")]
pub struct LoadArgs {
    /// The public address of the server
    #[arg(
        long,
        value_name = "URL",
        env = "TIDEGATE_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8080"
    )]
    url: String,
    /// A tenant's key, or NAME=KEY to have its name in the journal; repeat for more tenants
    #[arg(
        long = "key",
        value_name = "[NAME=]KEY",
        env = "TIDEGATE_KEY",
        hide_env_values = true,
        value_delimiter = ',',
        default_value = "tgk_dev"
    )]
    keys: Vec<String>,
    /// Events a second, over all connections (open loop)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Connections, each with one request in flight; 8 if not given, 64 with --rate
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    connections: Option<u16>,
    /// How long; 10s if --events is not given either
    #[arg(long, value_name = "SPAN")]
    duration: Option<Span>,
    /// How many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    events: Option<u64>,
    /// Events a request
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// About how many bytes an event has; what its other fields leave is filled up
    #[arg(long, value_name = "SIZE", default_value = "500")]
    event_bytes: Size,
    /// How many event types, in turn
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    event_types: u16,
    /// What event types are called; with more than one they are NAME_0, NAME_1, …
    #[arg(long, value_name = "NAME", default_value = "load", value_parser = event_type_name)]
    event_type: String,
    /// The protocol
    #[arg(long, value_name = "NAME", default_value = "events", value_parser = protocol::by_name)]
    protocol: &'static Protocol,
    /// How bodies are packed: none, gzip or zstd; with ids that is work for each request
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    compression: Compression,
    /// A field `duration_ms`, for a schema that converts it
    #[arg(long)]
    unit_field: bool,
    /// An `event_id` in each event, different in each run
    #[arg(long)]
    ids: bool,
    /// Write the ids of acknowledged events here (and give each one an id)
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Send what is refused for now, or got no answer, again: same bytes, after Retry-After
    #[arg(long)]
    retry: bool,
    /// What bodies are drawn from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Threads; one is enough for a million events a second without ids
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// How long an answer may take
    #[arg(long, value_name = "SPAN", default_value = "30s")]
    timeout: Span,
    /// HTTP/2
    #[arg(long)]
    http2: bool,
    /// The test bench.
    #[command(flatten)]
    scenario: scenario::ScenarioArgs,
}

impl LoadArgs {
    fn connections(&self) -> u16 {
        // In an open loop a request that finds no free connection waits, which is no server's fault.
        self.connections.unwrap_or(if self.rate.is_some() { 64 } else { 8 })
    }
}

/// Loads and reports.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached at the start, or the journal not be written.
pub async fn run(args: LoadArgs, context: &Context) -> Result<Verdict, Fault> {
    if let Some(name) = &args.scenario.name {
        return scenario::run(name, &args, context).await;
    }
    let plan = Arc::new(plan(&args, context)?);
    plan.target.open().await.map_err(|e| {
        Fault::failed(
            format!("cannot reach {}: {e}", plan.target.shown()),
            "check that ingestd runs and that --url (TIDEGATE_URL) is its public address",
        )
    })?;
    // The bodies took a while: the run starts now, not when it was planned.
    let plan = restarted(plan, &args)?;
    let cpu_before = stats::cpu_seconds();
    let running = Running::start(Arc::clone(&plan), args.connections(), args.threads, 0)?;
    report::watch(&running).await?;
    let mut total = running.join()?;
    if let Some(journal) = &plan.journal {
        lock(journal).flush()?;
    }
    let elapsed = total.last.map_or_else(|| plan.start.elapsed(), |last| last - plan.start);
    let unsent_requests = engine::unsent(&plan, &mut total, elapsed);
    let cpu_seconds = stats::cpu_seconds().zip(cpu_before).map(|(after, before)| after - before);
    let run = Run { elapsed, cpu_seconds, unsent_requests };
    report::show(context, &args, &plan, &total, &run)?;
    match lock(&plan.fault).take() {
        Some(fault) => Err(fault),
        None => Ok(Verdict::when(total.kept.durable() > 0)),
    }
}

fn plan(args: &LoadArgs, context: &Context) -> Result<Plan, Fault> {
    let event_types = match args.event_types {
        1 => vec![args.event_type.clone()],
        n => (0..n).map(|i| format!("{}_{i}", args.event_type)).collect(),
    };
    if let Some(bad) = event_types.iter().find(|name| event_type_name(name).is_err()) {
        return Err(Fault::Usage(format!("{bad:?} is too long for an event type")));
    }
    let batch = usize::try_from(args.batch).unwrap_or(usize::MAX);
    let shape = Shape {
        seed: args.seed,
        batch,
        event_bytes: args.event_bytes.get(),
        event_types: event_types.clone(),
        unit_field: args.unit_field,
        ids: args.ids || args.journal.is_some(),
        fresh_types: false,
    };
    let requests = args.events.map_or(u64::MAX, |n| n.div_ceil(u64::from(args.batch)));
    let rest = args.events.map_or(0, |n| n % u64::from(args.batch));
    let tail = match usize::try_from(rest).unwrap_or(0) {
        0 => None,
        rest => Some(body(payload::template(&shape, BODIES, rest), args.compression)?),
    };
    let interval = args.rate.map(|rate| {
        let nanos = u128::from(args.batch) * 1_000_000_000 / u128::from(rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).max(1))
    });
    Ok(Plan {
        target: context.public(&args.url, args.http2)?,
        protocol: args.protocol,
        keys: args.keys.iter().map(|key| named_key(key)).collect::<Result<_, _>>()?,
        event_types,
        compression: args.compression,
        bodies: bodies(&shape, requests, args.compression)?.into(),
        tail,
        requests,
        interval,
        start: Instant::now(),
        end: None,
        run: rand::random(),
        refused: if args.retry { Refused::Again } else { Refused::GivenUp },
        reconnect_after: None,
        timeout: args.timeout.0,
        next: AtomicU64::new(0),
        due: Semaphore::new(0),
        stop: AtomicBool::new(false),
        journal: args.journal.as_deref().map(Journal::create).transpose()?.map(Mutex::new),
        fault: Mutex::new(None),
        stalls: None,
    })
}

/// The same plan, from now on.
fn restarted(plan: Arc<Plan>, args: &LoadArgs) -> Result<Arc<Plan>, Fault> {
    let mut plan = Arc::into_inner(plan)
        .ok_or_else(|| Fault::failed("the plan is in use", "this is a fault of ingestctl"))?;
    plan.start = Instant::now();
    let span = match (args.duration, args.events) {
        (Some(span), _) => Some(span.0),
        (None, Some(_)) => None,
        (None, None) => Some(Duration::from_secs(10)),
    };
    plan.end = span.map(|span| plan.start + span);
    plan.next.store(0, Ordering::Relaxed);
    Ok(Arc::new(plan))
}

fn bodies(shape: &Shape, requests: u64, compression: Compression) -> Result<Vec<Body>, Fault> {
    let each = shape.batch.saturating_mul(shape.event_bytes).max(1);
    let fit = u64::try_from(BODIES_BYTES_MAX / each).unwrap_or(BODIES);
    let count = BODIES.min(fit.max(1)).min(requests.max(1));
    (0..count).map(|n| body(payload::template(shape, n, shape.batch), compression)).collect()
}

fn body(template: Template, compression: Compression) -> Result<Body, Fault> {
    let packed = if template.is_fixed() {
        compression.pack(template.bytes.clone())?
    } else {
        bytes::Bytes::new()
    };
    Ok(Body { template, packed })
}

/// `KEY` or `NAME=KEY`.
fn named_key(text: &str) -> Result<(Option<String>, HeaderValue), Fault> {
    let (name, key) = match text.split_once('=') {
        Some((name, key)) => (Some(super::tail::tenant_name(name).map_err(Fault::Usage)?), key),
        None => (None, text),
    };
    let mut value = HeaderValue::try_from(format!("Bearer {key}"))
        .map_err(|_| Fault::Usage("a key is one line of printable text".to_owned()))?;
    value.set_sensitive(true);
    Ok((name, value))
}
