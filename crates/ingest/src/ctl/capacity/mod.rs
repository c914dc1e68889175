//! `ingestctl capacity`: what a rate needs, reckoned from measured costs (docs/scale.md).

mod plan;

use clap::Args;
use serde_json::json;

use self::plan::{Figures, Load, Plan};
use super::{
    Context,
    fault::{Fault, Verdict},
    human,
    table::Table,
};
use crate::config::{Size, Span};

/// Measured by `bench/parts.py --fit`.
const FIGURES: &str = include_str!("figures.toml");

/// Reckon what a rate needs: cores, disks, partitions, inserts, files
#[derive(Debug, Args)]
#[command(after_help = "\
Reckoned from what each part was measured to cost for a request, an event and a byte (docs/scale.md
says how). Your machines differ: measure them with `bench/parts.py --fit FILE` and give that file.
No server is asked.

Examples:
  ingestctl capacity --events-per-second 50000
  ingestctl capacity --events-per-second 4000 --event-size 4KiB --events-per-request 1
  ingestctl capacity --events-per-second 500000 --sink lake --sink clickhouse --tenants 200 --log kafka")]
pub struct CapacityArgs {
    /// Events a second, at the peak
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    events_per_second: u64,
    /// Bytes of an event
    #[arg(long, value_name = "SIZE", default_value = "500B")]
    event_size: Size,
    /// Events in a request
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    events_per_request: u64,
    /// Tenants that send at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    tenants: u64,
    /// Event types of each tenant
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    event_types: u64,
    /// Where to, several times: those that were measured
    #[arg(long = "sink", value_name = "KIND", default_value = "lake")]
    sinks: Vec<String>,
    /// Which log
    #[arg(long, value_name = "LOG", default_value = "embedded", value_parser = ["embedded", "kafka"])]
    log: String,
    /// How long the log is kept
    #[arg(long, value_name = "SPAN", default_value = "7d")]
    retention: Span,
    /// Bytes stored for each byte of event, compressed; measure it on your own
    #[arg(long, value_name = "PART", default_value_t = 0.2)]
    compressed: f64,
    /// The part of a core that may be used at the peak
    #[arg(long, value_name = "PART", default_value_t = 0.6)]
    utilisation: f64,
    /// Cores of a machine
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1_024))]
    cores: u64,
    /// Inserts a second that ClickHouse gets at most
    #[arg(long, value_name = "N", default_value_t = 20.0)]
    inserts_per_second: f64,
    /// How old a file of the lake is before it is closed
    #[arg(long, value_name = "SPAN", default_value = "60s")]
    lake_age: Span,
    /// Figures of your own machine
    #[arg(long, value_name = "FILE")]
    figures: Option<std::path::PathBuf>,
}

/// Reckons and shows.
///
/// # Errors
/// [`Fault`] for figures that cannot be read, or a sink that was not measured.
pub fn run(args: &CapacityArgs, context: &Context) -> Result<Verdict, Fault> {
    let figures = figures(args)?;
    let load = load(args)?;
    let plan = plan::plan(&load, &figures).map_err(|what| {
        let is_sink = |name: &&str| !matches!(*name, "blackhole" | "kafka_log");
        let known: Vec<_> = figures.parts.keys().map(String::as_str).filter(is_sink).collect();
        Fault::Usage(format!("{what} was not measured; there is {}", known.join(", ")))
    })?;
    if context.out.json {
        let document = json!({
            "load": load, "plan": plan,
            "figures": { "machine": figures.machine, "measured": figures.measured },
        });
        context.out.document(&document)?;
    } else {
        show(context, args, &load, &plan, &figures)?;
    }
    Ok(Verdict::Done)
}

fn figures(args: &CapacityArgs) -> Result<Figures, Fault> {
    let mend = "make it with bench/parts.py --fit FILE";
    let (name, text) = match &args.figures {
        None => ("the figures of this program".to_owned(), FIGURES.to_owned()),
        Some(path) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path);
            (name.clone(), text.map_err(|e| Fault::failed(format!("{name}: {e}"), mend))?)
        }
    };
    toml::from_str(&text).map_err(|e| Fault::failed(format!("{name}: {e}"), mend))
}

