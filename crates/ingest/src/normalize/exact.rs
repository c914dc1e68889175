//! Numbers without rounding: as JSON writes them, through units, into columns.

use std::cmp::Ordering;

use num_bigint::BigInt;
use num_integer::Integer as _;
use num_rational::BigRational;
use num_traits::{One as _, Signed as _, ToPrimitive as _, Zero as _};

/// A rational number. `Small` is `mantissa · 10^exponent`, without trailing zeros in the mantissa.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Exact {
    Small { mantissa: i128, exponent: i32 },
    Big(Box<BigRational>),
}

/// The number is beyond what is computed with: no column can hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beyond {
    /// Its magnitude is 10^400 or more.
    Large,
    /// It is not 0 but closer to it than 10^-400, or has more than 800 digits.
    Fine,
}

/// What became of a number on its way into 64-bit floating point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Double {
    /// The nearest `f64` or its shortest decimal is the number, or it has no finite decimal.
    Kept(f64),
    /// Digits would be lost.
    Loss,
    /// Too large.
    Range,
}

const MANTISSA_DIGITS: usize = 36;
const DIGITS_MAX: usize = 800;
const MAGNITUDE_MAX: i64 = 400;

impl Exact {
    /// Reads a number of valid JSON grammar.
    pub(super) fn parse(text: &str) -> Result<Self, Beyond> {
        let at = text.bytes().position(|b| matches!(b, b'e' | b'E'));
        let (body, exponent) = match at {
            None => (text, 0),
            Some(at) => (text.get(..at).unwrap_or_default(), exponent(text.get(at + 1..))),
        };
        let (mut mantissa, mut digits, mut zeros, mut scale) = (0i128, 0usize, 0u32, 0i64);
        let mut point = false;
        for byte in body.bytes() {
            match byte {
                b'.' => point = true,
                b'0'..=b'9' => {
                    scale -= i64::from(point);
                    if byte == b'0' {
                        zeros += u32::from(digits > 0);
                        continue;
                    }
                    digits += zeros as usize + 1;
                    if digits <= MANTISSA_DIGITS {
                        mantissa = mantissa * 10i128.pow(zeros + 1) + i128::from(byte - b'0');
                    }
                    zeros = 0;
                }
                _ => {}
            }
        }
        if digits == 0 {
            return Ok(Self::integer(0));
        }
        let exponent = exponent.saturating_add(scale).saturating_add(i64::from(zeros));
        let magnitude = exponent.saturating_add(i64::try_from(digits).unwrap_or(i64::MAX));
        if magnitude > MAGNITUDE_MAX {
            return Err(Beyond::Large);
        }
        if magnitude < -MAGNITUDE_MAX || digits > DIGITS_MAX {
            return Err(Beyond::Fine);
        }
        let exponent = i32::try_from(exponent).map_err(|_| Beyond::Fine)?;
        let negative = text.starts_with('-');
        if digits <= MANTISSA_DIGITS {
            let mantissa = if negative { -mantissa } else { mantissa };
            return Ok(Self::Small { mantissa, exponent });
        }
        let written: Vec<u8> = body.bytes().filter(u8::is_ascii_digit).collect();
        let written = written.get(..written.len() - zeros as usize).unwrap_or_default();
        let whole = BigInt::parse_bytes(written, 10).unwrap_or_default();
        let whole = if negative { -whole } else { whole };
        Ok(Self::Big(Box::new(BigRational::from_integer(whole) * power_of_ten(exponent))))
    }

    pub(super) fn integer(value: i64) -> Self {
        Self::small(value.into(), 0)
    }

    fn small(mut mantissa: i128, mut exponent: i32) -> Self {
        if mantissa == 0 {
            return Self::Small { mantissa: 0, exponent: 0 };
        }
        while mantissa % 10 == 0 {
            mantissa /= 10;
            exponent += 1;
        }
        Self::Small { mantissa, exponent }
    }

