//! What `status` says of the partitions of a log on Kafka that the server asked does not have.

use serde::Deserialize;

use super::human;

/// One of them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Away {
    partition: u32,
    owned: Option<bool>,
    sinks: Vec<Behind>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Behind {
    sink: String,
    lag_events: u64,
}

impl Away {
    /// What there is to worry about it: that nobody has it, and what waits there.
    pub fn worry(&self) -> Option<String> {
        if self.owned != Some(false) {
            return None;
        }
        let waits = self.sinks.iter().filter(|behind| 0 < behind.lag_events).map(|behind| {
            format!(
                "{} is {} behind",
                behind.sink,
                human::things(behind.lag_events, "event", "events")
            )
        });
        let waits: Vec<_> = waits.collect();
        let waits =
            if waits.is_empty() { "nothing waits there".to_owned() } else { waits.join(", ") };
        Some(format!("partition {} is nobody's at the moment: {waits}", self.partition))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn told(json: &str) -> Option<String> {
        serde_json::from_str::<Away>(json).unwrap().worry()
    }

    #[test]
    fn only_a_partition_that_nobody_has_is_told_with_what_waits_there() {
        let sinks = r#""sinks":[{"sink":"lake","lag_events":1},{"sink":"ch","lag_events":1200},{"sink":"x"}]"#;
        let nobody = told(&format!(r#"{{"partition":3,"owned":false,{sinks}}}"#)).unwrap();
        assert_eq!(
            nobody,
            "partition 3 is nobody's at the moment: lake is 1 event behind, ch is 1,200 events behind"
        );
        assert!(told(r#"{"partition":3,"owned":false}"#).unwrap().ends_with("nothing waits there"));
        assert_eq!(told(&format!(r#"{{"partition":3,"owned":true,{sinks}}}"#)), None);
        assert_eq!(told(&format!(r#"{{"partition":3,"owned":null,{sinks}}}"#)), None);
    }
}
