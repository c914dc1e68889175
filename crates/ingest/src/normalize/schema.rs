//! One schema: what its events are checked by and which columns they get.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use jsonschema::Validator;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use tidegate_event::SchemaRef;

use super::{
    check::{Checks, Types, is_annotation},
    exact::Conversion,
    fault::{Faults, SchemaFault},
    pii::{Pii, PiiNode},
    unit::Unit,
};
use crate::json::{Object, ScanLimits, push_pointer, scan_object};

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// A boolean.
    Bool,
    /// A signed integer of 64 bits.
    I64,
    /// A 64-bit floating point number.
    F64,
    /// Text.
    Text,
    /// Any value, as JSON text.
    Json,
}

impl ColumnType {
    /// Its name in answers and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "boolean",
            Self::I64 => "integer",
            Self::F64 => "number",
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// One column of an event type's table. Every column may be null.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnSpec {
    /// Its name: the field's, or its `x-column`.
    pub name: String,
    /// What it holds.
    pub ty: ColumnType,
    /// The UCUM code of the unit its values are in.
    pub unit: Option<String>,
}

/// A schema, compiled.
#[derive(Debug)]
pub struct Schema {
    version: i32,
    hash: [u8; 16],
    canonical: String,
    document: Value,
    columns: Vec<ColumnSpec>,
    pub(super) fields: Vec<FieldRule>,
    names: HashMap<Box<str>, Target>,
    pub(super) refuses_unknown: bool,
    pub(super) required: Vec<usize>,
    /// The reference for the whole event, where the fields' own checks are not all.
    pub(super) whole: Option<Validator>,
    pub(super) pii: Option<PiiNode>,
}

/// What one field is checked by and where it goes.
#[derive(Debug)]
pub(super) struct FieldRule {
    pub(super) name: Box<str>,
    /// Its place in the columns; `None`: it is only required, or dropped.
    pub(super) column: Option<usize>,
    pub(super) ty: ColumnType,
    /// What the schema says its values are, before a personal-data rule replaced them.
    pub(super) judged: ColumnType,
    /// False where the schema's `properties` do not name it.
    pub(super) declared: bool,
    pub(super) checks: Checks,
    /// The reference for this field, where the compiled checks are not enough.
    pub(super) reference: Option<Validator>,
    pub(super) unit: Option<UnitRule>,
    /// The personal-data rule of the field itself.
    pub(super) rule: Option<Pii>,
}

/// The unit of a field's column, and the names it may arrive under in other units.
#[derive(Debug)]
pub(super) struct UnitRule {
    pub(super) code: String,
    pub(super) unit: Unit,
    pub(super) aliases: Vec<(Box<str>, Conversion)>,
}

/// What a field's name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) field: usize,
    /// The place in [`UnitRule::aliases`], where it is one.
    pub(super) alias: Option<usize>,
}

/// The names of our own columns; a field of such a name needs `x-column`.
pub const OWN_COLUMNS: [&str; 12] = [
    "event_id",
    "event_time",
    "received_at",
    "log_id",
    "log_partition",
    "log_offset",
    "schema_version",
    "custom",
    "tenant",
    "event_type",
    "date",
    "hour",
];

impl FieldRule {
    /// True where its column holds what a personal-data rule left of it.
    pub(super) fn replaced(&self) -> bool {
        matches!(self.rule, Some(Pii::Hash | Pii::Mask))
    }
}

impl Schema {
    /// The schema of events that have none: no columns, everything goes to `custom`.
    #[must_use]
    pub fn none() -> Arc<Self> {
        static NONE: LazyLock<Arc<Schema>> = LazyLock::new(|| {
            Arc::new(Schema {
                version: 0,
                hash: [0; 16],
                canonical: String::new(),
                document: Value::Bool(true),
                columns: Vec::new(),
                fields: Vec::new(),
                names: HashMap::new(),
                refuses_unknown: false,
                required: Vec::new(),
                whole: None,
                pii: None,
            })
        });
        Arc::clone(&NONE)
    }

    /// Reads and compiles a schema. `file` is named in faults.
    ///
    /// # Errors
    /// Every fault of the file.
    pub fn parse(file: &str, text: &[u8]) -> Result<Self, Vec<SchemaFault>> {
        let mut faults = Faults::of(file);
        let limits = ScanLimits { depth: 64, fields: 100_000 };
        let mut object = Object::default();
        let document = match scan_object(text, &limits, &mut object) {
            Err(error) => Err(error.to_string()),
            Ok(_) if let Some(flaw) = object.flaw() => {
                Err(format!("{} at {}", flaw.code.as_str(), flaw.pointer))
            }
            Ok(text) => serde_json::from_str::<Map<String, Value>>(text).map_err(|e| e.to_string()),
        };
        match document {
            Err(what) => faults.add("", what, "write one JSON object"),
            Ok(document) => match Compiler::compile(document, &mut faults) {
                Some(schema) if faults.found.is_empty() => return Ok(schema),
                _ => {}
            },
        }
        Err(faults.found)
    }

