//! A file of the lake read back as the table it was made of.

use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use parquet::{
    basic::{LogicalType, Type},
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{ByteArray, DataType},
    errors::{ParquetError, Result},
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData},
        reader::{FileReader, SerializedFileReader},
    },
    schema::types::{ColumnDescriptor, Type as SchemaType},
};

use super::super::columns::{Column, Kind, Table, Values};

/// Values read at a time.
const BATCH: usize = 8_192;
/// What a value of a text takes besides its bytes, and any other value.
const VALUE_BYTES: u64 = 10;

/// A Parquet file in memory.
pub struct Part {
    bytes: Bytes,
    file: SerializedFileReader<Bytes>,
}

/// What files must share to be joined: their columns, and what they say of their rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Likeness {
    schema: SchemaType,
    facts: Vec<(String, Option<String>)>,
}

impl Likeness {
    /// The facts that hold for a file of such rows.
    pub fn facts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.facts.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_deref()?)))
    }
}

/// Facts of one file alone.
const OWN: [&str; 3] = ["tidegate.rows", "tidegate.rows_hash", super::WINDOWS];

impl Part {
    /// Reads its footer.
    ///
    /// # Errors
    /// [`ParquetError`] for what is no Parquet file.
    pub fn open(bytes: Bytes) -> Result<Self> {
        Ok(Self { file: guarded(|| SerializedFileReader::new(bytes.clone()))?, bytes })
    }

    /// The file itself.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    fn metadata(&self) -> &ParquetMetaData {
        self.file.metadata()
    }

    /// What it must share with others.
    pub fn likeness(&self) -> Likeness {
        let file = self.metadata().file_metadata();
        let facts = file.key_value_metadata().map(Vec::as_slice).unwrap_or_default();
        let facts = facts.iter().filter(|fact| !OWN.contains(&fact.key.as_str()));
        let mut facts: Vec<_> = facts.map(|fact| (fact.key.clone(), fact.value.clone())).collect();
        facts.sort_unstable();
        Likeness { schema: file.schema().clone(), facts }
    }

    /// Bytes that its columns take in memory, about.
    pub fn bytes(&self) -> u64 {
        let unsigned = |n: i64| u64::try_from(n).unwrap_or(0);
        let column = |column: &ColumnChunkMetaData| {
            let texts = match column.column_type() {
                // Left out where a column has no statistics; those have no dictionary either.
                Type::BYTE_ARRAY => column
                    .unencoded_byte_array_data_bytes()
                    .unwrap_or_else(|| column.uncompressed_size()),
                _ => 0,
            };
            unsigned(column.num_values()) * VALUE_BYTES + unsigned(texts)
        };
        self.metadata().row_groups().iter().flat_map(|group| group.columns()).map(column).sum()
    }

    /// Its columns, without rows.
    ///
    /// # Errors
    /// [`ParquetError`] for a column that no file of ours has.
    pub fn empty(&self) -> Result<Table> {
        empty(self.metadata())
    }

    /// Adds its rows to `table`, which has its columns.
    ///
    /// # Errors
    /// [`ParquetError`] where they cannot be read.
    pub fn read(&self, table: &mut Table) -> Result<()> {
        guarded(|| self.read_groups(table))
    }

    fn read_groups(&self, table: &mut Table) -> Result<()> {
        for group in 0..self.file.num_row_groups() {
            let group = self.file.get_row_group(group)?;
            for (index, column) in table.columns.iter_mut().enumerate() {
                let mut reader = group.get_column_reader(index)?;
                while 0 < read_some(&mut reader, column, BATCH)? {}
            }
            let rows = group.metadata().num_rows();
            table.rows += usize::try_from(rows).map_err(|_| fault("fewer rows than none"))?;
        }
        Ok(())
    }
}

/// Decoders of Parquet panic at some damage: a damaged file must not end more than its own reading. What was
/// being read is not used any more after that.
///
/// # Errors
/// As `read`, and [`ParquetError`] where it panics.
pub fn guarded<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    let read = std::panic::catch_unwind(AssertUnwindSafe(read));
    read.unwrap_or_else(|_| Err(fault("it is damaged and cannot be decoded")))
}

fn fault(what: &str) -> ParquetError {
    ParquetError::General(what.to_owned())
}

/// The columns of a file, without rows.
///
/// # Errors
/// [`ParquetError`] for a column that no file of ours has.
pub fn empty(file: &ParquetMetaData) -> Result<Table> {
    let columns = file.file_metadata().schema_descr().columns();
    let columns = columns.iter().map(|column| empty_column(column)).collect::<Result<_>>()?;
    Ok(Table { columns, rows: 0 })
}

fn empty_column(column: &ColumnDescriptor) -> Result<Column> {
    let kind = match (column.physical_type(), column.logical_type_ref()) {
        (Type::BOOLEAN, _) => Kind::Bool,
        (Type::INT32, _) => Kind::I32,
        (Type::INT64, Some(LogicalType::Timestamp { .. })) => Kind::Micros,
        (Type::INT64, _) => Kind::I64,
        (Type::DOUBLE, _) => Kind::F64,
        (Type::BYTE_ARRAY, Some(LogicalType::Json)) => Kind::Json,
        (Type::BYTE_ARRAY, _) => Kind::Text,
        (other, _) => return Err(fault(&format!("a column of {other}"))),
    };
    match (column.max_def_level(), column.max_rep_level()) {
        (0, 0) => Ok(Column::required(column.name(), kind, 0)),
        (1, 0) => Ok(Column::optional(column.name(), kind, 0)),
        _ => Err(fault("a column inside of another")),
    }
}

/// Adds the values of the next rows of a group, `most` at most, to a column of its kind; how many rows
/// they were, 0 behind the last.
///
/// # Errors
/// [`ParquetError`] where they cannot be read.
pub fn read_some(reader: &mut ColumnReader, column: &mut Column, most: usize) -> Result<usize> {
    let present = column.present.as_mut();
    match (reader, &mut column.values) {
        (ColumnReader::BoolColumnReader(reader), Values::Bool(to)) => {
            some(reader, present, to, most)
        }
        (ColumnReader::Int32ColumnReader(reader), Values::I32(to)) => {
            some(reader, present, to, most)
        }
        (ColumnReader::Int64ColumnReader(reader), Values::I64(to)) => {
            some(reader, present, to, most)
        }
        (ColumnReader::DoubleColumnReader(reader), Values::F64(to)) => {
            some(reader, present, to, most)
        }
        (ColumnReader::ByteArrayColumnReader(reader), Values::Text(to)) => {
            let mut texts: Vec<ByteArray> = Vec::new();
            let rows = some(reader, present, &mut texts, most)?;
            for text in texts {
                to.push(text.as_utf8()?);
            }
            Ok(rows)
        }
        _ => Err(fault("a column of another type than in the file before")),
    }
}

fn some<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    present: Option<&mut Vec<i16>>,
    to: &mut Vec<T::T>,
    most: usize,
) -> Result<usize> {
    Ok(reader.read_records(most, present, None, to)?.0)
}
