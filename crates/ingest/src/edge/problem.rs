//! Every error the public side answers, but for the shed reasons: code, status, title.

/// A kind of error, as docs/wire.md lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Stable, for programs.
    pub code: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// The same for each occurrence, for people.
    pub title: &'static str,
}

macro_rules! problems {
    ($($name:ident = $status:literal, $code:literal, $title:literal;)*) => {
        impl Problem {
            $(#[doc = $title] pub const $name: Problem =
                Problem { code: $code, status: $status, title: $title };)*

            /// Every kind, in the order of docs/wire.md.
            pub const ALL: &'static [Problem] = &[$(Problem::$name,)*];
        }
    };
}

problems! {
    BAD_REQUEST = 400, "bad_request", "A header or the query cannot be read.";
    BODY_EMPTY = 400, "body_empty", "The body holds no event.";
    BODY_NOT_JSON = 400, "body_not_json", "The body as a whole is not what its media type says.";
    BODY_CORRUPT = 400, "body_corrupt", "The body cannot be decoded.";
    BODY_CUT_SHORT = 400, "body_cut_short", "The body ended before all of it was there.";
    NOTHING_KEPT = 400, "nothing_kept", "None of the body's items can be kept.";
    KEY_MISSING = 401, "key_missing", "No key.";
    KEY_INVALID = 401, "key_invalid", "Not a live key.";
    KEY_CONFLICT = 401, "key_conflict", "More than one key.";
    SIGNATURE_INCOMPLETE = 401, "signature_incomplete", "The signature lacks something, or is not of its form.";
    SIGNATURE_EXPIRED = 401, "signature_expired", "The signature is of another time.";
    SIGNATURE_WRONG = 401, "signature_wrong", "The signature does not match.";
    TYPES_FORBIDDEN = 403, "types_forbidden", "The key may send none of these event types.";
    KEY_FORBIDDEN = 403, "key_forbidden", "The key may not be used so.";
    NO_SUCH_PATH = 404, "no_such_path", "There is nothing at this path.";
    METHOD = 405, "method_not_allowed", "The path does not take this method.";
    BODY_SLOW = 408, "body_slow", "The body came too slowly.";
    BODY_TOO_LARGE = 413, "body_too_large", "The body is too large.";
    DECODED_TOO_LARGE = 413, "decoded_too_large", "The decoded body is too large.";
    RATIO_TOO_LARGE = 413, "ratio_too_large", "The body is compressed too far.";
    TOO_MANY_EVENTS = 413, "too_many_events", "The body holds too many events.";
    TOO_MANY_TYPES = 413, "too_many_types", "The body holds too many event types.";
    MEDIA_TYPE = 415, "media_type", "The media type is not supported here.";
    CONTENT_CODING = 415, "content_coding", "The content coding is not supported.";
    NOTHING_VALID = 422, "nothing_valid", "None of the events is valid, and the tenant asked for strict checking.";
    HEADERS_TOO_LARGE = 431, "headers_too_large", "The headers are too many or too large.";
    INTERNAL = 500, "internal", "Something went wrong here.";
}
