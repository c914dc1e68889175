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
    let without = "this program was built without the feature `kafka`";
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // Without the feature there is nothing to hold the one against.
        let there = cfg!(feature = "kafka") || !path.ends_with("kafka-sink.toml");
        if there && path.extension().is_some_and(|extension| extension == "toml") {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let config = config::parse(&name, &text, std::iter::empty()).unwrap();
            let mut faults = config::check(&config);
            faults.retain(|fault| !fault.contains(without));
            assert_eq!(faults, Vec::<String>::new(), "{name}");
            names.push(name);
        }
    }
    for name in ["elasticsearch.toml", "kafka.toml", "tidegate.toml"] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
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
fn the_example_of_roles_is_one_that_each_role_takes() {
    check_roles("roles.toml");
}

#[cfg(feature = "kafka")]
#[test]
fn the_example_of_roles_over_a_log_on_kafka_is_one_that_each_role_takes() {
    let config = check_roles("roles-kafka.toml");
    assert_eq!(config.log.kind, tidegate_ingest::log::LogKind::Kafka);
    assert_eq!((config.log.kafka.replication, config.log.kafka.min_insync), (3, 2));
}

fn check_roles(file: &str) -> Config {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("config").join(file)).unwrap();
    for role in config::Role::ALL {
        let environment = [("TIDEGATE_ROLE".to_owned(), role.to_string())];
        let config = config::parse(file, &text, environment.into_iter()).unwrap();
        assert_eq!((config.role, config::check(&config)), (*role, Vec::new()));
        assert_eq!((config.hop.normalizers.len(), config.hop.writers.len()), (2, 2));
        // Each process that its first lines start is one of those that the file names.
        let started = format!("--role {role} ");
        let lines = text.lines().filter(|line| line.contains(&started)).count();
        assert_eq!(lines, if *role == config::Role::All { 0 } else { 2 });
    }
    for name in ["127.0.0.1:8101", "127.0.0.1:8102", "127.0.0.1:8201", "127.0.0.1:8202"] {
        assert!(text.contains(&format!("--hop {name} ")) && text.contains(&format!("\"{name}\"")));
    }
    config::parse(file, &text, std::iter::empty()).unwrap()
}

#[test]
fn an_edge_without_normalizers_and_names_that_are_none_are_told_before() {
    for (text, expected) in [
        ("role = \"edge\"", "hop.normalizers: an edge needs one"),
        ("role = \"normalizer\"", "hop.writers: a normalizer needs one"),
        ("[hop]\nwriters = [\"a\"]", "no HOST:PORT"),
        ("[hop]\nwriters = [\"a:1\", \"a:1\"]", "stands twice"),
        ("[hop]\ntimeout = \"0s\"", "hop.timeout"),
        ("[hop]\nlisten = \"here\"", "hop.listen"),
    ] {
        let config = config::parse("test.toml", text, std::iter::empty()).unwrap();
        let faults = config::check(&config);
        assert!(faults.len() == 1 && faults[0].contains(expected), "{text}: {faults:?}");
    }
    let stray = config::parse("test.toml", "hop = []", std::iter::empty()).unwrap_err();
    assert!(stray.to_string().contains("is no list"), "{stray}");
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
