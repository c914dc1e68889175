//! Every single bit of a small log flipped, each for itself: segments, id, mark, watermark.
//!
//! The log has several segments, groups of several frames, both codecs, and ended in each way it can.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use tidegate_event::{Offset, ReceivedAt};
use tidegate_ingest::{
    clock::ManualClock,
    config::Size,
    log::{Codec, Entry, FrameBody, Log, LogConfig, LogHandle, SeenBy},
    storage::Storage,
};

use super::{MORNING, entries, fs::SimFs, open_log, partition, small_log};
use crate::tally::Tally;

/// How the process before ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    Killed,
    /// The last group is on the disk, and nothing that proves it: the power was cut at once.
    Cut,
}

/// What was appended: (first offset, events, body), and where the last group begins.
struct Promised {
    frames: Vec<(u64, u32, Bytes)>,
    end: u64,
    last_group: u64,
}

struct Bench {
    fs: SimFs,
    config: LogConfig,
    clock: Arc<ManualClock>,
    promised: Promised,
}

fn frame(n: u8, codec: Codec) -> (FrameBody, u32, Bytes) {
    // Runs, so that there is something to compress.
    let body = Bytes::from([vec![n; 20], vec![b'a' + n; 9]].concat());
    let count = 1 + u32::from(n) % 3;
    let frame = FrameBody::prepare(body.clone(), count, ReceivedAt(MORNING), codec);
    (frame.unwrap(), count, body)
}

impl Bench {
    fn new(codec: Codec, end: End) -> Self {
        let fs = SimFs::new(1);
        let config = LogConfig { segment_bytes: Size(430), ..small_log() };
        let clock = Arc::new(ManualClock::new(MORNING));
        let mut promised = Promised { frames: Vec::new(), end: 0, last_group: 0 };
        let (mut log, _) = open_log(Arc::new(fs.process()), &config, &clock).unwrap();
        for group in [&[0u8, 1][..], &[2], &[3, 4], &[5], &[6, 7]] {
            let made: Vec<_> = group.iter().map(|n| frame(*n, codec)).collect();
            let bodies: Vec<_> = made.iter().map(|(frame, ..)| frame.clone()).collect();
            let bases = log.append(&bodies).unwrap();
            promised.last_group = bases[0].0;
            for (base, (_, count, body)) in bases.iter().zip(made) {
                promised.frames.push((base.0, count, body));
                promised.end = base.0 + u64::from(count);
            }
        }
        if end == End::Closed {
            log.close().unwrap();
        }
        if end == End::Cut {
            fs.process().remove(&partition().join("durable")).unwrap();
        }
        Self { fs, config, clock, promised }
    }

    fn open(&self) -> Result<Log, String> {
        let opened = open_log(Arc::new(self.fs.process()), &self.config, &self.clock);
        opened.map(|(log, _)| log).map_err(|error| error.to_string())
    }

    /// Reads all: what is served was promised, what is not served is reported and recorded. Returns
    /// the frames that are lost and the next offset.
    fn check(&self, log: &LogHandle, what: &str) -> (usize, u64) {
        let (mut at, mut served, mut lost) = (0, 0, 0);
        for entry in entries(log) {
            match entry {
                Entry::Frame(frame) => {
                    assert_eq!(frame.base.0, at, "{what}");
                    let found = (at, frame.count, frame.body.clone());
                    assert!(self.promised.frames.contains(&found), "{what}: {found:?} was served");
                    (at, served) = (frame.end().0, served + 1);
                }
                Entry::Quarantined(range) => {
                    assert_eq!(range.from().0, at, "{what}");
                    (at, lost) = (range.to().0, lost + range.count());
                }
            }
        }
        assert_eq!(at, log.latest().0, "{what}");
        assert_eq!(log.quarantine_totals().open_events, lost, "{what}: recorded");
        let upto = self.promised.frames.iter().filter(|(base, ..)| *base < at).count();
        (upto - served, at)
    }

