//! What the lines of a `_bulk` body said of each document, for the answer, which comes when the body is gone.

use std::sync::{Arc, OnceLock};

use http::request::Parts;
use tokio::time::Instant;

use super::{is_bulk, lines::Op};
use crate::budget::{Full, Permit, Share};

/// What one item's answer takes in memory, about, beside its names.
const ANSWER_BYTES: usize = 256;

/// Stands among a request's extensions.
#[derive(Clone, Debug)]
pub(in crate::edge) struct Notes {
    began: Instant,
    noted: Arc<OnceLock<Noted>>,
    /// Holds the memory of it and of the answer.
    paid: Arc<OnceLock<Permit>>,
}

impl Notes {
    /// Begins where the request is one that needs them.
    pub(in crate::edge) fn begin(parts: &mut Parts) {
        if is_bulk(parts) {
            let (noted, paid) = (Arc::default(), Arc::default());
            parts.extensions.insert(Self { began: Instant::now(), noted, paid });
        }
    }

    /// True where the request is one that needs them.
    pub(in crate::edge) fn are_wanted(parts: &Parts) -> bool {
        Self::of(parts).is_some()
    }

    fn of(parts: &Parts) -> Option<&Self> {
        parts.extensions.get()
    }

    /// What is noted first stays.
    pub(super) fn set(parts: &Parts, noted: Noted) {
        if let Some(notes) = Self::of(parts) {
            let _ = notes.noted.set(noted);
        }
    }

    /// What was noted; `None` where the body was not read to its end.
    pub(super) fn get(parts: &Parts) -> Option<&Noted> {
        Self::of(parts)?.noted.get()
    }

    /// How long ago the request began, in milliseconds.
    pub(super) fn took(parts: &Parts) -> u64 {
        let took = Self::of(parts).map_or_else(Default::default, |notes| notes.began.elapsed());
        u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes the memory of what was noted, and of the answer that is to be made of it.
    ///
    /// # Errors
    /// There is none left.
    pub(in crate::edge) fn pay(parts: &Parts, share: &Share) -> Result<(), Full> {
        let Some(notes) = Self::of(parts) else { return Ok(()) };
        let bytes = notes.noted.get().map_or(0, Noted::bytes);
        let permit = share.try_take(bytes as u64)?;
        let _ = notes.paid.set(permit);
        Ok(())
    }
}

/// One item's line, in two texts that all share.
#[derive(Clone, Copy, Debug)]
struct Entry {
    op: Op,
    /// Where its index and its id end; they begin where the last one's do.
    index: (u32, u32),
    id: Option<(u32, u32)>,
}

/// What the lines said, in order.
#[derive(Debug, Default)]
pub(super) struct Noted {
    entries: Vec<Entry>,
    names: String,
}

impl Noted {
    pub(super) fn push(&mut self, op: Op, index: &str, id: Option<&str>) {
        // Most lines name the same index as the one before.
        let last = self.entries.last().map(|entry| entry.index);
        let index = match last.filter(|range| self.text(*range) == index) {
            Some(range) => range,
            None => self.add(index),
        };
        let id = id.map(|id| self.add(id));
        self.entries.push(Entry { op, index, id });
    }

    fn add(&mut self, text: &str) -> (u32, u32) {
        let from = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.push_str(text);
        (from, u32::try_from(self.names.len()).unwrap_or(u32::MAX))
    }

    fn text(&self, (from, to): (u32, u32)) -> &str {
        self.names.get(from as usize..to as usize).unwrap_or_default()
    }

    /// Operation, index and id of each item.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Op, &str, Option<&str>)> {
        self.entries
            .iter()
            .map(|entry| (entry.op, self.text(entry.index), entry.id.map(|range| self.text(range))))
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn bytes(&self) -> usize {
        let answered: usize = self
            .iter()
            .map(|(_, index, id)| ANSWER_BYTES + index.len() + id.map_or(36, str::len))
            .sum();
        answered + self.entries.capacity() * size_of::<Entry>() + self.names.capacity()
    }
}
