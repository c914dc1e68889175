//! One tenant's file: TOML, mode 0600, written whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tidegate_event::TenantId;

use super::{
    Key, Quota, Secret, Tenant,
    pair::{Pair, Vault},
};

/// What a tenant's file says.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantFile {
    #[serde(default = "yes")]
    pub enabled: bool,
    #[serde(default)]
    pub strict: bool,
    pub pii_secret: Hex,
    #[serde(default)]
    pub quota: Quota,
    #[serde(default, rename = "key")]
    pub keys: Vec<KeyEntry>,
    #[serde(default, rename = "sigv4", skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<PairEntry>,
}

/// One SigV4 key pair in a tenant's file.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PairEntry {
    pub id: String,
    /// Sealed under the master key (see `pair`).
    pub secret: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_types: Option<Vec<String>>,
}

/// One key in a tenant's file.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyEntry {
    pub id: String,
    pub hash: Hex,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origins: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub public: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_types: Option<Vec<String>>,
}

/// 32 bytes in hexadecimal; never printed.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Hex(pub [u8; 32]);

impl std::fmt::Debug for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

impl TryFrom<String> for Hex {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        let mut bytes = [0; 32];
        // The text may be a secret: the error does not repeat it.
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| "not 64 hexadecimal digits")?;
        Ok(Self(bytes))
    }
}

impl From<Hex> for String {
    fn from(bytes: Hex) -> Self {
        hex::encode(bytes.0)
    }
}

fn yes() -> bool {
    true
}

/// What tells that a file has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: (i64, i64),
    bytes: u64,
    inode: u64,
    mode: u32,
}

impl Stamp {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self {
            modified: (meta.mtime(), meta.mtime_nsec()),
            bytes: meta.size(),
            inode: meta.ino(),
            mode: meta.mode(),
        })
    }

    /// True where others than the owner may read the file.
    pub(super) fn is_open_to_others(&self) -> bool {
        self.mode & 0o077 != 0
    }
}

pub(super) fn path_of(dir: &Path, tenant: &TenantId) -> PathBuf {
    dir.join(format!("{tenant}.toml"))
}

/// The tenants that have a file in `dir`, and the names of `.toml` files that name no tenant.
pub(super) fn list(dir: &Path) -> io::Result<(Vec<TenantId>, Vec<String>)> {
    let (mut tenants, mut strangers) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some(stem) = name.strip_suffix(".toml").filter(|_| !name.starts_with('.')) else {
            continue;
        };
        match TenantId::new(stem) {
            Ok(tenant) => tenants.push(tenant),
            Err(_) => strangers.push(name),
        }
    }
    tenants.sort();
    Ok((tenants, strangers))
}

/// A file larger than this is no tenant's.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a tenant's file; the error is one line for people and holds no secret.
pub(super) fn read(path: &Path) -> Result<TenantFile, String> {
    let about = fs::metadata(path).map_err(|error| error.to_string())?;
    if !about.is_file() {
        return Err("is no file".to_owned());
    }
    if FILE_BYTES_MAX < about.len() {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    parse(&text)
}

/// Reads a tenant's file's text.
pub(super) fn parse(text: &str) -> Result<TenantFile, String> {
    toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .and_then(|span| text.get(..span.start))
            .map_or(0, |before| before.bytes().filter(|b| *b == b'\n').count() + 1);
        format!("line {line}: {}", error.message())
    })
}

/// Writes a tenant's file: a crash leaves the old one or the new one.
pub(super) fn write(dir: &Path, tenant: &TenantId, file: &TenantFile) -> io::Result<()> {
    let text = toml::to_string_pretty(file).map_err(io::Error::other)?;
    replace(dir, &path_of(dir, tenant), text.as_bytes())
}

/// Writes a file in `dir` that only its owner may read, whole and durable or not at all.
pub(super) fn replace(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    write_private(&partial, bytes)?;
    fs::rename(&partial, path)?;
    File::open(dir)?.sync_all()
}

/// Makes a file whole, unless another process has made it meanwhile.
pub(super) fn make(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let own = format!("{}.partial", hex::encode(rand::random::<[u8; 8]>()));
    let partial = path.with_extension(own);
    write_private(&partial, bytes)?;
    let linked = fs::hard_link(&partial, path);
    fs::remove_file(&partial)?;
    linked?;
    File::open(dir)?.sync_all()
}

/// Makes a file that only its owner may read, durable but for its name.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

impl TenantFile {
    /// The tenant it describes; what its quota leaves open comes from `defaults`.
    pub(super) fn tenant(
        &self,
        id: &TenantId,
        defaults: &Quota,
        vault: &Vault,
    ) -> Result<Tenant, String> {
        let keys: Result<Vec<_>, String> = self.keys.iter().map(KeyEntry::key).collect();
        let pairs: Result<Vec<_>, String> =
            self.pairs.iter().map(|entry| entry.pair(id, vault)).collect();
        let quota = self.quota.over(defaults);
        if let Some(fault) = quota.faults().first() {
            return Err(format!("quota.{fault}"));
        }
        Ok(Tenant {
            id: id.clone(),
            enabled: self.enabled,
            strict: self.strict,
            pii_secret: Secret(self.pii_secret.0.to_vec()),
            quota,
            keys: keys?,
            pairs: pairs?,
        })
    }
}

/// The end and the types of a key, read; `who` names it.
fn bounds(
    who: &str,
    not_after: Option<&str>,
    event_types: Option<&[String]>,
) -> Result<Option<i64>, String> {
    let not_after = not_after.map(|text| {
        text.parse::<jiff::Timestamp>()
            .map(jiff::Timestamp::as_microsecond)
            .map_err(|error| format!("{who}: not_after {text:?} is no RFC 3339 time: {error}"))
    });
    for name in event_types.into_iter().flatten() {
        if !tidegate_event::EventType::is_valid(name) {
            return Err(format!("{who}: {name:?} is no event type's name"));
        }
    }
    not_after.transpose()
}

impl KeyEntry {
    fn key(&self) -> Result<Key, String> {
        let who = format!("key {:?}", self.id);
        let not_after = bounds(&who, self.not_after.as_deref(), self.event_types.as_deref())?;
        let origins = self.origins.clone().unwrap_or_default();
        if let Some(origin) = origins.iter().find(|origin| !is_origin(origin)) {
            let form = "SCHEME://HOST[:PORT] in small letters, as a browser sends it";
            return Err(format!("key {:?}: {origin:?} is no origin: {form}", self.id));
        }
        if !self.public && self.origins.is_some() {
            return Err(format!("key {:?}: only a public key has origins", self.id));
        }
        Ok(Key {
            id: self.id.clone(),
            hash: self.hash.0,
            public: self.public.then_some(origins),
            event_types: self.event_types.clone(),
            not_after,
        })
    }
}

impl PairEntry {
    fn pair(&self, tenant: &TenantId, vault: &Vault) -> Result<Pair, String> {
        let who = format!("pair {:?}", self.id);
        let not_after = bounds(&who, self.not_after.as_deref(), self.event_types.as_deref())?;
        Ok(Pair {
            id: self.id.clone(),
            secret: vault.open(tenant, &self.id, &self.secret)?,
            event_types: self.event_types.clone(),
            not_after,
        })
    }
}

/// True for what a browser may send as `Origin`, but `null`.
fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let host =
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@\\".contains(&b));
    let small = text.bytes().all(|b| !b.is_ascii_uppercase());
    host && small
        && !scheme.is_empty()
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}