    pub(super) fn ratio(&self) -> BigRational {
        match self {
            Self::Small { mantissa, exponent } => {
                BigRational::from_integer(BigInt::from(*mantissa)) * power_of_ten(*exponent)
            }
            Self::Big(ratio) => (**ratio).clone(),
        }
    }

    /// The smallest form that holds it.
    pub(super) fn from_ratio(ratio: BigRational) -> Self {
        let Some((scaled, exponent)) = finite_decimal(&ratio) else {
            return Self::Big(Box::new(ratio));
        };
        match scaled.to_i128() {
            Some(mantissa) => Self::small(mantissa, exponent),
            None => Self::Big(Box::new(ratio)),
        }
    }

    pub(super) fn is_integer(&self) -> bool {
        match self {
            Self::Small { exponent, .. } => *exponent >= 0,
            Self::Big(ratio) => ratio.is_integer(),
        }
    }

    /// The integer it is, if it is one of 64 bits.
    pub(super) fn to_i64(&self) -> Option<i64> {
        match self {
            Self::Small { mantissa, exponent } => {
                let power = 10i128.checked_pow(u32::try_from(*exponent).ok()?)?;
                i64::try_from(mantissa.checked_mul(power)?).ok()
            }
            Self::Big(ratio) => ratio.is_integer().then(|| ratio.to_integer().to_i64())?,
        }
    }

    /// The `f64` that stands for it, or why none does.
    pub(super) fn to_double(&self) -> Double {
        let (nearest, plain) = match self {
            Self::Small { mantissa, exponent } => (
                nearest_decimal(*mantissa, *exponent),
                mantissa.unsigned_abs() < 10u128.pow(15) && (-290..=290).contains(exponent),
            ),
            Self::Big(ratio) => (nearest_ratio(ratio), finite_decimal(ratio).is_none()),
        };
        if !nearest.is_finite() {
            return Double::Range;
        }
        // Fifteen digits always come back out of an f64; what has no finite decimal is rounded.
        let kept = plain
            || Self::parse(&format!("{nearest:e}")).as_ref() == Ok(self)
            || BigRational::from_float(nearest).is_some_and(|exact| exact == self.ratio());
        if kept { Double::Kept(nearest) } else { Double::Loss }
    }

    pub(super) fn compare(&self, other: &Self) -> Ordering {
        match self.aligned(other) {
            Some((a, b)) => a.cmp(&b),
            None => self.ratio().cmp(&other.ratio()),
        }
    }

    /// `divisor` is greater than 0.
    pub(super) fn is_multiple_of(&self, divisor: &Self) -> bool {
        match self.aligned(divisor) {
            Some((a, b)) => b != 0 && a % b == 0,
            None => (self.ratio() / divisor.ratio()).is_integer(),
        }
    }

    /// Both mantissas for one exponent, where they fit.
    fn aligned(&self, other: &Self) -> Option<(i128, i128)> {
        let (Self::Small { mantissa: a, exponent: x }, Self::Small { mantissa: b, exponent: y }) =
            (self, other)
        else {
            return None;
        };
        let scale = |mantissa: &i128, by: i32| {
            mantissa.checked_mul(10i128.checked_pow(u32::try_from(by).ok()?)?)
        };
        let lowest = (*x).min(*y);
        Some((scale(a, x - lowest)?, scale(b, y - lowest)?))
    }
}

/// The exponent behind `e`; beyond 64 bits it is as large as can be.
fn exponent(text: Option<&str>) -> i64 {
    let text = text.unwrap_or_default();
    let huge = if text.starts_with('-') { i64::MIN / 4 } else { i64::MAX / 4 };
    text.parse::<i64>().map_or(huge, |e| e.clamp(i64::MIN / 4, i64::MAX / 4))
}

pub(super) fn power_of_ten(exponent: i32) -> BigRational {
    let power = BigRational::from_integer(BigInt::from(10).pow(exponent.unsigned_abs()));
    if exponent < 0 { power.recip() } else { power }
}

