//! What must be there before a document is sent: a server of a kind that we know, a template, a data stream.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::{
    super::WriteError,
    client::{ANSWER_BYTES_MAX, Answer, Body, Client, Request, Unknown},
    config::Settings,
};

/// Beyond the templates that Elasticsearch brings itself (100), below what an operator would take to go first.
const PRIORITY: u32 = 200;
/// The oldest servers that have data streams as they are now.
const ELASTICSEARCH_OLDEST: (u32, u32) = (7, 13);
const OPENSEARCH_OLDEST: (u32, u32) = (1, 0);
const DURABILITY: &str = "index.translog.durability";

/// The streams that are known to be there.
#[derive(Default)]
pub struct Streams {
    known: Mutex<HashSet<String>>,
    /// One change at a time.
    changing: Mutex<()>,
}

#[derive(Deserialize)]
struct About {
    version: Version,
}

#[derive(Deserialize)]
struct Version {
    number: String,
    #[serde(default)]
    distribution: Option<String>,
}

#[derive(Deserialize)]
struct Listed {
    data_streams: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct IndexSettings {
    settings: BTreeMap<String, String>,
}

impl Streams {
    /// Makes sure that `stream` is a data stream that keeps what it has answered for.
    ///
    /// # Errors
    /// [`WriteError::Retry`] where that cannot be seen or done, in words that say what to do.
    pub fn ensure(
        &self,
        client: &Client,
        settings: &Settings,
        stream: &str,
    ) -> Result<(), WriteError> {
        if self.known().contains(stream) {
            return Ok(());
        }
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.known().contains(stream) {
            return Ok(());
        }
        let retry = |cause: String| WriteError::Retry { cause: format!("{stream}: {cause}") };
        product(client).map_err(retry)?;
        if !is_there(client, stream).map_err(retry)? {
            if settings.create_template {
                template(client, settings.stream.prefix()).map_err(retry)?;
            }
            make(client, stream).map_err(retry)?;
        }
        if settings.fsync {
            durable(client, stream).map_err(retry)?;
        }
        self.known().insert(stream.to_owned());
        Ok(())
    }

    /// Looks at the stream again before the next bulk.
    pub fn forget(&self, stream: &str) {
        self.known().remove(stream);
    }

