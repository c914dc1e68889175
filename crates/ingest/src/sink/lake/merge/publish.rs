//! How several files become one while others read: the order of the steps is the whole promise.
//!
//! ```text
//! journal ─▶ blocker ─▶ wait ─▶ the joined file ─▶ parts removed ─▶ wait ─▶ blocker removed ─▶ journal
//! ```
//!
//! A reader takes at most `settle` to list one folder. If it began before the blocker was there, it is
//! done before the joined file is: it has all parts, each of which it reads whole or not at all. If it
//! ends after the blocker is gone, it began when all parts were: it has the joined file alone. Any other
//! has the blocker in its list, which is no file of any format, and fails. So whoever reads all that it
//! listed, or fails, has each row once. After a crash the blocker is still there: where the joined file
//! is, the rest is done, else the blocker is taken away again.

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use object_store::path::Path;
use sha2::{Digest, Sha256};

use super::{
    super::{
        layout::FileName,
        store::{LakeStore, Put},
    },
    Merger,
    build::Joined,
    journal::{Group, Join},
};

/// How long a put that nobody answered may still be applied by an object store.
pub(in super::super) const LATE: Duration = Duration::from_secs(60);
/// A sleep is looked up from so often.
const TICK: Duration = Duration::from_millis(50);

/// Files of one folder and partition, joined in memory.
#[derive(Debug)]
pub struct Prepared {
    /// The folder, and whose files.
    pub name: FileName,
    /// What becomes of them.
    pub joined: Vec<Joined>,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Files that are there no more.
    pub removed: u64,
    /// Files that are there for them.
    pub made: u64,
}

pub fn sha256(bytes: &Bytes) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Places below the root, as they stand in the journal.
pub fn below(root: &Path, path: &Path) -> String {
    match path.prefix_match(root) {
        Some(parts) => parts.collect::<Path>().to_string(),
        None => path.to_string(),
    }
}

/// And back.
pub fn at(root: &Path, text: &str) -> Path {
    root.parts().chain(Path::from(text).parts()).collect()
}

pub fn folder_of(path: &Path) -> Path {
    let mut parts: Vec<_> = path.parts().collect();
    parts.pop();
    parts.into_iter().collect()
}

impl Merger {
    /// Publishes what was prepared; all of it shares its two waits.
    ///
    /// # Errors
    /// What could not be done. What was begun is in the journal, and [`Merger::resume`] ends it.
    pub fn publish(
        &self,
        store: &LakeStore,
        batch: &[Prepared],
        stop: &dyn Fn() -> bool,
    ) -> Result<Published, String> {
        let (root, mut joins) = (store.root(), Vec::new());
        for prepared in batch {
            let group = |joined: &Joined| Group {
                path: below(root, &joined.name.path(root, self.format)),
                sha256: sha256(&joined.bytes),
                parts: joined.parts.iter().map(|part| below(root, part)).collect(),
            };
            joins.push(Join {
                blocker: below(root, &prepared.name.blocker(root, self.format)),
                groups: prepared.joined.iter().map(group).collect(),
            });
        }
        self.keep(|journal| {
            journal.joins.clone_from(&joins);
            for joined in batch.iter().flat_map(|prepared| &prepared.joined) {
                let lane = (joined.name.partition, joined.name.lane.clone());
                let floor = journal.floors.entry(lane).or_default();
                *floor = (*floor).max(joined.name.last.plus(1));
            }
        })?;
        let mut ours = Vec::new();
        for (prepared, join) in batch.iter().zip(&joins) {
            let path = at(root, &join.blocker);
            let put = store.put_new(&path, self.notice()).map_err(|e| e.to_string())?;
            ours.push(put == Put::Done && self.are_there(store, prepared)?);
        }
        sleep(self.settle, stop);
        if !stop() {
            let chosen = batch.iter().zip(&ours).filter(|(_, ours)| **ours);
            for joined in chosen.flat_map(|(prepared, _)| &prepared.joined) {
                let path = joined.name.path(root, self.format);
                match store.put_new(&path, joined.bytes.clone()).map_err(|e| e.to_string())? {
                    Put::Done => {}
                    // Its parts stay, and it is not ours to touch.
                    Put::Taken(_) => tracing::error!(%path, "there is another file of this name"),
                }
            }
        }
        self.end(store, None)
    }

