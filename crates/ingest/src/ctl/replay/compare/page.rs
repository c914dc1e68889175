//! A comparison as one page: no scripts, nothing from elsewhere, every foreign text escaped.

use std::fmt::Write as _;

use tidegate_event::ReceivedAt;

use super::{
    chart::{chart, human_hour},
    headline, parts,
};
use crate::{
    ctl::{human, out::Tone},
    replay::compare::{Compared, Difference, FieldDifference, Sample, Side, SinkCompared},
};

const STYLE: &str = include_str!("page.css");
/// Rows of a table at most.
const LANES_SHOWN: usize = 500;
const HOURS_SHOWN: usize = 500;
const FIELDS_SHOWN: usize = 50;
const SAMPLES_SHOWN: usize = 20;

/// Text as it may stand anywhere in a page, attributes too. What would move or hide other text is shown as
/// an escape.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in human::safe(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The page.
#[must_use]
pub fn page(compared: &Compared) -> String {
    let result = &compared.result;
    let (tone, line) = headline(result);
    let (class, title) = match tone {
        Tone::Good => ("good", "Identical"),
        Tone::Bad => ("bad", "Different"),
        Tone::Warning | Tone::Strong => ("bad", "Not compared"),
    };
    let id = &compared.plan_id;
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src \
         'unsafe-inline'\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Replay {id}: {title}</title><style>\n{STYLE}</style></head><body><main>\n\
         <h1 class=\"{class}\">{title}</h1><p>{}</p>\n<p class=\"soft\">Replay <code>{id}</code>, live \
         against shadow, compared {} by {}</p>\n",
        escaped(&sentence(&line)),
        escaped(&time(compared.at)),
        escaped(&compared.by),
    );
    let cards = parts(&result.differences).map(|(name, count)| {
        let none = if count == 0 { " none" } else { "" };
        format!("<div class=\"card{none}\"><b>{}</b><span>{name}</span></div>", human::count(count))
    });
    // Writing to a String cannot fail.
    let shown = if result.differences.doubled_in_live + result.differences.doubled_in_shadow == 0 {
        cards.get(..5).unwrap_or_default()
    } else {
        &cards
    };
    let _ = writeln!(out, "<div class=\"cards\">{}</div>", shown.concat());
    for sink in &result.sinks {
        out.push_str(&of_sink(sink));
    }
    out.push_str(
        "<footer>Missing: in live, not in the shadow. Extra: in the shadow, not in live. Changed: in both, \
         a column differs. Healed: a dead letter in live, an event in the shadow. Newly dead: an event in \
         live, a dead letter in the shadow.</footer>\n</main></body></html>\n",
    );
    out
}

