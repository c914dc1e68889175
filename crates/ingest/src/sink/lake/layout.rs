//! Where a lake's files lie: names from rows, and facts from names.

use object_store::path::{Path, PathPart};
use tidegate_event::{EventType, Offset, Partition, ReceivedAt, TenantId};

use super::super::rows::Lane;
use crate::replay::PlanId;

/// How the rows of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// One JSON object a line.
    Jsonl,
    /// The same, gzip.
    JsonlGz,
    /// The same, Zstandard.
    JsonlZst,
}

impl Format {
    /// Every format with its name, which is also how its files end.
    pub const ALL: &'static [(&'static str, Format)] = &[
        ("parquet", Self::Parquet),
        ("jsonl", Self::Jsonl),
        ("jsonl.gz", Self::JsonlGz),
        ("jsonl.zst", Self::JsonlZst),
    ];

    /// The format with this name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, format)| *format)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }
}

/// In the name of what stands in a folder whose files are being joined.
const JOINING: &str = "joining";
/// In the name of what stands in a folder whose rows are being exchanged for a shadow's.
const PROMOTING: &str = "promoting";

/// What a file's name says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileName {
    /// Whose rows, of which type, dead letters or not.
    pub lane: Lane,
    /// Hours since 1970-01-01T00:00Z at which they were received.
    pub hour: i64,
    /// Which log.
    pub log_id: String,
    /// Which partition of it.
    pub partition: Partition,
    /// The offset of its first row.
    pub first: Offset,
    /// The offset of its last row (in the file).
    pub last: Offset,
    /// The replay by whose promotion it came; `None` for what a sink wrote or joined.
    pub plan: Option<PlanId>,
}

impl FileName {
    /// Its place under the sink's root.
    #[must_use]
    pub fn path(&self, root: &Path, format: Format) -> Path {
        let (date, hour) = folders(self.hour);
        let plan = self.plan.as_ref().map(|plan| format!("-{plan}")).unwrap_or_default();
        let file = format!(
            "{}-{}-{}-{}{plan}.{}",
            self.log_id,
            self.partition,
            self.first,
            self.last,
            format.name()
        );
        let area = if self.lane.dead { "dead_letters" } else { "events" };
        let own = [
            area.to_owned(),
            format!("tenant={}", self.lane.tenant),
            format!("event_type={}", self.lane.event_type),
            date,
            hour,
            file,
        ];
        root.parts().chain(own.iter().map(|part| PathPart::from(part.as_str()))).collect()
    }

    /// The name, in the same folder, of what no reader can read while files of this log and partition
    /// are joined there. It is no file of a lake.
    #[must_use]
    pub fn blocker(&self, root: &Path, format: Format) -> Path {
        let name = format!("{}-{}.{JOINING}.{}", self.log_id, self.partition, format.name());
        self.beside(root, format, &name)
    }

    /// The same while a promotion exchanges rows there.
    #[must_use]
    pub fn promoting(&self, root: &Path, format: Format, plan: &PlanId) -> Path {
        let name = format!("{}-{plan}.{PROMOTING}.{}", self.log_id, format.name());
        self.beside(root, format, &name)
    }

    fn beside(&self, root: &Path, format: Format, name: &str) -> Path {
        let path = self.path(root, format);
        let parts: Vec<_> = path.parts().collect();
        let folder = parts.split_last().map(|(_, folder)| folder).unwrap_or_default();
        folder.iter().cloned().chain([PathPart::from(name)]).collect()
    }

    /// True for a place that [`FileName::blocker`] or [`FileName::promoting`] gives.
    #[must_use]
    pub fn is_blocker(path: &Path) -> bool {
        let mut name = path.filename().unwrap_or_default().split('.');
        name.nth(1).is_some_and(|word| word == JOINING || word == PROMOTING)
    }

    /// Reads a place under the sink's root; `None` for what is no file of a lake.
    #[must_use]
    pub fn parse(root: &Path, path: &Path) -> Option<(Self, Format)> {
        let parts: Vec<_> = path.prefix_match(root)?.map(|p| p.as_ref().to_owned()).collect();
        let [area, tenant, event_type, date, hour, file] = parts.as_slice() else { return None };
        let dead = match area.as_str() {
            "events" => false,
            "dead_letters" => true,
            _ => return None,
        };
        let lane = Lane {
            tenant: TenantId::new(tenant.strip_prefix("tenant=")?).ok()?,
            event_type: EventType::new(event_type.strip_prefix("event_type=")?).ok()?,
            dead,
        };
        let (date, hour) = (date.strip_prefix("date=")?, hour.strip_prefix("hour=")?);
        let begin: jiff::Timestamp = format!("{date}T{hour}:00:00Z").parse().ok()?;
        let hour = ReceivedAt(begin.as_microsecond()).hour();
        let (stem, ending) = file.split_once('.')?;
        let format = Format::from_name(ending)?;
        let mut fields = stem.split('-');
        let (log_id, partition) = (fields.next()?, fields.next()?);
        let (first, last) = (fields.next()?, fields.next()?);
        let plan = match fields.next() {
            Some(plan) => Some(plan.parse().ok()?),
            None => None,
        };
        if fields.next().is_some() {
            return None;
        }
        let name = Self {
            lane,
            hour,
            log_id: log_id.to_owned(),
            partition: Partition(partition.parse().ok()?),
            first: Offset(first.parse().ok()?),
            last: Offset(last.parse().ok()?),
            plan,
        };
        // Digits with a sign or zeros before them would be another spelling of the same file.
        (name.path(root, format) == *path).then_some((name, format))
    }
}

