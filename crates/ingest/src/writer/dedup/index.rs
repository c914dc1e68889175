//! The index on disk: what a start reads instead of the log.
//!
//! Each window's length has slices of its own, one behind the other; a slice is removed once the last
//! of its ids is past the window. Nothing here needs to be synced for the promise to hold: what the
//! index does not cover is read from the log. Synced now and then, so that this is little.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    load::Found,
    memory::{Line, NEVER, Seen},
    slice::{self, Head, ID_BYTES},
    windows::Class,
};
use crate::storage::{Storage, StorageFile, write_all_at};

/// Ids that wait for their block at most, and those of one group.
const WAITING_MAX: usize = 1 << 16;
/// A window's slices, about: it is removed late by this part of itself.
const SLICES: i64 = 8;
/// A slice takes at least so many ids, however few are remembered.
const SLICE_IDS_MIN: usize = 1 << 10;
/// How long what is written may wait to be synced, in microseconds.
const SYNC_EVERY: i64 = 5_000_000;
/// After a fault: how long until the index is begun anew, in microseconds.
const AGAIN_AFTER: i64 = 30_000_000;

/// A slice that takes no more.
pub(super) struct Sealed {
    pub path: PathBuf,
    pub newest: i64,
}

struct Open {
    path: PathBuf,
    file: Arc<dyn StorageFile>,
    position: u64,
    crc: u32,
    ids: usize,
    newest: i64,
    begun: i64,
}

/// The slices of one window's length.
pub(super) struct Shelf {
    pub sealed: VecDeque<Sealed>,
    open: Option<Open>,
    waiting: Vec<Seen>,
    /// No id in a slice was received after this.
    newest: i64,
}

impl Shelf {
    pub fn new(sealed: VecDeque<Sealed>, newest: i64) -> Self {
        Self { sealed, open: None, waiting: Vec::new(), newest }
    }

    /// Files that are not needed once the index was begun anew.
    pub fn leave(&mut self, paths: Vec<PathBuf>) {
        self.sealed.extend(paths.into_iter().map(|path| Sealed { path, newest: NEVER }));
    }
}

pub(super) struct Index {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    mark: [u8; 16],
    slice_ids: usize,
    shelves: Vec<Shelf>,
    sequence: u64,
    /// The slices cover all offsets below.
    to: u64,
    unsynced: Vec<Arc<dyn StorageFile>>,
    /// Something was written since the last sync.
    changed: bool,
    synced_at: i64,
    /// After a fault: when to begin anew.
    again_at: Option<i64>,
}

impl Index {
    /// Goes on behind `found`.
    pub fn new(
        storage: Arc<dyn Storage>,
        dir: PathBuf,
        mark: [u8; 16],
        ids_max: usize,
        found: Found,
    ) -> Self {
        let Found { shelves, sequence, to } = found;
        let slice_ids = (ids_max / 4).max(SLICE_IDS_MIN);
        Self {
            storage,
            dir,
            mark,
            slice_ids,
            shelves,
            sequence,
            to,
            unsynced: Vec::new(),
            changed: false,
            synced_at: NEVER,
            again_at: None,
        }
    }

    /// An id whose event is durable.
    pub fn push(&mut self, class: Class, seen: Seen) {
        if self.again_at.is_none()
            && let Some(shelf) = self.shelves.get_mut(usize::from(class))
        {
            shelf.waiting.push(seen);
        }
    }

    /// True where what waits should be written now.
    pub fn is_due(&self) -> bool {
        self.shelves.iter().map(|shelf| shelf.waiting.len()).sum::<usize>() >= WAITING_MAX
    }

    /// Writes what waits: with it all ids of the offsets below `to` are in the index.
    pub fn write(&mut self, lines: &[Line], to: u64, now: i64) {
        let written = match self.again_at {
            Some(again_at) if now < again_at => return,
            Some(_) => self.begin(lines, to, now),
            None if to == self.to => return,
            None => self.write_blocks(lines, to, now),
        };
        self.changed = true;
        if let Err(error) = written {
            self.fail(&error, now);
        }
    }

    /// Removes what is past its window, and syncs what was written, if that is due.
    pub fn keep_house(&mut self, lines: &[Line], now: i64, sync_now: bool) {
        if self.again_at.is_some() {
            return;
        }
        let passed = now < self.synced_at || now.saturating_sub(self.synced_at) >= SYNC_EVERY;
        let due = self.changed && (passed || sync_now);
        let done = self.remove_old(lines, now).and_then(|()| {
            if !due {
                return Ok(());
            }
            (self.synced_at, self.changed) = (now, false);
            self.unsynced.drain(..).try_for_each(|file| file.sync_data())?;
            let mut open = self.shelves.iter().filter_map(|shelf| shelf.open.as_ref());
            open.try_for_each(|open| open.file.sync_data())?;
            self.storage.sync_dir(&self.dir)
        });
        if let Err(error) = done {
            self.fail(&error, now);
        }
    }

