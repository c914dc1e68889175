//! The borrowed JSON scanner of the hot path.
