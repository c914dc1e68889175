//! What is wrong with schema files: all of it, with its place and how to mend it.

use std::fmt;

/// One fault of one schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaFault {
    /// The file, relative to the folder of schemas where it lies in one.
    pub file: String,
    /// Where in it: a JSON pointer, empty for the whole.
    pub pointer: String,
    /// What is wrong.
    pub what: String,
    /// How to mend it.
    pub mend: String,
}

impl fmt::Display for SchemaFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if !self.pointer.is_empty() {
            write!(f, " at {}", self.pointer)?;
        }
        write!(f, ": {}; {}", self.what, self.mend)
    }
}

impl std::error::Error for SchemaFault {}

/// Gathers the faults of one file.
#[derive(Debug)]
pub(super) struct Faults {
    file: String,
    pub(super) found: Vec<SchemaFault>,
}

impl Faults {
    pub(super) fn of(file: impl Into<String>) -> Self {
        Self { file: file.into(), found: Vec::new() }
    }

    pub(super) fn add(
        &mut self,
        pointer: impl Into<String>,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.found.push(SchemaFault {
            file: self.file.clone(),
            pointer: pointer.into(),
            what: what.into(),
            mend: mend.into(),
        });
    }
}
