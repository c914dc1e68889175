//! Makes one file of several, in memory, and reads it back before anybody relies on it.

use std::hash::Hasher;

use bytes::Bytes;
use object_store::path::Path;
use siphasher::sip128::{Hasher128, SipHasher13};

use super::{
    super::{
        columns::{Column, Table, Values},
        jsonl,
        layout::{FileName, Format},
        parquet,
        store::{LakeStore, StoreError},
    },
    choose::{Item, choose},
    read::{Likeness, Part},
};

/// Files are not joined.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The store does not give one.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// One is not what its name says.
    #[error("{path}: {cause}")]
    File {
        /// Which.
        path: String,
        /// What is wrong.
        cause: String,
    },
}

/// A small file.
#[derive(Clone, Debug)]
pub struct Small {
    /// Where it lies.
    pub path: Path,
    /// What its name says.
    pub name: FileName,
}

/// One file made of several; nowhere yet.
#[derive(Debug)]
pub struct Joined {
    /// What it is called.
    pub name: FileName,
    /// Its content.
    pub bytes: Bytes,
    /// What it is made of.
    pub parts: Vec<Path>,
}

fn fault(path: &Path, error: impl std::fmt::Display) -> BuildError {
    BuildError::File { path: path.to_string(), cause: error.to_string() }
}

/// What joining may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// What the files of one group may take in memory.
    pub group: u64,
    /// Bytes of all that is made; the last file may exceed it.
    pub all: u64,
}

/// Joins those of `files` that are alike; false where not all that could be joined were. `stop` is
/// asked between two files.
///
/// # Errors
/// [`BuildError`]; nothing was changed.
pub fn join(
    store: &LakeStore,
    format: Format,
    files: &[Small],
    bounds: Bounds,
    stop: &dyn Fn() -> bool,
) -> Result<(Vec<Joined>, bool), BuildError> {
    let mut likenesses: Vec<Option<Likeness>> = Vec::new();
    let (mut items, mut known) = (Vec::new(), Vec::new());
    for file in files {
        if stop() {
            return Ok((Vec::new(), false));
        }
        let bytes = store.get(&file.path)?;
        let (likeness, bytes) = measure(format, bytes).map_err(|e| fault(&file.path, e))?;
        let Some(bytes) = bytes else { continue };
        let place = likenesses.iter().position(|known| *known == likeness);
        let likeness = place.unwrap_or_else(|| {
            likenesses.push(likeness);
            likenesses.len() - 1
        });
        items.push(Item { first: file.name.first, last: file.name.last, likeness, bytes });
        known.push(file);
    }
    let (mut made, mut bytes_made) = (Vec::new(), 0);
    for group in choose(&items, bounds.group) {
        if stop() || bounds.all <= bytes_made {
            return Ok((made, false));
        }
        let parts: Vec<_> = group.iter().filter_map(|i| known.get(*i).copied()).collect();
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { continue };
        let name = FileName { last: last.name.last, ..first.name.clone() };
        let bytes = match format {
            Format::Parquet => join_parquet(store, &parts)?,
            Format::Jsonl | Format::JsonlGz | Format::JsonlZst => {
                join_lines(store, format, &parts)?
            }
        };
        let parts = parts.into_iter().map(|part| part.path.clone()).collect();
        bytes_made += bytes.len() as u64;
        made.push(Joined { name, bytes, parts });
    }
    Ok((made, true))
}

/// What a file must share with others, and what it takes in memory, where it says so.
fn measure(format: Format, bytes: Bytes) -> Result<(Option<Likeness>, Option<u64>), String> {
    match format {
        Format::Parquet => {
            let part = Part::open(bytes).map_err(|e| e.to_string())?;
            Ok((Some(part.likeness()), Some(part.bytes())))
        }
        Format::Jsonl | Format::JsonlGz | Format::JsonlZst => {
            Ok((None, jsonl::decoded_bytes(&bytes, format)))
        }
    }
}

