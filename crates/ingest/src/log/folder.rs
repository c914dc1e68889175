//! The log's folder: its lock, its id, its partitions; what opening does, in order.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rand::Rng;
use tidegate_event::Partition;

use super::{Log, LogConfig, Recovery, append::Limits, recover};
use crate::{
    clock::Clock,
    storage::{self, LockGuard, Storage},
};

/// The log, open.
#[derive(Debug)]
pub struct Opened {
    /// 8 characters of `a-z` and `0-9`, made with the log.
    pub log_id: String,
    /// Each partition in order. The folder stays locked until the last is dropped.
    pub partitions: Vec<Log>,
    /// What was done to each, for people.
    pub recovery: Vec<Recovery>,
}

/// Why the log cannot be opened. Nothing was changed, except where said.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{} is in use by another process; one data folder takes one ingestd", dir.display())]
    Locked {
        /// The data folder.
        dir: PathBuf,
    },
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that is not the log's own.
    #[error("{}: {why}", path.display())]
    Foreign {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and how to mend it.
        why: String,
    },
    /// A segment is missing between two others.
    #[error(
        "{} is missing: put it back, or put an empty file of that name in its place to give up its events", path.display()
    )]
    Missing {
        /// The segment.
        path: PathBuf,
    },
    /// The number of partitions is fixed once the log is made.
    #[error("{} has {found} partitions, the configuration says {configured}; set log.partitions to {found}", dir.display())]
    Partitions {
        /// The log's folder.
        dir: PathBuf,
        /// How many there are.
        found: u32,
        /// How many there should be.
        configured: u32,
    },
}

pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> OpenError + use<> {
    let path = path.to_owned();
    move |source| OpenError::Io { path: path.clone(), source }
}

/// Opens the log under `config.dir`, making it if there is none: locks the folder, and recovers each
/// partition. Reads the last segment of each partition and the heads of the others.
///
/// # Errors
/// [`OpenError`].
pub fn open(
    storage: Arc<dyn Storage>,
    config: &LogConfig,
    clock: Arc<dyn Clock>,
) -> Result<Opened, OpenError> {
    let dir = config.dir.join("log");
    storage.create_dir_all(&dir).map_err(at(&dir))?;
    let lock = lock(&*storage, &config.dir)?;
    let log_id = identify(&*storage, &dir, config.partitions.max(1))?;
    // What a process that was killed had renamed and not yet synced is seen here: it must stay.
    for dir in [&dir, &config.dir] {
        storage.sync_dir(dir).map_err(at(dir))?;
    }
    let limits = Limits {
        segment_bytes: config.segment_bytes.0,
        retention_bytes: config.retention_bytes.0,
        retention_micros: i64::try_from(config.retention_age.0.as_micros()).unwrap_or(i64::MAX),
        read_patience: config.read_patience.0,
    };
    let place = Place { storage, clock, dir, log_id, limits, lock: Arc::new(lock) };
    let (mut partitions, mut recovery) = (Vec::new(), Vec::new());
    for partition in 0..config.partitions.max(1) {
        let (log, done) = recover::open_partition(&place, Partition(partition))?;
        partitions.push(log);
        recovery.push(done);
    }
    let log_id = String::from_utf8_lossy(&place.log_id).into_owned();
    Ok(Opened { log_id, partitions, recovery })
}

/// Takes the data folder for this process, making it if it is not there.
///
/// # Errors
/// [`OpenError::Locked`], [`OpenError::Io`].
pub fn lock(storage: &dyn Storage, dir: &Path) -> Result<LockGuard, OpenError> {
    storage.create_dir_all(dir).map_err(at(dir))?;
    let path = dir.join("lock");
    let lock = storage.lock(&path).map_err(at(&path))?;
    lock.ok_or_else(|| OpenError::Locked { dir: dir.to_owned() })
}

/// What all partitions share.
pub(super) struct Place {
    pub storage: Arc<dyn Storage>,
    pub clock: Arc<dyn Clock>,
    pub dir: PathBuf,
    pub log_id: [u8; 8],
    pub limits: Limits,
    pub lock: Arc<LockGuard>,
}

impl Place {
    pub fn partition_dir(&self, partition: Partition) -> PathBuf {
        self.dir.join(format!("partition-{partition}"))
    }
}

/// The log's id. A new log gets its folders first and its id last: with an id, it is whole.
fn identify(storage: &dyn Storage, dir: &Path, configured: u32) -> Result<[u8; 8], OpenError> {
    let names = storage.list(dir).map_err(at(dir))?;
    let mut found = 0;
    for name in &names {
        let number = name.strip_prefix("partition-").map(str::parse::<u32>);
        match (number, name.as_str()) {
            (Some(Ok(n)), _) if *name == format!("partition-{n}") => found += 1,
            (None, "id" | "id.new") => {}
            _ => {
                let why = "not a part of the log; move it elsewhere".to_owned();
                return Err(OpenError::Foreign { path: dir.join(name), why });
            }
        }
    }
    let path = dir.join("id");
    let made = names.iter().any(|name| name == "id");
    if !made {
        return create(storage, dir, &path, configured);
    }
    if found != configured {
        return Err(OpenError::Partitions { dir: dir.to_owned(), found, configured });
    }
    let text = storage.read(&path).map_err(at(&path))?;
    let id = text.trim_ascii().try_into().ok();
    let valid = |id: &[u8; 8]| id.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    id.filter(valid).ok_or_else(|| {
        let why = "not the id of a log (8 characters a-z, 0-9); put the right one back: it stands in the names of the lake's files";
        OpenError::Foreign { path, why: why.to_owned() }
    })
}

fn create(
    storage: &dyn Storage,
    dir: &Path,
    path: &Path,
    partitions: u32,
) -> Result<[u8; 8], OpenError> {
    for partition in 0..partitions {
        let folder = dir.join(format!("partition-{partition}"));
        storage.create_dir_all(&folder).map_err(at(&folder))?;
        if !storage.list(&folder).map_err(at(&folder))?.is_empty() {
            let why = "not empty, yet the log's id is missing; put the file back: the id stands in the names of the lake's files";
            return Err(OpenError::Foreign { path: folder, why: why.to_owned() });
        }
    }
    let mut random = rand::rng();
    let letters = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let id = std::array::from_fn(|_| {
        letters.get(random.random_range(0..letters.len())).copied().unwrap_or(b'a')
    });
    storage::replace(storage, path, &id).map_err(at(path))?;
    Ok(id)
}
