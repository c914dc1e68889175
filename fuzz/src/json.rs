//! `serde_json` as the reference for what is JSON, and what of it is of no certain meaning.

use std::{cell::Cell, collections::HashSet, fmt};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Whether these bytes are one JSON value of any kind, by the grammar alone.
pub fn is_json(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}

/// Whether these bytes are one JSON object, by the grammar alone.
pub fn is_object(bytes: &[u8]) -> bool {
    is_json(bytes) && trim(bytes).starts_with(b"{")
}

/// Without the white space of JSON around it.
pub fn trim(bytes: &[u8]) -> &[u8] {
    let space = |byte: &u8| b" \t\r\n".contains(byte);
    let from = bytes.iter().take_while(|byte| space(byte)).count();
    let behind = bytes[from..].iter().rev().take_while(|byte| space(byte)).count();
    &bytes[from..bytes.len() - behind]
}

/// Whether a key stands twice in its object, or a text holds NUL or half a pair; `None` where the
/// reference itself stops (a number beyond `f64`, more than 128 levels).
pub fn is_flawed(text: &str) -> Option<bool> {
    let flawed = Cell::new(false);
    let mut from = serde_json::Deserializer::from_str(text);
    match Flaws(&flawed).deserialize(&mut from) {
        Ok(()) => Some(flawed.get()),
        Err(error) => {
            let what = error.to_string();
            what.contains("surrogate").then_some(true).or(flawed.get().then_some(true))
        }
    }
}

#[derive(Clone, Copy)]
struct Flaws<'c>(&'c Cell<bool>);

impl<'de> DeserializeSeed<'de> for Flaws<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Flaws<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.set(self.0.get() || text.contains('\0'));
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            self.0.set(self.0.get() || name.contains('\0') || names.contains(&name));
            names.insert(name);
            members.next_value_seed(self)?;
        }
        Ok(())
    }
}
