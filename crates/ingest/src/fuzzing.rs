//! What the fuzz targets reach of the stages' insides: thin functions, no logic; never in a release.

pub use crate::{
    edge::fuzzing as edge, log::fuzzing as log, normalize::fuzzing as normalize,
    tenants::fuzzing as tenants, writer::fuzzing as writer,
};
