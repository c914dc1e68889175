//! Bits flipped in a large log, frames lost, files missing, foreign and forged. Every bit of a small
//! one: tests/it/sim/every_bit.rs.

use super::*;

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
fn what_proves_that_damage_was_durable_is_not_cut_off_before_a_segment_says_so() {
    let place = Place::with(|config| config.segment_bytes = Size(1 << 20));
    let (mut log, _) = place.open();
    log.append(&[frame(b"acknowledged", 4)]).unwrap();
    log.append(&[frame(b"torn", 1), frame(b"whole", 1)]).unwrap();
    drop(log);
    place.power_cut();
    // The first frame is damaged, and only the last one proves that it was durable.
    let path = place.segments().remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[160 + 60] ^= 1;
    bytes[160 + 72..160 + 72 + 60].fill(0);
    fs::write(&path, &bytes).unwrap();
    for _ in 0..3 {
        let (log, recovery) = place.open();
        assert_eq!((recovery.latest, recovery.torn_bytes), (Offset(4), 0), "{recovery}");
        assert_eq!(recovery.quarantined[0].count(), 4);
        assert_eq!(read(&log.handle(), 0).len(), 1);
    }
    let (mut log, _) = place.open();
    assert_eq!(log.append(&[frame(b"on", 1)]).unwrap(), [Offset(4)]);
    drop(log);
    let entries = read(&place.open().0.handle(), 0);
    assert!(matches!(entries[0], Entry::Quarantined(range) if range.count() == 4));
    assert!(matches!(&entries[1..], [Entry::Frame(frame)] if &frame.body[..] == b"on"));
}

/// Three groups, of which the second is damaged in its first frame.
fn damaged_in_a_group(place: &Place, clean: bool) {
    let (mut log, _) = place.open();
    log.append(&[frame(b"first", 1)]).unwrap();
    log.append(&[frame(b"damaged", 1), frame(b"intact", 1)]).unwrap();
    if clean {
        log.close().unwrap();
    } else {
        log.append(&[frame(b"torn", 1), frame(b"whole", 1)]).unwrap();
        drop(log);
        place.power_cut();
    }
    let path = place.segments().remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let damaged = bytes.windows(7).position(|body| body == b"damaged").unwrap();
    bytes[damaged] ^= 1;
    if !clean {
        let torn = bytes.windows(4).position(|body| body == b"torn").unwrap();
        bytes[torn] ^= 1;
    }
    fs::write(&path, &bytes).unwrap();
}

#[track_caller]
fn the_intact_one_is_served(place: &Place) {
    let (log, recovery) = place.open();
    let entries = read(&log.handle(), 0);
    assert!(matches!(entries[1], Entry::Quarantined(range) if range.count() == 1), "{recovery}");
    assert!(matches!(&entries[2], Entry::Frame(f) if &f.body[..] == b"intact"), "{recovery}");
    assert!(log.handle().latest() >= Offset(3), "{recovery}");
}

#[test]
fn a_frame_behind_damage_is_kept_though_what_proved_it_is_torn() {
    let place = Place::with(|config| config.segment_bytes = Size(1 << 20));
    damaged_in_a_group(&place, false);
    for _ in 0..3 {
        the_intact_one_is_served(&place);
    }
    let (mut log, _) = place.open();
    assert_eq!(log.append(&[frame(b"on", 1)]).unwrap(), [Offset(3)]);
    drop(log);
    the_intact_one_is_served(&place);
}

