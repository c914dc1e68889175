//! Schemas on disk: every fault told, contents kept by hash, reloads whole or not at all.

use std::{fs, path::Path};

use super::*;

const LIMITS: ScanLimits = ScanLimits { depth: 32, fields: 512 };

fn put(dir: &Path, file: &str, document: &Value) {
    let path = dir.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, document.to_string()).unwrap();
}

fn store(dir: &Path) -> Arc<SchemaStore> {
    Arc::new(SchemaStore::open(Arc::new(Disk), dir.join("schemas-by-hash")).unwrap())
}

fn load(dir: &Path) -> Result<Normalizer, Vec<SchemaFault>> {
    let config = SchemasConfig { dir: Some(dir.join("schemas")), ..SchemasConfig::default() };
    Normalizer::load(&config, store(dir), LIMITS)
}

fn of_type(version: i32, ty: &str) -> Value {
    json!({"x-version": version, "properties": {"a": {"type": ty}}})
}

/// As a reload does it: whole, or not at all. The generation that is live then.
fn reload(normalizer: &Normalizer) -> Result<u64, Vec<SchemaFault>> {
    normalizer.install(normalizer.prepare()?);
    Ok(normalizer.schemas().generation())
}

#[test]
fn all_faults_of_all_files_are_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let schemas = dir.path().join("schemas");
    put(
        &schemas,
        "a.json",
        &json!({"x-version": "1", "properties": {"custom": {}, "b": {"x-unit": "s"}}}),
    );
    put(&schemas, "b.json", &json!({"x-version": 1, "type": "array"}));
    put(&schemas, "c..d.json", &json!({"x-version": 1}));
    put(&schemas, "E.json", &json!({"x-version": 1, "$ref": "https://example.com/x"}));
    put(&schemas, "Not A Tenant/a.json", &json!({"x-version": 1}));
    fs::write(schemas.join("f.json"), "{\"x-version\":1,\"x-version\":2}").unwrap();
    fs::write(schemas.join("g.json"), "{").unwrap();
    fs::write(schemas.join("README.md"), "no schema").unwrap();
    let faults = load(dir.path()).unwrap_err();
    let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
    for part in [
        "a.json at /x-version: x-version is no integer",
        "a.json at /properties/custom: custom is the name of one of Tidegate's own columns",
        "a.json at /properties/b: x-unit at a field that is no number",
        "b.json at /type",
        "c..d.json: ",
        "E.json",
        "Not A Tenant: ",
        "f.json: duplicate_key at /x-version",
        "g.json: not JSON",
    ] {
        assert!(told.iter().any(|t| t.starts_with(part)), "{part} not in {told:#?}");
    }
    assert!(!told.iter().any(|t| t.contains("README")));
    assert!(faults.iter().all(|fault| !fault.mend.is_empty()));
}

#[test]
fn a_schema_without_a_version_is_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let schemas = dir.path().join("schemas");
    put(&schemas, "a.json", &json!({"properties": {"a": {"type": "string"}}}));
    assert!(load(dir.path()).is_ok());
    put(&schemas, "a.json", &json!({"properties": {"a": {"type": "string"}, "b": {}}}));
    let faults = load(dir.path()).unwrap_err();
    assert!(faults.iter().any(|fault| fault.mend.contains("raise x-version")), "{faults:?}");
}

#[test]
fn schemas_that_cannot_work_are_refused() {
    for (properties, what) in [
        (json!({"a": {"type": "number", "x-unit": "sec"}}), "no UCUM code"),
        (json!({"a": {"type": "number", "x-accept": {"b": "s"}}}), "x-accept without x-unit"),
        (json!({"a": {"type": "number", "x-unit": "s", "x-accept": {"b": "m"}}}), "converts to s"),
        (
            json!({"a": {"type": "number", "x-unit": "s", "x-accept": {"b": "ms"}}, "b": {}}),
            "taken",
        ),
        (json!({"a": {}, "A": {}}), "have one name"),
        (json!({"a": {"x-column": "date"}}), "own columns"),
        (json!({"a": {"x-column": ""}}), "1 to 127 bytes"),
        (json!({"a": {"type": "text"}}), "text"),
        (json!({"a": {"pattern": "("}}), "regex"),
    ] {
        let document = json!({"x-version": 1, "properties": properties});
        let told: Vec<String> = faults(document).iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|t| t.contains(what)), "{what} not in {told:?}");
    }
}

