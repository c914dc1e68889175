//! Where a window begins and ends, as operators write it.
//!
//! ```text
//! --from/--to            partition:offset, a list of those, a bare offset, earliest, latest, deploy:TAG
//! --from-time/--to-time  RFC 3339 with its zone
//! ```

use std::{collections::BTreeMap, fmt, str::FromStr};

use tidegate_event::{Offset, Partition, ReceivedAt};

use super::marks::MarkName;

/// Which end of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first offset in it.
    From,
    /// The first offset behind it.
    To,
}

impl Side {
    /// Its option for places.
    #[must_use]
    pub fn option(self) -> &'static str {
        match self {
            Self::From => "--from",
            Self::To => "--to",
        }
    }

    /// Its option for times.
    #[must_use]
    pub fn time_option(self) -> &'static str {
        match self {
            Self::From => "--from-time",
            Self::To => "--to-time",
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::From => "begins",
            Self::To => "ends",
        }
    }
}

/// One end of a window, before it is known which offsets that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An offset of each of some partitions.
    Places(BTreeMap<Partition, Offset>),
    /// An offset, of the one partition that is meant.
    Offset(Offset),
    /// What is still there.
    Earliest,
    /// The end of now.
    Latest,
    /// What was noted under a name.
    Mark(MarkName),
    /// The first event received then or later.
    Time(When),
}

/// A moment, and how it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct When {
    /// The moment, rounded up to what the log can tell.
    pub at: ReceivedAt,
    /// As it was written.
    pub text: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Places(places) => f.write_str(&list(places)),
            Self::Offset(offset) => offset.fmt(f),
            Self::Earliest => f.write_str("earliest"),
            Self::Latest => f.write_str("latest"),
            Self::Mark(name) => name.fmt(f),
            Self::Time(when) => f.write_str(&when.text),
        }
    }
}

impl Address {
    /// With its option, as it is written on a command line.
    #[must_use]
    pub fn spelled(&self, side: Side) -> String {
        match self {
            Self::Time(_) => format!("{} {self}", side.time_option()),
            _ => format!("{} {self}", side.option()),
        }
    }
}

/// Offsets as a list: `0:5,1:7`.
#[must_use]
pub fn list(places: &BTreeMap<Partition, Offset>) -> String {
    let each = places.iter().map(|(partition, offset)| format!("{partition}:{offset}"));
    each.collect::<Vec<_>>().join(",")
}

/// Why a text is no end of a window. Each says what would be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing was said.
    #[error(
        "say where the window {0}: {1} 0:1234 (partition:offset), {1} earliest, {1} latest, {1} deploy:TAG or {2} 2026-11-21T10:00Z"
    )]
    Missing(&'static str, &'static str, &'static str),
    /// Two things were said.
    #[error("{0} and {1} are two ends: leave one away")]
    Twice(String, String),
    /// It is none of what an end may be.
    #[error(
        "{0} {1:?} is no address: write {0} 0:1234 (partition:offset; several: 0:1234,1:987), {0} earliest, {0} latest or {0} deploy:TAG"
    )]
    Unknown(&'static str, String),
    /// It is one, written otherwise.
    #[error("{0} {1:?} is {2}: write {3}")]
    Otherwise(&'static str, String, &'static str, String),
    /// Several offsets that do not say of which partitions.
    #[error(
        "{0} {1:?} does not say which partition each offset is of: write partition:offset for each, such as {0} {2}"
    )]
    Bare(&'static str, String, String),
    /// One partition, two offsets.
    #[error("{0} {1:?} names partition {2} twice: write it once, such as {0} {3}")]
    Double(&'static str, String, Partition, String),
    /// A list of unlike things.
    #[error(
        "{0} {1:?} is a mixture: {2} stands alone; write {0} {2}, or partition:offset for each partition"
    )]
    Mixture(&'static str, String, String),
    /// A partition beside places that name theirs.
    #[error("{0} {1} names its partition: leave --partition {2} away")]
    Partition(&'static str, String, u32),
    /// A time of nobody knows where.
    #[error(
        "{0} {1:?} has no zone: write {0} {2}Z for UTC, or with its offset, such as {0} {2}+01:00"
    )]
    NoZone(&'static str, String, String),
    /// No time.
    #[error("{0} {1:?} is no time: write it as in RFC 3339, with its zone: {0} 2026-11-21T10:00Z")]
    NoTime(&'static str, String),
}

/// Both ends as they were written, each in one of two options.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written<'a> {
    /// `--from`
    pub from: Option<&'a str>,
    /// `--to`
    pub to: Option<&'a str>,
    /// `--from-time`
    pub from_time: Option<&'a str>,
    /// `--to-time`
    pub to_time: Option<&'a str>,
    /// `--partition`
    pub partition: Option<u32>,
}

