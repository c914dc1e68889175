//! What a run of load measured.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::ctl::{fault::Fault, public::Kept};

/// Latencies above an hour count as an hour.
const LATENCY_MICROS_MAX: u64 = 3_600_000_000;

/// Counts and latencies; each thread has its own, added up at the end.
#[derive(Debug)]
pub struct Stats {
    /// Events in requests that were sent, answered or not; a retry counts once more.
    pub sent: u64,
    /// Requests sent.
    pub requests: u64,
    /// Sent again after a refusal.
    pub retries: u64,
    /// What the answers said.
    pub kept: Kept,
    /// Bytes of bodies whose events were kept.
    pub bytes: u64,
    /// Answers by status.
    pub codes: BTreeMap<u16, u64>,
    /// Refusals by `X-Shed-Reason`.
    pub shed: BTreeMap<String, u64>,
    /// Requests without an answer, by kind.
    pub errors: BTreeMap<&'static str, u64>,
    /// Microseconds from when a request was due (open loop) or sent (closed loop) to its 200.
    pub latency: Histogram<u64>,
    /// The same for answers other than 200.
    pub refused: Histogram<u64>,
    /// When the last answer came.
    pub last: Option<Instant>,
    /// Acknowledged events that could not be written to the journal, their ids being unknown.
    pub unjournaled: u64,
    /// Refused with 429 or 503 without a Retry-After.
    pub untold: u64,
    /// Refused requests that waited exactly as told and were sent again, where clients do that.
    pub waited: u64,
    /// How many of those were not refused for now again.
    pub waited_let_in: u64,
    /// How long its threads were ready to run and had no CPU, where the system tells.
    pub starved: Duration,
    /// Answers whose latency is not among the others, the load itself having stood still meanwhile.
    pub stalled: u64,
    /// What was let in, by tenths of a second since the run's start.
    pub tenths: Vec<Let>,
}

/// What was let in during a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Let {
    /// Events accepted.
    pub events: u64,
    /// Bytes, as sent, of bodies that were not refused for now: what a quota of bytes counts.
    pub bytes: u64,
}

impl Let {
    /// Adds another while's.
    pub fn add(&mut self, other: Self) {
        self.events += other.events;
        self.bytes += other.bytes;
    }
}

/// What the run as a whole was like.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// From the first due time to the last answer.
    pub elapsed: Duration,
    /// CPU time of this process, where the system tells.
    pub cpu_seconds: Option<f64>,
    /// Requests that were due and never sent, the connections being busy.
    pub unsent_requests: u64,
}

impl Stats {
    /// Nothing yet.
    ///
    /// # Errors
    /// [`Fault::Failed`]: never with these bounds.
    pub fn new() -> Result<Self, Fault> {
        let histogram = || {
            Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3)
                .map_err(|e| Fault::failed(format!("cannot measure latencies: {e}"), ""))
        };
        Ok(Self {
            sent: 0,
            requests: 0,
            retries: 0,
            kept: Kept::default(),
            bytes: 0,
            codes: BTreeMap::new(),
            shed: BTreeMap::new(),
            errors: BTreeMap::new(),
            latency: histogram()?,
            refused: histogram()?,
            last: None,
            unjournaled: 0,
            untold: 0,
            waited: 0,
            waited_let_in: 0,
            starved: Duration::ZERO,
            stalled: 0,
            tenths: Vec::new(),
        })
    }

    /// Notes how long an answer took.
    pub fn took(&mut self, latency: Duration, ok: bool) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let histogram = if ok { &mut self.latency } else { &mut self.refused };
        histogram.saturating_record(micros.max(1));
    }

    /// Notes what a 200 said.
    pub fn keep(&mut self, kept: &Kept, bytes: u64) {
        self.kept.accepted += kept.accepted;
        self.kept.dead_lettered += kept.dead_lettered;
        self.kept.deduplicated += kept.deduplicated;
        self.kept.rejected += kept.rejected;
        self.bytes += bytes;
    }

    /// Notes what was let in so long after the run's start.
    pub fn let_in(&mut self, after: Duration, what: Let) {
        // A run of a day has a million tenths: enough, and a bound.
        let tenth = usize::try_from(after.as_millis() / 100).unwrap_or(usize::MAX).min(1 << 20);
        if self.tenths.len() <= tenth {
            self.tenths.resize(tenth + 1, Let::default());
        }
        if let Some(slot) = self.tenths.get_mut(tenth) {
            slot.add(what);
        }
    }

    /// What was let in between two moments of the run, in whole tenths of a second.
    #[must_use]
    pub fn let_in_between(&self, from: Duration, to: Duration) -> Let {
        let tenth = |at: Duration| usize::try_from(at.as_millis() / 100).unwrap_or(usize::MAX);
        let mut sum = Let::default();
        let slots = self.tenths.iter().take(tenth(to)).skip(tenth(from));
        slots.for_each(|slot| sum.add(*slot));
        sum
    }

    /// Adds another thread's.
    ///
    /// # Errors
    /// [`Fault::Failed`]: never, the bounds being the same.
    pub fn add(&mut self, other: &Self) -> Result<(), Fault> {
        self.sent += other.sent;
        self.requests += other.requests;
        self.retries += other.retries;
        self.unjournaled += other.unjournaled;
        self.untold += other.untold;
        self.waited += other.waited;
        self.waited_let_in += other.waited_let_in;
        self.starved += other.starved;
        self.stalled += other.stalled;
        for (tenth, what) in (0_u64..).zip(&other.tenths) {
            self.let_in(Duration::from_millis(tenth * 100), *what);
        }
        self.last = self.last.max(other.last);
        self.keep(&other.kept, other.bytes);
        for (code, n) in &other.codes {
            *self.codes.entry(*code).or_default() += n;
        }
        for (reason, n) in &other.shed {
            *self.shed.entry(reason.clone()).or_default() += n;
        }
        for (kind, n) in &other.errors {
            *self.errors.entry(kind).or_default() += n;
        }
        let added =
            self.latency.add(&other.latency).and_then(|()| self.refused.add(&other.refused));
        added.map_err(|e| Fault::failed(format!("cannot add up latencies: {e}"), ""))
    }

    /// The report for programs.
    #[must_use]
    pub fn document(&self, run: &Run, setting: Map<String, Value>) -> Value {
        let seconds = run.elapsed.as_secs_f64();
        let codes: BTreeMap<_, _> = self.codes.iter().map(|(c, n)| (c.to_string(), n)).collect();
        json!({
            "sent": self.sent,
            "accepted": self.kept.accepted,
            "dead_lettered": self.kept.dead_lettered,
            "deduplicated": self.kept.deduplicated,
            "rejected": self.kept.rejected,
            "requests": self.requests,
            "retries": self.retries,
            "unsent_requests": run.unsent_requests,
            "not_journaled": self.unjournaled,
            "codes": codes,
            "shed": self.shed,
            "errors": self.errors,
            "latency_ms": percentiles(&self.latency),
            "refused_latency_ms": percentiles(&self.refused),
            "events_per_second": per(self.kept.durable(), seconds),
            "bytes_per_second": per(self.bytes, seconds),
            "seconds": seconds,
            "client_cpu_seconds": run.cpu_seconds,
            "client_cpu_microseconds_per_event": self.cpu_each(run),
            "settings": setting,
        })
    }

    /// Microseconds of our own CPU time for each event sent.
    #[must_use]
    pub fn cpu_each(&self, run: &Run) -> Option<f64> {
        let sent = u32::try_from(self.sent).map_or(f64::from(u32::MAX), f64::from);
        run.cpu_seconds.filter(|_| self.sent > 0).map(|seconds| seconds * 1e6 / sent)
    }
}

