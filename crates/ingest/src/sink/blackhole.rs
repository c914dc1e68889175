//! Takes everything and keeps nothing: the shortest complete sink, meant to be copied.
//!
//! With `options.bytes_per_second` it takes that much and no faster, as a slow destination does.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;

use super::{LaneRows, Sink, SinkConfig, SinkConfigError, SinkKind, WriteError};
use crate::config::Size;

pub(super) const KIND: SinkKind = SinkKind {
    name: "blackhole",
    check: |config| options(config).map(drop),
    open: |config, _context| {
        let bytes_per_second = options(config)?.bytes_per_second.map(|size| size.0);
        let free_at = Mutex::new(Instant::now());
        Ok(Arc::new(Blackhole { bytes_per_second, free_at }) as Arc<dyn Sink>)
    },
    // Nothing is kept anywhere.
    shadow: |_, _| Ok("nowhere".to_owned()),
    side_by_side: true,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    bytes_per_second: Option<Size>,
}

fn options(config: &SinkConfig) -> Result<Options, SinkConfigError> {
    let table = toml::Value::Table(config.options.clone());
    let options: Options = table
        .try_into()
        .map_err(|e| SinkConfigError(format!("options of blackhole: {}", e.to_string().trim())))?;
    match options.bytes_per_second {
        Some(Size(0)) => Err(SinkConfigError("options.bytes_per_second is 0".to_owned())),
        _ => Ok(options),
    }
}

struct Blackhole {
    bytes_per_second: Option<u64>,
    /// When all that was written so far has passed.
    free_at: Mutex<Instant>,
}

impl Blackhole {
    /// Lets `bytes` pass, as fast as it may.
    fn swallow(&self, bytes: u64) {
        let Some(speed) = self.bytes_per_second else { return };
        let now = Instant::now();
        // All lanes and partitions share the speed: each takes its turn behind those before it.
        let done = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            *free_at = passed_at(*free_at, now, bytes, speed);
            *free_at
        };
        thread::sleep(done.saturating_duration_since(now));
    }
}

/// When `bytes` have passed that come `now`, at `speed` bytes per second, behind what is through at
/// `free_at`.
fn passed_at(free_at: Instant, now: Instant, bytes: u64, speed: u64) -> Instant {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(speed.max(1));
    free_at.max(now) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Sink for Blackhole {
    fn write(&self, rows: &LaneRows<'_>) -> Result<(), WriteError> {
        self.swallow(rows.rows.iter().map(super::rows::Row::bytes).sum());
        Ok(())
    }

    fn probe(&self) -> Result<(), String> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config(options: &str) -> SinkConfig {
        toml::from_str(&format!("name='b'\nkind='blackhole'\n{options}")).unwrap()
    }

    #[test]
    fn only_a_speed_above_nothing_is_an_option() {
        assert!(options(&config("")).unwrap().bytes_per_second.is_none());
        for speed in ["1000", "'1000'"] {
            let options = options(&config(&format!("options.bytes_per_second={speed}"))).unwrap();
            assert_eq!(options.bytes_per_second, Some(Size(1000)));
        }
        for (wrong, why) in [
            ("options.colour='black'", "colour"),
            ("options.bytes_per_second=0", "is 0"),
            ("options.bytes_per_second='much'", "no size"),
        ] {
            let fault = options(&config(wrong)).err().unwrap().to_string();
            assert!(fault.contains(why), "{fault}");
        }
    }

    #[test]
    fn what_is_written_takes_the_time_that_the_speed_says() {
        let now = Instant::now();
        let after = |millis| now + Duration::from_millis(millis);
        let first = passed_at(now, now, 1_000, 100_000);
        assert_eq!(first, after(10));
        assert_eq!(passed_at(first, after(4), 2_000, 100_000), after(30), "behind the first");
        assert_eq!(
            passed_at(first, after(50), 500, 100_000),
            after(55),
            "idle time is not saved up"
        );
    }
}
