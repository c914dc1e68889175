//! Whether a plan may be promoted or reverted, and all up to the word that decides.

use std::{
    collections::BTreeMap,
    sync::{Arc, MutexGuard},
};

use super::{
    PromoteError, Promoter, Request, exchange_of,
    journal::{Act, Journal, Part, Phase},
    refused, with_order,
};
use crate::{
    replay::PlanId,
    sink::{
        Lane, Sink,
        exchange::Survey,
        promoted::{Applied, Move, Span},
    },
};

impl Promoter {
    pub(super) fn may_promote(&self, request: &Request<'_>) -> Result<(), PromoteError> {
        if request.targets.is_empty() {
            return refused("the plan has no sink to promote into");
        }
        let journal =
            self.journal(request.plan).map_err(|e| PromoteError::Failed(e.to_string()))?;
        match journal.map(|journal| journal.phase) {
            None | Some(Phase::Staging | Phase::Reverted) => {}
            Some(Phase::Done) => {
                return refused(format!(
                    "it is promoted already; `ingestctl replay revert {}` undoes it",
                    request.plan
                ));
            }
            Some(Phase::Committed | Phase::Reverting) => {
                return refused("it is being promoted or reverted: that goes on by itself");
            }
        }
        let window: Vec<Span> = request.content.window.iter().map(Span::of).collect();
        for target in request.targets {
            let promotions = self.promotions(&target.sink).map_err(PromoteError::Failed)?;
            if let Some(open) = promotions.open.filter(|open| open != request.plan) {
                return refused(format!(
                    "the promotion of {open} is not at its end: it goes on by itself, wait for it"
                ));
            }
            let passed = self.live.passed(&target.sink, &window, &request.content.selection);
            passed.map_err(PromoteError::Refused)?;
        }
        Ok(())
    }

    pub(super) fn may_revert(&self, plan: &PlanId) -> Result<Journal, PromoteError> {
        let journal = self.journal(plan).map_err(|e| PromoteError::Failed(e.to_string()))?;
        let journal = match journal {
            Some(journal) if journal.phase == Phase::Done => journal,
            Some(journal) if journal.phase == Phase::Reverted => {
                return refused("it is reverted already");
            }
            Some(journal) if journal.phase != Phase::Staging => {
                return refused("it is being promoted or reverted: that goes on by itself");
            }
            Some(_) | None => return refused("it was not promoted: there is nothing to revert"),
        };
        for part in &journal.parts {
            let promotions = self.promotions(&part.sink).map_err(PromoteError::Failed)?;
            if let Some(open) = promotions.open.as_ref().filter(|open| *open != plan) {
                return refused(format!(
                    "the promotion of {open} is not at its end: it goes on by itself, wait for it"
                ));
            }
            if let Some(later) = promotions.above(plan) {
                return refused(format!(
                    "{later} was promoted later and has offsets of this window: revert it first, \
                     `ingestctl replay revert {later}`",
                    later = later.plan
                ));
            }
        }
        Ok(journal)
    }

