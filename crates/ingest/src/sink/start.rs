//! Where a sink begins that has no cursor yet, and what becomes of the events before that.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tidegate_event::{Offset, ReceivedAt};

use super::{
    desk::{BACKOFF_FIRST, Desk, End},
    rows::{Lane, Lanes},
    source::{LogSource, SourceEntry, SourceError},
    status::Written,
};

/// `start` of a `[[sink]]`: used once, where the sink has no cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Start {
    /// With the oldest event that the log still has.
    #[default]
    First,
    /// With the first event after the server's start.
    Now,
    /// With this offset.
    Offset(Offset),
    /// With the first request in the log that was received then or later.
    Time(ReceivedAt),
}

impl FromStr for Start {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || {
            format!(
                "start {text:?} is none of \"first\", \"now\", \"offset:N\" and a time (RFC 3339, say \
                 \"2026-11-21T10:00:00Z\")"
            )
        };
        match text {
            "first" => Ok(Self::First),
            "now" => Ok(Self::Now),
            _ => match text.strip_prefix("offset:") {
                Some(offset) => {
                    offset.parse().map(|n| Self::Offset(Offset(n))).map_err(|_| fault())
                }
                None => {
                    let time: jiff::Timestamp = text.parse().map_err(|_| fault())?;
                    Ok(Self::Time(ReceivedAt(time.as_microsecond())))
                }
            },
        }
    }
}

impl TryFrom<String> for Start {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("first"),
            Self::Now => f.write_str("now"),
            Self::Offset(offset) => write!(f, "offset:{offset}"),
            Self::Time(at) => time(*at).fmt(f),
        }
    }
}

impl From<Start> for String {
    fn from(start: Start) -> Self {
        start.to_string()
    }
}

fn time(at: ReceivedAt) -> jiff::Timestamp {
    jiff::Timestamp::from_microsecond(at.0).unwrap_or_default()
}

/// Where a sink began in one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Began {
    /// Its first offset.
    pub at: Offset,
    /// As it was configured then.
    pub start: Start,
    /// Events before it that retention had removed: they are in no lane's count.
    pub gone: u64,
    /// From here up to `at` the events are yet to be counted as skipped; `None`: they are.
    pub uncounted: Option<Offset>,
}

impl Began {
    /// Where a sink without a cursor begins in `log`, one of `partitions`; `None`: at the very first
    /// offset there is. What it returns must be durable before the sink goes on.
    ///
    /// # Errors
    /// Why `start` means no place in this log, and what to write instead.
    pub(super) fn of(
        start: Start,
        log: &dyn LogSource,
        partitions: usize,
        now: ReceivedAt,
    ) -> Result<Option<Self>, String> {
        let (earliest, latest) = (log.earliest(), log.latest());
        let at = match start {
            Start::First => earliest,
            Start::Now => latest,
            Start::Offset(_) if 1 < partitions => {
                return Err(format!(
                    "start = \"{start}\" means another event in each of the log's {partitions} \
                     partitions: write a time"
                ));
            }
            Start::Offset(offset) if latest < offset => {
                return Err(format!(
                    "start = \"{start}\" is beyond the end of the log: the next offset it gives is \
                     {latest}; for what comes from here on write \"now\""
                ));
            }
            Start::Offset(offset) => offset.max(earliest),
            Start::Time(at) if now < at => {
                return Err(format!(
                    "start = \"{start}\" is to come, it is {}: for what comes from here on write \
                     \"now\"",
                    time(now)
                ));
            }
            Start::Time(at) => first_at(log, at).map_err(|e| e.to_string())?,
        };
        if start == Start::First && at == Offset(0) {
            return Ok(None);
        }
        let asked_for_more = match start {
            Start::Offset(offset) => offset < earliest,
            Start::Time(_) => at == earliest && Offset(0) < earliest,
            Start::First | Start::Now => false,
        };
        if asked_for_more {
            tracing::warn!(
                %start,
                earliest = earliest.0,
                "the log does not reach back so far: the sink begins with the oldest event it has"
            );
        }
        let uncounted = (earliest < at).then_some(earliest);
        Ok(Some(Self { at, start, gone: earliest.0, uncounted }))
    }
}

