//! Rows as columns: flat vectors, the form both Parquet and JSONL are written from.

use bytes::Bytes;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// true or false
    Bool,
    /// 32-bit integers
    I32,
    /// 64-bit integers
    I64,
    /// Double precision numbers
    F64,
    /// Microseconds since 1970, UTC
    Micros,
    /// UTF-8 text
    Text,
    /// One JSON value, as text
    Json,
}

/// The values that are there, one behind the other.
#[derive(Clone, Debug)]
pub enum Values {
    /// For [`Kind::Bool`].
    Bool(Vec<bool>),
    /// For [`Kind::I32`].
    I32(Vec<i32>),
    /// For [`Kind::I64`] and [`Kind::Micros`].
    I64(Vec<i64>),
    /// For [`Kind::F64`].
    F64(Vec<f64>),
    /// For [`Kind::Text`] and [`Kind::Json`].
    Text(Texts),
}

/// Many texts in one piece of memory.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Texts {
    /// Adds one.
    pub fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
        self.ends.push(self.bytes.len());
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All their bytes.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The text at `index`; empty where there is none.
    #[must_use]
    pub fn get(&self, index: usize) -> &str {
        let range = self.range(index);
        // Only whole texts were pushed, so each range is UTF-8.
        self.bytes.get(range).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default()
    }

    fn range(&self, index: usize) -> std::ops::Range<usize> {
        let start = index.checked_sub(1).and_then(|i| self.ends.get(i)).copied().unwrap_or(0);
        start..self.ends.get(index).copied().unwrap_or(start)
    }

    /// Gives up the memory as one piece, and where each text lies in it.
    #[must_use]
    pub fn into_parts(self) -> (Bytes, Vec<usize>) {
        (Bytes::from(self.bytes), self.ends)
    }
}

/// One column of a table under construction.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
    /// For a column that may hold nothing: 1 where a row has a value, 0 where not. `None`: each row
    /// has one.
    pub present: Option<Vec<i16>>,
    /// The values.
    pub values: Values,
}

impl Column {
    /// A column of which each row has a value.
    #[must_use]
    pub fn required(name: &str, kind: Kind, rows: usize) -> Self {
        let values = match kind {
            Kind::Bool => Values::Bool(Vec::with_capacity(rows)),
            Kind::I32 => Values::I32(Vec::with_capacity(rows)),
            Kind::I64 | Kind::Micros => Values::I64(Vec::with_capacity(rows)),
            Kind::F64 => Values::F64(Vec::with_capacity(rows)),
            Kind::Text | Kind::Json => {
                Values::Text(Texts { bytes: Vec::new(), ends: Vec::with_capacity(rows) })
            }
        };
        Self { name: name.to_owned(), kind, present: None, values }
    }

    /// A column of which a row may have no value.
    #[must_use]
    pub fn optional(name: &str, kind: Kind, rows: usize) -> Self {
        Self { present: Some(Vec::with_capacity(rows)), ..Self::required(name, kind, 0) }
    }

    /// This row has no value.
    pub fn push_null(&mut self) {
        if let Some(present) = &mut self.present {
            present.push(0);
        }
    }

    fn there(&mut self) {
        if let Some(present) = &mut self.present {
            present.push(1);
        }
    }

    /// This row's text; for a column of another kind: none.
    pub fn push_text(&mut self, text: &str) {
        match &mut self.values {
            Values::Text(texts) => {
                texts.push(text);
                self.there();
            }
            _ => self.push_null(),
        }
    }

    /// This row's number; for a column of another kind: none.
    pub fn push_i64(&mut self, value: i64) {
        match &mut self.values {
            Values::I64(values) => {
                values.push(value);
                self.there();
            }
            _ => self.push_null(),
        }
    }

    /// This row's number; for a column of another kind: none.
    pub fn push_i32(&mut self, value: i32) {
        match &mut self.values {
            Values::I32(values) => {
                values.push(value);
                self.there();
            }
            _ => self.push_null(),
        }
    }

    /// This row's number; for a column of another kind: none.
    pub fn push_f64(&mut self, value: f64) {
        match &mut self.values {
            Values::F64(values) => {
                values.push(value);
                self.there();
            }
            _ => self.push_null(),
        }
    }

    /// This row's truth; for a column of another kind: none.
    pub fn push_bool(&mut self, value: bool) {
        match &mut self.values {
            Values::Bool(values) => {
                values.push(value);
                self.there();
            }
            _ => self.push_null(),
        }
    }

    /// How many values are there.
    #[must_use]
    pub fn count(&self) -> usize {
        match &self.values {
            Values::Bool(v) => v.len(),
            Values::I32(v) => v.len(),
            Values::I64(v) => v.len(),
            Values::F64(v) => v.len(),
            Values::Text(v) => v.len(),
        }
    }

