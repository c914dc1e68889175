//! The one writer of a partition: appends groups of frames, begins segments, removes old ones.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_event::{Offset, OffsetRange, ReceivedAt};

use super::{
    FrameBody, LogHandle, SeenBy,
    frame::FRAME_HEADER_BYTES,
    handle::{Segment, Shared},
    listing::Mark,
    quarantine::Damage,
    segment::{self, FRAMES_AT, Fault, Previous, SegmentHeader},
    watermark::{Durable, Watermark},
};
use crate::{
    clock::Clock,
    faults::{self, Bug, Point, planted},
    metrics,
    storage::{LockGuard, StorageFile, write_all_at},
};

/// How many frames go into one vectored write: two buffers each, at most `IOV_MAX`.
const FRAMES_A_WRITE: usize = 512;

/// Why a group was not appended. In both cases nothing of it is visible.
#[derive(Debug, thiserror::Error)]
pub enum AppendFault {
    /// The disk is full or refuses writes; the next append tries again, in a new segment.
    #[error("the log cannot be written")]
    Storage(#[source] io::Error),
    /// A sync failed: what the disk holds is not known, and this log takes nothing more until the
    /// process has been started anew.
    #[error("the log could not be synced and must be recovered")]
    Fatal(#[source] io::Error),
}

/// What the log's own settings come to, of [`super::LogConfig`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub segment_bytes: u64,
    pub retention_bytes: u64,
    pub retention_micros: i64,
    pub read_patience: Duration,
}

/// The segment that frames go into.
pub(super) struct Active {
    pub file: Arc<dyn StorageFile>,
    pub base: u64,
    pub chain_before: u32,
    /// Where the next frame goes; all before is durable.
    pub position: u64,
}

/// One partition of the log, for appending. There is one per partition; dropping it without
/// [`Log::close`] leaves the log as a crash would.
pub struct Log {
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limits: Limits,
    pub(super) log_id: [u8; 8],
    pub(super) epoch: u32,
    pub(super) next: u64,
    pub(super) chain: u32,
    pub(super) active: Option<Active>,
    /// The last segment that has frames and is not the active one.
    pub(super) previous: Option<Previous>,
    pub(super) marked_clean: bool,
    /// A failed write left bytes behind the end, and no segment says yet that they are none of ours.
    pub(super) abandoned: bool,
    pub(super) watermark: Watermark,
    pub(super) poisoned: bool,
    /// Held for as long as any partition is.
    pub(super) _lock: Arc<LockGuard>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Log({}, next {})", self.shared.partition, self.next)
    }
}

struct Written {
    bases: Vec<Offset>,
    index: Vec<(u64, u64)>,
    position: u64,
    next: u64,
    chain: u32,
    newest: ReceivedAt,
}

impl Log {
    /// For readers and for those who wait.
    #[must_use]
    pub fn handle(&self) -> LogHandle {
        LogHandle(Arc::clone(&self.shared))
    }

    /// Appends one group: writes all frames, syncs once, and only then shows them to readers. Returns
    /// the first offset of each.
    ///
    /// # Errors
    /// [`AppendFault`]; none of the group is visible then.
    pub fn append(&mut self, frames: &[FrameBody]) -> Result<Vec<Offset>, AppendFault> {
        if frames.is_empty() {
            return Ok(Vec::new());
        }
        self.ready()?;
        let mut again = true;
        let written = loop {
            match self.write_group(frames) {
                Ok(written) => break written,
                Err(Fault::Sync(error)) => return Err(self.poison(error)),
                Err(Fault::Write(error)) => {
                    self.abandon();
                    if !(is_full(&error) && std::mem::take(&mut again)) {
                        return Err(AppendFault::Storage(error));
                    }
                }
            }
        };
        faults::at(Point::Written);
        self.sync()?;
        faults::at(Point::Synced);
        self.tell(&written);
        Ok(self.publish(written, frames.len()))
    }

    /// Leaves out the offsets up to `to`, which were given once and are lost: they are never given
    /// again, and readers see them as quarantined.
    ///
    /// # Errors
    /// [`AppendFault`].
    pub fn skip_to(&mut self, to: Offset) -> Result<(), AppendFault> {
        let Some(range) = OffsetRange::new(Offset(self.next), to) else { return Ok(()) };
        self.ready()?;
        // The next segment names the one before it: whatever lies under the name of the offset that is
        // left out must be that one, also where it has no frames.
        self.begin_if_none()?;
        let Some(last) = self.active.take() else {
            return Err(AppendFault::Storage(io::Error::other("no segment is open")));
        };
        let before = (self.next, self.previous);
        self.previous = Some(Previous { base: last.base, bytes: last.position });
        self.next = to.0;
        if let Err(fault) = self.begin_if_none() {
            ((self.next, self.previous), self.active) = (before, Some(last));
            return Err(fault);
        }
        let newest = self.clock.now();
        let segment = |base, chain| Segment {
            base,
            bytes: FRAMES_AT,
            chain: Some(chain),
            newest,
            index: Vec::new(),
        };
        let (before, after) = (segment(last.base, last.chain_before), segment(to.0, self.chain));
        self.shared.publish(to.0, |state| {
            let known = state.segments.back().is_some_and(|s| s.base == last.base);
            for segment in (!known).then_some(before).into_iter().chain([after]) {
                state.bytes += segment.bytes;
                state.segments.push_back(segment);
            }
            state.earliest = state.segments.front().map_or(0, |first| first.base);
        });
        let damage = Damage { range, segment: last.base, position: last.position, bytes: 0 };
        self.shared.damaged(damage, SeenBy::Start);
        Ok(())
    }

