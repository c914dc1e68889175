//! What everybody may know of a partition: its extent, who holds it back, what is damaged.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tidegate_event::{Offset, Partition, ReceivedAt};
use tokio::sync::watch;

use super::{
    AcknowledgeError, Acknowledged, LogReader, QuarantineTotals, ReadError, SeenBy, Stretch,
    Verifier,
    patience::Patience,
    quarantine::{Damage, Quarantine},
    segment::{self, FRAMES_AT},
};
use crate::{
    clock::Clock,
    metrics,
    storage::{Storage, StorageFile},
};

/// How far apart the entries of a segment's index lie, in bytes.
const INDEX_STEP: u64 = 1 << 20;

/// One segment, as far as it is durable.
#[derive(Debug)]
pub(super) struct Segment {
    pub base: u64,
    /// Valid bytes, header included.
    pub bytes: u64,
    /// The chain's value before its first frame; `None` where its header is lost.
    pub chain: Option<u32>,
    /// No frame in it was received after this.
    pub newest: ReceivedAt,
    /// (first offset, position) of some frames, about [`INDEX_STEP`] apart, in order.
    pub index: Vec<(u64, u64)>,
}

impl Segment {
    pub fn note(&mut self, offset: u64, position: u64) {
        let at = self.index.partition_point(|(o, _)| *o <= offset);
        let before = at.checked_sub(1).and_then(|i| self.index.get(i)).map_or(FRAMES_AT, |e| e.1);
        let far = position >= before + INDEX_STEP;
        if far && self.index.get(at).is_none_or(|next| next.1 >= position + INDEX_STEP) {
            self.index.insert(at, (offset, position));
        }
    }

    /// A frame's first offset and position, at or before `offset`.
    pub fn nearest(&self, offset: u64) -> (u64, u64) {
        let at = self.index.partition_point(|(o, _)| *o <= offset);
        at.checked_sub(1).and_then(|i| self.index.get(i)).copied().unwrap_or((self.base, FRAMES_AT))
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub segments: VecDeque<Segment>,
    pub earliest: u64,
    pub latest: u64,
    pub bytes: u64,
    holds: BTreeMap<u64, (String, u64)>,
    holds_made: u64,
}

pub(super) struct Shared {
    pub log_id: String,
    pub partition: Partition,
    pub label: String,
    pub dir: PathBuf,
    pub seed: u32,
    pub key: [u8; 16],
    pub storage: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    quarantine: Mutex<Quarantine>,
    pub patience: Patience,
    grown: Condvar,
    latest: watch::Sender<u64>,
}

/// What a reader needs to know to read on from an offset.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub segment: u64,
    /// Valid bytes of the segment.
    pub bytes: u64,
    /// Offsets of the segment end before this.
    pub end: u64,
    /// A frame's first offset and position at or before the offset asked for.
    pub start: (u64, u64),
    pub chain: Option<u32>,
}

