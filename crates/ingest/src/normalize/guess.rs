//! Finds a field's rule by where the previous event had it: streams repeat their keys in order.

use super::schema::{Schema, Target};
use crate::json::Field;

/// What stood at each place of the previous event, for the schemas met last.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    schemas: Vec<([u8; 16], Vec<Place>)>,
    current: usize,
}

#[derive(Debug)]
enum Place {
    Known(Target),
    /// No field of the schema.
    Unknown(String),
}

/// Schemas remembered at most; then it begins anew.
const SCHEMAS_MAX: usize = 16;
/// Places remembered at most; the fields behind them are looked up.
const PLACES_MAX: usize = 256;
/// Longest unknown name remembered, in bytes.
const NAME_BYTES_MAX: usize = 128;

impl Guesses {
    /// Before each event.
    pub(super) fn begin(&mut self, schema: &Schema) {
        let hash = schema.hash();
        if self.schemas.get(self.current).is_some_and(|(known, _)| *known == hash) {
            return;
        }
        let at = self.schemas.iter().position(|(known, _)| *known == hash);
        self.current = at.unwrap_or_else(|| {
            if self.schemas.len() >= SCHEMAS_MAX {
                self.schemas.clear();
            }
            self.schemas.push((hash, Vec::new()));
            self.schemas.len() - 1
        });
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
        let Some((_, places)) = self.schemas.get_mut(self.current) else {
            return schema.target(name);
        };
        match places.get(place) {
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
        let next = places.len();
        match places.get_mut(place) {
            Some(known) => *known = now,
            None if place == next && place < PLACES_MAX => places.push(now),
            None => {}
        }
        target
    }
}
