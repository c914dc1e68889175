//! A page holds what was found, whatever names and values clients made up.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use tidegate_event::{EventType, Offset, Partition, TenantId};

use super::*;
use crate::replay::compare::{
    Comparison, Differences, FORMAT, FieldChanges, HourCompared, HourTotal, LaneCompared, Rows,
    Unreadable,
};

/// Every tag that a page is made of.
const TAGS: &[&str] = &[
    "!doctype",
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "h1",
    "h2",
    "h3",
    "p",
    "div",
    "b",
    "i",
    "span",
    "small",
    "code",
    "figure",
    "figcaption",
    "svg",
    "line",
    "g",
    "rect",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "section",
    "header",
    "footer",
];
/// Every attribute.
const ATTRIBUTES: &[&str] = &[
    "lang",
    "charset",
    "http-equiv",
    "content",
    "name",
    "class",
    "role",
    "aria-label",
    "viewBox",
    "preserveAspectRatio",
    "x",
    "y",
    "x1",
    "x2",
    "y1",
    "y2",
    "width",
    "height",
    "style",
    "html",
];

fn found(text: &str) -> Compared {
    let (tenant, event_type) = (TenantId::new("acme").unwrap(), EventType::new("view").unwrap());
    let rows =
        Rows { live_events: 10, shadow_events: 9, live_dead_letters: 1, shadow_dead_letters: 0 };
    let differences = Differences { missing: 1, changed: 2, healed: 1, ..Differences::default() };
    let hour = "2026-11-21T10:00:00Z".to_owned();
    let sample = |difference| Sample {
        difference,
        partition: Partition(0),
        offset: Offset(7),
        tenant: tenant.clone(),
        event_type: event_type.clone(),
        event_id: text.to_owned(),
        dead_letter: false,
        fields: vec![FieldDifference {
            field: text.to_owned(),
            live: Some(text.to_owned()),
            shadow: None,
        }],
        fields_left_out: 3,
    };
    let sink = SinkCompared {
        sink: text.to_owned(),
        kind: text.to_owned(),
        differences,
        rows,
        live_behind: 5,
        fields: vec![FieldChanges { field: text.to_owned(), changes: 2 }],
        lanes: vec![LaneCompared {
            tenant: tenant.clone(),
            event_type: event_type.clone(),
            rows,
            differences,
        }],
        hours: vec![HourCompared {
            tenant: tenant.clone(),
            event_type: event_type.clone(),
            hour: hour.clone(),
            rows,
            differences,
        }],
        by_hour: vec![HourTotal { hour, rows, differences }],
        samples: Difference::ALL.map(sample).to_vec(),
        unreadable: vec![Unreadable { side: Side::Live, path: text.into(), cause: text.into() }],
        ..SinkCompared::default()
    };
    let other = SinkCompared {
        sink: text.to_owned(),
        kind: text.to_owned(),
        not_compared: Some(text.to_owned()),
        ..SinkCompared::default()
    };
    Compared {
        format: FORMAT,
        plan_id: "0123456789abcdef".parse().unwrap(),
        at: ReceivedAt(1_795_255_200_000_000),
        by: text.to_owned(),
        result: Comparison {
            identical: false,
            differences,
            not_compared: vec![text.to_owned()],
            sinks: vec![sink, other],
        },
    }
}

/// The names of tags and attributes in a page, read as a browser does: a tag from `<` to the next `>`
/// outside of quotes.
fn names(page: &str) -> (Vec<String>, Vec<String>) {
    let (mut tags, mut attributes) = (Vec::new(), Vec::new());
    let mut rest = page;
    while let Some((_, after)) = rest.split_once('<') {
        let mut inside = false;
        let end = after.find(|c| {
            inside ^= c == '"';
            c == '>' && !inside
        });
        let (tag, behind) = after.split_at(end.unwrap());
        // What stands in quotes is a value.
        let bare: String = tag.split('"').step_by(2).collect::<Vec<_>>().join(" ");
        let mut words = bare.split_whitespace();
        tags.push(words.next().unwrap_or_default().trim_matches('/').to_owned());
        attributes.extend(words.map(|word| word.trim_matches(['=', '/']).to_owned()));
        rest = behind;
    }
    attributes.retain(|name| !name.is_empty());
    (tags, attributes)
}

#[track_caller]
fn check_holds_only_its_own(text: &str) {
    let page = page(&found(text));
    let (tags, attributes) = names(&page);
    for tag in tags {
        assert!(TAGS.contains(&tag.as_str()), "<{tag}> by {text:?}");
    }
    for attribute in attributes {
        assert!(ATTRIBUTES.contains(&attribute.as_str()), "{attribute}= by {text:?}");
    }
    let plain = super::page(&found("plain"));
    let count = |page: &str, what: &str| page.matches(what).count();
    for what in ["<", ">", "\""] {
        assert_eq!(count(&page, what), count(&plain, what), "{what} by {text:?}");
    }
}

#[test]
fn hostile_names_and_values_stay_text() {
    for text in [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "' onmouseover='alert(1)",
        "</style><style>*{display:none}",
        "</title><svg onload=alert(1)>",
        "<!-- ",
        "]]>",
        "&lt;b&gt;",
        "javascript:alert(1)",
        "\u{202e}txet\u{0}\u{1b}[2J",
        "{{7*7}}${7*7}",
    ] {
        check_holds_only_its_own(text);
    }
    let page = page(&found("a<b>&\"'\u{202e}"));
    assert!(page.contains("a&lt;b&gt;&amp;&quot;&#39;\\u{202e}"), "{page}");
    assert!(!page.contains('\u{202e}'));
}

proptest! {
    #[test]
    fn no_text_makes_a_tag(text in "[<>\"'&/= a-z!\\-\\PC]{0,40}") {
        check_holds_only_its_own(&text);
    }
}

#[test]
fn a_page_needs_nothing_from_elsewhere() {
    let page = page(&found("plain"));
    for what in ["http://", "https://", "<script", "<link", "@import", "url(", "src="] {
        assert!(!page.contains(what), "{what}");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn the_headline_says_what_came_of_it() {
    let mut compared = found("lake");
    assert!(page(&compared).contains("<h1 class=\"bad\">Different</h1>"));
    compared.result.identical = true;
    assert!(page(&compared).contains("<h1 class=\"good\">Identical</h1>"));
    compared.result.sinks.remove(0);
    assert!(page(&compared).contains("<h1 class=\"bad\">Not compared</h1>"));
}
