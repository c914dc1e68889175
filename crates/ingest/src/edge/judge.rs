//! The hop to the normalizer: a verdict per item.

use std::cell::Cell;

use crate::normalize::{Item, JudgeContext, Judged, Normalizer, Scratch};

/// Opens sessions.
pub trait Judge: Send + Sync {
    /// One request's session.
    fn session(&self) -> Box<dyn JudgeSession + '_>;
}

/// Judges the items of one request, one after the other.
pub trait JudgeSession {
    /// Judges one item. What comes back may borrow from the item and from the session.
    fn judge<'s>(&'s mut self, context: &JudgeContext<'s>, item: &Item<'s>) -> Judged<'s>;
}

thread_local! {
    /// The memory of the thread's last session: requests of one event would else pay to make it.
    static SPARE: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

struct Session<'n> {
    normalizer: &'n Normalizer,
    /// `None` only once it is dropped.
    scratch: Option<Box<Scratch>>,
}

impl Judge for Normalizer {
    fn session(&self) -> Box<dyn JudgeSession + '_> {
        let scratch = Some(SPARE.take().unwrap_or_default());
        Box::new(Session { normalizer: self, scratch })
    }
}

impl JudgeSession for Session<'_> {
    fn judge<'s>(&'s mut self, context: &JudgeContext<'s>, item: &Item<'s>) -> Judged<'s> {
        let scratch = self.scratch.get_or_insert_default();
        self.normalizer.judge(context, item, scratch)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        SPARE.set(self.scratch.take());
    }
}
