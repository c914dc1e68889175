//! A window of one partition as a log of its own: bounded, judged again, at a pace. Read-only.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tidegate_event::{Offset, OffsetRange, Partition};

use super::{
    ahead::Ahead,
    judge::{Again, Session},
    pace::{InLine, Pace},
};
use crate::sink::source::{
    LogSource, SourceEntry, SourceError, SourceFrame, SourceHold, SourceReader,
};

/// `[from, to)` of a log's partition, as a job's sinks read it.
pub struct WindowSource {
    log: Arc<dyn LogSource>,
    from: Offset,
    to: Offset,
    again: Arc<Again>,
    pace: Arc<Pace>,
    ahead_bytes: u64,
}

impl WindowSource {
    /// Of `log`, as `again` judges it, no faster than `pace`. Who reads it to its end is read ahead for, by
    /// `ahead_bytes` at most.
    pub fn new(
        log: Arc<dyn LogSource>,
        (from, to): (Offset, Offset),
        again: Arc<Again>,
        pace: Arc<Pace>,
        ahead_bytes: u64,
    ) -> Self {
        Self { log, from, to, again, pace, ahead_bytes }
    }

    /// `quit`: once it is true the reader waits for its turn no longer.
    fn reader(&self, from: Offset, quit: Arc<AtomicBool>) -> Result<WindowReader, SourceError> {
        Ok(WindowReader {
            reader: self.log.read_from(from)?,
            partition: self.log.partition(),
            from,
            to: self.to,
            at: from,
            again: Arc::clone(&self.again),
            pace: Arc::clone(&self.pace),
            quit,
            in_line: None,
            session: Session::default(),
            ready: VecDeque::new(),
        })
    }
}

impl LogSource for WindowSource {
    fn log_id(&self) -> &str {
        self.log.log_id()
    }
    fn partition(&self) -> Partition {
        self.log.partition()
    }
    fn earliest(&self) -> Offset {
        self.from
    }
    fn latest(&self) -> Offset {
        self.to
    }
    fn read_from(&self, from: Offset) -> Result<Box<dyn SourceReader>, SourceError> {
        Ok(Box::new(self.reader(from, Arc::default())?))
    }
    fn read_on_from(&self, from: Offset) -> Result<Box<dyn SourceReader>, SourceError> {
        let (quit, pace) = (Arc::<AtomicBool>::default(), Arc::clone(&self.pace));
        let mut reader = self.reader(from, Arc::clone(&quit))?;
        reader.in_line = Some(self.pace.line_up());
        let may = move || pace.may_run_ahead();
        let ahead = Ahead::start(Box::new(reader), self.ahead_bytes, quit, may);
        let no_thread = |error| SourceError::Read { cause: format!("no thread: {error}") };
        Ok(Box::new(ahead.map_err(no_thread)?))
    }
    fn wait_past(&self, seen: Offset, timeout: Duration) -> bool {
        if self.to <= seen {
            std::thread::sleep(timeout);
        }
        seen < self.to
    }
    fn bytes_since(&self, offset: Offset) -> u64 {
        self.log.bytes_since(offset).saturating_sub(self.log.bytes_since(self.to))
    }
    fn hold(&self, name: &str) -> Box<dyn SourceHold> {
        self.log.hold(name)
    }
}

struct WindowReader {
    reader: Box<dyn SourceReader>,
    partition: Partition,
    /// All before it is none of this reader's.
    from: Offset,
    to: Offset,
    /// All before it was given.
    at: Offset,
    again: Arc<Again>,
    pace: Arc<Pace>,
    quit: Arc<AtomicBool>,
    /// Of who reads to the end.
    in_line: Option<InLine>,
    session: Session,
    ready: VecDeque<SourceEntry>,
}

impl SourceReader for WindowReader {
    fn next(&mut self) -> Result<Option<SourceEntry>, SourceError> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Ok(Some(entry));
            }
            if self.to <= self.at {
                self.in_line.iter().for_each(InLine::let_on);
                return Ok(None);
            }
            match self.reader.next()? {
                None => return Ok(None),
                Some(SourceEntry::Frame(frame)) => self.frame(&frame)?,
                Some(SourceEntry::Quarantined(range)) => {
                    self.pass(range.to(), SourceEntry::Quarantined);
                }
                Some(SourceEntry::Empty(range)) => self.pass(range.to(), SourceEntry::Empty),
            }
        }
    }
}

