//! The frames of a window, sorted into lanes; nothing is copied.

use std::{borrow::Cow, collections::BTreeMap, hash::Hasher};

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};
use tidegate_event::{
    BatchView, Code, EventTime, EventType, Offset, Partition, ReceivedAt, SchemaRef, TenantId,
    record::{DecodeError, generated_id},
};

use super::source::SourceFrame;

/// One tenant's events of one type, accepted or dead-lettered, on their way to one sink.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lane {
    /// Whose.
    pub tenant: TenantId,
    /// Of which type.
    pub event_type: EventType,
    /// True for its dead letters.
    #[serde(rename = "dead_letters")]
    pub dead: bool,
}

impl std::fmt::Display for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dead = if self.dead { " (dead letters)" } else { "" };
        write!(f, "{}/{}{dead}", self.tenant, self.event_type)
    }
}

/// When the rows of a lane were received, and how many each time: looks at each batch, not at each row.
pub fn receipts<'a>(
    heads: &'a [Head<'a>],
    rows: &'a [Row<'a>],
) -> impl Iterator<Item = (ReceivedAt, u64)> + 'a {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let mut step = 1;
        while rest.get(step).is_some_and(|row| row.head == first.head) {
            step *= 2;
        }
        let within = rest.get(..step).unwrap_or(rest);
        let count = within.partition_point(|row| row.head <= first.head).max(1);
        let received_at = first.received_at(heads);
        rest = rest.get(count..).unwrap_or_default();
        Some((received_at, count as u64))
    })
}

/// What the rows of one batch share.
#[derive(Clone, Debug)]
pub struct Head<'a> {
    /// The offset of its first event.
    pub base: Offset,
    /// When the edge had it.
    pub received_at: ReceivedAt,
    /// From which the ids of events without one are made.
    pub base_id: [u8; 16],
    /// By which protocol it came.
    pub protocol: &'a str,
    /// The schemas its events were judged by.
    pub schemas: Vec<SchemaRef>,
}

/// One event on its way to a sink, in place.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    head: u32,
    position: u32,
    index: u32,
    type_index: u16,
    /// `None`: accepted; else the code it is a dead letter for.
    pub dead: Option<Code>,
    /// When it happened.
    pub event_time: EventTime,
    /// The id the client gave, if any.
    pub client_id: Option<&'a str>,
    /// See `tidegate_event::record`.
    pub note: &'a str,
    /// The event.
    pub raw: &'a [u8],
}

impl<'a> Row<'a> {
    /// Its place in the log.
    #[must_use]
    pub fn offset(&self, heads: &[Head<'_>]) -> Offset {
        self.head(heads).map_or(Offset(0), |head| head.base.plus(self.position.into()))
    }

    /// The first offset of its batch.
    #[must_use]
    pub fn base(&self, heads: &[Head<'_>]) -> Offset {
        self.head(heads).map_or(Offset(0), |head| head.base)
    }

    /// When the edge had it.
    #[must_use]
    pub fn received_at(&self, heads: &[Head<'_>]) -> ReceivedAt {
        self.head(heads).map_or(ReceivedAt(0), |head| head.received_at)
    }

    /// The schema it was judged by.
    #[must_use]
    pub fn schema(&self, heads: &[Head<'_>]) -> SchemaRef {
        let schemas = self.head(heads).map(|head| head.schemas.as_slice()).unwrap_or_default();
        schemas.get(usize::from(self.type_index)).copied().unwrap_or_default()
    }

    /// By which protocol it came.
    #[must_use]
    pub fn protocol<'h>(&self, heads: &[Head<'h>]) -> &'h str {
        self.head(heads).map_or("", |head| head.protocol)
    }

    /// Its id: the client's, else the one made from the batch's.
    #[must_use]
    pub fn event_id(&self, heads: &[Head<'_>]) -> Cow<'a, str> {
        match (self.client_id, self.head(heads)) {
            (Some(id), _) => id.into(),
            (None, Some(head)) => generated_id(&head.base_id, self.index).into(),
            (None, None) => "".into(),
        }
    }

    /// A guess of the bytes it stands for.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.raw.len() + self.note.len() + self.client_id.map_or(0, str::len) + 26) as u64
    }

    fn head<'h, 'b>(&self, heads: &'h [Head<'b>]) -> Option<&'h Head<'b>> {
        heads.get(self.head as usize)
    }
}

/// The rows of one lane in one window: what a sink writes at a time.
#[derive(Clone, Copy, Debug)]
pub struct LaneRows<'a> {
    /// Which log: 8 characters.
    pub log_id: &'a str,
    /// Which partition of it.
    pub partition: Partition,
    /// Which lane.
    pub lane: &'a Lane,
    /// What the rows' batches are.
    pub heads: &'a [Head<'a>],
    /// The rows, in the order of their offsets; at least one.
    pub rows: &'a [Row<'a>],
}

