//! The threads of one sink and partition: the window's writer, and those of the lanes that wait alone.
//!
//! At most [`LANES_AT_ONCE`] lanes are written beside the main loop, of one tenant at most
//! [`LANES_OF_ONE`]: whoever has many slow lanes holds up his own. A thread is started when a lane is
//! due, takes one due lane after the other, and ends when there is none.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tidegate_event::TenantId;

use super::{
    delivery::Delivery,
    desk::{BACKOFF_FIRST, Desk, End, PANICKED},
    memory::Aside,
    pace::HAND_OFF_AFTER,
    rows::Lane,
    state::Held,
    status::SinkState,
};

/// Lanes written beside the main loop at once, for each sink and partition.
pub const LANES_AT_ONCE: usize = 4;
/// Of these, lanes of one tenant.
pub const LANES_OF_ONE: usize = 2;

/// How long a destination that answered is taken to answer.
const ANSWER_HOLDS: Duration = Duration::from_secs(5);

impl Desk {
    /// True where the tenant has as many writes that do not end as it may have: one more could not
    /// be handed off.
    pub fn is_crowded(&self, tenant: &TenantId) -> bool {
        let board = self.board();
        let hanging = board
            .at_work
            .iter()
            .filter(|(lane, since)| lane.tenant == *tenant && HAND_OFF_AFTER <= since.elapsed());
        LANES_OF_ONE <= hanging.count()
    }

    /// Takes the held lane that is due first and that nobody is at.
    pub fn claim(self: &Arc<Self>) -> Option<Claim> {
        let mut board = self.board();
        self.shared.memory.want_nothing();
        let (now, limit) = (Instant::now(), board.limit());
        let at = |held: &Held| board.notes.get(&held.lane).and_then(|note| note.at).unwrap_or(now);
        let mut due: Vec<&Held> =
            board.state.held.iter().filter(|held| is_due(held, limit) && at(held) <= now).collect();
        due.sort_by_key(|held| at(held));
        let found = due.into_iter().find_map(|held| {
            has_seat(&board.at_work, &held.lane).then_some(())?;
            let own = self.cut.bytes.min(self.shared.memory.lane_cut());
            let bytes = match held.intent {
                // It is as large as it was cut; what waits besides is counted with it.
                Some(_) => held.pending_bytes.min(self.cut.bytes).max(1),
                None => held.pending_bytes.clamp(1, own),
            };
            Some((held.clone(), self.shared.memory.aside(bytes)?))
        });
        let (held, aside) = found?;
        board.at_work.insert(held.lane.clone(), now);
        drop(board);
        let seat = Seat { desk: Arc::clone(self), lane: held.lane.clone() };
        Some(Claim { held, _seat: seat, _aside: aside })
    }

    /// Takes a seat for a lane whose write is handed off.
    fn take_seat(&self, lane: &Lane, since: Instant) -> bool {
        let mut board = self.board();
        let free = has_seat(&board.at_work, lane);
        if free {
            board.at_work.insert(lane.clone(), since);
        }
        free
    }

    /// True where no lane is written alone, and none is due.
    pub fn is_idle(&self) -> bool {
        let board = self.board();
        let (now, limit) = (Instant::now(), board.limit());
        let at = |held: &Held| board.notes.get(&held.lane).and_then(|note| note.at).unwrap_or(now);
        board.at_work.is_empty()
            && !board.state.held.iter().any(|held| is_due(held, limit) && at(held) <= now)
    }
}

fn is_due(held: &Held, limit: tidegate_event::Offset) -> bool {
    held.intent.is_some() || held.cursor < limit
}

fn has_seat(at_work: &BTreeMap<Lane, Instant>, lane: &Lane) -> bool {
    let own = at_work.keys().filter(|other| other.tenant == lane.tenant).count();
    !at_work.contains_key(lane) && at_work.len() < LANES_AT_ONCE && own < LANES_OF_ONE
}

/// A held lane that one thread is at, until dropped.
pub(super) struct Claim {
    /// As it was found.
    pub held: Held,
    _seat: Seat,
    _aside: Aside,
}

struct Seat {
    desk: Arc<Desk>,
    lane: Lane,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.desk.board().at_work.remove(&self.lane);
    }
}

/// Says so where a thread panics: none of the others goes on.
struct Farewell<'a>(&'a Desk);

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(PANICKED.to_owned());
        }
    }
}

/// The main loop's side of its threads.
pub(super) struct Crew {
    desk: Arc<Desk>,
    threads: Vec<JoinHandle<()>>,
    writer: Option<SyncSender<Arc<Delivery>>>,
    probe: Option<Probe>,
}

/// A question to the destination that may take long.
struct Probe {
    asked: Instant,
    answer: Arc<Mutex<Option<Result<(), String>>>>,
}

