//! Rot: bits that flip and pages that cannot be read, after a clean stop. What is damaged is never
//! served as if it were whole, is reported, and costs nothing behind it.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use tidegate_event::ReceivedAt;
use tidegate_ingest::{
    clock::ManualClock,
    log::{Codec, Entry, FrameBody, Log},
};

use super::{MORNING, dice::Dice, entries, fs::SimFs, open_log, partition, seeds, small_log};

/// What was appended: (first offset, events, body).
type Promised = Vec<(u64, u32, Bytes)>;

fn fill(log: &mut Log, promised: &mut Promised, dice: &mut Dice) {
    for _ in 0..4 + dice.below(12) {
        let len = dice.index(1_500);
        let (body, count) = (Bytes::from(dice.bytes(len)), 1 + dice.below(3) as u32);
        let frame = FrameBody::prepare(body.clone(), count, ReceivedAt(MORNING), Codec::Lz4);
        let bases = log.append(&[frame.unwrap()]).unwrap();
        promised.push((bases[0].0, count, body));
    }
}

/// Reads all; every frame is one that was promised, every offset is served or reported. Returns how
/// many frames are lost.
fn check(log: &Log, promised: &Promised) -> usize {
    let handle = log.handle();
    let next = promised.last().map_or(0, |(base, count, _)| base + u64::from(*count));
    assert_eq!(handle.latest().0, next, "the next offset");
    let (mut at, mut served) = (handle.earliest().0, 0);
    for entry in entries(&handle) {
        match entry {
            Entry::Quarantined(range) => {
                assert_eq!(range.from().0, at);
                at = range.to().0;
            }
            Entry::Frame(frame) => {
                assert_eq!(frame.base.0, at);
                let mut found = promised.iter().filter(|(base, ..)| *base == at);
                assert_eq!(found.next(), Some(&(at, frame.count, frame.body.clone())));
                (at, served) = (frame.end().0, served + 1);
            }
        }
    }
    assert_eq!(at, next);
    promised.len() - served
}

fn segments(fs: &SimFs) -> Vec<(PathBuf, usize)> {
    let files = fs.tree(partition()).into_iter().map(|(path, bytes)| (path, bytes.len()));
    files.filter(|(path, len)| path.extension().is_some_and(|e| e == "seg") && *len > 0).collect()
}

fn flips(seed: u64) -> u64 {
    let (fs, mut dice) = (SimFs::new(seed), Dice::new(!seed));
    let (mut config, clock) = (small_log(), Arc::new(ManualClock::new(MORNING)));
    config.retention_bytes = tidegate_ingest::config::Size(1 << 30);
    let (mut promised, mut lost_max) = (Vec::new(), 0);
    for _ in 0..5 {
        let (mut log, _) = open_log(Arc::new(fs.process()), &config, &clock).unwrap();
        fill(&mut log, &mut promised, &mut dice);
        assert!(check(&log, &promised) <= lost_max);
        log.close().unwrap();
        if dice.coin() {
            fs.kill()
        } else {
            fs.reboot()
        }
        // One flip a segment at most: two can take both copies of a head.
        let mut segments = segments(&fs);
        for _ in 0..=dice.below(2) {
            let (path, len) = segments.remove(dice.index(segments.len()));
            fs.flip(&path, dice.index(len * 8));
            lost_max += 1;
            if segments.is_empty() {
                break;
            }
        }
        // Any crash on the way from here to the next durable frame changes nothing.
        for crash in [1 + dice.below(12), 1 + dice.below(24)] {
            let (mut log, _) = open_log(Arc::new(fs.process()), &config, &clock).unwrap();
            let lost = check(&log, &promised);
            assert!(lost <= lost_max, "{lost} frames lost to {lost_max} flips");
            let recorded = log.handle().quarantine_totals().open_stretches;
            assert_eq!(recorded > 0, lost > 0, "what is lost is recorded");
            fs.crash_in(crash, false);
            let body = Bytes::from(vec![dice.next() as u8; 40]);
            let frame = FrameBody::prepare(body.clone(), 1, ReceivedAt(MORNING), Codec::None);
            let next = log.handle().latest().0;
            let appended = log.append(&[frame.unwrap()]).is_ok();
            drop(log);
            if dice.coin() {
                fs.kill()
            } else {
                fs.reboot()
            }
            let (log, _) = open_log(Arc::new(fs.process()), &config, &clock).unwrap();
            if appended || log.handle().latest().0 > next {
                promised.push((next, 1, body));
            }
            check(&log, &promised);
            fs.kill();
        }
    }
    fs.operations()
}

