//! Small files that are joined later: the same rows, while others read, and after a cursor was set back.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tidegate_event::{Code, Offset};
use tidegate_ingest::{
    sink::{
        JoinStatus, SinkConfig, Sinks,
        state::{Files, State, StateStores as _},
    },
    storage::Disk,
};

use super::{FIRST, HOUR, Pipe, eventually, read_rows, schema, tree};
use crate::tally::Tally;

fn config(format: &str, merge: &str) -> SinkConfig {
    let config = format!(
        "name='lake'\nkind='lake'\nflush.rows=3\nflush.age='1h'\n\
         options={{format='{format}',merge={{{merge}}}}}"
    );
    toml::from_str(&config).unwrap()
}

fn joining(sinks: &Sinks) -> JoinStatus {
    sinks.status().remove(0).joining.unwrap()
}

/// All rows as text, in order: with the lane, without the file they stand in.
fn rows(pipe: &Pipe, config: &SinkConfig) -> Vec<String> {
    let rows = pipe.rows(config).into_iter();
    let mut rows: Vec<_> = rows.map(|(lane, row)| format!("{lane} {row}")).collect();
    rows.sort_unstable();
    rows
}

/// Windows of three events: two tenants, two schemas, dead letters, values and none.
fn fill(pipe: &mut Pipe, windows: usize) {
    for i in 0..windows {
        let text = format!("{{\"n\":{i},\"name\":\"é {i}\",\"x\":[{i}]}}");
        pipe.append_as("acme", schema(2), &[("view", &text, None), ("view", "{\"y\":1}", None)]);
        pipe.append_as("beta", schema(1), &[("view", &text, None), ("click", "{}", None)]);
        let dead = Some(Code::TypeMismatch);
        pipe.append_as("acme", schema(1), &[("view", &text, None), ("view", "{}", dead)]);
    }
}

#[test]
fn small_files_become_few_with_the_same_rows_in_every_format() {
    for format in ["parquet", "jsonl", "jsonl.gz", "jsonl.zst"] {
        let mut pipe = Pipe::new();
        fill(&mut pipe, 12);
        pipe.clock.advance(HOUR);
        fill(&mut pipe, 12);
        pipe.run(&config(format, "after='10h'"));
        let plain = config(format, "after='10h'");
        let (before, files) = (rows(&pipe, &plain), tree(&pipe.lake()).len());
        assert!(100 < files, "{files}");

        let joins = config(format, "after='0s', every='0s', settle='0s'");
        let sinks = pipe.start(&joins);
        // 2 hours of: acme/view by two schemas (JSON lines have none) and dead letters, beta's two.
        let made = if format == "parquet" { 10 } else { 8 };
        eventually("all are joined", || joining(&sinks).made_files == made);
        assert_eq!(joining(&sinks).removed_files, files as u64);
        pipe.drain(&sinks);
        assert_eq!((joining(&sinks).failures, joining(&sinks).error), (0, None));
        assert_eq!(tree(&pipe.lake()).len() as u64, made, "{format}");
        assert_eq!(rows(&pipe, &plain), before, "{format}");
    }
}

#[test]
fn files_of_an_hour_that_is_not_over_stay_until_it_is() {
    let mut pipe = Pipe::new();
    fill(&mut pipe, 4);
    let joins = config("parquet", "every='0s', settle='0s'");
    pipe.run(&joins);
    let before = tree(&pipe.lake());
    let sinks = pipe.start(&joins);
    eventually("it has looked", || 0 < joining(&sinks).waiting_files);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!((tree(&pipe.lake()), joining(&sinks).made_files), (before, 0));
    pipe.clock.advance(HOUR + HOUR / 4);
    eventually("they are joined", || joining(&sinks).made_files == 5);
    assert_eq!(joining(&sinks).waiting_files, 0);
    pipe.drain(&sinks);
}

/// Lists a folder as `glob` does, takes its time, and reads what it found.
fn read_slowly(folder: &Path, pause: Duration) -> Result<Vec<u64>, String> {
    let mut files = Vec::new();
    for day in std::fs::read_dir(folder).unwrap() {
        for hour in std::fs::read_dir(day.unwrap().path()).unwrap() {
            let hour = hour.unwrap().path();
            // Names first, then each looked at: who is gone by then is passed over, as readers do.
            let names: Vec<PathBuf> =
                std::fs::read_dir(hour).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.extend(names.into_iter().filter(|name| name.metadata().is_ok()));
        }
    }
    let mut offsets = Vec::new();
    for file in files {
        std::thread::sleep(pause);
        let bytes = std::fs::read(&file).map_err(|_| "gone".to_owned())?;
        if !bytes.ends_with(b"PAR1") {
            return Err("no Parquet".to_owned());
        }
        let rows = read_rows("x.parquet", bytes);
        offsets.extend(rows.iter().map(|row| row["log_offset"].as_u64().unwrap()));
    }
    offsets.sort_unstable();
    Ok(offsets)
}

