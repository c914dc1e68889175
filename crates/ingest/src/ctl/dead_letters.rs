//! `ingestctl dead-letters`: events that were kept but are not valid.

use std::{
    io::{IsTerminal as _, Write as _},
    str::FromStr,
};

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Context,
    admin::{self, Admin},
    fault::{Fault, Verdict},
    human,
    out::{Tone, remark},
    replay,
    table::Table,
    tail::{event_type_name, tenant_name},
};

const PATH: &str = "/api/v1/dead-letters";

/// List, show and re-drive events that were kept but are not valid
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ingestctl dead-letters list --tenant acme
  ingestctl dead-letters show 0/1234
  ingestctl dead-letters redrive --tenant acme --event-type page_view --dry-run")]
pub struct DeadLettersArgs {
    #[command(subcommand)]
    command: DeadLettersCommand,
}

#[derive(Debug, Subcommand)]
enum DeadLettersCommand {
    /// List dead letters with their reasons, oldest first
    #[command(after_help = "\
Examples:
  ingestctl dead-letters list
  ingestctl dead-letters list --tenant acme --code type_mismatch --limit 20
  ingestctl dead-letters list --json | jq -r '.dead_letters[] | .code' | sort | uniq -c")]
    List {
        #[command(flatten)]
        which: Which,
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
        /// Go on from here, as the last list said
        #[arg(long, value_name = "PARTITION/OFFSET")]
        from: Option<Position>,
    },
    /// Show one dead letter with what was sent
    #[command(after_help = "\
Examples:
  ingestctl dead-letters show 0/1234
  ingestctl dead-letters show 1234                      the same: partition 0
  ingestctl dead-letters show 0/1234 --json | jq -r .raw")]
    Show {
        /// Which one: as the list names it
        #[arg(value_name = "PARTITION/OFFSET")]
        position: Position,
    },
    /// Judge dead letters again by the schemas of now; those that are valid are accepted
    #[command(after_help = "\
A re-drive is a new append, linked to the old one; what was re-driven before is skipped. Say which
ones by filters or by position. Without --yes it tells how many there are and asks.

Examples:
  ingestctl dead-letters redrive --tenant acme --code unit_unknown --dry-run
  ingestctl dead-letters redrive --tenant acme --code unit_unknown --yes
  ingestctl dead-letters redrive 0/1234 0/1240 --yes")]
    Redrive(RedriveArgs),
}

#[derive(Debug, Args)]
struct Which {
    /// Only this tenant's
    #[arg(long, value_parser = tenant_name)]
    tenant: Option<String>,
    /// Only of this type
    #[arg(long, value_name = "NAME", value_parser = event_type_name)]
    event_type: Option<String>,
    /// Only with this reason, for instance type_mismatch
    #[arg(long)]
    code: Option<String>,
}

#[derive(Debug, Args)]
struct RedriveArgs {
    /// Which ones, one by one
    #[arg(value_name = "PARTITION/OFFSET", conflicts_with_all = ["tenant", "event_type", "code"])]
    positions: Vec<Position>,
    #[command(flatten)]
    which: Which,
    /// Only tell how many there are
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Who does it, for the control log; without it: user and machine
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// An offset of a partition: `PARTITION/OFFSET`, or `OFFSET` alone for partition 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub partition: u32,
    #[serde(alias = "from")]
    pub offset: u64,
}

