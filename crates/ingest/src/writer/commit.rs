//! The writer's thread: takes a group, drops duplicates, appends, settles, answers.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tidegate_event::{BatchView, EncodedBatch, EventType, Offset, OffsetRange};

use super::{
    AppendError, Appended, WriterSettings,
    dedup::Dedup,
    ledger::{Ledger, Totals},
    queue::{Job, Queue, Taken},
};
use crate::{
    books::{Minute, Outcome},
    clock::Clock,
    faults::{self, Bug, Point, planted},
    log::{AppendFault, FrameBody, Hold, Log},
    metrics,
};

pub(super) struct Writer {
    pub log: Log,
    pub queue: Arc<Queue>,
    pub clock: Arc<dyn Clock>,
    pub settings: WriterSettings,
    pub dedup: Dedup,
    pub ledger: Arc<Mutex<Ledger>>,
    /// Retention never passes what the ledger's file does not count yet.
    pub hold: Hold,
}

/// Should the thread ever panic, nobody waits for it in vain.
struct PanicGuard(Arc<Queue>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail();
        }
    }
}

/// One job of a group, after duplicates were dropped.
struct Pass {
    job: Job,
    /// What is appended, where that is not all of the job's batch; `count` 0: nothing.
    kept: Option<EncodedBatch>,
    deduplicated: Vec<u32>,
}

impl Writer {
    /// Runs until the queue is closed and empty, then leaves the log cleanly closed.
    pub fn run(mut self) {
        let _guard = PanicGuard(Arc::clone(&self.queue));
        let mut due = Instant::now() + self.settings.housekeeping;
        loop {
            match self.queue.take(due) {
                Taken::Group(jobs) => self.commit(jobs),
                Taken::Idle => {}
                Taken::Closed => break,
            }
            if Instant::now() >= due {
                due = Instant::now() + self.keep_house();
            }
        }
        self.save_ledger();
        if self.queue.is_failed() {
            return;
        }
        self.dedup.keep_house(self.log.handle().latest(), self.clock.now(), true);
        if let Err(error) = self.log.close() {
            tracing::error!(%error, "the log could not be marked as cleanly closed; the next start verifies it");
        }
    }

    fn commit(&mut self, jobs: Vec<Job>) {
        let start = Instant::now();
        let held = jobs.iter().map(Job::bytes).sum();
        self.dedup.evict(self.clock.now());
        let passes: Vec<_> = jobs.into_iter().map(|job| self.drop_known(job)).collect();
        let frames: Result<Vec<FrameBody>, _> =
            passes.iter().filter_map(|pass| pass.frame(&self.settings)).collect();
        faults::at(Point::InGroup);
        let appended = match frames {
            Ok(frames) => self.log.append(&frames).map(|bases| (bases, frames)),
            Err(fault) => Err(AppendFault::Storage(std::io::Error::other(fault))),
        };
        match appended {
            Ok((bases, frames)) => {
                self.finish(passes, &bases);
                self.dedup.keep(self.log.handle().latest(), self.clock.now());
                let bytes = frames.iter().map(FrameBody::stored_bytes).sum();
                if bytes > 0 {
                    self.queue.drained(bytes, start.elapsed());
                }
                self.queue.release(held);
            }
            Err(fault) => {
                if planted(Bug::TwinOfTheLost) {
                    self.dedup.keep(self.log.handle().latest(), self.clock.now());
                } else {
                    self.dedup.undo();
                }
                self.queue.release(held);
                self.give_up(passes, &fault);
            }
        }
    }

    /// Takes out the events whose id is known already: from an earlier batch, durable by now, or from
    /// one before it in this group, which lives and dies with it.
    fn drop_known(&mut self, job: Job) -> Pass {
        let received_at = job.batch.received_at;
        let mut known = HashSet::new();
        let mut deduplicated = Vec::new();
        for key in &job.keys {
            // A re-drive's ids are remembered and never dropped.
            if !self.dedup.insert(key, received_at) && !job.batch.bypass_dedup {
                known.insert(key.position);
                deduplicated.push(key.index);
            }
        }
        if known.is_empty() {
            return Pass { job, kept: None, deduplicated };
        }
        let kept = BatchView::parse(&job.batch.body)
            .and_then(|view| view.without(view.protocol, |position| known.contains(&position)));
        match kept {
            Ok(kept) => Pass { job, kept: Some(kept), deduplicated },
            Err(error) => {
                // Its keys were read from it: this cannot be, and twice is better than not at all.
                tracing::error!(%error, "a batch with known ids cannot be taken apart; it is appended whole");
                Pass { job, kept: None, deduplicated: Vec::new() }
            }
        }
    }

