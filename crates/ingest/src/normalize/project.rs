//! An accepted event as a row: the schema's columns, and the rest as it came.

use tidegate_event::Code;

use super::{
    fields::{Arrival, Cell, Tools, UnitCache},
    guess::Guesses,
    reserved::ours,
    schema::Schema,
};
use crate::json::{JsonError, Object, ScanLimits, scan_object};

/// The memory a projection needs; made once and used for event after event.
#[derive(Debug, Default)]
pub struct ProjectScratch {
    object: Object,
    inner: Object,
    units: UnitCache,
    guesses: Guesses,
    custom: String,
}

/// One event as a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row<'r> {
    /// One for each of [`Schema::columns`], in their order.
    pub cells: Vec<Cell<'r>>,
    /// The fields that no column holds, as one JSON object; keys and values as they were sent.
    pub custom: Option<&'r str>,
}

/// Why an event is no row of its schema: it was not accepted by it, or its bytes have changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProjectError {
    /// The bytes are no event.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A field does not fit its column.
    #[error("field {field}: {message} ({})", code.as_str())]
    Field {
        /// The column's field.
        field: String,
        /// Which rule.
        code: Code,
        /// What is wrong.
        message: String,
    },
}

/// The event was within the limits when it was accepted; they may have changed since.
const WIDE: ScanLimits = ScanLimits { depth: usize::MAX, fields: usize::MAX };

impl Schema {
    /// Makes a row of an event that this schema accepted. `reserved`: `event_type`, `event_id` and
    /// `event_time` in it are ours and in columns of their own (see [`super::reserved_in`]).
    ///
    /// # Errors
    /// [`ProjectError`]; never for an event that was accepted by this very schema.
    pub fn project<'r>(
        &self,
        raw: &'r [u8],
        reserved: bool,
        scratch: &'r mut ProjectScratch,
    ) -> Result<Row<'r>, ProjectError> {
        let ProjectScratch { object, inner, units, guesses, custom } = scratch;
        let text = scan_object(raw, &WIDE, object)?;
        let mut tools = Tools { inner, units };
        let mut cells = vec![Cell::Null; self.columns().len()];
        custom.clear();
        guesses.begin(self);
        for (place, field) in object.fields().iter().enumerate() {
            if reserved && ours(field, text).is_some() {
                continue;
            }
            let target = guesses.target(self, place, field, text);
            let rule = target.and_then(|t| self.fields.get(t.field)).filter(|r| r.declared);
            let Some((rule, target)) = rule.zip(target) else {
                custom.push(if custom.is_empty() { '{' } else { ',' });
                custom.push('"');
                custom.push_str(field.key(text));
                custom.push_str("\":");
                custom.push_str(field.value(text));
                continue;
            };
            let Some(cell) = rule.column.and_then(|at| cells.get_mut(at)) else { continue };
            let arrival = Arrival { rule, alias: target.alias, field, text };
            *cell = arrival.cell(&mut tools).map_err(|fault| ProjectError::Field {
                field: rule.name.to_string(),
                code: fault.code,
                message: fault.message.into_owned(),
            })?;
        }
        if !custom.is_empty() {
            custom.push('}');
        }
        let custom = (!custom.is_empty()).then_some(custom.as_str());
        Ok(Row { cells, custom })
    }
}