    fn fail(&mut self, error: &io::Error, now: i64) {
        tracing::warn!(dir = %self.dir.display(), %error, "the index of ids cannot be written; it is begun anew later, and a start before that reads more of the log");
        self.again_at = Some(now.saturating_add(AGAIN_AFTER));
        self.unsynced.clear();
        for shelf in &mut self.shelves {
            shelf.waiting = Vec::new();
            let open = shelf.open.take();
            shelf.sealed.extend(open.map(|o| Sealed { path: o.path, newest: o.newest }));
        }
    }

    /// Begins anew with all that is remembered; the slices before are not needed then. A fault is said,
    /// and it is tried again later.
    pub fn begin_anew(&mut self, lines: &[Line], to: u64, now: i64) {
        self.again_at = Some(now);
        self.write(lines, to, now);
    }

    fn begin(&mut self, lines: &[Line], to: u64, now: i64) -> io::Result<()> {
        let old: Vec<_> = self.shelves.iter_mut().flat_map(|s| s.sealed.drain(..)).collect();
        let begun = self.begin_slices(lines, to, now);
        if begun.is_err() {
            // Their names are kept, so that a later try removes them.
            if let Some(shelf) = self.shelves.first_mut() {
                shelf.sealed.extend(old);
            }
            return begun;
        }
        (self.to, self.again_at) = (to, None);
        for slice in old {
            remove(&*self.storage, &slice.path)?;
        }
        Ok(())
    }

    fn begin_slices(&mut self, lines: &[Line], to: u64, now: i64) -> io::Result<()> {
        for (class, line) in (0..).zip(lines) {
            let ids: Vec<Seen> = line.ids().collect();
            let mut open = self.create(class, to, NEVER, now)?;
            let mut parts = ids.chunks(WAITING_MAX).peekable();
            if parts.peek().is_none() {
                append(&mut open, &[], to, line.lost)?;
            }
            while let Some(part) = parts.next() {
                // Until the last part is there the slice says nothing.
                let to = if parts.peek().is_none() { to } else { 0 };
                append(&mut open, part, to, line.lost)?;
            }
            if let Some(shelf) = self.shelves.get_mut(usize::from(class)) {
                (shelf.newest, shelf.waiting) = (open.newest, Vec::new());
                shelf.open = Some(open);
            }
        }
        Ok(())
    }

    fn create(&mut self, class: Class, from: u64, before: i64, now: i64) -> io::Result<Open> {
        self.sequence += 1;
        let path = self.dir.join(slice::name(self.sequence, class));
        let file = self.storage.create_new(&path)?;
        let (head, crc) = Head { class, mark: self.mark, from, before }.encode();
        let open = Open {
            path,
            file,
            position: head.len() as u64,
            crc,
            ids: 0,
            newest: NEVER,
            begun: now,
        };
        write_all_at(&*open.file, &mut [io::IoSlice::new(&head)], 0)?;
        Ok(open)
    }

    fn write_blocks(&mut self, lines: &[Line], to: u64, now: i64) -> io::Result<()> {
        for (class, line) in (0..).zip(lines) {
            let Some(shelf) = self.shelves.get_mut(usize::from(class)) else { continue };
            let age = |open: &Open| now.saturating_sub(open.begun);
            let (full, length) = (self.slice_ids, line.window / SLICES);
            if let Some(open) = shelf.open.take_if(|o| o.ids >= full || age(o) >= length) {
                shelf.sealed.push_back(Sealed { path: open.path, newest: open.newest });
                self.unsynced.push(open.file);
            }
            if shelf.open.is_none() {
                let before = shelf.newest;
                let open = self.create(class, self.to, before, now)?;
                let Some(shelf) = self.shelves.get_mut(usize::from(class)) else { continue };
                shelf.open = Some(open);
            }
            let Some(shelf) = self.shelves.get_mut(usize::from(class)) else { continue };
            if let Some(open) = &mut shelf.open {
                append(open, &shelf.waiting, to, line.lost)?;
                shelf.newest = shelf.newest.max(open.newest);
                shelf.waiting.clear();
            }
        }
        self.to = to;
        Ok(())
    }

    fn remove_old(&mut self, lines: &[Line], now: i64) -> io::Result<()> {
        for (shelf, line) in self.shelves.iter_mut().zip(lines) {
            let since = now.saturating_sub(line.window);
            let gone = |slice: &mut Sealed| slice.newest < since || slice.newest <= line.lost;
            while let Some(slice) = shelf.sealed.pop_front_if(gone) {
                remove(&*self.storage, &slice.path)?;
            }
        }
        Ok(())
    }
}

fn append(open: &mut Open, ids: &[Seen], to: u64, lost: i64) -> io::Result<()> {
    let mut block = Vec::with_capacity(ids.len() * ID_BYTES + 64);
    let crc = slice::put_block(&mut block, ids, to, lost, open.crc);
    write_all_at(&*open.file, &mut [io::IoSlice::new(&block)], open.position)?;
    open.position += block.len() as u64;
    open.crc = crc;
    open.ids += ids.len();
    open.newest = ids.iter().map(|seen| seen.at).fold(open.newest, i64::max);
    Ok(())
}

pub(super) fn remove(storage: &dyn Storage, path: &Path) -> io::Result<()> {
    match storage.remove(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
