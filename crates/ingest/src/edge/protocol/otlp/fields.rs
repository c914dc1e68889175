//! OTLP's messages as far as they become events: numbers and names as in opentelemetry-proto 1.x.
//!
//! Both forms are read by these tables, protobuf by the numbers and JSON by the names; the events' fields have
//! the names that the protocol's own files have.

/// A message: its fields, in the order in which an event has them.
pub(super) struct Message(pub &'static [Field]);

/// No message has more.
pub(super) const FIELDS_MAX: usize = 16;

/// A field.
pub(super) struct Field {
    pub number: u32,
    /// In JSON.
    pub json: &'static str,
    /// In the event.
    pub name: &'static str,
    pub kind: Kind,
    pub shown: Shown,
}

/// When a field stands in the event.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// Where it is not 0, false or empty: all that the protocol lets tell from what was not sent.
    Set,
    /// Where it was sent, as 0, too.
    Sent,
    /// Always.
    Always,
}

/// What a field holds.
pub(super) enum Kind {
    Text,
    Texts,
    /// An id: bytes, in JSON as hexadecimal digits.
    Id,
    /// An `AnyValue`.
    Any,
    /// `KeyValue`s.
    Attributes,
    One(&'static Message),
    Many(&'static Message),
    Bool,
    Enum,
    Uint32,
    Fixed32,
    Sint32,
    Fixed64,
    /// The same; the first of them that is not 0 is when the event happened.
    Time,
    Sfixed64,
    Double,
    Uint64s,
    Fixed64s,
    Doubles,
}

const fn field(number: u32, json: &'static str, name: &'static str, kind: Kind) -> Field {
    Field { number, json, name, kind, shown: Shown::Set }
}

const fn sent(number: u32, json: &'static str, name: &'static str, kind: Kind) -> Field {
    Field { number, json, name, kind, shown: Shown::Sent }
}

const fn always(number: u32, json: &'static str, name: &'static str, kind: Kind) -> Field {
    Field { number, json, name, kind, shown: Shown::Always }
}

const fn attributes(number: u32) -> Field {
    field(number, "attributes", "attributes", Kind::Attributes)
}

const fn dropped(number: u32) -> Field {
    field(number, "droppedAttributesCount", "dropped_attributes_count", Kind::Uint32)
}

const fn trace_id(number: u32) -> Field {
    field(number, "traceId", "trace_id", Kind::Id)
}

const fn span_id(number: u32) -> Field {
    field(number, "spanId", "span_id", Kind::Id)
}

const fn time(number: u32) -> Field {
    field(number, "timeUnixNano", "time_unix_nano", Kind::Time)
}

const fn start(number: u32) -> Field {
    field(number, "startTimeUnixNano", "start_time_unix_nano", Kind::Fixed64)
}

const fn text(number: u32, name: &'static str) -> Field {
    field(number, name, name, Kind::Text)
}

/// A message within the envelope, whose fields do not become an event's as they are.
const fn part(number: u32, json: &'static str) -> Field {
    field(number, json, "", Kind::Any)
}

/// One kind of telemetry.
pub(super) struct Signal {
    /// The event type.
    pub event_type: &'static str,
    /// What a partial success counts, in JSON.
    pub rejected: &'static str,
    /// In the request, in a resource's part of it, in a scope's part of that.
    pub resources: Field,
    pub scopes: Field,
    pub items: Field,
    /// An item's fields; of a metric those of the whole metric.
    pub item: Message,
}

pub(super) static RESOURCE_FIELD: Field = part(1, "resource");
pub(super) static SCOPE_FIELD: Field = part(1, "scope");
/// Of a resource's part and of a scope's.
pub(super) static SCHEMA_URL: Message = Message(&[field(3, "schemaUrl", "schema_url", Kind::Text)]);
pub(super) static RESOURCE_ATTRIBUTES: Field = part(1, "attributes");

pub(super) static RESOURCE: Message = Message(&[
    attributes(1),
    dropped(2),
    field(3, "entityRefs", "entity_refs", Kind::Many(&ENTITY)),
]);

static ENTITY: Message = Message(&[
    field(1, "schemaUrl", "schema_url", Kind::Text),
    text(2, "type"),
    field(3, "idKeys", "id_keys", Kind::Texts),
    field(4, "descriptionKeys", "description_keys", Kind::Texts),
]);

pub(super) static SCOPE: Message =
    Message(&[text(1, "name"), text(2, "version"), attributes(3), dropped(4)]);

pub(super) static LOGS: Signal = Signal {
    event_type: "otel.log",
    rejected: "rejectedLogRecords",
    resources: part(1, "resourceLogs"),
    scopes: part(2, "scopeLogs"),
    items: part(2, "logRecords"),
    item: Message(&[
        time(1),
        field(11, "observedTimeUnixNano", "observed_time_unix_nano", Kind::Time),
        field(2, "severityNumber", "severity_number", Kind::Enum),
        field(3, "severityText", "severity_text", Kind::Text),
        field(12, "eventName", "event_name", Kind::Text),
        field(5, "body", "body", Kind::Any),
        attributes(6),
        dropped(7),
        field(8, "flags", "flags", Kind::Fixed32),
        trace_id(9),
        span_id(10),
    ]),
};

pub(super) static SPANS: Signal = Signal {
    event_type: "otel.span",
    rejected: "rejectedSpans",
    resources: part(1, "resourceSpans"),
    scopes: part(2, "scopeSpans"),
    items: part(2, "spans"),
    item: Message(&[
        trace_id(1),
        span_id(2),
        field(3, "traceState", "trace_state", Kind::Text),
        field(4, "parentSpanId", "parent_span_id", Kind::Id),
        field(16, "flags", "flags", Kind::Fixed32),
        text(5, "name"),
        field(6, "kind", "kind", Kind::Enum),
        field(7, "startTimeUnixNano", "start_time_unix_nano", Kind::Time),
        field(8, "endTimeUnixNano", "end_time_unix_nano", Kind::Fixed64),
        attributes(9),
        dropped(10),
        field(11, "events", "events", Kind::Many(&EVENT)),
        field(12, "droppedEventsCount", "dropped_events_count", Kind::Uint32),
        field(13, "links", "links", Kind::Many(&LINK)),
        field(14, "droppedLinksCount", "dropped_links_count", Kind::Uint32),
        field(15, "status", "status", Kind::One(&STATUS)),
    ]),
};

static EVENT: Message = Message(&[time(1), text(2, "name"), attributes(3), dropped(4)]);

static LINK: Message = Message(&[
    trace_id(1),
    span_id(2),
    field(3, "traceState", "trace_state", Kind::Text),
    attributes(4),
    dropped(5),
    field(6, "flags", "flags", Kind::Fixed32),
]);

static STATUS: Message = Message(&[field(3, "code", "code", Kind::Enum), text(2, "message")]);

pub(super) static METRICS: Signal = Signal {
    event_type: "otel.metric",
    rejected: "rejectedDataPoints",
    resources: part(1, "resourceMetrics"),
    scopes: part(2, "scopeMetrics"),
    items: part(2, "metrics"),
    item: Message(&[
        text(1, "name"),
        text(2, "description"),
        text(3, "unit"),
        field(12, "metadata", "metadata", Kind::Attributes),
    ]),
};

/// One kind of metric.
pub(super) struct Metric {
    /// In an event's `type`.
    pub name: &'static str,
    /// Where a metric has it.
    pub data: Field,
    /// What it says for all of its points.
    pub head: Message,
    /// A point's fields.
    pub point: Message,
}

pub(super) static POINTS: Field = part(1, "dataPoints");

const fn temporality() -> Field {
    field(2, "aggregationTemporality", "aggregation_temporality", Kind::Enum)
}

const fn flags(number: u32) -> Field {
    field(number, "flags", "flags", Kind::Uint32)
}

const fn exemplars(number: u32) -> Field {
    field(number, "exemplars", "exemplars", Kind::Many(&EXEMPLAR))
}

const fn double(number: u32, name: &'static str) -> Field {
    sent(number, name, name, Kind::Double)
}

const fn count() -> Field {
    always(4, "count", "count", Kind::Fixed64)
}

static NUMBERS: [Field; 7] = [
    time(3),
    start(2),
    sent(4, "asDouble", "value", Kind::Double),
    sent(6, "asInt", "value", Kind::Sfixed64),
    attributes(7),
    exemplars(5),
    flags(8),
];

static EXEMPLAR: Message = Message(&[
    time(2),
    sent(3, "asDouble", "value", Kind::Double),
    sent(6, "asInt", "value", Kind::Sfixed64),
    field(7, "filteredAttributes", "filtered_attributes", Kind::Attributes),
    trace_id(5),
    span_id(4),
]);

static BUCKETS: Message = Message(&[
    always(1, "offset", "offset", Kind::Sint32),
    field(2, "bucketCounts", "bucket_counts", Kind::Uint64s),
]);

static QUANTILE: Message = Message(&[
    always(1, "quantile", "quantile", Kind::Double),
    always(2, "value", "value", Kind::Double),
]);

/// All kinds of metrics. Where a message has several, the last on the list counts.
pub(super) static KINDS: &[Metric] = &[
    Metric { name: "gauge", data: part(5, "gauge"), head: Message(&[]), point: Message(&NUMBERS) },
    Metric {
        name: "sum",
        data: part(7, "sum"),
        head: Message(&[temporality(), always(3, "isMonotonic", "is_monotonic", Kind::Bool)]),
        point: Message(&NUMBERS),
    },
    Metric {
        name: "histogram",
        data: part(9, "histogram"),
        head: Message(&[temporality()]),
        point: Message(&[
            time(3),
            start(2),
            count(),
            double(5, "sum"),
            double(11, "min"),
            double(12, "max"),
            field(6, "bucketCounts", "bucket_counts", Kind::Fixed64s),
            field(7, "explicitBounds", "explicit_bounds", Kind::Doubles),
            attributes(9),
            exemplars(8),
            flags(10),
        ]),
    },
    Metric {
        name: "exponential_histogram",
        data: part(10, "exponentialHistogram"),
        head: Message(&[temporality()]),
        point: Message(&[
            time(3),
            start(2),
            count(),
            double(5, "sum"),
            double(12, "min"),
            double(13, "max"),
            always(6, "scale", "scale", Kind::Sint32),
            always(7, "zeroCount", "zero_count", Kind::Fixed64),
            field(14, "zeroThreshold", "zero_threshold", Kind::Double),
            field(8, "positive", "positive", Kind::One(&BUCKETS)),
            field(9, "negative", "negative", Kind::One(&BUCKETS)),
            attributes(1),
            exemplars(11),
            flags(10),
        ]),
    },
    Metric {
        name: "summary",
        data: part(11, "summary"),
        head: Message(&[]),
        point: Message(&[
            time(3),
            start(2),
            count(),
            always(5, "sum", "sum", Kind::Double),
            field(6, "quantileValues", "quantile_values", Kind::Many(&QUANTILE)),
            attributes(7),
            flags(8),
        ]),
    },
];

impl Message {
    /// Where the field stands that `is` says yes to; looked for from `hint` on, since fields mostly come in order.
    #[inline]
    pub(super) fn find(&self, hint: usize, is: impl Fn(&Field) -> bool) -> Option<usize> {
        let behind = self.0.iter().enumerate().skip(hint);
        behind.chain(self.0.iter().enumerate().take(hint)).find(|(_, f)| is(f)).map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: &Message) {
        assert!(message.0.len() <= FIELDS_MAX);
        let mut numbers: Vec<_> = message.0.iter().map(|field| field.number).collect();
        let mut names: Vec<_> = message.0.iter().map(|field| field.json).collect();
        numbers.sort_unstable();
        names.sort_unstable();
        numbers.dedup();
        names.dedup();
        assert_eq!((numbers.len(), names.len()), (message.0.len(), message.0.len()));
        for field in message.0 {
            match field.kind {
                Kind::One(inner) | Kind::Many(inner) => check(inner),
                _ => {}
            }
        }
    }

    #[test]
    fn no_number_and_no_name_stands_twice_in_a_message() {
        for signal in [&LOGS, &SPANS, &METRICS] {
            check(&signal.item);
        }
        for kind in KINDS {
            check(&kind.head);
            check(&kind.point);
        }
        check(&RESOURCE);
        check(&SCOPE);
    }
}
