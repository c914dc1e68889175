//! What promotions are told of the running sinks.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_event::{Offset, Partition};

use super::{
    Sink, Sinks,
    desk::Shared,
    exchange::Marked,
    pressure::Running,
    promoted::Span,
    rows::{Lane, Lanes},
    source::{SourceEntry, SourceError},
};
use crate::replay::{
    Selection,
    promote::{Lacking, Live},
};

impl Sinks {
    fn running(&self, name: &str) -> Option<&Running> {
        self.sinks.iter().find(|running| running.config.name == name)
    }
}

impl Live for Sinks {
    fn names(&self) -> Vec<String> {
        self.sinks.iter().map(|running| running.config.name.clone()).collect()
    }

    fn sink(&self, name: &str) -> Option<Arc<dyn Sink>> {
        self.running(name).map(|running| Arc::clone(&running.sink))
    }

    fn passed(&self, sink: &str, window: &[Span], selection: &Selection) -> Result<(), String> {
        let running = self.running(sink).ok_or_else(|| format!("there is no sink {sink:?}"))?;
        let partitions = running.partitions();
        for span in window {
            let shared = partitions.iter().find(|shared| shared.log.partition() == span.partition);
            let Some(shared) = shared else {
                return Err(format!(
                    "sink {sink:?}: partition {} is another process' at the moment: promote where one \
                     process has all partitions",
                    span.partition
                ));
            };
            has_passed(shared, *span, selection).map_err(|why| format!("sink {sink:?}: {why}"))?;
        }
        Ok(())
    }

    fn gained(
        &self,
        sink: &str,
        offsets: &BTreeMap<Partition, Marked>,
    ) -> Result<BTreeMap<Lane, Lacking>, String> {
        let running = self.running(sink).ok_or_else(|| format!("there is no sink {sink:?}"))?;
        let aside = running.quarantine.places().map_err(|e| e.to_string())?;
        let mut found = BTreeMap::<Lane, Lacking>::new();
        for (partition, marked) in offsets {
            let partitions = running.partitions();
            let shared = partitions.iter().find(|shared| shared.log.partition() == *partition);
            let shared = shared.ok_or_else(|| format!("partition {partition} is not here"))?;
            let is_aside = |offset: Offset| {
                aside.contains(&(shared.log.log_id().to_owned(), partition.0, offset.0))
            };
            let told = read(shared, marked, &is_aside, &mut found).map_err(|e| e.to_string())?;
            if told < marked.count() {
                return Err(format!(
                    "partition {partition}: the shadow has {} events that live has not, and the log does \
                     not have all of them any more: what they were for the books cannot be told",
                    marked.count()
                ));
            }
        }
        for shared in running.partitions() {
            let counts = shared.board().state.counts.clone();
            for (lane, lacking) in &mut found {
                lacking.skipped_at_most += counts.get(lane).map_or(0, |counts| counts.skipped);
            }
        }
        Ok(found)
    }
}

fn has_passed(shared: &Shared, span: Span, selection: &Selection) -> Result<(), String> {
    let state = shared.board().state.clone();
    if state.cursor < span.to {
        return Err(format!(
            "partition {}: it has written up to offset {}, the window ends at {}: wait until it is there",
            span.partition, state.cursor, span.to
        ));
    }
    let is_behind = |held: &&super::state::Held| {
        held.cursor < span.to && selection.takes_names(&held.lane.tenant, &held.lane.event_type)
    };
    if let Some(held) = state.held.iter().find(is_behind) {
        return Err(format!(
            "partition {}: the lane {} waits alone at offset {}, the window ends at {}: mend what holds \
             it (`ingestctl status`) and wait",
            span.partition, held.lane, held.cursor, span.to
        ));
    }
    Ok(())
}

/// Reads what `marked` names; returns how many there were.
fn read(
    shared: &Shared,
    marked: &Marked,
    is_aside: &dyn Fn(Offset) -> bool,
    into: &mut BTreeMap<Lane, Lacking>,
) -> Result<u64, SourceError> {
    let Some((first, last)) = marked.ends() else { return Ok(0) };
    let mut told = 0;
    let mut hold = shared.log.hold("promotion");
    let (mut at, mut reader) = (first, shared.log.read_from(first)?);
    while at <= last {
        hold.advance(at);
        match reader.next()? {
            None => break,
            Some(SourceEntry::Quarantined(range) | SourceEntry::Empty(range)) => at = range.to(),
            Some(SourceEntry::Frame(frame)) => {
                at = frame.end();
                let frames = [frame];
                let lanes = Lanes::sort(&frames, |_, offset| marked.has(offset));
                for (lane, rows) in &lanes.rows {
                    let offsets = rows.iter().map(|row| row.offset(&lanes.heads));
                    let aside = offsets.filter(|offset| is_aside(*offset)).count() as u64;
                    let sums = into.entry(lane.clone()).or_default();
                    sums.aside += aside;
                    sums.others += rows.len() as u64 - aside;
                    told += rows.len() as u64;
                }
            }
        }
    }
    Ok(told)
}
