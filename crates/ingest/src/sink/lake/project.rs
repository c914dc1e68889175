//! An event's fields as the values of its schema's columns.

use std::sync::Arc;

use tidegate_event::SchemaRef;

use super::columns::{Column, Kind};
use crate::normalize::{Cell, ColumnType, ProjectScratch, Schema, SchemaStore};

/// Schemas by their hash.
pub trait Schemas: Send + Sync {
    /// The schema with this hash; `None` where it is not there (any more).
    fn get(&self, schema: SchemaRef) -> Option<Arc<dyn Project>>;
    /// What splits the events of a type without a schema: all their fields in `custom`.
    fn none(&self) -> Arc<dyn Project>;
}

/// One column that a schema asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaColumn {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
    /// Its unit's UCUM code.
    pub unit: Option<String>,
}

/// One version of one schema: splits an event into columns and the rest.
pub trait Project: Send + Sync {
    /// The columns of its fields, in the order of the file.
    fn columns(&self) -> Vec<SchemaColumn>;

    /// Adds one value to each of `columns`, and the fields of no column to `custom` as one JSON
    /// object. `reserved`: `event_type`, `event_id` and `event_time` in the event are ours. Adds
    /// nothing where it fails.
    ///
    /// # Errors
    /// What is wrong with the event; its verdict should have found that.
    fn project(
        &self,
        raw: &[u8],
        reserved: bool,
        scratch: &mut ProjectScratch,
        columns: &mut [Column],
        custom: &mut String,
    ) -> Result<bool, String>;
}

impl Schemas for SchemaStore {
    fn get(&self, schema: SchemaRef) -> Option<Arc<dyn Project>> {
        SchemaStore::get(self, schema.hash).map(|schema| schema as Arc<dyn Project>)
    }
    fn none(&self) -> Arc<dyn Project> {
        Schema::none()
    }
}

impl Project for Schema {
    fn columns(&self) -> Vec<SchemaColumn> {
        let column = |spec: &crate::normalize::ColumnSpec| SchemaColumn {
            name: spec.name.clone(),
            kind: match spec.ty {
                ColumnType::Bool => Kind::Bool,
                ColumnType::I64 => Kind::I64,
                ColumnType::F64 => Kind::F64,
                ColumnType::Text => Kind::Text,
                ColumnType::Json => Kind::Json,
            },
            unit: spec.unit.clone(),
        };
        Schema::columns(self).iter().map(column).collect()
    }

    fn project(
        &self,
        raw: &[u8],
        reserved: bool,
        scratch: &mut ProjectScratch,
        columns: &mut [Column],
        custom: &mut String,
    ) -> Result<bool, String> {
        let row = Schema::project(self, raw, reserved, scratch).map_err(|e| e.to_string())?;
        for (column, cell) in columns.iter_mut().zip(&row.cells) {
            match cell {
                Cell::Null => column.push_null(),
                Cell::Bool(value) => column.push_bool(*value),
                Cell::I64(value) => column.push_i64(*value),
                Cell::F64(value) => column.push_f64(*value),
                Cell::Text(text) | Cell::Json(text) => column.push_text(text),
            }
        }
        let Some(rest) = row.custom else { return Ok(false) };
        custom.push_str(rest);
        Ok(true)
    }
}
