//! How a command ends: done, the answer is no, or it could not be done and why.

use std::{fmt, io};

/// The answer of a command that could be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Exit status 0.
    Done,
    /// Exit status 1: unhealthy, unbalanced, different, invalid, not kept.
    No,
}

impl Verdict {
    /// [`Verdict::Done`] where `holds`, else [`Verdict::No`].
    #[must_use]
    pub fn when(holds: bool) -> Self {
        if holds { Self::Done } else { Self::No }
    }

    /// The exit status.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::No => 1,
        }
    }
}

/// Why a command could not be carried out.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// Exit status 2: the arguments make no sense together.
    Usage(String),
    /// Exit status 3: could not reach or do it.
    Failed {
        /// What went wrong, and where.
        what: String,
        /// What to do about it; empty where nobody can know.
        mend: String,
    },
    /// Whoever reads our output has gone (`… | head`): nothing left to do, exit status 0.
    ReaderGone,
}

impl Fault {
    /// What went wrong and how to mend it.
    pub fn failed(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), mend: mend.into() }
    }

    /// A file that cannot be read or written.
    pub fn file(path: &std::path::Path, error: &io::Error) -> Self {
        let mend = match error.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "check who owns it and its mode",
            io::ErrorKind::StorageFull => "make room on that disk",
            _ => "",
        };
        Self::failed(format!("{}: {error}", path.display()), mend)
    }

    /// The exit status.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::ReaderGone => 0,
            Self::Usage(_) => 2,
            Self::Failed { .. } => 3,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(what) => f.write_str(what),
            Self::Failed { what, mend } if mend.is_empty() => f.write_str(what),
            Self::Failed { what, mend } => write!(f, "{what}\n  to mend it: {mend}"),
            Self::ReaderGone => f.write_str("the output was closed"),
        }
    }
}
