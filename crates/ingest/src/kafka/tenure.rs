//! One partition while it is ours: its state, its books, and the thread that counts and decides.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    duplicates::DecidedLog,
    ledger::{CountError, Ledger},
    state::Kept,
};
use crate::{
    sink::{source::LogSource, state::SaveError},
    writer::WriterSettings,
};

/// How often the books are looked after where nothing comes.
const TICK: Duration = Duration::from_millis(200);
/// Counted for so long at once; then whoever asks for the books has its turn.
const COUNT_FOR: Duration = Duration::from_millis(200);
/// When what failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// How many ids this process remembers, shared by the partitions it has.
pub(super) struct IdsRoom {
    each: usize,
    all: usize,
    partitions: AtomicUsize,
}

impl IdsRoom {
    pub fn new(settings: &WriterSettings) -> Self {
        let (each, all) = (settings.dedup_ids, settings.dedup_ids_all);
        Self { each, all, partitions: AtomicUsize::new(0) }
    }

    /// How many of one partition.
    pub fn share(&self) -> usize {
        self.each.min(self.all / self.partitions.load(Ordering::Relaxed).max(1))
    }

    pub fn shared_by(&self, partitions: usize) {
        self.partitions.store(partitions, Ordering::Relaxed);
    }
}

/// A partition that is ours.
pub(super) struct Tenure {
    pub kept: Arc<Kept>,
    pub ledger: Arc<Ledger>,
    over: Arc<AtomicBool>,
    problem: Arc<Mutex<Option<String>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Tenure {
    /// Begins to count and decide.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn begin(kept: Arc<Kept>, ledger: Arc<Ledger>) -> std::io::Result<Self> {
        let (over, problem) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let work = Work {
            ledger: Arc::clone(&ledger),
            over: Arc::clone(&over),
            problem: Arc::clone(&problem),
        };
        let name = format!("kafka-books-{}", ledger.log().partition());
        let thread = std::thread::Builder::new().name(name).spawn(move || work.run())?;
        Ok(Self { kept, ledger, over, problem, thread: Mutex::new(Some(thread)) })
    }

    /// The partition as its sinks read it.
    pub fn view(&self) -> Arc<dyn LogSource> {
        view(&self.ledger)
    }

    /// Why it does not go on, if so.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts no more; on return nothing is being decided.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that counts a partition had panicked");
        }
    }
}

impl Drop for Tenure {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
    }
}

/// The partition of a ledger as its sinks read it.
pub(super) fn view(ledger: &Ledger) -> Arc<dyn LogSource> {
    Arc::new(DecidedLog::new(Arc::clone(ledger.log()), Arc::clone(ledger.decisions())))
}

struct Work {
    ledger: Arc<Ledger>,
    over: Arc<AtomicBool>,
    problem: Arc<Mutex<Option<String>>>,
}

impl Work {
    fn run(&self) {
        while !self.over.load(Ordering::Acquire) {
            let log = self.ledger.log();
            log.wait_past(self.ledger.as_of(), TICK);
            let until = Some(Instant::now() + COUNT_FOR);
            let go_on = || !self.over.load(Ordering::Acquire);
            let counted = self.ledger.count_up_to(log.latest(), until, go_on);
            let saved = self.ledger.save(false).map_err(CountError::Save);
            self.tell(counted.and(saved));
        }
    }

    fn tell(&self, done: Result<(), CountError>) {
        let problem = done.err();
        // Whoever took the partition goes on with it; what is left to do here is to give it back.
        let fenced = matches!(problem, Some(CountError::Save(SaveError::Fenced)));
        let text = problem.as_ref().map(ToString::to_string);
        let mut told = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = text.as_ref().filter(|text| !fenced && told.as_ref() != Some(text)) {
            tracing::warn!(
                partition = self.ledger.log().partition().0,
                error,
                "the books of a partition go no further now, nor do its sinks; tried again"
            );
        }
        *told = text;
        drop(told);
        if problem.is_some() {
            std::thread::sleep(AGAIN);
        }
    }
}
