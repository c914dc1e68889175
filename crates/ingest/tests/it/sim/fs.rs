//! `SimFs`: the simulated disk as a `Storage`, with faults and crashes drawn from a seed.
//!
//! A process gets its own [`SimFs::process`]; once that has crashed, or been followed by another,
//! whatever it still does fails. A crash is the process's end: [`SimFs::kill`] leaves the cache as it
//! is, [`SimFs::reboot`] takes it away and leaves of what was not synced what chance says.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tidegate_ingest::storage::{LockGuard, Storage, StorageFile};

use super::{
    dice::Dice,
    injected::{Fault, count},
    world::{Inode, World},
};

/// How often operations fail, in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Odds {
    pub short_write: u32,
    pub write_error: u32,
    pub read_error: u32,
    pub sync_error: u32,
    /// Bytes the disk has.
    pub capacity: Option<u64>,
}

#[derive(Debug)]
struct State {
    world: World,
    dice: Dice,
    odds: Odds,
    /// Which process may act.
    boot: u64,
    operations: u64,
    crash_at: Option<u64>,
    crash_on: Option<(&'static str, &'static str)>,
    crashed: bool,
    /// Ends the thread instead of giving errors.
    unwind: bool,
    /// Bytes that cannot be read: of which file, from, to.
    bad: Option<(Inode, u64, u64)>,
    trace: u64,
    /// Prints every operation, where `TIDEGATE_SIM_TRACE` is set.
    loud: bool,
}

/// The disk.
#[derive(Clone)]
pub struct SimFs(Arc<Mutex<State>>);

/// One process's view of it.
#[derive(Clone)]
pub struct Process {
    state: Arc<Mutex<State>>,
    boot: u64,
}

struct Open {
    process: Process,
    inode: Inode,
}

fn eio(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}

/// EIO, counted.
fn injected(what: &str) -> io::Error {
    count(Fault::Io);
    eio(&format!("injected: {what}"))
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimFs {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            world: World::default(),
            dice: Dice::new(seed),
            odds: Odds::default(),
            boot: 0,
            operations: 0,
            crash_at: None,
            crash_on: None,
            crashed: false,
            unwind: false,
            bad: None,
            trace: 0xCBF2_9CE4_8422_2325,
            loud: std::env::var_os("TIDEGATE_SIM_TRACE").is_some(),
        })))
    }

    /// What the process that runs now stands on.
    pub fn process(&self) -> Process {
        Process { state: Arc::clone(&self.0), boot: lock(&self.0).boot }
    }

    /// Crashes at the `n`th operation from now, counted from 1.
    pub fn crash_in(&self, n: u64, unwind: bool) {
        let mut state = lock(&self.0);
        (state.crash_at, state.unwind) = (Some(state.operations + n), unwind);
    }

    /// Crashes at the next operation of this name on a path that ends so.
    pub fn crash_on(&self, name: &'static str, ending: &'static str) {
        lock(&self.0).crash_on = Some((name, ending));
    }

    pub fn set_odds(&self, odds: Odds) {
        lock(&self.0).odds = odds;
    }

    pub fn crashed(&self) -> bool {
        lock(&self.0).crashed
    }

    pub fn operations(&self) -> u64 {
        lock(&self.0).operations
    }

    /// A hash over all operations so far, and how each ended.
    pub fn trace(&self) -> u64 {
        lock(&self.0).trace
    }

    /// The process is gone, the machine is not.
    pub fn kill(&self) {
        count(Fault::Kill);
        self.next_boot();
    }

    fn next_boot(&self) {
        let mut state = lock(&self.0);
        state.boot += 1;
        (state.crashed, state.crash_at, state.crash_on) = (false, None, None);
        state.odds = Odds::default();
    }

    /// The machine is gone, and back.
    pub fn reboot(&self) {
        count(Fault::PowerCut);
        self.next_boot();
        let mut state = lock(&self.0);
        let State { world, dice, loud, .. } = &mut *state;
        world.power_cut(dice);
        if *loud {
            eprintln!("power cut");
        }
    }

    /// Every file and its bytes as they are read now.
    pub fn tree(&self, below: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut state = lock(&self.0);
        let paths: Vec<_> = state.world.paths();
        let within = paths.into_iter().filter(|path| path.starts_with(below));
        within
            .map(|path| {
                let inode = state.world.find(&path).unwrap();
                let bytes = state.world.file(inode).bytes().to_vec();
                (path, bytes)
            })
            .collect()
    }

    /// The disk as it is now, to come back to.
    pub fn world(&self) -> World {
        lock(&self.0).world.clone()
    }

    /// The process is gone, and the disk is what it was then.
    pub fn back_to(&self, world: &World) {
        self.next_boot();
        lock(&self.0).world.clone_from(world);
    }

    /// Flips one bit of a file, on the platter.
    pub fn flip(&self, path: &Path, bit: usize) {
        let mut state = lock(&self.0);
        let inode = state.world.find(path).unwrap();
        count(Fault::Flip);
        state.world.file(inode).flip(bit);
    }

    /// From now on these bytes of a file cannot be read; `None`: all can.
    pub fn set_bad(&self, bad: Option<(&Path, u64, u64)>) {
        let mut state = lock(&self.0);
        state.bad = bad.map(|(path, from, to)| (state.world.find(path).unwrap(), from, to));
    }
}