/// A frame whose checksum holds and that is no batch all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFrame {
    /// Its first offset.
    pub base: Offset,
    /// How many offsets it takes.
    pub count: u32,
    /// What is wrong with it.
    pub error: DecodeError,
}

/// All rows of a window by lane.
#[derive(Debug, Default)]
pub struct Lanes<'a> {
    /// What the rows' batches are.
    pub heads: Vec<Head<'a>>,
    /// The rows of each lane.
    pub rows: BTreeMap<Lane, Vec<Row<'a>>>,
    /// What could not be read.
    pub bad: Vec<BadFrame>,
}

impl<'a> Lanes<'a> {
    /// Sorts the rows of `frames` into lanes, those for which `take` says true.
    pub fn sort(frames: &'a [SourceFrame], mut take: impl FnMut(&Lane, Offset) -> bool) -> Self {
        let mut lanes = Self::default();
        for frame in frames {
            if let Err(error) = lanes.add(frame, &mut take) {
                lanes.bad.push(BadFrame { base: frame.base, count: frame.count, error });
            }
        }
        lanes
    }

    fn add(
        &mut self,
        frame: &'a SourceFrame,
        take: &mut impl FnMut(&Lane, Offset) -> bool,
    ) -> Result<(), DecodeError> {
        let view = BatchView::parse(&frame.body)?;
        let tenant = TenantId::new(view.tenant).map_err(|_| DecodeError("no tenant's name"))?;
        // All or nothing: a batch that is bad leaves no rows behind.
        let names: Result<Vec<_>, _> = view.types.iter().map(|t| EventType::new(t.name)).collect();
        let names = names.map_err(|_| DecodeError("no event type's name"))?;
        let head = u32::try_from(self.heads.len()).map_err(|_| DecodeError("too many batches"))?;
        // One list per (type, dead or not) of this batch, so that the map is asked once for each.
        let mut lists: Vec<[Vec<Row<'a>>; 2]> = Vec::new();
        lists.resize_with(view.types.len(), Default::default);
        for record in view.records() {
            let r = record?;
            let type_index =
                u16::try_from(r.type_index).map_err(|_| DecodeError("too many types"))?;
            let row = Row {
                head,
                position: r.position,
                index: r.index,
                type_index,
                dead: r.dead,
                event_time: r.event_time,
                client_id: r.client_id,
                note: r.note,
                raw: r.raw,
            };
            let list = lists.get_mut(r.type_index).ok_or(DecodeError("unknown type"))?;
            let [live, dead] = list;
            if r.dead.is_some() { dead.push(row) } else { live.push(row) }
        }
        let schemas = view.types.iter().map(|t| t.schema).collect();
        self.heads.push(Head {
            base: frame.base,
            received_at: frame.received_at,
            base_id: view.base_id,
            protocol: view.protocol,
            schemas,
        });
        for (name, lists) in names.iter().zip(lists) {
            for (dead, mut rows) in [false, true].into_iter().zip(lists) {
                if rows.is_empty() {
                    continue;
                }
                let lane = Lane { tenant: tenant.clone(), event_type: name.clone(), dead };
                rows.retain(|row| take(&lane, frame.base.plus(row.position.into())));
                if !rows.is_empty() {
                    self.put(lane, rows);
                }
            }
        }
        Ok(())
    }

    /// A batch may hold one type under two schemas, interleaved: keep the order of the offsets.
    fn put(&mut self, lane: Lane, mut rows: Vec<Row<'a>>) {
        let all = self.rows.entry(lane).or_default();
        let key = |row: &Row<'_>| (row.head, row.position);
        let interleaved = match (all.last(), rows.first()) {
            (Some(last), Some(first)) => key(first) < key(last),
            _ => false,
        };
        all.append(&mut rows);
        if interleaved {
            all.sort_unstable_by_key(key);
        }
    }
}

/// A hash over what a window holds, as 32 hexadecimal digits: the same rows, the same hash. It finds
/// faults, not forgers.
#[derive(Debug, Default)]
pub struct RowsHash {
    hasher: SipHasher13,
    rows: u64,
}

impl RowsHash {
    /// Adds a whole frame.
    pub fn frame(&mut self, frame: &SourceFrame) {
        self.hasher.write_u64(frame.base.0);
        self.hasher.write_u32(frame.count);
        self.hasher.write_i64(frame.received_at.0);
        self.bytes(&frame.body);
        self.rows += u64::from(frame.count);
    }

