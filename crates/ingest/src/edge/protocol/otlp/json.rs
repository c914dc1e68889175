//! OTLP as JSON: proto3's mapping with OTLP's exceptions (ids as hexadecimal digits, enumerations as numbers).
//!
//! The body is checked whole first; then it is walked by slices, with no tree made of it. Texts stand in
//! the event as they came, escapes included.

use std::{borrow::Cow, str::FromStr};

use super::{
    fields::{FIELDS_MAX, Field, Kind, Message, Shown},
    form::{DEPTH_MAX, Fault, Form, comma, double, name, number},
};
use crate::json::{plain_end, unescape};

/// The form.
pub(super) enum Json {}

/// What stands from `at` on up to the value's end. `bytes` are known to be JSON.
fn value_end(bytes: &[u8], mut at: usize) -> usize {
    match bytes.get(at) {
        Some(b'"') => text_end(bytes, at),
        Some(b'{' | b'[') => {
            let mut depth = 0usize;
            while let Some(byte) = bytes.get(at) {
                match byte {
                    b'"' => {
                        at = text_end(bytes, at);
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => {
                        depth = depth.saturating_sub(1);
                        if depth == 0 {
                            return at + 1;
                        }
                    }
                    _ => {}
                }
                at += 1;
            }
            bytes.len()
        }
        _ => {
            let ends = |b: &u8| matches!(b, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r');
            while bytes.get(at).is_some_and(|byte| !ends(byte)) {
                at += 1;
            }
            at
        }
    }
}

fn text_end(bytes: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    loop {
        at = plain_end(bytes, at);
        match bytes.get(at) {
            None => return bytes.len(),
            Some(b'"') => return at + 1,
            Some(b'\\') => at += 2,
            Some(_) => at += 1,
        }
    }
}

/// The values in an object or array, one after the other.
struct Values<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Values<'a> {
    /// Of what begins with `open`; all else is a fault that says `what` was looked for.
    fn of(node: &'a str, open: u8, what: &'static str) -> Result<Self, Fault> {
        match node.as_bytes().first() {
            Some(first) if *first == open => Ok(Self { text: node, at: 1 }),
            _ => Err(Fault::broken(what)),
        }
    }

    fn skip(&mut self) {
        let between = |b: &u8| matches!(b, b',' | b':' | b' ' | b'\t' | b'\n' | b'\r');
        while self.text.as_bytes().get(self.at).is_some_and(between) {
            self.at += 1;
        }
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.skip();
        let bytes = self.text.as_bytes();
        if matches!(bytes.get(self.at), None | Some(b'}' | b']')) {
            return None;
        }
        let from = self.at;
        self.at = value_end(bytes, from).max(from + 1);
        self.text.get(from..self.at)
    }
}

/// The members of an object; those that are null count as not there.
fn members_of(node: &str) -> Result<impl Iterator<Item = (Cow<'_, str>, &str)>, Fault> {
    let mut values = Values::of(node, b'{', "an object was looked for")?;
    Ok(std::iter::from_fn(move || {
        loop {
            let (key, value) = (values.next()?, values.next()?);
            if value != "null" {
                return Some((content(key).unwrap_or_default(), value));
            }
        }
    }))
}

/// What stands between the quotes; `None` where it is no text.
fn content(node: &str) -> Option<Cow<'_, str>> {
    Some(unescape(node.strip_prefix('"')?.strip_suffix('"')?))
}

fn member<'a>(node: &'a str, name: &str) -> Result<Option<&'a str>, Fault> {
    Ok(members_of(node)?.filter(|(key, _)| key == name).map(|(_, value)| value).last())
}

/// An array's elements, or nothing.
fn elements(node: Option<&str>) -> Result<impl Iterator<Item = &str>, Fault> {
    let values = match node {
        None => None,
        Some(node) => Some(Values::of(node, b'[', "an array was looked for")?),
    };
    Ok(values.into_iter().flatten())
}

impl<'a> Form<'a> for Json {
    type Node = &'a str;