/// `n` and `e` with `ratio = n · 10^e`, where there are such: the denominator has no factors but 2
/// and 5.
fn finite_decimal(ratio: &BigRational) -> Option<(BigInt, i32)> {
    let mut denominator = ratio.denom().clone();
    let mut take = |factor: u32| {
        let mut count = 0u32;
        loop {
            let (quotient, rest) = denominator.div_rem(&BigInt::from(factor));
            if !rest.is_zero() {
                return count;
            }
            denominator = quotient;
            count += 1;
        }
    };
    let places = take(2).max(take(5));
    if !denominator.is_one() {
        return None;
    }
    let scaled = ratio * BigRational::from_integer(BigInt::from(10).pow(places));
    Some((scaled.to_integer(), -i32::try_from(places).ok()?))
}

fn nearest_decimal(mantissa: i128, exponent: i32) -> f64 {
    const EXACT: i128 = 1 << 53;
    if (-EXACT..=EXACT).contains(&mantissa) && (-22..=22).contains(&exponent) {
        // Both operands are exact, so that one operation rounds once.
        let (whole, power) = (mantissa as f64, 10f64.powi(exponent.abs()));
        return if exponent < 0 { whole / power } else { whole * power };
    }
    format!("{mantissa}e{exponent}").parse().unwrap_or(f64::NAN)
}

/// The nearest `f64`, ties to even; infinite where it is too large, 0 below the normal range.
fn nearest_ratio(ratio: &BigRational) -> f64 {
    if ratio.is_zero() {
        return 0.0;
    }
    let (n, d) = (ratio.numer().abs(), ratio.denom());
    let bits = |n: &BigInt| i64::try_from(n.bits()).unwrap_or(i64::MAX);
    // The quotient gets 66 or 67 bits, the last of which also stands for all that is cut off.
    let shift = bits(d) - bits(&n) + 66;
    let by = usize::try_from(shift.unsigned_abs()).unwrap_or(usize::MAX);
    let (quotient, rest) = if shift >= 0 { (n << by).div_rem(d) } else { n.div_rem(&(d << by)) };
    let quotient = quotient.to_u128().unwrap_or(u128::MAX) | u128::from(!rest.is_zero());
    let exponent = i32::try_from(-shift).unwrap_or(i32::MIN);
    let half = exponent / 2;
    let value = quotient as f64 * 2f64.powi(half) * 2f64.powi(exponent - half);
    let value = if value < f64::MIN_POSITIVE { 0.0 } else { value };
    if ratio.is_negative() { -value } else { value }
}

/// A linear way from one unit to another: `value · scale + offset`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conversion {
    scale: BigRational,
    offset: BigRational,
    /// `numerator · 10^exponent / denominator`, where it is small and there is no offset.
    fast: Option<(i128, i128, i32)>,
}

impl Conversion {
    pub(super) fn new(scale: BigRational, offset: BigRational) -> Self {
        let fast = || {
            let (mut n, mut d) = (scale.numer().to_i128()?, scale.denom().to_i128()?);
            let mut exponent = 0;
            for factor in [2, 5] {
                while d % factor == 0 {
                    d /= factor;
                    n = n.checked_mul(10 / factor)?;
                    exponent -= 1;
                }
            }
            while n != 0 && n % 10 == 0 {
                n /= 10;
                exponent += 1;
            }
            Some((n, d, exponent))
        };
        let fast = if offset.is_zero() { fast() } else { None };
        Self { scale, offset, fast }
    }

