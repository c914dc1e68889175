//! What comes, whole, and what goes, kept: below `shadow/<plan id>/promotion/` of the live lake.

use std::collections::BTreeSet;

use bytes::Bytes;
use object_store::path::Path;

use super::{
    super::{
        super::exchange::{ExchangeError, Order},
        Lake,
        layout::FileName,
        merge::publish::{at, below, sha256},
        store::Put,
    },
    Piece, Ready, cut, folder,
    survey::{Found, Look, asked_to_stop},
};

/// Below a promotion's folder: what comes, and what goes.
const NEW: &str = "new";
const OLD: &str = "old";

impl Lake {
    /// Makes all files ready; nothing of live changes.
    pub(super) fn make_ready(&self, order: &Order<'_>) -> Result<Ready, ExchangeError> {
        let look = self.look(order)?;
        let mut ready = Ready { blockers: self.blockers(order, &look), ..Ready::default() };
        let all = look.come.len() + look.whole.len() + look.cut.len();
        let mut done = 0;
        let mut tell = |what: &str| {
            done += 1;
            (order.tell)(&format!("{what} ({done} of {all})"));
        };
        for file in &look.come {
            asked_to_stop(order)?;
            let bytes = look.shadow.store().get(&file.path)?;
            let path = self.live_path(order, file);
            let from = look.is_below.then_some(&file.path);
            ready.come.push(self.keep(order, (NEW, &path), bytes, from)?);
            tell("a file of the shadow is ready");
        }
        for file in &look.cut {
            asked_to_stop(order)?;
            let bytes = self.store.get(&file.path)?;
            ready.come.extend(self.rest(order, &look, file, bytes.clone())?);
            ready.go.push(self.keep(order, (OLD, &file.path), bytes, Some(&file.path))?);
            tell("a file is cut");
        }
        for file in &look.whole {
            asked_to_stop(order)?;
            let bytes = self.store.get(&file.path)?;
            ready.go.push(self.keep(order, (OLD, &file.path), bytes, Some(&file.path))?);
            tell("a file that goes is kept");
        }
        Ok(ready)
    }

    /// What stays of a file that is cut.
    fn rest(
        &self,
        order: &Order<'_>,
        look: &Look,
        file: &Found,
        bytes: Bytes,
    ) -> Result<Option<Piece>, ExchangeError> {
        let window = look.window(file.name.partition);
        let goes = |offset| window.is_some_and(|window| window.has(offset));
        let rest = cut::cut(bytes, file.format, &goes)
            .map_err(|e| ExchangeError::Refused(format!("{}: {e}", file.path)))?;
        let Some(rest) = rest else { return Ok(None) };
        let (first, last) = (rest.first, rest.last);
        let name = FileName { first, last, plan: Some(order.plan.clone()), ..file.name.clone() };
        let path = name.path(self.store.root(), file.format);
        self.keep(order, (NEW, &path), rest.bytes, None).map(Some)
    }

    /// Keeps the bytes of a live file, or of one that will be; `from` is where they lie in this store, if
    /// they do.
    fn keep(
        &self,
        order: &Order<'_>,
        (which, path): (&str, &Path),
        bytes: Bytes,
        from: Option<&Path>,
    ) -> Result<Piece, ExchangeError> {
        let root = self.store.root();
        let live = below(root, path);
        let kept = at(&folder(root, order.plan), &format!("{which}/{live}"));
        let sha256 = sha256(&bytes);
        let put = match from {
            Some(from) if self.store.is_local() => self.store.put_copy(from, &kept)?,
            Some(_) | None => self.store.put_new(&kept, bytes)?,
        };
        match put {
            Put::Done => Ok(Piece { path: live, kept: below(root, &kept), sha256 }),
            // Whoever tries again removes first what an earlier try has left.
            Put::Taken(_) => Err(ExchangeError::Failed(format!("{kept}: another file is there"))),
        }
    }

    /// One for each folder and format.
    fn blockers(&self, order: &Order<'_>, look: &Look) -> Vec<String> {
        let root = self.store.root();
        let files = look.come.iter().chain(&look.whole).chain(&look.cut);
        let blocker =
            |file: &Found| below(root, &file.name.promoting(root, file.format, order.plan));
        files.map(blocker).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether the files that came are there, and those that went are kept as they were.
    pub(super) fn are_kept(&self, ready: &Ready) -> Result<(), ExchangeError> {
        let root = self.store.root();
        for piece in &ready.go {
            let kept = self.store.get_if_there(&at(root, &piece.kept))?;
            if kept.is_none_or(|bytes| sha256(&bytes) != piece.sha256) {
                return Err(ExchangeError::Refused(format!(
                    "{} is not there any more, or not as it was: what was before cannot come back",
                    piece.kept
                )));
            }
        }
        for piece in &ready.come {
            if !self.store.is_there(&at(root, &piece.path))? {
                return Err(ExchangeError::Refused(format!(
                    "{} came by this promotion and is gone: somebody else has changed this lake since",
                    piece.path
                )));
            }
        }
        Ok(())
    }
}