impl Shared {
    pub fn new(
        log_id: String,
        partition: Partition,
        dir: PathBuf,
        (seed, key): (u32, [u8; 16]),
        (storage, clock): (Arc<dyn Storage>, Arc<dyn Clock>),
        (state, quarantine, patience): (State, Quarantine, Patience),
    ) -> Self {
        let latest = watch::Sender::new(state.latest);
        let (label, state) = (partition.to_string(), Mutex::new(state));
        let quarantine = Mutex::new(quarantine);
        Self {
            log_id,
            partition,
            label,
            dir,
            seed,
            key,
            storage,
            clock,
            state,
            quarantine,
            patience,
            grown: Condvar::new(),
            latest,
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the log known up to `latest`, which `change` has made durable, and wakes who waits.
    pub fn publish(&self, latest: u64, change: impl FnOnce(&mut State)) {
        {
            let mut state = self.state();
            change(&mut state);
            state.latest = latest;
        }
        self.grown.notify_all();
        self.latest.send_replace(latest);
    }

    /// Where to read on from `offset`; `None` at the end.
    pub fn extent(&self, offset: u64) -> Result<Option<Extent>, ReadError> {
        let state = self.state();
        if offset < state.earliest {
            return Err(ReadError::Gone { earliest: Offset(state.earliest) });
        }
        if offset >= state.latest {
            return Ok(None);
        }
        let next = state.segments.partition_point(|s| s.base <= offset);
        let end = state.segments.get(next).map_or(state.latest, |s| s.base);
        let segment = next.checked_sub(1).and_then(|i| state.segments.get(i));
        Ok(segment.map(|s| Extent {
            segment: s.base,
            bytes: s.bytes,
            end,
            start: s.nearest(offset),
            chain: s.chain,
        }))
    }

    /// Remembers where a frame lies, for those who come after.
    pub fn note(&self, segment: u64, offset: u64, position: u64) {
        let mut state = self.state();
        let at = state.segments.partition_point(|s| s.base < segment);
        if let Some(s) = state.segments.get_mut(at).filter(|s| s.base == segment) {
            s.note(offset, position);
        }
    }

    pub fn quarantine(&self) -> MutexGuard<'_, Quarantine> {
        self.quarantine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts damage, records it, and alarms, once however many readers come by.
    pub fn damaged(&self, damage: Damage, by: SeenBy) {
        let mut quarantine = self.quarantine();
        let new = quarantine.note(damage, by, self.clock.now());
        if new.is_empty() {
            return;
        }
        self.save_quarantine(&mut quarantine);
        drop(quarantine);
        let segment = segment::path(&self.dir, damage.segment);
        for range in new {
            metrics::log_quarantined_events(&self.label, range.count());
            tracing::error!(
                partition = self.partition.0,
                %range,
                events = range.count(),
                segment = %segment.display(),
                position = damage.position,
                found_by = by.as_str(),
                "these offsets of the log are damaged and set aside"
            );
        }
    }

    /// Forgets the damage that retention has removed, and writes what could not be written before.
    pub fn tidy_quarantine(&self) {
        let earliest = self.state().earliest;
        let mut quarantine = self.quarantine();
        quarantine.forget_before(earliest);
        self.patience.forget_before(earliest);
        self.save_quarantine(&mut quarantine);
    }

    fn save_quarantine(&self, quarantine: &mut Quarantine) {
        if let Err(error) = quarantine.save(&*self.storage) {
            tracing::error!(partition = self.partition.0, %error, "what is damaged cannot be recorded; it is tried again");
        }
    }
}

/// One partition of the log, for reading. Cheap to clone.
#[derive(Clone)]
pub struct LogHandle(pub(super) Arc<Shared>);

impl std::fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogHandle({}, {})", self.0.log_id, self.0.partition)
    }
}

impl LogHandle {
    /// The log's id, 8 characters of `a-z` and `0-9`.
    #[must_use]
    pub fn log_id(&self) -> &str {
        &self.0.log_id
    }

    /// Which partition.
    #[must_use]
    pub fn partition(&self) -> Partition {
        self.0.partition
    }

    /// The first offset that is still there.
    #[must_use]
    pub fn earliest(&self) -> Offset {
        Offset(self.0.state().earliest)
    }

    /// The next offset to be given; all below is durable.
    #[must_use]
    pub fn latest(&self) -> Offset {
        Offset(*self.0.latest.borrow())
    }

