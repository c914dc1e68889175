//! Verifies a log that no server has open: reads only, mends nothing, records nothing.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tidegate_event::{Offset, OffsetRange, Partition, ReceivedAt};

use super::{
    SeenBy, Stretch, Verified,
    listing::{Mark, read_full},
    quarantine, segment,
    segment::{FRAMES_AT, SegmentHeader},
    verify::KEPT_MAX,
    walk::{OnReadError, Place, Step, Walker},
    watermark::{self, Durable},
};
use crate::storage::{Disk, Storage, StorageFile};

/// Why a log cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// A server has it.
    #[error("{} is in use by an ingestd", .0.display())]
    InUse(PathBuf),
    /// There is none.
    #[error("{} holds no log", .0.display())]
    NoLog(PathBuf),
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn at(path: &Path) -> impl Fn(io::Error) -> OfflineError + use<> {
    let path = path.to_owned();
    move |source| OfflineError::Io { path: path.clone(), source }
}

/// One segment as it lies there.
struct Lying {
    base: u64,
    name: String,
    file: Arc<dyn StorageFile>,
    bytes: u64,
    header: Option<SegmentHeader>,
}

/// Verifies the log under the data folder `dir`, partition by partition. `watch` hears of every frame:
/// the partition, the bytes verified so far, and those there are.
///
/// # Errors
/// [`OfflineError`]. Holds a shared lock meanwhile: a server cannot start.
pub fn inspect(
    dir: &Path,
    mut watch: impl FnMut(Partition, u64, u64),
) -> Result<Vec<Verified>, OfflineError> {
    let log = dir.join("log");
    let names = match Disk.list(&log) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(OfflineError::NoLog(dir.to_owned()));
        }
        names => names.map_err(at(&log))?,
    };
    let lock = dir.join("lock");
    let _held = match File::open(&lock) {
        Ok(file) => {
            match file.try_lock_shared() {
                Ok(()) => {}
                Err(std::fs::TryLockError::WouldBlock) => {
                    return Err(OfflineError::InUse(dir.to_owned()));
                }
                Err(std::fs::TryLockError::Error(error)) => return Err(at(&lock)(error)),
            }
            Some(file)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(at(&lock)(error)),
    };
    let mut partitions: Vec<u32> =
        names.iter().filter_map(|name| name.strip_prefix("partition-")?.parse().ok()).collect();
    partitions.sort_unstable();
    if partitions.is_empty() {
        return Err(OfflineError::NoLog(dir.to_owned()));
    }
    let id = log.join("id");
    let log_id: Option<[u8; 8]> = match Disk.read(&id) {
        Ok(text) => text.trim_ascii().try_into().ok(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(at(&id)(error)),
    };
    partitions
        .into_iter()
        .map(|partition| {
            let dir = log.join(format!("partition-{partition}"));
            partition_at(&dir, Partition(partition), log_id, &mut watch)
        })
        .collect()
}

fn partition_at(
    dir: &Path,
    partition: Partition,
    log_id: Option<[u8; 8]>,
    watch: &mut impl FnMut(Partition, u64, u64),
) -> Result<Verified, OfflineError> {
    let mut found = Verified { partition, ..Verified::default() };
    let mut segments = lying(dir, &mut found)?;
    let header = segments.iter().rev().find_map(|s| s.header);
    if let (Some(id), Some(header)) = (log_id, header) {
        if header.log_id != id {
            found.note("log/id is not the id in the segments' heads".to_owned());
        }
    } else if log_id.is_none() {
        found.note("log/id is missing or damaged".to_owned());
    }
    let Some(header) = header else {
        if segments.iter().any(|s| FRAMES_AT < s.bytes) {
            found.note("no segment has a whole head: no frame can be verified".to_owned());
        }
        return Ok(found);
    };
    let seed = segment::seed(&header.log_id, &header.key, header.partition);
    check_links(&mut segments, &mut found);
    let mark = match Disk.read(&dir.join(Mark::NAME)) {
        Ok(text) => Mark::parse(&text),
        Err(_) => None,
    };
    let told = Durable::read(&Disk, dir, seed).map_err(at(&dir.join(watermark::NAME)))?;
    let durable = mark.map(|m| m.latest).into_iter().chain(told.map(|t| t.latest)).max();
    let base = mark.map(|m| m.base).into_iter().chain(told.map(|t| t.base)).max();
    let all = segments.iter().map(|s| s.bytes).sum();
    found.from = Offset(segments.first().map_or(0, |first| first.base));
    let mut before = 0;
    for (index, one) in segments.iter().enumerate() {
        let next = segments.get(index + 1).map(|next| next.base);
        let mut watch = |bytes: u64| watch(partition, before + bytes.min(one.bytes), all);
        walk(one, (seed, next, durable.unwrap_or(0)), &mut found, &mut watch)
            .map_err(at(&dir.join(&one.name)))?;
        before += one.bytes;
    }
    if let Some(last) = segments.last().zip(base).filter(|(last, base)| last.base < *base) {
        found.note(format!("{:020}.seg is missing: a start refuses", last.1));
    }
    Ok(found)
}

/// The segments of a partition, and a note for what a start would refuse or mend.
fn lying(dir: &Path, found: &mut Verified) -> Result<Vec<Lying>, OfflineError> {
    let mut segments = Vec::new();
    for name in Disk.list(dir).map_err(at(dir))? {
        let path = dir.join(&name);
        if let Some(base) = segment::parse_name(&name) {
            let file = File::open(&path).map_err(at(&path))?;
            let file: Arc<dyn StorageFile> = Arc::new(file);
            if let Err(error) = file.drop_cache() {
                found.note(format!("{name} is verified as the cache has it: {error}"));
            }
            let bytes = file.size().map_err(at(&path))?;
            let header = found.head(&*file, &name).map_err(at(&path))?;
            if let Some(header) = header.filter(|h| h.base != base) {
                let own = header.base;
                found.note(format!("{name} is under a wrong name; its own is {own:020}.seg"));
            }
            segments.push(Lying { base, name, file, bytes, header });
            continue;
        }
        match name.as_str() {
            Mark::NAME => {
                let whole = Disk.read(&path).map(|text| Mark::parse(&text).is_some());
                if !matches!(whole, Ok(true)) {
                    found.note(format!("{name}, the mark of a clean stop, is damaged"));
                }
            }
            quarantine::NAME | watermark::NAME | "ledger.json" => {}
            _ if name.ends_with(".new") => {}
            _ => found.note(format!("{name} is not a part of the log: a start refuses")),
        }
    }
    Ok(segments)
}

/// Each head names the segment before and its length, as a start holds them against each other.
fn check_links(segments: &mut [Lying], found: &mut Verified) {
    for index in 1..segments.len() {
        let (before, behind) = segments.split_at_mut(index);
        let (Some(before), Some(segment)) = (before.last_mut(), behind.first()) else { continue };
        let Some(previous) = segment.header.and_then(|h| h.previous) else { continue };
        if before.base < previous.base {
            found.note(format!("{:020}.seg is missing: a start refuses", previous.base));
        } else if previous.base < before.base {
            found.note(format!("{} does not belong here: a start refuses", before.name));
        } else {
            if before.bytes < previous.bytes {
                let lost = previous.bytes - before.bytes;
                found.note(format!("{} is {lost} bytes too short", before.name));
            }
            before.bytes = before.bytes.min(previous.bytes);
        }
    }
}

/// Verifies the frames of one segment. Where nothing follows, what lies behind `durable` and behind
/// the last whole frame was never acknowledged.
fn walk(
    segment: &Lying,
    (seed, next, durable): (u32, Option<u64>, u64),
    found: &mut Verified,
    watch: &mut impl FnMut(u64),
) -> io::Result<()> {
    let mut walker = Walker::new(Arc::clone(&segment.file), seed, OnReadError::Zeros);
    walker.limit = segment.bytes;
    walker.bound = next.unwrap_or(u64::MAX);
    let chain = segment.header.map(|h| h.chain);
    let mut place = Place { position: FRAMES_AT, offset: segment.base, chain };
    let mut durable = next.unwrap_or(durable);
    loop {
        let before = place;
        watch(before.position);
        match walker.step(&mut place, 0)? {
            Step::Frame(frame) => {
                let header = frame.header;
                durable = durable.max(header.durable);
                if header.open_body(frame.stored).is_err() {
                    lost(found, segment, (before, place));
                    continue;
                }
                found.frames += 1;
                found.events += u64::from(header.count);
                found.bytes += header.frame_bytes();
            }
            Step::Damaged(_) => lost(found, segment, (before, place)),
            Step::Tail => {
                let end = durable.max(before.offset);
                if before.offset < durable {
                    let behind = Place { position: segment.bytes, offset: durable, chain: None };
                    lost(found, segment, (before, behind));
                } else if before.position < segment.bytes && next.is_none() {
                    found.torn_bytes = segment.bytes - before.position;
                }
                found.to = Offset(end);
                return Ok(());
            }
        }
    }
}

fn lost(found: &mut Verified, segment: &Lying, (from, to): (Place, Place)) {
    let Some(range) = OffsetRange::new(Offset(from.offset), Offset(to.offset)) else { return };
    found.damaged_events += range.count();
    if found.damaged.len() < KEPT_MAX {
        found.damaged.push(Stretch {
            range,
            segment: Offset(segment.base),
            position: from.position,
            bytes: to.position.min(segment.bytes).saturating_sub(from.position),
            seen_at: ReceivedAt(0),
            seen_by: SeenBy::Verify,
            acknowledged: None,
        });
    }
}

/// Reads bytes of a segment, for who wants to look at damage.
///
/// # Errors
/// As `pread(2)`.
pub fn read_some(file: &dyn StorageFile, at: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut some = vec![0; bytes];
    let read = read_full(file, &mut some, at)?;
    some.truncate(read);
    Ok(some)
}
