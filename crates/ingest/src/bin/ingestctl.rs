//! `ingestctl`: the operators' command.
fn main() {}
