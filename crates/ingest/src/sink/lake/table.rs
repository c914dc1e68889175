//! The rows of a lane as files-to-be: which rows go into which file, and their columns.

use std::{borrow::Cow, collections::BTreeMap, ops::Range};

use serde::Deserialize;
use tidegate_event::{Offset, ReceivedAt, SchemaRef};

use super::{
    super::rows::{LaneRows, Row, RowsHash},
    columns::{Column, Kind, Table},
    layout::FileName,
    project::Project,
};
use crate::{
    faults::{self, Bug, planted},
    normalize::{ProjectScratch, reserved_in},
};

/// One file: rows of one hour (of one day in a table by days), judged by one schema.
#[derive(Clone, Debug)]
pub struct FilePlan {
    /// Hours (or days) since 1970 at which its rows were received.
    pub hour: i64,
    /// What they were judged by; for dead letters of no meaning.
    pub schema: SchemaRef,
    /// Their places in the lane's rows, in order; at least one.
    pub rows: Vec<u32>,
    first: Offset,
    last: Offset,
}

impl FilePlan {
    /// What the file is called.
    pub fn name(&self, rows: &LaneRows<'_>) -> FileName {
        FileName {
            lane: rows.lane.clone(),
            hour: self.hour,
            log_id: rows.log_id.to_owned(),
            partition: rows.partition,
            first: self.first,
            last: self.last,
            plan: None,
        }
    }

    /// Some of its rows, by their places in it.
    pub fn part(&self, range: Range<usize>) -> Self {
        Self { rows: self.rows.get(range).unwrap_or_default().to_vec(), ..self.clone() }
    }
}

/// Splits a lane's rows into files.
pub fn plan(rows: &LaneRows<'_>) -> Vec<FilePlan> {
    plan_by(rows, ReceivedAt::hour)
}

/// Splits a lane's rows by when they were received and by the schema they were judged by.
pub fn plan_by(rows: &LaneRows<'_>, period: fn(ReceivedAt) -> i64) -> Vec<FilePlan> {
    let mut plans: BTreeMap<(i64, i32, [u8; 16]), FilePlan> = BTreeMap::new();
    for (index, row) in rows.rows.iter().enumerate() {
        let mut hour = period(row.received_at(rows.heads));
        if planted(Bug::HourByClock) {
            hour = period(ReceivedAt(faults::wall_clock()));
        }
        let schema = if rows.lane.dead { SchemaRef::default() } else { row.schema(rows.heads) };
        let offset = row.offset(rows.heads);
        let new = || FilePlan { hour, schema, rows: Vec::new(), first: offset, last: offset };
        let plan = plans.entry((hour, schema.version, schema.hash)).or_insert_with(new);
        // A window holds far fewer than 2^32 rows.
        plan.rows.push(u32::try_from(index).unwrap_or(u32::MAX));
        plan.last = offset;
    }
    plans.into_values().collect()
}

/// A file's content.
#[derive(Debug)]
pub struct Made {
    /// Its columns.
    pub table: Table,
    /// A hash over its rows.
    pub hash: String,
    /// What else its metadata says.
    pub facts: Vec<(&'static str, String)>,
}

/// What a record's note may say that the lake keeps.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Note<'a> {
    #[serde(borrow)]
    field: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: Option<Cow<'a, str>>,
    #[serde(borrow)]
    source_name: Option<Cow<'a, str>>,
}

fn note<'a>(row: &Row<'a>) -> Result<Note<'a>, String> {
    if row.note.is_empty() {
        return Ok(Note::default());
    }
    serde_json::from_str(row.note).map_err(|e| format!("its note is no JSON object: {e}"))
}

