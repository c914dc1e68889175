//! `ingestctl replay compare`: live against a replay's shadow, as tables or as a page.

mod chart;
mod page;
mod tables;

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::{PATH, who};
use crate::{
    ctl::{
        Context, admin,
        fault::{Fault, Verdict},
        follow, human,
        out::{self, Tone},
    },
    replay::{
        PlanId,
        compare::{Compared, Comparison, Differences},
    },
};

const TEMPLATE: &str = "[{bar:30}] {percent} % eta {eta} {wide_msg}";

/// Hold a replay's shadow against live: what would change?
#[derive(Debug, Args)]
#[command(after_help = "\
Every event of the replay's window is looked at on both sides: which are missing in the shadow, only in
the shadow, changed (any column, schema_version too), healed (a dead letter in live, an event in the
shadow) or dead letters now. Nothing is changed. Lakes and ClickHouse are compared; other sinks
cannot be read back, and are said to be not compared.

The server keeps what came of it: `ingestctl replay promote` asks for it.

Exit status 0 if nothing differs, 1 if something does, 3 if it cannot be told.

Examples:
  ingestctl replay compare 0123456789abcdef
  ingestctl replay compare 0123456789abcdef --html compared.html
  ingestctl replay compare 0123456789abcdef --json | jq '.sinks[].fields'")]
pub struct CompareArgs {
    /// The replay's id, as `ingestctl replay list` shows it
    #[arg(value_name = "ID")]
    id: PlanId,
    /// Write a page with charts to this file too, in the place of what is there
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Who asks, for the control log; without it: user and machine
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Progress {
    sink: String,
    rows: u64,
    done: u64,
    total: u64,
    differences: Differences,
}

/// Does what is asked.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached or cannot compare, or the page cannot be written.
pub async fn run(args: &CompareArgs, context: &Context) -> Result<Verdict, Fault> {
    let admin = context.admin()?;
    let path = format!("{PATH}/jobs/{}/compare", args.id);
    let body = json!({ "by": who(args.by.as_deref()) });
    let bar = follow::bar(TEMPLATE);
    let words = ("it cannot be compared", "mend it and compare again: nothing was changed");
    let document = follow::follow_with(&admin, (&path, &body), words, |progress| {
        // What cannot be read of a line of progress is not shown.
        let Ok(progress) = Progress::deserialize(progress) else { return };
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        bar.set_message(format!(
            "{}: {}, {} differ",
            human::safe(&progress.sink),
            human::things(progress.rows, "row", "rows"),
            human::count(progress.differences.total())
        ));
    })
    .await;
    bar.finish_and_clear();
    let document = document?;
    let compared: Compared = admin::shape(&path, &document)?;
    if let Some(file) = &args.html {
        std::fs::write(file, page::page(&compared)).map_err(|e| Fault::file(file, &e))?;
    }
    if context.out.json {
        context.out.document(&document)?;
    } else {
        tables::show(context, &compared)?;
        if let Some(file) = &args.html {
            out::remark(&format!("the page is in {}", file.display()));
        }
    }
    if compared.result.sinks.iter().all(|sink| sink.not_compared.is_some()) {
        let mend = "only lakes and ClickHouse can be read back";
        return Err(Fault::failed("none of the replay's sinks can be compared", mend));
    }
    Ok(Verdict::when(compared.result.identical))
}

/// What came of it, in a line.
fn headline(result: &Comparison) -> (Tone, String) {
    let compared = result.sinks.iter().filter(|sink| sink.not_compared.is_none());
    let (count, unreadable) = compared.fold((0, 0), |(count, unreadable), sink| {
        (count + 1, unreadable + sink.unreadable.len() as u64 + sink.unreadable_left_out)
    });
    if count == 0 {
        return (Tone::Warning, "not compared: no sink of this replay can be read back".to_owned());
    }
    let rest = match result.not_compared.as_slice() {
        [] => String::new(),
        names => format!("; not compared: {}", human::safe(&names.join(", "))),
    };
    if result.identical {
        return (Tone::Good, format!("identical: the shadow holds what live does{rest}"));
    }
    let parts = parts(&result.differences);
    let mut parts: Vec<_> = parts
        .iter()
        .filter(|(_, count)| 0 < *count)
        .map(|(name, count)| format!("{} {name}", human::count(*count)))
        .collect();
    if 0 < unreadable {
        parts.push(human::things(unreadable, "file cannot be read", "files cannot be read"));
    }
    (Tone::Bad, format!("different: {}{rest}", parts.join(", ")))
}

/// The differences with their names.
fn parts(found: &Differences) -> [(&'static str, u64); 7] {
    [
        ("missing", found.missing),
        ("extra", found.extra),
        ("changed", found.changed),
        ("healed", found.healed),
        ("newly dead", found.newly_dead),
        ("twice in live", found.doubled_in_live),
        ("twice in the shadow", found.doubled_in_shadow),
    ]
}
