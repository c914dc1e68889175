//! The SigV4 key pairs of all tenants: whose one is, a new one.

use std::{sync::Arc, time::Duration};

use tidegate_event::TenantId;

use super::{
    AuthError, Caller, ChangeError, Generation, Shown, TenantFault, Tenants, lock, sooner,
};
use crate::tenants::{
    Pair, Secret, Tenant,
    file::{self, PairEntry},
    pair,
};

/// A new SigV4 key pair.
#[derive(Clone, Debug)]
pub struct AddedPair {
    /// AWS's access key id.
    pub id: String,
    /// AWS's secret access key.
    pub secret: String,
    /// Microseconds since 1970 after which the former pair is refused; `None`: with the next pair.
    pub old_pairs_expire_at: Option<i64>,
}

impl Tenants {
    /// The caller that a SigV4 key id names, and the secret that its signature has to be made with. Who
    /// it is says nothing before the signature is right.
    ///
    /// # Errors
    /// [`AuthError`]
    pub fn signer(&self, id: &str) -> Result<(Caller, Secret), AuthError> {
        let live = self.live.load();
        let (tenant, index) = live.pairs.get(id).ok_or(AuthError::Unknown)?;
        let pair = tenant.pairs.get(*index).ok_or(AuthError::Unknown)?;
        if !tenant.enabled {
            return Err(AuthError::Disabled);
        }
        if pair.not_after.is_some_and(|end| end < self.clock.now().0) {
            return Err(AuthError::Expired);
        }
        let caller = Caller { tenant: Arc::clone(tenant), shown: Shown::Pair(*index) };
        Ok((caller, pair.secret.clone()))
    }

    /// The same for SigV4 key pairs. A copied file's pairs open for no other tenant, so that only a copy
    /// made by hand under both names gets here.
    pub(super) fn publish_pairs(
        &self,
        live: &Generation,
        next: &mut Generation,
    ) -> Vec<TenantFault> {
        let had = |tenant: &Tenant, pair: &Pair| {
            live.pairs.get(&pair.id).is_some_and(|(owner, _)| owner.id == tenant.id)
        };
        let mut copies = Vec::new();
        for first in [true, false] {
            for tenant in next.tenants.values() {
                let pairs = tenant.pairs.iter().enumerate();
                for (index, pair) in pairs.filter(|(_, pair)| had(tenant, pair) == first) {
                    if let Some((owner, _)) = next.pairs.get(&pair.id) {
                        let path = file::path_of(&self.dir, &tenant.id);
                        let (id, owner) = (&pair.id, &owner.id);
                        let message = format!("pair {id:?} is one of tenant {owner} already");
                        copies.push(TenantFault { path, message });
                    } else {
                        next.pairs.insert(pair.id.clone(), (Arc::clone(tenant), index));
                    }
                }
            }
        }
        copies
    }

    /// Gives a tenant a SigV4 key pair, or another one: then its newest former pair lives on, as with
    /// [`Tenants::rotate`]. Blocks on files.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn add_pair(
        &self,
        id: &TenantId,
        expire_old_after: Option<Duration>,
    ) -> Result<AddedPair, ChangeError> {
        let mut loaded = lock(&self.loaded);
        let mut file = self.read(id)?;
        let new = pair::generate()?;
        // A second master key would leave all that was sealed under the first shut.
        let none = self.live.load().tenants.values().all(|tenant| {
            tenant.pairs.is_empty() || self.dev.as_ref().is_some_and(|(_, dev)| dev.id == tenant.id)
        });
        let secret = self.vault.seal(id, &new, none && file.pairs.is_empty())?;
        let end = self.end(expire_old_after);
        let mut old = file.pairs.pop();
        if let (Some(old), Some(end)) = (&mut old, end) {
            old.not_after = Some(sooner(old.not_after.as_deref(), end));
        }
        let event_types = old.as_ref().and_then(|old| old.event_types.clone());
        let entry = PairEntry { id: new.id.clone(), secret, not_after: None, event_types };
        file.pairs = old.into_iter().chain([entry]).collect();
        self.save(&mut loaded, id, &file)?;
        Ok(AddedPair { id: new.id, secret: new.secret, old_pairs_expire_at: end })
    }
}
