//! What was committed is done to its end; what was not is taken away.

use std::time::Duration;

use super::{
    AGAIN, AGAIN_MAX, LOOK_EVERY, PromoteError, Promoter, exchange_of,
    journal::{Journal, Part, Phase},
};
use crate::{
    replay::PlanId,
    sink::exchange::{ExchangeError, How, Way},
};

impl Promoter {
    /// Ends what earlier runs began: away where it was not committed, on to the end where it was. Nothing
    /// is left open where it succeeds. Blocks.
    ///
    /// # Errors
    /// What could not be done; try again.
    pub fn resume(&self) -> Result<(), String> {
        // Nobody is kept from promoting by a look.
        if self.open_plans()?.is_empty() {
            return Ok(());
        }
        // Whoever promotes now ends it.
        let Ok(_one) = self.alone() else { return Ok(()) };
        let plans = self.open_plans()?;
        for plan in plans {
            let journal = self.journal(&plan).map_err(|e| e.to_string())?;
            match journal.as_ref().map(|journal| journal.phase) {
                None | Some(Phase::Done) => self.close(&plan)?,
                Some(Phase::Reverted) => {
                    journal.as_ref().map_or(Ok(()), |journal| self.discard(journal))?;
                    self.close(&plan)?;
                }
                Some(Phase::Staging) => {
                    let journal = journal.as_ref().map_or(Ok(()), |j| self.take_away(j));
                    journal?;
                }
                Some(Phase::Committed | Phase::Reverting) => {
                    if let Some(journal) = journal {
                        tracing::info!(%plan, "a promotion that was cut goes on");
                        self.with_turns(journal)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes on with what is open, whenever something is, until the server ends. Blocks.
    pub fn keep_on(&self) {
        let mut pause = AGAIN;
        while !self.is_ending() {
            match self.resume() {
                Ok(()) => {
                    self.note(None);
                    pause = AGAIN;
                }
                Err(error) => {
                    tracing::error!(error, "a promotion does not go on; tried again");
                    self.note(Some(error));
                    pause = (pause * 2).min(AGAIN_MAX);
                }
            }
            self.sleep(pause.max(LOOK_EVERY));
        }
    }

    /// The plans that are open at any sink.
    fn open_plans(&self) -> Result<Vec<PlanId>, String> {
        let mut plans = Vec::new();
        for sink in self.live.names() {
            plans.extend(self.promotions(&sink)?.open);
        }
        plans.sort_unstable();
        plans.dedup();
        Ok(plans)
    }

    pub(super) fn note(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = trouble;
    }

    pub(super) fn sleep(&self, time: Duration) {
        let until = std::time::Instant::now() + time;
        while !self.is_ending() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50).min(time));
        }
    }

    /// A promotion that is not to be leaves nothing.
    pub(super) fn take_away(&self, journal: &Journal) -> Result<(), String> {
        if journal.phase != Phase::Staging {
            return Err("it was committed".to_owned());
        }
        self.discard(journal)?;
        Journal::remove(&*self.storage, &self.data_dir, &journal.plan)
            .map_err(|e| e.to_string())?;
        self.close(&journal.plan)
    }

    /// Removes what was made ready, or kept.
    fn discard(&self, journal: &Journal) -> Result<(), String> {
        let sinks = self.sinks_of(journal).map_err(|e| e.to_string())?;
        for ((_, sink), part) in sinks.iter().zip(&journal.parts) {
            let exchange = exchange_of(&**sink).map_err(|e| e.to_string())?;
            exchange.discard(&journal.plan, part.staged.as_ref()).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Finishes, with the turns of its sinks.
    pub(super) fn with_turns(&self, mut journal: Journal) -> Result<(), String> {
        let sinks = self.sinks_of(&journal).map_err(|e| e.to_string())?;
        let mut turns = Vec::new();
        for (_, sink) in &sinks {
            let exchange = exchange_of(&**sink).map_err(|e| e.to_string())?;
            turns.push(exchange.turn(&|| self.is_ending()).map_err(|e| e.to_string())?);
        }
        self.finish(&mut journal, true, &|_, _| {})
    }

    /// Finishes for somebody who waits; after some tries it goes on behind.
    pub(super) fn finish_for(
        &self,
        mut journal: Journal,
        tell: &dyn Fn(&str, &str),
    ) -> Result<Journal, PromoteError> {
        let mut pause = self.again;
        for attempt in 1.. {
            match self.finish(&mut journal, 1 < attempt, tell) {
                Ok(()) => return Ok(journal),
                Err(error) if self.tries <= attempt || self.is_ending() => {
                    self.note(Some(error.clone()));
                    return Err(PromoteError::Unfinished(error));
                }
                Err(error) => tell("", &format!("{error}; tried again")),
            }
            self.sleep(pause);
            pause = (pause * 2).min(AGAIN_MAX);
        }
        Err(PromoteError::Unfinished("it was given up".to_owned()))
    }

    /// What was committed is done to its end; repeating it changes nothing. Where an earlier try came to
    /// the end, only what is left to be tidied is done: what is kept for a revert may be gone by then.
    pub(super) fn finish(
        &self,
        journal: &mut Journal,
        doubt: bool,
        tell: &dyn Fn(&str, &str),
    ) -> Result<(), String> {
        let ways = match journal.phase {
            Phase::Committed => Some((Way::Forward, Phase::Done)),
            Phase::Reverting => Some((Way::Back, Phase::Reverted)),
            Phase::Staging => return Ok(()),
            Phase::Done | Phase::Reverted => None,
        };
        if let Some((way, end)) = ways {
            self.exchange(journal, way, doubt, tell)?;
            let ended = Journal { phase: end, ..journal.clone() };
            self.save(&ended)?;
            *journal = ended;
        }
        if journal.phase == Phase::Reverted {
            self.discard(journal)?;
        }
        self.close(&journal.plan)
    }

    /// The rows of all sinks, one after the other.
    fn exchange(
        &self,
        journal: &Journal,
        way: Way,
        doubt: bool,
        tell: &dyn Fn(&str, &str),
    ) -> Result<(), String> {
        let sinks = self.sinks_of(journal).map_err(|e| e.to_string())?;
        for ((name, sink), part) in sinks.iter().zip(&journal.parts) {
            let Some(staged) = &part.staged else { continue };
            let how = How {
                way,
                doubt,
                settle: self.settle,
                stop: &|| self.is_ending(),
                tell: &|what| tell(name, what),
            };
            let exchange = exchange_of(&**sink).map_err(|e| e.to_string())?;
            let mut books = || self.enter(part, way).map_err(ExchangeError::Failed);
            let done = exchange.exchange(&journal.plan, staged, &how, &mut books);
            done.map_err(|e| format!("sink {name:?}: {e}"))?;
        }
        Ok(())
    }

    /// The books of a sink say what its rows are.
    pub(super) fn enter(&self, part: &Part, way: Way) -> Result<(), String> {
        let Some(applied) = &part.applied else { return Ok(()) };
        self.change(&part.sink, |promotions| {
            let is_there = promotions.of(&applied.plan).is_some();
            match way {
                Way::Forward if !is_there => promotions.applied.push(applied.clone()),
                Way::Forward => {}
                Way::Back => promotions.applied.retain(|there| there.plan != applied.plan),
            }
        })
    }

    /// Nothing of this plan is open any more.
    pub(super) fn close(&self, plan: &PlanId) -> Result<(), String> {
        for sink in self.live.names() {
            let mut was_open = false;
            self.change(&sink, |promotions| {
                was_open = promotions.open.take_if(|open| *open == *plan).is_some();
            })?;
            if was_open
                && let Some(sink) = self.live.sink(&sink)
                && let Ok(exchange) = sink.exchange()
            {
                exchange.ended();
            }
        }
        Ok(())
    }
}
