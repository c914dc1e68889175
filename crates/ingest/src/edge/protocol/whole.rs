//! What protocols share whose answers have no room for single items, and whose bodies may be one JSON
//! value or many.

use std::ops::ControlFlow;

use http::StatusCode;
use serde_json::value::RawValue;

use super::{DecodeFault, Outcomes, Place, events, members::Members};
use crate::{
    edge::{answer::ItemError, problem::Problem},
    json::{split_array, trim},
};

/// What went wrong with items, for an answer that is about all of them.
pub(super) struct Unkept<'a> {
    pub status: StatusCode,
    pub first: &'a ItemError,
    /// What, how many, and that the rest is not to be sent again.
    pub message: String,
}

/// `None` where each item is durable or was known already: only then is success the truth. Else the
/// request is at fault, and what of it is durable stays so.
pub(super) fn unkept(outcomes: &Outcomes) -> Option<Unkept<'_>> {
    let first = outcomes.first_rejected()?;
    if let Some((problem, detail)) = &outcomes.nothing {
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_REQUEST);
        return Some(Unkept { status, first, message: detail.clone() });
    }
    let message = format!(
        "{} of {} items cannot be kept, the first is number {} (from 0): {}: {}; the others are \
         kept, do not send them again",
        outcomes.rejected,
        outcomes.items(),
        first.index,
        first.code,
        first.message
    );
    Some(Unkept { status: StatusCode::BAD_REQUEST, first, message })
}

/// The values in a body: the elements of a JSON array, one JSON value (over several lines, too), or
/// else one on each line. What is broken is handed over as it is: its scan tells what is wrong.
pub(super) fn values(body: &[u8], mut each: impl FnMut(&[u8], Place) -> ControlFlow<()>) {
    let (start, raw) = trim(body);
    if raw.is_empty() {
        return;
    }
    if serde_json::from_slice::<&RawValue>(raw).is_err() {
        return events::lines(body, each);
    }
    if raw.first() != Some(&b'[') {
        let _ = each(raw, Place::Byte(start));
        return;
    }
    // It is JSON: no element is an error.
    for (at, element) in split_array(raw).map_while(Result::ok) {
        if each(element, Place::Byte(start + at)).is_break() {
            return;
        }
    }
}

/// The elements of the array that the body, an object, has as its member `name`.
pub(super) fn batch(
    body: &[u8],
    name: &str,
    mut each: impl FnMut(&[u8], Place) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    let wrong = |what: &str| {
        let detail = format!("{what}; send {{\"{name}\": [...]}}, an object for each event");
        DecodeFault::new(Problem::BODY_NOT_JSON, detail)
    };
    let members = Members::of(body).ok_or_else(|| wrong("the body is no JSON object"))?;
    let array = members.get(name).ok_or_else(|| wrong("the member is missing"))?;
    let start = (array.as_ptr() as usize).saturating_sub(body.as_ptr() as usize);
    for element in split_array(array.as_bytes()) {
        let (at, element) = element.map_err(|fault| wrong(&fault.to_string()))?;
        if each(element, Place::Byte(start + at)).is_break() {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(body: &str) -> Vec<(Place, String)> {
        let mut found = Vec::new();
        values(body.as_bytes(), |raw, place| {
            found.push((place, String::from_utf8_lossy(raw).into_owned()));
            ControlFlow::Continue(())
        });
        found
    }

    #[test]
    fn one_value_an_array_or_lines() {
        let is = |body: &str, expected: &[(Place, &str)]| {
            let expected: Vec<_> =
                expected.iter().map(|(place, raw)| (*place, (*raw).to_owned())).collect();
            assert_eq!(all(body), expected, "{body}");
        };
        is("", &[]);
        is(" \n ", &[]);
        is(" {\n\"a\":\n1}\n", &[(Place::Byte(1), "{\n\"a\":\n1}")]);
        is("{}\r\n\n{\"b\":2}", &[(Place::Line(1), "{}"), (Place::Line(3), "{\"b\":2}")]);
        is(" [{}, 7]", &[(Place::Byte(2), "{}"), (Place::Byte(6), "7")]);
        is("[]", &[]);
        is("{\nx", &[(Place::Line(1), "{"), (Place::Line(2), "x")]);
        is("\"{}\"", &[(Place::Byte(0), "\"{}\"")]);
    }
}
