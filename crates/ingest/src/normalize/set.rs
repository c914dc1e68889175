//! All schemas of one generation: read from their folder, held against each other.

use std::{
    collections::HashMap,
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tidegate_event::{EventType, TenantId};

use super::{
    UnknownTypes,
    fault::{Faults, SchemaFault},
    schema::Schema,
};

/// Largest schema file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One schema with what it is for.
#[derive(Clone, Debug)]
pub struct SchemaEntry {
    /// The tenant it is for alone; `None`: for all that have no own.
    pub tenant: Option<TenantId>,
    /// The event type.
    pub event_type: EventType,
    /// The schema.
    pub schema: Arc<Schema>,
}

impl SchemaEntry {
    /// Its file, relative to the folder of schemas.
    #[must_use]
    pub fn file(&self) -> String {
        match &self.tenant {
            None => format!("{}.json", self.event_type),
            Some(tenant) => format!("{tenant}/{}.json", self.event_type),
        }
    }
}

/// All schemas of one generation.
#[derive(Debug)]
pub struct SchemaSet {
    pub(super) id: u64,
    pub(super) unknown: UnknownTypes,
    generation: u64,
    entries: Vec<SchemaEntry>,
    common: HashMap<EventType, usize>,
    own: HashMap<TenantId, HashMap<EventType, usize>>,
}

impl SchemaSet {
    pub(super) fn new(entries: Vec<SchemaEntry>, unknown: UnknownTypes, generation: u64) -> Self {
        // Unlike the generation it differs between any two sets of the process.
        static IDS: AtomicU64 = AtomicU64::new(1);
        let mut set = Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            unknown,
            generation,
            entries: Vec::new(),
            common: HashMap::new(),
            own: HashMap::new(),
        };
        for (at, entry) in entries.iter().enumerate() {
            let types = match &entry.tenant {
                None => &mut set.common,
                Some(tenant) => set.own.entry(tenant.clone()).or_default(),
            };
            types.insert(entry.event_type.clone(), at);
        }
        set.entries = entries;
        set
    }

    /// Counts loads, from 1.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// True where both hold the same schemas.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let what = |e: &SchemaEntry| (e.tenant.clone(), e.event_type.clone(), e.schema.reference());
        self.entries.iter().map(what).eq(other.entries.iter().map(what))
    }

    /// Every schema, by tenant (common ones first) and type.
    #[must_use]
    pub fn entries(&self) -> &[SchemaEntry] {
        &self.entries
    }

    /// The schema by which a tenant's events of this type are judged, if there is one.
    #[must_use]
    pub fn get(&self, tenant: &TenantId, event_type: &str) -> Option<&SchemaEntry> {
        let own = self.own.get(tenant).and_then(|types| types.get(event_type));
        own.or_else(|| self.common.get(event_type)).and_then(|at| self.entries.get(*at))
    }
}

/// Reads a folder of schemas and holds them against each other; nothing is stored.
///
/// # Errors
/// Every fault of every file.
pub fn check_dir(dir: &Path) -> Result<Vec<Arc<Schema>>, Vec<SchemaFault>> {
    read_dir(dir).map(|entries| entries.into_iter().map(|entry| entry.schema).collect())
}

/// As [`check_dir`], with what each schema is for.
///
/// # Errors
/// Every fault of every file.
pub fn read_dir(dir: &Path) -> Result<Vec<SchemaEntry>, Vec<SchemaFault>> {
    let mut faults = Vec::new();
    let mut entries = Vec::new();
    for (name, is_dir) in names(dir, "", &mut faults) {
        if !is_dir {
            read_file(dir, None, &name, &mut entries, &mut faults);
            continue;
        }
        match TenantId::new(&name) {
            Ok(tenant) => {
                for (file, is_dir) in names(&dir.join(&name), &name, &mut faults) {
                    if !is_dir {
                        read_file(dir, Some(&tenant), &file, &mut entries, &mut faults);
                    }
                }
            }
            Err(error) => {
                let mut fault = Faults::of(&name);
                fault.add("", error.to_string(), "name the folder as the tenant");
                faults.append(&mut fault.found);
            }
        }
    }
    entries
        .sort_by(|a: &SchemaEntry, b| (&a.tenant, &a.event_type).cmp(&(&b.tenant, &b.event_type)));
    faults.extend(check_entries(&entries));
    if faults.is_empty() { Ok(entries) } else { Err(faults) }
}

/// Holds the schemas of tenants against the common ones, which must agree on the fields they share.
#[must_use]
pub fn check_entries(entries: &[SchemaEntry]) -> Vec<SchemaFault> {
    let mut faults = Vec::new();
    let common: HashMap<_, _> =
        entries.iter().filter(|e| e.tenant.is_none()).map(|e| (&e.event_type, e)).collect();
    for entry in entries.iter().filter(|e| e.tenant.is_some()) {
        if let Some(base) = common.get(&entry.event_type) {
            let mend = format!("agree with {} or use another event type", base.file());
            faults.extend(differences(&base.schema, &entry.schema, &entry.file(), &mend));
        }
    }
    faults
}

/// The names in a folder that may be schemas, and whether each is a folder.
fn names(dir: &Path, shown: &str, faults: &mut Vec<SchemaFault>) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let list = || -> io::Result<Vec<(String, bool)>> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_dir = fs::metadata(entry.path())?.is_dir();
            if !name.starts_with('.') && (is_dir || name.ends_with(".json")) {
                found.push((name, is_dir));
            }
        }
        found.sort();
        Ok(found)
    };
    list().unwrap_or_else(|error| {
        let mut fault = Faults::of(if shown.is_empty() { "." } else { shown });
        fault.add("", format!("cannot be read: {error}"), "make it a readable folder");
        faults.append(&mut fault.found);
        Vec::new()
    })
}

