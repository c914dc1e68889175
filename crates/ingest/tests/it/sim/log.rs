//! The log against a list: random groups, trims, skips, closes, faults, crashes at any operation.
//!
//! What every append that returned promised is there byte for byte after every crash; what was never
//! appended is not; what was refused appears whole and at the end, or not at all; offsets are never
//! given twice.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_event::{Offset, ReceivedAt};
use tidegate_ingest::{
    clock::ManualClock,
    log::{AppendFault, Codec, Entry, FrameBody, Log, LogConfig},
};

use super::{
    MORNING,
    dice::Dice,
    entries,
    fs::{Odds, SimFs},
    open_log, seeds, small_log,
};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Frame {
    base: u64,
    count: u32,
    body: Bytes,
}

impl Frame {
    fn end(&self) -> u64 {
        self.base + u64::from(self.count)
    }
}

/// What must be true.
#[derive(Default)]
struct Model {
    /// Durable, in order; from offset 0.
    frames: Vec<Frame>,
    /// The next offset to be given.
    next: u64,
    /// Offsets left out on purpose.
    skipped: Vec<(u64, u64)>,
    /// A skip whose end nobody knows.
    skipping: Option<u64>,
    /// Groups that were refused since the last success: each may turn up, up to some frame.
    refused: Vec<Vec<Frame>>,
    /// No offset below this was removed by anybody.
    trimmed: u64,
}

/// Ranges that touch are one.
fn merged(ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = Vec::new();
    for (from, to) in ranges {
        match all.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => all.push((from, to)),
        }
    }
    all
}

struct Run {
    fs: SimFs,
    config: LogConfig,
    clock: Arc<ManualClock>,
    dice: Dice,
    model: Model,
}

impl Model {
    /// Holds the log against what must be true, and takes over what turned up.
    fn check(&mut self, log: &Log, after: &str) {
        let handle = log.handle();
        let (earliest, latest) = (handle.earliest().0, handle.latest().0);
        assert!(earliest <= self.trimmed, "{after}: begins at {earliest}, not {}", self.trimmed);
        if let Some(to) = self.skipping.take().filter(|to| *to == latest && self.next < latest) {
            self.skipped.push((self.next, to));
            (self.next, self.refused) = (to, Vec::new());
        }
        let mut expected = self.frames.iter().filter(|frame| earliest <= frame.base);
        let mut extra = Vec::new();
        let mut lost = Vec::new();
        for entry in entries(&handle) {
            match entry {
                Entry::Quarantined(range) => lost.push((range.from().0, range.to().0)),
                Entry::Frame(frame) => {
                    let frame = Frame { base: frame.base.0, count: frame.count, body: frame.body };
                    match expected.next() {
                        Some(promised) => assert_eq!(frame, *promised, "{after}"),
                        None => extra.push(frame),
                    }
                }
            }
        }
        assert_eq!(expected.next(), None, "{after}: lost, the log ends at {latest}");
        let skipped: Vec<_> =
            self.skipped.iter().filter(|(_, to)| earliest < *to).copied().collect();
        let cut = |(from, to): (u64, u64)| (from.max(earliest), to);
        let skipped = skipped.into_iter().map(cut).collect();
        assert_eq!(merged(lost), merged(skipped), "{after}: damage");
        if !extra.is_empty() {
            let whole = |group: &Vec<Frame>| group.starts_with(&extra);
            assert!(self.refused.iter().any(whole), "{after}: {extra:?} was never appended");
        }
        self.next = extra.last().map_or(self.next, Frame::end);
        self.frames.extend(extra);
        assert_eq!(latest, self.next, "{after}: the next offset");
        self.refused.clear();
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        Self {
            fs: SimFs::new(seed),
            config: small_log(),
            clock: Arc::new(ManualClock::new(MORNING)),
            dice: Dice::new(!seed),
            model: Model::default(),
        }
    }

    fn group(&mut self) -> (Vec<FrameBody>, Vec<Frame>) {
        let mut next = self.model.next;
        let mut bodies = Vec::new();
        let mut frames = Vec::new();
        for _ in 0..=self.dice.below(4) {
            let len = if self.dice.permille(100) { 3_000 } else { self.dice.index(700) };
            let body = Bytes::from(self.dice.bytes(len));
            let count = 1 + self.dice.below(3) as u32;
            let codec = if self.dice.coin() { Codec::None } else { Codec::Lz4 };
            let prepared = FrameBody::prepare(body.clone(), count, ReceivedAt(MORNING), codec);
            bodies.push(prepared.unwrap());
            frames.push(Frame { base: next, count, body });
            next += u64::from(count);
        }
        (bodies, frames)
    }

