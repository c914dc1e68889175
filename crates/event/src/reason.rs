//! Why an event is a dead letter or rejected: a closed list of codes, documented in docs/wire.md.

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $text:literal, $kind:ident;)*) => {
        /// The closed list of codes. The number stands in the log, the text in answers and the lake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Code { $($(#[doc = $doc])+ $variant = $number,)* }

        impl Code {
            /// Every code, in order.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// As it stands in answers, files and metrics.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// What the code is for, one sentence or two.
            #[must_use]
            pub fn describe(self) -> &'static str {
                match self { $(Code::$variant => concat!($($doc),+).trim_ascii(),)* }
            }

            /// True where such an event cannot be kept; false where it is kept as a dead letter.
            #[must_use]
            pub fn is_rejection(self) -> bool {
                match self { $(Code::$variant => codes!(@$kind),)* }
            }

            /// The code with this number, if there is one.
            #[must_use]
            pub fn from_number(number: u8) -> Option<Code> {
                match number { $($number => Some(Code::$variant),)* _ => None }
            }
        }
    };
    (@dead) => { false };
    (@rejected) => { true };
}

codes! {
    /// The same key stands twice in one object, at any depth.
    DuplicateKey = 1, "duplicate_key", dead;
    /// A string or a key holds the character U+0000.
    NulCharacter = 2, "nul_character", dead;
    /// A string holds half of a surrogate pair, which is no character.
    LoneSurrogate = 3, "lone_surrogate", dead;
    /// A number that the type of its field cannot hold.
    NumberOutOfRange = 4, "number_out_of_range", dead;
    /// A value that would lose digits on the way into its column.
    PrecisionLoss = 5, "precision_loss", dead;
    /// A value came in a unit of another dimension than its field's.
    UnitMismatch = 6, "unit_mismatch", dead;
    /// A unit that is no UCUM code, or one this field does not accept.
    UnitUnknown = 7, "unit_unknown", dead;
    /// `event_time` is neither RFC 3339 nor Unix milliseconds.
    TimeInvalid = 8, "time_invalid", dead;
    /// `event_time` is before 1990 or more than a day ahead.
    TimeImplausible = 9, "time_implausible", dead;
    /// `event_id` is no string, empty, or longer than 512 bytes.
    IdInvalid = 10, "id_invalid", dead;
    /// No event type in body, header or query.
    TypeMissing = 11, "type_missing", dead;
    /// The event type is no valid name.
    TypeInvalid = 12, "type_invalid", dead;
    /// No schema for this type, and the configuration refuses such types.
    TypeUnknown = 13, "type_unknown", dead;
    /// A field's value has another JSON type than its schema says.
    TypeMismatch = 14, "type_mismatch", dead;
    /// A required field is missing.
    FieldMissing = 15, "field_missing", dead;
    /// A field that the schema does not name, where it refuses those.
    FieldUnknown = 16, "field_unknown", dead;
    /// Another rule of the schema does not hold; the message names the keyword.
    SchemaViolation = 17, "schema_violation", dead;
    /// Two fields of the event stand for the same column (say `duration` and `duration_ms`).
    FieldConflict = 18, "field_conflict", dead;
    /// What can be read as no event, kept as it came by a protocol that would send it again for ever.
    Unreadable = 19, "unreadable", dead;
    /// Not JSON.
    InvalidJson = 64, "invalid_json", rejected;
    /// JSON, but not an object.
    NotAnObject = 65, "not_an_object", rejected;
    /// Bytes that are not UTF-8.
    InvalidUtf8 = 66, "invalid_utf8", rejected;
    /// One event is larger than `edge.limits.event_bytes`.
    EventTooLarge = 67, "event_too_large", rejected;
    /// Nested deeper than `edge.limits.depth`.
    TooDeep = 68, "too_deep", rejected;
    /// More fields than `edge.limits.fields`.
    TooManyFields = 69, "too_many_fields", rejected;
    /// This key may not send this event type.
    TypeForbidden = 70, "type_forbidden", rejected;
    /// A CloudEvent without one of its required attributes, or of an unknown version.
    EnvelopeInvalid = 71, "envelope_invalid", rejected;
    /// The tenant has named as many event types as it may; this would be one more.
    TooManyTypes = 72, "too_many_types", rejected;
}

/// Why one event was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Which rule.
    pub code: Code,
    /// Where: a JSON pointer into the event (RFC 6901), empty for the whole of it.
    pub field: String,
    /// What is wrong and how to mend it, for people. Never holds a value of a personal-data field.
    pub message: String,
}

impl Reason {
    /// A reason about the field at `field`.
    pub fn new(code: Code, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code, field: field.into(), message: message.into() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_round_trip() {
        let mut texts: Vec<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        for code in Code::ALL {
            assert_eq!(Code::from_number(*code as u8).unwrap(), *code);
            assert!(code.describe().ends_with('.'), "{code:?}");
        }
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Code::ALL.len());
    }
}