impl Crew {
    pub fn new(desk: Arc<Desk>) -> Self {
        Self { desk, threads: Vec::new(), writer: None, probe: None }
    }

    fn spawn(
        &mut self,
        what: &str,
        work: impl FnOnce(&Arc<Desk>) + Send + 'static,
    ) -> Result<(), End> {
        let (ended, running) =
            std::mem::take(&mut self.threads).into_iter().partition(JoinHandle::is_finished);
        self.threads = running;
        join(ended);
        let desk = Arc::clone(&self.desk);
        let name = format!("{what}-{}-{}", desk.shared.name, desk.shared.log.partition());
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _farewell = Farewell(&desk);
            work(&desk);
        });
        match thread {
            Ok(thread) => self.threads.push(thread),
            Err(error) => return self.desk.wait(&format!("no thread: {error}"), BACKOFF_FIRST),
        }
        Ok(())
    }

    /// Gives the window to a writer.
    pub fn deliver(&mut self, delivery: &Arc<Delivery>) -> Result<(), End> {
        loop {
            if let Some(writer) = &self.writer
                && writer.send(Arc::clone(delivery)).is_ok()
            {
                return Ok(());
            }
            self.desk.check_quit()?;
            let (writer, windows) = sync_channel::<Arc<Delivery>>(1);
            self.writer = Some(writer);
            self.spawn("writer", move |desk| {
                while let Ok(delivery) = windows.recv() {
                    let turn = delivery.turn();
                    delivery.write(desk, turn);
                    if delivery.turn() != turn {
                        return;
                    }
                }
            })?;
        }
    }

    /// Starts threads for the lanes that are due.
    pub fn staff(&mut self) -> Result<(), End> {
        while let Some(first) = self.desk.claim() {
            self.spawn("lane", move |desk| {
                let mut claim = Some(first);
                while let Some(mine) = claim {
                    let stepped = desk.step(&mine.held);
                    drop(mine);
                    match stepped {
                        Ok(()) => claim = desk.claim(),
                        Err(End::Fault(error)) => return desk.fail(error),
                        Err(End::Quit | End::Drained) => return,
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Looks after a write that does not end: unless it is the destination as a whole that does not
    /// answer, the lane is held, and its writer has nothing but this write left.
    pub fn look_after(&mut self, delivery: &Arc<Delivery>) -> Result<(), End> {
        let Some(overdue) = delivery.overdue(&self.desk) else {
            self.probe.take_if(|probe| probe.answer().is_some());
            return Ok(());
        };
        if !self.has_answer()? || !self.desk.take_seat(&overdue.lane, overdue.since) {
            return Ok(());
        }
        let room = delivery.set_aside(&self.desk.shared.memory);
        let Some(held) = room.then(|| delivery.take_over(&overdue)).flatten() else {
            self.desk.board().at_work.remove(&overdue.lane);
            return Ok(());
        };
        let (sink, lane) = (&self.desk.shared.name, &overdue.lane);
        tracing::warn!(sink, %lane, "a write does not end: the others go on without it");
        self.desk.commit(|state| state.held.push(held.clone()))?;
        let error = "its write does not end".to_owned();
        self.desk.board().notes.entry(lane.clone()).or_default().error = error;
        delivery.hand_off(held);
        self.writer = None;
        self.deliver(delivery)
    }

    /// Asks the destination whether it takes anything at all, on a thread of its own; true once it
    /// says so.
    fn has_answer(&mut self) -> Result<bool, End> {
        let Some(probe) = &self.probe else {
            let answer = Arc::new(Mutex::new(None));
            let asked = Probe { asked: Instant::now(), answer: Arc::clone(&answer) };
            self.probe = Some(asked);
            self.spawn("probe", move |desk| {
                let said = desk.sink.probe();
                *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
            })?;
            return Ok(false);
        };
        let error = match probe.answer() {
            // Good for a while: where there is no seat, it is not asked at every look.
            Some(Ok(())) => {
                self.probe.take_if(|probe| ANSWER_HOLDS <= probe.asked.elapsed());
                return Ok(self.probe.is_some());
            }
            Some(Err(error)) => error,
            None if probe.asked.elapsed() < HAND_OFF_AFTER => return Ok(false),
            None => "the destination does not answer".to_owned(),
        };
        let again = BACKOFF_FIRST.saturating_sub(probe.asked.elapsed());
        self.desk.board().phase = SinkState::Waiting { error, retry_in: again };
        self.probe.take_if(|probe| probe.answer().is_some() && again.is_zero());
        Ok(false)
    }

    /// Waits for all threads: none is left when this returns.
    pub fn end(&mut self) {
        self.writer = None;
        join(std::mem::take(&mut self.threads));
    }
}

impl Probe {
    fn answer(&self) -> Option<Result<(), String>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        drop(Farewell(&self.desk));
        self.end();
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a sink's thread had panicked");
        }
    }
}
