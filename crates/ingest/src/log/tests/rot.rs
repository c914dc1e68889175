//! A large log with random bits flipped, what is recorded of it, and looking at it without a server.

use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

use super::*;

/// The body of the frame at `base`: the same whenever it is asked for, some of it compressible.
fn body(base: u64) -> Bytes {
    let mut dice = StdRng::seed_from_u64(base);
    let mut bytes = vec![0; dice.random_range(1..60_000)];
    let random = bytes.len() / 2;
    dice.fill_bytes(&mut bytes[..random]);
    bytes.into()
}

fn fill(log: &mut Log, bytes: usize) {
    let (mut next, mut filled) = (log.handle().latest().0, 0);
    while filled < bytes {
        let mut group = Vec::new();
        for n in 0..20u32 {
            let (body, count) = (body(next), 1 + n % 3);
            filled += body.len();
            next += u64::from(count);
            let codec = if n % 2 == 0 { Codec::Lz4 } else { Codec::None };
            group.push(FrameBody::prepare(body, count, ReceivedAt(HOUR), codec).unwrap());
        }
        log.append(&group).unwrap();
    }
}

/// Every frame is whole, every offset is served or reported. Returns frames, and events lost.
fn check(log: &LogHandle) -> (u64, u64) {
    let (mut next, mut frames, mut lost) = (0, 0, 0);
    for entry in read(log, 0) {
        match entry {
            Entry::Frame(frame) => {
                assert_eq!(frame.base.0, next);
                assert!(frame.body == body(next), "a changed frame was served at {next}");
                (next, frames) = (frame.end().0, frames + 1);
            }
            Entry::Quarantined(range) => {
                assert_eq!(range.from().0, next);
                (next, lost) = (range.to().0, lost + range.count());
            }
        }
    }
    assert_eq!(next, log.latest().0);
    (frames, lost)
}

fn flip(place: &Place, dice: &mut StdRng, flips: usize) {
    let files = place.segments();
    for _ in 0..flips {
        let path = &files[dice.random_range(0..files.len())];
        let mut bytes = fs::read(path).unwrap();
        // Heads are another test's: two flips there can take both copies.
        let at = dice.random_range(160..bytes.len());
        bytes[at] ^= 1 << dice.random_range(0..8);
        fs::write(path, bytes).unwrap();
    }
}

fn verified(log: &LogHandle) -> Verified {
    let mut work = log.verify(Offset(0), Offset(u64::MAX)).unwrap();
    while work.step().unwrap() {}
    work.finish()
}

/// Scenario: 24 MiB in segments of 2 MiB, closed or killed, random bits flipped, read and verified;
/// three times over.
/// Guarantees: a flip costs at most its frame; nothing altered is served; the next offset stays; each
/// lost event is in the record once, whoever finds it, also after the next start.
#[test]
fn random_flips_in_a_large_log_cost_their_frames_and_are_recorded() {
    let mut place = Place::with(|config| config.segment_bytes = Size(2 << 20));
    if let Ok(dir) = TempDir::new_in("/dev/shm") {
        place.config.dir = dir.path().into();
        place.dir = dir;
    }
    let mut dice = StdRng::seed_from_u64(7);
    let (mut log, _) = place.open();
    let (mut flips, mut lost) = (0, 0);
    for round in 0..3 {
        fill(&mut log, 8 << 20);
        let latest = log.handle().latest();
        if round == 1 {
            drop(log)
        } else {
            log.close().unwrap()
        }
        flip(&place, &mut dice, 15);
        flips += 15;
        log = place.open().0;
        let handle = log.handle();
        assert_eq!(handle.latest(), latest, "round {round}");
        let found = if round == 0 { None } else { Some(verified(&handle)) };
        let (frames, now) = check(&handle);
        assert!(lost < now, "round {round}: fifteen flips and nothing new is lost");
        assert!(now <= 3 * flips, "round {round}: {now} events lost to {flips} flips");
        lost = now;
        assert_eq!(handle.quarantine_totals().open_events, lost, "round {round}: recorded");
        let found = found.unwrap_or_else(|| verified(&handle));
        assert_eq!((found.damaged_events, found.frames), (lost, frames), "round {round}");
        assert_eq!(found.damaged.iter().map(|s| s.range.count()).sum::<u64>(), lost);
        assert!(!found.is_whole() && found.whole_again.is_empty());
        assert!(place.segments().len() > 3);
    }
    let known = log.handle().quarantined();
    assert!(known.iter().any(|s| s.seen_by == SeenBy::Verify), "{known:?}");
    assert!(known.iter().any(|s| s.seen_by == SeenBy::Reader), "{known:?}");
    assert!(known.iter().all(|s| s.bytes > 0 && s.position >= 160), "{known:?}");
    drop(log);
    assert_eq!(place.open().0.handle().quarantined(), known, "after a start");
}

