//! Content codings: decodes a whole body within a bound, or says what is wrong with it.

use std::io::{self, Read};

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::{HeaderMap, header};

use crate::{
    budget::{Full, Permit},
    faults::{Bug, planted},
};

/// What `Accept-Encoding` of a 415 lists.
pub(super) const TAKEN: &str = "identity, gzip, zstd, deflate, br";

/// The largest window a zstd frame may ask for: 8 MiB, as RFC 9659 has it.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

const STEP_BYTES: usize = 256 << 10;
const MIB: u64 = 1 << 20;

/// How a body is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
    Zstd,
    Deflate,
    Brotli,
    /// Its block format. No `Content-Encoding` names it: a protocol implies it.
    Snappy,
}

/// Bounds of a decoded body.
#[derive(Clone, Copy, Debug)]
pub(super) struct DecodeLimits {
    /// Bytes.
    pub bytes: u64,
    /// Decoded bytes for one byte sent, past the first MiB decoded.
    pub ratio: u64,
}

/// Why a body could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("the {coding} data is damaged, cut short, or has bytes behind its end: {message}")]
    Corrupt { coding: &'static str, message: String },
    #[error("the body decodes to more than {limit} bytes; send it in parts")]
    TooLarge { limit: u64 },
    #[error(
        "the body decodes to more than {ratio} times its size; send it in parts, or less compressed"
    )]
    Ratio { ratio: u64 },
    #[error("no memory left for the decoded body")]
    Full(#[from] Full),
}

/// The one coding that the headers name; `Err` with what they say for others and for several.
pub(super) fn from_headers(headers: &HeaderMap) -> Result<Coding, String> {
    let mut found = Coding::Identity;
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let text = value.to_str().map_err(|_| "unreadable".to_owned())?;
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let coding = match name.to_ascii_lowercase().as_str() {
                "identity" => continue,
                "gzip" | "x-gzip" => Coding::Gzip,
                "zstd" => Coding::Zstd,
                "deflate" => Coding::Deflate,
                "br" => Coding::Brotli,
                _ => return Err(format!("{:?}", name.chars().take(40).collect::<String>())),
            };
            if found != Coding::Identity {
                return Err("more than one coding".to_owned());
            }
            found = coding;
        }
    }
    Ok(found)
}

impl Coding {
    /// Decodes all of `raw`: every gzip member, every zstd frame. `permit` grows with the output.
    pub(super) fn decode(
        self,
        raw: &[u8],
        limits: DecodeLimits,
        permit: &mut Permit,
    ) -> Result<Vec<u8>, DecodeError> {
        let (bytes, held, raw_bytes) = (Vec::new(), permit.bytes(), raw.len() as u64);
        let mut output = Output { bytes, held, raw: raw_bytes, limits, permit };
        match self {
            Self::Identity => output.copy(raw)?,
            Self::Gzip if planted(Bug::GzipFirstMember) => {
                output.fill(&mut flate2::bufread::GzDecoder::new(raw), "gzip")?;
            }
            Self::Gzip => output.fill(&mut MultiGzDecoder::new(raw), "gzip")?,
            Self::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(raw);
                let decoder = decoder.and_then(|mut decoder| {
                    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                    Ok(decoder)
                });
                let mut decoder = decoder.map_err(|error| corrupt("zstd", &error))?;
                output.fill(&mut decoder, "zstd")?;
            }
            Self::Deflate => inflate(raw, &mut output)?,
            Self::Brotli => unbrotli(raw, &mut output)?,
            Self::Snappy => unsnap(raw, &mut output)?,
        }
        Ok(output.bytes)
    }
}

fn corrupt(coding: &'static str, error: &dyn std::fmt::Display) -> DecodeError {
    DecodeError::Corrupt { coding, message: error.to_string() }
}

struct Output<'a> {
    bytes: Vec<u8>,
    /// What the permit held before.
    held: u64,
    raw: u64,
    limits: DecodeLimits,
    permit: &'a mut Permit,
}

