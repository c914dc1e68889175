//! After an outcome that nobody knows: which documents are there?
//!
//! `create` refuses an id that its backing index has; after a rollover another index is written to, which does not
//! know it. So before documents are sent that may have been sent before, the whole stream is asked for their ids, when
//! nothing of an earlier try is at work in the cluster any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use reqwest::{Method, StatusCode};
use serde::Deserialize;

use super::{
    super::WriteError,
    client::{Body, Client, Request, Unknown},
};

/// Ids in one question: a search answers with 10,000 at most, and each may be there twice.
const IDS_MAX: usize = 5_000;
const ANSWER_BYTES_MAX: usize = 8 << 20;

#[derive(Deserialize)]
struct Found {
    timed_out: bool,
    hits: Option<Hits>,
}

#[derive(Deserialize)]
struct Hits {
    #[serde(default)]
    hits: Vec<Hit>,
}

#[derive(Deserialize)]
struct Hit {
    _index: String,
    _id: String,
}

/// The answer of `_tasks`: empty where nothing is at work.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Tasks {
    nodes: HashMap<String, Node>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Node {
    tasks: HashMap<String, Task>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Task {
    headers: HashMap<String, String>,
}

/// Waits for nobody: says that an earlier bulk with this id is still at work, where it is.
///
/// # Errors
/// [`WriteError::Retry`] while it is, or where the cluster does not say.
pub fn at_rest(client: &Client, opaque_id: &str) -> Result<(), WriteError> {
    let retry =
        |cause: String| WriteError::Retry { cause: format!("asked for its tasks: {cause}") };
    let request = Request {
        method: Method::GET,
        path: &["_tasks"],
        query: &[
            ("actions", "indices:data/write/bulk*"),
            ("filter_path", "nodes.*.tasks.*.headers"),
        ],
        body: Body::None,
        opaque_id: None,
        answer_bytes_max: ANSWER_BYTES_MAX,
    };
    let answer = client.ask(request).map_err(|e| retry(e.to_string()))?;
    match answer.status {
        StatusCode::OK => {}
        // A service that does not let its users see tasks.
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::GONE => {
            tracing::warn!(
                answer = answer.words(),
                "the cluster does not say which bulks are at work: a late one beside a rollover could double"
            );
            return Ok(());
        }
        _ => return Err(retry(answer.words())),
    }
    let tasks: Tasks = answer.json().map_err(|e: Unknown| retry(e.to_string()))?;
    let ours = |task: &Task| task.headers.get("X-Opaque-Id").is_some_and(|id| id == opaque_id);
    if tasks.nodes.values().flat_map(|node| node.tasks.values()).any(ours) {
        let cause = "an earlier bulk of this lane is still at work".to_owned();
        return Err(WriteError::Retry { cause });
    }
    Ok(())
}

/// Which of `ids` are in `stream`, in any of its indices.
///
/// # Errors
/// [`WriteError::Retry`] where that cannot be seen, [`WriteError::Conflict`] where one is there twice.
pub fn present(
    client: &Client,
    stream: &str,
    ids: &[&str],
) -> Result<BTreeSet<String>, WriteError> {
    let retry = |cause: String| WriteError::Retry {
        cause: format!("{stream}: asked which documents are there: {cause}"),
    };
    // Makes all that was written visible to the search, on every copy.
    let refresh = Request {
        method: Method::POST,
        path: &[stream, "_refresh"],
        query: &[("filter_path", "_shards.failed")],
        body: Body::None,
        opaque_id: None,
        answer_bytes_max: ANSWER_BYTES_MAX,
    };
    let answer = client.ask(refresh).map_err(|e| retry(e.to_string()))?;
    let refreshed: Refreshed = match answer.status {
        StatusCode::OK => answer.json().map_err(|e: Unknown| retry(e.to_string()))?,
        _ => return Err(retry(answer.words())),
    };
    if refreshed._shards.failed != 0 {
        return Err(retry(format!("{} shards were not refreshed", refreshed._shards.failed)));
    }
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for ids in ids.chunks(IDS_MAX) {
        let found = search(client, stream, ids).map_err(|e| retry(e.to_string()))?;
        for hit in found {
            if let Some(other) = places.insert(hit._id.clone(), hit._index.clone()) {
                let cause = format!(
                    "{stream}: {} is there twice, in {other} and {}: delete one",
                    hit._id, hit._index
                );
                return Err(WriteError::Conflict { cause });
            }
        }
    }
    Ok(places.into_keys().collect())
}

#[derive(Deserialize)]
struct Refreshed {
    _shards: Shards,
}

#[derive(Deserialize)]
struct Shards {
    failed: u64,
}

fn search(client: &Client, stream: &str, ids: &[&str]) -> Result<Vec<Hit>, Unknown> {
    let question = serde_json::json!({
        "size": ids.len() * 2,
        "query": { "ids": { "values": ids } },
        "_source": false,
        "sort": "_doc",
    });
    let request = Request {
        method: Method::POST,
        path: &[stream, "_search"],
        query: &[
            // Part of an answer would be taken for all of it.
            ("allow_partial_search_results", "false"),
            ("filter_path", "timed_out,hits.hits._index,hits.hits._id"),
        ],
        body: Body::Json(question.to_string()),
        opaque_id: None,
        answer_bytes_max: ANSWER_BYTES_MAX,
    };
    let answer = client.ask(request)?;
    if answer.status != StatusCode::OK {
        return Err(Unknown(answer.words()));
    }
    let found: Found = answer.json()?;
    if found.timed_out {
        return Err(Unknown("the search timed out".to_owned()));
    }
    Ok(found.hits.map(|hits| hits.hits).unwrap_or_default())
}