fn read_file(
    dir: &Path,
    tenant: Option<&TenantId>,
    name: &str,
    entries: &mut Vec<SchemaEntry>,
    faults: &mut Vec<SchemaFault>,
) {
    let file = tenant.map_or_else(|| name.to_owned(), |tenant| format!("{tenant}/{name}"));
    let mut fault = Faults::of(&file);
    let path = dir.join(&file);
    let text = fs::metadata(&path).and_then(|about| {
        if !about.is_file() {
            return Err(io::Error::other("is no file"));
        }
        if about.len() > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
        }
        fs::read(&path)
    });
    match (EventType::new(name.trim_end_matches(".json")), text) {
        (Err(error), _) => fault.add("", error.to_string(), "name the file as the event type"),
        (_, Err(error)) => {
            fault.add("", format!("cannot be read: {error}"), "make it a readable file");
        }
        (Ok(event_type), Ok(text)) => match Schema::parse(&file, &text) {
            Ok(schema) => entries.push(SchemaEntry {
                tenant: tenant.cloned(),
                event_type,
                schema: Arc::new(schema),
            }),
            Err(mut found) => fault.found.append(&mut found),
        },
    }
    faults.append(&mut fault.found);
}

/// Where the fields that both schemas have differ in what readers see.
fn differences(old: &Schema, new: &Schema, file: &str, mend: &str) -> Vec<SchemaFault> {
    let mut faults = Faults::of(file);
    for rule in new.declared() {
        let Some(before) = old.declared().find(|other| other.name == rule.name) else { continue };
        let column = |schema: &Schema, at: Option<usize>| {
            at.and_then(|at| schema.columns().get(at)).cloned()
        };
        let (was, is) = (column(old, before.column), column(new, rule.column));
        let (Some(was), Some(is)) = (was, is) else { continue };
        let mut pointer = "/properties".to_owned();
        crate::json::push_pointer(&mut pointer, &rule.name);
        let mut differs = |what: &str, was: &str, is: &str| {
            if was != is {
                let what = format!("the {what} of {} was {was} and is {is} here", rule.name);
                faults.add(pointer.clone(), what, mend);
            }
        };
        differs("type", was.ty.as_str(), is.ty.as_str());
        differs(
            "unit",
            was.unit.as_deref().unwrap_or("none"),
            is.unit.as_deref().unwrap_or("none"),
        );
        differs("column", &was.name, &is.name);
    }
    // A column that is filled from another field than before.
    for column in new.columns() {
        let same = |other: &&super::ColumnSpec| other.name.eq_ignore_ascii_case(&column.name);
        let Some(was) = old.columns().iter().find(same) else { continue };
        if was.name != column.name || was.ty != column.ty || was.unit != column.unit {
            let what = format!("the column {} was another one ({})", column.name, was.ty.as_str());
            let known = faults.found.iter().any(|f| f.what.contains(&column.name));
            if !known {
                faults.add("/properties", what, mend);
            }
        }
    }
    faults.found
}

/// What makes a new version of a schema unfit for the table the old one filled: a field whose type,
/// unit or column changed. Added and removed fields are fine.
#[must_use]
pub fn check_evolution(old: &Schema, new: &Schema) -> Vec<SchemaFault> {
    let file = format!("version {}", new.version());
    differences(old, new, &file, "use a new event type, or give the field another name")
}

/// What a new version of a schema changes without harm, one sentence each: fields added and removed.
#[must_use]
pub fn evolution_notes(old: &Schema, new: &Schema) -> Vec<String> {
    let missing = |a: &Schema, b: &Schema| -> Vec<String> {
        let gone = a.columns().iter().filter(|c| b.columns().iter().all(|d| d.name != c.name));
        gone.map(|column| column.name.clone()).collect()
    };
    let added = missing(new, old).into_iter().map(|c| format!("{c} is added; null before"));
    let gone = missing(old, new).into_iter().map(|c| format!("{c} is removed; null from now on"));
    added.chain(gone).collect()
}

/// A schema of before: its file, as the folder names it, and itself.
pub type Before = (String, Arc<Schema>);

/// Holds schemas against those before: what makes them no successors, and what they change without harm.
#[must_use]
pub fn succession(entries: &[SchemaEntry], before: Vec<Before>) -> (Vec<SchemaFault>, Vec<String>) {
    let (mut faults, mut notes) = (Vec::new(), Vec::new());
    for (file, old) in before {
        let Some(entry) = entries.iter().find(|entry| entry.file() == file) else {
            notes.push(format!("{file}: removed; its events will have no schema"));
            continue;
        };
        let new = &entry.schema;
        if new.hash() == old.hash() {
            continue;
        }
        let versions = (old.version(), new.version());
        if versions.1 <= versions.0 {
            faults.push(SchemaFault {
                file: file.clone(),
                pointer: "/x-version".to_owned(),
                what: format!(
                    "other content than version {} under version {}",
                    versions.0, versions.1
                ),
                mend: format!("count x-version up, to {}", versions.0.saturating_add(1)),
            });
        }
        faults.extend(check_evolution(&old, new).into_iter().map(|mut fault| {
            fault.file.clone_from(&file);
            fault
        }));
        notes.extend(evolution_notes(&old, new).into_iter().map(|note| format!("{file}: {note}")));
    }
    (faults, notes)
}
