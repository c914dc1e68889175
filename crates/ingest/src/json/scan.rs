//! One pass over an event's bytes: grammar, limits, flaws, and where its top-level fields lie.

use std::{
    borrow::Cow,
    collections::HashSet,
    hash::{BuildHasher, RandomState},
};

use tidegate_event::Code;

use super::{
    Field, JsonError, Kind,
    field::{Span, slice},
    push_pointer,
    text::plain_end,
    unescape,
};

/// How much one event may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanLimits {
    /// Objects and arrays inside each other; the event itself is the first.
    pub depth: usize,
    /// Fields of all objects together.
    pub fields: usize,
}

/// JSON, but of no certain meaning: such an event is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// `DuplicateKey`, `NulCharacter` or `LoneSurrogate`.
    pub code: Code,
    /// Where: a JSON pointer; of a key, the object it stands in.
    pub pointer: String,
}

/// What a scan found, and the memory it needs; made once and used for event after event.
#[derive(Debug, Default)]
pub struct Object {
    fields: Vec<Field>,
    flaw: Option<Flaw>,
    keys: Vec<Key>,
    levels: Vec<Level>,
    sets: Vec<HashSet<u64>>,
    seed: RandomState,
}

impl Object {
    /// The top-level fields in their order.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The first flaw, in the order of the text.
    #[must_use]
    pub fn flaw(&self) -> Option<&Flaw> {
        self.flaw.as_ref()
    }
}

/// A key of an object that is still open. `print` tells most different keys apart by itself.
#[derive(Clone, Copy, Debug)]
struct Key {
    span: Span,
    print: u64,
}

/// An object or array that is still open.
#[derive(Clone, Copy, Debug)]
struct Level {
    object: bool,
    after_comma: bool,
    /// The current field's key; unused in an array.
    key: Span,
    /// The current element's place; unused in an object.
    index: u32,
    /// Where its keys begin in [`Object::keys`].
    keys_from: usize,
    /// Where the current value begins.
    value_from: u32,
}

/// Keys of one object that are compared one by one; above it they are hashed.
const COMPARED_KEYS: usize = 16;

/// Scans one event: the whole grammar, with `into` holding its top-level fields and first flaw
/// afterwards. Returns the bytes as text, which the fields' accessors take.
///
/// # Errors
/// [`JsonError`]; `into` then holds nothing of use.
pub fn scan_object<'a>(
    raw: &'a [u8],
    limits: &ScanLimits,
    into: &mut Object,
) -> Result<&'a str, JsonError> {
    let text = std::str::from_utf8(raw)
        .map_err(|error| JsonError::InvalidUtf8 { position: error.valid_up_to() })?;
    if u32::try_from(raw.len()).is_err() {
        return Err(JsonError::InvalidJson { position: 0, what: "4 GiB or more" });
    }
    into.fields.clear();
    into.keys.clear();
    into.levels.clear();
    into.flaw = None;
    let mut scanner = Scanner { text, bytes: raw, at: 0, limits, members: 0, into };
    match scanner.document()? {
        Kind::Object => Ok(text),
        other => Err(JsonError::NotAnObject { found: other.name() }),
    }
}

struct Scanner<'a, 'o> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    limits: &'o ScanLimits,
    members: usize,
    into: &'o mut Object,
}

type Scan<T> = Result<T, JsonError>;

impl Scanner<'_, '_> {
    fn document(&mut self) -> Scan<Kind> {
        self.space();
        let kind = match self.peek() {
            b'{' => self.containers(Kind::Object)?,
            b'[' => self.containers(Kind::Array)?,
            _ => self.scalar()?,
        };
        self.space();
        if self.at < self.bytes.len() {
            return self.fault("text behind the value's end");
        }
        Ok(kind)
    }

    /// The byte here, 0 at the end: NUL is no part of the grammar anywhere.
    fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    fn here(&self) -> u32 {
        u32::try_from(self.at).unwrap_or(u32::MAX)
    }

    #[inline]
    fn space(&mut self) {
        while matches!(self.peek(), b' ' | b'\t' | b'\n' | b'\r') {
            self.at += 1;
        }
    }

    #[cold]
    fn fault<T>(&self, what: &'static str) -> Scan<T> {
        let what = if self.at >= self.bytes.len() { "it ends too early" } else { what };
        Err(JsonError::InvalidJson { position: self.at, what })
    }

    /// An object or array with all that is in it; its own stack, so that depth costs no recursion.
    fn containers(&mut self, kind: Kind) -> Scan<Kind> {
        self.open()?;
        loop {
            let Some(level) = self.into.levels.last().copied() else { return Ok(kind) };
            self.space();
            let byte = self.peek();
            let value = if (byte == b'}' && level.object) || (byte == b']' && !level.object) {
                if level.after_comma {
                    return self.fault("a comma without a value behind it");
                }
                self.close()
            } else {
                if level.object {
                    self.key()?;
                }
                self.value_begins();
                if matches!(self.peek(), b'{' | b'[') {
                    self.open()?;
                    continue;
                }
                Some(self.scalar()?)
            };
            if !self.value_ended(value)? {
                return Ok(kind);
            }
        }
    }

