//! A push in protobuf, read over slices: `PushRequest` of Loki's `push.proto`.

use std::{borrow::Cow, ops::ControlFlow};

use super::{
    super::protobuf::{Raw, Reader, WireError},
    Entry, Stream, labels,
};
use crate::{edge::protocol::members::push_member, json::quote};

/// Hands each entry to the callback, in order. `Err`: what follows cannot be read.
pub(super) fn entries(
    body: &[u8],
    by_label: Option<&str>,
    mut each: impl FnMut(usize, &Stream<'_>, Result<Entry<'_>, String>) -> ControlFlow<()>,
) -> Result<(), WireError> {
    let mut request = Reader(body);
    while let Some(field) = request.field()? {
        let (1, Raw::Bytes(stream)) = field else { continue };
        let about = about(stream, by_label)?;
        let mut stream = Reader(stream);
        while let Some(field) = stream.field()? {
            let (2, Raw::Bytes(bytes)) = field else { continue };
            let at = (bytes.as_ptr() as usize).saturating_sub(body.as_ptr() as usize);
            let entry = entry(bytes)?;
            if each(at, &about, entry.entry()).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The stream's labels, which may stand behind its entries.
fn about<'a>(stream: &'a [u8], by_label: Option<&str>) -> Result<Stream<'a>, WireError> {
    let mut reader = Reader(stream);
    let mut text: &[u8] = b"{}";
    while let Some(field) = reader.field()? {
        if let (1, Raw::Bytes(found)) = field {
            text = found;
        }
    }
    let text = String::from_utf8_lossy(text);
    Ok(match labels::object(&text) {
        Some(object) => Stream::new("labels", Cow::Owned(object), by_label),
        // What is no list of labels stays as it came.
        None => {
            let mut raw = String::new();
            quote(&text, &mut raw);
            Stream::new("labels_raw", Cow::Owned(raw), None)
        }
    })
}

/// An entry as it stands on the wire.
struct Found<'a> {
    time: Option<(i64, i64)>,
    line: &'a [u8],
    metadata: Vec<(&'a [u8], &'a [u8])>,
}

fn entry(bytes: &[u8]) -> Result<Found<'_>, WireError> {
    let mut found = Found { time: None, line: b"", metadata: Vec::new() };
    let mut reader = Reader(bytes);
    while let Some(field) = reader.field()? {
        match field {
            (1, Raw::Bytes(time)) => found.time = Some(pair_of_numbers(time)?),
            (2, Raw::Bytes(line)) => found.line = line,
            (3, Raw::Bytes(pair)) => found.metadata.push(pair_of_texts(pair)?),
            _ => {}
        }
    }
    Ok(found)
}

fn pair_of_numbers(bytes: &[u8]) -> Result<(i64, i64), WireError> {
    let (mut first, mut second) = (0, 0);
    let mut reader = Reader(bytes);
    while let Some(field) = reader.field()? {
        match field {
            (1, Raw::Varint(number)) => first = number.cast_signed(),
            (2, Raw::Varint(number)) => second = number.cast_signed(),
            _ => {}
        }
    }
    Ok((first, second))
}

fn pair_of_texts(bytes: &[u8]) -> Result<(&[u8], &[u8]), WireError> {
    let (mut first, mut second): (&[u8], &[u8]) = (b"", b"");
    let mut reader = Reader(bytes);
    while let Some(field) = reader.field()? {
        match field {
            (1, Raw::Bytes(text)) => first = text,
            (2, Raw::Bytes(text)) => second = text,
            _ => {}
        }
    }
    Ok((first, second))
}

impl Found<'_> {
    /// The same as JSON; `Err` where a text is none.
    fn entry(&self) -> Result<Entry<'static>, String> {
        let text = |bytes, what: &str| {
            std::str::from_utf8(bytes).map_err(|error| format!("{what} is no UTF-8: {error}"))
        };
        let quoted = |plain: &str| {
            let mut json = String::with_capacity(plain.len() + 2);
            quote(plain, &mut json);
            json
        };
        let mut metadata = String::from("{");
        for (name, value) in &self.metadata {
            let value = quoted(text(value, "a value of structured metadata")?);
            push_member(&mut metadata, text(name, "a name of structured metadata")?, &value);
        }
        metadata.push('}');
        let nanos = self.time.map(|(seconds, nanos)| {
            format!("\"{}\"", i128::from(seconds) * 1_000_000_000 + i128::from(nanos))
        });
        Ok(Entry {
            nanos: nanos.map(Cow::Owned),
            line: Cow::Owned(quoted(text(self.line, "the line")?)),
            metadata: (!self.metadata.is_empty()).then_some(Cow::Owned(metadata)),
        })
    }
}
