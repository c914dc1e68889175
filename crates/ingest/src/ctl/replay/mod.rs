//! `ingestctl replay`: a window of the log again, into a shadow; look; promote. One file per part.

mod apply;
mod jobs;
mod promote;

use clap::{Args, Subcommand};

use super::{
    Context,
    fault::{Fault, Verdict},
};

/// Where the server answers.
const PATH: &str = "/api/v1/replay";

/// Read a window of the log again, into a shadow; look; promote
#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(subcommand)]
    command: ReplayCommand,
}

#[derive(Debug, Subcommand)]
enum ReplayCommand {
    /// Run precisely the plan in a file
    Apply(apply::ApplyArgs),
    /// List the server's replays, the newest first
    List,
    /// Show one replay: how far it is, and what its shadows hold
    Status(jobs::JobArgs),
    /// Have it stand still
    Pause(jobs::ChangeArgs),
    /// Have it go on, also after it failed
    Resume(jobs::ChangeArgs),
    /// End it for good; its shadow stays until it is removed
    Cancel(jobs::ChangeArgs),
    /// Remove its shadow and all that is kept of it
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
    match args.command {
        ReplayCommand::Apply(args) => apply::run(&args, context).await,
        ReplayCommand::Promote(args) => promote::promote(&args, context).await,
        ReplayCommand::Revert(args) => promote::revert(&args, context).await,
        ReplayCommand::List => jobs::list(context).await,
        ReplayCommand::Status(args) => jobs::status(&args, context).await,
        ReplayCommand::Pause(args) => jobs::change("pause", &args, context).await,
        ReplayCommand::Resume(args) => jobs::change("resume", &args, context).await,
        ReplayCommand::Cancel(args) => jobs::change("cancel", &args, context).await,
        ReplayCommand::Rm(args) => jobs::change("remove", &args, context).await,
    }
}

/// Who does it, for the control log: `--by`, or user and machine.
fn who(by: Option<&str>) -> Result<String, Fault> {
    if let Some(by) = by {
        return Ok(by.to_owned());
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let user = variable("USER").or_else(|| variable("LOGNAME"));
    let user = user.ok_or_else(|| Fault::Usage("say who does it: --by NAME".to_owned()))?;
    let host = variable("HOSTNAME").or_else(host).unwrap_or_default();
    Ok(match host.trim() {
        "" => user,
        host => format!("{user}@{host}"),
    })
}
