//! What became of every line, and how that is told.

use std::{borrow::Cow, collections::BTreeMap, path::Path, time::Duration};

use http::StatusCode;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Batch, counts};
use crate::ctl::{
    Context,
    admin::describe,
    client::{NoAnswer, Reply},
    fault::Fault,
    human,
    journal::{Entry, Journal},
    out::{self, Tone},
    public::Kept,
};

/// More lines than this are counted, not named.
const NAMED_MAX: usize = 1_000;

/// What became of the lines so far.
pub struct Tally {
    /// What ends it all, once there is such a thing.
    pub fatal: Option<Fault>,
    /// True once every line was read.
    pub input_ended: bool,
    last_line: u64,
    lines: u64,
    bytes: u64,
    kept: Kept,
    requests: u64,
    retries: u64,
    codes: BTreeMap<u16, u64>,
    errors: BTreeMap<&'static str, u64>,
    named: Vec<Value>,
    unnamed: u64,
    unsent: Vec<(u64, u64)>,
    unsent_lines: u64,
    journal: Option<Journal>,
    unjournaled: u64,
    bar: ProgressBar,
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tally").field("lines", &self.lines).finish_non_exhaustive()
    }
}

/// The fields of ours that an event may bear.
#[derive(Deserialize)]
struct Own<'a> {
    #[serde(borrow, default)]
    event_type: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    event_id: Option<Cow<'a, str>>,
}

impl Tally {
    /// `size`: bytes of input, where known.
    ///
    /// # Errors
    /// [`Fault::Failed`] where the journal cannot be created.
    pub fn new(journal: Option<&Path>, size: Option<u64>) -> Result<Self, Fault> {
        Ok(Self {
            fatal: None,
            input_ended: false,
            last_line: 0,
            lines: 0,
            bytes: 0,
            kept: Kept::default(),
            requests: 0,
            retries: 0,
            codes: BTreeMap::new(),
            errors: BTreeMap::new(),
            named: Vec::new(),
            unnamed: 0,
            unsent: Vec::new(),
            unsent_lines: 0,
            journal: journal.map(Journal::create).transpose()?,
            unjournaled: 0,
            bar: progress(size),
        })
    }

    /// An answer came.
    pub fn answered(&mut self, status: StatusCode) {
        self.requests += 1;
        *self.codes.entry(status.as_u16()).or_default() += 1;
    }

    /// None came.
    pub fn no_answer(&mut self, why: &NoAnswer) {
        self.requests += 1;
        *self.errors.entry(why.kind()).or_default() += 1;
    }

    /// The same will be sent again.
    pub fn retried(&mut self, why: &str, pause: Duration) {
        self.retries += 1;
        let pause = human::seconds(pause.as_secs_f64());
        self.bar.set_message(format!("waiting {pause}: {}", human::cut(why, 60)));
    }

    fn settled(&mut self, batch: &Batch) {
        self.lines += batch.lines.len() as u64;
        self.last_line = self.last_line.max(batch.span().1);
        self.bytes += batch.body.len() as u64;
        self.bar.set_position(self.bytes);
        let codes: Vec<_> = self
            .codes
            .iter()
            .filter(|(code, _)| **code != 200)
            .map(|(code, n)| format!("{code}: {n}"))
            .collect();
        self.bar.set_message(format!("{} events {}", human::count(self.lines), codes.join(", ")));
    }

    /// The batch is in the log, but for what `kept` says.
    ///
    /// # Errors
    /// [`Fault::Failed`] where the journal cannot be written.
    pub fn kept(
        &mut self,
        batch: &Batch,
        kept: &Kept,
        key: &str,
        event_type: Option<&str>,
    ) -> Result<(), Fault> {
        self.kept.accepted += kept.accepted;
        self.kept.dead_lettered += kept.dead_lettered;
        self.kept.deduplicated += kept.deduplicated;
        self.kept.rejected += kept.rejected;
        for error in &kept.errors {
            let line = batch.lines.get(error.index).copied();
            let verdict = if kept.is_rejection(error) { "rejected" } else { "dead_lettered" };
            self.name(json!({
                "line": line, "verdict": verdict, "event_id": error.event_id, "code": error.code,
                "field": error.field, "message": error.message,
            }));
        }
        let bad = kept.dead_lettered + kept.rejected;
        self.unnamed += bad.saturating_sub(kept.errors.len() as u64);
        self.settled(batch);
        self.journal(batch, kept, key, event_type)
    }

