//! What an operator promises of a sink's freshness: `"p95 < 3s over 10m"`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::config::Span;

/// How fresh most events are to be: of those that became visible in the last `over`, and those that
/// should have, all but a few did so `within` that time of their receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Objective {
    /// Events in a hundred thousand that must be in time: 95,000 for p95.
    pub quantile: u32,
    /// Their age when they become visible is less than this.
    pub within: Duration,
    /// How far back is looked.
    pub over: Duration,
}

const WHOLE: u32 = 100_000;
const OVER: Duration = Duration::from_secs(600);
const OVER_LEAST: Duration = Duration::from_secs(10);
const OVER_MOST: Duration = Duration::from_secs(86_400);

impl Objective {
    /// What it is where nobody said: nothing is promised, and as much is looked at.
    pub const OVER: Duration = OVER;

    /// True where so few of `events` are late that it is met.
    pub fn is_met(&self, events: u64, late: u64) -> bool {
        let allowed = u128::from(events) * u128::from(WHOLE.saturating_sub(self.quantile));
        u128::from(late) * u128::from(WHOLE) <= allowed
    }

    /// The quantile as a part of one.
    pub fn part(&self) -> f64 {
        f64::from(self.quantile) / f64::from(WHOLE)
    }
}

impl FromStr for Objective {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || {
            format!(
                "{text:?} is no objective; write one such as \"p95 < 3s\" or \"p99.9 < 1h over 1h\""
            )
        };
        let (quantile, times) = text.split_once('<').ok_or_else(fault)?;
        let percent: f64 = quantile
            .trim()
            .strip_prefix('p')
            .and_then(|percent| percent.parse().ok())
            .filter(|percent| (1.0..=99.999).contains(percent))
            .ok_or_else(fault)?;
        let (within, over) = match times.split_once("over") {
            Some((within, over)) => (within, Some(over)),
            None => (times, None),
        };
        let within = within.trim().parse::<Span>().map_err(|_| fault())?.0;
        let over = match over {
            Some(over) => over.trim().parse::<Span>().map_err(|_| fault())?.0,
            None => OVER,
        };
        if within.is_zero() || OVER_MOST * 7 < within {
            return Err(format!("{text:?}: the age is more than nothing and at most 7d"));
        }
        if !(OVER_LEAST..=OVER_MOST).contains(&over) {
            return Err(format!("{text:?}: it looks back over 10s to 1d"));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within 1 and 99.999"
        )]
        let quantile = (percent * 1_000.0).round() as u32;
        Ok(Self { quantile, within, over })
    }
}

impl TryFrom<String> for Objective {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = f64::from(self.quantile) / 1_000.0;
        write!(f, "p{percent} < {} over {}", short(self.within), short(self.over))
    }
}

/// A length of time in the largest unit that it is a whole number of.
fn short(time: Duration) -> String {
    const UNITS: [(u128, &str); 4] =
        [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let millis = time.as_millis();
    let unit = UNITS.into_iter().find(|(unit, _)| millis.is_multiple_of(*unit));
    let (unit, name) = unit.unwrap_or((1, "ms"));
    format!("{}{name}", millis / unit)
}

impl From<Objective> for String {
    fn from(objective: Objective) -> Self {
        objective.to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_objective_reads_as_it_is_said() {
        let objective: Objective = "p95 < 3s".parse().unwrap();
        let seconds = Duration::from_secs;
        assert_eq!(
            objective,
            Objective { quantile: 95_000, within: seconds(3), over: seconds(600) }
        );
        let objective: Objective = "p99.9<1h over 1h".parse().unwrap();
        assert_eq!((objective.quantile, objective.over), (99_900, seconds(3_600)));
        for text in ["p95 < 3s over 10m", "p99.999 < 1h over 1d", "p50 < 250ms over 1m"] {
            let objective: Objective = text.parse().unwrap();
            assert_eq!(objective.to_string(), text);
        }
        for text in [
            "",
            "3s",
            "p0 < 3s",
            "p100 < 3s",
            "95 < 3s",
            "p95 > 3s",
            "p95 < 0s",
            "p95 < x",
            "p95 < 3s over 1s",
            "p95 < 3s over 2d",
            "p95 < 30d",
            "pNaN < 3s",
        ] {
            assert!(text.parse::<Objective>().is_err(), "{text}");
        }
    }

    #[test]
    fn as_many_may_be_late_as_the_quantile_leaves() {
        let objective: Objective = "p95 < 3s".parse().unwrap();
        let met = [(0, 0), (100, 5), (100, 6), (19, 1), (20, 1), (1, 1)];
        assert_eq!(
            met.map(|(events, late)| objective.is_met(events, late)),
            [true, true, false, false, true, false]
        );
    }
}