#[test]
fn a_frame_behind_damage_is_kept_when_the_first_append_behind_it_fails() {
    let mut failed = 0;
    for write in 0..8 {
        let disk = FaultyDisk::new();
        let mut place = Place::on(Arc::new(disk.clone()));
        place.config.segment_bytes = Size(1 << 20);
        damaged_in_a_group(&place, true);
        let (mut log, _) = place.open();
        disk.0.write.set(write);
        // Whether it succeeds or not: what was acknowledged stays.
        failed += u32::from(log.append(&[frame(b"on", 1)]).is_err());
        disk.0.write.set(-1);
        drop(log);
        the_intact_one_is_served(&place);
    }
    assert!((2..8).contains(&failed), "{failed}");
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

#[test]
fn a_stale_frame_behind_the_end_is_not_taken_for_the_next() {
    let place = Place::with(|config| config.segment_bytes = Size(1 << 20));
    let (mut log, _) = place.open();
    for body in [b"one", b"two", b"old"] {
        log.append(&[frame(body, 1)]).unwrap();
    }
    drop(log);
    let path = place.segments().remove(0);
    let stale = fs::read(&path).unwrap();
    fs::write(&path, &stale[..stale.len() - 2 * 63]).unwrap();
    place.power_cut();
    let (mut log, _) = place.open();
    log.append(&[frame(b"TWO", 1)]).unwrap();
    drop(log);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(&stale[stale.len() - 63..]);
    fs::write(&path, bytes).unwrap();
    let (log, recovery) = place.open();
    assert_eq!(recovery.torn_bytes, 63);
    assert_eq!(bodies(&log.handle(), 0), [(0, b"one".to_vec()), (1, b"TWO".to_vec())]);
}

#[test]
fn both_heads_of_a_segment_lost_cost_no_frame_while_another_segment_has_the_key() {
    for clean in [true, false] {
        let place = Place::new();
        let (mut log, _) = place.open();
        for n in 0..20u8 {
            log.append(&[frame(&[n; 90], 1)]).unwrap();
        }
        if clean {
            log.close().unwrap()
        } else {
            drop(log)
        }
        for path in place.segments().iter().skip(1) {
            let mut bytes = fs::read(path).unwrap();
            bytes[..160].fill(0);
            fs::write(path, bytes).unwrap();
        }
        let (mut log, recovery) = place.open();
        assert!(recovery.to_string().contains("made anew"), "{recovery}");
        assert_eq!(bodies(&log.handle(), 0).len(), 20);
        log.append(&[frame(b"more", 1)]).unwrap();
        drop(log);
        assert_eq!(bodies(&place.open().0.handle(), 0).len(), 21);

        let only = Place::new();
        let (mut log, _) = only.open();
        log.append(&[frame(b"one", 1)]).unwrap();
        drop(log);
        let path = only.segments().remove(0);
        let mut bytes = fs::read(&path).unwrap();
        bytes[..160].fill(0);
        fs::write(&path, bytes).unwrap();
        assert!(only.try_open().unwrap_err().to_string().contains("restore it"));
        fs::write(&path, b"").unwrap();
        only.open();
    }
}

/// Whatever is missing or does not belong is refused by its name, or mended by a rule and told.
#[test]
fn segments_that_are_missing_after_a_kill_are_refused_by_name() {
    for clean in [true, false] {
        let place = Place::new();
        let (mut log, _) = place.open();
        for n in 0..20u8 {
            log.append(&[frame(&[n; 90], 1)]).unwrap();
        }
        if clean {
            log.close().unwrap()
        } else {
            drop(log)
        }
        let files = place.segments();
        let last = files.last().unwrap();
        let away = place.dir.path().join("away");
        fs::rename(last, &away).unwrap();
        assert!(matches!(place.try_open(), Err(OpenError::Missing { path }) if path == *last));
        // Given up on purpose: its offsets are lost, and never given again.
        fs::write(last, b"").unwrap();
        let (mut log, recovery) = place.open();
        assert_eq!((recovery.latest, recovery.quarantined.len()), (Offset(20), 1), "{recovery}");
        assert_eq!(log.append(&[frame(b"on", 1)]).unwrap(), [Offset(20)]);
        assert_eq!(log.handle().quarantine_totals().open_stretches, 1);
    }
    let place = Place::new();
    let (mut log, _) = place.open();
    log.append(&[frame(b"one", 1)]).unwrap();
    log.close().unwrap();
    let only = place.segments().remove(0);
    fs::remove_file(&only).unwrap();
    assert!(matches!(place.try_open(), Err(OpenError::Missing { path }) if path == only));
}

/// Scenario: the last group is damaged while the process is down, after a kill.
/// Guarantees: its offsets are lost and told; they are not taken for a write that was cut. Only a power
/// cut, which takes what was not synced, leaves nothing that proves it.
#[test]
fn the_last_group_is_known_to_be_durable_after_a_kill() {
    let place = Place::with(|config| config.segment_bytes = Size(1 << 20));
    let (mut log, _) = place.open();
    log.append(&[frame(b"one", 1)]).unwrap();
    log.append(&[frame(b"two", 2)]).unwrap();
    drop(log);
    let path = place.segments().remove(0);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, &bytes).unwrap();
    let whole = fs::read(place.partition().join("durable")).unwrap();
    let (log, recovery) = place.open();
    assert_eq!((recovery.latest, recovery.torn_bytes), (Offset(3), 0), "{recovery}");
    let known = log.handle().quarantined();
    assert_eq!(
        (known[0].range.from(), known[0].bytes, known[0].seen_by),
        (Offset(1), 63, SeenBy::Start)
    );
    let file = log.handle().segment_of(&known[0]).unwrap();
    let kept = read_some(&*file, known[0].position, 63).unwrap();
    assert_eq!(kept, bytes[bytes.len() - 63..], "its bytes are kept for who wants to look");
    drop(log);
    let (mut log, recovery) = place.open();
    assert_eq!(recovery.latest, Offset(3), "a second start finds the same");
    assert_eq!(log.append(&[frame(b"on", 1)]).unwrap(), [Offset(3)]);
    drop(log);
    assert_eq!(place.open().1.latest, Offset(4));

    let other = Place::new();
    let (mut log, _) = other.open();
    log.append(&[frame(b"one", 1)]).unwrap();
    drop(log);
    // Another log's word counts for nothing.
    fs::write(other.partition().join("durable"), whole).unwrap();
    assert_eq!(other.open().1.latest, Offset(1));
}