impl WindowReader {
    fn frame(&mut self, frame: &SourceFrame) -> Result<(), SourceError> {
        let turn = self.pace.turn(frame.count.into(), &self.quit, self.in_line.as_ref());
        turn.map_err(|cause| SourceError::Read { cause })?;
        let window = (self.from.max(self.at), self.to);
        let frames = self.again.frames(&mut self.session, self.partition, frame, window);
        // The frame's checksum holds, so this was written so: no other reader makes more of it.
        let frames = frames.map_err(|error| SourceError::Read {
            cause: format!("at offset {}: {error}", frame.base),
        })?;
        for made in frames {
            self.pass(made.base, SourceEntry::Empty);
            self.at = made.end();
            self.ready.push_back(SourceEntry::Frame(made));
        }
        self.pass(frame.end(), SourceEntry::Empty);
        Ok(())
    }

    /// Gives the offsets up to `to` as what `entry` makes of them.
    fn pass(&mut self, to: Offset, entry: impl FnOnce(OffsetRange) -> SourceEntry) {
        if let Some(range) = OffsetRange::new(self.at, to.min(self.to)) {
            self.at = range.to();
            self.ready.push_back(entry(range));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tidegate_event::EventType;

    use super::*;
    use crate::replay::{
        Selection,
        judge::tests::{again, frame},
    };

    /// A log of these entries.
    struct Fixed(Vec<SourceEntry>);

    struct Hold;
    impl SourceHold for Hold {
        fn advance(&mut self, _: Offset) {}
    }

    struct FixedReader(VecDeque<SourceEntry>);
    impl SourceReader for FixedReader {
        fn next(&mut self) -> Result<Option<SourceEntry>, SourceError> {
            Ok(self.0.pop_front())
        }
    }

    fn ends(entry: &SourceEntry) -> (Offset, Offset) {
        match entry {
            SourceEntry::Frame(frame) => (frame.base, frame.end()),
            SourceEntry::Empty(range) | SourceEntry::Quarantined(range) => {
                (range.from(), range.to())
            }
        }
    }

    impl LogSource for Fixed {
        fn log_id(&self) -> &str {
            "abcd1234"
        }
        fn partition(&self) -> Partition {
            Partition(0)
        }
        fn earliest(&self) -> Offset {
            Offset(0)
        }
        fn latest(&self) -> Offset {
            self.0.last().map_or(Offset(0), |entry| ends(entry).1)
        }
        fn read_from(&self, from: Offset) -> Result<Box<dyn SourceReader>, SourceError> {
            let rest = self.0.iter().filter(|entry| from < ends(entry).1).cloned();
            Ok(Box::new(FixedReader(rest.collect())))
        }
        fn wait_past(&self, _: Offset, _: Duration) -> bool {
            false
        }
        fn bytes_since(&self, offset: Offset) -> u64 {
            self.latest().since(offset)
        }
        fn hold(&self, _: &str) -> Box<dyn SourceHold> {
            Box::new(Hold)
        }
    }

    #[test]
    fn a_window_reads_as_a_log_of_its_own_from_each_of_its_offsets() {
        let dir = tempfile::tempdir().unwrap();
        let only = vec![EventType::new("a").unwrap()];
        let selection = Selection { event_types: only, ..Selection::default() };
        let again = Arc::new(again(dir.path(), selection, true));
        let events = [("a", false, "1"), ("b", false, "1"), ("a", false, "1")];
        let log = Arc::new(Fixed(vec![
            SourceEntry::Frame(frame(0, "dev", &events)),
            SourceEntry::Empty(OffsetRange::new(Offset(3), Offset(5)).unwrap()),
            SourceEntry::Frame(frame(5, "dev", &events)),
        ]));
        let pace = Arc::new(Pace::new(None));
        let window =
            WindowSource::new(log, (Offset(1), Offset(7)), again, Arc::clone(&pace), 1 << 20);
        assert_eq!((window.earliest(), window.latest()), (Offset(1), Offset(7)));
        assert_eq!(window.bytes_since(Offset(2)), 5);
        for (start, ahead) in (1..7).flat_map(|start| [(start, false), (start, true)]) {
            let start_at = Offset(start);
            let reader =
                if ahead { window.read_on_from(start_at) } else { window.read_from(start_at) };
            let mut reader = reader.unwrap();
            let (mut at, mut found) = (Offset(start), Vec::new());
            while let Some(entry) = reader.next().unwrap() {
                let (from, to) = ends(&entry);
                assert_eq!(from, at, "no gap, and nothing twice");
                at = to;
                if let SourceEntry::Frame(frame) = entry {
                    found.extend(frame.base.0..frame.end().0);
                }
            }
            let wanted: Vec<u64> = [2, 5].into_iter().filter(|offset| start <= *offset).collect();
            assert_eq!((at, found), (Offset(7), wanted));
        }
        pace.stop();
        assert!(window.read_from(Offset(1)).unwrap().next().is_err());
        assert!(window.read_on_from(Offset(1)).unwrap().next().is_err());
    }
}
