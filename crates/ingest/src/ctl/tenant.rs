//! `ingestctl tenant`: who may send.

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Context, admin,
    fault::{Fault, Verdict},
    human,
    out::{Tone, remark},
    public_key::{self, PublicKeyArgs, RevokeArgs},
    table::Table,
    tail::tenant_name,
};
use crate::{
    config::Span,
    tenants::{Quota, TypeQuota},
};
use tidegate_event::EventType;

const PATH: &str = "/api/v1/tenants";

/// Add, list, re-key, disable and enable tenants
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ingestctl tenant add acme --events-per-second 5000
  ingestctl tenant set acme --events-per-second 10000
  ingestctl tenant list
  ingestctl tenant rotate acme --expire-old-after 1d
  ingestctl tenant sigv4 acme
  ingestctl tenant disable acme")]
pub struct TenantArgs {
    #[command(subcommand)]
    command: TenantCommand,
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// Add a tenant and print its first key
    #[command(after_help = "\
The key is shown once and cannot be read again; a lost one is replaced with `tenant rotate`.
Quotas that are not given are those of [defaults.quota].

Examples:
  ingestctl tenant add acme
  ingestctl tenant add acme --events-per-second 5000 --bytes-per-second 5MiB
  export TIDEGATE_KEY=$(ingestctl tenant add acme --json | jq -r .key)")]
    Add(AddArgs),
    /// Change what a tenant may send
    #[command(after_help = "\
What is not given stays as it is. The change is live with the next request.

Examples:
  ingestctl tenant set acme --events-per-second 10000 --events-burst 20000
  ingestctl tenant set acme --events-per-day 50000000 --type-quota page_view=500/1000")]
    Set {
        /// Which tenant
        #[arg(value_parser = tenant_name)]
        tenant: String,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// Show one tenant, its whole quota and its keys
    #[command(after_help = "\
Examples:
  ingestctl tenant show acme")]
    Show {
        /// Which tenant
        #[arg(value_parser = tenant_name)]
        tenant: String,
    },
    /// List tenants, their quotas and keys
    #[command(after_help = "\
Examples:
  ingestctl tenant list
  ingestctl tenant list --json | jq -r '.tenants[] | select(.enabled | not) | .tenant'")]
    List,
    /// Give a tenant a new key beside its old one
    #[command(after_help = "\
Two keys may be live at once: give out the new one, then let the old one expire.

Examples:
  ingestctl tenant rotate acme
  ingestctl tenant rotate acme --expire-old-after 7d
  ingestctl tenant rotate acme --expire-old-after 0s       a key that leaked")]
    Rotate {
        /// Which tenant
        #[arg(value_parser = tenant_name)]
        tenant: String,
        /// How long the old keys stay good; for ever if not given
        #[arg(long, value_name = "SPAN")]
        expire_old_after: Option<Span>,
    },
    /// Give a tenant a SigV4 key pair, for clients of the Firehose API
    #[command(after_help = "\
The secret is shown once and cannot be read again. A second pair stands beside the first; let that one
expire when the new one is given out.

Examples:
  ingestctl tenant sigv4 acme
  ingestctl tenant sigv4 acme --expire-old-after 7d
  ingestctl tenant sigv4 acme --expire-old-after 0s        a secret that leaked")]
    Sigv4 {
        /// Which tenant
        #[arg(value_parser = tenant_name)]
        tenant: String,
        /// How long the former pair stays good; until the next one if not given
        #[arg(long, value_name = "SPAN")]
        expire_old_after: Option<Span>,
    },
    /// Give a tenant a public key, for pages and apps
    #[command(after_help = "\
A public key only sends, by the protocols that pages may use, and may stand in a path: /k/KEY/v1/batch.
Rotating leaves it as it is. Whoever reads it can send as the page does: let it send few types.

Examples:
  ingestctl tenant public-key acme --origin https://shop.example
  ingestctl tenant public-key acme --event-type snowplow.page_view --event-type snowplow.page_ping")]
    PublicKey(PublicKeyArgs),
    /// Refuse a public key from now on
    #[command(after_help = "\
Examples:
  ingestctl tenant revoke acme 0aB1cD2eF3gH")]
    Revoke(RevokeArgs),
    /// Refuse all keys of a tenant from now on
    #[command(after_help = "\
What was accepted stays and is delivered.

Examples:
  ingestctl tenant disable acme")]
    Disable {
        /// Which tenant
        #[arg(value_parser = tenant_name)]
        tenant: String,
    },
    /// Take a tenant's keys again
    #[command(after_help = "\
Examples:
  ingestctl tenant enable acme")]
    Enable {
        /// Which tenant
        #[arg(value_parser = tenant_name)]
        tenant: String,
    },
}

#[derive(Debug, Args)]
struct AddArgs {
    /// Its name: a small letter, then up to 62 of a-z, 0-9, _ and -
    #[arg(value_parser = tenant_name)]
    tenant: String,
    #[command(flatten)]
    quota: QuotaArgs,
    /// Reject invalid events instead of keeping them as dead letters
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Args)]
struct QuotaArgs {
    /// Events a second, over time
    #[arg(long, value_name = "N")]
    events_per_second: Option<u64>,
    /// Events at once; as many as a second's if not given
    #[arg(long, value_name = "N")]
    events_burst: Option<u64>,
    /// Bytes a second, over time: a number, or one with KiB, MiB, GiB
    #[arg(long, value_name = "SIZE")]
    bytes_per_second: Option<crate::config::Size>,
    /// Bytes at once; as many as a second's if not given
    #[arg(long, value_name = "SIZE")]
    bytes_burst: Option<crate::config::Size>,
    /// Events a day, UTC
    #[arg(long, value_name = "N")]
    events_per_day: Option<u64>,
    /// Bytes a day, UTC
    #[arg(long, value_name = "SIZE")]
    bytes_per_day: Option<crate::config::Size>,
    /// How many event types it may name
    #[arg(long, value_name = "N")]
    event_types: Option<u64>,
    /// Its share where tenants take turns, 1 to 100
    #[arg(long, value_name = "N")]
    weight: Option<u32>,
    /// Events a second of one event type, and at once; may be given more than once
    #[arg(long = "type-quota", value_name = "TYPE=N[/BURST]", value_parser = type_quota)]
    type_quotas: Vec<(EventType, TypeQuota)>,
}

