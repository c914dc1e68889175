//! Marks: a name for where every partition ended at a moment, such as that of a deploy.
//!
//! They lie in the control log, so they are as durable as what operators did, and are never moved.

use std::{collections::BTreeMap, fmt, io, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tidegate_event::{Offset, Partition, ReceivedAt};

use crate::control::{Action, Control, RecordError};

/// The action under which marks stand in the control log.
pub const ACTION: &str = "mark";
/// What names begin with.
const PREFIX: &str = "deploy:";
/// Characters of what follows, at most.
const TAG_MAX: usize = 100;

/// `deploy:` and a tag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MarkName(String);

/// A text is no mark's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no mark's name: write deploy:TAG, such as deploy:2026-11-21.1 (1 to {TAG_MAX} of a-z, A-Z, 0-9, '.', '_', '+' and '-', a letter or digit first)"
)]
pub struct MarkNameError(String);

impl FromStr for MarkName {
    type Err = MarkNameError;
    fn from_str(text: &str) -> Result<Self, MarkNameError> {
        let tag = text.strip_prefix(PREFIX).unwrap_or_default();
        let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+');
        let fits = (1..=TAG_MAX).contains(&tag.len())
            && tag.bytes().all(letters)
            && tag.starts_with(|c: char| c.is_ascii_alphanumeric());
        if fits { Ok(Self(text.to_owned())) } else { Err(MarkNameError(text.to_owned())) }
    }
}

impl TryFrom<String> for MarkName {
    type Error = MarkNameError;
    fn try_from(text: String) -> Result<Self, MarkNameError> {
        text.parse()
    }
}

impl From<MarkName> for String {
    fn from(name: MarkName) -> Self {
        name.0
    }
}

impl fmt::Display for MarkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a log ended when somebody said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its name.
    pub name: MarkName,
    /// When it was set.
    pub at: ReceivedAt,
    /// By whom.
    pub by: String,
    /// Of which log the offsets are.
    pub log_id: String,
    /// The next offset of each partition then.
    pub offsets: BTreeMap<Partition, Offset>,
}

/// What the control log keeps of a mark beside time and name.
#[derive(Serialize, Deserialize)]
struct Details {
    name: MarkName,
    log_id: String,
    offsets: Vec<Place>,
}

#[derive(Serialize, Deserialize)]
struct Place {
    partition: Partition,
    offset: Offset,
}

/// Why a mark was not set.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// A mark is never moved.
    #[error("{} was set already, {at}, by {}: set another one, such as {}.2", .0.name, .0.by, .0.name, at = time(.0.at))]
    Known(Mark),
    /// The control log cannot be read.
    #[error("the control log cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The control log did not take it.
    #[error(transparent)]
    Record(#[from] RecordError),
}

fn time(at: ReceivedAt) -> String {
    jiff::Timestamp::from_microsecond(at.0).map_or_else(|_| at.0.to_string(), |t| format!("{t:.0}"))
}

/// Every mark of this log, oldest first.
///
/// # Errors
/// As reading the control log.
pub fn all(control: &Control, log_id: &str) -> io::Result<Vec<Mark>> {
    let marks = control.read()?.actions.into_iter().filter(|action| action.action == ACTION);
    let read = marks.filter_map(|action| {
        let details = Details::deserialize(action.details).ok()?;
        let offsets = details.offsets.iter().map(|place| (place.partition, place.offset)).collect();
        let Details { name, log_id, .. } = details;
        Some(Mark { name, at: action.at, by: action.by, log_id, offsets })
    });
    Ok(read.filter(|mark| mark.log_id == log_id).collect())
}

/// Sets `mark`; it is on the disk when this returns.
///
/// # Errors
/// [`MarkError`]: it is not set.
pub fn set(control: &Control, mark: &Mark) -> Result<(), MarkError> {
    let _turn = control.turn();
    if let Some(known) = all(control, &mark.log_id)?.into_iter().find(|m| m.name == mark.name) {
        return Err(MarkError::Known(known));
    }
    let offsets: Vec<Place> = mark
        .offsets
        .iter()
        .map(|(partition, offset)| Place { partition: *partition, offset: *offset })
        .collect();
    let details = Details { name: mark.name.clone(), log_id: mark.log_id.clone(), offsets };
    control.record(&Action {
        at: mark.at,
        by: mark.by.clone(),
        action: ACTION.to_owned(),
        plan_id: None,
        details: json!(details),
    })?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::Disk;

    fn mark(name: &str, log_id: &str) -> Mark {
        Mark {
            name: name.parse().unwrap(),
            at: ReceivedAt(1_795_255_200_000_000),
            by: "ann".to_owned(),
            log_id: log_id.to_owned(),
            offsets: BTreeMap::from([(Partition(0), Offset(7)), (Partition(1), Offset(0))]),
        }
    }

    #[test]
    fn a_mark_is_kept_and_never_moved() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::open(Arc::new(Disk), dir.path());
        set(&control, &mark("deploy:1", "abcd1234")).unwrap();
        let moved = Mark { offsets: BTreeMap::new(), ..mark("deploy:1", "abcd1234") };
        assert_eq!(
            set(&control, &moved).unwrap_err().to_string(),
            "deploy:1 was set already, 2026-11-21T10:00:00Z, by ann: set another one, such as deploy:1.2"
        );
        let control = Control::open(Arc::new(Disk), dir.path());
        assert_eq!(all(&control, "abcd1234").unwrap(), [mark("deploy:1", "abcd1234")]);
        // Offsets of another log say nothing about this one.
        assert_eq!(all(&control, "other123").unwrap(), []);
        set(&control, &mark("deploy:1", "other123")).unwrap();
    }

    #[test]
    fn names_are_short_and_plain() {
        for good in ["deploy:a", "deploy:2026-11-21.1", "deploy:v1.0+build_7"] {
            assert_eq!(good.parse::<MarkName>().unwrap().to_string(), good);
        }
        let long = format!("deploy:{}", "x".repeat(101));
        for bad in [
            "",
            "deploy",
            "deploy:",
            "v1",
            "deploy:a b",
            "deploy:.a",
            "deploy:a,b",
            "deploy:é",
            &long,
        ] {
            assert!(bad.parse::<MarkName>().is_err(), "{bad}");
        }
    }
}
