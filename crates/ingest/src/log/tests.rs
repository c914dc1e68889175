//! The log against a model, against faults of the disk, and against damage of every bit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{fs, path::PathBuf, sync::Arc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;
use tidegate_event::{Offset, ReceivedAt};

use super::{faulty::FaultyDisk, *};
use crate::{
    clock::ManualClock,
    config::{Size, Span},
    storage::{Disk, Storage},
};

const HOUR: i64 = 3_600_000_000;

struct Place {
    dir: TempDir,
    config: LogConfig,
    clock: Arc<ManualClock>,
    storage: Arc<dyn Storage>,
}

impl Place {
    fn new() -> Self {
        Self::on(Arc::new(Disk))
    }
    fn with(change: impl FnOnce(&mut LogConfig)) -> Self {
        let mut place = Self::new();
        change(&mut place.config);
        place
    }
    fn on(storage: Arc<dyn Storage>) -> Self {
        let dir = TempDir::new().unwrap();
        let config = LogConfig {
            dir: dir.path().into(),
            segment_bytes: Size(1000),
            retention_bytes: Size(1 << 30),
            ..LogConfig::default()
        };
        Self { dir, config, clock: Arc::new(ManualClock::new(HOUR)), storage }
    }
    fn try_open(&self) -> Result<(Log, Recovery), OpenError> {
        let mut opened =
            open(Arc::clone(&self.storage), &self.config, Arc::clone(&self.clock) as _)?;
        Ok((opened.partitions.remove(0), opened.recovery.remove(0)))
    }
    #[track_caller]
    fn open(&self) -> (Log, Recovery) {
        self.try_open().unwrap()
    }
    fn partition(&self) -> PathBuf {
        self.dir.path().join("log/partition-0")
    }
    fn segments(&self) -> Vec<PathBuf> {
        let names = Disk.list(&self.partition()).unwrap();
        names.iter().filter(|n| n.ends_with(".seg")).map(|n| self.partition().join(n)).collect()
    }
}

fn frame(body: &[u8], count: u32) -> FrameBody {
    FrameBody::prepare(Bytes::copy_from_slice(body), count, ReceivedAt(HOUR), Codec::None).unwrap()
}

/// Every entry from `from` to the end.
fn read(log: &LogHandle, from: u64) -> Vec<Entry> {
    let mut reader = log.read_from(Offset(from)).unwrap();
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}

fn bodies(log: &LogHandle, from: u64) -> Vec<(u64, Vec<u8>)> {
    let frame = |entry| match entry {
        Entry::Frame(frame) => (frame.base.0, frame.body.to_vec()),
        Entry::Quarantined(range) => panic!("{range} is damaged"),
    };
    read(log, from).into_iter().map(frame).collect()
}

#[test]
fn what_is_appended_is_read_back_in_order_across_segments() {
    let place = Place::with(|config| config.codec = Codec::Lz4);
    let (mut log, recovery) = place.open();
    assert!(recovery.clean);
    let mut expected = Vec::new();
    for n in 0..50u8 {
        let bases = log.append(&[frame(&[n; 90], 3), frame(&[n, n], 1)]).unwrap();
        expected.push((bases[0].0, vec![n; 90]));
        expected.push((bases[1].0, vec![n, n]));
    }
    assert!(place.segments().len() > 5);
    let handle = log.handle();
    assert_eq!(handle.latest(), Offset(200));
    assert_eq!(bodies(&handle, 0), expected);
    for from in 0..200 {
        let first = expected.iter().rposition(|(base, _)| *base <= from).unwrap();
        assert_eq!(bodies(&handle, from), expected[first..], "from {from}");
    }
    assert_eq!(handle.bytes_since(Offset(200)), 0);
    assert_eq!(handle.bytes_since(Offset(0)), handle.bytes() - 160);
    log.close().unwrap();
    let (log, recovery) = place.open();
    assert!(recovery.clean, "{recovery}");
    assert_eq!(bodies(&log.handle(), 0), expected);
}

