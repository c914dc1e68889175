//! `ingestctl audit`: the books against the log and the lake, and a journal against the log.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Context,
    admin::{self, Admin},
    fault::{Fault, Verdict},
    human,
    journal::Pieces,
    out::{Tone, remark},
    table::Table,
};
use crate::books::Tally;

const PATH: &str = "/api/v1/audit";
const IDS: &str = "/api/v1/audit/ids";
const IDS_EACH: usize = 10_000;
/// More missing ids than this are only counted.
const MISSING_SHOWN: usize = 1_000;

/// Hold the books against the log and the lake, and a client's journal against the log
#[derive(Debug, Args)]
#[command(after_help = "\
Per tenant and event type,
  received = accepted + dead lettered + deduplicated + rejected + shed, and for each sink
  accepted = stored + pending + quarantined + skipped,
where the log and the files are counted, not believed. With --journal every event that a client
was told is kept must be in the log. Exit status 1 if anything differs.

Examples:
  ingestctl audit
  ingestctl audit --journal acknowledged.ndjson
  ingestctl audit --json | jq '.tenants[] | select(.tenant == \"acme\")'")]
pub struct AuditArgs {
    /// Ids of acknowledged events, as `send --journal` and `load --journal` write them
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Audit {
    balanced: bool,
    difference: i64,
    in_flight: u64,
    tenants: Vec<Row>,
    problems: Vec<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Row {
    tenant: String,
    event_type: String,
    received: u64,
    accepted: u64,
    dead_lettered: u64,
    deduplicated: u64,
    rejected: u64,
    shed: u64,
    in_flight: u64,
    sinks: BTreeMap<String, Stored>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Stored {
    stored: u64,
    pending: u64,
    quarantined: u64,
    skipped: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct IdsAnswer {
    checked: u64,
    missing: Vec<Value>,
    missing_count: u64,
}

/// What holding a journal against the log found.
#[derive(Debug, Default)]
struct Journaled {
    checked: u64,
    missing: Vec<Value>,
    missing_count: u64,
    torn: bool,
}

/// Asks and shows.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached or the journal cannot be read.
pub async fn run(args: &AuditArgs, context: &Context) -> Result<Verdict, Fault> {
    let admin = context.admin()?;
    let journaled = match &args.journal {
        Some(path) => Some(hold(&admin, Pieces::open(path, IDS_EACH)?).await?),
        None => None,
    };
    let mut document = admin.get(PATH).await?;
    let audit: Audit = admin::shape(PATH, &document)?;
    let complete = journaled.as_ref().is_none_or(|j| j.missing_count == 0);
    if context.out.json {
        if let (Some(found), Some(fields)) = (journaled, document.as_object_mut()) {
            let found = json!({"checked": found.checked, "missing_count": found.missing_count,
                "missing": found.missing, "torn": found.torn});
            fields.insert("journal".to_owned(), found);
        }
        context.out.document(&document)?;
    } else {
        show(context, &audit)?;
        if let Some(found) = &journaled {
            show_journal(context, found)?;
        }
    }
    Ok(Verdict::when(audit.balanced && complete))
}

async fn hold(admin: &Admin, mut pieces: Pieces) -> Result<Journaled, Fault> {
    let mut found = Journaled::default();
    while let Some(piece) = pieces.read()? {
        let lines = piece.iter().filter(|b| **b == b'\n').count() as u64;
        let document = admin.post_lines(IDS, piece).await?;
        let answer: IdsAnswer = admin::shape(IDS, &document)?;
        if answer.checked != lines {
            return Err(Fault::failed(
                format!("{IDS} checked {} of {lines} ids", answer.checked),
                "use the ingestctl of the same version as the server",
            ));
        }
        found.checked += answer.checked;
        found.missing_count += answer.missing_count;
        let room = MISSING_SHOWN.saturating_sub(found.missing.len());
        found.missing.extend(answer.missing.into_iter().take(room));
    }
    found.torn = pieces.was_torn();
    Ok(found)
}

impl Row {
    /// Received minus every outcome and what is in flight.
    fn unsettled(&self) -> i128 {
        let tally = Tally {
            received: self.received,
            accepted: self.accepted,
            dead_lettered: self.dead_lettered,
            deduplicated: self.deduplicated,
            rejected: self.rejected,
            shed: self.shed,
        };
        tally.unsettled() - i128::from(self.in_flight)
    }

    fn unstored(&self, sink: &Stored) -> i128 {
        let there = [sink.stored, sink.pending, sink.quarantined, sink.skipped];
        i128::from(self.accepted) - there.iter().map(|n| i128::from(*n)).sum::<i128>()
    }
}

fn show(context: &Context, audit: &Audit) -> Result<(), Fault> {
    let mut books = Table::new(&[
        "TENANT",
        "TYPE",
        ">RECEIVED",
        ">ACCEPTED",
        ">DEAD",
        ">DEDUPLICATED",
        ">REJECTED",
        ">SHED",
        ">DIFFERENCE",
    ]);
    let mut stored = Table::new(&[
        "TENANT",
        "TYPE",
        "SINK",
        ">STORED",
        ">PENDING",
        ">QUARANTINED",
        ">SKIPPED",
        ">DIFFERENCE",
    ]);
    for row in &audit.tenants {
        let (tenant, kind) = (human::safe(&row.tenant), human::cut(&row.event_type, 40));
        let mut cells = vec![tenant.clone(), kind.clone()];
        let counts = [
            row.received,
            row.accepted,
            row.dead_lettered,
            row.deduplicated,
            row.rejected,
            row.shed,
        ];
        cells.extend(counts.map(human::count));
        cells.push(row.unsettled().to_string());
        books.row(cells);
        for (name, sink) in &row.sinks {
            let mut cells = vec![tenant.clone(), kind.clone(), human::safe(name)];
            let counts = [sink.stored, sink.pending, sink.quarantined, sink.skipped];
            cells.extend(counts.map(human::count));
            cells.push(row.unstored(sink).to_string());
            stored.row(cells);
        }
    }
    if books.is_empty() {
        context.out.line("no events yet")?;
    } else {
        context.out.table(&books)?;
    }
    if !stored.is_empty() {
        context.out.line("")?;
        context.out.table(&stored)?;
    }
    context.out.line("")?;
    if audit.in_flight > 0 {
        let text = human::things(audit.in_flight, "event is", "events are");
        context.out.line(&format!("{text} in flight"))?;
    }
    for problem in &audit.problems {
        let text = problem.as_str().map_or_else(|| problem.to_string(), str::to_owned);
        context.out.line(&context.out.paint(Tone::Bad, &human::safe(&text)))?;
    }
    if audit.balanced {
        context.out.line(&context.out.paint(Tone::Good, "the books balance"))
    } else {
        let text = format!("the books do NOT balance: difference {}", audit.difference);
        context.out.line(&context.out.paint(Tone::Bad, &text))
    }
}

fn show_journal(context: &Context, found: &Journaled) -> Result<(), Fault> {
    if found.torn {
        remark("the journal's last line has no end and was left out: its writer was killed there");
    }
    let checked = human::things(found.checked, "acknowledged event", "acknowledged events");
    if found.missing_count == 0 {
        let text = format!("journal: {checked}, none missing");
        return context.out.line(&context.out.paint(Tone::Good, &text));
    }
    let text = format!("journal: {checked}, {} MISSING", human::count(found.missing_count));
    context.out.line(&context.out.paint(Tone::Bad, &text))?;
    for id in &found.missing {
        let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        context.out.line(&format!("  {}", human::safe(&id)))?;
    }
    if found.missing_count > found.missing.len() as u64 {
        context.out.line(&format!("  … only the first {} are shown", found.missing.len()))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_what_the_outcomes_leave_over() {
        let row = json!({"received": 10, "accepted": 6, "dead_lettered": 1, "rejected": 1,
            "sinks": {"lake": {"stored": 5, "pending": 2}}});
        let row = Row::deserialize(&row).unwrap();
        assert_eq!(row.unsettled(), 2);
        assert_eq!(row.unstored(row.sinks.get("lake").unwrap()), -1);
    }
}
