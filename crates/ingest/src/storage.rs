//! The few file operations that log, cursors and intents need: the disk, or a faulty fake of it.
//!
//! Every write path of the data folder goes through [`Storage`], so that a simulated disk can stand
//! in. Durable means: the file's `sync_data` returned, and the folder's `sync_dir` after its name
//! was made, renamed or removed.

use std::{
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::faults::{self, Bug, Point, planted};

/// One open file.
pub trait StorageFile: Send + Sync {
    /// Writes some of `buffers` at `offset`, one behind the other; returns how many bytes.
    ///
    /// # Errors
    /// As `pwritev(2)`.
    fn write_vectored_at(&self, buffers: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize>;
    /// Reads into `buffer` from `offset`; returns how many bytes, 0 at the end.
    ///
    /// # Errors
    /// As `pread(2)`.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// `fdatasync(2)`. After an error nothing written since the last success may be trusted.
    ///
    /// # Errors
    /// As `fdatasync(2)`.
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts or stretches the file to `bytes`.
    ///
    /// # Errors
    /// As `ftruncate(2)`.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// The file's length in bytes.
    ///
    /// # Errors
    /// As `fstat(2)`.
    fn size(&self) -> io::Result<u64>;
    /// Drops the file's clean pages from the cache, so that the next read asks the disk.
    ///
    /// # Errors
    /// As `posix_fadvise(2)`.
    fn drop_cache(&self) -> io::Result<()>;
}

/// A file system.
pub trait Storage: Send + Sync {
    /// Makes a file that must not exist yet, open for reading and writing.
    ///
    /// # Errors
    /// As `open(2)` with `O_CREAT|O_EXCL`.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn StorageFile>>;
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// As `open(2)`.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn StorageFile>>;
    /// A whole file.
    ///
    /// # Errors
    /// As `open(2)` and `read(2)`.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// The names in a folder, sorted.
    ///
    /// # Errors
    /// As `readdir(3)`; a name that is not UTF-8 is `InvalidData`.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Renames within one file system, replacing what was there.
    ///
    /// # Errors
    /// As `rename(2)`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// As `unlink(2)`.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a folder and its parents and makes their names durable.
    ///
    /// # Errors
    /// As `mkdir(2)` and `fsync(2)`.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// As `fsync(2)`.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the exclusive lock on the file at `path` (made if need be), held until the guard is
    /// dropped; `None` where another holds it. On the real file system unless a fake says otherwise.
    ///
    /// # Errors
    /// As `open(2)` and `flock(2)`.
    fn lock(&self, path: &Path) -> io::Result<Option<LockGuard>> {
        let file = fs::File::options().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(LockGuard(Some(file)))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Holds a lock until it is dropped.
#[derive(Debug)]
pub struct LockGuard(Option<fs::File>);

impl LockGuard {
    /// The guard of a lock that only a fake knows of.
    #[must_use]
    pub fn fake() -> Self {
        Self(None)
    }

    /// True where the lock is the operating system's.
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.0.is_some()
    }
}

/// How many buffers one vectored write takes at most (Linux' `IOV_MAX`).
const VECTORED_MAX: usize = 1024;

/// Writes all of `buffers` at `offset`.
///
/// # Errors
/// As [`StorageFile::write_vectored_at`]; `WriteZero` when the file takes nothing more.
pub fn write_all_at(
    file: &dyn StorageFile,
    mut buffers: &mut [io::IoSlice<'_>],
    mut offset: u64,
) -> io::Result<()> {
    io::IoSlice::advance_slices(&mut buffers, 0);
    while !buffers.is_empty() {
        let some = buffers.get(..VECTORED_MAX).unwrap_or(buffers);
        match file.write_vectored_at(some, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                offset += n as u64;
                io::IoSlice::advance_slices(&mut buffers, n);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Replaces the small file at `path` by `bytes`, whole or not at all, durable on return: write a
/// temporary file beside it, sync it, rename it over, sync the folder.
///
/// # Errors
/// As the operations it is made of. The old content stays unless the rename was reached.
pub fn replace(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match storage.remove(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = storage.create_new(&temporary)?;
    write_all_at(&*file, &mut [io::IoSlice::new(bytes)], 0)?;
    faults::at(Point::StateWritten);
    if !planted(Bug::SmallFileNotSynced) {
        file.sync_data()?;
    }
    drop(file);
    faults::at(Point::StateSynced);
    storage.rename(&temporary, path)?;
    faults::at(Point::StateRenamed);
    storage.sync_dir(dir)
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl StorageFile for fs::File {
    fn write_vectored_at(&self, buffers: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwritev(self, buffers, offset)?)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        fs::File::sync_data(self)
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        fs::File::set_len(self, bytes)
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
    fn drop_cache(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(self, 0, None, rustix::fs::Advice::DontNeed)?)
    }
}

impl Storage for Disk {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(fs::File::options().read(true).write(true).create_new(true).open(path)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(fs::File::options().read(true).write(true).open(path)?))
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name().into_string();
            names.push(name.map_err(|name| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{name:?} is not UTF-8"))
            })?);
        }
        names.sort_unstable();
        Ok(names)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            self.create_dir_all(parent)?;
            match fs::create_dir(dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            return self.sync_dir(parent);
        }
        match fs::create_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }
}
