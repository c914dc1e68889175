//! One integration binary; one module per promise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod ctl;
mod sink;
