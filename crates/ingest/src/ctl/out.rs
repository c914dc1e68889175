//! What a command prints: its result on stdout, remarks on stderr.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use super::{fault::Fault, table::Table};

/// Where results and remarks go, and how they look.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// True: one JSON document (or one a line) instead of text.
    pub json: bool,
    colour: bool,
}

/// What a colour stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Look at it.
    Warning,
    /// Act.
    Bad,
    /// Headings and words that matter.
    Strong,
}

impl Output {
    /// Colours only on a terminal that wants them (`NO_COLOR` unset or empty, `TERM` not `dumb`).
    #[must_use]
    pub fn new(json: bool) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Self { json, colour: !json && !unwanted && io::stdout().is_terminal() }
    }

    /// `text` in the colour of `tone`, where colours are wanted.
    #[must_use]
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "1;31",
            Tone::Strong => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// Writes one line to stdout.
    ///
    /// # Errors
    /// [`Fault::ReaderGone`] when the pipe is closed, [`Fault::Failed`] on any other failure.
    pub fn line(&self, text: &str) -> Result<(), Fault> {
        let mut stdout = io::stdout().lock();
        written(writeln!(stdout, "{text}").and_then(|()| stdout.flush()))
    }

    /// Writes one JSON document on one line.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn document<T: Serialize>(&self, value: &T) -> Result<(), Fault> {
        let text = serde_json::to_string(value)
            .map_err(|e| Fault::failed(format!("cannot write the result as JSON: {e}"), ""))?;
        self.line(&text)
    }

    /// Writes a table, its headings in bold.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn table(&self, table: &Table) -> Result<(), Fault> {
        for (i, line) in table.lines().iter().enumerate() {
            if i == 0 {
                self.line(&self.paint(Tone::Strong, line))?;
            } else {
                self.line(line)?;
            }
        }
        Ok(())
    }

    /// Writes several lines at once, after clearing the screen if this is a terminal.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn screen(&self, text: &str) -> Result<(), Fault> {
        let mut stdout = io::stdout().lock();
        // Home, text, then clear what is left below: no flicker.
        let body = if stdout.is_terminal() {
            format!("\u{1b}[H{}\u{1b}[J", text.replace('\n', "\u{1b}[K\n"))
        } else {
            text.to_owned()
        };
        written(stdout.write_all(body.as_bytes()).and_then(|()| stdout.flush()))
    }
}

fn written(result: io::Result<()>) -> Result<(), Fault> {
    result.map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Fault::ReaderGone,
        _ => Fault::failed(format!("cannot write to stdout: {e}"), "check where the output goes"),
    })
}

/// Writes a remark to stderr. A stderr that is closed is nobody's loss.
pub fn remark(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// True where progress can be shown.
#[must_use]
pub fn progress_is_wanted() -> bool {
    io::stderr().is_terminal()
}