/// An operation, for the trace and for its faults.
struct Operation<'a> {
    name: &'a str,
    path: &'a Path,
    at: u64,
    len: u64,
}

impl State {
    fn say(&self, how: &str, operation: &Operation<'_>) {
        let Operation { name, path, at, len } = operation;
        if self.loud {
            eprintln!("{how} {name} {} {at} {len}", path.display());
        }
    }

    fn note(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.trace = (self.trace ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }

    /// Counts an operation. True: this is the one that crashes.
    fn begin(&mut self, operation: &Operation<'_>) -> bool {
        self.operations += 1;
        self.note(operation.name.as_bytes());
        self.note(operation.path.as_os_str().as_encoded_bytes());
        self.note(&operation.at.to_le_bytes());
        self.note(&operation.len.to_le_bytes());
        let path = operation.path.to_string_lossy();
        let meant = |(name, end): (&str, &str)| name == operation.name && path.ends_with(end);
        let crashes = self.crash_at == Some(self.operations) || self.crash_on.is_some_and(meant);
        self.crashed |= crashes;
        crashes
    }
}

impl Process {
    /// Does `act`, unless the process is dead. The operation at which it dies is done or not.
    fn run<T>(
        &self,
        (name, path, at, len): (&str, &Path, u64, u64),
        act: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = lock(&self.state);
        if state.crashed || state.boot != self.boot {
            return self.dead(state);
        }
        let operation = Operation { name, path, at, len };
        if state.begin(&operation) {
            state.say("crash", &operation);
            if state.dice.coin() {
                drop(act(&mut state));
            }
            return self.dead(state);
        }
        let done = act(&mut state);
        let ended = [u8::from(done.is_ok())];
        let how = if done.is_ok() { "done" } else { "failed" };
        state.say(how, &operation);
        state.note(&ended);
        done
    }

    fn dead<T>(&self, state: MutexGuard<'_, State>) -> io::Result<T> {
        let unwind = state.unwind && state.boot == self.boot;
        drop(state);
        if unwind {
            std::panic::resume_unwind(Box::new("the simulated machine crashed"));
        }
        Err(eio("the simulated machine crashed"))
    }

    fn opened(&self, inode: Inode) -> Arc<dyn StorageFile> {
        Arc::new(Open { process: self.clone(), inode })
    }

    /// A second name of a file.
    pub fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(("link", to, 0, 0), |state| state.world.link(from, to))
    }
}

