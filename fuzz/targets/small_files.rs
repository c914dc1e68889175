//! Intent and cursor, ledger, books, schema names, tenants' files, keys, plans of replays: read back the same, or refused.

#![no_main]

use std::{path::Path, sync::Arc};

use libfuzzer_sys::fuzz_target;
use tidegate_event::{ReceivedAt, TenantId};
use tidegate_fuzz::{disk::Memory, input::Input};
use tidegate_ingest::{
    books::{Books, UnloggedLedger},
    fuzzing::{
        tenants::{id_of, tenant},
        writer,
    },
    normalize::SchemaStore,
    replay::{Plan, PlanFileError},
    sink::state::{Files, State, StateStores as _},
    storage::Storage,
};

const LOG: &str = "abcd1234";

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let which = input.u8();
    if which >= 248 {
        return plan(input.0);
    }
    match which % 8 {
        0 => state(input.0),
        // With a right checksum, so that what is behind it is reached.
        1 => state(
            format!(
                "{{\"format\":1,\"crc32c\":\"{:08x}\",\"state\":{}}}",
                sum(input.0),
                text(input.0)
            )
            .as_bytes(),
        ),
        2 => ledger(input.0),
        3 => ledger(
            format!("{{\"crc32c\":{},\"ledger\":{}}}", sum(input.0), text(input.0)).as_bytes(),
        ),
        4 => books(input.0),
        5 => names(input.0),
        6 => tenants_file(input.0),
        _ => key(input.0),
    }
});

/// A plan's file, as it is and with the id that its content has.
fn plan(bytes: &[u8]) {
    let read = match Plan::read(bytes) {
        Err(PlanFileError::Changed { said, is }) => {
            let mended = text(bytes).replace(said.as_str(), is.as_str());
            Plan::read(mended.as_bytes())
        }
        read => read,
    };
    let Ok(plan) = read else { return };
    assert_eq!(plan.content.id().unwrap(), plan.plan_id);
    assert_eq!(Plan::read(&serde_json::to_vec(&plan).unwrap()).unwrap(), plan);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

fn sum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(text(bytes).as_bytes())
}

fn state(bytes: &[u8]) {
    let Ok(state) = State::decode(bytes) else { return };
    assert_eq!(State::decode(&state.encode().unwrap()).unwrap(), state);
    assert!(state.lowest() <= state.cursor);
    let disk = Memory::default();
    disk.put(&format!("/d/lake-{}.json", state.partition), bytes.to_vec());
    let (storage, dir) = (Arc::new(disk), "/d".into());
    let store = Files { storage, dir, partition: state.partition }.of("lake");
    let loaded = State::load(&*store, &state.log_id, state.partition).unwrap();
    assert_eq!(loaded.as_ref(), Some(&state));
    state.save(&*store).unwrap();
    assert_eq!(State::load(&*store, &state.log_id, state.partition).unwrap(), Some(state));
}

fn ledger(bytes: &[u8]) {
    let disk = Memory::default();
    disk.put("/d/ledger.json", bytes.to_vec());
    let load = |books: &Books| {
        writer::load(Arc::new(disk.clone()), "/d/ledger.json".into(), LOG, books).unwrap()
    };
    let (first, second) = (Books::default(), Books::default());
    let (a, b) = (load(&first), load(&second));
    assert_eq!(a.is_some(), b.is_some());
    assert_eq!(format!("{:?}", first.copy()), format!("{:?}", second.copy()));
    if a.is_none() {
        assert!(first.copy().is_empty());
    }
}

fn books(bytes: &[u8]) {
    let disk = Memory::default();
    disk.put("/d/books.json", bytes.to_vec());
    let dir = Path::new("/d");
    let open = |books: &Books| {
        let storage = Arc::new(disk.clone());
        UnloggedLedger::open(storage, dir, LOG, true, books, ReceivedAt(9)).unwrap()
    };
    let books = Books::default();
    let mut ledger = open(&books);
    ledger.write(&books, ReceivedAt(10)).unwrap();
    // What was written for these books opens to these books.
    let again = Books::default();
    drop(open(&again));
    let told = |books: &Books| -> Vec<String> {
        let types = |(tenant, page): (TenantId, _)| {
            let page: tidegate_ingest::books::PageCopy = page;
            let some = page.types.into_iter().filter(|(_, t)| t.rejected > 0 || t.shed > 0);
            let mut told: Vec<_> = some.map(|(kind, t)| format!("{tenant} {kind} {t:?}")).collect();
            told.sort();
            told
        };
        books.copy().into_iter().flat_map(types).collect()
    };
    assert_eq!(told(&books), told(&again));
}

fn names(bytes: &[u8]) {
    let disk = Memory::default();
    disk.put("/d/names.json", bytes.to_vec());
    let Ok(store) = SchemaStore::open(Arc::new(disk.clone()), "/d".into()) else { return };
    assert!(store.get([1; 16]).is_none() && store.get([0; 16]).is_some());
    // A file under a hash that is not its own is never served.
    disk.put(&format!("/d/{}.json", "01".repeat(16)), bytes.to_vec());
    assert!(store.get([1; 16]).is_none());
    assert!(disk.read(Path::new("/d/names.json")).is_ok());
}

fn tenants_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let id = TenantId::new("acme").unwrap();
    match tenant(&id, text) {
        Ok((read, written)) => {
            let (again, twice) = tenant(&id, &written).expect("what was written is read");
            assert_eq!((read, &written), (again, &twice));
        }
        Err(message) => {
            // A secret in a file never stands in what is told of it.
            let secret = "5ec2e7".repeat(10);
            let with = text.replace("pii_secret = \"", &format!("pii_secret = \"{secret}"));
            let told = tenant(&id, &with).err().unwrap_or_default();
            assert!(
                !message.is_empty() && (!told.contains(&secret) || text.contains(&secret)),
                "{told}"
            );
        }
    }
}

fn key(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(id) = id_of(text) {
        assert!(text.len() == 66 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        assert_eq!(id, &text[4..16]);
    }
    // With a right checksum behind it.
    let mut rest = crc32c::crc32c(text.as_bytes());
    let mut whole = text.to_owned();
    for _ in 0..6 {
        let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        whole.push(char::from(digits[(rest % 62) as usize]));
        rest /= 62;
    }
    let rest = text.strip_prefix("tgk_").or_else(|| text.strip_prefix("tgp_"));
    let formed = rest.and_then(|rest| rest.split_once('_')).is_some_and(|(id, secret)| {
        let plain = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric());
        id.len() == 12 && secret.len() == 43 && plain(id) && plain(secret)
    });
    assert_eq!(id_of(&whole).is_some(), formed, "{whole}");
}
