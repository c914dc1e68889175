//! All tenants at one moment, and how one moment follows another.

mod caller;
mod pairs;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use tidegate_event::TenantId;

use super::{
    Key, Pair, Quota, Secret, Tenant,
    file::{self, Hex, KeyEntry, Stamp, TenantFile},
    key::{self, NoRandom},
    pair::Vault,
};
use crate::clock::Clock;

pub use caller::Caller;
use caller::Shown;
pub use pairs::AddedPair;

/// Why a key was refused. A client is told the same for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Malformed, of an unknown id, or with another secret.
    #[error("unknown key")]
    Unknown,
    /// Past its `not_after`.
    #[error("expired key")]
    Expired,
    /// Its tenant is disabled.
    #[error("disabled tenant")]
    Disabled,
}

/// A file that says something that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct TenantFault {
    /// Which file.
    pub path: PathBuf,
    /// What is wrong, for people; holds no secret.
    pub message: String,
}

/// Why the tenants could not be loaded at all.
#[derive(Debug, thiserror::Error)]
pub enum TenantsError {
    /// The folder or the pepper cannot be read or made.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There are tenants, but what their keys were hashed with is gone: no key could be right.
    #[error("{} is missing or damaged, so that no key can be checked; restore it", .0.display())]
    PepperLost(PathBuf),
    /// Some files are wrong; all of them are named.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Files(Vec<TenantFault>),
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] NoRandom),
}

/// Why a change of a tenant was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is one of that name.
    #[error("tenant {0} exists already")]
    Exists(TenantId),
    /// There is none of that name in the folder.
    #[error("there is no tenant {0}")]
    Missing(TenantId),
    /// The tenant has no public key of that id.
    #[error("tenant {0} has no public key {1:?}")]
    NoSuchKey(TenantId, String),
    /// Its file says something that cannot be.
    #[error(transparent)]
    Fault(#[from] TenantFault),
    /// Its file could not be written; nothing changed.
    #[error("the tenant's file could not be written: {0}")]
    Io(#[from] io::Error),
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] NoRandom),
}

/// A tenant to be made.
#[derive(Clone, Debug)]
pub struct NewTenant {
    /// Its name.
    pub id: TenantId,
    /// What it may send; what is left open comes from the defaults, also when those change.
    pub quota: Quota,
    /// True: invalid events are rejected, not kept as dead letters.
    pub strict: bool,
}

/// What a rotation gave.
#[derive(Clone, Debug)]
pub struct Rotated {
    /// The new key.
    pub key: String,
    /// Microseconds since 1970 after which the former key is refused; `None`: at the next rotation.
    pub old_keys_expire_at: Option<i64>,
}

#[derive(Default)]
struct Generation {
    number: u64,
    tenants: BTreeMap<TenantId, Arc<Tenant>>,
    keys: HashMap<String, (Arc<Tenant>, usize)>,
    pairs: HashMap<String, (Arc<Tenant>, usize)>,
}

/// A tenant's file: as it was looked at, what was found, and the last that was good.
type Entry = (Stamp, Result<Arc<Tenant>, String>, Option<Arc<Tenant>>);

#[derive(Default)]
pub(super) struct Loaded {
    tenants: BTreeMap<TenantId, Entry>,
    strangers: Vec<String>,
    copies: Vec<TenantFault>,
}

/// Every tenant. Reads are of one generation, swapped whole; one change is made at a time.
pub struct Tenants {
    dir: PathBuf,
    defaults: Quota,
    clock: Arc<dyn Clock>,
    pepper: [u8; 32],
    vault: Vault,
    /// The keys of `dev` by their whole text, in the order of the tenant's.
    dev: Option<(Vec<[u8; 32]>, Arc<Tenant>)>,
    live: ArcSwap<Generation>,
    pub(super) loaded: Mutex<Loaded>,
}

impl std::fmt::Debug for Tenants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tenants").field("dir", &self.dir).finish_non_exhaustive()
    }
}

