//! What lies in a partition's folder: the mark of a clean stop, the segments, and whether they fit.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rand::Rng;
use tidegate_event::Partition;

use super::{
    OpenError,
    folder::{Place as Folder, at},
    quarantine,
    segment::{self, FRAMES_AT, SegmentHeader},
    watermark,
};
use crate::storage::{self, Storage, StorageFile};

/// The mark of a clean stop: where the log ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub base: u64,
    pub bytes: u64,
    pub latest: u64,
}

impl Mark {
    pub const NAME: &str = "clean";

    fn text(self) -> String {
        let facts = format!("{} {} {}", self.base, self.bytes, self.latest);
        format!("{facts} {:08x}\n", crc32c::crc32c(facts.as_bytes()))
    }

    pub fn write(self, storage: &dyn Storage, dir: &Path) -> io::Result<()> {
        storage::replace(storage, &dir.join(Self::NAME), self.text().as_bytes())
    }

    pub fn remove(storage: &dyn Storage, dir: &Path) -> io::Result<()> {
        match storage.remove(&dir.join(Self::NAME)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
        let mut number = || words.next()?.parse().ok();
        let mark = Self { base: number()?, bytes: number()?, latest: number()? };
        (mark.text().as_bytes() == text).then_some(mark)
    }
}

/// A segment as its name and head tell of it.
pub(super) struct Listed {
    pub base: u64,
    pub path: PathBuf,
    pub file: Arc<dyn StorageFile>,
    /// Its length, without what its successor says a failed write left.
    pub bytes: u64,
    /// `None` where both copies are damaged.
    pub header: Option<SegmentHeader>,
    /// Whether both copies were whole.
    pub intact: bool,
}

pub(super) struct Listing {
    pub segments: Vec<Listed>,
    /// The mark of a clean stop, if it is whole.
    pub mark: Option<Mark>,
    /// Whether there is a mark at all.
    pub marked: bool,
    /// What was mended, one sentence each.
    pub notes: Vec<String>,
}

/// Reads the names and the heads. Leftovers of a segment that was being made are removed, what is not
/// the log's own is refused.
pub(super) fn list(
    folder: &Folder,
    dir: &Path,
    partition: Partition,
) -> Result<Listing, OpenError> {
    let storage = &*folder.storage;
    let mut listing =
        Listing { segments: Vec::new(), mark: None, marked: false, notes: Vec::new() };
    for name in storage.list(dir).map_err(at(dir))? {
        let path = dir.join(&name);
        if let Some(base) = segment::parse_name(&name) {
            listing.segments.push(listed(folder, path, base, partition, &mut listing.notes)?);
            continue;
        }
        match name.as_str() {
            "clean" => {
                let text = storage.read(&path).map_err(at(&path))?;
                (listing.mark, listing.marked) = (Mark::parse(&text), true);
            }
            "ledger.json" | "dedup" | quarantine::NAME | watermark::NAME => {}
            "clean.new" | "ledger.json.new" | "quarantine.new" => {
                storage.remove(&path).map_err(at(&path))?;
            }
            _ if name.strip_suffix(".new").is_some_and(|n| segment::parse_name(n).is_some()) => {
                storage.remove(&path).map_err(at(&path))?;
                listing.notes.push(format!("the half made {name} was removed"));
            }
            _ => {
                let why = "not a part of the log; move it elsewhere".to_owned();
                return Err(OpenError::Foreign { path, why });
            }
        }
    }
    check_links(dir, &mut listing)?;
    Ok(listing)
}

fn listed(
    folder: &Folder,
    path: PathBuf,
    base: u64,
    partition: Partition,
    notes: &mut Vec<String>,
) -> Result<Listed, OpenError> {
    let file = folder.storage.open(&path).map_err(at(&path))?;
    let bytes = file.size().map_err(at(&path))?;
    let mut head = vec![0; FRAMES_AT as usize];
    let read = read_full(&*file, &mut head, 0).map_err(at(&path))?;
    head.truncate(read);
    let decoded = SegmentHeader::decode(&head);
    if let Some((header, whole)) = decoded {
        let why = if header.log_id != folder.log_id {
            let id = String::from_utf8_lossy(&header.log_id);
            format!("a segment of another log ({id}); move it elsewhere")
        } else if header.partition != partition.0 {
            format!("a segment of partition {}; move it there", header.partition)
        } else if header.base != base {
            format!("a segment under a wrong name; its own is {:020}.seg", header.base)
        } else {
            String::new()
        };
        if !why.is_empty() {
            return Err(OpenError::Foreign { path, why });
        }
        if !whole {
            notes.push(format!("one copy of the head of {} is damaged", path.display()));
        }
    } else {
        notes.push(format!("the head of {} is damaged", path.display()));
        tracing::error!(path = %path.display(), "the head of a segment is damaged");
    }
    let intact = decoded.is_some_and(|d| d.1);
    Ok(Listed { base, path, file, bytes, header: decoded.map(|d| d.0), intact })
}

/// Each segment's head names the one before it and how long that is.
fn check_links(dir: &Path, listing: &mut Listing) -> Result<(), OpenError> {
    let Listing { segments, notes, .. } = listing;
    let mut before: Option<&mut Listed> = None;
    for segment in segments {
        if let (Some(before), Some(previous)) =
            (&mut before, segment.header.and_then(|h| h.previous))
        {
            if before.base != previous.base {
                let (missing, extra) = (previous.base, before.base);
                if missing > extra {
                    return Err(OpenError::Missing { path: segment::path(dir, missing) });
                }
                let why = format!(
                    "the log goes from {missing:020}.seg to {:020}.seg without it; move it elsewhere",
                    segment.base
                );
                return Err(OpenError::Foreign { path: before.path.clone(), why });
            }
            if before.bytes < previous.bytes {
                let lost = previous.bytes - before.bytes;
                notes.push(format!("{} is {lost} bytes too short", before.path.display()));
                tracing::error!(path = %before.path.display(), bytes = lost, "a segment is too short");
            }
            before.bytes = before.bytes.min(previous.bytes);
        }
        before = Some(segment);
    }
    Ok(())
}

/// The partition's key, from any head. A new one where there are no frames to lose.
pub(super) fn find_key(listing: &Listing) -> Result<[u8; 16], OpenError> {
    if let Some(header) = listing.segments.iter().rev().find_map(|s| s.header) {
        return Ok(header.key);
    }
    match listing.segments.iter().find(|s| s.bytes > FRAMES_AT) {
        Some(segment) => Err(OpenError::Foreign {
            path: segment.path.clone(),
            why: "both copies of its head are damaged and there is no other segment to learn the log's key from; restore it, or put an empty file in its place to give up its events".to_owned(),
        }),
        None => Ok(rand::rng().random()),
    }
}

pub(super) fn read_full(file: &dyn StorageFile, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
