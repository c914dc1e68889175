//! ClickHouse: the servers sum up both sides, and only the offsets whose sums differ are read.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_event::{EventType, Offset, OffsetRange, Partition};

use super::{
    CompareError, Pair, Reach, Scope, Teller,
    fingerprint::short,
    merge::{Source, merge},
    tally::{Tally, Total},
};
use crate::sink::{
    BackRows, ClickHouseReader, SinkConfig, Stretch, Sum,
    back::{BackRow, Owner},
};

/// Offsets that are summed up together,
const STEP: u64 = 16_384;
/// and how many such sums are asked for at once.
const STEPS: u64 = 64;
/// Bytes of rows that are read at once, of each table.
const ROWS_BYTES_MAX: usize = 16 << 20;
/// A single row that is longer cannot be read.
const ROW_BYTES_MAX: usize = 256 << 20;

/// Holds the tables of a sink against its shadow's.
///
/// # Errors
/// [`CompareError`].
pub fn compare(
    pair: &Pair<'_>,
    scope: &Scope,
    reach: &Reach,
    teller: &mut Teller<'_>,
) -> Result<Total, CompareError> {
    let open = |config: &SinkConfig| ClickHouseReader::open(config, &reach.runtime);
    let (live, shadow) = (open(pair.live)?, open(pair.shadow)?);
    let offsets: u64 = scope.window.iter().map(|(_, range)| range.count()).sum();
    teller.expect(offsets.saturating_mul(scope.types().count() as u64));
    let mut total = Total::default();
    let mut done = 0;
    for event_type in scope.types() {
        let mut tally = Tally::default();
        for (partition, range) in &scope.window {
            let of =
                Part { live: &live, shadow: &shadow, scope, partition: *partition, event_type };
            tally.partition = *partition;
            if !scope.dead_only() {
                tally.counts_rows = false;
                of.count(*range, &mut tally)?;
            }
            for piece in pieces(*range, STEP * STEPS) {
                for differs in of.differing(piece)? {
                    let mut tell = |rows, tally: &Tally| teller.tell((rows, done), &total, tally);
                    of.merge(differs, &mut tally, &mut tell)?;
                }
                done += piece.count();
                teller.tell((0, done), &total, &tally)?;
            }
        }
        total.add(tally);
    }
    Ok(total)
}

/// What the tables of one side come to.
///
/// # Errors
/// [`CompareError`] where they cannot be asked.
pub fn fingerprint(
    config: &SinkConfig,
    scope: &Scope,
    reach: &Reach,
) -> Result<String, CompareError> {
    let reader = ClickHouseReader::open(config, &reach.runtime)?;
    let mut text = String::new();
    for event_type in scope.types() {
        for (partition, range) in &scope.window {
            for dead in [false, true] {
                let stretch = scope.stretch((*partition, *range), event_type, dead);
                let sums = reader.sums(&stretch, u64::MAX >> 1).map_err(CompareError::Server)?;
                text.push_str(&format!("{event_type} {partition} {dead} {sums:?}\n"));
            }
        }
    }
    Ok(short(&text))
}

impl Scope {
    /// The event types that may be there and are wanted.
    fn types(&self) -> impl Iterator<Item = &EventType> {
        let wanted = &self.selection.event_types;
        self.event_types.iter().filter(|name| wanted.is_empty() || wanted.contains(name))
    }

    fn stretch<'a>(
        &'a self,
        (partition, range): (Partition, OffsetRange),
        event_type: &'a EventType,
        dead: bool,
    ) -> Stretch<'a> {
        let tenants = &self.selection.tenants;
        Stretch { log_id: &self.log_id, partition, range, tenants, event_type, dead }
    }
}

/// A range in pieces that begin at multiples of `length`.
fn pieces(range: OffsetRange, length: u64) -> impl Iterator<Item = OffsetRange> {
    let (mut from, to) = (range.from().0, range.to().0);
    std::iter::from_fn(move || {
        let end = to.min((from / length + 1).saturating_mul(length));
        let piece = OffsetRange::new(Offset(from), Offset(end))?;
        from = end;
        Some(piece)
    })
}

/// The events of one type in one partition, and their dead letters, on both sides.
struct Part<'a> {
    live: &'a ClickHouseReader,
    shadow: &'a ClickHouseReader,
    scope: &'a Scope,
    partition: Partition,
    event_type: &'a EventType,
}

/// Live's events, live's dead letters, the shadow's events, the shadow's dead letters.
const TABLES: [(bool, bool); 4] = [(true, false), (true, true), (false, false), (false, true)];

