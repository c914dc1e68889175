//! What the tests count for the fault grid: which fault was tried against which promise, how often,
//! and how often the promise held. `scripts/grid.py` adds it up.
//!
//! With `TIDEGATE_TALLY=FILE` each [`Tally`] leaves one line there when it is dropped:
//! `{"by":"sim::log","fault":"power loss","promises":["P1","P5"],"tried":400,"survived":400}`.

use std::{fs::OpenOptions, io::Write};

use serde_json::json;

/// Counts what one test tries. A test that fails leaves one try more than it survived.
pub struct Tally {
    by: &'static str,
    fault: &'static str,
    promises: &'static [&'static str],
    survived: u64,
}

impl Tally {
    /// `fault` and `promises` as the grid's rows and columns are named.
    pub fn new(by: &'static str, fault: &'static str, promises: &'static [&'static str]) -> Self {
        Self { by, fault, promises, survived: 0 }
    }

    /// `n` more tries that the promises survived.
    pub fn survived(&mut self, n: u64) {
        self.survived += n;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let Some(path) = std::env::var_os("TIDEGATE_TALLY") else { return };
        let tried = self.survived + u64::from(std::thread::panicking());
        let line = json!({"by": self.by, "fault": self.fault, "promises": self.promises,
            "tried": tried, "survived": self.survived});
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(file, "{line}").unwrap();
    }
}
