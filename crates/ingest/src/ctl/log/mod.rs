//! `ingestctl log`: damage of the log, for those who must look into it.

mod quarantine;
mod verify;

use clap::{Args, Subcommand};
use serde::Deserialize;

use super::{
    Context,
    fault::{Fault, Verdict},
    human,
};

/// Look for damage in the log, show and acknowledge what is known
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ingestctl log verify                              read the whole log: is every byte as written?
  ingestctl log verify --data-dir /var/lib/tidegate the same while no server runs
  ingestctl log quarantine                          what is known to be damaged")]
pub struct LogArgs {
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    /// Read the log from the disk, every frame, and say what is damaged
    Verify(verify::VerifyArgs),
    /// List, show, save and acknowledge damaged stretches of the log
    Quarantine(quarantine::QuarantineArgs),
}

/// Does what is asked.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached or refuses, or the log cannot be read.
pub async fn run(args: LogArgs, context: &Context) -> Result<Verdict, Fault> {
    match args.command {
        LogCommand::Verify(args) => verify::run(&args, context).await,
        LogCommand::Quarantine(args) => quarantine::run(args, context).await,
    }
}

/// A damaged stretch as the server tells of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stretch {
    partition: u32,
    from: u64,
    to: u64,
    events: u64,
    segment: String,
    position: u64,
    bytes: u64,
    seen_at: String,
    seen_by: String,
    acknowledged: Option<Acknowledged>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Acknowledged {
    at: String,
    by: String,
    reason: String,
}

impl Stretch {
    /// Which offsets, and where their bytes lie.
    pub(super) fn place(&self) -> String {
        let Self { partition, from, to, position, .. } = self;
        let (events, segment) =
            (human::things(self.events, "event", "events"), human::safe(&self.segment));
        let bytes = match self.bytes {
            0 => format!("nothing of it is left, at {position} in {segment}"),
            bytes => format!("{} at {position} in {segment}", human::bytes(bytes)),
        };
        format!("{partition}/{from} to {partition}/{to}: {events}, {bytes}")
    }
}