impl Part<'_> {
    fn reader(&self, is_live: bool) -> &ClickHouseReader {
        if is_live { self.live } else { self.shadow }
    }

    fn stretch(&self, range: OffsetRange, dead: bool) -> Stretch<'_> {
        self.scope.stretch((self.partition, range), self.event_type, dead)
    }

    /// Counts the rows of both sides.
    fn count(&self, range: OffsetRange, tally: &mut Tally) -> Result<(), CompareError> {
        for (is_live, dead) in TABLES {
            let counts = self.reader(is_live).counts(&self.stretch(range, dead));
            for (tenant, hour, count) in counts.map_err(CompareError::Server)? {
                let owner = Owner { tenant, event_type: self.event_type.clone() };
                let rows = &mut tally.counts.entry((Arc::new(owner), hour)).or_default().rows;
                *match (is_live, dead) {
                    (true, false) => &mut rows.live_events,
                    (true, true) => &mut rows.live_dead_letters,
                    (false, false) => &mut rows.shadow_events,
                    (false, true) => &mut rows.shadow_dead_letters,
                } += count;
            }
        }
        Ok(())
    }

    /// Those steps of a range whose sums differ, or that hold an offset twice.
    fn differing(&self, range: OffsetRange) -> Result<Vec<OffsetRange>, CompareError> {
        let mut steps: BTreeMap<u64, [Sum; 4]> = BTreeMap::new();
        for (at, (is_live, dead)) in TABLES.into_iter().enumerate() {
            let sums = self.reader(is_live).sums(&self.stretch(range, dead), STEP);
            for (step, sum) in sums.map_err(CompareError::Server)? {
                if let Some(slot) = steps.entry(step).or_default().get_mut(at) {
                    *slot = sum;
                }
            }
        }
        let differs = |[live, live_dead, shadow, shadow_dead]: &[Sum; 4]| {
            if self.scope.dead_only() {
                // What else live has was not replayed.
                return 0 < live_dead.rows + shadow.rows + shadow_dead.rows;
            }
            let once = [live, live_dead].iter().all(|sum| sum.rows == sum.offsets);
            live != shadow || live_dead != shadow_dead || !once
        };
        let differing = steps.into_iter().filter(|(_, sums)| differs(sums));
        let within = |(step, _): (u64, _)| {
            let from = range.from().0.max(step * STEP);
            let to = range.to().0.min((step + 1) * STEP);
            OffsetRange::new(Offset(from), Offset(to))
        };
        Ok(differing.filter_map(within).collect())
    }

    /// Reads the rows of a range and holds them against each other: of half of it where they are too many.
    fn merge(
        &self,
        range: OffsetRange,
        tally: &mut Tally,
        tell: &mut dyn FnMut(u64, &Tally) -> Result<(), CompareError>,
    ) -> Result<(), CompareError> {
        let most = if range.count() == 1 { ROW_BYTES_MAX } else { ROWS_BYTES_MAX };
        let mut read = Vec::new();
        for (is_live, dead) in TABLES {
            let rows = self.reader(is_live).rows(&self.stretch(range, dead), most);
            match rows.map_err(CompareError::Server)? {
                Some(rows) => read.push(rows),
                None => break,
            }
        }
        if let Ok([live, live_dead, shadow, shadow_dead]) = <[BackRows; 4]>::try_from(read) {
            let (mut live, mut shadow) = (Both(live, live_dead), Both(shadow, shadow_dead));
            return merge((&mut live, &mut shadow), self.scope.dead_only(), tally, tell);
        }
        let middle = Offset(range.from().0 + range.count() / 2);
        match (OffsetRange::new(range.from(), middle), OffsetRange::new(middle, range.to())) {
            (Some(first), Some(second)) => {
                self.merge(first, tally, tell)?;
                self.merge(second, tally, tell)
            }
            _ => {
                let at = range.from();
                let why = format!("partition {}, offset {at}: its row is too long", self.partition);
                Err(CompareError::Server(why))
            }
        }
    }
}

/// Events and dead letters of one side as one stream.
struct Both(BackRows, BackRows);

impl Source for Both {
    fn next(&mut self, _used: Option<BackRow>) -> Result<Option<BackRow>, CompareError> {
        let dead_next = match (self.0.offset(), self.1.offset()) {
            (Some(event), Some(dead)) => dead < event,
            (event, _) => event.is_none(),
        };
        let rows = if dead_next { &mut self.1 } else { &mut self.0 };
        rows.take().map_err(CompareError::Server)
    }
}
