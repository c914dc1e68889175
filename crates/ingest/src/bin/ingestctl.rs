//! `ingestctl`: the operators' command.

use std::process::ExitCode;

use clap::Parser;
use tidegate_ingest::ctl::{self, Cli};

fn main() -> ExitCode {
    ctl::main(Cli::parse())
}
