//! `ingestctl audit`: the books against the log and the lake, and a journal against the log.

use std::{collections::BTreeMap, path::PathBuf};

use bytes::Bytes;
use clap::Args;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Context,
    admin::{self, Admin},
    fault::{Fault, Verdict},
    fleet, human,
    journal::Pieces,
    minutes::{self, Gaps, MinuteArgs},
    out::{Tone, remark},
    table::Table,
};
use crate::books::Tally;

const PATH: &str = "/api/v1/audit";
const IDS: &str = "/api/v1/audit/ids";
/// Ids in a request: many, since each request reads the whole log.
const IDS_EACH: usize = 200_000;
/// Bytes in a request to a server that refuses that many.
const PART_BYTES: usize = 1 << 20;
/// More missing ids than this are only counted.
const MISSING_SHOWN: usize = 1_000;

/// Hold the books against the log and the lake, and a client's journal against the log
#[derive(Debug, Args)]
#[command(after_help = "\
Per tenant and event type,
  received = accepted + dead lettered + deduplicated + rejected + shed, and for each sink
  accepted = stored + pending + quarantined + skipped,
where the log and the files are counted, not believed. The last columns say where the books differ
from what was counted: from the log, and for each sink in accepted events, dead letters and rows
in files. With --since the books are shown minute by minute too. With --journal every event that a client was told is kept must be in the log.
Exit status 1 if anything differs. With --also the books of several roles are added up, and balance
where each of them does; a journal's events may be in the log of any of them.

Examples:
  ingestctl audit
  ingestctl audit --since 10m
  ingestctl audit --journal acknowledged.ndjson
  ingestctl audit --also http://writer-0:8081 --also http://writer-1:8081
  ingestctl audit --json | jq '.tenants[] | select(.tenant == \"acme\")'")]
pub struct AuditArgs {
    /// Ids of acknowledged events, as `send --journal` and `load --journal` write them
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// The admin address of another server of the same pipeline; repeat for more
    #[arg(long, value_name = "URL")]
    also: Vec<String>,
    /// Minute by minute.
    #[command(flatten)]
    minutes: MinuteArgs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Audit {
    balanced: bool,
    difference: i64,
    in_flight: u64,
    books_difference: i64,
    unaccounted: u64,
    gaps: Gaps,
    refused: Refused,
    log_quarantined: Quarantined,
    log_counted_whole: Option<bool>,
    tenants: Vec<Row>,
}

/// Events in stretches of the log that failed their checksum.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Quarantined {
    events: u64,
    stretches: Vec<Stretch>,
}

/// Offsets `from` to before `to`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Stretch {
    partition: u32,
    from: u64,
    to: u64,
}

/// Requests refused before their events were counted.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refused {
    requests: u64,
    bytes: u64,
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
    log_difference: Option<i64>,
    sinks: BTreeMap<String, Stored>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Stored {
    stored: u64,
    pending: u64,
    quarantined: u64,
    skipped: u64,
    promoted: i64,
    dead_letters_difference: i64,
    files_difference: Option<i64>,
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
    let mut all = vec![context.admin()?];
    for also in &args.also {
        all.push(context.admin_at(also)?);
    }
    let journaled = match &args.journal {
        Some(path) => Some(hold(&all, Pieces::open(path, IDS_EACH)?).await?),
        None => None,
    };
    let mut documents = Vec::new();
    for one in &all {
        documents.push((one.shown().to_owned(), one.get(PATH).await?));
    }
    let mut document = fleet::added_up(&documents);
    let audit: Audit = admin::shape(PATH, &document)?;
    let minutes = args.minutes.ask(&admin).await?;
    let complete = journaled.as_ref().is_none_or(|j| j.missing_count == 0);
    if context.out.json {
        if let (Some(found), Some(fields)) = (journaled, document.as_object_mut()) {
            let found = json!({"checked": found.checked, "missing_count": found.missing_count,
                "missing": found.missing, "torn": found.torn});
            fields.insert("journal".to_owned(), found);
        }
        if let (Some(books), Some(fields)) = (&minutes, document.as_object_mut()) {
            for name in ["minutes", "minutes_since", "minutes_truncated"] {
                fields.insert(name.to_owned(), books.get(name).cloned().unwrap_or_default());
            }
        }
        context.out.document(&document)?;
    } else {
        if let Some(minutes) = &minutes {
            minutes::show(context, minutes)?;
        }
        show(context, &audit)?;
        if let Some(found) = &journaled {
            show_journal(context, found)?;
        }
    }
    Ok(Verdict::when(audit.balanced && complete))
}

