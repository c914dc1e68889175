//! The control log: what operators did, when and who, written down before it takes effect.
//!
//! `control.jsonl` in the data folder, only ever added to: `{"crc32c":n,"action":{…}}`, a line an
//! action (and an empty one where a process began to add), synced before [`Control::record`] returns. Each line is checked by itself, so damage costs
//! the lines it lies in and no other. What a crash leaves of a line without its end was never answered
//! for: it is cut, and the log says so. Replays and marks live by it; taking events never waits for it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use tidegate_event::ReceivedAt;

use crate::{
    replay::PlanId,
    storage::{Storage, StorageFile, write_all_at},
};

/// The file, in the data folder.
pub const NAME: &str = "control.jsonl";
/// Characters of a name at most.
const BY_MAX: usize = 500;
/// Bytes of one line at most: details are a summary, what is long has a file of its own.
const LINE_MAX: usize = 256 << 10;

/// Something that an operator did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// When.
    #[serde(with = "time_as_text")]
    pub at: ReceivedAt,
    /// Who, in their own words.
    pub by: String,
    /// What: `mark`, `replay.apply` and so on.
    pub action: String,
    /// Of which plan, if of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_id: Option<PlanId>,
    /// More about it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub details: Value,
}

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recorded {
    /// In the order in which they were recorded.
    pub actions: Vec<Action>,
    /// Lines that cannot be read, counted from 1: damage.
    pub damaged: Vec<u64>,
}

/// Why an action was not recorded: it must not be done then.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A name that does not fit on a line.
    #[error("who does it must be 1 to 500 characters on one line")]
    By,
    /// More than a line may hold.
    #[error("the record of it would be longer than {} KiB", LINE_MAX >> 10)]
    Long,
    /// It cannot be encoded.
    #[error("it cannot be written down: {0}")]
    Encode(#[from] serde_json::Error),
    /// The file cannot be written: try again.
    #[error("the control log cannot be written: {0}")]
    Storage(#[from] io::Error),
}

/// The control log of one data folder.
pub struct Control {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    /// `None` until it is known where the next line belongs.
    end: Mutex<Option<End>>,
    turn: Mutex<()>,
}

struct End {
    file: Arc<dyn StorageFile>,
    at: u64,
    /// What lies before it was read and not written by this process: it may not be on the disk as it was
    /// read, after a failed sync. So the next line begins with an end of whatever that is.
    is_found: bool,
}

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    crc32c: u32,
    #[serde(borrow)]
    action: &'a RawValue,
}