#[test]
fn a_reader_at_the_end_goes_on_when_more_is_durable() {
    let place = Place::new();
    let (mut log, _) = place.open();
    let handle = log.handle();
    let mut reader = handle.read_from(Offset(0)).unwrap();
    for n in 0..30u8 {
        assert_eq!(reader.next().unwrap(), None);
        assert!(!handle.wait_past(handle.latest(), Duration::from_millis(1)));
        log.append(&[frame(&[n; 70], 2)]).unwrap();
        assert!(handle.wait_past(Offset(u64::from(n) * 2), Duration::from_secs(5)));
        let Some(Entry::Frame(frame)) = reader.next().unwrap() else { panic!("no frame") };
        assert_eq!((frame.base.0, &frame.body[..]), (u64::from(n) * 2, &[n; 70][..]));
        assert_eq!(reader.position(), frame.end());
    }
}

#[test]
fn large_frames_and_many_frames_are_read_back() {
    let place = Place::new();
    let (mut log, _) = place.open();
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let mut group = vec![frame(&large, 10)];
    group.extend((0..3000u32).map(|n| frame(&n.to_le_bytes(), 1)));
    log.append(&group).unwrap();
    let read = bodies(&log.handle(), 0);
    assert_eq!(read.len(), 3001);
    assert!(read[0].1 == large);
    assert!(read[1..].iter().zip(0u32..).all(|((_, body), n)| body == &n.to_le_bytes()));
    let at = bodies(&log.handle(), 2000);
    assert_eq!(at[0], (2000, 1990u32.to_le_bytes().to_vec()));
}

#[test]
fn a_second_open_is_refused_by_name() {
    let place = Place::new();
    let (log, _) = place.open();
    let refused = place.try_open().unwrap_err();
    assert!(matches!(refused, OpenError::Locked { .. }));
    assert!(refused.to_string().contains(place.dir.path().to_str().unwrap()));
    drop(log);
    place.open();
}

#[test]
fn a_torn_tail_is_cut_and_its_offsets_are_given_again() {
    let place = Place::with(|config| config.segment_bytes = Size(1 << 20));
    let (mut log, _) = place.open();
    log.append(&[frame(b"one", 1)]).unwrap();
    let durable = fs::metadata(&place.segments()[0]).unwrap().len();
    log.append(&[frame(b"two", 1), frame(b"three", 1)]).unwrap();
    let whole = fs::read(&place.segments()[0]).unwrap();
    drop(log);
    for cut in durable..whole.len() as u64 {
        fs::write(&place.segments()[0], &whole[..cut as usize]).unwrap();
        let (mut log, recovery) = place.open();
        let kept = u64::from(cut >= durable + 63);
        assert_eq!(recovery.latest, Offset(1 + kept), "cut at {cut}");
        assert_eq!(recovery.torn_bytes, cut - durable - 63 * kept);
        assert!(recovery.quarantined.is_empty());
        log.append(&[frame(b"four", 1)]).unwrap();
        let read = bodies(&log.handle(), 0);
        assert_eq!(read.len() as u64, 2 + kept);
        assert_eq!(read.last().unwrap(), &(1 + kept, b"four".to_vec()));
    }
}

/// Scenario: a log of several segments, closed or crashed, with one bit flipped anywhere.
/// Guarantees: no wrong byte is served; every frame but the damaged one is; only after a crash, and
/// only in the last group, whose durability nothing later proves, the tail may be cut.
fn flip_every_bit(clean: bool) {
    let disk = FaultyDisk::new();
    disk.0.sync_is_free.store(true, Ordering::SeqCst);
    let mut place = Place::on(Arc::new(disk));
    place.config.segment_bytes = Size(400);
    let (mut log, _) = place.open();
    for n in 0..9u8 {
        log.append(&[frame(&[n; 11], 2)]).unwrap();
    }
    if clean {
        log.close().unwrap()
    } else {
        drop(log)
    }
    let files: Vec<_> = place.segments().into_iter().map(|p| (fs::read(&p).unwrap(), p)).collect();
    assert!(files.len() >= 2);
    let mark = fs::read(place.partition().join("clean")).ok();
    for (i, (bytes, path)) in files.iter().enumerate() {
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(path, &flipped).unwrap();
            let (log, _) = place.open();
            check_flipped(&log.handle(), clean, &format!("segment {i}, bit {bit}"));
            drop(log);
            files.iter().for_each(|(bytes, path)| fs::write(path, bytes).unwrap());
            if let Some(mark) = &mark {
                fs::write(place.partition().join("clean"), mark).unwrap();
            }
        }
    }
}

