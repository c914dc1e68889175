//! `ingestctl`: one file per command, each with its own `run`.
//!
//! Exit status: 0 done, 1 the answer is no, 2 usage, 3 could not reach or do it.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

pub mod admin;
pub mod audit;
pub mod capacity;
pub mod client;
pub mod completions;
pub mod config;
pub mod dead_letters;
pub mod drain;
mod elsewhere;
pub mod fault;
mod fleet;
mod follow;
pub mod human;
pub mod journal;
pub mod load;
pub mod log;
pub mod mark;
mod minutes;
pub mod offsets;
pub mod out;
pub mod public;
mod public_key;
pub mod reload;
pub mod replay;
pub mod schema;
mod schema_test;
pub mod send;
pub mod sink;
pub mod status;
pub mod table;
pub mod tail;
pub mod tenant;

use admin::Admin;
use client::Target;
use fault::{Fault, Verdict};
use out::Output;

/// Send, watch and audit events on a Tidegate server.
#[derive(Debug, Parser)]
#[command(
    name = "ingestctl",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = EXAMPLES
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Exit status:
  0  done
  1  the answer is no: unhealthy, unbalanced, different, invalid, not kept
  2  the arguments make no sense
  3  could not reach it, or could not do it

Examples:
  ingestctl status                            is it well, and if not, why
  ingestctl send --key tgk_dev events.ndjson  send a file of events, one JSON object a line
  ingestctl tail --tenant acme                watch events as they are accepted
  ingestctl audit                             hold the books against the log and the lake
  ingestctl help COMMAND                      options and examples of one command";

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// The operators' address of the server
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "TIDEGATE_ADMIN_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8081",
        help_heading = "Everywhere"
    )]
    pub admin: String,
    /// The operators' token ([admin] token); better in the variable, which no process list shows
    #[arg(
        long,
        global = true,
        env = "TIDEGATE_ADMIN_TOKEN",
        hide_env_values = true,
        help_heading = "Everywhere"
    )]
    pub token: Option<String>,
    /// Certificates to trust for https (PEM) instead of the machine's
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    pub cacert: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Send a file of events, one JSON object a line, and see that every one is kept
    Send(send::SendArgs),
    /// Tell whether the server is well: stages, offsets, sinks, freshness
    Status(status::StatusArgs),
    /// Watch events as they are accepted
    Tail(tail::TailArgs),
    /// Show which offsets each log partition holds
    Offsets(offsets::OffsetsArgs),
    /// List, show and re-drive events that were kept but are not valid
    DeadLetters(dead_letters::DeadLettersArgs),
    /// Add, list, re-key, disable and enable tenants
    Tenant(tenant::TenantArgs),
    /// Check schemas, try events on them, list the server's
    Schema(schema::SchemaArgs),
    /// Look for damage in the log, show and acknowledge what is known
    Log(log::LogArgs),
    /// Hold a sink's destination against the log, and write what it lost
    Sink(sink::SinkArgs),
    /// Hold the books against the log and the lake, and a client's journal against the log
    Audit(audit::AuditArgs),
    /// Read a window of the log again, into a shadow; look; promote
    Replay(replay::ReplayArgs),
    /// Give where the log ends now a name, for replays
    Mark(mark::MarkArgs),
    /// Check a configuration file
    Config(config::ConfigArgs),
    /// Have the server read its configuration again: whole or not at all
    Reload(reload::ReloadArgs),
    /// Have the server stop accepting, finish, flush and exit
    Drain(drain::DrainArgs),
    /// Reckon what a rate needs: cores, disks, partitions, inserts, files
    Capacity(capacity::CapacityArgs),
    /// Put load on a server and measure what it does
    Load(load::LoadArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
}

/// What every command gets.
#[derive(Debug)]
pub struct Context {
    common: Common,
    /// Where results go.
    pub out: Output,
}

impl Context {
    /// From the options.
    #[must_use]
    pub fn new(common: Common) -> Self {
        let out = Output::new(common.json);
        Self { common, out }
    }

    /// The admin address.
    ///
    /// # Errors
    /// As [`Target::new`].
    pub fn admin(&self) -> Result<Admin, Fault> {
        let target = Target::new(&self.common.admin, self.common.cacert.as_deref(), false)?;
        Ok(Admin::new(target, self.common.token.clone()))
    }

    /// Another server's admin address, with the same token.
    ///
    /// # Errors
    /// As [`Target::new`].
    pub fn admin_at(&self, url: &str) -> Result<Admin, Fault> {
        let target = Target::new(url, self.common.cacert.as_deref(), false)?;
        Ok(Admin::new(target, self.common.token.clone()))
    }

