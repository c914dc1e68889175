//! One integration binary; one module per promise.
