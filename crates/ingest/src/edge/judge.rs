//! The hop to the normalizer: a verdict per item, from one generation of schemas per request.

use crate::normalize::{Item, JudgeContext, Judged};

/// Opens sessions.
pub trait Judge: Send + Sync {
    /// One request's session: the schemas do not change while it lasts.
    fn session(&self) -> Box<dyn JudgeSession + '_>;
}

/// Judges the items of one request, one after the other.
pub trait JudgeSession {
    /// Judges one item. What comes back may borrow from the item and from the session.
    fn judge<'s>(&'s mut self, context: &JudgeContext<'s>, item: &Item<'s>) -> Judged<'s>;
}
