//! docs/wire.md says all that clients may meet, and nothing that they may not.

use std::collections::BTreeSet;

use tidegate_event::Code;
use tidegate_ingest::{
    edge::{problem::Problem, protocol::PROTOCOLS},
    shed::ShedReason,
};

fn document() -> String {
    read("wire.md")
}

fn read(name: &str) -> String {
    let path = format!("{}/../../docs/{name}", env!("CARGO_MANIFEST_DIR"));
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
fn the_documents_name_each_protocol_path_and_media_type() {
    let (document, protocols) = (document(), read("protocols.md"));
    for protocol in PROTOCOLS {
        assert!(!protocol.name.is_empty() && protocol.name.len() <= 255);
        let own = matches!(protocol.name, "events" | "cloudevents");
        let document = if own { &document } else { &protocols };
        let row = format!("| `{}` |", protocol.name);
        assert!(own || document.matches(&row).count() == 3, "{row}");
        let probes = protocol.probes.iter().map(|probe| probe.path);
        for path in protocol.routes.iter().map(|route| route.path).chain(probes) {
            assert!(document.contains(path), "{path}");
        }
        for name in protocol.media_types.split(", ").filter(|name| name.contains('/')) {
            assert!(document.contains(name), "{name}");
        }
    }
}
