//! The main loop of each sink and partition: read, cut, intent, write, cursor.
//!
//! ```text
//! gather frames ─▶ cut [from, to) ─▶ intent durable ─▶ each lane written ─▶ cursor durable at `to`
//!                                          ▲                    │
//!               after a crash: read [from, to) again,           └─ a lane that cannot be: held, with
//!               same hash or stop ─────────┘                       the window as its own intent
//! ```
//!
//! Why each offset is written once, with several threads: every change of the state is one commit
//! under one lock. In a window whose intent is durable a lane is the main loop's or it is held, and
//! that is settled until the cursor is at the window's end: nobody is released meanwhile, and who is
//! held during it (its write was handed off) has the same window as its own durable intent before
//! the cursor moves. A held lane has one thread at a time, which repeats the protocol for it alone:
//! intent durable, write, cursor durable; it may go as far as the window that is being written, and
//! rejoins only where no window is. So each row has one writer, and whatever is written a second
//! time after a crash is written under an intent, with the same rows and names.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tidegate_event::{Offset, ReceivedAt};

use super::{
    crew::Crew,
    delivery::{Delivery, Done, Waiting},
    desk::{BACKOFF_FIRST, Desk, End, PANICKED, Shared, TICK},
    pace::SLOW_AFTER,
    rows::Lane,
    source::SourceError,
    state::Held,
    status::{SinkState, Written},
    window::{Gathered, Gatherer, Window, reread},
};
use crate::{
    faults::{self, Bug, Point, planted},
    metrics,
};

/// The thread's own.
pub(super) struct Worker {
    pub desk: Arc<Desk>,
    pub gatherer: Gatherer,
    pub crew: Crew,
    /// Once it is drained: where the log ended then. Others may go on appending to a shared log.
    pub drains_to: Option<Offset>,
}

/// Says that the threads have ended, also where this one panicked.
struct Farewell(Arc<Shared>);

impl Drop for Farewell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.board().phase = SinkState::Stopped { error: PANICKED.to_owned() };
        }
        self.0.done.send_replace(true);
    }
}

impl Worker {
    pub fn run(self) {
        let shared = Arc::clone(&self.desk.shared);
        // Dropped last, also where this thread panics: the crew has ended by then.
        let farewell = Farewell(Arc::clone(&shared));
        let mut worker = self;
        let end = worker.work();
        if let End::Fault(error) = &end {
            worker.desk.fail(error.clone());
        }
        worker.crew.end();
        // What one of the others ended with.
        let end = match (end, worker.desk.check_quit()) {
            (_, Err(End::Fault(error))) => End::Fault(error),
            (end, _) => end,
        };
        let (sink, partition) = (&shared.name, shared.log.partition().0);
        match end {
            End::Quit => {}
            End::Drained => shared.board().phase = SinkState::Drained,
            End::Fault(error) => {
                tracing::error!(sink, partition, error, "the sink stopped; a human must look");
                shared.board().phase = SinkState::Stopped { error };
            }
        }
        drop(worker);
        drop(farewell);
    }

    fn work(&mut self) -> End {
        let desk = Arc::clone(&self.desk);
        if let Err(end) = desk.count_before().and_then(|()| self.recover()) {
            return end;
        }
        loop {
            if let Err(end) = self.turn() {
                return end;
            }
        }
    }

