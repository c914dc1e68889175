//! Gives each event its verdict: a pure function of the event and its schema.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[schemas]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchemasConfig {
    /// The folder of schemas; absent: none.
    pub dir: Option<PathBuf>,
    /// What becomes of types without a schema.
    pub unknown_types: UnknownTypes,
}

/// What becomes of events whose type has no schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownTypes {
    /// Accepted, all their fields in `custom`.
    #[default]
    Accept,
    /// Dead letters.
    Refuse,
}
