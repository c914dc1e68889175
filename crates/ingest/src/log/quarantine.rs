//! The damaged stretches of a partition: found once, kept in a small file, acknowledged by a person.
//!
//! `quarantine` is text: a line of version, a line per stretch with tabs between its fields, and the
//! CRC-32C of all before. Replaced whole. It is a record, not the truth: what is damaged is found
//! again by whoever reads it, so that a lost record costs who saw it first and who acknowledged it.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use tidegate_event::{Offset, OffsetRange, ReceivedAt};

use crate::storage::{self, Storage};

/// The file, in the partition's folder.
pub(super) const NAME: &str = "quarantine";
const FIRST_LINE: &str = "tidegate quarantine 1";
/// Stretches kept at most. A disk with more is beyond a list.
const STRETCHES_MAX: usize = 10_000;
/// Characters of a name or a reason at most.
const TEXT_MAX: usize = 500;

/// Who came upon the damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenBy {
    /// A start, which reads the last segment.
    Start,
    /// A sink, or anybody else who reads the log.
    Reader,
    /// `ingestctl log verify`.
    Verify,
}

impl SeenBy {
    const ALL: [Self; 3] = [Self::Start, Self::Reader, Self::Verify];

    /// As it is written and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Reader => "reader",
            Self::Verify => "verify",
        }
    }
}

/// That a person knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// When.
    pub at: ReceivedAt,
    /// Who, in their own words.
    pub by: String,
    /// Why it may rest.
    pub reason: String,
}

/// Offsets that are lost, and where their bytes lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Which offsets.
    pub range: OffsetRange,
    /// The first offset of the segment: its file's name.
    pub segment: Offset,
    /// Where in that file the damage begins.
    pub position: u64,
    /// Bytes from there to the next whole frame; 0 where the file has none of them.
    pub bytes: u64,
    /// When it was found.
    pub seen_at: ReceivedAt,
    /// By whom.
    pub seen_by: SeenBy,
    /// Until then it alarms.
    pub acknowledged: Option<Acknowledged>,
}

/// How much is damaged, and how much of that nobody has acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuarantineTotals {
    /// Stretches in all.
    pub stretches: u64,
    /// Events in all.
    pub events: u64,
    /// Stretches that alarm.
    pub open_stretches: u64,
    /// Events that alarm.
    pub open_events: u64,
    /// True where there are more than are kept.
    pub is_full: bool,
}

/// Why a stretch was not acknowledged. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum AcknowledgeError {
    /// No damage begins there.
    #[error("no damaged stretch begins at offset {0}")]
    Unknown(Offset),
    /// A name or a reason that does not fit on a line.
    #[error("{0} must be 1 to 500 characters on one line")]
    Text(&'static str),
    /// The record cannot be written: try again.
    #[error("the record cannot be written")]
    Storage(#[source] io::Error),
}

/// Damage as it is found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Damage {
    pub range: OffsetRange,
    pub segment: u64,
    pub position: u64,
    pub bytes: u64,
}

#[derive(Debug)]
pub(super) struct Quarantine {
    path: PathBuf,
    /// By first offset; none overlaps another.
    stretches: BTreeMap<u64, Stretch>,
    is_full: bool,
    unsaved: bool,
}

