//! Rows as documents: lines of a bulk, cut to a bound in bytes.

use std::{io, ops::Range};

use bytes::Bytes;

use super::super::{
    LaneRows,
    lake::{
        columns::Table,
        jsonl::Rows,
        table::{self, FilePlan},
    },
};

/// How many documents a bulk has at most: its answer has a bound too.
const DOCUMENTS_MAX: usize = 10_000;
/// Columns that every table begins with (`lake::table`), and where they are in a document.
const OWN: usize = 7;
const EVENT_ID: usize = 0;
const EVENT_TIME: usize = 1;
const RECEIVED_AT: usize = 2;
const PARTITION: usize = 4;
const OFFSET: usize = 5;
const VERSION: usize = 6;

/// Documents of one bulk.
#[derive(Debug)]
pub struct Chunk {
    /// All their lines.
    pub lines: Bytes,
    /// Each document, in order.
    pub documents: Vec<Document>,
}

/// One document of a bulk.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its place in the lane's rows.
    pub row: usize,
    /// Its id: the same event, the same id.
    pub id: String,
    lines: Range<usize>,
}

impl Chunk {
    /// The lines of some of the documents, by their places in the chunk.
    pub fn lines_of(&self, which: &[usize]) -> Bytes {
        if which.len() == self.documents.len() {
            return self.lines.clone();
        }
        let some = which.iter().filter_map(|place| self.documents.get(*place));
        let lines = some.filter_map(|document| self.lines.get(document.lines.clone()));
        lines.collect::<Vec<_>>().concat().into()
    }
}

/// Turns a table into chunks.
pub struct Documents<'t> {
    rows: &'t LaneRows<'t>,
    plan: &'t FilePlan,
    columns: Rows<'t>,
    keys: Vec<String>,
    next: usize,
    bytes_max: usize,
    /// The document that did not fit into the chunk before.
    over: Option<(usize, String, Vec<u8>)>,
}

impl<'t> Documents<'t> {
    /// The documents of `made`, which was built from `plan`.
    pub fn of(
        rows: &'t LaneRows<'t>,
        plan: &'t FilePlan,
        made: &'t Table,
        bytes_max: usize,
    ) -> Self {
        let keys = made.columns.iter().map(|column| key(&column.name)).collect();
        Self { rows, plan, columns: Rows::of(made), keys, next: 0, bytes_max, over: None }
    }

    /// The next chunk; `None` behind the last. One document that is too large goes alone.
    ///
    /// # Errors
    /// For a table that does not fit its plan.
    pub fn chunk(&mut self) -> io::Result<Option<Chunk>> {
        let (mut lines, mut documents) = (Vec::new(), Vec::new());
        while documents.len() < DOCUMENTS_MAX {
            let Some((row, id, mut text)) = self.document()? else { break };
            if !documents.is_empty() && self.bytes_max < lines.len() + text.len() {
                self.over = Some((row, id, text));
                break;
            }
            let start = lines.len();
            lines.append(&mut text);
            documents.push(Document { row, id, lines: start..lines.len() });
        }
        Ok((!documents.is_empty()).then(|| Chunk { lines: lines.into(), documents }))
    }

    fn document(&mut self) -> io::Result<Option<(usize, String, Vec<u8>)>> {
        if let Some(over) = self.over.take() {
            return Ok(Some(over));
        }
        if !self.columns.advance() {
            return Ok(None);
        }
        let missing =
            || io::Error::new(io::ErrorKind::InvalidData, "a plan shorter than its table");
        let row = *self.plan.rows.get(self.next).ok_or_else(missing)? as usize;
        self.next += 1;
        let offset = self.rows.rows.get(row).ok_or_else(missing)?.offset(self.rows.heads);
        let id = format!("{}-{}-{}", self.rows.log_id, self.rows.partition.0, offset.0);
        let mut out = format!("{{\"create\":{{\"_id\":\"{id}\"}}}}\n").into_bytes();
        self.write(&mut out)?;
        out.push(b'\n');
        Ok(Some((row, id, out)))
    }

    fn write(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let text = |out: &mut Vec<u8>, text: &str| out.extend_from_slice(text.as_bytes());
        let lane = self.rows.lane;
        text(out, "{\"@timestamp\":");
        self.columns.value(EVENT_TIME, out)?;
        text(out, ",\"event\":{\"id\":");
        self.columns.value(EVENT_ID, out)?;
        // Names of tenants and types, and a log's id, have nothing that JSON would escape.
        text(
            out,
            &format!(
                "}},\"tidegate\":{{\"tenant\":\"{}\",\"event_type\":\"{}\",\"log_id\":\"{}\",\"partition\":",
                lane.tenant, lane.event_type, self.rows.log_id
            ),
        );
        for (column, next) in [
            (PARTITION, ",\"offset\":"),
            (OFFSET, ",\"received_at\":"),
            (RECEIVED_AT, ",\"schema_version\":"),
            (VERSION, "}"),
        ] {
            self.columns.value(column, out)?;
            text(out, next);
        }
        let mut before = if lane.dead { ",\"dead_letter\":{" } else { "," };
        for (column, key) in self.keys.iter().enumerate().skip(OWN) {
            let length = out.len();
            text(out, before);
            text(out, key);
            if self.columns.value(column, out)? {
                before = ",";
            } else {
                out.truncate(length);
            }
        }
        text(out, if lane.dead { "}}" } else { "}" });
        Ok(())
    }
}

