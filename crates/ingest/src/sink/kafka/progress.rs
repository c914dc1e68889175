//! How far a lane is: a marker that is committed with its messages, in one transaction.

use serde::{Deserialize, Serialize};

use super::super::{
    Lane, LaneRows,
    rows::{Row, RowsHash},
};

/// What a marker says: these rows, and all of the lane before them, are committed or set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The offset of the first row.
    pub first: u64,
    /// The offset of the last row.
    pub last: u64,
    /// How many rows.
    pub rows: u64,
    /// A hash over them.
    pub hash: String,
}

/// What is known of rows that are to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Those from this place on are not committed.
    From(usize),
    /// The marker speaks of rows at these offsets that are others.
    Differs,
}

impl Marker {
    /// Of rows that are to be written; there is at least one.
    pub fn of(rows: &LaneRows<'_>) -> Self {
        let offset = |row: Option<&Row<'_>>| row.map_or(0, |row| row.offset(rows.heads).0);
        let mut hash = RowsHash::default();
        rows.rows.iter().for_each(|row| hash.row(row, rows.heads));
        let (count, hash) = hash.finish();
        Self { first: offset(rows.rows.first()), last: offset(rows.rows.last()), rows: count, hash }
    }

    /// Where `rows` stand, by the marker of their lane that was committed last. A lane is written in the order of
    /// its offsets, so what is at or below the last one is done, also where windows are cut otherwise now.
    pub fn stands(&self, rows: &LaneRows<'_>) -> Standing {
        let done = rows.rows.partition_point(|row| row.offset(rows.heads).0 <= self.last);
        if done == rows.rows.len() {
            let theirs = Self::of(rows);
            let same =
                (theirs.first, theirs.last, theirs.rows) == (self.first, self.last, self.rows);
            if same && theirs.hash != self.hash {
                return Standing::Differs;
            }
        }
        Standing::From(done)
    }

    /// As it stands in the topic.
    pub fn encode(&self) -> String {
        format!(
            "{{\"first\":{},\"last\":{},\"rows\":{},\"hash\":\"{}\"}}",
            self.first, self.last, self.rows, self.hash
        )
    }
}

/// The key of a lane's marker; what it begins with is the transactional id.
pub fn key(id: &str, lane: &Lane) -> String {
    let dead = if lane.dead { "dead" } else { "live" };
    format!("{id}/{dead}/{}/{}", lane.tenant, lane.event_type)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sink::{rows::Lanes, source::SourceFrame};
    use tidegate_event::{
        BatchEncoder, EventTime, EventType, Offset, Partition, ReceivedAt, SchemaRef, TenantId,
        record::Record,
    };

    fn with_rows(base: u64, raws: &[&str], check: impl FnOnce(&LaneRows<'_>)) {
        let tenant = TenantId::new("acme").unwrap();
        let mut batch = BatchEncoder::new(tenant, "events", ReceivedAt(5), [7; 16], 0);
        for (index, raw) in raws.iter().enumerate() {
            batch.push(&Record {
                index: u32::try_from(index).unwrap(),
                event_type: &EventType::new("view").unwrap(),
                schema: SchemaRef::default(),
                client_id: None,
                event_time: EventTime(5),
                dead: None,
                pii_changed: false,
                note: "",
                raw: raw.as_bytes(),
            });
        }
        let frame = SourceFrame {
            base: Offset(base),
            count: u32::try_from(raws.len()).unwrap(),
            received_at: ReceivedAt(5),
            body: batch.finish().body.to_vec().into(),
        };
        let lanes = Lanes::sort(std::slice::from_ref(&frame), |_, _| true);
        let (lane, rows) = lanes.rows.first_key_value().unwrap();
        let heads = &lanes.heads;
        check(&LaneRows { log_id: "abcd1234", partition: Partition(2), lane, heads, rows });
    }

    #[test]
    fn what_is_committed_is_not_sent_again_however_it_is_cut() {
        let mut marker = None;
        with_rows(10, &["{}", "{}", "{}"], |rows| marker = Some(Marker::of(rows)));
        let marker = marker.unwrap();
        assert_eq!((marker.first, marker.last, marker.rows), (10, 12, 3));
        for (base, raws, expected) in [
            (10, ["{}"; 3].as_slice(), Standing::From(3)),
            (8, &["{}"; 3], Standing::From(3)),
            (9, &["{}"; 6], Standing::From(4)),
            (13, &["{}"; 2], Standing::From(0)),
            (12, &["{}"; 2], Standing::From(1)),
            (10, &["{}", "{ }", "{}"], Standing::Differs),
        ] {
            with_rows(base, raws, |rows| assert_eq!(marker.stands(rows), expected, "{base}"));
        }
    }

    #[test]
    fn a_marker_reads_back() {
        let marker = Marker { first: 1, last: u64::MAX, rows: 3, hash: "ab".to_owned() };
        assert_eq!(serde_json::from_str::<Marker>(&marker.encode()).unwrap(), marker);
        let lane = Lane {
            tenant: TenantId::new("a").unwrap(),
            event_type: EventType::new("b").unwrap(),
            dead: true,
        };
        assert_eq!(key("log-sink-0", &lane), "log-sink-0/dead/a/b");
    }
}
