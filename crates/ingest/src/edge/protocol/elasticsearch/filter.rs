//! `filter_path`: which parts of an answer a client wants.

use http::request::Parts;
use serde_json::{Map, Value};

/// So many paths are looked at; what stands behind them is read over.
const PATHS_MAX: usize = 64;

type Path<'a> = &'a [String];

/// The paths of a query, taken apart.
#[derive(Debug)]
pub(super) struct Filter {
    /// Where there are any, nothing else stays.
    wanted: Vec<Vec<String>>,
    /// Marked with `-`.
    unwanted: Vec<Vec<String>>,
}

impl Filter {
    /// `None` where the query names no path.
    pub(super) fn of(parts: &Parts) -> Option<Self> {
        let paths = super::query(parts, "filter_path")?;
        let mut filter = Self { wanted: Vec::new(), unwanted: Vec::new() };
        for path in paths.split(',').map(str::trim).filter(|path| !path.is_empty()).take(PATHS_MAX)
        {
            let (path, list) = match path.strip_prefix('-') {
                Some(path) => (path, &mut filter.unwanted),
                None => (path, &mut filter.wanted),
            };
            list.push(path.split('.').map(str::to_owned).collect());
        }
        (!filter.wanted.is_empty() || !filter.unwanted.is_empty()).then_some(filter)
    }

    pub(super) fn apply(&self, answer: &Value) -> Value {
        let wanted: Vec<Path<'_>> = self.wanted.iter().map(Vec::as_slice).collect();
        let unwanted: Vec<Path<'_>> = self.unwanted.iter().map(Vec::as_slice).collect();
        let kept = match wanted.is_empty() {
            true => leave(answer, &unwanted),
            false => pick(answer, &wanted).and_then(|kept| leave(&kept, &unwanted)),
        };
        kept.unwrap_or_else(|| Value::Object(Map::new()))
    }
}

/// What is left of the paths behind a member of this name.
fn behind<'p>(paths: &[Path<'p>], name: &str) -> Vec<Path<'p>> {
    let mut next: Vec<Path<'p>> = Vec::new();
    let mut add = |path: Path<'p>| {
        if !next.contains(&path) {
            next.push(path);
        }
    };
    for path in paths {
        match path.split_first() {
            None => {}
            // Any number of members, none as well.
            Some((first, rest)) if first == "**" => {
                add(path);
                match rest.split_first() {
                    None => add(rest),
                    Some((second, rest)) if glob(second.as_bytes(), name.as_bytes()) => add(rest),
                    Some(_) => {}
                }
            }
            Some((first, rest)) if glob(first.as_bytes(), name.as_bytes()) => add(rest),
            Some(_) => {}
        }
    }
    next
}

fn is_whole(paths: &[Path<'_>]) -> bool {
    paths.iter().any(|path| path.is_empty())
}

/// What the paths lead to. Arrays are walked through.
fn pick(value: &Value, paths: &[Path<'_>]) -> Option<Value> {
    if is_whole(paths) {
        return Some(value.clone());
    }
    match value {
        Value::Object(members) => {
            let kept: Map<String, Value> = members
                .iter()
                .filter_map(|(name, value)| {
                    pick(value, &behind(paths, name)).map(|value| (name.clone(), value))
                })
                .collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        Value::Array(values) if !paths.is_empty() => {
            let kept: Vec<Value> = values.iter().filter_map(|value| pick(value, paths)).collect();
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        _ => None,
    }
}

/// What the paths do not lead to.
fn leave(value: &Value, paths: &[Path<'_>]) -> Option<Value> {
    if is_whole(paths) {
        return None;
    }
    Some(match value {
        Value::Object(members) => Value::Object(
            members
                .iter()
                .filter_map(|(name, value)| {
                    leave(value, &behind(paths, name)).map(|value| (name.clone(), value))
                })
                .collect(),
        ),
        Value::Array(values) => {
            Value::Array(values.iter().filter_map(|value| leave(value, paths)).collect())
        }
        other => other.clone(),
    })
}

/// True where `text` is what `pattern` says; `*` stands for any characters.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (pattern, text);
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        match (p.split_first(), t.split_first()) {
            (Some((b'*', rest)), _) => {
                star = Some((rest, t));
                p = rest;
            }
            (Some((a, pattern)), Some((b, text))) if a == b => (p, t) = (pattern, text),
            (None, None) => return true,
            _ => {
                let Some((pattern, [_, text @ ..])) = star else { return false };
                star = Some((pattern, text));
                (p, t) = (pattern, text);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(paths: &str, expected: Value) {
        let uri = format!("/_bulk?filter_path={paths}");
        let parts = http::Request::post(uri).body(()).unwrap().into_parts().0;
        let answer = json!({
            "errors": true, "took": 3,
            "items": [{"index": {"_id": "a", "status": 201, "_shards": {"total": 1}}},
                      {"create": {"_id": "b", "status": 409, "error": {"type": "x", "reason": "y"}}}],
        });
        let found = Filter::of(&parts).map_or(answer.clone(), |filter| filter.apply(&answer));
        assert_eq!(found, expected, "{paths}");
    }

    #[test]
    fn what_is_wanted_stays_and_what_is_not_goes() {
        let errors = json!({
            "errors": true,
            "items": [{"index": {"status": 201}}, {"create": {"error": {"type": "x", "reason": "y"}, "status": 409}}],
        });
        check("errors,items.*.error,items.*.status", errors.clone());
        check("errors%2Citems.*.error%2Citems.*.status", errors);
        check("took", json!({"took": 3}));
        check("nothing", json!({}));
        check("items.index._id", json!({"items": [{"index": {"_id": "a"}}]}));
        check("**.reason", json!({"items": [{"create": {"error": {"reason": "y"}}}]}));
        check("items.**.total", json!({"items": [{"index": {"_shards": {"total": 1}}}]}));
        check("err*,t*k", json!({"errors": true, "took": 3}));
        check("-items", json!({"errors": true, "took": 3}));
        check(
            "items.*,-items.*.error,-**._shards",
            json!({
                "items": [{"index": {"_id": "a", "status": 201}}, {"create": {"_id": "b", "status": 409}}],
            }),
        );
        check("**", Filter { wanted: vec![], unwanted: vec![] }.apply(&json!({
            "errors": true, "took": 3,
            "items": [{"index": {"_id": "a", "status": 201, "_shards": {"total": 1}}},
                      {"create": {"_id": "b", "status": 409, "error": {"type": "x", "reason": "y"}}}],
        })));
    }

    #[test]
    fn a_star_is_any_characters() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "abc", true),
            ("a*c", "abc", true),
            ("a*c", "abd", false),
            ("*b*b", "abab", true),
            ("a", "", false),
            ("", "a", false),
            ("a**", "a", true),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }
}
