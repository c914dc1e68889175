//! How fast a job may read: what the operator said, and never more than live leaves.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The longest sleep before it is looked again whether to go on.
const NAP: Duration = Duration::from_millis(20);
/// Events that may be read at once beyond the rate: those of this time.
const BURST: Duration = Duration::from_millis(100);
/// While live traffic flows, at least this part of the machine's time stays idle.
const IDLE_LEAST: f64 = 0.2;
const IDLE_ENOUGH: f64 = 0.3;
/// A job never stands still altogether, also where others than live keep the processors busy: its threads
/// have the least priority besides.
const DUTY_LEAST: f64 = 0.1;

/// The pace of one job: all its readers share it.
pub struct Pace {
    stopped: AtomicBool,
    /// Events a second; 0: no limit.
    max_rate: AtomicU64,
    /// The part of the time in which it works, in millionths.
    duty: AtomicU64,
    /// Live events come in.
    live: AtomicBool,
    meter: Mutex<Meter>,
}

struct Meter {
    /// Who goes on while live events come in: one of those who read a part to its end.
    first: Option<u64>,
    /// How many there were.
    readers: u64,
    /// When what was taken so far is within the rate.
    free_at: Instant,
    /// Since when it works.
    since: Instant,
}

impl Pace {
    /// No faster than `max_rate` events a second.
    #[must_use]
    pub fn new(max_rate: Option<u64>) -> Self {
        let now = Instant::now();
        Self {
            stopped: AtomicBool::new(false),
            max_rate: AtomicU64::new(max_rate.unwrap_or(0)),
            duty: AtomicU64::new(1_000_000),
            live: AtomicBool::new(false),
            meter: Mutex::new(Meter { first: None, readers: 0, free_at: now, since: now }),
        }
    }

    /// Ends every wait: the job's readers read no more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// The part of the time in which it works now, at most 1.
    #[must_use]
    pub fn duty(&self) -> f64 {
        self.duty.load(Ordering::Relaxed) as f64 / 1e6
    }

    /// Whether the job may read and write at the same time. While live events come in it does one after
    /// the other, and takes one processor at most: only so the time between two turns is all that it works.
    #[must_use]
    pub fn may_run_ahead(&self) -> bool {
        !self.live.load(Ordering::Relaxed)
    }

    /// Waits until `events` more may be read. Blocks. `whose`: it is one of several that read to the end.
    ///
    /// # Errors
    /// That the job was stopped, or who reads: `quit`.
    pub fn turn(
        &self,
        events: u64,
        quit: &AtomicBool,
        whose: Option<&InLine>,
    ) -> Result<(), String> {
        let mut left = self.book(events, Instant::now());
        loop {
            if self.stopped.load(Ordering::Acquire) || quit.load(Ordering::Acquire) {
                return Err("the job was stopped".to_owned());
            }
            if whose.is_some_and(|whose| !self.goes_on(whose.number)) {
                std::thread::sleep(NAP);
                continue;
            }
            if left.is_zero() {
                self.meter().since = Instant::now();
                return Ok(());
            }
            let nap = left.min(NAP);
            std::thread::sleep(nap);
            left = left.saturating_sub(nap);
        }
    }

    /// Puts one more who reads a part to its end in line, until it is dropped.
    pub fn line_up(self: &Arc<Self>) -> InLine {
        let mut meter = self.meter();
        meter.readers += 1;
        InLine { number: meter.readers, pace: Arc::clone(self) }
    }

    /// While live events come in, whoever asks first goes on until its end, and the others wait.
    fn goes_on(&self, number: u64) -> bool {
        let mut meter = self.meter();
        if self.may_run_ahead() {
            meter.first = None;
            return true;
        }
        *meter.first.get_or_insert(number) == number
    }

    /// How long to wait for `events` at `now`, which are booked.
    fn book(&self, events: u64, now: Instant) -> Duration {
        let mut meter = self.meter();
        let worked = now.saturating_duration_since(meter.since);
        let rest = worked.mul_f64(1.0 / self.duty().max(DUTY_LEAST) - 1.0);
        let rate = self.max_rate.load(Ordering::Relaxed);
        if rate == 0 {
            return rest;
        }
        let free_at = meter.free_at.max(now.checked_sub(BURST).unwrap_or(now));
        meter.free_at = free_at + Duration::from_secs_f64(events as f64 / rate as f64);
        rest.max(free_at.saturating_duration_since(now))
    }

    fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Live events come in: nothing is read ahead from now on, until a look finds none.
    pub fn give_way(&self) {
        self.live.store(true, Ordering::Relaxed);
    }

    /// Takes what was seen of the machine into account: whether live events came in, and which part of
    /// the processors' time was idle, where that is known.
    pub fn look(&self, live: bool, idle: Option<f64>) {
        self.live.store(live, Ordering::Relaxed);
        let duty = self.duty();
        let next = match (live, idle) {
            (false, _) => 1.0,
            (true, Some(idle)) if idle < IDLE_LEAST => (duty * 0.7).max(DUTY_LEAST),
            (true, Some(idle)) if IDLE_ENOUGH < idle => (duty * 1.15).min(1.0),
            (true, _) => duty,
        };
        self.duty.store((next * 1e6) as u64, Ordering::Relaxed);
    }
}

