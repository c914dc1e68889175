//! A stream's labels as text, `{app="shop", level="info"}`, as an object.

use crate::json::quote;

/// The object; `None` where the text is no list of labels.
pub(super) fn object(text: &str) -> Option<String> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut object = String::with_capacity(text.len() + 16);
    object.push('{');
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let name = name.trim();
        if name.is_empty() || name.contains(['"', ',', '`']) {
            return None;
        }
        let (value, after) = value(after.trim_start())?;
        if object.len() != 1 {
            object.push(',');
        }
        quote(name, &mut object);
        object.push(':');
        quote(&value, &mut object);
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if after.is_empty() => after,
            None => return None,
        };
    }
    object.push('}');
    Some(object)
}

/// A value as Go writes text, and what stands behind it.
fn value(text: &str) -> Option<(String, &str)> {
    if let Some(raw) = text.strip_prefix('`') {
        let (value, rest) = raw.split_once('`')?;
        return Some((value.to_owned(), rest));
    }
    let mut rest = text.strip_prefix('"')?;
    let mut bytes = Vec::new();
    loop {
        let at = rest.find(['"', '\\'])?;
        let (plain, from) = rest.split_at(at);
        bytes.extend_from_slice(plain.as_bytes());
        match from.strip_prefix('"') {
            Some(rest) => return Some((String::from_utf8(bytes).ok()?, rest)),
            None => rest = escaped(from.strip_prefix('\\')?, &mut bytes)?,
        }
    }
}

/// What stands behind a backslash.
fn escaped<'a>(text: &'a str, into: &mut Vec<u8>) -> Option<&'a str> {
    let mut chars = text.chars();
    let kind = chars.next()?;
    let plain = match kind {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 11,
        '\\' | '"' | '\'' => kind as u8,
        'x' => return number(chars.as_str(), 2, 16, |n| into.push(n as u8)),
        'u' | 'U' => {
            let mut fits = true;
            let digits = if kind == 'u' { 4 } else { 8 };
            let rest = number(chars.as_str(), digits, 16, |n| match char::from_u32(n) {
                Some(c) => into.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                None => fits = false,
            });
            return rest.filter(|_| fits);
        }
        '0'..='7' => return number(text, 3, 8, |n| into.push(n as u8)),
        _ => return None,
    };
    into.push(plain);
    Some(chars.as_str())
}

/// So many digits, and what stands behind them.
fn number(text: &str, digits: usize, radix: u32, then: impl FnOnce(u32)) -> Option<&str> {
    let (digits, rest) = text.split_at_checked(digits)?;
    // from_str_radix alone would take a sign.
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let number = u32::from_str_radix(digits, radix).ok()?;
    if radix == 8 && 255 < number {
        return None;
    }
    then(number);
    Some(rest)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_are_read_as_go_writes_them() {
        for (text, expected) in [
            ("{}", Some("{}")),
            (r#"{app="shop"}"#, Some(r#"{"app":"shop"}"#)),
            (r#" { a = "x" , b="é" } "#, Some(r#"{"a":"x","b":"é"}"#)),
            (r#"{a="x",}"#, Some(r#"{"a":"x"}"#)),
            (r#"{a="q\"\\\n\t"}"#, Some(r#"{"a":"q\"\\\n\t"}"#)),
            (r#"{a="\x41\101\u00e9\U0001f600"}"#, Some(r#"{"a":"AAé😀"}"#)),
            (r#"{a=`raw "\`}"#, Some(r#"{"a":"raw \"\\"}"#)),
            (r#"{service.name="x}y"}"#, Some(r#"{"service.name":"x}y"}"#)),
            ("", None),
            (r#"{a="x" b="y"}"#, None),
            (r#"{a=x}"#, None),
            (r#"{a="x}"#, None),
            (r#"{="x"}"#, None),
            (r#"{a="\xff"}"#, None),
            (r#"{a="\ud800"}"#, None),
            (r#"{a="\777"}"#, None),
            (r#"{a="\x+1"}"#, None),
            (r#"{a="\"#, None),
        ] {
            assert_eq!(object(text).as_deref(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_value_comes_through(value in ".{0,40}") {
            let mut written = String::new();
            for c in value.chars() {
                match c {
                    '"' | '\\' => written.extend(['\\', c]),
                    '\n' => written.push_str("\\n"),
                    c => written.push(c),
                }
            }
            let read = object(&format!("{{a=\"{written}\"}}")).unwrap();
            let read: serde_json::Value = serde_json::from_str(&read).unwrap();
            prop_assert_eq!(read.get("a").and_then(|a| a.as_str()), Some(value.as_str()));
        }

        #[test]
        fn any_text_is_an_object_or_none(text in "[{}=\",`\\\\a-f0-9ux]{0,30}") {
            if let Some(object) = object(&text) {
                prop_assert!(serde_json::from_str::<&serde_json::value::RawValue>(&object).is_ok());
            }
        }
    }
}
