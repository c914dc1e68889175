//! Several servers of one pipeline, asked as one: their books added up, a journal held against all.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use serde_json::{Map, Value, json};

/// Numbers of a row that are added up.
const COUNTS: &[&str] = &[
    "received",
    "accepted",
    "dead_lettered",
    "deduplicated",
    "rejected",
    "shed",
    "log_difference",
];

/// What several servers say of their books, as one document: balanced where each of them is. The first
/// one's is the pattern for what is not added up.
pub(super) fn added_up(documents: &[(String, Value)]) -> Value {
    let Some(((_, first), rest)) = documents.split_first() else { return json!({}) };
    if rest.is_empty() {
        return first.clone();
    }
    let mut sum = first.clone();
    let each = |name: &str| {
        documents.iter().map(move |(_, d)| d.get(name).unwrap_or(&Value::Null)).collect::<Vec<_>>()
    };
    let all = |name: &str| each(name).into_iter().all(|v| v.as_bool() == Some(true));
    let added = |name: &str| each(name).into_iter().filter_map(Value::as_i64).sum::<i64>();
    let rows = each("tenants").into_iter().filter_map(Value::as_array).flatten();
    let processes = documents.iter().map(|(admin, document)| {
        json!({ "admin": admin, "balanced": document.get("balanced"), "difference": document.get("difference") })
    });
    if let Some(sum) = sum.as_object_mut() {
        sum.insert("balanced".to_owned(), all("balanced").into());
        sum.insert("log_counted_whole".to_owned(), all("log_counted_whole").into());
        // A difference of one must not make up for that of another.
        let apart: i64 =
            each("difference").into_iter().filter_map(Value::as_i64).map(i64::abs).sum();
        sum.insert("difference".to_owned(), apart.into());
        for name in ["in_flight", "books_difference", "unaccounted"] {
            sum.insert(name.to_owned(), added(name).into());
        }
        for (name, fields) in
            [("refused", ["requests", "bytes"]), ("log_quarantined", ["events", "events"])]
        {
            let mut inner = sum.get(name).cloned().unwrap_or_else(|| json!({}));
            for field in fields {
                let total: i64 = each(name).iter().filter_map(|v| v.get(field)?.as_i64()).sum();
                if let Some(inner) = inner.as_object_mut() {
                    inner.insert(field.to_owned(), total.into());
                }
            }
            sum.insert(name.to_owned(), inner);
        }
        sum.insert("tenants".to_owned(), tenants(rows));
        sum.insert("processes".to_owned(), processes.collect());
    }
    sum
}

fn tenants<'a>(rows: impl Iterator<Item = &'a Value>) -> Value {
    let mut sums = BTreeMap::<(String, String), Map<String, Value>>::new();
    for row in rows.filter_map(Value::as_object) {
        let text =
            |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let sum = sums.entry((text("tenant"), text("event_type"))).or_default();
        add(sum, row, COUNTS);
        let sinks = sum.entry("sinks").or_insert_with(|| json!({}));
        for (name, sink) in row.get("sinks").and_then(Value::as_object).into_iter().flatten() {
            if let (Some(sinks), Some(sink)) = (sinks.as_object_mut(), sink.as_object()) {
                let into = sinks.entry(name.clone()).or_insert_with(|| json!({}));
                let names: Vec<&str> = sink.keys().map(String::as_str).collect();
                if let Some(into) = into.as_object_mut() {
                    add(into, sink, &names);
                }
            }
        }
    }
    let row = |((tenant, event_type), mut sum): ((String, String), Map<String, Value>)| {
        sum.insert("tenant".to_owned(), tenant.into());
        sum.insert("event_type".to_owned(), event_type.into());
        Value::Object(sum)
    };
    sums.into_iter().map(row).collect()
}

fn add(sum: &mut Map<String, Value>, row: &Map<String, Value>, names: &[&str]) {
    for name in names {
        let Some(more) = row.get(*name).and_then(Value::as_i64) else { continue };
        let before = sum.get(*name).and_then(Value::as_i64).unwrap_or(0);
        sum.insert((*name).to_owned(), (before + more).into());
    }
}

/// Those lines of a journal whose ids are `missing`.
pub(super) fn lines_of(piece: &Bytes, missing: &[Value]) -> Bytes {
    let missing: HashSet<&str> = missing.iter().filter_map(Value::as_str).collect();
    let is_missing = |line: &&[u8]| {
        let parsed = serde_json::from_slice::<Value>(line).ok();
        let id = parsed.as_ref().and_then(|line| line.get("event_id")?.as_str());
        // A line that cannot be read is told by the server.
        id.is_none_or(|id| missing.contains(id)) && !line.is_empty()
    };
    let mut lines = Vec::new();
    for line in piece.split(|byte| *byte == b'\n').filter(is_missing) {
        lines.extend_from_slice(line);
        lines.push(b'\n');
    }
    lines.into()
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn the_books_of_a_fleet_are_the_sum_and_balance_where_each_does() {
        let edge = json!({"balanced": true, "difference": 0, "in_flight": 1, "refused": {"requests": 2, "bytes": 20},
            "log_counted_whole": true,
            "tenants": [{"tenant": "a", "event_type": "x", "received": 3, "rejected": 2, "shed": 1, "sinks": {}}]});
        let writer = json!({"balanced": true, "difference": 0, "in_flight": 0, "refused": {"requests": 0, "bytes": 0},
            "log_counted_whole": true,
            "tenants": [{"tenant": "a", "event_type": "x", "received": 5, "accepted": 5,
                "sinks": {"lake": {"stored": 4, "pending": 1}}}]});
        let named = |name: &str, document: &Value| (name.to_owned(), document.clone());
        let all = [named("e", &edge), named("w", &writer), named("v", &writer)];
        let sum = added_up(&all);
        assert_eq!((&sum["balanced"], &sum["in_flight"]), (&json!(true), &json!(1)));
        assert_eq!(sum["refused"], json!({"requests": 2, "bytes": 20}));
        let row = &sum["tenants"][0];
        assert_eq!(
            (&row["received"], &row["accepted"], &row["shed"]),
            (&json!(13), &json!(10), &json!(1))
        );
        assert_eq!(row["sinks"]["lake"], json!({"stored": 8, "pending": 2}));
        let mut off = writer;
        off["balanced"] = json!(false);
        off["difference"] = json!(-2);
        let mut other = edge;
        other["difference"] = json!(2);
        let sum = added_up(&[named("w", &off), named("e", &other)]);
        assert_eq!((&sum["balanced"], &sum["difference"]), (&json!(false), &json!(4)));
    }

    #[test]
    fn only_what_one_server_lacks_is_asked_of_the_next() {
        let piece = Bytes::from_static(b"{\"event_id\":\"a\"}\n{\"event_id\":\"b\"}\n");
        assert_eq!(lines_of(&piece, &[json!("b")]), "{\"event_id\":\"b\"}\n");
        assert_eq!(lines_of(&piece, &[]), "");
    }
}