    /// One round: expire, gather, write; then wait for more.
    fn turn(&mut self) -> Result<(), End> {
        self.desk.check_quit()?;
        self.expire_if_full()?;
        self.crew.staff()?;
        let desk = Arc::clone(&self.desk);
        let flush = desk.shared.flush.load(Ordering::Acquire);
        if flush {
            let target = *self.drains_to.get_or_insert_with(|| desk.shared.log.given());
            if desk.is_idle() && target <= desk.board().state.cursor {
                return Err(End::Drained);
            }
        }
        let bytes = desk.shared.memory.cut();
        let bytes = desk.sink.window_bytes().map_or(bytes, |own| own.min(bytes));
        self.gatherer.set_bytes(bytes, desk.cut);
        let pause = desk.sink.pause();
        self.gatherer.pause(pause.as_ref().map(|pause| pause.until));
        let began = Instant::now();
        match self.gatherer.gather(desk.clock.now(), flush) {
            Ok(Gathered::Window(window)) => self.window(window, began.elapsed()),
            Ok(Gathered::AtEnd) => {
                let paused = self.gatherer.is_paused().then(|| pause.map(|pause| pause.why));
                let window = self.gatherer.window();
                desk.board().oldest = window.oldest();
                desk.board().paused = paused.flatten();
                desk.shared.memory.main(window.bytes);
                let timeout = self.gatherer.ripe_in().map_or(TICK, |ripe| ripe.min(TICK));
                let _grown = desk.shared.log.wait_past(self.gatherer.read_to(), timeout);
                desk.board().phase = SinkState::Running;
                Ok(())
            }
            Err(SourceError::Gone { earliest }) => self.pass_gone(earliest),
            Err(SourceError::Read { cause }) => desk.wait(&cause, BACKOFF_FIRST),
        }
    }

    /// One window from its cut to its cursor. `reading`: what it took to gather it at last.
    fn window(&mut self, window: Window, reading: Duration) -> Result<(), End> {
        let desk = Arc::clone(&self.desk);
        desk.board().oldest = window.oldest();
        desk.board().paused = None;
        desk.shared.memory.main(window.bytes);
        let Some(intent) = window.intent() else { return Ok(()) };
        let is_full = self.gatherer.is_full(&window);
        faults::at(Point::WindowCut);
        if !planted(Bug::IntentNotDurable) {
            desk.commit(|state| {
                desk.release(state);
                state.intent = Some(intent.clone());
            })?;
        }
        faults::at(Point::IntentDurable);
        let began = Instant::now();
        let (bytes, lost) = self.deliver(window)?;
        let took = began.elapsed().saturating_sub(lost);
        // A window that was cut for its age and written at once says nothing: there was no more.
        if is_full || SLOW_AFTER < took {
            desk.board().drain.add(bytes, took + reading);
        }
        desk.shared.memory.main(0);
        Ok(())
    }

    /// After a crash between an intent and its cursor: exactly that window again.
    fn recover(&mut self) -> Result<(), End> {
        let desk = Arc::clone(&self.desk);
        let Some(intent) = desk.board().state.intent.clone() else { return Ok(()) };
        if planted(Bug::WindowRecut) {
            return desk.commit(|state| state.intent = None);
        }
        let window = loop {
            match reread(&*desk.shared.log, intent.window, |_| true) {
                Ok(window) => break window,
                Err(SourceError::Gone { earliest }) => return self.pass_gone(earliest),
                Err(SourceError::Read { cause }) => desk.wait(&cause, BACKOFF_FIRST)?,
            }
        };
        let again = window.intent();
        if again.as_ref() != Some(&intent) && !planted(Bug::IntentHashIgnored) {
            return Err(End::Fault(format!(
                "the log's window {} is not the one that was promised (hash {}, now {}): nothing \
                 was written",
                intent.window,
                intent.hash,
                again.map_or_else(|| "none".to_owned(), |again| again.hash)
            )));
        }
        desk.board().oldest = window.oldest();
        desk.shared.memory.main(window.bytes);
        let to = window.to;
        self.deliver(window)?;
        desk.shared.memory.main(0);
        self.gatherer.restart(to);
        Ok(())
    }

    /// Retention took what this sink had not read: it was not running, so nothing held it.
    fn pass_gone(&mut self, earliest: Offset) -> Result<(), End> {
        let desk = &self.desk;
        let cursor = desk.board().state.cursor;
        let lost = earliest.since(cursor);
        tracing::error!(
            sink = desk.shared.name,
            from = cursor.0,
            to = earliest.0,
            "retention removed events before this sink read them; they are counted as lost"
        );
        desk.commit(|state| {
            state.cursor = state.cursor.max(earliest);
            state.intent = None;
            state.lost_in_log += lost;
        })?;
        let cursor = desk.board().state.cursor;
        self.gatherer.restart(cursor);
        Ok(())
    }