/// Builds the columns of one file.
///
/// # Errors
/// The rows that cannot be written (their places in the lane's rows), and why.
pub fn build(
    rows: &LaneRows<'_>,
    plan: &FilePlan,
    schema: Option<&dyn Project>,
) -> Result<Made, Vec<(usize, String)>> {
    let mut own = Own::new(plan.rows.len());
    let mut body = if rows.lane.dead {
        Body::dead(plan.rows.len())
    } else {
        Body::live(plan.rows.len(), schema)
    };
    let (mut hash, mut guilty) = (RowsHash::default(), Vec::new());
    for index in &plan.rows {
        let Some(row) = rows.rows.get(*index as usize) else { continue };
        match body.push(row, rows) {
            Ok(()) => {
                let event_id = row.event_id(rows.heads);
                own.push(row, rows, &event_id);
                hash.row_called(row, rows.heads, &event_id);
            }
            Err(cause) => guilty.push((*index as usize, cause)),
        }
    }
    if !guilty.is_empty() {
        return Err(guilty);
    }
    let (count, hash) = hash.finish();
    let mut facts = vec![("tidegate.rows", count.to_string())];
    if plan.schema.hash != [0; 16] {
        facts.push(("tidegate.schema_hash", hex::encode(plan.schema.hash)));
    }
    facts.extend(units(schema));
    let mut columns = Vec::from(own.into_columns());
    columns.extend(body.into_columns());
    Ok(Made { table: Table { columns, rows: plan.rows.len() }, hash, facts })
}

/// The units of the columns that have one, as a JSON object.
fn units(schema: Option<&dyn Project>) -> Option<(&'static str, String)> {
    let units: serde_json::Map<_, _> = schema?
        .columns()
        .into_iter()
        .filter_map(|column| Some((column.name, serde_json::Value::String(column.unit?))))
        .collect();
    (!units.is_empty()).then(|| ("tidegate.units", serde_json::Value::Object(units).to_string()))
}

/// The columns that every table begins with.
struct Own {
    event_id: Column,
    event_time: Column,
    received_at: Column,
    log_id: Column,
    log_partition: Column,
    log_offset: Column,
    schema_version: Column,
}

impl Own {
    fn new(rows: usize) -> Self {
        Self {
            event_id: Column::required("event_id", Kind::Text, rows),
            event_time: Column::required("event_time", Kind::Micros, rows),
            received_at: Column::required("received_at", Kind::Micros, rows),
            log_id: Column::required("log_id", Kind::Text, rows),
            log_partition: Column::required("log_partition", Kind::I32, rows),
            log_offset: Column::required("log_offset", Kind::I64, rows),
            schema_version: Column::required("schema_version", Kind::I32, rows),
        }
    }

    fn push(&mut self, row: &Row<'_>, rows: &LaneRows<'_>, event_id: &str) {
        self.event_id.push_text(event_id);
        self.event_time.push_i64(row.event_time.0);
        self.received_at.push_i64(row.received_at(rows.heads).0);
        self.log_id.push_text(rows.log_id);
        self.log_partition.push_i32(i32::try_from(rows.partition.0).unwrap_or(i32::MAX));
        self.log_offset.push_i64(i64::try_from(row.offset(rows.heads).0).unwrap_or(i64::MAX));
        self.schema_version.push_i32(row.schema(rows.heads).version);
    }

    fn into_columns(self) -> [Column; 7] {
        [
            self.event_id,
            self.event_time,
            self.received_at,
            self.log_id,
            self.log_partition,
            self.log_offset,
            self.schema_version,
        ]
    }
}

/// The columns behind those.
enum Body<'s> {
    Live {
        schema: Option<&'s dyn Project>,
        columns: Vec<Column>,
        custom: Column,
        text: String,
        scratch: Box<ProjectScratch>,
    },
    /// reason, field, message, raw
    Dead(Box<[Column; 4]>),
}

impl<'s> Body<'s> {
    fn live(rows: usize, schema: Option<&'s dyn Project>) -> Self {
        let columns = schema.map(Project::columns).unwrap_or_default();
        let column = |c: &super::SchemaColumn| Column::optional(&c.name, c.kind, rows);
        Self::Live {
            schema,
            columns: columns.iter().map(column).collect(),
            custom: Column::optional("custom", Kind::Json, rows),
            text: String::new(),
            scratch: Box::default(),
        }
    }