    /// How many bytes the values take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::Bool(v) => v.len(),
            Values::I32(v) => v.len() * 4,
            Values::I64(v) => v.len() * 8,
            Values::F64(v) => v.len() * 8,
            Values::Text(v) => v.total_bytes() + v.len() * 8,
        }
    }

    /// Drops the rows for which `keep` says false: one word for each row.
    pub fn retain(&mut self, keep: &[bool]) {
        let there: Vec<bool> = match &mut self.present {
            None => keep.to_vec(),
            Some(present) => {
                let values = present.iter().zip(keep).filter(|(level, _)| **level != 0);
                let values = values.map(|(_, keep)| *keep).collect();
                let mut rows = keep.iter();
                present.retain(|_| rows.next().copied().unwrap_or(false));
                values
            }
        };
        fn some<T>(values: &mut Vec<T>, keep: &[bool]) {
            let mut keep = keep.iter();
            values.retain(|_| keep.next().copied().unwrap_or(false));
        }
        match &mut self.values {
            Values::Bool(v) => some(v, &there),
            Values::I32(v) => some(v, &there),
            Values::I64(v) => some(v, &there),
            Values::F64(v) => some(v, &there),
            Values::Text(v) => {
                let mut kept = Texts::default();
                let wanted = there.iter().enumerate().filter(|(_, keep)| **keep);
                wanted.for_each(|(index, _)| kept.push(v.get(index)));
                *v = kept;
            }
        }
    }

    /// Whether few values are repeated often, from a sample that is the same for the same values.
    #[must_use]
    pub fn repeats(&self) -> bool {
        match &self.values {
            Values::Bool(_) => false,
            Values::I32(v) => few(v.iter().copied(), v.len()),
            Values::I64(v) => few(v.iter().copied(), v.len()),
            Values::F64(v) => few(v.iter().map(|x| x.to_bits()), v.len()),
            Values::Text(v) => few((0..v.len()).map(|i| v.get(i)), v.len()),
        }
    }
}

/// At most this many values are looked at.
const SAMPLE: usize = 1_024;

fn few<T: std::hash::Hash + Eq>(values: impl Iterator<Item = T>, len: usize) -> bool {
    let step = len.div_ceil(SAMPLE).max(1);
    let mut seen = std::collections::HashSet::with_capacity(SAMPLE / 4);
    let sampled = len.div_ceil(step);
    for value in values.step_by(step) {
        seen.insert(value);
        if sampled < seen.len() * 4 {
            return false;
        }
    }
    0 < len
}

/// A table: columns of as many rows each.
#[derive(Clone, Debug)]
pub struct Table {
    /// The columns, in the order of the file.
    pub columns: Vec<Column>,
    /// How many rows.
    pub rows: usize,
}

impl Table {
    /// Drops the rows for which `keep` says false: one word for each row.
    pub fn retain(&mut self, keep: &[bool]) {
        self.columns.iter_mut().for_each(|column| column.retain(keep));
        self.rows = keep.iter().filter(|keep| **keep).count();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn texts_read_back() {
        let mut texts = Texts::default();
        for text in ["", "a", "é", "", "xyz"] {
            texts.push(text);
        }
        let back: Vec<_> = (0..6).map(|i| texts.get(i)).collect();
        assert_eq!(back, ["", "a", "é", "", "xyz", ""]);
    }

    proptest::proptest! {
        #[test]
        fn rows_that_stay_keep_their_values_and_their_order(
            rows in proptest::collection::vec(
                (proptest::option::of(-9i64..9), "[a-zé]{0,3}", proptest::bool::ANY), 0..40),
        ) {
            let make = |rows: &[(Option<i64>, String, bool)]| {
                let mut n = Column::optional("n", Kind::I64, 0);
                let mut t = Column::required("t", Kind::Text, 0);
                let mut s = Column::optional("s", Kind::Text, 0);
                for (number, text, _) in rows {
                    match number {
                        Some(number) => {
                            n.push_i64(*number);
                            s.push_null();
                        }
                        None => {
                            n.push_null();
                            s.push_text(text);
                        }
                    }
                    t.push_text(text);
                }
                Table { columns: vec![n, t, s], rows: rows.len() }
            };
            let keep: Vec<bool> = rows.iter().map(|row| row.2).collect();
            let mut table = make(&rows);
            table.retain(&keep);
            let staying: Vec<_> = rows.iter().filter(|row| row.2).cloned().collect();
            let lines = |table| super::super::jsonl::encode(table, super::super::Format::Jsonl);
            proptest::prop_assert_eq!(table.rows, staying.len());
            proptest::prop_assert_eq!(lines(&table).unwrap(), lines(&make(&staying)).unwrap());
        }
    }

    #[test]
    fn only_repeated_values_get_a_dictionary() {
        let column = |values: Vec<i64>| Column {
            values: Values::I64(values),
            ..Column::required("x", Kind::I64, 0)
        };
        assert!(!column((0..10_000).collect()).repeats());
        assert!(column((0..10_000).map(|i| i % 7).collect()).repeats());
        assert!(!column(vec![]).repeats());
    }
}
