//! Takes everything and keeps nothing: the shortest complete sink, meant to be copied.

use std::sync::Arc;

use super::{LaneRows, Sink, SinkConfig, SinkConfigError, SinkKind, WriteError};

pub(super) const KIND: SinkKind = SinkKind {
    name: "blackhole",
    check,
    open: |config, _context| check(config).map(|()| Arc::new(Blackhole) as Arc<dyn Sink>),
};

fn check(config: &SinkConfig) -> Result<(), SinkConfigError> {
    match config.options.keys().next() {
        Some(key) => Err(SinkConfigError(format!("blackhole has no option {key:?}"))),
        None => Ok(()),
    }
}

struct Blackhole;

impl Sink for Blackhole {
    fn write(&self, _rows: &LaneRows<'_>) -> Result<(), WriteError> {
        Ok(())
    }

    fn probe(&self) -> Result<(), String> {
        Ok(())
    }
}
