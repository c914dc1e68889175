//! What must hold of the sources themselves: every file says what it is for, none grows without end,
//! and stages meet only where ARCHITECTURE.md says they do.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Longer files are two rooms.
const LINES_MAX: usize = 600;

/// `module` must never name any of `strangers`.
const NEVER: &[(&str, &[&str])] = &[
    ("event", &["std::time::", "tokio", "std::fs", "std::net"]),
    (
        "ingest/log",
        &["serde_json", "http::", "hyper", "crate::edge", "crate::normalize", "crate::sink"],
    ),
    ("ingest/json", &["crate::"]),
    (
        "ingest/normalize",
        &["http::", "hyper", "crate::edge", "crate::sink", "crate::log::", "crate::writer"],
    ),
    ("ingest/writer", &["http::", "hyper", "crate::edge", "crate::sink", "crate::normalize"]),
    ("ingest/sink", &["crate::edge", "crate::writer", "crate::admin"]),
    ("ingest/edge", &["crate::sink", "crate::admin", "crate::log::"]),
    ("ingest/hop", &["crate::sink", "crate::admin", "crate::log::", "crate::pipeline"]),
];

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

fn all() -> Vec<(String, String)> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut paths = Vec::new();
    sources(crates, &mut paths);
    let text = |path: PathBuf| {
        let name = path.strip_prefix(crates).unwrap().display().to_string();
        (name.replace("/src", ""), fs::read_to_string(&path).unwrap())
    };
    paths.into_iter().map(text).collect()
}

/// The part of a file before its inline tests.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or_default()
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> = all().into_iter().filter(|(_, text)| !text.starts_with("//! ")).collect();
    let names: Vec<_> = silent.iter().map(|(name, _)| name).collect();
    assert!(names.is_empty(), "files without a first `//!` line: {names:?}");
}

#[test]
fn no_file_grows_without_end() {
    let long: Vec<_> = all()
        .into_iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "files over {LINES_MAX} lines: {long:?}");
}

#[test]
fn stages_meet_only_where_they_should() {
    let mut met = Vec::new();
    for (name, text) in all() {
        for (module, strangers) in NEVER {
            let inside = name.starts_with(&format!("{module}/")) || name == format!("{module}.rs");
            if !inside || name.contains("/tests/") || name.contains("/benches/") {
                continue;
            }
            for (number, line) in product(&text).lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for stranger in *strangers {
                    if code.contains(stranger) {
                        met.push(format!("{name}:{}: {stranger}", number + 1));
                    }
                }
            }
        }
    }
    assert!(met.is_empty(), "stages that name each other's internals:\n{}", met.join("\n"));
}

#[test]
fn every_manifest_takes_the_workspace_lints() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for entry in fs::read_dir(crates).unwrap() {
        let manifest = fs::read_to_string(entry.unwrap().path().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{manifest}");
    }
}
