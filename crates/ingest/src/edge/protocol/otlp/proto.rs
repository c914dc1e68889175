//! OTLP as protobuf: events are written from the body's slices, with nothing allocated for a field.

use std::borrow::Cow;

use super::{
    super::protobuf::{Raw, Reader, zigzag},
    fields::{FIELDS_MAX, Field, Kind, Message, Shown},
    form::{DEPTH_MAX, Fault, Form, base64, comma, double, hex, name, number, own_name},
};
use crate::json::quote;

/// The form.
pub(super) enum Proto {}

/// A field of a message: where it stands first, what it says last, and how often it stands there.
#[derive(Clone, Copy)]
struct Seen<'a> {
    from: &'a [u8],
    last: Raw<'a>,
    times: usize,
}

fn wrong_type(field: &Field) -> Fault {
    Fault::broken(format!("the field {:?} ({}) has another wire type", field.name, field.number))
}

fn text(bytes: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(bytes).map_err(|_| Fault::utf8())
}

/// The values of one field, wherever they stand.
struct Each<'a> {
    rest: Reader<'a>,
    number: u32,
}

impl<'a> Iterator for Each<'a> {
    type Item = Result<&'a [u8], Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.rest.field() {
                Ok(None) => return None,
                Ok(Some((number, Raw::Bytes(bytes)))) if number == self.number => {
                    return Some(Ok(bytes));
                }
                Ok(Some((number, _))) if number == self.number => {
                    self.rest = Reader(&[]);
                    let what = format!("the field {number} has another wire type");
                    return Some(Err(Fault::broken(what)));
                }
                Ok(Some(_)) => {}
                Err(error) => {
                    self.rest = Reader(&[]);
                    return Some(Err(error.into()));
                }
            }
        }
    }
}

impl<'a> Form<'a> for Proto {
    type Node = &'a [u8];

    fn each(
        node: &'a [u8],
        field: &'static Field,
    ) -> impl Iterator<Item = Result<&'a [u8], Fault>> {
        Each { rest: Reader(node), number: field.number }
    }

    fn one(node: &'a [u8], field: &'static Field) -> Result<Option<&'a [u8]>, Fault> {
        let mut last = None;
        for found in Self::each(node, field) {
            last = Some(found?);
        }
        Ok(last)
    }

    fn members(
        node: &'a [u8],
        message: &Message,
        out: &mut String,
        depth: usize,
    ) -> Result<u64, Fault> {
        let mut seen: [Option<Seen<'_>>; FIELDS_MAX] = [None; FIELDS_MAX];
        let (mut reader, mut hint) = (Reader(node), 0);
        loop {
            let from = reader.0;
            let Some((number, last)) = reader.field()? else { break };
            let Some(at) = message.find(hint, |field| field.number == number) else { continue };
            hint = at;
            match seen.get_mut(at) {
                Some(Some(seen)) => *seen = Seen { last, times: seen.times + 1, ..*seen },
                Some(empty) => *empty = Some(Seen { from, last, times: 1 }),
                None => {}
            }
        }
        let mut time = 0;
        for (field, seen) in message.0.iter().zip(&seen) {
            match seen {
                Some(seen) => member(field, seen, out, depth, &mut time)?,
                None if field.shown == Shown::Always => {
                    name(field.name, out);
                    out.push_str(absent(&field.kind));
                }
                None => {}
            }
        }
        Ok(time)
    }

    fn key(node: &'a [u8]) -> Result<Cow<'a, str>, Fault> {
        let mut reader = Reader(node);
        let mut key = "";
        while let Some((number, raw)) = reader.field()? {
            if let (1, Raw::Bytes(bytes)) = (number, raw) {
                key = text(bytes)?;
            }
        }
        Ok(Cow::Borrowed(key))
    }

    fn value(node: &'a [u8], out: &mut String, depth: usize) -> Result<(), Fault> {
        let mut reader = Reader(node);
        let mut value: &[u8] = &[];
        while let Some((number, raw)) = reader.field()? {
            if let (2, Raw::Bytes(bytes)) = (number, raw) {
                value = bytes;
            }
        }
        any(value, out, depth)
    }
}

/// How a field of this kind says nothing, where it always stands there.
fn absent(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "false",
        Kind::Double => "0.0",
        _ => "0",
    }
}

