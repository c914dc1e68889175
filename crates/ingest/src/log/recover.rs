//! What is left of a partition after a crash, and what becomes of it: trusts only what it verifies.

use std::{
    collections::VecDeque,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tidegate_event::{Offset, OffsetRange, Partition, ReceivedAt};

use super::{
    Log, OpenError, SeenBy,
    append::Active,
    folder::{Place as Folder, at},
    handle::{Segment, Shared, State},
    listing::{self, Listed, Mark, read_full},
    patience::Patience,
    quarantine::{self, Damage, Quarantine},
    segment::{self, FRAMES_AT, Fault, Previous, SegmentHeader},
    walk::{OnReadError, Place, READ_BYTES, Step, Walker},
    watermark::{self, Durable, Watermark},
};
use crate::{
    faults::{Bug, planted},
    metrics,
    storage::{Storage, StorageFile, write_all_at},
};

/// What opening a partition found and did. `Display` says it to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Which partition.
    pub partition: Partition,
    /// True where the last stop was clean and nothing had to be mended.
    pub clean: bool,
    /// The first offset that is left.
    pub earliest: Offset,
    /// The next offset to be given.
    pub latest: Offset,
    /// Bytes cut off behind the last whole frame: written, never acknowledged.
    pub torn_bytes: u64,
    /// Offsets that were durable and are damaged now.
    pub quarantined: Vec<OffsetRange>,
    /// What else was mended, one sentence each.
    pub notes: Vec<String>,
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.clean { "opened" } else { "recovered" };
        let events = grouped(self.latest.since(self.earliest));
        write!(
            f,
            "{verb} partition {}: {events} events to offset {}",
            self.partition, self.latest
        )?;
        if self.torn_bytes > 0 {
            write!(f, ", 1 torn tail cut ({} bytes)", grouped(self.torn_bytes))?;
        }
        for range in &self.quarantined {
            write!(f, ", {} events damaged at {range}", grouped(range.count()))?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "; {note}"))
    }
}

fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn open_partition(
    folder: &Folder,
    partition: Partition,
) -> Result<(Log, Recovery), OpenError> {
    let dir = folder.partition_dir(partition);
    let mut listing = listing::list(folder, &dir, partition)?;
    // The names that are believed from here on stay: a process may have been killed before its sync.
    folder.storage.sync_dir(&dir).map_err(at(&dir))?;
    let key = listing::find_key(&listing)?;
    let seed = segment::seed(&folder.log_id, &key, partition.0);
    let mut notes = std::mem::take(&mut listing.notes);
    let storage = &*folder.storage;
    let (quarantine, note) =
        Quarantine::load(storage, &dir).map_err(at(&dir.join(quarantine::NAME)))?;
    notes.extend(note);
    let durable = Durable::read(storage, &dir, seed).map_err(at(&dir.join(watermark::NAME)))?;
    let sealed = sealed(&listing.segments);
    let mut recovery = Recovery {
        partition,
        clean: true,
        earliest: Offset(0),
        latest: Offset(0),
        torn_bytes: 0,
        quarantined: Vec::new(),
        notes,
    };
    let (state, tail, damage) = match listing.segments.pop() {
        None => match listing.mark {
            Some(mark) => {
                return Err(OpenError::Missing { path: segment::path(&dir, mark.base) });
            }
            None => (State::default(), Tail::empty(listing.marked), Vec::new()),
        },
        Some(last) => {
            let found = verify(&dir, &last, (listing.mark, durable), seed)?;
            let marked = listing.marked;
            mend(folder, &dir, key, (sealed, &last), found, (marked, &mut recovery))?
        }
    };
    let watermark =
        Watermark::open(storage, &dir, !recovery.clean).map_err(at(&dir.join(watermark::NAME)))?;
    let log = log(folder, partition, (dir, watermark), (seed, key), (state, quarantine), tail);
    alarm(&log, &damage);
    if recovery.torn_bytes > 0 {
        metrics::log_torn_tails(&log.shared.label, 1);
    }
    Ok((log, recovery))
}

