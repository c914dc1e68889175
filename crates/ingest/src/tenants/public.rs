//! Public keys: made and taken back one by one, apart from the secret ones.

use tidegate_event::TenantId;

use super::{
    ChangeError, Tenants,
    file::KeyEntry,
    key::{self, NewKey},
    store::lock,
};

/// A public key to be made.
#[derive(Clone, Debug, Default)]
pub struct NewPublicKey {
    /// The origins whose pages may use it; none: all.
    pub origins: Vec<String>,
    /// The event types it may send; `None`: all.
    pub event_types: Option<Vec<String>>,
}

impl Tenants {
    /// Gives a tenant one more public key, which is returned. Blocks on files.
    ///
    /// # Errors
    /// [`ChangeError`]; [`ChangeError::Fault`] for what is no origin or no event type's name.
    pub fn add_public(&self, id: &TenantId, new: &NewPublicKey) -> Result<NewKey, ChangeError> {
        let mut loaded = lock(&self.loaded);
        let mut file = self.read(id)?;
        let key = key::generate_public()?;
        let entry = KeyEntry {
            public: true,
            origins: (!new.origins.is_empty()).then(|| new.origins.clone()),
            event_types: new.event_types.clone(),
            ..self.entry(&key)
        };
        file.keys.insert(0, entry);
        self.save(&mut loaded, id, &file)?;
        Ok(key)
    }

    /// Refuses a public key from now on, and forgets it. Blocks on files.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn revoke_public(&self, id: &TenantId, key_id: &str) -> Result<(), ChangeError> {
        let mut loaded = lock(&self.loaded);
        let mut file = self.read(id)?;
        let before = file.keys.len();
        file.keys.retain(|entry| !(entry.public && entry.id == key_id));
        if file.keys.len() == before {
            return Err(ChangeError::NoSuchKey(id.clone(), key_id.to_owned()));
        }
        self.save(&mut loaded, id, &file)
    }
}
