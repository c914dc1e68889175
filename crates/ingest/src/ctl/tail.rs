//! `ingestctl tail`: events as they are accepted.

use clap::Args;
use http_body_util::BodyExt as _;
use serde::Deserialize;
use serde_json::value::RawValue;
use tidegate_event::{EventType, TenantId};

use super::{
    Context, admin,
    fault::{Fault, Verdict},
    human,
    out::Tone,
};

const PATH: &str = "/api/v1/tail";
/// A line longer than this is no event.
const LINE_BYTES_MAX: usize = 64 << 20;

/// Watch events as they are accepted
#[derive(Debug, Args)]
#[command(after_help = "\
Shows what is kept from now on, dead letters included, after the rules for personal data. With
--json each line is one JSON object. A watcher that is too slow misses events; senders never wait.

Examples:
  ingestctl tail
  ingestctl tail --tenant acme --event-type page_view --limit 10
  ingestctl tail --json | jq 'select(.verdict != \"accepted\")'")]
pub struct TailArgs {
    /// Only this tenant's events
    #[arg(long, value_parser = tenant_name)]
    tenant: Option<String>,
    /// Only events of this type
    #[arg(long, value_name = "NAME", value_parser = event_type_name)]
    event_type: Option<String>,
    /// Stop after this many events
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

/// A tenant's name, checked before anything is asked.
///
/// # Errors
/// What a name may be.
pub fn tenant_name(text: &str) -> Result<String, String> {
    TenantId::new(text).map(|_| text.to_owned()).map_err(|e| e.to_string())
}

/// An event type's name, checked before anything is asked.
///
/// # Errors
/// What a name may be.
pub fn event_type_name(text: &str) -> Result<String, String> {
    EventType::new(text).map(|_| text.to_owned()).map_err(|e| e.to_string())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line<'a> {
    partition: Option<u32>,
    offset: Option<u64>,
    tenant: String,
    event_type: String,
    received_at: String,
    verdict: String,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    missed: Option<u64>,
}

/// Follows until the limit, the end of the server, or the end of whoever reads.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached or goes away.
pub async fn run(args: &TailArgs, context: &Context) -> Result<Verdict, Fault> {
    let admin = context.admin()?;
    let pairs = [("tenant", args.tenant.clone()), ("event_type", args.event_type.clone())];
    let (sender, mut body) = admin.follow(&admin::query(PATH, &pairs)).await?;
    let gone = |why: String| {
        Fault::failed(format!("{} ended the stream: {why}", admin.shown()), "start tail again")
    };
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut kept: Vec<u8> = Vec::new();
    while left > 0 {
        let frame = match body.frame().await {
            Some(Ok(frame)) => frame,
            Some(Err(e)) => return Err(gone(e.to_string())),
            None => return Err(gone("it was shut down".to_owned())),
        };
        let Ok(data) = frame.into_data() else { continue };
        kept.extend_from_slice(&data);
        if kept.len() > LINE_BYTES_MAX {
            return Err(gone("a line without end".to_owned()));
        }
        let mut rest = kept.as_slice();
        while left > 0
            && let Some(end) = memchr::memchr(b'\n', rest)
        {
            let (line, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            if !line.trim_ascii().is_empty() && show(line, context)? {
                left -= 1;
            }
        }
        kept = rest.to_vec();
    }
    drop(sender);
    Ok(Verdict::Done)
}

/// Shows one line; true where it was an event.
fn show(line: &[u8], context: &Context) -> Result<bool, Fault> {
    let bad = |e: String| Fault::failed(format!("a line of the stream makes no sense: {e}"), "");
    let text = std::str::from_utf8(line).map_err(|e| bad(e.to_string()))?;
    let event: Line<'_> = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
    if context.out.json {
        context.out.line(text)?;
        return Ok(event.offset.is_some());
    }
    let (Some(partition), Some(offset)) = (event.partition, event.offset) else {
        if let Some(missed) = event.missed {
            let text = format!("… {} missed: this watcher is slow", human::count(missed));
            context.out.line(&context.out.paint(Tone::Warning, &text))?;
        }
        return Ok(false);
    };
    let (tone, mark) = match event.verdict.as_str() {
        "accepted" => (Tone::Good, "accepted".to_owned()),
        code => (Tone::Bad, format!("dead letter ({})", human::safe(code))),
    };
    context.out.line(&format!(
        "{} {partition}/{offset} {}/{} {} {}",
        human::safe(&event.received_at),
        human::safe(&event.tenant),
        context.out.paint(Tone::Strong, &human::safe(&event.event_type)),
        context.out.paint(tone, &mark),
        human::safe(event.event.map_or("", RawValue::get)),
    ))?;
    Ok(true)
}