    fn append(&mut self, log: &mut Log, failed: &mut bool) {
        let (bodies, frames) = self.group();
        let before = log.handle().latest();
        match log.append(&bodies) {
            Ok(bases) => {
                assert!(!*failed, "the log took something after a failed sync");
                let expected: Vec<_> = frames.iter().map(|f| Offset(f.base)).collect();
                assert_eq!(bases, expected);
                self.model.next = frames.last().unwrap().end();
                self.model.frames.extend(frames);
                self.model.refused.clear();
            }
            Err(fault) => {
                assert!(!*failed || matches!(fault, AppendFault::Fatal(_)), "{fault}");
                *failed |= matches!(fault, AppendFault::Fatal(_));
                assert_eq!(log.handle().latest(), before, "nothing of it is visible");
                self.model.refused.push(frames);
            }
        }
    }

    /// Leaves some offsets out, as a start does whose ledger is ahead.
    fn skip(&mut self, log: &mut Log, failed: &mut bool) {
        let to = self.model.next + 1 + self.dice.below(5);
        match log.skip_to(Offset(to)) {
            Ok(()) => {
                assert!(!*failed, "the log left something out after a failed sync");
                self.model.skipped.push((self.model.next, to));
                self.model.next = to;
                self.model.refused.clear();
            }
            Err(AppendFault::Fatal(_)) => {
                *failed = true;
                self.model.skipping = Some(to);
            }
            Err(AppendFault::Storage(_)) => self.model.skipping = Some(to),
        }
    }

    fn odds(&mut self) -> Odds {
        match self.dice.below(6) {
            0 => Odds { short_write: 500, write_error: 60, ..Odds::default() },
            1 => Odds { sync_error: 60, ..Odds::default() },
            2 => Odds { capacity: Some(self.dice.below(60_000)), ..Odds::default() },
            3 => Odds { short_write: 300, write_error: 30, sync_error: 20, ..Odds::default() },
            _ => Odds { short_write: 300, ..Odds::default() },
        }
    }

    /// One process: opens, works, ends or is ended.
    fn life(&mut self) {
        if self.dice.permille(300) {
            // Crashes, or has no room, while it opens.
            if self.dice.coin() {
                self.fs.crash_in(1 + self.dice.below(30), false);
            } else {
                let odds = Odds { write_error: 100, sync_error: 100, ..Odds::default() };
                self.fs.set_odds(odds);
            }
            let opened = open_log(Arc::new(self.fs.process()), &self.config, &self.clock);
            drop(opened);
            self.end();
        }
        let opened = open_log(Arc::new(self.fs.process()), &self.config, &self.clock);
        let (mut log, recovery) = opened.unwrap_or_else(|error| panic!("{error}"));
        self.model.check(&log, &recovery.to_string());
        let odds = self.odds();
        self.fs.set_odds(odds);
        if self.dice.permille(700) {
            self.fs.crash_in(1 + self.dice.below(120), false);
        }
        let mut failed = false;
        if self.dice.permille(100) {
            self.skip(&mut log, &mut failed);
        }
        // Where a skip was refused its writer does not start.
        let steps = if self.model.skipping.is_some() { 0 } else { self.dice.below(40) };
        for _ in 0..steps {
            match self.dice.below(20) {
                0 | 1 => {
                    let trimmed = log.trim();
                    // One that failed may have gone all the same.
                    let begins = log.handle().segments();
                    let first = begins.get(usize::from(trimmed.is_err()));
                    let first = first.map_or(log.handle().latest().0, |first| first.0);
                    self.model.trimmed = self.model.trimmed.max(first);
                }
                _ => self.append(&mut log, &mut failed),
            }
        }
        if self.dice.permille(600) {
            drop(log.close());
        }
        self.end();
    }

    fn end(&mut self) {
        if self.dice.permille(300) { self.fs.kill() } else { self.fs.reboot() }
    }
}

fn run(seed: u64) -> SimFs {
    let mut run = Run::new(seed);
    for _ in 0..12 {
        run.life();
    }
    run.fs
}

#[test]
fn a_log_keeps_what_it_acknowledged_through_any_crash() {
    seeds("log", &["P1", "P5"], 400, |seed| run(seed).operations());
}

#[test]
fn a_seed_that_once_failed_does_not_fail_again() {
    run(22_801);
}

#[test]
fn the_same_seed_gives_the_same_operations() {
    for seed in 0..20 {
        assert_eq!(run(seed).trace(), run(seed).trace(), "seed {seed}");
    }
    assert_ne!(run(1).trace(), run(2).trace());
}
