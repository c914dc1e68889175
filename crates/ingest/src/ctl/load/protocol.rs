//! The protocols that load can be made in. A new one: a row.

use crate::ctl::{fault::Fault, public::Kept};

/// One protocol.
#[derive(Debug)]
pub struct Protocol {
    /// As `--protocol` names it.
    pub name: &'static str,
    /// What it is, for the help.
    pub about: &'static str,
    /// Where it is spoken.
    pub path: &'static str,
    /// The type of its bodies.
    pub content_type: &'static str,
    /// Reads the answer of a 200.
    pub read: fn(&[u8]) -> Result<Kept, Fault>,
}

/// Every protocol.
pub const PROTOCOLS: &[Protocol] = &[Protocol {
    name: "events",
    about: "our own, one event a line",
    path: "/v1/events",
    content_type: "application/x-ndjson",
    read: Kept::read,
}];

/// Finds one by its name.
///
/// # Errors
/// The names there are.
pub fn by_name(name: &str) -> Result<&'static Protocol, String> {
    let known = || {
        let rows = PROTOCOLS.iter().map(|p| format!("{} ({})", p.name, p.about));
        format!("there are: {}", rows.collect::<Vec<_>>().join(", "))
    };
    PROTOCOLS.iter().find(|p| p.name == name).ok_or_else(known)
}
