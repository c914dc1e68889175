//! One top-level field of a scanned event.

use std::borrow::Cow;

use super::unescape;

/// What kind of value it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true`
    True,
    /// `false`
    False,
    /// A number without fraction and exponent.
    Integer,
    /// A number with a fraction or an exponent.
    Number,
    /// A string.
    String {
        /// True where it holds escapes.
        escaped: bool,
    },
    /// An object.
    Object,
    /// An array.
    Array,
}

impl Kind {
    /// How people call it, with its article.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::True | Self::False => "a boolean",
            Self::Integer => "an integer",
            Self::Number => "a number",
            Self::String { .. } => "a string",
            Self::Object => "an object",
            Self::Array => "an array",
        }
    }
}

/// One top-level field: where its parts lie in the scanned text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub(super) key: Span,
    pub(super) value: (u32, u32),
    /// What its value is.
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Span {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) escaped: bool,
}

impl Field {
    /// Its key as it stands between the quotes of `text`, the text that was scanned.
    #[must_use]
    pub fn key<'a>(&self, text: &'a str) -> &'a str {
        slice(text, self.key.from, self.key.to)
    }

    /// True where the key holds escapes, so that [`Field::key`] is not yet its name.
    #[must_use]
    pub fn key_escaped(&self) -> bool {
        self.key.escaped
    }

    /// Its key, decoded.
    #[must_use]
    pub fn name<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.key.escaped { unescape(self.key(text)) } else { Cow::Borrowed(self.key(text)) }
    }

    /// Its value as it stands in `text`, a string with its quotes.
    #[must_use]
    pub fn value<'a>(&self, text: &'a str) -> &'a str {
        slice(text, self.value.0, self.value.1)
    }

    /// Where the key's opening quote stands and where the value ends, in bytes.
    #[must_use]
    pub fn extent(&self) -> (usize, usize) {
        (self.key.from as usize - 1, self.value.1 as usize)
    }

    /// A string's content, decoded; `None` for every other kind.
    #[must_use]
    pub fn string<'a>(&self, text: &'a str) -> Option<Cow<'a, str>> {
        let Kind::String { escaped } = self.kind else { return None };
        let inside = slice(text, self.value.0 + 1, self.value.1 - 1);
        Some(if escaped { unescape(inside) } else { Cow::Borrowed(inside) })
    }
}

pub(super) fn slice(text: &str, from: u32, to: u32) -> &str {
    text.get(from as usize..to as usize).unwrap_or_default()
}
