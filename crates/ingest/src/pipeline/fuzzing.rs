//! The ledger of refusals for fuzz/.

pub use super::edge_ledger::EdgeLedger;
