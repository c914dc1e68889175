//! Long work of a server's, followed on a terminal: lines of progress, then the report.

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{admin::Admin, client::Sender, fault::Fault, human, out};

/// A line longer than this is no report.
const LINE_BYTES_MAX: usize = 256 << 20;

/// A bar of `template`, where somebody looks.
pub fn bar(template: &str) -> ProgressBar {
    if !out::progress_is_wanted() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("##."));
    bar
}

/// Asks for the work and follows it to its report; `show` gets each line's `progress`. `what` and `mend`
/// are what is said where the server itself could not do it.
///
/// # Errors
/// [`Fault::Failed`] where the server cannot be reached, or could not do it.
pub async fn follow(
    admin: &Admin,
    path: &str,
    words: (&str, &str),
    show: impl FnMut(&Value),
) -> Result<Value, Fault> {
    follow_with(admin, (path, &json!({})), words, show).await
}

/// The same with `body` in the request.
///
/// # Errors
/// As [`follow`].
pub async fn follow_with(
    admin: &Admin,
    (path, body): (&str, &Value),
    (what, mend): (&str, &str),
    mut show: impl FnMut(&Value),
) -> Result<Value, Fault> {
    let opened = admin.follow_post(path, body).await?;
    read(admin, opened, (what, mend), &mut show).await
}

/// The same, of an answer that was opened already.
///
/// # Errors
/// As [`follow`].
pub async fn read(
    admin: &Admin,
    (sender, mut body): (Sender, Incoming),
    (what, mend): (&str, &str),
    show: &mut dyn FnMut(&Value),
) -> Result<Value, Fault> {
    let gone = |why: &str| {
        Fault::failed(format!("{} ended the report: {why}", admin.shown()), "do it again")
    };
    let mut kept: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| gone(&e.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        kept.extend_from_slice(&data);
        if LINE_BYTES_MAX < kept.len() {
            return Err(gone("a line without end"));
        }
        while let Some(end) = memchr::memchr(b'\n', &kept) {
            let line: Vec<u8> = kept.drain(..=end).collect();
            let document: Value = serde_json::from_slice(&line)
                .map_err(|e| gone(&format!("a line that makes no sense: {e}")))?;
            if let Some(why) = document.get("failed").and_then(Value::as_str) {
                return Err(Fault::failed(format!("{what}: {}", human::safe(why)), mend));
            }
            let Some(progress) = document.get("progress") else {
                drop(sender);
                return Ok(document);
            };
            show(progress);
        }
    }
    Err(gone("it was shut down"))
}
