//! Bodies and the items that are found in them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;

/// An item's type, id and bytes; or why it is rejected.
type Seen = Result<(String, Option<String>, String), String>;

fn parts(path: &str) -> Parts {
    let mut parts = http::Request::post(path).body(()).unwrap().into_parts().0;
    Notes::begin(&mut parts);
    parts
}

fn items(parts: &Parts, body: &[u8]) -> Result<Vec<Seen>, DecodeFault> {
    let mut found = Vec::new();
    decode(parts, body, &mut |arrived| {
        found.push(match arrived.found {
            Found::Item(item) => Ok((
                item.event_type.unwrap().to_owned(),
                item.event_id.map(str::to_owned),
                String::from_utf8_lossy(item.raw).into_owned(),
            )),
            Found::Rejected(reason) => Err(reason.message),
        });
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

fn noted(parts: &Parts) -> Vec<(&'static str, String, Option<String>)> {
    let noted = Notes::get(parts).unwrap().iter();
    noted.map(|(op, index, id)| (op.as_str(), index.to_owned(), id.map(str::to_owned))).collect()
}

#[test]
fn lines_name_their_index_or_the_path_does() {
    let body = concat!(
        "{\"create\":{\"_index\":\"logs-a\",\"_id\":\"\\u0031\"}}\n{\"a\": 1.50}\n",
        "\r\n",
        "{ \"index\" : {\"_id\":7,\"routing\":\"x\",\"_index\":null} }\r\n {\"b\":\"é\"} \r\n",
        "{\"index\":{\"op_type\":\"create\"}}\n{}\n",
        "{\"delete\":{\"_id\":\"x\"}}\n",
        "{\"update\":{\"_id\":\"y\"}}\n{\"doc\":{}}\n",
        "{\"create\":{}}\n\n",
    );
    let parts = parts("/my%20index/_bulk?refresh=true");
    let found = items(&parts, body.as_bytes()).unwrap();
    let ok = |index: &str, id: Option<&str>, raw: &str| {
        Ok((index.to_owned(), id.map(str::to_owned), raw.to_owned()))
    };
    assert_eq!(found[0], ok("logs-a", Some("1"), "{\"a\": 1.50}"));
    assert_eq!(found[1], ok("my index", Some("7"), "{\"b\":\"é\"}"));
    assert_eq!(found[2], ok("my index", None, "{}"));
    assert!(found[3].as_ref().unwrap_err().starts_with("delete is not taken"));
    assert!(found[4].as_ref().unwrap_err().starts_with("update is not taken"));
    assert_eq!(found[5], ok("my index", None, ""));
    let own = |id: &str| Some(id.to_owned());
    let mine = || "my index".to_owned();
    assert_eq!(
        noted(&parts),
        [
            ("create", "logs-a".to_owned(), own("1")),
            ("index", mine(), own("7")),
            ("create", mine(), None),
            ("delete", mine(), own("x")),
            ("update", mine(), own("y")),
            ("create", mine(), None),
        ]
    );
}

#[test]
fn a_body_that_cannot_be_told_apart_is_refused_as_a_whole() {
    for (body, said) in [
        ("{\"index\":{}}\n{}", "terminated by a newline"),
        ("{\"index\":{}}\n", "line [1], the line with its document is missing"),
        ("{\"index\":{}}\n{}\n[]\n{}\n", "line [3], expected a JSON object"),
        ("{\"index\":{}}\n{\n\"a\":1\n}\n", "line [3], expected a JSON object"),
        ("{}\n{}\n", "line [1], expected one of create"),
        ("{\"index\":{},\"create\":{}}\n{}\n", "line [1], expected one of create"),
        ("{\"put\":{}}\n{}\n", "[update] but found [put]"),
        ("{\"index\":7}\n{}\n", "expected an object behind"),
        ("{\"index\":{\"_index\":7}}\n{}\n", "value of [_index]"),
        ("{\"index\":{\"_id\":{}}}\n{}\n", "value of [_id]"),
        ("{\"index\":{\"op_type\":\"x\"}}\n{}\n", "unknown parameter [op_type]"),
        ("{\"index\":{\"colour\":1}}\n{}\n", "unknown parameter [colour]"),
    ] {
        let parts = parts("/a/_bulk");
        let fault = items(&parts, body.as_bytes()).unwrap_err();
        assert!(fault.detail.contains(said), "{body}: {}", fault.detail);
        assert!(Notes::get(&parts).is_none());
    }
    let missing = items(&parts("/_bulk"), b"{\"index\":{}}\n{}\n").unwrap_err();
    assert!(missing.detail.contains("the index is missing"), "{}", missing.detail);
    assert_eq!(items(&parts("/_bulk"), b""), Ok(vec![]));
    assert_eq!(items(&parts("/_bulk"), b"\n"), Ok(vec![]));
}

#[test]
fn an_id_that_cannot_be_and_a_condition_are_refused_alone() {
    let long = "x".repeat(513);
    let body = format!(
        "{{\"index\":{{\"_id\":\"\"}}}}\n{{}}\n{{\"index\":{{\"_id\":\"{long}\"}}}}\n{{}}\n\
         {{\"index\":{{\"_id\":\"k\",\"version\":3}}}}\n{{}}\n{{\"index\":{{\"_id\":\"k\"}}}}\n{{}}\n"
    );
    let parts = parts("/a/_bulk");
    let found = items(&parts, body.as_bytes()).unwrap();
    assert!(found[0].as_ref().unwrap_err().contains("must not be empty"));
    assert!(found[1].as_ref().unwrap_err().contains("513 bytes"));
    assert!(found[2].as_ref().unwrap_err().contains("version cannot be honoured"));
    assert!(found[3].is_ok());
    assert_eq!(noted(&parts)[2].2.as_deref(), Some("k"));
}

#[test]
fn one_document_has_its_index_and_id_in_the_path() {
    let found = |path: &str| {
        let parts = parts(path);
        let single = Single::of(&parts);
        let op = single.op.as_str();
        (op, items(&parts, b" {\n\"a\":1}\n").unwrap().remove(0).unwrap())
    };
    let raw = "{\n\"a\":1}".to_owned();
    assert_eq!(found("/a/_doc"), ("index", ("a".into(), None, raw.clone())));
    assert_eq!(found("/a/_doc/x%2Fy"), ("index", ("a".into(), Some("x/y".into()), raw.clone())));
    let created = ("create", ("a".into(), Some("7".into()), raw));
    assert_eq!(found("/a/_doc/7?op_type=create"), created);
    assert_eq!(found("/a/_create/7?pretty"), created);
    assert_eq!(items(&parts("/a/_doc"), b" \n"), Ok(vec![]));
}

proptest! {
    #[test]
    fn documents_come_out_as_they_went_in(
        documents in prop::collection::vec(("[a-z]{1,9}", prop::option::of(".{1,20}"), "[!-~é]{0,20}"), 0..20),
        blank in prop::sample::select(vec!["", "\n", " \r\n"]),
    ) {
        let mut body = String::new();
        for (index, id, text) in &documents {
            let action = match id {
                Some(id) => serde_json::json!({"create": {"_index": index, "_id": id}}),
                None => serde_json::json!({"index": {"_index": index}}),
            };
            let document = serde_json::json!({ "text": text });
            body.push_str(&format!("{blank}{action}\n{document}\n"));
        }
        let parts = parts("/_bulk");
        let found = items(&parts, body.as_bytes()).unwrap();
        prop_assert_eq!(found.len(), documents.len());
        for (found, (index, id, text)) in found.iter().zip(&documents) {
            let raw = serde_json::json!({ "text": text }).to_string();
            prop_assert_eq!(found, &Ok((index.clone(), id.clone(), raw)));
        }
        if !documents.is_empty() {
            prop_assert_eq!(Notes::get(&parts).unwrap().len(), documents.len());
        }
    }

    #[test]
    fn garbage_never_panics(body: Vec<u8>, ended: bool) {
        let body = if ended { [&body[..], b"\n"].concat() } else { body };
        let _ = items(&parts("/a/_bulk"), &body);
        let _ = items(&parts("/a/_doc"), &body);
    }
}