    fn each(node: &'a str, field: &'static Field) -> impl Iterator<Item = Result<&'a str, Fault>> {
        let found = member(node, field.json).and_then(elements);
        let (values, fault) = match found {
            Ok(values) => (Some(values), None),
            Err(fault) => (None, Some(Err(fault))),
        };
        values.into_iter().flatten().map(Ok).chain(fault)
    }

    fn one(node: &'a str, field: &'static Field) -> Result<Option<&'a str>, Fault> {
        member(node, field.json)
    }

    fn members(
        node: &'a str,
        message: &Message,
        out: &mut String,
        depth: usize,
    ) -> Result<u64, Fault> {
        let mut seen: [Option<&str>; FIELDS_MAX] = [None; FIELDS_MAX];
        let mut hint = 0;
        for (key, value) in members_of(node)? {
            let Some(at) = message.find(hint, |field| field.json == key) else { continue };
            hint = at;
            if let Some(slot) = seen.get_mut(at) {
                *slot = Some(value);
            }
        }
        let mut time = 0;
        for (field, seen) in message.0.iter().zip(seen) {
            let always = field.shown == Shown::Always;
            let absent = match field.kind {
                Kind::Bool => "false",
                Kind::Double => "0.0",
                _ => "0",
            };
            if let Some(node) = seen.or(always.then_some(absent)) {
                let stood = out.len();
                name(field.name, out);
                let from = out.len();
                write(field, node, out, depth, &mut time)?;
                let unset = matches!(out.get(from..), Some("0" | "0.0" | "false" | "\"\"" | "[]"));
                let object =
                    matches!(field.kind, Kind::Attributes) && out.get(from..) == Some("{}");
                let plain = !matches!(field.kind, Kind::Any | Kind::One(_));
                if (unset && plain || object) && field.shown == Shown::Set {
                    out.truncate(stood);
                }
            }
        }
        Ok(time)
    }

    fn key(node: &'a str) -> Result<Cow<'a, str>, Fault> {
        match member(node, "key")? {
            None => Ok(Cow::Borrowed("")),
            Some(key) => content(key).ok_or_else(|| Fault::broken("a key is no text")),
        }
    }

    fn value(node: &'a str, out: &mut String, depth: usize) -> Result<(), Fault> {
        match member(node, "value")? {
            None => out.push_str("null"),
            Some(value) => any(value, out, depth)?,
        }
        Ok(())
    }
}

fn write(
    field: &Field,
    node: &str,
    out: &mut String,
    depth: usize,
    time: &mut u64,
) -> Result<(), Fault> {
    let wrong = |what: &str| Fault::broken(format!("{:?} is {what}", field.json));
    match field.kind {
        Kind::Text => text(node, out).ok_or_else(|| wrong("no text"))?,
        Kind::Texts => {
            list(node, out, |node, out| text(node, out).ok_or_else(|| wrong("no list of texts")))?;
        }
        Kind::Id => id(node, out).ok_or_else(|| wrong("not hexadecimal"))?,
        Kind::Any => any(node, out, depth)?,
        Kind::Attributes => attributes(node, out, depth)?,
        Kind::One(message) => {
            out.push('{');
            Json::members(node, message, out, depth)?;
            out.push('}');
        }
        Kind::Many(message) => list(node, out, |node, out| {
            out.push('{');
            Json::members(node, message, out, depth)?;
            out.push('}');
            Ok(())
        })?,
        Kind::Bool => match node {
            "true" | "false" => out.push_str(node),
            _ => return Err(wrong("neither true nor false")),
        },
        Kind::Enum if node.starts_with('"') => return Err(wrong("no number, as OTLP wants it")),
        Kind::Enum | Kind::Sint32 => {
            integer::<i32>(node, out).ok_or_else(|| wrong("no integer of 32 bits"))?;
        }
        Kind::Uint32 | Kind::Fixed32 => {
            integer::<u32>(node, out).ok_or_else(|| wrong("no integer of 32 bits"))?;
        }
        Kind::Fixed64 => {
            integer::<u64>(node, out).ok_or_else(|| wrong("no integer of 64 bits"))?;
        }
        Kind::Time => {
            let value = integer::<u64>(node, out);
            let value = value.ok_or_else(|| wrong("no integer of 64 bits"))?;
            if *time == 0 {
                *time = value;
            }
        }
        Kind::Sfixed64 => {
            integer::<i64>(node, out).ok_or_else(|| wrong("no integer of 64 bits"))?;
        }
        Kind::Double => float(node, out).ok_or_else(|| wrong("no number"))?,
        Kind::Uint64s | Kind::Fixed64s => list(node, out, |node, out| {
            integer::<u64>(node, out).map(drop).ok_or_else(|| wrong("no list of integers"))
        })?,
        Kind::Doubles => {
            list(node, out, |node, out| {
                float(node, out).ok_or_else(|| wrong("no list of numbers"))
            })?;
        }
    }
    Ok(())
}

fn list(
    node: &str,
    out: &mut String,
    mut each: impl FnMut(&str, &mut String) -> Result<(), Fault>,
) -> Result<(), Fault> {
    out.push('[');
    for element in Values::of(node, b'[', "an array was looked for")? {
        comma(out);
        each(element, out)?;
    }
    out.push(']');
    Ok(())
}

