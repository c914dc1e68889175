//! The books as they stand in memory: totals, minutes and gaps, without counting the log.

use axum::{
    Json,
    extract::{Query, State},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tidegate_event::ReceivedAt;

use super::{Problem, Shared, records::time_text};
use crate::{
    books::{Minute, MinuteRow},
    pipeline::Pipeline,
};

/// Rows told at most in one answer.
const ROWS_SHOWN: usize = 100_000;

/// Which minutes.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Asked {
    /// RFC 3339 or microseconds since 1970: the minute it is in is the first told.
    from: Option<String>,
    /// The same: the minute it is in is the last told.
    to: Option<String>,
    tenant: Option<String>,
    event_type: Option<String>,
}

fn moment(name: &str, text: &str) -> Result<Minute, Problem> {
    if let Ok(micros) = text.parse::<i64>() {
        return Ok(Minute::of(ReceivedAt(micros)));
    }
    let parsed: Result<jiff::Timestamp, _> = text.parse();
    let moment = parsed.map_err(|e| {
        Problem::bad_request(format!(
            "{name}: {e}; say 2026-11-21T10:00:00Z, or microseconds since 1970"
        ))
    })?;
    Ok(Minute::of(ReceivedAt(moment.as_microsecond())))
}

pub(super) async fn books(
    State(pipeline): State<Shared>,
    Query(asked): Query<Asked>,
) -> Result<Json<Value>, Problem> {
    let from = asked.from.as_deref().map(|text| moment("from", text)).transpose()?;
    let to = asked.to.as_deref().map(|text| moment("to", text)).transpose()?;
    let behind = to.map_or(Minute(i64::MAX), |to| Minute(to.0.saturating_add(1)));
    let wanted = |row: &MinuteRow| {
        asked.tenant.as_deref().is_none_or(|tenant| tenant == row.tenant.as_str())
            && asked.event_type.as_deref().is_none_or(|kind| kind == row.event_type.as_str())
    };
    let mut rows = pipeline.books.minutes(from.unwrap_or(Minute(i64::MIN)), behind);
    rows.retain(wanted);
    let truncated = rows.len() > ROWS_SHOWN;
    rows.truncate(ROWS_SHOWN);
    let standing = pipeline.books_standing();
    Ok(Json(json!({
        "difference": standing.difference,
        "in_flight": standing.in_flight,
        "unaccounted": standing.unaccounted,
        "refused": standing.refused,
        "gaps": gaps(&pipeline),
        "tenants": pipeline.books.copy(),
        "minutes": rows.iter().map(shown).collect::<Vec<_>>(),
        "minutes_truncated": truncated,
        "minutes_since": pipeline.books.minutes_since().map(|m| time_text(m.start().0)),
    })))
}

fn shown(row: &MinuteRow) -> Value {
    let mut shown = json!(row);
    if let Value::Object(shown) = &mut shown {
        shown.insert("minute".to_owned(), time_text(row.minute.start().0).into());
    }
    shown
}

/// The times in which it is not known what was refused.
pub(super) fn gaps(pipeline: &Pipeline) -> Value {
    let gaps = pipeline.books_gaps();
    let spans = gaps.spans.iter().map(|gap| {
        let from = gap.from.map(|from| time_text(from.0));
        json!({ "from": from, "to": time_text(gap.to.0) })
    });
    json!({ "count": gaps.count, "spans": spans.collect::<Vec<_>>() })
}