fn check_flipped(log: &LogHandle, clean: bool, what: &str) {
    let mut served = 0;
    let mut next = 0;
    for entry in read(log, 0) {
        match entry {
            Entry::Frame(frame) => {
                assert_eq!(frame.base.0, next, "{what}");
                assert_eq!(&frame.body[..], &[(frame.base.0 / 2) as u8; 11], "{what}");
                served += 1;
                next = frame.end().0;
            }
            Entry::Quarantined(range) => {
                assert_eq!((range.from().0, range.count()), (next, 2), "{what}");
                next = range.to().0;
            }
        }
    }
    assert_eq!(next, log.latest().0, "{what}");
    assert!(served >= 8, "{what}: {served}");
    assert!(next == 18 || (!clean && next == 16), "{what}: to {next}");
}

#[test]
fn a_bit_flipped_after_a_clean_stop_costs_its_frame_alone() {
    flip_every_bit(true);
}

#[test]
fn a_bit_flipped_after_a_crash_costs_its_frame_alone() {
    flip_every_bit(false);
}

#[test]
fn damage_is_set_aside_and_the_log_goes_on_behind_it() {
    let place = Place::with(|config| config.segment_bytes = Size(1 << 20));
    let (mut log, _) = place.open();
    for n in 0..6u8 {
        log.append(&[frame(&[n; 10], 5)]).unwrap();
    }
    log.close().unwrap();
    // The last three frames, with their heads: lost, and known to be by the mark alone.
    let path = &place.segments()[0];
    let mut bytes = fs::read(path).unwrap();
    let len = bytes.len();
    bytes[len - 210..].fill(0);
    fs::write(path, &bytes).unwrap();
    for _ in 0..2 {
        let (log, recovery) = place.open();
        assert_eq!(recovery.latest, Offset(30));
        assert_eq!(recovery.quarantined.len(), 1);
        assert_eq!(recovery.quarantined[0].count(), 15);
        assert!(recovery.to_string().contains("15 events damaged at [15, 30)"), "{recovery}");
        drop(log);
    }
    let (mut log, _) = place.open();
    assert_eq!(log.append(&[frame(b"on", 1)]).unwrap(), [Offset(30)]);
    drop(log);
    let (log, _) = place.open();
    let entries = read(&log.handle(), 0);
    assert_eq!(entries.len(), 5);
    assert!(matches!(&entries[3], Entry::Quarantined(range) if range.count() == 15));
    assert!(matches!(&entries[4], Entry::Frame(frame) if frame.base == Offset(30)));
    assert!(matches!(&read(&log.handle(), 20)[0], Entry::Quarantined(r) if r.from() == Offset(20)));
}

#[test]
fn missing_short_foreign_and_renamed_files_are_never_passed_over() {
    let place = Place::new();
    let (mut log, _) = place.open();
    for n in 0..60u8 {
        log.append(&[frame(&[n; 90], 1)]).unwrap();
    }
    log.close().unwrap();
    let files = place.segments();
    assert!(files.len() > 4);
    let away = place.dir.path().join("away");

    fs::rename(&files[1], &away).unwrap();
    assert!(matches!(place.try_open(), Err(OpenError::Missing { path }) if path == files[1]));
    fs::write(&files[1], b"").unwrap();
    let (log, recovery) = place.open();
    assert!(!recovery.notes.is_empty());
    let lost = |e: &Entry| matches!(e, Entry::Quarantined(_));
    assert_eq!(read(&log.handle(), 0).iter().filter(|e| lost(e)).count(), 1);
    drop(log);
    fs::rename(&away, &files[1]).unwrap();

    let last = files.last().unwrap();
    fs::rename(last, &away).unwrap();
    assert!(matches!(place.try_open(), Err(OpenError::Missing { path }) if path == *last));
    fs::rename(&away, last).unwrap();

    for (name, bytes) in [
        ("notes.txt", b"mine".to_vec()),
        ("00000000000000000007.seg", fs::read(&files[1]).unwrap()),
        ("00000000000000099999.seg", fs::read(&files[1]).unwrap()),
    ] {
        fs::write(place.partition().join(name), bytes).unwrap();
        let refused = place.try_open().unwrap_err();
        assert!(matches!(refused, OpenError::Foreign { .. }), "{refused}");
        assert!(refused.to_string().contains(name), "{refused}");
        fs::remove_file(place.partition().join(name)).unwrap();
    }

    let whole = fs::read(&files[2]).unwrap();
    fs::write(&files[2], &whole[..whole.len() - 200]).unwrap();
    let (log, recovery) = place.open();
    assert!(recovery.to_string().contains("200 bytes too short"), "{recovery}");
    let entries = read(&log.handle(), 0);
    assert!(entries.iter().any(lost));
    assert_eq!(log.handle().latest(), Offset(60));
    drop(log);
    fs::write(&files[2], &whole).unwrap();
    fs::write(place.partition().join("00000000000000000042.seg.new"), b"half").unwrap();
    let (log, recovery) = place.open();
    assert!(recovery.to_string().contains("half made"), "{recovery}");
    assert_eq!(bodies(&log.handle(), 0).len(), 60);
    drop(log);

    let other = Place::new();
    let (mut log, _) = other.open();
    log.append(&[frame(b"x", 1)]).unwrap();
    drop(log);
    fs::copy(&files[0], &other.segments()[0]).unwrap();
    assert!(matches!(other.try_open(), Err(OpenError::Foreign { .. })));
    fs::remove_file(other.dir.path().join("log/id")).unwrap();
    assert!(matches!(other.try_open(), Err(OpenError::Foreign { .. })));
    let two = LogConfig { partitions: 2, ..place.config.clone() };
    let refused = open(Arc::new(Disk), &two, Arc::clone(&place.clock) as _).unwrap_err();
    assert!(matches!(refused, OpenError::Partitions { found: 1, configured: 2, .. }));
}

