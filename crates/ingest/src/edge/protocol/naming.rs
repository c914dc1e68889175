//! What names an event's type where the configuration says so: `[edge.event_types]`.

use std::{collections::BTreeMap, sync::Arc};

use http::request::Parts;

/// By protocol, what names the type of its events. It goes along with a request's head, so that no
/// decoder needs the configuration.
#[derive(Clone)]
pub(in crate::edge) struct Naming(pub Arc<BTreeMap<String, String>>);

/// What names a protocol's event types; `None`: they all have the same.
pub(super) fn named_by<'a>(parts: &'a Parts, protocol: &str) -> Option<&'a str> {
    parts.extensions.get::<Naming>()?.0.get(protocol).map(String::as_str)
}

/// What is wrong with `[edge.event_types]`, one line each.
pub(crate) fn faults(names: &BTreeMap<String, String>) -> Vec<String> {
    let fault = |(protocol, from): (&String, &String)| match protocol.as_str() {
        "hec" if super::hec::NAMES.contains(&from.as_str()) => None,
        "hec" => Some(format!("edge.event_types.hec: one of {}", super::hec::NAMES.join(", "))),
        "loki" if !from.is_empty() => None,
        "loki" => Some("edge.event_types.loki: the name of a label".to_owned()),
        other => Some(format!(
            "edge.event_types.{other}: only hec and loki have types that can be mapped"
        )),
    };
    names.iter().filter_map(fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_name_a_type_is_taken() {
        for (protocol, from, well) in [
            ("hec", "sourcetype", true),
            ("hec", "index", true),
            ("hec", "time", false),
            ("loki", "job", true),
            ("loki", "", false),
            ("segment", "event", false),
        ] {
            let names = BTreeMap::from([(protocol.to_owned(), from.to_owned())]);
            assert_eq!(faults(&names).is_empty(), well, "{protocol} {from}");
        }
    }
}
