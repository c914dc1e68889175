//! The shadow of a sink: the same kind of destination, at a place of its own that live never reads or
//! writes.
//!
//! A [`ShadowSink`] can be opened from a [`ShadowPlace`] alone, and a place says what each kind makes of
//! its live configuration and a plan's id. So whoever has a `ShadowSink` cannot write into live.

use std::{path::Path, sync::Arc};

use sha2::{Digest as _, Sha256};

use super::{LaneRows, Sink, SinkConfig, SinkConfigError, SinkContext, SinkKind, WriteError};

/// What stands between a table's, topic's or stream's name and the plan's id.
const MARK: &str = "__shadow_";
/// The same, and what stands there in the names of tables by which a shadow is promoted.
const MARKS: [&str; 3] = [MARK, "__before_", "__next_"];
/// Digits of a plan's id.
const ID_DIGITS: usize = 16;

/// Where the shadow of one sink lies.
#[derive(Clone, Debug, PartialEq)]
pub struct ShadowPlace {
    config: SinkConfig,
    shown: String,
}

/// What a kind of sink makes of a configuration whose `suffix` is a shadow's: changes it to the shadow's
/// place and says for people where that is.
pub type MakeShadow = fn(&mut SinkConfig, &Path) -> Result<String, SinkConfigError>;

impl ShadowPlace {
    /// The shadow of `live` for the plan `id` (16 hexadecimal digits).
    ///
    /// # Errors
    /// [`SinkConfigError`] for a kind nobody knows, and where `[sink.shadow]` makes no sense.
    pub fn of(live: &SinkConfig, id: &str, data_dir: &Path) -> Result<Self, SinkConfigError> {
        let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if id.len() != ID_DIGITS || !id.bytes().all(is_digit) || !live.suffix.is_empty() {
            return Err(SinkConfigError(format!("{id:?} names no shadow")));
        }
        let kind = SinkKind::of(live)?;
        let mut config = live.own();
        merge(&mut config.options, config.shadow.take().unwrap_or_default());
        config.name = format!("shadow.{}", live.name);
        config.suffix = format!("{MARK}{id}");
        config.start = super::Start::First;
        config.objective = None;
        // Files as large as live ones; there is no hurry.
        config.flush.age = None;
        let shown = (kind.check)(&config).and_then(|()| (kind.shadow)(&mut config, data_dir));
        let shown = shown
            .map_err(|error| SinkConfigError(format!("as a shadow ([sink.shadow]): {error}")))?;
        Ok(Self { config, shown })
    }

    /// Where it is, for people.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Its configuration, for reading it back.
    #[must_use]
    pub fn config(&self) -> &SinkConfig {
        &self.config
    }

    /// A hash over where `live` and its shadows lie, without secrets: another one, another place.
    ///
    /// # Errors
    /// As [`ShadowPlace::of`].
    pub fn fingerprint(live: &SinkConfig, data_dir: &Path) -> Result<String, SinkConfigError> {
        let place = Self::of(live, &"0".repeat(ID_DIGITS), data_dir)?;
        let url = live.url.as_deref().unwrap_or_default();
        let filter = serde_json::to_string(&live.filter).unwrap_or_default();
        let text = [&live.kind, &live.name, url, &place.shown, &filter].join("\n");
        Ok(hex::encode(Sha256::digest(text).iter().take(8).copied().collect::<Vec<_>>()))
    }
}

/// Lays `over` upon `options`: tables within tables, all else replaced.
fn merge(options: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (options.get_mut(&key), value) {
            (Some(toml::Value::Table(there)), toml::Value::Table(value)) => merge(there, value),
            (_, value) => {
                options.insert(key, value);
            }
        }
    }
}

/// A destination that is no live one.
pub struct ShadowSink {
    config: SinkConfig,
    sink: Arc<dyn Sink>,
}

/// The right to remove all that a destination holds: only a [`ShadowSink`] gives it.
pub struct Erase(());

impl ShadowSink {
    /// Opens it. Makes no request.
    ///
    /// # Errors
    /// As the kind's.
    pub fn open(place: &ShadowPlace, context: &SinkContext) -> Result<Self, SinkConfigError> {
        let config = place.config.clone();
        let sink = (SinkKind::of(&config)?.open)(&config, context)?;
        Ok(Self { config, sink })
    }

    /// For the runner: its configuration, and the destination itself.
    #[must_use]
    pub fn into_parts(self) -> (SinkConfig, Arc<dyn Sink>) {
        (self.config, self.sink)
    }

    /// Removes all that it holds. Blocks.
    ///
    /// # Errors
    /// What could not be removed, and what to do.
    pub fn erase(&self) -> Result<(), String> {
        self.sink.erase(&Erase(()))
    }
}