/// `page_view=100` or `page_view=100/500`.
fn type_quota(text: &str) -> Result<(EventType, TypeQuota), String> {
    let fault = || format!("{text:?} is not TYPE=N or TYPE=N/BURST");
    let (name, numbers) = text.rsplit_once('=').ok_or_else(fault)?;
    let event_type = EventType::new(name).map_err(|error| error.to_string())?;
    let (rate, burst) = match numbers.split_once('/') {
        Some((rate, burst)) => (rate, Some(burst.parse().map_err(|_| fault())?)),
        None => (numbers, None),
    };
    let rate = rate.parse().map_err(|_| fault())?;
    Ok((event_type, TypeQuota { events_per_second: Some(rate), events_burst: burst }))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NewKey {
    tenant: String,
    key: String,
    old_keys_expire_at: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tenants {
    tenants: Vec<Listed>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Listed {
    tenant: String,
    enabled: bool,
    strict: bool,
    quota: Quota,
    keys: Vec<ListedKey>,
    sigv4: Vec<ListedKey>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListedKey {
    #[serde(alias = "access_key_id")]
    id: String,
    not_after: Option<String>,
    event_types: Option<Vec<String>>,
    public: bool,
    origins: Option<Vec<String>>,
}

/// Does what is asked.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached or refuses.
pub async fn run(args: TenantArgs, context: &Context) -> Result<Verdict, Fault> {
    match args.command {
        TenantCommand::Add(add) => new_key(context, PATH, &add.body()).await,
        TenantCommand::Set { tenant, quota } => set(context, &tenant, quota.body()).await,
        TenantCommand::Show { tenant } => show(context, &tenant).await,
        TenantCommand::List => list(context).await,
        TenantCommand::Rotate { tenant, expire_old_after } => {
            new_key(context, &format!("{PATH}/{tenant}/rotate"), &expiry(expire_old_after)).await
        }
        TenantCommand::Sigv4 { tenant, expire_old_after } => {
            new_pair(context, &tenant, &expiry(expire_old_after)).await
        }
        TenantCommand::PublicKey(args) => public_key::add(&args, context).await,
        TenantCommand::Revoke(args) => public_key::revoke(&args, context).await,
        TenantCommand::Disable { tenant } => switch(context, &tenant, "disable").await,
        TenantCommand::Enable { tenant } => switch(context, &tenant, "enable").await,
    }
}

impl QuotaArgs {
    /// What was given.
    fn body(&self) -> Map<String, Value> {
        let mut body = Map::new();
        let numbers = [
            ("events_per_second", self.events_per_second),
            ("events_burst", self.events_burst),
            ("bytes_per_second", self.bytes_per_second.map(|s| s.0)),
            ("bytes_burst", self.bytes_burst.map(|s| s.0)),
            ("events_per_day", self.events_per_day),
            ("bytes_per_day", self.bytes_per_day.map(|s| s.0)),
            ("event_types", self.event_types),
            ("weight", self.weight.map(u64::from)),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                body.insert(name.to_owned(), value.into());
            }
        }
        if !self.type_quotas.is_empty() {
            let types = self.type_quotas.iter().map(|(name, limit)| {
                let mut body = Map::new();
                body.insert("events_per_second".to_owned(), limit.events_per_second.into());
                if limit.events_burst.is_some() {
                    body.insert("events_burst".to_owned(), limit.events_burst.into());
                }
                (name.to_string(), Value::Object(body))
            });
            body.insert("types".to_owned(), Value::Object(types.collect()));
        }
        body
    }
}

impl AddArgs {
    fn body(&self) -> Value {
        let mut body = self.quota.body();
        body.insert("tenant".to_owned(), self.tenant.clone().into());
        if self.strict {
            body.insert("strict".to_owned(), true.into());
        }
        Value::Object(body)
    }
}

async fn new_key(context: &Context, path: &str, body: &Value) -> Result<Verdict, Fault> {
    let document = context.admin()?.post(path, body).await?;
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let new: NewKey = admin::shape(path, &document)?;
    // The key alone on stdout, so that it can be piped; what to know about it on stderr.
    context.out.line(&human::safe(&new.key))?;
    remark(&format!("the key of {}; it is shown this once only", human::safe(&new.tenant)));
    match &new.old_keys_expire_at {
        Some(at) => remark(&format!("its old keys are good until {}", human::safe(at))),
        None if path.ends_with("/rotate") => remark("its old keys stay good"),
        None => {}
    }
    Ok(Verdict::Done)
}

fn expiry(old_after: Option<Span>) -> Value {
    match old_after {
        Some(span) => json!({ "expire_old_after_seconds": span.0.as_secs() }),
        None => json!({}),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NewPair {
    access_key_id: String,
    secret_access_key: String,
    old_pairs_expire_at: Option<String>,
}

async fn new_pair(context: &Context, tenant: &str, body: &Value) -> Result<Verdict, Fault> {
    let path = format!("{PATH}/{tenant}/sigv4");
    let document = context.admin()?.post(&path, body).await?;
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let new: NewPair = admin::shape(&path, &document)?;
    // As a shell takes them.
    context.out.line(&format!("AWS_ACCESS_KEY_ID={}", human::safe(&new.access_key_id)))?;
    context.out.line(&format!("AWS_SECRET_ACCESS_KEY={}", human::safe(&new.secret_access_key)))?;
    remark(&format!("the SigV4 key pair of {tenant}; its secret is shown this once only"));
    if let Some(at) = &new.old_pairs_expire_at {
        remark(&format!("its former pair is good until {}", human::safe(at)));
    }
    Ok(Verdict::Done)
}

async fn switch(context: &Context, tenant: &str, verb: &str) -> Result<Verdict, Fault> {
    let document = context.admin()?.post(&format!("{PATH}/{tenant}/{verb}"), &json!({})).await?;
    if context.out.json {
        context.out.document(&document)?;
    } else {
        context.out.line(&format!("{tenant} is {verb}d"))?;
    }
    Ok(Verdict::Done)
}

async fn set(context: &Context, tenant: &str, quota: Map<String, Value>) -> Result<Verdict, Fault> {
    if quota.is_empty() {
        return Err(Fault::Usage("say what to change; `tenant set --help` lists it".to_owned()));
    }
    let path = format!("{PATH}/{tenant}/quota");
    let document = context.admin()?.post(&path, &Value::Object(quota)).await?;
    if context.out.json {
        context.out.document(&document)?;
    } else {
        context.out.line(&format!("the quota of {tenant} is changed"))?;
    }
    Ok(Verdict::Done)
}

async fn show(context: &Context, tenant: &str) -> Result<Verdict, Fault> {
    let document = context.admin()?.get(PATH).await?;
    let mut all: Tenants = admin::shape(PATH, &document)?;
    let Some(at) = all.tenants.iter().position(|listed| listed.tenant == tenant) else {
        return Err(Fault::failed(
            format!("there is no tenant {tenant}"),
            "see `ingestctl tenant list`",
        ));
    };
    if context.out.json {
        let shown = document.get("tenants").and_then(|tenants| tenants.get(at));
        context.out.document(shown.unwrap_or(&Value::Null))?;
        return Ok(Verdict::Done);
    }
    let listed = all.tenants.swap_remove(at);
    for (name, value) in listed.lines() {
        context.out.line(&format!("{name:<20} {value}"))?;
    }
    Ok(Verdict::Done)
}

async fn list(context: &Context) -> Result<Verdict, Fault> {
    let document = context.admin()?.get(PATH).await?;
    if context.out.json {
        context.out.document(&document)?;
        return Ok(Verdict::Done);
    }
    let listed: Tenants = admin::shape(PATH, &document)?;
    let mut table = Table::new(&[
        "TENANT",
        "STATE",
        ">EVENTS/S",
        ">BYTES/S",
        ">EVENTS/DAY",
        ">WEIGHT",
        "CHECKING",
        "KEYS",
    ]);
    for tenant in &listed.tenants {
        table.row(vec![
            human::safe(&tenant.tenant),
            tenant.state().to_owned(),
            tenant.quota.events_per_second.map_or("no limit".to_owned(), human::count),
            tenant.quota.bytes_per_second.map_or("no limit".to_owned(), human::bytes),
            tenant.quota.events_per_day.map_or("no limit".to_owned(), human::count),
            tenant.quota.weight().to_string(),
            tenant.checking().to_owned(),
            tenant.keys(),
        ]);
    }
    if table.is_empty() {
        let text = "no tenants yet; add one with: ingestctl tenant add NAME";
        context.out.line(&context.out.paint(Tone::Warning, text))?;
    } else {
        context.out.table(&table)?;
    }
    Ok(Verdict::Done)
}

impl Listed {
    fn state(&self) -> &'static str {
        if self.enabled { "enabled" } else { "disabled" }
    }

    fn checking(&self) -> &'static str {
        if self.strict { "strict" } else { "dead letters" }
    }

    fn keys(&self) -> String {
        self.keys.iter().map(ListedKey::shown).collect::<Vec<_>>().join(", ")
    }

    /// Everything, a name and a value each.
    fn lines(&self) -> Vec<(String, String)> {
        let quota = &self.quota;
        let events = |n: Option<u64>| n.map_or("no limit".to_owned(), human::count);
        let bytes = |n: Option<u64>| n.map_or("no limit".to_owned(), human::bytes);
        let line = |name: &str, value: String| (name.to_owned(), value);
        let mut lines = vec![
            line("tenant", human::safe(&self.tenant)),
            line("state", self.state().to_owned()),
            line("checking", self.checking().to_owned()),
            line("events a second", events(quota.events_per_second)),
            line("events at once", events(quota.events_burst.or(quota.events_per_second))),
            line("bytes a second", bytes(quota.bytes_per_second)),
            line("bytes at once", bytes(quota.bytes_burst.or(quota.bytes_per_second))),
            line("events a day", events(quota.events_per_day)),
            line("bytes a day", bytes(quota.bytes_per_day)),
            line("event types", human::count(quota.event_types())),
            line("weight", quota.weight().to_string()),
        ];
        for (name, limit) in &quota.types {
            let burst = limit.events_burst.or(limit.events_per_second);
            let text =
                format!("{} a second, {} at once", events(limit.events_per_second), events(burst));
            lines.push((human::safe(name.as_str()), text));
        }
        lines.push(line("keys", self.keys()));
        let pairs: Vec<String> = self.sigv4.iter().map(ListedKey::shown).collect();
        if !pairs.is_empty() {
            lines.push(line("SigV4 key pairs", pairs.join(", ")));
        }
        lines
    }
}

impl ListedKey {
    fn shown(&self) -> String {
        let mut text = human::safe(&self.id);
        if self.public {
            let origins = self.origins.as_deref().filter(|origins| !origins.is_empty());
            let pages =
                origins.map_or(String::new(), |origins| format!(" for {}", origins.join(" ")));
            text.push_str(&human::safe(&format!(" (public{pages})")));
        }
        if let Some(at) = &self.not_after {
            text.push_str(&format!(" (until {})", human::safe(at)));
        }
        if let Some(types) = &self.event_types {
            text.push_str(&format!(" (only {})", human::safe(&types.join(" "))));
        }
        text
    }
}
