//! `[quota_store]`: where several edges share their quotas.

use serde::{Deserialize, Serialize};

use crate::config::Span;

/// `[quota_store]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaStoreConfig {
    /// `redis://…`, or `file:PATH` or `env:NAME` that holds it; absent: each edge for itself.
    #[serde(skip_serializing)]
    pub url: Option<String>,
    /// How many edges share it at most.
    pub edges: u32,
    /// How often leases are taken.
    pub lease: Span,
}

impl Default for QuotaStoreConfig {
    fn default() -> Self {
        let lease = Span(std::time::Duration::from_millis(200));
        Self { url: None, edges: 2, lease }
    }
}

impl QuotaStoreConfig {
    /// What in it makes no sense, one sentence each without its section.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !(1..=1000).contains(&self.edges) {
            faults.push("edges: 1 to 1000".to_owned());
        }
        if !(50..=5_000).contains(&self.lease.0.as_millis()) {
            faults.push("lease: 50ms to 5s".to_owned());
        }
        if let Some(url) = &self.url {
            let known = ["redis://", "redis+unix://", "unix://", "file:", "env:"];
            if !known.iter().any(|scheme| url.starts_with(scheme)) {
                faults.push("url: redis://HOST:PORT, file:PATH or env:NAME".to_owned());
            }
        }
        faults
    }

    /// The URL itself, looked up where it is a reference.
    ///
    /// # Errors
    /// One line for people; holds nothing of the URL, which may hold a password.
    pub fn resolved(&self) -> Result<Option<String>, String> {
        let Some(text) = &self.url else { return Ok(None) };
        let url = if let Some(path) = text.strip_prefix("file:") {
            std::fs::read_to_string(path).map_err(|e| format!("quota_store.url: {path}: {e}"))?
        } else if let Some(name) = text.strip_prefix("env:") {
            std::env::var(name).map_err(|e| format!("quota_store.url: {name}: {e}"))?
        } else {
            text.clone()
        };
        match url.trim() {
            "" => Err("quota_store.url: is empty".to_owned()),
            url => Ok(Some(url.to_owned())),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_looked_up_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("url");
        std::fs::write(&path, "redis://:secret@127.0.0.1/\n").unwrap();
        let url = Some(format!("file:{}", path.display()));
        let config = QuotaStoreConfig { url, ..QuotaStoreConfig::default() };
        assert_eq!(config.resolved().unwrap().unwrap(), "redis://:secret@127.0.0.1/");
        assert!(!serde_json::to_string(&config).unwrap().contains("url"));
        std::fs::write(&path, "").unwrap();
        config.resolved().unwrap_err();
        assert_eq!(config.faults(), Vec::<String>::new());
        let wrong = QuotaStoreConfig { url: Some("http://x".to_owned()), edges: 0, ..config };
        assert_eq!(wrong.faults().len(), 2);
    }
}