    /// The columns in the order of the schema's `properties`.
    #[must_use]
    pub fn columns(&self) -> &[ColumnSpec] {
        &self.columns
    }

    /// Its `x-version`; 0 for [`Schema::none`].
    #[must_use]
    pub fn version(&self) -> i32 {
        self.version
    }

    /// The first 16 bytes of the SHA-256 of its canonical text; zeros for [`Schema::none`].
    #[must_use]
    pub fn hash(&self) -> [u8; 16] {
        self.hash
    }

    /// What records carry of it.
    #[must_use]
    pub fn reference(&self) -> SchemaRef {
        SchemaRef { version: self.version, hash: self.hash }
    }

    /// Its text without space; members keep their order, which is that of the columns.
    #[must_use]
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// It as JSON.
    #[must_use]
    pub fn document(&self) -> &Value {
        &self.document
    }

    pub(super) fn target(&self, name: &str) -> Option<Target> {
        self.names.get(name).copied()
    }

    /// The name that a target stands for.
    pub(super) fn target_name(&self, target: Target) -> &str {
        let Some(rule) = self.fields.get(target.field) else { return "" };
        match (target.alias, &rule.unit) {
            (Some(alias), Some(unit)) => unit.aliases.get(alias).map_or("", |(name, _)| name),
            _ => &rule.name,
        }
    }

    /// The rules of the fields that the schema names.
    pub(super) fn declared(&self) -> impl Iterator<Item = &FieldRule> {
        self.fields.iter().filter(|rule| rule.declared)
    }
}

struct Compiler<'f> {
    faults: &'f mut Faults,
    columns: Vec<ColumnSpec>,
    fields: Vec<FieldRule>,
    names: HashMap<Box<str>, Target>,
}

