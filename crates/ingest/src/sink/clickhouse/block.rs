//! One insert: rows of one lane, one day, one schema; its token, and the question whether it is there.

use std::{fmt::Write as _, ops::Range};

use tidegate_event::ReceivedAt;

use super::{
    super::{
        lake::table::{self, FilePlan},
        rows::{LaneRows, Row, RowsHash},
    },
    ddl::{TableName, quote},
};

const DAY_MICROS: i64 = 86_400_000_000;

/// Days since 1970, UTC: what tables are partitioned by.
fn day(at: ReceivedAt) -> i64 {
    at.0.div_euclid(DAY_MICROS)
}

/// The rows of one insert.
#[derive(Clone, Debug)]
pub struct Block<'a> {
    /// The lane's rows in this window.
    pub rows: &'a LaneRows<'a>,
    /// Which of them.
    pub plan: FilePlan,
    /// The repair that these are inserted for, if they were lost.
    pub repair: Option<&'a str>,
}

/// What the server says about the rows of a block that it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub struct There {
    /// How many rows.
    pub rows: u64,
    /// How many different offsets.
    pub offsets: u64,
    /// The sum of the different offsets, modulo 2^64.
    pub sum: u64,
    /// The different offsets, combined by exclusive or.
    pub xor: u64,
}

/// How much of a block is in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing.
    None,
    /// All of it, once.
    All,
    /// Some of it.
    Part,
    /// Some of it more than once.
    Doubled,
}

impl<'a> Block<'a> {
    /// Splits a lane's rows into blocks, so that each goes into one partition of the table.
    pub fn of(rows: &'a LaneRows<'a>) -> Vec<Self> {
        table::plan_by(rows, day)
            .into_iter()
            .map(|plan| Self { rows, plan, repair: None })
            .collect()
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.plan.rows.len()
    }

    /// Some of its rows, by their places in it.
    pub fn part(&self, range: Range<usize>) -> Self {
        Self { plan: self.plan.part(range), ..self.clone() }
    }

    /// The same rows under a token of their own.
    pub fn repairing(self, repair: &'a str) -> Self {
        Self { repair: Some(repair), ..self }
    }

    /// Some of its rows, by their places in the lane's.
    pub fn only(mut self, rows: Vec<u32>) -> Self {
        self.plan.rows = rows;
        self
    }

    /// Those of its rows that were received at `since` or later.
    pub fn received_since(mut self, since: i64) -> Self {
        let rows = self.rows;
        let at = |index: &u32| rows.rows.get(*index as usize).map(|r| r.received_at(rows.heads).0);
        self.plan.rows.retain(|index| at(index).is_some_and(|at| since <= at));
        self
    }

    /// How many offsets lie between its first row and its last, both included.
    pub fn span(&self) -> usize {
        let (first, last) = self.first_and_last();
        usize::try_from(last - first + 1).unwrap_or(usize::MAX)
    }

    /// The rows that are not among `found` (in order), by their places in the lane's, and how many are
    /// there more than once.
    pub fn hold_against(&self, found: &[u64]) -> (Vec<u32>, u64) {
        let (mut missing, mut twice) = (Vec::new(), 0);
        for (index, row) in self.plan.rows.iter().zip(self.each()) {
            match times(found, row.offset(self.rows.heads).0) {
                0 => missing.push(*index),
                1 => {}
                _ => twice += 1,
            }
        }
        (missing, twice)
    }

    fn each(&self) -> impl Iterator<Item = &'a Row<'a>> {
        let rows = self.rows.rows;
        self.plan.rows.iter().filter_map(move |index| rows.get(*index as usize))
    }

    fn first_and_last(&self) -> (u64, u64) {
        let offset = |row: Option<&Row<'_>>| row.map_or(0, |row| row.offset(self.rows.heads).0);
        (offset(self.each().next()), offset(self.each().last()))
    }

    /// What this insert is, in words: log, partition, lane, offsets, how many rows, and a hash over
    /// them. The same token, the same rows.
    pub fn token(&self) -> String {
        let mut hash = RowsHash::default();
        self.each().for_each(|row| hash.row(row, self.rows.heads));
        let (count, hash) = hash.finish();
        let (first, last) = self.first_and_last();
        let lane = self.rows.lane;
        let dead = if lane.dead { "dead:" } else { "" };
        let repair = self.repair.map(|repair| format!(":repair-{repair}")).unwrap_or_default();
        format!(
            "tidegate:1:{}:{}:{dead}{}:{}:{first}-{last}:{count}:{hash}{repair}",
            self.rows.log_id, self.rows.partition.0, lane.tenant, lane.event_type
        )
    }

