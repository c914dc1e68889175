//! A table as lines of JSON, one object a row, with the columns' names as keys.

use std::io::{self, Write};

use super::{
    columns::{Column, Kind, Table, Values},
    layout::Format,
};

/// Writes `table`; a row without a value in a column has `null` there.
///
/// # Errors
/// As the compressor's; writing to memory does not fail.
pub fn encode(table: &Table, format: Format) -> io::Result<Vec<u8>> {
    compress(lines(table)?, format)
}

/// Lines as a file of this format.
///
/// # Errors
/// As the compressor's; writing to memory does not fail.
pub fn compress(lines: Vec<u8>, format: Format) -> io::Result<Vec<u8>> {
    match format {
        Format::Jsonl | Format::Parquet => Ok(lines),
        Format::JsonlGz => {
            // The header holds no name and no time: the same lines, the same bytes.
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(4));
            out.write_all(&lines)?;
            out.finish()
        }
        Format::JsonlZst => zstd::bulk::compress(&lines, 1),
    }
}

/// The lines of a file as they were before compression.
///
/// # Errors
/// `InvalidData` where the bytes are not what the format says.
pub fn decode(bytes: &[u8], format: Format) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    match format {
        Format::Jsonl | Format::Parquet => lines.extend_from_slice(bytes),
        Format::JsonlGz => {
            io::copy(&mut flate2::read::MultiGzDecoder::new(bytes), &mut lines)?;
        }
        Format::JsonlZst => zstd::stream::copy_decode(bytes, &mut lines)?,
    }
    Ok(lines)
}

/// How long the lines of a file are, where it says so.
#[must_use]
pub fn decoded_bytes(bytes: &[u8], format: Format) -> Option<u64> {
    match format {
        Format::Jsonl | Format::Parquet => Some(bytes.len() as u64),
        // What one member says of itself, modulo 4 GiB: no file of ours is as long.
        Format::JsonlGz => Some(u32::from_le_bytes(*bytes.last_chunk()?).into()),
        Format::JsonlZst => zstd::zstd_safe::get_frame_content_size(bytes).ok()?,
    }
}

fn lines(table: &Table) -> io::Result<Vec<u8>> {
    let bytes: usize = table.columns.iter().map(Column::bytes).sum();
    let names: usize = table.columns.iter().map(|c| c.name.len() + 4).sum();
    let mut out = Vec::with_capacity(bytes + names * table.rows);
    let mut keys = Vec::with_capacity(table.columns.len());
    for column in &table.columns {
        keys.push(format!("{}:", serde_json::to_string(&column.name)?));
    }
    let mut rows = Rows::of(table);
    while rows.advance() {
        let mut before = b'{';
        for (column, key) in keys.iter().enumerate() {
            out.push(before);
            before = b',';
            out.extend_from_slice(key.as_bytes());
            if !rows.value(column, &mut out)? {
                out.extend_from_slice(b"null");
            }
        }
        out.extend_from_slice(b"}\n");
    }
    Ok(out)
}

/// The rows of a table, one after the other, their values as JSON without line ends.
pub struct Rows<'t> {
    table: &'t Table,
    row: usize,
    /// Where each column's value of this row lies, if it has one.
    at: Vec<Option<usize>>,
    next: Vec<usize>,
}

impl<'t> Rows<'t> {
    /// Stands before the first row.
    #[must_use]
    pub fn of(table: &'t Table) -> Self {
        let columns = table.columns.len();
        Self { table, row: 0, at: vec![None; columns], next: vec![0; columns] }
    }

    /// Goes to the next row; false behind the last.
    pub fn advance(&mut self) -> bool {
        if self.table.rows <= self.row {
            return false;
        }
        for ((column, at), next) in self.table.columns.iter().zip(&mut self.at).zip(&mut self.next)
        {
            let there = column.present.as_ref();
            let there = there.is_none_or(|p| p.get(self.row).is_some_and(|level| 0 < *level));
            *at = there.then_some(*next);
            *next += usize::from(there);
        }
        self.row += 1;
        true
    }

    /// Writes this row's value of a column; false where it has none.
    ///
    /// # Errors
    /// `InvalidData` for a column that is shorter than its table.
    pub fn value(&self, column: usize, out: &mut Vec<u8>) -> io::Result<bool> {
        let at = self.at.get(column).copied().flatten();
        match (self.table.columns.get(column), at) {
            (Some(column), Some(at)) => value(column, at, out).map(|()| true),
            _ => Ok(false),
        }
    }
}

/// Writes the value at `index` of those that are there.
///
/// # Errors
/// `InvalidData` where there is none.
pub fn value(column: &Column, index: usize, out: &mut Vec<u8>) -> io::Result<()> {
    let missing = || io::Error::new(io::ErrorKind::InvalidData, "a column shorter than its table");
    match &column.values {
        Values::Bool(v) => write!(out, "{}", v.get(index).ok_or_else(missing)?),
        Values::I32(v) => write!(out, "{}", v.get(index).ok_or_else(missing)?),
        Values::I64(v) if column.kind == Kind::Micros => {
            write!(out, "\"{}\"", rfc3339(*v.get(index).ok_or_else(missing)?))
        }
        Values::I64(v) => write!(out, "{}", v.get(index).ok_or_else(missing)?),
        Values::F64(v) => Ok(serde_json::to_writer(out, v.get(index).ok_or_else(missing)?)?),
        Values::Text(v) if column.kind == Kind::Json => {
            // Outside of its strings JSON may hold line ends, inside never.
            let text = v.get(index).bytes();
            out.extend(text.map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { b }));
            Ok(())
        }
        Values::Text(v) => Ok(serde_json::to_writer(out, v.get(index))?),
    }
}

/// RFC 3339 with microseconds and `Z`; the bare number where the calendar ends (before the year
/// -9999 or after 9999).
#[must_use]
pub fn rfc3339(micros: i64) -> String {
    match jiff::Timestamp::from_microsecond(micros) {
        Ok(time) => format!("{time:.6}"),
        Err(_) => micros.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut at = Column::required("at", Kind::Micros, 2);
        let mut name = Column::optional("na\"me", Kind::Text, 2);
        let mut custom = Column::optional("custom", Kind::Json, 2);
        at.push_i64(1_700_000_000_000_001);
        name.push_text("a\n\"b\"");
        custom.push_text("{\n\"x\": 1.50}");
        at.push_i64(0);
        name.push_null();
        custom.push_null();
        Table { columns: vec![at, name, custom], rows: 2 }
    }

    #[test]
    fn each_row_is_one_line() {
        let lines = String::from_utf8(encode(&table(), Format::Jsonl).unwrap()).unwrap();
        assert_eq!(
            lines,
            "{\"at\":\"2023-11-14T22:13:20.000001Z\",\"na\\\"me\":\"a\\n\\\"b\\\"\",\"custom\":{ \"x\": 1.50}}\n\
             {\"at\":\"1970-01-01T00:00:00.000000Z\",\"na\\\"me\":null,\"custom\":null}\n"
        );
    }

    #[test]
    fn every_compression_reads_back_and_repeats() {
        let plain = encode(&table(), Format::Jsonl).unwrap();
        for format in [Format::Jsonl, Format::JsonlGz, Format::JsonlZst] {
            let bytes = encode(&table(), format).unwrap();
            assert_eq!(bytes, encode(&table(), format).unwrap());
            assert_eq!(decode(&bytes, format).unwrap(), plain);
            assert_eq!(decoded_bytes(&bytes, format), Some(plain.len() as u64));
        }
    }
}
