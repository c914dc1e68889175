//! What clients ask before they send: who is there, under which license, and whether their templates are.
//!
//! Nothing here has templates, policies or pipelines. Each is said to be there, and taken when it comes, so that clients
//! which set them up first go on to send.

use http::{Method, StatusCode, request::Parts};
use serde_json::{Value, json};

use super::answers::{compatible_with, failure, plain, say};
use crate::{
    edge::{
        answer::Answer,
        protocol::{Probe, path::percent_decoded},
    },
    shed::ShedReason,
};

const LOOK: &[Method] = &[Method::GET, Method::HEAD];
const SET: &[Method] = &[Method::GET, Method::HEAD, Method::PUT, Method::POST];

pub(super) const PROBES: &[Probe] = &[
    Probe { methods: LOOK, path: "/", answer: info },
    Probe { methods: LOOK, path: "/_license", answer: license },
    Probe { methods: LOOK, path: "/_xpack", answer: xpack },
    Probe { methods: LOOK, path: "/_cluster/health", answer: health },
    Probe { methods: LOOK, path: "/_cat/health", answer: cat_health },
    Probe { methods: SET, path: "/_index_template/{name}", answer: index_template },
    Probe { methods: SET, path: "/_component_template/{name}", answer: component_template },
    Probe { methods: SET, path: "/_template/{name}", answer: template },
    Probe { methods: SET, path: "/_ilm/policy/{name}", answer: policy },
    Probe { methods: SET, path: "/_ingest/pipeline/{name}", answer: pipeline },
    Probe { methods: SET, path: "/_data_stream/{name}", answer: data_stream },
];

/// The version told to a client that asks to be compatible with one: some refuse to talk to an older server.
fn version(parts: &Parts) -> &'static str {
    match compatible_with(parts) {
        Some(7) => "7.17.29",
        Some(8) => "8.19.0",
        _ => "9.2.0",
    }
}

fn well_or(parts: &Parts, well: bool, body: &Value) -> Answer {
    if well {
        return say(parts, StatusCode::OK, body);
    }
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let reason = "no document would be taken now; ask again later";
    let full = ShedReason::LogFull.as_str();
    say(parts, status, &failure(status, "es_rejected_execution_exception", reason, full))
}

fn info(parts: &Parts, well: bool) -> Answer {
    let body = json!({
        "name": "tidegate",
        "cluster_name": "tidegate",
        "cluster_uuid": "tidegate",
        "version": {
            "number": version(parts),
            "build_flavor": "default",
            "build_type": "tar",
            "build_hash": "unknown",
            "build_date": "2026-01-01T00:00:00.000Z",
            "build_snapshot": false,
            "lucene_version": "10.0.0",
            "minimum_wire_compatibility_version": "7.17.0",
            "minimum_index_compatibility_version": "7.0.0",
        },
        "tagline": "You Know, for Search",
    });
    well_or(parts, well, &body)
}

fn license(parts: &Parts, _: bool) -> Answer {
    let body = json!({ "license": {
        "status": "active",
        "uid": "00000000-0000-0000-0000-000000000000",
        "type": "basic",
        "issue_date": "2026-01-01T00:00:00.000Z",
        "issue_date_in_millis": 1_767_225_600_000_i64,
        "max_nodes": 1000,
        "issued_to": "tidegate",
        "issuer": "tidegate",
        "start_date_in_millis": -1,
    } });
    say(parts, StatusCode::OK, &body)
}

fn xpack(parts: &Parts, _: bool) -> Answer {
    let body = json!({
        "license": { "uid": "00000000-0000-0000-0000-000000000000", "type": "basic", "mode": "basic", "status": "active" },
        "features": {
            "ilm": { "available": true, "enabled": true },
            "security": { "available": true, "enabled": true },
            "monitoring": { "available": false, "enabled": false },
        },
        "tagline": "You know, for X",
    });
    say(parts, StatusCode::OK, &body)
}

fn health(parts: &Parts, well: bool) -> Answer {
    let body = json!({
        "cluster_name": "tidegate",
        "status": "green",
        "timed_out": false,
        "number_of_nodes": 1,
        "number_of_data_nodes": 1,
        "active_primary_shards": 1,
        "active_shards": 1,
        "unassigned_shards": 0,
    });
    well_or(parts, well, &body)
}

fn cat_health(parts: &Parts, well: bool) -> Answer {
    match well {
        true => plain(parts, "tidegate green 1 1\n"),
        false => well_or(parts, well, &Value::Null),
    }
}

/// The name at the end of the path, decoded.
fn name(parts: &Parts) -> String {
    let last = parts.uri.path().rsplit('/').next().unwrap_or_default();
    String::from_utf8_lossy(&percent_decoded(last)).into_owned()
}

/// What is there, or that it is taken.
fn there(parts: &Parts, body: &Value) -> Answer {
    match parts.method == Method::PUT || parts.method == Method::POST {
        true => say(parts, StatusCode::OK, &json!({ "acknowledged": true })),
        false => say(parts, StatusCode::OK, body),
    }
}

fn index_template(parts: &Parts, _: bool) -> Answer {
    let name = name(parts);
    let template = json!({ "index_patterns": ["*"], "composed_of": [], "data_stream": {} });
    there(parts, &json!({ "index_templates": [{ "name": name, "index_template": template }] }))
}

fn component_template(parts: &Parts, _: bool) -> Answer {
    let template = json!({ "template": {} });
    let named = json!({ "name": name(parts), "component_template": template });
    there(parts, &json!({ "component_templates": [named] }))
}

fn template(parts: &Parts, _: bool) -> Answer {
    let template = json!({ "order": 0, "index_patterns": ["*"], "settings": {}, "mappings": {}, "aliases": {} });
    there(parts, &json!({ name(parts): template }))
}

fn policy(parts: &Parts, _: bool) -> Answer {
    let policy = json!({
        "version": 1,
        "modified_date": "2026-01-01T00:00:00.000Z",
        "policy": { "phases": {} },
    });
    there(parts, &json!({ name(parts): policy }))
}

fn pipeline(parts: &Parts, _: bool) -> Answer {
    there(parts, &json!({ name(parts): { "processors": [] } }))
}

fn data_stream(parts: &Parts, _: bool) -> Answer {
    let name = name(parts);
    let stream = json!({
        "name": name,
        "timestamp_field": { "name": "@timestamp" },
        "indices": [],
        "generation": 1,
        "status": "GREEN",
        "template": name,
    });
    there(parts, &json!({ "data_streams": [stream] }))
}
