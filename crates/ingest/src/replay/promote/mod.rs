//! The window in live replaced by the shadow's rows, and back (docs/replay.md, "Promote and revert").
//!
//! ```text
//! check ─▶ survey ─▶ open ─▶ [staging] stage ─▶ [committed] exchange ─▶ books ─▶ [done] ─▶ close
//!                              └ a crash: away again      └ a crash: on to the end
//! ```
//!
//! | file | purpose |
//! | --- | --- |
//! | `begin` | may it be; all up to the word that decides |
//! | `finish` | all behind it, also after a crash |
//! | `journal` | how far it is |
//! | `live` | what it needs of the running sinks |
//!
//! One word of one file, `committed`, decides for all sinks of a plan. Before it live is as it was;
//! after it what is left to do is repeated until it is done, by this run or the next.

mod begin;
mod finish;
pub mod journal;
pub mod live;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

use self::journal::{Act, Journal, Phase};
use super::{PlanId, plan::Content};
use crate::{
    clock::Clock,
    sink::{
        Lane, Sink, SinkConfig,
        exchange::{Changes, Exchange, ExchangeError, Order, Survey},
        promoted::{Promotions, Span},
    },
    storage::Storage,
};
pub use live::{Lacking, Live};

/// How soon what failed is tried again, at first and at last.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether something is open.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Tries that whoever asked waits for; then it goes on behind.
const TRIES: u32 = 3;

/// Why nothing is promoted or reverted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromoteError {
    /// It may not be; the message says what to do.
    #[error("{0}")]
    Refused(String),
    /// It did not work. Live is as it was.
    #[error("{0}; live is as it was, try again")]
    Failed(String),
    /// It did not work yet, and goes on by itself.
    #[error("{0}; it goes on by itself, `ingestctl replay status` says how far it is")]
    Unfinished(String),
}

impl From<ExchangeError> for PromoteError {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Refused(why) => Self::Refused(why),
            ExchangeError::Failed(why) => Self::Failed(why),
        }
    }
}

fn refused<T>(why: impl Into<String>) -> Result<T, PromoteError> {
    Err(PromoteError::Refused(why.into()))
}

/// One sink that is to have its shadow's rows.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its name.
    pub sink: String,
    /// Where its shadow is.
    pub shadow: SinkConfig,
}

/// What is to be promoted.
pub struct Request<'a> {
    /// Which plan.
    pub plan: &'a PlanId,
    /// What it is about.
    pub content: &'a Content,
    /// Into which sinks.
    pub targets: &'a [Target],
    /// The hash of what somebody saw and said yes to; empty: whatever it is.
    pub seen: &'a str,
    /// Who wants it.
    pub who: &'a str,
    /// Asked once nothing of the window can change any more: may it be?
    pub check: &'a dyn Fn() -> Result<(), String>,
    /// Hears what is being done; false: nobody waits any more.
    pub tell: &'a dyn Fn(&str, &str) -> bool,
}

/// What a promotion would do, or did, at one sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkChanges {
    /// Which sink.
    pub sink: String,
    /// What changes.
    #[serde(flatten)]
    pub changes: Changes,
}

/// What a promotion would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outline {
    /// A hash over all of it.
    pub seen: String,
    /// By sink.
    pub sinks: Vec<SinkChanges>,
}

impl Outline {
    fn of(parts: &[(String, Survey)]) -> Self {
        let sinks: Vec<SinkChanges> = parts
            .iter()
            .map(|(sink, survey)| SinkChanges {
                sink: sink.clone(),
                changes: survey.changes.clone(),
            })
            .collect();
        let seen: Vec<&str> = sinks.iter().map(|sink| sink.changes.hash.as_str()).collect();
        Self { seen: seen.join("-"), sinks }
    }
}

/// Sinks with their names.
type Named = Vec<(String, Arc<dyn Sink>)>;