impl FromStr for Position {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fault =
            |_| format!("{text:?} is no position; write PARTITION/OFFSET, for instance 0/17");
        let (partition, offset) = text.split_once('/').unwrap_or(("0", text));
        Ok(Self {
            partition: partition.parse().map_err(fault)?,
            offset: offset.parse().map_err(fault)?,
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Listed {
    dead_letters: Vec<DeadLetter>,
    next: Option<Position>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DeadLetter {
    partition: u32,
    offset: u64,
    tenant: String,
    event_type: String,
    event_id: String,
    received_at: String,
    code: String,
    field: String,
    message: String,
    redriven: bool,
    raw: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Redriven {
    matched: u64,
    accepted: u64,
    dead_lettered: u64,
    skipped: u64,
}

/// Does what is asked.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached or refuses.
pub async fn run(args: DeadLettersArgs, context: &Context) -> Result<Verdict, Fault> {
    let admin = context.admin()?;
    match args.command {
        DeadLettersCommand::List { which, limit, from } => {
            let document = pages(&admin, which, limit, from).await?;
            if context.out.json {
                context.out.document(&document)?;
            } else {
                list(context, &admin::shape(PATH, &document)?)?;
            }
            Ok(Verdict::Done)
        }
        DeadLettersCommand::Show { position } => show(&admin, context, position).await,
        DeadLettersCommand::Redrive(args) => redrive(&admin, context, &args).await,
    }
}

/// Asks until there are `limit` or no more: a server may answer with less than was asked for.
async fn pages(
    admin: &Admin,
    which: Which,
    limit: u64,
    mut from: Option<Position>,
) -> Result<Value, Fault> {
    let Which { tenant, event_type, code } = which;
    let mut found: Vec<Value> = Vec::new();
    loop {
        let left = limit - found.len() as u64;
        let path = admin::query(
            PATH,
            &[
                ("tenant", tenant.clone()),
                ("event_type", event_type.clone()),
                ("code", code.clone()),
                ("limit", Some(left.to_string())),
                ("partition", from.map(|p| p.partition.to_string())),
                ("from", from.map(|p| p.offset.to_string())),
            ],
        );
        let mut page = admin.get(&path).await?;
        let next: Option<Position> = admin::shape::<Listed>(PATH, &page)?.next;
        if let Some(Value::Array(items)) = page.get_mut("dead_letters").map(Value::take) {
            found.extend(items);
        }
        let full = found.len() as u64 >= limit;
        // A server that does not move on would be asked for ever.
        if full || next.is_none() || next == from {
            let next = page.get_mut("next").map_or(Value::Null, Value::take);
            return Ok(json!({"dead_letters": found, "next": next}));
        }
        from = next;
    }
}

fn list(context: &Context, listed: &Listed) -> Result<(), Fault> {
    if listed.dead_letters.is_empty() {
        return context.out.line("no dead letters");
    }
    let mut table =
        Table::new(&["POSITION", "RECEIVED", "TENANT", "TYPE", "CODE", "FIELD", "MESSAGE"]);
    for letter in &listed.dead_letters {
        let done = if letter.redriven { " (re-driven)" } else { "" };
        table.row(vec![
            format!("{}/{}", letter.partition, letter.offset),
            human::safe(&letter.received_at),
            human::safe(&letter.tenant),
            human::cut(&letter.event_type, 32),
            human::safe(&letter.code),
            human::cut(&letter.field, 32),
            format!("{}{done}", human::cut(&letter.message, 100)),
        ]);
    }
    context.out.table(&table)?;
    if let Some(next) = listed.next {
        remark(&format!("there are more; go on with --from {}/{}", next.partition, next.offset));
    }
    Ok(())
}

async fn show(admin: &Admin, context: &Context, position: Position) -> Result<Verdict, Fault> {
    let path = format!("{PATH}/{}/{}", position.partition, position.offset);
    let document = admin.get(&path).await?;
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let letter: DeadLetter = admin::shape(&path, &document)?;
    let place = if letter.field.is_empty() { "the whole event" } else { &letter.field };
    let facts = [
        ("position", format!("{}/{}", letter.partition, letter.offset)),
        ("tenant", letter.tenant),
        ("type", letter.event_type),
        ("id", letter.event_id),
        ("received", letter.received_at),
        ("code", letter.code),
        ("field", place.to_owned()),
        ("message", letter.message),
        ("re-driven", if letter.redriven { "yes" } else { "no" }.to_owned()),
    ];
    for (name, value) in facts {
        context.out.line(&format!("{name:<10} {}", human::safe(&value)))?;
    }
    if let Some(raw) = letter.raw {
        context.out.line(&format!("\n{}", context.out.paint(Tone::Strong, "as it was sent:")))?;
        context.out.line(&human::safe(&raw))?;
    }
    Ok(Verdict::Done)
}

async fn redrive(admin: &Admin, context: &Context, args: &RedriveArgs) -> Result<Verdict, Fault> {
    let Which { tenant, event_type, code } = &args.which;
    let filters = [("tenant", tenant), ("event_type", event_type), ("code", code)];
    if args.positions.is_empty() && filters.iter().all(|(_, value)| value.is_none()) {
        return Err(Fault::Usage(
            "say which dead letters: by --tenant, --event-type or --code, or by position"
                .to_owned(),
        ));
    }
    let mut body = Map::new();
    for (name, value) in filters {
        if let Some(value) = value {
            body.insert(name.to_owned(), value.clone().into());
        }
    }
    if !args.positions.is_empty() {
        body.insert("offsets".to_owned(), json!(args.positions));
    }
    let path = format!("{PATH}/redrive");
    let mut ask = async |dry_run: bool| {
        body.insert("dry_run".to_owned(), dry_run.into());
        if !dry_run {
            body.insert("by".to_owned(), replay::who(args.by.as_deref()).into());
        }
        admin.post(&path, &Value::Object(body.clone())).await
    };
    if !args.yes && !args.dry_run {
        let plan: Redriven = admin::shape(&path, &ask(true).await?)?;
        if plan.matched > plan.skipped && !confirmed(&plan)? {
            remark("nothing was re-driven");
            return Ok(Verdict::No);
        }
    }
    let document = ask(args.dry_run).await?;
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let done: Redriven = admin::shape(&path, &document)?;
    context.out.line(&if args.dry_run {
        done.plan()
    } else {
        format!(
            "{}: {} accepted, {} still invalid, {} re-driven before",
            human::things(done.matched, "dead letter", "dead letters"),
            human::count(done.accepted),
            human::count(done.dead_lettered),
            human::count(done.skipped),
        )
    })?;
    Ok(Verdict::Done)
}

impl Redriven {
    /// What a dry run says.
    fn plan(&self) -> String {
        format!(
            "{}: {} to re-drive, {} re-driven before",
            human::things(self.matched, "dead letter", "dead letters"),
            human::count(self.matched.saturating_sub(self.skipped)),
            human::count(self.skipped),
        )
    }
}

fn confirmed(plan: &Redriven) -> Result<bool, Fault> {
    let found = plan.plan();
    if !std::io::stdin().is_terminal() {
        return Err(Fault::Usage(format!("{found}; add --yes to re-drive them, or --dry-run")));
    }
    let mut stderr = std::io::stderr().lock();
    let _ = write!(stderr, "{found}\nre-drive them? [y/N] ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|e| Fault::failed(format!("cannot read the answer: {e}"), "use --yes"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_partition_and_offset() {
        let position = |partition, offset| Position { partition, offset };
        assert_eq!("0/17".parse::<Position>().unwrap(), position(0, 17));
        assert_eq!("3/5".parse::<Position>().unwrap(), position(3, 5));
        assert_eq!("9".parse::<Position>().unwrap(), position(0, 9));
        for text in ["", "/", "a/1", "1/", "1/2/3", "-1"] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
    }
}