#[test]
fn retention_removes_what_is_old_and_never_passes_a_hold() {
    let place = Place::with(|config| config.retention_age = Span::seconds(60));
    let (mut log, _) = place.open();
    let handle = log.handle();
    let hold = handle.hold("sink");
    for n in 0..60u8 {
        log.append(&[frame(&[n; 90], 1)]).unwrap();
    }
    let mut behind = handle.read_from(Offset(0)).unwrap();
    place.clock.advance(120_000_000);
    assert_eq!(log.trim().unwrap(), 0, "all is held");
    hold.advance(Offset(30));
    hold.advance(Offset(20));
    assert_eq!(handle.lowest_hold(), Some(("sink".to_owned(), Offset(30))));
    assert!(log.trim().unwrap() > 0);
    let earliest = handle.earliest();
    assert!(earliest.0 > 10 && earliest.0 <= 30, "{earliest}");
    assert_eq!(bodies(&handle, 30).len(), 30);
    assert!(matches!(behind.next(), Err(ReadError::Gone { earliest: e }) if e == earliest));
    assert!(matches!(handle.read_from(Offset(0)), Err(ReadError::Gone { .. })));
    drop(hold);
    log.trim().unwrap();
    assert_eq!(place.segments().len(), 1, "the last segment stays");
    drop(log);
    let (log, recovery) = place.open();
    assert_eq!(recovery.latest, Offset(60));
    assert_eq!(log.handle().earliest(), recovery.earliest);
}

#[test]
fn retention_by_bytes_keeps_the_newest() {
    let place = Place::with(|config| config.retention_bytes = Size(3000));
    let (mut log, _) = place.open();
    for n in 0..60u8 {
        log.append(&[frame(&[n; 90], 1)]).unwrap();
        log.trim().unwrap();
        assert!(log.handle().bytes() <= 4000);
    }
    let on_disk: u64 = place.segments().iter().map(|p| fs::metadata(p).unwrap().len()).sum();
    assert_eq!(log.handle().bytes(), on_disk);
}

#[test]
fn a_full_disk_refuses_and_takes_again_when_there_is_room() {
    let disk = FaultyDisk::new();
    let place = Place::on(Arc::new(disk.clone()));
    let (mut log, _) = place.open();
    let mut kept = Vec::new();
    for space in [600, 150, 400, 70, 1, 0, 90, 230, 330] {
        disk.0.space.store(space, Ordering::SeqCst);
        for n in 0..6u8 {
            match log.append(&[frame(&[n; 33], 1), frame(&[n; 44], 2)]) {
                Ok(bases) => {
                    kept.push((bases[0].0, vec![n; 33]));
                    kept.push((bases[1].0, vec![n; 44]));
                }
                Err(AppendFault::Storage(_)) => {}
                Err(fault) => panic!("{fault}"),
            }
            assert_eq!(bodies(&log.handle(), 0), kept);
        }
        disk.0.space.store(-1, Ordering::SeqCst);
        let bases = log.append(&[frame(b"room again", 1)]).unwrap();
        kept.push((bases[0].0, b"room again".to_vec()));
    }
    drop(log);
    let (log, recovery) = place.open();
    assert_eq!(bodies(&log.handle(), 0), kept, "{recovery}");
}