/// Promotes and reverts, one at a time.
pub struct Promoter {
    live: Arc<dyn Live>,
    storage: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    data_dir: PathBuf,
    one: Mutex<()>,
    ends: AtomicBool,
    /// How long readers may take to list a folder, where that is not as the sinks have it.
    settle: Option<Duration>,
    /// How often what was committed is tried while somebody waits, and how soon at first.
    tries: u32,
    again: Duration,
    /// What the last try of what is open failed for.
    trouble: Mutex<Option<String>>,
}

impl Promoter {
    /// Over the running sinks.
    #[must_use]
    pub fn new(
        live: Arc<dyn Live>,
        storage: Arc<dyn Storage>,
        clock: Arc<dyn Clock>,
        data_dir: PathBuf,
    ) -> Self {
        Self {
            live,
            storage,
            clock,
            data_dir,
            one: Mutex::default(),
            ends: AtomicBool::new(false),
            settle: None,
            tries: TRIES,
            again: AGAIN,
            trouble: Mutex::default(),
        }
    }

    /// With another time that readers may take to list a folder, and other patience.
    #[must_use]
    pub fn with(self, settle: Duration, tries: u32) -> Self {
        Self { settle: Some(settle), tries, again: AGAIN.min(settle), ..self }
    }

    /// Ends at the next safe point.
    pub fn end(&self) {
        self.ends.store(true, Ordering::Release);
    }

    fn is_ending(&self) -> bool {
        self.ends.load(Ordering::Acquire)
    }

    /// How far a plan's promotion is; `None`: it was never promoted.
    ///
    /// # Errors
    /// As reading a file.
    pub fn journal(&self, plan: &PlanId) -> std::io::Result<Option<Journal>> {
        Journal::load(&*self.storage, &self.data_dir, plan)
    }

    /// Why what is open did not go on, if something is.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What promoting would do. Blocks; changes nothing.
    ///
    /// # Errors
    /// [`PromoteError`], as promoting.
    pub fn outline(&self, request: &Request<'_>) -> Result<Outline, PromoteError> {
        self.may_promote(request)?;
        (request.check)().map_err(PromoteError::Refused)?;
        let sinks = self.sinks(request)?;
        Ok(Outline::of(&self.survey(request, &sinks)?))
    }

    /// Puts the shadow's rows in the place of live's. Blocks.
    ///
    /// # Errors
    /// [`PromoteError`].
    pub fn promote(&self, request: &Request<'_>) -> Result<Outline, PromoteError> {
        let _one = self.alone()?;
        self.may_promote(request)?;
        let sinks = self.sinks(request)?;
        let stop = || self.is_ending() || !(request.tell)("", "waiting for other work on old rows");
        let mut turns = Vec::new();
        for (_, sink) in &sinks {
            turns.push(exchange_of(&**sink)?.turn(&stop)?);
        }
        (request.check)().map_err(PromoteError::Refused)?;
        let surveys = self.survey(request, &sinks)?;
        let outline = Outline::of(&surveys);
        if !request.seen.is_empty() && request.seen != outline.seen {
            return refused(
                "what it would change is not what you were shown: live or the shadow has changed since; \
                 look again",
            );
        }
        let mut journal = self.begin(request, surveys)?;
        if let Err(error) = self.make_ready(request, &sinks, &mut journal) {
            // What cannot be taken away now is taken away later.
            if let Err(more) = self.take_away(&journal) {
                tracing::warn!(plan = %journal.plan, error = %more, "what a promotion had made ready is removed later");
            }
            return Err(error);
        }
        self.finish_for(journal, &|sink, what| {
            (request.tell)(sink, what);
        })?;
        Ok(outline)
    }

