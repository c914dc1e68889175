//! `ingestctl tenant`: who may send.

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Context, admin,
    fault::{Fault, Verdict},
    human,
    out::{Tone, remark},
    table::Table,
    tail::tenant_name,
};
use crate::{config::Span, tenants::Quota};

const PATH: &str = "/api/v1/tenants";

/// Add, list, re-key, disable and enable tenants
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ingestctl tenant add acme --events-per-second 5000
  ingestctl tenant list
  ingestctl tenant rotate acme --expire-old-after 1d
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
    /// Reject invalid events instead of keeping them as dead letters
    #[arg(long)]
    strict: bool,
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
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListedKey {
    id: String,
    not_after: Option<String>,
    event_types: Option<Vec<String>>,
}

/// Does what is asked.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached or refuses.
pub async fn run(args: TenantArgs, context: &Context) -> Result<Verdict, Fault> {
    match args.command {
        TenantCommand::Add(add) => new_key(context, PATH, &add.body()).await,
        TenantCommand::List => list(context).await,
        TenantCommand::Rotate { tenant, expire_old_after } => {
            let mut body = Map::new();
            if let Some(span) = expire_old_after {
                body.insert("expire_old_after_seconds".to_owned(), span.0.as_secs().into());
            }
            new_key(context, &format!("{PATH}/{tenant}/rotate"), &Value::Object(body)).await
        }
        TenantCommand::Disable { tenant } => switch(context, &tenant, "disable").await,
        TenantCommand::Enable { tenant } => switch(context, &tenant, "enable").await,
    }
}

impl AddArgs {
    fn body(&self) -> Value {
        let mut body = Map::new();
        body.insert("tenant".to_owned(), self.tenant.clone().into());
        let numbers = [
            ("events_per_second", self.events_per_second),
            ("events_burst", self.events_burst),
            ("bytes_per_second", self.bytes_per_second.map(|s| s.0)),
            ("bytes_burst", self.bytes_burst.map(|s| s.0)),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                body.insert(name.to_owned(), value.into());
            }
        }
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

async fn switch(context: &Context, tenant: &str, verb: &str) -> Result<Verdict, Fault> {
    let document = context.admin()?.post(&format!("{PATH}/{tenant}/{verb}"), &json!({})).await?;
    if context.out.json {
        context.out.document(&document)?;
    } else {
        context.out.line(&format!("{tenant} is {verb}d"))?;
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
    let mut table = Table::new(&["TENANT", "STATE", ">EVENTS/S", ">BYTES/S", "CHECKING", "KEYS"]);
    for tenant in &listed.tenants {
        table.row(vec![
            human::safe(&tenant.tenant),
            if tenant.enabled { "enabled" } else { "disabled" }.to_owned(),
            tenant.quota.events_per_second.map_or("no limit".to_owned(), human::count),
            tenant.quota.bytes_per_second.map_or("no limit".to_owned(), human::bytes),
            if tenant.strict { "strict" } else { "dead letters" }.to_owned(),
            tenant.keys.iter().map(ListedKey::shown).collect::<Vec<_>>().join(", "),
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

impl ListedKey {
    fn shown(&self) -> String {
        let mut text = human::safe(&self.id);
        if let Some(at) = &self.not_after {
            text.push_str(&format!(" (until {})", human::safe(at)));
        }
        if let Some(types) = &self.event_types {
            text.push_str(&format!(" (only {})", human::safe(&types.join(" "))));
        }
        text
    }
}
