//! Events by hour, live against shadow, as bars.

use std::fmt::Write as _;

use crate::{
    ctl::human,
    replay::compare::{HourTotal, Rows},
};

/// Bars that stand side by side at most: of a longer window several hours are one.
const SLOTS_MAX: usize = 72;
/// Fewer hours are drawn as wide as if there were so many.
const SLOTS_MIN: usize = 12;
/// The drawing's own units; it is stretched to the page.
const SLOT: u64 = 100;
const HEIGHT: u64 = 1_000;

/// One slot: some hours.
struct Slot<'a> {
    from: &'a str,
    to: &'a str,
    rows: Rows,
}

/// The chart, as a figure of a page; empty where there is nothing to show.
#[must_use]
pub fn chart(hours: &[HourTotal]) -> String {
    let per_slot = hours.len().div_ceil(SLOTS_MAX).max(1);
    let slots: Vec<Slot<'_>> = hours.chunks(per_slot).filter_map(slot).collect();
    let highest = slots.iter().map(|slot| slot.rows.live().max(slot.rows.shadow())).max();
    let (Some(highest), Some(first), Some(last)) = (highest, slots.first(), slots.last()) else {
        return String::new();
    };
    let top = round(highest.max(1));
    let columns = slots.len().max(SLOTS_MIN) as u64;
    let width = columns * SLOT;
    let before = (columns - slots.len() as u64) * SLOT / 2;
    let mut bars = String::new();
    for (number, slot) in slots.iter().enumerate() {
        let x = before + number as u64 * SLOT;
        bars.push_str(&drawn(slot, x, top));
    }
    let lines: String = [0, 1, 2]
        .map(|line| line * HEIGHT / 2)
        .iter()
        .map(|y| format!("<line class=\"grid\" x1=\"0\" x2=\"{width}\" y1=\"{y}\" y2=\"{y}\"/>"))
        .collect();
    let middle = match slots.get(slots.len() / 2) {
        Some(middle) if 2 < slots.len() => human_hour(middle.from),
        _ => String::new(),
    };
    let hours = if per_slot == 1 { "hour".to_owned() } else { format!("{per_slot} hours") };
    let ends = match slots.len() {
        1 => format!("<span></span><span>{}</span><span></span>", human_hour(first.from)),
        _ => format!(
            "<span>{}</span><span>{middle}</span><span>{}</span>",
            human_hour(first.from),
            human_hour(last.from)
        ),
    };
    format!(
        "<figure class=\"chart\"><figcaption>Events by {hours} of receipt, UTC <span class=\"legend\">\
         <i class=\"live\"></i>live <i class=\"shadow\"></i>shadow <i class=\"dead\"></i>dead letters\
         </span></figcaption><div class=\"plot\"><div class=\"scale\"><span>{}</span><span>{}</span>\
         <span>0</span></div><svg role=\"img\" aria-label=\"Events by hour, live against shadow\" \
         viewBox=\"0 0 {width} {HEIGHT}\" preserveAspectRatio=\"none\">{lines}{bars}</svg>\
         <div class=\"hours\">{ends}</div></div></figure>\n",
        human::count(top),
        human::count(top / 2),
    )
}

fn slot(hours: &[HourTotal]) -> Option<Slot<'_>> {
    let mut rows = Rows::default();
    hours.iter().for_each(|hour| rows.add(&hour.rows));
    Some(Slot { from: &hours.first()?.hour, to: &hours.last()?.hour, rows })
}

/// `2026-11-21 10:00` of an hour's begin.
#[must_use]
pub fn human_hour(hour: &str) -> String {
    super::page::escaped(hour).replace('T', " ").replace(":00Z", "")
}

/// The next even number of one or two digits and zeros.
fn round(n: u64) -> u64 {
    let mut unit = 2;
    while unit * 25 < n {
        unit *= 10;
    }
    n.div_ceil(unit) * unit
}

/// Both bars of a slot: events, dead letters on top of them.
fn drawn(slot: &Slot<'_>, x: u64, top: u64) -> String {
    let rows = &slot.rows;
    let high = |count: u64| u64::try_from(u128::from(count) * u128::from(HEIGHT) / u128::from(top));
    let high = |count: u64| match high(count).unwrap_or(HEIGHT) {
        // Little is not nothing.
        0 if 0 < count => 4,
        high => high,
    };
    let when = match slot.from == slot.to {
        true => human_hour(slot.from),
        false => format!("{} to {}", human_hour(slot.from), human_hour(slot.to)),
    };
    let mut text = format!(
        "<g><title>{when}: live {} events, {} dead letters; shadow {} events, {} dead letters</title>\
         <rect class=\"hit\" x=\"{x}\" y=\"0\" width=\"{SLOT}\" height=\"{HEIGHT}\"/>",
        human::count(rows.live_events),
        human::count(rows.live_dead_letters),
        human::count(rows.shadow_events),
        human::count(rows.shadow_dead_letters),
    );
    let bars = [
        ("live", 12, rows.live_events, rows.live_dead_letters),
        ("shadow", 52, rows.shadow_events, rows.shadow_dead_letters),
    ];
    for (class, at, events, dead) in bars {
        let (events, dead) = (high(events), high(dead));
        let (x, y) = (x + at, HEIGHT.saturating_sub(events));
        let above = y.saturating_sub(dead);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"36\" height=\"{events}\"/>"
        );
        if 0 < dead {
            let _ = write!(
                text,
                "<rect class=\"dead\" x=\"{x}\" y=\"{above}\" width=\"36\" height=\"{dead}\"/>"
            );
        }
    }
    text.push_str("</g>");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_ends_on_a_round_number_that_halves() {
        for (n, expected) in [(1, 2), (7, 8), (50, 50), (51, 60), (99, 100), (1_234, 1_400)] {
            assert_eq!(round(n), expected, "{n}");
            assert_eq!(round(n) % 2, 0);
        }
    }

    #[test]
    fn a_long_window_is_drawn_in_slots_of_several_hours() {
        let hour = |n: u64| HourTotal {
            hour: format!("2026-11-{:02}T{:02}:00:00Z", 1 + n / 24, n % 24),
            rows: Rows { live_events: n, shadow_events: 1, ..Rows::default() },
            differences: Default::default(),
        };
        let hours: Vec<_> = (0..24 * 20).map(hour).collect();
        let drawn = chart(&hours);
        assert!(drawn.contains("Events by 7 hours"), "{drawn}");
        assert_eq!(drawn.matches("<g>").count(), 69);
        assert_eq!(chart(hours.get(..1).unwrap_or_default()).matches("<g>").count(), 1);
        assert_eq!(chart(&[]), "");
    }
}
