//! `ingestctl replay apply`: has the server run precisely one plan, and waits for it if asked to.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::{PATH, show, who};
use crate::{
    ctl::{
        Context,
        admin::{self, Admin},
        fault::{Fault, Verdict},
        follow, human,
        out::{Tone, remark},
    },
    replay::Plan,
};

const TEMPLATE: &str = "[{bar:30}] {human_pos}/{human_len} {wide_msg}";
/// How often it is asked how far the job is.
const ASK_EVERY: Duration = Duration::from_millis(300);
/// A server that is started again takes the job up by itself: so long it may be away.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// Run precisely the plan in a file
#[derive(Debug, Args)]
#[command(after_help = "\
The server holds the plan against the world first: where retention has removed a part of the window,
a schema changed, a sink is another one or dead letters were re-driven since, it refuses and says so.

Exit status 1 if you said no, or (with --wait) if the job failed or was cancelled.

Examples:
  ingestctl replay apply plan.json
  ingestctl replay apply plan.json --yes --wait --max-rate 50000
  ingestctl replay apply plan.json --yes --wait --json | jq -r .state")]
pub struct ApplyArgs {
    /// The plan, as `ingestctl replay … --plan FILE` wrote it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    how: How,
}

/// How a plan is run.
#[derive(Debug, Default, PartialEq, Args)]
pub(super) struct How {
    /// Do not ask
    #[arg(long, short, help_heading = "Running it")]
    pub yes: bool,
    /// Wait until it is done; Ctrl-C leaves it running
    #[arg(long, help_heading = "Running it")]
    pub wait: bool,
    /// No faster than this: events a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Running it")]
    pub max_rate: Option<u64>,
    /// Who does it, for the control log; without it: user and machine
    #[arg(long, value_name = "NAME", help_heading = "Running it")]
    pub by: Option<String>,
}

/// A job, as far as waiting needs it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Job {
    plan_id: String,
    state: String,
    events: u64,
    done_events: u64,
    events_per_second: f64,
    seconds_left: Option<f64>,
    error: Option<String>,
}

impl Job {
    fn is_over(&self) -> bool {
        matches!(self.state.as_str(), "done" | "failed" | "cancelled")
    }

    /// What stands beside the bar.
    fn remark(&self) -> String {
        if self.state != "running" {
            return human::safe(&self.state);
        }
        let left = self.seconds_left.map_or_else(|| "?".to_owned(), human::seconds);
        format!("{:.0} events/s, {left} left", self.events_per_second)
    }
}

/// Does what is asked.
///
/// # Errors
/// [`Fault`]: the file is no plan, or the server cannot be reached or refuses.
pub async fn run(args: &ApplyArgs, context: &Context) -> Result<Verdict, Fault> {
    let text = std::fs::read(&args.file).map_err(|e| Fault::file(&args.file, &e))?;
    let plan = Plan::read(&text)
        .map_err(|e| Fault::failed(format!("{}: {e}", args.file.display()), ""))?;
    if !args.how.yes {
        if !context.out.json {
            show::plan(&plan, None, context)?;
        }
        if !confirmed(&plan)? {
            return Ok(Verdict::No);
        }
    }
    start(&context.admin()?, &plan, &args.how, context).await
}

/// Asks on the terminal.
pub(super) fn confirmed(plan: &Plan) -> Result<bool, Fault> {
    let events = human::things(plan.content.events(), "event", "events");
    if !std::io::stdin().is_terminal() {
        return Err(Fault::Usage(format!(
            "to replay {events} into the shadow add --yes; --plan FILE keeps the plan for `ingestctl replay apply FILE`"
        )));
    }
    let mut stderr = std::io::stderr().lock();
    let asked = write!(stderr, "\nReplay {events} into the shadow? [y/N] ");
    let _ = asked.and_then(|()| stderr.flush());
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|e| Fault::failed(format!("cannot read the answer: {e}"), "use --yes"))?;
    let is_yes = matches!(answer.trim(), "y" | "Y" | "yes");
    if !is_yes {
        remark("nothing was replayed");
    }
    Ok(is_yes)
}

/// Has the server run `plan`.
pub(super) async fn start(
    admin: &Admin,
    plan: &Plan,
    how: &How,
    context: &Context,
) -> Result<Verdict, Fault> {
    let path = format!("{PATH}/jobs");
    let by = who(how.by.as_deref());
    let body = json!({ "plan": plan, "max_rate": how.max_rate, "by": by });
    let mut job: Job = admin::shape(&path, &admin.post(&path, &body).await?)?;
    if how.wait {
        job = wait(admin, job).await?;
    }
    told(&job, how.wait, context)
}

fn told(job: &Job, waited: bool, context: &Context) -> Result<Verdict, Fault> {
    let id = human::safe(&job.plan_id);
    if context.out.json {
        context.out.document(
            &json!({ "plan_id": job.plan_id, "state": job.state, "events": job.events }),
        )?;
    } else {
        let is_bad = matches!(job.state.as_str(), "failed" | "cancelled");
        let state = human::safe(&job.state);
        let state = if is_bad { context.out.paint(Tone::Bad, &state) } else { state };
        let events = human::things(job.events, "event", "events");
        let why = job.error.as_deref().map(|why| format!(": {}", human::safe(why)));
        context.out.line(&format!("replay {id}: {state}, {events}{}", why.unwrap_or_default()))?;
    }
    if !job.is_over() {
        remark(&format!(
            "it runs in the server: `ingestctl replay status {id}` shows how far it is"
        ));
    } else if job.state == "done" && !context.out.json {
        remark(&format!("look at it: `ingestctl replay compare {id}`"));
    }
    Ok(Verdict::when(job.state == "done" || !waited))
}

/// Waits for its end, or for Ctrl-C.
async fn wait(admin: &Admin, mut job: Job) -> Result<Job, Fault> {
    let path = format!("{PATH}/jobs/{}", job.plan_id);
    let bar = follow::bar(TEMPLATE);
    let mut pressed = std::pin::pin!(tokio::signal::ctrl_c());
    let mut answered = Instant::now();
    while !job.is_over() {
        bar.set_length(job.events);
        bar.set_position(job.done_events);
        bar.set_message(job.remark());
        tokio::select! {
            _ = &mut pressed => break,
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
        match admin.get(&path).await {
            Ok(document) => {
                job = admin::shape::<Job>(&path, &document)?;
                answered = Instant::now();
            }
            Err(_) if answered.elapsed() < AWAY_MAX => {
                bar.set_message("the server does not answer")
            }
            Err(fault) => {
                bar.finish_and_clear();
                return Err(fault);
            }
        }
    }
    bar.finish_and_clear();
    Ok(job)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_stands_beside_the_bar_is_rate_and_time_left_or_the_state() {
        let job = |text: Value| Job::deserialize(text).unwrap();
        let running =
            job(json!({"state": "running", "events_per_second": 1234.4, "seconds_left": 75}));
        assert_eq!(running.remark(), "1234 events/s, 1 min 15 s left");
        assert_eq!(job(json!({"state": "paused", "done_events": 5})).remark(), "paused");
        let over =
            ["done", "failed", "cancelled"].map(|state| job(json!({"state": state})).is_over());
        assert_eq!(over, [true; 3]);
        assert!(!job(json!({"state": "paused"})).is_over());
    }
}