fn time(at: ReceivedAt) -> String {
    let time = jiff::Timestamp::from_microsecond(at.0);
    time.map_or_else(|_| at.0.to_string(), |at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

fn sentence(line: &str) -> String {
    let mut text = match line.split_once(": ") {
        Some((_, rest)) => rest.to_owned(),
        None => line.to_owned(),
    };
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text + "."
}

fn of_sink(sink: &SinkCompared) -> String {
    let kind = if sink.kind == sink.sink { "" } else { &sink.kind };
    let mut out = format!("<h2>{} <small>{}</small></h2>\n", escaped(&sink.sink), escaped(kind));
    if let Some(why) = &sink.not_compared {
        let _ = writeln!(out, "<p class=\"warn\">Not compared: {}.</p>", escaped(why));
        return out;
    }
    let rows = &sink.rows;
    let side = |events: u64, dead: u64| {
        format!(
            "{}, {}",
            human::things(events, "event", "events"),
            human::things(dead, "dead letter", "dead letters")
        )
    };
    let _ = writeln!(
        out,
        "<p class=\"soft\">Live: {}. Shadow: {}.</p>",
        side(rows.live_events, rows.live_dead_letters),
        side(rows.shadow_events, rows.shadow_dead_letters)
    );
    if 0 < sink.live_behind {
        let offsets = human::things(sink.live_behind, "offset", "offsets");
        let _ = writeln!(
            out,
            "<p class=\"warn\">Live has not stored {offsets} of the window yet: they count as extra.</p>"
        );
    }
    for file in &sink.unreadable {
        let side = if file.side == Side::Live { "live" } else { "the shadow" };
        let (path, cause) = (escaped(&file.path), escaped(&file.cause));
        let _ = writeln!(
            out,
            "<p class=\"warn\">Cannot be read in {side}: <code>{path}</code>: {cause}</p>"
        );
    }
    out.push_str(&more(sink.unreadable_left_out, "files that cannot be read"));
    out.push_str(&chart(&sink.by_hour));
    out.push_str(&lanes(sink));
    out.push_str(&fields(sink));
    out.push_str(&samples(sink));
    out.push_str(&hours(sink));
    out
}

fn more(count: u64, of: &str) -> String {
    match count {
        0 => String::new(),
        count => format!("<p class=\"soft\">… and {} more {of}.</p>\n", human::count(count)),
    }
}

/// A table: texts, then what [`COUNTS`] says; columns of differences and dead letters without any are left
/// out.
fn table(texts: &[&str], rows: &[Vec<String>]) -> String {
    let first = texts.len();
    let says = |at: usize| rows.iter().any(|row| row.get(at).is_some_and(|cell| cell != "0"));
    let headings = texts.iter().chain(&COUNTS).enumerate();
    let shown: Vec<(usize, &str)> =
        headings.filter(|(at, _)| *at < first + 2 || says(*at)).map(|(at, h)| (at, *h)).collect();
    let mut out = String::from("<div class=\"wide\"><table><thead><tr>");
    for (at, heading) in &shown {
        let class = if *at < first { "" } else { " class=\"n\"" };
        let _ = write!(out, "<th{class}>{heading}</th>");
    }
    out.push_str("</tr></thead><tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        for (at, _) in &shown {
            let cell = row.get(*at).map_or("", String::as_str);
            let class = match cell {
                _ if *at < first => " class=\"t\"",
                "0" => " class=\"n zero\"",
                _ if first + 3 < *at => " class=\"n some\"",
                _ => " class=\"n\"",
            };
            let _ = write!(out, "<td{class}>{cell}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

const COUNTS: [&str; 9] = [
    "Live",
    "Shadow",
    "Dead in live",
    "Dead in shadow",
    "Missing",
    "Extra",
    "Changed",
    "Healed",
    "Newly dead",
];

fn counts(
    rows: &crate::replay::compare::Rows,
    found: &crate::replay::compare::Differences,
) -> impl Iterator<Item = String> {
    [
        rows.live_events,
        rows.shadow_events,
        rows.live_dead_letters,
        rows.shadow_dead_letters,
        found.missing,
        found.extra,
        found.changed,
        found.healed,
        found.newly_dead,
    ]
    .into_iter()
    .map(human::count)
}

fn lanes(sink: &SinkCompared) -> String {
    let (same, differ): (Vec<_>, Vec<_>) =
        sink.lanes.iter().partition(|lane| lane.differences.is_none());
    let rows: Vec<Vec<String>> = differ
        .iter()
        .chain(&same)
        .take(LANES_SHOWN)
        .map(|lane| {
            let names = [escaped(lane.tenant.as_str()), escaped(lane.event_type.as_str())];
            names.into_iter().chain(counts(&lane.rows, &lane.differences)).collect()
        })
        .collect();
    if rows.is_empty() {
        return "<p>There are no rows on either side.</p>\n".to_owned();
    }
    let left = sink.lanes.len().saturating_sub(LANES_SHOWN) as u64 + sink.lanes_left_out;
    let table = table(&["Tenant", "Event type"], &rows);
    format!("<h3>Tenants and event types</h3>\n{table}{}", more(left, "tenants and types"))
}

fn hours(sink: &SinkCompared) -> String {
    let differ = || sink.hours.iter().filter(|hour| !hour.differences.is_none());
    let rows: Vec<Vec<String>> = differ()
        .take(HOURS_SHOWN)
        .map(|hour| {
            let (tenant, event_type) = (hour.tenant.as_str(), hour.event_type.as_str());
            let names = [human_hour(&hour.hour), escaped(tenant), escaped(event_type)];
            names.into_iter().chain(counts(&hour.rows, &hour.differences)).collect()
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let left = differ().count().saturating_sub(HOURS_SHOWN) as u64 + sink.hours_left_out;
    let table = table(&["Hour, UTC", "Tenant", "Event type"], &rows);
    format!("<h3>Hours that differ</h3>\n{table}{}", more(left, "hours"))
}

fn fields(sink: &SinkCompared) -> String {
    let Some(most) = sink.fields.first().map(|field| field.changes.max(1)) else {
        return String::new();
    };
    let mut out = String::from(
        "<h3>Fields that differ in changed events</h3>\n<div class=\"wide\"><table><thead><tr><th>Field</th>\
         <th class=\"n\">Changes</th><th></th></tr></thead><tbody>\n",
    );
    for field in sink.fields.iter().take(FIELDS_SHOWN) {
        let percent = u128::from(field.changes) * 100 / u128::from(most);
        let _ = writeln!(
            out,
            "<tr><td class=\"mono\">{}</td><td class=\"n\">{}</td><td class=\"grow\"><span class=\"bar\" \
             style=\"width:{percent}%\"></span></td></tr>",
            escaped(&field.field),
            human::count(field.changes)
        );
    }
    out.push_str("</tbody></table></div>\n");
    out + &more(sink.fields.len().saturating_sub(FIELDS_SHOWN) as u64, "fields")
}

fn samples(sink: &SinkCompared) -> String {
    let mut out = String::new();
    for difference in Difference::ALL {
        let of = sink.samples.iter().filter(|sample| sample.difference == difference);
        let mut of = of.take(SAMPLES_SHOWN).peekable();
        if of.peek().is_some() {
            let words = difference.words();
            let _ = writeln!(out, "<h3>For example: {words}</h3>");
        }
        out.extend(of.map(sample));
    }
    out
}

fn sample(sample: &Sample) -> String {
    let dead = if sample.dead_letter { " (dead letter)" } else { "" };
    let mut out = format!(
        "<section class=\"sample\"><header><b class=\"mono\">{}/{}</b><span>{} / {}{dead}</span>\
         <span class=\"mono soft\">{}</span></header>",
        sample.partition,
        sample.offset,
        escaped(sample.tenant.as_str()),
        escaped(sample.event_type.as_str()),
        escaped(&sample.event_id)
    );
    if !sample.fields.is_empty() {
        let (headings, rows): (_, String) = match sample.difference {
            Difference::Changed => {
                ("<th>Live</th><th>Shadow</th>", sample.fields.iter().map(field).collect())
            }
            _ => ("<th>Why it is a dead letter</th>", sample.fields.iter().map(reason).collect()),
        };
        let _ = write!(
            out,
            "<table><thead><tr><th>Field</th>{headings}</tr></thead><tbody>{rows}</tbody></table>"
        );
    }
    out.push_str(&more(sample.fields_left_out, "fields"));
    out + "</section>\n"
}

fn field(field: &FieldDifference) -> String {
    let cell = |value: &Option<String>, class: &str| match value {
        Some(value) => format!("<td class=\"mono {class}\">{}</td>", escaped(value)),
        None => "<td class=\"soft\">nothing</td>".to_owned(),
    };
    format!(
        "<tr><td class=\"mono\">{}</td>{}{}</tr>",
        escaped(&field.field),
        cell(&field.live, "old"),
        cell(&field.shadow, "new")
    )
}

fn reason(field: &FieldDifference) -> String {
    let value = field.live.as_ref().or(field.shadow.as_ref()).map(|value| escaped(value));
    format!(
        "<tr><td class=\"mono\">{}</td><td class=\"mono\">{}</td></tr>",
        escaped(&field.field),
        value.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests;