    fn finish(&self, passes: Vec<Pass>, bases: &[Offset]) {
        let mut bases = bases.iter();
        // Locked until its `as_of` fits its counts again: whoever copies it sees both or neither.
        let mut ledger = self.ledger();
        for mut pass in passes {
            let batch = pass.kept.as_ref().unwrap_or(&pass.job.batch);
            let range = (batch.count > 0)
                .then(|| bases.next())
                .flatten()
                .and_then(|base| OffsetRange::new(*base, base.plus(batch.count.into())));
            let minute = Minute::of(batch.received_at);
            for (event_type, (totals, known)) in outcomes(&pass.job.batch, batch) {
                ledger.add(&batch.tenant, event_type, minute, totals);
                let entry = &mut pass.job.entry;
                entry.settle(event_type, Outcome::Accepted, totals.accepted);
                entry.settle(event_type, Outcome::DeadLettered, totals.dead_lettered);
                entry.settle(event_type, Outcome::Deduplicated, known);
            }
            let (partition, deduplicated) = (self.log.handle().partition(), pass.deduplicated);
            // The caller may have gone away: its events are durable and accounted for all the same.
            let _ = pass.job.reply.send(Ok(Appended { partition, range, deduplicated }));
        }
        ledger.set_as_of(self.log.handle().latest());
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_up(&self, passes: Vec<Pass>, fault: &AppendFault) {
        let fatal = matches!(fault, AppendFault::Fatal(_));
        let cause = std::error::Error::source(fault).map(ToString::to_string).unwrap_or_default();
        tracing::error!(cause, batches = passes.len(), "{fault}");
        passes.into_iter().for_each(|pass| pass.job.refuse(AppendError::Storage));
        if fatal {
            self.queue.fail();
            (self.settings.on_fatal)();
        }
    }

    /// Ledger, retention and backlog; returns when to come again.
    fn keep_house(&mut self) -> Duration {
        let start = Instant::now();
        self.save_ledger();
        self.dedup.keep_house(self.log.handle().latest(), self.clock.now(), false);
        if let Err(error) = self.log.trim() {
            tracing::error!(%error, "old segments of the log cannot be removed");
        }
        let log = self.log.handle();
        let held = log.lowest_hold().map_or(0, |(_, offset)| log.bytes_since(offset));
        self.queue.set_backlogged(held > self.settings.backlog_bytes);
        let waiting = self.queue.stats().held_bytes;
        metrics::stage_held_bytes("writer", i64::try_from(waiting).unwrap_or(i64::MAX));
        // Housekeeping of many tenants takes at most a fiftieth of the thread's time.
        self.settings.housekeeping.max(start.elapsed() * 50)
    }

    fn save_ledger(&self) {
        let mut ledger = self.ledger();
        match ledger.save() {
            Ok(()) => self.hold.advance(ledger.as_of()),
            Err(error) => {
                tracing::error!(%error, "the ledger cannot be written; it is tried again");
            }
        }
    }
}

impl Pass {
    /// The frame to append; `None` where every event is known.
    fn frame(
        &self,
        settings: &WriterSettings,
    ) -> Option<Result<FrameBody, crate::log::FrameError>> {
        match &self.kept {
            None => Some(Ok(self.job.frame.clone())),
            Some(kept) if kept.count == 0 => None,
            Some(kept) => Some(FrameBody::prepare(
                kept.body.clone(),
                kept.count,
                kept.received_at,
                settings.codec,
            )),
        }
    }
}

/// Per type: what of `whole` was appended as `kept`, and how many were known.
fn outcomes<'a>(
    whole: &'a EncodedBatch,
    kept: &'a EncodedBatch,
) -> BTreeMap<&'a EventType, (Totals, u64)> {
    let mut all: BTreeMap<_, (Totals, u64)> = BTreeMap::new();
    for tally in &whole.tallies {
        let (_, known) = all.entry(&tally.event_type).or_default();
        *known += tally.accepted + tally.dead_lettered;
    }
    for tally in &kept.tallies {
        let (totals, known) = all.entry(&tally.event_type).or_default();
        totals.accepted += tally.accepted;
        totals.dead_lettered += tally.dead_lettered;
        *known = known.saturating_sub(tally.accepted + tally.dead_lettered);
    }
    all
}
