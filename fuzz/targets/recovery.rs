//! Opening the log over an arbitrary folder: good logs, damaged ones, ones that lie, and no logs at all.
//!
//! The folders are made from docs/log-format.md alone, not by the log's own encoder. Opening never
//! panics; it refuses and leaves every segment as it was, or what it opens can be read to its end, is
//! the same when it is opened again, and can be appended to. What honest logs with a few flipped
//! bytes serve is what was written, and all of it that was not hit and is known to have been durable.

#![no_main]

use std::{collections::BTreeMap, ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate_event::{Offset, ReceivedAt};
use tidegate_fuzz::{disk::Memory, input::Input};
use tidegate_ingest::{
    clock::ManualClock,
    config::Size,
    fuzzing::writer,
    log::{Codec, Entry, FrameBody, Log, LogConfig, LogHandle, Recovery, open},
};

const FOLDER: &str = "/d/log/partition-0";
const ID: &[u8; 8] = b"abcd1234";
const KEY: [u8; 16] = [7; 16];
const HEADS: usize = 160;
/// Bytes changed at most where the strict properties are asked for: fewer than a checksum can miss
/// other than by chance.
const FLIPS_MAX: usize = 3;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let disk = Memory::default();
    disk.put("/d/log/id", ID.to_vec());
    let mut made = Maker::new();
    made.fill(&mut input);
    let marked = made.finish(&disk, &mut input);
    if input.u8() & 1 != 0 {
        let len = input.u8().into();
        disk.put(&format!("{FOLDER}/ledger.json"), input.take(len).to_vec());
    }
    if input.u8() & 1 != 0 {
        let len = input.u8().into();
        disk.put(&format!("{FOLDER}/quarantine"), input.take(len).to_vec());
    }
    let hits = damage(&disk, &mut input);
    opened(&disk, &made, hits.as_deref(), marked);
});

/// A frame as it was written.
struct Written {
    count: u32,
    body: Vec<u8>,
    segment: usize,
    place: Range<usize>,
}

/// Makes segments byte by byte.
struct Maker {
    segments: Vec<(u64, Vec<u8>)>,
    frames: BTreeMap<u64, Written>,
    next: u64,
    chain: u32,
    epoch: u32,
    /// False once something in it is not as an append would write it.
    honest: bool,
    /// False once a header lies about its body's length. Where that ends is then another place as
    /// the file grows; a checksum that holds by chance is the only way to such a header.
    sized: bool,
}

fn seed() -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&KEY), ID), &0u32.to_le_bytes())
}

impl Maker {
    fn new() -> Self {
        let mut made = Self {
            segments: Vec::new(),
            frames: BTreeMap::new(),
            next: 0,
            chain: 0,
            epoch: 1,
            honest: true,
            sized: true,
        };
        made.begin(None);
        made
    }

    fn begin(&mut self, lie: Option<(u8, u64)>) {
        let previous =
            self.segments.last().map_or((u64::MAX, 0), |(base, s)| (*base, s.len() as u64));
        let mut facts =
            [u64::from(self.epoch), self.next, 5, previous.0, previous.1, self.chain.into()];
        if let Some((field, value)) = lie {
            facts[usize::from(field) % 6] = value;
        }
        let mut head = b"TGS1\x01\0\0\0".to_vec();
        head.extend_from_slice(ID);
        head.extend_from_slice(&KEY);
        head.extend_from_slice(&0u32.to_le_bytes());
        head.extend_from_slice(&(facts[0] as u32).to_le_bytes());
        facts[1..5].iter().for_each(|fact| head.extend_from_slice(&fact.to_le_bytes()));
        head.extend_from_slice(&(facts[5] as u32).to_le_bytes());
        head.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
        assert_eq!(head.len(), HEADS / 2);
        self.segments.push((self.next, head.repeat(2)));
    }

    fn frame(&mut self, count: u32, codec: u8, body: &[u8], lie: Option<(u8, u64)>) {
        let stored = if codec == 1 { lz4(body) } else { body.to_vec() };
        let mut facts = [
            stored.len() as u64,
            body.len() as u64,
            self.next,
            9,
            count.into(),
            self.epoch.into(),
            self.next,
            self.chain.into(),
            crc32c::crc32c(&stored).into(),
        ];
        if let Some((field, value)) = lie {
            facts[usize::from(field) % 9] = value;
            self.sized &= field % 9 != 0;
        }
        let wide = [false, false, true, true, false, false, true, false, false];
        let mut frame = vec![b'T', b'G', b'F', b'1', 1, codec, 0, 0];
        for (fact, wide) in facts.iter().zip(wide) {
            let bytes = fact.to_le_bytes();
            frame.extend_from_slice(if wide { &bytes } else { &bytes[..4] });
        }
        let crc = crc32c::crc32c_append(seed(), &frame);
        frame.extend_from_slice(&crc.to_le_bytes());
        frame.extend_from_slice(&stored);
        let segment = self.segments.len() - 1;
        let bytes = &mut self.segments[segment].1;
        let place = bytes.len()..bytes.len() + frame.len();
        bytes.extend_from_slice(&frame);
        self.frames.insert(self.next, Written { count, body: body.to_vec(), segment, place });
        (self.next, self.chain) = (self.next + u64::from(count), crc);
    }

