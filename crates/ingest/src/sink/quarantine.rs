//! Events a sink refuses for good: one JSON line each in `sinks/<name>-quarantine.jsonl`.

use std::{
    collections::HashSet,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::rows::{Lane, LaneRows};
use crate::storage::{self, Storage};

/// One event that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantinedEvent {
    /// Which log.
    pub log_id: String,
    /// Which partition of it.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// Its lane.
    #[serde(flatten)]
    pub lane: Lane,
    /// Its id.
    pub event_id: String,
    /// Microseconds since 1970, UTC.
    pub received_at: i64,
    /// Why it was refused.
    pub cause: String,
    /// The event; bytes that are no UTF-8 are replaced.
    pub raw: String,
}

impl QuarantinedEvent {
    /// The row at `index` of `rows`.
    pub fn of(rows: &LaneRows<'_>, index: usize, cause: &str) -> Option<Self> {
        let row = rows.rows.get(index)?;
        Some(Self {
            log_id: rows.log_id.to_owned(),
            partition: rows.partition.0,
            offset: row.offset(rows.heads).0,
            lane: rows.lane.clone(),
            event_id: row.event_id(rows.heads).into_owned(),
            received_at: row.received_at(rows.heads).0,
            cause: cause.to_owned(),
            raw: String::from_utf8_lossy(row.raw).into_owned(),
        })
    }

    fn place(&self) -> (String, u32, u64) {
        (self.log_id.clone(), self.partition, self.offset)
    }
}

/// The file of one sink, shared by its partitions.
pub struct Quarantine {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    file: Mutex<()>,
}

impl Quarantine {
    /// The file at `path`, made with its first event.
    pub fn new(storage: Arc<dyn Storage>, path: PathBuf) -> Self {
        Self { storage, path, file: Mutex::new(()) }
    }

    /// Where the events stand that were set aside: log, partition, offset.
    ///
    /// # Errors
    /// As reading the file.
    pub fn places(&self) -> io::Result<HashSet<(String, u32, u64)>> {
        let _one_at_a_time = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(places(&self.content()?))
    }

    fn content(&self) -> io::Result<Vec<u8>> {
        match self.storage.read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read,
        }
    }

    /// Adds events, durably; those that an earlier attempt added are passed over.
    ///
    /// # Errors
    /// As the file's; try again.
    pub fn add(&self, events: &[QuarantinedEvent]) -> io::Result<()> {
        let _one_at_a_time = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut content = self.content()?;
        let known = places(&content);
        let before = content.len();
        for event in events.iter().filter(|event| !known.contains(&event.place())) {
            content.extend_from_slice(&serde_json::to_vec(event)?);
            content.push(b'\n');
        }
        if before < content.len() {
            // Poison is rare, and a file replaced whole is never half written.
            storage::replace(&*self.storage, &self.path, &content)?;
        }
        Ok(())
    }
}

fn places(content: &[u8]) -> HashSet<(String, u32, u64)> {
    let lines = content.split(|b| *b == b'\n');
    let events = lines.filter_map(|line| serde_json::from_slice::<QuarantinedEvent>(line).ok());
    events.map(|event| event.place()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::storage::Disk;

    #[test]
    fn an_event_added_twice_stands_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.jsonl");
        let quarantine = Quarantine::new(Arc::new(Disk), path.clone());
        let lane = serde_json::from_value(
            serde_json::json!({"tenant":"a","event_type":"b","dead_letters":false}),
        );
        let event = QuarantinedEvent {
            log_id: "abcd1234".into(),
            partition: 0,
            offset: 7,
            lane: lane.unwrap(),
            event_id: "x".into(),
            received_at: 1,
            cause: "why".into(),
            raw: "{}".into(),
        };
        let next = QuarantinedEvent { offset: 8, ..event.clone() };
        quarantine.add(std::slice::from_ref(&event)).unwrap();
        quarantine.add(&[event.clone(), next.clone()]).unwrap();
        let content = String::from_utf8(std::fs::read(path).unwrap()).unwrap();
        let back: Vec<QuarantinedEvent> =
            content.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(back, [event, next]);
    }
}
