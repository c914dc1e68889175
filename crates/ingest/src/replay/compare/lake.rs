//! A lake's rows in order of offset, file by file, tenant by tenant and type by type.

use std::{cell::Cell, collections::BTreeMap, sync::Arc};

use tidegate_event::{OffsetRange, Partition};

use super::{
    CompareError, Pair, Reach, Scope, Teller,
    merge::{Source, merge},
    report::{Side, Unreadable},
    tally::{Tally, Total},
};
use crate::sink::{
    SinkConfig,
    back::{BackRow, Owner},
    lake::{FileRows, HeldFile, InventoryError, LakeReader},
};

/// Both sides' files of one tenant and type in one partition, in order of their first offsets.
#[derive(Default)]
struct Files {
    live: Vec<HeldFile>,
    shadow: Vec<HeldFile>,
}

/// Holds a lake against its shadow.
///
/// # Errors
/// [`CompareError`]; a file that is there and cannot be read is told and none.
pub fn compare(
    pair: &Pair<'_>,
    scope: &Scope,
    reach: &Reach,
    teller: &mut Teller<'_>,
) -> Result<Total, CompareError> {
    let open =
        |config: &SinkConfig| LakeReader::open(config, &reach.data_dir, reach.runtime.clone());
    let (live, shadow) = (open(pair.live)?, open(pair.shadow)?);
    let mut lanes: BTreeMap<Owner, BTreeMap<Partition, Files>> = BTreeMap::new();
    let mut sort = |held: Vec<HeldFile>, side: Side| {
        for file in held {
            teller.expect(file.bytes);
            let lane = &file.name.lane;
            let owner = Owner { tenant: lane.tenant.clone(), event_type: lane.event_type.clone() };
            let files = lanes.entry(owner).or_default().entry(file.name.partition).or_default();
            match side {
                Side::Live => files.live.push(file),
                Side::Shadow => files.shadow.push(file),
            }
        }
    };
    sort(live.held(&scope.asked())?, Side::Live);
    sort(shadow.held(&scope.asked())?, Side::Shadow);
    let (done, mut total) = (Cell::new(0), Total::default());
    for (owner, partitions) in lanes {
        let (owner, mut tally) = (Arc::new(owner), Tally::default());
        for (partition, files) in partitions {
            let Some(range) = scope.asked().range(partition) else { continue };
            let stream = |lake, files, side| Stream {
                lake,
                files,
                side,
                range,
                owner: &owner,
                open: Vec::new(),
                unreadable: Vec::new(),
                done: &done,
            };
            let mut live = stream(&live, files.live.into_iter().peekable(), Side::Live);
            let mut shadow = stream(&shadow, files.shadow.into_iter().peekable(), Side::Shadow);
            tally.partition = partition;
            let dead_only = scope.dead_only();
            let mut tell = |rows, tally: &Tally| teller.tell((rows, done.get()), &total, tally);
            merge((&mut live, &mut shadow), dead_only, &mut tally, &mut tell)?;
            tally.unreadable.append(&mut live.unreadable);
            tally.unreadable.append(&mut shadow.unreadable);
        }
        total.add(tally);
    }
    Ok(total)
}

/// The rows of several files as one stream.
struct Stream<'a> {
    lake: &'a LakeReader,
    files: std::iter::Peekable<std::vec::IntoIter<HeldFile>>,
    side: Side,
    range: OffsetRange,
    owner: &'a Arc<Owner>,
    /// Files that are being read, each with its next row.
    open: Vec<(FileRows, BackRow)>,
    unreadable: Vec<Unreadable>,
    /// Bytes of files that were read to their ends.
    done: &'a Cell<u64>,
}

impl Stream<'_> {
    /// Opens the files that may hold the next row.
    fn open_next(&mut self) -> Result<(), CompareError> {
        loop {
            let next = self.open.iter().map(|(_, row)| row.offset).min();
            let wanted = |file: &HeldFile| next.is_none_or(|next| file.name.first.0 <= next);
            let Some(file) = self.files.next_if(wanted) else { return Ok(()) };
            let rows = self.lake.rows_of(&file, self.range, self.owner);
            match rows {
                Ok(rows) => {
                    let row = BackRow::new(Arc::clone(self.owner));
                    self.open.push((rows, row));
                    self.advance(self.open.len() - 1)?;
                }
                Err(error) => self.give_up(&file, error)?,
            }
        }
    }

    /// Reads the next row of an open file; closes it where there is none.
    fn advance(&mut self, at: usize) -> Result<(), CompareError> {
        let Some((rows, row)) = self.open.get_mut(at) else { return Ok(()) };
        let read = rows.next(row);
        if matches!(read, Ok(true)) {
            return Ok(());
        }
        let (rows, _) = self.open.swap_remove(at);
        match read {
            Ok(_) => {
                self.done.set(self.done.get() + rows.file().bytes);
                Ok(())
            }
            Err(error) => self.give_up(rows.file(), error),
        }
    }

    /// A file that makes no sense holds no rows any more; that the store gives none is another matter.
    fn give_up(&mut self, file: &HeldFile, error: InventoryError) -> Result<(), CompareError> {
        let InventoryError::File { path, cause } = error else { return Err(error.into()) };
        self.done.set(self.done.get() + file.bytes);
        self.unreadable.push(Unreadable { side: self.side, path, cause });
        Ok(())
    }
}

impl Source for Stream<'_> {
    fn next(&mut self, used: Option<BackRow>) -> Result<Option<BackRow>, CompareError> {
        self.open_next()?;
        let next = self.open.iter().enumerate().min_by_key(|(_, (_, row))| (row.offset, row.dead));
        let Some((at, _)) = next else { return Ok(None) };
        let mut row = used.unwrap_or_else(|| BackRow::new(Arc::clone(self.owner)));
        if let Some((_, own)) = self.open.get_mut(at) {
            std::mem::swap(own, &mut row);
        }
        self.advance(at)?;
        Ok(Some(row))
    }
}