impl Written<'_> {
    /// Both ends.
    ///
    /// # Errors
    /// [`AddressError`], of each end that has one.
    pub fn read(&self) -> Result<(Address, Address), Vec<AddressError>> {
        let from = self.end(Side::From, self.from, self.from_time);
        let to = self.end(Side::To, self.to, self.to_time);
        match (from, to) {
            (Ok(from), Ok(to)) => Ok((from, to)),
            (from, to) => Err(from.err().into_iter().chain(to.err()).collect()),
        }
    }

    fn end(
        &self,
        side: Side,
        place: Option<&str>,
        time: Option<&str>,
    ) -> Result<Address, AddressError> {
        let (option, time_option) = (side.option(), side.time_option());
        let address = match (place, time) {
            (None, None) => return Err(AddressError::Missing(side.verb(), option, time_option)),
            (Some(place), Some(time)) => {
                let (place, time) = (format!("{option} {place}"), format!("{time_option} {time}"));
                return Err(AddressError::Twice(place, time));
            }
            (Some(place), None) => parse(side, place)?,
            (None, Some(time)) => parse_time(side, time)?,
        };
        match (&address, self.partition) {
            (Address::Places(places), Some(partition)) => {
                Err(AddressError::Partition(option, list(places), partition))
            }
            _ => Ok(address),
        }
    }
}

/// A number as it may stand in an address.
fn number<T: FromStr>(text: &str) -> Option<T> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok())?
}

fn place(text: &str) -> Option<(Partition, Offset)> {
    let (partition, offset) = text.split_once(':')?;
    Some((Partition(number(partition)?), Offset(number(offset)?)))
}

/// `1,234` and `1_234`: digits in groups, as people and `ingestctl offsets` write them.
fn grouped(text: &str) -> Option<Offset> {
    for separator in [',', '_'] {
        let mut groups = text.split(separator);
        let first = groups.next()?;
        let rest: Vec<&str> = groups.collect();
        let fits = (1..=3).contains(&first.len()) && rest.iter().all(|group| group.len() == 3);
        if fits && !rest.is_empty() {
            return number(&text.replace(separator, "")).map(Offset);
        }
    }
    None
}

/// Reads what stands behind `--from` or `--to`.
///
/// # Errors
/// [`AddressError`].
pub fn parse(side: Side, text: &str) -> Result<Address, AddressError> {
    let option = side.option();
    let text = text.trim();
    let otherwise =
        |what, spelled: String| AddressError::Otherwise(option, text.to_owned(), what, spelled);
    match text {
        "earliest" => return Ok(Address::Earliest),
        "latest" => return Ok(Address::Latest),
        _ => {}
    }
    if let Ok(name) = text.parse::<MarkName>() {
        return Ok(Address::Mark(name));
    }
    if let Some(offset) = number(text) {
        return Ok(Address::Offset(Offset(offset)));
    }
    if let Some(offset) = grouped(text) {
        return Err(otherwise("an offset in groups of digits", format!("{option} {offset}")));
    }
    if is_like_a_time(text) {
        let time = match parse_time(side, text) {
            Ok(_) => format!("{} {text}", side.time_option()),
            Err(error) => return Err(error),
        };
        return Err(otherwise("a time", time));
    }
    let lower = text.to_ascii_lowercase();
    if matches!(&*lower, "earliest" | "latest") {
        return Err(otherwise("a name in capitals", format!("{option} {lower}")));
    }
    if text.contains('/') && !text.contains(':') {
        let colons = text.replace('/', ":");
        if let Ok(places) = places(option, &colons) {
            return Err(otherwise("written with slashes", format!("{option} {}", list(&places))));
        }
    }
    places(option, text).map(Address::Places)
}

