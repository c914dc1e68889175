//! One field of an event against its rule: type, unit, range, keywords, and the value for its column.

use std::borrow::Cow;

use serde_json::{Number, Value};
use tidegate_event::Code;

use super::{
    check::Checked,
    exact::{Beyond, Conversion, Double, Exact},
    schema::{ColumnType, FieldRule, UnitRule},
    unit::{CODE_BYTES_MAX, Unit, UnitError},
};
use crate::json::{Field, Kind, Object, ScanLimits, scan_object, short};

/// Why a field does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) code: Code,
    /// A JSON pointer below the field, mostly empty.
    pub(super) below: String,
    pub(super) message: Cow<'static, str>,
}

impl Fault {
    pub(super) fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, below: String::new(), message: message.into() }
    }
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell<'r> {
    /// Nothing.
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer.
    I64(i64),
    /// A number.
    F64(f64),
    /// Text, decoded.
    Text(Cow<'r, str>),
    /// Any value, as JSON text.
    Json(Cow<'r, str>),
}

/// Units met before, so that a stream of equal codes is parsed once.
#[derive(Debug, Default)]
pub(super) struct UnitCache {
    met: Vec<(String, String, Result<Conversion, Refused>)>,
}

/// Most units remembered; then it begins anew.
const UNITS_MET_MAX: usize = 32;

/// Why a unit is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    Unknown(UnitError),
    Mismatch,
}

/// What is needed besides the field itself.
pub(super) struct Tools<'t> {
    pub(super) inner: &'t mut Object,
    pub(super) units: &'t mut UnitCache,
}

impl UnitCache {
    fn conversion(&mut self, from: &str, to: &UnitRule) -> &Result<Conversion, Refused> {
        // Longer ones are no units, and are not to be remembered.
        const TOO_LONG: &Result<Conversion, Refused> = &Err(Refused::Unknown(UnitError::Unknown));
        if from.len() > CODE_BYTES_MAX {
            return TOO_LONG;
        }
        let known = |(a, b, _): &(String, String, _)| a == from && *b == to.code;
        let at = self.met.iter().position(known).unwrap_or_else(|| {
            if self.met.len() >= UNITS_MET_MAX {
                self.met.clear();
            }
            let parsed = Unit::parse(from).map_err(Refused::Unknown);
            let found = parsed.and_then(|u| u.conversion_to(&to.unit).ok_or(Refused::Mismatch));
            self.met.push((from.to_owned(), to.code.clone(), found));
            self.met.len() - 1
        });
        self.met.get(at).map_or(&Err(Refused::Mismatch), |(_, _, found)| found)
    }
}

/// Where in its rule a field was found: itself, or one of the names it may arrive under.
pub(super) struct Arrival<'a, 't> {
    pub(super) rule: &'a FieldRule,
    pub(super) alias: Option<usize>,
    pub(super) field: &'a Field,
    pub(super) text: &'t str,
}

