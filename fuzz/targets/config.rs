//! The configuration: text and environment; what is taken can be written and read again the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::input::Input;
use tidegate_ingest::config::{Config, Size, Span, check, parse};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    match input.u8() % 3 {
        0 => file(input),
        1 => size(&input.text(0)),
        _ => span(&input.text(0)),
    }
});

/// Text up to a NUL, then a variable a line.
fn file(mut input: Input<'_>) {
    let text = input.text(0);
    let rest = String::from_utf8_lossy(input.0).into_owned();
    let variables = || {
        rest.lines().take(8).filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            Some((format!("TIDEGATE_{name}"), value.to_owned()))
        })
    };
    let read = || parse("fuzz.toml", &text, variables());
    let config = match read() {
        Ok(config) => config,
        Err(error) => {
            assert_eq!(read().unwrap_err().to_string(), error.to_string());
            return;
        }
    };
    let faults = check(&config);
    assert_eq!(check(&config), faults);
    let written = toml::to_string(&config).expect("a configuration that was read can be written");
    let again: Config = parse("again.toml", &written, std::iter::empty())
        .unwrap_or_else(|error| panic!("{error}\n{written}"));
    assert_eq!(again, config, "{written}");
}

fn size(text: &str) {
    let Ok(size) = text.parse::<Size>() else { return };
    assert_eq!(size.to_string().parse(), Ok(size), "{text:?}");
}

fn span(text: &str) {
    let Ok(span) = text.parse::<Span>() else { return };
    assert_eq!(span.to_string().parse(), Ok(span), "{text:?} {span}");
}
