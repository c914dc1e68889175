//! The disk with faults, for tests: writes that fail or stop short, syncs and reads that fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use crate::storage::{Disk, Storage, StorageFile};

/// Which calls fail: each counts down to the call that does, and negative is never.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Bytes left on the disk; when used up, writes fail with `StorageFull`. Negative: no bound.
    pub space: AtomicI64,
    /// Fails the nth `write` from now with this error.
    pub write: Countdown,
    /// Fails the nth `sync_data` or `sync_dir` from now.
    pub sync: Countdown,
    /// While true, a sync of a file waits.
    pub sync_waits: AtomicBool,
    /// Syncs nothing: for tests that start ten thousand times.
    pub sync_is_free: AtomicBool,
    /// Fails reads of pages that hold these bytes: from.
    pub bad_from: AtomicU64,
    /// Fails reads of pages that hold these bytes: to.
    pub bad_to: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct Countdown(AtomicI64);

impl Default for Countdown {
    fn default() -> Self {
        Self(AtomicI64::new(-1))
    }
}

impl Countdown {
    /// The `n`th call from now fails, counted from 0.
    pub fn set(&self, n: i64) {
        self.0.store(n, Ordering::SeqCst);
    }
    fn hit(&self) -> bool {
        let left = self.0.load(Ordering::SeqCst);
        if left >= 0 {
            self.0.store(left - 1, Ordering::SeqCst);
        }
        left == 0
    }
}

/// A disk with faults.
#[derive(Clone)]
pub(crate) struct FaultyDisk(pub Arc<Faults>);

impl Faults {
    fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        while self.sync_waits.load(Ordering::SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        if self.sync.hit() {
            return Err(eio());
        }
        if self.sync_is_free.load(Ordering::SeqCst) { Ok(()) } else { sync() }
    }
}

impl FaultyDisk {
    pub fn new() -> Self {
        let faults = Faults { space: AtomicI64::new(-1), ..Faults::default() };
        Self(Arc::new(faults))
    }
}

struct FaultyFile {
    file: Arc<dyn StorageFile>,
    faults: Arc<Faults>,
}

fn eio() -> io::Error {
    io::Error::other("injected")
}

impl StorageFile for FaultyFile {
    fn write_vectored_at(&self, buffers: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize> {
        if self.faults.write.hit() {
            return Err(eio());
        }
        let all: Vec<u8> = buffers.iter().flat_map(|b| b.iter().copied()).collect();
        let space = self.faults.space.load(Ordering::SeqCst);
        let fits = if space < 0 { all.len() } else { all.len().min(space as usize) };
        if fits == 0 && !all.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // A short write, so that the caller has to come again.
        let some = if fits > 100 { fits / 2 } else { fits };
        let n = self.file.write_vectored_at(&[io::IoSlice::new(&all[..some])], offset)?;
        if space >= 0 {
            self.faults.space.fetch_sub(n as i64, Ordering::SeqCst);
        }
        Ok(n)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bad = (
            self.faults.bad_from.load(Ordering::SeqCst),
            self.faults.bad_to.load(Ordering::SeqCst),
        );
        if offset < bad.1 && bad.0 < offset + buffer.len() as u64 {
            return Err(eio());
        }
        self.file.read_at(buffer, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.faults.sync(|| self.file.sync_data())
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
    fn drop_cache(&self) -> io::Result<()> {
        let free = self.faults.sync_is_free.load(Ordering::SeqCst);
        if free { Ok(()) } else { self.file.drop_cache() }
    }
}

/// A file that the log goes on without: its writes are not counted among those that fail.
fn is_free(path: &Path) -> bool {
    path.ends_with("durable")
}

impl Storage for FaultyDisk {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn StorageFile>> {
        if is_free(path) {
            return Disk.create_new(path);
        }
        Ok(Arc::new(FaultyFile { file: Disk.create_new(path)?, faults: Arc::clone(&self.0) }))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn StorageFile>> {
        if is_free(path) {
            return Disk.open(path);
        }
        Ok(Arc::new(FaultyFile { file: Disk.open(path)?, faults: Arc::clone(&self.0) }))
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Disk.read(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        Disk.list(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        Disk.create_dir_all(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync(|| Disk.sync_dir(dir))
    }
}