    /// Behind a value: notes it, and closes what closes here. False once all is closed.
    fn value_ended(&mut self, mut ended: Option<Kind>) -> Scan<bool> {
        while let Some(kind) = ended {
            self.note_field(kind);
            self.space();
            let byte = self.peek();
            let Some(level) = self.into.levels.last_mut() else { return Ok(false) };
            match (byte, level.object) {
                (b',', _) => {
                    self.at += 1;
                    level.after_comma = true;
                    level.index += 1;
                    return Ok(true);
                }
                (b'}', true) | (b']', false) => ended = self.close(),
                (_, true) => return self.fault("expected ',' or '}' behind a value"),
                (_, false) => return self.fault("expected ',' or ']' behind a value"),
            }
        }
        Ok(false)
    }

    fn note_field(&mut self, kind: Kind) {
        let value_to = self.here();
        if let [level] = self.into.levels.as_slice()
            && level.object
        {
            let value = (level.value_from, value_to);
            self.into.fields.push(Field { key: level.key, value, kind });
        }
    }

    fn open(&mut self) -> Scan<()> {
        if self.into.levels.len() >= self.limits.depth {
            return Err(JsonError::TooDeep { limit: self.limits.depth });
        }
        self.into.levels.push(Level {
            object: self.peek() == b'{',
            after_comma: false,
            key: Span::default(),
            index: 0,
            keys_from: self.into.keys.len(),
            value_from: 0,
        });
        self.at += 1;
        Ok(())
    }

    /// Closes the innermost; its kind where it was a value inside another, `None` where it was all.
    fn close(&mut self) -> Option<Kind> {
        self.at += 1;
        let closed = self.into.levels.pop()?;
        self.into.keys.truncate(closed.keys_from);
        let kind = if closed.object { Kind::Object } else { Kind::Array };
        (!self.into.levels.is_empty()).then_some(kind)
    }

    #[inline]
    fn value_begins(&mut self) {
        self.space();
        let here = self.here();
        if let Some(level) = self.into.levels.last_mut() {
            level.value_from = here;
        }
    }

    fn key(&mut self) -> Scan<()> {
        if self.peek() != b'"' {
            return self.fault("expected a key in double quotes");
        }
        self.members += 1;
        if self.members > self.limits.fields {
            return Err(JsonError::TooManyFields { limit: self.limits.fields });
        }
        let from = self.here() + 1;
        let escaped = self.string(true)?;
        let span = Span { from, to: self.here() - 1, escaped };
        self.note_key(span);
        self.space();
        if self.peek() != b':' {
            return self.fault("expected ':' behind a key");
        }
        self.at += 1;
        Ok(())
    }

    fn note_key(&mut self, span: Span) {
        let text = self.text;
        let key = Key { span, print: self.print(span) };
        let Some(level) = self.into.levels.last_mut() else { return };
        level.key = span;
        let siblings = self.into.keys.get(level.keys_from..).unwrap_or_default();
        let twice = if siblings.len() < COMPARED_KEYS {
            siblings.iter().any(|k| k.print == key.print && same(text, k.span, span))
        } else {
            self.hashed_twice(span)
        };
        self.into.keys.push(key);
        if twice {
            self.flaw(Code::DuplicateKey, true);
        }
    }

    /// Whether an object with many keys has this one already.
    fn hashed_twice(&mut self, span: Span) -> bool {
        let text = self.text;
        let Object { keys, levels, sets, seed, .. } = &mut *self.into;
        let Some(keys_from) = levels.last().map(|level| level.keys_from) else { return false };
        let siblings = keys.get(keys_from..).unwrap_or_default();
        if sets.len() < levels.len() {
            sets.resize_with(levels.len(), HashSet::new);
        }
        let Some(set) = sets.get_mut(levels.len() - 1) else { return false };
        let hash = |span: Span| {
            let raw = slice(text, span.from, span.to);
            seed.hash_one(if span.escaped { unescape(raw) } else { Cow::Borrowed(raw) }.as_bytes())
        };
        if siblings.len() == COMPARED_KEYS {
            set.clear();
            set.extend(siblings.iter().map(|key| hash(key.span)));
        }
        !set.insert(hash(span)) && siblings.iter().any(|key| same(text, key.span, span))
    }

    /// Length, first and last bytes of a key as one number; different keys mostly differ in it.
    #[inline]
    fn print(&self, span: Span) -> u64 {
        if span.escaped {
            let name = unescape(slice(self.text, span.from, span.to));
            return print(name.as_bytes());
        }
        let (from, to) = (span.from as usize, span.to as usize);
        // Eight bytes may reach past the key's end, which the mask takes off again.
        match self.bytes.get(from..).and_then(<[u8]>::first_chunk::<8>) {
            Some(head) if to - from <= 8 => {
                let bits = (to - from) * 8;
                let mask = if bits == 64 { u64::MAX } else { (1u64 << bits) - 1 };
                mix(u64::from_le_bytes(*head) & mask, 0, to - from)
            }
            _ => print(self.bytes.get(from..to).unwrap_or_default()),
        }
    }