    /// Nothing of the batch was kept, for good.
    pub fn refused(&mut self, batch: &Batch, reply: &Reply) {
        let lines = batch.lines.len() as u64;
        self.kept.rejected += lines;
        let problem: Value = serde_json::from_slice(&reply.body).unwrap_or(Value::Null);
        let listed = problem.get("errors").and_then(Value::as_array).filter(|e| !e.is_empty());
        let mut named = 0;
        for error in listed.into_iter().flatten() {
            let index = error.get("index").and_then(Value::as_u64);
            let line = index.and_then(|i| batch.lines.get(usize::try_from(i).ok()?)).copied();
            let mut entry = json!({"line": line, "verdict": "rejected"});
            for name in ["event_id", "code", "field", "message"] {
                if let Some(fields) = entry.as_object_mut() {
                    fields.insert(name.to_owned(), error.get(name).cloned().unwrap_or(Value::Null));
                }
            }
            named += 1;
            self.name(entry);
        }
        if named == 0 {
            let (first, last) = batch.span();
            let code = problem.get("code").cloned().unwrap_or(Value::Null);
            self.name(json!({"line": first, "last_line": last, "verdict": "rejected",
                "event_id": null, "code": code, "field": "", "message": describe(reply)}));
        } else {
            self.unnamed += lines.saturating_sub(named);
        }
        self.settled(batch);
    }

    fn name(&mut self, entry: Value) {
        if self.named.len() >= NAMED_MAX {
            self.unnamed += 1;
            return;
        }
        let text = |name| human::safe(entry.get(name).and_then(Value::as_str).unwrap_or(""));
        let line = entry.get("line").and_then(Value::as_u64);
        let line = line.map_or("?".to_owned(), |n| n.to_string());
        let lines = match entry.get("last_line").and_then(Value::as_u64) {
            Some(last) if last.to_string() != line => format!("lines {line} to {last}"),
            _ => format!("line {line}"),
        };
        let field = text("field");
        let place = if field.is_empty() { String::new() } else { format!(" {field}") };
        let verdict = text("verdict").replace("dead_lettered", "dead letter");
        let shown = format!("{lines}: {verdict}: {}{place}: {}", text("code"), text("message"));
        self.bar.suspend(|| out::remark(&shown));
        self.named.push(entry);
    }

