//! Who sends, once that is known.

use std::sync::Arc;

use crate::tenants::Tenant;

/// Who sends: a tenant, and which of its keys.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The tenant as it was when the key was checked.
    pub tenant: Arc<Tenant>,
    pub(in crate::tenants) shown: Shown,
}

/// By what a caller is known: which of its tenant's.
#[derive(Clone, Copy, Debug)]
pub(in crate::tenants) enum Shown {
    Key(usize),
    Pair(usize),
    Nothing,
}

impl Caller {
    /// The event types the key may send; `None`: all.
    #[must_use]
    pub fn event_types(&self) -> Option<&[String]> {
        match self.shown {
            Shown::Key(at) => self.tenant.keys.get(at)?.event_types.as_deref(),
            Shown::Pair(at) => self.tenant.pairs.get(at)?.event_types.as_deref(),
            Shown::Nothing => None,
        }
    }

    /// Where the key is a public one: the origins whose pages may use it; none: all.
    #[must_use]
    pub fn public(&self) -> Option<&[String]> {
        let Shown::Key(at) = self.shown else { return None };
        self.tenant.keys.get(at)?.public.as_deref()
    }

    /// The public part of the key.
    #[must_use]
    pub fn key_id(&self) -> &str {
        match self.shown {
            Shown::Key(at) => self.tenant.keys.get(at).map_or("", |key| key.id.as_str()),
            Shown::Pair(at) => self.tenant.pairs.get(at).map_or("", |pair| pair.id.as_str()),
            Shown::Nothing => "",
        }
    }
}
