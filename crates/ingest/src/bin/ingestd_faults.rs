//! `ingestd-faults`: the server with kill points and planted bugs armed by the environment. For tests.

use std::process::ExitCode;

#[path = "ingestd.rs"]
mod ingestd;

fn main() -> ExitCode {
    ingestd::main()
}