    fn has_frames(&self) -> bool {
        self.segments.last().is_some_and(|(_, bytes)| HEADS < bytes.len())
    }

    fn fill(&mut self, input: &mut Input<'_>) {
        for _ in 0..input.u8() % 24 {
            let what = input.u8();
            let lie = (what & 0xc0 == 0xc0).then(|| (input.u8(), input.u64()));
            self.honest &= lie.is_none();
            match what & 7 {
                0..=4 => {
                    let (count, len) = (1 + u32::from(input.u8() % 4), input.u8().into());
                    let body = input.take(len);
                    self.frame(count, what >> 3 & 1, body, lie);
                }
                5 if self.has_frames() => self.begin(lie),
                // Offsets that were given once and are lost.
                6 if self.has_frames() => {
                    self.next += 1 + u64::from(input.u8());
                    self.begin(lie);
                }
                _ => self.epoch += 1,
            }
        }
    }

    /// Puts it on the disk; says whether a true mark of a clean stop is there.
    fn finish(&mut self, disk: &Memory, input: &mut Input<'_>) -> bool {
        for (base, bytes) in &self.segments {
            disk.put(&format!("{FOLDER}/{base:020}.seg"), bytes.clone());
        }
        let Some((base, bytes)) = self.segments.last() else { return false };
        let what = input.u8();
        let facts = match what % 3 {
            0 => return false,
            1 => format!("{base} {} {}", bytes.len(), self.next),
            _ => format!("{} {} {}", input.u16(), input.u16(), input.u64()),
        };
        let line = format!("{facts} {:08x}\n", crc32c::crc32c(facts.as_bytes()));
        disk.put(&format!("{FOLDER}/clean"), line.into_bytes());
        self.honest &= what % 3 == 1;
        what % 3 == 1
    }
}

/// LZ4 block format, all literals.
fn lz4(body: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    if body.len() < 15 {
        block.push((body.len() as u8) << 4);
    } else {
        block.push(0xf0);
        let mut rest = body.len() - 15;
        while 255 <= rest {
            block.push(255);
            rest -= 255;
        }
        block.push(rest as u8);
    }
    block.extend_from_slice(body);
    block
}

/// Damages the folder. The places hit in segments (by their index), where it only flips a few bytes.
fn damage(disk: &Memory, input: &mut Input<'_>) -> Option<Vec<(usize, usize)>> {
    let mut hits = Some(Vec::new());
    for _ in 0..input.u8() % 8 {
        let files: Vec<PathBuf> = disk.files().into_keys().collect();
        let what = input.u8();
        let path = &files[usize::from(input.u8()) % files.len()];
        let Some(path) = path.to_str() else { continue };
        let mut bytes = disk.files()[&PathBuf::from(path)].clone();
        let segments = files.iter().filter(|f| f.extension().is_some_and(|e| e == "seg"));
        let segment = segments.into_iter().position(|file| file.to_str() == Some(path));
        if what % 8 < 3 {
            if let Some(at) = usize::from(input.u16()).checked_rem(bytes.len()) {
                bytes[at] ^= input.u8();
                match (segment, &mut hits) {
                    (Some(segment), Some(hits)) if hits.len() < FLIPS_MAX => {
                        hits.push((segment, at))
                    }
                    _ => hits = None,
                }
            }
            disk.put(path, bytes);
            continue;
        }
        hits = None;
        match what % 8 {
            3 => {
                let len = usize::from(input.u16()) % (bytes.len() + 1);
                bytes.truncate(len);
                disk.put(path, bytes);
            }
            4 => {
                let len = input.u8().into();
                bytes.extend_from_slice(input.take(len));
                disk.put(path, bytes);
            }
            5 => {
                use tidegate_ingest::storage::Storage;
                disk.remove(path.as_ref()).unwrap();
                if disk.files().is_empty() {
                    return None;
                }
            }
            6 => disk.put(&format!("{FOLDER}/{:020}.seg", input.u16()), bytes),
            _ => {
                let name = input.text(0).replace(['/', '\0'], "");
                if !name.is_empty() && name != "." && name != ".." {
                    let len = input.u8().into();
                    disk.put(&format!("{FOLDER}/{name}"), input.take(len).to_vec());
                }
            }
        }
    }
    hits
}

fn start(disk: &Memory) -> Result<(Log, Recovery), String> {
    let config = LogConfig { dir: "/d".into(), segment_bytes: Size(1_000), ..LogConfig::default() };
    let clock = Arc::new(ManualClock::new(3_600_000_000));
    let mut opened = open(Arc::new(disk.clone()), &config, clock).map_err(|e| e.to_string())?;
    Ok((opened.partitions.remove(0), opened.recovery.remove(0)))
}

