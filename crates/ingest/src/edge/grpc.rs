//! gRPC as it comes over HTTP/2: one message in, one out, the status in the trailers.
//!
//! As "gRPC over HTTP2" of the gRPC project has it. Unary calls need a frame of five bytes and a few
//! headers; a library for it would bring a second HTTP stack beside this one.

use std::convert::Infallible;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header, request::Parts,
};
use http_body::Body as _;
use http_body_util::{BodyExt, Either, Full, combinators::WithTrailers};

use super::{
    answer::{Answer, Refusal},
    coding::Coding,
    problem::Problem,
};

/// What goes to the HTTP library: most answers are one piece, and gRPC's have trailers.
pub(super) type Sent = Response<Either<Full<Bytes>, Trailed>>;
type Trailed = WithTrailers<Full<Bytes>, std::future::Ready<Option<Result<HeaderMap, Infallible>>>>;

/// What a refusal says in gRPC; its protocol puts it into the answer's extensions.
#[derive(Clone)]
pub(super) struct Told {
    pub message: String,
    /// `google.rpc.Status`.
    pub status: Vec<u8>,
    /// `google.rpc.RetryInfo`.
    pub retry: Option<Vec<u8>>,
}

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// Where OpenTelemetry's exporter for Python looks for it.
const RETRY_INFO: HeaderName = HeaderName::from_static("google.rpc.retryinfo-bin");
const ENCODING: &str = "grpc-encoding";
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const TAKEN: &str = "identity,gzip,deflate,zstd";

/// The longest text that goes into a header.
const MESSAGE_BYTES_MAX: usize = 1024;

/// True for a call of gRPC with protobuf messages.
pub(super) fn is_grpc(parts: &Parts) -> bool {
    let media_type = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = media_type.and_then(|text| text.strip_prefix(b"application/grpc"));
    parts.version == Version::HTTP_2
        && rest.is_some_and(|rest| {
            matches!(rest.first(), None | Some(b';')) || rest.starts_with(b"+proto")
        })
}

/// The one message of a call, and what it is compressed with.
pub(super) fn message(parts: &Parts, body: Bytes) -> Result<(Bytes, Coding), Refusal> {
    let broken = |what: &str| {
        let detail = format!("no gRPC message: {what}");
        Refusal::problem(Problem::BODY_CORRUPT, detail)
    };
    let (head, rest) = body.split_first_chunk::<5>().ok_or_else(|| broken("it is cut short"))?;
    let [flag, length @ ..] = *head;
    if u32::from_be_bytes(length) as usize != rest.len() {
        return Err(broken("a call has one message, of the length that it says"));
    }
    let coding = match flag {
        0 => Coding::Identity,
        1 => coding(parts)?,
        _ => return Err(broken("it has a flag that is none")),
    };
    Ok((body.slice(head.len()..), coding))
}

fn coding(parts: &Parts) -> Result<Coding, Refusal> {
    let name = parts.headers.get(ENCODING).and_then(|name| name.to_str().ok());
    match name.unwrap_or_default() {
        "gzip" => Ok(Coding::Gzip),
        "deflate" => Ok(Coding::Deflate),
        "zstd" => Ok(Coding::Zstd),
        _ => {
            let detail = format!("the message is compressed; {ENCODING} may be one of {TAKEN}");
            Err(Refusal::problem(Problem::CONTENT_CODING, detail))
        }
    }
}

/// The status of gRPC that means the same as one of HTTP. Those that OTLP's clients try again are 4, 8
/// (with `RetryInfo`) and 14; what is too large is therefore not 8.
pub(super) fn code(status: StatusCode) -> u8 {
    match status.as_u16() {
        200 => 0,
        401 => 16,
        403 => 7,
        404 | 405 | 415 => 12,
        408 => 4,
        429 => 8,
        500 => 13,
        503 => 14,
        _ => 3,
    }
}

/// Passes an answer on, to a call of gRPC as that has it.
pub(super) fn sent(parts: &Parts, answer: Answer) -> Sent {
    if !is_grpc(parts) {
        return answer.map(Either::Left);
    }
    let (mut head, body) = answer.into_parts();
    let (status, told) = (head.status, head.extensions.remove::<Told>());
    head.status = StatusCode::OK;
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(TAKEN));
    if status == StatusCode::OK {
        let mut trailers = HeaderMap::new();
        trailers.insert(STATUS, HeaderValue::from_static("0"));
        let body = Full::new(framed(body)).with_trailers(std::future::ready(Some(Ok(trailers))));
        return Response::from_parts(head, Either::Right(body));
    }
    // Trailers alone: they are the head then.
    head.headers.insert(STATUS, HeaderValue::from(u16::from(code(status))));
    let message = told.as_ref().map_or("nothing is here that is called so", |told| &told.message);
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(message)) {
        head.headers.insert(MESSAGE, message);
    }
    if let Some(told) = told {
        let binary = |bytes: &[u8]| HeaderValue::from_str(&STANDARD_NO_PAD.encode(bytes));
        if let (true, Ok(details)) = (told.status.len() <= MESSAGE_BYTES_MAX, binary(&told.status))
        {
            head.headers.insert(DETAILS, details);
        }
        if let Some(Ok(retry)) = told.retry.as_deref().map(binary) {
            head.headers.insert(RETRY_INFO, retry);
        }
    }
    Response::from_parts(head, Either::Left(Full::default()))
}

fn framed(body: Full<Bytes>) -> Bytes {
    let length = body.size_hint().exact().unwrap_or(0);
    let body = body.into_inner().unwrap_or_default();
    let mut framed = BytesMut::with_capacity(5 + body.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    framed.put(body);
    framed.freeze()
}

/// As `grpc-message` wants it: what is printable stands as it is.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes().take(MESSAGE_BYTES_MAX) {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parts(media_type: &str, encoding: &str) -> Parts {
        let request = http::Request::post("/").version(Version::HTTP_2);
        let request = request.header("content-type", media_type).header(ENCODING, encoding);
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_grpc_with_protobuf_over_http2_is_taken_for_it() {
        for (media_type, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x=1", true),
            ("application/grpc+json", false),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(&parts(media_type, "")), expected, "{media_type}");
        }
        let mut old = parts("application/grpc", "");
        old.version = Version::HTTP_11;
        assert!(!is_grpc(&old));
    }

    #[test]
    fn a_frame_holds_one_message_of_the_length_it_says() {
        let of = |bytes: &'static [u8], encoding| {
            let found = message(&parts("application/grpc", encoding), Bytes::from_static(bytes));
            found.map_err(|refusal| refusal.code())
        };
        let message = |coding| Ok((Bytes::from_static(b"ab"), coding));
        assert_eq!(of(b"\0\0\0\0\x02ab", ""), message(Coding::Identity));
        assert_eq!(of(b"\x01\0\0\0\x02ab", "gzip"), message(Coding::Gzip));
        assert_eq!(of(b"\x01\0\0\0\x02ab", "zstd"), message(Coding::Zstd));
        for encoding in ["", "identity", "snappy"] {
            assert_eq!(of(b"\x01\0\0\0\x02ab", encoding), Err("content_coding"), "{encoding}");
        }
        for bytes in
            [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x03ab", b"\0\0\0\0\x01ab", b"\x02\0\0\0\x02ab"]
        {
            assert_eq!(of(bytes, "gzip"), Err("body_corrupt"), "{bytes:?}");
        }
    }

    #[test]
    fn a_message_is_text_that_a_header_can_hold() {
        assert_eq!(percent_encoded("100 % naïve\n"), "100 %25 na%C3%AFve%0A");
    }
}
