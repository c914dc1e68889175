//! Whether a side is still what was compared: a hash over what holds its rows.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::{CompareError, Reach, Scope, clickhouse};
use crate::sink::{
    SinkConfig,
    lake::{Asked, HeldFile, LakeReader},
};

/// What one side of a sink is now, within a plan's window and selection: another text as soon as one of its
/// rows is another, or a file that holds one. `config` is the sink's own for live and the shadow's for the
/// shadow. Of a lake the files are listed and none is read; a server counts and sums hashes of its rows.
///
/// # Errors
/// [`CompareError`]: for kinds of sinks that cannot be compared, and where the side cannot be asked.
pub fn fingerprint(
    config: &SinkConfig,
    scope: &Scope,
    reach: &Reach,
) -> Result<String, CompareError> {
    match config.kind.as_str() {
        "lake" => lake(config, scope, reach),
        "clickhouse" => clickhouse::fingerprint(config, scope, reach),
        other => Err(CompareError::Kind(other.to_owned())),
    }
}

fn lake(config: &SinkConfig, scope: &Scope, reach: &Reach) -> Result<String, CompareError> {
    let lake = LakeReader::open(config, &reach.data_dir, reach.runtime.clone())?;
    Ok(of_files(&lake.held(&scope.asked())?))
}

/// That of a lake which holds these files.
pub(super) fn of_files(files: &[HeldFile]) -> String {
    let mut text = String::new();
    for file in files {
        // A path holds no line end; writing to a String cannot fail.
        let _ = writeln!(text, "{} {} {}", file.path, file.bytes, file.tag);
    }
    short(&text)
}

pub(super) fn short(text: &str) -> String {
    hex::encode(Sha256::digest(text).iter().take(16).copied().collect::<Vec<_>>())
}

impl Scope {
    /// True where only dead letters were replayed.
    pub(super) fn dead_only(&self) -> bool {
        self.selection.dead_letters_only
    }

    /// The same for a lake.
    pub(super) fn asked(&self) -> Asked<'_> {
        Asked {
            log_id: &self.log_id,
            window: &self.window,
            tenants: &self.selection.tenants,
            event_types: &self.selection.event_types,
        }
    }
}
