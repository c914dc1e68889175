//! How fast a sink writes: what it drains, and which lane is slower than the others.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tidegate_event::TenantId;

/// A write that is done within this is never slow: nobody sees it in the freshness, which a window's
/// age (5 s) decides.
pub const SLOW_AFTER: Duration = Duration::from_secs(1);
/// How many times as long as the other tenants' writes a slow one takes. Half or twice is what disks
/// and networks do by themselves; four times is another path, table or lock.
pub const SLOW_TIMES: u32 = 4;
/// A write of the main loop that lasts longer is taken from it, if the destination answers others.
/// Long enough for a slow one to end by itself, short against a window's age.
pub const HAND_OFF_AFTER: Duration = Duration::from_secs(2);
/// Nor longer than this, where there is nobody else to tell how fast the destination is.
const ALONE_MAX: Duration = Duration::from_secs(30);
/// So many fast writes in a row, and a slow lane goes with the others again.
pub const FAST_IN_A_ROW: u32 = 3;
/// A slow lane without events for so long is as any other.
pub const SLOW_FORGOTTEN: Duration = Duration::from_secs(300);
/// Writes remembered, of all tenants and of one: so few that a destination that gets slow as a whole
/// is the new measure after some writes, and that one tenant's many lanes are not the measure.
const SAMPLES: usize = 16;
const SAMPLES_OF_ONE: usize = 4;
/// So many writes of others it takes to call one slow.
const SAMPLES_LEAST: usize = 2;
/// What is measured counts half after so many seconds of writing.
const HALF_SECONDS: f64 = 30.0;

/// Bytes a second, over the last minute or so of work.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    bytes: f64,
    seconds: f64,
}

impl Meter {
    /// So many bytes took so long.
    pub fn add(&mut self, bytes: u64, took: Duration) {
        let seconds = took.as_secs_f64().max(1e-6);
        let keep = 0.5_f64.powf(seconds / HALF_SECONDS);
        self.bytes = self.bytes * keep + bytes as f64;
        self.seconds = self.seconds * keep + seconds;
    }

    /// Bytes a second; 0 where nothing was measured.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float cast saturates, and both are positive"
    )]
    pub fn rate(&self) -> u64 {
        if 0.0 < self.seconds { (self.bytes / self.seconds).max(1.0) as u64 } else { 0 }
    }
}

/// The last successful writes of a sink.
#[derive(Debug, Default)]
pub struct Pace {
    samples: VecDeque<Sample>,
}

#[derive(Debug)]
struct Sample {
    tenant: TenantId,
    bytes: u64,
    took: Duration,
}

impl Pace {
    /// A write of the main loop was done.
    pub fn add(&mut self, tenant: &TenantId, bytes: u64, took: Duration) {
        let own = self.samples.iter().filter(|sample| sample.tenant == *tenant).count();
        if SAMPLES_OF_ONE <= own {
            let oldest = self.samples.iter().position(|sample| sample.tenant == *tenant);
            oldest.and_then(|at| self.samples.remove(at));
        } else if SAMPLES <= self.samples.len() {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { tenant: tenant.clone(), bytes, took });
    }

    /// True where a write took much longer than as many bytes of other tenants would have.
    pub fn is_slow(&self, tenant: &TenantId, bytes: u64, took: Duration) -> bool {
        SLOW_AFTER < took
            && self.expected(tenant, bytes).is_some_and(|expected| expected * SLOW_TIMES < took)
    }

    /// How long the main loop looks on while `bytes` of this tenant are written.
    ///
    /// Where there are no others, what it did itself is the measure: a large write to a destination that is
    /// slow as a whole is not one that does not end, and nobody waits behind it.
    pub fn patience(&self, tenant: &TenantId, bytes: u64) -> Duration {
        let alone = || self.expected_by(bytes, |_| true).map(|own| own.min(ALONE_MAX / SLOW_TIMES));
        let expected = self.expected(tenant, bytes).or_else(alone).unwrap_or_default();
        HAND_OFF_AFTER.max(expected * SLOW_TIMES)
    }

    /// The median write of the others, and the bytes at their median speed. That is weighted by
    /// bytes: a thousand small files do not say how fast a large one is.
    fn expected(&self, tenant: &TenantId, bytes: u64) -> Option<Duration> {
        self.expected_by(bytes, |sample| sample.tenant != *tenant)
    }

