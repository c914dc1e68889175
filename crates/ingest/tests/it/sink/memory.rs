//! What a window costs in memory while it is written, measured in a process of its own.

use std::{process::Command, sync::Arc};

use tidegate_ingest::{
    sink::{self, SinkConfig},
    storage::Disk,
};

use super::{Pipe, config};

const CHILD: &str = "TIDEGATE_TEST_WINDOW";
/// The file in which the child answers.
const ANSWER: &str = "TIDEGATE_TEST_WINDOW_ANSWER";

/// A number of bytes out of `/proc/self/status`.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// The child: one window of `megabytes`, events of `bytes` each in `lanes` lanes; answers
/// with the bytes of events and what they took at the peak.
fn write_one_window(megabytes: usize, bytes: usize, lanes: usize) {
    let mut pipe = Pipe::new();
    pipe.memory_bytes = 4 << 30;
    let config: SinkConfig = toml::from_str(
        "name='lake'\nkind='lake'\nflush.rows=100000000\nflush.bytes='1GiB'\nflush.age='1h'",
    )
    .unwrap();
    let names: Vec<String> = (0..lanes).map(|lane| format!("view{lane}")).collect();
    let mut written = 0;
    let mut n: u64 = 0;
    while written < megabytes << 20 {
        let texts: Vec<String> = (0..500)
            .map(|_| {
                n += 1;
                // What hardly compresses, as ids and texts do.
                let mut text = format!("{{\"n\":{n}");
                let mut word = n;
                while text.len() + 30 < bytes {
                    word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    text += &format!(",\"f{}\":\"{word:016x}\"", text.len());
                }
                text + "}"
            })
            .collect();
        let name = &names[(n / 500) as usize % lanes];
        let events: Vec<_> =
            texts.iter().map(|text| (name.as_str(), text.as_str(), None)).collect();
        pipe.append("acme", &events);
        written += texts.iter().map(|text| text.len() + 30).sum::<usize>();
    }
    let before = status("VmRSS");
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    pipe.run(&config);
    let counts: u64 = pipe.reader(&config).inventory().unwrap().iter().map(|f| f.rows).sum();
    assert_eq!(counts, n, "one window, all of it");
    let took = status("VmHWM").saturating_sub(before);
    std::fs::write(std::env::var(ANSWER).unwrap(), format!("{written} {took}")).unwrap();
}

/// Runs as a child what [`write_one_window`] does; returns bytes of log and bytes of memory.
fn measured(what: &str) -> (u64, u64) {
    let dir = tempfile::tempdir().unwrap();
    let answer = dir.path().join("answer");
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sink::memory::a_window_takes_no_more_than_its_factor"])
        .env(CHILD, what)
        .env(ANSWER, &answer)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let text = std::fs::read_to_string(&answer).unwrap();
    let (written, took) = text.split_once(' ').unwrap();
    (written.parse().unwrap(), took.parse().unwrap())
}

/// `TIDEGATE_TEST_WINDOW_MIB=64 cargo test -p tidegate-ingest --test it sink::memory -- --nocapture`
/// measures the window that is the default.
#[test]
fn a_window_takes_no_more_than_its_factor() {
    if let Ok(what) = std::env::var(CHILD) {
        let what: Vec<usize> = what.split(' ').map(|n| n.parse().unwrap()).collect();
        return write_one_window(what[0], what[1], what[2]);
    }
    let megabytes = std::env::var("TIDEGATE_TEST_WINDOW_MIB").unwrap_or_else(|_| "24".to_owned());
    for (bytes, lanes) in [(500, 1), (500, 20), (20_000, 1)] {
        let (written, took) = measured(&format!("{megabytes} {bytes} {lanes}"));
        eprintln!(
            "{written} bytes of events of {bytes} in {lanes} lanes took {took} bytes: {:.2}",
            took as f64 / written as f64
        );
        // What does not grow with the window: threads, the pages of the code that runs.
        let fixed = 12 << 20;
        assert!(took <= written * sink::MEMORY_FACTOR + fixed, "{bytes} {lanes}: {took}");
    }
    // Of small events, a window has no more than so many: rows cost more than their bytes.
    let (written, took) = measured("3 40 1");
    let rows = written / 50;
    eprintln!("{rows} rows took {took} bytes: {} each", took / rows);
    assert!(took <= rows * sink::ROW_BYTES * sink::MEMORY_FACTOR + (12 << 20), "{took}");
}

#[test]
fn a_share_too_small_for_windows_is_refused_with_the_numbers() {
    let mut pipe = Pipe::new();
    pipe.memory_bytes = 12 << 20;
    let lake = config(10);
    let hole: SinkConfig = toml::from_str("name='hole'\nkind='blackhole'").unwrap();
    let parts = pipe.parts(Arc::new(Disk));
    let error = sink::start(&[lake.clone(), hole], &parts).err().unwrap().to_string();
    for part in ["12MiB", "2 sinks", "1 partitions", "8MiB", "16MiB", "budget.bytes"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    sink::start(&[lake], &pipe.parts(Arc::new(Disk))).unwrap().stop();
}
