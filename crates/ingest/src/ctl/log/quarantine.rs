//! `ingestctl log quarantine`: what of the log is damaged, and who knows of it.

use std::{io::Write as _, path::PathBuf};

use clap::{Args, Subcommand};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::{
        Context,
        admin::{self, Admin},
        dead_letters::Position,
        fault::{Fault, Verdict},
        human,
        out::Tone,
        table::Table,
    },
    Stretch,
};

const PATH: &str = "/api/v1/log/quarantine";

/// List, show, save and acknowledge damaged stretches of the log
#[derive(Debug, Args)]
#[command(after_help = "\
A damaged stretch is never served; everything around it is. It alarms (in `ingestctl status`, in
the metric tidegate_log_quarantined_events) until somebody acknowledges it, and is forgotten once
retention has removed it. Without a command: list.

Examples:
  ingestctl log quarantine
  ingestctl log quarantine list --open
  ingestctl log quarantine show 0/1234
  ingestctl log quarantine save 0/1234 damage.bin
  ingestctl log quarantine acknowledge 0/1234 --reason 'disk sdb replaced, 3 events lost'")]
pub struct QuarantineArgs {
    #[command(subcommand)]
    command: Option<QuarantineCommand>,
}

#[derive(Debug, Subcommand)]
enum QuarantineCommand {
    /// List damaged stretches, oldest first
    #[command(after_help = "\
Examples:
  ingestctl log quarantine list
  ingestctl log quarantine list --open --json | jq '.quarantine[] | .events'")]
    List {
        /// Only those that nobody has acknowledged
        #[arg(long)]
        open: bool,
    },
    /// Show one damaged stretch
    #[command(after_help = "\
Examples:
  ingestctl log quarantine show 0/1234
  ingestctl log quarantine show 1234               the same: partition 0")]
    Show {
        /// An offset in it
        #[arg(value_name = "PARTITION/OFFSET")]
        position: Position,
    },
    /// Write the damaged bytes, as they lie on the disk, to a new file
    #[command(after_help = "\
The bytes reach from where the damage begins to the next whole frame. docs/log-format.md says what
they should be.

Examples:
  ingestctl log quarantine save 0/1234 damage.bin && xxd damage.bin | less")]
    Save {
        /// An offset in it
        #[arg(value_name = "PARTITION/OFFSET")]
        position: Position,
        /// The file, which must not exist yet
        file: PathBuf,
    },
    /// Let damage rest: it stays in the record and alarms no more
    #[command(after_help = "\
Who acknowledged what, when and why stays in the record and in the server's log.

Examples:
  ingestctl log quarantine acknowledge 0/1234 0/5678 --reason 'disk sdb replaced'
  ingestctl log quarantine acknowledge --all --by jo --reason 'clients sent these hours again'")]
    Acknowledge(AcknowledgeArgs),
}