async fn hold(all: &[Admin], mut pieces: Pieces) -> Result<Journaled, Fault> {
    let Some((admin, others)) = all.split_first() else { return Ok(Journaled::default()) };
    // Of several servers each is told what those before it lack: they have to name all of it.
    let path = if others.is_empty() { IDS.to_owned() } else { format!("{IDS}?all=true") };
    let mut found = Journaled::default();
    let mut left: Vec<Bytes> = Vec::new();
    let mut bytes_max = usize::MAX;
    loop {
        let piece = match left.pop() {
            Some(part) => part,
            None => match pieces.read()? {
                Some(piece) => piece,
                None => break,
            },
        };
        if piece.len() > bytes_max
            && let Some((part, rest)) = split(&piece, bytes_max)
        {
            left.extend([rest, part]);
            continue;
        }
        let reply = admin.try_post_lines(&path, piece.clone()).await?;
        if reply.status == StatusCode::PAYLOAD_TOO_LARGE && bytes_max > PART_BYTES {
            bytes_max = PART_BYTES;
            left.push(piece);
            continue;
        }
        let document = admin.accepted(IDS, &reply)?;
        let mut answer: IdsAnswer = admin::shape(IDS, &document)?;
        // An id that stands twice in a journal may be checked once, but none may be passed over.
        if answer.checked == 0 {
            return Err(Fault::failed(
                format!("{IDS} checked none of the ids"),
                "use the ingestctl of the same version as the server",
            ));
        }
        found.checked += answer.checked;
        for other in others {
            if answer.missing_count == 0 {
                break;
            }
            let lacking = fleet::lines_of(&piece, &answer.missing);
            let reply = other.try_post_lines(&path, lacking).await?;
            let document = other.accepted(IDS, &reply)?;
            answer = admin::shape(IDS, &document)?;
        }
        found.missing_count += answer.missing_count;
        let room = MISSING_SHOWN.saturating_sub(found.missing.len());
        found.missing.extend(answer.missing.into_iter().take(room));
    }
    found.torn = pieces.was_torn();
    Ok(found)
}

/// Cuts whole lines of at most so many bytes off the front, but one line at least; `None` where that
/// is all there is.
fn split(piece: &Bytes, bytes_max: usize) -> Option<(Bytes, Bytes)> {
    let end = memchr::memrchr(b'\n', piece.get(..bytes_max)?)
        .or_else(|| memchr::memchr(b'\n', piece))?
        .saturating_add(1);
    (end < piece.len()).then(|| (piece.slice(..end), piece.slice(end..)))
}

impl Row {
    /// Received minus every outcome.
    fn unsettled(&self) -> i128 {
        let tally = Tally {
            received: self.received,
            accepted: self.accepted,
            dead_lettered: self.dead_lettered,
            deduplicated: self.deduplicated,
            rejected: self.rejected,
            shed: self.shed,
        };
        tally.unsettled()
    }

    fn unstored(&self, sink: &Stored) -> i128 {
        let there = [sink.stored, sink.pending, sink.quarantined, sink.skipped];
        let moved = i128::from(sink.promoted);
        i128::from(self.accepted) + moved - there.iter().map(|n| i128::from(*n)).sum::<i128>()
    }
}