fn places(option: &'static str, text: &str) -> Result<BTreeMap<Partition, Offset>, AddressError> {
    let owned = || text.to_owned();
    let items: Vec<&str> = text.split(',').map(str::trim).collect();
    let named =
        |item: &&&str| matches!(**item, "earliest" | "latest") || item.parse::<MarkName>().is_ok();
    if 1 < items.len()
        && let Some(name) = items.iter().find(named)
    {
        return Err(AddressError::Mixture(option, owned(), (*name).to_owned()));
    }
    if items.iter().any(|item| number::<u64>(item).is_some()) {
        // Each bare offset is taken for that of the next partition nobody named.
        let mut spelled = BTreeMap::new();
        for (at, item) in (0..).zip(&items) {
            let (partition, offset) = match (place(item), number(item)) {
                (Some(place), _) => place,
                (None, Some(offset)) => (Partition(at), Offset(offset)),
                (None, None) => return Err(AddressError::Unknown(option, owned())),
            };
            spelled.insert(partition, offset);
        }
        return Err(AddressError::Bare(option, owned(), list(&spelled)));
    }
    let mut places = BTreeMap::new();
    let mut double = None;
    for item in items {
        let Some((partition, offset)) = place(item) else {
            return Err(AddressError::Unknown(option, owned()));
        };
        if places.insert(partition, offset).is_some() {
            double = double.or(Some(partition));
        }
    }
    match double {
        None => Ok(places),
        Some(partition) => Err(AddressError::Double(option, owned(), partition, list(&places))),
    }
}

fn is_like_a_time(text: &str) -> bool {
    let year = text.get(..4).is_some_and(|year| year.bytes().all(|b| b.is_ascii_digit()));
    year && text.get(4..5) == Some("-")
}

