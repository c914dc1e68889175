//! `ingestd`: the server.
fn main() {}
