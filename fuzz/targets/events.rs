//! Scan, verdict and row of one event: never a panic, pure, and what is accepted is JSON.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use tidegate_event::Code;
use tidegate_fuzz::{
    input::Input,
    json::{is_flawed, is_object},
    judge::{LIMITS, NORMALIZER, NOW, TYPES, tenant},
};
use tidegate_ingest::{
    json::{JsonError, Object, scan_object, unescape},
    normalize::{Item, ItemTime, JudgeContext, Judged, ProjectScratch, Schema, Scratch, Verdict},
};

thread_local! {
    /// Used for every input, so that something left in it would show.
    static USED: RefCell<Scratch> = RefCell::default();
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (what, kind) = (input.u8(), input.u8());
    let beside = (what & 1 != 0).then(|| input.text(0));
    let time = match what >> 1 & 3 {
        0 => ItemTime::None,
        1 => ItemTime::Micros(input.u64().cast_signed()),
        _ => ItemTime::Rfc3339(std::str::from_utf8(input.until(0)).unwrap_or_default()),
    };
    scanned(input.0);
    let name =
        if what & 8 != 0 { beside.as_deref() } else { TYPES.get(usize::from(kind) % 6).copied() };
    let item = Item {
        raw: input.0,
        event_type: name,
        event_id: beside.as_deref(),
        event_time: time,
        reserved: what & 16 == 0,
        source_name: None,
        map_names: what & 32 != 0,
    };
    let tenant = tenant(what & 64 != 0);
    let allowed = ["flat".to_owned(), "personal".to_owned()];
    let key_types = (what & 128 != 0).then_some(allowed.as_slice());
    let context = JudgeContext { tenant: &tenant, received_at: NOW, key_types };
    let judged = NORMALIZER.judge(&context, &item, &mut Scratch::default());
    USED.with_borrow_mut(|used| {
        assert_eq!(NORMALIZER.judge(&context, &item, used), judged, "the verdict is not pure");
        verdict(&judged, &item, &context, used);
    });
});

/// The scanner takes what the reference takes, and finds what the reference finds.
fn scanned(raw: &[u8]) {
    let mut object = Object::default();
    match scan_object(raw, &LIMITS, &mut object) {
        Err(JsonError::TooDeep { .. } | JsonError::TooManyFields { .. }) => {}
        Err(error) => assert!(!is_object(raw), "{error}: {:?}", String::from_utf8_lossy(raw)),
        Ok(text) => {
            assert!(is_object(raw), "{text:?}");
            if let Some(flawed) = is_flawed(text) {
                assert_eq!(object.flaw().is_some(), flawed, "{text:?}");
            }
            let lone = object.flaw().is_some_and(|flaw| flaw.code == Code::LoneSurrogate);
            for field in object.fields() {
                let (from, to) = field.extent();
                assert!(
                    text[from..to].starts_with('"') && text[from..to].ends_with(field.value(text))
                );
                for quoted in [format!("\"{}\"", field.key(text)), field.value(text).to_owned()] {
                    let reference = serde_json::from_str::<String>(&quoted);
                    match reference {
                        Ok(reference) => {
                            assert_eq!(unescape(&quoted[1..quoted.len() - 1]), reference)
                        }
                        Err(_) if !quoted.starts_with('"') => {}
                        Err(error) => assert!(lone || object.flaw().is_some(), "{error}: {quoted}"),
                    }
                }
            }
        }
    }
}

fn schema_of(judged: &Judged<'_>, context: &JudgeContext<'_>) -> std::sync::Arc<Schema> {
    let set = NORMALIZER.schemas();
    let entry = set.get(&context.tenant.id, judged.event_type.as_str());
    entry.map_or_else(Schema::none, |entry| std::sync::Arc::clone(&entry.schema))
}

fn verdict(judged: &Judged<'_>, item: &Item<'_>, context: &JudgeContext<'_>, used: &mut Scratch) {
    let kept = !matches!(judged.verdict, Verdict::Rejected(_));
    if kept {
        assert!(is_object(&judged.raw) && is_object(item.raw));
        assert!(judged.client_id.as_deref().is_none_or(|id| (1..=512).contains(&id.len())));
    }
    assert!(judged.note.is_empty() || is_object(judged.note.as_bytes()), "{}", judged.note);
    assert_eq!(judged.pii_changed, judged.raw != item.raw || judged.note.contains("\"pii\":["));
    if judged.verdict != Verdict::Accepted {
        return;
    }
    let schema = schema_of(judged, context);
    let mut scratch = ProjectScratch::default();
    let row = schema.project(&judged.raw, item.reserved, &mut scratch);
    let row = row.unwrap_or_else(|error| panic!("accepted, and no row: {error}"));
    assert_eq!(row.cells.len(), schema.columns().len());
    assert!(row.custom.is_none_or(|custom| is_object(custom.as_bytes())));
    // Out of the log again: still accepted, and no rule is applied twice.
    let note: serde_json::Value = serde_json::from_str(&judged.note).unwrap_or_default();
    let changed: Vec<String> = note["pii"]
        .as_array()
        .map(|all| all.iter().filter_map(|p| p.as_str().map(str::to_owned)).collect())
        .unwrap_or_default();
    let again = Item { raw: &judged.raw, ..*item };
    let again = NORMALIZER.judge_again(context, &again, &changed, used);
    assert_eq!(again.verdict, Verdict::Accepted, "{changed:?}");
    assert_eq!(again.raw, judged.raw, "{changed:?}");
}