    /// What picks the lane's rows between its first and last from `table`: the key's first columns and
    /// the partition first, so that little is read.
    fn condition(&self) -> String {
        let bounds = |times: &mut dyn Iterator<Item = i64>| {
            times.fold((i64::MAX, i64::MIN), |(low, high), t| (low.min(t), high.max(t)))
        };
        let heads = self.rows.heads;
        let events = bounds(&mut self.each().map(|row| row.event_time.0));
        let received = bounds(&mut self.each().map(|row| row.received_at(heads).0));
        let (first, last) = self.first_and_last();
        let mut text = format!("tenant = {}", literal(self.rows.lane.tenant.as_str()));
        if self.rows.lane.dead {
            let _ =
                write!(text, " AND event_type = {}", literal(self.rows.lane.event_type.as_str()));
        }
        for (column, (low, high)) in [("event_time", events), ("received_at", received)] {
            let _ = write!(
                text,
                " AND {column} BETWEEN fromUnixTimestamp64Micro(toInt64({low}), 'UTC') AND \
                 fromUnixTimestamp64Micro(toInt64({high}), 'UTC')"
            );
        }
        let _ = write!(
            text,
            " AND log_id = {} AND log_partition = {} AND log_offset BETWEEN {first} AND {last}",
            literal(self.rows.log_id),
            self.rows.partition.0
        );
        text
    }

    /// Asks how much of the block is there, as far as sums can tell.
    pub fn question(&self, table: &TableName) -> String {
        format!(
            "SELECT count() AS rows, uniqExact(log_offset) AS offsets, \
             arraySum(groupUniqArray(toUInt64(log_offset))) AS sum, \
             arrayReduce('groupBitXor', groupUniqArray(toUInt64(log_offset))) AS xor \
             FROM {} WHERE {} FORMAT JSONEachRow",
            table.quoted(),
            self.condition()
        )
    }

    /// Asks for the offsets themselves: 8 bytes each.
    pub fn question_for_offsets(&self, table: &TableName, rows_max: usize) -> String {
        format!(
            "SELECT toUInt64(log_offset) FROM {} WHERE {} LIMIT {rows_max} FORMAT RowBinary",
            table.quoted(),
            self.condition()
        )
    }

    /// What the sums tell; `None` where the offsets themselves must be looked at.
    pub fn judge(&self, there: &There) -> Option<Presence> {
        let ours = self.each().map(|row| row.offset(self.rows.heads).0);
        let (sum, xor) = ours.fold((0u64, 0u64), |(s, x), o| (s.wrapping_add(o), x ^ o));
        let count = self.len() as u64;
        let all = There { rows: count, offsets: count, sum, xor };
        match *there {
            There { rows: 0, .. } => Some(Presence::None),
            there if there == all => Some(Presence::All),
            _ => None,
        }
    }

    /// What the offsets in the table tell; others' rows of this lane may be among them.
    pub fn judge_offsets(&self, mut found: Vec<u64>) -> Presence {
        found.sort_unstable();
        let (mut missing, mut present) = (0usize, 0usize);
        for row in self.each() {
            let offset = row.offset(self.rows.heads).0;
            match times(&found, offset) {
                0 => missing += 1,
                1 => present += 1,
                _ => return Presence::Doubled,
            }
        }
        match (missing, present) {
            (_, 0) => Presence::None,
            (0, _) => Presence::All,
            _ => Presence::Part,
        }
    }

    /// The statement of the insert, for these columns.
    pub fn insert<'n>(table: &TableName, columns: impl Iterator<Item = &'n str>) -> String {
        let columns: Vec<_> = columns.map(quote).collect();
        format!("INSERT INTO {} ({}) FORMAT Native", table.quoted(), columns.join(", "))
    }
}

/// How often `offset` is among `found`, which is in order.
fn times(found: &[u64], offset: u64) -> usize {
    let from = found.partition_point(|o| *o < offset);
    found.get(from..).unwrap_or_default().iter().take_while(|o| **o == offset).count()
}

