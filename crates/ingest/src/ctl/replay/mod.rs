//! `ingestctl replay`: a window of the log again, into a shadow; look; promote. One file per part.

mod apply;
mod compare;
mod jobs;
mod plan;
mod promote;
mod show;

use clap::{Args, Subcommand};

use super::{
    Context,
    fault::{Fault, Verdict},
};

/// Where the server answers.
const PATH: &str = "/api/v1/replay";

/// Read a window of the log again, into a shadow; look; promote
#[derive(Debug, Args)]
#[command(after_help = "\
A window is half-open: [from, to). Its ends are partition:offset (several: 0:1234,1:987), a bare
offset where there is one partition or --partition, earliest, latest, deploy:TAG (see `ingestctl help
mark`), or times with their zone. Nothing is guessed: what is ambiguous is refused with what would be
right (docs/replay.md).

Without --yes it shows the plan and asks. The job runs in the server, also once you have gone.

Exit status 1 if you said no, or (with --wait) if the job failed or was cancelled.

Examples:
  ingestctl replay --from deploy:v4 --to latest --shadow
  ingestctl replay --from-time 2026-11-21T10:00Z --to-time 2026-11-21T12:00Z --tenant acme --shadow
  ingestctl replay --from 0:1234,1:987 --to 0:5000,1:4100 --schemas fixed/ --shadow --plan plan.json
  ingestctl replay apply plan.json --yes --wait
  ingestctl replay --from earliest --to latest --dead-letters-only --shadow --yes --wait")]
pub struct ReplayArgs {
    #[command(flatten)]
    plan: plan::PlanArgs,
    #[command(subcommand)]
    command: Option<ReplayCommand>,
}

#[derive(Debug, Subcommand)]
enum ReplayCommand {
    /// Run precisely the plan in a file
    Apply(apply::ApplyArgs),
    /// Hold a replay's shadow against live: what would change?
    Compare(compare::CompareArgs),
    /// List the server's replays, the newest first
    #[command(after_help = "\
Examples:
  ingestctl replay list
  ingestctl replay list --json | jq -r '.jobs[] | [.plan_id, .state] | @tsv'")]
    List,
    /// Show one replay: how far it is, and what its shadows hold
    #[command(after_help = "\
Examples:
  ingestctl replay status a07c3e1f9b2d4c55")]
    Status(jobs::JobArgs),
    /// Have it stand still
    #[command(after_help = "\
Examples:
  ingestctl replay pause a07c3e1f9b2d4c55")]
    Pause(jobs::ChangeArgs),
    /// Have it go on, also after it failed
    #[command(after_help = "\
Examples:
  ingestctl replay resume a07c3e1f9b2d4c55")]
    Resume(jobs::ChangeArgs),
    /// End it for good; its shadow stays until it is removed
    #[command(after_help = "\
Examples:
  ingestctl replay cancel a07c3e1f9b2d4c55")]
    Cancel(jobs::ChangeArgs),
    /// Remove its shadow and all that is kept of it
    #[command(after_help = "\
Examples:
  ingestctl replay rm a07c3e1f9b2d4c55")]
    Rm(jobs::ChangeArgs),
    /// Put a shadow's rows in the place of live's
    Promote(promote::PromoteArgs),
    /// Put back what was before a promotion
    Revert(promote::RevertArgs),
}

/// Does what is asked.
///
/// # Errors
/// [`Fault`]: as the commands below.
pub async fn run(args: ReplayArgs, context: &Context) -> Result<Verdict, Fault> {
    if args.command.is_some() && args.plan != plan::PlanArgs::default() {
        let why =
            "a window and a command are two things: write the command first, its options behind it";
        return Err(Fault::Usage(why.to_owned()));
    }
    match args.command {
        None => plan::run(&args.plan, context).await,
        Some(ReplayCommand::Apply(args)) => apply::run(&args, context).await,
        Some(ReplayCommand::Compare(args)) => compare::run(&args, context).await,
        Some(ReplayCommand::List) => jobs::list(context).await,
        Some(ReplayCommand::Status(args)) => jobs::status(&args, context).await,
        Some(ReplayCommand::Pause(args)) => jobs::change("pause", &args, context).await,
        Some(ReplayCommand::Resume(args)) => jobs::change("resume", &args, context).await,
        Some(ReplayCommand::Cancel(args)) => jobs::change("cancel", &args, context).await,
        Some(ReplayCommand::Rm(args)) => jobs::change("remove", &args, context).await,
        Some(ReplayCommand::Promote(args)) => promote::promote(&args, context).await,
        Some(ReplayCommand::Revert(args)) => promote::revert(&args, context).await,
    }
}

/// Who does it, for the control log: `--by`, or user and machine.
pub(super) fn who(by: Option<&str>) -> String {
    if let Some(by) = by {
        return by.to_owned();
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let user = variable("USER").or_else(|| variable("LOGNAME"));
    let user = user.unwrap_or_else(|| format!("uid-{}", rustix::process::getuid().as_raw()));
    let host = variable("HOSTNAME").or_else(host).unwrap_or_default();
    match host.trim() {
        "" => user,
        host => format!("{user}@{host}"),
    }
}
