//! The rows of a window exchanged for a shadow's, in a lake (docs/replay.md, "Promote and revert").
//!
//! | file | purpose |
//! | --- | --- |
//! | `survey` | which files go, which are cut, which come |
//! | `cut` | a file without the rows of a window |
//! | `stage` | what comes, whole, and what goes, kept: below `shadow/<plan id>/promotion/` |
//! | `publish` | the exchange: the order of the steps, also after a crash |
//!
//! What was written once is not written again: a cursor that was set back finds its rows there.

mod cut;
mod publish;
mod stage;
mod survey;

use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::{
    super::{
        LaneRows, WriteError,
        exchange::{Exchange, ExchangeError, How, Order, Staged, Survey, Turn},
    },
    Lake,
    inventory::InventoryError,
    layout::FileName,
    merge::{Still, publish::at},
    store::StoreError,
    table::FilePlan,
};
use crate::replay::PlanId;

/// A file that comes or goes. Places are those below the lake's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Piece {
    /// Where it lies while it is live.
    path: String,
    /// Where its bytes are kept.
    kept: String,
    /// Their SHA-256.
    sha256: String,
}

/// What was made ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ready {
    /// What stands in each folder while its files change.
    blockers: Vec<String>,
    /// Files that come: the shadow's, and those that were cut, without the window's rows.
    come: Vec<Piece>,
    /// Files that go: whole, or because they were cut.
    go: Vec<Piece>,
}

impl Ready {
    fn read(staged: &Staged) -> Result<Self, ExchangeError> {
        let damaged = |e: serde_json::Error| format!("the promotion's journal cannot be read: {e}");
        serde_json::from_value(staged.clone()).map_err(|e| ExchangeError::Refused(damaged(e)))
    }
}

/// Where a plan's promotion keeps its files, below the lake's root.
fn folder(root: &Path, plan: &PlanId) -> Path {
    at(root, &format!("shadow/{plan}/promotion"))
}

impl From<StoreError> for ExchangeError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<InventoryError> for ExchangeError {
    fn from(error: InventoryError) -> Self {
        match error {
            InventoryError::File { .. } => Self::Refused(error.to_string()),
            InventoryError::Store(_) | InventoryError::Joining { .. } => {
                Self::Failed(error.to_string())
            }
        }
    }
}

impl Turn for Still<'_> {}

impl Exchange for Lake {
    fn turn(&self, stop: &dyn Fn() -> bool) -> Result<Box<dyn Turn + '_>, ExchangeError> {
        let still = self.merger.keep_still(&self.store, stop).map_err(ExchangeError::Failed)?;
        Ok(Box::new(still))
    }

    fn survey(&self, order: &Order<'_>) -> Result<Survey, ExchangeError> {
        Ok(self.look(order)?.survey)
    }

    fn stage(&self, order: &Order<'_>) -> Result<Staged, ExchangeError> {
        let ready = self.make_ready(order)?;
        serde_json::to_value(ready).map_err(|e| ExchangeError::Refused(e.to_string()))
    }

    fn discard(&self, plan: &PlanId, _staged: Option<&Staged>) -> Result<(), ExchangeError> {
        let mut found = Vec::new();
        self.store.scan(&folder(self.store.root(), plan), &mut |path, _| found.push(path))?;
        self.store.remove(&found)?;
        Ok(())
    }

    fn check_kept(&self, staged: &Staged) -> Result<(), ExchangeError> {
        self.are_kept(&Ready::read(staged)?)
    }

    fn exchange(
        &self,
        plan: &PlanId,
        staged: &Staged,
        how: &How<'_>,
        books: &mut dyn FnMut() -> Result<(), ExchangeError>,
    ) -> Result<(), ExchangeError> {
        self.publish(plan, &Ready::read(staged)?, how, books)
    }
}

impl Lake {
    /// True where the rows of a file-to-be are there already, by a promotion: then this is a cursor that
    /// was set back.
    pub(super) fn is_promoted(
        &self,
        rows: &LaneRows<'_>,
        plan: &FilePlan,
        name: &FileName,
    ) -> Result<bool, WriteError> {
        if self.promotions.applied.is_empty() {
            return Ok(false);
        }
        let is_there = |index: &&u32| {
            let row = rows.rows.get(**index as usize);
            let offset = row.map(|row| row.offset(rows.heads)).unwrap_or_default();
            self.promotions.has(rows.log_id, rows.partition, rows.lane, offset)
        };
        let there = plan.rows.iter().filter(is_there).count();
        let root = self.store.root();
        let cut = self.promotions.applied.iter().flat_map(|applied| &applied.cut);
        let cut: Vec<FileName> = cut
            .filter_map(|path| FileName::parse(root, &at(root, path)))
            .map(|(name, _)| name)
            .filter(|cut| (&cut.lane, cut.hour) == (&name.lane, name.hour))
            .filter(|cut| (&cut.log_id, cut.partition) == (&name.log_id, name.partition))
            .collect();
        if there == plan.rows.len() || cut.contains(name) {
            return Ok(true);
        }
        if there == 0 && !cut.iter().any(|cut| cut.first <= name.last && name.first <= cut.last) {
            return Ok(false);
        }
        Err(WriteError::Conflict {
            cause: format!(
                "{} would be written a second time: some of its rows are there by a promotion \
                 (`ingestctl replay list`); was the sink's cursor set back?",
                name.path(root, self.format)
            ),
        })
    }
}
