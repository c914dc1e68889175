//! `ingestctl config check`: is this file a configuration the server would start with?

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Context,
    fault::{Fault, Verdict},
    out::{Tone, remark},
};
use crate::config::{self, ConfigError};

/// Check a configuration file
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ingestctl config check tidegate.toml")]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read a file as the server would, with the environment laid over it, and tell every fault
    #[command(after_help = "\
TIDEGATE_<SECTION>__<NAME> variables are laid over the file, as the server does. Exit status 1 if
it is not valid. No server is needed.

Examples:
  ingestctl config check tidegate.toml
  ingestctl config check tidegate.toml --json | jq .config.edge.limits")]
    Check {
        /// The file
        file: PathBuf,
    },
}

/// Checks and shows.
///
/// # Errors
/// [`Fault::Failed`] where the file cannot be read.
pub fn run(args: &ConfigArgs, context: &Context) -> Result<Verdict, Fault> {
    let ConfigCommand::Check { file } = &args.command;
    match config::load(Some(file)) {
        Ok(config) => {
            if context.out.json {
                let mut shown = serde_json::to_value(&config)
                    .map_err(|e| Fault::failed(format!("cannot show it as JSON: {e}"), ""))?;
                redact(&mut shown);
                context.out.document(&json!({"valid": true, "errors": [], "config": shown}))?;
            } else {
                let word = context.out.paint(Tone::Good, "valid");
                context.out.line(&format!("{}: {word}", file.display()))?;
            }
            Ok(Verdict::Done)
        }
        Err(ConfigError::Read { path, error }) => Err(Fault::file(&path, &error)),
        Err(error) => {
            let faults = match error {
                ConfigError::Faults(faults) => faults,
                other => vec![other.to_string()],
            };
            if context.out.json {
                context.out.document(&json!({"valid": false, "errors": faults}))?;
            } else {
                for fault in &faults {
                    remark(fault);
                }
                let word = context.out.paint(Tone::Bad, "not valid");
                context.out.line(&format!("{}: {word}", file.display()))?;
            }
            Ok(Verdict::No)
        }
    }
}

/// Hides what is secret by its name, unless it only says where the secret is kept.
fn redact(value: &mut Value) {
    const SECRETS: &[&str] = &["token", "secret", "password", "access_key", "master_key", "pepper"];
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let secret = SECRETS.iter().any(|s| name.contains(s));
                match field {
                    Value::String(text) if secret => {
                        if !text.starts_with("file:") && !text.starts_with("env:") {
                            *text = "[secret]".to_owned();
                        }
                    }
                    other => redact(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_where_they_are_kept_is_not() {
        let mut value = json!({
            "admin": {"token": "abc"},
            "sink": [{"options": {"aws_secret_access_key": "x", "password": "file:/p"}}]
        });
        redact(&mut value);
        assert_eq!(
            value,
            json!({
                "admin": {"token": "[secret]"},
                "sink": [{"options": {"aws_secret_access_key": "[secret]", "password": "file:/p"}}]
            })
        );
    }
}
