//! Help texts and completions: every command has examples, and nothing is wider than 100 columns.

use clap::CommandFactory as _;
use tidegate_ingest::ctl::Cli;

use super::stub::{ingestctl, nobody};

/// Every command with its path, the program itself included.
fn commands() -> Vec<Vec<String>> {
    fn collect(command: &clap::Command, path: &[String], all: &mut Vec<Vec<String>>) {
        all.push(path.to_vec());
        for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
            collect(sub, &[path, &[sub.get_name().to_owned()]].concat(), all);
        }
    }
    let mut all = Vec::new();
    collect(&Cli::command(), &[], &mut all);
    all
}

#[test]
fn every_command_has_examples_that_name_it_and_parse() {
    for path in commands() {
        let mut line: Vec<&str> = path.iter().map(String::as_str).collect();
        line.push("--help");
        let help = ingestctl(&nobody(), &line);
        assert_eq!(help.status, 0, "{path:?}");
        let (_, examples) =
            help.out.split_once("Examples:").unwrap_or_else(|| panic!("{path:?} has no examples"));
        let own = format!("ingestctl {}", path.join(" "));
        assert!(examples.contains(own.trim()), "{path:?}: none of its examples shows it");
        let wide = help.out.lines().find(|line| line.chars().count() > 100);
        assert_eq!(wide, None, "{path:?}: wider than 100 columns");
    }
}

#[test]
fn the_commands_are_those_of_the_design() {
    let names: Vec<String> = commands().into_iter().map(|path| path.join(" ")).collect();
    for name in [
        "send",
        "status",
        "tail",
        "offsets",
        "dead-letters list",
        "dead-letters show",
        "dead-letters redrive",
        "tenant add",
        "tenant list",
        "tenant rotate",
        "tenant disable",
        "tenant enable",
        "audit",
        "mark",
        "replay",
        "replay apply",
        "replay compare",
        "log verify",
        "log quarantine list",
        "log quarantine show",
        "log quarantine save",
        "log quarantine acknowledge",
        "config check",
        "reload",
        "drain",
        "load",
        "completions",
        "schema check",
        "schema test",
        "schema list",
    ] {
        assert!(names.iter().any(|n| n == name), "{name} is missing from {names:?}");
    }
}

#[test]
fn completions_are_made_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let done = ingestctl(&nobody(), &["completions", shell]);
        assert_eq!(done.status, 0);
        assert!(done.out.contains("dead-letters") && done.out.contains("ingestctl"), "{shell}");
    }
}