impl Control {
    /// The control log in the folder `dir`. A file that cannot be read now is told in the log and tried
    /// again by whoever records: no reason not to take events.
    #[must_use]
    pub fn open(storage: Arc<dyn Storage>, dir: &Path) -> Self {
        let control =
            Self { storage, dir: dir.to_owned(), end: Mutex::default(), turn: Mutex::default() };
        let path = control.path();
        match control.read_file() {
            // Nothing was ever done here: the file is made with the first action.
            Ok(None) => return control,
            Ok(Some(Recorded { damaged, .. })) if !damaged.is_empty() => {
                tracing::error!(path = %path.display(), lines = ?damaged, "lines of the control log are damaged: what they said is lost, the others stand");
            }
            // Where it cannot be read, opening it says so.
            Ok(Some(_)) | Err(_) => {}
        }
        // A torn end is cut now, while it is plain that it is the last run's.
        match control.find_end() {
            Ok(found) => *control.end() = Some(found),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the control log cannot be opened; no replay begins until it can");
            }
        }
        control
    }

    fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    fn end(&self) -> MutexGuard<'_, Option<End>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the next line belongs: behind the last whole one. What lies behind that is cut.
    fn find_end(&self) -> io::Result<End> {
        let path = self.path();
        let bytes = match self.storage.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = self.storage.create_new(&path)?;
                self.storage.sync_dir(&self.dir)?;
                return Ok(End { file, at: 0, is_found: false });
            }
            Err(error) => return Err(error),
        };
        let file = self.storage.open(&path)?;
        let whole = memchr::memrchr(b'\n', &bytes).map_or(0, |at| at + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
            file.sync_data()?;
            let cut = bytes.len() - whole;
            tracing::warn!(path = %path.display(), bytes = cut, "the control log ended in the middle of a line, which was cut: nothing was done on its word");
        }
        // Its name may be newer than the folder on the disk, after a crash right behind its making.
        self.storage.sync_dir(&self.dir)?;
        Ok(End { file, at: whole as u64, is_found: true })
    }

    /// Writes `action` down; it is on the disk when this returns.
    ///
    /// # Errors
    /// [`RecordError`]; the action must not be done then.
    pub fn record(&self, action: &Action) -> Result<(), RecordError> {
        let who = action.by.chars().count();
        if !(1..=BY_MAX).contains(&who) || action.by.contains(char::is_control) {
            return Err(RecordError::By);
        }
        let line = encode(action)?;
        if LINE_MAX < line.len() {
            return Err(RecordError::Long);
        }
        let mut end = self.end();
        // Taken, so that after any failure the end is looked for anew.
        let mut open = match end.take() {
            Some(open) => open,
            None => self.find_end()?,
        };
        let before: &[u8] = if open.is_found { b"\n" } else { b"" };
        let mut pieces = [io::IoSlice::new(before), io::IoSlice::new(&line)];
        let written =
            write_all_at(&*open.file, &mut pieces, open.at).and_then(|()| open.file.sync_data());
        if let Err(error) = written {
            // Best cut off now: what was refused should not be read later as done.
            if let Err(cut) = open.file.set_len(open.at).and_then(|()| open.file.sync_data()) {
                tracing::warn!(%cut, "a line of the control log that failed could not be cut off again; it may be read as done");
            }
            return Err(error.into());
        }
        open.at += (before.len() + line.len()) as u64;
        open.is_found = false;
        *end = Some(open);
        Ok(())
    }

    /// For whoever looks at what is recorded before recording: nobody else of them does meanwhile.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that was recorded.
    ///
    /// # Errors
    /// As reading the file; damage within it is part of the answer.
    pub fn read(&self) -> io::Result<Recorded> {
        self.read_file().map(Option::unwrap_or_default)
    }

    fn read_file(&self) -> io::Result<Option<Recorded>> {
        match self.storage.read(&self.path()) {
            Ok(bytes) => Ok(Some(decode(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn encode(action: &Action) -> serde_json::Result<Vec<u8>> {
    let action = serde_json::value::to_raw_value(action)?;
    let crc32c = crc32c::crc32c(action.get().as_bytes());
    let mut line = serde_json::to_vec(&Line { crc32c, action: &action })?;
    line.push(b'\n');
    Ok(line)
}

fn decode(bytes: &[u8]) -> Recorded {
    let mut recorded = Recorded::default();
    for (number, line) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
        // One without its end is being written now, or was when it crashed.
        let Some(line) = line.strip_suffix(b"\n") else { break };
        if line.is_empty() {
            continue;
        }
        match decode_line(line) {
            Some(action) => recorded.actions.push(action),
            None => recorded.damaged.push(number),
        }
    }
    recorded
}

fn decode_line(line: &[u8]) -> Option<Action> {
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    let is_sound = crc32c::crc32c(line.action.get().as_bytes()) == line.crc32c;
    is_sound.then(|| serde_json::from_str(line.action.get()).ok())?
}

/// Times as RFC 3339: people read this file.
mod time_as_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de, ser};
    use tidegate_event::ReceivedAt;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it so")]
    pub fn serialize<S: Serializer>(at: &ReceivedAt, to: S) -> Result<S::Ok, S::Error> {
        let time = jiff::Timestamp::from_microsecond(at.0).map_err(ser::Error::custom)?;
        to.collect_str(&format_args!("{time:.6}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ReceivedAt, D::Error> {
        let text = String::deserialize(from)?;
        let time: jiff::Timestamp = text.parse().map_err(de::Error::custom)?;
        Ok(ReceivedAt(time.as_microsecond()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::storage::Disk;

    fn action(n: usize) -> Action {
        Action {
            at: ReceivedAt(1_790_000_000_000_000 + n as i64),
            by: format!("ann@host{n}"),
            action: "mark".to_owned(),
            plan_id: n.is_multiple_of(2).then(|| "0123456789abcdef".parse().unwrap()),
            details: if n.is_multiple_of(3) { Value::Null } else { json!({ "name": "deploy:4" }) },
        }
    }

    fn open(dir: &Path) -> Control {
        Control::open(Arc::new(Disk), dir)
    }

    fn with_lines(dir: &Path, lines: usize) -> Vec<u8> {
        let control = open(dir);
        (0..lines).for_each(|n| control.record(&action(n)).unwrap());
        std::fs::read(dir.join(NAME)).unwrap()
    }

    #[test]
    fn what_was_recorded_is_read_in_order_by_the_next_run_too() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(open(dir.path()).read().unwrap(), Recorded::default());
        assert!(!dir.path().join(NAME).exists(), "nothing done, nothing written");
        with_lines(dir.path(), 3);
        let control = open(dir.path());
        control.record(&action(3)).unwrap();
        let expected: Vec<_> = (0..4).map(action).collect();
        assert_eq!(control.read().unwrap(), Recorded { actions: expected, damaged: vec![] });
    }

    #[test]
    fn a_torn_end_is_cut_wherever_it_is_torn_and_what_comes_next_stands() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = with_lines(dir.path(), 3);
        for cut in 0..=bytes.len() {
            std::fs::write(dir.path().join(NAME), &bytes[..cut]).unwrap();
            let whole = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
            let control = open(dir.path());
            control.record(&action(9)).unwrap();
            let expected: Vec<_> = (0..whole).chain([9]).map(action).collect();
            let found = open(dir.path()).read().unwrap();
            assert_eq!(found, Recorded { actions: expected, damaged: vec![] }, "cut at {cut}");
        }
    }

    #[test]
    fn damage_is_told_and_costs_no_line_but_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = with_lines(dir.path(), 3);
        let second = memchr::memchr(b'\n', &bytes).unwrap() + 1;
        let mut damaged = bytes.clone();
        damaged[second + 20] ^= 1;
        std::fs::write(dir.path().join(NAME), &damaged).unwrap();
        let control = open(dir.path());
        control.record(&action(3)).unwrap();
        let found = control.read().unwrap();
        assert_eq!(found.damaged, [2]);
        assert_eq!(found.actions, [action(0), action(2), action(3)]);
    }

    #[test]
    fn a_name_over_several_lines_and_a_record_too_long_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let control = open(dir.path());
        for by in ["", "a\nb", &"x".repeat(BY_MAX + 1)] {
            let refused = control.record(&Action { by: by.to_owned(), ..action(0) }).unwrap_err();
            assert!(matches!(refused, RecordError::By), "{refused}");
        }
        let long = Action { details: "x".repeat(LINE_MAX).into(), ..action(0) };
        assert!(matches!(control.record(&long).unwrap_err(), RecordError::Long));
        assert_eq!(control.read().unwrap(), Recorded::default());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_flipped_bit_never_changes_what_is_said(at in any::<prop::sample::Index>(), bit in 0..8u32) {
            let dir = tempfile::tempdir().unwrap();
            let mut bytes = with_lines(dir.path(), 3);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let found = decode(&bytes);
            let said: Vec<_> = (0..3).map(action).collect();
            prop_assert!(found.actions.iter().all(|action| said.contains(action)));
            prop_assert!((1..3).contains(&found.actions.len()));
        }
    }
}