/// `date=YYYY-MM-DD` and `hour=HH` of hours since 1970.
fn folders(hour: i64) -> (String, String) {
    let time = jiff::Timestamp::from_second(hour.saturating_mul(3_600)).unwrap_or_default();
    let time = time.to_zoned(jiff::tz::TimeZone::UTC);
    (time.strftime("date=%Y-%m-%d").to_string(), time.strftime("hour=%H").to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(tenant: &str, event_type: &str, dead: bool, hour: i64, first: u64) -> FileName {
        FileName {
            lane: Lane {
                tenant: TenantId::new(tenant).unwrap(),
                event_type: EventType::new(event_type).unwrap(),
                dead,
            },
            hour,
            log_id: "abcd1234".to_owned(),
            partition: Partition(3),
            first: Offset(first),
            last: Offset(first + 9),
            plan: None,
        }
    }

    #[test]
    fn a_file_lies_where_the_design_says() {
        let name = name("acme", "Page.View-1", false, 490_000, 10);
        let path = name.path(&Path::from("lake"), Format::Parquet);
        assert_eq!(
            path.as_ref(),
            "lake/events/tenant=acme/event_type=Page.View-1/date=2025-11-24/hour=16/\
             abcd1234-3-10-19.parquet"
        );
    }

    #[test]
    fn a_promoted_file_bears_its_plans_id_and_another_blocker() {
        let plan: PlanId = "0123456789abcdef".parse().unwrap();
        let plain = name("acme", "view", false, 490_000, 10);
        let promoted = FileName { plan: Some(plan.clone()), ..plain.clone() };
        let folder = "events/tenant=acme/event_type=view/date=2025-11-24/hour=16";
        let root = Path::default();
        let path = promoted.path(&root, Format::Parquet);
        assert_eq!(path.as_ref(), format!("{folder}/abcd1234-3-10-19-0123456789abcdef.parquet"));
        assert_eq!(FileName::parse(&root, &path), Some((promoted, Format::Parquet)));
        let blocker = plain.promoting(&root, Format::Jsonl, &plan);
        let name = format!("{folder}/abcd1234-0123456789abcdef.promoting.jsonl");
        assert_eq!(blocker.as_ref(), name);
        assert!(FileName::is_blocker(&blocker) && FileName::parse(&root, &blocker).is_none());
    }

    #[test]
    fn a_blocker_ends_as_its_folders_files_do_and_is_none_of_them() {
        let name = name("acme", "view", true, 490_000, 10);
        for (ending, format) in Format::ALL {
            let path = name.blocker(&Path::from("lake"), *format);
            assert_eq!(
                path.as_ref(),
                format!(
                    "lake/dead_letters/tenant=acme/event_type=view/date=2025-11-24/hour=16/\
                     abcd1234-3.joining.{ending}"
                )
            );
            assert!(FileName::is_blocker(&path));
            assert_eq!(FileName::parse(&Path::from("lake"), &path), None);
            assert!(!FileName::is_blocker(&name.path(&Path::from("lake"), *format)));
        }
    }

    #[test]
    fn what_is_no_file_of_a_lake_is_passed_over() {
        for path in [
            "events/tenant=a/event_type=b/date=2025-01-01/hour=00/x.tmp",
            "events/tenant=a/event_type=b/date=2025-01-01/hour=00/a-1-2.parquet",
            "events/tenant=A/event_type=b/date=2025-01-01/hour=00/a-1-2-3.parquet",
            "staging/a-1-2-3.parquet",
            "events/tenant=a/event_type=b/date=2025-01-01/hour=00/a-0-1-2-3.parquet",
            "events/tenant=a/event_type=b/date=2025-01-01/hour=00/a-0-1-2-0123456789ABCDEF.parquet",
            "events/tenant=a/event_type=b/date=2025-01-01/hour=00/abcd1234-0-01-2.parquet",
            "events/tenant=a/event_type=b/date=2025-01-01/hour=00/abcd1234-0-+1-2.parquet",
            "shadow/p/events/tenant=a/event_type=b/date=2025-01-01/hour=00/a-1-2-3.parquet",
        ] {
            assert_eq!(FileName::parse(&Path::default(), &Path::from(path)), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn names_read_back_and_never_collide(
            a in ("[a-z][a-z0-9_-]{0,9}", "[A-Za-z][A-Za-z0-9_-]{0,9}", any::<bool>(), 0i64..900_000, any::<u32>()),
            b in ("[a-z][a-z0-9_-]{0,9}", "[A-Za-z][A-Za-z0-9_-]{0,9}", any::<bool>(), 0i64..900_000, any::<u32>()),
            format in 0usize..4,
            promoted in any::<bool>(),
        ) {
            let root = Path::from("some/root");
            let format = Format::ALL.get(format).unwrap().1;
            let mut x = name(&a.0, &a.1, a.2, a.3, a.4.into());
            x.plan = promoted.then(|| "0123456789abcdef".parse().unwrap());
            let y = name(&b.0, &b.1, b.2, b.3, b.4.into());
            let path = x.path(&root, format);
            prop_assert_eq!(FileName::parse(&root, &path), Some((x.clone(), format)));
            prop_assert_eq!(x == y, path == y.path(&root, format));
        }
    }
}