/// Every entry to the end: each begins where the one before ended.
fn entries(log: &LogHandle, from: Offset) -> Vec<Entry> {
    let mut reader = log.read_from(from).unwrap();
    let (mut entries, mut at) = (Vec::new(), from);
    while let Some(entry) = reader.next().unwrap() {
        let (from, to) = match &entry {
            Entry::Frame(frame) => (frame.base, frame.end()),
            Entry::Quarantined(range) => (range.from(), range.to()),
        };
        assert!(from <= at && at < to, "{from} {to} behind {at}");
        assert!(from == at || entries.is_empty());
        at = to;
        assert_eq!(reader.position(), at);
        entries.push(entry);
    }
    assert_eq!(at, log.latest());
    entries
}

fn segments(disk: &Memory) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = disk.files();
    files.retain(|path, _| path.extension().is_none_or(|e| e != "new") && !path.ends_with("lock"));
    files
}

fn opened(disk: &Memory, made: &Maker, hits: Option<&[(usize, usize)]>, marked: bool) {
    let before = segments(disk);
    let (log, recovery) = match start(disk) {
        Ok(opened) => opened,
        Err(message) => {
            assert!(!message.is_empty());
            assert!(hits.is_none_or(|hits| !hits.is_empty()) || !made.honest, "{message}");
            assert!(segments(disk) == before, "refused, and yet changed: {message}");
            return;
        }
    };
    assert!(!recovery.to_string().is_empty());
    let handle = log.handle();
    let (earliest, latest) = (handle.earliest(), handle.latest());
    assert_eq!((recovery.earliest, recovery.latest), (earliest, latest));
    let all = entries(&handle, earliest);
    if let (Some(hits), true) = (hits, made.honest) {
        kept(&all, made, hits, marked, &recovery);
    }
    if let Some(Entry::Frame(frame)) = all.last() {
        // From the middle of a frame on, it is that frame that comes.
        let inside = Offset(frame.end().0 - 1);
        assert_eq!(entries(&handle, inside), all[all.len() - 1..]);
    }
    let _ = (handle.bytes_since(earliest), handle.offset_at(ReceivedAt(9)), handle.segments());
    let path = PathBuf::from(format!("{FOLDER}/ledger.json"));
    let ledger = writer::catch_up(Arc::new(disk.clone()), path, &handle).unwrap();
    assert_eq!(ledger.as_of, latest);
    drop((log, handle));

    let (mut log, again) = start(disk).expect("what was opened opens again");
    let handle = log.handle();
    assert_eq!((again.earliest, again.latest, again.torn_bytes), (earliest, latest, 0));
    assert_eq!(entries(&handle, earliest), all, "another start, another log");
    if latest.0 > 1 << 62 || !made.sized {
        return;
    }
    let body = Bytes::from_static(b"more");
    let frame = FrameBody::prepare(body.clone(), 2, ReceivedAt(11), Codec::None).unwrap();
    assert_eq!(log.append(&[frame]).unwrap(), [latest]);
    let longer = entries(&handle, earliest);
    assert_eq!(longer[..all.len()], all);
    let [Entry::Frame(last)] = &longer[all.len()..] else { panic!("{longer:?}") };
    assert_eq!((last.base, last.count, &last.body), (latest, 2, &body));
    drop((log, handle));
    let (log, _) = start(disk).unwrap();
    assert_eq!(entries(&log.handle(), earliest), longer);
    log.close().unwrap();
    let (log, recovery) = start(disk).unwrap();
    assert_eq!(entries(&log.handle(), earliest), longer);
    assert!(recovery.torn_bytes == 0);
}

/// What is served was written, and what was durable and not hit is served.
fn kept(all: &[Entry], made: &Maker, hits: &[(usize, usize)], marked: bool, recovery: &Recovery) {
    let mut served = BTreeMap::new();
    for entry in all {
        let Entry::Frame(frame) = entry else { continue };
        let written = made.frames.get(&frame.base.0).expect("a frame nobody wrote");
        assert!(frame.count == written.count && frame.body == written.body);
        served.insert(frame.base.0, frame.count);
    }
    let last = made.segments.len() - 1;
    if hits.iter().any(|(_, at)| *at < HEADS) {
        // A head of which both copies are hit may refuse the start, or leave out what hangs on it.
        return;
    }
    let hit = |w: &Written| hits.iter().any(|(s, at)| *s == w.segment && w.place.contains(at));
    let whole: Vec<u64> = made
        .frames
        .iter()
        .filter(|(_, w)| w.segment == last && !hit(w))
        .map(|(base, _)| *base)
        .collect();
    for (base, written) in made.frames.iter().filter(|(_, written)| !hit(written)) {
        let proved = written.segment < last || marked || whole.iter().any(|later| base < later);
        let first_is_whole = made.frames.range(..base).all(|(_, w)| w.segment != last || !hit(w));
        if proved || first_is_whole {
            assert!(served.contains_key(base), "the frame at {base} is lost: {recovery}");
        }
    }
    if hits.is_empty() {
        assert!(recovery.torn_bytes == 0 && served.len() == made.frames.len());
        assert_eq!(recovery.latest.0, made.next.max(recovery.latest.0.min(made.next)));
    }
}