    fn journal(
        &mut self,
        batch: &Batch,
        kept: &Kept,
        key: &str,
        default_type: Option<&str>,
    ) -> Result<(), Fault> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let Some(indexes) = kept.acknowledged(batch.lines.len()) else {
            self.unjournaled += kept.durable();
            return Ok(());
        };
        for index in indexes {
            // What cannot be read here is a dead letter there, under an id that only the server knows.
            let Ok(own) = serde_json::from_slice::<Own<'_>>(batch.event(index)) else {
                self.unjournaled += 1;
                continue;
            };
            let event_type = own.event_type.or(default_type.map(Cow::Borrowed));
            let event_id = own.event_id.unwrap_or_else(|| format!("{key}/{index}").into());
            journal.add(&Entry { tenant: None, event_type, event_id })?;
        }
        journal.flush()
    }

    /// The batch was not sent, or nobody knows what became of it.
    pub fn unsent(&mut self, batch: &Batch) {
        self.unsent_lines += batch.lines.len() as u64;
        self.last_line = self.last_line.max(batch.span().1);
        self.unsent.push(batch.span());
    }

    /// Ends the bar and the journal.
    ///
    /// # Errors
    /// [`Fault::Failed`] where the journal cannot be written.
    pub fn close(&mut self) -> Result<(), Fault> {
        self.bar.finish_and_clear();
        self.unsent.sort_unstable();
        self.journal.as_mut().map_or(Ok(()), Journal::flush)
    }

    /// True where no line was rejected or left.
    pub fn all_kept(&self) -> bool {
        self.kept.rejected == 0 && self.unsent.is_empty()
    }

    /// The summary for programs.
    pub fn document(&self, idempotency_key: &str, seconds: f64) -> Value {
        let mut document = counts(&[
            ("sent", self.lines),
            ("accepted", self.kept.accepted),
            ("dead_lettered", self.kept.dead_lettered),
            ("deduplicated", self.kept.deduplicated),
            ("rejected", self.kept.rejected),
            ("unsent", self.unsent_lines),
            ("bytes", self.bytes),
            ("requests", self.requests),
            ("retries", self.retries),
            ("not_named", self.unnamed),
            ("not_journaled", self.unjournaled),
        ]);
        let unsent: Vec<_> = self.unsent.iter().map(|(a, b)| json!({"from": a, "to": b})).collect();
        let codes: BTreeMap<_, _> = self.codes.iter().map(|(c, n)| (c.to_string(), n)).collect();
        let rest = [
            ("codes", json!(codes)),
            ("no_answer", json!(self.errors)),
            ("problems", json!(self.named)),
            ("unsent_lines", json!(unsent)),
            ("input_ended", json!(self.input_ended)),
            ("last_line", json!(self.last_line)),
            ("seconds", json!(seconds)),
            ("idempotency_key", json!(idempotency_key)),
        ];
        document.extend(rest.map(|(name, value)| (name.to_owned(), value)));
        Value::Object(document)
    }

    /// The summary for people.
    ///
    /// # Errors
    /// As [`crate::ctl::out::Output::line`].
    pub fn show(&self, context: &Context, seconds: f64) -> Result<(), Fault> {
        let kept = &self.kept;
        let parts = [
            (Tone::Good, kept.accepted, "accepted"),
            (Tone::Warning, kept.dead_lettered, "dead letters"),
            (Tone::Good, kept.deduplicated, "known already"),
            (Tone::Bad, kept.rejected, "rejected"),
            (Tone::Bad, self.unsent_lines, "not sent"),
        ];
        let parts: Vec<_> = parts
            .iter()
            .filter(|(_, n, word)| *n > 0 || *word == "accepted")
            .map(|(tone, n, word)| {
                context.out.paint(*tone, &format!("{} {word}", human::count(*n)))
            })
            .collect();
        context.out.line(&format!(
            "{}: {}",
            human::things(self.lines + self.unsent_lines, "event", "events"),
            parts.join(", ")
        ))?;
        #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
        let rate = self.lines as f64 / seconds.max(0.001);
        context.out.line(&format!(
            "{} in {}, {rate:.0} events/s, {}, {}",
            human::bytes(self.bytes),
            human::seconds(seconds),
            human::things(self.requests, "request", "requests"),
            human::things(self.retries, "retry", "retries"),
        ))?;
        if self.unnamed > 0 {
            let n = human::things(self.unnamed, "bad line is", "bad lines are");
            out::remark(&format!(
                "{n} not named: an answer names 100 at most (smaller --batch-events, more names)"
            ));
        }
        if self.unjournaled > 0 {
            let n = human::things(self.unjournaled, "event is", "events are");
            out::remark(&format!("{n} not in the journal: the answers do not tell their ids"));
        }
        for (first, last) in &self.unsent {
            let lines = match first == last {
                true => format!("line {first} was"),
                false => format!("lines {first} to {last} were"),
            };
            out::remark(&format!("{lines} not sent, or nobody knows whether it is kept"));
        }
        if !self.input_ended {
            out::remark(&format!("of what comes after line {} nothing was sent", self.last_line));
        }
        Ok(())
    }
}

fn progress(size: Option<u64>) -> ProgressBar {
    if !out::progress_is_wanted() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size {
        Some(size) => (
            ProgressBar::new(size),
            "[{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta} {wide_msg}",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {bytes_per_sec} {wide_msg}"),
    };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("##."));
    bar
}
