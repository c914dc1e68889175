//! Request body codings: nothing panics, no bound is passed, what was coded comes back whole.

#![no_main]

use std::io::{Read, Write};

use http::{HeaderMap, HeaderValue, header::CONTENT_ENCODING};
use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::input::Input;
use tidegate_ingest::{
    budget::Budget,
    fuzzing::edge::{Refused, decode},
};

const NAMES: [&str; 6] = ["gzip", "zstd", "deflate", "br", "identity", "x-gzip"];
const MIB: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (what, coding) = (input.u8(), NAMES[usize::from(input.u8()) % NAMES.len()]);
    // Powers of two, so that small and large bounds are as likely.
    let bytes = 1u64 << (input.u8() % 23);
    let ratio = 1u64 << (input.u8() % 12);
    let budget = 1u64 << (input.u8() % 24);
    match what % 4 {
        0 => bounded(coding, input.0, (bytes, ratio), budget),
        1 => whole(coding, input.0),
        2 => cut(coding, input),
        _ => named(input.0),
    }
});

fn run(
    coding: &str,
    raw: &[u8],
    limits: (u64, u64),
    budget: u64,
) -> (Result<Vec<u8>, Refused>, u64) {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_ENCODING, HeaderValue::from_str(coding).unwrap());
    let budget = Budget::new(budget);
    let mut permit = budget.unshared().try_take(0).unwrap();
    let result = decode(&headers, raw, limits, &mut permit).expect("a coding that is taken");
    let taken = permit.bytes();
    assert_eq!(budget.held(), taken);
    drop(permit);
    assert_eq!(budget.held(), 0);
    (result, taken)
}

/// Whatever the bytes are: no more than the bounds comes out, and none is held.
fn bounded(coding: &str, raw: &[u8], limits: (u64, u64), budget: u64) {
    let (result, taken) = run(coding, raw, limits, budget);
    let identity = coding == "identity";
    let most =
        if identity { limits.0 } else { limits.0.min((raw.len() as u64 * limits.1).max(MIB)) };
    assert!(taken <= budget.min(most + 1), "{taken} bytes taken of {budget}, {most} may come out");
    match result {
        Ok(decoded) => {
            assert!(decoded.len() as u64 <= most && decoded.len() as u64 <= taken);
            // The bounds decide whether it comes, never what comes.
            let (again, _) = run(coding, raw, (64 * MIB, u64::MAX), u64::MAX);
            assert_eq!(again, Ok(decoded));
        }
        Err(Refused::TooLarge(limit)) => assert_eq!(limit, limits.0),
        Err(Refused::Ratio(ratio)) => assert!(!identity && ratio == limits.1),
        Err(Refused::Full) => assert!(budget <= most),
        Err(Refused::Corrupt) => assert!(!identity),
    }
}

fn encode(coding: &str, data: &[u8]) -> Option<Vec<u8>> {
    use flate2::{Compression, write};
    let level = Compression::new(u32::from(data.first().copied().unwrap_or(6)) % 10);
    Some(match coding {
        "gzip" | "x-gzip" => {
            let mut to = write::GzEncoder::new(Vec::new(), level);
            to.write_all(data).unwrap();
            to.finish().unwrap()
        }
        "deflate" if data.len() % 2 == 0 => {
            let mut to = write::ZlibEncoder::new(Vec::new(), level);
            to.write_all(data).unwrap();
            to.finish().unwrap()
        }
        "deflate" => {
            let mut to = write::DeflateEncoder::new(Vec::new(), level);
            to.write_all(data).unwrap();
            to.finish().unwrap()
        }
        "zstd" => zstd::bulk::compress(data, 1).unwrap(),
        "identity" => data.to_vec(),
        _ => return None,
    })
}

/// What was coded, in one part or several, comes back; a bound one byte lower refuses it.
fn whole(coding: &str, data: &[u8]) {
    let parts: Vec<&[u8]> = match coding {
        "gzip" | "zstd" => data.split_inclusive(|byte| *byte == 0).collect(),
        _ => vec![data],
    };
    let Some(coded) = parts.iter().map(|part| encode(coding, part)).collect::<Option<Vec<_>>>()
    else {
        return;
    };
    let coded = coded.concat();
    let size = data.len() as u64;
    let decoded = run(coding, &coded, (size, u64::MAX), u64::MAX).0;
    if !parts.is_empty() {
        assert_eq!(decoded.as_deref(), Ok(data), "{coding}");
    }
    if 1 < size {
        let refused = run(coding, &coded, (size - 1, u64::MAX), u64::MAX).0;
        assert_eq!(refused, Err(Refused::TooLarge(size - 1)), "{coding}");
    }
}

/// A body cut short is never taken for whole: all of it comes, or nothing.
fn cut(coding: &str, mut input: Input<'_>) {
    let at = usize::from(input.u16());
    let Some(mut coded) = encode(coding, input.0).filter(|_| coding != "identity") else { return };
    let at = at % coded.len();
    let whole = coded.clone();
    coded.truncate(at);
    if at == 0 {
        return;
    }
    match run(coding, &coded, (64 * MIB, u64::MAX), u64::MAX).0 {
        Err(Refused::Corrupt) => {}
        // A cut zlib body may be whole raw deflate, by chance: then it is that, and no part of it.
        Ok(decoded) if coding == "deflate" => {
            let mut raw = Vec::new();
            flate2::read::DeflateDecoder::new(&coded[..]).read_to_end(&mut raw).unwrap();
            assert_eq!(decoded, raw);
        }
        other => panic!("{coding}: {at} of {} bytes gave {other:?}", whole.len()),
    }
}

/// `Content-Encoding` as it may come.
fn named(raw: &[u8]) {
    let mut headers = HeaderMap::new();
    for value in raw.split(|byte| *byte == b'\n').take(4) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(CONTENT_ENCODING, value);
        }
    }
    let budget = Budget::new(MIB);
    let mut permit = budget.unshared().try_take(0).unwrap();
    let taken = decode(&headers, b"x", (10, 10), &mut permit);
    let text = headers.get_all(CONTENT_ENCODING).iter();
    let mut names: Vec<String> = Vec::new();
    for value in text {
        let Ok(value) = value.to_str() else {
            assert!(taken.is_none());
            return;
        };
        names.extend(value.split(',').map(|name| name.trim().to_ascii_lowercase()));
    }
    names.retain(|name| !name.is_empty() && name != "identity");
    let known = names.iter().all(|name| NAMES.contains(&name.as_str()));
    assert_eq!(taken.is_some(), known && names.len() <= 1, "{names:?}");
}
