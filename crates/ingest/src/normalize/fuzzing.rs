//! The normalizer for fuzz/: from schemas in memory, and its exact numbers.

use std::sync::Arc;

use arc_swap::ArcSwap;
use num_rational::BigRational;

use super::{
    Normalizer, SchemaEntry, SchemaSet, SchemaStore, SchemasConfig, UnknownTypes,
    exact::{Double, Exact},
    unit::Unit,
};
use crate::json::ScanLimits;

/// A normalizer of these schemas.
#[must_use]
pub fn normalizer(
    entries: Vec<SchemaEntry>,
    unknown: UnknownTypes,
    store: Arc<SchemaStore>,
    limits: ScanLimits,
) -> Normalizer {
    let set = ArcSwap::from_pointee(SchemaSet::new(entries, unknown, 1));
    Normalizer { config: SchemasConfig::default(), store, limits, set }
}

/// A number as the columns may hold it.
#[derive(Debug)]
pub struct Number {
    /// It, exactly.
    pub ratio: BigRational,
    /// Whether it is an integer.
    pub is_integer: bool,
    /// As a 64-bit integer.
    pub integer: Option<i64>,
    /// As a 64-bit floating point number: kept, or whether it is too large.
    pub double: Result<f64, bool>,
}

fn number(exact: &Exact) -> Number {
    Number {
        ratio: exact.ratio(),
        is_integer: exact.is_integer(),
        integer: exact.to_i64(),
        double: match exact.to_double() {
            Double::Kept(value) => Ok(value),
            Double::Loss => Err(false),
            Double::Range => Err(true),
        },
    }
}

/// Reads a number of JSON grammar; `None` where it is beyond what is computed with.
#[must_use]
pub fn parse_number(text: &str) -> Option<Number> {
    Exact::parse(text).ok().as_ref().map(number)
}

/// How two numbers compare.
#[must_use]
pub fn compare(a: &str, b: &str) -> Option<std::cmp::Ordering> {
    Some(Exact::parse(a).ok()?.compare(&Exact::parse(b).ok()?))
}

/// Whether a number is a multiple of another, which is greater than 0.
#[must_use]
pub fn is_multiple(number: &str, of: &str) -> Option<bool> {
    Some(Exact::parse(number).ok()?.is_multiple_of(&Exact::parse(of).ok()?))
}

/// Whether a text is a UCUM code that is converted.
#[must_use]
pub fn is_unit(code: &str) -> bool {
    Unit::parse(code).is_ok()
}

/// A number in another unit; `None` where there is no way there.
#[must_use]
pub fn convert(text: &str, from: &str, to: &str) -> Option<Number> {
    let (from, to) = (Unit::parse(from).ok()?, Unit::parse(to).ok()?);
    let way = from.conversion_to(&to)?;
    Some(number(&way.apply(&Exact::parse(text).ok()?)))
}
