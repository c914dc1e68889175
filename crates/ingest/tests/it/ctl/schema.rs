//! `ingestctl schema`: answers about schemas, with and without a server.

use std::path::Path;

use serde_json::{Value, json};

use super::stub::{Stub, answer, ingestctl, ingestctl_with_input, nobody};

fn order(version: u32, amount: &str, more: &[&str]) -> Value {
    let mut schema = json!({"x-version": version, "type": "object", "required": ["amount"],
        "properties": {"amount": {"type": amount}, "duration": {"type": "number", "x-unit": "s",
            "x-accept": {"duration_ms": "ms"}}}});
    for name in more {
        schema["properties"][name] = json!({"type": "string"});
    }
    schema
}

fn folder(schema: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("order.json"), schema.to_string()).unwrap();
    folder
}

fn text(folder: &tempfile::TempDir) -> &str {
    Path::to_str(folder.path()).unwrap()
}

#[test]
fn a_folder_is_checked_alone() {
    let good = folder(&order(1, "integer", &[]));
    let done = ingestctl(&nobody(), &["schema", "check", text(&good)]);
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.out.ends_with("1 schema, fit\n"), "{}", done.out);
    let bad = folder(&json!({"x-version": "one"}));
    let done = ingestctl(&nobody(), &["schema", "check", text(&bad), "--json"]);
    assert_eq!((done.status, &done.json()["valid"]), (1, &json!(false)));
    assert_eq!(done.json()["errors"][0]["file"], "order.json");
    let done = ingestctl(&nobody(), &["schema", "check", "/nowhere/at/all"]);
    assert_eq!(done.status, 3, "{done:?}");
}

#[test]
fn a_successor_may_add_fields_but_not_change_types_nor_keep_its_version() {
    let before = folder(&order(1, "integer", &[]));
    let check = |after: Value| {
        let after = folder(&after);
        ingestctl(
            &nobody(),
            &["schema", "check", text(&after), "--against", text(&before), "--json"],
        )
    };
    let same = check(order(1, "integer", &[]));
    assert_eq!((same.status, &same.json()["notes"]), (0, &json!([])));
    let added = check(order(2, "integer", &["note"]));
    assert_eq!(added.status, 0, "{added:?}");
    assert!(added.json()["notes"][0].as_str().unwrap().starts_with("order.json: note is added"));
    let unversioned = check(order(1, "integer", &["note"]));
    assert_eq!(unversioned.status, 1);
    assert_eq!(unversioned.json()["errors"][0]["pointer"], "/x-version");
    let changed = check(order(2, "string", &[]));
    assert_eq!(changed.status, 1, "{changed:?}");
}

#[test]
fn the_schemas_of_a_server_are_listed_and_held_against() {
    let stub = Stub::start(|_, _| {
        answer(
            200,
            json!({"schemas": [{"tenant": null, "event_type": "order", "version": 1,
            "hash": "0123456789abcdef0123456789abcdef", "schema": order(1, "integer", &[]),
            "columns": [{"name": "amount", "type": "int64", "unit": null},
                {"name": "duration", "type": "float64", "unit": "s"}]}]}),
        )
    });
    let list = ingestctl(&stub.url(), &["schema", "list"]);
    assert!(
        list.out
            .contains("order  all           1  0123456789a…  amount int64, duration float64 in s"),
        "{}",
        list.out
    );
    for (schema, status) in [
        (order(1, "integer", &[]), 0),
        (order(2, "integer", &["note"]), 0),
        (order(2, "string", &[]), 1),
    ] {
        let folder = folder(&schema);
        let done = ingestctl(&stub.url(), &["schema", "check", text(&folder), "--against-server"]);
        assert_eq!(done.status, status, "{done:?}");
    }
}

#[test]
fn events_are_judged_without_a_server() {
    let schemas = folder(&order(1, "integer", &[]));
    let events = "{\"amount\":3,\"duration_ms\":1500,\"x\":[1]}\n\n{\"amount\":\"three\"}\n7\n";
    let line = ["schema", "test", text(&schemas), "-", "--event-type", "order"];
    let done = ingestctl_with_input(&nobody(), &line, events.as_bytes());
    assert_eq!(done.status, 1, "{done:?}");
    assert!(done.out.contains("line 3: order dead letter: type_mismatch /amount"), "{}", done.out);
    assert!(
        done.out.contains("line 4: ") && done.out.contains("rejected: not_an_object"),
        "{}",
        done.out
    );
    assert!(
        done.out.ends_with("3 events: 1 would be accepted, 1 dead letters, 1 rejected\n"),
        "{}",
        done.out
    );
    let line = [&line[..], &["--rows", "--json"]].concat();
    let report = ingestctl_with_input(&nobody(), &line, events.as_bytes()).json();
    let row = json!({"amount": 3, "duration": 1.5, "custom": "{\"x\":[1]}"});
    assert_eq!(report["results"][0]["row"], row);
    let line = ["schema", "test", text(&schemas), "-", "--event-type", "other", "--refuse-unknown"];
    let done = ingestctl_with_input(&nobody(), &line, b"{}\n");
    assert!(done.status == 1 && done.out.contains("type_unknown"), "{done:?}");
    let done = ingestctl_with_input(&nobody(), &line[..6], b"{}\n");
    assert_eq!(done.status, 0, "{done:?}");
}
