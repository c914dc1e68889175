//! Units by UCUM code, with exact factors.
//!
//! The `octofhir-ucum` crate knows the grammar and the table of units; the factor of a whole code is
//! computed here from the table's, since the crate rounds quotients (`/h`) to 28 digits. A unit
//! whose factor stands in the table rounded, or that is no linear scale (decibel, pH), is refused.
//!
//! One thing differs from UCUM on purpose: `bit` and `By` have a dimension of their own, so that
//! bytes are no plain numbers.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One as _, Zero as _};
use octofhir_ucum::{Case, Number, SpecialKind, UnitExpr, lookup_unit, parse_expression};

use super::exact::{Conversion, power_of_ten};

/// Longest unit code, in bytes.
pub(super) const CODE_BYTES_MAX: usize = 64;
/// Largest power of a unit.
const POWER_MAX: u32 = 36;
/// Most digits of a number in a code.
const NUMBER_DIGITS_MAX: i32 = 64;

/// A unit: `value · scale + offset` is the same quantity in base units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    scale: BigRational,
    offset: BigRational,
    dimension: Dimension,
}

/// Exponents of UCUM's base units and of information, and those of arbitrary units by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Dimension {
    base: [i32; 8],
    arbitrary: Vec<(&'static str, i32)>,
}

/// Why a code is no unit here. Displays as what follows "the unit …".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UnitError {
    #[error("is no UCUM code")]
    Unknown,
    #[error("is no linear scale and is not converted")]
    NotLinear,
    #[error("has no exact factor in UCUM's table and is not converted")]
    NotExact,
}

impl Unit {
    /// Reads a UCUM code, case-sensitive.
    pub(super) fn parse(code: &str) -> Result<Self, UnitError> {
        if code.is_empty() || code.len() > CODE_BYTES_MAX || code.trim() != code {
            return Err(UnitError::Unknown);
        }
        let expression = parse_expression(code).map_err(|_| UnitError::Unknown)?;
        match special(&expression)? {
            Some(unit) => Ok(unit),
            None => evaluate(&expression),
        }
    }

    /// The way from this unit to another; `None` where they measure different things.
    pub(super) fn conversion_to(&self, target: &Self) -> Option<Conversion> {
        (self.dimension == target.dimension).then(|| {
            let scale = &self.scale / &target.scale;
            let offset = (&self.offset - &target.offset) / &target.scale;
            Conversion::new(scale, offset)
        })
    }

    fn plain(scale: BigRational) -> Self {
        Self { scale, offset: BigRational::zero(), dimension: Dimension::default() }
    }

    fn times(mut self, other: &Self, power: i32) -> Self {
        self.scale *= raised(&other.scale, power);
        let Dimension { base, arbitrary } = &other.dimension;
        for (mine, exponent) in self.dimension.base.iter_mut().zip(base) {
            *mine += exponent * power;
        }
        for (name, exponent) in arbitrary {
            self.dimension.add_arbitrary(name, exponent * power);
        }
        self
    }
}

impl Dimension {
    fn add_arbitrary(&mut self, name: &'static str, exponent: i32) {
        match self.arbitrary.iter_mut().find(|(n, _)| *n == name) {
            Some((_, mine)) => *mine += exponent,
            None => self.arbitrary.push((name, exponent)),
        }
        self.arbitrary.retain(|(_, exponent)| *exponent != 0);
        self.arbitrary.sort_unstable();
    }
}

fn raised(ratio: &BigRational, power: i32) -> BigRational {
    let raised = num_traits::pow(ratio.clone(), power.unsigned_abs() as usize);
    if power < 0 { raised.recip() } else { raised }
}

fn integer(value: i64) -> BigRational {
    BigRational::from_integer(BigInt::from(value))
}

fn exact(number: Number) -> Result<BigRational, UnitError> {
    let (digits, exponent) = number.to_integer_and_exponent();
    // The table keeps 28 digits; a factor that fills them was rounded.
    if digits.unsigned_abs() >= 10u128.pow(27) {
        return Err(UnitError::NotExact);
    }
    if exponent.abs() > NUMBER_DIGITS_MAX {
        return Err(UnitError::Unknown);
    }
    Ok(BigRational::from_integer(BigInt::from(digits)) * power_of_ten(exponent))
}

/// The scales whose zero lies elsewhere: they stand alone, perhaps with a prefix or an annotation.
fn special(expression: &UnitExpr) -> Result<Option<Unit>, UnitError> {
    let symbol = match expression {
        UnitExpr::Symbol(symbol) => symbol,
        UnitExpr::Annotated(inner, _) => return special(inner),
        _ => return Ok(None),
    };
    let (prefix, unit) = lookup_unit(symbol, Case::Sensitive).ok_or(UnitError::Unknown)?;
    let (scale, zero) = match unit.special {
        SpecialKind::None | SpecialKind::Arbitrary => return Ok(None),
        SpecialKind::Celsius => (integer(1), BigRational::new(27_315.into(), 100.into())),
        SpecialKind::Fahrenheit => {
            (BigRational::new(5.into(), 9.into()), BigRational::new(45_967.into(), 100.into()))
        }
        _ => return Err(UnitError::NotLinear),
    };
    let mut dimension = Dimension::default();
    add_base(&mut dimension, unit);
    let offset = zero * &scale;
    let prefix = prefix.map_or(Ok(BigRational::one()), |prefix| exact(prefix.factor))?;
    Ok(Some(Unit { scale: scale * prefix, offset, dimension }))
}

