//! What the answer to a bulk means for each of its documents.

use serde::Deserialize;

use super::client::{Answer, Cause, Unknown};

/// What is asked of an answer: no more than what is read of it.
pub const FILTER: &str = "items.*._index,items.*.status,items.*.failure_store,\
     items.*.error.type,items.*.error.reason,items.*.error.caused_by";

/// Words in which a 400 blames the cluster and not the document.
const NOT_THE_DOCUMENT: &[&str] = &[
    "pipeline with id [",
    "Limit of total fields",
    "data stream",
    "write index",
    "alias",
    "shards open",
    "maximum number of documents",
];

/// What became of one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is there, now or since an earlier try.
    Stored,
    /// It is not there, and can be sent again as it is.
    Again(String),
    /// It may be there: the server was in trouble.
    Doubt(String),
    /// It is no good, by its content.
    Guilty(String),
    /// Nothing of this kind is taken, until somebody mends it.
    Hold(String),
    /// It went into something that is no data stream.
    Astray(String),
}

#[derive(Deserialize)]
struct Bulk {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    create: Created,
}

#[derive(Deserialize)]
struct Created {
    #[serde(default)]
    _index: String,
    status: u16,
    #[serde(default)]
    error: Option<Cause>,
    #[serde(default)]
    failure_store: Option<String>,
}

/// A verdict for each of the `count` documents that were sent to `stream`.
///
/// # Errors
/// The answer is not one to this bulk: nobody knows what became of it.
pub fn of(answer: &Answer, stream: &str, count: usize) -> Result<Vec<Verdict>, Unknown> {
    let bulk: Bulk = answer.json()?;
    if bulk.items.len() != count {
        let answered = bulk.items.len();
        return Err(Unknown(format!("{count} documents were sent and {answered} answered")));
    }
    Ok(bulk.items.into_iter().map(|item| one(item.create, stream)).collect())
}

fn one(created: Created, stream: &str) -> Verdict {
    let Created { _index: index, status, error, failure_store } = created;
    let cause = error.unwrap_or_default();
    let words = format!("{status}: {cause}");
    match status {
        // A stream's documents lie in its backing indices, whose names are others.
        200..=299 if index == stream => Verdict::Astray(format!(
            "{stream} is an index and no data stream: delete it, or give the sink another options.stream"
        )),
        200..=299 if failure_store.as_deref() == Some("used") => {
            Verdict::Guilty("the server put it into its failure store".to_owned())
        }
        200..=299 => Verdict::Stored,
        409 if cause.r#type == "version_conflict_engine_exception" => Verdict::Stored,
        429 => Verdict::Again(words),
        500..=599 => Verdict::Doubt(words),
        400 if !NOT_THE_DOCUMENT.iter().any(|known| words.contains(known)) => {
            Verdict::Guilty(words)
        }
        413 => Verdict::Guilty(words),
        _ => Verdict::Hold(words),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn verdict(status: u16, kind: &str, reason: &str) -> Verdict {
        let error = format!("{{\"type\":\"{kind}\",\"reason\":\"{reason}\"}}");
        let error = Some(serde_json::from_str(&error).unwrap());
        one(Created { _index: ".ds-s-000001".into(), status, error, failure_store: None }, "s")
    }

    #[test]
    fn each_answer_says_what_to_do_next() {
        let made = |index: &str, store: Option<&str>| {
            let failure_store = store.map(str::to_owned);
            one(Created { _index: index.to_owned(), status: 201, error: None, failure_store }, "s")
        };
        assert_eq!(made(".ds-s-000001", None), Verdict::Stored);
        assert_eq!(made(".ds-s-000001", Some("not_enabled")), Verdict::Stored);
        assert!(matches!(made(".fs-s-000001", Some("used")), Verdict::Guilty(_)));
        assert!(matches!(made("s", None), Verdict::Astray(_)));
        assert_eq!(verdict(409, "version_conflict_engine_exception", "x"), Verdict::Stored);
        let again = verdict(429, "es_rejected_execution_exception", "full");
        assert_eq!(again, Verdict::Again("429: es_rejected_execution_exception: full".to_owned()));
        for status in [500, 502, 503, 504] {
            assert!(matches!(
                verdict(status, "unavailable_shards_exception", "x"),
                Verdict::Doubt(_)
            ));
        }
        for kind in [
            "mapper_parsing_exception",
            "document_parsing_exception",
            "illegal_argument_exception",
            "strict_dynamic_mapping_exception",
        ] {
            assert!(
                matches!(verdict(400, kind, "[n] of type [long]"), Verdict::Guilty(_)),
                "{kind}"
            );
        }
        for (status, reason) in [
            (400, "pipeline with id [p] does not exist"),
            (400, "Limit of total fields [1000] has been exceeded"),
            (401, "who?"),
            (403, "index [s] blocked by: [FORBIDDEN/8/index write (api)];"),
            (404, "no such index [s]"),
            (409, "another conflict"),
        ] {
            assert!(matches!(verdict(status, "x_exception", reason), Verdict::Hold(_)), "{reason}");
        }
    }
}