    /// Has every lane of a window written whose intent is durable, then moves the cursor. Returns
    /// the bytes written, and the time that outages took.
    fn deliver(&mut self, window: Window) -> Result<(u64, Duration), End> {
        let desk = Arc::clone(&self.desk);
        if planted(Bug::CursorBeforeWrite) {
            desk.commit(|state| (state.cursor, state.intent) = (window.to, None))?;
        }
        let oldest = window.oldest();
        let delivery = Delivery::new(window);
        self.crew.deliver(&delivery)?;
        while delivery.wait()?.is_none() {
            desk.check_quit()?;
            self.crew.staff()?;
            self.crew.look_after(&delivery)?;
        }
        let done = delivery.take_done();
        if done.expired {
            let skipped = done.outcomes.iter().filter(|(_, what, _)| *what == Written::Skipped);
            let events: u64 = skipped.map(|(_, _, rows)| rows).sum();
            let (sink, from, to) = (&desk.shared.name, delivery.from.0, delivery.to.0);
            tracing::error!(sink, from, to, events, "a window was given up half written");
            metrics::sink_expired_rows(sink, events);
        }
        faults::at(Point::Delivered);
        self.finish(&delivery, &done)?;
        self.measure(&delivery, oldest, &done.outcomes);
        Ok((done.written_bytes, done.lost_time))
    }

    /// Makes the cursor durable, and tells everybody.
    fn finish(&mut self, delivery: &Delivery, done: &Done) -> Result<(), End> {
        let desk = &self.desk;
        for (held, error) in &done.newly_held {
            desk.put_off(&held.lane, error.clone());
        }
        desk.commit(|state| {
            state.cursor = delivery.to;
            state.intent = None;
            state.lost_in_log += delivery.lost + done.bad.values().sum::<u64>();
            for (lane, written, rows) in &done.outcomes {
                state.count(lane, *written, *rows);
            }
            let at_work = desk.board().at_work.clone();
            for held in &mut state.held {
                match done.waiting.get(&held.lane) {
                    Some(frames) => wait(held, frames),
                    // Nothing of it here: it is where it was, unless somebody is just looking.
                    None if at_work.contains_key(&held.lane) || held.intent.is_some() => {}
                    None if held.cursor == delivery.from => held.cursor = delivery.to,
                    None => {}
                }
            }
            state.held.extend(done.newly_held.iter().map(|(held, _)| held.clone()));
            let slow = done.slow.iter();
            state.held.extend(slow.map(|lane| slow_lane(lane, delivery.to)));
        })?;
        let mut board = desk.board();
        (board.oldest, board.phase) = (None, SinkState::Running);
        Ok(())
    }

    fn measure(
        &self,
        delivery: &Delivery,
        oldest: Option<ReceivedAt>,
        outcomes: &[(Lane, Written, u64)],
    ) {
        let name = &self.desk.shared.name;
        let sum = |which: Written| {
            outcomes.iter().filter(|(_, written, _)| *written == which).map(|(_, _, n)| n).sum()
        };
        metrics::sink_rows(name, sum(Written::Stored));
        metrics::sink_quarantined_rows(name, sum(Written::Quarantined));
        let now = self.desk.clock.now();
        let age = |at: ReceivedAt| now.0.saturating_sub(at.0).max(0) as f64 / 1e6;
        if let Some(oldest) = oldest {
            metrics::sink_freshness_seconds(name, age(oldest));
        }
        for received_at in &delivery.received {
            metrics::sink_visible_seconds(name, age(*received_at));
        }
    }
}

/// Counts the rows of a window for a lane that waits: those that neither its cursor nor its own
/// intent is past.
fn wait(held: &mut Held, frames: &[Waiting]) {
    let promised = held.intent.as_ref().map_or(held.cursor, |intent| intent.window.to());
    let from = promised.max(held.cursor);
    for frame in frames.iter().filter(|frame| from <= frame.base) {
        if held.pending_rows == 0 {
            held.oldest = frame.received_at.0;
        }
        held.pending_rows += frame.rows;
        held.pending_bytes += frame.bytes;
    }
}

/// A lane that was written, and goes on alone from here.
fn slow_lane(lane: &Lane, cursor: Offset) -> Held {
    let (lane, intent) = (lane.clone(), None);
    Held { lane, cursor, intent, pending_rows: 0, pending_bytes: 0, oldest: 0 }
}