/// As it stands there.
fn text(node: &str, out: &mut String) -> Option<()> {
    node.starts_with('"').then(|| out.push_str(node))
}

fn id(node: &str, out: &mut String) -> Option<()> {
    let digits = node.strip_prefix('"')?.strip_suffix('"')?;
    if digits.len() % 2 != 0 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    out.push('"');
    out.extend(digits.chars().map(|digit| digit.to_ascii_lowercase()));
    out.push('"');
    Some(())
}

/// A number, or one in a text, as proto3's mapping has it; `1.0` and `1e3` too.
fn integer<T: FromStr + Copy + std::fmt::Display>(node: &str, out: &mut String) -> Option<T> {
    let digits = node.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(node);
    let value = digits.parse::<T>().ok().filter(|_| !digits.starts_with('+'));
    let value = value.or_else(|| {
        // Up to where each whole number is one.
        let float = digits.parse::<f64>().ok()?;
        (float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0)
            .then(|| format!("{float:.0}").parse::<T>().ok())?
    })?;
    number(value, out);
    Some(value)
}

/// A number as it stands there, or what a text says.
fn float(node: &str, out: &mut String) -> Option<()> {
    let Some(inner) = node.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        let is_number = node.starts_with(|first: char| first == '-' || first.is_ascii_digit());
        return is_number.then(|| out.push_str(node));
    };
    match inner {
        "NaN" | "Infinity" | "-Infinity" => out.push_str(node),
        _ => double(inner.parse::<f64>().ok().filter(|value| value.is_finite())?, out),
    }
    Some(())
}

fn attributes(node: &str, out: &mut String, depth: usize) -> Result<(), Fault> {
    out.push('{');
    for pair in Values::of(node, b'[', "attributes are a list of key and value")? {
        let (mut key, mut value) = (None, None);
        for (name, node) in members_of(pair)? {
            match &*name {
                "key" => key = Some(node),
                "value" => value = Some(node),
                _ => {}
            }
        }
        comma(out);
        text(key.unwrap_or("\"\""), out).ok_or_else(|| Fault::broken("a key is no text"))?;
        out.push(':');
        match value {
            None => out.push_str("null"),
            Some(value) => any(value, out, depth)?,
        }
    }
    out.push('}');
    Ok(())
}

/// An `AnyValue`: null where it holds nothing, and of several the last.
fn any(node: &str, out: &mut String, depth: usize) -> Result<(), Fault> {
    if depth == DEPTH_MAX {
        return Err(Fault::depth());
    }
    let known = |key: &Cow<'_, str>| {
        matches!(
            &**key,
            "stringValue"
                | "boolValue"
                | "intValue"
                | "doubleValue"
                | "arrayValue"
                | "kvlistValue"
                | "bytesValue"
        )
    };
    let Some((kind, node)) = members_of(node)?.filter(|(key, _)| known(key)).last() else {
        out.push_str("null");
        return Ok(());
    };
    let wrong = || Fault::broken(format!("{kind:?} does not hold such a value"));
    match &*kind {
        "stringValue" => text(node, out).ok_or_else(wrong),
        "boolValue" if matches!(node, "true" | "false") => {
            out.push_str(node);
            Ok(())
        }
        "intValue" => integer::<i64>(node, out).map(drop).ok_or_else(wrong),
        "doubleValue" => float(node, out).ok_or_else(wrong),
        "bytesValue" => bytes(node, out).ok_or_else(wrong),
        "arrayValue" => {
            let values = elements(member(node, "values")?)?;
            out.push('[');
            for value in values {
                comma(out);
                any(if value == "null" { "{}" } else { value }, out, depth + 1)?;
            }
            out.push(']');
            Ok(())
        }
        "kvlistValue" => attributes(member(node, "values")?.unwrap_or("[]"), out, depth + 1),
        _ => Err(wrong()),
    }
}

/// Base64 of either alphabet, with padding or without, as it stands there.
fn bytes(node: &str, out: &mut String) -> Option<()> {
    let inner = content(node)?;
    let digits = inner.trim_end_matches('=');
    let own = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_');
    let padding = inner.len() - digits.len();
    if 2 < padding || digits.len() % 4 == 1 || !digits.bytes().all(own) {
        return None;
    }
    out.push('"');
    out.push_str(&inner);
    out.push('"');
    Some(())
}

/// True where an object has members, and none of this name: what it says is for somewhere else, and must
/// not be lost without a word.
pub(super) fn lacks(node: &str, name: &str) -> bool {
    let names = members_of(node).map(|members| members.map(|(key, _)| key == name).collect());
    names.is_ok_and(|names: Vec<bool>| !names.is_empty() && !names.contains(&true))
}
