//! A file of a lake without some of its rows: the others with the same values, in the same order.

use bytes::Bytes;
use serde::Deserialize;
use tidegate_event::Offset;

use super::super::{
    columns::{Table, Values},
    jsonl,
    layout::Format,
    merge::{build::fingerprint, read::Part},
    parquet,
};

/// What stays of a file.
#[derive(Debug)]
pub struct Rest {
    pub bytes: Bytes,
    /// The offset of its first row.
    pub first: Offset,
    /// The offset of its last row.
    pub last: Offset,
}

/// The file without the rows for which `goes` says so; `None` where no row stays. What is returned was
/// read back.
///
/// # Errors
/// It is not what its name says.
pub fn cut(
    bytes: Bytes,
    format: Format,
    goes: &dyn Fn(Offset) -> bool,
) -> Result<Option<Rest>, String> {
    match format {
        Format::Parquet => cut_parquet(bytes, goes),
        Format::Jsonl | Format::JsonlGz | Format::JsonlZst => cut_lines(&bytes, format, goes),
    }
}

fn offsets(table: &Table) -> Result<Vec<Offset>, String> {
    let column = table.columns.iter().find(|column| column.name == "log_offset");
    let Some(Values::I64(values)) = column.map(|column| &column.values) else {
        return Err("it has no log_offset".to_owned());
    };
    let offset = |value: &i64| u64::try_from(*value).map(Offset);
    values.iter().map(offset).collect::<Result<_, _>>().map_err(|e| e.to_string())
}

fn cut_parquet(bytes: Bytes, goes: &dyn Fn(Offset) -> bool) -> Result<Option<Rest>, String> {
    let told = |e: ::parquet::errors::ParquetError| e.to_string();
    let part = Part::open(bytes).map_err(told)?;
    let mut table = part.empty().map_err(told)?;
    part.read(&mut table).map_err(told)?;
    let all = offsets(&table)?;
    let stays: Vec<bool> = all.iter().map(|offset| !goes(*offset)).collect();
    table.retain(&stays);
    let ends = offsets(&table)?;
    let Some((first, last)) = ends.first().zip(ends.last()) else { return Ok(None) };
    let mut facts = vec![("tidegate.rows", table.rows.to_string())];
    let likeness = part.likeness();
    facts.extend(likeness.facts().map(|(key, value)| (key, value.to_owned())));
    let before = fingerprint(&table);
    let bytes = Bytes::from(parquet::encode(table, &facts).map_err(told)?);
    let back = Part::open(bytes).map_err(told)?;
    let mut table = back.empty().map_err(told)?;
    back.read(&mut table).map_err(told)?;
    if fingerprint(&table) != before {
        return Err("what was written is not what was read".to_owned());
    }
    Ok(Some(Rest { bytes: back.into_bytes(), first: *first, last: *last }))
}

#[derive(Deserialize)]
struct Line {
    log_offset: u64,
}

fn cut_lines(
    bytes: &Bytes,
    format: Format,
    goes: &dyn Fn(Offset) -> bool,
) -> Result<Option<Rest>, String> {
    let lines = jsonl::decode(bytes, format).map_err(|e| e.to_string())?;
    let (mut rest, mut ends) = (Vec::new(), None);
    for line in lines.split_inclusive(|b| *b == b'\n') {
        let offset: Line = serde_json::from_slice(line).map_err(|e| e.to_string())?;
        let offset = Offset(offset.log_offset);
        if !goes(offset) {
            rest.extend_from_slice(line);
            ends = Some((ends.map_or(offset, |(first, _)| first), offset));
        }
    }
    let Some((first, last)) = ends else { return Ok(None) };
    let bytes = Bytes::from(jsonl::compress(rest.clone(), format).map_err(|e| e.to_string())?);
    if jsonl::decode(&bytes, format).map_err(|e| e.to_string())? != rest {
        return Err("what was written is not what was read".to_owned());
    }
    Ok(Some(Rest { bytes, first, last }))
}
