//! Finds a field's rule by where the previous event had it: streams repeat their keys in order.

use super::schema::{Schema, Target};
use crate::json::Field;

/// What stood at each place of the previous event of the same schema.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    schema: [u8; 16],
    places: Vec<Place>,
}

#[derive(Debug)]
enum Place {
    Known(Target),
    /// No field of the schema.
    Unknown(String),
}

/// Places remembered at most; the fields behind them are looked up.
const PLACES_MAX: usize = 256;
/// Longest unknown name remembered, in bytes.
const NAME_BYTES_MAX: usize = 128;

impl Guesses {
    /// Before each event.
    pub(super) fn begin(&mut self, schema: &Schema) {
        if self.schema != schema.hash() {
            self.schema = schema.hash();
            self.places.clear();
        }
    }

    /// What the field at `place` stands for; `None`: nothing the schema names.
    pub(super) fn target(
        &mut self,
        schema: &Schema,
        place: usize,
        field: &Field,
        text: &str,
    ) -> Option<Target> {
        if schema.fields.is_empty() {
            return None;
        }
        if field.key_escaped() {
            return schema.target(&field.name(text));
        }
        let name = field.key(text);
        match self.places.get(place) {
            Some(Place::Known(target)) if schema.target_name(*target) == name => {
                return Some(*target);
            }
            Some(Place::Unknown(unknown)) if unknown == name => return None,
            _ => {}
        }
        let target = schema.target(name);
        let now = match target {
            Some(target) => Place::Known(target),
            None if name.len() <= NAME_BYTES_MAX => Place::Unknown(name.to_owned()),
            None => return None,
        };
        let next = self.places.len();
        match self.places.get_mut(place) {
            Some(known) => *known = now,
            None if place == next && place < PLACES_MAX => self.places.push(now),
            None => {}
        }
        target
    }
}
