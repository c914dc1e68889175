//! A table as one Parquet file: the same table, the same bytes.

use std::sync::Arc;

use bytes::Bytes;
use parquet::{
    basic::{
        Compression, ConvertedType, Encoding, LogicalType, Repetition, TimeUnit, Type, ZstdLevel,
    },
    column::writer::ColumnWriterImpl,
    data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type},
    errors::ParquetError,
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties},
        writer::{SerializedColumnWriter, SerializedFileWriter},
    },
    schema::types::{ColumnPath, Type as SchemaType, TypePtr},
};

use super::columns::{Column, Kind, Table, Values};

/// Rows in one row group at most.
const GROUP_ROWS_MAX: usize = 1_000_000;
/// Bytes of values in one row group at most, apart from one larger row.
const GROUP_BYTES_MAX: usize = 64 << 20;
/// Texts handed to the encoder at a time.
const CHUNK_ROWS: usize = 4_096;
/// Says who wrote the file; part of its bytes.
const CREATED_BY: &str = concat!("tidegate version ", env!("CARGO_PKG_VERSION"));

/// Writes `table`, with `facts` as the file's key-value metadata.
///
/// # Errors
/// [`ParquetError`] when the values cannot be written (a text over 2 GiB, say).
pub fn encode(table: Table, facts: &[(&str, String)]) -> Result<Vec<u8>, ParquetError> {
    let properties = Arc::new(properties(&table, facts)?);
    let bytes: usize = table.columns.iter().map(Column::bytes).sum();
    let mut file = SerializedFileWriter::new(
        Vec::with_capacity(bytes / 4 + 4_096),
        schema(&table)?,
        properties,
    )?;
    let by_bytes = GROUP_BYTES_MAX / (bytes / table.rows.max(1)).max(1);
    let group_rows = by_bytes.clamp(1, GROUP_ROWS_MAX);
    let mut columns: Vec<_> = table.columns.into_iter().map(Cursor::new).collect();
    let mut left = table.rows;
    while 0 < left {
        let rows = left.min(group_rows);
        let mut group = file.next_row_group()?;
        for column in &mut columns {
            let mut writer = group
                .next_column()?
                .ok_or_else(|| ParquetError::General("fewer columns than the schema has".into()))?;
            column.write(rows, &mut writer)?;
            writer.close()?;
        }
        group.close()?;
        left -= rows;
    }
    file.into_inner()
}

fn schema(table: &Table) -> Result<TypePtr, ParquetError> {
    let fields: Result<Vec<_>, _> = table.columns.iter().map(field).collect();
    let root = SchemaType::group_type_builder("schema").with_fields(fields?).build()?;
    Ok(Arc::new(root))
}

fn field(column: &Column) -> Result<TypePtr, ParquetError> {
    let micros = LogicalType::timestamp(true, TimeUnit::MICROS);
    let (physical, logical, converted) = match column.kind {
        Kind::Bool => (Type::BOOLEAN, None, ConvertedType::NONE),
        Kind::I32 => (Type::INT32, None, ConvertedType::NONE),
        Kind::I64 => (Type::INT64, None, ConvertedType::NONE),
        Kind::F64 => (Type::DOUBLE, None, ConvertedType::NONE),
        Kind::Micros => (Type::INT64, Some(micros), ConvertedType::TIMESTAMP_MICROS),
        Kind::Text => (Type::BYTE_ARRAY, Some(LogicalType::String), ConvertedType::UTF8),
        Kind::Json => (Type::BYTE_ARRAY, Some(LogicalType::Json), ConvertedType::JSON),
    };
    let repetition =
        if column.present.is_some() { Repetition::OPTIONAL } else { Repetition::REQUIRED };
    let field = SchemaType::primitive_type_builder(&column.name, physical)
        .with_repetition(repetition)
        .with_logical_type(logical)
        .with_converted_type(converted)
        .build()?;
    Ok(Arc::new(field))
}

