//! `ingestctl` as a program: what it asks, what it prints, how it exits. The server is a stub that
//! says what each test wants; what a real one says is not proved here.

mod admin;
mod help;
mod load;
mod schema;
mod send;
mod stub;