#[test]
fn a_failed_write_shows_nothing_and_the_next_append_goes_elsewhere() {
    for nth in 0..6 {
        let disk = FaultyDisk::new();
        let place = Place::on(Arc::new(disk.clone()));
        let (mut log, _) = place.open();
        log.append(&[frame(&[1; 300], 1)]).unwrap();
        disk.0.write.set(nth);
        let mut kept = vec![(0, vec![1; 300])];
        for n in 2..5u8 {
            if let Ok(bases) = log.append(&[frame(&[n; 300], 1)]) {
                kept.push((bases[0].0, vec![n; 300]));
            }
            assert_eq!(bodies(&log.handle(), 0), kept, "write {nth}");
        }
        assert!(kept.len() >= 3);
        drop(log);
        let (log, _) = place.open();
        assert_eq!(bodies(&log.handle(), 0), kept, "write {nth}, opened again");
    }
}

#[test]
fn a_failed_sync_ends_the_log_until_it_is_recovered() {
    for nth in 0..3 {
        let disk = FaultyDisk::new();
        let place = Place::on(Arc::new(disk.clone()));
        let (mut log, _) = place.open();
        disk.0.sync.set(nth);
        let fault = log.append(&[frame(b"a", 1)]).unwrap_err();
        assert!(matches!(fault, AppendFault::Fatal(_)), "sync {nth}: {fault}");
        assert!(matches!(log.append(&[frame(b"b", 1)]), Err(AppendFault::Fatal(_))));
        assert_eq!(log.handle().latest(), Offset(0));
        log.close().unwrap();
        assert!(!place.partition().join("clean").exists());
        let (mut log, recovery) = place.open();
        assert!(recovery.latest.0 <= 1);
        log.append(&[frame(b"c", 1)]).unwrap();
    }
}

#[test]
fn a_start_whose_sync_or_read_fails_is_refused_and_changes_nothing() {
    let disk = FaultyDisk::new();
    let place = Place::on(Arc::new(disk.clone()));
    let (mut log, _) = place.open();
    log.append(&[frame(&[1; 50], 1)]).unwrap();
    drop(log);
    let before = fs::read(&place.segments()[0]).unwrap();
    for nth in 0..3 {
        disk.0.sync.set(nth);
        // The lock's folder is synced only when it is made.
        assert!(matches!(place.try_open(), Err(OpenError::Io { .. })), "sync {nth}");
        assert_eq!(fs::read(&place.segments()[0]).unwrap(), before);
    }
    disk.0.bad_from.store(180, Ordering::SeqCst);
    disk.0.bad_to.store(181, Ordering::SeqCst);
    assert!(matches!(place.try_open(), Err(OpenError::Io { .. })));
    disk.0.bad_to.store(0, Ordering::SeqCst);
    disk.0.bad_from.store(0, Ordering::SeqCst);
    let (log, _) = place.open();
    assert_eq!(bodies(&log.handle(), 0).len(), 1);
}

#[test]
fn an_unreadable_page_costs_the_frames_on_it() {
    let disk = FaultyDisk::new();
    let place = Place::on(Arc::new(disk.clone()));
    let (mut log, _) = place.open();
    let group: Vec<_> = (0..100u8).map(|n| frame(&[n; 940], 1)).collect();
    log.append(&group).unwrap();
    disk.0.bad_from.store(50_000, Ordering::SeqCst);
    disk.0.bad_to.store(50_001, Ordering::SeqCst);
    let entries = read(&log.handle(), 0);
    let whole = entries.iter().filter(|e| matches!(e, Entry::Frame(_))).count();
    assert!((93..100).contains(&whole), "{whole}");
    assert!(matches!(entries.last(), Some(Entry::Frame(frame)) if frame.base == Offset(99)));
}

