//! Signatures against the vectors that Amazon publishes, and against everything that is wrong with one.

use proptest::prelude::*;

use super::*;

const KEY_ID: &str = "AKIDEXAMPLE";
const SECRET: &[u8] = b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const SCOPE: &str = "20150830/us-east-1/service/aws4_request";
const WHEN: &str = "20150830T123600Z";

/// Name, request line, signed headers, headers beside `Host` and `X-Amz-Date`, body, signature.
type Vector<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, &'a str);

/// Amazon's Signature Version 4 test suite, as its C library for signing carries it: every case whose
/// head HTTP still allows and whose path is normalised, as it is for all services but S3.
#[rustfmt::skip]
const VECTORS: &[Vector<'_>] = &[
    ("get-header-key-duplicate", "GET /", "host;my-header1;x-amz-date", &[("my-header1", "value2"), ("my-header1", "value2"), ("my-header1", "value1")], "",
     "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea"),
    ("get-header-value-order", "GET /", "host;my-header1;x-amz-date", &[("my-header1", "value4"), ("my-header1", "value1"), ("my-header1", "value3"), ("my-header1", "value2")], "",
     "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01"),
    ("get-header-value-trim", "GET /", "host;my-header1;my-header2;x-amz-date", &[("my-header1", " value1"), ("my-header2", " \"a   b   c\"")], "",
     "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"),
    ("get-relative-normalized", "GET /example/..", "host;x-amz-date", &[], "",
     "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    ("get-relative-relative-normalized", "GET /example1/example2/../..", "host;x-amz-date", &[], "",
     "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    ("get-slash-dot-slash-normalized", "GET /./", "host;x-amz-date", &[], "",
     "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    ("get-slash-normalized", "GET //", "host;x-amz-date", &[], "",
     "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    ("get-slash-pointless-dot-normalized", "GET /./example", "host;x-amz-date", &[], "",
     "ef75d96142cf21edca26f06005da7988e4f8dc83a165a80865db7089db637ec5"),
    ("get-slashes-normalized", "GET //example//", "host;x-amz-date", &[], "",
     "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84"),
    ("get-space-normalized", "GET /example space/", "host;x-amz-date", &[], "",
     "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741"),
    ("get-unreserved", "GET /-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", "host;x-amz-date", &[], "",
     "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"),
    ("get-utf8", "GET /ሴ", "host;x-amz-date", &[], "",
     "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"),
    ("get-vanilla-empty-query-key", "GET /?Param1=value1", "host;x-amz-date", &[], "",
     "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb"),
    ("get-vanilla-query-order-encoded", "GET /?Param-3=Value3&Param=Value2&%E1%88%B4=Value1", "host;x-amz-date", &[], "",
     "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac"),
    ("get-vanilla-query-order-key-case", "GET /?Param2=value2&Param1=value1", "host;x-amz-date", &[], "",
     "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"),
    ("get-vanilla-query-unreserved", "GET /?-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz=-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", "host;x-amz-date", &[], "",
     "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197"),
    ("get-vanilla-query", "GET /", "host;x-amz-date", &[], "",
     "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    ("get-vanilla-utf8-query", "GET /?ሴ=bar", "host;x-amz-date", &[], "",
     "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"),
    ("get-vanilla-with-session-token", "GET /", "host;x-amz-date;x-amz-security-token", &[("x-amz-security-token", "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267")], "",
     "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"),
    ("get-vanilla", "GET /", "host;x-amz-date", &[], "",
     "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    ("post-header-key-case", "POST /", "host;x-amz-date", &[], "",
     "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
    ("post-header-key-sort", "POST /", "host;my-header1;x-amz-date", &[("my-header1", "value1")], "",
     "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c"),
    ("post-header-value-case", "POST /", "host;my-header1;x-amz-date", &[("my-header1", "VALUE1")], "",
     "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d"),
    ("post-sts-header-after", "POST /", "host;x-amz-date", &[("x-amz-security-token", "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==")], "",
     "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
    ("post-sts-header-before", "POST /", "host;x-amz-date;x-amz-security-token", &[("x-amz-security-token", "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==")], "",
     "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"),
    ("post-vanilla-empty-query-value", "POST /?Param1=value1", "host;x-amz-date", &[], "",
     "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11"),
    ("post-vanilla-query", "POST /?Param1=value1", "host;x-amz-date", &[], "",
     "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11"),
    ("post-vanilla", "POST /", "host;x-amz-date", &[], "",
     "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
    ("post-x-www-form-urlencoded-parameters", "POST /", "content-length;content-type;host;x-amz-content-sha256;x-amz-date", &[("content-type", "application/x-www-form-urlencoded; charset=utf-8"), ("content-length", "13"), ("x-amz-content-sha256", "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e")], "Param1=value1",
     "328d1b9eaadca9f5818ef05e8392801e091653bafec24fcab71e7344e7f51422"),
    ("post-x-www-form-urlencoded", "POST /", "content-length;content-type;host;x-amz-content-sha256;x-amz-date", &[("content-type", "application/x-www-form-urlencoded"), ("content-length", "13"), ("x-amz-content-sha256", "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e")], "Param1=value1",
     "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b"),
];

fn request(line: &str, headers: &[(&str, &str)]) -> Parts {
    let (method, target) = line.split_once(' ').unwrap();
    let target = target.replace(' ', "%20");
    let mut request = http::Request::builder().method(method).uri(target);
    request = request.header("host", "example.amazonaws.com").header("x-amz-date", WHEN);
    for (name, value) in headers {
        request = request.header(*name, http::HeaderValue::from_str(value).unwrap());
    }
    request.body(()).unwrap().into_parts().0
}

fn claims(signed: &str, signature: &str) -> String {
    format!("Credential={KEY_ID}/{SCOPE}, SignedHeaders={signed}, Signature={signature}")
}

fn sha256(body: &str) -> BodyHash {
    Sha256::digest(body).into()
}

fn vector(name: &str) -> Vector<'static> {
    *VECTORS.iter().find(|vector| vector.0 == name).unwrap()
}

/// Reads the claims and verifies them, with any of it changed.
fn verify(
    line: &str,
    signed: &str,
    headers: &[(&str, &str)],
    body: &str,
    signature: &str,
) -> Result<(), SignatureFault> {
    let parts = request(line, headers);
    let claims = claims(signed, signature);
    let claim = Claim::of(&parts, &claims, "service")?;
    assert_eq!((claim.key_id, claim.region), (KEY_ID, "us-east-1"));
    claim.verify(&parts, SECRET, &sha256(body))
}

#[test]
fn each_published_vector_is_as_published_and_any_other_is_wrong() {
    for (name, line, signed, headers, body, signature) in VECTORS {
        let result = verify(line, signed, headers, body, signature);
        match *name {
            // Its token came behind the signing: here nothing of Amazon's may.
            "post-sts-header-after" => {
                assert!(matches!(result, Err(SignatureFault::Incomplete(_))), "{result:?}");
            }
            // A space in a path is encoded before it is sent, and once more to be signed.
            "get-space-normalized" => assert_eq!(result, Err(SignatureFault::Wrong)),
            _ => assert_eq!(result, Ok(()), "{name}"),
        }
        let other = format!("{}0", &signature[..63]);
        let other = if other == *signature { format!("{}1", &signature[..63]) } else { other };
        let wrong = verify(line, signed, headers, body, &other);
        assert!(wrong.is_err(), "{name}");
        let wrong = verify(line, signed, headers, "another body", signature);
        assert!(wrong.is_err(), "{name}");
    }
    assert_eq!(VECTORS.len(), 30);
}

#[test]
fn the_documented_example_of_a_key_derivation_comes_out() {
    // "Examples of how to derive a signing key", in the same guide.
    let key = hmac(&[b"AWS4".as_slice(), SECRET].concat(), "20150830");
    let key = hmac(&hmac(&hmac(&key, "us-east-1"), "iam"), END);
    let expected = "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9";
    assert_eq!(hex::encode(key), expected);
}

#[test]
fn what_is_acted_on_must_be_signed() {
    let (_, line, signed, _, _, signature) = vector("post-vanilla");
    for name in ["x-amz-target", "x-amz-content-sha256", "content-type", "content-encoding"] {
        let result = verify(line, signed, &[(name, "x")], "", signature);
        let Err(SignatureFault::Incomplete(said)) = result else { panic!("{name}: {result:?}") };
        assert!(said.contains(name), "{said}");
    }
    // What proxies add changes nothing.
    assert_eq!(verify(line, signed, &[("x-forwarded-for", "::1")], "", signature), Ok(()));
}

#[test]
fn what_is_signed_cannot_be_changed() {
    let (_, line, signed, headers, body, signature) = vector("post-x-www-form-urlencoded");
    assert_eq!(verify(line, signed, headers, body, signature), Ok(()));
    for at in 0..headers.len() {
        let mut changed: Vec<(&str, &str)> = headers.to_vec();
        changed[at].1 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let result = verify(line, signed, &changed, body, signature);
        assert_eq!(result, Err(SignatureFault::Wrong), "{}", headers[at].0);
    }
    for line in ["GET /", "POST /a", "POST /?a=1"] {
        let result = verify(line, signed, headers, body, signature);
        assert_eq!(result, Err(SignatureFault::Wrong), "{line}");
    }
    let parts = request(line, headers);
    let claims = claims(signed, signature);
    let claim = Claim::of(&parts, &claims, "service").unwrap();
    assert_eq!(claim.body, Some(sha256(body)));
    assert_eq!(claim.verify(&parts, b"another", &sha256(body)), Err(SignatureFault::Wrong));
    assert_eq!(check_body(&sha256(body), &sha256(body)), Ok(()));
    assert_eq!(check_body(&sha256(""), &sha256(body)), Err(SignatureFault::OtherBody));
}

#[test]
fn a_date_more_than_fifteen_minutes_off_is_refused_and_a_session_too() {
    let (_, line, signed, _, _, signature) = vector("post-vanilla");
    let (parts, claims) = (request(line, &[]), claims(signed, signature));
    let claim = Claim::of(&parts, &claims, "service").unwrap();
    let at = |seconds: i64| claim.check(ReceivedAt((1_440_938_160 + seconds) * 1_000_000));
    assert_eq!([at(0), at(900), at(-900)], [Ok(()), Ok(()), Ok(())]);
    assert_eq!(at(901), Err(SignatureFault::Expired(WHEN.to_owned())));
    assert_eq!(at(-901), Err(SignatureFault::NotYet(WHEN.to_owned())));
    let (_, line, signed, headers, _, signature) = vector("get-vanilla-with-session-token");
    let (parts, claims) = (request(line, headers), self::claims(signed, signature));
    let claim = Claim::of(&parts, &claims, "service").unwrap();
    assert_eq!(claim.check(ReceivedAt(1_440_938_160_000_000)), Err(SignatureFault::Token));
}

#[test]
fn claims_that_are_of_no_form_are_told_and_not_verified() {
    let (parts, signature) = (request("POST /", &[]), "0".repeat(64));
    let is_incomplete = |claims: &str| {
        let result = Claim::of(&parts, claims, "service");
        assert!(matches!(result, Err(SignatureFault::Incomplete(_))), "{claims}: {result:?}");
    };
    let well = claims("host;x-amz-date", &signature);
    assert!(Claim::of(&parts, &well, "service").is_ok());
    assert!(Claim::of(&parts, &well.replace(", ", ","), "service").is_ok());
    is_incomplete("");
    is_incomplete(&well.replace("Credential=", "credential="));
    is_incomplete(&format!("{well}, Signature={signature}"));
    is_incomplete(&well.replace("/service/", "/s3/"));
    is_incomplete(&well.replace("aws4_request", "aws4"));
    is_incomplete(&well.replace("20150830/", "20150831/"));
    is_incomplete(&well.replace(KEY_ID, "a/b"));
    for names in [
        "x-amz-date",
        "host",
        "x-amz-date;host",
        "host;host;x-amz-date",
        "Host;x-amz-date",
        ";host;x-amz-date",
    ] {
        is_incomplete(&claims(names, &signature));
    }
    for signature in ["", "00", &"g".repeat(64), &"A".repeat(64)] {
        is_incomplete(&claims("host;x-amz-date", signature));
    }
    let two = request("POST /", &[("x-amz-date", WHEN)]);
    assert!(Claim::of(&two, &well, "service").is_err());
    for date in ["20151301T000000Z", "2015-08-30T12:36", "20150830T1236000"] {
        assert_eq!(moment(date), None, "{date}");
    }
    let unsigned = request("POST /", &[("x-amz-content-sha256", "UNSIGNED-PAYLOAD")]);
    let names = "host;x-amz-content-sha256;x-amz-date";
    assert!(Claim::of(&unsigned, &claims(names, &signature), "service").is_err());
}

proptest! {
    #[test]
    fn any_text_is_a_claim_or_none(text in "[ -~]{0,80}", value in "[ -~]{0,80}") {
        let parts = request("POST /", &[("x-amz-content-sha256", value.trim())]);
        if let Ok(claim) = Claim::of(&parts, &text, "service") {
            prop_assert_eq!(claim.verify(&parts, SECRET, &[0; 32]), Err(SignatureFault::Wrong));
        }
    }
}
