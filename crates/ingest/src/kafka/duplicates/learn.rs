//! The ids of the windows, read back by a new owner before it decides.

use tidegate_event::{BatchView, Offset, ReceivedAt};

use super::Records;
use crate::{
    sink::source::{LogSource, SourceEntry, SourceError},
    writer::KnownIds,
};

/// How much older an event may be than those before it and still be in time: what waited for Kafka.
const LATE_MICROS: i64 = 120_000_000;

/// What is learned from.
pub(crate) struct Learn<'a> {
    pub log: &'a dyn LogSource,
    pub records: &'a Records,
    /// All below is decided.
    pub to: Offset,
    pub clock: ReceivedAt,
}

/// Has `known` know what an owner knew that decided all below `from.to`; false where `go_on` said so.
/// Reads no more than it must: the longest window, or what holds as many ids as are remembered.
///
/// # Errors
/// [`SourceError`]: to be begun again.
pub(crate) fn learn(
    known: &mut KnownIds,
    from: &Learn<'_>,
    ids_max: usize,
    mut go_on: impl FnMut() -> bool,
) -> Result<bool, SourceError> {
    let first = first_undecided(from)?.unwrap_or(from.clock).min(from.clock);
    let since = first.0.saturating_sub(known.longest()).saturating_sub(LATE_MICROS);
    let floor = from.log.offset_at(ReceivedAt(since)).max(from.log.earliest());
    let mut span = 2 * ids_max.max(1) as u64;
    loop {
        let start = Offset(from.to.0.saturating_sub(span)).max(floor);
        known.clear();
        if !read(known, from, start, &mut go_on)? {
            return Ok(false);
        }
        if start <= floor || known.is_full() {
            return Ok(true);
        }
        span = span.saturating_mul(8);
    }
}

/// When the first event was received that is not decided.
fn first_undecided(from: &Learn<'_>) -> Result<Option<ReceivedAt>, SourceError> {
    if from.log.latest() <= from.to {
        return Ok(None);
    }
    let mut reader = from.log.read_from(from.to.max(from.log.earliest()))?;
    while let Some(entry) = reader.next()? {
        if let SourceEntry::Frame(frame) = entry {
            return Ok(Some(frame.received_at));
        }
    }
    Ok(None)
}

fn read(
    known: &mut KnownIds,
    from: &Learn<'_>,
    start: Offset,
    go_on: &mut impl FnMut() -> bool,
) -> Result<bool, SourceError> {
    if from.to <= start {
        return Ok(true);
    }
    let (mut at, mut is_first) = (start, Offset(0) < start);
    let mut reader = from.log.read_from(start)?;
    while at < from.to {
        let frame = match reader.next()? {
            None => break,
            Some(SourceEntry::Frame(frame)) => frame,
            Some(SourceEntry::Quarantined(range) | SourceEntry::Empty(range)) => {
                at = range.to();
                continue;
            }
        };
        at = frame.end();
        if !go_on() {
            return Ok(false);
        }
        if std::mem::take(&mut is_first) {
            // What is before may have had ids too; where it is older than every window nobody asks.
            known.lost_until(ReceivedAt(frame.received_at.0.saturating_sub(1)));
        }
        if from.records.contains(frame.base) || from.to <= frame.base {
            continue;
        }
        let Ok(view) = BatchView::parse(&frame.body) else { continue };
        for record in view.records().filter_map(Result::ok) {
            known.is_known(view.tenant, &record, frame.received_at, from.clock);
        }
    }
    Ok(true)
}