/// What was found now, and what was found before and nobody has acknowledged yet.
fn alarm(log: &Log, damage: &[Damage]) {
    let open = log.shared.quarantine().totals();
    if open.open_stretches > 0 {
        tracing::error!(
            partition = log.shared.partition.0,
            stretches = open.open_stretches,
            events = open.open_events,
            "damage of the log waits to be acknowledged: see ingestctl log quarantine"
        );
    }
    damage.iter().for_each(|damage| log.shared.damaged(*damage, SeenBy::Start));
    log.shared.tidy_quarantine();
}

/// What the last segment holds, and whether all of it may be trusted to be on the disk.
fn verify(
    dir: &Path,
    last: &Listed,
    (mark, told): (Option<Mark>, Option<Durable>),
    seed: u32,
) -> Result<(Scan, bool), OpenError> {
    let mark = mark.filter(|m| m.base >= last.base);
    let bases = mark.map(|m| m.base).into_iter().chain(told.map(|t| t.base));
    if let Some(base) = bases.max().filter(|base| last.base < *base) {
        return Err(OpenError::Missing { path: segment::path(dir, base) });
    }
    let trusted =
        mark.is_some_and(|m| m.bytes == last.bytes) && last.intact || planted(Bug::CacheTrusted);
    if !trusted {
        // The cache may hold what the disk does not: sync it or refuse, then look at the disk.
        last.file.sync_data().map_err(at(&last.path))?;
        last.file.drop_cache().map_err(at(&last.path))?;
    }
    let durable = mark.map(|m| m.latest).into_iter().chain(told.map(|t| t.latest)).max();
    let durable = durable.unwrap_or(0).max(last.base);
    let found = scan(last, seed, durable).map_err(at(&last.path))?;
    let whole = trusted && found.is_whole;
    Ok((found, whole))
}

/// Makes the last segment one that can be gone on with.
fn mend(
    folder: &Folder,
    dir: &Path,
    key: [u8; 16],
    (mut segments, last): (VecDeque<Segment>, &Listed),
    (found, whole): (Scan, bool),
    (marked, recovery): (bool, &mut Recovery),
) -> Result<(State, Tail, Vec<Damage>), OpenError> {
    let header = last.header.unwrap_or(SegmentHeader {
        log_id: folder.log_id,
        key,
        partition: recovery.partition.0,
        epoch: found.epoch,
        base: last.base,
        created_at: found.newest,
        previous: segments.back().map(|s| Previous { base: s.base, bytes: s.bytes }),
        chain: found.chain_before,
    });
    let file = if whole {
        Arc::clone(&last.file)
    } else {
        // What lies behind may alone prove that damage was durable: it stays until the base of the
        // next segment says so.
        let keep = if found.chain.is_some() { found.end } else { last.bytes.max(found.end) };
        renew(&*folder.storage, dir, last, &header, keep)?
    };
    if last.header.is_none() {
        recovery.notes.push(format!("the head of {} was made anew", last.path.display()));
    }
    let tail = Tail::of(&header, &found, file, marked);
    segments.push_back(Segment {
        base: last.base,
        bytes: found.end,
        chain: Some(header.chain),
        newest: found.newest,
        index: found.index,
    });
    let state = State::new(segments, found.next);
    recovery.clean = whole && found.quarantined.is_empty();
    (recovery.earliest, recovery.latest) = (Offset(state.earliest), Offset(state.latest));
    recovery.torn_bytes = found.torn_bytes;
    recovery.quarantined = found.quarantined.iter().map(|damage| damage.range).collect();
    Ok((state, tail, found.quarantined))
}

/// What the log needs to go on where the last segment ends.
struct Tail {
    epoch: u32,
    chain: u32,
    active: Option<Active>,
    previous: Option<Previous>,
    marked: bool,
}