    /// One bit of a segment.
    fn segment(&self, end: End, sealed: bool, what: &str) {
        let mut log = self.open().unwrap_or_else(|error| panic!("{what}: {error}"));
        let handle = log.handle();
        let found_by_start = handle.quarantined();
        assert!(found_by_start.iter().all(|s| s.seen_by == SeenBy::Start), "{what}");
        let mut work = handle.verify(Offset(0), Offset(u64::MAX)).unwrap();
        while work.step().unwrap() {}
        let verified = work.finish();
        assert!(!sealed || !verified.is_whole(), "{what}: not noticed: {verified:?}");
        let (lost, next) = self.check(&handle, what);
        assert!(lost <= 1, "{what}: {lost} frames lost to one flip");
        assert_eq!(verified.damaged_events > 0, lost > 0, "{what}: {verified:?}");
        let all = self.promised.end;
        let cut = end == End::Cut && self.promised.last_group <= next && !sealed;
        assert!(next == all || cut, "{what}: to {next} of {all}");
        // It goes on, and the next start finds all of it again.
        let (body, count, bytes) = frame(0, Codec::None);
        let bases = log.append(&[body]).unwrap_or_else(|fault| panic!("{what}: {fault}"));
        assert_eq!(bases, [Offset(next)], "{what}: an offset given twice");
        let recorded = handle.quarantined();
        drop(log);
        let log = self.open().unwrap_or_else(|error| panic!("{what}, again: {error}"));
        assert_eq!(log.handle().quarantined(), recorded, "{what}: the record");
        let mut again = entries(&log.handle());
        let last = again.pop();
        let served = matches!(&last, Some(Entry::Frame(f)) if f.base.0 == next && f.count == count && f.body == bytes);
        assert!(served, "{what}: {last:?}");
        let lost_again = again.iter().filter(|e| matches!(e, Entry::Quarantined(_))).count();
        assert_eq!(lost_again, recorded.len(), "{what}");
    }

    /// One bit of a small file.
    fn small(&self, name: &str, what: &str) {
        match (name, self.open()) {
            ("id", Err(said)) => {
                let helps = said.contains("another log") || said.contains("not the id of a log");
                assert!(helps, "{what}: {said}");
            }
            ("clean" | "durable", Ok(log)) => {
                assert_eq!(self.check(&log.handle(), what), (0, self.promised.end), "{what}");
            }
            (_, opened) => panic!("{what}: {:?}", opened.map(|log| format!("{log:?}"))),
        }
    }
}

fn every_bit(codec: Codec, end: End) {
    let bench = Bench::new(codec, end);
    let untouched = bench.fs.world();
    let tree = bench.fs.tree(Path::new("/data"));
    let segments: Vec<_> = tree.iter().filter(|(p, _)| p.extension().is_some()).collect();
    assert!(segments.len() > 2, "{} segments", segments.len());
    let last = &segments[segments.len() - 1].0;
    let mut tally = Tally::new("sim::every_bit", "bit flip", &["P1", "P2", "P5"]);
    let mut flipped = 0;
    for (path, bytes) in tree.iter().filter(|(_, bytes)| !bytes.is_empty()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        for bit in 0..bytes.len() * 8 {
            bench.fs.back_to(&untouched);
            bench.fs.flip(path, bit);
            let what = format!("{end:?}, {codec:?}: bit {bit} of {name}");
            if name.ends_with(".seg") {
                bench.segment(end, path != last, &what);
            } else {
                bench.small(name, &what);
            }
            tally.survived(1);
            flipped += 1;
        }
    }
    eprintln!("every bit: {end:?}, {codec:?}: {flipped} flips");
}

#[test]
fn any_bit_flipped_after_a_clean_stop_costs_its_frame_alone_and_is_recorded() {
    every_bit(Codec::None, End::Closed);
    every_bit(Codec::Lz4, End::Closed);
}

#[test]
fn any_bit_flipped_after_a_kill_costs_its_frame_alone_and_is_recorded() {
    every_bit(Codec::None, End::Killed);
    every_bit(Codec::Lz4, End::Killed);
}

#[test]
fn any_bit_flipped_after_a_power_cut_costs_its_frame_or_part_of_the_last_group() {
    every_bit(Codec::None, End::Cut);
    every_bit(Codec::Lz4, End::Cut);
}