impl Quarantine {
    /// What was recorded last, and a sentence where that is damaged.
    pub fn load(storage: &dyn Storage, dir: &Path) -> io::Result<(Self, Option<String>)> {
        let path = dir.join(NAME);
        let (stretches, note) = match storage.read(&path) {
            Ok(bytes) => match decode(&bytes) {
                Some(stretches) => (stretches, None),
                None => {
                    let path = path.display();
                    let note = format!(
                        "{path} is damaged: what it said is found again, who acknowledged it is lost"
                    );
                    (Vec::new(), Some(note))
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => (Vec::new(), None),
            Err(e) => return Err(e),
        };
        let stretches = stretches.into_iter().map(|s| (s.range.from().0, s)).collect();
        Ok((Self { path, stretches, is_full: false, unsaved: note.is_some() }, note))
    }

    /// What of `damage` was not known before; that is kept from now on.
    pub fn note(&mut self, damage: Damage, by: SeenBy, now: ReceivedAt) -> Vec<OffsetRange> {
        let mut new = Vec::new();
        let (mut at, end) = (damage.range.from().0, damage.range.to().0);
        let before = self.stretches.range(..at).next_back().map(|(_, s)| s.range);
        let within = self.stretches.range(at..end).map(|(_, s)| s.range);
        for known in before.into_iter().chain(within) {
            new.extend(OffsetRange::new(Offset(at), Offset(end.min(known.from().0))));
            at = at.max(known.to().0);
        }
        new.extend(OffsetRange::new(Offset(at), Offset(end)));
        let room = STRETCHES_MAX.saturating_sub(self.stretches.len());
        if room < new.len() {
            if !self.is_full {
                tracing::error!(path = %self.path.display(), stretches = STRETCHES_MAX, "more of the log is damaged than is recorded: replace the disk");
            }
            self.is_full = true;
            new.truncate(room);
        }
        for range in &new {
            let stretch = Stretch {
                range: *range,
                segment: Offset(damage.segment),
                position: damage.position,
                bytes: damage.bytes,
                seen_at: now,
                seen_by: by,
                acknowledged: None,
            };
            self.stretches.insert(range.from().0, stretch);
        }
        self.unsaved |= !new.is_empty();
        new
    }

    /// Every stretch, in order.
    pub fn all(&self) -> Vec<Stretch> {
        self.stretches.values().cloned().collect()
    }

    /// Where the first stretch that ends behind `since` begins.
    pub fn first_behind(&self, since: Offset) -> Option<Offset> {
        let mut stretches = self.stretches.values().map(|stretch| stretch.range);
        stretches.find(|range| since < range.to()).map(|range| range.from())
    }

    pub fn totals(&self) -> QuarantineTotals {
        let mut totals = QuarantineTotals { is_full: self.is_full, ..QuarantineTotals::default() };
        for stretch in self.stretches.values() {
            totals.stretches += 1;
            totals.events += stretch.range.count();
            if stretch.acknowledged.is_none() {
                totals.open_stretches += 1;
                totals.open_events += stretch.range.count();
            }
        }
        totals
    }

    /// Lets those that begin at `wanted` rest, each only once; durable on return. Returns them.
    pub fn acknowledge(
        &mut self,
        storage: &dyn Storage,
        wanted: &[Offset],
        done: &Acknowledged,
    ) -> Result<Vec<Stretch>, AcknowledgeError> {
        let fits = |text: &str| {
            (1..=TEXT_MAX).contains(&text.chars().count()) && !text.contains(char::is_control)
        };
        if !fits(&done.by) {
            return Err(AcknowledgeError::Text("who acknowledges it"));
        }
        if !fits(&done.reason) {
            return Err(AcknowledgeError::Text("the reason"));
        }
        if let Some(unknown) = wanted.iter().find(|from| !self.stretches.contains_key(&from.0)) {
            return Err(AcknowledgeError::Unknown(*unknown));
        }
        let mut rested = Vec::new();
        for from in wanted {
            let stretch = self.stretches.get_mut(&from.0);
            if let Some(stretch) = stretch.filter(|s| s.acknowledged.is_none()) {
                stretch.acknowledged = Some(done.clone());
                rested.push(stretch.clone());
            }
        }
        if rested.is_empty() {
            return Ok(rested);
        }
        self.unsaved = true;
        if let Err(error) = self.save(storage) {
            for stretch in &rested {
                if let Some(kept) = self.stretches.get_mut(&stretch.range.from().0) {
                    kept.acknowledged = None;
                }
            }
            return Err(AcknowledgeError::Storage(error));
        }
        Ok(rested)
    }

    /// Forgets what retention has removed.
    pub fn forget_before(&mut self, earliest: u64) {
        let kept = self.stretches.len();
        self.stretches.retain(|_, stretch| earliest < stretch.range.to().0);
        if self.stretches.len() < kept {
            (self.unsaved, self.is_full) = (true, false);
        }
    }

    /// Replaces the file, if there is anything new.
    pub fn save(&mut self, storage: &dyn Storage) -> io::Result<()> {
        if self.unsaved {
            storage::replace(storage, &self.path, encode(self.stretches.values()).as_bytes())?;
            self.unsaved = false;
        }
        Ok(())
    }
}

fn encode<'a>(stretches: impl Iterator<Item = &'a Stretch>) -> String {
    let mut text = format!("{FIRST_LINE}\n");
    for stretch in stretches {
        let Stretch { range, segment, position, bytes, seen_at, seen_by, acknowledged } = stretch;
        let (from, to, by) = (range.from(), range.to(), seen_by.as_str());
        text += &format!("{from}\t{to}\t{segment}\t{position}\t{bytes}\t{}\t{by}", seen_at.0);
        if let Some(Acknowledged { at, by, reason }) = acknowledged {
            text += &format!("\t{}\t{by}\t{reason}", at.0);
        }
        text.push('\n');
    }
    let crc = crc32c::crc32c(text.as_bytes());
    text += &format!("{crc:08x}\n");
    text
}

fn decode(bytes: &[u8]) -> Option<Vec<Stretch>> {
    let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    let (body, _) = text.split_at(text.rfind('\n')? + 1);
    if format!("{body}{:08x}\n", crc32c::crc32c(body.as_bytes())).as_bytes() != bytes {
        return None;
    }
    let mut lines = body.lines();
    (lines.next()? == FIRST_LINE).then_some(())?;
    lines.map(decode_line).collect()
}

fn decode_line(line: &str) -> Option<Stretch> {
    let mut fields = line.split('\t');
    let mut number = || fields.next()?.parse::<u64>().ok();
    let range = OffsetRange::new(Offset(number()?), Offset(number()?))?;
    let (segment, position, bytes) = (Offset(number()?), number()?, number()?);
    let seen_at = ReceivedAt(fields.next()?.parse().ok()?);
    let by = fields.next()?;
    let seen_by = SeenBy::ALL.into_iter().find(|known| known.as_str() == by)?;
    let acknowledged = match fields.next() {
        None => None,
        Some(at) => {
            let (by, reason) = (fields.next()?.to_owned(), fields.next()?.to_owned());
            Some(Acknowledged { at: ReceivedAt(at.parse().ok()?), by, reason })
        }
    };
    let whole = fields.next().is_none();
    let stretch = Stretch { range, segment, position, bytes, seen_at, seen_by, acknowledged };
    whole.then_some(stretch)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::storage::Disk;
    use proptest::prelude::*;

    fn damage(from: u64, to: u64) -> Damage {
        let range = OffsetRange::new(Offset(from), Offset(to)).unwrap();
        Damage { range, segment: 0, position: 160 + from, bytes: to - from }
    }

    fn empty(dir: &Path) -> Quarantine {
        Quarantine::load(&Disk, dir).unwrap().0
    }

    proptest! {
        #[test]
        fn what_is_noted_is_the_union_and_each_offset_counts_once(
            found in proptest::collection::vec((0u64..60, 1u64..20), 0..30)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut quarantine = empty(dir.path());
            let (mut model, mut counted) = (std::collections::BTreeSet::new(), 0);
            for (from, len) in found {
                let new = quarantine.note(damage(from, from + len), SeenBy::Reader, ReceivedAt(1));
                counted += new.iter().map(OffsetRange::count).sum::<u64>();
                model.extend(from..from + len);
            }
            prop_assert_eq!(counted, model.len() as u64);
            prop_assert_eq!(quarantine.totals().events, model.len() as u64);
            let kept = quarantine.all();
            let offsets: Vec<_> =
                kept.iter().flat_map(|s| s.range.from().0..s.range.to().0).collect();
            prop_assert_eq!(offsets, model.into_iter().collect::<Vec<_>>());
            quarantine.save(&Disk).unwrap();
            prop_assert_eq!(empty(dir.path()).all(), kept);
        }

        #[test]
        fn a_record_reads_back_as_it_was_written_and_no_flip_passes(
            by in "[a-z äö@.]{1,20}", reason in "\\PC{1,40}", at: i64, bit: prop::sample::Index
        ) {
            let acknowledged = Some(Acknowledged { at: ReceivedAt(at), by, reason });
            let Damage { range, position, bytes, .. } = damage(5, 9);
            let stretch = Stretch { range, segment: Offset(3), position, bytes,
                seen_at: ReceivedAt(-at.abs().max(0)), seen_by: SeenBy::Verify, acknowledged };
            let text = encode([stretch.clone()].iter());
            prop_assert_eq!(decode(text.as_bytes()), Some(vec![stretch]));
            let mut flipped = text.into_bytes();
            let bit = bit.index(flipped.len() * 8);
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(&flipped), None);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(decode(&bytes), None);
        }
    }