impl Tail {
    fn empty(marked: bool) -> Self {
        Self { epoch: 1, chain: 0, active: None, previous: None, marked }
    }

    fn of(header: &SegmentHeader, found: &Scan, file: Arc<dyn StorageFile>, marked: bool) -> Self {
        let (base, position, chain_before) = (header.base, found.end, header.chain);
        // Where the last frame is damaged nothing can be chained to it: a new segment begins.
        let active = found.chain.map(|_| Active { file, base, chain_before, position });
        let previous = match active {
            Some(_) => header.previous,
            None => Some(Previous { base, bytes: position }),
        };
        let (epoch, chain) = (found.epoch.saturating_add(1), found.chain.unwrap_or(0));
        Self { epoch, chain, active, previous, marked }
    }
}

fn log(
    folder: &Folder,
    partition: Partition,
    (dir, watermark): (PathBuf, Watermark),
    secrets: (u32, [u8; 16]),
    (state, quarantine): (State, Quarantine),
    tail: Tail,
) -> Log {
    let log_id = String::from_utf8_lossy(&folder.log_id).into_owned();
    let next = state.latest;
    let outside = (Arc::clone(&folder.storage), Arc::clone(&folder.clock));
    let inside = (state, quarantine, Patience::new(folder.limits.read_patience));
    Log {
        shared: Arc::new(Shared::new(log_id, partition, dir, secrets, outside, inside)),
        clock: Arc::clone(&folder.clock),
        limits: folder.limits,
        log_id: folder.log_id,
        epoch: tail.epoch,
        next,
        chain: tail.chain,
        active: tail.active,
        previous: tail.previous,
        marked_clean: tail.marked,
        abandoned: false,
        watermark,
        poisoned: false,
        _lock: Arc::clone(&folder.lock),
    }
}

/// All but the last segment: believed by name and head, verified by whoever reads them.
fn sealed(listed: &[Listed]) -> VecDeque<Segment> {
    let next = listed.iter().skip(1);
    let segment = |(s, next): (&Listed, &Listed)| Segment {
        base: s.base,
        bytes: s.bytes.max(FRAMES_AT),
        chain: s.header.map(|h| h.chain),
        newest: next.header.map_or(ReceivedAt(i64::MAX), |h| h.created_at),
        index: Vec::new(),
    };
    listed.iter().zip(next).map(segment).collect()
}

/// What the last segment holds.
#[derive(Debug)]
struct Scan {
    /// Bytes up to the end of what is kept.
    end: u64,
    next: u64,
    /// The checksum the next frame carries; `None` where what is kept ends in damage.
    chain: Option<u32>,
    /// What the first frame carries.
    chain_before: u32,
    epoch: u32,
    newest: ReceivedAt,
    index: Vec<(u64, u64)>,
    quarantined: Vec<Damage>,
    torn_bytes: u64,
    /// True where every byte of the file belongs to a whole frame.
    is_whole: bool,
}

