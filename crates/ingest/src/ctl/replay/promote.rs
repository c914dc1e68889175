//! `ingestctl replay promote` and `revert`: the shadow's rows in the place of live's, and back.

use std::io::{IsTerminal as _, Write as _};

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{PATH, who};
use crate::{
    ctl::{
        Context,
        admin::{self, Admin},
        fault::{Fault, Verdict},
        follow, human,
        out::Tone,
        table::Table,
    },
    replay::PlanId,
};

const TEMPLATE: &str = "{spinner} {wide_msg}";
/// Lanes shown; the sums are of all.
const LANES_SHOWN: usize = 30;

/// Put a shadow's rows in the place of live's
#[derive(Debug, Args)]
#[command(after_help = "\
The window's rows in live are replaced by the shadow's; rows outside of it stay as they are. It is done
whole or not at all, also where the server is killed meanwhile: then the next start ends it. A copy of
what was before is kept for `ingestctl replay revert`.

It shows what would change and asks. Refused is what was not compared, or is not what was compared any
more. What readers may see meanwhile: docs/replay.md, \"Promote and revert\".

Examples:
  ingestctl replay promote 0123456789abcdef --dry-run     what would change?
  ingestctl replay promote 0123456789abcdef
  ingestctl replay promote 0123456789abcdef --sink lake --yes")]
pub struct PromoteArgs {
    /// The plan's id
    #[arg(value_name = "ID")]
    id: PlanId,
    /// Only this sink; all of the plan without it
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    how: How,
}

/// Put back what was before a promotion
#[derive(Debug, Args)]
#[command(after_help = "\
In the lake the very files from before come back, with their names. Promotions that lie on top of each
other are reverted in the reverse order.

Examples:
  ingestctl replay revert 0123456789abcdef
  ingestctl replay revert 0123456789abcdef --yes --json")]
pub struct RevertArgs {
    /// The plan's id
    #[arg(value_name = "ID")]
    id: PlanId,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct How {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Who does it, for the control log; without it: user and machine
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Outline {
    seen: String,
    sinks: Vec<Sink>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sink {
    sink: String,
    rows_go: u64,
    rows_come: u64,
    rows_kept: u64,
    places: u64,
    go: Vec<String>,
    cut: Vec<String>,
    come: Vec<String>,
    lanes: Vec<Lane>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Lane {
    tenant: String,
    event_type: String,
    dead_letters: bool,
    go: u64,
    come: u64,
}

/// Promotes.
///
/// # Errors
/// [`Fault`]: the server cannot be reached, or refuses.
pub async fn promote(args: &PromoteArgs, context: &Context) -> Result<Verdict, Fault> {
    let admin = context.admin()?;
    let by = who(args.how.by.as_deref());
    let path = format!("{PATH}/jobs/{}/promotion", args.id);
    let query = |dry_run: bool, seen: Option<String>| {
        let pairs = [
            ("by", Some(by.clone())),
            ("sink", args.sink.clone()),
            ("dry_run", dry_run.then(|| "true".to_owned())),
            ("seen", seen),
        ];
        admin::query(&path, &pairs)
    };
    let document = ask(&admin, &query(true, None), "it cannot be promoted").await?;
    let outline: Outline = admin::shape(&path, &document)?;
    if args.dry_run {
        if context.out.json {
            context.out.document(&document)?;
        } else {
            show(context, &outline)?;
        }
        return Ok(Verdict::Done);
    }
    if !args.how.yes {
        show(context, &outline)?;
        if !is_confirmed("Replace these rows in live?")? {
            return Ok(Verdict::No);
        }
    }
    let document = ask(&admin, &query(false, Some(outline.seen)), "it was not promoted").await?;
    told(
        context,
        &document,
        "promoted",
        &format!("`ingestctl replay revert {}` undoes it", args.id),
    )
}

/// Reverts.
///
/// # Errors
/// As [`promote`].
pub async fn revert(args: &RevertArgs, context: &Context) -> Result<Verdict, Fault> {
    let admin = context.admin()?;
    let by = who(args.how.by.as_deref());
    if !args.how.yes && !is_confirmed("Put back what was in live before?")? {
        return Ok(Verdict::No);
    }
    let path = format!("{PATH}/jobs/{}/revert", args.id);
    let path = admin::query(&path, &[("by", Some(by))]);
    let document = ask(&admin, &path, "it was not reverted").await?;
    told(context, &document, "reverted", "live has what it had before")
}

async fn ask(admin: &Admin, path: &str, failed: &str) -> Result<Value, Fault> {
    let bar = follow::bar(TEMPLATE);
    let done = follow::follow(admin, path, (failed, ""), |progress| {
        let text = |name: &str| progress.get(name).and_then(Value::as_str).unwrap_or_default();
        bar.set_message(human::safe(&format!("{} {}", text("sink"), text("what"))));
        bar.tick();
    })
    .await;
    bar.finish_and_clear();
    done
}

fn told(context: &Context, document: &Value, word: &str, more: &str) -> Result<Verdict, Fault> {
    if context.out.json {
        let id = document.get("plan_id");
        context.out.document(&json!({ "plan_id": id, "state": document.get("state") }))?;
    } else {
        let word = context.out.paint(Tone::Good, word);
        context.out.line(&format!("{word}: {more}"))?;
    }
    Ok(Verdict::Done)
}

fn show(context: &Context, outline: &Outline) -> Result<(), Fault> {
    for sink in &outline.sinks {
        context.out.line(&format!(
            "{}: {} go, {} come, {} outside of the window stay as they are",
            human::safe(&sink.sink),
            human::things(sink.rows_go, "row", "rows"),
            human::count(sink.rows_come),
            human::count(sink.rows_kept),
        ))?;
        context.out.line(&format!(
            "  in {}: {} go whole, {} are cut, {} come",
            human::things(sink.places, "place", "places"),
            human::count(sink.go.len() as u64),
            human::count(sink.cut.len() as u64),
            human::count(sink.come.len() as u64),
        ))?;
        let mut table = Table::new(&["TENANT", "EVENT TYPE", ">GO", ">COME"]);
        for lane in sink.lanes.iter().take(LANES_SHOWN) {
            let dead = if lane.dead_letters { " (dead letters)" } else { "" };
            table.row(vec![
                human::safe(&lane.tenant),
                format!("{}{dead}", human::safe(&lane.event_type)),
                human::count(lane.go),
                human::count(lane.come),
            ]);
        }
        context.out.table(&table)?;
        if LANES_SHOWN < sink.lanes.len() {
            let more = human::count((sink.lanes.len() - LANES_SHOWN) as u64);
            context.out.line(&format!("… and {more} more; --dry-run --json has all"))?;
        }
    }
    Ok(())
}

fn is_confirmed(question: &str) -> Result<bool, Fault> {
    if !std::io::stdin().is_terminal() {
        return Err(Fault::Usage("to do it without being asked add --yes".to_owned()));
    }
    let mut stderr = std::io::stderr().lock();
    let asked = write!(stderr, "\n{question} [y/N] ").and_then(|()| stderr.flush());
    let cannot = |e: std::io::Error| Fault::failed(format!("cannot ask: {e}"), "use --yes");
    asked.map_err(cannot)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(cannot)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
