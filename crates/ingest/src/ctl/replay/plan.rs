//! `ingestctl replay --from … --to … --shadow`: has a window planned, shows it, asks, and has it run.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::{
    PATH,
    apply::{self, How},
    show,
};
use crate::{
    ctl::{
        Context,
        admin::{self, Admin},
        fault::{Fault, Verdict},
        follow, human,
        tail::{event_type_name, tenant_name},
    },
    normalize::{SchemaFault, read_dir},
    replay::{CandidateSchema, JudgingBy, Plan, PlanRequest},
};

const TEMPLATE: &str = "reading the window [{bar:30}] {human_pos}/{human_len} eta {eta}";

/// Which window, which events of it, by which schemas.
#[derive(Debug, Default, PartialEq, Args)]
pub struct PlanArgs {
    /// The first offset: partition:offset, a list of those, earliest or deploy:TAG
    #[arg(long, value_name = "ADDRESS", help_heading = "Window")]
    from: Option<String>,
    /// The first offset behind it: partition:offset, a list of those, latest or deploy:TAG
    #[arg(long, value_name = "ADDRESS", help_heading = "Window")]
    to: Option<String>,
    /// From the first event received then or later: 2026-11-21T10:00Z
    #[arg(long, value_name = "TIME", help_heading = "Window")]
    from_time: Option<String>,
    /// Up to the first event received then or later: 2026-11-21T11:00Z
    #[arg(long, value_name = "TIME", help_heading = "Window")]
    to_time: Option<String>,
    /// Of this partition alone; --from and --to may then be bare offsets
    #[arg(long, value_name = "N", help_heading = "Window")]
    partition: Option<u32>,
    /// Only this tenant's events; repeat for more
    #[arg(long = "tenant", value_name = "NAME", value_parser = tenant_name, help_heading = "Events")]
    tenants: Vec<String>,
    /// Only events of this type; repeat for more
    #[arg(long = "event-type", value_name = "NAME", value_parser = event_type_name, help_heading = "Events")]
    event_types: Vec<String>,
    /// Only what was recorded as a dead letter
    #[arg(long, help_heading = "Events")]
    dead_letters_only: bool,
    /// Into the shadows of these sinks alone; repeat for more
    #[arg(long = "sink", value_name = "NAME")]
    sinks: Vec<String>,
    /// Into the shadow: required, since there is no replay into live
    #[arg(long)]
    shadow: bool,
    /// Judge by the schemas of this folder instead of the live ones
    #[arg(long, value_name = "DIR", conflicts_with = "as_recorded")]
    schemas: Option<PathBuf>,
    /// Do not judge: verdicts and schema versions as they were recorded
    #[arg(long)]
    as_recorded: bool,
    /// Write the plan to this file and do not run it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["yes", "wait"])]
    plan: Option<PathBuf>,
    #[command(flatten)]
    how: How,
}

/// What the server found out.
#[derive(Debug, Deserialize)]
struct Made {
    plan: Value,
    asked: show::Asked,
    estimate: show::Estimate,
}

/// Does what is asked.
///
/// # Errors
/// [`Fault`]: the window is none, or the server cannot be reached or refuses.
pub async fn run(args: &PlanArgs, context: &Context) -> Result<Verdict, Fault> {
    if !args.shadow {
        let why = "a replay goes into the shadow: add --shadow. There is none into live; \
                   `ingestctl replay promote` puts a shadow that was looked at in its place";
        return Err(Fault::Usage(why.to_owned()));
    }
    let request = args.request()?;
    let admin = context.admin()?;
    let document = ask(&admin, &request).await?;
    let made: Made = admin::shape(&path(), &document)?;
    let plan = Plan::read(made.plan.to_string().as_bytes()).map_err(|e| {
        let mend = "use the ingestctl of the same version as the server";
        Fault::failed(format!("the server's plan: {e}"), mend)
    })?;
    if !context.out.json {
        show::plan(&plan, Some((&made.asked, &made.estimate)), context)?;
    } else if !args.how.yes {
        context.out.document(&flat(&document))?;
    }
    if let Some(file) = &args.plan {
        write(file, &made.plan)?;
        if !context.out.json {
            let file = file.display();
            context
                .out
                .line(&format!("\nwritten to {file}: `ingestctl replay apply {file}` runs it"))?;
        }
        return Ok(Verdict::Done);
    }
    if !args.how.yes && !apply::confirmed(&plan)? {
        return Ok(Verdict::No);
    }
    apply::start(&admin, &plan, &args.how, context).await
}

