//! A lane that waits alone: its pending window first, then windows of its own, then it rejoins.

use std::time::Duration;

use bytes::Bytes;
use tidegate_event::{BatchView, Offset};

use super::{
    desk::{Desk, End, LaneOutcome, Onlooker},
    memory::ROW_BYTES,
    rows::{Lane, Lanes, Row},
    source::{SourceEntry, SourceError, SourceFrame},
    state::Held,
    status::Written,
    window::{Window, lane_intent, reread},
};
use crate::metrics;

/// Log read for one step at most, as a multiple of a window's bytes: other lanes wait meanwhile.
const SCAN_WINDOWS: u64 = 16;

/// True where `frame` holds events of the lane.
fn concerns(frame: &SourceFrame, lane: &Lane) -> bool {
    BatchView::parse(&frame.body).is_ok_and(|view| {
        view.tenant == lane.tenant.as_str()
            && view.types.iter().any(|kind| kind.name == lane.event_type.as_str())
    })
}

/// Nobody looks on, and nobody waits for an outage's end: the lane is put off.
struct Alone;

impl Onlooker for Alone {
    fn begins(&self) {}
    fn ends(&self) -> bool {
        false
    }
    fn lost(&self, _: Duration) {}
}

impl Desk {
    /// Tries a held lane once.
    pub fn step(&self, held: &Held) -> Result<(), End> {
        let step = match &held.intent {
            Some(intent) => {
                reread(&*self.shared.log, intent.window, |frame| concerns(frame, &held.lane))
            }
            None => self.cut_for(held),
        };
        match step {
            Ok(window) => self.write_held(held, &window),
            Err(SourceError::Gone { earliest }) => self.pass_gone_held(held, earliest),
            Err(SourceError::Read { cause }) => {
                self.put_off(&held.lane, cause);
                Ok(())
            }
        }
    }

    /// The lane's next window, up to where it may be written.
    fn cut_for(&self, held: &Held) -> Result<Window, SourceError> {
        let end = self.board().limit();
        let bytes = self.cut.bytes.min(self.shared.memory.lane_cut());
        let mut window = Window::new(held.cursor);
        let mut reader = self.shared.log.read_from(held.cursor)?;
        let mut scanned = 0;
        while window.to < end
            && window.bytes < bytes
            && window.rows < self.cut.rows.min((bytes / ROW_BYTES).max(1))
            && scanned < bytes.saturating_mul(SCAN_WINDOWS)
        {
            match reader.next()? {
                Some(SourceEntry::Frame(frame)) => {
                    scanned += frame.body.len() as u64;
                    if concerns(&frame, &held.lane) {
                        window.add(SourceEntry::Frame(own(frame)));
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

    fn write_held(&self, held: &Held, window: &Window) -> Result<(), End> {
        let (lane, from) = (&held.lane, window.from);
        let mut lanes =
            Lanes::sort(&window.frames, |other, offset| other == lane && from <= offset);
        let rows = lanes.rows.remove(lane).unwrap_or_default();
        let promised = lane_intent(&lanes.heads, &rows, from, window.to);
        let (count, bytes) = (rows.len() as u64, rows.iter().map(Row::bytes).sum());
        match &held.intent {
            Some(intent) if Some(intent) != promised.as_ref() => {
                return Err(End::Fault(format!(
                    "the window {} of lane {lane} is not the one that was promised (hash {}): \
                     nothing was written",
                    intent.window, intent.hash
                )));
            }
            Some(_) => {}
            None if rows.is_empty() => return self.advance(held, window.to, |_| {}, 0, 0),
            None => {
                let oldest = rows.first().map_or(held.oldest, |r| r.received_at(&lanes.heads).0);
                let promise = |held: &mut Held| {
                    (held.intent, held.oldest) = (promised, oldest);
                    // It may reach into the window that is being written, which nobody counted yet.
                    held.pending_rows = held.pending_rows.max(count);
                    held.pending_bytes = held.pending_bytes.max(bytes);
                };
                if !self.promise(held, promise)? {
                    return Ok(());
                }
            }
        }
        let outcome = self.write_rows(lane, &lanes.heads, &rows, &Alone)?;
        self.settle_alone(held, window.to, count, bytes, outcome)
    }

    /// Makes a lane's intent durable; false where somebody moved the lane meanwhile.
    fn promise(&self, held: &Held, promise: impl FnOnce(&mut Held)) -> Result<bool, End> {
        self.commit_if(|state| {
            let found = state.held.iter_mut().find(|other| other.lane == held.lane);
            let Some(found) = found.filter(|found| found.cursor == held.cursor) else {
                return Ok(false);
            };
            promise(found);
            Ok(true)
        })
    }

    /// What became of a lane that was written beside the main loop.
    pub fn settle_alone(
        &self,
        held: &Held,
        to: Offset,
        rows: u64,
        bytes: u64,
        outcome: LaneOutcome,
    ) -> Result<(), End> {
        let lane = &held.lane;
        match outcome {
            LaneOutcome::Done { stored, quarantined, took } => {
                metrics::sink_rows(&self.shared.name, stored);
                metrics::sink_quarantined_rows(&self.shared.name, quarantined);
                self.judge(lane, bytes, took, true);
                let count = |state: &mut super::state::State| {
                    state.count(lane, Written::Stored, stored);
                    state.count(lane, Written::Quarantined, quarantined);
                };
                self.advance(held, to, count, rows, bytes)
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

    fn pass_gone_held(&self, held: &Held, earliest: Offset) -> Result<(), End> {
        let (sink, lane) = (&self.shared.name, &held.lane);
        tracing::error!(sink, %lane, to = earliest.0, "retention removed a held lane's events");
        let to = earliest.min(self.board().state.cursor);
        self.advance(held, to, |_| {}, 0, 0)
    }
}

/// A copy, so that a small frame does not keep the reader's whole buffer.
pub(super) fn own(frame: SourceFrame) -> SourceFrame {
    SourceFrame { body: Bytes::copy_from_slice(&frame.body), ..frame }
}
