//! A row as it is read back from a destination, its values as JSON.

use std::sync::Arc;

use tidegate_event::{EventType, TenantId};

/// Whose row, and of which type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Whose.
    pub tenant: TenantId,
    /// Of which type.
    pub event_type: EventType,
}

/// One row. It is filled again for the next one, so that reading many takes no memory for each.
#[derive(Clone, Debug)]
pub struct BackRow {
    /// Whose.
    pub owner: Arc<Owner>,
    /// Its place in the log's partition.
    pub offset: u64,
    /// True for a dead letter.
    pub dead: bool,
    /// Hours since 1970 at which it was received.
    pub hour: i64,
    names: Arc<[String]>,
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl BackRow {
    /// One without values.
    #[must_use]
    pub fn new(owner: Arc<Owner>) -> Self {
        Self {
            owner,
            offset: 0,
            dead: false,
            hour: 0,
            names: Arc::default(),
            text: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Gives up its values; columns of these names are to follow, each with [`BackRow::push`].
    pub fn clear(&mut self, names: &Arc<[String]>) {
        if !Arc::ptr_eq(&self.names, names) {
            self.names = Arc::clone(names);
        }
        self.text.clear();
        self.ends.clear();
    }

    /// The next column's value is what `write` adds; nothing: it has none.
    ///
    /// # Errors
    /// As `write`.
    pub fn push<E>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        write(&mut self.text)?;
        self.ends.push(self.text.len());
        Ok(())
    }

    /// The names of its columns.
    #[must_use]
    pub fn names(&self) -> &Arc<[String]> {
        &self.names
    }

    /// The value of the column at this place, as JSON; `None` where it has none.
    #[must_use]
    pub fn at(&self, place: usize) -> Option<&[u8]> {
        let end = *self.ends.get(place)?;
        let start = place.checked_sub(1).and_then(|before| self.ends.get(before)).copied();
        let value = self.text.get(start.unwrap_or(0)..end)?;
        (!value.is_empty()).then_some(value)
    }

    /// The value of the column of this name, as JSON.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.at(self.names.iter().position(|own| own == name)?)
    }

    /// True where both have the same values in the same places.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.ends == other.ends && self.text == other.text
    }
}
