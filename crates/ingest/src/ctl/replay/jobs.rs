//! `ingestctl replay list|status|pause|resume|cancel|rm`: the jobs of a server.

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{PATH, who};
use crate::ctl::{
    Context, admin,
    fault::{Fault, Verdict},
    human,
    out::Tone,
    table::Table,
};

/// Which job.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// The plan's id, as `ingestctl replay list` shows it
    #[arg(value_name = "PLAN_ID")]
    id: String,
}

/// Which job, and who does it.
#[derive(Debug, Args)]
pub struct ChangeArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Who does it, for the control log; without it: user and machine
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// A job as the server shows it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Job {
    pub plan_id: String,
    pub state: String,
    pub events: u64,
    pub done_events: u64,
    pub events_per_second: f64,
    pub seconds_left: Option<f64>,
    #[serde(default)]
    pub trouble: Option<String>,
    duty: f64,
    by: String,
    applied_at: String,
    since: String,
    max_rate: Option<u64>,
    pub error: Option<String>,
    sinks: Vec<Shadow>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Shadow {
    sink: String,
    shadow: String,
    events: u64,
    stored: u64,
    quarantined: u64,
}

/// All jobs, the newest first.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached.
pub async fn list(context: &Context) -> Result<Verdict, Fault> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Listed {
        jobs: Vec<Job>,
    }
    let path = format!("{PATH}/jobs");
    let document = context.admin()?.get(&path).await?;
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let listed: Listed = admin::shape(&path, &document)?;
    if listed.jobs.is_empty() {
        context.out.line("there are no replays")?;
        return Ok(Verdict::Done);
    }
    let mut table = Table::new(&["PLAN", "STATE", ">EVENTS", ">DONE", "BY", "APPLIED"]);
    for job in &listed.jobs {
        table.row(vec![
            human::safe(&job.plan_id),
            human::safe(&job.state),
            human::count(job.events),
            percent(job),
            human::safe(&job.by),
            human::safe(&job.applied_at),
        ]);
    }
    context.out.table(&table)?;
    Ok(Verdict::Done)
}

fn percent(job: &Job) -> String {
    match job.events {
        0 => "100 %".to_owned(),
        // Not done is never 100 %.
        events => format!("{} %", job.done_events.saturating_mul(100) / events),
    }
}

/// One job; the exit status is 1 where it failed.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached or knows no such job.
pub async fn status(args: &JobArgs, context: &Context) -> Result<Verdict, Fault> {
    let path = job_path(&args.id);
    let document = context.admin()?.get(&path).await?;
    show(context, &path, &document)
}

/// Pauses, resumes, cancels or removes a job.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached or refuses.
pub async fn change(what: &str, args: &ChangeArgs, context: &Context) -> Result<Verdict, Fault> {
    let path = format!("{}/{what}", job_path(&args.job.id));
    let body = json!({ "by": who(args.by.as_deref()) });
    let document = context.admin()?.post(&path, &body).await?;
    if what == "remove" && !context.out.json {
        context
            .out
            .line(&format!("replay {} and its shadow were removed", human::safe(&args.job.id)))?;
        return Ok(Verdict::Done);
    }
    show(context, &path, &document)
}

pub(super) fn job_path(id: &str) -> String {
    let id: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
    format!("{PATH}/jobs/{id}")
}

fn show(context: &Context, path: &str, document: &Value) -> Result<Verdict, Fault> {
    let job: Job = admin::shape(path, document)?;
    if context.out.json {
        context.out.document(document)?;
    } else {
        lines(context, &job)?;
    }
    Ok(Verdict::when(job.state != "failed"))
}

fn lines(context: &Context, job: &Job) -> Result<(), Fault> {
    let tone = match job.state.as_str() {
        "done" => Tone::Good,
        "failed" => Tone::Bad,
        _ => Tone::Strong,
    };
    let state = context.out.paint(tone, &human::safe(&job.state));
    context.out.line(&format!(
        "replay {}: {state} since {}",
        job.plan_id,
        human::safe(&job.since)
    ))?;
    context.out.line(&format!(
        "applied by {} at {}",
        human::safe(&job.by),
        human::safe(&job.applied_at)
    ))?;
    let (done, events) = (human::count(job.done_events), human::count(job.events));
    context.out.line(&format!("{done} of {events} events ({})", percent(job)))?;
    if job.state == "running" {
        let left = job.seconds_left.map_or_else(|| "?".to_owned(), human::seconds);
        let rate = human::count(job.events_per_second as u64);
        let most = job.max_rate.map_or_else(String::new, |most| {
            format!(", at most {} by --max-rate", human::count(most))
        });
        context.out.line(&format!("{rate} events/s{most}, {left} left"))?;
        if job.duty < 1.0 {
            let duty = (job.duty * 100.0) as u64;
            context
                .out
                .line(&format!("it works {duty} % of the time: live traffic comes first"))?;
        }
    }
    if let Some(trouble) = &job.trouble {
        context
            .out
            .line(&context.out.paint(Tone::Bad, &human::safe(&format!("it waits: {trouble}"))))?;
    }
    if let Some(error) = &job.error {
        context.out.line(&context.out.paint(Tone::Bad, &human::safe(error)))?;
    }
    let mut table = Table::new(&["SINK", ">EVENTS", ">STORED", ">SET ASIDE", "SHADOW"]);
    for shadow in &job.sinks {
        table.row(vec![
            human::safe(&shadow.sink),
            human::count(shadow.events),
            human::count(shadow.stored),
            human::count(shadow.quarantined),
            human::safe(&shadow.shadow),
        ]);
    }
    context.out.table(&table)
}
