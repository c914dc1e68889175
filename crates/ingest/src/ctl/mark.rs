//! `ingestctl mark`: gives where every partition ends now a name, for replays.

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::{
    Context, admin,
    fault::{Fault, Verdict},
    human, replay,
    table::Table,
};
use crate::replay::marks::MarkName;

const PATH: &str = "/api/v1/marks";

/// Give where the log ends now a name, for replays
#[derive(Debug, Args)]
#[command(after_help = "\
Set one right before each deploy: `ingestctl replay --from deploy:TAG …` then begins with the first
event behind it. A mark is never moved; it stands in the control log.

Examples:
  ingestctl mark deploy:2026-11-21.1
  ingestctl mark deploy:$(git rev-parse --short HEAD) --by ci
  ingestctl mark --list")]
pub struct MarkArgs {
    /// Its name
    #[arg(value_name = "deploy:TAG", required_unless_present = "list")]
    name: Option<MarkName>,
    /// List what was set, oldest first
    #[arg(long, conflicts_with_all = ["name", "by"])]
    list: bool,
    /// Who sets it, for the control log; without it: user and machine
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Listed {
    marks: Vec<Mark>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Mark {
    name: String,
    at: String,
    by: String,
    offsets: Vec<Place>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Place {
    partition: u32,
    offset: u64,
}

impl Mark {
    fn places(&self) -> String {
        let each = self.offsets.iter().map(|place| format!("{}:{}", place.partition, place.offset));
        each.collect::<Vec<_>>().join(",")
    }
}

/// Sets or lists.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached or refuses.
pub async fn run(args: &MarkArgs, context: &Context) -> Result<Verdict, Fault> {
    let admin = context.admin()?;
    let Some(name) = &args.name else {
        let document = admin.get(PATH).await?;
        if context.out.json {
            context.out.document(&document)?;
            return Ok(Verdict::Done);
        }
        let listed: Listed = admin::shape(PATH, &document)?;
        return list(&listed, context);
    };
    let by = replay::who(args.by.as_deref());
    let document = admin.post(PATH, &json!({ "name": name, "by": by })).await?;
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let mark: Mark = admin::shape(PATH, &document)?;
    context.out.line(&format!("{} is {}", human::safe(&mark.name), mark.places()))?;
    Ok(Verdict::Done)
}

fn list(listed: &Listed, context: &Context) -> Result<Verdict, Fault> {
    if listed.marks.is_empty() {
        context.out.line("no marks: `ingestctl mark deploy:TAG` sets one")?;
        return Ok(Verdict::Done);
    }
    let mut table = Table::new(&["MARK", "SET", "BY", "OFFSETS"]);
    for mark in &listed.marks {
        table.row(vec![
            human::safe(&mark.name),
            human::safe(mark.at.split('.').next().unwrap_or_default()),
            human::cut(&mark.by, 30),
            human::cut(&mark.places(), 60),
        ]);
    }
    context.out.table(&table)?;
    Ok(Verdict::Done)
}
