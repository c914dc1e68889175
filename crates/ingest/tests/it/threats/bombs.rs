//! Bodies that grow when they are decoded: refused, with memory bounded.

use std::io::Write;

use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};

use super::{DEV, balances, is_well, resident_bytes, scale};
use crate::server::{Server, request};

const MIB: usize = 1 << 20;

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// 1 GiB of blanks in each coding that can be repeated; less where it must be made in one go.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let blanks = vec![b' '; MIB];
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
    for _ in 0..64 * scale().min(16) {
        zlib.write_all(&blanks).unwrap();
    }
    let frame = zstd::encode_all(&blanks[..], 3).unwrap();
    let whole = zstd::encode_all(&blanks.repeat(64)[..], 3).unwrap();
    vec![
        ("gzip", gzip(&blanks).repeat(1024)),
        ("zstd", frame.repeat(1024)),
        ("zstd", whole),
        ("deflate", zlib.finish().unwrap()),
        // Chained: the inner one is no JSON, the outer one no bomb.
        ("gzip", gzip(&gzip(&blanks).repeat(1024))),
    ]
}

#[test]
fn a_gigabyte_in_a_small_body_is_refused_and_memory_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    is_well(&server);
    let before = resident_bytes(&server);
    for (coding, bomb) in bombs() {
        let authorization = format!("Bearer {DEV}");
        let headers = [
            ("authorization", &*authorization),
            ("content-type", "application/json"),
            ("content-encoding", coding),
        ];
        for _ in 0..4 * scale() {
            let answer = request(server.public, "POST", "/v1/events", &headers, &bomb);
            assert!(matches!(answer.status, 400 | 413), "{coding}: {answer:?}");
        }
        let chained = [headers[0], headers[1], ("content-encoding", "gzip, zstd")];
        let answer = request(server.public, "POST", "/v1/events", &chained, &bomb);
        assert_eq!(answer.status, 415, "{answer:?}");
    }
    let grown = resident_bytes(&server).saturating_sub(before);
    // What the limits allow one body: 64 MiB decoded and 16 MiB sent, twice over.
    assert!(grown < 160 << 20, "{grown} bytes more than before");
    is_well(&server);
    balances(&server);
}