    #[cold]
    fn flaw(&mut self, code: Code, with_key: bool) {
        if self.into.flaw.is_some() {
            return;
        }
        let mut pointer = String::new();
        let levels = &self.into.levels;
        let shown = if with_key { levels.len() } else { levels.len().saturating_sub(1) };
        for level in levels.iter().take(shown) {
            if level.object {
                push_pointer(
                    &mut pointer,
                    &unescape(slice(self.text, level.key.from, level.key.to)),
                );
            } else {
                push_pointer(&mut pointer, &level.index.to_string());
            }
        }
        self.into.flaw = Some(Flaw { code, pointer });
    }

    fn scalar(&mut self) -> Scan<Kind> {
        match self.peek() {
            b'"' => Ok(Kind::String { escaped: self.string(false)? }),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.literal(b"true", Kind::True),
            b'f' => self.literal(b"false", Kind::False),
            b'n' => self.literal(b"null", Kind::Null),
            b'N' | b'I' => self.fault("NaN and Infinity are no JSON values"),
            b'\'' => self.fault("strings stand in double quotes"),
            0xef => self.fault("a byte order mark is no part of JSON"),
            _ => self.fault("expected a value"),
        }
    }

    fn literal(&mut self, word: &'static [u8], kind: Kind) -> Scan<Kind> {
        if self.bytes.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            self.at += word.len();
            return Ok(kind);
        }
        self.fault("expected true, false or null")
    }

    fn digits(&mut self) -> bool {
        let from = self.at;
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        self.at > from
    }

    fn number(&mut self) -> Scan<Kind> {
        let mut kind = Kind::Integer;
        if self.peek() == b'-' {
            self.at += 1;
        }
        if self.peek() == b'0' {
            self.at += 1;
            if self.peek().is_ascii_digit() {
                return self.fault("a number does not begin with 0");
            }
        } else if !self.digits() {
            return self.fault("expected a digit");
        }
        if self.peek() == b'.' {
            self.at += 1;
            kind = Kind::Number;
            if !self.digits() {
                return self.fault("expected a digit behind the point");
            }
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.at += 1;
            kind = Kind::Number;
            if matches!(self.peek(), b'+' | b'-') {
                self.at += 1;
            }
            if !self.digits() {
                return self.fault("expected a digit in the exponent");
            }
        }
        Ok(kind)
    }

    /// A string from its opening quote to behind its closing one; true where it holds escapes.
    #[inline]
    fn string(&mut self, key: bool) -> Scan<bool> {
        self.at += 1;
        let mut escaped = false;
        loop {
            self.at = plain_end(self.bytes, self.at);
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape(key)?;
                }
                Some(_) => return self.fault("a control character in a string must be escaped"),
                None => return self.fault("a string that is not closed"),
            }
        }
    }

    #[cold]
    fn escape(&mut self, key: bool) -> Scan<()> {
        self.at += 1;
        match self.peek() {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {
                self.at += 1;
                return Ok(());
            }
            b'u' => self.at += 1,
            _ => return self.fault("no such escape"),
        }
        let unit = self.hex()?;
        match unit {
            0 => self.flaw(Code::NulCharacter, !key),
            0xd800..=0xdbff => {
                let low = self.bytes.get(self.at..).is_some_and(|rest| rest.starts_with(b"\\u"));
                let before = self.at;
                self.at += 2;
                if !low || !matches!(self.hex()?, 0xdc00..=0xdfff) {
                    self.at = before;
                    self.flaw(Code::LoneSurrogate, !key);
                }
            }
            0xdc00..=0xdfff => self.flaw(Code::LoneSurrogate, !key),
            _ => {}
        }
        Ok(())
    }

    fn hex(&mut self) -> Scan<u32> {
        let mut unit = 0;
        for _ in 0..4 {
            let Some(digit) = char::from(self.peek()).to_digit(16) else {
                return self.fault("expected four hexadecimal digits behind \\u");
            };
            unit = unit << 4 | digit;
            self.at += 1;
        }
        Ok(unit)
    }
}

fn mix(head: u64, tail: u64, len: usize) -> u64 {
    head.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ tail.rotate_left(29) ^ len as u64
}

fn print(bytes: &[u8]) -> u64 {
    match (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        (Some(head), Some(_)) if bytes.len() == 8 => mix(u64::from_le_bytes(*head), 0, 8),
        (Some(head), Some(tail)) => {
            mix(u64::from_le_bytes(*head), u64::from_le_bytes(*tail), bytes.len())
        }
        _ => {
            let head = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            mix(head, 0, bytes.len())
        }
    }
}

fn same(text: &str, a: Span, b: Span) -> bool {
    let (x, y) = (slice(text, a.from, a.to), slice(text, b.from, b.to));
    if a.escaped || b.escaped { unescape(x) == unescape(y) } else { x == y }
}
