//! SigV4 key pairs: a public id and a secret that both sides have, sealed in the tenant's file.
//!
//! To check a signature takes the secret itself, not a hash of it. So it stands in the file encrypted
//! (AES-256-GCM, for its tenant and id alone) under a master key that has a file of its own.

use std::{
    io,
    path::{Path, PathBuf},
};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use tidegate_event::TenantId;

use super::{Secret, file, key};

const ID_PREFIX: &str = "TG";
const ID_CHARS: usize = 18;
const SECRET_CHARS: usize = 43;
const FILE: &str = ".sigv4-master";

/// One pair of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The public part: AWS's access key id.
    pub id: String,
    /// AWS's secret access key.
    pub secret: Secret,
    /// The event types it may send; `None`: all.
    pub event_types: Option<Vec<String>>,
    /// Microseconds since 1970 after which it is refused; `None`: never.
    pub not_after: Option<i64>,
}

/// A pair, just made: the only time that its secret is told.
#[derive(Debug)]
pub struct NewPair {
    /// The public part.
    pub id: String,
    /// The secret.
    pub secret: String,
}

/// Makes a pair.
///
/// # Errors
/// [`key::NoRandom`]
pub fn generate() -> Result<NewPair, key::NoRandom> {
    let id = format!("{ID_PREFIX}{}", key::random_text(ID_CHARS)?.to_ascii_uppercase());
    Ok(NewPair { id, secret: key::random_text(SECRET_CHARS)? })
}

/// The master key, by where it stands. It is read when it is needed: it may come later than the server.
#[derive(Clone, Debug)]
pub(super) struct Vault {
    dir: PathBuf,
}

impl Vault {
    /// The one of a folder of tenants.
    pub(super) fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    fn read(&self) -> io::Result<[u8; 32]> {
        let text = std::fs::read_to_string(self.path())?;
        let mut bytes = [0; 32];
        let decoded = hex::decode_to_slice(text.trim(), &mut bytes);
        decoded.map_err(|_| io::Error::other("it does not hold 64 hexadecimal digits"))?;
        Ok(bytes)
    }

    /// The master key, made where there is none and nothing was sealed yet.
    fn read_or_make(&self, may_make: bool) -> io::Result<[u8; 32]> {
        match self.read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound && may_make => {}
            read => return read,
        }
        let bytes: [u8; 32] = key::random_bytes().map_err(io::Error::other)?;
        match file::make(&self.dir, &self.path(), hex::encode(bytes).as_bytes()) {
            // Another role that shares the folder was first.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.read(),
            made => made.map(|()| bytes),
        }
    }

    /// A secret as it stands in the file.
    ///
    /// # Errors
    /// The master key cannot be read or made.
    pub(super) fn seal(
        &self,
        tenant: &TenantId,
        pair: &NewPair,
        may_make: bool,
    ) -> io::Result<String> {
        let master = self.read_or_make(may_make)?;
        let nonce: [u8; NONCE_LEN] = key::random_bytes().map_err(io::Error::other)?;
        let mut sealed = pair.secret.clone().into_bytes();
        let aad = Aad::from(bound_to(tenant, &pair.id));
        let nonce_given = Nonce::assume_unique_for_key(nonce);
        cipher(&master)?
            .seal_in_place_append_tag(nonce_given, aad, &mut sealed)
            .map_err(|_| io::Error::other("the secret could not be sealed"))?;
        Ok(hex::encode([nonce.as_slice(), &sealed].concat()))
    }

    /// The secret behind what stands in the file; the error is one line for people.
    pub(super) fn open(&self, tenant: &TenantId, id: &str, sealed: &str) -> Result<Secret, String> {
        let wrong = || format!("pair {id:?}: the secret is damaged, or was sealed elsewhere");
        let master = self.read().map_err(|error| {
            format!("pair {id:?}: {} cannot be read: {error}; restore it", self.path().display())
        })?;
        let bytes = hex::decode(sealed).map_err(|_| wrong())?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>().ok_or_else(wrong)?;
        let mut sealed = sealed.to_vec();
        let cipher = cipher(&master).map_err(|_| wrong())?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let aad = Aad::from(bound_to(tenant, id));
        let open = cipher.open_in_place(nonce, aad, &mut sealed).map_err(|_| wrong())?;
        Ok(Secret(open.to_vec()))
    }
}

fn cipher(master: &[u8; 32]) -> io::Result<LessSafeKey> {
    let key = UnboundKey::new(&AES_256_GCM, master);
    Ok(LessSafeKey::new(key.map_err(|_| io::Error::other("the master key is of no use"))?))
}

/// What a sealed secret is good for: moved to another tenant or id, it opens no more.
fn bound_to(tenant: &TenantId, id: &str) -> Vec<u8> {
    format!("tidegate sigv4 pair\n{tenant}\n{id}").into_bytes()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_for_its_tenant_and_id_under_its_master_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::of(dir.path());
        let (acme, other) = (TenantId::new("acme").unwrap(), TenantId::new("other").unwrap());
        let pair = generate().unwrap();
        assert!(pair.id.len() == 20 && pair.id.starts_with("TG") && pair.secret.len() == 43);
        assert!(vault.seal(&acme, &pair, false).is_err(), "there is no master key yet");
        let sealed = vault.seal(&acme, &pair, true).unwrap();
        assert_ne!(sealed, vault.seal(&acme, &pair, false).unwrap(), "a nonce is used once");
        let open = |tenant: &TenantId, id: &str, sealed: &str| vault.open(tenant, id, sealed);
        assert_eq!(open(&acme, &pair.id, &sealed), Ok(Secret(pair.secret.clone().into_bytes())));
        assert!(open(&other, &pair.id, &sealed).is_err());
        assert!(open(&acme, "TGX", &sealed).is_err());
        for at in [0, 30, sealed.len() - 1] {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            assert!(open(&acme, &pair.id, &String::from_utf8(changed).unwrap()).is_err(), "{at}");
        }
        assert!(open(&acme, &pair.id, "00").is_err() && open(&acme, &pair.id, "x").is_err());
        let elsewhere = tempfile::tempdir().unwrap();
        let strange = Vault::of(elsewhere.path());
        let said = strange.open(&acme, &pair.id, &sealed).unwrap_err();
        assert!(said.contains(FILE) && !said.contains(&pair.secret), "{said}");
        strange.seal(&acme, &pair, true).unwrap();
        assert!(strange.open(&acme, &pair.id, &sealed).is_err());
    }
}
