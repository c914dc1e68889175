//! The part of `ingestctl audit` that shows the books minute by minute, and what they do not know.

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Context,
    admin::{self, Admin},
    fault::Fault,
    human,
    out::remark,
    table::Table,
};
use crate::{
    clock::{Clock, SystemClock},
    config::Span,
};

const PATH: &str = "/api/v1/books";

/// Which minutes are shown, if any.
#[derive(Debug, Default, Args)]
pub struct MinuteArgs {
    /// Show the books minute by minute too, of the last DURATION (say 10m)
    #[arg(long, value_name = "DURATION", conflicts_with = "from")]
    since: Option<Span>,
    /// The same, from this moment on (RFC 3339, say 2026-11-21T10:00:00Z)
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// The last minute shown is the one this moment is in
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
}

/// What the books say.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Books {
    minutes: Vec<Row>,
    minutes_since: Option<String>,
    minutes_truncated: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Row {
    minute: String,
    tenant: String,
    event_type: String,
    received: u64,
    accepted: u64,
    dead_lettered: u64,
    deduplicated: u64,
    rejected: u64,
    shed: u64,
}

/// Times in which it is not known what was refused.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Gaps {
    count: u64,
    spans: Vec<Gap>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Gap {
    from: Option<String>,
    to: String,
}

/// Gaps shown one by one; the others are counted.
const GAPS_SHOWN: usize = 5;

impl MinuteArgs {
    fn from(&self) -> Option<String> {
        let micros = |span: &Span| i64::try_from(span.0.as_micros()).unwrap_or(i64::MAX);
        let since = self.since.as_ref();
        let since = since.map(|span| SystemClock.now().0.saturating_sub(micros(span)).to_string());
        since.or_else(|| self.from.clone())
    }

    /// The document with the minutes, where they are asked for.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn ask(&self, admin: &Admin) -> Result<Option<Value>, Fault> {
        let from = self.from();
        if from.is_none() && self.to.is_none() {
            return Ok(None);
        }
        let path = admin::query(PATH, &[("from", from), ("to", self.to.clone())]);
        admin.get(&path).await.map(Some)
    }
}

/// Shows the minutes of such a document.
///
/// # Errors
/// As writing to stdout, and where the document has another shape.
pub fn show(context: &Context, document: &Value) -> Result<(), Fault> {
    let books: Books = admin::shape(PATH, document)?;
    let mut table = Table::new(&[
        "MINUTE",
        "TENANT",
        "TYPE",
        ">RECEIVED",
        ">ACCEPTED",
        ">DEAD",
        ">DEDUPLICATED",
        ">REJECTED",
        ">SHED",
    ]);
    for row in &books.minutes {
        let minute = row.minute.get(..16).unwrap_or(&row.minute);
        let mut cells =
            vec![human::safe(minute), human::safe(&row.tenant), human::cut(&row.event_type, 40)];
        let counts = [
            row.received,
            row.accepted,
            row.dead_lettered,
            row.deduplicated,
            row.rejected,
            row.shed,
        ];
        cells.extend(counts.map(human::count));
        table.row(cells);
    }
    if table.is_empty() {
        context.out.line("no events in these minutes")?;
    } else {
        context.out.table(&table)?;
    }
    if books.minutes_truncated {
        remark("there are more minutes than one answer holds: ask for fewer");
    }
    if let Some(since) = &books.minutes_since {
        remark(&format!("minutes before {} are not kept of every tenant", human::safe(since)));
    }
    context.out.line("")
}

/// Says what the books do not know.
///
/// # Errors
/// As writing to stdout.
pub fn show_gaps(context: &Context, gaps: &Gaps) -> Result<(), Fault> {
    let newest = gaps.spans.iter().rev().take(GAPS_SHOWN);
    let shown = newest.clone().count();
    for gap in newest {
        let from = gap.from.as_deref().map_or_else(|| "the beginning".to_owned(), human::safe);
        let text = format!(
            "what was refused or deduplicated between {from} and {} is not known: a stop that was not clean",
            human::safe(&gap.to)
        );
        context.out.line(&text)?;
    }
    let more = gaps.count.saturating_sub(shown as u64);
    if more > 0 {
        context.out.line(&format!("… and in {} more such gaps", human::count(more)))?;
    }
    Ok(())
}
