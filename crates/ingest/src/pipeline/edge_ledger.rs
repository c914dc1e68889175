//! What the edge refused, so that the books survive a restart: `<log.dir>/books.json`.
//!
//! What is in the log is counted from the log. Rejected and shed events leave no other trace, so
//! they are written here once a second when they changed. After a crash they are exact up to the
//! last record.

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use tidegate_event::{EventType, TenantId};

use crate::{
    books::{Books, Tally},
    storage::{Storage, replace},
};

/// The file's name in the data folder.
pub const FILE: &str = "books.json";

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ledger {
    log_id: String,
    refused: BTreeMap<TenantId, BTreeMap<EventType, Refused>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Refused {
    rejected: u64,
    shed: u64,
}

/// Writes the ledger when it changed.
pub struct EdgeLedger {
    storage: Arc<dyn Storage>,
    path: std::path::PathBuf,
    last: Ledger,
}

impl EdgeLedger {
    /// Reads what an earlier run left and adds it to the books. A damaged file is said loudly, set
    /// aside as `books.json.damaged`, and begun anew.
    ///
    /// # Errors
    /// As reading and renaming the file.
    pub fn open(
        storage: Arc<dyn Storage>,
        dir: &Path,
        log_id: &str,
        books: &Books,
    ) -> io::Result<Self> {
        let path = dir.join(FILE);
        let empty = || Ledger { log_id: log_id.to_owned(), refused: BTreeMap::new() };
        let last = match storage.read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => empty(),
            Err(e) => return Err(e),
            Ok(bytes) => match serde_json::from_slice::<Ledger>(&bytes) {
                Ok(ledger) if ledger.log_id == log_id => ledger,
                Ok(ledger) => {
                    tracing::error!(file = %path.display(), of_log = ledger.log_id, "the ledger of refusals is of another log; begun anew");
                    empty()
                }
                Err(error) => {
                    tracing::error!(file = %path.display(), %error, "the ledger of refusals is damaged; set aside and begun anew");
                    storage.rename(&path, &path.with_extension("json.damaged"))?;
                    empty()
                }
            },
        };
        for (tenant, types) in &last.refused {
            for (event_type, r) in types {
                let (rejected, shed) = (r.rejected, r.shed);
                let received = rejected.saturating_add(shed);
                let tally = Tally { received, rejected, shed, ..Tally::default() };
                books.restore(tenant, event_type, &tally);
            }
        }
        Ok(Self { storage, path, last })
    }

    /// Writes what changed since the last time, durably.
    ///
    /// # Errors
    /// As [`replace`]; tried again at the next call.
    pub fn write(&mut self, books: &Books) -> io::Result<()> {
        let refused = |t: &Tally| Refused { rejected: t.rejected, shed: t.shed };
        let mut next = BTreeMap::new();
        for (tenant, page) in books.copy() {
            let types: BTreeMap<_, _> = page
                .types
                .iter()
                .filter(|(_, tally)| tally.rejected > 0 || tally.shed > 0)
                .map(|(event_type, tally)| (event_type.clone(), refused(tally)))
                .collect();
            if !types.is_empty() {
                next.insert(tenant, types);
            }
        }
        if next == self.last.refused {
            return Ok(());
        }
        let ledger = Ledger { log_id: self.last.log_id.clone(), refused: next };
        let text = serde_json::to_vec(&ledger).map_err(io::Error::other)?;
        replace(&*self.storage, &self.path, &text)?;
        self.last = ledger;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::storage::Disk;

    #[test]
    fn refusals_survive_a_restart_and_damage_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let tenant = TenantId::new("acme").unwrap();
        let kind = EventType::new("a").unwrap();
        let books = Books::default();
        let mut ledger = EdgeLedger::open(Arc::new(Disk), dir.path(), "abcd1234", &books).unwrap();
        let mut open = books.open(&tenant, vec![(kind.clone(), 5)]);
        open.settle(&kind, &Tally { rejected: 2, ..Tally::default() });
        open.shed();
        ledger.write(&books).unwrap();

        let again = Books::default();
        EdgeLedger::open(Arc::new(Disk), dir.path(), "abcd1234", &again).unwrap();
        let tally = again.copy()[&tenant].types[&kind];
        assert_eq!((tally.received, tally.rejected, tally.shed), (5, 2, 3));

        let most = u64::MAX;
        let beyond = format!(
            r#"{{"log_id":"abcd1234","refused":{{"acme":{{"a":{{"rejected":{most},"shed":{most}}}}}}}}}"#
        );
        std::fs::write(dir.path().join(FILE), beyond).unwrap();
        let books = Books::default();
        let mut ledger = EdgeLedger::open(Arc::new(Disk), dir.path(), "abcd1234", &books).unwrap();
        ledger.write(&books).unwrap();
        let tally = books.copy()[&tenant].types[&kind];
        assert_eq!((tally.received, tally.rejected, tally.shed), (most, most, most));
        assert_eq!(tally.unsettled(), -i128::from(most));

        std::fs::write(dir.path().join(FILE), b"{\"log_id\":").unwrap();
        let fresh = Books::default();
        EdgeLedger::open(Arc::new(Disk), dir.path(), "abcd1234", &fresh).unwrap();
        assert!(fresh.copy().is_empty());
        assert!(dir.path().join("books.json.damaged").exists());
    }
}