fn member(
    field: &Field,
    seen: &Seen<'_>,
    out: &mut String,
    depth: usize,
    time: &mut u64,
) -> Result<(), Fault> {
    match (&field.kind, seen.last) {
        (Kind::Text, Raw::Bytes(bytes)) if !bytes.is_empty() => {
            name(field.name, out);
            quote(text(bytes)?, out);
        }
        (Kind::Id, Raw::Bytes(bytes)) if !bytes.is_empty() => {
            name(field.name, out);
            hex(bytes, out);
        }
        (Kind::Text | Kind::Id, Raw::Bytes(_)) => {}
        (Kind::Any, Raw::Bytes(bytes)) => {
            name(field.name, out);
            any(bytes, out, depth)?;
        }
        (Kind::One(message), Raw::Bytes(bytes)) => {
            name(field.name, out);
            out.push('{');
            Proto::members(bytes, message, out, depth)?;
            out.push('}');
        }
        (Kind::Attributes, Raw::Bytes(_)) => {
            name(field.name, out);
            out.push('{');
            several(field, seen, |bytes| attribute(bytes, out, depth))?;
            out.push('}');
        }
        (Kind::Many(message), Raw::Bytes(_)) => {
            name(field.name, out);
            out.push('[');
            several(field, seen, |bytes| {
                comma(out);
                out.push('{');
                Proto::members(bytes, message, out, depth)?;
                out.push('}');
                Ok(())
            })?;
            out.push(']');
        }
        (Kind::Texts, Raw::Bytes(_)) => {
            name(field.name, out);
            out.push('[');
            several(field, seen, |bytes| {
                comma(out);
                quote(text(bytes)?, out);
                Ok(())
            })?;
            out.push(']');
        }
        (Kind::Uint64s | Kind::Fixed64s | Kind::Doubles, _) => {
            name(field.name, out);
            out.push('[');
            numbers(field, seen, out)?;
            out.push(']');
        }
        _ => scalar(field, seen.last, out, time)?,
    }
    Ok(())
}

fn scalar(field: &Field, raw: Raw<'_>, out: &mut String, time: &mut u64) -> Result<(), Fault> {
    let shown = |zero: bool, out: &mut String| {
        let shown = !zero || field.shown != Shown::Set;
        if shown {
            name(field.name, out);
        }
        shown
    };
    match (&field.kind, raw) {
        (Kind::Bool, Raw::Varint(value)) => {
            if shown(value == 0, out) {
                out.push_str(if value == 0 { "false" } else { "true" });
            }
        }
        // As the format says: of more than 32 bits only those count.
        (Kind::Enum, Raw::Varint(value)) => {
            let value = ((value & 0xffff_ffff) as u32).cast_signed();
            if shown(value == 0, out) {
                number(value, out);
            }
        }
        (Kind::Uint32, Raw::Varint(value)) => {
            if shown(value & 0xffff_ffff == 0, out) {
                number(value & 0xffff_ffff, out);
            }
        }
        (Kind::Sint32, Raw::Varint(value)) => {
            if shown(zigzag(value) == 0, out) {
                number(zigzag(value), out);
            }
        }
        (Kind::Fixed32, Raw::Fixed32(value)) => {
            if shown(value == 0, out) {
                number(value, out);
            }
        }
        (Kind::Fixed64 | Kind::Time, Raw::Fixed64(value)) => {
            if matches!(field.kind, Kind::Time) && *time == 0 {
                *time = value;
            }
            if shown(value == 0, out) {
                number(value, out);
            }
        }
        (Kind::Sfixed64, Raw::Fixed64(value)) => {
            if shown(value == 0, out) {
                number(value.cast_signed(), out);
            }
        }
        (Kind::Double, Raw::Fixed64(value)) => {
            if shown(value == 0, out) {
                double(f64::from_bits(value), out);
            }
        }
        _ => return Err(wrong_type(field)),
    }
    Ok(())
}