    /// Removes sealed segments that are older than the retention's age or beyond its bytes, never one
    /// that a hold needs. Returns how many.
    ///
    /// # Errors
    /// What the system said; what was not removed stays readable. After a failed sync the log takes
    /// nothing more, as after one of an append.
    pub fn trim(&mut self) -> io::Result<usize> {
        if self.poisoned {
            return Err(poisoned());
        }
        let now = self.clock.now().0;
        let mut removed = 0;
        loop {
            let candidate = {
                let mut state = self.shared.state();
                let end = state.segments.get(1).map(|next| next.base);
                let old =
                    |s: &Segment| now.saturating_sub(s.newest.0) > self.limits.retention_micros;
                let over = state.bytes > self.limits.retention_bytes;
                let goes = end
                    .is_some_and(|end| end <= state.held() || planted(Bug::RetentionIgnoresHolds))
                    && state.segments.front().is_some_and(|s| over || old(s));
                if !goes {
                    break;
                }
                let segment = state.segments.pop_front();
                state.bytes -= segment.as_ref().map_or(0, |s| s.bytes);
                state.earliest = end.unwrap_or(state.latest);
                segment
            };
            let Some(segment) = candidate else { break };
            let path = segment::path(&self.shared.dir, segment.base);
            if let Err(error) = self.shared.storage.remove(&path) {
                let mut state = self.shared.state();
                (state.earliest, state.bytes) = (segment.base, state.bytes + segment.bytes);
                state.segments.push_front(segment);
                return Err(error);
            }
            faults::at(Point::Retention);
            // One by one: were a later one durably gone before an earlier one, the log would have a hole.
            if let Err(error) = self.shared.storage.sync_dir(&self.shared.dir) {
                self.poisoned = true;
                return Err(error);
            }
            removed += 1;
        }
        self.shared.tidy_quarantine();
        Ok(removed)
    }

    /// Leaves a mark that all is whole, so that the next start need not verify what it can trust. It
    /// leaves none where a failed write is still the last one: that was cut off in the cache alone.
    ///
    /// # Errors
    /// What the system said; the next start then recovers as after a crash.
    pub fn close(self) -> io::Result<()> {
        if self.poisoned || self.abandoned {
            return Ok(());
        }
        let (base, bytes) = match (&self.active, self.shared.state().segments.back()) {
            (Some(active), _) => (active.base, active.position),
            (None, Some(segment)) => (segment.base, segment.bytes),
            (None, None) => return Ok(()),
        };
        let mark = Mark { base, bytes, latest: self.next };
        mark.write(&*self.shared.storage, &self.shared.dir)
    }

    /// Takes the mark of a clean stop away before anything is written.
    fn ready(&mut self) -> Result<(), AppendFault> {
        if self.poisoned {
            return Err(AppendFault::Fatal(poisoned()));
        }
        if self.marked_clean {
            // Where the last frame is damaged nothing but the mark says which offsets were given.
            self.begin_if_none()?;
            Mark::remove(&*self.shared.storage, &self.shared.dir).map_err(AppendFault::Storage)?;
            let synced = self.shared.storage.sync_dir(&self.shared.dir);
            synced.map_err(|error| self.poison(error))?;
            self.marked_clean = false;
        }
        Ok(())
    }

    fn write_group(&mut self, frames: &[FrameBody]) -> Result<Written, Fault> {
        let bytes: u64 = frames.iter().map(|f| f.stored_bytes() as u64).sum();
        let full =
            |a: &Active| a.position > FRAMES_AT && a.position + bytes > self.limits.segment_bytes;
        if self.active.as_ref().is_some_and(full) {
            self.seal();
        }
        if self.active.is_none() {
            self.begin_segment()?;
        }
        let Some(active) = &self.active else {
            return Err(Fault::Write(io::Error::other("no segment is open")));
        };
        let mut written = Written {
            bases: Vec::with_capacity(frames.len()),
            index: Vec::new(),
            position: active.position,
            next: self.next,
            chain: self.chain,
            newest: ReceivedAt(i64::MIN),
        };
        for some in frames.chunks(FRAMES_A_WRITE) {
            self.write_some(&*active.file, some, &mut written).map_err(Fault::Write)?;
        }
        Ok(written)
    }

