//! Schema contents by hash, durable before their first use, so that old events stay readable.
//!
//! `<dir>/<hash>.json` holds a schema's canonical text; `<dir>/names.json` which content each type,
//! tenant and version had. Nothing is ever removed.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tidegate_event::{EventType, TenantId};

use super::{
    fault::{Faults, SchemaFault},
    schema::Schema,
    set::{SchemaEntry, check_evolution},
};
use crate::storage::{self, Storage};

/// Why the folder of contents cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is not what was written.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// Where processes that share a log share contents as well. Both calls block.
pub trait SharedContents: Send + Sync {
    /// Makes contents readable for all, by their hash; durable on return.
    ///
    /// # Errors
    /// Why they are not: try again.
    fn publish(&self, contents: &[([u8; 16], &[u8])]) -> io::Result<()>;
    /// The content with this hash; `None` where nobody published it.
    ///
    /// # Errors
    /// Why that is not known.
    fn fetch(&self, hash: [u8; 16]) -> io::Result<Option<Vec<u8>>>;
}

/// Schema contents by hash.
pub struct SchemaStore {
    storage: Arc<dyn Storage>,
    shared: Option<Arc<dyn SharedContents>>,
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    names: Names,
    read: HashMap<[u8; 16], Arc<Schema>>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Names {
    schemas: Vec<Name>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Name {
    tenant: Option<String>,
    event_type: String,
    version: i32,
    hash: String,
}

impl std::fmt::Debug for SchemaStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SchemaStore").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl SchemaStore {
    /// Opens the folder, made if it is not there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(storage: Arc<dyn Storage>, dir: PathBuf) -> Result<Self, StoreError> {
        let io = |path: &PathBuf| {
            let path = path.clone();
            |source| StoreError::Io { path, source }
        };
        storage.create_dir_all(&dir).map_err(io(&dir))?;
        let path = dir.join("names.json");
        let names = match storage.read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Names::default(),
            Err(error) => return Err(io(&path)(error)),
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| StoreError::Damaged { path, what: error.to_string() })?,
        };
        let state = Mutex::new(State { names, read: HashMap::new() });
        Ok(Self { storage, shared: None, dir, state })
    }

    /// Has what is missing here from others, and gives them what is kept here.
    #[must_use]
    pub fn sharing(self, shared: Option<Arc<dyn SharedContents>>) -> Self {
        Self { shared, ..self }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The schema with this hash ([`Schema::none`] for zeros); `None` where it is not kept or its
    /// file cannot be read, which is logged.
    #[must_use]
    pub fn get(&self, hash: [u8; 16]) -> Option<Arc<Schema>> {
        if hash == [0; 16] {
            return Some(Schema::none());
        }
        let mut state = self.lock();
        if let Some(schema) = state.read.get(&hash) {
            return Some(Arc::clone(schema));
        }
        match self.read(hash) {
            Ok(schema) => {
                state.read.insert(hash, Arc::clone(&schema));
                Some(schema)
            }
            Err(error) => {
                tracing::error!(hash = hex::encode(hash), %error, "a schema's content is missing");
                None
            }
        }
    }

    /// Whether the schema with this hash is kept here.
    #[must_use]
    pub fn has(&self, hash: [u8; 16]) -> bool {
        let text = || hex::encode(hash);
        hash == [0; 16] || {
            let state = self.lock();
            state.read.contains_key(&hash)
                || state.names.schemas.iter().any(|known| known.hash == text())
        }
    }

    /// For whom and which type the content with this hash is, for another process that lacks it.
    #[must_use]
    pub fn entry(&self, hash: [u8; 16]) -> Option<SchemaEntry> {
        let text = hex::encode(hash);
        let name = self.lock().names.schemas.iter().find(|known| known.hash == text).cloned()?;
        let tenant = name.tenant.as_deref().map(TenantId::new).transpose().ok()?;
        let event_type = EventType::new(&name.event_type).ok()?;
        Some(SchemaEntry { tenant, event_type, schema: self.get(hash)? })
    }

    /// Takes content that another process judges by; durable when this returns.
    ///
    /// # Errors
    /// What is wrong with it, or with it beside what is known here.
    pub fn take(
        &self,
        tenant: Option<TenantId>,
        event_type: EventType,
        text: &str,
    ) -> Result<(), Vec<SchemaFault>> {
        let schema = Arc::new(Schema::parse(&format!("{event_type}.json"), text.as_bytes())?);
        self.keep(&[SchemaEntry { tenant, event_type, schema }])
    }

    fn path(&self, hash: [u8; 16]) -> PathBuf {
        self.dir.join(format!("{}.json", hex::encode(hash)))
    }

    fn read(&self, hash: [u8; 16]) -> Result<Arc<Schema>, StoreError> {
        let path = self.path(hash);
        let text = match self.storage.read(&path) {
            Ok(text) => text,
            Err(source) => match self.fetch_from_others(hash, &path, source) {
                Ok(text) => text,
                Err(source) => return Err(StoreError::Io { path, source }),
            },
        };
        let schema = Schema::parse(&path.display().to_string(), &text).map_err(|faults| {
            let what = faults.first().map(ToString::to_string).unwrap_or_default();
            StoreError::Damaged { path: path.clone(), what }
        })?;
        if schema.hash() != hash {
            let what = "its content has another hash".to_owned();
            return Err(StoreError::Damaged { path, what });
        }
        Ok(Arc::new(schema))
    }

    /// A content that is not here, and that another process judged by; kept from now on.
    fn fetch_from_others(
        &self,
        hash: [u8; 16],
        path: &Path,
        missing: io::Error,
    ) -> io::Result<Vec<u8>> {
        let Some(shared) = &self.shared else { return Err(missing) };
        if missing.kind() != io::ErrorKind::NotFound {
            return Err(missing);
        }
        let text = shared.fetch(hash)?.ok_or(missing)?;
        storage::replace(&*self.storage, path, &text)?;
        Ok(text)
    }

    /// Makes the contents durable. Refused as a whole where a version known before has changed
    /// content, or a new version changes what a column of the table holds.
    pub(super) fn keep(&self, entries: &[SchemaEntry]) -> Result<(), Vec<SchemaFault>> {
        let mut state = self.lock();
        let mut names = state.names.clone();
        let mut faults = Vec::new();
        for entry in entries {
            faults.append(&mut self.against_known(&names, entry));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        for entry in entries {
            let name = name_of(entry);
            if !names.schemas.contains(&name) {
                names.schemas.push(name);
            }
        }
        if let Err((file, error)) = self.write(entries, &names, &state.names) {
            let mut fault = Faults::of(file.display().to_string());
            let mend = "make room, or make the data folder writable";
            fault.add("", format!("the content cannot be stored: {error}"), mend);
            return Err(fault.found);
        }
        state.names = names;
        for entry in entries {
            state.read.insert(entry.schema.hash(), Arc::clone(&entry.schema));
        }
        Ok(())
    }

    fn against_known(&self, names: &Names, entry: &SchemaEntry) -> Vec<SchemaFault> {
        let mine = name_of(entry);
        let same =
            |known: &&Name| known.tenant == mine.tenant && known.event_type == mine.event_type;
        let mut faults = Faults::of(entry.file());
        if let Some(known) = names.schemas.iter().filter(same).find(|k| k.version == mine.version) {
            if known.hash != mine.hash {
                let what = format!("version {} was known with other content", mine.version);
                faults.add("/x-version", what, "raise x-version with each change");
            }
            return faults.found;
        }
        let last = names.schemas.iter().filter(same).max_by_key(|known| known.version);
        let hash = last.and_then(|last| hex::decode(&last.hash).ok());
        let Some(hash) = hash.and_then(|hash| <[u8; 16]>::try_from(hash).ok()) else {
            return faults.found;
        };
        match self.read(hash) {
            Ok(old) => faults.found.extend(check_evolution(&old, &entry.schema)),
            Err(error) => {
                let what = format!("the version before cannot be read: {error}");
                faults.add("", what, "restore the file from a backup of the data folder");
            }
        }
        for fault in &mut faults.found {
            fault.file = entry.file();
        }
        faults.found
    }

    fn write(
        &self,
        entries: &[SchemaEntry],
        names: &Names,
        before: &Names,
    ) -> Result<(), (PathBuf, io::Error)> {
        for entry in entries {
            let hash = hex::encode(entry.schema.hash());
            if before.schemas.iter().any(|known| known.hash == hash) {
                continue;
            }
            let path = self.path(entry.schema.hash());
            storage::replace(&*self.storage, &path, entry.schema.canonical().as_bytes())
                .map_err(|error| (path, error))?;
        }
        if let Some(shared) = &self.shared {
            let mut contents = Vec::new();
            for entry in entries {
                contents.push((entry.schema.hash(), entry.schema.canonical().as_bytes()));
            }
            shared.publish(&contents).map_err(|error| (self.dir.clone(), error))?;
        }
        if names.schemas == before.schemas {
            return Ok(());
        }
        let path = self.dir.join("names.json");
        let text = serde_json::to_vec_pretty(names).map_err(|e| (path.clone(), e.into()))?;
        storage::replace(&*self.storage, &path, &text).map_err(|error| (path, error))
    }
}

fn name_of(entry: &SchemaEntry) -> Name {
    Name {
        tenant: entry.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()),
        event_type: entry.event_type.as_str().to_owned(),
        version: entry.schema.version(),
        hash: hex::encode(entry.schema.hash()),
    }
}
