//! What a start makes of the index that an earlier process left: believes what is whole, and only as
//! far as the log goes.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::{Path, PathBuf},
};

use super::{
    index::{Sealed, Shelf, remove},
    memory::{NEVER, Seen},
    slice::{self, Slice},
    windows::Class,
};
use crate::storage::Storage;

/// Where an index goes on.
pub(super) struct Found {
    /// One for each window's length.
    pub shelves: Vec<Shelf>,
    /// The last number that was given to a slice.
    pub sequence: u64,
    /// All ids of the offsets below are in it.
    pub to: u64,
}

/// The ids of one window's length.
pub(super) struct Ids {
    pub seen: Vec<Seen>,
    pub lost: i64,
}

impl Default for Ids {
    fn default() -> Self {
        Self { seen: Vec::new(), lost: NEVER }
    }
}

/// Whether there is an index to go by.
pub(super) enum Loaded {
    /// It knows these ids, of each window's length.
    Whole(Found, Vec<Ids>),
    /// It does not; the log must be read. The sequence is to go on from there.
    Not { why: &'static str, sequence: u64, leftovers: Vec<PathBuf> },
}

/// What the index must fit.
pub(super) struct Fit<'a> {
    pub mark: [u8; 16],
    /// In microseconds, of each class.
    pub windows: &'a [i64],
    /// Now, in microseconds.
    pub now: i64,
    /// Nothing that is said of this offset or any behind it may be believed: the log lost them.
    pub end: u64,
}

struct Listed {
    path: PathBuf,
    slice: Option<Slice>,
}

/// Reads all slices.
///
/// # Errors
/// The folder cannot be listed, or what the log contradicts cannot be removed for good.
pub(super) fn load(storage: &dyn Storage, dir: &Path, fit: &Fit<'_>) -> io::Result<Loaded> {
    let (mut classes, mut sequence) = (BTreeMap::<Class, Vec<Listed>>::new(), 0);
    let mut beyond = false;
    for name in storage.list(dir)? {
        let path = dir.join(&name);
        let Some((number, class)) = slice::parse_name(&name) else {
            tracing::warn!(path = %path.display(), "not a part of the index of ids");
            continue;
        };
        sequence = sequence.max(number);
        // One that cannot be read is as good as none: the log has it all.
        let slice = storage.read(&path).ok().and_then(|bytes| Slice::decode(&bytes));
        beyond |= slice.as_ref().is_some_and(|slice| slice.to > fit.end);
        let slice = slice.filter(|s| s.head.mark == fit.mark && s.head.class == class);
        classes.entry(class).or_default().push(Listed { path, slice });
    }
    let all = || classes.values().flatten();
    if all().next().is_none() {
        return Ok(Loaded::Not { why: "there is none", sequence, leftovers: Vec::new() });
    }
    let paths = || all().map(|listed| listed.path.clone()).collect::<Vec<_>>();
    if beyond {
        // For good: once the log has grown past it, nothing would tell any more that it is wrong.
        paths().iter().try_for_each(|path| remove(storage, path))?;
        storage.sync_dir(dir)?;
        return Ok(Loaded::Not {
            why: "the log lost what it covers",
            sequence,
            leftovers: Vec::new(),
        });
    }
    let why = "it is damaged, of another configuration, or was cut short";
    let leftovers = paths();
    let (mut shelves, mut ids, mut to) = (Vec::new(), Vec::new(), u64::MAX);
    for (class, window) in (0..).zip(fit.windows) {
        let listed = classes.remove(&class).unwrap_or_default();
        let since = fit.now.saturating_sub(*window);
        let Some(shelf) = Chain::of(listed).filter(|chain| chain.reaches(since)) else {
            return Ok(Loaded::Not { why, sequence, leftovers });
        };
        to = to.min(shelf.to);
        for path in &shelf.apart {
            if let Err(error) = remove(storage, path) {
                tracing::warn!(path = %path.display(), %error, "a part of the index of ids that is not needed stays");
            }
        }
        let mut seen = shelf.seen;
        seen.retain(|one| one.at >= since);
        ids.push(Ids { seen, lost: shelf.lost });
        shelves.push(Shelf::new(shelf.sealed, shelf.newest));
    }
    let to = if shelves.is_empty() { 0 } else { to };
    Ok(Loaded::Whole(Found { shelves, sequence, to }, ids))
}

/// The slices that follow each other up to the last one that says anything.
struct Chain {
    sealed: VecDeque<Sealed>,
    /// Slices that do not belong to it.
    apart: Vec<PathBuf>,
    seen: Vec<Seen>,
    from: u64,
    to: u64,
    before: i64,
    lost: i64,
    newest: i64,
}

impl Chain {
    /// `listed` in the order of their sequence.
    fn of(listed: Vec<Listed>) -> Option<Self> {
        let mut chain: Option<Self> = None;
        let mut parts = Vec::new();
        let mut apart = Vec::new();
        for Listed { path, slice } in listed.into_iter().rev() {
            let fits = |slice: &Slice| chain.as_ref().is_none_or(|c| c.from == slice.to);
            let Some(slice) = slice.filter(fits) else {
                apart.push(path);
                continue;
            };
            let Slice { head, ids, to, lost, newest } = slice;
            let chain = chain.get_or_insert(Self {
                sealed: VecDeque::new(),
                apart: Vec::new(),
                seen: Vec::new(),
                from: head.from,
                to,
                before: head.before,
                lost,
                newest: head.before,
            });
            (chain.from, chain.before) = (head.from, head.before);
            chain.newest = chain.newest.max(newest);
            chain.sealed.push_front(Sealed { path, newest });
            parts.push(ids);
        }
        let mut chain = chain?;
        chain.apart = apart;
        chain.seen = parts.into_iter().rev().flatten().collect();
        Some(chain)
    }

    /// True where no id of the window is in a slice that is gone, apart from those that were
    /// forgotten already.
    fn reaches(&self, since: i64) -> bool {
        self.before < since || self.before <= self.lost || self.before == NEVER
    }
}
