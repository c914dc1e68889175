//! Where a lake's files are put: a local folder or an object store, each file whole, once, durable.
//!
//! A local file is written under `staging/`, synced, then linked to its final name, which must be
//! free, and the folder of that name is synced; so whoever reads the folder sees whole files or
//! none. On an object store a file is one create-only put (`remote`), never one in parts.

use std::{
    collections::HashSet,
    path::{Component, Path as FilePath, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, local::LocalFileSystem,
    path::Path,
};
use tokio::runtime::Handle;

use super::remote::{self, Refused, Remote};
use crate::{
    faults::{self, Bug, Point, planted},
    storage::Storage,
};

/// What became of a file that was to be put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there now, or was there with just these bytes; durable.
    Done,
    /// The name is taken by these other bytes.
    Taken(Bytes),
}

/// The destination did not take, or does not give, a file.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {cause}")]
pub struct StoreError {
    /// Which file.
    pub path: String,
    /// The destination's own words.
    pub cause: String,
}

/// The place cannot be opened; nothing to be retried.
#[derive(Debug, thiserror::Error)]
#[error("lake at {url}: {cause}")]
pub struct OpenStoreError {
    /// As it stands in the configuration.
    pub url: String,
    /// What is wrong with it.
    pub cause: String,
}

/// Puts itself between the lake and its store; tests make faults with it.
pub type Wrap<'a> = &'a dyn Fn(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>;

/// The place of one lake.
pub struct LakeStore {
    objects: Arc<dyn ObjectStore>,
    root: Path,
    kind: Kind,
    runtime: Handle,
}

enum Kind {
    Local(Local),
    Remote(Remote),
    /// A folder that is only read.
    ReadOnly,
}

struct Local {
    dir: PathBuf,
    storage: Arc<dyn Storage>,
    /// Syncs the folder it links into.
    durable: Arc<dyn ObjectStore>,
    /// What names in `staging/` begin with: nobody else touches those.
    prefix: String,
    /// Folders whose names are known to be durable since this start.
    known: Mutex<HashSet<PathBuf>>,
}

const STAGING: &str = "staging";
const PROBE: &str = "probe";
const READ_ONLY: &str = "this lake was opened to be read";

impl LakeStore {
    /// Opens `url`: a folder, `file://`, `s3://`, `gs://` or `az://`; `options` go to the object
    /// store's client, on top of the usual environment variables. Removes what an earlier run of the
    /// same owner left in `staging/`: others may be at work there. No request is made to an object
    /// store. The owner is the log, by its id, or where several processes have it, one of them.
    ///
    /// # Errors
    /// [`OpenStoreError`] for a URL or option nobody knows, and for a folder that cannot be made.
    pub fn open(
        url: &str,
        options: &toml::Table,
        storage: (Arc<dyn Storage>, &str),
        runtime: Handle,
        wrap: Wrap<'_>,
    ) -> Result<Self, OpenStoreError> {
        let fault = |cause: String| OpenStoreError { url: url.to_owned(), cause };
        match folder(url) {
            Some(dir) => Self::open_local(&dir, options, storage, runtime, wrap).map_err(fault),
            None => {
                let (objects, root, remote) = remote::open(url, options).map_err(fault)?;
                Ok(Self { objects: wrap(objects), root, kind: Kind::Remote(remote), runtime })
            }
        }
    }

    /// Opens `url` without changing anything there.
    ///
    /// # Errors
    /// As [`LakeStore::open`]; a folder must exist.
    pub fn open_to_read(
        url: &str,
        options: &toml::Table,
        runtime: Handle,
    ) -> Result<Self, OpenStoreError> {
        let fault = |cause: String| OpenStoreError { url: url.to_owned(), cause };
        let Some(dir) = folder(url) else {
            let (objects, root, remote) = remote::open(url, options).map_err(fault)?;
            return Ok(Self { objects, root, kind: Kind::Remote(remote), runtime });
        };
        let files = LocalFileSystem::new_with_prefix(dir).map_err(|e| fault(e.to_string()))?;
        Ok(Self { objects: Arc::new(files), root: Path::default(), kind: Kind::ReadOnly, runtime })
    }

    fn open_local(
        dir: &FilePath,
        options: &toml::Table,
        (storage, owner): (Arc<dyn Storage>, &str),
        runtime: Handle,
        wrap: Wrap<'_>,
    ) -> Result<Self, String> {
        if let Some((key, _)) = options.iter().next() {
            return Err(format!("a local folder has no store option {key:?}"));
        }
        let staging = dir.join(STAGING);
        storage.create_dir_all(&staging).map_err(|e| format!("{}: {e}", staging.display()))?;
        let stale = storage.list(&staging).map_err(|e| format!("{}: {e}", staging.display()))?;
        // Other owners may share the folder, and be at work in it.
        let prefix = format!("{owner}-");
        let own = |name: &&String| name.as_str() == PROBE || name.starts_with(&prefix);
        for name in stale.iter().filter(own) {
            let path = staging.join(name);
            match storage.remove(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("{}: {error}", path.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
        let files = LocalFileSystem::new_with_prefix(dir).map_err(|e| e.to_string())?;
        let local = Local {
            dir: dir.to_owned(),
            storage,
            durable: wrap(Arc::new(files.clone().with_fsync(true))),
            prefix,
            known: Mutex::default(),
        };
        Ok(Self {
            objects: wrap(Arc::new(files)),
            root: Path::default(),
            kind: Kind::Local(local),
            runtime,
        })
    }

    /// True for a folder of this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.kind, Kind::Local(_))
    }

    /// What lies below one of its folders, as a lake of its own that is only read.
    pub(super) fn below(&self, folder: &str) -> Self {
        let root = self.root.parts().chain(Path::from(folder).parts()).collect();
        let (objects, runtime) = (Arc::clone(&self.objects), self.runtime.clone());
        Self { objects, root, kind: Kind::ReadOnly, runtime }
    }

    /// Where its requests are run.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Where the lake begins in its store.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Puts a file that must not be there yet, or be there with the same bytes. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] when the destination did not take it, or nobody knows; try again.
    pub fn put_new(&self, path: &Path, bytes: Bytes) -> Result<Put, StoreError> {
        let fault = |cause: String| StoreError { path: path.to_string(), cause };
        let created = match &self.kind {
            Kind::Local(local) => self.link_new(local, path, bytes.clone()).map_err(fault)?,
            Kind::Remote(remote) => {
                let staging = self.staging();
                let create = remote.create(&*self.objects, &staging, path, bytes.clone());
                let created = self.runtime.block_on(create);
                created.map_err(|refused| fault(remote.explain(&refused)))?
            }
            Kind::ReadOnly => return Err(fault(READ_ONLY.to_owned())),
        };
        if created {
            faults::at(Point::FileNamed);
            return Ok(Put::Done);
        }
        let there = self.get(path)?;
        if there != bytes {
            return Ok(Put::Taken(there));
        }
        if let Kind::Local(local) = &self.kind {
            // An earlier attempt may have been cut between the link and the sync of its folder.
            local.sync(path).map_err(fault)?;
        }
        Ok(Put::Done)
    }

    /// Puts a file of this lake under a second name, which must be free or have the same bytes; in a folder
    /// of this machine without writing them again. Blocks.
    ///
    /// # Errors
    /// As [`LakeStore::put_new`].
    pub fn put_copy(&self, from: &Path, to: &Path) -> Result<Put, StoreError> {
        let Kind::Local(local) = &self.kind else { return self.put_new(to, self.get(from)?) };
        let fault = |cause: String| StoreError { path: to.to_string(), cause };
        local.make_folders(to).map_err(fault)?;
        match self.runtime.block_on(local.durable.copy_if_not_exists(from, to)) {
            Ok(()) => return Ok(Put::Done),
            Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(fault(error.to_string())),
        }
        let there = self.get(to)?;
        if there != self.get(from)? {
            return Ok(Put::Taken(there));
        }
        local.sync(to).map_err(fault)?;
        Ok(Put::Done)
    }

    /// Says that the file at `path`, which an earlier attempt made, is durable.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be synced.
    pub fn confirm(&self, path: &Path) -> Result<(), StoreError> {
        match &self.kind {
            Kind::Local(local) => {
                local.sync(path).map_err(|cause| StoreError { path: path.to_string(), cause })
            }
            Kind::Remote(_) | Kind::ReadOnly => Ok(()),
        }
    }

    /// True where it was made now, false where the name was taken.
    fn link_new(&self, local: &Local, path: &Path, bytes: Bytes) -> Result<bool, String> {
        let mut name = path.filename().unwrap_or(PROBE).to_owned();
        if !name.starts_with(&local.prefix) {
            name.insert_str(0, &local.prefix);
        }
        let staged = Path::from_iter([STAGING, &name]);
        local.make_folders(path)?;
        if faults::due(Point::HalfFile) {
            let half = bytes.slice(..bytes.len() / 2);
            self.stage(&staged, half)?;
            faults::die();
        }
        self.stage(&staged, bytes)?;
        let file = local.dir.join(STAGING).join(&name);
        let synced = local.storage.open(&file).and_then(|file| file.sync_data());
        let linked = synced.map_err(|e| e.to_string()).and_then(|()| {
            faults::at(Point::FileStaged);
            if planted(Bug::LakeOverwrites) {
                let copied = self.runtime.block_on(local.durable.copy(&staged, path));
                return copied.map(|()| true).map_err(|e| e.to_string());
            }
            match self.runtime.block_on(local.durable.copy_if_not_exists(&staged, path)) {
                Ok(()) => Ok(true),
                Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
                Err(error) => Err(error.to_string()),
            }
        });
        faults::at(Point::Orphan);
        // Its name need not be durably gone: what is left in `staging/` is removed at the next start.
        let removed = self.runtime.block_on(self.objects.delete(&staged));
        if let (Ok(_), Err(error)) = (&linked, removed) {
            tracing::warn!(path = %file.display(), %error, "a staged file could not be removed");
        }
        linked
    }

    fn stage(&self, at: &Path, bytes: Bytes) -> Result<(), String> {
        let put = self.objects.put_opts(at, bytes.into(), PutMode::Overwrite.into());
        self.runtime.block_on(put).map(drop).map_err(|e| e.to_string())
    }

    /// Asks whether the destination as a whole takes writes. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] when it does not.
    pub fn probe(&self) -> Result<(), StoreError> {
        let path = self.staging().join(PROBE);
        let fault = |cause: String| StoreError { path: path.to_string(), cause };
        match &self.kind {
            Kind::Local(local) => self.probe_local(local, &path).map_err(fault),
            Kind::Remote(remote) => {
                let probed = self.runtime.block_on(remote.probe(&*self.objects, &self.staging()));
                probed.map_err(|refused| fault(remote.explain(&refused)))
            }
            Kind::ReadOnly => Err(fault(READ_ONLY.to_owned())),
        }
    }

    fn probe_local(&self, local: &Local, path: &Path) -> Result<(), String> {
        for area in ["events", "dead_letters"] {
            let probe = local.dir.join(area);
            local.storage.create_dir_all(&probe).map_err(|e| e.to_string())?;
        }
        let payload = PutPayload::from_static(b"tidegate\n");
        let put = self.objects.put_opts(path, payload, PutMode::Overwrite.into());
        self.runtime.block_on(put).map_err(|e| e.to_string())?;
        match self.runtime.block_on(self.objects.delete(path)) {
            // Another thread's probe has removed it: it takes writes all the same.
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn staging(&self) -> Path {
        self.root.clone().join(STAGING)
    }

    fn fault(&self, path: &Path, error: object_store::Error) -> StoreError {
        let cause = match &self.kind {
            Kind::Remote(remote) => remote.explain(&Refused::Store(error)),
            Kind::Local(_) | Kind::ReadOnly => error.to_string(),
        };
        StoreError { path: path.to_string(), cause }
    }

    /// A whole file. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] when it is not there or cannot be read.
    pub fn get(&self, path: &Path) -> Result<Bytes, StoreError> {
        let fault = |e: object_store::Error| self.fault(path, e);
        self.runtime.block_on(async { self.objects.get(path).await?.bytes().await }).map_err(fault)
    }

    /// A whole file, if it is there. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] when that cannot be told, or it cannot be read.
    pub fn get_if_there(&self, path: &Path) -> Result<Option<Bytes>, StoreError> {
        let got = self.runtime.block_on(async { self.objects.get(path).await?.bytes().await });
        match got {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.fault(path, error)),
        }
    }

    /// True where there is a file of this name. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] when that cannot be told.
    pub fn is_there(&self, path: &Path) -> Result<bool, StoreError> {
        match self.runtime.block_on(self.objects.head(path)) {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.fault(path, error)),
        }
    }

    /// Removes files, durably; returns how many were there. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] for the first that cannot be removed.
    pub fn remove(&self, paths: &[Path]) -> Result<u64, StoreError> {
        let (mut removed, mut folders) = (0, HashSet::new());
        for path in paths {
            let fault = |cause: String| StoreError { path: path.to_string(), cause };
            let gone = match &self.kind {
                Kind::Local(local) => {
                    let file = local.file(path);
                    folders.extend(file.parent().map(FilePath::to_owned));
                    match local.storage.remove(&file) {
                        Ok(()) => true,
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
                        Err(error) => return Err(fault(error.to_string())),
                    }
                }
                Kind::Remote(_) => match self.runtime.block_on(self.objects.delete(path)) {
                    Ok(()) => true,
                    Err(object_store::Error::NotFound { .. }) => false,
                    Err(error) => return Err(self.fault(path, error)),
                },
                Kind::ReadOnly => return Err(fault(READ_ONLY.to_owned())),
            };
            removed += u64::from(gone);
        }
        if let Kind::Local(local) = &self.kind {
            for folder in folders {
                let synced = local.storage.sync_dir(&folder);
                let path = folder.display().to_string();
                synced.map_err(|e| StoreError { path, cause: e.to_string() })?;
            }
        }
        Ok(removed)
    }

    /// Removes the lake's own folder and those below it, as far as they are empty; an object store has none.
    /// Blocks.
    ///
    /// # Errors
    /// [`StoreError`] for the first that can be neither read nor removed.
    pub fn remove_empty_folders(&self) -> Result<(), StoreError> {
        let Kind::Local(local) = &self.kind else { return Ok(()) };
        let fault = |e: std::io::Error| StoreError {
            path: local.dir.display().to_string(),
            cause: e.to_string(),
        };
        remove_if_empty(&local.dir).map(drop).map_err(fault)
    }

    /// Part of a file. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] when it is not there or cannot be read.
    pub fn get_range(&self, path: &Path, range: std::ops::Range<u64>) -> Result<Bytes, StoreError> {
        let fault = |e: object_store::Error| self.fault(path, e);
        self.runtime.block_on(self.objects.get_range(path, range)).map_err(fault)
    }

    /// Tells every file below `folder` with its size in bytes. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be listed.
    pub fn scan(&self, folder: &Path, tell: &mut dyn FnMut(Path, u64)) -> Result<(), StoreError> {
        self.scan_facts(folder, &mut |facts| tell(facts.location, facts.size))
    }

    /// Tells every file below `folder` with all that the store says of it. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be listed.
    pub fn scan_facts(
        &self,
        folder: &Path,
        tell: &mut dyn FnMut(ObjectMeta),
    ) -> Result<(), StoreError> {
        let each = async {
            let mut files = self.objects.list(Some(folder));
            while let Some(file) = files.try_next().await? {
                tell(file);
            }
            Ok(())
        };
        self.runtime.block_on(each).map_err(|e| self.fault(folder, e))
    }

    /// Every file below `folder` (under the root) with its size in bytes. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be listed.
    pub fn list(&self, folder: &str) -> Result<Vec<(Path, u64)>, StoreError> {
        let prefix: Path = self.root.parts().chain([folder.into()]).collect();
        let found = self.objects.list(Some(&prefix)).map_ok(|meta| (meta.location, meta.size));
        self.runtime.block_on(found.try_collect()).map_err(|e| self.fault(&prefix, e))
    }
}

impl Local {
    fn file(&self, path: &Path) -> PathBuf {
        path.parts().fold(self.dir.clone(), |dir, part| dir.join(part.as_ref()))
    }

    /// Makes the folders above `path` and their names durable. A folder that is there may have been
    /// made by a run that was cut before it synced, or by another thread that has not yet: each is
    /// synced once by this process.
    fn make_folders(&self, path: &Path) -> Result<(), String> {
        let file = self.file(path);
        let Some(parent) = file.parent() else { return Ok(()) };
        if self.is_known(parent) {
            return Ok(());
        }
        let below = parent.strip_prefix(&self.dir).map_err(|e| e.to_string())?;
        let mut dir = self.dir.clone();
        for part in below.components() {
            let Component::Normal(part) = part else { continue };
            let above = dir.clone();
            dir.push(part);
            if self.is_known(&dir) && dir.is_dir() {
                continue;
            }
            let fault = |e: std::io::Error| format!("{}: {e}", dir.display());
            self.storage.create_dir_all(&dir).map_err(fault)?;
            self.storage.sync_dir(&above).map_err(fault)?;
            self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(dir.clone());
        }
        Ok(())
    }

    fn is_known(&self, dir: &FilePath) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).contains(dir);
        known && dir.is_dir()
    }

    fn sync(&self, path: &Path) -> Result<(), String> {
        let file = self.file(path);
        let fault = |e: std::io::Error| format!("{}: {e}", file.display());
        self.make_folders(path)?;
        self.storage.open(&file).and_then(|f| f.sync_data()).map_err(fault)?;
        match file.parent() {
            Some(dir) => self.storage.sync_dir(dir).map_err(fault),
            None => Ok(()),
        }
    }
}

/// Removes a folder without a file in it; false where something stays.
fn remove_if_empty(dir: &FilePath) -> std::io::Result<bool> {
    use std::io::ErrorKind;
    let mut is_empty = true;
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        is_empty &= entry.file_type()?.is_dir() && remove_if_empty(&entry.path())?;
    }
    if !is_empty {
        return Ok(false);
    }
    match std::fs::remove_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => Ok(true),
            // Somebody has put something there, or it is where a disk is mounted.
            ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy => Ok(false),
            _ => Err(error),
        },
    }
}

/// The folder that `url` means, if it means one.
#[must_use]
pub fn folder(url: &str) -> Option<PathBuf> {
    match url.split_once("://") {
        None => Some(PathBuf::from(url)),
        Some(("file", path)) => {
            let parsed = url::Url::parse(url).ok().and_then(|u| u.to_file_path().ok());
            Some(parsed.unwrap_or_else(|| PathBuf::from(path)))
        }
        Some(_) => None,
    }
}