impl<'t> Arrival<'_, 't> {
    fn raw(&self) -> &'t str {
        self.field.value(self.text)
    }

    /// Checks the field by all of its rule.
    pub(super) fn examine(&self, tools: &mut Tools<'_>) -> Result<(), Fault> {
        if let Some(exact) = self.converted(tools)? {
            self.fits_column(&exact, true)?;
            let kind = if exact.is_integer() { Kind::Integer } else { Kind::Number };
            self.keywords(&Checked { kind, number: Some(&exact), text: None })?;
            return match &self.rule.reference {
                Some(_) => self.by_reference(&self.number_value(&exact)?),
                None => Ok(()),
            };
        }
        if self.is_plain() {
            return Ok(());
        }
        let number = self.number()?;
        if !self.rule.checks.type_holds(self.field, number.as_ref()) {
            return Err(self.wrong_type());
        }
        if let Some(exact) = &number {
            self.fits_column(exact, false)?;
        }
        let checks = &self.rule.checks;
        let text = if checks.reads_text() { self.field.string(self.text) } else { None };
        let checked =
            Checked { kind: self.field.kind, number: number.as_ref(), text: text.as_deref() };
        self.keywords(&checked)?;
        match &self.rule.reference {
            Some(_) => self.by_reference(&parse_value(self.raw())?),
            None => Ok(()),
        }
    }

    /// True where the kind and the length alone say that it holds.
    fn is_plain(&self) -> bool {
        let (rule, kind) = (self.rule, self.field.kind);
        if rule.reference.is_some() {
            return false;
        }
        match kind {
            Kind::String { .. } => rule.judged == ColumnType::Text && !rule.checks.reads_text(),
            Kind::Integer => {
                // Fifteen digits fit into every number column.
                matches!(rule.judged, ColumnType::I64 | ColumnType::F64)
                    && !rule.checks.reads_numbers()
                    && self.raw().len() <= 15
            }
            _ => false,
        }
    }

    fn wrong_type(&self) -> Fault {
        let must = self.rule.checks.types.map(super::check::Types::names).unwrap_or_default();
        let is = self.field.kind.name();
        Fault::new(Code::TypeMismatch, format!("is {is}, must be {must}"))
    }

    /// The number it is, where somebody will look at it.
    fn number(&self) -> Result<Option<Exact>, Fault> {
        let rule = self.rule;
        let looked_at = match self.field.kind {
            Kind::Integer => {
                matches!(rule.judged, ColumnType::I64 | ColumnType::F64)
                    || rule.checks.reads_numbers()
            }
            Kind::Number => rule.checks.types.is_some() || rule.checks.reads_numbers(),
            _ => false,
        };
        if !looked_at || !rule.checks.types.is_none_or(super::check::Types::has_numbers) {
            return Ok(None);
        }
        exact(self.raw()).map(Some)
    }

    fn fits_column(&self, exact: &Exact, converted: bool) -> Result<(), Fault> {
        match self.rule.judged {
            ColumnType::I64 if converted && !exact.is_integer() => Err(Fault::new(
                Code::PrecisionLoss,
                "is no whole number in the unit of its column, which holds integers",
            )),
            ColumnType::I64 => exact.to_i64().map(drop).ok_or_else(|| {
                Fault::new(Code::NumberOutOfRange, "is no integer of 64 bits with a sign")
            }),
            ColumnType::F64 => double(exact).map(drop),
            ColumnType::Bool | ColumnType::Text | ColumnType::Json => Ok(()),
        }
    }

    fn keywords(&self, checked: &Checked<'_>) -> Result<(), Fault> {
        match self.rule.checks.broken(checked) {
            Some(broken) => Err(Fault::new(Code::SchemaViolation, broken)),
            None => Ok(()),
        }
    }

    fn by_reference(&self, value: &Value) -> Result<(), Fault> {
        let Some(validator) = &self.rule.reference else { return Ok(()) };
        validator.validate(value).map_err(|error| reference_fault(&error))
    }

    /// The value in its column's unit, where it came in another spelling than a plain number.
    pub(super) fn converted(&self, tools: &mut Tools<'_>) -> Result<Option<Exact>, Fault> {
        let Some(unit) = &self.rule.unit else { return Ok(None) };
        let kind = self.field.kind;
        if let Some(alias) = self.alias {
            return match (kind, unit.aliases.get(alias)) {
                (Kind::Null, _) | (_, None) => Ok(None),
                (Kind::Integer | Kind::Number, Some((_, conversion))) => {
                    Ok(Some(conversion.apply(&exact(self.raw())?)))
                }
                _ => {
                    let message = format!("is {}, must be a number", kind.name());
                    Err(Fault::new(Code::TypeMismatch, message))
                }
            };
        }
        match kind {
            Kind::Object => self.read_object(unit, tools).map(Some),
            Kind::String { .. } => self.read_text(unit, tools).map(Some),
            _ => Ok(None),
        }
    }

    fn read_object(&self, unit: &UnitRule, tools: &mut Tools<'_>) -> Result<Exact, Fault> {
        const SHAPE: &str = "an object here has a number \"value\" and a text \"unit\" alone";
        let wide = ScanLimits { depth: usize::MAX, fields: usize::MAX };
        let fault = || Fault::new(Code::TypeMismatch, SHAPE);
        let raw = scan_object(self.raw().as_bytes(), &wide, tools.inner).map_err(|_| fault())?;
        let (mut value, mut code) = (None, None);
        for field in tools.inner.fields() {
            match (&*field.name(raw), field.kind) {
                ("value", Kind::Integer | Kind::Number) => value = Some(field.value(raw)),
                ("unit", Kind::String { .. }) => code = field.string(raw),
                _ => return Err(fault()),
            }
        }
        let (value, code) = value.zip(code).ok_or_else(fault)?;
        self.convert(value, &code, unit, tools.units)
    }

    fn read_text(&self, unit: &UnitRule, tools: &mut Tools<'_>) -> Result<Exact, Fault> {
        let text = self.field.string(self.text).unwrap_or_default();
        let text = text.trim();
        let at = number_end(text);
        let (value, code) = text.split_at_checked(at).unwrap_or_default();
        let code = code.trim_start();
        if value.is_empty() || code.is_empty() {
            let message = "a text here is a number and a unit, such as \"1500 ms\"";
            return Err(Fault::new(Code::TypeMismatch, message));
        }
        self.convert(value, code, unit, tools.units)
    }

    fn convert(
        &self,
        value: &str,
        code: &str,
        unit: &UnitRule,
        units: &mut UnitCache,
    ) -> Result<Exact, Fault> {
        let value = exact(value)?;
        if code == unit.code {
            return Ok(value);
        }
        // What stands in a personal-data field is not repeated, not even as a unit.
        let shown = || match self.rule.rule {
            Some(_) => "the unit".to_owned(),
            None => format!("the unit {:?}", short(code)),
        };
        match units.conversion(code, unit) {
            Ok(conversion) => Ok(conversion.apply(&value)),
            Err(Refused::Unknown(error)) => {
                Err(Fault::new(Code::UnitUnknown, format!("{} {error}", shown())))
            }
            Err(Refused::Mismatch) => {
                let message = format!("{} does not convert to {}", shown(), unit.code);
                Err(Fault::new(Code::UnitMismatch, message))
            }
        }
    }

    fn number_value(&self, exact: &Exact) -> Result<Value, Fault> {
        if let Some(integer) = exact.to_i64() {
            return Ok(Value::from(integer));
        }
        Ok(Number::from_f64(double(exact)?).map_or(Value::Null, Value::Number))
    }

    /// The field as JSON with its unit converted, for the reference.
    pub(super) fn value(&self, tools: &mut Tools<'_>) -> Result<Value, Fault> {
        match self.converted(tools)? {
            Some(exact) => self.number_value(&exact),
            None => parse_value(self.raw()),
        }
    }

    /// What stands in the column.
    pub(super) fn cell(&self, tools: &mut Tools<'_>) -> Result<Cell<'t>, Fault> {
        let (raw, kind) = (self.raw(), self.field.kind);
        if kind == Kind::Null {
            return Ok(Cell::Null);
        }
        if self.rule.replaced() {
            let text = self.field.string(self.text);
            return Ok(Cell::Text(text.unwrap_or(Cow::Borrowed(raw))));
        }
        if let Some(exact) = self.converted(tools)? {
            return self.number_cell(&exact);
        }
        match (self.rule.ty, kind) {
            (ColumnType::Json, _) => Ok(Cell::Json(Cow::Borrowed(raw))),
            (ColumnType::Bool, Kind::True) => Ok(Cell::Bool(true)),
            (ColumnType::Bool, Kind::False) => Ok(Cell::Bool(false)),
            (ColumnType::Text, Kind::String { .. }) => {
                Ok(Cell::Text(self.field.string(self.text).unwrap_or_default()))
            }
            (ColumnType::I64, Kind::Integer) if let Ok(integer) = raw.parse() => {
                Ok(Cell::I64(integer))
            }
            (ColumnType::F64, Kind::Integer | Kind::Number) if let Ok(number) = raw.parse() => {
                Ok(Cell::F64(number))
            }
            (ColumnType::I64, Kind::Integer | Kind::Number) => self.number_cell(&exact(raw)?),
            _ => Err(self.wrong_type()),
        }
    }

    fn number_cell(&self, exact: &Exact) -> Result<Cell<'t>, Fault> {
        self.fits_column(exact, true)?;
        match self.rule.judged {
            ColumnType::I64 => Ok(exact.to_i64().map_or(Cell::Null, Cell::I64)),
            _ => double(exact).map(Cell::F64),
        }
    }
}

