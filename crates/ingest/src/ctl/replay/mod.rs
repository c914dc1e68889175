//! `ingestctl replay`: a window of the log again, into a shadow; look; promote. One file per part.

mod apply;

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
}

/// Does what is asked.
///
/// # Errors
/// [`Fault`]: as the commands below.
pub async fn run(args: ReplayArgs, context: &Context) -> Result<Verdict, Fault> {
    match args.command {
        ReplayCommand::Apply(args) => apply::run(&args, context).await,
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
