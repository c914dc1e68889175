//! Personal data: what must not be kept is dropped, hashed or masked before anything is written.

use std::collections::HashSet;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Map, Value};
use sha2::Sha256;

use super::{fault::Faults, schema::FieldRule};
use crate::json::{Field, Kind, Object, ScanLimits, push_pointer, scan_object, split_array};

/// What is done with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pii {
    /// The field is taken out.
    Drop,
    /// Its value becomes the HMAC-SHA-256 under the tenant's secret, 64 hexadecimal digits.
    Hash,
    /// Its value becomes `"***"`.
    Mask,
}

/// What a masked value is replaced by.
const MASK: &str = "\"***\"";

/// Elements of one array that are replaced one by one; of more the array is replaced as a whole.
const ELEMENTS_MAX: usize = 100;

/// The rules of a value: its own, those of its members, that of its elements.
#[derive(Clone, Debug, Default)]
pub(super) struct PiiNode {
    rule: Option<Pii>,
    members: Vec<(Box<str>, PiiNode)>,
    items: Option<Box<PiiNode>>,
}

/// A stretch of the event and what stands there instead.
struct Edit {
    from: usize,
    to: usize,
    new: String,
}

/// What the rules made of an event.
pub(super) struct Changed {
    pub(super) raw: Vec<u8>,
    /// JSON pointers of the fields, each once, in their order.
    pub(super) pointers: Vec<String>,
}

impl Pii {
    pub(super) fn read(keywords: &Map<String, Value>) -> Option<Self> {
        match keywords.get("x-pii")?.as_str()? {
            "drop" => Some(Self::Drop),
            "hash" => Some(Self::Hash),
            "mask" => Some(Self::Mask),
            _ => None,
        }
    }
}

impl PiiNode {
    /// The rules of a whole schema; `None` where it has none. A rule where none is applied is a
    /// fault: it must not look as if it protected.
    pub(super) fn compile(root: &Map<String, Value>, faults: &mut Faults) -> Option<Self> {
        let mut pointers = Vec::new();
        let node = Self::read(root, String::new(), &mut pointers, faults);
        let mut found = Vec::new();
        occurrences(&Value::Object(root.clone()), String::new(), true, &mut found);
        for at in found.iter().filter(|at| !pointers.contains(*at)) {
            let what = "x-pii is not applied here";
            faults.add(at, what, "put it under properties (or items) all the way from the top");
        }
        for name in ["event_id", "event_type", "event_time"] {
            if pointers.contains(&format!("/properties/{name}")) {
                let what = format!("x-pii at {name}, which is kept beside the event");
                faults.add(format!("/properties/{name}"), what, "send it under another name");
            }
        }
        if node.rule.is_some() {
            faults.add("/x-pii", "x-pii at the whole event", "put it at fields");
        }
        (!node.is_empty()).then_some(node)
    }

    fn is_empty(&self) -> bool {
        self.rule.is_none() && self.members.is_empty() && self.items.is_none()
    }

    fn read(
        keywords: &Map<String, Value>,
        at: String,
        pointers: &mut Vec<String>,
        faults: &mut Faults,
    ) -> Self {
        let mut node = Self { rule: Pii::read(keywords), ..Self::default() };
        if keywords.contains_key("x-pii") {
            if node.rule.is_none() {
                faults.add(format!("{at}/x-pii"), "no such rule", "write drop, hash or mask");
            }
            pointers.push(at.clone());
        }
        let properties = keywords.get("properties").and_then(Value::as_object);
        for (name, schema) in properties.into_iter().flatten() {
            let Some(schema) = schema.as_object() else { continue };
            let mut below = format!("{at}/properties");
            push_pointer(&mut below, name);
            let member = Self::read(schema, below, pointers, faults);
            if !member.is_empty() {
                node.members.push((name.as_str().into(), member));
            }
        }
        if let Some(items) = keywords.get("items").and_then(Value::as_object) {
            let items = Self::read(items, format!("{at}/items"), pointers, faults);
            if items.rule == Some(Pii::Drop) {
                let what = "drop would move the elements behind it";
                faults.add(format!("{at}/items/x-pii"), what, "write hash or mask");
            }
            if items.items.is_some() {
                let what = "x-pii inside an array of arrays";
                faults.add(format!("{at}/items"), what, "put the rule at the outer array");
            }
            node.items = (!items.is_empty()).then(|| Box::new(items));
        }
        node
    }

    /// The same rules for the names a field with a unit may arrive under.
    pub(super) fn with_aliases(mut self, fields: &[FieldRule]) -> Self {
        for rule in fields {
            let own = self.members.iter().find(|(name, _)| *name == rule.name);
            let Some(node) = own.map(|(_, node)| node.clone()) else { continue };
            for (alias, _) in rule.unit.iter().flat_map(|unit| &unit.aliases) {
                self.members.push((alias.clone(), node.clone()));
            }
        }
        self
    }

    /// Applies the rules to a scanned event; `None` where nothing changes. Fields in `before` were
    /// changed when the event came in, and are left as they are.
    pub(super) fn apply(
        &self,
        text: &str,
        object: &Object,
        secret: &[u8],
        before: &[String],
    ) -> Option<Changed> {
        let mut work =
            Work { secret, before, edits: Vec::new(), pointers: Vec::new(), told: HashSet::new() };
        work.object(self, text, 0, object.fields(), "");
        if work.edits.is_empty() {
            return None;
        }
        let mut raw = Vec::with_capacity(text.len());
        let mut at = 0;
        for edit in &work.edits {
            raw.extend_from_slice(text.as_bytes().get(at..edit.from).unwrap_or_default());
            raw.extend_from_slice(edit.new.as_bytes());
            at = edit.to;
        }
        raw.extend_from_slice(text.as_bytes().get(at..).unwrap_or_default());
        Some(Changed { raw, pointers: work.pointers })
    }
}

