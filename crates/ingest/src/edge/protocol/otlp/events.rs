//! From a request's envelope to events: one for each log record, span and data point, in one buffer.
//!
//! What belongs to a resource or a scope is written once and copied to each of its events.

use std::ops::ControlFlow;

use tidegate_event::{Code, Reason};

use super::{
    fields::{
        Field, KINDS, METRICS, Message, Metric, POINTS, RESOURCE, RESOURCE_ATTRIBUTES,
        RESOURCE_FIELD, SCHEMA_URL, SCOPE, SCOPE_FIELD, Signal,
    },
    form::{self, Fault, Form},
};
use crate::{
    edge::{
        problem::Problem,
        protocol::{Arrived, DecodeFault, Found, Place},
    },
    normalize::{Item, ItemTime},
};

/// What all events of one body may have together. Each bears its resource and scope, so a small body could
/// become far larger than any batch.
const EVENTS_BYTES_MAX: usize = 128 << 20;

/// Attributes of a resource that are fields of the event, too.
const SERVICE: &[&str] =
    &["service.name", "service.namespace", "service.instance.id", "service.version"];

/// Why the walk ended before the body's end.
enum Ended {
    /// Whoever takes the events wants no more.
    Enough,
    Refused(DecodeFault),
}

impl From<Fault> for Ended {
    fn from(fault: Fault) -> Self {
        let detail = format!("{}; nothing of the body was kept", fault.what);
        Self::Refused(DecodeFault::new(Problem::BODY_NOT_JSON, detail))
    }
}

/// Hands over each event of the body.
pub(super) fn walk<'a, F: Form<'a>>(
    signal: &'static Signal,
    root: F::Node,
    each: &mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
) -> Result<(), DecodeFault> {
    let mut walk = Walk {
        signal,
        start: root.as_ref().as_ptr() as usize,
        each,
        event: String::new(),
        resource: String::new(),
        scope: String::new(),
        metric: String::new(),
        bytes: 0,
    };
    match walk.resources::<F>(root) {
        Ok(()) | Err(Ended::Enough) => Ok(()),
        Err(Ended::Refused(fault)) => Err(fault),
    }
}

struct Walk<'w> {
    signal: &'static Signal,
    /// Where the body begins, as a number.
    start: usize,
    each: &'w mut dyn FnMut(Arrived<'_>) -> ControlFlow<()>,
    /// The event that is being written.
    event: String,
    /// What the resource gives to each event, and the scope.
    resource: String,
    scope: String,
    /// What a metric gives to each of its points.
    metric: String,
    /// How much was written so far.
    bytes: usize,
}