    /// Puts back what was before. Blocks.
    ///
    /// # Errors
    /// [`PromoteError`].
    pub fn revert(
        &self,
        plan: &PlanId,
        who: &str,
        tell: &dyn Fn(&str, &str) -> bool,
    ) -> Result<Journal, PromoteError> {
        let _one = self.alone()?;
        let mut journal = self.may_revert(plan)?;
        let sinks = self.sinks_of(&journal)?;
        let mut turns = Vec::new();
        for ((name, sink), part) in sinks.iter().zip(&journal.parts) {
            let stop = || self.is_ending() || !tell(name, "waiting for other work on old rows");
            let exchange = exchange_of(&**sink)?;
            turns.push(exchange.turn(&stop)?);
            if let Some(staged) = &part.staged {
                exchange.check_kept(staged)?;
            }
        }
        for part in &journal.parts {
            self.set_open(&part.sink, Some(plan))?;
        }
        journal.phase = Phase::Reverting;
        journal.reverted = Some(Act { at: self.clock.now(), who: who.to_owned() });
        self.save(&journal).map_err(PromoteError::Unfinished)?;
        self.finish_for(journal, &|sink, what| {
            tell(sink, what);
        })
    }

    fn alone(&self) -> Result<std::sync::MutexGuard<'_, ()>, PromoteError> {
        match self.one.try_lock() {
            Ok(guard) => Ok(guard),
            // One that panicked left its journal, as a crash would.
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                refused("another promotion is under way: wait for its end")
            }
        }
    }

    fn promotions(&self, sink: &str) -> Result<Promotions, String> {
        Promotions::load(&*self.storage, &self.data_dir, sink).map_err(|e| e.to_string())
    }

    fn change(&self, sink: &str, change: impl FnOnce(&mut Promotions)) -> Result<(), String> {
        let mut promotions = self.promotions(sink)?;
        let before = promotions.clone();
        change(&mut promotions);
        if promotions == before {
            return Ok(());
        }
        promotions.save(&*self.storage, &self.data_dir, sink).map_err(|e| e.to_string())
    }

    fn set_open(&self, sink: &str, plan: Option<&PlanId>) -> Result<(), PromoteError> {
        self.change(sink, |promotions| promotions.open = plan.cloned())
            .map_err(PromoteError::Failed)
    }

    fn save(&self, journal: &Journal) -> Result<(), String> {
        journal.save(&*self.storage, &self.data_dir).map_err(|e| e.to_string())
    }

    fn sinks(&self, request: &Request<'_>) -> Result<Named, PromoteError> {
        let names = request.targets.iter().map(|target| target.sink.as_str());
        self.by_name(names)
    }

    fn sinks_of(&self, journal: &Journal) -> Result<Named, PromoteError> {
        self.by_name(journal.parts.iter().map(|part| part.sink.as_str()))
    }

    fn by_name<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<Named, PromoteError> {
        let mut sinks = Vec::new();
        for name in names {
            let Some(sink) = self.live.sink(name) else {
                return refused(format!("there is no sink {name:?} any more: put it back"));
            };
            if let Err(why) = sink.exchange() {
                return refused(format!("sink {name:?}: {why}"));
            }
            sinks.push((name.to_owned(), sink));
        }
        Ok(sinks)
    }
}

fn exchange_of(sink: &dyn Sink) -> Result<&dyn Exchange, ExchangeError> {
    sink.exchange().map_err(|why| ExchangeError::Refused(why.to_owned()))
}

fn with_order<T>(
    promoter: &Promoter,
    request: &Request<'_>,
    target: &Target,
    work: impl FnOnce(&Order<'_>) -> Result<T, ExchangeError>,
) -> Result<T, PromoteError> {
    let window: Vec<Span> = request.content.window.iter().map(Span::of).collect();
    let lanes: Vec<Lane> = request.content.counts.iter().map(|count| count.lane.clone()).collect();
    let is_wanted = std::cell::Cell::new(true);
    let order = Order {
        log_id: &request.content.log_id,
        plan: request.plan,
        window: &window,
        selection: &request.content.selection,
        lanes: &lanes,
        shadow: &target.shadow,
        stop: &|| promoter.is_ending() || !is_wanted.get(),
        tell: &|what| is_wanted.set((request.tell)(&target.sink, what)),
    };
    Ok(work(&order)?)
}
