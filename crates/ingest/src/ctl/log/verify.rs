//! `ingestctl log verify`: is every byte of the log as it was written?

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::{
        Context, admin,
        fault::{Fault, Verdict},
        follow, human,
        out::Tone,
        table::Table,
    },
    Stretch,
};
use crate::{
    config::Size,
    log::{self as embedded, OfflineError},
};

const PATH: &str = "/api/v1/log/verify";
const TEMPLATE: &str = "[{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta} {wide_msg}";
/// Damaged stretches and remarks shown at most.
const SHOWN: usize = 50;

/// Read the log from the disk, every frame, and say what is damaged
#[derive(Debug, Args)]
#[command(after_help = "\
The server reads its own log, from the disk and not from the cache, and gives way to live traffic.
What is found damaged is recorded: `ingestctl log quarantine`. With --data-dir no server is asked:
the files are read as they lie there, nothing is mended or recorded, and no server can start
meanwhile.

Exit status 0 if every byte is as it was written, 1 if not, 3 if it cannot be read.

Examples:
  ingestctl log verify
  ingestctl log verify --bytes-per-second 20MiB
  ingestctl log verify --partition 0 --from 1000000 --to 2000000
  ingestctl log verify --data-dir /var/lib/tidegate
  ingestctl log verify --json | jq '.partitions[].damaged'")]
pub struct VerifyArgs {
    /// Only this partition
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// From this offset on
    #[arg(long, value_name = "OFFSET")]
    from: Option<u64>,
    /// Up to this offset, not included
    #[arg(long, value_name = "OFFSET")]
    to: Option<u64>,
    /// Read no faster than this; without it: as fast as the disk, half of the time
    #[arg(long, value_name = "SIZE")]
    bytes_per_second: Option<Size>,
    /// Read the files of this data folder instead of asking a server
    #[arg(long, value_name = "DIR", conflicts_with_all = ["partition", "from", "to", "bytes_per_second"])]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Progress {
    bytes: u64,
    bytes_total: u64,
    damaged_events: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Report {
    whole: bool,
    partitions: Vec<Found>,
}

/// What was found in one partition.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Found {
    partition: u32,
    from: u64,
    to: u64,
    segments: u64,
    frames: u64,
    events: u64,
    bytes: u64,
    damaged_events: u64,
    damaged: Vec<Stretch>,
    whole_again: Vec<Range>,
    torn_bytes: u64,
    notes: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Range {
    from: u64,
    to: u64,
}

/// Asks a server, or looks itself.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached, or the log cannot be read.
pub async fn run(args: &VerifyArgs, context: &Context) -> Result<Verdict, Fault> {
    let report = match &args.data_dir {
        Some(dir) => offline(dir)?,
        None => ask(args, context).await?,
    };
    let read: Report = admin::shape(PATH, &report)?;
    if context.out.json {
        context.out.document(&report)?;
    } else {
        show(context, &read, args.data_dir.is_some())?;
    }
    Ok(Verdict::when(read.whole))
}

fn offline(dir: &Path) -> Result<Value, Fault> {
    let bar = follow::bar(TEMPLATE);
    let mut before = (None, 0, 0);
    let found = embedded::inspect(dir, |partition, bytes, all| {
        if before.0 != Some(partition) {
            before = (Some(partition), before.1 + before.2, 0);
        }
        before.2 = bytes;
        bar.set_length(before.1 + all);
        bar.set_position(before.1 + bytes);
    });
    bar.finish_and_clear();
    let found = found.map_err(|error| {
        let mend = match &error {
            OfflineError::InUse(_) => "leave --data-dir away: the server verifies its own log",
            OfflineError::NoLog(_) => "name the folder of log.dir (or --data-dir of ingestd)",
            OfflineError::Io { .. } => "check the path, who owns it, and the disk",
        };
        Fault::failed(error.to_string(), mend)
    })?;
    let whole = found.iter().all(embedded::Verified::is_whole);
    let partitions: Vec<Value> = found.iter().map(crate::admin::log::report).collect();
    Ok(json!({ "whole": whole, "partitions": partitions }))
}

/// Follows the server's verification to its report.
async fn ask(args: &VerifyArgs, context: &Context) -> Result<Value, Fault> {
    let admin = context.admin()?;
    let text = |n: Option<u64>| n.map(|n| n.to_string());
    let pairs = [
        ("partition", args.partition.map(|p| p.to_string())),
        ("from", text(args.from)),
        ("to", text(args.to)),
        ("bytes_per_second", text(args.bytes_per_second.map(|size| size.0))),
    ];
    let bar = follow::bar(TEMPLATE);
    let failed = ("the log cannot be verified", "look at the disk and at the server's log");
    let report = follow::follow(&admin, &admin::query(PATH, &pairs), failed, |progress| {
        // What cannot be read of a line of progress is not shown.
        let Ok(progress) = Progress::deserialize(progress) else { return };
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        if 0 < progress.damaged_events {
            let lost = human::things(progress.damaged_events, "event", "events");
            bar.set_message(format!("{lost} damaged"));
        }
    })
    .await;
    bar.finish_and_clear();
    report
}

fn show(context: &Context, report: &Report, offline: bool) -> Result<(), Fault> {
    let mut table = Table::new(&[
        ">PARTITION",
        ">FROM",
        ">TO",
        ">SEGMENTS",
        ">FRAMES",
        ">EVENTS",
        ">BYTES",
        ">DAMAGED",
    ]);
    for found in &report.partitions {
        table.row(vec![
            found.partition.to_string(),
            human::count(found.from),
            human::count(found.to),
            human::count(found.segments),
            human::count(found.frames),
            human::count(found.events),
            human::bytes(found.bytes),
            human::count(found.damaged_events),
        ]);
    }
    context.out.table(&table)?;
    context.out.line("")?;
    for found in &report.partitions {
        details(context, found)?;
    }
    if report.whole {
        let text = "every byte is as it was written";
        return context.out.line(&context.out.paint(Tone::Good, text));
    }
    let damaged: u64 = report.partitions.iter().map(|found| found.damaged_events).sum();
    let text = match damaged {
        0 => "the log is damaged; no event is lost".to_owned(),
        n => format!("the log is DAMAGED: {} lost", human::things(n, "event", "events")),
    };
    context.out.line(&context.out.paint(Tone::Bad, &text))?;
    if 0 < damaged && !offline {
        context.out.line("it is recorded: ingestctl log quarantine")?;
    }
    Ok(())
}

fn details(context: &Context, found: &Found) -> Result<(), Fault> {
    let partition = found.partition;
    for stretch in found.damaged.iter().take(SHOWN) {
        let text = format!("damaged: {}", stretch.place());
        context.out.line(&context.out.paint(Tone::Bad, &text))?;
    }
    for note in found.notes.iter().take(SHOWN) {
        let text = format!("partition {partition}: {}", human::safe(note));
        context.out.line(&context.out.paint(Tone::Warning, &text))?;
    }
    let more = found.damaged.len().saturating_sub(SHOWN) + found.notes.len().saturating_sub(SHOWN);
    if 0 < more {
        context.out.line(&format!("… and {more} more; --json has them all"))?;
    }
    for range in &found.whole_again {
        let Range { from, to } = range;
        context.out.line(&format!(
            "{partition}/{from} to {partition}/{to} reads well again; what passed over it does not come back"
        ))?;
    }
    if 0 < found.torn_bytes {
        context.out.line(&format!(
            "partition {partition} ends in {} that are no frame: a write that was cut short, which a start removes",
            human::bytes(found.torn_bytes)
        ))?;
    }
    Ok(())
}
