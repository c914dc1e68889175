//! docs/wire.md says all that clients may meet, and nothing that they may not.

use std::collections::BTreeSet;

use tidegate_event::Code;
use tidegate_ingest::{
    edge::{problem::Problem, protocol::PROTOCOLS},
    shed::ShedReason,
};

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/wire.md");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_document_lists_each_code_once_with_its_status_and_no_other() {
    let document = document();
    let row = |cells: [&str; 2]| format!("| `{}` | {} |", cells[0], cells[1]);
    let mut expected = BTreeSet::new();
    for problem in Problem::ALL {
        expected.insert(row([problem.code, &problem.status.to_string()]));
    }
    for reason in ShedReason::ALL {
        expected.insert(row([reason.as_str(), &reason.status().to_string()]));
    }
    for code in Code::ALL {
        let kind = if code.is_rejection() { "rejected" } else { "dead letter" };
        expected.insert(row([code.as_str(), kind]));
    }
    let found: Vec<String> = document
        .lines()
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            Some(row([cells.next()?.trim_matches('`'), cells.next()?]))
        })
        .collect();
    let distinct: BTreeSet<String> = found.iter().cloned().collect();
    assert_eq!(distinct, expected);
    assert_eq!(found.len(), expected.len(), "a code stands twice");
}

#[test]
fn the_document_names_each_protocol_path_and_media_type() {
    let document = document();
    for protocol in PROTOCOLS {
        assert!(!protocol.name.is_empty() && protocol.name.len() <= 255);
        for route in protocol.routes {
            assert!(document.contains(route.path), "{}", route.path);
        }
        for name in protocol.media_types.split(", ").filter(|name| name.contains('/')) {
            assert!(document.contains(name), "{name}");
        }
    }
}
