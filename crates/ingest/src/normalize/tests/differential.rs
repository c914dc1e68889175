//! The compiled path and the reference agree on random flat schemas and events.

use super::*;
use proptest::prelude::*;

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        (-12..12i64).prop_map(Value::from),
        (-40..40i64).prop_map(|n| json!(n as f64 / 4.0)),
        (-99..99i64).prop_map(|n| json!(n as f64 / 10.0)),
        Just(json!(1e15)),
    ]
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => number(),
        4 => "[ab\u{e9}\u{1f600}]{0,4}".prop_map(Value::from),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![8 => scalar(), 1 => Just(json!([1, "a"])), 1 => Just(json!({"a": 1}))]
}

fn keyword() -> impl Strategy<Value = (&'static str, Value)> {
    let name = prop::sample::select(vec![
        "null", "boolean", "integer", "number", "string", "object", "array",
    ]);
    let types = proptest::collection::btree_set(name.clone(), 1..4);
    prop_oneof![
        3 => name.prop_map(|name| ("type", json!(name))),
        3 => types.prop_map(|names| ("type", json!(names))),
        1 => scalar().prop_map(|value| ("const", value)),
        1 => proptest::collection::vec(scalar(), 1..4).prop_map(|values| ("enum", json!(values))),
        1 => number().prop_map(|n| ("minimum", n)),
        1 => number().prop_map(|n| ("maximum", n)),
        1 => number().prop_map(|n| ("exclusiveMinimum", n)),
        1 => number().prop_map(|n| ("exclusiveMaximum", n)),
        1 => (1..30i64).prop_map(|n| ("multipleOf", json!(n as f64 / 10.0))),
        1 => (1..5i64).prop_map(|n| ("multipleOf", json!(n))),
        1 => (0..4u64).prop_map(|n| ("minLength", json!(n))),
        1 => (0..4u64).prop_map(|n| ("maxLength", json!(n))),
        1 => Just(("format", json!("email"))),
    ]
}

fn document() -> impl Strategy<Value = Value> {
    let field = proptest::collection::vec(keyword(), 0..3).prop_map(|keywords| {
        Value::Object(keywords.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
    });
    let properties = proptest::collection::btree_map("[abc]", field, 0..4);
    let required = proptest::collection::btree_set("[abd]", 0..3);
    (properties, required, any::<Option<bool>>()).prop_map(|(properties, required, additional)| {
        let mut document = json!({"x-version": 1, "properties": properties, "required": required});
        if let Some(additional) = additional {
            document["additionalProperties"] = json!(additional);
        }
        document
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn the_compiled_path_and_the_reference_agree(
        document in document(),
        events in proptest::collection::vec(
            proptest::collection::btree_map("[abcde]", any_value(), 0..5), 1..6)
    ) {
        let schema = schema(document.clone());
        prop_assert!(schema.whole.is_none() && schema.fields.iter().all(|f| f.reference.is_none()));
        let reference = jsonschema::options()
            .with_draft(jsonschema::Draft::Draft202012).build(&document).unwrap();
        let (normalizer, tenant) = (normalizer(Some(schema), UnknownTypes::Accept), tenant());
        let context = JudgeContext { tenant: &tenant, received_at: NOW, key_types: None };
        let mut scratch = Scratch::default();
        for event in events {
            let event = json!(event);
            let raw = event.to_string();
            let judged = normalizer.judge(&context, &item(&raw), &mut scratch);
            let valid = reference.is_valid(&event);
            prop_assert_eq!(judged.verdict == Verdict::Accepted, valid,
                "{} by {}: {:?}", raw, document, judged.verdict);
        }
    }
}