fn exact(raw: &str) -> Result<Exact, Fault> {
    Exact::parse(raw).map_err(|beyond| match beyond {
        Beyond::Large => Fault::new(Code::NumberOutOfRange, "is too large for any column"),
        Beyond::Fine => Fault::new(Code::PrecisionLoss, "has more digits than any column holds"),
    })
}

fn double(exact: &Exact) -> Result<f64, Fault> {
    match exact.to_double() {
        Double::Kept(value) => Ok(value),
        Double::Loss => Err(Fault::new(
            Code::PrecisionLoss,
            "has more digits than a 64-bit floating point number holds; send it as text",
        )),
        Double::Range => Err(Fault::new(
            Code::NumberOutOfRange,
            "is too large for a 64-bit floating point number",
        )),
    }
}

/// Where the number that a text begins with ends, in bytes.
fn number_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| {
        let rest = bytes.get(from..).unwrap_or_default();
        from + rest.iter().take_while(|b| b.is_ascii_digit()).count()
    };
    let start = usize::from(matches!(bytes.first(), Some(b'-' | b'+')));
    let mut end = digits(start);
    if end == start {
        return 0;
    }
    if bytes.get(end) == Some(&b'.') && digits(end + 1) > end + 1 {
        end = digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'-' | b'+')));
        let exponent = end + 1 + sign;
        if digits(exponent) > exponent {
            end = digits(exponent);
        }
    }
    end
}

/// A value for the reference, which knows 64-bit numbers only.
fn parse_value(raw: &str) -> Result<Value, Fault> {
    serde_json::from_str(raw).map_err(|error| {
        if error.to_string().contains("out of range") {
            return Fault::new(Code::NumberOutOfRange, "holds a number that is too large");
        }
        Fault::new(Code::SchemaViolation, "is nested too deep to be checked")
    })
}

/// What the reference found, without any value.
pub(super) fn reference_fault(error: &jsonschema::ValidationError<'_>) -> Fault {
    use jsonschema::error::ValidationErrorKind as Found;
    let mut below = error.instance_path().to_string();
    let code = match error.kind() {
        Found::Required { property } => {
            crate::json::push_pointer(&mut below, property.as_str().unwrap_or_default());
            return Fault { code: Code::FieldMissing, below, message: "is missing".into() };
        }
        Found::Type { .. } => Code::TypeMismatch,
        Found::AdditionalProperties { .. } | Found::UnevaluatedProperties { .. } => {
            Code::FieldUnknown
        }
        _ => Code::SchemaViolation,
    };
    let keyword = error.kind().keyword();
    let masked = error.masked().to_string();
    let cut = masked.get(..masked.floor_char_boundary(200)).unwrap_or_default();
    Fault { code, below, message: format!("{cut} ({keyword})").into() }
}