impl Walk<'_> {
    fn resources<'a, F: Form<'a>>(&mut self, root: F::Node) -> Result<(), Ended> {
        for group in F::each(root, &self.signal.resources) {
            let group = group?;
            self.resource.clear();
            let resource = write_resource::<F>(group, &mut self.resource);
            for part in F::each(group, &self.signal.scopes) {
                let part = part?;
                self.scope.clear();
                let scope = write_part::<F>(part, &SCOPE_FIELD, &SCOPE, "scope", &mut self.scope);
                let fault = resource.as_ref().err().map(|fault| ("the resource", fault));
                let fault = fault.or(scope.as_ref().err().map(|fault| ("the scope", fault)));
                for item in F::each(part, &self.signal.items) {
                    let item = item?;
                    match fault {
                        Some((what, fault)) => self.reject::<F>(item, fault.reason(what))?,
                        None if self.signal.event_type == METRICS.event_type => {
                            self.metric::<F>(item)?;
                        }
                        None => {
                            self.event.clear();
                            self.event.push('{');
                            self.one::<F>(item, &self.signal.item)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// One event, of which `self.event` holds what comes first.
    fn one<'a, F: Form<'a>>(&mut self, node: F::Node, message: &Message) -> Result<(), Ended> {
        let time = match F::members(node, message, &mut self.event, 0) {
            Ok(time) => time,
            Err(fault) => return self.reject::<F>(node, fault.reason(self.name())),
        };
        for part in [&self.resource, &self.scope] {
            if !part.is_empty() {
                form::comma(&mut self.event);
                self.event.push_str(part);
            }
        }
        self.event.push('}');
        let event_time = match i64::try_from(time / 1000) {
            Ok(micros) if time != 0 => ItemTime::Micros(micros),
            _ => ItemTime::None,
        };
        self.bytes += self.event.len();
        if EVENTS_BYTES_MAX < self.bytes {
            let detail = format!(
                "the events of this body, each with its resource and scope, have more than \
                 {EVENTS_BYTES_MAX} bytes; send it in parts"
            );
            return Err(Ended::Refused(DecodeFault::new(Problem::DECODED_TOO_LARGE, detail)));
        }
        let item = Item {
            raw: self.event.as_bytes(),
            event_type: Some(self.signal.event_type),
            event_id: None,
            event_time,
            reserved: false,
            source_name: None,
            map_names: false,
        };
        let place = place(self.start, node.as_ref());
        ended((self.each)(Arrived { place, found: Found::Item(item) }))
    }

    /// The points of a metric.
    fn metric<'a, F: Form<'a>>(&mut self, node: F::Node) -> Result<(), Ended> {
        self.metric.clear();
        self.metric.push('{');
        let head = F::members(node, &self.signal.item, &mut self.metric, 0);
        let kind = head.and_then(|_| kind::<F>(node));
        let (kind, data) = match kind {
            Ok(Some(found)) => found,
            Ok(None) => {
                let message = "the metric has no data of a kind that is known here";
                let reason = Reason::new(Code::EnvelopeInvalid, "", message);
                return self.reject::<F>(node, reason);
            }
            Err(fault) => return self.reject::<F>(node, fault.reason(self.name())),
        };
        form::name("type", &mut self.metric);
        form::own_text(kind.name, &mut self.metric);
        if let Err(fault) = F::members(data, &kind.head, &mut self.metric, 0) {
            return self.reject::<F>(node, fault.reason(self.name()));
        }
        for point in F::each(data, &POINTS) {
            match point {
                Ok(point) => {
                    self.event.clear();
                    self.event.push_str(&self.metric);
                    self.one::<F>(point, &kind.point)?;
                }
                Err(fault) => self.reject::<F>(node, fault.reason(self.name()))?,
            }
        }
        Ok(())
    }

    fn reject<'a, F: Form<'a>>(&mut self, node: F::Node, reason: Reason) -> Result<(), Ended> {
        let place = place(self.start, node.as_ref());
        ended((self.each)(Arrived { place, found: Found::Rejected(reason) }))
    }

    fn name(&self) -> &'static str {
        match self.signal.event_type {
            "otel.log" => "the log record",
            "otel.span" => "the span",
            _ => "the data point",
        }
    }
}

fn ended(flow: ControlFlow<()>) -> Result<(), Ended> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Ended::Enough),
    }
}

fn place(start: usize, node: &[u8]) -> Place {
    Place::Byte((node.as_ptr() as usize).saturating_sub(start))
}

fn kind<'a, F: Form<'a>>(node: F::Node) -> Result<Option<(&'static Metric, F::Node)>, Fault> {
    let mut found = None;
    for kind in KINDS {
        if let Some(data) = F::one(node, &kind.data)? {
            found = Some((kind, data));
        }
    }
    Ok(found)
}

fn write_resource<'a, F: Form<'a>>(group: F::Node, out: &mut String) -> Result<(), Fault> {
    if let Some(resource) = F::one(group, &RESOURCE_FIELD)? {
        for attribute in F::each(resource, &RESOURCE_ATTRIBUTES) {
            let attribute = attribute?;
            let key = F::key(attribute)?;
            if let Some(known) = SERVICE.iter().find(|known| **known == key) {
                form::name(known, out);
                F::value(attribute, out, 0)?;
            }
        }
    }
    write_part::<F>(group, &RESOURCE_FIELD, &RESOURCE, "resource", out)
}

/// A resource or a scope, with its schema's address; nothing where it says nothing.
fn write_part<'a, F: Form<'a>>(
    group: F::Node,
    field: &'static Field,
    message: &Message,
    called: &str,
    out: &mut String,
) -> Result<(), Fault> {
    let stood = out.len();
    form::name(called, out);
    out.push('{');
    let from = out.len();
    if let Some(node) = F::one(group, field)? {
        F::members(node, message, out, 0)?;
    }
    F::members(group, &SCHEMA_URL, out, 0)?;
    if out.len() == from {
        out.truncate(stood);
    } else {
        out.push('}');
    }
    Ok(())
}