impl Storage for Process {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn StorageFile>> {
        let create = |state: &mut State| {
            if state.dice.permille(state.odds.write_error) {
                return Err(injected("create"));
            }
            state.world.create_new(path)
        };
        Ok(self.opened(self.run(("create", path, 0, 0), create)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.opened(self.run(("open", path, 0, 0), |state| state.world.find(path))?))
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.run(("read", path, 0, 0), |state| {
            let inode = state.world.find(path)?;
            if state.dice.permille(state.odds.read_error) {
                return Err(injected("read"));
            }
            Ok(state.world.file(inode).bytes().to_vec())
        })
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.run(("list", dir, 0, 0), |state| state.world.list(dir))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(("rename", to, 0, 0), |state| {
            if state.dice.permille(state.odds.write_error) {
                return Err(injected("rename"));
            }
            state.world.rename(from, to)
        })
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.run(("remove", path, 0, 0), |state| {
            if state.dice.permille(state.odds.write_error) {
                return Err(injected("remove"));
            }
            state.world.remove(path)
        })
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.run(("mkdir", dir, 0, 0), |state| {
            state.world.create_dir_all(dir);
            Ok(())
        })
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.run(("sync_dir", dir, 0, 0), |state| {
            let State { world, dice, odds, .. } = state;
            if dice.permille(odds.sync_error) {
                world.sync_dir_fails(dir, dice);
                return Err(injected("fsync of a folder"));
            }
            world.sync_dir(dir)
        })
    }
    fn lock(&self, path: &Path) -> io::Result<Option<LockGuard>> {
        self.run(("lock", path, 0, 0), |_| Ok(Some(LockGuard::fake())))
    }
}

impl Open {
    fn run<T>(
        &self,
        (name, at, len): (&str, u64, u64),
        act: impl FnOnce(&mut State, Inode) -> io::Result<T>,
    ) -> io::Result<T> {
        self.process.run((name, Path::new(""), at, len), |state| act(state, self.inode))
    }
}

impl StorageFile for Open {
    fn write_vectored_at(&self, buffers: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let mut all: Vec<u8> = buffers.iter().flat_map(|b| b.iter().copied()).collect();
        self.run(("write", offset, all.len() as u64), |state, inode| {
            if state.dice.permille(state.odds.write_error) {
                return Err(injected("write"));
            }
            if all.len() > 1 && state.dice.permille(state.odds.short_write) {
                all.truncate(1 + state.dice.index(all.len() - 1));
            }
            if let Some(capacity) = state.odds.capacity {
                let room = capacity.saturating_sub(state.world.used());
                all.truncate(usize::try_from(room).unwrap());
                if all.is_empty() {
                    count(Fault::Full);
                    return Err(io::ErrorKind::StorageFull.into());
                }
            }
            state.world.file(inode).write(offset, &all);
            Ok(all.len())
        })
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = buffer.len() as u64;
        self.run(("read_at", offset, len), |state, inode| {
            let bad = |(i, from, to)| i == inode && offset < to && from < offset + len;
            if state.bad.is_some_and(bad) || state.dice.permille(state.odds.read_error) {
                return Err(injected("read"));
            }
            let bytes = state.world.file(inode).read(offset);
            let n = bytes.len().min(buffer.len());
            buffer[..n].copy_from_slice(&bytes[..n]);
            Ok(n)
        })
    }
    fn sync_data(&self) -> io::Result<()> {
        self.run(("sync", self.inode as u64, 0), |state, inode| {
            let State { world, dice, odds, .. } = state;
            if dice.permille(odds.sync_error) {
                world.file(inode).sync_fails(dice);
                return Err(injected("fsync"));
            }
            world.file(inode).sync();
            Ok(())
        })
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.run(("set_len", bytes, 0), |state, inode| {
            if state.dice.permille(state.odds.write_error) {
                return Err(injected("truncate"));
            }
            state.world.file(inode).set_len(bytes);
            Ok(())
        })
    }
    fn size(&self) -> io::Result<u64> {
        self.run(("size", 0, 0), |state, inode| Ok(state.world.file(inode).bytes().len() as u64))
    }
    fn drop_cache(&self) -> io::Result<()> {
        self.run(("drop_cache", 0, 0), |state, inode| {
            state.world.file(inode).drop_cache();
            Ok(())
        })
    }
}
