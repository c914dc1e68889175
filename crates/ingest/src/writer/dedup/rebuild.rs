//! Reads ids from the log: what the index does not cover, newest segment first.

use tidegate_event::{Offset, ReceivedAt};

use super::{
    keys::Keyring,
    memory::{NEVER, Seen},
};
use crate::log::{Entry, LogHandle, ReadError};

/// What is wanted of the log.
pub(super) struct Want<'a> {
    /// In microseconds, of each class.
    pub windows: &'a [i64],
    /// Now, in microseconds.
    pub now: i64,
    /// The ids of all offsets below are known.
    pub covered: u64,
    /// How many more ids may be remembered.
    pub room: usize,
}

/// What the log had.
pub(super) struct Read {
    /// Of each class, in order.
    pub ids: Vec<Vec<Seen>>,
    /// Ids received up to then may be missing.
    pub lost: i64,
}

/// One segment's ids, or some of them.
struct Part {
    ids: Vec<Vec<Seen>>,
    /// When its first frame was received.
    first: Option<i64>,
}

/// Reads from the end back until the windows, the room or what is known already ends it.
///
/// # Errors
/// [`ReadError`].
pub(super) fn read(log: &LogHandle, keyring: &Keyring, want: &Want<'_>) -> Result<Read, ReadError> {
    let longest = want.windows.iter().copied().max().unwrap_or(0);
    let since = want.now.saturating_sub(longest);
    let from = log.offset_at(ReceivedAt(since)).max(Offset(want.covered));
    let (mut parts, mut count, mut end) = (Vec::new(), 0, log.latest());
    let mut lost = NEVER;
    for base in log.segments().into_iter().rev() {
        if end <= from {
            break;
        }
        if count >= want.room && !parts.is_empty() {
            lost = parts.last().and_then(|part: &Part| part.first).unwrap_or(want.now);
            break;
        }
        let base = base.max(from);
        let part = read_part(log, keyring, want, (base, end))?;
        (count, end) = (count + part.ids.iter().map(Vec::len).sum::<usize>(), base);
        parts.push(part);
    }
    if log.earliest() > Offset(want.covered) && end <= log.earliest() {
        // Retention was there first; what it removed may have had ids of the window.
        let first = parts.iter().rev().find_map(|part| part.first);
        lost = lost.max(first.filter(|at| *at >= since).unwrap_or(NEVER));
    }
    let mut ids = vec![Vec::new(); want.windows.len()];
    for part in parts.into_iter().rev() {
        ids.iter_mut().zip(part.ids).for_each(|(all, some)| all.extend(some));
    }
    Ok(Read { ids, lost })
}

fn read_part(
    log: &LogHandle,
    keyring: &Keyring,
    want: &Want<'_>,
    (from, end): (Offset, Offset),
) -> Result<Part, ReadError> {
    let mut part = Part { ids: vec![Vec::new(); want.windows.len()], first: None };
    if from >= end {
        return Ok(part);
    }
    let mut reader = log.read_from(from)?;
    while reader.position() < end {
        match reader.next()? {
            Some(Entry::Frame(frame)) => {
                let at = frame.received_at.0;
                part.first = part.first.or(Some(at));
                for key in keyring.keys_of(&frame.body) {
                    let class = usize::from(key.class);
                    let window = want.windows.get(class).copied().unwrap_or(0);
                    if let Some(ids) = part.ids.get_mut(class)
                        && at >= want.now.saturating_sub(window)
                    {
                        ids.push(Seen::new(key.hash(), at));
                    }
                }
            }
            Some(Entry::Quarantined(_)) => {}
            None => break,
        }
    }
    Ok(part)
}
