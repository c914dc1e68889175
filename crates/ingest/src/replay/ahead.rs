//! Reads a log ahead of whoever takes from it: on a thread of its own, bounded in bytes.
//!
//! ```text
//! log ─▶ judged again ─▶ chunk ─▶ line, at most `bound` ─▶ who gathers windows, and writes them
//!        (this thread)                                      (the sink's)
//! ```
//!
//! What comes out is what the reader gave, in its order, an error or the end of the log at its place. Nothing
//! depends on how far it is ahead: what nobody took is read again by the next reader.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::sink::source::{SourceEntry, SourceError, SourceReader};

/// Handed over at once: a thread is not woken for each small batch.
const CHUNK_BYTES: u64 = 256 << 10;
/// The same where the reader is slow.
const CHUNK_TIME: Duration = Duration::from_millis(20);
/// What an entry takes beside its batch.
const ENTRY_BYTES: u64 = size_of::<SourceEntry>() as u64;

/// A reader with a thread of its own, which ends with it.
pub(super) struct Ahead {
    line: Arc<Line>,
    thread: Option<JoinHandle<()>>,
    /// What was taken last.
    chunk: Chunk,
}

/// Entries in their order, and what came behind them.
#[derive(Default)]
struct Chunk {
    entries: VecDeque<SourceEntry>,
    bytes: u64,
    /// The reader's end for now, or why it could not go on.
    end: Option<Result<(), SourceError>>,
}

/// What lies between the two threads.
struct Line {
    bound: u64,
    /// Nobody takes any more.
    quit: Arc<AtomicBool>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Chunk>,
    /// Of all that is ready, and of what was taken last.
    bytes: u64,
    /// Somebody waits for the next chunk.
    asked: bool,
    /// No more will come.
    ended: bool,
    #[cfg(test)]
    most: u64,
}

impl Ahead {
    /// Reads `reader` ahead by at most `bound` bytes, apart from the batch that passes it, and only while `may`
    /// says so: else a chunk is read when it is asked for, and the two threads take turns. `quit` becomes true
    /// when this is dropped, so that `reader` need not end a wait.
    ///
    /// # Errors
    /// That there is no thread.
    pub fn start(
        mut reader: Box<dyn SourceReader>,
        bound: u64,
        quit: Arc<AtomicBool>,
        may: impl Fn() -> bool + Send + 'static,
    ) -> std::io::Result<Self> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let line = Arc::new(Line { bound, quit, state, changed });
        let own = Arc::clone(&line);
        // As nice as the thread that starts it.
        let thread = std::thread::Builder::new().name("replay-ahead".to_owned()).spawn(move || {
            let _deathbed = Deathbed(&own);
            own.fill(&mut *reader, &may);
        });
        Ok(Self { line, thread: Some(thread?), chunk: Chunk::default() })
    }
}

impl SourceReader for Ahead {
    fn next(&mut self) -> Result<Option<SourceEntry>, SourceError> {
        loop {
            if let Some(entry) = self.chunk.entries.pop_front() {
                return Ok(Some(entry));
            }
            if let Some(end) = self.chunk.end.take() {
                return end.map(|()| None);
            }
            self.chunk = self.line.take(self.chunk.bytes)?;
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.line.quit.store(true, Ordering::Release);
        // Under the lock, so that it comes neither before a look at `quit` nor between that and the wait.
        drop(self.line.state());
        self.line.changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that reads ahead had panicked");
        }
    }
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: chunk after chunk.
    fn fill(&self, reader: &mut dyn SourceReader, may: &dyn Fn() -> bool) {
        let mut at_end = false;
        while self.wait_for_turn(|| !at_end && may()) {
            let chunk = read(reader);
            at_end = chunk.end.is_some();
            self.put(chunk);
        }
    }

    /// Waits until a chunk is asked for, or may be read ahead and has room; false once it is to end.
    fn wait_for_turn(&self, may: impl Fn() -> bool) -> bool {
        let waiting = |state: &mut State| {
            let wanted = state.asked && state.ready.is_empty();
            let room = state.bytes + CHUNK_BYTES <= self.bound;
            let is_turn = self.quit.load(Ordering::Acquire) || wanted || (room && may());
            !is_turn
        };
        let waited = self.changed.wait_while(self.state(), waiting);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        !self.quit.load(Ordering::Acquire)
    }

