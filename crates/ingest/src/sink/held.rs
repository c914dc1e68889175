//! A lane that waits alone: its pending window first, then windows of its own, then it rejoins.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_event::{BatchView, Offset};

use super::{
    rows::{Lane, Lanes, Row},
    source::{SourceEntry, SourceError, SourceFrame},
    state::Held,
    status::Written,
    window::{Window, reread},
    worker::{End, LaneOutcome, Retry, Worker, lane_intent},
};
use crate::metrics;

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Log read for one step at most, as a multiple of a window's bytes: the other lanes wait meanwhile.
const SCAN_WINDOWS: u64 = 4;

/// True where `frame` holds events of the lane.
fn concerns(frame: &SourceFrame, lane: &Lane) -> bool {
    BatchView::parse(&frame.body).is_ok_and(|view| {
        view.tenant == lane.tenant.as_str()
            && view.types.iter().any(|kind| kind.name == lane.event_type.as_str())
    })
}

impl Worker {
    /// Tries the held lane that is due first; false when none is due.
    pub(super) fn step_held(&mut self) -> Result<bool, End> {
        let Some(held) = self.due() else { return Ok(false) };
        let step = match &held.intent {
            Some(intent) => {
                let range = intent.window;
                reread(&*self.shared.log, range, |frame| concerns(frame, &held.lane))
            }
            None => self.cut_for(&held),
        };
        match step {
            Ok(window) => self.write_held(&held, &window)?,
            Err(SourceError::Gone { earliest }) => self.pass_gone_held(&held, earliest)?,
            Err(SourceError::Read { cause }) => self.put_off(&held.lane, cause),
        }
        Ok(true)
    }

    fn due(&self) -> Option<Held> {
        let board = self.shared.board();
        let now = Instant::now();
        let at = |held: &Held| board.retries.get(&held.lane).map_or(now, |retry| retry.at);
        let first = board.state.held.iter().min_by_key(|held| at(held))?;
        (at(first) <= now).then(|| first.clone())
    }

    fn put_off(&self, lane: &Lane, error: String) {
        let mut board = self.shared.board();
        let before = board.retries.get(lane).map(|retry| retry.delay);
        let delay =
            before.map_or(BACKOFF_FIRST, |delay| (delay * 2).clamp(BACKOFF_FIRST, BACKOFF_MAX));
        board.retries.insert(lane.clone(), Retry { at: Instant::now() + delay, delay, error });
    }

    /// The lane's next window, up to the sink's cursor.
    fn cut_for(&self, held: &Held) -> Result<Window, SourceError> {
        let end = self.shared.board().state.cursor;
        let mut window = Window::new(held.cursor);
        let mut reader = self.shared.log.read_from(held.cursor)?;
        let mut scanned = 0;
        while window.to < end
            && window.bytes < self.cut.bytes
            && window.rows < self.cut.rows
            && scanned < self.cut.bytes.saturating_mul(SCAN_WINDOWS)
        {
            match reader.next()? {
                Some(SourceEntry::Frame(frame)) => {
                    scanned += frame.body.len() as u64;
                    if concerns(&frame, &held.lane) {
                        // A copy, so that a small frame does not keep the reader's whole buffer.
                        let body = Bytes::copy_from_slice(&frame.body);
                        window.add(SourceEntry::Frame(SourceFrame { body, ..frame }));
                    } else {
                        window.to = frame.end();
                    }
                }
                Some(entry) => window.add(entry),
                None => break,
            }
        }
        Ok(window)
    }

    fn write_held(&mut self, held: &Held, window: &Window) -> Result<(), End> {
        let (lane, from) = (&held.lane, window.from);
        let mut lanes =
            Lanes::sort(&window.frames, |other, offset| other == lane && from <= offset);
        let rows = lanes.rows.remove(lane).unwrap_or_default();
        let promised = lane_intent(&lanes.heads, &rows, window);
        match &held.intent {
            Some(intent) if Some(intent) != promised.as_ref() => {
                return Err(End::Fault(format!(
                    "the window {} of lane {lane} is not the one that was promised (hash {}): \
                     nothing was written",
                    intent.window, intent.hash
                )));
            }
            Some(_) => {}
            None if rows.is_empty() => return self.advance(lane, window.to, &[], 0, 0),
            None => {
                let oldest = rows.first().map_or(held.oldest, |r| r.received_at(&lanes.heads).0);
                self.commit(|state| {
                    if let Some(held) = state.held.iter_mut().find(|h| h.lane == *lane) {
                        (held.intent, held.oldest) = (promised, oldest);
                    }
                })?;
            }
        }
        let (count, bytes) = (rows.len() as u64, rows.iter().map(Row::bytes).sum());
        match self.write_lane(lane, &lanes.heads, &rows)? {
            LaneOutcome::Done { stored, quarantined } => {
                metrics::sink_rows(&self.shared.name, stored);
                metrics::sink_quarantined_rows(&self.shared.name, quarantined);
                let counts = [(Written::Stored, stored), (Written::Quarantined, quarantined)];
                self.advance(lane, window.to, &counts, count, bytes)
            }
            LaneOutcome::Held(error) => {
                self.put_off(lane, error);
                Ok(())
            }
            LaneOutcome::Expired => {
                self.put_off(lane, "the destination takes nothing".to_owned());
                Ok(())
            }
        }
    }

    /// Moves the lane's cursor; at the sink's own it is held no longer.
    fn advance(
        &mut self,
        lane: &Lane,
        to: Offset,
        counts: &[(Written, u64)],
        rows: u64,
        bytes: u64,
    ) -> Result<(), End> {
        self.commit(|state| {
            for (written, rows) in counts {
                state.count(lane, *written, *rows);
            }
            let cursor = state.cursor;
            if let Some(held) = state.held.iter_mut().find(|held| held.lane == *lane) {
                (held.cursor, held.intent) = (to, None);
                held.pending_rows = held.pending_rows.saturating_sub(rows);
                held.pending_bytes = held.pending_bytes.saturating_sub(bytes);
            }
            state.held.retain(|held| held.lane != *lane || held.cursor < cursor);
        })?;
        let mut board = self.shared.board();
        board.retries.remove(lane);
        if board.state.held(lane).is_none() {
            tracing::info!(sink = self.shared.name, %lane, "the lane has caught up");
        }
        Ok(())
    }

    fn pass_gone_held(&mut self, held: &Held, earliest: Offset) -> Result<(), End> {
        let (sink, lane) = (&self.shared.name, &held.lane);
        tracing::error!(sink, %lane, to = earliest.0, "retention removed a held lane's events");
        let to = earliest.min(self.shared.board().state.cursor);
        self.advance(lane, to, &[], 0, 0)
    }
}