    /// What a blocker says.
    fn notice(&self) -> Bytes {
        let owner = self.lock().owner.clone();
        // Readers tell the last four bytes where they say that it is no Parquet.
        format!(
            "The files of this folder are being joined into fewer: list and read it again in a moment.\n\
             {owner}\nWAIT"
        )
        .into()
    }

    /// True where nobody else has joined these files meanwhile.
    fn are_there(&self, store: &LakeStore, prepared: &Prepared) -> Result<bool, String> {
        let folder = folder_of(&prepared.name.path(store.root(), self.format));
        let mut there = HashSet::new();
        store.scan(&folder, &mut |path, _| there.extend([path])).map_err(|e| e.to_string())?;
        let mut parts = prepared.joined.iter().flat_map(|joined| &joined.parts);
        Ok(parts.all(|part| there.contains(part)))
    }

    /// Ends what the journal says was begun: forward where the joined file is there, else back.
    ///
    /// # Errors
    /// What could not be done; it is tried again.
    pub fn resume(&self, store: &LakeStore, stop: &dyn Fn() -> bool) -> Result<Published, String> {
        self.end(store, Some(stop))
    }

    /// `doubt`: a joined file may have been put and nobody knows; whether to stop waiting for it.
    fn end(
        &self,
        store: &LakeStore,
        doubt: Option<&dyn Fn() -> bool>,
    ) -> Result<Published, String> {
        let joins = self.lock().joins.clone();
        if joins.is_empty() {
            return Ok(Published::default());
        }
        let mut done = self.forward(store, &joins)?;
        let all: usize = joins.iter().map(|join| join.groups.len()).sum();
        if let Some(stop) = doubt.filter(|_| done.made < all as u64 && !store.is_local()) {
            // A put whose answer was lost may be applied yet: then it must find its blocker.
            sleep(LATE, stop);
            if stop() {
                return Ok(done);
            }
            let before = done.removed;
            done = self.forward(store, &joins)?;
            done.removed += before;
        }
        if 0 < done.made {
            sleep(self.settle, &|| false);
        }
        let notice = self.notice();
        for join in &joins {
            let path = at(store.root(), &join.blocker);
            // Another server's is for its own journal to end.
            if store.get_if_there(&path).map_err(|e| e.to_string())?.as_ref() == Some(&notice) {
                store.remove(std::slice::from_ref(&path)).map_err(|e| e.to_string())?;
            }
        }
        self.keep(|journal| journal.joins.clear())?;
        Ok(done)
    }

    /// Removes the parts of the joined files that are there.
    fn forward(&self, store: &LakeStore, joins: &[Join]) -> Result<Published, String> {
        let mut done = Published::default();
        for group in joins.iter().flat_map(|join| &join.groups) {
            let path = at(store.root(), &group.path);
            let there = store.get_if_there(&path).map_err(|e| e.to_string())?;
            if there.is_none_or(|bytes| sha256(&bytes) != group.sha256) {
                continue;
            }
            // Durable before any of its parts goes, whoever made it.
            store.confirm(&path).map_err(|e| e.to_string())?;
            let parts: Vec<_> = group.parts.iter().map(|part| at(store.root(), part)).collect();
            done.removed += store.remove(&parts).map_err(|e| e.to_string())?;
            done.made += 1;
        }
        Ok(done)
    }
}

/// Sleeps for `time`, or until told to stop.
pub fn sleep(time: Duration, stop: &dyn Fn() -> bool) {
    let until = std::time::Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() || stop() {
            return;
        }
        std::thread::sleep(left.min(TICK));
    }
}
