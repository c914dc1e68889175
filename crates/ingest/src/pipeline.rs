//! Builds the stages and what lies between them.
