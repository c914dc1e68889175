//! `ingestctl tenant public-key` and `revoke`: keys that may stand in pages and in paths.

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::{
    Context, admin,
    fault::{Fault, Verdict},
    human,
    out::remark,
    tail::tenant_name,
};

/// What a new public key may do.
#[derive(Debug, Args)]
pub(super) struct PublicKeyArgs {
    /// Which tenant
    #[arg(value_parser = tenant_name)]
    tenant: String,
    /// Pages of this origin may use it, https://shop.example; may be given more than once; all if not
    #[arg(long = "origin", value_name = "ORIGIN")]
    origins: Vec<String>,
    /// It may send this event type; may be given more than once; all if not
    #[arg(long = "event-type", value_name = "TYPE")]
    event_types: Vec<String>,
}

/// Which public key is taken back.
#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// Which tenant
    #[arg(value_parser = tenant_name)]
    tenant: String,
    /// The key's id: what stands between its underscores, and in `tenant show`
    key_id: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Made {
    id: String,
    key: String,
}

pub(super) async fn add(args: &PublicKeyArgs, context: &Context) -> Result<Verdict, Fault> {
    let path = format!("/api/v1/tenants/{}/public_keys", args.tenant);
    let types = (!args.event_types.is_empty()).then_some(&args.event_types);
    let body = json!({ "origins": args.origins, "event_types": types });
    let document = context.admin()?.post(&path, &body).await?;
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let made: Made = admin::shape(&path, &document)?;
    // The key alone on stdout, so that it can be piped; what to know about it on stderr.
    context.out.line(&human::safe(&made.key))?;
    let (tenant, id) = (human::safe(&args.tenant), human::safe(&made.id));
    remark(&format!("a public key of {tenant}: it may stand in a page, and in a path: /k/KEY/…"));
    remark(&format!("take it back with: ingestctl tenant revoke {tenant} {id}"));
    Ok(Verdict::Done)
}

pub(super) async fn revoke(args: &RevokeArgs, context: &Context) -> Result<Verdict, Fault> {
    let plain = args.key_id.bytes().all(|b| b.is_ascii_alphanumeric());
    if !plain || args.key_id.is_empty() {
        let text = "the id alone: 12 letters and digits, as `tenant show` lists it";
        return Err(Fault::Usage(text.to_owned()));
    }
    let path = format!("/api/v1/tenants/{}/public_keys/{}/revoke", args.tenant, args.key_id);
    let document = context.admin()?.post(&path, &json!({})).await?;
    if context.out.json {
        context.out.document(&document)?;
    } else {
        context.out.line(&format!("{} of {} is refused from now on", args.key_id, args.tenant))?;
    }
    Ok(Verdict::Done)
}