    /// Bytes on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.state().bytes
    }

    /// Bytes from `offset` to the end, rounded up to the segment's nearest index entry (about 1 MiB;
    /// to the whole segment where nobody has read it since the start).
    #[must_use]
    pub fn bytes_since(&self, offset: Offset) -> u64 {
        let state = self.0.state();
        if offset.0 >= state.latest {
            return 0;
        }
        let mut bytes = 0;
        for segment in state.segments.iter().rev() {
            if segment.base <= offset.0 {
                let (_, position) = segment.nearest(offset.0);
                return bytes + segment.bytes.saturating_sub(position);
            }
            bytes += segment.bytes;
        }
        bytes
    }

    /// The first offset of the oldest segment that may hold frames received at or after `since`.
    #[must_use]
    pub fn offset_at(&self, since: ReceivedAt) -> Offset {
        let state = self.0.state();
        let segment = state.segments.iter().find(|s| s.newest >= since);
        Offset(segment.map_or(state.latest, |s| s.base).max(state.earliest))
    }

    /// Where the segments begin, oldest first.
    #[must_use]
    pub fn segments(&self) -> Vec<Offset> {
        self.0.state().segments.iter().map(|s| Offset(s.base)).collect()
    }

    /// The first offset, of those from `since` on, that is known to be damaged so far.
    #[must_use]
    pub fn first_damage(&self, since: Offset) -> Option<Offset> {
        self.0.quarantine().first_behind(since)
    }

    /// 16 random bytes of this partition, the same after every start.
    #[must_use]
    pub fn key(&self) -> [u8; 16] {
        self.0.key
    }

    /// The partition's folder.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        &self.0.dir
    }

    /// What the partition lies on.
    #[must_use]
    pub fn storage(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.0.storage)
    }

    /// A reader that begins with the frame or damage that holds `from`.
    ///
    /// # Errors
    /// [`ReadError::Gone`] where retention has removed it.
    pub fn read_from(&self, from: Offset) -> Result<LogReader, ReadError> {
        LogReader::new(Arc::clone(&self.0), from)
    }

    /// The same, but a page that cannot be read is an error for `log.read_patience`: ask again.
    ///
    /// # Errors
    /// [`ReadError::Gone`] where retention has removed it.
    pub fn read_patiently_from(&self, from: Offset) -> Result<LogReader, ReadError> {
        LogReader::patient(Arc::clone(&self.0), from)
    }

    /// What is known to be damaged, in order.
    #[must_use]
    pub fn quarantined(&self) -> Vec<Stretch> {
        self.0.quarantine().all()
    }

    /// How much that is.
    #[must_use]
    pub fn quarantine_totals(&self) -> QuarantineTotals {
        self.0.quarantine().totals()
    }

    /// Lets damage that begins at `wanted` rest: it alarms no more. Returns what was not acknowledged
    /// before.
    ///
    /// # Errors
    /// [`AcknowledgeError`]; nothing was changed then.
    pub fn acknowledge(
        &self,
        wanted: &[Offset],
        by: &str,
        reason: &str,
    ) -> Result<Vec<Stretch>, AcknowledgeError> {
        let (by, reason) = (by.to_owned(), reason.to_owned());
        let done = Acknowledged { at: self.0.clock.now(), by, reason };
        let rested = self.0.quarantine().acknowledge(&*self.0.storage, wanted, &done)?;
        for Stretch { range, .. } in &rested {
            let Acknowledged { by, reason, .. } = &done;
            tracing::info!(partition = self.0.partition.0, %range, by, reason, "damage of the log was acknowledged");
        }
        Ok(rested)
    }

    /// The file of the segment that holds damage, to look at its bytes.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn segment_of(&self, stretch: &Stretch) -> std::io::Result<Arc<dyn StorageFile>> {
        self.0.storage.open(&segment::path(&self.0.dir, stretch.segment.0))
    }

    /// Verifies every frame that lies in `[from, to)`, as far as those are there.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn verify(&self, from: Offset, to: Offset) -> Result<Verifier, ReadError> {
        Verifier::new(Arc::clone(&self.0), from, to)
    }

    /// Blocks until `latest() > seen`, at most for `timeout`; says whether it is.
    #[must_use]
    pub fn wait_past(&self, seen: Offset, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.0.state();
        while state.latest <= seen.0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.0.grown.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Returns once `latest() > seen`.
    pub async fn past(&self, seen: Offset) {
        let mut latest = self.0.latest.subscribe();
        // The sender lives as long as `self`: the wait cannot end for want of one.
        let _ = latest.wait_for(|latest| *latest > seen.0).await;
    }

    /// Keeps retention from removing anything not before the hold, which begins at the earliest
    /// offset: advance it.
    #[must_use]
    pub fn hold(&self, name: &str) -> Hold {
        let mut state = self.0.state();
        state.holds_made += 1;
        let (id, from) = (state.holds_made, state.earliest);
        state.holds.insert(id, (name.to_owned(), from));
        Hold { shared: Arc::clone(&self.0), id }
    }

    /// The lowest hold and its name.
    #[must_use]
    pub fn lowest_hold(&self) -> Option<(String, Offset)> {
        let state = self.0.state();
        let lowest = state.holds.values().min_by_key(|(_, offset)| *offset);
        lowest.map(|(name, offset)| (name.clone(), Offset(*offset)))
    }
}

/// Keeps retention back. Released when dropped.
pub struct Hold {
    shared: Arc<Shared>,
    id: u64,
}

impl Hold {
    /// Lets go of what is before `offset`. A hold never moves back.
    pub fn advance(&self, offset: Offset) {
        if let Some((_, held)) = self.shared.state().holds.get_mut(&self.id) {
            *held = (*held).max(offset.0);
        }
    }

    /// The first offset it holds.
    #[must_use]
    pub fn offset(&self) -> Offset {
        Offset(self.shared.state().holds.get(&self.id).map_or(0, |(_, offset)| *offset))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.state().holds.remove(&self.id);
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hold({}, {})", self.shared.partition, self.offset())
    }
}

impl State {
    pub fn new(segments: VecDeque<Segment>, latest: u64) -> Self {
        let earliest = segments.front().map_or(0, |s| s.base);
        let bytes = segments.iter().map(|s| s.bytes).sum();
        Self { segments, earliest, latest, bytes, ..Self::default() }
    }

    /// The lowest offset that is held; `u64::MAX` where nothing is.
    pub fn held(&self) -> u64 {
        self.holds.values().map(|(_, offset)| *offset).min().unwrap_or(u64::MAX)
    }
}
