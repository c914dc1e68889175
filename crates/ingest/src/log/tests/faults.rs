//! A full disk, failed writes, syncs and reads.

use super::*;

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
        let mut place = Place::on(Arc::new(disk.clone()));
        place.config.segment_bytes = Size(1 << 20);
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
        assert_eq!(kept.len(), 3);
        assert_eq!(place.segments().len(), 2, "a segment that failed is not written again");
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
fn a_start_that_fails_at_any_write_is_made_good_by_the_next() {
    for nth in 0..8 {
        let disk = FaultyDisk::new();
        let place = Place::on(Arc::new(disk.clone()));
        let (mut log, _) = place.open();
        log.append(&[frame(&[1; 50], 1), frame(&[2; 60], 1)]).unwrap();
        drop(log);
        let (path, len) = last_segment(&place);
        fs::File::options().write(true).open(path).unwrap().set_len(len - 1).unwrap();
        place.power_cut();
        disk.0.write.set(nth);
        let _ = place.try_open();
        disk.0.write.set(-1);
        let (log, recovery) = place.open();
        assert_eq!(bodies(&log.handle(), 0), [(0, vec![1; 50])], "write {nth}: {recovery}");
    }
}

#[test]
fn a_stop_after_a_failed_write_leaves_a_mark_only_once_a_segment_follows() {
    for followed in [false, true] {
        let disk = FaultyDisk::new();
        let place = Place::on(Arc::new(disk.clone()));
        let (mut log, _) = place.open();
        log.append(&[frame(b"acknowledged", 1)]).unwrap();
        disk.0.write.set(0);
        log.append(&[frame(b"refused", 1)]).unwrap_err();
        disk.0.write.set(-1);
        if followed {
            log.append(&[frame(b"acknowledged too", 1)]).unwrap();
        }
        log.close().unwrap();
        assert_eq!(place.partition().join("clean").exists(), followed);
        let (log, _) = place.open();
        assert_eq!(log.handle().latest(), Offset(1 + u64::from(followed)));
    }
}
