//! The verdict: every rule in its order, on one event, without a side effect.

use std::{borrow::Cow, sync::Arc};

use serde_json::{Map, Value};
use tidegate_event::{Code, EventTime, EventType, Reason, SchemaRef, TenantId};

use super::{
    Item, JudgeContext, Judged, Normalizer, UnknownTypes, Verdict,
    fields::{Arrival, Fault, Tools, UnitCache, reference_fault},
    guess::Guesses,
    reserved::{Reserved, event_id, event_time, ours},
    schema::Schema,
    set::SchemaSet,
    unreadable,
};
use crate::faults::{Bug, planted};
use crate::json::{Object, push_pointer, quote, scan_object, short};

/// The memory a verdict needs; made once and used for event after event.
#[derive(Debug, Default)]
pub struct Scratch {
    object: Object,
    inner: Object,
    seen: Vec<bool>,
    units: UnitCache,
    guesses: Guesses,
    met: Vec<Met>,
}

/// A type met before, with its schema.
#[derive(Debug)]
struct Met {
    set: u64,
    tenant: TenantId,
    event_type: EventType,
    schema: Option<Arc<Schema>>,
}

/// Types remembered at most; then it begins anew.
const TYPES_MET_MAX: usize = 16;

impl Met {
    fn of<'m>(
        met: &'m mut Vec<Self>,
        set: &SchemaSet,
        tenant: &TenantId,
        event_type: EventType,
    ) -> Option<&'m Self> {
        let fits = |l: &Self| l.event_type == event_type && l.set == set.id && l.tenant == *tenant;
        if let Some(at) = met.iter().position(fits) {
            return met.get(at);
        }
        if met.len() >= TYPES_MET_MAX {
            met.clear();
        }
        let known = set.get(tenant, event_type.as_str());
        let schema = known.map(|entry| Arc::clone(&entry.schema));
        met.push(Self { set: set.id, tenant: tenant.clone(), event_type, schema });
        met.last()
    }
}

/// The event's type and what is wrong with it.
struct Named<'s> {
    name: Option<EventType>,
    source: Option<Cow<'s, str>>,
    fault: Option<Reason>,
}

impl Normalizer {
    /// Gives one event its verdict. The same event, context and schemas give the same verdict,
    /// whatever `scratch` was used for before.
    pub fn judge<'s>(
        &self,
        context: &JudgeContext<'s>,
        item: &Item<'s>,
        scratch: &mut Scratch,
    ) -> Judged<'s> {
        self.judge_again(context, item, &[], scratch)
    }

    /// As [`Normalizer::judge`], for an event out of the log: `changed` are the fields (JSON
    /// pointers, `pii` in the record's note) that a personal-data rule changed when it came in;
    /// rules are neither applied to them nor are they checked again.
    pub fn judge_again<'s>(
        &self,
        context: &JudgeContext<'s>,
        item: &Item<'s>,
        changed: &[String],
        scratch: &mut Scratch,
    ) -> Judged<'s> {
        let set = self.set.load();
        let Scratch { object, inner, seen, units, guesses, met } = scratch;
        let text = match scan_object(item.raw, &self.limits, object) {
            Ok(text) => text,
            Err(error) => {
                let reason = Reason::new(error.code(), "", error.to_string());
                return unread(context, item, reason);
            }
        };
        let body = match item.reserved {
            true => Reserved::find(object.fields(), text),
            false => Reserved::default(),
        };
        let id = event_id(body.event_id, text, item.event_id);
        let time = event_time(body.event_time, text, item.event_time, context.received_at);
        let named = name(&body, text, item, met);
        let known = named.name.and_then(|name| Met::of(met, &set, &context.tenant.id, name));
        let event_type = known.map_or_else(EventType::unnamed, |known| known.event_type.clone());
        let schema = known.and_then(|known| known.schema.as_deref());
        let forbidden = known.is_some() && forbids(context, event_type.as_str());
        let (id, id_fault) = split(id);
        let (time, time_fault) = split(time);
        let unreadable = unreadable::reason(object, text);
        let mut dead = id_fault.or(time_fault).or(named.fault).or(unreadable);
        if dead.is_none() && !forbidden {
            let flaw = object
                .flaw()
                .filter(|flaw| flaw.code != Code::DuplicateKey || !planted(Bug::LastKeyWins));
            dead = flaw.map(flaw_reason).or_else(|| {
                let mut work = Work {
                    text,
                    object,
                    reserved: item.reserved,
                    changed,
                    seen,
                    tools: Tools { inner, units },
                    guesses,
                };
                match schema {
                    Some(schema) => work.by_schema(schema).err(),
                    None => unknown_type(&set, &event_type),
                }
            });
        }
        let verdict = verdict(context, &event_type, forbidden, dead);
        let secret = context.tenant.pii_secret.0.as_slice();
        let pii = schema.and_then(|schema| schema.pii.as_ref());
        let applied = pii.and_then(|pii| pii.apply(text, object, secret, changed));
        let (raw, mut pointers) = match applied {
            Some(applied) => (Cow::Owned(applied.raw), applied.pointers),
            None => (Cow::Borrowed(item.raw), Vec::new()),
        };
        // What was changed before stays told.
        pointers.extend(changed.iter().cloned());
        Judged {
            schema: schema.map_or_else(SchemaRef::default, Schema::reference),
            client_id: id.flatten(),
            event_time: time.map_or(context.received_at.as_event_time(), EventTime),
            pii_changed: !pointers.is_empty(),
            note: note(&verdict, &pointers, named.source.as_deref()),
            event_type,
            raw,
            verdict,
        }
    }
}

