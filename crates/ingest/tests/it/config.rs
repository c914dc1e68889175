//! The commented sample configuration is whole and says the true defaults.

use std::path::Path;

use tidegate_ingest::config::{self, Config};

fn sample() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join("config/tidegate.toml")).unwrap()
}

/// The sample with every commented-out setting (`# name = value`, `# [section]`) switched on.
fn uncommented() -> String {
    let setting = |line: &str| {
        let Some(rest) = line.strip_prefix("# ") else { return line.to_owned() };
        let name = rest.split('=').next().unwrap_or_default().trim();
        let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let section = rest.starts_with('[') && rest.ends_with(']');
        if section || (named && rest.contains('=')) { rest.to_owned() } else { line.to_owned() }
    };
    sample().lines().map(setting).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_sample_as_it_stands_loads_and_holds_together() {
    let config = config::parse("tidegate.toml", &sample(), std::iter::empty()).unwrap();
    assert_eq!(config::check(&config), Vec::<String>::new());
}

#[test]
fn every_example_loads_and_holds_together() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let config = config::parse(&name, &text, std::iter::empty()).unwrap();
            assert_eq!(config::check(&config), Vec::<String>::new(), "{name}");
            names.push(name);
        }
    }
    assert!(names.iter().any(|name| name == "elasticsearch.toml"), "{names:?}");
}

#[test]
fn the_sample_says_the_true_defaults() {
    let config = config::parse("tidegate.toml", &sample(), std::iter::empty()).unwrap();
    let default = Config::default();
    assert_eq!(config.edge.limits, default.edge.limits);
    assert_eq!(config.edge.timeouts, default.edge.timeouts);
    assert_eq!(config.edge.listen, default.edge.listen);
    assert_eq!(config.admin.listen, default.admin.listen);
    assert_eq!(config.budget, default.budget);
    assert_eq!(config.defaults, default.defaults);
    assert_eq!(config.schemas.unknown_types, default.schemas.unknown_types);
    let mut log = config.log.clone();
    log.dir.clone_from(&default.log.dir);
    assert_eq!(log, default.log);
}

#[test]
fn every_setting_of_the_sample_exists() {
    config::parse("tidegate.toml", &uncommented(), std::iter::empty()).unwrap();
}

#[test]
fn the_sample_names_every_setting() {
    let text = uncommented();
    let table: toml::Table = toml::from_str(&text).unwrap();
    let default = toml::Value::try_from(Config::default()).unwrap();
    let mut missing = Vec::new();
    names(&default, &toml::Value::Table(table), "", &mut missing);
    assert!(missing.is_empty(), "settings the sample does not name: {missing:?}");
}

fn names(of: &toml::Value, sample: &toml::Value, path: &str, missing: &mut Vec<String>) {
    let Some(table) = of.as_table() else { return };
    for (name, value) in table {
        match sample.get(name) {
            None => missing.push(format!("{path}{name}")),
            Some(inner) => names(value, inner, &format!("{path}{name}."), missing),
        }
    }
}
