//! The simulated disk as an object store: does what `object_store`'s local one does, step by step.

use std::{fmt, io, path::PathBuf, pin::Pin, sync::Arc};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use object_store::{
    CopyMode, CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions,
    Result, path::Path,
};
use tidegate_ingest::storage::{Storage, write_all_at};

use super::fs::Process;

pub struct SimStore {
    pub disk: Process,
    pub dir: PathBuf,
    /// Syncs what it writes and the folder it lies in.
    pub syncs: bool,
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

fn fault(path: &Path, error: io::Error) -> object_store::Error {
    let (path, kind) = (path.to_string(), error.kind());
    let source = Box::new(error);
    match kind {
        io::ErrorKind::NotFound => object_store::Error::NotFound { path, source },
        io::ErrorKind::AlreadyExists => object_store::Error::AlreadyExists { path, source },
        _ => object_store::Error::Generic { store: "sim", source },
    }
}

impl fmt::Debug for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimStore({})", self.dir.display())
    }
}

impl fmt::Display for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

fn meta(location: &Path, size: u64) -> ObjectMeta {
    let (location, last_modified) = (location.clone(), Default::default());
    ObjectMeta { location, last_modified, size, e_tag: None, version: None }
}

impl SimStore {
    fn path(&self, location: &Path) -> PathBuf {
        location.parts().fold(self.dir.clone(), |dir, part| dir.join(part.as_ref()))
    }

    fn sync_parent(&self, path: &std::path::Path) -> io::Result<()> {
        if self.syncs { self.disk.sync_dir(path.parent().unwrap()) } else { Ok(()) }
    }

    fn put(&self, location: &Path, payload: &PutPayload) -> io::Result<()> {
        let path = self.path(location);
        let staged = path.with_extension("staged#1");
        if self.disk.open(&staged).is_ok() {
            self.disk.remove(&staged)?;
        }
        let file = self.disk.create_new(&staged)?;
        let bytes: Vec<u8> = payload.iter().flat_map(|part| part.iter().copied()).collect();
        write_all_at(&*file, &mut [io::IoSlice::new(&bytes)], 0)?;
        if self.syncs {
            file.sync_data()?;
        }
        self.disk.rename(&staged, &path)?;
        self.sync_parent(&path)
    }

    fn copy(&self, from: &Path, to: &Path, mode: &CopyMode) -> io::Result<()> {
        assert!(matches!(mode, CopyMode::Create), "the lake never overwrites");
        self.disk.link(&self.path(from), &self.path(to))?;
        self.sync_parent(&self.path(to))
    }

    fn walk(&self, folder: &Path, found: &mut Vec<ObjectMeta>) -> io::Result<()> {
        let names = match self.disk.list(&self.path(folder)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            names => names?,
        };
        for name in names {
            let path = folder.clone().join(name.as_str());
            match self.disk.read(&self.path(&path)) {
                Ok(bytes) => found.push(meta(&path, bytes.len() as u64)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.walk(&path, found)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn get_whole(&self, location: &Path, options: &GetOptions) -> Result<GetResult> {
        let mut bytes = self.disk.read(&self.path(location)).map_err(|e| fault(location, e))?;
        let size = bytes.len() as u64;
        let meta = meta(location, size);
        let mut range = 0..size;
        if let Some(wanted) = &options.range {
            range = wanted.as_range(size).unwrap();
            bytes = bytes[range.start as usize..range.end as usize].to_vec();
        }
        let payload = stream::once(std::future::ready(Ok(bytes.into()))).boxed();
        Ok(GetResult {
            payload: GetResultPayload::Stream(payload),
            meta,
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }
}

impl ObjectStore for SimStore {
    fn put_opts<'life0, 'life1, 'async_trait>(
        &'life0 self,
        location: &'life1 Path,
        payload: PutPayload,
        _opts: PutOptions,
    ) -> Answer<'async_trait, PutResult>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            self.put(location, &payload).map_err(|e| fault(location, e))?;
            Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
        })
    }

    fn put_multipart_opts<'life0, 'life1, 'async_trait>(
        &'life0 self,
        _location: &'life1 Path,
        _opts: PutMultipartOptions,
    ) -> Answer<'async_trait, Box<dyn MultipartUpload>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        unreachable!("a lake's file is one put")
    }

    fn get_opts<'life0, 'life1, 'async_trait>(
        &'life0 self,
        location: &'life1 Path,
        options: GetOptions,
    ) -> Answer<'async_trait, GetResult>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move { self.get_whole(location, &options) })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (disk, dir) = (self.disk.clone(), self.dir.clone());
        let store = Arc::new(Self { disk, dir, syncs: self.syncs });
        let delete = move |location: Result<Path>| {
            let location = location?;
            store.disk.remove(&store.path(&location)).map_err(|e| fault(&location, e))?;
            Ok(location)
        };
        locations.map(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        let mut found = Vec::new();
        let listed = self.walk(&prefix, &mut found);
        let fault = listed.err().map(|e| Err(fault(&prefix, e)));
        stream::iter(found.into_iter().map(Ok).chain(fault)).boxed()
    }

    fn list_with_delimiter<'life0, 'life1, 'async_trait>(
        &'life0 self,
        _prefix: Option<&'life1 Path>,
    ) -> Answer<'async_trait, ListResult>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        unreachable!("the sink lists nothing")
    }

    fn copy_opts<'life0, 'life1, 'life2, 'async_trait>(
        &'life0 self,
        from: &'life1 Path,
        to: &'life2 Path,
        options: CopyOptions,
    ) -> Answer<'async_trait, ()>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        'life2: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move { self.copy(from, to, &options.mode).map_err(|e| fault(to, e)) })
    }

    fn rename_opts<'life0, 'life1, 'life2, 'async_trait>(
        &'life0 self,
        _from: &'life1 Path,
        _to: &'life2 Path,
        _options: RenameOptions,
    ) -> Answer<'async_trait, ()>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        'life2: 'async_trait,
        Self: 'async_trait,
    {
        unreachable!("the sink renames nothing")
    }
}
