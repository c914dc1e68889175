//! Policy `expire`: at its bound a sink skips its oldest events, counted and alarmed.

use std::collections::BTreeMap;

use tidegate_event::{Offset, OffsetRange};

use super::{
    Policy,
    desk::{BACKOFF_FIRST, Desk, End},
    rows::{Lane, Lanes},
    source::{SourceEntry, SourceError},
    state::State,
    status::Written,
    worker::Worker,
};
use crate::metrics;

impl Worker {
    /// Skips the oldest events until the backlog is three quarters of its bound.
    pub(super) fn expire_if_full(&mut self) -> Result<(), End> {
        let desk = &self.desk;
        if !desk.must_expire() {
            return Ok(());
        }
        let mut unreadable = None;
        // Found and skipped in one: no lane's thread settles meanwhile what is skipped here.
        let skipped = desk.commit_if(|state| {
            let (to, rows, lost) = match desk.find_expired(state) {
                Ok(found) => found,
                Err(SourceError::Gone { .. }) => return Ok(false),
                Err(SourceError::Read { cause }) => {
                    unreadable = Some(cause);
                    return Ok(false);
                }
            };
            let Some(range) = OffsetRange::new(state.lowest(), to) else { return Ok(false) };
            let events: u64 = rows.values().sum();
            let sink = &desk.shared.name;
            tracing::error!(sink, %range, events, "the backlog reached its bound: skipped");
            metrics::sink_expired_rows(sink, events);
            skip(state, to, &rows, lost);
            Ok(true)
        })?;
        if skipped {
            let cursor = desk.board().state.cursor;
            self.gatherer.restart(cursor);
        }
        unreadable.map_or(Ok(()), |cause| desk.wait(&cause, BACKOFF_FIRST))
    }
}

impl Desk {
    /// True where the sink holds back more than its bound and is to skip.
    pub(super) fn must_expire(&self) -> bool {
        let lowest = self.board().state.lowest();
        self.shared.policy == Policy::Expire
            && self.shared.bound_bytes < self.shared.log.bytes_since(lowest)
    }

    /// Up to where to skip, the rows of each lane that lie before it, and what the log had lost.
    fn find_expired(
        &self,
        state: &State,
    ) -> Result<(Offset, BTreeMap<Lane, u64>, u64), SourceError> {
        let keep = self.shared.bound_bytes / 4 * 3;
        let mut rows: BTreeMap<Lane, u64> = BTreeMap::new();
        let (mut at, mut lost) = (state.lowest(), 0);
        let mut reader = self.shared.log.read_from(at)?;
        // A held lane's intent is given up whole or not at all.
        let cuts_intent = |at: Offset| {
            state
                .held
                .iter()
                .filter_map(|held| held.intent.as_ref())
                .any(|intent| intent.window.from() < at && at < intent.window.to())
        };
        while keep < self.shared.log.bytes_since(at) || cuts_intent(at) {
            match reader.next()? {
                None => break,
                Some(SourceEntry::Empty(range)) => at = range.to(),
                Some(SourceEntry::Quarantined(range)) => {
                    lost += range.to().since(state.cursor.max(range.from()));
                    at = range.to();
                }
                Some(SourceEntry::Frame(frame)) => {
                    at = frame.end();
                    let frames = [frame];
                    let cursor =
                        |lane: &Lane| state.held(lane).map_or(state.cursor, |held| held.cursor);
                    let lanes = Lanes::sort(&frames, |lane, offset| cursor(lane) <= offset);
                    for (lane, found) in lanes.rows {
                        *rows.entry(lane).or_default() += found.len() as u64;
                    }
                    let unread = lanes.bad.iter().filter(|bad| state.cursor <= bad.base);
                    lost += unread.map(|bad| u64::from(bad.count)).sum::<u64>();
                }
            }
        }
        Ok((at, rows, lost))
    }
}

fn skip(state: &mut State, to: Offset, rows: &BTreeMap<Lane, u64>, lost: u64) {
    for (lane, rows) in rows {
        state.count(lane, Written::Skipped, *rows);
    }
    state.lost_in_log += lost;
    state.cursor = state.cursor.max(to);
    let cursor = state.cursor;
    for held in &mut state.held {
        if held.cursor < to {
            let gone = rows.get(&held.lane).copied().unwrap_or(0);
            let left = held.pending_rows.saturating_sub(gone);
            let share = u128::from(held.pending_bytes) * u128::from(left);
            let bytes = share.checked_div(u128::from(held.pending_rows)).unwrap_or(0);
            held.pending_bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            (held.cursor, held.intent, held.pending_rows) = (to, None, left);
        }
    }
    state.held.retain(|held| held.cursor < cursor);
}
