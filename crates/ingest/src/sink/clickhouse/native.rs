//! A table as one block of ClickHouse's Native format.
//!
//! ```text
//! block   columns: varint, rows: varint, then each column
//! column  name: text, type: text, values
//! values  of Nullable(T): one byte a row, 1 where there is none; then a T for every row
//! text    length in bytes: varint, bytes; numbers are little-endian
//! ```

use super::super::lake::columns::{Column, Kind, Table, Values};

/// One more column, of which every row has the same text: `tenant`, for instance.
pub struct Constant<'a> {
    /// Its name.
    pub name: &'a str,
    /// The text.
    pub text: &'a str,
}

/// The type that a column of this kind is sent as.
#[must_use]
pub fn type_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Bool => "Bool",
        Kind::I32 => "Int32",
        Kind::I64 => "Int64",
        Kind::F64 => "Float64",
        Kind::Micros => "DateTime64(6, 'UTC')",
        Kind::Text | Kind::Json => "String",
    }
}

/// Encodes `table`, with `constants` in front. Each column is given up once it is written.
#[must_use]
pub fn encode(constants: &[Constant<'_>], table: Table) -> Vec<u8> {
    let mut out = Vec::with_capacity(table.columns.iter().map(Column::bytes).sum::<usize>() + 4096);
    varint(&mut out, constants.len() + table.columns.len());
    varint(&mut out, table.rows);
    for constant in constants {
        text(&mut out, constant.name);
        text(&mut out, type_of(Kind::Text));
        for _ in 0..table.rows {
            text(&mut out, constant.text);
        }
    }
    for column in table.columns {
        put(&mut out, &column);
    }
    out
}

fn put(out: &mut Vec<u8>, column: &Column) {
    let sent = type_of(column.kind);
    text(out, &column.name);
    // Where every row has a value there is nothing to say about those that have none.
    let holes = column.present.as_deref().filter(|present| present.contains(&0));
    match holes {
        None => text(out, sent),
        Some(present) => {
            text(out, &format!("Nullable({sent})"));
            out.extend(present.iter().map(|there| u8::from(*there == 0)));
        }
    }
    match &column.values {
        Values::Bool(v) => fill(out, holes, v, |out, v| out.push(u8::from(v))),
        Values::I32(v) => fill(out, holes, v, |out, v| out.extend_from_slice(&v.to_le_bytes())),
        Values::I64(v) => fill(out, holes, v, |out, v| out.extend_from_slice(&v.to_le_bytes())),
        Values::F64(v) => fill(out, holes, v, |out, v| out.extend_from_slice(&v.to_le_bytes())),
        Values::Text(v) => match holes {
            None => (0..v.len()).for_each(|i| text(out, v.get(i))),
            Some(present) => {
                let mut next = 0;
                for there in present {
                    if *there == 0 {
                        text(out, "");
                    } else {
                        text(out, v.get(next));
                        next += 1;
                    }
                }
            }
        },
    }
}

/// Writes a value for each row: nothing stands for those that have none.
fn fill<T: Copy + Default>(
    out: &mut Vec<u8>,
    holes: Option<&[i16]>,
    values: &[T],
    write: impl Fn(&mut Vec<u8>, T),
) {
    match holes {
        None => values.iter().for_each(|value| write(out, *value)),
        Some(present) => {
            let mut values = values.iter();
            for there in present {
                let value = if *there == 0 { None } else { values.next() };
                write(out, value.copied().unwrap_or_default());
            }
        }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    varint(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

/// Seven bits a byte, the lowest first.
fn varint(out: &mut Vec<u8>, value: usize) {
    let mut left = value as u64;
    loop {
        let low = (left & 0x7f).to_le_bytes()[0];
        left >>= 7;
        if left == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads a block back as its columns: name, type, and each row's value as text.
    struct Reader<'a>(&'a [u8]);

    impl Reader<'_> {
        fn take(&mut self, n: usize) -> Vec<u8> {
            let (taken, rest) = self.0.split_at(n);
            self.0 = rest;
            taken.to_vec()
        }

        fn varint(&mut self) -> usize {
            let (mut value, mut shift) = (0usize, 0);
            loop {
                let byte = self.take(1)[0];
                value |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    return value;
                }
            }
        }

        fn text(&mut self) -> String {
            let n = self.varint();
            String::from_utf8(self.take(n)).unwrap()
        }

        fn value(&mut self, of: &str) -> String {
            match of {
                "Bool" => (self.take(1)[0] == 1).to_string(),
                "Int32" => i32::from_le_bytes(self.take(4).try_into().unwrap()).to_string(),
                "Int64" | "DateTime64(6, 'UTC')" => {
                    i64::from_le_bytes(self.take(8).try_into().unwrap()).to_string()
                }
                "Float64" => f64::from_le_bytes(self.take(8).try_into().unwrap()).to_string(),
                "String" => self.text(),
                other => panic!("{other}"),
            }
        }

        fn block(mut self) -> Vec<(String, String, Vec<Option<String>>)> {
            let (columns, rows) = (self.varint(), self.varint());
            let read = (0..columns).map(|_| {
                let (name, of) = (self.text(), self.text());
                let inner =
                    of.strip_prefix("Nullable(").and_then(|of| of.strip_suffix(')')).unwrap_or(&of);
                let holes = if inner == of { vec![0; rows] } else { self.take(rows) };
                let values = holes.iter().map(|hole| {
                    let value = self.value(inner);
                    (*hole == 0).then_some(value)
                });
                let values = values.collect();
                (name, of, values)
            });
            let read = read.collect();
            assert!(self.0.is_empty(), "{} bytes are left", self.0.len());
            read
        }
    }

    #[derive(Clone, Debug)]
    enum Sample {
        Bool(bool),
        I32(i32),
        I64(i64),
        F64(f64),
        Text(String),
    }

    fn kind(sample: &Sample) -> Kind {
        match sample {
            Sample::Bool(_) => Kind::Bool,
            Sample::I32(_) => Kind::I32,
            Sample::I64(_) => Kind::I64,
            Sample::F64(_) => Kind::F64,
            Sample::Text(_) => Kind::Text,
        }
    }

    fn sample(of: u8) -> BoxedStrategy<Sample> {
        match of {
            0 => any::<bool>().prop_map(Sample::Bool).boxed(),
            1 => any::<i32>().prop_map(Sample::I32).boxed(),
            2 => any::<i64>().prop_map(Sample::I64).boxed(),
            3 => (-1e9f64..1e9).prop_map(Sample::F64).boxed(),
            _ => ".{0,200}".prop_map(Sample::Text).boxed(),
        }
    }

    fn columns() -> impl Strategy<Value = Vec<Vec<Option<Sample>>>> {
        let column = |rows: usize| {
            (0u8..5).prop_flat_map(move |of| {
                proptest::collection::vec(proptest::option::weighted(0.8, sample(of)), rows)
            })
        };
        (0usize..40).prop_flat_map(move |rows| proptest::collection::vec(column(rows), 1..6))
    }

    fn push(column: &mut Column, value: &Option<Sample>) -> Option<String> {
        match value {
            None => column.push_null(),
            Some(Sample::Bool(v)) => column.push_bool(*v),
            Some(Sample::I32(v)) => column.push_i32(*v),
            Some(Sample::I64(v)) => column.push_i64(*v),
            Some(Sample::F64(v)) => column.push_f64(*v),
            Some(Sample::Text(v)) => column.push_text(v),
        }
        value.as_ref().map(|value| match value {
            Sample::Bool(v) => v.to_string(),
            Sample::I32(v) => v.to_string(),
            Sample::I64(v) => v.to_string(),
            Sample::F64(v) => v.to_string(),
            Sample::Text(v) => v.clone(),
        })
    }

    proptest! {
        #[test]
        fn every_block_reads_back(given in columns(), tenant in "[a-z]{1,300}") {
            let rows = given[0].len();
            let (mut made, mut expected) = (Vec::new(), Vec::new());
            for (i, values) in given.iter().enumerate() {
                let of = values.iter().flatten().next().map_or(Kind::Json, kind);
                let mut column = Column::optional(&format!("c{i}"), of, rows);
                let texts: Vec<_> = values.iter().map(|v| push(&mut column, v)).collect();
                let holes = texts.contains(&None);
                let sent = type_of(of);
                let sent = if holes { format!("Nullable({sent})") } else { sent.to_owned() };
                expected.push((format!("c{i}"), sent, texts));
                made.push(column);
            }
            let constant = Constant { name: "tenant", text: &tenant };
            let block = encode(&[constant], Table { columns: made, rows });
            let mut read = Reader(&block).block();
            let first = read.remove(0);
            prop_assert_eq!(first.2, vec![Some(tenant); rows]);
            prop_assert_eq!(read, expected);
        }
    }
}
