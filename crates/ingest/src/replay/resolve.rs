//! Which offsets a window is: its two addresses against what the log holds.

use std::collections::BTreeMap;

use tidegate_event::{Offset, Partition, ReceivedAt};

use super::{
    address::{Address, Side, When, list},
    marks::MarkName,
};

/// What one partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Which.
    pub partition: Partition,
    /// The first offset still there.
    pub earliest: Offset,
    /// The next offset to be given.
    pub latest: Offset,
}

/// What is read of one partition: never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Which.
    pub partition: Partition,
    /// The first offset.
    pub from: Offset,
    /// The first offset behind it.
    pub to: Offset,
}

/// Why there is no window: refused with what would be right, or not to be found out now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Sentences for the operator.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// The log or the control log cannot be read.
    #[error("{0}")]
    Failed(String),
}

impl WindowError {
    pub(super) fn refused(why: impl Into<String>) -> Self {
        Self::Refused(vec![why.into()])
    }
}

/// What is asked while addresses are resolved.
pub trait Places {
    /// The offsets of a mark.
    ///
    /// # Errors
    /// [`WindowError`]: nobody set it.
    fn mark(&self, name: &MarkName) -> Result<BTreeMap<Partition, Offset>, WindowError>;
    /// The first offset received at `time` or later; the end where there is none.
    ///
    /// # Errors
    /// [`WindowError::Failed`].
    fn at(&self, partition: Partition, side: Side, time: ReceivedAt)
    -> Result<Offset, WindowError>;
    /// Now.
    fn now(&self) -> ReceivedAt;
}

/// Both ends and the partition that was named beside them.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// Where it begins.
    pub from: &'a Address,
    /// Where it ends.
    pub to: &'a Address,
    /// `--partition`
    pub partition: Option<u32>,
}

type Offsets = BTreeMap<Partition, Offset>;

