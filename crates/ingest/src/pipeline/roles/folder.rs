//! The data folder of a role without a log of its own: a name for the process, one process at a time.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::storage::{self, LockGuard, Storage};

/// The file that names the instance.
const FILE: &str = "instance";
const ID_BYTES: usize = 8;

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{} is in use by another ingestd; give each a log.dir of its own", .0.display())]
    Locked(PathBuf),
    /// A log lies there.
    #[error("{} holds a log: an edge or a normalizer needs a log.dir of its own", .0.display())]
    Log(PathBuf),
}

/// A folder of this process' own.
pub struct RoleFolder {
    /// As a log's id: 8 characters, kept from start to start.
    pub id: String,
    _lock: LockGuard,
}

impl RoleFolder {
    /// Makes the folder if it is not there, locks it, and reads or makes its name.
    pub fn open(storage: &dyn Storage, dir: &Path) -> Result<Self, FolderError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| FolderError::Io { path, source }
        };
        storage.create_dir_all(dir).map_err(at(dir))?;
        let lock = dir.join("lock");
        let lock = storage.lock(&lock).map_err(at(&lock))?;
        let lock = lock.ok_or_else(|| FolderError::Locked(dir.to_owned()))?;
        if storage.list(dir).map_err(at(dir))?.iter().any(|name| name == "log") {
            return Err(FolderError::Log(dir.to_owned()));
        }
        Ok(Self { id: instance(storage, dir)?, _lock: lock })
    }
}

/// The name that the process on this folder has, made once. The folder is locked already.
pub fn instance(storage: &dyn Storage, dir: &Path) -> Result<String, FolderError> {
    let path = dir.join(FILE);
    let fault = |source| FolderError::Io { path: path.clone(), source };
    let id = match storage.read(&path) {
        Ok(bytes) => String::from_utf8(bytes).unwrap_or_default().trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(fault(error)),
    };
    if id.len() == ID_BYTES && id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Ok(id);
    }
    let id = hex::encode(rand::random::<[u8; ID_BYTES / 2]>());
    storage::replace(storage, &path, id.as_bytes()).map_err(fault)?;
    Ok(id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::storage::Disk;

    #[test]
    fn a_folder_keeps_its_name_and_belongs_to_one_process_without_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let first = RoleFolder::open(&Disk, dir.path()).unwrap();
        let again = RoleFolder::open(&Disk, dir.path()).err().unwrap();
        assert!(matches!(again, FolderError::Locked(_)), "{again}");
        let id = first.id.clone();
        drop(first);
        assert_eq!(RoleFolder::open(&Disk, dir.path()).unwrap().id, id);
        std::fs::create_dir(dir.path().join("log")).unwrap();
        let log = RoleFolder::open(&Disk, dir.path()).err().unwrap();
        assert!(matches!(log, FolderError::Log(_)), "{log}");
    }
}
