//! The log against a model; `damage`, `rot`: against flipped, lost and foreign bytes; `faults`: against
//! a disk that fails. Does not prove what a real disk keeps when the power goes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod damage;
mod faults;
mod rot;

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
    /// What a power cut takes: all that was never synced.
    fn power_cut(&self) {
        fs::remove_file(self.partition().join("durable")).unwrap();
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

#[tokio::test]
async fn an_async_waiter_is_woken_by_the_next_append() {
    let place = Place::new();
    let (mut log, _) = place.open();
    let handle = log.handle();
    let waiter = tokio::spawn(async move { handle.past(Offset(1)).await });
    log.append(&[frame(b"a", 1)]).unwrap();
    tokio::task::yield_now().await;
    assert!(!waiter.is_finished(), "nothing past 1 yet");
    log.append(&[frame(b"b", 1)]).unwrap();
    waiter.await.unwrap();
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
        place.power_cut();
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
                    place.power_cut();
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
