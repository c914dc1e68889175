//! How files go and others come while readers read: the same steps both ways.
//!
//! ```text
//! blockers ─▶ wait ─▶ what comes is put ─▶ what goes is removed ─▶ the books ─▶ wait ─▶ blockers removed
//! ```
//!
//! As where small files are joined (`merge/publish`): a reader that began before the blockers were there
//! has listed what was before, one that ends after they are gone what is now, any other finds one and
//! fails. All folders have theirs before any file changes, and until all have changed.

use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;

use super::{
    super::{
        super::exchange::{ExchangeError, How, Way},
        Lake,
        merge::publish::{LATE, at, sleep},
        store::Put,
    },
    Ready,
};
use crate::replay::PlanId;

impl Lake {
    /// Exchanges the files; repeated until it succeeds.
    pub(super) fn publish(
        &self,
        plan: &PlanId,
        ready: &Ready,
        how: &How<'_>,
        books: &mut dyn FnMut() -> Result<(), ExchangeError>,
    ) -> Result<(), ExchangeError> {
        let root = self.store.root();
        let (come, go) = match how.way {
            Way::Forward => (&ready.come, &ready.go),
            Way::Back => (&ready.go, &ready.come),
        };
        let settle = how.settle.unwrap_or(self.merger.settle());
        let blockers: Vec<Path> = ready.blockers.iter().map(|path| at(root, path)).collect();
        (how.tell)("readers of these folders are told to wait");
        for blocker in &blockers {
            // Taken: by another version's words, which say the same.
            self.store.put_new(blocker, notice(plan))?;
        }
        wait(settle, how)?;
        for (done, piece) in come.iter().enumerate() {
            let path = at(root, &piece.path);
            if let Put::Taken(_) = self.store.put_copy(&at(root, &piece.kept), &path)? {
                return Err(ExchangeError::Failed(format!(
                    "{path}: there is another file of this name, which is not ours to touch: move it away"
                )));
            }
            (how.tell)(&format!("{} of {} files are there", done + 1, come.len()));
        }
        let gone: Vec<Path> = go.iter().map(|piece| at(root, &piece.path)).collect();
        self.store.remove(&gone)?;
        books()?;
        if how.doubt && !self.store.is_local() {
            (how.tell)("what an earlier attempt had sent may still come: that is waited for");
            wait(LATE, how)?;
        }
        wait(settle, how)?;
        self.store.remove(&blockers)?;
        Ok(())
    }
}

/// What a blocker says.
fn notice(plan: &PlanId) -> Bytes {
    // Readers tell the last four bytes where they say that it is no Parquet.
    format!(
        "The files of this folder are being exchanged: list and read it again in a moment.\n{plan}\nWAIT"
    )
    .into()
}

fn wait(time: Duration, how: &How<'_>) -> Result<(), ExchangeError> {
    sleep(time, how.stop);
    if !time.is_zero() && (how.stop)() {
        return Err(ExchangeError::Failed("the server ends; the next start goes on".to_owned()));
    }
    Ok(())
}
