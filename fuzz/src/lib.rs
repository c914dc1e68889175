//! What the targets share: input taken apart, a disk in memory, a normalizer to judge by.

pub mod disk;
pub mod input;
pub mod json;
pub mod judge;
