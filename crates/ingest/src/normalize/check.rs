//! The keywords that are compiled: what a flat event's fields are checked by without the reference.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::exact::Exact;
use crate::json::{Field, Kind};

/// A set of JSON types, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Types(u8);

const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "object", "array"];

impl Types {
    pub(super) const NULL: u8 = 1;
    pub(super) const BOOLEAN: u8 = 2;
    pub(super) const INTEGER: u8 = 4;
    pub(super) const NUMBER: u8 = 8;
    pub(super) const STRING: u8 = 16;

    /// Reads the keyword `type`; `None` where it is none.
    pub(super) fn read(value: &Value) -> Option<Self> {
        let bit = |name: &Value| {
            let at = TYPES.iter().position(|t| Some(*t) == name.as_str())?;
            Some(1u8 << at)
        };
        match value {
            Value::Array(names) => {
                names.iter().try_fold(0, |set, name| Some(set | bit(name)?)).map(Self)
            }
            name => bit(name).map(Self),
        }
    }

    pub(super) fn has_numbers(self) -> bool {
        self.0 & (Self::INTEGER | Self::NUMBER) != 0
    }

    /// The set without `null`.
    pub(super) fn values(self) -> u8 {
        self.0 & !Self::NULL
    }

    /// The names for people, `a, b or c`.
    pub(super) fn names(self) -> String {
        let names: Vec<&str> =
            (0..7).filter(|i| self.0 >> i & 1 == 1).filter_map(|i| TYPES.get(i).copied()).collect();
        match names.split_last() {
            Some((last, [])) => (*last).to_owned(),
            Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
            None => String::new(),
        }
    }

    fn allows(self, kind: Kind, number: Option<&Exact>) -> bool {
        let bit = match kind {
            Kind::Null => 1,
            Kind::True | Kind::False => 2,
            Kind::Integer => Self::INTEGER | Self::NUMBER,
            // JSON Schema has no difference between 1 and 1.0.
            Kind::Number if number.is_some_and(Exact::is_integer) => Self::INTEGER | Self::NUMBER,
            Kind::Number => Self::NUMBER,
            Kind::String { .. } => 16,
            Kind::Object => 32,
            Kind::Array => 64,
        };
        self.0 & bit != 0
    }
}

/// A value in `const` or `enum`.
#[derive(Clone, Debug, PartialEq)]
enum Literal {
    Null,
    Bool(bool),
    Number(Exact),
    Text(Box<str>),
}

impl Literal {
    fn read(value: &Value) -> Option<Self> {
        Some(match value {
            Value::Null => Self::Null,
            Value::Bool(b) => Self::Bool(*b),
            Value::Number(_) => Self::Number(number(value)?),
            Value::String(text) => Self::Text(text.as_str().into()),
            Value::Array(_) | Value::Object(_) => return None,
        })
    }

    fn is(&self, value: &Checked<'_>) -> bool {
        match self {
            Self::Null => value.kind == Kind::Null,
            Self::Bool(b) => value.kind == if *b { Kind::True } else { Kind::False },
            Self::Number(n) => value.number == Some(n),
            Self::Text(text) => value.text == Some(text),
        }
    }
}

/// The compiled keywords of one field.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Checks {
    pub(super) types: Option<Types>,
    options: Option<Vec<Literal>>,
    constant: Option<Literal>,
    minimum: Option<Exact>,
    maximum: Option<Exact>,
    above: Option<Exact>,
    below: Option<Exact>,
    multiple_of: Option<Exact>,
    min_length: Option<u64>,
    max_length: Option<u64>,
}

/// A value with what its checks need of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checked<'a> {
    pub(super) kind: Kind,
    pub(super) number: Option<&'a Exact>,
    pub(super) text: Option<&'a str>,
}

/// Keywords that say something to people only, or to us.
pub(super) fn is_annotation(keyword: &str) -> bool {
    const ANNOTATIONS: [&str; 12] = [
        "title",
        "description",
        "$comment",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "format",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
    ];
    ANNOTATIONS.contains(&keyword) || keyword.starts_with("x-")
}

fn number(value: &Value) -> Option<Exact> {
    Exact::parse(&value.as_number()?.to_string()).ok()
}