fn properties(table: &Table, facts: &[(&str, String)]) -> Result<WriterProperties, ParquetError> {
    let facts: Vec<_> =
        facts.iter().map(|(k, v)| KeyValue::new((*k).to_owned(), v.clone())).collect();
    let mut builder = WriterProperties::builder()
        .set_created_by(CREATED_BY.to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_max_row_group_row_count(None)
        .set_key_value_metadata(Some(facts));
    for column in &table.columns {
        let path = ColumnPath::from(column.name.as_str());
        match column.kind {
            Kind::Micros => {
                builder = builder
                    .set_column_encoding(path.clone(), Encoding::DELTA_BINARY_PACKED)
                    .set_column_statistics_enabled(path, EnabledStatistics::Page);
            }
            Kind::Json => {
                builder = builder.set_column_statistics_enabled(path, EnabledStatistics::None);
            }
            Kind::I32 | Kind::I64 if !column.repeats() => {
                builder = builder.set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
            }
            Kind::I32 | Kind::I64 | Kind::F64 | Kind::Text if column.repeats() => {
                builder = builder.set_column_dictionary_enabled(path, true);
            }
            Kind::Bool | Kind::I32 | Kind::I64 | Kind::F64 | Kind::Text => {}
        }
    }
    Ok(builder.build())
}

/// A column, and how far it is written.
struct Cursor {
    values: Source,
    present: Option<Vec<i16>>,
    row: usize,
    value: usize,
}

/// The values as the encoder takes them.
enum Source {
    Flat(Values),
    Texts(Bytes, Vec<usize>),
}

impl Cursor {
    fn new(column: Column) -> Self {
        let values = match column.values {
            Values::Text(texts) => {
                let (bytes, ends) = texts.into_parts();
                Source::Texts(bytes, ends)
            }
            flat => Source::Flat(flat),
        };
        Self { values, present: column.present, row: 0, value: 0 }
    }

    /// Writes the next `rows` rows.
    fn write(
        &mut self,
        rows: usize,
        writer: &mut SerializedColumnWriter<'_>,
    ) -> Result<(), ParquetError> {
        if !matches!(self.values, Source::Texts(..)) {
            return self.write_chunk(rows, writer);
        }
        let mut left = rows;
        while 0 < left {
            let chunk = left.min(CHUNK_ROWS);
            self.write_chunk(chunk, writer)?;
            left -= chunk;
        }
        Ok(())
    }

    fn write_chunk(
        &mut self,
        rows: usize,
        writer: &mut SerializedColumnWriter<'_>,
    ) -> Result<(), ParquetError> {
        let levels = match &self.present {
            Some(present) => Some(part(present, self.row, rows)?),
            None => None,
        };
        let count = levels.map_or(rows, |l| l.iter().filter(|level| 0 < **level).count());
        let at = self.value;
        match &self.values {
            Source::Flat(Values::Bool(v)) => {
                put(writer.typed::<BoolType>(), part(v, at, count)?, levels)?;
            }
            Source::Flat(Values::I32(v)) => {
                put(writer.typed::<Int32Type>(), part(v, at, count)?, levels)?;
            }
            Source::Flat(Values::I64(v)) => {
                put(writer.typed::<Int64Type>(), part(v, at, count)?, levels)?;
            }
            Source::Flat(Values::F64(v)) => {
                put(writer.typed::<DoubleType>(), part(v, at, count)?, levels)?;
            }
            Source::Flat(Values::Text(_)) => {
                return Err(ParquetError::General("texts that were not taken apart".into()));
            }
            Source::Texts(bytes, ends) => {
                let mut start = match at.checked_sub(1) {
                    Some(before) => *part(ends, before, 1)?.first().unwrap_or(&0),
                    None => 0,
                };
                let mut texts = Vec::with_capacity(count);
                for end in part(ends, at, count)? {
                    texts.push(ByteArray::from(bytes.slice(start..*end)));
                    start = *end;
                }
                put(writer.typed::<ByteArrayType>(), &texts, levels)?;
            }
        }
        self.row += rows;
        self.value += count;
        Ok(())
    }
}

fn part<T>(values: &[T], at: usize, count: usize) -> Result<&[T], ParquetError> {
    let missing = || ParquetError::General("a column is shorter than its table".into());
    values.get(at..at + count).ok_or_else(missing)
}

fn put<T: DataType>(
    writer: &mut ColumnWriterImpl<'_, T>,
    values: &[T::T],
    levels: Option<&[i16]>,
) -> Result<(), ParquetError> {
    writer.write_batch(values, levels, None).map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use parquet::{
        file::reader::{FileReader, SerializedFileReader},
        record::RowAccessor,
    };

    fn table(rows: usize) -> Table {
        let mut id = Column::required("id", Kind::I64, rows);
        let mut at = Column::required("at", Kind::Micros, rows);
        let mut name = Column::optional("name", Kind::Text, rows);
        let mut ratio = Column::optional("ratio", Kind::F64, rows);
        let mut good = Column::optional("good", Kind::Bool, rows);
        let mut custom = Column::optional("custom", Kind::Json, rows);
        for i in 0..rows {
            id.push_i64(i as i64 * 3);
            at.push_i64(1_700_000_000_000_000 + i as i64);
            if i % 3 == 0 {
                name.push_null()
            } else {
                name.push_text(&format!("n{}", i % 5))
            }
            if i % 2 == 0 {
                ratio.push_f64(i as f64 / 7.0)
            } else {
                ratio.push_null()
            }
            if i % 4 == 0 {
                good.push_null()
            } else {
                good.push_bool(i % 8 == 1)
            }
            if i % 5 == 0 { custom.push_text("{\"a\":1}") } else { custom.push_null() }
        }
        Table { columns: vec![id, at, name, ratio, good, custom], rows }
    }

    #[test]
    fn the_same_table_gives_the_same_bytes() {
        let facts = [("tidegate.rows_hash", "00".to_owned())];
        assert_eq!(encode(table(10_000), &facts).unwrap(), encode(table(10_000), &facts).unwrap());
    }

    #[test]
    fn values_and_their_absence_read_back() {
        let bytes = encode(table(9_001), &[]).unwrap();
        let file = SerializedFileReader::new(Bytes::from(bytes)).unwrap();
        assert_eq!(file.metadata().file_metadata().num_rows(), 9_001);
        for (i, row) in file.get_row_iter(None).unwrap().enumerate() {
            let row = row.unwrap();
            assert_eq!(row.get_long(0).unwrap(), i as i64 * 3);
            match i % 3 {
                0 => assert!(row.get_string(2).is_err()),
                _ => assert_eq!(row.get_string(2).unwrap(), &format!("n{}", i % 5)),
            }
            assert_eq!(row.get_double(3).ok(), (i % 2 == 0).then_some(i as f64 / 7.0));
            assert_eq!(row.get_bool(4).ok(), (i % 4 != 0).then_some(i % 8 == 1));
            assert_eq!(row.get_string(5).is_ok(), i % 5 == 0);
        }
    }
}
