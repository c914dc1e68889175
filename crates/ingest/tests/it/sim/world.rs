//! What a simulated disk holds: files and folders, each durable and as the cache has it, and what a
//! power cut leaves of them.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use super::{
    dice::Dice,
    injected::{Fault, count},
};

/// Which file.
pub type Inode = usize;

/// A change of a file that was not synced.
#[derive(Clone, Debug)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

/// One file.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// What the platter has for sure.
    durable: Vec<u8>,
    /// Changes since, in order.
    dirty: Vec<Change>,
    /// What a read sees. After a failed sync not what `durable` and `dirty` make.
    cache: Vec<u8>,
}

/// A change of a folder that was not synced.
#[derive(Clone, Debug)]
enum Entry {
    Link(String, Inode),
    Unlink(String),
    Rename(String, String, Inode),
}

/// One folder; folders themselves are durable once made.
#[derive(Clone, Debug, Default)]
pub struct Folder {
    durable: BTreeMap<String, Inode>,
    dirty: Vec<Entry>,
    cache: BTreeMap<String, Inode>,
}

/// What becomes of un-synced bytes in one power cut.
#[derive(Clone, Copy, Debug)]
enum Fate {
    AllKept,
    AllLost,
    /// Each block for itself: kept, lost, or (where so said) garbage.
    Torn {
        block: usize,
        garbage: bool,
    },
}

fn write(into: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    if into.len() < at + bytes.len() {
        into.resize(at + bytes.len(), 0);
    }
    into[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => write(to, *at, bytes),
            Self::Length(len) => to.resize(*len, 0),
        }
    }

    fn survive(&self, to: &mut Vec<u8>, fate: Fate, stale: &[u8], dice: &mut Dice) {
        match (self, fate) {
            (_, Fate::AllLost) => {}
            (_, Fate::AllKept) => self.apply(to),
            (Self::Length(_), Fate::Torn { .. }) => {
                if dice.coin() {
                    self.apply(to);
                }
            }
            (Self::Write { at, bytes }, Fate::Torn { block, garbage }) => {
                // The length may be durable before the bytes are.
                if dice.coin() && to.len() < at + bytes.len() {
                    to.resize(at + bytes.len(), 0);
                }
                let mut from = 0;
                while from < bytes.len() {
                    let end = ((at + from) / block + 1) * block - at;
                    let some = &bytes[from..end.min(bytes.len())];
                    match dice.below(if garbage { 4 } else { 2 }) {
                        0 => {}
                        1 | 2 => write(to, at + from, some),
                        _ => write(to, at + from, &junk(stale, at + from, some.len(), dice)),
                    }
                    from = end;
                }
            }
        }
    }
}

/// What a block holds that was never written: chance, or what another file has in the same place.
fn junk(stale: &[u8], at: usize, len: usize, dice: &mut Dice) -> Vec<u8> {
    match stale.get(at..at + len) {
        Some(old) if dice.coin() => old.to_vec(),
        _ => dice.bytes(len),
    }
}

impl File {
    pub fn read(&self, at: u64) -> &[u8] {
        self.cache.get(at as usize..).unwrap_or_default()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.cache
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        write(&mut self.cache, at as usize, bytes);
        self.dirty.push(Change::Write { at: at as usize, bytes: bytes.to_vec() });
    }

    pub fn set_len(&mut self, len: u64) {
        self.cache.resize(len as usize, 0);
        self.dirty.push(Change::Length(len as usize));
    }