impl Compiler<'_> {
    fn compile(document: Map<String, Value>, faults: &mut Faults) -> Option<Schema> {
        let document = Value::Object(document);
        let root = document.as_object()?;
        let validator = reference(&document, "", faults)?;
        let version = version(root, faults);
        let unknown = refuses_unknown(root, faults);
        root_type(root, faults);
        let pii = PiiNode::compile(root, faults);
        let mut compiler =
            Compiler { faults, columns: Vec::new(), fields: Vec::new(), names: HashMap::new() };
        let whole = compiler.is_whole(root);
        if let Some(Value::Object(properties)) = root.get("properties") {
            for (name, schema) in properties {
                compiler.field(name, schema, whole);
            }
            compiler.aliases(properties);
        }
        let required = compiler.required(root);
        compiler.check_columns();
        let Compiler { columns, fields, names, .. } = compiler;
        let canonical = document.to_string();
        let digest = Sha256::digest(canonical.as_bytes());
        let hash = digest.first_chunk::<16>().copied()?;
        let pii = pii.map(|pii| pii.with_aliases(&fields));
        Some(Schema {
            version: version?,
            hash,
            canonical,
            columns,
            fields,
            names,
            refuses_unknown: unknown,
            required,
            whole: whole.then_some(validator),
            pii,
            document,
        })
    }

    /// True where only the reference can judge: the event as a whole is looked at, or a field refers
    /// to elsewhere.
    fn is_whole(&self, root: &Map<String, Value>) -> bool {
        let known = |(keyword, value): (&String, &Value)| match keyword.as_str() {
            "$schema" | "$id" | "type" | "properties" | "required" => true,
            "additionalProperties" => value.is_boolean(),
            keyword => is_annotation(keyword),
        };
        let properties = root.get("properties");
        !root.iter().all(known) || properties.is_some_and(|p| !no_references(p))
    }

    fn field(&mut self, name: &str, schema: &Value, whole: bool) {
        let mut pointer = "/properties".to_owned();
        push_pointer(&mut pointer, name);
        let empty = Map::new();
        let keywords = schema.as_object().unwrap_or(&empty);
        let compiled = if schema == &Value::Bool(false) { None } else { Checks::compile(keywords) };
        let alone = compiled.is_none() && !whole;
        let rule = Pii::read(keywords);
        let types = keywords.get("type").and_then(Types::read);
        let unit = self.unit(keywords, types, &pointer);
        let replaced = matches!(rule, Some(Pii::Hash | Pii::Mask));
        let judged = column_type(types);
        let ty = if replaced { ColumnType::Text } else { judged };
        let checks = compiled.unwrap_or_else(|| Checks::of_types(types));
        let reference = if alone { reference(schema, &pointer, self.faults) } else { None };
        let code = unit.as_ref().map(|u| u.code.clone()).filter(|_| !replaced);
        let column = self.column(name, keywords, &pointer).filter(|_| rule != Some(Pii::Drop));
        let column = column.map(|name| {
            self.columns.push(ColumnSpec { name, ty, unit: code });
            self.columns.len() - 1
        });
        self.names.insert(name.into(), Target { field: self.fields.len(), alias: None });
        let name = name.into();
        self.fields.push(FieldRule {
            name,
            column,
            ty,
            judged,
            declared: true,
            checks,
            reference,
            unit,
            rule,
        });
    }

    /// The column's name, after its rules.
    fn column(&mut self, name: &str, keywords: &Map<String, Value>, at: &str) -> Option<String> {
        let column = match keywords.get("x-column") {
            None => name,
            Some(Value::String(column)) => column,
            Some(_) => {
                self.faults.add(format!("{at}/x-column"), "x-column is no text", "write a name");
                return None;
            }
        };
        if OWN_COLUMNS.iter().any(|own| own.eq_ignore_ascii_case(column)) {
            let what = format!("{column} is the name of one of Tidegate's own columns");
            self.faults.add(at, what, "give the field another column's name by x-column");
        }
        if column.is_empty() || column.len() > 127 || column.chars().any(char::is_control) {
            let what = "a column's name is 1 to 127 bytes without control characters";
            self.faults.add(at, what, "give the field a column's name by x-column");
        }
        Some(column.to_owned())
    }

    fn unit(
        &mut self,
        keywords: &Map<String, Value>,
        types: Option<Types>,
        at: &str,
    ) -> Option<UnitRule> {
        let Some(code) = keywords.get("x-unit") else {
            if keywords.contains_key("x-accept") {
                self.faults.add(at, "x-accept without x-unit", "say by x-unit which unit it is in");
            }
            return None;
        };
        let Some(code) = code.as_str() else {
            self.faults.add(format!("{at}/x-unit"), "x-unit is no text", "write a UCUM code");
            return None;
        };
        if !matches!(column_type(types), ColumnType::I64 | ColumnType::F64) {
            let what = "x-unit at a field that is no number";
            self.faults.add(at, what, "give it the type number or integer (and null)");
            return None;
        }
        let unit = match Unit::parse(code) {
            Ok(unit) => unit,
            Err(error) => {
                let what = format!("the unit {code:?} {error}");
                self.faults.add(format!("{at}/x-unit"), what, "write a UCUM code such as s or By");
                return None;
            }
        };
        let mut aliases = Vec::new();
        let accepted = keywords.get("x-accept").map(|v| (v, v.as_object()));
        match accepted {
            None => {}
            Some((_, None)) => {
                let mend = "write an object of names and units, {\"duration_ms\": \"ms\"}";
                self.faults.add(format!("{at}/x-accept"), "x-accept is no object", mend);
            }
            Some((_, Some(accepted))) => {
                for (alias, code) in accepted {
                    let from = code.as_str().map(Unit::parse);
                    match from.and_then(Result::ok).and_then(|from| from.conversion_to(&unit)) {
                        Some(conversion) => aliases.push((alias.as_str().into(), conversion)),
                        None => self.faults.add(
                            format!("{at}/x-accept"),
                            format!("{alias} has no unit that converts to {}", unit_name(keywords)),
                            "write a UCUM code of the same dimension",
                        ),
                    }
                }
            }
        }
        Some(UnitRule { code: code.to_owned(), unit, aliases })
    }

    /// The names fields may arrive under: none may be taken.
    fn aliases(&mut self, properties: &Map<String, Value>) {
        for (field, rule) in self.fields.iter().enumerate() {
            let aliases = rule.unit.iter().flat_map(|unit| &unit.aliases).enumerate();
            for (alias, (name, _)) in aliases {
                let target = Target { field, alias: Some(alias) };
                let taken = properties.contains_key(&**name)
                    || self.names.insert(name.clone(), target).is_some();
                if taken || matches!(&**name, "event_id" | "event_type" | "event_time") {
                    let what = format!("{name} in the x-accept of {} is taken", rule.name);
                    self.faults.add("/properties", what, "choose a name no other field has");
                }
            }
        }
    }

    fn required(&mut self, root: &Map<String, Value>) -> Vec<usize> {
        let mut required = Vec::new();
        let names = root.get("required").and_then(Value::as_array);
        for name in names.into_iter().flatten().filter_map(Value::as_str) {
            let known = self.names.get(name).filter(|target| target.alias.is_none());
            required.push(known.map_or(self.fields.len(), |target| target.field));
            if known.is_none() {
                let target = Target { field: self.fields.len(), alias: None };
                self.names.insert(name.into(), target);
                self.fields.push(FieldRule {
                    name: name.into(),
                    column: None,
                    ty: ColumnType::Json,
                    judged: ColumnType::Json,
                    declared: false,
                    checks: Checks::default(),
                    reference: None,
                    unit: None,
                    rule: None,
                });
            }
        }
        required
    }

    /// Columns differ in more than case: not every reader tells `A` from `a`.
    fn check_columns(&mut self) {
        let mut seen = HashMap::new();
        for column in &self.columns {
            if let Some(first) = seen.insert(column.name.to_lowercase(), &column.name) {
                let what = format!("the columns {first} and {} have one name", column.name);
                let mend = "give one of them another name by x-column (case does not count)";
                self.faults.add("/properties", what, mend);
            }
        }
    }
}