impl Output<'_> {
    /// How many bytes the output may have; and one more is an error.
    fn most(&self) -> u64 {
        if planted(Bug::BombsDecoded) {
            return u64::from(u32::MAX);
        }
        self.limits.bytes.min(self.raw.saturating_mul(self.limits.ratio).max(MIB))
    }

    fn over(&self) -> DecodeError {
        let limit = self.limits.bytes;
        if self.most() < limit {
            DecodeError::Ratio { ratio: self.limits.ratio }
        } else {
            DecodeError::TooLarge { limit }
        }
    }

    fn copy(&mut self, raw: &[u8]) -> Result<(), DecodeError> {
        if self.limits.bytes < self.raw {
            return Err(DecodeError::TooLarge { limit: self.limits.bytes });
        }
        self.permit.grow(self.raw)?;
        self.bytes.extend_from_slice(raw);
        Ok(())
    }

    /// Makes room behind the `used` bytes: at most one byte more than the output may have.
    fn make_room(&mut self, used: usize) -> Result<(), DecodeError> {
        let most = usize::try_from(self.most()).unwrap_or(usize::MAX);
        if most < used {
            return Err(self.over());
        }
        let wanted = used.saturating_add(STEP_BYTES.max(used)).min(most.saturating_add(1));
        let more = wanted.saturating_sub(self.bytes.len());
        self.permit.grow(more as u64)?;
        self.bytes.reserve_exact(more);
        self.bytes.resize(wanted, 0);
        Ok(())
    }

    fn fill(&mut self, from: &mut dyn Read, coding: &'static str) -> Result<(), DecodeError> {
        let mut used = 0;
        loop {
            if used == self.bytes.len() {
                self.make_room(used)?;
            }
            let room = self.bytes.get_mut(used..).unwrap_or_default();
            match from.read(room) {
                Ok(0) => break,
                Ok(n) => used += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(corrupt(coding, &error)),
            }
        }
        self.end(used)
    }

    fn end(&mut self, used: usize) -> Result<(), DecodeError> {
        self.bytes.truncate(used);
        if self.most() < used as u64 { Err(self.over()) } else { Ok(()) }
    }

    /// Forgets what was decoded and gives its memory back, to try another way.
    fn reset(&mut self) {
        self.bytes = Vec::new();
        self.permit.shrink_to(self.held);
    }
}

/// `deflate` is zlib (RFC 9110), and raw deflate from clients that read it otherwise.
fn inflate(raw: &[u8], output: &mut Output<'_>) -> Result<(), DecodeError> {
    let zlib = match raw {
        [a, b, ..] => {
            a & 0x0f == 8 && a >> 4 <= 7 && (u16::from(*a) << 8 | u16::from(*b)).is_multiple_of(31)
        }
        _ => false,
    };
    let first = if zlib {
        let mut decoder = ZlibDecoder::new(raw);
        output.fill(&mut decoder, "deflate").and_then(|()| at_end("deflate", decoder.into_inner()))
    } else {
        Err(DecodeError::Corrupt { coding: "deflate", message: String::new() })
    };
    match first {
        Err(DecodeError::Corrupt { message, .. }) => {
            output.reset();
            let mut decoder = DeflateDecoder::new(raw);
            let second = output
                .fill(&mut decoder, "deflate")
                .and_then(|()| at_end("deflate", decoder.into_inner()));
            match second {
                // What looked like zlib and is no raw deflate either is told about as zlib.
                Err(DecodeError::Corrupt { .. }) if zlib => {
                    Err(DecodeError::Corrupt { coding: "deflate", message })
                }
                other => other,
            }
        }
        other => other,
    }
}

fn at_end(coding: &'static str, rest: &[u8]) -> Result<(), DecodeError> {
    if rest.is_empty() { Ok(()) } else { Err(corrupt(coding, &"bytes behind the end")) }
}

fn unbrotli(raw: &[u8], output: &mut Output<'_>) -> Result<(), DecodeError> {
    // Strict: windows up to 16 MiB, as RFC 7932 has them.
    let alloc = StandardAlloc::default;
    let mut state = BrotliState::new_strict(alloc(), alloc(), alloc());
    let (mut input_left, mut input_at) = (raw.len(), 0);
    let (mut used, mut total) = (0, 0);
    loop {
        if used == output.bytes.len() {
            output.make_room(used)?;
        }
        let mut room = output.bytes.len() - used;
        let result = BrotliDecompressStream(
            &mut input_left,
            &mut input_at,
            raw,
            &mut room,
            &mut used,
            &mut output.bytes,
            &mut total,
            &mut state,
        );
        match result {
            BrotliResult::NeedsMoreOutput => {}
            BrotliResult::ResultSuccess => break,
            BrotliResult::NeedsMoreInput => return Err(corrupt("br", &"cut short")),
            BrotliResult::ResultFailure => return Err(corrupt("br", &"damaged")),
        }
    }
    at_end("br", raw.get(input_at..).unwrap_or_default())?;
    output.end(used)
}

