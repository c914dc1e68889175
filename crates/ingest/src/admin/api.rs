//! Schemas, configuration, reload and drain for operators.

use axum::{Json, extract::State};
use http::StatusCode;
use serde_json::{Value, json};

use super::{Problem, Shared};

pub(super) async fn schemas(State(pipeline): State<Shared>) -> Json<Value> {
    let set = pipeline.normalizer.schemas();
    let shown = |entry: &crate::normalize::SchemaEntry| {
        let schema = &entry.schema;
        let column = |c: &crate::normalize::ColumnSpec| json!({ "name": c.name, "type": c.ty.as_str(), "unit": c.unit });
        json!({
            "tenant": entry.tenant,
            "event_type": entry.event_type,
            "version": schema.version(),
            "hash": hex::encode(schema.hash()),
            "columns": schema.columns().iter().map(column).collect::<Vec<_>>(),
            "schema": schema.document(),
        })
    };
    let schemas: Vec<Value> = set.entries().iter().map(shown).collect();
    Json(json!({ "schemas": schemas }))
}

pub(super) async fn config(State(pipeline): State<Shared>) -> Result<Json<Value>, Problem> {
    let mut shown = serde_json::to_value(&pipeline.config)
        .map_err(|e| Problem::internal(format!("the configuration could not be shown: {e}")))?;
    for secret in ["/admin/token", "/hop/token"] {
        if let Some(token) = shown.pointer_mut(secret)
            && !token.is_null()
        {
            *token = json!("[secret]");
        }
    }
    // Kafka's too, and its password stands beside them.
    if let Some(password) = shown.pointer_mut("/log/kafka/sasl/password") {
        *password = json!("[secret]");
    }
    if let Some(Value::Object(options)) = shown.pointer_mut("/log/kafka/options") {
        options.values_mut().for_each(|value| *value = json!("[set]"));
    }
    // A sink's options may hold credentials; their names are enough.
    if let Some(sinks) = shown.pointer_mut("/sink").and_then(Value::as_array_mut) {
        for sink in sinks.iter_mut() {
            for place in ["/options", "/shadow"] {
                if let Some(Value::Object(options)) = sink.pointer_mut(place) {
                    options.values_mut().for_each(|value| *value = json!("[set]"));
                }
            }
        }
    }
    Ok(Json(shown))
}

pub(super) async fn reload(State(pipeline): State<Shared>) -> Result<Json<Value>, Problem> {
    let reloading = std::sync::Arc::clone(&pipeline);
    let done = tokio::task::spawn_blocking(move || reloading.reload()).await;
    match done.map_err(|e| Problem::internal(e.to_string()))? {
        Ok(reloaded) => Ok(Json(json!(reloaded))),
        Err(faults) => {
            let detail = "nothing was changed; the generation before stays live";
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            Err(Problem::new(status, "reload_refused", detail).with("errors", json!(faults)))
        }
    }
}

pub(super) async fn drain(State(pipeline): State<Shared>) -> Json<Value> {
    pipeline.begin_drain("asked by an operator");
    Json(json!({ "draining": true }))
}
