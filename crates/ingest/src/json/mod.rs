//! The borrowed JSON scanner of the hot path: one pass, no allocation per event.
//!
//! [`scan_object`] checks the whole grammar of RFC 8259 and notes where the top-level fields of an
//! object lie; nothing is decoded until someone asks ([`Field::name`], [`unescape`]).
//! [`split_array`] cuts a body that is an array into its elements. What is broken is an error; what
//! is JSON but means nothing certain (a key twice, NUL, half a surrogate pair) is a [`Flaw`].

mod array;
mod field;
mod scan;
#[cfg(test)]
mod tests;
mod text;

pub use array::split_array;
pub use field::{Field, Kind};
pub use scan::{Flaw, Object, ScanLimits, scan_object};
pub(crate) use text::plain_end;
pub use text::{push_pointer, quote, short, trim, unescape};

use tidegate_event::Code;

/// Why bytes are no event: none of these can be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The grammar does not hold.
    #[error("not JSON at byte {position}: {what}")]
    InvalidJson {
        /// Where, in bytes from the start of what was scanned.
        position: usize,
        /// What stands there, or should.
        what: &'static str,
    },
    /// Valid JSON of another kind.
    #[error("an event is a JSON object, this is {found}")]
    NotAnObject {
        /// What it is, with its article.
        found: &'static str,
    },
    /// Objects and arrays inside each other beyond the limit.
    #[error("nested deeper than {limit} levels")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// More fields, at all depths together, than the limit.
    #[error("more than {limit} fields")]
    TooManyFields {
        /// The limit.
        limit: usize,
    },
    /// Not UTF-8.
    #[error("not UTF-8 at byte {position}")]
    InvalidUtf8 {
        /// Where the first bad sequence begins.
        position: usize,
    },
}

impl JsonError {
    /// The code under which it is told.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Self::InvalidJson { .. } => Code::InvalidJson,
            Self::NotAnObject { .. } => Code::NotAnObject,
            Self::TooDeep { .. } => Code::TooDeep,
            Self::TooManyFields { .. } => Code::TooManyFields,
            Self::InvalidUtf8 { .. } => Code::InvalidUtf8,
        }
    }
}
