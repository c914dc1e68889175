//! An event's fields as the values of its schema's columns.

use std::sync::Arc;

use tidegate_event::SchemaRef;

use super::columns::{Column, Kind};

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
        columns: &mut [Column],
        custom: &mut String,
    ) -> Result<bool, String>;
}