fn unit_name(keywords: &Map<String, Value>) -> &str {
    keywords.get("x-unit").and_then(Value::as_str).unwrap_or_default()
}

fn column_type(types: Option<Types>) -> ColumnType {
    const BOTH: u8 = Types::INTEGER | Types::NUMBER;
    match types.map(Types::values) {
        Some(Types::BOOLEAN) => ColumnType::Bool,
        Some(Types::INTEGER) => ColumnType::I64,
        Some(Types::NUMBER | BOTH) => ColumnType::F64,
        Some(Types::STRING) => ColumnType::Text,
        _ => ColumnType::Json,
    }
}

/// The reference implementation's validator; format is an annotation, nothing is fetched.
fn reference(schema: &Value, pointer: &str, faults: &mut Faults) -> Option<Validator> {
    let options = jsonschema::options()
        .with_draft(jsonschema::Draft::Draft202012)
        .should_validate_formats(false)
        .offline();
    options
        .build(schema)
        .map_err(|error| {
            let at = format!("{pointer}{}", error.instance_path());
            faults.add(at, error.to_string(), "write JSON Schema 2020-12");
        })
        .ok()
}

/// True where nothing in it refers to or is referred to from elsewhere.
fn no_references(schema: &Value) -> bool {
    match schema {
        Value::Object(members) => {
            members.iter().all(|(key, value)| !key.starts_with('$') && no_references(value))
        }
        Value::Array(items) => items.iter().all(no_references),
        _ => true,
    }
}

fn version(root: &Map<String, Value>, faults: &mut Faults) -> Option<i32> {
    // A plain JSON Schema is a first version.
    let Some(version) = root.get("x-version") else { return Some(1) };
    let version = version.as_i64().and_then(|v| i32::try_from(v).ok()).filter(|v| *v >= 1);
    if version.is_none() {
        let what = "x-version is no integer from 1 on";
        faults.add("/x-version", what, "begin with \"x-version\": 1 and raise it at each change");
    }
    version
}

fn refuses_unknown(root: &Map<String, Value>, faults: &mut Faults) -> bool {
    let rule = match root.get("x-unknown-fields").map(|v| v.as_str().unwrap_or_default()) {
        None | Some("custom") => false,
        Some("reject") => true,
        Some(_) => {
            let mend = "write custom or reject";
            faults.add("/x-unknown-fields", "x-unknown-fields has no such value", mend);
            false
        }
    };
    rule || root.get("additionalProperties") == Some(&Value::Bool(false))
}

fn root_type(root: &Map<String, Value>, faults: &mut Faults) {
    const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
    let draft = root.get("$schema").map(|v| v.as_str().unwrap_or_default());
    if draft.is_some_and(|draft| draft.trim_end_matches('#') != DRAFT) {
        faults.add("/$schema", "not JSON Schema 2020-12", format!("write {DRAFT}"));
    }
    let types = root.get("type").and_then(Types::read);
    if types.is_some_and(|types| !types.names().contains("object")) {
        faults.add("/type", "an event is an object", "write \"type\": \"object\"");
    }
}
