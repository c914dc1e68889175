//! The lake: Parquet (or JSONL) files in a folder or an object store (docs/lake.md).
//!
//! | file | purpose |
//! | --- | --- |
//! | `layout` | where a file lies, and what its name says |
//! | `table` | the rows of a lane as files-to-be: columns, names |
//! | `project` | an event's fields as the values of its schema's columns |
//! | `columns` | flat vectors of values |
//! | `parquet`, `jsonl` | a table as bytes; the same table, the same bytes |
//! | `store` | puts a file whole, once, durable; `remote`: into an object store |
//! | `inventory` | reads a lake back, for audits; `held`: which files hold some offsets; `back`: their rows |
//! | `merge` | joins small files later |
//! | `exchange` | a window's rows exchanged for a shadow's |

mod back;
pub(super) mod columns;
mod exchange;
mod held;
mod inventory;
pub(super) mod jsonl;
pub mod layout;
mod merge;
mod parquet;
mod project;
mod remote;
mod store;
pub(super) mod table;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;

pub use back::FileRows;
pub use columns::{Column, Kind};
pub use held::{Asked, HeldFile};
pub use inventory::{FileFacts, InventoryError, LakeReader, LaneCheck};
pub use layout::{FileName, Format};
pub use project::{Project, SchemaColumn, Schemas};
pub use store::{LakeStore, OpenStoreError, Put, StoreError, Wrap};

use super::{
    LaneRows, Sink, SinkConfig, SinkConfigError, SinkContext, SinkKind, WriteError,
    exchange::Exchange,
    promoted::Promotions,
    shadow::Erase,
    status::JoinStatus,
    upkeep::{Turn, Upkeep},
};
use crate::faults::{self, Bug, planted};
use merge::Merger;
use table::FilePlan;

pub(super) const KIND: SinkKind = SinkKind {
    name: "lake",
    check: |config| Options::read(config).map(|_| ()),
    open: |config, context| Ok(Arc::new(Lake::open(config, context, &|store| store)?)),
    shadow: |config, data_dir| {
        let id = config.suffix.rsplit('_').next().unwrap_or_default();
        let url = format!("{}/shadow/{id}", url(config, data_dir).trim_end_matches('/'));
        // Small files of a shadow are nobody's matter.
        config.options.remove("merge");
        config.url = Some(url.clone());
        Ok(url)
    },
    side_by_side: true,
};

/// The key of a file's rows hash in its key-value metadata.
const ROWS_HASH: &str = "tidegate.rows_hash";

/// Writes lanes as files.
pub struct Lake {
    store: Arc<LakeStore>,
    format: Format,
    schemas: Arc<dyn Schemas>,
    merger: Merger,
    data_dir: PathBuf,
    /// Where it lies, and the store's client's options.
    place: (String, Option<toml::Value>),
    /// Those that held at the start: only a start finds a cursor that was set back.
    promotions: Promotions,
}

/// What `options` may hold.
struct Options {
    format: Format,
    store: toml::Table,
    merge: Option<merge::Settings>,
}

impl Options {
    fn read(config: &SinkConfig) -> Result<Self, SinkConfigError> {
        let mut options = Self { format: Format::Parquet, store: toml::Table::new(), merge: None };
        for (key, value) in &config.options {
            match (key.as_str(), value) {
                ("format", toml::Value::String(name)) => {
                    options.format = Format::from_name(name).ok_or_else(|| {
                        let names: Vec<_> = Format::ALL.iter().map(|(name, _)| *name).collect();
                        SinkConfigError(format!(
                            "options.format {name:?} is none of {}",
                            names.join(", ")
                        ))
                    })?;
                }
                ("store", toml::Value::Table(table)) => options.store = table.clone(),
                ("merge", value) => {
                    let merge = merge::Settings::read(value);
                    options.merge =
                        merge.map_err(|e| SinkConfigError(format!("options.merge: {e}")))?;
                }
                _ => {
                    return Err(SinkConfigError(format!(
                        "lake has no option {key:?} of this form; it has format (text), merge \
                         (true, false or a table) and store (a table for the object store's client)"
                    )));
                }
            }
        }
        Ok(options)
    }
}

