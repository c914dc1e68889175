//! How far a promotion is: `<data dir>/replay/<plan id>/promotion.json`, replaced whole.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tidegate_event::ReceivedAt;

use crate::{
    replay::PlanId,
    sealed,
    sink::{
        exchange::{Changes, Staged},
        promoted::Applied,
    },
    storage::Storage,
};

/// What is true of live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Live is as it was; what comes is made ready. A crash: it is taken away again.
    Staging,
    /// Live is on its way to the shadow's rows. A crash: it goes on.
    Committed,
    /// Live has the shadow's rows.
    Done,
    /// Live is on its way back. A crash: it goes on.
    Reverting,
    /// Live has what it had before.
    Reverted,
}

/// Who did something, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Act {
    /// When.
    pub at: ReceivedAt,
    /// Who.
    pub who: String,
}

/// One sink's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Which sink.
    pub sink: String,
    /// What changes.
    pub changes: Changes,
    /// What was made ready; nothing before all is.
    pub staged: Option<Staged>,
    /// What its books will say.
    pub applied: Option<Applied>,
}

/// A promotion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// Which plan's.
    pub plan: PlanId,
    /// How far.
    pub phase: Phase,
    /// Who promoted.
    pub promoted: Act,
    /// Who reverted.
    pub reverted: Option<Act>,
    /// Its sinks.
    pub parts: Vec<Part>,
}

/// The file, in the folder of its job.
pub const FILE: &str = "promotion.json";

fn path(data_dir: &Path, plan: &PlanId) -> PathBuf {
    data_dir.join("replay").join(plan.as_str()).join(FILE)
}

impl Journal {
    /// That of a plan, if it was ever promoted.
    ///
    /// # Errors
    /// The file's, and `InvalidData` where it is damaged.
    pub fn load(storage: &dyn Storage, data_dir: &Path, plan: &PlanId) -> io::Result<Option<Self>> {
        sealed::load(storage, &path(data_dir, plan))
    }

    /// Replaces it, durable on return.
    ///
    /// # Errors
    /// As writing a file.
    pub fn save(&self, storage: &dyn Storage, data_dir: &Path) -> io::Result<()> {
        let path = path(data_dir, &self.plan);
        if let Some(dir) = path.parent() {
            storage.create_dir_all(dir)?;
        }
        sealed::save(storage, &path, self)
    }

    /// Forgets it, durably.
    ///
    /// # Errors
    /// As removing a file.
    pub fn remove(storage: &dyn Storage, data_dir: &Path, plan: &PlanId) -> io::Result<()> {
        let path = path(data_dir, plan);
        match storage.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        match path.parent() {
            Some(dir) => storage.sync_dir(dir),
            None => Ok(()),
        }
    }
}
