//! `ingestctl completions`: completions for a shell.

use std::io::Write as _;

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::shells;

use super::{
    Cli,
    fault::{Fault, Verdict},
};

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ingestctl completions bash > /etc/bash_completion.d/ingestctl
  ingestctl completions zsh > ~/.zfunc/_ingestctl
  ingestctl completions fish > ~/.config/fish/completions/ingestctl.fish")]
pub struct CompletionsArgs {
    /// bash, zsh or fish
    #[arg(hide_possible_values = true)]
    pub shell: Shell,
}

/// The shells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// The completions, as a script.
#[must_use]
pub fn script(shell: Shell) -> Vec<u8> {
    let mut command = Cli::command();
    let mut script = Vec::new();
    let (command, name, into) = (&mut command, "ingestctl", &mut script);
    match shell {
        Shell::Bash => clap_complete::generate(shells::Bash, command, name, into),
        Shell::Zsh => clap_complete::generate(shells::Zsh, command, name, into),
        Shell::Fish => clap_complete::generate(shells::Fish, command, name, into),
    }
    script
}

/// Prints them.
///
/// # Errors
/// [`Fault::Failed`] where stdout takes nothing.
pub fn run(args: &CompletionsArgs) -> Result<Verdict, Fault> {
    let written = std::io::stdout().lock().write_all(&script(args.shell));
    match written {
        Ok(()) => Ok(Verdict::Done),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Err(Fault::ReaderGone),
        Err(e) => Err(Fault::failed(format!("cannot write to stdout: {e}"), "")),
    }
}
