//! `ingestctl load --scenario`: the test bench. Each scenario starts a server of its own, puts it under
//! a load, and asserts what comes of it (docs/overload.md).
//!
//! | file | purpose |
//! | --- | --- |
//! | `server` | the scenario's `ingestd` and its folder |
//! | `pin` | which CPU is whose |
//! | `party` | tenants that send at once, over the engine of plain `load` |
//! | `raw` | connections that do not speak HTTP to its end |
//! | `bodies` | what parties send |
//! | `noisy` | a tenant at 100 times its quota, in seven ways, and slow sockets |
//! | `backlog` | a slow sink, a dead one, a full disk |
//! | `capacity` | how much the machine takes, and how soon it is well again after ten times that |
//! | `after` | what every scenario ends with: books, memory, a clean stop |
//! | `report` | what is printed, and whether it holds |

use std::{future::Future, path::PathBuf, pin::Pin, time::Duration};

use clap::Args;
use indicatif::ProgressBar;
use tokio::signal::unix::{SignalKind, signal};

use super::LoadArgs;
use crate::ctl::{
    Context,
    fault::{Fault, Verdict},
    out,
    table::Table,
};

mod after;
mod backlog;
mod bodies;
mod capacity;
mod noisy;
mod party;
mod pin;
mod raw;
mod report;
mod server;

use pin::Pins;
use report::Report;

/// How long an attack lasts where nothing else is asked for.
const ATTACK: Duration = Duration::from_secs(20);

/// Options of the test bench.
#[derive(Debug, Args)]
#[command(next_help_heading = "Test bench")]
pub struct ScenarioArgs {
    /// Start a server, put it under this load, assert what comes of it; "list" tells of each
    #[arg(
        long = "scenario",
        value_name = "NAME",
        conflicts_with_all = ["rate", "connections", "events", "batch", "event_types", "event_type",
            "protocol", "compression", "unit_field", "ids", "journal", "retry", "threads", "http2"]
    )]
    pub name: Option<String>,
    /// The server's program; the one beside this program if not given
    #[arg(long, value_name = "PATH", requires = "name")]
    ingestd: Option<PathBuf>,
    /// Where the server's folder is made; where the system has its temporary files if not given
    #[arg(long, value_name = "DIR", requires = "name")]
    data_dir: Option<PathBuf>,
    /// Leave both on all CPUs; else the server has the first, and the load the second
    #[arg(long, requires = "name")]
    no_pin: bool,
    /// Events in each request of those that are not the attacker
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    victim_batch: u32,
}

type Running<'a> = Pin<Box<dyn Future<Output = Result<Report, Fault>> + 'a>>;

/// One scenario. A new one: a row.
struct Scenario {
    name: &'static str,
    about: &'static str,
    run: for<'a> fn(&'a Bench<'a>) -> Running<'a>,
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "noisy-requests",
        about: "a tenant sends 100 times its events, in requests as others send them",
        run: |bench| Box::pin(noisy::requests(bench)),
    },
    Scenario {
        name: "noisy-bytes",
        about: "a tenant sends 100 times its bytes, in large bodies",
        run: |bench| Box::pin(noisy::bytes(bench)),
    },
    Scenario {
        name: "noisy-tiny",
        about: "a tenant sends 100 times its events, one a request",
        run: |bench| Box::pin(noisy::tiny(bench)),
    },
    Scenario {
        name: "noisy-connections",
        about: "a tenant sends 100 times its events over 4,000 connections that come and go",
        run: |bench| Box::pin(noisy::connections(bench)),
    },
    Scenario {
        name: "noisy-slow-bodies",
        about: "a tenant keeps 1,000 bodies open, of which a byte comes every 100 ms",
        run: |bench| Box::pin(noisy::slow_bodies(bench)),
    },
    Scenario {
        name: "noisy-types",
        about: "a tenant sends 100 times its events, each of a type of its own",
        run: |bench| Box::pin(noisy::types(bench)),
    },
    Scenario {
        name: "noisy-bombs",
        about: "a tenant sends 100 times its bytes, and they inflate 90 times and more",
        run: |bench| Box::pin(noisy::bombs(bench)),
    },
    Scenario {
        name: "slow-sockets",
        about: "5,000 sockets send half a head, drip a body or never read, beside honest load",
        run: |bench| Box::pin(noisy::slow_sockets(bench)),
    },
    Scenario {
        name: "slow-sink",
        about: "three times as much comes in as the sink takes",
        run: |bench| Box::pin(backlog::slow_sink(bench)),
    },
    Scenario {
        name: "dead-sink",
        about: "one of two sinks, a lake, cannot be written for a while, then is mended",
        run: |bench| Box::pin(backlog::dead_sink(bench)),
    },
    Scenario {
        name: "disk-full",
        about: "the log's disk of 192 MiB fills up, then there is room again (needs root)",
        run: |bench| Box::pin(backlog::disk_full(bench)),
    },
    Scenario {
        name: "recovery",
        about: "60 s at ten times the capacity, then half of it",
        run: |bench| Box::pin(capacity::recovery(bench)),
    },
    Scenario {
        name: "capacity",
        about: "how many events a second it takes, as fast as answers come",
        run: |bench| Box::pin(capacity::alone(bench)),
    },
];