/// A length, which may be written `2.0`.
fn length(value: &Value) -> Option<u64> {
    u64::try_from(number(value)?.to_i64()?).ok()
}

impl Checks {
    /// Compiles a field's schema; `None` where it says something that only the reference knows.
    pub(super) fn compile(schema: &Map<String, Value>) -> Option<Self> {
        let mut checks = Self::default();
        for (keyword, value) in schema {
            match keyword.as_str() {
                "type" => checks.types = Some(Types::read(value)?),
                "const" => checks.constant = Some(Literal::read(value)?),
                "enum" => {
                    let options = value.as_array()?.iter().map(Literal::read);
                    checks.options = Some(options.collect::<Option<_>>()?);
                }
                "minimum" => checks.minimum = Some(number(value)?),
                "maximum" => checks.maximum = Some(number(value)?),
                "exclusiveMinimum" => checks.above = Some(number(value)?),
                "exclusiveMaximum" => checks.below = Some(number(value)?),
                "multipleOf" => checks.multiple_of = Some(number(value)?),
                "minLength" => checks.min_length = Some(length(value)?),
                "maxLength" => checks.max_length = Some(length(value)?),
                keyword if is_annotation(keyword) => {}
                _ => return None,
            }
        }
        Some(checks)
    }

    /// No keyword but `type`.
    pub(super) fn of_types(types: Option<Types>) -> Self {
        Self { types, ..Self::default() }
    }

    /// True where a number's value is looked at.
    pub(super) fn reads_numbers(&self) -> bool {
        self.minimum.is_some()
            || self.maximum.is_some()
            || self.above.is_some()
            || self.below.is_some()
            || self.multiple_of.is_some()
            || self.options.is_some()
            || self.constant.is_some()
    }

    /// True where a string's content is looked at.
    pub(super) fn reads_text(&self) -> bool {
        self.min_length.is_some()
            || self.max_length.is_some()
            || self.options.is_some()
            || self.constant.is_some()
    }

    /// True where the field may be of this type.
    pub(super) fn type_holds(&self, field: &Field, number: Option<&Exact>) -> bool {
        self.types.is_none_or(|types| types.allows(field.kind, number))
    }

    /// The first keyword besides `type` that does not hold, as a sentence for people.
    pub(super) fn broken(&self, value: &Checked<'_>) -> Option<&'static str> {
        if self.constant.as_ref().is_some_and(|constant| !constant.is(value)) {
            return Some("is not the one value allowed (const)");
        }
        if self.options.as_ref().is_some_and(|all| !all.iter().any(|option| option.is(value))) {
            return Some("is none of the values allowed (enum)");
        }
        if let Some(number) = value.number
            && let Some(broken) = self.broken_number(number)
        {
            return Some(broken);
        }
        if let Some(text) = value.text
            && (self.min_length.is_some() || self.max_length.is_some())
        {
            let length = text.chars().count() as u64;
            if self.min_length.is_some_and(|least| length < least) {
                return Some("is shorter than allowed (minLength)");
            }
            if self.max_length.is_some_and(|most| most < length) {
                return Some("is longer than allowed (maxLength)");
            }
        }
        None
    }

    fn broken_number(&self, number: &Exact) -> Option<&'static str> {
        let breaks = |limit: &Option<Exact>, orders: &[Ordering]| {
            limit.as_ref().is_some_and(|limit| orders.contains(&number.compare(limit)))
        };
        if breaks(&self.minimum, &[Ordering::Less]) {
            return Some("is smaller than allowed (minimum)");
        }
        if breaks(&self.maximum, &[Ordering::Greater]) {
            return Some("is greater than allowed (maximum)");
        }
        if breaks(&self.above, &[Ordering::Less, Ordering::Equal]) {
            return Some("is not above its bound (exclusiveMinimum)");
        }
        if breaks(&self.below, &[Ordering::Greater, Ordering::Equal]) {
            return Some("is not below its bound (exclusiveMaximum)");
        }
        if self.multiple_of.as_ref().is_some_and(|divisor| !number.is_multiple_of(divisor)) {
            return Some("is no multiple of the step allowed (multipleOf)");
        }
        None
    }
}