/// Where the lake of `config` is: its `url`, else a folder in the data folder.
#[must_use]
pub fn url(config: &SinkConfig, data_dir: &std::path::Path) -> String {
    match &config.url {
        Some(url) => url.clone(),
        None => data_dir.join("lake").to_string_lossy().into_owned(),
    }
}

/// Where a lake lies, and by which options of the store's client.
fn place(config: &SinkConfig, data_dir: &std::path::Path) -> (String, Option<toml::Value>) {
    let url = url(config, data_dir).trim_end_matches('/').to_owned();
    (url, config.options.get("store").cloned())
}

impl Lake {
    /// Opens the lake of `config`; `wrap` puts itself between it and its store.
    ///
    /// # Errors
    /// [`SinkConfigError`] for options nobody knows and places that cannot be opened.
    pub fn open(
        config: &SinkConfig,
        context: &SinkContext,
        wrap: Wrap<'_>,
    ) -> Result<Self, SinkConfigError> {
        let options = Options::read(config)?;
        // Whose files in `staging/` are ours alone.
        let name = context.shared_as.iter();
        let owner = name.fold(context.log_id.clone(), |log_id, name| format!("{log_id}.{name}"));
        let store = LakeStore::open(
            &url(config, &context.data_dir),
            &options.store,
            (Arc::clone(&context.storage), &owner),
            context.runtime.clone(),
            wrap,
        )
        .map_err(|e| SinkConfigError(e.to_string()))?;
        let what = (config.name.as_str(), options.format, store.is_local());
        let merger = Merger::open(options.merge, what, &context.storage, &context.data_dir);
        let promotions = Promotions::load(&*context.storage, &context.data_dir, &config.name);
        Ok(Self {
            store: Arc::new(store),
            format: options.format,
            schemas: Arc::clone(&context.schemas),
            merger: merger.map_err(SinkConfigError)?,
            data_dir: context.data_dir.clone(),
            place: place(config, &context.data_dir),
            promotions: promotions.map_err(|e| SinkConfigError(e.to_string()))?,
        })
    }

    /// Makes the file of `plan` in memory.
    fn encode(&self, rows: &LaneRows<'_>, plan: &FilePlan) -> Result<(Bytes, String), WriteError> {
        let schema = splitter(&*self.schemas, rows, plan)?;
        let made = table::build(rows, plan, schema.as_deref());
        let made = made.map_err(|rows| WriteError::Reject { rows })?;
        let fault = |error: String| {
            // The encoder refused the table as a whole: which rows are to blame?
            let cause = format!("they cannot be encoded: {error}");
            let guilty = super::poison::guilty(plan.rows.len(), &mut |range| {
                let part = plan.part(range);
                table::build(rows, &part, schema.as_deref())
                    .is_ok_and(|made| encode_table(made, self.format).is_err())
            });
            let blamed = guilty.into_iter().filter_map(|i| plan.rows.get(i).copied());
            WriteError::Reject { rows: blamed.map(|i| (i as usize, cause.clone())).collect() }
        };
        let hash = made.hash.clone();
        let bytes = encode_table(made, self.format).map_err(fault)?;
        Ok((Bytes::from(bytes), hash))
    }

    /// The files that `rows` make, by path, without putting them anywhere.
    ///
    /// # Errors
    /// As [`Sink::write`].
    pub fn files(&self, rows: &LaneRows<'_>) -> Result<Vec<(String, Bytes)>, WriteError> {
        let file = |plan: FilePlan| {
            let path = plan.name(rows).path(self.store.root(), self.format);
            Ok((path.to_string(), self.encode(rows, &plan)?.0))
        };
        table::plan(rows).into_iter().map(file).collect()
    }