/// What stands at a field that may stand there often.
fn several<'a>(
    field: &Field,
    seen: &Seen<'a>,
    mut each: impl FnMut(&'a [u8]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    Each { rest: Reader(seen.from), number: field.number }
        .take(seen.times)
        .try_for_each(|found| each(found?))
}

/// Numbers, packed or one by one.
fn numbers(field: &Field, seen: &Seen<'_>, out: &mut String) -> Result<(), Fault> {
    let mut reader = Reader(seen.from);
    while let Some((found, raw)) = reader.field()? {
        if found != field.number {
            continue;
        }
        match (&field.kind, raw) {
            (Kind::Uint64s, Raw::Varint(value)) => {
                comma(out);
                number(value, out);
            }
            (Kind::Uint64s, Raw::Bytes(packed)) => {
                let mut packed = Reader(packed);
                while let Some(value) = packed.packed_varint()? {
                    comma(out);
                    number(value, out);
                }
            }
            (Kind::Fixed64s | Kind::Doubles, Raw::Fixed64(value)) => fixed(field, value, out),
            (Kind::Fixed64s | Kind::Doubles, Raw::Bytes(packed)) => {
                let mut packed = Reader(packed);
                while let Some(value) = packed.packed_fixed64()? {
                    fixed(field, value, out);
                }
            }
            _ => return Err(wrong_type(field)),
        }
    }
    Ok(())
}

fn fixed(field: &Field, value: u64, out: &mut String) {
    comma(out);
    match field.kind {
        Kind::Doubles => double(f64::from_bits(value), out),
        _ => number(value, out),
    }
}

/// A `KeyValue` as a member.
fn attribute(bytes: &[u8], out: &mut String, depth: usize) -> Result<(), Fault> {
    let mut reader = Reader(bytes);
    let (mut key, mut value): (_, &[u8]) = ("", &[]);
    while let Some((number, raw)) = reader.field()? {
        match (number, raw) {
            (1, Raw::Bytes(bytes)) => key = text(bytes)?,
            (2, Raw::Bytes(bytes)) => value = bytes,
            (1 | 2, _) => return Err(Fault::broken("an attribute has another wire type")),
            _ => {}
        }
    }
    own_name(key, out);
    any(value, out, depth)
}

/// An `AnyValue`: null where it holds nothing, and of several the last.
fn any(bytes: &[u8], out: &mut String, depth: usize) -> Result<(), Fault> {
    if depth == DEPTH_MAX {
        return Err(Fault::depth());
    }
    let (mut reader, mut found) = (Reader(bytes), None);
    while let Some((number, raw)) = reader.field()? {
        if (1..=7).contains(&number) {
            found = Some((number, raw));
        }
    }
    match found {
        None => out.push_str("null"),
        Some((1, Raw::Bytes(bytes))) => quote(text(bytes)?, out),
        Some((2, Raw::Varint(value))) => out.push_str(if value == 0 { "false" } else { "true" }),
        Some((3, Raw::Varint(value))) => number(value.cast_signed(), out),
        Some((4, Raw::Fixed64(value))) => double(f64::from_bits(value), out),
        Some((5, Raw::Bytes(bytes))) => {
            out.push('[');
            for value in (Each { rest: Reader(bytes), number: 1 }) {
                comma(out);
                any(value?, out, depth + 1)?;
            }
            out.push(']');
        }
        Some((6, Raw::Bytes(bytes))) => {
            out.push('{');
            for member in (Each { rest: Reader(bytes), number: 1 }) {
                attribute(member?, out, depth + 1)?;
            }
            out.push('}');
        }
        Some((7, Raw::Bytes(bytes))) => base64(bytes, out),
        Some(_) => return Err(Fault::broken("a value has another wire type")),
    }
    Ok(())
}