    fn put(&self, chunk: Chunk) {
        let mut state = self.state();
        state.asked = false;
        state.bytes += chunk.bytes;
        state.ready.push_back(chunk);
        #[cfg(test)]
        (state.most = state.most.max(state.bytes));
        drop(state);
        self.changed.notify_all();
    }

    /// The next chunk; `done`: the bytes of the last one, which is used up.
    fn take(&self, done: u64) -> Result<Chunk, SourceError> {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(done);
        state.asked = state.ready.is_empty();
        self.changed.notify_all();
        let waiting = |state: &mut State| state.ready.is_empty() && !state.ended;
        let waited = self.changed.wait_while(state, waiting);
        waited.unwrap_or_else(PoisonError::into_inner).ready.pop_front().ok_or_else(|| {
            SourceError::Read { cause: "the thread that reads ahead has ended".to_owned() }
        })
    }
}

/// Says so where the thread ends, also where it panics.
struct Deathbed<'a>(&'a Line);

impl Drop for Deathbed<'_> {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.changed.notify_all();
    }
}

fn read(reader: &mut dyn SourceReader) -> Chunk {
    let (mut chunk, began) = (Chunk::default(), Instant::now());
    while chunk.bytes < CHUNK_BYTES && (chunk.entries.is_empty() || began.elapsed() < CHUNK_TIME) {
        match reader.next() {
            Ok(Some(entry)) => {
                chunk.bytes += bytes(&entry);
                chunk.entries.push_back(entry);
            }
            Ok(None) => {
                chunk.end = Some(Ok(()));
                break;
            }
            Err(error) => {
                chunk.end = Some(Err(error));
                break;
            }
        }
    }
    chunk
}

