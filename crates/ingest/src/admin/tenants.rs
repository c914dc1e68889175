//! Tenants for operators: list, add, rotate a key, disable.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tidegate_event::{EventType, TenantId};

use super::{Problem, Shared, records::time_text};
use crate::tenants::{ChangeError, NewPublicKey, NewTenant, Quota, Tenant, TypeQuota};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Add {
    tenant: String,
    events_per_second: Option<u64>,
    bytes_per_second: Option<u64>,
    events_burst: Option<u64>,
    bytes_burst: Option<u64>,
    events_per_day: Option<u64>,
    bytes_per_day: Option<u64>,
    event_types: Option<u64>,
    weight: Option<u32>,
    #[serde(default)]
    types: BTreeMap<EventType, TypeQuota>,
    #[serde(default)]
    strict: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotate {
    expire_old_after_seconds: Option<u64>,
}

fn problem(error: ChangeError) -> Problem {
    let text = error.to_string();
    match error {
        ChangeError::Missing(_) | ChangeError::NoSuchKey(..) => Problem::not_found(text),
        ChangeError::Exists(_) => Problem::conflict(text),
        ChangeError::Fault(_) => Problem::bad_request(text),
        ChangeError::Io(_) | ChangeError::Random(_) => Problem::internal(text),
    }
}

fn named(tenant: &str) -> Result<TenantId, Problem> {
    TenantId::new(tenant).map_err(|e| Problem::bad_request(e.to_string()))
}

fn shown(tenant: &Tenant) -> Value {
    let key = |key: &crate::tenants::Key| {
        json!({
            "id": key.id,
            "not_after": key.not_after.map(time_text),
            "event_types": key.event_types,
            "public": key.public.is_some(),
            "origins": key.public,
        })
    };
    let pair = |pair: &crate::tenants::Pair| {
        json!({
            "access_key_id": pair.id,
            "not_after": pair.not_after.map(time_text),
            "event_types": pair.event_types,
        })
    };
    json!({
        "tenant": tenant.id,
        "enabled": tenant.enabled,
        "strict": tenant.strict,
        "quota": tenant.quota,
        "keys": tenant.keys.iter().map(key).collect::<Vec<_>>(),
        "sigv4": tenant.pairs.iter().map(pair).collect::<Vec<_>>(),
    })
}

pub(super) async fn list(State(pipeline): State<Shared>) -> Json<Value> {
    let tenants: Vec<Value> = pipeline.tenants.list().iter().map(|t| shown(t)).collect();
    Json(json!({ "tenants": tenants }))
}

pub(super) async fn add(
    State(pipeline): State<Shared>,
    Json(add): Json<Add>,
) -> Result<Json<Value>, Problem> {
    let tenant = named(&add.tenant)?;
    let quota = Quota {
        events_per_second: add.events_per_second,
        events_burst: add.events_burst,
        bytes_per_second: add.bytes_per_second,
        bytes_burst: add.bytes_burst,
        events_per_day: add.events_per_day,
        bytes_per_day: add.bytes_per_day,
        event_types: add.event_types,
        weight: add.weight,
        types: add.types,
    };
    let new = NewTenant { id: tenant.clone(), quota, strict: add.strict };
    let key = pipeline.tenants.add(&new).map_err(problem)?;
    tracing::info!(%tenant, "tenant added");
    Ok(Json(json!({ "tenant": tenant, "key": key })))
}

/// What the quota says is set, what it leaves out stays.
pub(super) async fn quota(
    State(pipeline): State<Shared>,
    Path(tenant): Path<String>,
    Json(quota): Json<Quota>,
) -> Result<Json<Value>, Problem> {
    let tenant = named(&tenant)?;
    pipeline.tenants.set_quota(&tenant, &quota).map_err(problem)?;
    tracing::info!(%tenant, "quota changed");
    let quota = pipeline.tenants.get(&tenant).map(|tenant| tenant.quota.clone());
    Ok(Json(json!({ "tenant": tenant, "quota": quota })))
}

pub(super) async fn rotate(
    State(pipeline): State<Shared>,
    Path(tenant): Path<String>,
    Json(rotate): Json<Rotate>,
) -> Result<Json<Value>, Problem> {
    let tenant = named(&tenant)?;
    let expire = rotate.expire_old_after_seconds.map(std::time::Duration::from_secs);
    let rotated = pipeline.tenants.rotate(&tenant, expire).map_err(problem)?;
    tracing::info!(%tenant, "key rotated");
    let expires = rotated.old_keys_expire_at.map(time_text);
    Ok(Json(json!({ "tenant": tenant, "key": rotated.key, "old_keys_expire_at": expires })))
}

/// A SigV4 key pair, the only time that its secret is told.
pub(super) async fn add_pair(
    State(pipeline): State<Shared>,
    Path(tenant): Path<String>,
    Json(rotate): Json<Rotate>,
) -> Result<Json<Value>, Problem> {
    let tenant = named(&tenant)?;
    let expire = rotate.expire_old_after_seconds.map(std::time::Duration::from_secs);
    let pair = pipeline.tenants.add_pair(&tenant, expire).map_err(problem)?;
    tracing::info!(%tenant, id = pair.id, "SigV4 key pair added");
    Ok(Json(json!({
        "tenant": tenant,
        "access_key_id": pair.id,
        "secret_access_key": pair.secret,
        "old_pairs_expire_at": pair.old_pairs_expire_at.map(time_text),
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddPublic {
    #[serde(default)]
    origins: Vec<String>,
    event_types: Option<Vec<String>>,
}

pub(super) async fn add_public(
    State(pipeline): State<Shared>,
    Path(tenant): Path<String>,
    Json(add): Json<AddPublic>,
) -> Result<Json<Value>, Problem> {
    let tenant = named(&tenant)?;
    let new = NewPublicKey { origins: add.origins, event_types: add.event_types };
    let key = pipeline.tenants.add_public(&tenant, &new).map_err(problem)?;
    tracing::info!(%tenant, key = key.id, "public key added");
    Ok(Json(json!({ "tenant": tenant, "id": key.id, "key": key.text })))
}

pub(super) async fn revoke_public(
    State(pipeline): State<Shared>,
    Path((tenant, key)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let tenant = named(&tenant)?;
    pipeline.tenants.revoke_public(&tenant, &key).map_err(problem)?;
    tracing::info!(%tenant, key, "public key revoked");
    Ok(Json(json!({ "tenant": tenant, "id": key, "revoked": true })))
}

pub(super) async fn disable(
    state: State<Shared>,
    path: Path<String>,
) -> Result<Json<Value>, Problem> {
    set_enabled(&state, &path, false)
}

pub(super) async fn enable(
    state: State<Shared>,
    path: Path<String>,
) -> Result<Json<Value>, Problem> {
    set_enabled(&state, &path, true)
}

fn set_enabled(pipeline: &Shared, tenant: &str, enabled: bool) -> Result<Json<Value>, Problem> {
    let tenant = named(tenant)?;
    let changed = match enabled {
        true => pipeline.tenants.enable(&tenant),
        false => pipeline.tenants.disable(&tenant),
    };
    changed.map_err(problem)?;
    tracing::info!(%tenant, enabled, "tenant changed");
    Ok(Json(json!({ "tenant": tenant, "enabled": enabled })))
}