impl Window<'_> {
    /// The offsets of each partition, in order; partitions of which nothing is meant are left out.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn resolve(
        &self,
        extents: &[Extent],
        places: &dyn Places,
    ) -> Result<Vec<Bounds>, WindowError> {
        let meant = self.partitions(extents)?;
        let from = self.offsets(Side::From, &meant, places)?;
        let to = self.offsets(Side::To, &meant, places)?;
        let mut refused = Vec::new();
        refused.extend(self.gone(&meant, &from));
        refused.extend(self.not_there_yet(Side::From, &meant, &from));
        refused.extend(self.not_there_yet(Side::To, &meant, &to));
        if refused.is_empty() {
            refused.extend(self.out_of_order(&from, &to));
        }
        if !refused.is_empty() {
            return Err(WindowError::Refused(refused));
        }
        let each = from.iter().zip(to.values());
        let bounds = each.map(|((partition, from), to)| Bounds {
            partition: *partition,
            from: *from,
            to: *to,
        });
        Ok(bounds.filter(|bounds| bounds.from < bounds.to).collect())
    }

    /// Which partitions are meant, of those that there are.
    fn partitions(&self, extents: &[Extent]) -> Result<Vec<Extent>, WindowError> {
        let named =
            |partition: Partition| extents.iter().find(|e| e.partition == partition).copied();
        let known = || {
            let all: Vec<String> = extents.iter().map(|e| e.partition.to_string()).collect();
            all.join(", ")
        };
        let unknown = |option: &str, partition: Partition| {
            WindowError::refused(format!(
                "{option} names partition {partition}; the log has {}",
                known()
            ))
        };
        if let Some(partition) = self.partition.map(Partition) {
            return match named(partition) {
                Some(extent) => Ok(vec![extent]),
                None => Err(unknown("--partition", partition)),
            };
        }
        let ends = [(Side::From, self.from), (Side::To, self.to)];
        for (side, address) in ends {
            let Address::Places(listed) = address else { continue };
            if let Some(partition) = listed.keys().find(|partition| named(**partition).is_none()) {
                return Err(unknown(side.option(), *partition));
            }
        }
        let listed: Vec<&Offsets> = ends
            .iter()
            .filter_map(|(_, address)| match address {
                Address::Places(listed) => Some(listed),
                _ => None,
            })
            .collect();
        let wanted: Vec<Extent> = match listed.first() {
            Some(first) => first.keys().filter_map(|partition| named(*partition)).collect(),
            None => extents.to_vec(),
        };
        if let [one, other] = listed.as_slice()
            && !one.keys().eq(other.keys())
        {
            return Err(unlike(extents, one, other));
        }
        for (side, address) in ends {
            if let Address::Offset(offset) = address
                && 1 < extents.len()
            {
                return Err(bare(side, *offset, extents, listed.first().copied()));
            }
        }
        Ok(wanted)
    }

    /// One end of each of `meant`.
    fn offsets(
        &self,
        side: Side,
        meant: &[Extent],
        places: &dyn Places,
    ) -> Result<Offsets, WindowError> {
        let address = match side {
            Side::From => self.from,
            Side::To => self.to,
        };
        let each =
            |of: &dyn Fn(&Extent) -> Result<Offset, WindowError>| -> Result<Offsets, WindowError> {
                meant.iter().map(|extent| Ok((extent.partition, of(extent)?))).collect()
            };
        match address {
            Address::Places(listed) => Ok(listed.clone()),
            Address::Offset(offset) => each(&|_| Ok(*offset)),
            Address::Earliest => each(&|extent| Ok(extent.earliest)),
            Address::Latest => each(&|extent| Ok(extent.latest)),
            Address::Mark(name) => {
                let marked = places.mark(name)?;
                // A partition that is newer than the mark had nothing then.
                each(&|extent| Ok(marked.get(&extent.partition).copied().unwrap_or_default()))
            }
            Address::Time(When { at, text }) => {
                if side == Side::To && places.now() < *at {
                    let why = format!("--to-time {text} is still to come: write --to latest");
                    return Err(WindowError::refused(why));
                }
                each(&|extent| {
                    let found = places.at(extent.partition, side, *at)?;
                    Ok(found.clamp(extent.earliest, extent.latest))
                })
            }
        }
    }

    /// How `offsets` are written.
    fn spelled(&self, side: Side, offsets: &Offsets) -> String {
        let option = side.option();
        match (self.partition, offsets.first_key_value()) {
            (Some(partition), Some((_, offset))) => {
                format!("--partition {partition} {option} {offset}")
            }
            _ => format!("{option} {}", list(offsets)),
        }
    }

    /// What of the window retention has removed.
    fn gone(&self, meant: &[Extent], from: &Offsets) -> Option<String> {
        let is_time = matches!(self.from, Address::Time(_));
        let is_gone = |extent: &&Extent| {
            let from = from.get(&extent.partition).copied().unwrap_or_default();
            // What was received then may lie before what is left, where something is gone.
            let unclear = is_time && from == extent.earliest && 0 < extent.earliest.0;
            from < extent.earliest || unclear
        };
        let gone: Vec<&Extent> = meant.iter().filter(is_gone).collect();
        let first = gone.first()?;
        let right: Offsets = meant
            .iter()
            .map(|extent| {
                let from = from.get(&extent.partition).copied().unwrap_or_default();
                (extent.partition, from.max(extent.earliest))
            })
            .collect();
        let parts: Vec<String> = gone
            .iter()
            .map(|extent| format!("partition {} below {}", extent.partition, extent.earliest))
            .collect();
        let what = match self.from {
            Address::Time(_) => {
                "part of it may have been received at that time or later, and nobody can tell"
            }
            _ if from.get(&first.partition).is_none_or(|from| first.latest <= *from) => {
                "all that it held is gone"
            }
            _ => "that part of the window is gone",
        };
        Some(format!(
            "{}: retention has removed {}; {what}: write {}",
            self.from.spelled(Side::From),
            parts.join(", "),
            self.spelled(Side::From, &right)
        ))
    }

    /// Where an end lies behind the log's.
    fn not_there_yet(&self, side: Side, meant: &[Extent], offsets: &Offsets) -> Option<String> {
        let (address, name) = match side {
            Side::From => (self.from, "earliest"),
            Side::To => (self.to, "latest"),
        };
        let end = |extent: &Extent| offsets.get(&extent.partition).copied().unwrap_or_default();
        let past: Vec<&Extent> = meant.iter().filter(|e| e.latest < end(e)).collect();
        if past.is_empty() {
            return None;
        }
        let right: Offsets =
            meant.iter().map(|extent| (extent.partition, end(extent).min(extent.latest))).collect();
        let ends: Vec<String> = past
            .iter()
            .map(|extent| format!("partition {} ends at {}", extent.partition, extent.latest))
            .collect();
        let ends = ends.join(", ");
        let what = address.spelled(side);
        Some(match side {
            Side::From => format!(
                "{what} is past the end: {ends}; write an offset before that, or {} {name}",
                side.option()
            ),
            Side::To => format!(
                "{what} is past the end: {ends} (the offset that the next event gets): write {} or {} {name}",
                self.spelled(side, &right),
                side.option()
            ),
        })
    }

    /// Where it ends before it begins, or holds nothing.
    fn out_of_order(&self, from: &Offsets, to: &Offsets) -> Option<String> {
        let both = || from.iter().filter_map(|(p, from)| Some((*p, *from, *to.get(p)?)));
        let (begins, ends) = (self.from.spelled(Side::From), self.to.spelled(Side::To));
        if let Some((partition, first, end)) = both().find(|(_, from, to)| to < from) {
            let turned = both().all(|(_, from, to)| to <= from);
            let right = if turned {
                let (from, to) = (self.to.spelled(Side::From), self.from.spelled(Side::To));
                format!("write {from} {to}")
            } else {
                "write one that begins before it ends in every partition".to_owned()
            };
            return Some(format!(
                "{begins} {ends} ends before it begins: partition {partition} from {first} to {end}; {right}"
            ));
        }
        let is_written =
            |address: &Address| matches!(address, Address::Places(_) | Address::Offset(_));
        let written = is_written(self.from) && is_written(self.to);
        let empty: Vec<_> = both().filter(|(_, from, to)| from == to).collect();
        if (!written || empty.is_empty()) && empty.len() < from.len() {
            return None;
        }
        let (partition, at, _) = empty.first()?;
        let beyond: Offsets = to
            .iter()
            .map(|(p, to)| (*p, if from.get(p) == Some(to) { to.plus(1) } else { *to }))
            .collect();
        Some(if written {
            format!(
                "{begins} {ends} holds nothing of partition {partition}: it ends before offset {at}; with that event: {}",
                self.spelled(Side::To, &beyond)
            )
        } else {
            let each: Vec<String> =
                empty.iter().map(|(p, at, _)| format!("partition {p} at {at}")).collect();
            format!(
                "{begins} {ends} holds nothing: both are {}; `ingestctl offsets` shows what the log holds",
                each.join(", ")
            )
        })
    }
}

