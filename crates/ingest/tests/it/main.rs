//! One integration binary; one module per promise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::print_stderr, reason = "a failed test says what the server said")]

mod books;
mod config;
mod ctl;
mod dedup;
mod edge;
mod hop;
mod log_contract;
mod pipeline;
mod quota;
mod replay;
mod replay_plan;
mod rot;
mod server;
mod shed;
mod sim;
mod sink;
mod tally;
mod threats;
mod tidy;