fn path() -> String {
    format!("{PATH}/plans")
}

/// The plan's members first, then what else was found out.
fn flat(document: &Value) -> Value {
    let mut flat = document.get("plan").cloned().unwrap_or_default();
    if let (Value::Object(flat), Value::Object(all)) = (&mut flat, document) {
        let more = all.iter().filter(|(name, _)| *name != "plan");
        flat.extend(more.map(|(name, value)| (name.clone(), value.clone())));
    }
    flat
}

impl PlanArgs {
    fn request(&self) -> Result<PlanRequest, Fault> {
        let schemas = self.schemas.as_deref().map(candidate).transpose()?;
        let judging = match (&schemas, self.as_recorded) {
            (Some(_), _) => JudgingBy::Candidate,
            (None, true) => JudgingBy::AsRecorded,
            (None, false) => JudgingBy::Today,
        };
        Ok(PlanRequest {
            from: self.from.clone(),
            to: self.to.clone(),
            from_time: self.from_time.clone(),
            to_time: self.to_time.clone(),
            partition: self.partition,
            tenants: self.tenants.clone(),
            event_types: self.event_types.clone(),
            dead_letters_only: self.dead_letters_only,
            sinks: self.sinks.clone(),
            judging,
            schemas: schemas.unwrap_or_default(),
            max_rate: self.how.max_rate,
        })
    }
}

/// The schemas of a folder, checked as `schema check` does.
fn candidate(dir: &Path) -> Result<Vec<CandidateSchema>, Fault> {
    std::fs::read_dir(dir).map_err(|e| Fault::file(dir, &e))?;
    let entries = read_dir(dir).map_err(|faults| {
        let what: Vec<String> = faults.iter().map(SchemaFault::to_string).collect();
        let dir = dir.display();
        Fault::Usage(format!(
            "{dir} is not fit (`ingestctl schema check {dir}`):\n{}",
            what.join("\n")
        ))
    })?;
    let sent = entries.into_iter().map(|entry| CandidateSchema {
        text: entry.schema.canonical().to_owned(),
        tenant: entry.tenant,
        event_type: entry.event_type,
    });
    Ok(sent.collect())
}

/// Has the plan made, and follows how it is.
async fn ask(admin: &Admin, request: &PlanRequest) -> Result<Value, Fault> {
    let body = serde_json::to_value(request)
        .map_err(|e| Fault::failed(format!("cannot ask for a plan: {e}"), ""))?;
    let errors = |document: &Value, name: &str| -> Option<Fault> {
        let errors = document.get(name)?.as_array()?.iter().filter_map(Value::as_str);
        let lines: Vec<String> = errors.map(human::safe).collect();
        Some(Fault::Usage(lines.join("\n")))
    };
    let opened = match admin.try_follow_post(&path(), &body).await? {
        Ok(opened) => opened,
        Err(reply) => {
            let problem: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            let is_refused = problem.get("code").and_then(Value::as_str) == Some("replay_refused");
            let refused = if is_refused { errors(&problem, "errors") } else { None };
            return Err(refused.unwrap_or_else(|| admin.refused(&path(), &reply)));
        }
    };
    let bar = follow::bar(TEMPLATE);
    let mut show = |progress: &Value| {
        let number = |name: &str| progress.get(name).and_then(Value::as_u64).unwrap_or(0);
        bar.set_length(number("events_total"));
        bar.set_position(number("events"));
    };
    let told = ("the plan cannot be made", "try again; look at the server's log");
    let document = follow::read(admin, opened, told, &mut show).await;
    bar.finish_and_clear();
    let document = document?;
    match errors(&document, "refused") {
        Some(refused) => Err(refused),
        None => Ok(document),
    }
}

/// Whole or not at all: a plan that was cut would be refused later, and that is too late.
fn write(file: &Path, plan: &Value) -> Result<(), Fault> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    std::fs::write(&beside, format!("{plan:#}\n")).map_err(|e| Fault::file(&beside, &e))?;
    std::fs::rename(&beside, file).map_err(|e| Fault::file(file, &e))
}