/// Reads what stands behind `--from-time` or `--to-time`.
///
/// # Errors
/// [`AddressError`].
pub fn parse_time(side: Side, text: &str) -> Result<Address, AddressError> {
    let text = text.trim();
    let option = side.time_option();
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        let micros = time.as_nanosecond().div_euclid(1_000)
            + i128::from(time.as_nanosecond().rem_euclid(1_000) != 0);
        let at =
            i64::try_from(micros).map_err(|_| AddressError::NoTime(option, text.to_owned()))?;
        return Ok(Address::Time(When { at: ReceivedAt(at), text: text.to_owned() }));
    }
    if number::<u64>(text).is_some() || place(text).is_some() {
        let spelled = format!("{} {text}", side.option());
        return Err(AddressError::Otherwise(option, text.to_owned(), "an offset", spelled));
    }
    let civil = || {
        let written = text.parse::<jiff::civil::DateTime>().ok()?;
        let minutes = written.strftime("%Y-%m-%dT%H:%M").to_string();
        let whole = written.second() == 0 && written.subsec_nanosecond() == 0;
        Some(if whole { minutes } else { written.to_string() })
    };
    Err(match civil() {
        Some(time) => AddressError::NoZone(option, text.to_owned(), time),
        None => AddressError::NoTime(option, text.to_owned()),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(text: &str) -> String {
        parse(Side::From, text).unwrap_err().to_string()
    }

    #[test]
    fn each_form_is_read() {
        let mark: MarkName = "deploy:v1.2".parse().unwrap();
        let places = BTreeMap::from([(Partition(0), Offset(5)), (Partition(3), Offset(u64::MAX))]);
        for (text, address) in [
            ("0:5, 3:18446744073709551615", Address::Places(places)),
            ("17", Address::Offset(Offset(17))),
            (" earliest ", Address::Earliest),
            ("latest", Address::Latest),
            ("deploy:v1.2", Address::Mark(mark)),
        ] {
            assert_eq!(parse(Side::To, text).unwrap(), address, "{text}");
        }
        for text in ["2026-11-21T10:00Z", "2026-11-21T11:00:00+01:00", "2026-11-21 10:00:00Z"] {
            let Address::Time(when) = parse_time(Side::From, text).unwrap() else {
                panic!("{text}")
            };
            assert_eq!(when.at, ReceivedAt(1_795_255_200_000_000), "{text}");
        }
        let Address::Time(when) = parse_time(Side::To, "2026-11-21T10:00:00.0000001Z").unwrap()
        else {
            panic!()
        };
        assert_eq!(when.at, ReceivedAt(1_795_255_200_000_001), "rounded up");
    }

    #[test]
    fn what_is_none_is_refused_with_what_would_be_right() {
        for (text, right) in [
            ("1,234", "write --from 1234"),
            ("1_234_567", "write --from 1234567"),
            ("5,7", "such as --from 0:5,1:7"),
            ("0:5,7", "such as --from 0:5,1:7"),
            ("0:5,0:7", "such as --from 0:7"),
            ("0:5,latest", "write --from latest, or partition:offset"),
            ("0/17", "write --from 0:17"),
            ("0/17,1/3", "write --from 0:17,1:3"),
            ("Latest", "write --from latest"),
            ("2026-11-21T10:00Z", "write --from-time 2026-11-21T10:00Z"),
            ("2026-11-21T10:00", "write --from-time 2026-11-21T10:00Z for UTC"),
            ("v4", "--from deploy:TAG"),
            ("deploy:", "--from deploy:TAG"),
            ("", "--from earliest"),
            ("-1", "--from 0:1234"),
            ("+5", "--from 0:1234"),
            ("0:", "--from 0:1234"),
            ("0:5:6", "--from 0:1234"),
            ("4294967296:1", "--from 0:1234"),
            ("0:18446744073709551616", "--from 0:1234"),
        ] {
            assert!(said(text).contains(right), "{text:?}: {}", said(text));
        }
        let time = |text: &str| parse_time(Side::To, text).unwrap_err().to_string();
        for (text, right) in [
            ("2026-11-21T10:00", "write --to-time 2026-11-21T10:00Z for UTC"),
            ("2026-11-21", "write --to-time 2026-11-21T00:00Z for UTC"),
            ("2026-11-21T10:00:07", "write --to-time 2026-11-21T10:00:07Z for UTC"),
            ("1234", "write --to 1234"),
            ("0:1234", "write --to 0:1234"),
            ("yesterday", "--to-time 2026-11-21T10:00Z"),
            ("2026-13-21T10:00Z", "--to-time 2026-11-21T10:00Z"),
        ] {
            assert!(time(text).contains(right), "{text:?}: {}", time(text));
        }
    }

    #[test]
    fn each_end_is_said_once() {
        let both =
            Written { from: Some("5"), from_time: Some("2026-11-21T10:00Z"), ..Written::default() };
        let said: Vec<_> = both.read().unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(
            said[0],
            "--from 5 and --from-time 2026-11-21T10:00Z are two ends: leave one away"
        );
        assert!(said[1].starts_with("say where the window ends: --to 0:1234"), "{said:?}");
        let named =
            Written { from: Some("0:5"), to: Some("9"), partition: Some(0), ..Written::default() };
        let said = named.read().unwrap_err();
        assert_eq!(said[0].to_string(), "--from 0:5 names its partition: leave --partition 0 away");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            places in prop::collection::btree_map(any::<u32>(), any::<u64>(), 1..6),
        ) {
            let places: BTreeMap<_, _> =
                places.into_iter().map(|(p, o)| (Partition(p), Offset(o))).collect();
            let address = Address::Places(places);
            prop_assert_eq!(parse(Side::From, &address.to_string()).unwrap(), address);
        }

        #[test]
        fn a_time_is_read_back_whatever_its_offset(micros in 0..4_000_000_000_000_000i64, hours in -12..13i8) {
            let zone = jiff::tz::TimeZone::fixed(jiff::tz::offset(hours));
            let time = jiff::Timestamp::from_microsecond(micros).unwrap().to_zoned(zone);
            let text = time.strftime("%Y-%m-%dT%H:%M:%S%.f%:z").to_string();
            let Address::Time(when) = parse_time(Side::To, &text).unwrap() else { panic!("{text}") };
            prop_assert_eq!(when.at, ReceivedAt(micros));
        }

        #[test]
        fn no_text_is_taken_for_what_it_is_not(text in "[0-9a-z:,/_+\\-TZ. ]{0,24}") {
            match parse(Side::From, &text) {
                // What is taken says again what was written.
                Ok(address) => {
                    let again = parse(Side::From, &address.to_string()).unwrap();
                    prop_assert_eq!(&again, &address);
                    let digits = |text: &str| text.bytes().filter(u8::is_ascii_digit).collect::<Vec<_>>();
                    if !text.contains("00") && !text.contains(":0") && !text.starts_with('0') && !text.contains(",0") && !text.contains(" 0") {
                        prop_assert_eq!(digits(&text), digits(&address.to_string()));
                    }
                }
                Err(error) => prop_assert!(error.to_string().contains("--from"), "{}", error),
            }
        }
    }
}