/// A text as it stands in a statement.
pub fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for c in text.chars() {
        if matches!(c, '\'' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('\'');
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::sink::{Lane, rows::Lanes, source::SourceFrame};
    use std::collections::HashSet;
    use tidegate_event::{
        BatchEncoder, EventTime, EventType, Offset, Partition, SchemaRef, TenantId, record::Record,
    };

    /// 2026-11-21T23:59:59Z
    const EVENING: i64 = 1_795_305_599_000_000;

    fn frame(base: u64, at: i64, raws: &[&str]) -> SourceFrame {
        let mut batch =
            BatchEncoder::new(TenantId::new("acme").unwrap(), "events", ReceivedAt(at), [7; 16], 0);
        for (index, raw) in raws.iter().enumerate() {
            batch.push(&Record {
                index: u32::try_from(index).unwrap(),
                event_type: &EventType::new("view").unwrap(),
                schema: SchemaRef::default(),
                client_id: None,
                event_time: EventTime(at),
                dead: None,
                pii_changed: false,
                note: "",
                raw: raw.as_bytes(),
            });
        }
        SourceFrame {
            base: Offset(base),
            count: u32::try_from(raws.len()).unwrap(),
            received_at: ReceivedAt(at),
            body: batch.finish().body.to_vec().into(),
        }
    }

    fn with_blocks(frames: &[SourceFrame], check: impl FnOnce(Vec<Block<'_>>)) {
        let lanes = Lanes::sort(frames, |_, _| true);
        let (lane, rows): (&Lane, _) = lanes.rows.first_key_value().unwrap();
        let rows = LaneRows {
            log_id: "abcd1234",
            partition: Partition(2),
            lane,
            heads: &lanes.heads,
            rows,
        };
        check(Block::of(&rows));
    }

    #[test]
    fn a_block_never_spans_two_days() {
        let frames =
            [frame(3, EVENING, &["{}", "{}"]), frame(5, EVENING + 2_000_000, &["{}", "{}"])];
        with_blocks(&frames, |blocks| {
            let tokens: Vec<_> = blocks.iter().map(Block::token).collect();
            assert_eq!(tokens.len(), 2);
            assert!(tokens[0].starts_with("tidegate:1:abcd1234:2:acme:view:3-4:2:"), "{tokens:?}");
            assert!(tokens[1].starts_with("tidegate:1:abcd1234:2:acme:view:5-6:2:"), "{tokens:?}");
        });
    }

    #[test]
    fn other_content_other_token() {
        let mut seen = HashSet::new();
        for raws in [["{}", "{}"], ["{}", "{ }"], ["{ }", "{}"]] {
            with_blocks(&[frame(3, EVENING, &raws)], |blocks| {
                assert_eq!(blocks[0].token(), blocks[0].token());
                assert!(seen.insert(blocks[0].token()), "{seen:?}");
                assert!(seen.insert(blocks[0].part(0..1).token()) || raws[0] == "{}");
            });
        }
        with_blocks(&[frame(4, EVENING, &["{}", "{}"])], |blocks| {
            assert!(seen.insert(blocks[0].token()), "other offsets");
        });
        with_blocks(&[frame(3, EVENING + 1, &["{}", "{}"])], |blocks| {
            assert!(seen.insert(blocks[0].token()), "another time");
        });
    }

    #[test]
    fn what_is_there_is_told_from_what_is_not() {
        with_blocks(&[frame(10, EVENING, &["{}", "{}", "{}"])], |blocks| {
            let block = &blocks[0];
            let all = There { rows: 3, offsets: 3, sum: 33, xor: 10 ^ 11 ^ 12 };
            assert_eq!(block.judge(&There::default()), Some(Presence::None));
            assert_eq!(block.judge(&all), Some(Presence::All));
            assert_eq!(block.judge(&There { rows: 4, ..all }), None);
            assert_eq!(block.judge(&There { sum: 34, ..all }), None);
            for (found, expected) in [
                (vec![], Presence::None),
                (vec![9, 13], Presence::None),
                (vec![12, 11, 10, 13], Presence::All),
                (vec![12, 10], Presence::Part),
                (vec![12, 12, 10, 11], Presence::Doubled),
                (vec![12, 9, 9, 10, 11], Presence::All),
            ] {
                assert_eq!(block.judge_offsets(found.clone()), expected, "{found:?}");
            }
        });
    }

    #[test]
    fn texts_cannot_leave_their_quotes() {
        assert_eq!(literal("a'b\\c"), r"'a\'b\\c'");
    }
}
