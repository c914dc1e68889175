//! Two sides in order of offset, held against each other. Pure: what they are read from is no concern here.

use std::sync::Arc;

use super::{
    CompareError,
    report::{Difference, FieldDifference},
    tally::{Found, Tally},
};
use crate::sink::back::BackRow;

/// One side's rows in order of offset; of one offset an event before a dead letter.
pub trait Source {
    /// The next one. It may take the memory of `used`, the one before.
    ///
    /// # Errors
    /// [`CompareError`] where it cannot be read.
    fn next(&mut self, used: Option<BackRow>) -> Result<Option<BackRow>, CompareError>;
}

/// Hears how many rows were read since it was told last, and what was found until now.
pub type Tell<'t> = &'t mut dyn FnMut(u64, &Tally) -> Result<(), CompareError>;

/// After how many rows it is told how far a merge is.
const STEP: u64 = 4_096;
/// Of a sample: fields that are shown,
const FIELDS_MAX: usize = 20;
/// and characters of a value.
const VALUE_CHARS: usize = 160;
/// Characters before the first that differs, where a value is cut.
const BEFORE: usize = 30;
/// What says why a dead letter is one.
const WHY: [&str; 3] = ["reason", "field", "message"];

/// Holds all rows of one partition against each other. With `dead_only` an event that live alone has is
/// none of those that were replayed.
///
/// # Errors
/// As the sources', and `tell`'s.
pub fn merge(
    (live, shadow): (&mut dyn Source, &mut dyn Source),
    dead_only: bool,
    tally: &mut Tally,
    tell: Tell<'_>,
) -> Result<(), CompareError> {
    let mut live = Head { row: live.next(None)?, source: live };
    let mut shadow = Head { row: shadow.next(None)?, source: shadow };
    let (mut pairs, mut read) = (Pairs::default(), 0);
    loop {
        let Some(offset) = [live.offset(), shadow.offset()].into_iter().flatten().min() else {
            return tell(read, tally);
        };
        let (in_live, in_shadow) = (live.at(offset), shadow.at(offset));
        let passed = dead_only && in_shadow.is_none() && in_live.is_some_and(|row| !row.dead);
        if !passed {
            judge(in_live, in_shadow, &mut pairs, tally);
        }
        read += live.pass(offset, |row| tally.doubled(row, true))?;
        read += shadow.pass(offset, |row| tally.doubled(row, false))?;
        if STEP <= read {
            tell(read, tally)?;
            read = 0;
        }
    }
}

/// One side: its next row.
struct Head<'s> {
    source: &'s mut dyn Source,
    row: Option<BackRow>,
}

impl Head<'_> {
    fn offset(&self) -> Option<u64> {
        self.row.as_ref().map(|row| row.offset)
    }

    /// The next row where it is of this offset.
    fn at(&self, offset: u64) -> Option<&BackRow> {
        self.row.as_ref().filter(|row| row.offset == offset)
    }

    /// Passes the rows of an offset, telling each but the first; how many they were.
    fn pass(&mut self, offset: u64, mut again: impl FnMut(&BackRow)) -> Result<u64, CompareError> {
        let mut passed = 0;
        while let Some(row) = self.at(offset) {
            if 0 < passed {
                again(row);
            }
            passed += 1;
            let used = self.row.take();
            self.row = self.source.next(used)?;
        }
        Ok(passed)
    }
}

/// Which column of one side is which of the other's.
#[derive(Default)]
struct Pairs {
    /// Live's columns and the shadow's.
    names: Option<[Arc<[String]>; 2]>,
    /// The places of each column.
    places: Vec<(Option<usize>, Option<usize>)>,
    /// Both sides have the same columns in the same order.
    alike: bool,
}

impl Pairs {
    fn of(&mut self, live: &BackRow, shadow: &BackRow) -> &Self {
        let (a, b) = (live.names(), shadow.names());
        let known = self.names.as_ref();
        if known.is_some_and(|[x, y]| Arc::ptr_eq(a, x) && Arc::ptr_eq(b, y)) {
            return self;
        }
        let own = |names: &[String], name: &String| names.iter().position(|n| n == name);
        self.places =
            a.iter().enumerate().map(|(place, name)| (Some(place), own(b, name))).collect();
        let alone = b.iter().enumerate().filter(|(_, name)| !a.contains(name));
        self.places.extend(alone.map(|(place, _)| (None, Some(place))));
        self.alike = a == b;
        self.names = Some([Arc::clone(a), Arc::clone(b)]);
        self
    }

