//! What both forms of OTLP have in common: how a body is walked, and how values are written as JSON.

use std::{borrow::Cow, fmt::Write as _};

use base64::{Engine, engine::general_purpose::STANDARD};
use tidegate_event::{Code, Reason};

use super::{
    super::protobuf::WireError,
    fields::{Field, Message},
};
use crate::json::quote;

/// `AnyValue`s inside each other: as many as an event may have by default (`edge.limits.depth`), and far
/// fewer than a stack holds. Each level of a JSON body is looked over a few times, so this bounds its work, too.
pub(super) const DEPTH_MAX: usize = 32;

/// A form of the same messages: protobuf or JSON.
pub(super) trait Form<'a> {
    /// A message as it stands in the body.
    type Node: Copy + AsRef<[u8]>;

    /// The messages of a field, in order.
    fn each(
        node: Self::Node,
        field: &'static Field,
    ) -> impl Iterator<Item = Result<Self::Node, Fault>>;

    /// The one message of a field; of several the last.
    fn one(node: Self::Node, field: &'static Field) -> Result<Option<Self::Node>, Fault>;

    /// Adds the members that `message` says, each with a comma before it unless it is the object's first.
    /// Returns when it happened, in nanoseconds; 0 where it does not say.
    fn members(
        node: Self::Node,
        message: &Message,
        out: &mut String,
        depth: usize,
    ) -> Result<u64, Fault>;

    /// The key of a `KeyValue`.
    fn key(node: Self::Node) -> Result<Cow<'a, str>, Fault>;

    /// Adds the value of a `KeyValue`.
    fn value(node: Self::Node, out: &mut String, depth: usize) -> Result<(), Fault>;
}

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub code: Code,
    pub what: Cow<'static, str>,
}

impl Fault {
    /// Not as the protocol's files say.
    pub(super) fn broken(what: impl Into<Cow<'static, str>>) -> Self {
        Self { code: Code::EnvelopeInvalid, what: what.into() }
    }

    pub(super) fn utf8() -> Self {
        let what = "a text is no UTF-8; send bytes as bytes".into();
        Self { code: Code::InvalidUtf8, what }
    }

    pub(super) fn depth() -> Self {
        let what = format!("values nested deeper than {DEPTH_MAX} levels").into();
        Self { code: Code::TooDeep, what }
    }

    pub(super) fn reason(&self, what: &str) -> Reason {
        Reason::new(self.code, "", format!("{what}: {}", self.what))
    }
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        Self::broken(format!("no protobuf message: {error}"))
    }
}

/// Adds a member's name, which needs no escapes.
#[inline]
pub(super) fn name(name: &str, out: &mut String) {
    comma(out);
    out.push('"');
    out.push_str(name);
    out.push_str("\":");
}

/// Adds a key of somebody's own.
pub(super) fn own_name(key: &str, out: &mut String) {
    comma(out);
    quote(key, out);
    out.push(':');
}

/// A comma, but for what is first.
#[inline]
pub(super) fn comma(out: &mut String) {
    if !matches!(out.as_bytes().last(), None | Some(b'{' | b'[')) {
        out.push(',');
    }
}

/// Adds a text that needs no escapes.
pub(super) fn own_text(text: &str, out: &mut String) {
    out.push('"');
    out.push_str(text);
    out.push('"');
}

pub(super) fn number(value: impl std::fmt::Display, out: &mut String) {
    // Writing to a String cannot fail.
    let _ = write!(out, "{value}");
}

/// The shortest digits that mean this number; text for what JSON has no number for.
pub(super) fn double(value: f64, out: &mut String) {
    if value.is_nan() {
        out.push_str("\"NaN\"");
    } else if value.is_infinite() {
        out.push_str(if value < 0.0 { "\"-Infinity\"" } else { "\"Infinity\"" });
    } else {
        // Writing to a String cannot fail.
        let _ = write!(out, "{value:?}");
    }
}

pub(super) fn hex(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.push('"');
    for byte in bytes {
        for half in [byte >> 4, byte & 15] {
            out.push(char::from(DIGITS.get(usize::from(half)).copied().unwrap_or(b'0')));
        }
    }
    out.push('"');
}

pub(super) fn base64(bytes: &[u8], out: &mut String) {
    out.push('"');
    STANDARD.encode_string(bytes, out);
    out.push('"');
}