const NO_HASH: [u8; 32] = [0; 32];
/// The keys of `ingestd --dev` on loopback.
const DEV_KEY: &str = "tgk_dev";
const DEV_PUBLIC_KEY: &str = "tgp_dev";

impl Tenants {
    /// Loads every `<tenant>.toml` in `dir`, which is made if missing, as is the pepper.
    /// `defaults` fills what a tenant's quota leaves open. Blocks on files.
    ///
    /// # Errors
    /// [`TenantsError`]; with every file that is wrong, not only the first.
    pub fn load(dir: &Path, defaults: Quota, clock: Arc<dyn Clock>) -> Result<Self, TenantsError> {
        let io = |source| TenantsError::Io { path: dir.to_owned(), source };
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(dir).map_err(io)?;
        let (names, _) = file::list(dir).map_err(io)?;
        let tenants = Self {
            dir: dir.to_owned(),
            defaults,
            clock,
            pepper: pepper(dir, names.is_empty())?,
            vault: Vault::of(dir),
            dev: None,
            live: ArcSwap::default(),
            loaded: Mutex::default(),
        };
        match tenants.reload() {
            Ok(_) => Ok(tenants),
            Err(faults) => Err(TenantsError::Files(faults)),
        }
    }

    /// Adds the tenant `dev`, in memory only, whose key is `key` literally, and whose SigV4 key pair is
    /// `TGDEV` and the key with `_secret` behind it. No quota. Beside `tgk_dev` it has the public key
    /// `tgp_dev`; beside a random one none, for nobody would know it.
    #[must_use]
    pub fn with_dev(mut self, key: &str) -> Self {
        let Ok(id) = TenantId::new("dev") else { return self };
        let named = |id: &str, text: &str, public| Key {
            id: id.to_owned(),
            hash: key::hash(&self.pepper, text),
            public,
            event_types: None,
            not_after: None,
        };
        let mut keys = vec![named("dev", key, None)];
        if key == DEV_KEY {
            keys.push(named("dev_public", DEV_PUBLIC_KEY, Some(Vec::new())));
        }
        let hashes = keys.iter().map(|key| key.hash).collect();
        let tenant = Tenant {
            id,
            enabled: true,
            strict: false,
            // Not random, so that hashes of personal data agree from one start to the next.
            pii_secret: Secret(key::hash(&self.pepper, "pii_secret of dev").to_vec()),
            quota: Quota::default(),
            keys,
            pairs: vec![Pair {
                id: "TGDEV".to_owned(),
                secret: Secret(format!("{key}_secret").into_bytes()),
                event_types: None,
                not_after: None,
            }],
        };
        self.dev = Some((hashes, Arc::new(tenant)));
        let copies = self.publish(&lock(&self.loaded));
        lock(&self.loaded).copies = copies;
        self
    }

    /// Whose key this is.
    ///
    /// # Errors
    /// [`AuthError`]. A well-formed key takes as long whether its id is known or not.
    pub fn authenticate(&self, text: &str) -> Result<Caller, AuthError> {
        if let Some((hashes, tenant)) = &self.dev {
            let hash = key::hash(&self.pepper, text);
            if let Some(key) = hashes.iter().position(|known| key::same(known, &hash)) {
                return Ok(Caller { tenant: Arc::clone(tenant), shown: Shown::Key(key) });
            }
        }
        let id = key::id_of(text).ok_or(AuthError::Unknown)?;
        let live = self.live.load();
        let found = live.keys.get(id);
        let known = found.and_then(|(tenant, key)| tenant.keys.get(*key));
        let right = key::same(&key::hash(&self.pepper, text), known.map_or(&NO_HASH, |k| &k.hash));
        let (Some((tenant, index)), Some(known), true) = (found, known, right) else {
            return Err(AuthError::Unknown);
        };
        // What its file says must not make a secret key a public one, nor the other way round.
        if known.public.is_some() != key::is_public(text) {
            return Err(AuthError::Unknown);
        }
        if !tenant.enabled {
            return Err(AuthError::Disabled);
        }
        if known.not_after.is_some_and(|end| end < self.clock.now().0) {
            return Err(AuthError::Expired);
        }
        Ok(Caller { tenant: Arc::clone(tenant), shown: Shown::Key(*index) })
    }