#[test]
fn a_page_that_reads_again_is_told_and_its_record_stays() {
    let disk = FaultyDisk::new();
    let place = Place::on(Arc::new(disk.clone()));
    let (mut log, _) = place.open();
    let group: Vec<_> = (0..100u8).map(|n| frame(&[n; 940], 1)).collect();
    log.append(&group).unwrap();
    disk.0.bad_from.store(50_000, Ordering::SeqCst);
    disk.0.bad_to.store(50_001, Ordering::SeqCst);
    let bad = verified(&log.handle());
    assert!(bad.damaged_events > 0 && bad.damaged_events < 10, "{bad:?}");
    disk.0.bad_to.store(0, Ordering::SeqCst);
    disk.0.bad_from.store(0, Ordering::SeqCst);
    let good = verified(&log.handle());
    assert!(good.is_whole() && good.damaged.is_empty(), "{good:?}");
    assert_eq!(good.whole_again.len(), bad.damaged.len());
    assert_eq!(log.handle().quarantine_totals().open_events, bad.damaged_events);
}

#[test]
fn what_retention_removes_is_forgotten() {
    let place = Place::with(|config| config.retention_age = Span::seconds(60));
    let (mut log, _) = place.open();
    for n in 0..60u8 {
        log.append(&[frame(&[n; 90], 1)]).unwrap();
    }
    log.close().unwrap();
    let files = place.segments();
    for path in [&files[0], files.last().unwrap()] {
        let mut bytes = fs::read(path).unwrap();
        bytes[230] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let (mut log, _) = place.open();
    read(&log.handle(), 0);
    assert_eq!(log.handle().quarantine_totals().open_stretches, 2);
    let unknown = log.handle().acknowledge(&[Offset(1 << 40)], "me", "gone").unwrap_err();
    assert!(matches!(unknown, AcknowledgeError::Unknown(_)));
    let last = log.handle().quarantined()[1].range;
    log.handle().acknowledge(&[last.from()], "me", "seen").unwrap();
    place.clock.advance(120_000_000);
    log.trim().unwrap();
    let left = log.handle().quarantined();
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].range, left[0].acknowledged.is_some()), (last, true));
    drop(log);
    assert_eq!(place.open().0.handle().quarantined(), left);
}

fn contents(place: &Place) -> Vec<(PathBuf, Vec<u8>)> {
    let names = Disk.list(&place.partition()).unwrap();
    names
        .iter()
        .map(|n| place.partition().join(n))
        .map(|p| (p.clone(), fs::read(p).unwrap()))
        .collect()
}

#[test]
fn a_log_is_verified_without_a_server_and_nothing_is_changed() {
    let place = Place::new();
    let look = || inspect(place.dir.path(), |_, bytes, all| assert!(bytes <= all));
    assert!(matches!(look(), Err(OfflineError::NoLog(_))));
    let (mut log, _) = place.open();
    for n in 0..60u8 {
        log.append(&[frame(&[n; 90], 2)]).unwrap();
    }
    assert!(matches!(look(), Err(OfflineError::InUse(_))));
    drop(log);
    let whole = look().unwrap().remove(0);
    assert!(whole.is_whole(), "{whole:?}");
    assert_eq!((whole.frames, whole.events, whole.to), (60, 120, Offset(120)));
    let files = place.segments();
    assert_eq!(whole.bytes, files.iter().map(|p| fs::metadata(p).unwrap().len()).sum::<u64>());

    let untouched = contents(&place);
    let last = files.last().unwrap();
    let damaged: [(&str, &PathBuf, usize, u64); 4] = [
        ("a body", &files[1], 300, 2),
        ("a frame's head", &files[2], 165, 2),
        ("a segment's head", &files[2], 20, 0),
        ("the last frame", last, fs::metadata(last).unwrap().len() as usize - 1, 2),
    ];
    for (what, path, at, events) in damaged {
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 16;
        fs::write(path, &bytes).unwrap();
        let before = contents(&place);
        let found = look().unwrap().remove(0);
        assert!(!found.is_whole(), "{what}");
        assert_eq!((found.damaged_events, found.to), (events, Offset(120)), "{what}: {found:?}");
        assert_eq!(contents(&place), before, "{what}: nothing is changed");
        bytes[at] ^= 16;
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(contents(&place), untouched);

    // A write that was cut: no damage.
    place.power_cut();
    let mut torn = fs::read(last).unwrap();
    torn.extend_from_slice(b"half a frame");
    fs::write(last, torn).unwrap();
    let found = look().unwrap().remove(0);
    assert!(found.is_whole() && found.torn_bytes == 12, "{found:?}");

    for (name, bytes) in [("notes.txt", &b"mine"[..]), ("00000000000000099999.seg", b"")] {
        fs::write(place.partition().join(name), bytes).unwrap();
        let found = look().unwrap().remove(0);
        assert!(found.notes.iter().any(|n| n.contains(name)), "{name}: {found:?}");
        fs::remove_file(place.partition().join(name)).unwrap();
    }
    fs::remove_file(&files[1]).unwrap();
    let found = look().unwrap().remove(0);
    assert!(found.notes.iter().any(|n| n.contains("is missing")), "{found:?}");
}