/// Verifies the last segment frame by frame. Damage before `durable`, or before what a later whole
/// frame says was durable, is set aside; from the first damage behind that on, all is a torn tail.
fn scan(last: &Listed, seed: u32, durable: u64) -> io::Result<Scan> {
    let mut walker = Walker::new(Arc::clone(&last.file), seed, OnReadError::Fail);
    walker.limit = last.bytes;
    let chain = last.header.map(|h| h.chain);
    let mut place = Place { position: FRAMES_AT, offset: last.base, chain };
    let mut segment = Segment {
        base: last.base,
        bytes: 0,
        chain,
        newest: last.header.map_or(ReceivedAt(i64::MIN), |h| h.created_at),
        index: Vec::new(),
    };
    let mut durable = durable;
    let mut epoch = last.header.map_or(0, |h| h.epoch);
    // Where damage begins and ends, and what the frames before it prove durable.
    let mut damage: Vec<(Place, Place, u64)> = Vec::new();
    let mut proved = last.base;
    let mut chain_before = chain;
    let stopped = loop {
        let before = place;
        match walker.step(&mut place, 0)? {
            Step::Frame(found) => {
                proved = proved.max(found.header.durable);
                chain_before = chain_before.or(Some(found.header.previous_crc));
                epoch = epoch.max(found.header.epoch);
                segment.newest = segment.newest.max(found.header.received_at);
                segment.note(found.header.base, found.position);
            }
            Step::Damaged(_) => damage.push((before, place, proved)),
            Step::Tail => break before,
        }
    };
    durable = durable.max(proved);
    let is_torn = |at: &Place| at.offset >= durable || planted(Bug::DamageIsTail);
    let torn = damage.iter().find(|(at, ..)| is_torn(at));
    let (mut kept, proved) = torn.map_or((stopped, proved), |(at, _, proved)| (*at, *proved));
    if stopped.offset < durable {
        // Its bytes are kept as well, for who wants to look at them.
        let end = Place { position: last.bytes, offset: durable, chain: None };
        damage.push((stopped, end, proved));
        kept.position = last.bytes;
    }
    let lost = damage.iter().filter(|(at, ..)| at.offset < durable);
    let quarantined: Vec<_> = lost
        .filter_map(|(at, to, _)| {
            Some(Damage {
                range: OffsetRange::new(Offset(at.offset), Offset(to.offset))?,
                segment: last.base,
                position: at.position,
                bytes: to.position.min(last.bytes).saturating_sub(at.position),
            })
        })
        .collect();
    let (end, next) = (kept.position.min(last.bytes).max(FRAMES_AT), kept.offset.max(durable));
    segment.index.retain(|(offset, _)| *offset < next);
    // Behind lost offsets, or a frame that is not all there, nothing can be chained.
    // Where only the mark of a clean stop, the watermark, or a frame that is not kept proves that damage
    // was durable, nothing must be: a new segment's base says then that the offsets were given.
    let unproved = quarantined.iter().any(|damage| proved <= damage.range.from().0);
    let ends_damaged = quarantined.last().is_some_and(|damage| damage.range.to().0 == next);
    let broken = unproved || ends_damaged || kept.offset < next || kept.position > last.bytes;
    let chain_before = chain_before.unwrap_or(0);
    Ok(Scan {
        end,
        next,
        chain: (!broken).then(|| kept.chain.unwrap_or(chain_before)),
        chain_before,
        epoch,
        newest: segment.newest,
        index: segment.index,
        torn_bytes: if broken { 0 } else { last.bytes.saturating_sub(end) },
        is_whole: damage.is_empty() && end == last.bytes,
        quarantined,
    })
}

/// Writes what survived of the last segment anew, under the same name: the old file's pages may be in
/// memory only. Until the rename the old one is untouched, so a crash here is recovered the same way.
fn renew(
    storage: &dyn Storage,
    dir: &Path,
    last: &Listed,
    header: &SegmentHeader,
    end: u64,
) -> Result<Arc<dyn StorageFile>, OpenError> {
    let copied = segment::install(storage, dir, header, |copy| {
        copy_frames(&*last.file, copy, end)?;
        Ok(end)
    });
    match copied {
        Ok((file, _)) => Ok(file),
        Err(Fault::Write(error) | Fault::Sync(error)) => Err(at(&last.path)(error)),
    }
}

fn copy_frames(from: &dyn StorageFile, to: &dyn StorageFile, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let mut position = FRAMES_AT;
    while position < end {
        let want = usize::try_from(end - position).unwrap_or(usize::MAX).min(READ_BYTES);
        let part = buffer.get_mut(..want).unwrap_or_default();
        let read = read_full(from, part, position)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let part = part.get(..read).unwrap_or_default();
        write_all_at(to, &mut [io::IoSlice::new(part)], position)?;
        position += read as u64;
    }
    Ok(())
}