#[test]
fn a_tenants_own_schema_wins_for_it_and_must_agree_with_the_common_one() {
    let dir = tempfile::tempdir().unwrap();
    let schemas = dir.path().join("schemas");
    put(&schemas, "t.json", &of_type(1, "string"));
    let mut own = of_type(7, "string");
    own["properties"]["b"] = json!({"type": "integer"});
    put(&schemas, "acme/t.json", &own);
    let set = load(dir.path()).unwrap().schemas();
    let version =
        |tenant| set.get(&TenantId::new(tenant).unwrap(), "t").map(|entry| entry.schema.version());
    assert_eq!((version("acme"), version("other")), (Some(7), Some(1)));
    put(&schemas, "acme/t.json", &of_type(8, "integer"));
    let faults = load(dir.path()).unwrap_err();
    assert_eq!(
        (faults[0].file.as_str(), faults[0].pointer.as_str()),
        ("acme/t.json", "/properties/a")
    );
    assert!(check_dir(&schemas).is_err());
}

#[test]
fn contents_are_kept_by_hash_and_outlive_their_file() {
    let dir = tempfile::tempdir().unwrap();
    let schemas = dir.path().join("schemas");
    put(&schemas, "t.json", &of_type(1, "string"));
    let hash = load(dir.path()).unwrap().schemas().entries()[0].schema.hash();
    fs::remove_file(schemas.join("t.json")).unwrap();
    assert_eq!(load(dir.path()).unwrap().schemas().entries().len(), 0);
    let again = store(dir.path());
    assert_eq!(again.get(hash).unwrap().columns()[0].name, "a");
    assert_eq!(again.get([0; 16]).unwrap().columns().len(), 0);
    assert!(again.get([1; 16]).is_none());
    let file = dir.path().join("schemas-by-hash").join(format!("{}.json", hex::encode(hash)));
    fs::write(file, of_type(1, "integer").to_string()).unwrap();
    assert!(store(dir.path()).get(hash).is_none());
}

#[test]
fn changed_content_under_a_known_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let schemas = dir.path().join("schemas");
    put(&schemas, "t.json", &of_type(1, "string"));
    load(dir.path()).unwrap();
    let mut changed = of_type(1, "string");
    changed["title"] = json!("changed");
    put(&schemas, "t.json", &changed);
    let faults = load(dir.path()).unwrap_err();
    assert!(faults[0].what.contains("known with other content"), "{}", faults[0]);
    put(&schemas, "t.json", &of_type(2, "integer"));
    assert_eq!(load(dir.path()).unwrap_err()[0].pointer, "/properties/a");
    changed["x-version"] = json!(2);
    put(&schemas, "t.json", &changed);
    load(dir.path()).unwrap();
}

#[test]
fn a_reload_is_whole_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let schemas = dir.path().join("schemas");
    put(&schemas, "t.json", &of_type(1, "string"));
    let normalizer = load(dir.path()).unwrap();
    put(&schemas, "t.json", &of_type(2, "string"));
    put(&schemas, "u.json", &json!({"x-version": 0}));
    reload(&normalizer).unwrap_err();
    assert_eq!(normalizer.schemas().generation(), 1);
    assert_eq!(normalizer.schemas().entries()[0].schema.version(), 1);
    put(&schemas, "u.json", &json!({"x-version": 1}));
    assert_eq!(reload(&normalizer).unwrap(), 2);
    assert_eq!(normalizer.schemas().entries().len(), 2);
    fs::remove_dir_all(&schemas).unwrap();
    reload(&normalizer).unwrap_err();
    assert_eq!(normalizer.schemas().entries().len(), 2);
}

#[test]
fn a_change_of_type_unit_or_column_is_refused_and_the_rest_is_told() {
    let a = |keywords: Value| schema(json!({"properties": {"a": keywords}}));
    let old = a(json!({"type": "number", "x-unit": "s"}));
    assert!(check_evolution(&old, &old).is_empty());
    for new in [
        json!({"type": "integer", "x-unit": "s"}),
        json!({"type": "number", "x-unit": "ms"}),
        json!({"type": "number"}),
        json!({"type": "number", "x-unit": "s", "x-column": "c"}),
    ] {
        assert_eq!(check_evolution(&old, &a(new.clone())).len(), 1, "{new}");
    }
    let other = schema(json!({"properties": {"b": {"type": "string", "x-column": "a"}}}));
    assert_eq!(check_evolution(&old, &other).len(), 1);
    let added = schema(json!({"properties": {"b": {"type": "string"}}}));
    assert!(check_evolution(&old, &added).is_empty());
    assert_eq!(evolution_notes(&old, &added).len(), 2);
}