    fn known(&self) -> MutexGuard<'_, HashSet<String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ask(
    client: &Client,
    method: Method,
    path: &[&str],
    query: &[(&str, &str)],
    body: Body,
) -> Result<Answer, String> {
    let request =
        Request { method, path, query, body, opaque_id: None, answer_bytes_max: ANSWER_BYTES_MAX };
    client.ask(request).map_err(|unknown| unknown.to_string())
}

/// Asks whether a server answers that this sink was made for.
///
/// # Errors
/// What is there instead.
pub fn product(client: &Client) -> Result<(), String> {
    let answer = ask(client, Method::GET, &[], &[], Body::None)?;
    if answer.status != StatusCode::OK {
        return Err(answer.words());
    }
    let about: About =
        answer.json().map_err(|e: Unknown| format!("no Elasticsearch or OpenSearch: {e}"))?;
    known(&about.version)
}

fn known(version: &Version) -> Result<(), String> {
    let mut parts = version.number.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let have = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let (name, oldest) = match version.distribution.as_deref() {
        Some("opensearch") => ("OpenSearch", OPENSEARCH_OLDEST),
        _ => ("Elasticsearch", ELASTICSEARCH_OLDEST),
    };
    if have < oldest {
        let (major, minor) = oldest;
        return Err(format!("{name} {} is too old: {major}.{minor} at least", version.number));
    }
    Ok(())
}

fn is_there(client: &Client, stream: &str) -> Result<bool, String> {
    let answer = ask(client, Method::GET, &["_data_stream", stream], &[], Body::None)?;
    match answer.status {
        StatusCode::OK => {
            let listed: Listed = answer.json().map_err(|e: Unknown| e.to_string())?;
            Ok(!listed.data_streams.is_empty())
        }
        StatusCode::NOT_FOUND => Ok(false),
        _ => Err(answer.words()),
    }
}

/// Makes our template, unless one of its name is there, whoever made it.
fn template(client: &Client, prefix: &str) -> Result<(), String> {
    let name = prefix.trim_end_matches(['.', '_', '-']);
    let path = ["_index_template", name];
    let answer = ask(client, Method::GET, &path, &[("filter_path", "*.name")], Body::None)?;
    match answer.status {
        StatusCode::OK => return Ok(()),
        StatusCode::NOT_FOUND => {}
        _ => return Err(format!("the index template {name}: {}", answer.words())),
    }
    let body = Body::Json(content(prefix).to_string());
    // `create`: should one have come meanwhile, it stays as it is.
    let answer = ask(client, Method::PUT, &path, &[("create", "true")], body)?;
    if !answer.status.is_success() {
        return Err(format!("the index template {name} cannot be made: {}", answer.words()));
    }
    tracing::info!(name, "the index template was made");
    Ok(())
}

/// Our template: what is ours has its type; of what comes besides, no value may make another be refused.
fn content(prefix: &str) -> serde_json::Value {
    let keyword = json!({ "type": "keyword" });
    let kept = json!({ "type": "keyword", "index": false, "doc_values": false });
    let time = json!({ "type": "date_nanos" });
    let unsearched = json!({ "type": "object", "enabled": false });
    json!({
        "index_patterns": [format!("{prefix}*")],
        "priority": PRIORITY,
        "data_stream": {},
        "version": 1,
        "_meta": { "made_by": "tidegate" },
        "template": {
            "settings": { "index.mapping.ignore_malformed": true },
            "mappings": {
                "date_detection": false,
                "dynamic_templates": [
                    { "doubles": {
                        "match_mapping_type": "double", "mapping": { "type": "double" } } },
                    { "objects": { "match_mapping_type": "object", "mapping": unsearched } }
                ],
                "properties": {
                    "@timestamp": { "type": "date_nanos", "ignore_malformed": false },
                    "event": { "properties": { "id": keyword } },
                    "tidegate": { "properties": {
                        "tenant": keyword, "event_type": keyword, "log_id": keyword,
                        "partition": { "type": "integer" }, "offset": { "type": "long" },
                        "received_at": time, "schema_version": { "type": "integer" }
                    } },
                    "dead_letter": { "properties": {
                        "reason": keyword, "field": { "type": "keyword", "ignore_above": 1024 },
                        "message": { "type": "text" }, "raw": kept
                    } },
                    "custom": unsearched
                }
            }
        }
    })
}

fn make(client: &Client, stream: &str) -> Result<(), String> {
    let answer = ask(client, Method::PUT, &["_data_stream", stream], &[], Body::None)?;
    if answer.status.is_success() {
        tracing::info!(stream, "the data stream was made");
        return Ok(());
    }
    let exists = |kind: &str| kind == "resource_already_exists_exception";
    if answer.cause().is_some_and(|cause| exists(&cause.r#type)) && is_there(client, stream)? {
        return Ok(());
    }
    Err(format!(
        "no data stream is there, and none can be made; it needs an index template with a pattern \
         for this name and with \"data_stream\": {{}}: {}",
        answer.words()
    ))
}

/// Refuses a stream of which an index answers before its translog is on disk.
fn durable(client: &Client, stream: &str) -> Result<(), String> {
    let path = [stream, "_settings", DURABILITY];
    let answer = ask(client, Method::GET, &path, &[("flat_settings", "true")], Body::None)?;
    if answer.status != StatusCode::OK {
        return Err(format!("its settings: {}", answer.words()));
    }
    let indices: BTreeMap<String, IndexSettings> =
        answer.json().map_err(|e: Unknown| format!("its settings: {e}"))?;
    let lax = |of: &IndexSettings| of.settings.get(DURABILITY).is_some_and(|v| v == "async");
    match indices.iter().find(|(_, settings)| lax(settings)) {
        Some((index, _)) => Err(format!(
            "{index} has {DURABILITY} = async: what it has answered for is lost with its power; \
             set it to request, here and in the template, or options.fsync = false"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_that_have_data_streams_are_taken() {
        let check = |number: &str, distribution: Option<&str>| {
            let distribution = distribution.map(str::to_owned);
            known(&Version { number: number.to_owned(), distribution })
        };
        for number in ["7.13.0", "8.19.4", "9.2.0"] {
            assert_eq!(check(number, None), Ok(()));
        }
        assert_eq!(check("1.3.0", Some("opensearch")), Ok(()));
        assert_eq!(check("2.19.3", Some("opensearch")), Ok(()));
        assert!(check("7.12.1", None).unwrap_err().contains("7.13 at least"));
        assert!(check("6.8", None).is_err());
        assert!(check("x", Some("opensearch")).is_err());
    }

    #[test]
    fn the_template_catches_our_names_and_no_others() {
        let content = content("tidegate-");
        assert_eq!(content.get("index_patterns").unwrap(), &json!(["tidegate-*"]));
        assert!(content.get("data_stream").is_some());
    }
}