    #[test]
    fn an_acknowledgement_is_checked_kept_once_and_undone_where_it_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut quarantine = empty(dir.path());
        quarantine.note(damage(5, 9), SeenBy::Start, ReceivedAt(1));
        let by = |by: &str, reason: &str| Acknowledged {
            at: ReceivedAt(2),
            by: by.to_owned(),
            reason: reason.to_owned(),
        };
        let refused = |done: &Acknowledged, quarantine: &mut Quarantine| {
            quarantine.acknowledge(&Disk, &[Offset(5)], done).unwrap_err().to_string()
        };
        assert!(refused(&by("", "why"), &mut quarantine).contains("who"));
        assert!(refused(&by("me", "two\nlines"), &mut quarantine).contains("one line"));
        let unknown = quarantine.acknowledge(&Disk, &[Offset(6)], &by("me", "why")).unwrap_err();
        assert!(matches!(unknown, AcknowledgeError::Unknown(Offset(6))));
        // A folder in the place of the new file: it cannot be written.
        let in_the_way = dir.path().join("quarantine.new");
        std::fs::create_dir(&in_the_way).unwrap();
        assert!(!refused(&by("me", "why"), &mut quarantine).is_empty());
        assert_eq!(quarantine.totals().open_events, 4);
        std::fs::remove_dir(&in_the_way).unwrap();
        let rested = quarantine.acknowledge(&Disk, &[Offset(5)], &by("me", "why")).unwrap();
        assert_eq!(rested[0].acknowledged, Some(by("me", "why")));
        let again = quarantine.acknowledge(&Disk, &[Offset(5)], &by("you", "too")).unwrap();
        assert!(again.is_empty(), "the first acknowledgement stays");
        let mut quarantine = empty(dir.path());
        assert_eq!(quarantine.totals().open_stretches, 0);
        assert_eq!(quarantine.all(), rested);
        quarantine.forget_before(8);
        assert_eq!(quarantine.totals().stretches, 1, "a part of it is still there");
        quarantine.forget_before(9);
        assert_eq!(quarantine.totals(), QuarantineTotals::default());
    }

    #[test]
    fn beyond_the_bound_nothing_more_is_kept_and_that_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut quarantine = empty(dir.path());
        for n in 0..STRETCHES_MAX as u64 + 5 {
            quarantine.note(damage(2 * n, 2 * n + 1), SeenBy::Reader, ReceivedAt(1));
        }
        let totals = quarantine.totals();
        assert_eq!((totals.stretches, totals.is_full), (STRETCHES_MAX as u64, true));
    }
}
