//! JSON strings: decoding, quoting, pointers, and cutting for people.

use std::{borrow::Cow, fmt::Write as _};

/// Decodes what stands between a valid JSON string's quotes. Half a surrogate pair becomes U+FFFD.
#[must_use]
pub fn unescape(raw: &str) -> Cow<'_, str> {
    if memchr::memchr(b'\\', raw.as_bytes()).is_none() {
        return Cow::Borrowed(raw);
    }
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        text.push_str(plain);
        let mut after = escaped.chars();
        match after.next() {
            Some('b') => text.push('\u{8}'),
            Some('f') => text.push('\u{c}'),
            Some('n') => text.push('\n'),
            Some('r') => text.push('\r'),
            Some('t') => text.push('\t'),
            Some('u') => {
                let (decoded, left) = code_point(after.as_str());
                text.push(decoded);
                rest = left;
                continue;
            }
            Some(other) => text.push(other),
            None => {}
        }
        rest = after.as_str();
    }
    text.push_str(rest);
    Cow::Owned(text)
}

/// What stands inside of JSON's white space (space, tab and line ends, nothing else), and where.
#[must_use]
pub fn trim(bytes: &[u8]) -> (usize, &[u8]) {
    let space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let from = bytes.iter().position(|byte| !space(byte)).unwrap_or(bytes.len());
    let to = bytes.iter().rposition(|byte| !space(byte)).map_or(from, |last| last + 1);
    (from, bytes.get(from..to).unwrap_or_default())
}

/// The character behind `\u`, and what follows it.
fn code_point(digits: &str) -> (char, &str) {
    let unit = |text: &str| text.get(..4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let Some(first) = unit(digits) else { return (char::REPLACEMENT_CHARACTER, "") };
    let rest = digits.get(4..).unwrap_or_default();
    if (0xd800..0xdc00).contains(&first)
        && let Some(low) = rest.strip_prefix("\\u")
        && let Some(second) = unit(low).filter(|unit| (0xdc00..0xe000).contains(unit))
    {
        let point = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        let decoded = char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER);
        return (decoded, low.get(4..).unwrap_or_default());
    }
    (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), rest)
}

/// Appends `text` as a JSON string, quotes included.
pub fn quote(text: &str, into: &mut String) {
    into.push('"');
    let mut rest = text;
    loop {
        // What has to be escaped is ASCII: a slice up to it is whole characters.
        let (plain, behind) = rest.split_at(plain_end(rest.as_bytes(), 0));
        into.push_str(plain);
        let mut chars = behind.chars();
        match chars.next() {
            None => break,
            Some('"') => into.push_str("\\\""),
            Some('\\') => into.push_str("\\\\"),
            Some('\n') => into.push_str("\\n"),
            Some('\r') => into.push_str("\\r"),
            Some('\t') => into.push_str("\\t"),
            // Writing to a String cannot fail.
            Some(c) => drop(write!(into, "\\u{:04x}", u32::from(c))),
        }
        rest = chars.as_str();
    }
    into.push('"');
}

/// Longest reference token written out in a pointer, in bytes; longer ones are cut with `…`.
const TOKEN_BYTES_MAX: usize = 128;

/// Appends one reference token to a JSON pointer (RFC 6901), cut where it is very long.
pub fn push_pointer(pointer: &mut String, token: &str) {
    pointer.push('/');
    let cut = token.floor_char_boundary(TOKEN_BYTES_MAX);
    for c in token.get(..cut).unwrap_or(token).chars() {
        match c {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            c => pointer.push(c),
        }
    }
    if cut < token.len() {
        pointer.push('…');
    }
}

/// Most characters of a value that a message repeats.
const SHORT_CHARS: usize = 60;

/// A value as messages repeat it: cut behind 60 characters.
#[must_use]
pub fn short(value: &str) -> Cow<'_, str> {
    match value.char_indices().nth(SHORT_CHARS) {
        None => Cow::Borrowed(value),
        Some((at, _)) => Cow::Owned(format!("{}…", value.get(..at).unwrap_or_default())),
    }
}

/// Where the next quote, backslash or control character stands from `at` on, or the end; looked for
/// eight bytes at a time.
#[inline]
pub(crate) fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = ONES << 7;
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*chunk);
        let zero = |w: u64| w.wrapping_sub(ONES) & !w;
        let quote = zero(word ^ (ONES * 0x22));
        let backslash = zero(word ^ (ONES * 0x5c));
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        // Above the first hit the bits may be wrong, up to it they are right.
        let hits = (quote | backslash | control) & HIGH;
        if hits != 0 {
            return at + (hits.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(|b| *b >= 0x20 && !matches!(b, b'"' | b'\\')) {
        at += 1;
    }
    at
}