    fn write_file(&self, rows: &LaneRows<'_>, plan: &FilePlan) -> Result<(), WriteError> {
        let mut name = plan.name(rows);
        if self.is_promoted(rows, plan, &name)? {
            return Ok(());
        }
        let (bytes, hash) = self.encode(rows, plan)?;
        if planted(Bug::NameByAttempt) {
            name.last = name.last.plus(faults::attempt());
        }
        let path = name.path(self.store.root(), self.format);
        if let Some(floor) = self.merger.floor(&name).filter(|floor| name.first < *floor) {
            return Err(WriteError::Conflict {
                cause: format!(
                    "{path} would be written a second time: the lane's files below offset {floor} were \
                     joined; was the sink's cursor set back?"
                ),
            });
        }
        let retry = |e: StoreError| WriteError::Retry { cause: e.to_string() };
        match self.store.put_new(&path, bytes.clone()).map_err(retry)? {
            Put::Done => {
                self.merger.wrote(&name, bytes.len());
                Ok(())
            }
            // Another version of the program may encode the same rows to other bytes.
            Put::Taken(there) if self.same_rows(&there, &bytes, &hash) => {
                self.store.confirm(&path).map_err(retry)
            }
            Put::Taken(there) => Err(WriteError::Conflict {
                cause: format!(
                    "{path} holds {} bytes that are not these {} rows (hash {hash}); it was not \
                     touched",
                    there.len(),
                    plan.rows.len()
                ),
            }),
        }
    }

    fn same_rows(&self, there: &Bytes, ours: &Bytes, hash: &str) -> bool {
        match self.format {
            Format::Parquet => {
                inventory::fact(there.clone(), ROWS_HASH).is_some_and(|theirs| theirs == hash)
            }
            Format::Jsonl | Format::JsonlGz | Format::JsonlZst => {
                let lines = |bytes: &Bytes| jsonl::decode(bytes, self.format).ok();
                lines(there).is_some_and(|theirs| Some(theirs) == lines(ours))
            }
        }
    }
}

/// What splits the rows of `plan` into columns; dead letters are not split.
pub(super) fn splitter(
    schemas: &dyn Schemas,
    rows: &LaneRows<'_>,
    plan: &FilePlan,
) -> Result<Option<Arc<dyn Project>>, WriteError> {
    if rows.lane.dead {
        return Ok(None);
    }
    if plan.schema.hash == [0; 16] {
        return Ok(Some(schemas.none()));
    }
    let missing = || WriteError::Retry {
        cause: format!(
            "the schema {} (version {}) these events were judged by is not in the data folder",
            hex::encode(plan.schema.hash),
            plan.schema.version
        ),
    };
    schemas.get(plan.schema).ok_or_else(missing).map(Some)
}

fn encode_table(made: table::Made, format: Format) -> Result<Vec<u8>, String> {
    match format {
        Format::Parquet => {
            let mut facts = vec![(ROWS_HASH, made.hash)];
            facts.extend(made.facts);
            parquet::encode(made.table, &facts).map_err(|e| e.to_string())
        }
        Format::Jsonl | Format::JsonlGz | Format::JsonlZst => {
            jsonl::encode(&made.table, format).map_err(|e| e.to_string())
        }
    }
}

impl Sink for Lake {
    fn write(&self, rows: &LaneRows<'_>) -> Result<(), WriteError> {
        let mut guilty = Vec::new();
        for plan in table::plan(rows) {
            match self.write_file(rows, &plan) {
                Ok(()) => {}
                // A file with a guilty row was not made; the files without one stay as they are.
                Err(WriteError::Reject { rows }) => guilty.extend(rows),
                Err(other) => return Err(other),
            }
        }
        if guilty.is_empty() {
            return Ok(());
        }
        guilty.sort_unstable_by_key(|(index, _)| *index);
        Err(WriteError::Reject { rows: guilty })
    }

    fn probe(&self) -> Result<(), String> {
        self.store.probe().map_err(|e| e.to_string())
    }

    fn flush_age(&self) -> Duration {
        Duration::from_secs(if self.store.is_local() { 5 } else { 60 })
    }

    fn exchange(&self) -> Result<&dyn Exchange, &'static str> {
        Ok(self)
    }

    fn erase(&self, _: &Erase) -> Result<(), String> {
        let mut paths = Vec::new();
        let root = self.store.root().clone();
        self.store.scan(&root, &mut |path, _| paths.push(path)).map_err(|e| e.to_string())?;
        self.store.remove(&paths).map_err(|e| e.to_string())?;
        self.store.remove_empty_folders().map_err(|e| e.to_string())
    }

    fn upkeep(&self) -> Option<&dyn Upkeep> {
        self.merger.is_on().then_some(self)
    }
}

impl Upkeep for Lake {
    fn turn(&self, turn: &Turn<'_>) -> Duration {
        self.merger.turn(&self.store, turn)
    }

    fn joining(&self) -> Option<JoinStatus> {
        Some(self.merger.status())
    }
}
