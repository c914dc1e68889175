//! Rows as messages: the value is the row as JSON, the headers say where it comes from.

use std::{borrow::Cow, collections::BTreeMap, io};

use serde_json::value::RawValue;

use super::{
    super::{
        LaneRows,
        lake::{
            columns::Table,
            jsonl::Rows,
            table::{self, FilePlan},
        },
    },
    config::Key,
};

/// A message.
#[derive(Debug)]
pub struct Message {
    /// Its place in the lane's rows.
    pub row: usize,
    /// What decides on its partition.
    pub key: Option<Vec<u8>>,
    /// The row.
    pub value: Vec<u8>,
    /// Milliseconds since 1970 at which the event was received.
    pub timestamp: i64,
    /// Names and values.
    pub headers: [(&'static str, String); 8],
}

/// Turns a table into messages.
pub struct Messages<'t> {
    rows: &'t LaneRows<'t>,
    plan: &'t FilePlan,
    columns: Rows<'t>,
    keys: Vec<String>,
    /// The column that is the key, where it is a field of the schema.
    key: (Option<usize>, &'t Key),
    next: usize,
}

impl<'t> Messages<'t> {
    /// The messages of `made`, which was built from `plan`.
    pub fn of(rows: &'t LaneRows<'t>, plan: &'t FilePlan, made: &'t Table, key: &'t Key) -> Self {
        let name = |c: &super::super::lake::columns::Column| serde_json::Value::from(&*c.name);
        let keys = made.columns.iter().map(|column| format!("{}:", name(column))).collect();
        // The last column of a lane is `custom`, or what a dead letter has in its place.
        let fields = if rows.lane.dead { &[] } else { made.columns.as_slice() };
        let field = match key {
            Key::Field(field) => fields.iter().position(|column| column.name == *field),
            _ => None,
        };
        Self { rows, plan, columns: Rows::of(made), keys, key: (field, key), next: 0 }
    }

    /// The next message; `None` behind the last.
    ///
    /// # Errors
    /// For a table that does not fit its plan.
    pub fn message(&mut self) -> io::Result<Option<Message>> {
        if !self.columns.advance() {
            return Ok(None);
        }
        let missing =
            || io::Error::new(io::ErrorKind::InvalidData, "a plan shorter than its table");
        let index = *self.plan.rows.get(self.next).ok_or_else(missing)? as usize;
        self.next += 1;
        let row = self.rows.rows.get(index).ok_or_else(missing)?;
        let (heads, lane) = (self.rows.heads, self.rows.lane);
        let event_id = row.event_id(heads);
        let key = match self.key {
            (_, Key::None) => None,
            (_, Key::EventId) => Some(event_id.as_bytes().to_vec()),
            (_, Key::Tenant) => Some(lane.tenant.as_str().into()),
            (Some(column), Key::Field(_)) => self.text(column)?,
            (None, Key::Field(name)) if !lane.dead => self.custom(name)?,
            (None, Key::Field(_)) => None,
        };
        let verdict = row.dead.map_or("accepted", tidegate_event::Code::as_str);
        Ok(Some(Message {
            row: index,
            key,
            value: self.value()?,
            timestamp: row.received_at(heads).0.div_euclid(1_000),
            headers: [
                ("tenant", lane.tenant.to_string()),
                ("event_type", lane.event_type.to_string()),
                ("event_id", event_id.into_owned()),
                ("verdict", verdict.to_owned()),
                ("schema_version", row.schema(heads).version.to_string()),
                ("log_id", self.rows.log_id.to_owned()),
                ("log_partition", self.rows.partition.0.to_string()),
                ("log_offset", row.offset(heads).0.to_string()),
            ],
        }))
    }

    fn value(&self) -> io::Result<Vec<u8>> {
        // Names of tenants and types have nothing that JSON would escape.
        let lane = self.rows.lane;
        let mut out =
            format!("{{\"tenant\":\"{}\",\"event_type\":\"{}\"", lane.tenant, lane.event_type)
                .into_bytes();
        for (column, key) in self.keys.iter().enumerate() {
            out.push(b',');
            out.extend_from_slice(key.as_bytes());
            if !self.columns.value(column, &mut out)? {
                out.extend_from_slice(b"null");
            }
        }
        out.push(b'}');
        Ok(out)
    }

    /// A column's value as a key: a text without its quotes, all else as in JSON.
    fn text(&self, column: usize) -> io::Result<Option<Vec<u8>>> {
        let mut json = Vec::new();
        Ok(self.columns.value(column, &mut json)?.then(|| plain(json)))
    }

    /// The same of a field of `custom`.
    fn custom(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut json = Vec::new();
        let Some(column) = self.keys.len().checked_sub(1) else { return Ok(None) };
        if !self.columns.value(column, &mut json)? {
            return Ok(None);
        }
        let fields: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_slice(&json)?;
        let value = fields.get(name).map(|value| value.get()).filter(|value| *value != "null");
        Ok(value.map(|value| plain(value.into())))
    }
}

fn plain(json: Vec<u8>) -> Vec<u8> {
    if json.first() != Some(&b'"') {
        return json;
    }
    serde_json::from_slice::<String>(&json).map_or(json, String::into_bytes)
}

/// What a lane is cut into: rows of one schema.
pub fn plans(rows: &LaneRows<'_>) -> Vec<FilePlan> {
    table::plan_by(rows, |_| 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::{
        normalize::Schema,
        sink::{lake::Project, rows::Lanes, source::SourceFrame},
    };
    use tidegate_event::{
        BatchEncoder, Code, EventTime, EventType, Offset, Partition, ReceivedAt, SchemaRef,
        TenantId, record::Record,
    };

    const AT: i64 = 1_795_305_599_000_001;

    fn messages(raws: &[&str], dead: Option<Code>, key: &Key) -> Vec<Message> {
        let tenant = TenantId::new("acme").unwrap();
        let mut batch = BatchEncoder::new(tenant, "events", ReceivedAt(AT), [7; 16], 0);
        for (index, raw) in raws.iter().enumerate() {
            batch.push(&Record {
                index: u32::try_from(index).unwrap(),
                event_type: &EventType::new("View").unwrap(),
                schema: SchemaRef::default(),
                client_id: Some("mi\"ne"),
                event_time: EventTime(AT),
                dead,
                pii_changed: false,
                note: "",
                raw: raw.as_bytes(),
            });
        }
        let frame = SourceFrame {
            base: Offset(40),
            count: u32::try_from(raws.len()).unwrap(),
            received_at: ReceivedAt(AT),
            body: batch.finish().body.to_vec().into(),
        };
        let lanes = Lanes::sort(std::slice::from_ref(&frame), |_, _| true);
        let (lane, rows) = lanes.rows.first_key_value().unwrap();
        let heads = &lanes.heads;
        let rows = LaneRows { log_id: "abcd1234", partition: Partition(2), lane, heads, rows };
        let plans = plans(&rows);
        let schema = Schema::none();
        let schema: Option<&dyn Project> = if lane.dead { None } else { Some(&*schema) };
        let made = table::build(&rows, &plans[0], schema).unwrap();
        let mut messages = Messages::of(&rows, &plans[0], &made.table, key);
        std::iter::from_fn(|| messages.message().unwrap()).collect()
    }

    #[test]
    fn a_message_is_the_row_of_the_lake_with_its_digits() {
        let raw = r#"{"n":9007199254740993,"d":1.50}"#;
        let messages = messages(&[raw], None, &Key::EventId);
        assert_eq!(
            std::str::from_utf8(&messages[0].value).unwrap(),
            format!(
                "{{\"tenant\":\"acme\",\"event_type\":\"View\",\"event_id\":\"mi\\\"ne\",\
                 \"event_time\":\"2026-11-21T23:59:59.000001Z\",\
                 \"received_at\":\"2026-11-21T23:59:59.000001Z\",\"log_id\":\"abcd1234\",\
                 \"log_partition\":2,\"log_offset\":40,\"schema_version\":0,\"custom\":{raw}}}"
            )
        );
        assert_eq!(messages[0].timestamp, 1_795_305_599_000);
        assert_eq!(messages[0].headers[7], ("log_offset", "40".to_owned()));
        assert_eq!(messages[0].headers[3], ("verdict", "accepted".to_owned()));
    }

    #[test]
    fn a_key_is_what_the_configuration_says() {
        let key = |raw: &str, key: Key| messages(&[raw], None, &key)[0].key.clone();
        let field = |name: &str| Key::Field(name.to_owned());
        assert_eq!(key("{}", Key::None), None);
        assert_eq!(key("{}", Key::EventId).unwrap(), b"mi\"ne");
        assert_eq!(key("{}", Key::Tenant).unwrap(), b"acme");
        let raw = r#"{"user":"a\"b","n":1.50,"none":null}"#;
        assert_eq!(key(raw, field("user")).unwrap(), b"a\"b");
        assert_eq!(key(raw, field("n")).unwrap(), b"1.50");
        assert_eq!(key(raw, field("none")), None);
        assert_eq!(key(raw, field("other")), None);
        assert_eq!(key(raw, field("log_offset")).unwrap(), b"40");
        let dead = messages(&["{\"user\":1"], Some(Code::TypeMismatch), &field("user"));
        assert_eq!((dead[0].key.clone(), dead[0].headers[3].1.as_str()), (None, "type_mismatch"));
    }
}