/// One of those who read a part of the window to its end.
pub struct InLine {
    number: u64,
    pace: Arc<Pace>,
}

impl InLine {
    /// It is at its end: another may go on.
    pub fn let_on(&self) {
        let mut meter = self.pace.meter();
        meter.first.take_if(|first| *first == self.number);
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.let_on();
    }
}

/// The processors' time since the machine's start, as the system counts it: all of it, and what was idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processors {
    all: u64,
    idle: u64,
}

impl Processors {
    /// As it stands in the first line of `/proc/stat` (proc(5)): user, nice, system, idle, iowait, …
    #[must_use]
    pub fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let times: Vec<u64> =
            line.split_whitespace().map_while(|t| t.parse().ok()).take(8).collect();
        let idle = times.get(3)? + times.get(4).copied().unwrap_or(0);
        Some(Self { all: times.iter().sum(), idle })
    }

    /// Now; `None` where the system does not say.
    #[must_use]
    pub fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// Which part of the time since `before` was idle, from 0 to 1; 1 where no time passed.
    #[must_use]
    pub fn idle_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all);
        if all == 0 {
            return 1.0;
        }
        self.idle.saturating_sub(before.idle) as f64 / all as f64
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn while_live_events_come_in_one_reader_goes_on_and_then_the_next() {
        let pace = Arc::new(Pace::new(None));
        let (on, quit) = (AtomicBool::new(false), AtomicBool::new(true));
        let (first, second) = (pace.line_up(), pace.line_up());
        let goes_on = |who: &InLine| pace.goes_on(who.number);
        assert!(goes_on(&first) && goes_on(&second), "nobody is in the way");
        pace.give_way();
        assert_eq!(pace.turn(1, &on, Some(&second)), Ok(()));
        assert!(!goes_on(&first) && goes_on(&second));
        // Who waits can be ended, and who is no part of the line goes on.
        assert!(pace.turn(1, &quit, Some(&first)).is_err());
        assert_eq!(pace.turn(1, &on, None), Ok(()));
        second.let_on();
        assert_eq!(pace.turn(1, &on, Some(&first)), Ok(()));
        assert!(!goes_on(&second));
        drop(first);
        assert!(goes_on(&second));
        pace.look(false, None);
        let third = pace.line_up();
        assert!(goes_on(&second) && goes_on(&third), "together again");
    }

    #[test]
    fn a_rate_is_kept_whatever_the_size_of_the_turns() {
        let pace = Pace::new(Some(1_000));
        let start = Instant::now() + Duration::from_secs(1);
        // 5,000 events at 1,000 a second, in turns of 500: the last may begin after 4.4 s.
        let mut now = start;
        for _ in 0..10 {
            now += pace.book(500, now);
        }
        let took = now.duration_since(start).as_secs_f64();
        assert!((4.3..4.6).contains(&took), "{took}");
    }

    #[test]
    fn without_live_traffic_nothing_is_held_back() {
        let pace = Pace::new(None);
        assert!(pace.may_run_ahead());
        for _ in 0..50 {
            pace.look(true, Some(0.0));
            assert!(!pace.may_run_ahead());
        }
        assert!((pace.duty() - DUTY_LEAST).abs() < 1e-6);
        let now = Instant::now();
        pace.meter().since = now.checked_sub(Duration::from_millis(10)).unwrap();
        let rest = pace.book(1, now);
        assert!(rest >= Duration::from_millis(80), "{rest:?}");
        pace.look(false, Some(0.0));
        assert!((pace.duty() - 1.0).abs() < 1e-6 && pace.may_run_ahead());
        pace.give_way();
        assert!(!pace.may_run_ahead());
        for unchanged in [Some(0.25), None] {
            pace.look(true, unchanged);
            assert!((pace.duty() - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn a_job_that_is_stopped_waits_no_longer() {
        let pace = Pace::new(Some(1));
        let (on, quit) = (AtomicBool::new(false), AtomicBool::new(true));
        assert_eq!(pace.turn(1, &on, None), Ok(()));
        assert!(pace.turn(1_000_000, &quit, None).is_err());
        pace.stop();
        assert!(pace.turn(1_000_000, &on, None).is_err());
    }

    #[test]
    fn idle_time_is_read_as_the_system_writes_it() {
        let before = Processors::parse("cpu  10 0 10 80 0 0 0 0 0 0\ncpu0 1 2 3").unwrap();
        let after = Processors::parse("cpu  20 0 20 150 10 0 0 0 0 0\n").unwrap();
        assert!((after.idle_since(before) - 0.8).abs() < 1e-9);
        assert!((before.idle_since(before) - 1.0).abs() < 1e-9);
        assert_eq!(Processors::parse("intr 1"), None);
    }
}
