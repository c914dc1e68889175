//! The contract against the embedded log.

use std::sync::Arc;

use tempfile::TempDir;
use tidegate_event::Offset;
use tidegate_ingest::{
    books::Books,
    clock::SystemClock,
    config::{Size, Span},
    log::{self, LogConfig},
    storage::Disk,
    writer::{self, WriterSettings, Writers},
};

use super::{OpenLog, Place};

struct Folder {
    dir: TempDir,
}

fn place(_: &str) -> Option<Folder> {
    Some(Folder { dir: TempDir::new().unwrap() })
}

impl Folder {
    fn config(&self) -> LogConfig {
        LogConfig {
            dir: self.dir.path().into(),
            segment_bytes: Size(4 << 10),
            dedup_window: Span::seconds(0),
            ..LogConfig::default()
        }
    }

    fn open_with(&self, config: &LogConfig, change: &dyn Fn(&mut WriterSettings)) -> OpenLog {
        let clock = Arc::new(SystemClock);
        let opened = log::open(Arc::new(Disk), config, Arc::<SystemClock>::clone(&clock)).unwrap();
        let log = opened.partitions.into_iter().next().unwrap();
        let source = Arc::new(log.handle());
        let books = Arc::new(Books::default());
        let delay = std::time::Duration::from_secs(2);
        let mut settings = WriterSettings::new(config, 64 << 20, delay);
        change(&mut settings);
        let writer = writer::start(log, Arc::clone(&books), clock, settings).unwrap();
        let writer = Arc::new(Writers::new(vec![writer]).unwrap());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        OpenLog { writer, source, books, runtime }
    }
}

impl Place for Folder {
    fn open(&self, change: &dyn Fn(&mut WriterSettings)) -> OpenLog {
        self.open_with(&self.config(), change)
    }

    fn trim(&self, log: OpenLog, to: Offset) -> OpenLog {
        let keep = log.source.bytes_since(to);
        log.close();
        drop(log);
        let config = LogConfig { retention_bytes: Size(keep + (8 << 10)), ..self.config() };
        let log = self.open_with(&config, &super::same);
        let until = std::time::Instant::now() + super::SOON;
        while log.source.earliest() == Offset(0) {
            assert!(std::time::Instant::now() < until, "retention takes nothing");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        log
    }
}

super::contract!(place);