/// The first offset of the first frame received at `wanted` or later; the log's end without one.
fn first_at(log: &dyn LogSource, wanted: ReceivedAt) -> Result<Offset, SourceError> {
    let mut at = log.offset_at(wanted);
    let mut reader = log.read_from(at)?;
    while let Some(entry) = reader.next()? {
        match entry {
            SourceEntry::Frame(frame) if wanted <= frame.received_at => return Ok(frame.base),
            SourceEntry::Frame(frame) => at = frame.end(),
            SourceEntry::Quarantined(range) | SourceEntry::Empty(range) => at = range.to(),
        }
    }
    Ok(at)
}

/// The events before a sink's start that nobody counted yet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Before {
    pub lanes: BTreeMap<Lane, u64>,
    /// Offsets that the log had lost.
    pub lost: u64,
    /// Events that retention has removed since.
    pub gone: u64,
}

impl Before {
    /// Reads them; `go_on` is asked at each frame.
    pub fn read<E: From<SourceError>>(
        log: &dyn LogSource,
        began: &Began,
        mut go_on: impl FnMut() -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut before = Self::default();
        let Some(from) = began.uncounted else { return Ok(before) };
        let mut at = from.max(log.earliest()).min(began.at);
        before.gone = at.since(from);
        let mut reader = log.read_from(at)?;
        while at < began.at {
            go_on()?;
            match reader.next()? {
                None => break,
                Some(SourceEntry::Empty(range)) => at = range.to(),
                Some(SourceEntry::Quarantined(range)) => {
                    before.lost += range.to().min(began.at).since(at.max(range.from()));
                    at = range.to();
                }
                Some(SourceEntry::Frame(frame)) => {
                    let end = frame.end();
                    let frames = [frame];
                    let lanes = Lanes::sort(&frames, |_, offset| offset < began.at);
                    for (lane, rows) in lanes.rows {
                        *before.lanes.entry(lane).or_default() += rows.len() as u64;
                    }
                    let bad = lanes.bad.iter().map(|bad| end.min(began.at).since(bad.base));
                    before.lost += bad.sum::<u64>();
                    at = end;
                }
            }
        }
        Ok(before)
    }
}

/// Why counting ended early.
enum Cut {
    Source(SourceError),
    End(End),
}

impl From<SourceError> for Cut {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl Desk {
    /// Counts the events before the sink's start as skipped, once; until it is done the books count
    /// them by reading.
    pub(super) fn count_before(&self) -> Result<(), End> {
        loop {
            let Some(began) = self.board().state.began.clone() else { return Ok(()) };
            if began.uncounted.is_none() {
                return Ok(());
            }
            let go_on = || self.check_quit().map_err(Cut::End);
            let before = match Before::read(&*self.shared.log, &began, go_on) {
                Ok(before) => before,
                Err(Cut::End(end)) => return Err(end),
                Err(Cut::Source(SourceError::Gone { .. })) => continue,
                Err(Cut::Source(SourceError::Read { cause })) => {
                    self.wait(&cause, BACKOFF_FIRST)?;
                    continue;
                }
            };
            self.commit(|state| {
                for (lane, rows) in &before.lanes {
                    state.count(lane, Written::Skipped, *rows);
                }
                state.lost_in_log += before.lost;
                if let Some(began) = &mut state.began {
                    began.gone += before.gone;
                    began.uncounted = None;
                }
            })?;
            let (sink, at, events) = (&self.shared.name, began.at.0, began.at.since(Offset(0)));
            tracing::info!(sink, at, events, start = %began.start, "the events before the sink's start are skipped");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_form_reads_back_as_it_was_written() {
        for text in
            ["first", "now", "offset:0", "offset:18446744073709551615", "2026-11-21T10:00:00Z"]
        {
            assert_eq!(text.parse::<Start>().unwrap().to_string(), text);
        }
        let there: Start = "2026-11-21T11:00:00+01:00".parse().unwrap();
        assert_eq!(there.to_string(), "2026-11-21T10:00:00Z");
    }

    #[test]
    fn what_is_no_start_is_told_with_those_there_are() {
        for text in ["", "First", "offset:", "offset:-1", "offset:x", "2026-11-21", "10:00", "1h"] {
            let fault = text.parse::<Start>().unwrap_err();
            assert!(fault.contains("\"offset:N\"") && fault.contains("\"now\""), "{text}: {fault}");
        }
    }
}