    pub(super) fn apply(&self, value: &Exact) -> Exact {
        if let (Some((n, d, by)), Exact::Small { mantissa, exponent }) = (self.fast, value)
            && let Some(product) = mantissa.checked_mul(n)
            && product % d == 0
        {
            return Exact::small(product / d, exponent + by);
        }
        Exact::from_ratio(value.ratio() * &self.scale + &self.offset)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exact(text: &str) -> Exact {
        Exact::parse(text).unwrap()
    }

    fn big(text: &str) -> BigRational {
        let (body, e) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = body.split_once('.').unwrap_or((body, ""));
        let digits: BigInt = format!("{whole}{fraction}").parse().unwrap();
        let e: i32 = e.parse::<i32>().unwrap() - fraction.len() as i32;
        BigRational::from_integer(digits) * power_of_ten(e)
    }

    proptest! {
        #[test]
        fn a_number_is_read_as_it_is_written(
            text in "-?(0|[1-9][0-9]{0,60})(\\.[0-9]{1,60})?(e[+-]?[0-9]{1,2})?"
        ) {
            prop_assert_eq!(exact(&text).ratio(), big(&text));
        }

        #[test]
        fn every_double_and_its_shortest_decimal_are_kept(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite() && value.abs() > 1e-290);
            prop_assert_eq!(exact(&format!("{value:e}")).to_double(), Double::Kept(value));
            let all = Exact::from_ratio(BigRational::from_float(value).unwrap());
            prop_assert_eq!(all.to_double(), Double::Kept(value));
        }

        #[test]
        fn a_ratio_is_rounded_as_its_digits_would_be(n in any::<i64>(), d in 1..i64::MAX) {
            let ratio = BigRational::new(n.into(), d.into());
            let digits = (ratio.clone() * power_of_ten(400)).to_integer();
            let expected: f64 = format!("{digits}e-400").parse().unwrap();
            prop_assert_eq!(nearest_ratio(&ratio), expected);
        }

        #[test]
        fn comparing_and_dividing_agree_with_rationals(
            a in "-?[0-9]{1,30}(\\.[0-9]{1,9})?", b in "[1-9][0-9]{0,30}(\\.[0-9]{1,9})?", k in -9..9i64
        ) {
            let (x, y) = (exact(&a), exact(&b));
            prop_assert_eq!(x.compare(&y), big(&a).cmp(&big(&b)));
            prop_assert_eq!(x.is_multiple_of(&y), (big(&a) / big(&b)).is_integer());
            let product = Exact::from_ratio(big(&b) * BigRational::from_integer(k.into()));
            prop_assert!(product.is_multiple_of(&y));
        }

        #[test]
        fn the_fast_conversion_is_the_slow_one(
            text in "-?[0-9]{1,30}(\\.[0-9]{1,9})?", n in 1..5000i64, d in 1..5000i64
        ) {
            let scale = BigRational::new(n.into(), d.into());
            let converted = Conversion::new(scale.clone(), BigRational::zero()).apply(&exact(&text));
            prop_assert_eq!(converted.ratio(), big(&text) * scale);
        }
    }

    #[test]
    fn what_a_double_cannot_hold_is_told() {
        for (text, expected) in [
            ("0.1", Double::Kept(0.1)),
            ("-0.0", Double::Kept(0.0)),
            ("9007199254740993", Double::Loss),
            ("1152921504606846976", Double::Kept(1_152_921_504_606_846_976.0)),
            ("1234567890123456789", Double::Loss),
            ("0.1000000000000000055511151231257827021181583404541015625", Double::Kept(0.1)),
            ("0.10000000000000001", Double::Loss),
            ("1e308", Double::Kept(1e308)),
            ("1e309", Double::Range),
            ("1e-330", Double::Loss),
        ] {
            assert_eq!(exact(text).to_double(), expected, "{text}");
        }
        assert_eq!(Exact::parse("1e400"), Err(Beyond::Large));
        assert_eq!(Exact::parse("-1e99999999999999999999"), Err(Beyond::Large));
        assert_eq!(Exact::parse("1e-99999999999999999999"), Err(Beyond::Fine));
        assert_eq!(Exact::parse(&"1".repeat(100_000)), Err(Beyond::Large));
        assert_eq!(Exact::parse("0e99999999999999999999"), Ok(Exact::integer(0)));
    }

    #[test]
    fn integers_are_those_that_fit() {
        assert_eq!(exact("1.50e1").to_i64(), Some(15));
        assert_eq!(exact("-9223372036854775808").to_i64(), Some(i64::MIN));
        assert_eq!(exact("9223372036854775808").to_i64(), None);
        assert_eq!(exact("1.5").to_i64(), None);
        assert!(exact("1e300").is_integer() && !exact("1e-1").is_integer());
    }
}
