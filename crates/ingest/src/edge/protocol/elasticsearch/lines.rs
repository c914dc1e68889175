//! The lines of a `_bulk` body: one that says what to do, and for most of them one with the document.

use std::{borrow::Cow, ops::ControlFlow};

use http::request::Parts;
use tidegate_event::{Code, Reason};

use super::{Notes, document, notes::Noted};
use crate::edge::{
    problem::Problem,
    protocol::{
        Arrived, DecodeFault, Found, Place,
        members::{Members, unquoted},
    },
};

/// Elasticsearch's own bound.
const ID_BYTES_MAX: usize = 512;

/// What a line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Create,
    Index,
    Update,
    Delete,
}

impl Op {
    fn named(name: &str) -> Option<Self> {
        [Self::Create, Self::Index, Self::Update, Self::Delete]
            .into_iter()
            .find(|op| op.as_str() == name)
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Index => "index",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// A document's id.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Id<'a> {
    None,
    Given(Cow<'a, str>),
    /// One that cannot be, or a wish beside it that cannot be met; and why.
    Refused(Option<Cow<'a, str>>, Reason),
}

impl<'a> Id<'a> {
    pub(super) fn of(id: Cow<'a, str>) -> Self {
        let message = match id.len() {
            0 => "if _id is given it must not be empty".to_owned(),
            bytes if ID_BYTES_MAX < bytes => {
                format!("_id is too long: {bytes} bytes, at most {ID_BYTES_MAX} are taken")
            }
            _ => return Self::Given(id),
        };
        Self::Refused(None, Reason::new(Code::EnvelopeInvalid, "/_id", message))
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Given(id) | Self::Refused(Some(id), _) => Some(id),
            Self::None | Self::Refused(None, _) => None,
        }
    }
}

/// A line that says what to do.
struct Action<'a> {
    op: Op,
    index: Option<String>,
    id: Id<'a>,
}

/// What a line may say and no event could: read over.
const READ_OVER: &[&str] = &[
    "_type",
    "routing",
    "_routing",
    "pipeline",
    "require_alias",
    "require_data_stream",
    "dynamic_templates",
    "retry_on_conflict",
    "_source",
    "list_executed_pipelines",
    "include_source_on_error",
];
/// What makes a write depend on what is there: nothing here can honour it.
const CONDITIONS: &[&str] =
    &["version", "_version", "version_type", "_version_type", "if_seq_no", "if_primary_term"];

fn malformed(number: usize, what: impl std::fmt::Display) -> DecodeFault {
    let detail = format!("Malformed action/metadata line [{number}], {what}; nothing was kept");
    DecodeFault::new(Problem::BODY_NOT_JSON, detail)
}

impl<'a> Action<'a> {
    fn of(line: &'a [u8], number: usize) -> Result<Self, DecodeFault> {
        let outer = Members::of(line).ok_or_else(|| malformed(number, "expected a JSON object"))?;
        let [(name, says)] = outer.0.as_slice() else {
            return Err(malformed(number, "expected one of create, index, update, delete, alone"));
        };
        let Some(op) = Op::named(name) else {
            let what = format!(
                "expected field [create], [delete], [index] or [update] but found [{}]",
                shortened(name)
            );
            return Err(malformed(number, what));
        };
        let says = Members::of(says.get().as_bytes())
            .ok_or_else(|| malformed(number, "expected an object behind the action"))?;
        let mut action = Self { op, index: None, id: Id::None };
        let mut condition = None;
        for (name, value) in &says.0 {
            match (name.as_ref(), value.get()) {
                (_, "null") => {}
                ("_index", value) => {
                    action.index = Some(unquoted(value).ok_or_else(|| {
                        malformed(number, "expected a text as the value of [_index]")
                    })?);
                }
                ("_id", value) => action.id = Id::of(id(value, number)?),
                ("op_type", "\"create\"") if op == Op::Index => action.op = Op::Create,
                ("op_type", "\"index\"") if op == Op::Index => {}
                (name, _) if CONDITIONS.contains(&name) => condition = Some(name),
                (name, _) if READ_OVER.contains(&name) => {}
                (name, _) => {
                    let what = format!("it contains an unknown parameter [{}]", shortened(name));
                    return Err(malformed(number, what));
                }
            }
        }
        if let Some(name) = condition {
            let message = format!(
                "{name} cannot be honoured: events are appended, whatever is there already; leave it away"
            );
            let reason = Reason::new(Code::EnvelopeInvalid, format!("/{name}"), message);
            let given = match action.id {
                Id::Given(id) => Some(id),
                Id::None | Id::Refused(..) => None,
            };
            action.id = Id::Refused(given, reason);
        }
        Ok(action)
    }
}

/// An id is a text, or a number, which is taken for its text.
fn id(value: &str, number: usize) -> Result<Cow<'_, str>, DecodeFault> {
    match value.as_bytes().first() {
        Some(b'"') => unquoted(value).map(Cow::Owned),
        Some(b'-' | b'0'..=b'9') => Some(Cow::Borrowed(value)),
        _ => None,
    }
    .ok_or_else(|| malformed(number, "expected a text as the value of [_id]"))
}

fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

/// The lines of a body, counted from 1, without the newline that ends each.
struct Lines<'a> {
    rest: Option<&'a [u8]>,
    number: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest?;
        let (line, after) =
            match memchr::memchr(b'\n', rest).and_then(|at| rest.split_at_checked(at)) {
                Some((line, after)) => (line, after.get(1..)),
                None => (rest, None),
            };
        (self.rest, self.number) = (after, self.number + 1);
        Some((self.number, line))
    }
}

/// Finds the documents. What is wrong with a line that says what to do is wrong with the whole: behind it nobody can
/// tell documents from actions.
pub(super) fn decode(
    parts: &Parts,
    default: Option<&str>,
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    if body.is_empty() {
        return Ok(());
    }
    let Some(body) = body.strip_suffix(b"\n") else {
        let detail = "The bulk request must be terminated by a newline [\\n]; nothing was kept";
        return Err(DecodeFault::new(Problem::BODY_NOT_JSON, detail));
    };
    let mut noted = Noted::default();
    let mut lines = Lines { rest: Some(body), number: 0 };
    while let Some((number, line)) = lines.next() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let action = Action::of(line, number)?;
        let index = action.index.as_deref().or(default).filter(|index| !index.is_empty());
        let Some(index) = index else {
            return Err(malformed(number, "the index is missing, in the line and in the path"));
        };
        let source = match action.op {
            Op::Delete => (number, &[][..]),
            Op::Create | Op::Index | Op::Update => lines
                .next()
                .ok_or_else(|| malformed(number, "the line with its document is missing"))?,
        };
        noted.push(action.op, index, action.id.text());
        if one(&action, index, source, each).is_break() {
            return Ok(());
        }
    }
    Notes::set(parts, noted);
    Ok(())
}

fn one(
    action: &Action<'_>,
    index: &str,
    (number, source): (usize, &[u8]),
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let place = Place::Line(number);
    match action.op {
        Op::Create | Op::Index => document(place, source.trim_ascii(), index, &action.id, each),
        Op::Update | Op::Delete => {
            let message = format!(
                "{} is not taken: an event is never changed or removed once it is kept",
                action.op.as_str()
            );
            let reason = Reason::new(Code::EnvelopeInvalid, "", message);
            each(Arrived { place, found: Found::Rejected(reason) })
        }
    }
}