    fn dead(rows: usize) -> Self {
        Self::Dead(Box::new([
            Column::required("reason", Kind::Text, rows),
            Column::optional("field", Kind::Text, rows),
            Column::optional("message", Kind::Text, rows),
            Column::required("raw", Kind::Text, rows),
        ]))
    }

    /// Adds one row, or nothing.
    fn push(&mut self, row: &Row<'_>, rows: &LaneRows<'_>) -> Result<(), String> {
        let note = note(row)?;
        match self {
            Self::Live { schema, columns, custom, text, scratch } => {
                text.clear();
                let reserved = reserved_in(row.protocol(rows.heads));
                let project =
                    schema.ok_or_else(|| "there is no schema to split it by".to_owned())?;
                let mut rest = project.project(row.raw, reserved, scratch, columns, text)?;
                if let Some(name) = &note.source_name {
                    rest = add_source_name(name, columns, text, rest);
                }
                custom.push_text(if rest { text } else { "{}" });
            }
            Self::Dead(columns) => {
                let [reason, field, message, raw] = &mut **columns;
                let text = std::str::from_utf8(row.raw).map_err(|e| e.to_string())?;
                reason.push_text(row.dead.map_or("", tidegate_event::Code::as_str));
                push_or_null(field, note.field.as_deref());
                push_or_null(message, note.message.as_deref());
                raw.push_text(text);
            }
        }
        Ok(())
    }

    fn into_columns(self) -> Vec<Column> {
        match self {
            Self::Live { mut columns, custom, .. } => {
                columns.push(custom);
                columns
            }
            Self::Dead(columns) => Vec::from(*columns),
        }
    }
}

fn push_or_null(column: &mut Column, text: Option<&str>) {
    match text {
        Some(text) => column.push_text(text),
        None => column.push_null(),
    }
}

/// A type's name as it came, where it had to be mapped: a field of the event unless that has one of
/// this name itself. True where `custom` has something now.
fn add_source_name(name: &str, columns: &mut [Column], custom: &mut String, rest: bool) -> bool {
    if let Some(column) = columns.iter_mut().find(|column| column.name == "source_name") {
        if column.kind == Kind::Text && column.present.as_ref().and_then(|p| p.last()) == Some(&0) {
            if let Some(present) = &mut column.present {
                present.pop();
            }
            column.push_text(name);
        }
        return rest;
    }
    let has = |text: &str| {
        text.contains("source_name")
            && serde_json::from_str::<BTreeMap<Cow<'_, str>, &serde_json::value::RawValue>>(text)
                .is_ok_and(|fields| fields.contains_key("source_name"))
    };
    if rest && has(custom) {
        return true;
    }
    let field = format!("\"source_name\":{}", serde_json::Value::from(name));
    let fields = if rest { custom.trim_start().strip_prefix('{').unwrap_or("}") } else { "}" };
    let comma = if fields.trim_start().starts_with('}') { "" } else { "," };
    *custom = format!("{{{field}{comma}{fields}");
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_name_is_kept_unless_the_event_has_such_a_field() {
        let check = |custom: &str, expected: &str| {
            let (mut text, rest) = (custom.to_owned(), !custom.is_empty());
            assert!(add_source_name("a/\"b", &mut [], &mut text, rest));
            assert_eq!(text, expected);
        };
        check("", r#"{"source_name":"a/\"b"}"#);
        check("{}", r#"{"source_name":"a/\"b"}"#);
        check(r#"{"x":1}"#, r#"{"source_name":"a/\"b","x":1}"#);
        check(r#"{"x":"source_name"}"#, r#"{"source_name":"a/\"b","x":"source_name"}"#);
        check(r#"{"source_name":1}"#, r#"{"source_name":1}"#);
        let mut columns = [Column::optional("source_name", Kind::Text, 1)];
        columns.iter_mut().for_each(Column::push_null);
        assert!(!add_source_name("a b", &mut columns, &mut String::new(), false));
        assert_eq!(columns.first().unwrap().count(), 1);
    }
}