    fn write_some(
        &self,
        file: &dyn StorageFile,
        frames: &[FrameBody],
        written: &mut Written,
    ) -> io::Result<()> {
        let position = written.position;
        let mut headers: Vec<[u8; FRAME_HEADER_BYTES]> = Vec::with_capacity(frames.len());
        for frame in frames {
            let header = frame.header(written.next, self.epoch, self.next, written.chain);
            let (bytes, crc) = header.encode(self.shared.seed);
            headers.push(bytes);
            written.bases.push(Offset(written.next));
            written.index.push((written.next, written.position));
            written.position += header.frame_bytes();
            written.next = header.end();
            written.chain = if planted(Bug::ChecksumsNotChained) { 0 } else { crc };
            written.newest = written.newest.max(frame.received_at);
        }
        let mut buffers = Vec::with_capacity(2 * frames.len());
        for (header, frame) in headers.iter().zip(frames) {
            buffers.push(io::IoSlice::new(header));
            buffers.push(io::IoSlice::new(&frame.stored));
        }
        if faults::due(Point::ShortWrite) {
            let half = buffers.len() / 2;
            write_all_at(file, buffers.get_mut(..half).unwrap_or_default(), position)?;
            faults::die();
        }
        write_all_at(file, &mut buffers, position)
    }

    fn sync(&mut self) -> Result<(), AppendFault> {
        let start = Instant::now();
        faults::die_soon(Point::InSync);
        let sync = || self.active.as_ref().map_or(Ok(()), |active| active.file.sync_data());
        let mut synced = if planted(Bug::AckBeforeSync) { Ok(()) } else { sync() };
        if synced.is_err() && planted(Bug::SyncRetried) {
            synced = sync();
        }
        metrics::log_sync_seconds(&self.shared.label, start.elapsed().as_secs_f64());
        synced.map_err(|error| self.poison(error))
    }

    /// Before anybody is answered: whatever was answered is proved durable after a kill.
    fn tell(&mut self, written: &Written) {
        if let Some(active) = &self.active {
            let (base, bytes) = (active.base, written.position);
            let durable = Durable { base, bytes, latest: written.next };
            self.watermark.tell(durable, self.shared.seed);
        }
    }

    fn publish(&mut self, written: Written, frames: usize) -> Vec<Offset> {
        let Some(active) = &mut self.active else { return Vec::new() };
        let grown = written.position - active.position;
        metrics::log_bytes(&self.shared.label, grown);
        metrics::log_events(&self.shared.label, written.next - self.next);
        debug_assert_eq!(written.bases.len(), frames, "every frame has its offset");
        active.position = written.position;
        (self.next, self.chain) = (written.next, written.chain);
        let (base, chain) = (active.base, Some(active.chain_before));
        self.shared.publish(self.next, |state| {
            if state.segments.back().is_none_or(|last| last.base != base) {
                let (newest, index) = (written.newest, Vec::new());
                state.segments.push_back(Segment { base, bytes: 0, chain, newest, index });
            }
            if let Some(segment) = state.segments.back_mut() {
                state.bytes += written.position - segment.bytes;
                segment.bytes = written.position;
                segment.newest = segment.newest.max(written.newest);
                written.index.iter().for_each(|(o, p)| segment.note(*o, *p));
            }
            state.earliest = state.segments.front().map_or(0, |first| first.base);
        });
        written.bases
    }

    fn begin_segment(&mut self) -> Result<(), Fault> {
        let header = SegmentHeader {
            log_id: self.log_id,
            key: self.shared.key,
            partition: self.shared.partition.0,
            epoch: self.epoch,
            base: self.next,
            created_at: self.clock.now(),
            previous: self.previous,
            chain: self.chain,
        };
        let storage = &*self.shared.storage;
        let (file, position) =
            segment::install(storage, &self.shared.dir, &header, |_| Ok(FRAMES_AT))?;
        self.active = Some(Active { file, base: self.next, chain_before: self.chain, position });
        self.abandoned = false;
        Ok(())
    }

    fn begin_if_none(&mut self) -> Result<(), AppendFault> {
        match self.active {
            Some(_) => Ok(()),
            None => self.begin_segment().map_err(|fault| match fault {
                Fault::Sync(error) => self.poison(error),
                Fault::Write(error) => AppendFault::Storage(error),
            }),
        }
    }

    /// Closes the active segment at its last durable frame. One without frames is forgotten: the next
    /// segment has its name and replaces it.
    fn seal(&mut self) {
        if let Some(active) = self.active.take().filter(|a| a.position > FRAMES_AT) {
            self.previous = Some(Previous { base: active.base, bytes: active.position });
        }
    }

    /// Seals the active segment after a failed write; cutting off what that left is a courtesy, the
    /// next segment's header says where this one ends.
    fn abandon(&mut self) {
        self.abandoned = true;
        if let Some(active) = &self.active
            && let Err(error) = active.file.set_len(active.position)
        {
            tracing::warn!(%error, segment = active.base, "what a failed write left cannot be cut off");
        }
        self.seal();
    }

    fn poison(&mut self, error: io::Error) -> AppendFault {
        self.poisoned = true;
        AppendFault::Fatal(error)
    }
}

fn poisoned() -> io::Error {
    io::Error::other("an earlier sync of this log failed")
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