/// Two lists of unlike partitions.
fn unlike(extents: &[Extent], from: &Offsets, to: &Offsets) -> WindowError {
    let names = |places: &Offsets| {
        let each: Vec<String> = places.keys().map(ToString::to_string).collect();
        each.join(", ")
    };
    let meant = |e: &&Extent| from.contains_key(&e.partition) || to.contains_key(&e.partition);
    let filled = |places: &Offsets, missing: fn(&Extent) -> Offset| -> Offsets {
        let each = extents.iter().filter(meant);
        each.map(|e| (e.partition, places.get(&e.partition).copied().unwrap_or(missing(e))))
            .collect()
    };
    WindowError::refused(format!(
        "--from names partitions {}, --to names {}: name the same, such as --from {} --to {}",
        names(from),
        names(to),
        list(&filled(from, |extent| extent.earliest)),
        list(&filled(to, |extent| extent.latest))
    ))
}

/// An offset of nobody knows which partition.
fn bare(side: Side, offset: Offset, extents: &[Extent], listed: Option<&Offsets>) -> WindowError {
    let option = side.option();
    let each: Offsets = match listed {
        Some(listed) => listed.keys().map(|partition| (*partition, offset)).collect(),
        None => extents.iter().map(|extent| (extent.partition, offset)).collect(),
    };
    let one = each.keys().next().copied().unwrap_or_default();
    let several = format!(
        "{option} {offset} is an offset of which partition? The log has {}: write {option} {}",
        extents.len(),
        list(&each)
    );
    let both = listed.is_none();
    WindowError::refused(if both {
        format!("{several}, or --partition {one} {option} {offset} for one alone")
    } else {
        several
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::too_many_lines)]
mod tests;
