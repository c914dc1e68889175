//! What an exception of the server's means for the rows of an insert.

use super::client::Fault;

/// Exceptions that blame values: some rows of the block can never be inserted. Every other one is the
/// server's or the table's trouble, in which all rows wait.
const VALUES: &[(u32, &str)] = &[
    (6, "CANNOT_PARSE_TEXT"),
    (26, "CANNOT_PARSE_QUOTED_STRING"),
    (27, "CANNOT_PARSE_INPUT_ASSERTION_FAILED"),
    (38, "CANNOT_PARSE_DATE"),
    (41, "CANNOT_PARSE_DATETIME"),
    (69, "ARGUMENT_OUT_OF_BOUND"),
    (72, "CANNOT_PARSE_NUMBER"),
    (117, "INCORRECT_DATA"),
    (131, "TOO_LARGE_STRING_SIZE"),
    (153, "ILLEGAL_DIVISION"),
    (321, "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE"),
    (349, "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN"),
    (376, "CANNOT_PARSE_UUID"),
    (395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
    (407, "DECIMAL_OVERFLOW"),
    (441, "CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING"),
    (469, "VIOLATED_CONSTRAINT"),
    (675, "CANNOT_PARSE_IPV4"),
    (676, "CANNOT_PARSE_IPV6"),
    (691, "UNKNOWN_ELEMENT_OF_ENUM"),
];
/// What is kept of the server's words beside a row that it refuses.
const CAUSE_CHARS: usize = 300;

/// Why the server blames some rows, if it does.
pub fn blames_rows(fault: &Fault) -> Option<String> {
    match fault {
        Fault::Refused { code, message } if VALUES.iter().any(|(c, _)| c == code) => {
            Some(message.chars().take(CAUSE_CHARS).collect())
        }
        Fault::Refused { .. } | Fault::Unknown(_) | Fault::Long(_) => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_values_are_blamed_on_rows() {
        let said = |code| Fault::Refused { code, message: "é".repeat(1_000) };
        assert_eq!(blames_rows(&said(469)).unwrap().chars().count(), CAUSE_CHARS);
        for code in [60, 81, 16, 241, 243, 252, 516, 159, 216, 53] {
            assert_eq!(blames_rows(&said(code)), None, "{code}");
        }
        assert_eq!(blames_rows(&Fault::Unknown("cut".to_owned())), None);
        assert!(VALUES.is_sorted_by_key(|(code, _)| *code));
    }
}