/// What every scenario gets.
struct Bench<'a> {
    args: &'a LoadArgs,
    scenario: &'static str,
    ingestd: PathBuf,
    ctl: PathBuf,
    data_dir: Option<PathBuf>,
    pins: Pins,
    bar: ProgressBar,
}

impl Bench<'_> {
    /// How long the attack lasts.
    fn attack(&self) -> Duration {
        self.attack_or(ATTACK)
    }

    /// The same where the scenario has a length of its own.
    fn attack_or(&self, default: Duration) -> Duration {
        self.args.duration.map_or(default, |span| span.0).max(Duration::from_secs(1))
    }

    /// Events in each request of those that are not the attacker.
    fn victim_batch(&self) -> usize {
        usize::try_from(self.args.scenario.victim_batch).unwrap_or(usize::MAX)
    }

    /// Tells a terminal what is being done.
    fn say(&self, text: impl Into<String>) {
        self.bar.set_message(format!("{}: {}", self.scenario, text.into()));
    }

    /// A report with what every one tells.
    fn report(&self) -> Report {
        let mut report = Report::new(self.scenario);
        report.fact("pinned", self.pins.shown(), self.pins.shown().into());
        report
    }
}

/// Runs the scenario of this name, and prints its report.
///
/// # Errors
/// [`Fault::Usage`] for a name that is none, [`Fault::Failed`] where it could not be run.
pub async fn run(name: &str, args: &LoadArgs, context: &Context) -> Result<Verdict, Fault> {
    if matches!(name, "list" | "help") {
        return list(context);
    }
    let known = SCENARIOS.iter().find(|scenario| scenario.name == name);
    let scenario = known.ok_or_else(|| {
        let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        Fault::Usage(format!("there is no scenario {name:?}; there are: {}", names.join(", ")))
    })?;
    let ctl = std::env::current_exe()
        .map_err(|e| Fault::failed(format!("cannot tell where this program lies: {e}"), ""))?;
    let ingestd = args.scenario.ingestd.clone().unwrap_or_else(|| ctl.with_file_name("ingestd"));
    let bench = Bench {
        args,
        scenario: scenario.name,
        ingestd,
        ctl,
        data_dir: args.scenario.data_dir.clone(),
        pins: Pins::set(!args.scenario.no_pin)?,
        bar: bar(),
    };
    raise_file_limit()?;
    let fault = |e| Fault::failed(format!("cannot listen for signals: {e}"), "");
    let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
    let report = tokio::select! {
        report = (scenario.run)(&bench) => report,
        // What the scenario holds is dropped: load ends, its server is stopped, its folder removed.
        pressed = tokio::signal::ctrl_c() => {
            pressed.map_err(fault)?;
            Err(Fault::failed("broken off", ""))
        }
        _ = terminate.recv() => Err(Fault::failed("broken off", "")),
    };
    bench.bar.finish_and_clear();
    report?.show(context)
}

/// As many open files as the system lets us have, for thousands of connections: the server inherits it.
fn raise_file_limit() -> Result<(), Fault> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .map_err(|e| Fault::failed(format!("cannot raise the limit of open files: {e}"), ""))
}

fn bar() -> ProgressBar {
    if !out::progress_is_wanted() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

fn list(context: &Context) -> Result<Verdict, Fault> {
    if context.out.json {
        let rows = SCENARIOS.iter().map(|s| serde_json::json!({"name": s.name, "about": s.about}));
        context.out.document(&rows.collect::<Vec<_>>())?;
        return Ok(Verdict::Done);
    }
    let mut table = Table::new(&["SCENARIO", "WHAT HAPPENS"]);
    for scenario in SCENARIOS {
        table.row(vec![scenario.name.to_owned(), scenario.about.to_owned()]);
    }
    context.out.table(&table)?;
    Ok(Verdict::Done)
}