fn join_parquet(store: &LakeStore, parts: &[&Small]) -> Result<Bytes, BuildError> {
    let mut all: Option<(Table, Likeness)> = None;
    for small in parts {
        let part = Part::open(store.get(&small.path)?).map_err(|e| fault(&small.path, e))?;
        let mut add = || -> Result<(), ::parquet::errors::ParquetError> {
            let (table, _) = match &mut all {
                Some(all) => all,
                None => all.insert((part.empty()?, part.likeness())),
            };
            part.read(table)
        };
        add().map_err(|e| fault(&small.path, e))?;
    }
    let Some(((table, likeness), first)) = all.zip(parts.first()) else { return Ok(Bytes::new()) };
    let mut facts = vec![("tidegate.rows", table.rows.to_string())];
    facts.extend(likeness.facts().map(|(key, value)| (key, value.to_owned())));
    let spans: Vec<_> = parts.iter().map(|p| [p.name.first.0, p.name.last.0]).collect();
    facts.push((super::WINDOWS, serde_json::json!(spans).to_string()));
    let before = fingerprint(&table);
    let read_back = |table| -> Result<Bytes, String> {
        let bytes = parquet::encode(table, &facts).map_err(|e| e.to_string())?;
        let part = Part::open(Bytes::from(bytes)).map_err(|e| e.to_string())?;
        let mut table = part.empty().map_err(|e| e.to_string())?;
        part.read(&mut table).map_err(|e| e.to_string())?;
        if fingerprint(&table) != before {
            return Err("what was written is not what was read".to_owned());
        }
        Ok(part.into_bytes())
    };
    read_back(table).map_err(|e| fault(&first.path, e))
}

fn join_lines(store: &LakeStore, format: Format, parts: &[&Small]) -> Result<Bytes, BuildError> {
    let mut lines = Vec::new();
    for small in parts {
        let bytes = store.get(&small.path)?;
        let own = jsonl::decode(&bytes, format).map_err(|e| fault(&small.path, e))?;
        if own.last() != Some(&b'\n') {
            return Err(fault(&small.path, "its last line has no end"));
        }
        lines.extend_from_slice(&own);
    }
    let Some(first) = parts.first() else { return Ok(Bytes::new()) };
    let mut hasher = SipHasher13::new();
    hasher.write(&lines);
    let before = hasher.finish128();
    let bytes = jsonl::compress(lines, format).map_err(|e| fault(&first.path, e))?;
    let mut hasher = SipHasher13::new();
    hasher.write(&jsonl::decode(&bytes, format).map_err(|e| fault(&first.path, e))?);
    if hasher.finish128() != before {
        return Err(fault(&first.path, "what was written is not what was read"));
    }
    Ok(bytes.into())
}

/// A hash over all values of a table, and where there are none.
pub fn fingerprint(table: &Table) -> (usize, u128) {
    let mut hasher = SipHasher13::new();
    table.columns.iter().for_each(|column| hash(column, &mut hasher));
    (table.rows, hasher.finish128().as_u128())
}

fn hash(column: &Column, hasher: &mut SipHasher13) {
    hasher.write(column.name.as_bytes());
    hasher.write_u8(column.kind as u8);
    hasher.write_usize(column.present.as_ref().map_or(0, |present| 1 + present.len()));
    column.present.iter().flatten().for_each(|level| hasher.write_i16(*level));
    hasher.write_usize(column.count());
    match &column.values {
        Values::Bool(v) => v.iter().for_each(|value| hasher.write_u8((*value).into())),
        Values::I32(v) => v.iter().for_each(|value| hasher.write_i32(*value)),
        Values::I64(v) => v.iter().for_each(|value| hasher.write_i64(*value)),
        Values::F64(v) => v.iter().for_each(|value| hasher.write_u64(value.to_bits())),
        Values::Text(v) => (0..v.len()).for_each(|i| {
            hasher.write_usize(v.get(i).len());
            hasher.write(v.get(i).as_bytes());
        }),
    }
}