fn add_base(dimension: &mut Dimension, unit: &octofhir_ucum::UnitRecord) {
    for (mine, exponent) in dimension.base.iter_mut().zip(unit.dim.0) {
        *mine = exponent.into();
    }
    if let [.., information] = &mut dimension.base
        && matches!(unit.code, "bit" | "By")
    {
        *information = 1;
    }
}

fn evaluate(expression: &UnitExpr) -> Result<Unit, UnitError> {
    match expression {
        UnitExpr::Symbol(symbol) => {
            let (prefix, unit) = lookup_unit(symbol, Case::Sensitive).ok_or(UnitError::Unknown)?;
            if unit.special.is_special() {
                return Err(UnitError::NotLinear);
            }
            let mut known = Unit::plain(exact(unit.factor)?);
            if let Some(prefix) = prefix {
                known.scale *= exact(prefix.factor)?;
            }
            add_base(&mut known.dimension, unit);
            for (name, exponent) in unit.arbitrary {
                known.dimension.add_arbitrary(name, *exponent);
            }
            Ok(known)
        }
        UnitExpr::Numeric(number) => Ok(Unit::plain(exact(*number)?)),
        UnitExpr::Annotation(_) => Ok(Unit::plain(BigRational::one())),
        UnitExpr::Annotated(inner, _) => evaluate(inner),
        UnitExpr::Power(inner, power) => {
            if power.unsigned_abs() > POWER_MAX {
                return Err(UnitError::Unknown);
            }
            Ok(Unit::plain(BigRational::one()).times(&evaluate(inner)?, *power))
        }
        UnitExpr::Product(terms) => {
            terms.iter().try_fold(Unit::plain(BigRational::one()), |product, term| {
                Ok(product.times(&evaluate(term)?, 1))
            })
        }
        UnitExpr::Quotient(over, under) => Ok(evaluate(over)?.times(&evaluate(under)?, -1)),
        UnitExpr::Reciprocal(under) => {
            Ok(Unit::plain(BigRational::one()).times(&evaluate(under)?, -1))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use super::{super::exact::Exact, *};

    #[track_caller]
    fn check(value: &str, from: &str, to: &str, expected: &str) {
        let (from, to) = (Unit::parse(from).unwrap(), Unit::parse(to).unwrap());
        let converted = from.conversion_to(&to).unwrap().apply(&Exact::parse(value).unwrap());
        let (n, d) = expected.split_once('/').unwrap_or((expected, "1"));
        let ratio = |text: &str| Exact::parse(text).unwrap().ratio();
        assert_eq!(converted.ratio(), ratio(n) / ratio(d));
    }

    #[test]
    fn units_of_one_dimension_convert_exactly() {
        check("1500", "ms", "s", "1.5");
        check("1", "min", "h", "1/60");
        check("2", "wk", "d", "14");
        check("90", "km/h", "m/s", "25");
        check("3", "KiBy", "By", "3072");
        check("1", "MiBy", "kBy", "1048.576");
        check("1", "By", "bit", "8");
        check("1", "By/s", "bit/min", "480");
        check("50", "%", "1", "0.5");
        check("7", "{request}", "1", "7");
        check("25", "Cel", "K", "298.15");
        check("212", "[degF]", "Cel", "100");
        check("1", "[degF]", "Cel", "-155/9");
        check("1", "kW.h", "J", "3600000");
        check("1", "[in_i]", "cm", "2.54");
        check("1", "m2", "cm2", "10000");
        check("1", "/min", "/h", "60");
        check("1", "us", "ns", "1000");
        check("5", "10*3", "1", "5000");
    }

    #[test]
    fn units_of_different_dimensions_do_not_convert() {
        for (a, b) in [("s", "m"), ("By", "1"), ("bit", "s"), ("m/s", "m.s"), ("[IU]", "g")] {
            let (a, b) = (Unit::parse(a).unwrap(), Unit::parse(b).unwrap());
            assert_eq!(a.conversion_to(&b), None);
        }
    }

    #[test]
    fn what_is_no_unit_or_not_exact_is_refused() {
        let long = "m.".repeat(40);
        for code in ["", "sec", "seconds", "m s", " s", "Sec", "m99", "10*99999", &long] {
            assert_eq!(Unit::parse(code), Err(UnitError::Unknown), "{code}");
        }
        for code in ["dB", "[pH]", "B[W]", "Cel/s"] {
            assert_eq!(Unit::parse(code), Err(UnitError::NotLinear), "{code}");
        }
        assert_eq!(Unit::parse("deg"), Err(UnitError::NotExact));
    }
}