    fn expected_by(&self, bytes: u64, measure: impl Fn(&Sample) -> bool) -> Option<Duration> {
        let others = || self.samples.iter().filter(|sample| measure(sample));
        let mut times: Vec<_> = others().map(|sample| sample.took).collect();
        if times.len() < SAMPLES_LEAST {
            return None;
        }
        times.sort_unstable();
        let median = *times.get(times.len() / 2)?;
        let mut speeds: Vec<(f64, u64)> = others()
            .map(|sample| (sample.bytes as f64 / sample.took.as_secs_f64().max(1e-6), sample.bytes))
            .collect();
        speeds.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let half = speeds.iter().map(|(_, bytes)| bytes).sum::<u64>() / 2;
        let mut passed = 0;
        let speed = speeds.iter().find(|(_, bytes)| {
            passed += bytes;
            half < passed
        });
        let speed = speed.map_or(f64::INFINITY, |(speed, _)| speed.max(1.0));
        // A day is for ever here, and no quotient of finite numbers is too large for a duration then.
        let transfer = Duration::from_secs_f64((bytes as f64 / speed).min(86_400.0));
        Some(median + transfer)
    }
}

/// A lane that is slower than the others.
#[derive(Clone, Copy, Debug)]
pub struct Slow {
    fast: u32,
    seen: Instant,
}

impl Slow {
    /// It was just seen to be.
    pub fn new(now: Instant) -> Self {
        Self { fast: 0, seen: now }
    }

    /// One more write of it.
    pub fn wrote(&mut self, slow: bool, now: Instant) {
        self.fast = if slow { 0 } else { self.fast + 1 };
        self.seen = now;
    }

    /// True once it has shown that it is not any more, or has nothing to show it with.
    pub fn is_over(&self, now: Instant) -> bool {
        FAST_IN_A_ROW <= self.fast || SLOW_FORGOTTEN <= now.saturating_duration_since(self.seen)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    const MS: Duration = Duration::from_millis(1);
    const MIB: u64 = 1 << 20;

    #[test]
    fn slow_is_what_takes_four_times_as_long_as_the_others() {
        let mut pace = Pace::default();
        let (acme, beta) = (tenant("acme"), tenant("beta"));
        // Alone it is the measure itself.
        assert!(!pace.is_slow(&acme, 1, MS * 60_000));
        for _ in 0..20 {
            pace.add(&beta, 10 * MIB, MS * 100);
            pace.add(&beta, 100, MS * 5);
        }
        // 100 MiB/s, and a median write of 100 ms.
        assert!(!pace.is_slow(&acme, 100, MS * 999), "below a second nothing is slow");
        assert!(pace.is_slow(&acme, 100, MS * 1_001));
        assert!(!pace.is_slow(&acme, 64 * MIB, MS * 2_900), "it is large");
        assert!(pace.is_slow(&acme, 64 * MIB, MS * 3_100));
        assert!(!pace.is_slow(&beta, 100, MS * 60_000), "there is no other to compare with");
        assert_eq!(pace.patience(&acme, 100), HAND_OFF_AFTER);
        assert!(HAND_OFF_AFTER < pace.patience(&acme, 64 * MIB));
    }

    #[test]
    fn where_there_is_nobody_else_a_tenants_own_writes_are_the_measure() {
        let (mut pace, acme) = (Pace::default(), tenant("acme"));
        assert_eq!(pace.patience(&acme, 64 * MIB), HAND_OFF_AFTER);
        for _ in 0..4 {
            pace.add(&acme, 10 * MIB, MS * 1_000);
        }
        assert_eq!(pace.patience(&acme, MIB), MS * 4_400);
        assert_eq!(pace.patience(&acme, 20 * MIB), MS * 12_000);
        assert_eq!(pace.patience(&acme, 1_000 * MIB), ALONE_MAX, "not for ever");
    }

    #[test]
    fn a_destination_that_gets_slow_as_a_whole_is_the_measure_soon() {
        let mut pace = Pace::default();
        let names = ["a", "b", "c", "d", "e"].map(tenant);
        for name in names.iter().cycle().take(20) {
            pace.add(name, MIB, MS * 10);
        }
        let mut slow = 0;
        for name in names.iter().cycle().take(40) {
            slow += u32::from(pace.is_slow(name, MIB, MS * 3_000));
            pace.add(name, MIB, MS * 3_000);
        }
        assert!((1..=12).contains(&slow), "{slow} writes were called slow");
    }

    #[test]
    fn a_slow_lane_is_slow_until_three_fast_writes_or_a_pause() {
        let now = Instant::now();
        let mut slow = Slow::new(now);
        for fast in [true, true, false, true, true] {
            slow.wrote(!fast, now);
            assert!(!slow.is_over(now));
        }
        assert!(slow.is_over(now + SLOW_FORGOTTEN));
        slow.wrote(false, now);
        assert!(slow.is_over(now));
    }

    #[test]
    fn a_meter_follows_what_it_measures() {
        let mut meter = Meter::default();
        assert_eq!(meter.rate(), 0);
        (0..50).for_each(|_| meter.add(100 * MIB, MS * 1_000));
        assert!((99 * MIB..=101 * MIB).contains(&meter.rate()));
        (0..200).for_each(|_| meter.add(MIB, MS * 1_000));
        assert!(meter.rate() < 3 * MIB, "{}", meter.rate());
    }
}
