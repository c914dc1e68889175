//! What can be no event, kept whole: the object that such bytes become, which is always a dead letter.
//!
//! ```text
//! {"tidegate.unreadable":{"code":"invalid_json","message":"…","text":"…"}}     or "base64":"…"
//! ```
//!
//! That it is one is found out from its bytes alone, so that a replay finds the same.

use base64::{Engine, engine::general_purpose::STANDARD};
use tidegate_event::{Code, Reason};

use crate::json::{Object, quote};

/// The one field of such an object.
pub const FIELD: &str = "tidegate.unreadable";

/// True where a protocol's clients would send again for ever what can be no event, by the protocol's
/// name in the batch: such bytes are kept.
#[must_use]
pub fn keeps(protocol: &str) -> bool {
    matches!(protocol, "firehose" | "firehose_http")
}

/// True where the bytes themselves are at fault, not who sends them.
#[must_use]
pub fn is_about(code: Code) -> bool {
    use Code::{EventTooLarge, InvalidJson, InvalidUtf8, NotAnObject, TooDeep, TooManyFields};
    matches!(
        code,
        InvalidJson | NotAnObject | InvalidUtf8 | EventTooLarge | TooDeep | TooManyFields
    )
}

/// The object for `raw`: as text where it is some and stays about as long, else in base64.
#[must_use]
pub fn wrap(raw: &[u8], reason: &Reason) -> String {
    let mut object = String::with_capacity(raw.len() + raw.len() / 3 + 128);
    object.push_str("{\"");
    object.push_str(FIELD);
    object.push_str("\":{\"code\":\"");
    object.push_str(reason.code.as_str());
    object.push_str("\",\"message\":");
    quote(&reason.message, &mut object);
    let before = object.len();
    // U+0000 is nothing that a sink could keep.
    if let Ok(text) = std::str::from_utf8(raw)
        && !raw.contains(&0)
    {
        object.push_str(",\"text\":");
        quote(text, &mut object);
    }
    if object.len() == before || before + raw.len() / 3 * 4 + 64 < object.len() {
        object.truncate(before);
        object.push_str(",\"base64\":\"");
        STANDARD.encode_string(raw, &mut object);
        object.push('"');
    }
    object.push_str("}}");
    object
}

/// The reason where an event is such an object.
pub(super) fn reason(object: &Object, text: &str) -> Option<Reason> {
    let [only] = object.fields() else { return None };
    (only.name(text) == FIELD).then(|| {
        let message = "these bytes can be read as no event; they are kept as they came";
        Reason::new(Code::Unreadable, "", message)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn unwrapped(raw: &[u8]) -> Vec<u8> {
        let reason = Reason::new(Code::InvalidJson, "", "it is \"none\"");
        let text = wrap(raw, &reason);
        let value: Value = serde_json::from_str(&text).unwrap();
        let inner = &value[FIELD];
        assert_eq!(
            (&inner["code"], &inner["message"]),
            (&"invalid_json".into(), &"it is \"none\"".into())
        );
        match inner["text"].as_str() {
            Some(text) => text.as_bytes().to_vec(),
            None => STANDARD.decode(inner["base64"].as_str().unwrap()).unwrap(),
        }
    }

    proptest! {
        #[test]
        fn bytes_come_back_and_grow_by_no_more_than_base64_does(
            raw in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                ".{0,300}".prop_map(String::into_bytes),
                "[\u{0}-\u{1f}\"]{0,300}".prop_map(String::into_bytes),
            ],
        ) {
            prop_assert_eq!(unwrapped(&raw), raw.clone());
            let reason = Reason::new(Code::InvalidJson, "", "");
            prop_assert!(wrap(&raw, &reason).len() <= raw.len() / 3 * 4 + 180);
        }
    }
}