    /// The columns whose values differ, with both.
    fn differences<'r>(
        &'r self,
        live: &'r BackRow,
        shadow: &'r BackRow,
    ) -> impl Iterator<Item = (&'r str, Option<&'r [u8]>, Option<&'r [u8]>)> {
        let value = |row: &'r BackRow, place: &Option<usize>| place.and_then(|p| row.at(p));
        let name = |row: &'r BackRow, place: &Option<usize>| {
            place.and_then(|p| row.names().get(p)).map(String::as_str)
        };
        self.places.iter().filter_map(move |(a, b)| {
            let (left, right) = (value(live, a), value(shadow, b));
            let name = name(live, a).or_else(|| name(shadow, b)).unwrap_or_default();
            (left != right).then_some((name, left, right))
        })
    }
}

fn judge(live: Option<&BackRow>, shadow: Option<&BackRow>, pairs: &mut Pairs, tally: &mut Tally) {
    tally.rows(live, shadow);
    match (live, shadow) {
        (Some(live), Some(shadow)) if live.dead == shadow.dead => {
            let pairs = pairs.of(live, shadow);
            if pairs.alike && live.is_same(shadow) {
                return;
            }
            let mut differ = pairs.differences(live, shadow).peekable();
            if differ.peek().is_none() {
                return;
            }
            let found = Found { difference: Difference::Changed, row: live };
            let wanted = tally.count(&found);
            let (mut fields, mut left_out) = (Vec::new(), 0);
            for (name, left, right) in differ {
                tally.field(name);
                if wanted && fields.len() < FIELDS_MAX {
                    fields.push(shown(name, left, right));
                } else {
                    left_out += 1;
                }
            }
            if wanted {
                tally.sample(&found, fields, left_out);
            }
        }
        (Some(live), Some(shadow)) => {
            let (difference, dead) = match live.dead {
                true => (Difference::Healed, live),
                false => (Difference::NewlyDead, shadow),
            };
            found(difference, dead, tally);
        }
        (Some(live), None) => found(Difference::Missing, live, tally),
        (None, Some(shadow)) => found(Difference::Extra, shadow, tally),
        (None, None) => {}
    }
}

/// A row that the other side does not have as it is: of a dead letter, why it is one.
fn found(difference: Difference, row: &BackRow, tally: &mut Tally) {
    let found = Found { difference, row };
    if !tally.count(&found) {
        return;
    }
    let is_live = matches!(difference, Difference::Missing | Difference::Healed);
    let why = |name: &&str| {
        let value = row.get(name)?;
        let (live, shadow) = if is_live { (Some(value), None) } else { (None, Some(value)) };
        Some(shown(name, live, shadow))
    };
    let fields = if row.dead { WHY.iter().filter_map(why).collect() } else { Vec::new() };
    tally.sample(&found, fields, 0);
}

/// Both values as they are shown: about where they begin to differ.
fn shown(name: &str, live: Option<&[u8]>, shadow: Option<&[u8]>) -> FieldDifference {
    let text =
        |value: Option<&[u8]>| value.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let (live, shadow) = (text(live), text(shadow));
    let same = match (&live, &shadow) {
        (Some(a), Some(b)) => a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count(),
        _ => 0,
    };
    let cut = |text: String| cut(&text, same);
    FieldDifference { field: name.to_owned(), live: live.map(cut), shadow: shadow.map(cut) }
}

/// A text cut short, so that what follows the first `same` characters is in it.
fn cut(text: &str, same: usize) -> String {
    let chars = text.chars().count();
    if chars <= VALUE_CHARS {
        return text.to_owned();
    }
    let from = same.saturating_sub(BEFORE).min(chars - VALUE_CHARS);
    let middle: String = text.chars().skip(from).take(VALUE_CHARS).collect();
    let before = if 0 < from { "…" } else { "" };
    let behind = if from + VALUE_CHARS < chars { "…" } else { "" };
    format!("{before}{middle}{behind}")
}

#[cfg(test)]
mod tests;