#[test]
fn a_clients_bytes_do_not_pass_for_a_frame() {
    let place = Place::new();
    let (mut log, _) = place.open();
    // A frame as another log would write it, inside of a body, and damage before it.
    let forged = frame(b"forged", 1).header(1, 1, 0, 0).encode(0).0;
    log.append(&[frame(&[forged.as_slice(), b"forged"].concat(), 1), frame(b"x", 1)]).unwrap();
    log.append(&[frame(b"y", 1)]).unwrap();
    drop(log);
    let path = &place.segments()[0];
    let mut bytes = fs::read(path).unwrap();
    bytes[170] ^= 1;
    fs::write(path, &bytes).unwrap();
    let (log, _) = place.open();
    let entries = read(&log.handle(), 0);
    assert!(matches!(entries[0], Entry::Quarantined(r) if r.count() == 1));
    assert_eq!(entries.len(), 3);
}

#[derive(Clone, Debug)]
enum Action {
    Append(Vec<(u8, u16, u8)>),
    Close,
    Crash,
    /// A group was being written when the power went: cut somewhere in it.
    CrashIn(Vec<(u8, u16, u8)>, prop::sample::Index),
    Garbage(Vec<u8>),
    Trim(u16),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let group = || proptest::collection::vec((any::<u8>(), 0u16..400, 1u8..9), 1..5);
    let action = prop_oneof![
        6 => group().prop_map(Action::Append),
        1 => Just(Action::Close),
        1 => Just(Action::Crash),
        2 => (group(), any::<prop::sample::Index>()).prop_map(|(g, i)| Action::CrashIn(g, i)),
        1 => proptest::collection::vec(any::<u8>(), 1..200).prop_map(Action::Garbage),
        1 => any::<u16>().prop_map(Action::Trim),
    ];
    proptest::collection::vec(action, 1..30)
}

fn append(log: &mut Log, group: &[(u8, u16, u8)]) -> Vec<(u64, Vec<u8>)> {
    let body = |(fill, len, _): &(u8, u16, u8)| vec![*fill; usize::from(*len)];
    let frames: Vec<_> = group.iter().map(|g| frame(&body(g), g.2.into())).collect();
    let bases = log.append(&frames).unwrap();
    bases.iter().map(|b| b.0).zip(group.iter().map(body)).collect()
}

fn last_segment(place: &Place) -> (PathBuf, u64) {
    let path = place.segments().pop().unwrap();
    let len = fs::metadata(&path).unwrap().len();
    (path, len)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_log_is_the_list_of_what_was_appended(actions in actions()) {
        let place = Place::new();
        let mut model: Vec<(u64, Vec<u8>)> = Vec::new();
        let (mut log, _) = place.open();
        for action in actions {
            match action {
                Action::Append(group) => model.extend(append(&mut log, &group)),
                Action::Close => {
                    log.close().unwrap();
                    let (again, recovery) = place.open();
                    prop_assert!(recovery.clean, "{}", recovery);
                    log = again;
                }
                Action::Crash => { drop(log); log = place.open().0 }
                Action::CrashIn(group, at) => {
                    let before = place.segments().pop().map(|p| (fs::metadata(&p).unwrap().len(), p));
                    let appended = append(&mut log, &group);
                    drop(log);
                    let (path, len) = last_segment(&place);
                    let durable = before.filter(|(_, p)| *p == path).map_or(160, |(len, _)| len);
                    let cut = durable + at.index((len - durable) as usize + 1) as u64;
                    fs::File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
                    let (again, recovery) = place.open();
                    prop_assert!(recovery.quarantined.is_empty(), "{}", recovery);
                    log = again;
                    model.extend(appended.into_iter().filter(|(base, _)| *base < recovery.latest.0));
                }
                Action::Garbage(bytes) => {
                    drop(log);
                    if let Some(path) = place.segments().pop() {
                        let mut file = fs::File::options().append(true).open(path).unwrap();
                        std::io::Write::write_all(&mut file, &bytes).unwrap();
                    }
                    log = place.open().0;
                }
                Action::Trim(share) => {
                    let hold = log.handle().hold("test");
                    let latest = log.handle().latest().0;
                    hold.advance(Offset(latest * u64::from(share) / u64::from(u16::MAX)));
                    place.clock.advance(8 * 86_400_000_000);
                    log.trim().unwrap();
                    prop_assert!(log.handle().earliest() <= hold.offset().max(log.handle().earliest()));
                    let earliest = log.handle().earliest().0;
                    prop_assert!(earliest <= hold.offset().0 || latest == earliest);
                    model.retain(|(base, _)| *base >= earliest);
                }
            }
            let handle = log.handle();
            prop_assert_eq!(&bodies(&handle, handle.earliest().0), &model);
        }
    }
}
