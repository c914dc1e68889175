//! Content codings over a socket; what each codec refuses is tested beside it.

use std::io::Write;

use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder, ZlibEncoder},
};

use super::kit::start;

const LINES: &[u8] = b"{\"event_type\":\"t\",\"a\":1}\n{\"event_type\":\"t\",\"a\":2}\n";
/// `LINES` by the reference encoder.
const BROTLI: &[u8] = &[
    0x1b, 0x31, 0x00, 0xf8, 0x2d, 0x0e, 0xcc, 0x73, 0xef, 0xc2, 0x8c, 0xb0, 0x74, 0x61, 0x67, 0x27,
    0x7d, 0x49, 0x17, 0xb6, 0x57, 0x2c, 0x3a, 0x2d, 0x12, 0x23, 0x93, 0xb7, 0x14, 0xfa, 0xf2, 0xab,
    0x0c, 0x2e, 0x27, 0xd1, 0x64, 0xaa, 0x42, 0x21, 0x07, 0x7b, 0xe6, 0x27, 0xc8, 0x5a, 0x0b,
];

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn codings(data: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(data).unwrap();
    let mut raw = DeflateEncoder::new(Vec::new(), Compression::default());
    raw.write_all(data).unwrap();
    vec![
        ("gzip", gzip(data)),
        ("zstd", zstd::encode_all(data, 3).unwrap()),
        ("deflate", zlib.finish().unwrap()),
        ("deflate", raw.finish().unwrap()),
    ]
}

fn headers(coding: &str) -> String {
    format!("Content-Type: application/x-ndjson\r\nContent-Encoding: {coding}\r\n")
}

#[tokio::test]
async fn each_coding_is_taken_whole_and_refused_damaged() {
    let server = start().await;
    let mut all = codings(LINES);
    all.push(("br", BROTLI.to_vec()));
    all.push(("identity", LINES.to_vec()));
    for (coding, body) in &all {
        server.post(&headers(coding), body).await.counts(2, 0, 0);
        if *coding == "identity" {
            continue;
        }
        let cut = server.post(&headers(coding), &body[..body.len() - 1]).await;
        cut.is_problem(400, "body_corrupt");
        let junk = server.post(&headers(coding), &[body, &b"junk"[..]].concat()).await;
        junk.is_problem(400, "body_corrupt");
    }
    assert_eq!(server.kept().len(), 2 * all.len());
    server.is_balanced().await;
}

#[tokio::test]
async fn every_member_and_every_frame_counts() {
    let server = start().await;
    let two = [gzip(LINES), gzip(LINES)].concat();
    server.post(&headers("gzip"), &two).await.counts(4, 0, 0);
    let frame = zstd::encode_all(LINES, 3).unwrap();
    server.post(&headers("zstd"), &[frame.clone(), frame].concat()).await.counts(4, 0, 0);
}

#[tokio::test]
async fn a_bomb_is_413_in_every_coding_and_leaves_nothing_held() {
    let server = start().await;
    for (coding, bomb) in codings(&vec![b' '; 100 << 20]) {
        let reply = server.post(&headers(coding), &bomb).await;
        assert!(matches!(reply.code(), "ratio_too_large" | "decoded_too_large"), "{reply:?}");
        assert_eq!(reply.status, 413);
        server.is_balanced().await;
    }
}

#[tokio::test]
async fn large_bodies_are_taken_too() {
    let server = start().await;
    let lines = LINES.repeat(22_000);
    server.post("Content-Type: application/x-ndjson\r\n", &lines).await.counts(44_000, 0, 0);
    let body = zstd::encode_all(&lines[..], 1).unwrap();
    server.post(&headers("zstd"), &body).await.is_problem(413, "ratio_too_large");
    let mut varied = String::new();
    for n in 0..20_000u64 {
        let noise = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        varied.push_str(&format!("{{\"event_type\":\"t\",\"a\":\"{noise:x}\"}}\n"));
    }
    server.post(&headers("gzip"), &gzip(varied.as_bytes())).await.counts(20_000, 0, 0);
    server.is_balanced().await;
}