/// `n` a second.
#[must_use]
pub fn per(n: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let n = n as f64;
    if seconds > 0.0 { n / seconds } else { 0.0 }
}

/// The value at a percentile, in milliseconds.
#[must_use]
pub fn milliseconds(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "at most an hour")]
    let micros = histogram.value_at_percentile(percentile) as f64;
    micros / 1000.0
}

fn percentiles(histogram: &Histogram<u64>) -> Value {
    if histogram.is_empty() {
        return json!({"p50": null, "p95": null, "p99": null, "p99.9": null, "max": null, "count": 0});
    }
    json!({
        "p50": milliseconds(histogram, 50.0),
        "p95": milliseconds(histogram, 95.0),
        "p99": milliseconds(histogram, 99.0),
        "p99.9": milliseconds(histogram, 99.9),
        "max": milliseconds(histogram, 100.0),
        "mean": histogram.mean() / 1000.0,
        "count": histogram.len(),
    })
}

/// How long this thread was ready to run so far and had no CPU; `None` where the system does not tell.
#[must_use]
pub fn starved() -> Option<Duration> {
    // Nanoseconds on a CPU, nanoseconds waiting for one, turns.
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(text.split_ascii_whitespace().nth(1)?.parse().ok()?))
}

/// CPU seconds of this process, user and system, all threads; `None` where there is no `/proc`.
#[must_use]
pub fn cpu_seconds() -> Option<f64> {
    cpu_seconds_of("self")
}

/// The same of the process with this id, or of `self`.
#[must_use]
pub fn cpu_seconds_of(process: &str) -> Option<f64> {
    // The kernel counts in ticks of 1/100 s for user space, whatever its own rate is.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may hold anything; fields are counted from behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some((f64::from(user) + f64::from(system)) / TICKS_PER_SECOND)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up() {
        let mut all = Stats::new().unwrap();
        for (code, micros) in [(200, 1_000), (429, 5), (200, 3_000)] {
            let mut one = Stats::new().unwrap();
            one.sent = 10;
            *one.codes.entry(code).or_default() += 1;
            one.took(Duration::from_micros(micros), code == 200);
            all.add(&one).unwrap();
        }
        assert_eq!(all.sent, 30);
        assert_eq!(all.codes, BTreeMap::from([(200, 2), (429, 1)]));
        assert_eq!((all.latency.len(), all.refused.len()), (2, 1));
        assert!(milliseconds(&all.latency, 100.0) >= 3.0);
    }

    #[test]
    fn what_was_let_in_is_known_by_the_tenth() {
        let at = Duration::from_millis;
        let (mut stats, one) = (Stats::new().unwrap(), Let { events: 1, bytes: 10 });
        for millis in [0, 99, 100, 1_050, 2_000] {
            stats.let_in(at(millis), one);
        }
        let mut both = Stats::new().unwrap();
        both.add(&stats).unwrap();
        both.add(&stats).unwrap();
        assert_eq!(both.let_in_between(at(100), at(2_000)), Let { events: 4, bytes: 40 });
        assert_eq!(both.let_in_between(at(0), at(9_000)).events, 10);
    }

    #[test]
    fn the_cpu_time_of_this_process_is_known_here() {
        assert!(cpu_seconds().is_none_or(|seconds| seconds >= 0.0));
    }
}