    /// Whether a job may be removed, with what is kept for its revert. As long as what is returned is kept
    /// nothing is promoted: not half of a shadow that goes.
    ///
    /// # Errors
    /// [`PromoteError::Refused`]
    pub fn may_remove(&self, plan: &PlanId) -> Result<MutexGuard<'_, ()>, PromoteError> {
        let one = self.alone()?;
        let journal = self.journal(plan).map_err(|e| PromoteError::Failed(e.to_string()))?;
        match journal.map(|journal| journal.phase) {
            None | Some(Phase::Reverted) => Ok(one),
            Some(Phase::Done) => refused(format!(
                "it is promoted, and what was before is kept with it: removing it would be for good; \
                 `ingestctl replay revert {plan}` first"
            )),
            Some(Phase::Staging | Phase::Committed | Phase::Reverting) => {
                refused("it is being promoted or reverted: wait for the end")
            }
        }
    }

    pub(super) fn survey(
        &self,
        request: &Request<'_>,
        sinks: &[(String, Arc<dyn Sink>)],
    ) -> Result<Vec<(String, Survey)>, PromoteError> {
        let mut surveys = Vec::new();
        for ((name, sink), target) in sinks.iter().zip(request.targets) {
            let survey =
                with_order(self, request, target, |order| exchange_of(&**sink)?.survey(order));
            surveys.push((name.clone(), survey?));
        }
        Ok(surveys)
    }

    /// The journal says that it begins; the sinks know that it is open.
    pub(super) fn begin(
        &self,
        request: &Request<'_>,
        surveys: Vec<(String, Survey)>,
    ) -> Result<Journal, PromoteError> {
        let at = self.clock.now();
        let mut parts = Vec::new();
        for (sink, survey) in surveys {
            let applied = Applied {
                plan: request.plan.clone(),
                log_id: request.content.log_id.clone(),
                window: request.content.window.iter().map(Span::of).collect(),
                selection: request.content.selection.clone(),
                at,
                who: request.who.to_owned(),
                moves: self.moves(request, &sink, &survey)?,
                cut: survey.changes.cut.clone(),
            };
            parts.push(Part {
                sink,
                changes: survey.changes,
                staged: None,
                applied: Some(applied),
            });
        }
        let journal = Journal {
            plan: request.plan.clone(),
            phase: Phase::Staging,
            promoted: Act { at, who: request.who.to_owned() },
            reverted: None,
            parts,
        };
        for part in &journal.parts {
            self.set_open(&part.sink, Some(request.plan))?;
        }
        self.save(&journal).map_err(PromoteError::Failed)?;
        Ok(journal)
    }

    /// How the books of a sink move.
    pub(super) fn moves(
        &self,
        request: &Request<'_>,
        sink: &str,
        survey: &Survey,
    ) -> Result<Vec<Move>, PromoteError> {
        let mut moves = BTreeMap::<Lane, Move>::new();
        let none = |lane: &Lane| Move { lane: lane.clone(), stored: 0, quarantined: 0, skipped: 0 };
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        for change in &survey.changes.lanes {
            let by = moves.entry(change.lane.clone()).or_insert_with(|| none(&change.lane));
            by.stored += signed(change.come) - signed(change.go);
        }
        if !survey.gained.is_empty() {
            let gained = self.live.gained(sink, &survey.gained).map_err(PromoteError::Refused)?;
            let promotions = self.promotions(sink).map_err(PromoteError::Failed)?;
            let before = promotions.moves(&request.content.log_id);
            for (lane, lacking) in gained {
                let by = moves.entry(lane.clone()).or_insert_with(|| none(&lane));
                let moved = before.get(&lane).map_or(0, |moved| moved.2);
                let most = lacking.skipped_at_most.saturating_add_signed(moved);
                let skipped = lacking.others.min(most);
                by.quarantined -= signed(lacking.aside);
                by.skipped -= signed(skipped);
                // Counted as stored, and lost since: they count as stored still.
                by.stored -= signed(lacking.others - skipped);
            }
        }
        let changes = |by: &Move| (by.stored, by.quarantined, by.skipped) != (0, 0, 0);
        Ok(moves.into_values().filter(changes).collect())
    }

    /// All that comes is made ready, and the journal says that it is to be.
    pub(super) fn make_ready(
        &self,
        request: &Request<'_>,
        sinks: &[(String, Arc<dyn Sink>)],
        journal: &mut Journal,
    ) -> Result<(), PromoteError> {
        for (((_, sink), target), part) in sinks.iter().zip(request.targets).zip(&mut journal.parts)
        {
            let exchange = exchange_of(&**sink)?;
            // What an earlier try has left.
            exchange.discard(request.plan, None)?;
            let staged = with_order(self, request, target, |order| exchange.stage(order))?;
            part.staged = Some(staged);
        }
        journal.phase = Phase::Committed;
        if let Err(error) = self.save(journal) {
            // Whether it is on the disk nobody knows: it counts as not, once that is.
            journal.phase = Phase::Staging;
            self.save(journal).map_err(|more| {
                PromoteError::Unfinished(format!("the journal cannot be written: {error}, {more}"))
            })?;
            return Err(PromoteError::Failed(error));
        }
        Ok(())
    }
}
