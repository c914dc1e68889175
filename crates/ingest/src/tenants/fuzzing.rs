//! Keys and tenants' files for fuzz/.

use super::{Quota, Tenant, file, key, pair::Vault};
use tidegate_event::TenantId;

/// The public part of a well-formed key.
#[must_use]
pub fn id_of(text: &str) -> Option<&str> {
    key::id_of(text)
}

/// The tenant that a file's text describes, and the text it would be written as.
///
/// # Errors
/// What is wrong, for people.
pub fn tenant(id: &TenantId, text: &str) -> Result<(Tenant, String), String> {
    let file = file::parse(text)?;
    let written = toml::to_string_pretty(&file).map_err(|error| error.to_string())?;
    // Without a master key: no pair opens.
    let vault = Vault::of(std::path::Path::new("/nonexistent"));
    Ok((file.tenant(id, &Quota::default(), &vault)?, written))
}
