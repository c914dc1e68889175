//! A disk and an object store that fail, or end the thread, at the Nth operation.

use std::{
    fmt, io,
    path::Path as FilePath,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use futures_util::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, path::Path,
};
use tidegate_ingest::storage::{Disk, Storage, StorageFile};

/// What happens at the Nth operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It is not done, and says so.
    FailBefore,
    /// It is done, and says that it is not.
    FailAfter,
    /// The thread ends before it is done.
    DieBefore,
    /// The thread ends once it is done.
    DieAfter,
}

/// Counts operations and strikes once.
#[derive(Debug)]
pub struct Fate {
    left: AtomicU64,
    how: How,
    /// Keeps failing instead of striking once.
    pub outage: AtomicBool,
    /// How long each operation takes besides, in milliseconds.
    pub delay: AtomicU64,
    pub struck: AtomicBool,
}

struct Verdict {
    fail_after: bool,
    die_after: bool,
}

impl Fate {
    pub fn new(at: u64, how: How) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicU64::new(at),
            how,
            outage: AtomicBool::new(false),
            delay: AtomicU64::new(0),
            struck: AtomicBool::new(false),
        })
    }

    /// Never strikes by itself.
    pub fn kind() -> Arc<Self> {
        Self::new(u64::MAX, How::FailBefore)
    }

    fn before(&self) -> std::result::Result<Verdict, io::Error> {
        let delay = self.delay.load(Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(delay));
        if self.outage.load(Ordering::SeqCst) {
            return Err(io::Error::other("outage"));
        }
        let mut verdict = Verdict { fail_after: false, die_after: false };
        if self.left.fetch_sub(1, Ordering::SeqCst) != 1 {
            return Ok(verdict);
        }
        self.struck.store(true, Ordering::SeqCst);
        match self.how {
            How::FailBefore => return Err(io::Error::other("struck before")),
            How::DieBefore => std::panic::resume_unwind(Box::new("died before")),
            How::FailAfter => verdict.fail_after = true,
            How::DieAfter => verdict.die_after = true,
        }
        Ok(verdict)
    }
}

impl Verdict {
    fn after<T>(self, done: T) -> io::Result<T> {
        if self.die_after {
            std::panic::resume_unwind(Box::new("died after"));
        }
        if self.fail_after { Err(io::Error::other("struck after")) } else { Ok(done) }
    }
}

pub struct FatefulDisk(pub Arc<Fate>);
struct FatefulFile(Arc<Fate>, Arc<dyn StorageFile>);

macro_rules! fateful {
    ($self:ident, $call:expr) => {{
        let verdict = $self.0.before()?;
        let done = $call?;
        verdict.after(done)
    }};
}

impl Storage for FatefulDisk {
    fn create_new(&self, path: &FilePath) -> io::Result<Arc<dyn StorageFile>> {
        let file = fateful!(self, Disk.create_new(path))?;
        Ok(Arc::new(FatefulFile(Arc::clone(&self.0), file)))
    }
    fn open(&self, path: &FilePath) -> io::Result<Arc<dyn StorageFile>> {
        let file = Disk.open(path)?;
        Ok(Arc::new(FatefulFile(Arc::clone(&self.0), file)))
    }
    fn read(&self, path: &FilePath) -> io::Result<Vec<u8>> {
        Disk.read(path)
    }
    fn list(&self, dir: &FilePath) -> io::Result<Vec<String>> {
        Disk.list(dir)
    }
    fn rename(&self, from: &FilePath, to: &FilePath) -> io::Result<()> {
        fateful!(self, Disk.rename(from, to))
    }
    fn remove(&self, path: &FilePath) -> io::Result<()> {
        fateful!(self, Disk.remove(path))
    }
    fn create_dir_all(&self, dir: &FilePath) -> io::Result<()> {
        fateful!(self, Disk.create_dir_all(dir))
    }
    fn sync_dir(&self, dir: &FilePath) -> io::Result<()> {
        fateful!(self, Disk.sync_dir(dir))
    }
}

impl StorageFile for FatefulFile {
    fn write_vectored_at(&self, buffers: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize> {
        fateful!(self, self.1.write_vectored_at(buffers, offset))
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.1.read_at(buffer, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        fateful!(self, self.1.sync_data())
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        fateful!(self, self.1.set_len(bytes))
    }
    fn size(&self) -> io::Result<u64> {
        self.1.size()
    }
    fn drop_cache(&self) -> io::Result<()> {
        self.1.drop_cache()
    }
}

#[derive(Debug)]
pub struct FatefulStore(pub Arc<Fate>, pub Arc<dyn ObjectStore>);

impl fmt::Display for FatefulStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fateful {}", self.1)
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

fn generic(error: io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "fateful", source: Box::new(error) }
}

impl ObjectStore for FatefulStore {
    fn put_opts<'life0, 'life1, 'async_trait>(
        &'life0 self,
        location: &'life1 Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Answer<'async_trait, PutResult>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            let verdict = self.0.before().map_err(generic)?;
            let done = self.1.put_opts(location, payload, opts).await?;
            verdict.after(done).map_err(generic)
        })
    }

    fn put_multipart_opts<'life0, 'life1, 'async_trait>(
        &'life0 self,
        location: &'life1 Path,
        opts: PutMultipartOptions,
    ) -> Answer<'async_trait, Box<dyn MultipartUpload>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        self.1.put_multipart_opts(location, opts)
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
        Box::pin(async move {
            let verdict = self.0.before().map_err(generic)?;
            let done = self.1.get_opts(location, options).await?;
            verdict.after(done).map_err(generic)
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let fate = Arc::clone(&self.0);
        let inner = self.1.delete_stream(locations);
        inner
            .map(move |done| {
                let verdict = fate.before().map_err(generic)?;
                verdict.after(done?).map_err(generic)
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.1.list(prefix)
    }

    fn list_with_delimiter<'life0, 'life1, 'async_trait>(
        &'life0 self,
        prefix: Option<&'life1 Path>,
    ) -> Answer<'async_trait, ListResult>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        self.1.list_with_delimiter(prefix)
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
        Box::pin(async move {
            let verdict = self.0.before().map_err(generic)?;
            self.1.copy_opts(from, to, options).await?;
            verdict.after(()).map_err(generic)
        })
    }

    fn rename_opts<'life0, 'life1, 'life2, 'async_trait>(
        &'life0 self,
        from: &'life1 Path,
        to: &'life2 Path,
        options: RenameOptions,
    ) -> Answer<'async_trait, ()>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        'life2: 'async_trait,
        Self: 'async_trait,
    {
        self.1.rename_opts(from, to, options)
    }
}