/// True for an event type that is called as a shadow of another type would be, or what promotes one.
#[must_use]
pub fn is_shadows_name(event_type: &str) -> bool {
    let is_id = |id: &str| {
        id.len() == ID_DIGITS && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    MARKS.iter().any(|mark| event_type.rsplit_once(mark).is_some_and(|(_, id)| is_id(id)))
}

/// For sinks that name tables, topics or streams by event type: a client's type must not lead into a
/// shadow.
///
/// # Errors
/// [`WriteError::Reject`], all rows.
pub(super) fn refuse_shadows_names(rows: &LaneRows<'_>) -> Result<(), WriteError> {
    if rows.lane.dead || !is_shadows_name(rows.lane.event_type.as_str()) {
        return Ok(());
    }
    let cause = "its event type is called as shadows are; no sink has a table for it";
    let all = (0..rows.rows.len()).map(|index| (index, cause.to_owned())).collect();
    Err(WriteError::Reject { rows: all })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sink::SINKS;

    const ID: &str = "0123456789abcdef";

    fn config(text: &str) -> SinkConfig {
        toml::from_str(text).unwrap()
    }

    /// One of each kind, with options that could name a place.
    fn live() -> Vec<SinkConfig> {
        vec![
            config("name='b'\nkind='blackhole'"),
            config("name='c'\nkind='clickhouse'\nurl='http://127.0.0.1:8123'"),
            config("name='e'\nkind='elasticsearch'\nurl='http://127.0.0.1:9200'"),
            config("name='k'\nkind='kafka'\noptions.servers='127.0.0.1:9092'"),
            config("name='l'\nkind='lake'\nurl='/lake'\noptions.merge=true"),
            config("name='s'\nkind='lake'\nurl='s3://bucket/a/'"),
        ]
    }

    #[test]
    fn every_kinds_shadow_is_another_place_and_passes_its_own_check() {
        let kinds: std::collections::HashSet<_> = live().into_iter().map(|c| c.kind).collect();
        assert_eq!(kinds.len(), SINKS.len());
        for live in live() {
            if live.kind == "kafka" && !cfg!(feature = "kafka") {
                continue;
            }
            let shadow = ShadowPlace::of(&live, ID, Path::new("/data")).unwrap();
            assert!(shadow.shown().contains(ID) || live.kind == "blackhole", "{}", shadow.shown());
            assert_ne!(shadow.config().name, live.name);
            assert_eq!(shadow.config().suffix, format!("__shadow_{ID}"));
            // No shadow of a shadow.
            assert!(ShadowPlace::of(shadow.config(), ID, Path::new("/data")).is_err());
        }
    }

    #[test]
    fn a_lakes_shadow_lies_beside_its_events() {
        let places: Vec<_> = live()
            .iter()
            .filter(|live| live.kind == "lake")
            .map(|live| ShadowPlace::of(live, ID, Path::new("/data")).unwrap())
            .map(|place| place.config().url.clone().unwrap())
            .collect();
        assert_eq!(places, [format!("/lake/shadow/{ID}"), format!("s3://bucket/a/shadow/{ID}")]);
        let plain = config("name='l'\nkind='lake'");
        let place = ShadowPlace::of(&plain, ID, Path::new("/data")).unwrap();
        assert_eq!(place.config().url.as_deref(), Some("/data/lake/shadow/0123456789abcdef"));
    }

    #[test]
    fn a_shadow_may_have_credentials_of_its_own() {
        let live = config(
            "name='c'\nkind='clickhouse'\nurl='http://h:1'\noptions.user='live'\noptions.database='d'\n\
             shadow.user='shadow'\nshadow.password='env:SHADOW'",
        );
        let place = ShadowPlace::of(&live, ID, Path::new("/data")).unwrap();
        let options = &place.config().options;
        assert_eq!(options.get("user").and_then(toml::Value::as_str), Some("shadow"));
        assert_eq!(options.get("database").and_then(toml::Value::as_str), Some("d"));
        let wrong = config("name='c'\nkind='clickhouse'\nurl='http://h:1'\nshadow.colour='red'");
        let error = ShadowPlace::of(&wrong, ID, Path::new("/data")).unwrap_err().to_string();
        assert!(error.contains("[sink.shadow]") && error.contains("colour"), "{error}");
    }

    #[test]
    fn only_a_plans_id_names_a_shadow() {
        for id in ["", "0123456789ABCDEF", "../../events/aaa", "0123456789abcde"] {
            assert!(
                ShadowPlace::of(&live().swap_remove(4), id, Path::new("/data")).is_err(),
                "{id}"
            );
        }
        assert!(is_shadows_name("view__shadow_0123456789abcdef"));
        assert!(is_shadows_name("view__before_0123456789abcdef"));
        assert!(!is_shadows_name("view__shadow_0123456789abcdeF"));
        assert!(!is_shadows_name("view__shadow_x") && !is_shadows_name("view"));
    }

    #[test]
    fn another_place_has_another_fingerprint() {
        let dir = Path::new("/data");
        let print = |text: &str| ShadowPlace::fingerprint(&config(text), dir).unwrap();
        let base = "name='c'\nkind='clickhouse'\nurl='http://h:1'\n";
        assert_eq!(print(base), print(&format!("{base}options.password='x'")));
        assert_ne!(print(base), print("name='c'\nkind='clickhouse'\nurl='http://h:2'"));
        assert_ne!(print(base), print(&format!("{base}options.database='other'")));
        assert_ne!(print(base), print(&format!("{base}filter.tenants=['a']")));
    }
}