fn bytes(entry: &SourceEntry) -> u64 {
    match entry {
        SourceEntry::Frame(frame) => frame.body.len() as u64 + ENTRY_BYTES,
        SourceEntry::Quarantined(_) | SourceEntry::Empty(_) => ENTRY_BYTES,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use bytes::Bytes;
    use proptest::prelude::*;
    use tidegate_event::{Offset, OffsetRange, ReceivedAt};

    use super::*;
    use crate::sink::source::SourceFrame;

    /// What a reader gives, in order; then the end of the log, for ever.
    #[derive(Clone, Debug)]
    enum Step {
        Frame(usize),
        Empty,
        Lost,
        End,
        Fault,
        Panic,
    }

    struct Steps {
        steps: VecDeque<Step>,
        at: u64,
        /// Told of each step before it is done.
        told: Option<SyncSender<u64>>,
    }

    impl SourceReader for Steps {
        fn next(&mut self) -> Result<Option<SourceEntry>, SourceError> {
            if let Some(told) = &self.told {
                // Nobody may listen any more.
                let _heard = told.send(self.at);
            }
            let range = OffsetRange::new(Offset(self.at), Offset(self.at + 1)).unwrap();
            self.at += 1;
            Ok(match self.steps.pop_front() {
                Some(Step::Frame(bytes)) => Some(SourceEntry::Frame(SourceFrame {
                    base: range.from(),
                    count: 1,
                    received_at: ReceivedAt(0),
                    body: Bytes::from(vec![0; bytes]),
                })),
                Some(Step::Empty) => Some(SourceEntry::Empty(range)),
                Some(Step::Lost) => Some(SourceEntry::Quarantined(range)),
                Some(Step::Fault) => {
                    return Err(SourceError::Read { cause: self.at.to_string() });
                }
                Some(Step::Panic) => panic!("on purpose"),
                Some(Step::End) | None => None,
            })
        }
    }

    fn steps(steps: impl IntoIterator<Item = Step>) -> Box<Steps> {
        Box::new(Steps { steps: steps.into_iter().collect(), at: 0, told: None })
    }

    fn ahead(reader: Box<Steps>, bound: u64, may: bool) -> Ahead {
        Ahead::start(reader, bound, Arc::default(), move || may).unwrap()
    }

    /// What a call gave, as text.
    fn next(reader: &mut dyn SourceReader) -> String {
        match reader.next() {
            Ok(Some(SourceEntry::Frame(frame))) => format!("{} {}", frame.base, frame.body.len()),
            other => format!("{other:?}"),
        }
    }

    /// Waits until all steps below `to` were begun, and gives how many were in the end.
    fn begun(told: &Receiver<u64>, to: u64) -> u64 {
        let (mut begun, patience) = (0, Duration::from_secs(60));
        while begun < to {
            begun = told.recv_timeout(patience).unwrap() + 1;
        }
        while let Ok(step) = told.recv_timeout(Duration::from_millis(50)) {
            begun = step + 1;
        }
        begun
    }

    proptest! {
        #[test]
        fn what_comes_is_what_the_reader_gave_within_the_bound(
            given in prop::collection::vec(prop_oneof![
                5 => (0usize..400_000).prop_map(Step::Frame),
                1 => Just(Step::Empty), 1 => Just(Step::Lost),
                1 => Just(Step::End), 1 => Just(Step::Fault),
            ], 0..40),
            bound in 0u64..2_000_000, may in any::<bool>(), more in 1usize..5,
        ) {
            let mut plain = steps(given.clone());
            let mut reader = ahead(steps(given.clone()), bound, may);
            // The end is asked for more than once: a log may grow.
            for _ in 0..given.len() + more {
                prop_assert_eq!(next(&mut reader), next(&mut *plain));
            }
            let most = reader.line.state().most;
            // A chunk ends with the batch that fills it; what is asked for is read in any case.
            prop_assert!(most <= bound.max(CHUNK_BYTES) + 400_000 + ENTRY_BYTES, "{}", most);
        }
    }

    #[test]
    fn it_reads_on_by_itself_until_its_bound_and_no_further() {
        let (tell, told) = sync_channel(1_000);
        let mut reader = steps(vec![Step::Frame(64 << 10); 400]);
        reader.told = Some(tell);
        let mut ahead = ahead(reader, 4 << 20, true);
        // Four to a chunk, or fewer; another chunk must have room.
        let read = begun(&told, 60);
        assert!((60..64).contains(&read), "{read} of 64 KiB each");
        // What is taken is room for as much, but for the chunk that is being taken.
        for _ in 0..40 {
            ahead.next().unwrap().unwrap();
        }
        let read = begun(&told, 96);
        assert!((96..104).contains(&read), "{read}");
    }

    #[test]
    fn where_it_may_not_run_ahead_nothing_is_read_that_is_not_asked_for() {
        let (tell, told) = sync_channel(1_000);
        let mut reader = steps(vec![Step::Frame(CHUNK_BYTES as usize); 10]);
        reader.told = Some(tell);
        let mut ahead = ahead(reader, 4 << 20, false);
        assert_eq!(begun(&told, 0), 0);
        for offset in 0..10 {
            assert_eq!(next(&mut ahead), format!("{offset} {CHUNK_BYTES}"));
            assert_eq!(begun(&told, offset + 1), offset + 1);
        }
    }

    #[test]
    fn behind_an_error_nothing_is_read_until_it_was_seen() {
        let (tell, told) = sync_channel(1_000);
        let mut reader = steps([Step::Frame(1), Step::Fault, Step::Frame(2)]);
        reader.told = Some(tell);
        let mut ahead = ahead(reader, 4 << 20, true);
        assert_eq!(begun(&told, 2), 2);
        assert_eq!(next(&mut ahead), "0 1");
        assert!(next(&mut ahead).contains("Read"));
        assert_eq!(begun(&told, 0), 0);
        assert_eq!(next(&mut ahead), "2 2");
    }

    #[test]
    fn a_reader_that_is_let_go_ends_its_thread_whatever_that_waits_for() {
        // At its bound; never asked; at the end.
        for (given, may) in [(400, true), (400, false), (0, true)] {
            let quit = Arc::<AtomicBool>::default();
            let reader = steps(vec![Step::Frame(64 << 10); given]);
            let ahead = Ahead::start(reader, 1 << 20, Arc::clone(&quit), move || may).unwrap();
            drop(ahead);
            // Its thread, which had the only other one, is no more.
            assert!(quit.load(Ordering::Acquire));
            assert_eq!(Arc::strong_count(&quit), 1);
        }
    }

    #[test]
    fn a_thread_that_panics_is_an_error_behind_what_it_gave() {
        let given = [Step::Frame(CHUNK_BYTES as usize), Step::Frame(1), Step::Panic];
        let mut ahead = ahead(steps(given), 1 << 20, true);
        assert_eq!(next(&mut ahead), format!("0 {CHUNK_BYTES}"));
        for _ in 0..2 {
            assert!(next(&mut ahead).contains("has ended"));
        }
    }
}