fn verdict(
    context: &JudgeContext<'_>,
    event_type: &EventType,
    forbidden: bool,
    dead: Option<Reason>,
) -> Verdict {
    if forbidden {
        let message = format!("this key may not send {event_type}");
        return Verdict::Rejected(Reason::new(Code::TypeForbidden, "", message));
    }
    match dead {
        Some(reason) if context.tenant.strict => Verdict::Rejected(reason),
        Some(reason) => Verdict::DeadLetter(reason),
        None => Verdict::Accepted,
    }
}

fn split<T>(result: Result<T, Reason>) -> (Option<T>, Option<Reason>) {
    match result {
        Ok(value) => (Some(value), None),
        Err(reason) => (None, Some(reason)),
    }
}

/// What cannot be read as an event.
fn unread<'s>(context: &JudgeContext<'s>, item: &Item<'s>, reason: Reason) -> Judged<'s> {
    let named = item.event_type.and_then(|name| match item.map_names {
        true => EventType::mapped(name).or_else(|| EventType::new(name).ok()),
        false => EventType::new(name).ok(),
    });
    Judged {
        event_type: named.unwrap_or_else(EventType::unnamed),
        schema: SchemaRef::default(),
        client_id: None,
        event_time: context.received_at.as_event_time(),
        pii_changed: false,
        note: Cow::Borrowed(""),
        raw: Cow::Borrowed(item.raw),
        verdict: Verdict::Rejected(reason),
    }
}

fn forbids(context: &JudgeContext<'_>, event_type: &str) -> bool {
    if planted(Bug::TypeOfKeyIgnored) {
        return false;
    }
    context.key_types.is_some_and(|allowed| allowed.iter().all(|name| name != event_type))
}

/// The event's type: the body's over the one beside it; foreign names are made to fit.
fn name<'s>(body: &Reserved<'_>, text: &'s str, item: &Item<'s>, met: &[Met]) -> Named<'s> {
    let (name, at) = match body.event_type {
        Some(field) => (field.string(text), "/event_type"),
        None => (item.event_type.map(Cow::Borrowed), ""),
    };
    let source = item.source_name.map(Cow::Borrowed);
    let refused = |code, message: String| Named {
        name: None,
        source: None,
        fault: Some(Reason::new(code, at, message)),
    };
    match name {
        None if body.event_type.is_some() => {
            refused(Code::TypeInvalid, "event_type must be a text".to_owned())
        }
        None => refused(
            Code::TypeMissing,
            "no event type; send it as event_type, by X-Event-Type or ?event_type=".to_owned(),
        ),
        Some(name) if let Some(known) = met.iter().find(|m| m.event_type.as_str() == name) => {
            Named { name: Some(known.event_type.clone()), source, fault: None }
        }
        Some(name) => match EventType::new(&name) {
            Ok(known) => Named { name: Some(known), source, fault: None },
            Err(_)
                if item.map_names
                    && let Some(mapped) = EventType::mapped(&name) =>
            {
                Named { name: Some(mapped), source: source.or(Some(name)), fault: None }
            }
            Err(error) => refused(Code::TypeInvalid, format!("{:?}: {error}", short(&name))),
        },
    }
}

fn flaw_reason(flaw: &crate::json::Flaw) -> Reason {
    let message = match flaw.code {
        Code::DuplicateKey => "the key stands twice in its object; send it once",
        Code::NulCharacter => "holds the character U+0000, which no sink can keep",
        _ => "holds half of a surrogate pair, which is no character",
    };
    Reason::new(flaw.code, flaw.pointer.as_str(), message)
}

fn unknown_type(set: &SchemaSet, event_type: &EventType) -> Option<Reason> {
    match set.unknown {
        UnknownTypes::Accept => None,
        UnknownTypes::Refuse => {
            let message =
                format!("there is no schema for {event_type}, and types without are refused");
            Some(Reason::new(Code::TypeUnknown, "", message))
        }
    }
}

/// One event against its schema.
struct Work<'w, 't> {
    text: &'t str,
    object: &'w Object,
    reserved: bool,
    changed: &'w [String],
    seen: &'w mut Vec<bool>,
    tools: Tools<'w>,
    guesses: &'w mut Guesses,
}

fn pointer_to(name: &str, below: &str) -> String {
    let mut pointer = String::new();
    push_pointer(&mut pointer, name);
    pointer.push_str(below);
    pointer
}