struct Work<'a> {
    secret: &'a [u8],
    before: &'a [String],
    edits: Vec<Edit>,
    pointers: Vec<String>,
    told: HashSet<String>,
}

impl Work<'_> {
    /// The members of an object whose text begins at byte `base` of the event.
    fn object(&mut self, node: &PiiNode, text: &str, base: usize, fields: &[Field], at: &str) {
        let mut kept_before = false;
        let mut previous_end = None;
        for (i, field) in fields.iter().enumerate() {
            let (from, to) = field.extent();
            let name = field.name(text);
            let rules = node.members.iter().find(|(n, _)| **n == *name).map(|(_, rules)| rules);
            let mut pointer = at.to_owned();
            push_pointer(&mut pointer, &name);
            let rules = rules.filter(|_| !self.before.contains(&pointer));
            if rules.is_some_and(|rules| rules.rule == Some(Pii::Drop)) {
                // With the comma before it, or the one behind it where nothing kept stands before.
                let next = fields.get(i + 1).map(|next| next.extent().0);
                let (from, to) = match (kept_before, previous_end) {
                    (true, Some(end)) => (end, to),
                    _ => (from, next.unwrap_or(to)),
                };
                self.change(base + from, base + to, String::new(), pointer);
            } else {
                kept_before = true;
                if let Some(rules) = rules {
                    let raw = field.value(text);
                    self.value(rules, raw, base + to - raw.len(), field.kind, &pointer);
                }
            }
            previous_end = Some(to);
        }
    }

    fn value(&mut self, node: &PiiNode, raw: &str, base: usize, kind: Kind, at: &str) {
        match node.rule {
            // Null says nothing about anybody.
            Some(_) if kind == Kind::Null => {}
            Some(Pii::Hash) => {
                let new = hashed(self.secret, raw, kind);
                self.change(base, base + raw.len(), new, at.to_owned());
            }
            Some(Pii::Mask | Pii::Drop) => {
                self.change(base, base + raw.len(), MASK.to_owned(), at.to_owned());
            }
            None => self.inside(node, raw, base, kind, at),
        }
    }

    fn inside(&mut self, node: &PiiNode, raw: &str, base: usize, kind: Kind, at: &str) {
        // It was scanned as part of the event, so that it cannot fail here.
        let wide = ScanLimits { depth: usize::MAX, fields: usize::MAX };
        if kind == Kind::Object && !node.members.is_empty() {
            let mut object = Object::default();
            if scan_object(raw.as_bytes(), &wide, &mut object).is_ok() {
                self.object(node, raw, base, object.fields(), at);
            }
        }
        if let (Kind::Array, Some(items)) = (kind, &node.items) {
            self.elements(items, raw, base, at);
        }
    }

    fn elements(&mut self, items: &PiiNode, raw: &str, base: usize, at: &str) {
        let all = || split_array(raw.as_bytes()).flatten();
        // Each hash is longer than most values: many of them are replaced as one.
        if items.rule.is_some() && all().nth(ELEMENTS_MAX).is_some() {
            return self.value(items, raw, base, Kind::Array, at);
        }
        for (i, (position, raw)) in all().enumerate() {
            let Ok(raw) = std::str::from_utf8(raw) else { continue };
            let kind = match raw.as_bytes().first() {
                Some(b'{') => Kind::Object,
                Some(b'[') => Kind::Array,
                Some(b'"') => Kind::String { escaped: true },
                Some(b'n') => Kind::Null,
                _ => Kind::Number,
            };
            let pointer = format!("{at}/{i}");
            if !self.before.contains(&pointer) {
                self.value(items, raw, base + position, kind, &pointer);
            }
        }
    }

    fn change(&mut self, from: usize, to: usize, new: String, pointer: String) {
        self.edits.push(Edit { from, to, new });
        if self.told.insert(pointer.clone()) {
            self.pointers.push(pointer);
        }
    }
}

/// The keyed hash of a string's content, or of any other value's JSON text, as a JSON string.
fn hashed(secret: &[u8], raw: &str, kind: Kind) -> String {
    let inside = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    let decoded = match kind {
        Kind::String { .. } => crate::json::unescape(inside),
        _ => raw.into(),
    };
    // HMAC takes a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return MASK.to_owned() };
    mac.update(decoded.as_bytes());
    format!("\"{}\"", hex::encode(mac.finalize().into_bytes()))
}

/// Every place where `x-pii` stands as a keyword.
fn occurrences(value: &Value, at: String, schema: bool, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            if schema && members.contains_key("x-pii") {
                found.push(at.clone());
            }
            for (key, member) in members {
                // What stands in these is data, not schema.
                if schema && matches!(key.as_str(), "const" | "enum" | "default" | "examples") {
                    continue;
                }
                let names = matches!(
                    key.as_str(),
                    "properties" | "patternProperties" | "$defs" | "dependentSchemas"
                );
                let mut below = at.clone();
                push_pointer(&mut below, key);
                occurrences(member, below, !(schema && names), found);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                occurrences(item, format!("{at}/{i}"), schema, found);
            }
        }
        _ => {}
    }
}