    /// A public address.
    ///
    /// # Errors
    /// As [`Target::new`].
    pub fn public(&self, url: &str, http2: bool) -> Result<Target, Fault> {
        Target::new(url, self.common.cacert.as_deref(), http2)
    }
}

/// Carries a command out and turns what became of it into the exit status.
#[must_use]
pub fn main(cli: Cli) -> ExitCode {
    let context = Context::new(cli.common);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(cli.command, &context)),
        Err(e) => Err(Fault::failed(format!("cannot start: {e}"), "")),
    };
    match result {
        Ok(verdict) => ExitCode::from(verdict.status()),
        Err(fault) => {
            if fault != Fault::ReaderGone {
                out::remark(&format!("ingestctl: {fault}"));
            }
            ExitCode::from(fault.status())
        }
    }
}

async fn run(command: Command, context: &Context) -> Result<Verdict, Fault> {
    match command {
        Command::Send(args) => send::run(args, context).await,
        Command::Status(args) => status::run(&args, context).await,
        Command::Tail(args) => tail::run(&args, context).await,
        Command::Offsets(args) => offsets::run(&args, context).await,
        Command::DeadLetters(args) => dead_letters::run(args, context).await,
        Command::Tenant(args) => tenant::run(args, context).await,
        Command::Schema(args) => schema::run(args, context).await,
        Command::Log(args) => log::run(args, context).await,
        Command::Sink(args) => sink::run(args, context).await,
        Command::Capacity(args) => capacity::run(&args, context),
        Command::Audit(args) => audit::run(&args, context).await,
        Command::Mark(args) => mark::run(&args, context).await,
        Command::Replay(args) => replay::run(args, context).await,
        Command::Config(args) => config::run(&args, context),
        Command::Reload(args) => reload::run(&args, context).await,
        Command::Drain(args) => drain::run(&args, context).await,
        Command::Load(args) => load::run(args, context).await,
        Command::Completions(args) => completions::run(&args),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn options_of_every_command_stand_before_or_after_it() {
        let before = parse("ingestctl --json --admin http://h:1 offsets").unwrap();
        let after = parse("ingestctl offsets --admin http://h:1 --json").unwrap();
        for cli in [before, after] {
            assert!(cli.common.json);
            assert_eq!(cli.common.admin, "http://h:1");
        }
    }

    #[test]
    fn lines_that_make_no_sense_are_usage_faults() {
        for line in [
            "ingestctl",
            "ingestctl frobnicate",
            "ingestctl send",
            "ingestctl send --batch-events 0 f",
            "ingestctl send --compression lz4 f",
            "ingestctl load --rate 5 --connections x",
            "ingestctl load --duration 5s --protocol none",
            "ingestctl dead-letters show nowhere",
            "ingestctl tenant add",
            "ingestctl tenant add UPPER",
            "ingestctl completions tcsh",
            "ingestctl tail --event-type ..",
            "ingestctl schema check",
            "ingestctl schema check d --against e --against-server",
            "ingestctl schema test d",
            "ingestctl log",
            "ingestctl log verify --data-dir d --bytes-per-second 1MiB",
            "ingestctl log verify --from 5 --to x",
            "ingestctl log quarantine acknowledge 0/1",
            "ingestctl log quarantine acknowledge 0/1 --all --reason r",
            "ingestctl log quarantine save 0/1",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn lines_that_make_sense_are_taken() {
        for line in [
            "ingestctl send -",
            "ingestctl send --event-type page_view --compression zstd f",
            "ingestctl status --watch",
            "ingestctl tail --tenant acme --event-type page_view --limit 3",
            "ingestctl dead-letters list --code type_mismatch --limit 5",
            "ingestctl dead-letters show 0/17",
            "ingestctl dead-letters redrive --tenant acme --dry-run",
            "ingestctl tenant add acme --events-per-second 10",
            "ingestctl tenant rotate acme --expire-old-after 1d",
            "ingestctl audit --journal f",
            "ingestctl config check f",
            "ingestctl schema check d --against e",
            "ingestctl schema test d - --rows",
            "ingestctl schema list",
            "ingestctl reload",
            "ingestctl drain",
            "ingestctl load --rate 1000 --duration 3s --key a --key b",
            "ingestctl completions fish",
            "ingestctl log verify --from 5 --bytes-per-second 10MiB",
            "ingestctl log verify --data-dir d",
            "ingestctl log quarantine",
            "ingestctl log quarantine list --open",
            "ingestctl log quarantine show 42",
            "ingestctl log quarantine save 0/42 f",
            "ingestctl log quarantine acknowledge 0/42 0/50 --reason r --by me",
            "ingestctl log quarantine acknowledge --all --reason r",
        ] {
            parse(line).unwrap();
        }
    }
}
