//! A comparison on a terminal.

use super::{headline, parts};
use crate::{
    ctl::{Context, fault::Fault, human, out::Tone, table::Table},
    replay::compare::{Compared, Difference, FieldDifference, Sample, Side, SinkCompared},
};

/// Tenants and types that are shown where they differ,
const DIFFERENT_SHOWN: usize = 40;
/// and where they do not.
const SAME_SHOWN: usize = 10;
/// Fields that are shown,
const FIELDS_SHOWN: usize = 15;
/// samples of each difference,
const SAMPLES_SHOWN: usize = 3;
/// fields of each,
const SAMPLE_FIELDS_SHOWN: usize = 6;
/// and files that cannot be read.
const UNREADABLE_SHOWN: usize = 5;
/// Characters of a value.
const VALUE: usize = 60;

/// Shows all of it.
pub fn show(context: &Context, compared: &Compared) -> Result<(), Fault> {
    let out = &context.out;
    for sink in &compared.result.sinks {
        let mut name = human::safe(&sink.sink);
        if sink.kind != sink.sink {
            name = format!("{name} ({})", human::safe(&sink.kind));
        }
        out.line(&out.paint(Tone::Strong, &name))?;
        match &sink.not_compared {
            Some(why) => out.line(&format!("  not compared: {}", human::safe(why)))?,
            None => show_sink(context, sink)?,
        }
        out.line("")?;
    }
    let (tone, text) = headline(&compared.result);
    out.line(&out.paint(tone, &text))
}

fn show_sink(context: &Context, sink: &SinkCompared) -> Result<(), Fault> {
    let out = &context.out;
    show_lanes(context, sink)?;
    if 0 < sink.live_behind {
        let offsets = human::things(sink.live_behind, "offset", "offsets");
        let text = format!("live has not stored {offsets} of the window yet: they count as extra");
        out.line(&out.paint(Tone::Warning, &text))?;
    }
    if !sink.fields.is_empty() {
        out.line("")?;
        let mut table = Table::new(&["FIELD", ">CHANGES"]);
        for field in sink.fields.iter().take(FIELDS_SHOWN) {
            table.row(vec![human::cut(&field.field, VALUE), human::count(field.changes)]);
        }
        out.table(&table)?;
        more(context, sink.fields.len().saturating_sub(FIELDS_SHOWN) as u64, "fields")?;
    }
    for difference in Difference::ALL {
        let samples = sink.samples.iter().filter(|sample| sample.difference == difference);
        let mut samples = samples.take(SAMPLES_SHOWN).peekable();
        if samples.peek().is_some() {
            out.line("")?;
            out.line(&out.paint(Tone::Strong, &format!("{}, for example:", difference.words())))?;
        }
        for sample in samples {
            show_sample(context, sample)?;
        }
    }
    for file in sink.unreadable.iter().take(UNREADABLE_SHOWN) {
        let side = if file.side == Side::Live { "live" } else { "the shadow" };
        let (path, cause) = (human::safe(&file.path), human::safe(&file.cause));
        let text = format!("cannot be read in {side}: {path}: {cause}");
        out.line(&out.paint(Tone::Bad, &text))?;
    }
    let left = sink.unreadable.len().saturating_sub(UNREADABLE_SHOWN) as u64;
    more(context, left + sink.unreadable_left_out, "files that cannot be read")
}

fn show_lanes(context: &Context, sink: &SinkCompared) -> Result<(), Fault> {
    // Columns that are 0 throughout say nothing.
    let found = parts(&sink.differences);
    let shown: Vec<usize> =
        found.iter().enumerate().filter(|(_, (_, n))| 0 < *n).map(|(at, _)| at).collect();
    let dead = 0 < sink.rows.live_dead_letters + sink.rows.shadow_dead_letters;
    let mut headings: Vec<String> =
        ["TENANT", "EVENT TYPE", ">LIVE", ">SHADOW"].map(str::to_owned).to_vec();
    if dead {
        headings.extend([">DEAD IN LIVE", ">DEAD IN SHADOW"].map(str::to_owned));
    }
    let names = shown.iter().filter_map(|at| found.get(*at));
    headings.extend(names.map(|(name, _)| format!(">{}", name.to_uppercase())));
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let mut table = Table::new(&headings);
    let (same, differ): (Vec<_>, Vec<_>) =
        sink.lanes.iter().partition(|lane| lane.differences.is_none());
    for lane in differ.iter().take(DIFFERENT_SHOWN).chain(same.iter().take(SAME_SHOWN)) {
        let mut cells = vec![
            human::safe(lane.tenant.as_str()),
            human::safe(lane.event_type.as_str()),
            human::count(lane.rows.live_events),
            human::count(lane.rows.shadow_events),
        ];
        if dead {
            cells.push(human::count(lane.rows.live_dead_letters));
            cells.push(human::count(lane.rows.shadow_dead_letters));
        }
        let counts = parts(&lane.differences);
        let counts = shown.iter().filter_map(|at| counts.get(*at));
        cells.extend(counts.map(|(_, count)| human::count(*count)));
        table.row(cells);
    }
    if table.is_empty() {
        return context.out.line("  no rows on either side");
    }
    context.out.table(&table)?;
    let differ_left = differ.len().saturating_sub(DIFFERENT_SHOWN) as u64;
    more(context, differ_left, "that differ (--json and --html have more)")?;
    let left = same.len().saturating_sub(SAME_SHOWN) as u64 + sink.lanes_left_out;
    more(context, left, "tenants and types")
}

fn more(context: &Context, count: u64, of: &str) -> Result<(), Fault> {
    match count {
        0 => Ok(()),
        count => context.out.line(&format!("… and {} more {of}", human::count(count))),
    }
}

fn show_sample(context: &Context, sample: &Sample) -> Result<(), Fault> {
    let dead = if sample.dead_letter { " (dead letter)" } else { "" };
    context.out.line(&format!(
        "  {}/{}  {}/{}{dead}  {}",
        sample.partition,
        sample.offset,
        human::safe(sample.tenant.as_str()),
        human::safe(sample.event_type.as_str()),
        human::cut(&sample.event_id, VALUE)
    ))?;
    for field in sample.fields.iter().take(SAMPLE_FIELDS_SHOWN) {
        context.out.line(&format!("      {}", in_words(field, sample.difference)))?;
    }
    let left = sample.fields.len().saturating_sub(SAMPLE_FIELDS_SHOWN) as u64;
    match left + sample.fields_left_out {
        0 => Ok(()),
        left => context.out.line(&format!("      … and {left} more fields")),
    }
}

/// `name: 1 → 2`; of what one side alone has: `name: 1`.
fn in_words(field: &FieldDifference, difference: Difference) -> String {
    let name = human::cut(&field.field, VALUE);
    let value = |value: &Option<String>| {
        value.as_ref().map_or_else(|| "nothing".to_owned(), |value| human::cut(value, VALUE))
    };
    match difference {
        Difference::Changed => {
            format!("{name}: {} → {}", value(&field.live), value(&field.shadow))
        }
        _ => format!("{name}: {}", value(&field.live.clone().or_else(|| field.shadow.clone()))),
    }
}