    /// Adds one row.
    pub fn row(&mut self, row: &Row<'_>, heads: &[Head<'_>]) {
        self.row_called(row, heads, &row.event_id(heads));
    }

    /// Adds one row, whose id is known.
    pub fn row_called(&mut self, row: &Row<'_>, heads: &[Head<'_>], event_id: &str) {
        self.hasher.write_u64(row.offset(heads).0);
        self.hasher.write_i64(row.received_at(heads).0);
        self.hasher.write_i64(row.event_time.0);
        self.hasher.write(&row.schema(heads).hash);
        self.hasher.write_u8(row.dead.map_or(0, |code| code as u8));
        self.bytes(event_id.as_bytes());
        self.bytes(row.note.as_bytes());
        self.bytes(row.raw);
        self.rows += 1;
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.hasher.write_usize(bytes.len());
        self.hasher.write(bytes);
    }

    /// How many rows, and their hash.
    #[must_use]
    pub fn finish(self) -> (u64, String) {
        (self.rows, format!("{:032x}", self.hasher.finish128().as_u128()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use tidegate_event::{BatchEncoder, record::Record};

    #[test]
    fn a_bad_batch_leaves_no_rows_behind() {
        let at = ReceivedAt(5);
        let tenant = TenantId::new("acme").unwrap();
        let mut batch = BatchEncoder::new(tenant, "events", at, [7; 16], 0);
        for (index, name) in [(0, "good"), (1, "second")] {
            batch.push(&Record {
                index,
                event_type: &EventType::new(name).unwrap(),
                schema: SchemaRef::default(),
                client_id: None,
                event_time: at.as_event_time(),
                dead: None,
                pii_changed: false,
                note: "",
                raw: b"{}",
            });
        }
        let mut body = batch.finish().body.to_vec();
        let name = body.windows(6).position(|bytes| bytes == b"second").unwrap();
        body[name] = b'/';
        let frame = SourceFrame { base: Offset(3), count: 2, received_at: at, body: body.into() };
        let lanes = Lanes::sort(std::slice::from_ref(&frame), |_, _| true);
        assert_eq!((lanes.bad.len(), lanes.bad[0].count), (1, 2));
        assert!(lanes.rows.is_empty() && lanes.heads.is_empty(), "{:?}", lanes.rows);
    }
}
