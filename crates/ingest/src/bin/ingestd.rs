//! `ingestd`: the server.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::Parser;
use rustix::process::DumpableBehavior;
use tidegate_ingest::{
    config::Role,
    pipeline::{self, Options},
};
use tracing_subscriber::EnvFilter;

/// Takes events in over HTTP, makes them durable before it says yes, and delivers each exactly once.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Examples:
  ingestd --dev                        try it: tenant `dev`, key `tgk_dev`, ./tidegate-data
  ingestd --config /etc/tidegate.toml  the real thing
  ingestd --role edge --config f.toml  one role of several processes: edge, normalizer, writer
  TIDEGATE_LOG__DIR=/data ingestd --config tidegate.toml
                                       any value by environment

Signals: SIGTERM drains and exits 0; SIGHUP reads schemas, tenants and certificate again."
)]
struct Arguments {
    /// Run without a configuration: loopback, tenant `dev`, key `tgk_dev`, lake in the data folder
    #[arg(long)]
    dev: bool,
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE", required_unless_present = "dev")]
    config: Option<PathBuf>,
    /// Where log, cursors and books are kept [default: ./tidegate-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The public address [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// The operators' address [default: 127.0.0.1:8081]
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// Which stages this process is: all, or one role of several processes [default: all]
    #[arg(long, value_name = "ROLE", value_parser = role, conflicts_with = "dev")]
    role: Option<Role>,
    /// Where a normalizer or a writer listens for the role before [default: 127.0.0.1:8082]
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "dev")]
    hop: Option<String>,
    /// How log lines look: text on a terminal, JSON otherwise
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"])]
    log_format: Option<String>,
}

fn role(text: &str) -> Result<Role, String> {
    let named = Role::ALL.iter().find(|role| role.as_str() == text);
    named.copied().ok_or_else(|| "one of all, edge, normalizer, writer".to_owned())
}

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = log_filter(std::env::var("TIDEGATE_LOG_LEVEL").ok().as_deref());
    let terminal = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal && std::env::var_os("NO_COLOR").is_none());
    match arguments.log_format.as_deref() {
        Some("json") => lines.json().init(),
        None if !terminal => lines.json().init(),
        _ => lines.with_target(false).init(),
    }
    if cfg!(feature = "faults") {
        tracing::warn!("a build for tests, which may end at any point: not for production");
    }
    // No core file and no other program of this user may show keys and events that are in memory.
    if !arguments.dev
        && let Err(error) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
    {
        tracing::warn!(%error, "core files cannot be switched off");
    }
    let options = Options {
        dev: arguments.dev,
        config: arguments.config,
        data_dir: arguments.data_dir,
        listen: arguments.listen,
        admin: arguments.admin,
        role: arguments.role,
        hop: arguments.hop,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::from(3);
        }
    };
    match runtime.block_on(pipeline::run(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(3)
        }
    }
}

/// `TIDEGATE_LOG_LEVEL`, "info" if it is absent or no filter. A store's client tells of each retry at
/// "info"; the sink says itself what an operator must know of them.
fn log_filter(wanted: Option<&str>) -> EnvFilter {
    let quiet = |level: &str| EnvFilter::try_new(format!("object_store=warn,{level}"));
    let wanted = wanted.and_then(|wanted| quiet(wanted).ok());
    wanted.unwrap_or_else(|| quiet("info").unwrap_or_else(|_| "info".into()))
}