/// A difference as it is shown: `ok`, a number with its sign, or nothing where it is not known.
fn difference(n: Option<i64>) -> String {
    match n {
        None => "-".to_owned(),
        Some(0) => "ok".to_owned(),
        Some(n) => format!("{n:+}"),
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
        ">LOG",
    ]);
    let mut stored = Table::new(&[
        "TENANT",
        "TYPE",
        "SINK",
        ">STORED",
        ">PENDING",
        ">QUARANTINED",
        ">SKIPPED",
        ">PROMOTED",
        ">ACCEPTED",
        ">DEAD",
        ">FILES",
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
        let settled = i64::try_from(row.unsettled()).unwrap_or(i64::MAX);
        cells.push(difference(match (settled, row.log_difference) {
            (0, log) => log,
            (open, _) => Some(open),
        }));
        books.row(cells);
        for (name, sink) in &row.sinks {
            let mut cells = vec![tenant.clone(), kind.clone(), human::safe(name)];
            let counts = [sink.stored, sink.pending, sink.quarantined, sink.skipped];
            cells.extend(counts.map(human::count));
            cells.push(match sink.promoted {
                0 => "0".to_owned(),
                moved => format!("{moved:+}"),
            });
            let unstored = i64::try_from(row.unstored(sink)).unwrap_or(i64::MAX);
            let differences =
                [Some(unstored), Some(sink.dead_letters_difference), sink.files_difference];
            cells.extend(differences.map(difference));
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
    conclude(context, audit)
}

fn conclude(context: &Context, audit: &Audit) -> Result<(), Fault> {
    if audit.in_flight > 0 {
        let text = human::things(audit.in_flight, "event is", "events are");
        context.out.line(&format!("{text} in flight"))?;
    }
    if audit.refused.requests > 0 {
        let requests = human::things(audit.refused.requests, "request was", "requests were");
        let bytes = human::bytes(audit.refused.bytes);
        let text = format!("{requests} refused before their events were counted ({bytes})");
        context.out.line(&text)?;
    }
    minutes::show_gaps(context, &audit.gaps)?;
    if audit.unaccounted > 0 {
        let lost = human::things(audit.unaccounted, "event was", "events were");
        let text = format!("{lost} dropped without an outcome: a defect, please report it");
        context.out.line(&context.out.paint(Tone::Bad, &text))?;
    }
    if audit.books_difference != 0 {
        let text = format!("received and outcomes differ by {}", audit.books_difference);
        context.out.line(&context.out.paint(Tone::Bad, &text))?;
    }
    if audit.log_quarantined.events > 0 {
        let lost = human::things(audit.log_quarantined.events, "event", "events");
        let text = format!("{lost} in the log failed their checksum and are set aside");
        context.out.line(&context.out.paint(Tone::Bad, &text))?;
        for Stretch { partition, from, to } in &audit.log_quarantined.stretches {
            context.out.line(&format!("  partition {partition}, offsets {from} to before {to}"))?;
        }
    }
    if audit.log_counted_whole == Some(false) {
        context
            .out
            .line("the log's oldest events have expired: it is not held against the books")?;
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
    fn pieces_are_cut_between_lines() {
        let piece = Bytes::from_static(b"11\n22\n3333333\n");
        let (part, rest) = split(&piece, 7).unwrap();
        assert_eq!((part.as_ref(), rest.as_ref()), (&b"11\n22\n"[..], &b"3333333\n"[..]));
        assert_eq!(split(&rest, 3), None, "one line is never cut");
        assert_eq!(split(&Bytes::from_static(b"4444\n5\n"), 2).unwrap().0, "4444\n");
    }

    #[test]
    fn differences_are_what_the_outcomes_leave_over() {
        let row = json!({"received": 10, "accepted": 6, "dead_lettered": 1, "rejected": 1,
            "sinks": {"lake": {"stored": 5, "pending": 2}}});
        let row = Row::deserialize(&row).unwrap();
        assert_eq!(row.unsettled(), 2);
        assert_eq!(row.unstored(row.sinks.get("lake").unwrap()), -1);
    }
}
