//! HTTP/2 frames in numbers that no client needs, written by hand.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr},
    time::Duration,
};

use super::{DEV, balances, connect, is_well, open_sockets, resident_bytes, scale};
use crate::server::{Server, wait_for};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Header fields as literals that are never indexed (RFC 7541, 6.2.3).
fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in list {
        block.push(0x10);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

fn head() -> Vec<u8> {
    fields(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/v1/events"),
        (":authority", "a"),
        ("x-api-key", DEV),
        ("content-type", "application/json"),
    ])
}

/// Sends the preface and `flood`, reading all the while; the frames that came back until the server
/// closed, or until it had answered the last ping.
fn flood(address: SocketAddr, flood: &[u8]) -> Vec<u8> {
    speak(address, flood, |kind, payload| kind == PING && payload == b"the last")
}

/// The same, but reads until `enough`.
fn speak(address: SocketAddr, flood: &[u8], enough: fn(u8, &[u8]) -> bool) -> Vec<u8> {
    let stream = connect(address);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut reading = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut kinds, mut head) = (Vec::new(), [0; 9]);
        while reading.read_exact(&mut head).is_ok() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            if reading.read_exact(&mut payload).is_err() {
                break;
            }
            kinds.push(head[3]);
            if enough(head[3], &payload) {
                break;
            }
        }
        kinds
    });
    let mut writing = &stream;
    let written =
        [PREFACE, &frame(SETTINGS, 0, 0, &[])].iter().all(|b| writing.write_all(b).is_ok())
            && flood.chunks(64 << 10).all(|part| writing.write_all(part).is_ok());
    if written {
        drop(writing.write_all(&frame(PING, 0, 0, b"the last")));
    }
    let kinds = reader.join().unwrap();
    drop(stream.shutdown(Shutdown::Both));
    kinds
}

fn rapid_reset(streams: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for n in 0..streams {
        bytes.extend(frame(HEADERS, END_HEADERS, 2 * n + 1, &head()));
        bytes.extend(frame(RESET, 0, 2 * n + 1, &8u32.to_be_bytes()));
    }
    bytes
}

fn endless_head(frames: usize) -> Vec<u8> {
    let mut bytes = frame(HEADERS, 0, 1, &head());
    let part = fields(&[("x-flood", &"y".repeat(100))]).repeat(140);
    for _ in 0..frames {
        bytes.extend(frame(CONTINUATION, 0, 1, &part));
    }
    bytes
}

fn empty_data(frames: usize) -> Vec<u8> {
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &head());
    bytes.extend(frame(DATA, 0, 1, &[]).repeat(frames));
    bytes
}

#[test]
fn floods_of_frames_end_or_cost_nothing_and_others_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    is_well(&server);
    let (before, sockets_before) = (resident_bytes(&server), open_sockets(&server));
    let many = 10_000 * scale();
    let streams = u32::try_from(many / 2).unwrap();
    let cases: Vec<(&str, Vec<u8>, bool)> = vec![
        ("rapid reset", rapid_reset(streams), true),
        ("a head that never ends", endless_head(300), true),
        (
            "empty continuations",
            [frame(HEADERS, 0, 1, &head()), frame(CONTINUATION, 0, 1, &[]).repeat(many)].concat(),
            true,
        ),
        ("empty data", empty_data(many), false),
        ("settings", frame(SETTINGS, 0, 0, &[]).repeat(many), false),
        ("pings", frame(PING, 0, 0, b"12345678").repeat(many), false),
        (
            "priorities",
            (1..=streams).flat_map(|n| frame(PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 1])).collect(),
            false,
        ),
        ("windows too large", frame(WINDOW, 0, 0, &0x7fff_ffffu32.to_be_bytes()).repeat(2), true),
        ("a window of nothing", frame(WINDOW, 0, 0, &[0; 4]), true),
        ("data of no stream", frame(DATA, END_STREAM, 1, b"x"), true),
        ("a frame that is too long", frame(DATA, 0, 1, &vec![0; 20_000]), true),
        ("settings that are none", frame(SETTINGS, 0, 0, &[1, 2, 3]), true),
        ("a head that is no HPACK", frame(HEADERS, END_HEADERS, 1, &[0xff; 100]), true),
        ("an even stream", frame(HEADERS, END_HEADERS, 2, &head()), true),
    ];
    for (name, bytes, ends) in &cases {
        let kinds = flood(server.public, bytes);
        // Where it must end, the last ping has no answer and the server said why.
        let said = kinds.contains(&GO_AWAY);
        assert!(!ends || said, "{name}: the server went on: {} frames", kinds.len());
        assert!(kinds.len() <= 2 * many + 100, "{name}: {} frames came back", kinds.len());
        is_well(&server);
    }
    wait_for("every socket to be given back", || open_sockets(&server) <= sockets_before + 2);
    let grown = resident_bytes(&server).saturating_sub(before);
    assert!(grown < 96 << 20, "{grown} bytes more than before");
    balances(&server);
}

#[test]
fn heads_that_http2_forbids_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::dev(dir.path());
    for extra in [
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("content-length", "5x"),
        ("X-Upper", "y"),
        (":path", "/twice"),
        ("x", "a\r\nb"),
        ("x", "a\0b"),
        ("x y", "z"),
    ] {
        let block = [head(), fields(&[extra])].concat();
        let mut bytes = frame(HEADERS, END_HEADERS, 1, &block);
        bytes.extend(frame(DATA, END_STREAM, 1, b"{\"event_type\":\"smuggled\"}"));
        let said = |kind, _: &[u8]| matches!(kind, RESET | GO_AWAY | HEADERS);
        let kinds = speak(server.public, &bytes, said);
        assert!(kinds.contains(&RESET) || kinds.contains(&GO_AWAY), "{extra:?}: {kinds:?}");
    }
    let audit = balances(&server);
    assert_eq!(audit["tenants"].as_array().unwrap().len(), 0, "{audit:#}");
}