/// A column's key with its colon. One that is ours in a document, or Elasticsearch's own, gets `field_` in
/// front; so does one that looks like the result of that, so that no two columns have one key.
fn key(column: &str) -> String {
    let mut bare = column;
    while let Some(rest) = bare.strip_prefix("field_") {
        bare = rest;
    }
    let ours = bare.starts_with(['_', '@'])
        || ["event", "tidegate", "dead_letter"]
            .iter()
            .any(|own| bare.strip_prefix(own).is_some_and(|r| r.is_empty() || r.starts_with('.')));
    let name = if ours { format!("field_{column}") } else { column.to_owned() };
    format!("{}:", serde_json::Value::from(name))
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

    fn frame(raws: &[&str], dead: Option<Code>) -> SourceFrame {
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
        SourceFrame {
            base: Offset(40),
            count: u32::try_from(raws.len()).unwrap(),
            received_at: ReceivedAt(AT),
            body: batch.finish().body.to_vec().into(),
        }
    }

    fn chunks(frame: &SourceFrame, bytes_max: usize) -> Vec<Chunk> {
        let lanes = Lanes::sort(std::slice::from_ref(frame), |_, _| true);
        let (lane, rows) = lanes.rows.first_key_value().unwrap();
        let rows = LaneRows {
            log_id: "abcd1234",
            partition: Partition(2),
            lane,
            heads: &lanes.heads,
            rows,
        };
        let plans = plans(&rows);
        let schema = Schema::none();
        let schema: Option<&dyn Project> = if lane.dead { None } else { Some(&*schema) };
        let made = table::build(&rows, &plans[0], schema).unwrap();
        let mut documents = Documents::of(&rows, &plans[0], &made.table, bytes_max);
        std::iter::from_fn(|| documents.chunk().unwrap()).collect()
    }

    #[test]
    fn a_document_has_the_digits_as_they_were_sent() {
        let raw = r#"{"n":9007199254740993,"d":1.50,"big":123456789012345678901234567890}"#;
        let chunks = chunks(&frame(&[raw], None), 1 << 20);
        let text = String::from_utf8(chunks[0].lines.to_vec()).unwrap();
        assert_eq!(
            text,
            format!(
                "{{\"create\":{{\"_id\":\"abcd1234-2-40\"}}}}\n\
                 {{\"@timestamp\":\"2026-11-21T23:59:59.000001Z\",\"event\":{{\"id\":\"mi\\\"ne\"}},\
                 \"tidegate\":{{\"tenant\":\"acme\",\"event_type\":\"View\",\"log_id\":\"abcd1234\",\
                 \"partition\":2,\"offset\":40,\"received_at\":\"2026-11-21T23:59:59.000001Z\",\
                 \"schema_version\":0}},\"custom\":{raw}}}\n"
            )
        );
    }

    #[test]
    fn a_dead_letter_says_why_and_has_the_event_as_it_came() {
        let chunks = chunks(&frame(&["{\"a\":\"\n\"}"], Some(Code::TypeMismatch)), 1 << 20);
        let text = String::from_utf8(chunks[0].lines.to_vec()).unwrap();
        let end = r#","dead_letter":{"reason":"type_mismatch","raw":"{\"a\":\"\n\"}"}}"#;
        assert!(text.trim_end().ends_with(end), "{text}");
        let document: serde_json::Value =
            serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        assert_eq!(document["tidegate"]["offset"], 40);
    }

    #[test]
    fn chunks_keep_their_bound_and_lose_nothing() {
        let raws: Vec<_> = (0..100).map(|n| format!("{{\"n\":{n}}}")).collect();
        let raws: Vec<_> = raws.iter().map(String::as_str).collect();
        let frame = frame(&raws, None);
        let whole = chunks(&frame, 1 << 20);
        assert_eq!((whole.len(), whole[0].documents.len()), (1, 100));
        for bytes_max in [1, 300, 1_000, 5_000] {
            let parts = chunks(&frame, bytes_max);
            assert!(parts.iter().all(|p| p.lines.len() <= bytes_max || p.documents.len() == 1));
            let lines: Vec<_> = parts.iter().map(|part| part.lines.clone()).collect();
            assert_eq!(lines.concat(), whole[0].lines);
        }
        let some = whole[0].lines_of(&[3, 99]);
        let text = String::from_utf8(some.to_vec()).unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(text.contains("-43\"") && text.contains("-139\"") && text.contains("{\"n\":99}"));
    }

    #[test]
    fn names_that_are_taken_get_another_one() {
        for (column, expected) in [
            ("path", "\"path\":"),
            ("event", "\"field_event\":"),
            ("event.id", "\"field_event.id\":"),
            ("events", "\"events\":"),
            ("field_event", "\"field_field_event\":"),
            ("field_a", "\"field_a\":"),
            ("_id", "\"field__id\":"),
            ("@timestamp", "\"field_@timestamp\":"),
        ] {
            assert_eq!(key(column), expected);
        }
    }
}