/// A block says first how large it is decoded: no more is made room for, nor less.
fn unsnap(raw: &[u8], output: &mut Output<'_>) -> Result<(), DecodeError> {
    let bytes = snap::raw::decompress_len(raw).map_err(|error| corrupt("snappy", &error))?;
    if output.most() < bytes as u64 {
        return Err(output.over());
    }
    output.permit.grow(bytes as u64)?;
    output.bytes = vec![0; bytes];
    let decoded = snap::raw::Decoder::new().decompress(raw, &mut output.bytes);
    output.end(decoded.map_err(|error| corrupt("snappy", &error))?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use std::io::Write;

    use flate2::{
        Compression,
        write::{DeflateEncoder, GzEncoder, ZlibEncoder},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::budget::Budget;

    /// "hello hello hello hello\n" by the reference encoder; there is none for Rust among our crates.
    const BROTLI: &[u8] = &[
        0x1b, 0x17, 0x00, 0xf8, 0x8d, 0x94, 0x6e, 0xde, 0x44, 0x55, 0x86, 0xd6, 0x0a, 0x20, 0x6c,
        0x6f, 0x4a, 0x11, 0x79, 0xe2, 0x80, 0xae, 0x16,
    ];
    /// 32 MiB of zeros by the same.
    const BROTLI_BOMB: &[u8] = &[
        0xcb, 0xff, 0xff, 0x3f, 0xf8, 0x27, 0x00, 0xe2, 0xb1, 0x40, 0x20, 0xf7, 0xfe, 0x8f, 0xff,
        0xff, 0x7f, 0xf0, 0x4f, 0x00, 0xc4, 0x61, 0x11, 0x80, 0xee, 0xfd, 0x1f, 0xff, 0xff, 0xff,
        0xe0, 0x9f, 0x00, 0x88, 0xc3, 0x02, 0x00, 0xdd, 0xfb, 0xbf, 0xfc, 0xff, 0xff, 0xc3, 0x3f,
        0x01, 0x10, 0x87, 0x05, 0x00, 0xba, 0xf7, 0x7f,
    ];
    const LIMITS: DecodeLimits = DecodeLimits { bytes: 8 << 20, ratio: 100 };

    fn decode(coding: Coding, raw: &[u8], limits: DecodeLimits) -> Result<Vec<u8>, DecodeError> {
        let budget = Budget::new(64 << 20);
        let mut permit = budget.unshared().try_take(0).unwrap();
        coding.decode(raw, limits, &mut permit)
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(data: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn raw_deflate(data: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 3).unwrap()
    }

    fn snappy(data: &[u8]) -> Vec<u8> {
        snap::raw::Encoder::new().compress_vec(data).unwrap()
    }

    type Encode = fn(&[u8]) -> Vec<u8>;
    const CODINGS: &[(Coding, Encode)] = &[
        (Coding::Gzip, gzip),
        (Coding::Zstd, zstd),
        (Coding::Deflate, zlib),
        (Coding::Deflate, raw_deflate),
        (Coding::Snappy, snappy),
    ];

    #[track_caller]
    fn is_corrupt(result: Result<Vec<u8>, DecodeError>) {
        assert!(matches!(result, Err(DecodeError::Corrupt { .. })), "{result:?}");
    }

    #[test]
    fn a_body_cut_short_or_with_bytes_behind_it_is_refused() {
        let data = b"{\"a\":1}\n".repeat(100);
        for (coding, encode) in CODINGS {
            let whole = encode(&data);
            assert_eq!(decode(*coding, &whole, LIMITS).unwrap(), data);
            for cut in 1..whole.len() {
                let got = decode(*coding, &whole[..cut], LIMITS);
                assert!(
                    matches!(got, Err(DecodeError::Corrupt { .. })),
                    "{coding:?} {cut} {got:?}"
                );
            }
            is_corrupt(decode(*coding, &[&whole[..], b"junk"].concat(), LIMITS));
            is_corrupt(decode(*coding, &[&whole[..], b"\0"].concat(), LIMITS));
        }
    }

    #[test]
    fn brotli_is_decoded_whole_or_refused() {
        let text = decode(Coding::Brotli, BROTLI, LIMITS).unwrap();
        assert_eq!(text, b"hello hello hello hello\n");
        for cut in 0..BROTLI.len() {
            is_corrupt(decode(Coding::Brotli, &BROTLI[..cut], LIMITS));
        }
        is_corrupt(decode(Coding::Brotli, &[BROTLI, b"junk"].concat(), LIMITS));
        let bomb = decode(Coding::Brotli, BROTLI_BOMB, LIMITS);
        assert_eq!(bomb, Err(DecodeError::Ratio { ratio: 100 }));
    }

    #[test]
    fn all_members_and_frames_are_decoded() {
        for (coding, encode) in &CODINGS[..2] {
            let two = [encode(b"one\n"), encode(b""), encode(b"two\n")].concat();
            assert_eq!(decode(*coding, &two, LIMITS).unwrap(), b"one\ntwo\n");
            is_corrupt(decode(*coding, &two[..two.len() - 1], LIMITS));
        }
        for (coding, encode) in &CODINGS[2..] {
            is_corrupt(decode(*coding, &[encode(b"one\n"), encode(b"two\n")].concat(), LIMITS));
        }
    }

    #[test]
    fn a_bomb_is_refused_with_bounded_memory() {
        let zeros = vec![0u8; 32 << 20];
        for (coding, encode) in CODINGS {
            let bomb = encode(&zeros);
            let budget = Budget::new(64 << 20);
            let mut permit = budget.unshared().try_take(0).unwrap();
            let error = coding.decode(&bomb, LIMITS, &mut permit).unwrap_err();
            // Snappy does not reach that ratio.
            let expected = match coding {
                Coding::Snappy => DecodeError::TooLarge { limit: LIMITS.bytes },
                _ => DecodeError::Ratio { ratio: 100 },
            };
            assert_eq!(error, expected, "{coding:?}");
            assert!(permit.bytes() <= (bomb.len() as u64 * 100).max(MIB) + 1, "{coding:?}");
            let lax = DecodeLimits { bytes: 4 << 20, ratio: u64::MAX };
            assert_eq!(decode(*coding, &bomb, lax), Err(DecodeError::TooLarge { limit: 4 << 20 }));
        }
    }

    #[test]
    fn a_snappy_block_that_says_it_is_larger_or_smaller_than_it_is_costs_nothing() {
        let said = |bytes: &[u8]| decode(Coding::Snappy, bytes, LIMITS);
        // 1 GiB by its own word, in seven bytes.
        let large = [0x80, 0x80, 0x80, 0x80, 0x04, 0x00, 0x61];
        assert_eq!(said(&large), Err(DecodeError::Ratio { ratio: 100 }));
        for broken in
            [&[][..], &[5, 0x10, 0x61], &[1, 0x04, 0x61, 0x61], &[0xff], &[1], &large[..3]]
        {
            is_corrupt(said(broken));
        }
        assert_eq!(said(&[1, 0x00, 0x61]).unwrap(), b"a");
        assert_eq!(said(&[0]).unwrap(), b"");
    }

    #[test]
    fn a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
        let limits = DecodeLimits { bytes: 300_000, ratio: 1 };
        for (coding, encode) in CODINGS {
            assert_eq!(decode(*coding, &encode(&vec![7; 300_000]), limits).unwrap().len(), 300_000);
            let over = decode(*coding, &encode(&vec![7; 300_001]), limits);
            assert_eq!(over, Err(DecodeError::TooLarge { limit: 300_000 }));
        }
    }

    #[test]
    fn a_zstd_window_over_8_mib_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(24).unwrap();
        encoder.write_all(&vec![1; 1000]).unwrap();
        is_corrupt(decode(Coding::Zstd, &encoder.finish().unwrap(), LIMITS));
    }

    #[test]
    fn what_the_budget_does_not_hold_is_refused() {
        let budget = Budget::new(1000);
        let mut permit = budget.unshared().try_take(0).unwrap();
        let body = gzip(&[1; 5000]);
        assert_eq!(
            Coding::Gzip.decode(&body, LIMITS, &mut permit),
            Err(DecodeError::Full(Full::Pool))
        );
    }

    #[test]
    fn what_was_first_taken_for_zlib_is_paid_for_once() {
        // A stored block of raw deflate whose first bytes could begin zlib.
        let raw = [&[0x78, 0x01, 0x01, 0x03, 0x00, 0xfc, 0xff][..], b"abc"].concat();
        for body in [raw.as_slice(), &raw[2..]] {
            let budget = Budget::new(2 * STEP_BYTES as u64 - 1);
            let mut permit = budget.unshared().try_take(5).unwrap();
            let result = Coding::Deflate.decode(body, LIMITS, &mut permit);
            assert!(!matches!(result, Err(DecodeError::Full(_))));
            assert!(permit.bytes() <= 5 + STEP_BYTES as u64, "{}", permit.bytes());
        }
    }

    #[test]
    fn codings_are_read_from_the_headers() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, value.parse().unwrap());
            }
            from_headers(&headers)
        };
        assert_eq!(of(&[]), Ok(Coding::Identity));
        assert_eq!(of(&["identity"]), Ok(Coding::Identity));
        assert_eq!(of(&["GZip"]), Ok(Coding::Gzip));
        assert_eq!(of(&["identity, br"]), Ok(Coding::Brotli));
        assert!(of(&["gzip, gzip"]).is_err());
        assert!(of(&["gzip", "zstd"]).is_err());
        assert!(of(&["compress"]).is_err());
    }

    proptest! {
        #[test]
        fn every_coding_gives_back_what_was_coded(data: Vec<u8>) {
            for (coding, encode) in CODINGS {
                prop_assert_eq!(&decode(*coding, &encode(&data), LIMITS).unwrap(), &data);
            }
        }

        #[test]
        fn garbage_never_panics(data: Vec<u8>) {
            for coding in [Coding::Gzip, Coding::Zstd, Coding::Deflate, Coding::Brotli] {
                let _ = decode(coding, &data, LIMITS);
            }
        }
    }
}
