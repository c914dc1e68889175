//! A disk in memory: what is written is there, and nothing fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tidegate_ingest::storage::{LockGuard, Storage, StorageFile};

type Content = Arc<Mutex<Vec<u8>>>;

#[derive(Default)]
struct Tree {
    files: BTreeMap<PathBuf, Content>,
    folders: BTreeSet<PathBuf>,
}

/// The disk; clones are the same one.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Tree>>);

struct Open(Content);

impl Memory {
    /// Puts a file there, and its folders.
    pub fn put(&self, path: &str, bytes: Vec<u8>) {
        let mut tree = self.0.lock().unwrap();
        let path = PathBuf::from(path);
        tree.folders.extend(path.ancestors().skip(1).map(Path::to_owned));
        tree.files.insert(path, Arc::new(Mutex::new(bytes)));
    }

    /// Every file and what is in it.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let tree = self.0.lock().unwrap();
        let each = tree.files.iter();
        each.map(|(path, content)| (path.clone(), content.lock().unwrap().clone())).collect()
    }

    fn content(&self, path: &Path) -> io::Result<Content> {
        let tree = self.0.lock().unwrap();
        tree.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl StorageFile for Open {
    fn write_vectored_at(&self, buffers: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let mut content = self.0.lock().unwrap();
        let mut at = offset as usize;
        for buffer in buffers {
            if content.len() < at + buffer.len() {
                content.resize(at + buffer.len(), 0);
            }
            content[at..at + buffer.len()].copy_from_slice(buffer);
            at += buffer.len();
        }
        Ok(at - offset as usize)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = self.0.lock().unwrap();
        let rest = usize::try_from(offset).ok().and_then(|at| content.get(at..));
        let rest = rest.unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(bytes as usize, 0);
        Ok(())
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }
    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Storage for Memory {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn StorageFile>> {
        let mut tree = self.0.lock().unwrap();
        if tree.files.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let content = Content::default();
        tree.files.insert(path.to_owned(), Arc::clone(&content));
        Ok(Arc::new(Open(content)))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(Open(self.content(path)?)))
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(self.content(path)?.lock().unwrap().clone())
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let tree = self.0.lock().unwrap();
        let all = tree.files.keys().chain(&tree.folders);
        let inside = all.filter(|path| path.parent() == Some(dir));
        let names: BTreeSet<_> = inside.filter_map(|path| path.file_name()?.to_str()).collect();
        Ok(names.into_iter().map(str::to_owned).collect())
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let content = self.content(from)?;
        let mut tree = self.0.lock().unwrap();
        tree.files.remove(from);
        tree.files.insert(to.to_owned(), content);
        Ok(())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = self.0.lock().unwrap().files.remove(path);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.lock().unwrap().folders.extend(dir.ancestors().map(Path::to_owned));
        Ok(())
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn lock(&self, _: &Path) -> io::Result<Option<LockGuard>> {
        Ok(Some(LockGuard::fake()))
    }
}
