//! Which files of a lake hold rows of some offsets.

use object_store::path::{Path, PathPart};
use tidegate_event::{EventType, OffsetRange, Partition, TenantId};

use super::{
    inventory::{InventoryError, LakeReader},
    layout::{FileName, Format},
};

/// Which rows are asked for.
pub struct Asked<'a> {
    /// Of which log.
    pub log_id: &'a str,
    /// Which offsets; one stretch of each partition at most.
    pub window: &'a [(Partition, OffsetRange)],
    /// Only these tenants'; empty: all.
    pub tenants: &'a [TenantId],
    /// Only these types; empty: all.
    pub event_types: &'a [EventType],
}

impl Asked<'_> {
    /// The offsets that are asked for of one partition.
    #[must_use]
    pub fn range(&self, partition: Partition) -> Option<OffsetRange> {
        self.window.iter().find(|(of, _)| *of == partition).map(|(_, range)| *range)
    }

    fn takes(&self, name: &FileName) -> bool {
        let overlaps = |range: OffsetRange| name.first < range.to() && range.from() <= name.last;
        name.log_id == self.log_id
            && self.range(name.partition).is_some_and(overlaps)
            && (self.tenants.is_empty() || self.tenants.contains(&name.lane.tenant))
            && (self.event_types.is_empty() || self.event_types.contains(&name.lane.event_type))
    }
}

/// A file that holds such rows, and maybe others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldFile {
    /// Where it lies.
    pub path: Path,
    /// What its name says.
    pub name: FileName,
    /// How its rows are written.
    pub format: Format,
    /// Its size.
    pub bytes: u64,
    /// What the store calls this content of it: changes when it is written again.
    pub tag: String,
}

impl LakeReader {
    /// The files that hold rows that are asked for, in the order of tenant, type, partition and first
    /// offset.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn held(&self, asked: &Asked<'_>) -> Result<Vec<HeldFile>, InventoryError> {
        self.steadily(|| self.list_held(asked))
    }

    fn list_held(&self, asked: &Asked<'_>) -> Result<Vec<HeldFile>, InventoryError> {
        let (mut files, mut joining) = (Vec::new(), None);
        for folder in self.folders(asked) {
            self.store.scan_facts(&folder, &mut |facts| {
                if FileName::is_blocker(&facts.location) {
                    joining = Some(facts.location);
                    return;
                }
                let parsed = FileName::parse(self.store.root(), &facts.location);
                let Some((name, format)) = parsed.filter(|(name, _)| asked.takes(name)) else {
                    return;
                };
                let tag = facts
                    .e_tag
                    .unwrap_or_else(|| facts.last_modified.timestamp_micros().to_string());
                files.push(HeldFile { path: facts.location, name, format, bytes: facts.size, tag });
            })?;
        }
        if let Some(path) = joining {
            return Err(InventoryError::Joining { path: path.to_string() });
        }
        let key = |file: &HeldFile| {
            let name = &file.name;
            let lane = &name.lane;
            (lane.tenant.clone(), lane.event_type.clone(), name.partition, name.first, lane.dead)
        };
        files.sort_by_cached_key(|file| (key(file), file.path.to_string()));
        Ok(files)
    }

    /// Below which all of them lie.
    fn folders(&self, asked: &Asked<'_>) -> Vec<Path> {
        let mut folders = Vec::new();
        for area in ["events", "dead_letters"] {
            let area: Path = self.store.root().parts().chain([PathPart::from(area)]).collect();
            if asked.tenants.is_empty() {
                folders.push(area);
                continue;
            }
            for tenant in asked.tenants {
                let tenant = area.clone().join(format!("tenant={tenant}"));
                match asked.event_types {
                    [] => folders.push(tenant),
                    types => folders.extend(
                        types.iter().map(|name| tenant.clone().join(format!("event_type={name}"))),
                    ),
                }
            }
        }
        folders
    }
}
