//! `ingestctl sink`: hold a destination against the log, and write what it lost.

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Context, admin,
    fault::{Fault, Verdict},
    follow, human,
    out::Tone,
    table::Table,
};

const TEMPLATE: &str = "[{bar:30}] {human_pos}/{human_len} offsets, {per_sec} eta {eta} {wide_msg}";
/// Lanes shown that are whole; those that are not are all shown.
const WHOLE_SHOWN: usize = 20;

/// Hold a sink's destination against the log, and write what it lost
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ingestctl sink reconcile clickhouse             what has the server lost?
  ingestctl sink reconcile clickhouse --repair    and write it again")]
pub struct SinkArgs {
    #[command(subcommand)]
    command: SinkCommand,
}

#[derive(Debug, Subcommand)]
enum SinkCommand {
    /// Ask the destination for every row the sink says it stored
    Reconcile(ReconcileArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
For a ClickHouse server that lost parts: by its power, a disk, or a restore from a backup. The log
below the sink's cursor is read, ClickHouse is asked which of those rows it has, and with --repair
those that are missing are inserted; rows that are there are not touched. Live traffic goes on.
Rows that were set aside or are older than the sink's ttl are not missed.

Exit status 0 if each row is there once (or was written now), 1 if not, 3 if it cannot be told.

Examples:
  ingestctl sink reconcile clickhouse                      what is missing?
  ingestctl sink reconcile clickhouse --repair             and write it
  ingestctl sink reconcile clickhouse --partition 0 --from 1000000 --to 2000000")]
struct ReconcileArgs {
    /// The sink's name in the configuration
    #[arg(value_name = "SINK")]
    name: String,
    /// Only this partition
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// From this offset on
    #[arg(long, value_name = "OFFSET", requires = "partition")]
    from: Option<u64>,
    /// Up to this offset, not included
    #[arg(long, value_name = "OFFSET", requires = "partition")]
    to: Option<u64>,
    /// Write what is missing
    #[arg(long)]
    repair: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Progress {
    partition: u32,
    offset: u64,
    to: u64,
    found: Found,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Report {
    whole: bool,
    total: Found,
    lanes: Vec<Lane>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Lane {
    tenant: String,
    event_type: String,
    dead_letters: bool,
    #[serde(flatten)]
    found: Found,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Found {
    rows: u64,
    missing: u64,
    twice: u64,
    repaired: u64,
    refused: u64,
}

/// Does what is asked.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached, or the destination does not answer.
pub async fn run(args: SinkArgs, context: &Context) -> Result<Verdict, Fault> {
    let SinkCommand::Reconcile(args) = args.command;
    let admin = context.admin()?;
    let text = |n: Option<u64>| n.map(|n| n.to_string());
    let pairs = [
        ("partition", args.partition.map(|p| p.to_string())),
        ("from", text(args.from)),
        ("to", text(args.to)),
        ("repair", args.repair.then(|| "true".to_owned())),
    ];
    let name: String = url::form_urlencoded::byte_serialize(args.name.as_bytes()).collect();
    let path = format!("/api/v1/sinks/{name}/reconcile");
    let bar = follow::bar(TEMPLATE);
    let failed = (
        "the destination cannot be held against the log",
        "mend it and do it again: what was repaired stays",
    );
    let mut first = None;
    let document = follow::follow(&admin, &admin::query(&path, &pairs), failed, |progress| {
        // What cannot be read of a line of progress is not shown.
        let Ok(progress) = Progress::deserialize(progress) else { return };
        let (of, from) = *first.get_or_insert((progress.partition, progress.offset));
        let from = if of == progress.partition { from } else { progress.offset };
        first = Some((progress.partition, from));
        bar.set_length(progress.to.saturating_sub(from));
        bar.set_position(progress.offset.saturating_sub(from));
        bar.set_message(format!(
            "partition {}, {} missing",
            progress.partition,
            human::count(progress.found.missing)
        ));
    })
    .await;
    bar.finish_and_clear();
    let document = document?;
    let report: Report = admin::shape(&path, &document)?;
    if context.out.json {
        context.out.document(&document)?;
    } else {
        show(context, &report, args.repair, &document)?;
    }
    Ok(Verdict::when(report.whole))
}

fn show(context: &Context, report: &Report, repair: bool, whole: &Value) -> Result<(), Fault> {
    let mut table = Table::new(&[
        "TENANT",
        "EVENT TYPE",
        ">ROWS",
        ">MISSING",
        ">WRITTEN",
        ">REFUSED",
        ">TWICE",
    ]);
    let is_whole = |lane: &&Lane| lane.found.missing == 0 && lane.found.twice == 0;
    let (well, ill): (Vec<&Lane>, Vec<&Lane>) = report.lanes.iter().partition(is_whole);
    for lane in ill.iter().chain(well.iter().take(WHOLE_SHOWN)) {
        let dead = if lane.dead_letters { " (dead letters)" } else { "" };
        let found = &lane.found;
        table.row(vec![
            human::safe(&lane.tenant),
            format!("{}{dead}", human::safe(&lane.event_type)),
            human::count(found.rows),
            human::count(found.missing),
            human::count(found.repaired),
            human::count(found.refused),
            human::count(found.twice),
        ]);
    }
    context.out.table(&table)?;
    if WHOLE_SHOWN < well.len() {
        let more = human::count((well.len() - WHOLE_SHOWN) as u64);
        context.out.line(&format!("… and {more} more that are whole"))?;
    }
    for window in whole.get("windows").and_then(Value::as_array).into_iter().flatten() {
        let number = |name| window.get(name).and_then(Value::as_u64).unwrap_or_default();
        let (partition, from, to) = (number("partition"), number("from"), number("to"));
        let (from, to) = (human::count(from), human::count(to));
        context.out.line(&format!("partition {partition}: offsets {from} to {to}"))?;
    }
    context.out.line("")?;
    let Found { rows, missing, twice, repaired, .. } = &report.total;
    let rows = human::things(*rows, "row", "rows");
    let (tone, text) = match (missing - repaired, *twice) {
        (0, 0) if *repaired == 0 => (Tone::Good, format!("each of {rows} is there once")),
        (0, 0) => {
            let written = human::things(*repaired, "row was", "rows were");
            (Tone::Good, format!("{written} missing and written; each of {rows} is there once"))
        }
        (0, twice) => {
            let twice = human::things(twice, "row is", "rows are");
            (Tone::Bad, format!("{twice} there more than once; docs/clickhouse.md says what to do"))
        }
        (left, _) if repair => {
            let left = human::things(left, "row is", "rows are");
            (Tone::Bad, format!("{left} still missing: the destination refuses them"))
        }
        (left, _) => {
            let (left, verb) = (human::count(left), if left == 1 { "is" } else { "are" });
            (Tone::Bad, format!("{left} of {rows} {verb} missing; --repair writes what is missing"))
        }
    };
    context.out.line(&context.out.paint(tone, &text))
}