#[derive(Debug, Args)]
struct AcknowledgeArgs {
    /// An offset in each of them
    #[arg(value_name = "PARTITION/OFFSET", required_unless_present = "all")]
    positions: Vec<Position>,
    /// All that are open
    #[arg(long, conflicts_with = "positions")]
    all: bool,
    /// Why it may rest, for those who ask later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Who says so; without it: $USER
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Listed {
    quarantine: Vec<Stretch>,
    more_than_recorded: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Rested {
    acknowledged: Vec<Stretch>,
    open_stretches: u64,
}

/// Does what is asked.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached or refuses, or a file cannot be written.
pub async fn run(args: QuarantineArgs, context: &Context) -> Result<Verdict, Fault> {
    let admin = context.admin()?;
    match args.command.unwrap_or(QuarantineCommand::List { open: false }) {
        QuarantineCommand::List { open } => list(&admin, context, open).await,
        QuarantineCommand::Show { position } => show(&admin, context, position).await,
        QuarantineCommand::Save { position, file } => save(&admin, context, position, &file).await,
        QuarantineCommand::Acknowledge(args) => acknowledge(&admin, context, &args).await,
    }
}

fn at(position: Position) -> String {
    format!("{PATH}/{}/{}", position.partition, position.offset)
}

async fn list(admin: &Admin, context: &Context, open: bool) -> Result<Verdict, Fault> {
    let mut document = admin.get(PATH).await?;
    if open && let Some(all) = document.get_mut("quarantine").and_then(Value::as_array_mut) {
        all.retain(|stretch| stretch.get("acknowledged").is_none_or(Value::is_null));
    }
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let listed: Listed = admin::shape(PATH, &document)?;
    if listed.quarantine.is_empty() {
        let which = if open { "no damage that nobody knows of" } else { "no damage is known" };
        context.out.line(which)?;
        return Ok(Verdict::Done);
    }
    let mut table =
        Table::new(&["FROM", "TO", ">EVENTS", ">BYTES", ">AT", "SEGMENT", "FOUND", "BY", "STATE"]);
    for stretch in &listed.quarantine {
        let state = match &stretch.acknowledged {
            None => "OPEN".to_owned(),
            Some(done) => {
                format!("{}: {}", human::cut(&done.by, 20), human::cut(&done.reason, 40))
            }
        };
        table.row(vec![
            format!("{}/{}", stretch.partition, stretch.from),
            format!("{}/{}", stretch.partition, stretch.to),
            human::count(stretch.events),
            human::bytes(stretch.bytes),
            stretch.position.to_string(),
            human::safe(&stretch.segment),
            human::safe(stretch.seen_at.split('.').next().unwrap_or_default()),
            human::safe(&stretch.seen_by),
            state,
        ]);
    }
    context.out.table(&table)?;
    if listed.more_than_recorded {
        let text = "there is more than is recorded: replace the disk";
        context.out.line(&context.out.paint(Tone::Bad, text))?;
    }
    Ok(Verdict::Done)
}

async fn show(admin: &Admin, context: &Context, position: Position) -> Result<Verdict, Fault> {
    let path = at(position);
    let document = admin.get(&path).await?;
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let stretch: Stretch = admin::shape(&path, &document)?;
    let state = match &stretch.acknowledged {
        None => "open: it alarms".to_owned(),
        Some(done) => {
            format!("acknowledged {} by {}", human::safe(&done.at), human::safe(&done.by))
        }
    };
    let reason = stretch.acknowledged.as_ref().map(|done| human::safe(&done.reason));
    let facts = [
        ("from", format!("{}/{}", stretch.partition, stretch.from)),
        ("to", format!("{}/{}, not included", stretch.partition, stretch.to)),
        ("events", human::count(stretch.events)),
        ("segment", human::safe(&stretch.segment)),
        ("position", stretch.position.to_string()),
        ("bytes", human::count(stretch.bytes)),
        (
            "found",
            format!("{} by {}", human::safe(&stretch.seen_at), human::safe(&stretch.seen_by)),
        ),
        ("state", state),
    ];
    for (name, value) in facts.into_iter().chain(reason.map(|reason| ("reason", reason))) {
        context.out.line(&format!("{name:<9} {value}"))?;
    }
    Ok(Verdict::Done)
}

async fn save(
    admin: &Admin,
    context: &Context,
    position: Position,
    file: &std::path::Path,
) -> Result<Verdict, Fault> {
    let stretch: Stretch = admin::shape(&at(position), &admin.get(&at(position)).await?)?;
    let (sender, mut body) = admin.follow(&format!("{}/bytes", at(position))).await?;
    let fault = |e: std::io::Error| Fault::file(file, &e);
    let mut to = std::fs::File::options().write(true).create_new(true).open(file).map_err(fault)?;
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            let what = format!("only {bytes} bytes could be had: {e}");
            Fault::failed(what, "look at the server's log: the disk may not read them")
        })?;
        if let Ok(data) = frame.into_data() {
            to.write_all(&data).map_err(fault)?;
            bytes += data.len() as u64;
        }
    }
    to.sync_all().map_err(fault)?;
    drop(sender);
    if context.out.json {
        context.out.document(&json!({ "file": file.display().to_string(), "bytes": bytes }))?;
    } else {
        let what = human::things(bytes, "byte", "bytes");
        context.out.line(&format!("{what} in {}: {}", file.display(), stretch.place()))?;
    }
    Ok(Verdict::Done)
}

async fn acknowledge(
    admin: &Admin,
    context: &Context,
    args: &AcknowledgeArgs,
) -> Result<Verdict, Fault> {
    let path = format!("{PATH}/acknowledge");
    let user = || std::env::var("USER").ok().filter(|user| !user.is_empty());
    let Some(by) = args.by.clone().or_else(user) else {
        return Err(Fault::Usage("say who acknowledges it: --by NAME".to_owned()));
    };
    let body = json!({
        "stretches": args.positions,
        "all": args.all,
        "by": by,
        "reason": args.reason,
    });
    let document = admin.post(&path, &body).await?;
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let rested: Rested = admin::shape(&path, &document)?;
    for stretch in &rested.acknowledged {
        context.out.line(&format!("acknowledged: {}", stretch.place()))?;
    }
    if rested.acknowledged.is_empty() {
        context.out.line("nothing was open there")?;
    }
    context.out.line(&match rested.open_stretches {
        0 => context.out.paint(Tone::Good, "none is open"),
        n => {
            let left = human::things(n, "stretch is", "stretches are");
            context.out.paint(Tone::Warning, &format!("{left} still open"))
        }
    })?;
    Ok(Verdict::Done)
}
