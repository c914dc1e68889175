//! What is kept of a job: its plan, its state, and how far each part of it is written.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{
    Plan, PlanId,
    job::{FORMAT, Saved},
    jobs::JobsParts,
    parts::{self, Part},
};
use crate::{
    sink::{SinkConfig, state::State},
    storage::{self, Storage},
};

/// What a job's shadow of one sink came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// The live sink's name.
    pub sink: String,
    /// Events it will hold in the end.
    pub events: u64,
    /// Of these, written.
    pub stored: u64,
    /// Of these, what the destination refuses for good; set aside in the job's folder.
    pub quarantined: u64,
}

/// Where all of one job lies.
#[derive(Clone, Debug)]
pub struct Folder {
    dir: PathBuf,
}

impl Folder {
    /// That of a plan.
    #[must_use]
    pub fn of(data_dir: &Path, plan: &PlanId) -> Self {
        Self { dir: data_dir.join("replay").join(plan.as_str()) }
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// What the sinks of one part keep.
    #[must_use]
    pub fn part(&self, number: usize) -> PathBuf {
        self.dir.join(format!("part-{number}"))
    }

    /// Writes plan and state, durably: from now on there is such a job.
    ///
    /// # Errors
    /// As the disk's.
    pub fn create(&self, storage: &dyn Storage, plan: &Plan, saved: &Saved) -> std::io::Result<()> {
        for part in parts::NUMBERS {
            let sinks = self.part(part).join("sinks");
            storage.create_dir_all(&sinks)?;
            // Of a job whose removal was cut: its cursors would say that the shadow is written.
            for name in storage.list(&sinks)? {
                storage.remove(&sinks.join(name))?;
            }
            storage.sync_dir(&self.part(part))?;
        }
        let mut folder = Some(self.dir.as_path());
        // Each name up to the data folder's.
        for _ in 0..3 {
            folder.map_or(Ok(()), |folder| storage.sync_dir(folder))?;
            folder = folder.and_then(Path::parent);
        }
        storage::replace(storage, &self.dir.join("plan.json"), &serde_json::to_vec(plan)?)?;
        self.save(storage, saved)
    }

    /// Removes all that is in it, the state first: without it there is no job.
    ///
    /// # Errors
    /// As the disk's; what is left is no job.
    pub fn remove(&self, storage: &dyn Storage) -> std::io::Result<()> {
        storage.remove(&self.dir.join("job.json"))?;
        storage.sync_dir(&self.dir)?;
        std::fs::remove_dir_all(&self.dir)
    }

    /// Replaces the state, durably.
    ///
    /// # Errors
    /// As the disk's.
    pub fn save(&self, storage: &dyn Storage, saved: &Saved) -> std::io::Result<()> {
        storage::replace(storage, &self.dir.join("job.json"), &serde_json::to_vec(saved)?)
    }

    /// What is kept; `None` for a folder whose job was never whole.
    ///
    /// # Errors
    /// What is wrong with a file.
    pub fn load(&self, storage: &dyn Storage) -> Result<Option<(Plan, Saved)>, String> {
        let read = |name: &str| {
            let path = self.dir.join(name);
            match storage.read(&path) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(format!("{}: {error}", path.display())),
            }
        };
        let (Some(plan), Some(saved)) = (read("plan.json")?, read("job.json")?) else {
            return Ok(None);
        };
        let plan = Plan::read(&plan).map_err(|e| format!("{}: {e}", self.dir.display()))?;
        let saved: Saved = serde_json::from_slice(&saved)
            .map_err(|e| format!("{}: job.json: {e}", self.dir.display()))?;
        if saved.format != FORMAT {
            return Err(format!("{}: its format is {}", self.dir.display(), saved.format));
        }
        Ok(Some((plan, saved)))
    }

    /// How far each shadow is, as its sink's state says.
    pub fn progress(&self, parts: &JobsParts, plan: &Plan) -> Vec<Progress> {
        let one = |target: &super::Target| {
            let live = parts.sinks.iter().find(|sink| sink.name == target.sink);
            let mut progress = Progress {
                sink: target.sink.clone(),
                events: live.map_or(0, |live| expected(plan, live)),
                ..Progress::default()
            };
            for Part { number, partition, .. } in parts::of(plan, &parts.sinks) {
                let name = format!("shadow.{}-{partition}.json", target.sink);
                // Not there yet, or being replaced: the next look finds it.
                let path = self.part(number).join("sinks").join(name);
                let Ok(bytes) = parts.storage.read(&path) else { continue };
                let Ok(state) = State::decode(&bytes) else { continue };
                for counts in state.counts.values() {
                    progress.stored += counts.stored;
                    progress.quarantined += counts.quarantined;
                }
            }
            progress
        };
        plan.content.targets.iter().map(one).collect()
    }
}

/// Events of the plan that this sink takes.
fn expected(plan: &Plan, live: &SinkConfig) -> u64 {
    let counts = plan.content.counts.iter();
    counts.filter(|count| live.filter.takes(&count.lane)).map(|count| count.events).sum()
}