    /// A tenant, for what may come without a key. It is under no key's restrictions.
    ///
    /// # Errors
    /// [`AuthError`]
    pub fn without_key(&self, id: &TenantId) -> Result<Caller, AuthError> {
        let tenant = self.get(id).ok_or(AuthError::Unknown)?;
        if !tenant.enabled {
            return Err(AuthError::Disabled);
        }
        Ok(Caller { tenant, shown: Shown::Nothing })
    }

    /// One tenant.
    #[must_use]
    pub fn get(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        self.live.load().tenants.get(id).cloned()
    }

    /// Every tenant, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Tenant>> {
        self.live.load().tenants.values().cloned().collect()
    }

    /// Counts the changes since the start.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.live.load().number
    }

    /// Reads what changed in the folder. Blocks on files.
    ///
    /// # Errors
    /// The files that are wrong: their tenants stay as they were, all others are live.
    pub fn reload(&self) -> Result<u64, Vec<TenantFault>> {
        let mut loaded = lock(&self.loaded);
        let mut faults = self.read_changed(&mut loaded).0;
        loaded.copies = self.publish(&loaded);
        faults.extend_from_slice(&loaded.copies);
        if faults.is_empty() { Ok(self.generation()) } else { Err(faults) }
    }

    /// As [`Tenants::reload`], but warns about each fault once.
    pub(super) fn follow(&self) {
        let mut loaded = lock(&self.loaded);
        let (_, mut fresh, changed) = self.read_changed(&mut loaded);
        if changed {
            let copies = self.publish(&loaded);
            fresh.extend(copies.iter().filter(|copy| !loaded.copies.contains(copy)).cloned());
            loaded.copies = copies;
        }
        drop(loaded);
        for fault in fresh {
            tracing::warn!(file = %fault.path.display(), error = %fault.message,
                "tenant file cannot be used; the tenant stays as it was");
        }
    }

    /// All faults, those not told before, and whether anything changed.
    fn read_changed(&self, loaded: &mut Loaded) -> (Vec<TenantFault>, Vec<TenantFault>, bool) {
        let fault = |path: &Path, message| TenantFault { path: path.to_owned(), message };
        let (names, strangers) = match file::list(&self.dir) {
            Ok(found) => found,
            Err(error) => {
                let all = vec![fault(&self.dir, error.to_string())];
                return (all.clone(), all, false);
            }
        };
        let (mut all, mut fresh) = (Vec::new(), Vec::new());
        let before = loaded.tenants.len();
        loaded.tenants.retain(|id, _| names.binary_search(id).is_ok());
        let mut changed = loaded.tenants.len() != before;
        for name in &strangers {
            let told = loaded.strangers.contains(name);
            let fault = fault(&self.dir.join(name), "names no tenant".to_owned());
            all.push(fault.clone());
            fresh.extend((!told).then_some(fault));
        }
        loaded.strangers = strangers;
        for id in names {
            let path = file::path_of(&self.dir, &id);
            // Gone between the listing and now: the next look sees it.
            let Ok(stamp) = Stamp::of(&path) else { continue };
            let known = loaded.tenants.get(&id);
            if let Some((_, result, _)) = known.filter(|(s, ..)| *s == stamp) {
                all.extend(result.as_ref().err().map(|m| fault(&path, m.clone())));
                continue;
            }
            changed = true;
            if stamp.is_open_to_others() {
                tracing::warn!(file = %path.display(), "others may read this file; chmod 600 it");
            }
            let result = file::read(&path).and_then(|f| f.tenant(&id, &self.defaults, &self.vault));
            let result = result.map(Arc::new);
            let former = known.and_then(|(_, _, last_good)| last_good.clone());
            if let Err(message) = &result {
                all.push(fault(&path, message.clone()));
                fresh.push(fault(&path, message.clone()));
            }
            let good = result.as_ref().ok().cloned().or(former);
            loaded.tenants.insert(id, (stamp, result, good));
        }
        (all, fresh, changed)
    }

    /// Makes what is loaded live. What comes back: keys that stand in more than one place. Ids are
    /// random, so such a file is a copy of another; the key stays with the tenant that had it.
    fn publish(&self, loaded: &Loaded) -> Vec<TenantFault> {
        let live = self.live.load();
        let mut next = Generation { number: live.number + 1, ..Generation::default() };
        let files = loaded.tenants.values().filter_map(|(_, _, good)| good.as_ref());
        for tenant in self.dev.iter().map(|(_, tenant)| tenant).chain(files) {
            next.tenants.insert(tenant.id.clone(), Arc::clone(tenant));
        }
        let had = |tenant: &Tenant, key: &Key| {
            live.keys.get(&key.id).is_some_and(|(owner, _)| owner.id == tenant.id)
        };
        let mut copies = self.publish_pairs(&live, &mut next);
        for first in [true, false] {
            for tenant in next.tenants.values() {
                let keys = tenant.keys.iter().enumerate();
                for (index, key) in keys.filter(|(_, key)| had(tenant, key) == first) {
                    if let Some((owner, _)) = next.keys.get(&key.id) {
                        let (path, id, owner) =
                            (file::path_of(&self.dir, &tenant.id), &key.id, &owner.id);
                        let message = format!("key {id:?} is one of tenant {owner} already");
                        copies.push(TenantFault { path, message });
                    } else {
                        next.keys.insert(key.id.clone(), (Arc::clone(tenant), index));
                    }
                }
            }
        }
        self.live.store(Arc::new(next));
        copies
    }

    /// Makes a tenant with one key, which is returned: nobody can tell it again. Blocks on files.
    ///
    /// # Errors
    /// [`ChangeError::Exists`], [`ChangeError::Io`], [`ChangeError::Random`], and
    /// [`ChangeError::Fault`] for a quota of 0.
    pub fn add(&self, new: &NewTenant) -> Result<String, ChangeError> {
        let mut loaded = lock(&self.loaded);
        let path = file::path_of(&self.dir, &new.id);
        if path.exists() || self.get(&new.id).is_some() {
            return Err(ChangeError::Exists(new.id.clone()));
        }
        let key = key::generate()?;
        let file = TenantFile {
            enabled: true,
            strict: new.strict,
            pii_secret: Hex(key::random_bytes()?),
            quota: new.quota.clone(),
            keys: vec![self.entry(&key)],
            pairs: Vec::new(),
        };
        self.save(&mut loaded, &new.id, &file)?;
        Ok(key.text)
    }

    /// Gives a tenant another key. Its newest former key lives on: to the end it had, to
    /// `expire_old_after` from now, whichever is sooner; all older ones are gone. Public keys stay. Blocks on
    /// files.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn rotate(
        &self,
        id: &TenantId,
        expire_old_after: Option<Duration>,
    ) -> Result<Rotated, ChangeError> {
        let mut loaded = lock(&self.loaded);
        let mut file = self.read(id)?;
        let key = key::generate()?;
        let end = self.end(expire_old_after);
        let (public, mut secret): (Vec<_>, Vec<_>) =
            file.keys.drain(..).partition(|entry| entry.public);
        let mut old = secret.pop();
        if let (Some(old), Some(end)) = (&mut old, end) {
            old.not_after = Some(sooner(old.not_after.as_deref(), end));
        }
        let mut entry = self.entry(&key);
        entry.event_types = old.as_ref().and_then(|old| old.event_types.clone());
        file.keys = public.into_iter().chain(old).chain([entry]).collect();
        self.save(&mut loaded, id, &file)?;
        Ok(Rotated { key: key.text, old_keys_expire_at: end })
    }

    /// So long from now, in microseconds since 1970.
    fn end(&self, after: Option<Duration>) -> Option<i64> {
        after.map(|after| {
            let micros = i64::try_from(after.as_micros()).unwrap_or(i64::MAX);
            self.clock.now().0.saturating_add(micros)
        })
    }

    /// Changes what a tenant may send: what `quota` says is set, what it leaves open stays. Blocks on
    /// files.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn set_quota(&self, id: &TenantId, quota: &Quota) -> Result<(), ChangeError> {
        self.change(id, |file| file.quota = quota.over(&file.quota))
    }

    /// Refuses all keys of a tenant from now on. Blocks on files.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn disable(&self, id: &TenantId) -> Result<(), ChangeError> {
        self.change(id, |file| file.enabled = false)
    }

    /// Takes the keys of a tenant again. Blocks on files.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn enable(&self, id: &TenantId) -> Result<(), ChangeError> {
        self.change(id, |file| file.enabled = true)
    }

    fn change(
        &self,
        id: &TenantId,
        change: impl FnOnce(&mut TenantFile),
    ) -> Result<(), ChangeError> {
        let mut loaded = lock(&self.loaded);
        let mut file = self.read(id)?;
        change(&mut file);
        self.save(&mut loaded, id, &file)
    }

    pub(super) fn entry(&self, key: &key::NewKey) -> KeyEntry {
        KeyEntry {
            id: key.id.clone(),
            hash: Hex(key::hash(&self.pepper, &key.text)),
            origins: None,
            public: false,
            not_after: None,
            event_types: None,
        }
    }

    /// From the file, not from memory, so that what a person wrote there is not undone.
    pub(super) fn read(&self, id: &TenantId) -> Result<TenantFile, ChangeError> {
        let path = file::path_of(&self.dir, id);
        if !path.exists() {
            return Err(ChangeError::Missing(id.clone()));
        }
        Ok(file::read(&path).map_err(|message| TenantFault { path, message })?)
    }

    pub(super) fn save(
        &self,
        loaded: &mut Loaded,
        id: &TenantId,
        file: &TenantFile,
    ) -> Result<(), ChangeError> {
        let path = file::path_of(&self.dir, id);
        let tenant = file.tenant(id, &self.defaults, &self.vault);
        let tenant = tenant.map_err(|message| TenantFault { path: path.clone(), message })?;
        file::write(&self.dir, id, file)?;
        let tenant = Arc::new(tenant);
        let entry = (Stamp::of(&path)?, Ok(Arc::clone(&tenant)), Some(tenant));
        loaded.tenants.insert(id.clone(), entry);
        loaded.copies = self.publish(loaded);
        Ok(())
    }
}

/// The end that a key has, or `end` where that is sooner.
fn sooner(own: Option<&str>, end: i64) -> String {
    let own = own.and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let end = jiff::Timestamp::from_microsecond(end).unwrap_or(jiff::Timestamp::MAX);
    own.map_or(end, |own| own.min(end)).to_string()
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What keys are hashed with: 32 bytes in hexadecimal in `<dir>/.pepper`, made at first use.
fn pepper(dir: &Path, may_make: bool) -> Result<[u8; 32], TenantsError> {
    let path = dir.join(".pepper");
    let io = |source| TenantsError::Io { path: path.clone(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let mut bytes = [0; 32];
            let decoded = hex::decode_to_slice(text.trim(), &mut bytes);
            decoded.map_err(|_| TenantsError::PepperLost(path))?;
            Ok(bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && may_make => {
            let bytes: [u8; 32] = key::random_bytes()?;
            match file::make(dir, &path, hex::encode(bytes).as_bytes()) {
                // Several roles share the folder and start at once: one makes it, all have the same.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => pepper(dir, false),
                made => made.map(|()| bytes).map_err(io),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(TenantsError::PepperLost(path))
        }
        Err(error) => Err(io(error)),
    }
}