    pub fn sync(&mut self) {
        for change in self.dirty.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// The kernel's way to fail: some of it was written, all of it counts as clean from now on.
    pub fn sync_fails(&mut self, dice: &mut Dice) {
        let fate = Fate::Torn { block: 4096, garbage: false };
        for change in std::mem::take(&mut self.dirty) {
            change.survive(&mut self.durable, fate, &[], dice);
        }
    }

    pub fn drop_cache(&mut self) {
        let len = self.cache.len();
        self.cache = self.durable.clone();
        self.dirty.iter().for_each(|change| change.apply(&mut self.cache));
        // The length is the inode's, not a page's.
        self.cache.resize(len, 0);
    }

    fn power_cut(&mut self, stale: &[u8], dice: &mut Dice) {
        for change in std::mem::take(&mut self.dirty) {
            let fate = match dice.below(6) {
                0 => Fate::AllKept,
                1 => Fate::AllLost,
                n => {
                    count(Fault::Torn);
                    Fate::Torn { block: if n < 4 { 512 } else { 4096 }, garbage: n % 2 == 0 }
                }
            };
            change.survive(&mut self.durable, fate, stale, dice);
        }
        self.cache.clone_from(&self.durable);
    }

    pub fn flip(&mut self, bit: usize) {
        for bytes in [&mut self.durable, &mut self.cache] {
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }
}

impl Entry {
    fn apply(&self, to: &mut BTreeMap<String, Inode>) {
        match self {
            Self::Link(name, inode) => {
                to.insert(name.clone(), *inode);
            }
            Self::Unlink(name) => {
                to.remove(name);
            }
            Self::Rename(from, name, inode) => {
                if to.get(from) == Some(inode) {
                    to.remove(from);
                }
                to.insert(name.clone(), *inode);
            }
        }
    }
}

impl Folder {
    fn change(&mut self, entry: Entry) {
        entry.apply(&mut self.cache);
        self.dirty.push(entry);
    }

    fn sync(&mut self) {
        for entry in self.dirty.drain(..) {
            entry.apply(&mut self.durable);
        }
    }

    /// In order up to some place as a journal does it, or any of them as POSIX allows.
    fn survive(&mut self, dice: &mut Dice) {
        let dirty = std::mem::take(&mut self.dirty);
        let ordered = dice.coin();
        let upto = dice.index(dirty.len() + 1);
        for (i, entry) in dirty.into_iter().enumerate() {
            if if ordered { i < upto } else { dice.coin() } {
                entry.apply(&mut self.durable);
            }
        }
    }
}

/// All files and folders.
#[derive(Clone, Debug, Default)]
pub struct World {
    files: Vec<File>,
    folders: BTreeMap<PathBuf, Folder>,
}

fn split(path: &Path) -> (&Path, String) {
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    (path.parent().unwrap(), name)
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl World {
    pub fn file(&mut self, inode: Inode) -> &mut File {
        &mut self.files[inode]
    }

    pub fn find(&self, path: &Path) -> io::Result<Inode> {
        let (dir, name) = split(path);
        let folder = self.folders.get(dir).ok_or_else(missing)?;
        folder.cache.get(&name).copied().ok_or_else(missing)
    }

    pub fn create_new(&mut self, path: &Path) -> io::Result<Inode> {
        let inode = self.files.len();
        self.link_inode(inode, path)?;
        self.files.push(File::default());
        Ok(inode)
    }

    /// A second name of a file.
    pub fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.find(from)?;
        self.link_inode(inode, to)
    }

    fn link_inode(&mut self, inode: Inode, path: &Path) -> io::Result<()> {
        let (dir, name) = split(path);
        let folder = self.folders.get_mut(dir).ok_or_else(missing)?;
        if folder.cache.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        folder.change(Entry::Link(name, inode));
        Ok(())
    }

    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.find(from)?;
        let ((dir, old), (to_dir, new)) = (split(from), split(to));
        assert_eq!(dir, to_dir, "renamed within one folder only");
        self.folders.get_mut(dir).unwrap().change(Entry::Rename(old, new, inode));
        Ok(())
    }

    pub fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        let (dir, name) = split(path);
        self.folders.get_mut(dir).unwrap().change(Entry::Unlink(name));
        Ok(())
    }

    pub fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let folder = self.folders.get(dir).ok_or_else(missing)?;
        let below = self.folders.keys().filter(|path| path.parent() == Some(dir));
        let mut names: Vec<_> = folder.cache.keys().cloned().collect();
        names.extend(below.map(|path| split(path).1));
        names.sort_unstable();
        Ok(names)
    }

    pub fn create_dir_all(&mut self, dir: &Path) {
        for dir in dir.ancestors() {
            self.folders.entry(dir.to_owned()).or_default();
        }
    }

    pub fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        self.folders.get_mut(dir).ok_or_else(missing)?.sync();
        Ok(())
    }

    /// Some of it is durable, all of it stays to be synced. Not modelled: names that look clean after
    /// a failed sync, since a file system that cannot write its journal takes nothing more.
    pub fn sync_dir_fails(&mut self, dir: &Path, dice: &mut Dice) {
        if let Some(folder) = self.folders.get_mut(dir) {
            let dirty = folder.dirty.clone();
            folder.survive(dice);
            folder.dirty = dirty;
        }
    }

    /// What the machine finds when power is back.
    pub fn power_cut(&mut self, dice: &mut Dice) {
        let stale = match self.files.len() {
            0 => Vec::new(),
            n => self.files[dice.index(n)].durable.clone(),
        };
        for folder in self.folders.values_mut() {
            folder.survive(dice);
            folder.cache.clone_from(&folder.durable);
        }
        self.files.iter_mut().for_each(|file| file.power_cut(&stale, dice));
    }

    /// Every name, whole.
    pub fn paths(&self) -> Vec<PathBuf> {
        let names = |(dir, folder): (&PathBuf, &Folder)| {
            folder.cache.keys().map(|name| dir.join(name)).collect::<Vec<_>>()
        };
        self.folders.iter().flat_map(names).collect()
    }

    /// Bytes of all files that have a name.
    pub fn used(&self) -> u64 {
        let inodes = self.folders.values().flat_map(|f| f.cache.values().chain(f.durable.values()));
        let inodes: std::collections::BTreeSet<_> = inodes.copied().collect();
        inodes.into_iter().map(|i| self.files[i].cache.len() as u64).sum()
    }
}
