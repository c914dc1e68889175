//! Builds the stages and what lies between them: read this first.
//!
//! Start: log (lock, recovery) → schemas → tenants → books → writers → sinks → edge → admin.
//! Stop: edge (no new requests, the ones under way are answered) → writers (queue, last sync) →
//! sinks (flush what is in the log) → books.

mod division;
mod load;
mod log;
pub mod redrive;
mod roles;
mod run;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use serde::Serialize;
use tokio::sync::watch;

pub use division::Division;
pub use run::{Options, StartError, run};

use crate::{
    admin,
    books::{Books, Gaps, Standing, UnloggedLedger},
    budget::Budget,
    clock::Clock,
    config::{self, Config, Role},
    control::Control,
    faults::{Bug, planted},
    log::LogHandle,
    metrics,
    normalize::Normalizer,
    quota::Quotas,
    replay::{jobs::Jobs, promote::Promoter},
    sink::{Sinks, source::LogSource},
    tenants::Tenants,
    writer::LogWriter,
};

/// Everything that runs, for the admin side to look at and act on.
pub struct Pipeline {
    /// As it was started with.
    pub config: Config,
    /// Where that came from; absent in `--dev`.
    pub config_path: Option<PathBuf>,
    /// What operators must present, if anything.
    pub admin_token: Option<String>,
    /// The log's id, 8 characters.
    pub log_id: String,
    /// What was done at start to what an earlier run left behind.
    pub recovery: Vec<String>,
    /// One per partition.
    pub logs: Vec<Arc<dyn LogSource>>,
    /// The same, of an embedded log: empty where the log is another's.
    pub embedded: Vec<LogHandle>,
    /// The way into the log.
    pub writers: Arc<dyn LogWriter>,
    /// The sinks.
    pub sinks: Arc<Sinks>,
    /// Who may send.
    pub tenants: Arc<Tenants>,
    /// Verdicts.
    pub normalizer: Arc<Normalizer>,
    /// What came in and what became of it.
    pub books: Arc<Books>,
    /// What each tenant may send.
    pub quotas: Arc<Quotas>,
    /// What operators did.
    pub control: Arc<Control>,
    /// Replays.
    pub jobs: Arc<Jobs>,
    /// Promotes and reverts them.
    pub promoter: Arc<Promoter>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The memory that requests share.
    pub budget: Arc<Budget>,
    /// What else `budget.bytes` is for.
    pub division: Division,
    /// Where the sinks' futures are run.
    pub runtime: tokio::runtime::Handle,
    /// When it started.
    pub started: Instant,
    /// One re-drive at a time.
    pub redrives: tokio::sync::Mutex<()>,
    /// The public side, or the listener for the role before.
    serving: roles::ServingHandle,
    /// The role behind this one, where that is another process.
    next: Option<roles::Next>,
    /// Locked until the end, where there is no log that is.
    _folder: Option<roles::RoleFolder>,
    unlogged: Mutex<UnloggedLedger>,
    generation: AtomicU64,
    draining: watch::Sender<bool>,
}

/// The fill of one bound.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// Which stage.
    pub name: &'static str,
    /// How many event bytes it may hold.
    pub bound_bytes: u64,
    /// How many it holds.
    pub held_bytes: u64,
    /// How fast what is behind it takes them, bytes a second; 0 while nothing flows.
    pub drain_bytes_per_second: u64,
    /// `bound_bytes` follows the drain rate, never below this,
    pub floor_bytes: u64,
    /// and never above this.
    pub ceiling_bytes: u64,
    /// How long what it holds takes at that rate; absent while nothing flows.
    pub delay_seconds: Option<f64>,
}

impl Stage {
    fn new(name: &'static str, bounds: (u64, u64, u64), held: u64, drain: u64) -> Self {
        let (floor_bytes, bound_bytes, ceiling_bytes) = bounds;
        let delay_seconds = (drain != 0).then(|| held as f64 / drain as f64);
        Self {
            name,
            bound_bytes,
            held_bytes: held,
            drain_bytes_per_second: drain,
            floor_bytes,
            ceiling_bytes,
            delay_seconds,
        }
    }
}

/// What a reload changed.
#[derive(Clone, Debug, Serialize)]
pub struct Reloaded {
    /// Counted up by every reload that succeeded; the start is 1.
    pub generation: u64,
    /// What is live now in a new version.
    pub changed: Vec<String>,
    /// Sections of the file that differ but are read at start only.
    pub needs_restart: Vec<String>,
}

impl Pipeline {
    /// Every partition as its sinks read it: where it is this process', without what came twice.
    #[must_use]
    pub fn as_read(&self) -> Vec<Arc<dyn LogSource>> {
        self.logs.iter().map(|log| self.writers.as_read(log)).collect()
    }