/// Flips in the small files: a damaged mark is no mark (nor a watermark one), a damaged id refuses the start.
fn small_files(seed: u64) -> u64 {
    let (fs, mut dice) = (SimFs::new(seed), Dice::new(!seed));
    let (config, clock) = (small_log(), Arc::new(ManualClock::new(MORNING)));
    let (mut log, _) = open_log(Arc::new(fs.process()), &config, &clock).unwrap();
    let mut promised = Vec::new();
    fill(&mut log, &mut promised, &mut dice);
    log.close().unwrap();
    fs.reboot();
    for (path, bytes) in fs.tree(std::path::Path::new("/data")) {
        if path.extension().is_some() || bytes.is_empty() {
            continue;
        }
        let bit = dice.index(bytes.len() * 8);
        fs.flip(&path, bit);
        match open_log(Arc::new(fs.process()), &config, &clock) {
            Ok((log, _)) => {
                let helps = path.ends_with("clean") || path.ends_with("durable");
                assert!(helps, "{} is damaged, nobody says so", path.display());
                assert_eq!(check(&log, &promised), 0);
            }
            Err(error) => assert!(path.ends_with("id"), "{error}"),
        }
        fs.kill();
        fs.flip(&path, bit);
    }
    fs.operations()
}

fn bad_pages(seed: u64) -> u64 {
    let (fs, mut dice) = (SimFs::new(seed), Dice::new(!seed));
    let (config, clock) = (small_log(), Arc::new(ManualClock::new(MORNING)));
    let (mut log, _) = open_log(Arc::new(fs.process()), &config, &clock).unwrap();
    let mut promised = Vec::new();
    fill(&mut log, &mut promised, &mut dice);
    let segments = segments(&fs);
    let (path, len) = &segments[dice.index(segments.len())];
    let from = dice.below(*len as u64);
    fs.set_bad(Some((path, from, from + 1)));
    // One page, wherever the reader's pages begin: what touches two of 4 KiB.
    let lost = check(&log, &promised);
    assert!(lost <= promised.len());
    let recorded = log.handle().quarantine_totals().open_events;
    assert_eq!(recorded > 0, lost > 0, "what was passed over is recorded");
    fs.set_bad(None);
    assert_eq!(check(&log, &promised), 0, "readable again");
    assert_eq!(log.handle().quarantine_totals().open_events, recorded);
    fs.operations()
}

/// Trouble that passes: who is patient is told, asks again, and gets everything; nothing is set aside.
fn trouble_that_passes(seed: u64) -> u64 {
    let (fs, mut dice) = (SimFs::new(seed), Dice::new(!seed));
    let (config, clock) = (small_log(), Arc::new(ManualClock::new(MORNING)));
    let (mut log, _) = open_log(Arc::new(fs.process()), &config, &clock).unwrap();
    let mut promised = Vec::new();
    fill(&mut log, &mut promised, &mut dice);
    let segments = segments(&fs);
    let (path, len) = &segments[dice.index(segments.len())];
    let from = dice.below(*len as u64);
    fs.set_bad(Some((path, from, from + 1)));
    let handle = log.handle();
    let mut reader = handle.read_patiently_from(handle.earliest()).unwrap();
    let (mut served, mut refused) = (0, 0);
    loop {
        match reader.next() {
            Ok(Some(Entry::Frame(frame))) => {
                assert_eq!(frame.base.0, promised[served].0);
                served += 1;
            }
            Ok(Some(Entry::Quarantined(range))) => panic!("{range} was given up"),
            Ok(None) => break,
            Err(_) => {
                refused += 1;
                if refused == 3 {
                    fs.set_bad(None);
                }
            }
        }
    }
    assert_eq!(served, promised.len());
    assert_eq!(handle.quarantine_totals().events, 0);
    fs.operations()
}

#[test]
fn trouble_with_reading_that_passes_costs_nothing() {
    seeds("passing trouble", &["P2", "P5"], 100, trouble_that_passes);
}

#[test]
fn a_flipped_bit_is_reported_and_costs_one_frame() {
    seeds("flips", &["P1", "P5"], 150, flips);
}

#[test]
fn a_flipped_bit_in_a_small_file_is_noticed() {
    seeds("small files", &["P1", "P5"], 100, small_files);
}

#[test]
fn a_page_that_cannot_be_read_is_reported_and_costs_its_frames() {
    seeds("bad pages", &["P1", "P5"], 100, bad_pages);
}
