//! What parties send: events as plain `load` makes them, and bodies that inflate.

use std::sync::Arc;

use super::Bench;
use crate::ctl::{
    fault::Fault,
    load::{
        self,
        payload::{Shape, Template},
        worker::Body,
    },
    public::Compression,
};

/// What a body of the kind that just passes inflates to.
const INFLATED_BYTES: usize = 5 << 18;
/// How many times smaller it is when it is sent: below what the server refuses (`edge.limits.ratio`).
const RATIO: usize = 90;
/// What a bomb inflates to, if it is let.
const BOMB_BYTES: usize = 32 << 20;

/// Bodies of so many events.
///
/// # Errors
/// As [`load::bodies`].
pub fn plain(bench: &Bench<'_>, events: usize, ids: bool) -> Result<Arc<[Body]>, Fault> {
    shaped(&shape(bench, events, ids, false))
}

/// Bodies of so many events, each of which names a type that no other has.
///
/// # Errors
/// As [`load::bodies`].
pub fn of_fresh_types(bench: &Bench<'_>, events: usize) -> Result<Arc<[Body]>, Fault> {
    shaped(&shape(bench, events, false, true))
}

fn shape(bench: &Bench<'_>, events: usize, ids: bool, fresh_types: bool) -> Shape {
    Shape {
        seed: bench.args.seed,
        batch: events,
        event_bytes: bench.args.event_bytes.get(),
        event_types: vec!["load".to_owned()],
        unit_field: false,
        ids,
        fresh_types,
    }
}

fn shaped(shape: &Shape) -> Result<Arc<[Body]>, Fault> {
    Ok(load::bodies(shape, u64::MAX, Compression::None)?.into())
}

/// Valid events that inflate about [`RATIO`] times.
///
/// # Errors
/// As [`Compression::pack`].
pub fn inflating(compression: Compression) -> Result<Arc<[Body]>, Fault> {
    // The text that cannot be packed away, a random id, is the larger the shorter an event's filling.
    let mut filling = 1_024;
    let mut body = valid(compression, filling)?;
    while body.packed.len() * RATIO > body.template.bytes.len() && filling < 1 << 19 {
        filling += filling / 8;
        body = valid(compression, filling)?;
    }
    while body.packed.len() * (RATIO + 5) < body.template.bytes.len() && filling > 64 {
        filling -= filling / 16;
        body = valid(compression, filling)?;
    }
    Ok(vec![body].into())
}

fn valid(compression: Compression, filling: usize) -> Result<Body, Fault> {
    let filling = "a".repeat(filling);
    let mut template = Template::default();
    while template.bytes.len() < INFLATED_BYTES {
        let id = template.types.len().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let spread = id.rotate_left(29) ^ id;
        let line = format!(
            "{{\"event_type\":\"load\",\"id\":\"{id:016x}{spread:016x}\",\"filling\":\"{filling}\"}}\n"
        );
        template.bytes.extend_from_slice(line.as_bytes());
        template.types.push(0);
    }
    let packed = compression.pack(template.bytes.clone())?;
    Ok(Body { template, packed })
}

/// A body over every ratio: one event that inflates a thousand times.
///
/// # Errors
/// As [`Compression::pack`].
pub fn bomb(compression: Compression) -> Result<Body, Fault> {
    let line = format!("{{\"event_type\":\"load\",\"filling\":\"{}\"}}\n", "a".repeat(BOMB_BYTES));
    let packed = compression.pack(line.into_bytes())?;
    // What it would inflate to is not kept: only the packed bytes are sent.
    let template = Template { bytes: Vec::new(), types: vec![0], ..Template::default() };
    Ok(Body { template, packed })
}

/// Both kinds in turn: three that pass, one that does not.
///
/// # Errors
/// As [`Compression::pack`].
pub fn bombs(compression: Compression) -> Result<Arc<[Body]>, Fault> {
    let passing = inflating(compression)?;
    let mut all: Vec<Body> = passing.iter().cycle().take(3).cloned().collect();
    all.push(bomb(compression)?);
    Ok(all.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn passing_bodies_inflate_about_ninety_times_and_bombs_far_more() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let passing = &inflating(compression).unwrap()[0];
            let ratio = passing.template.bytes.len() / passing.packed.len();
            assert!((80..=99).contains(&ratio), "{compression:?}: {ratio}");
            assert!(passing.template.bytes.len() < 4 << 20);
            for line in passing.template.bytes.split_inclusive(|b| *b == b'\n') {
                serde_json::from_slice::<serde_json::Value>(line).unwrap();
            }
            let bomb = bomb(compression).unwrap();
            assert!(BOMB_BYTES / bomb.packed.len() > 500, "{compression:?}");
        }
    }
}
