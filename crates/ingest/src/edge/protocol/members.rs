//! JSON objects taken apart at their top level, and put together again: values stand byte for byte as they came.

use std::{borrow::Cow, fmt};

use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::json::quote;

/// So many members are too many.
const MEMBERS_MAX: usize = 65_536;

/// The members of a JSON object, in order, their values byte for byte.
pub(super) struct Members<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> serde::Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                // Far more than an event may have: their list must not grow with the body.
                while members.len() < MEMBERS_MAX
                    && let Some((name, value)) = map.next_entry::<Name<'de>, &'de RawValue>()?
                {
                    members.push((name.0, value));
                }
                match members.len() {
                    MEMBERS_MAX => Err(A::Error::custom("it has too many members")),
                    _ => Ok(Members(members)),
                }
            }
        }
        deserializer.deserialize_map(Each)
    }
}

/// A member's name, borrowed where it has no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl<'a> Members<'a> {
    /// Takes an object apart; `None` where it is none, or no JSON.
    pub(super) fn of(raw: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(raw).ok()
    }

    /// The value of a member; of one that stands twice, the first.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.get())
    }

    /// The same where it is a string, decoded.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name).and_then(unquoted)
    }
}

/// The content of a JSON string.
pub(super) fn unquoted(value: &str) -> Option<String> {
    serde_json::from_str(value).ok()
}

/// Adds a member to an object's text.
pub(super) fn push_member(object: &mut String, name: &str, value: &str) {
    if !object.ends_with('{') {
        object.push(',');
    }
    quote(name, object);
    object.push(':');
    object.push_str(value);
}

/// The event of what may be an object or any other value: its own fields, or `name` with the value.
/// Open at its end, for more members.
pub(super) fn begin_event(value: &str, name: &str) -> String {
    let mut event = String::with_capacity(value.len() + 64);
    event.push('{');
    match value.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        Some(fields) => event.push_str(fields.trim_ascii()),
        None => push_member(&mut event, name, value),
    }
    event
}

/// An object without its members of these names.
pub(super) fn without(members: &Members<'_>, names: &[&str]) -> String {
    let mut object = String::from("{");
    for (name, value) in &members.0 {
        if !names.contains(&name.as_ref()) {
            push_member(&mut object, name, value.get());
        }
    }
    object.push('}');
    object
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn members_stand_as_they_came_and_can_be_left_out_and_added() {
        let raw = br#" {"a": 1.50, "k\u0065y" : "s", "b":{"key":1}} "#;
        let members = Members::of(raw).unwrap();
        assert_eq!(members.get("a"), Some("1.50"));
        assert_eq!(members.text("key").as_deref(), Some("s"));
        let mut object = without(&members, &["key"]);
        assert_eq!(object, r#"{"a":1.50,"b":{"key":1}}"#);
        assert_eq!(object.pop(), Some('}'));
        push_member(&mut object, "c\"", "[]");
        assert_eq!(object, r#"{"a":1.50,"b":{"key":1},"c\"":[]"#);
        assert_eq!(begin_event("{ }", "x"), "{");
        assert_eq!(begin_event("7", "x"), r#"{"x":7"#);
        assert!(Members::of(b"[]").is_none() && Members::of(b"{").is_none());
    }

    #[test]
    fn the_list_of_members_has_a_bound() {
        let many = |n: usize| format!("{{{}}}", vec![r#""":0"#; n].join(","));
        assert!(Members::of(many(MEMBERS_MAX - 1).as_bytes()).is_some());
        assert!(Members::of(many(MEMBERS_MAX).as_bytes()).is_none());
        assert!(Members::of(many(MEMBERS_MAX + 9).as_bytes()).is_none());
    }
}
