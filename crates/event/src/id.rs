//! Names that are checked once and trusted from then on.

use std::{fmt, sync::Arc};

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a tenant's name.
    #[error("tenant names are a letter a-z and up to 62 of a-z, 0-9, _ and -")]
    Tenant,
    /// Not an event type's name.
    #[error(
        "event types are a letter and up to 126 of A-Z, a-z, 0-9, '.', '_' and '-', never with '..'"
    )]
    EventType,
}

/// Names one tenant: a letter `a-z`, then up to 62 of `a-z`, `0-9`, `_` and `-`.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`NameError::Tenant`] when it breaks the rule above.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let [first, rest @ ..] = name.as_bytes() else { return Err(NameError::Tenant) };
        let tail = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        if first.is_ascii_lowercase() && rest.len() <= 62 && rest.iter().all(tail) {
            Ok(Self(name.into()))
        } else {
            Err(NameError::Tenant)
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names the schema an event is checked by and the table it lands in: a letter, then up to 126 of
/// letters, digits, `.`, `_` and `-`, never with `..`; case-sensitive.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct EventType(Arc<str>);

impl EventType {
    /// Where dead letters go whose own type is missing or no name at all.
    pub const UNNAMED: &'static str = "unnamed";

    /// True when `name` may name an event type.
    #[must_use]
    pub fn is_valid(name: &str) -> bool {
        let [first, rest @ ..] = name.as_bytes() else { return false };
        let tail = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        first.is_ascii_alphabetic()
            && rest.len() <= 126
            && rest.iter().all(tail)
            && !name.contains("..")
    }

    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`NameError::EventType`] when it breaks the rule above.
    pub fn new(name: &str) -> Result<Self, NameError> {
        if Self::is_valid(name) { Ok(Self(name.into())) } else { Err(NameError::EventType) }
    }

    /// The type of what names none: [`EventType::UNNAMED`].
    #[must_use]
    pub fn unnamed() -> Self {
        Self(Self::UNNAMED.into())
    }

    /// Makes a foreign name fit: characters outside the rule become `_`, a first character that is
    /// no letter gets `t_` before it, and it is cut at 127 bytes. `None` where the name fits as it
    /// is or is empty.
    #[must_use]
    pub fn mapped(foreign: &str) -> Option<Self> {
        if foreign.is_empty() || Self::is_valid(foreign) {
            return None;
        }
        let mut name = String::with_capacity(foreign.len() + 2);
        if !foreign.starts_with(|c: char| c.is_ascii_alphabetic()) {
            name.push_str("t_");
        }
        for c in foreign.chars() {
            let fits = c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
            let dot = c == '.' && !name.ends_with('.');
            name.push(if fits || dot { c } else { '_' });
        }
        name.truncate(127);
        Some(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(&name)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    )*};
}
text!(TenantId, EventType);

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_rule() {
        for good in ["a", "acme", "a-1_b"] {
            assert!(TenantId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "1a", "a.b", "a/b", "..", "a\n", &"a".repeat(64)] {
            assert!(TenantId::new(bad).is_err(), "{bad}");
        }
        for good in ["a", "Page.View-1", "z_"] {
            assert!(EventType::is_valid(good), "{good}");
        }
        for bad in ["", "a..b", "_a", "1", "a b", "a/b", "%2e", "é", &"a".repeat(128)] {
            assert!(!EventType::is_valid(bad), "{bad}");
        }
    }

    #[test]
    fn foreign_names_are_made_to_fit() {
        for foreign in ["a/b c", "../../etc", "1x", "é", "a..b", "com.x/y", &"/".repeat(300)] {
            let mapped = EventType::mapped(foreign).unwrap();
            assert!(EventType::is_valid(mapped.as_str()), "{foreign} -> {mapped}");
        }
        assert_eq!(EventType::mapped("fits"), None);
    }
}