impl Work<'_, '_> {
    fn by_schema(&mut self, schema: &Schema) -> Result<(), Reason> {
        self.seen.clear();
        self.seen.resize(schema.fields.len(), false);
        self.guesses.begin(schema);
        let mut event = schema.whole.as_ref().map(|_| Map::new());
        for (place, field) in self.object.fields().iter().enumerate() {
            if self.reserved && ours(field, self.text).is_some() {
                continue;
            }
            let target = self.guesses.target(schema, place, field, self.text);
            let rule = target.and_then(|target| schema.fields.get(target.field));
            let arrival = match rule.zip(target) {
                Some((rule, target)) => {
                    if let Some(seen) = self.seen.get_mut(target.field)
                        && std::mem::replace(seen, true)
                    {
                        let message =
                            format!("this and another field both stand for {}", rule.name);
                        return Err(self.reason(field, &Fault::new(Code::FieldConflict, message)));
                    }
                    Some(Arrival { rule, alias: target.alias, field, text: self.text })
                }
                None => None,
            };
            if !arrival.as_ref().is_some_and(|a| a.rule.declared) && schema.refuses_unknown {
                let message = "the schema does not name this field, and refuses such fields";
                return Err(self.reason(field, &Fault::new(Code::FieldUnknown, message)));
            }
            if self.was_changed(field) {
                continue;
            }
            let (name, value) = match &arrival {
                Some(arrival) => {
                    let examined = arrival.examine(&mut self.tools);
                    examined.map_err(|fault| self.reason(field, &fault))?;
                    let value = event.as_ref().map(|_| arrival.value(&mut self.tools));
                    (Cow::Borrowed(&*arrival.rule.name), value)
                }
                None => {
                    let unknown = || {
                        serde_json::from_str(field.value(self.text)).map_err(|_| {
                            Fault::new(Code::NumberOutOfRange, "holds a number that is too large")
                        })
                    };
                    (field.name(self.text), event.as_ref().map(|_| unknown()))
                }
            };
            if let (Some(event), Some(value)) = (&mut event, value) {
                let value = value.map_err(|fault| self.reason(field, &fault))?;
                event.insert(name.into_owned(), value);
            }
        }
        self.required(schema)?;
        event.map_or(Ok(()), |event| self.by_reference(schema, event))
    }

    fn reason(&self, field: &crate::json::Field, fault: &Fault) -> Reason {
        let pointer = pointer_to(&field.name(self.text), &fault.below);
        Reason::new(fault.code, pointer, fault.message.as_ref())
    }

    /// True where a rule changed the field, or something in it, when the event came in.
    fn was_changed(&self, field: &crate::json::Field) -> bool {
        if self.changed.is_empty() {
            return false;
        }
        let pointer = pointer_to(&field.name(self.text), "");
        self.changed.iter().any(|changed| {
            changed
                .strip_prefix(&pointer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }

    fn required(&self, schema: &Schema) -> Result<(), Reason> {
        for at in &schema.required {
            if self.seen.get(*at) == Some(&true) {
                continue;
            }
            let Some(rule) = schema.fields.get(*at) else { continue };
            let pointer = pointer_to(&rule.name, "");
            // A rule may have taken it out when the event came in.
            if !self.changed.contains(&pointer) {
                return Err(Reason::new(Code::FieldMissing, pointer, "is required and missing"));
            }
        }
        Ok(())
    }

    fn by_reference(&self, schema: &Schema, event: Map<String, Value>) -> Result<(), Reason> {
        let Some(validator) = &schema.whole else { return Ok(()) };
        let event = Value::Object(event);
        for error in validator.iter_errors(&event) {
            let fault = reference_fault(&error);
            let about_changed = |changed: &String| {
                fault.below.starts_with(changed.as_str()) || changed.starts_with(&fault.below)
            };
            // Of an event whose fields were changed only what lies elsewhere can be told.
            if !self.changed.iter().any(about_changed) {
                return Err(Reason::new(fault.code, fault.below, fault.message));
            }
        }
        Ok(())
    }
}

/// The record's note: empty, or what is to be known besides.
fn note(verdict: &Verdict, pointers: &[String], source: Option<&str>) -> Cow<'static, str> {
    let reason = match verdict {
        Verdict::DeadLetter(reason) => Some(reason),
        Verdict::Accepted | Verdict::Rejected(_) => None,
    };
    if reason.is_none() && pointers.is_empty() && source.is_none() {
        return Cow::Borrowed("");
    }
    let mut note = String::from("{");
    let member = |name: &str, note: &mut String| {
        if note.len() > 1 {
            note.push(',');
        }
        quote(name, note);
        note.push(':');
    };
    if let Some(reason) = reason {
        member("field", &mut note);
        quote(&reason.field, &mut note);
        member("message", &mut note);
        quote(&reason.message, &mut note);
    }
    if !pointers.is_empty() {
        member("pii", &mut note);
        for (i, pointer) in pointers.iter().enumerate() {
            note.push(if i == 0 { '[' } else { ',' });
            quote(pointer, &mut note);
        }
        note.push(']');
    }
    if let Some(source) = source {
        member("source_name", &mut note);
        quote(source, &mut note);
    }
    note.push('}');
    Cow::Owned(note)
}