fn load(args: &CapacityArgs) -> Result<Load, Fault> {
    for (name, value) in [("--utilisation", args.utilisation), ("--compressed", args.compressed)] {
        if !(0.01..=1.0).contains(&value) {
            return Err(Fault::Usage(format!("{name} {value}: a part of 1, for instance 0.6")));
        }
    }
    if !(0.01..=1e6).contains(&args.inserts_per_second) {
        return Err(Fault::Usage("--inserts-per-second: 0.01 to 1000000".to_owned()));
    }
    if args.event_size.0 == 0 || args.lake_age.0.is_zero() {
        return Err(Fault::Usage("--event-size and --lake-age are more than nothing".to_owned()));
    }
    let mut sinks = args.sinks.clone();
    sinks.dedup();
    Ok(Load {
        events_per_second: args.events_per_second as f64,
        event_bytes: args.event_size.0 as f64,
        events_per_request: args.events_per_request as f64,
        tenants: args.tenants,
        event_types: args.event_types,
        sinks,
        retention_seconds: args.retention.0.as_secs_f64(),
        copies: if args.log == "kafka" { 3 } else { 1 },
        compressed: args.compressed,
        utilisation: args.utilisation,
        cores: args.cores as f64,
        inserts_per_second: args.inserts_per_second,
        lake_seconds: args.lake_age.0.as_secs_f64(),
    })
}

fn show(
    context: &Context,
    args: &CapacityArgs,
    load: &Load,
    plan: &Plan,
    figures: &Figures,
) -> Result<(), Fault> {
    let out = &context.out;
    let mut table = Table::new(&["PART", ">µs AN EVENT", ">CORES BUSY", ">CORES TO HAVE"]);
    for need in &plan.needs {
        table.row(vec![
            need.part.clone(),
            format!("{:.2}", need.micros_per_event),
            format!("{:.2}", need.busy_cores),
            format!("{:.2}", need.cores),
        ]);
    }
    out.table(&table)?;
    out.line("")?;
    let facts = facts(args, load, plan);
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    for (name, fact) in facts {
        out.line(&format!("{name:width$}  {fact}"))?;
    }
    out.line("")?;
    out.line(&format!("measured {} on {}", figures.measured, figures.machine))
}

/// What else there is to have, a line each.
fn facts(args: &CapacityArgs, load: &Load, plan: &Plan) -> Vec<(&'static str, String)> {
    let bytes = |value: f64| human::bytes(value.max(0.0).round() as u64);
    let mut facts = vec![
        (
            "ingestd",
            format!(
                "{} of {} cores ({:.1} cores at {:.0} % use{})",
                human::things(plan.machines, "machine", "machines"),
                args.cores,
                plan.server_cores,
                load.utilisation * 100.0,
                if plan.machines > 1 { ", one machine to spare" } else { "" }
            ),
        ),
        (
            "requests",
            format!(
                "{:.0} a second, {}/s of events",
                plan.requests_per_second,
                bytes(plan.bytes_per_second)
            ),
        ),
        (
            "log",
            format!(
                "{} in {}, {}/s to disk, {} for {} (a quarter free)",
                human::things(plan.partitions, "partition", "partitions"),
                if load.copies == 1 {
                    "the data folder".to_owned()
                } else {
                    format!("{} copies", load.copies)
                },
                bytes(plan.log_bytes_per_second),
                bytes(plan.log_bytes),
                args.retention
            ),
        ),
    ];
    if load.sinks.iter().any(|sink| sink == "lake") {
        let files = human::count(plan.lake_files_per_hour.round() as u64);
        facts.push((
            "lake",
            format!("{}/day, {files} files an hour", bytes(plan.stored_bytes_per_day)),
        ));
    }
    if load.sinks.iter().any(|sink| sink == "clickhouse") {
        facts.push((
            "clickhouse",
            format!(
                "a window each {:.1} s for {}, {} an insert",
                plan.clickhouse_window_seconds,
                human::things(plan.lanes, "lane", "lanes"),
                human::things(plan.clickhouse_rows_per_insert.round() as u64, "row", "rows")
            ),
        ));
    }
    facts
}
