//! Numbers and units, against plain rationals: exact, in every form a number may be written.

#![no_main]

use libfuzzer_sys::fuzz_target;
use num_bigint::BigInt;
use num_rational::BigRational;
use tidegate_fuzz::input::Input;
use tidegate_ingest::fuzzing::normalize::{
    Number, compare, convert, is_multiple, is_unit, parse_number,
};

/// Codes whose factors to the first of each row are known here by themselves.
const KNOWN: [&[(&str, i64, i64)]; 4] = [
    &[
        ("s", 1, 1),
        ("ms", 1, 1_000),
        ("us", 1, 1_000_000),
        ("min", 60, 1),
        ("h", 3_600, 1),
        ("d", 86_400, 1),
        ("wk", 604_800, 1),
    ],
    &[("By", 1, 1), ("bit", 1, 8), ("KiBy", 1_024, 1), ("kBy", 1_000, 1), ("GiBy", 1 << 30, 1)],
    &[
        ("m", 1, 1),
        ("km", 1_000, 1),
        ("cm", 1, 100),
        ("[in_i]", 254, 10_000),
        ("[mi_i]", 1_609_344, 1_000),
    ],
    &[("m/s", 1, 1), ("km/h", 10, 36), ("m/min", 1, 60)],
];

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    match input.u8() % 4 {
        0 => parsed(&input.text(0)),
        1 => compared(&input.text(0), &input.text(0)),
        2 => {
            let row = KNOWN[usize::from(input.u8()) % KNOWN.len()];
            let mut pick = || row[usize::from(input.u8()) % row.len()];
            known(pick(), pick(), &input.text(0));
        }
        _ => any(&input.text(0), &input.text(0), &input.text(0)),
    }
});

/// Digits and exponents for which the reference stays quick.
fn reference(text: &str) -> Option<BigRational> {
    if text.len() > 200 || serde_json::from_str::<&serde_json::value::RawValue>(text).is_err() {
        return None;
    }
    let (body, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = body.split_once('.').unwrap_or((body, ""));
    let digits: BigInt = format!("{whole}{fraction}").parse().ok()?;
    let exponent = exponent.parse::<i64>().ok()? - fraction.len() as i64;
    let power = u32::try_from(exponent.abs()).ok().filter(|power| *power < 1_000)?;
    let power = BigRational::from_integer(BigInt::from(10).pow(power));
    let digits = BigRational::from_integer(digits);
    Some(if exponent < 0 { digits / power } else { digits * power })
}

fn ratio(n: i64, d: i64) -> BigRational {
    BigRational::new(n.into(), d.into())
}

/// What is said of a number is true of the rational it is.
fn consistent(number: &Number) {
    let Number { ratio, is_integer, integer, double } = number;
    assert_eq!(*is_integer, ratio.is_integer());
    let expected = ratio.is_integer().then(|| i64::try_from(ratio.to_integer()).ok()).flatten();
    assert_eq!(*integer, expected);
    if let Ok(double) = double {
        assert!(double.is_finite());
        let written = reference(&format!("{double:e}"));
        let exact = BigRational::from_float(*double).unwrap();
        if written.is_none_or(|written| written != *ratio) && exact != *ratio {
            // Only a ratio without a finite decimal may be rounded, and only to its neighbour.
            let mut rest = ratio.denom().clone();
            for factor in [2, 5] {
                while (&rest % factor) == BigInt::ZERO {
                    rest /= factor;
                }
            }
            assert_ne!(rest, BigInt::from(1), "{ratio} became {double:e}");
            let near = |other: f64| {
                !other.is_finite() || {
                    let other = BigRational::from_float(other).unwrap();
                    let off = |a: &BigRational| if a < ratio { ratio - a } else { a - ratio };
                    off(&exact) <= off(&other)
                }
            };
            let below = *double == 0.0;
            assert!(
                below || near(double.next_up()) && near(double.next_down()),
                "{ratio} {double:e}"
            );
        }
    }
}

/// The number, where the text is one.
fn number(text: &str) -> Option<(Number, BigRational)> {
    let expected = reference(text)?;
    let number = parse_number(text)?;
    consistent(&number);
    Some((number, expected))
}

fn parsed(text: &str) {
    if let Some((number, expected)) = number(text) {
        assert_eq!(number.ratio, expected, "{text}");
    } else if let Some(expected) = reference(text) {
        // Refused: then it is too large, too near to 0, or too long.
        let power = |n: u32| BigRational::from_integer(BigInt::from(10).pow(n));
        let size = if expected < ratio(0, 1) { -expected } else { expected };
        assert!(size >= power(399) || size < power(399).recip(), "{text} is refused");
    }
}

fn compared(a: &str, b: &str) {
    let (Some((_, x)), Some((_, y))) = (number(a), number(b)) else { return };
    assert_eq!(compare(a, b), Some(x.cmp(&y)), "{a} {b}");
    if y > ratio(0, 1) {
        assert_eq!(is_multiple(a, b), Some((x / y).is_integer()), "{a} {b}");
    }
}

fn known(from: (&str, i64, i64), to: (&str, i64, i64), text: &str) {
    let Some((_, value)) = number(text) else { return };
    let converted = convert(text, from.0, to.0).unwrap();
    consistent(&converted);
    let expected = value * ratio(from.1, from.2) / ratio(to.1, to.2);
    assert_eq!(converted.ratio, expected, "{text} {} in {}", from.0, to.0);
}

/// Any two codes: there and back is the same, and a unit is itself.
fn any(text: &str, from: &str, to: &str) {
    if let (true, Some((_, value))) = (is_unit(from), number(text)) {
        assert_eq!(convert(text, from, from).unwrap().ratio, value);
    }
    let (Some(there), Some(back)) = (convert("3", from, to), convert("3", to, from)) else {
        return;
    };
    consistent(&there);
    let (there_zero, back_zero) =
        (convert("0", from, to).unwrap(), convert("0", to, from).unwrap());
    // Both ways are linear: their slopes undo each other, and so do the offsets.
    let slope = |three: &Number, zero: &Number| (&three.ratio - &zero.ratio) / ratio(3, 1);
    let (up, down) = (slope(&there, &there_zero), slope(&back, &back_zero));
    assert_eq!(&up * &down, ratio(1, 1), "{from} {to}");
    assert_eq!(&down * &there_zero.ratio + &back_zero.ratio, ratio(0, 1), "{from} {to}");
}
