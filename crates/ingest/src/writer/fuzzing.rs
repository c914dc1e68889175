//! The partition's ledger for fuzz/.

use std::{io, path::PathBuf, sync::Arc};

use tidegate_event::Partition;

use super::{
    LedgerCopy,
    ledger::{Found, Ledger},
};
use crate::{
    books::Books,
    log::{LogHandle, ReadError},
    storage::Storage,
};

/// What a ledger's file says, entered into `books`; `None` where it is damaged or missing.
///
/// # Errors
/// As the storage's.
pub fn load(
    storage: Arc<dyn Storage>,
    path: PathBuf,
    log_id: &str,
    books: &Books,
) -> io::Result<Option<LedgerCopy>> {
    let (ledger, found) = Ledger::load(storage, path, log_id)?;
    ledger.restore(books);
    Ok((found == Found::Whole).then(|| ledger.copy(Partition(0))))
}

/// What a start makes of a log's ledger: what was written, and what came after it.
///
/// # Errors
/// As reading the log.
pub fn catch_up(
    storage: Arc<dyn Storage>,
    path: PathBuf,
    log: &LogHandle,
) -> Result<LedgerCopy, ReadError> {
    let loaded = Ledger::load(storage, path.clone(), log.log_id());
    let (mut ledger, _) = loaded.map_err(|source| ReadError::Io { path, source })?;
    ledger.catch_up(log)?;
    Ok(ledger.copy(log.partition()))
}