    /// Why it would not take an event now; empty when it would.
    #[must_use]
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if *self.draining.borrow() {
            reasons.push("draining: shutting down".to_owned());
        }
        if self.budget.is_full() {
            reasons.push("edge_full: no memory left for bodies (budget.bytes)".to_owned());
        }
        reasons.extend(self.next.iter().flat_map(roles::Next::not_ready));
        reasons.extend(self.writers.not_ready());
        reasons.extend(self.sinks.blocking());
        reasons
    }

    /// The bounds, in the order of the flow.
    #[must_use]
    pub fn stages(&self) -> Vec<Stage> {
        let pool = self.budget.bound();
        let (held, drain) = (self.budget.held(), self.budget.drain_bytes_per_second());
        let name = if self.config.role == Role::All { "edge" } else { self.config.role.as_str() };
        let edge = Stage::new(name, (pool, pool, pool), held, drain);
        if !self.config.role.has_log() {
            return vec![edge];
        }
        let writers = self.writers.stats();
        let bounds = (writers.floor_bytes, writers.bound_bytes, writers.ceiling_bytes);
        let drain = writers.drain_bytes_per_second;
        let writer = Stage::new("writer", bounds, writers.held_bytes, drain);
        if self.config.role == Role::Writer {
            return vec![writer, Stage { name: "hop", ..edge }];
        }
        vec![edge, writer]
    }

    /// The replicas of the role behind this one, for operators.
    #[must_use]
    pub fn peers(&self) -> serde_json::Value {
        self.next.as_ref().map_or_else(|| serde_json::json!([]), roles::Next::status)
    }

    /// How the books stand; also says so in the metrics.
    pub fn books_standing(&self) -> Standing {
        let standing = self.books.standing();
        metrics::books_difference(standing.difference);
        metrics::books_in_flight(i64::try_from(standing.in_flight).unwrap_or(i64::MAX));
        metrics::books_unaccounted(0);
        standing
    }

    /// Events that were received and have no outcome, apart from those in flight, and those in
    /// flight.
    #[must_use]
    pub fn books_difference(&self) -> (i64, u64) {
        let standing = self.books_standing();
        (standing.difference, standing.in_flight)
    }

    /// The times in which it is not known what was refused.
    #[must_use]
    pub fn books_gaps(&self) -> Gaps {
        self.unlogged().gaps().clone()
    }

    /// Which configuration is live.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    fn unlogged(&self) -> MutexGuard<'_, UnloggedLedger> {
        self.unlogged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what left nothing in the log.
    ///
    /// # Errors
    /// As writing a file; tried again at the next call.
    pub fn write_books(&self) -> std::io::Result<()> {
        let now = self.clock.now();
        self.quotas.know(&self.tenants.list());
        let mut unlogged = self.unlogged();
        unlogged.set_usage(self.quotas.usage());
        unlogged.write(&self.books, now)
    }

    /// The last record of a clean stop.
    ///
    /// # Errors
    /// As writing a file; the next start notes that it does not know.
    pub fn close_books(&self) -> std::io::Result<()> {
        let now = self.clock.now();
        let mut unlogged = self.unlogged();
        unlogged.set_usage(self.quotas.usage());
        unlogged.close(&self.books, now)
    }

    /// Stops taking events; the process ends once all that was taken is where it belongs.
    pub fn begin_drain(&self, why: &str) {
        if !self.draining.send_replace(true) {
            tracing::info!(why, "draining: no new requests, what was taken is finished");
        }
    }

    /// Reads schemas, tenants, certificate and configuration again: all of it is checked before
    /// anything of it is live.
    ///
    /// # Errors
    /// Everything that is wrong, one sentence each; the generation before stays live.
    pub fn reload(&self) -> Result<Reloaded, Vec<String>> {
        let mut needs_restart = Vec::new();
        if let Some(path) = &self.config_path {
            let next = config::load(Some(path)).map_err(|e| vec![e.to_string()])?;
            let next = roles::narrowed(Config { role: self.config.role, ..next });
            admin::token_of(&next.admin).map_err(|e| vec![e])?;
            needs_restart = differing(&self.config, &next);
        }
        let mut faults = Vec::new();
        let schemas = self.normalizer.prepare();
        faults.extend(schemas.as_ref().err().into_iter().flatten().map(ToString::to_string));
        // Each tenant is a file of its own that is live once it is written: nothing of them waits
        // for this reload, but what is wrong with one is told here too.
        let tenants_before = self.tenants.list();
        let tenants = self.tenants.reload();
        faults.extend(tenants.as_ref().err().into_iter().flatten().map(ToString::to_string));
        let tls = self.serving.edge().map_or(Ok(None), |edge| edge.prepare_tls());
        faults.extend(tls.as_ref().err().map(ToString::to_string));
        let (Ok(schemas), Ok(_), Ok(tls)) = (schemas, tenants, tls) else {
            if planted(Bug::ReloadHalf)
                && let Ok(schemas) = self.normalizer.prepare()
            {
                self.normalizer.install(schemas);
            }
            tracing::error!(?faults, "reload refused; the generation before stays live");
            return Err(faults);
        };
        let mut changed = Vec::new();
        if !self.normalizer.schemas().is_same(&schemas) {
            changed.push("schemas".to_owned());
        }
        if tenants_before != self.tenants.list() {
            changed.push("tenants".to_owned());
        }
        self.normalizer.install(schemas);
        if self.serving.edge().is_some_and(|edge| edge.install_tls(tls)) {
            changed.push("certificate".to_owned());
        }
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::info!(generation, ?changed, ?needs_restart, "reloaded");
        Ok(Reloaded { generation, changed, needs_restart })
    }
}

/// The sections in which two configurations differ.
fn differing(old: &Config, new: &Config) -> Vec<String> {
    let sections = [
        ("edge", old.edge == new.edge),
        ("hop", old.hop == new.hop),
        ("admin", old.admin == new.admin),
        ("budget", old.budget == new.budget),
        ("quota_store", old.quota_store == new.quota_store),
        ("log", old.log == new.log),
        ("schemas", old.schemas == new.schemas),
        ("sink", old.sink == new.sink),
        ("defaults", old.defaults == new.defaults),
        ("tenants_dir", old.tenants_dir == new.tenants_dir),
    ];
    sections.iter().filter(|(_, same)| !same).map(|(name, _)| (*name).to_owned()).collect()
}
