//! `ingestctl`: one file per command.
