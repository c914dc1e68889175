//! Elasticsearch's way to send documents: `_bulk`, and one document at a time.
//!
//! By Elasticsearch's REST API documentation ("Bulk API", "Create or update a document", "Common options"), and its
//! clients. Events are appended and never changed: `create` and `index` bring them, `update` and `delete` are refused
//! one by one. An answer names each document as the client did, so what the lines say of it is noted on the way in.

mod answers;
mod filter;
mod lines;
mod notes;
mod probes;
mod stamp;

use std::{borrow::Cow, ops::ControlFlow};

use http::{Method, request::Parts};
use tidegate_event::EventType;

use super::{
    Arrived, DecodeFault, Found, Login, Place, Protocol, Route, Tells,
    path::{matches, place},
};
use crate::{
    edge::credentials::Carrier,
    json::trim,
    normalize::{Item, ItemTime},
};

use lines::{Id, Op};
pub(in crate::edge) use notes::Notes;
use stamp::Stamp;

pub(super) const PROTOCOL: Protocol = Protocol {
    name: "elasticsearch",
    routes: ROUTES,
    probes: probes::PROBES,
    login: Login {
        carriers: &[Carrier::ApiKeyScheme, Carrier::BasicPassword, Carrier::Bearer],
        in_body: None,
        may_be_open: false,
        challenge: "ApiKey, Basic realm=\"tidegate\"",
    },
    cors: None,
    media_types: "any",
    takes: |_| true,
    only_type: |parts| {
        // A line of `_bulk` may name an index of its own.
        let index = place(ROUTES, parts, "index").filter(|_| !is_bulk(parts))?;
        Some(EventType::mapped(&index).map_or(index.into_owned(), |mapped| mapped.to_string()))
    },
    decode,
    tells: Tells::EachItem,
    encode: answers::encode,
    refuse: answers::refuse,
};

const BOTH: &[Method] = &[Method::POST, Method::PUT];
const ROUTES: &[Route] = &[
    Route { methods: BOTH, path: "/_bulk" },
    Route { methods: BOTH, path: "/{index}/_bulk" },
    Route { methods: &[Method::POST], path: "/{index}/_doc" },
    Route { methods: BOTH, path: "/{index}/_doc/{id}" },
    Route { methods: BOTH, path: "/{index}/_create/{id}" },
];

fn is_bulk(parts: &Parts) -> bool {
    let path = parts.uri.path();
    path == "/_bulk" || matches("/{index}/_bulk", path)
}

fn query<'a>(parts: &'a Parts, name: &str) -> Option<Cow<'a, str>> {
    let query = parts.uri.query().unwrap_or_default();
    url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, v)| v)
}

/// What a request for one document is about, by its path.
struct Single<'a> {
    op: Op,
    index: Cow<'a, str>,
    id: Option<Cow<'a, str>>,
}

impl<'a> Single<'a> {
    fn of(parts: &'a Parts) -> Self {
        let creates = matches("/{index}/_create/{id}", parts.uri.path())
            || query(parts, "op_type").is_some_and(|op| op == "create");
        Self {
            op: if creates { Op::Create } else { Op::Index },
            index: place(ROUTES, parts, "index").unwrap_or_default(),
            id: place(ROUTES, parts, "id"),
        }
    }
}

fn decode(
    parts: &Parts,
    body: &[u8],
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    if is_bulk(parts) {
        let index = place(ROUTES, parts, "index");
        return lines::decode(parts, index.as_deref(), body, each);
    }
    let (start, raw) = trim(body);
    if !raw.is_empty() {
        let single = Single::of(parts);
        let id = single.id.map_or(Id::None, Id::of);
        let _ = document(Place::Byte(start), raw, &single.index, &id, each);
    }
    Ok(())
}

/// Hands one document over.
fn document(
    place: Place,
    raw: &[u8],
    index: &str,
    id: &Id<'_>,
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let event_id = match id {
        Id::None => None,
        Id::Given(id) => Some(id.as_ref()),
        Id::Refused(_, reason) => {
            return each(Arrived { place, found: Found::Rejected(reason.clone()) });
        }
    };
    let stamp = Stamp::of(raw);
    let item = Item {
        raw,
        event_type: Some(index),
        event_id,
        event_time: match &stamp {
            Stamp::None => ItemTime::None,
            Stamp::Micros(micros) => ItemTime::Micros(*micros),
            Stamp::Text(text) => ItemTime::Rfc3339(text),
        },
        reserved: false,
        source_name: None,
        map_names: true,
    };
    each(Arrived { place, found: Found::Item(item) })
}

#[cfg(test)]
mod tests;