/// Files are written and joined all the time. A reader that is done has each row once: all that were
/// there when it began, none twice.
#[test]
fn whoever_lists_and_then_reads_has_each_row_once_or_fails() {
    const ROUNDS: u64 = 12;
    let mut pipe = Pipe::new();
    let joins = config("parquet", "after='0s', every='0s', settle='50ms'");
    let folder = pipe.lake().join("events/tenant=acme/event_type=view");
    pipe.append("acme", &[("view", "{}", None); 3]);
    let sinks = pipe.start(&joins);
    eventually("there is a file", || folder.exists() && sinks.cursors()[0].2 == Offset(3));
    let (ended, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(3)));
    let readers: Vec<_> = (0u64..4)
        .map(|reader| {
            let (ended, written) = (Arc::clone(&ended), Arc::clone(&written));
            let folder = folder.clone();
            std::thread::spawn(move || {
                let mut seen: HashMap<String, u64> = HashMap::new();
                while !ended.load(Ordering::SeqCst) {
                    let least = written.load(Ordering::SeqCst);
                    let pause = Duration::from_micros(reader * 700);
                    match read_slowly(&folder, pause) {
                        Ok(offsets) => {
                            let expected: Vec<u64> = (0..offsets.len() as u64).collect();
                            assert_eq!(offsets, expected, "each row once");
                            assert!(least <= offsets.len() as u64, "{least} rows were there");
                            *seen.entry("whole".to_owned()).or_default() += 1;
                        }
                        Err(why) => *seen.entry(why).or_default() += 1,
                    }
                }
                seen
            })
        })
        .collect();
    for round in 1..=ROUNDS {
        let made = joining(&sinks).made_files;
        for _ in 0..6 {
            let next = pipe.append("acme", &[("view", "{}", None); 3]).plus(3);
            eventually("it is written", || next <= sinks.cursors()[0].2);
            written.store(next.0, Ordering::SeqCst);
        }
        eventually(&format!("round {round} is joined"), || made < joining(&sinks).made_files);
    }
    ended.store(true, Ordering::SeqCst);
    let mut all: BTreeMap<String, u64> = BTreeMap::new();
    for reader in readers {
        for (what, n) in reader.join().unwrap() {
            *all.entry(what).or_default() += n;
        }
    }
    pipe.drain(&sinks);
    eprintln!("readers while files were joined: {all:?}, {:?}", joining(&sinks));
    assert!(0 < all["whole"], "{all:?}");
}

/// A cursor that stands before files that were joined: its windows would bring their rows back.
#[test]
fn a_cursor_that_was_set_back_brings_no_row_back() {
    let mut tally = Tally::new("sink::merge", "double start", &["P2"]);
    let mut pipe = Pipe::new();
    let joins = config("parquet", "after='0s', every='0s', settle='0s'");
    pipe.append("acme", &[("view", "{}", None); 12]);
    for _ in 0..4 {
        pipe.append("acme", &[("view", "{}", None); 3]);
    }
    let (storage, dir) = (Arc::new(Disk), pipe.data().join("sinks"));
    let store = Files { storage, dir, partition: FIRST }.of("lake");
    let id = pipe.log.handle().log_id().to_owned();
    pipe.run(&config("parquet", "after='10h'"));
    let sinks = pipe.start(&joins);
    eventually("they are joined", || joining(&sinks).removed_files == 5);
    pipe.drain(&sinks);
    let before = tree(&pipe.lake());

    let mut state = State::load(&*store, &id, FIRST).unwrap().unwrap();
    state.cursor = Offset(3);
    state.save(&*store).unwrap();
    let sinks = pipe.start(&joins);
    eventually("the lane is held", || !sinks.status()[0].held.is_empty());
    let status = sinks.status().remove(0);
    assert!(status.held[0].error.contains("set back"), "{}", status.held[0].error);
    sinks.stop();
    assert_eq!(tree(&pipe.lake()), before);
    tally.survived(1);
}
