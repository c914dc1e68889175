//! The journal: ids of events a server has acknowledged, one JSON object a line.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::fault::Fault;

/// A line longer than this is no line of a journal.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// One acknowledged event.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry<'a> {
    /// Whose it is, where the client knows.
    #[serde(skip_serializing_if = "Option::is_none", default, borrow)]
    pub tenant: Option<std::borrow::Cow<'a, str>>,
    /// Its type, where the client knows.
    #[serde(skip_serializing_if = "Option::is_none", default, borrow)]
    pub event_type: Option<std::borrow::Cow<'a, str>>,
    /// Its id.
    #[serde(borrow)]
    pub event_id: std::borrow::Cow<'a, str>,
}

/// Writes a journal. What was added before [`Journal::flush`] returned is in the file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Journal {
    /// Starts a new one; a file that is there is replaced.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn create(path: &Path) -> Result<Self, Fault> {
        let file = File::create(path).map_err(|e| Fault::file(path, &e))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::with_capacity(1 << 20, file) })
    }

    /// Adds one entry.
    ///
    /// # Errors
    /// [`Fault::Failed`]: the disk may be full.
    pub fn add(&mut self, entry: &Entry<'_>) -> Result<(), Fault> {
        let written = serde_json::to_writer(&mut self.file, entry)
            .map_err(std::io::Error::from)
            .and_then(|()| self.file.write_all(b"\n"));
        written.map_err(|e| Fault::file(&self.path, &e))
    }

    /// Hands everything to the operating system.
    ///
    /// # Errors
    /// [`Fault::Failed`]: the disk may be full.
    pub fn flush(&mut self) -> Result<(), Fault> {
        self.file.flush().map_err(|e| Fault::file(&self.path, &e))
    }
}

/// Reads a journal in pieces of so many lines.
#[derive(Debug)]
pub struct Pieces {
    path: PathBuf,
    file: BufReader<File>,
    lines_each: usize,
    line: u64,
    torn: bool,
}

impl Pieces {
    /// Opens it.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn open(path: &Path, lines_each: usize) -> Result<Self, Fault> {
        let file = File::open(path).map_err(|e| Fault::file(path, &e))?;
        let file = BufReader::with_capacity(1 << 20, file);
        Ok(Self { path: path.to_owned(), file, lines_each, line: 0, torn: false })
    }

    /// True once a last line without its end was met: whoever wrote the journal was killed there.
    #[must_use]
    pub fn was_torn(&self) -> bool {
        self.torn
    }

    /// The next lines, checked; `None` at the end.
    ///
    /// # Errors
    /// [`Fault::Failed`] for a line that is none of a journal.
    pub fn read(&mut self) -> Result<Option<Bytes>, Fault> {
        let mut piece = Vec::new();
        let mut lines = 0;
        while lines < self.lines_each {
            let start = piece.len();
            let mut limited = std::io::Read::take(&mut self.file, LINE_BYTES_MAX);
            let read =
                limited.read_until(b'\n', &mut piece).map_err(|e| Fault::file(&self.path, &e))?;
            if read == 0 {
                break;
            }
            self.line += 1;
            let line = piece.get(start..).unwrap_or_default();
            let whole = line.ends_with(b"\n") || LINE_BYTES_MAX <= read as u64;
            let line = line.trim_ascii();
            let known = match line.first() {
                None => Ok(None),
                Some(b'{') => serde_json::from_slice::<Entry<'_>>(line).map(|_| None),
                // A plain list of ids.
                Some(_) => named(line).map(Some),
            };
            match known {
                // Only acknowledged events are written, so half a line loses the check of one event
                // and proves nothing; it is said, not sent.
                Ok(Some(_)) | Err(_) if !whole => {
                    self.torn = true;
                    piece.truncate(start);
                    break;
                }
                Ok(_) if line.is_empty() => {
                    piece.truncate(start);
                    continue;
                }
                Ok(Some(entry)) => {
                    piece.truncate(start);
                    piece.extend_from_slice(&entry);
                }
                Ok(None) if !whole => piece.push(b'\n'),
                Ok(None) => {}
                Err(e) => {
                    return Err(Fault::failed(
                        format!("{}:{}: no line of a journal: {e}", self.path.display(), self.line),
                        "give a file that `send --journal` or `load --journal` wrote, or one with \
                         {\"event_id\":\"…\"} or just an id a line",
                    ));
                }
            }
            lines += 1;
        }
        Ok((!piece.is_empty()).then(|| Bytes::from(piece)))
    }
}

/// The entry of a line that is an id and nothing else.
fn named(id: &[u8]) -> serde_json::Result<Vec<u8>> {
    use serde::de::Error as _;
    let id = std::str::from_utf8(id).map_err(serde_json::Error::custom)?;
    let mut entry =
        serde_json::to_vec(&Entry { tenant: None, event_type: None, event_id: id.into() })?;
    entry.push(b'\n');
    Ok(entry)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn written(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn what_is_written_is_read_in_pieces() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut journal = Journal::create(file.path()).unwrap();
        for id in ["a", "b\n\"", "c"] {
            let event_type = Some("t".into());
            journal.add(&Entry { tenant: None, event_type, event_id: id.into() }).unwrap();
        }
        journal.flush().unwrap();
        let mut pieces = Pieces::open(file.path(), 2).unwrap();
        let first = pieces.read().unwrap().unwrap();
        assert_eq!(first.iter().filter(|b| **b == b'\n').count(), 2);
        assert_eq!(
            pieces.read().unwrap().unwrap(),
            "{\"event_type\":\"t\",\"event_id\":\"c\"}\n".as_bytes()
        );
        assert!(pieces.read().unwrap().is_none());
        assert!(!pieces.was_torn());
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_said() {
        let file = written("{\"event_id\":\"a\"}\n{\"event_id\":\"b");
        let mut pieces = Pieces::open(file.path(), 10).unwrap();
        assert_eq!(pieces.read().unwrap().unwrap(), "{\"event_id\":\"a\"}\n".as_bytes());
        assert!(pieces.read().unwrap().is_none());
        assert!(pieces.was_torn());
    }

    #[test]
    fn a_whole_last_line_needs_no_end() {
        let file = written("{\"event_id\":\"a\"}\n{\"event_id\":\"b\"}");
        let mut pieces = Pieces::open(file.path(), 10).unwrap();
        let all = pieces.read().unwrap().unwrap();
        assert_eq!(all, "{\"event_id\":\"a\"}\n{\"event_id\":\"b\"}\n".as_bytes());
        assert!(!pieces.was_torn());
    }

    #[test]
    fn a_plain_list_of_ids_is_a_journal_too() {
        let file = written("order-1\r\n\na \"b\"\nhal");
        let mut pieces = Pieces::open(file.path(), 10).unwrap();
        let all = pieces.read().unwrap().unwrap();
        let expected = "{\"event_id\":\"order-1\"}\n{\"event_id\":\"a \\\"b\\\"\"}\n";
        assert_eq!(all, expected.as_bytes());
        assert!(pieces.was_torn());
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        let file = written("{\"event_id\":\"a\"}\n{\"id\":1}\n");
        let fault = Pieces::open(file.path(), 10).unwrap().read().unwrap_err();
        assert!(fault.to_string().contains(":2: no line of a journal"), "{fault}");
    }
}
