//! Which files of a lake go, which are cut, which come: found by the offsets in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use object_store::path::Path;
use sha2::{Digest as _, Sha256};
use tidegate_event::{Offset, Partition};

use super::super::{
    super::{
        exchange::{ExchangeError, Marked, Order, Survey},
        rows::Lane,
    },
    Lake,
    inventory::LakeReader,
    layout::{FileName, Format},
    merge::publish::below,
    place,
};

/// A file, with what its name says.
#[derive(Clone, Debug)]
pub struct Found {
    pub path: Path,
    pub name: FileName,
    pub format: Format,
    pub bytes: u64,
}

/// What there is to be exchanged.
pub struct Look {
    pub survey: Survey,
    /// The offsets that are exchanged.
    pub window: BTreeMap<Partition, Marked>,
    /// Files of live of which all rows go.
    pub whole: Vec<Found>,
    /// Files of live of which some go.
    pub cut: Vec<Found>,
    /// The shadow's files.
    pub come: Vec<Found>,
    /// Where these lie.
    pub shadow: LakeReader,
    /// True where that is below live, by the same client.
    pub is_below: bool,
}

impl Look {
    /// The offsets of a partition that are exchanged.
    pub fn window(&self, partition: Partition) -> Option<&Marked> {
        self.window.get(&partition)
    }
}

/// The files below `folders` (of the root), those of the log in their order.
fn list(
    reader: &LakeReader,
    order: &Order<'_>,
    folders: &[String],
) -> Result<Vec<Found>, ExchangeError> {
    let (store, mut found) = (reader.store(), Vec::new());
    let mut blocked = None;
    for folder in folders {
        let folder = super::at(store.root(), folder);
        store.scan(&folder, &mut |path, bytes| {
            if FileName::is_blocker(&path) {
                blocked = Some(path);
            } else if let Some((name, format)) = FileName::parse(store.root(), &path)
                && name.log_id == order.log_id
            {
                found.push(Found { path, name, format, bytes });
            }
        })?;
    }
    if let Some(path) = blocked {
        return Err(ExchangeError::Failed(format!(
            "{path}: files of this folder are being joined or exchanged; try again in a moment"
        )));
    }
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// The folders of lanes, both of their events and of their dead letters.
fn folders_of(lanes: impl Iterator<Item = Lane>) -> Vec<String> {
    let folder = |lane: Lane| {
        ["events", "dead_letters"]
            .map(|area| format!("{area}/tenant={}/event_type={}", lane.tenant, lane.event_type))
    };
    lanes.flat_map(folder).collect::<BTreeSet<_>>().into_iter().collect()
}

impl Lake {
    /// Looks at live and shadow; changes nothing.
    pub(super) fn look(&self, order: &Order<'_>) -> Result<Look, ExchangeError> {
        let (shadow, is_below) = self.open_shadow(order)?;
        let mut look = Look {
            survey: Survey::default(),
            window: BTreeMap::new(),
            whole: Vec::new(),
            cut: Vec::new(),
            come: Vec::new(),
            shadow,
            is_below,
        };
        let mut lanes = BTreeMap::<Lane, (u64, u64)>::new();
        self.look_at_shadow(order, &mut look, &mut lanes)?;
        let all = lanes.keys().chain(order.lanes).cloned();
        let folders = folders_of(all);
        self.look_at_live(order, &folders, &mut look, &mut lanes)?;
        look.survey.changes.set_lanes(&lanes);
        self.describe(order, &mut look);
        Ok(look)
    }

    fn open_shadow(&self, order: &Order<'_>) -> Result<(LakeReader, bool), ExchangeError> {
        let (url, options) = &self.place;
        let folder = format!("shadow/{}", order.plan);
        if place(order.shadow, &self.data_dir) == (format!("{url}/{folder}"), options.clone()) {
            return Ok((LakeReader::of(&Arc::new(self.store.below(&folder))), true));
        }
        let runtime = self.store.runtime().clone();
        let shadow = LakeReader::open(order.shadow, &self.data_dir, runtime).map_err(|e| {
            ExchangeError::Refused(format!("the shadow cannot be read: {e}; was it removed?"))
        })?;
        Ok((shadow, false))
    }

    fn look_at_shadow(
        &self,
        order: &Order<'_>,
        look: &mut Look,
        lanes: &mut BTreeMap<Lane, (u64, u64)>,
    ) -> Result<(), ExchangeError> {
        for span in order.window {
            let none = Marked::none_of(*span).map_err(|e| ExchangeError::Refused(e.to_string()))?;
            look.window.insert(span.partition, none);
        }
        look.come = list(&look.shadow, order, &["events".to_owned(), "dead_letters".to_owned()])?;
        for file in &look.come {
            asked_to_stop(order)?;
            let mut offsets = Vec::new();
            look.shadow.offsets(&file.path, file.format, file.bytes, &mut offsets)?;
            let marked = look.window.get_mut(&file.name.partition);
            let window = order.span(file.name.partition);
            let (Some(marked), Some(window)) = (marked, window) else {
                return Err(strange(file, "is of a partition that the plan does not have"));
            };
            for offset in &offsets {
                let offset = Offset(*offset);
                if offset < window.from || window.to <= offset {
                    return Err(strange(file, "has rows outside of the plan's window"));
                }
                if !marked.add(offset) {
                    return Err(strange(file, &format!("has offset {offset} a second time")));
                }
            }
            lanes.entry(file.name.lane.clone()).or_default().1 += offsets.len() as u64;
        }
        Ok(())
    }

    fn look_at_live(
        &self,
        order: &Order<'_>,
        folders: &[String],
        look: &mut Look,
        lanes: &mut BTreeMap<Lane, (u64, u64)>,
    ) -> Result<(), ExchangeError> {
        let live = LakeReader::of(&self.store);
        let mut seen = BTreeMap::<Partition, Marked>::new();
        let mut lost = 0;
        for file in list(&live, order, folders)? {
            asked_to_stop(order)?;
            let (name, window) = (&file.name, order.span(file.name.partition));
            let Some(window) = window.filter(|w| name.first < w.to && w.from <= name.last) else {
                continue;
            };
            let Some(marked) = look.window.get(&name.partition) else { continue };
            let here = match seen.entry(name.partition) {
                std::collections::btree_map::Entry::Occupied(here) => here.into_mut(),
                std::collections::btree_map::Entry::Vacant(free) => free.insert(
                    Marked::none_of(window).map_err(|e| ExchangeError::Refused(e.to_string()))?,
                ),
            };
            let mut offsets = Vec::new();
            live.offsets(&file.path, file.format, file.bytes, &mut offsets)?;
            let is_taken = order.selection.takes_names(&name.lane.tenant, &name.lane.event_type);
            let (mut go, mut new) = (0u64, 0);
            for offset in offsets.iter().map(|offset| Offset(*offset)) {
                let within = window.from <= offset && offset < window.to;
                if marked.has(offset) {
                    go += 1;
                    new += u64::from(here.add(offset));
                } else if within && is_taken && !order.selection.dead_letters_only {
                    lost += 1;
                }
            }
            if go == 0 {
                continue;
            }
            // An offset that was there twice by mistake was counted once.
            lanes.entry(name.lane.clone()).or_default().0 += new;
            look.survey.changes.rows_kept += match go == offsets.len() as u64 {
                true => 0,
                false => offsets.len() as u64 - go,
            };
            if go == offsets.len() as u64 {
                look.whole.push(file);
            } else {
                look.cut.push(file);
            }
        }
        if 0 < lost {
            return Err(ExchangeError::Refused(format!(
                "{lost} rows of live lie in the window and are not in the shadow: promoting would \
                 remove them. `ingestctl replay compare` names them; replay the window again"
            )));
        }
        let gained = look.window.iter().map(|(partition, marked)| {
            let none = Marked::default();
            (*partition, marked.without(seen.get(partition).unwrap_or(&none)))
        });
        look.survey.gained = gained.filter(|(_, gained)| 0 < gained.count()).collect();
        Ok(())
    }

    /// Writes down what was found, for people, and a hash that stands for it.
    fn describe(&self, order: &Order<'_>, look: &mut Look) {
        let root = self.store.root();
        let names =
            |files: &[Found]| files.iter().map(|f| below(root, &f.path)).collect::<Vec<_>>();
        let come = look.come.iter().map(|file| below(root, &self.live_path(order, file)));
        let places = look.come.iter().chain(&look.whole).chain(&look.cut);
        let places: BTreeSet<_> = places.map(|f| (f.name.hour, f.name.lane.clone())).collect();
        let mut hash = Sha256::new();
        for (word, files) in [("go", &look.whole), ("cut", &look.cut), ("come", &look.come)] {
            for file in files {
                hash.update(format!("{word} {} {}\n", file.path, file.bytes));
            }
        }
        for lane in &look.survey.changes.lanes {
            hash.update(format!("{} {} {}\n", lane.lane, lane.go, lane.come));
        }
        let changes = &mut look.survey.changes;
        (changes.go, changes.cut) = (names(&look.whole), names(&look.cut));
        changes.come = come.collect();
        changes.places = places.len() as u64;
        changes.hash = hex::encode(hash.finalize().iter().take(8).copied().collect::<Vec<_>>());
    }

    /// Where a file of the shadow goes in live.
    pub(super) fn live_path(&self, order: &Order<'_>, file: &Found) -> Path {
        let name = FileName { plan: Some(order.plan.clone()), ..file.name.clone() };
        name.path(self.store.root(), file.format)
    }
}

fn strange(file: &Found, what: &str) -> ExchangeError {
    ExchangeError::Refused(format!(
        "{} of the shadow {what}: remove the shadow (`ingestctl replay rm`) and replay the window again",
        file.path
    ))
}

pub fn asked_to_stop(order: &Order<'_>) -> Result<(), ExchangeError> {
    if (order.stop)() {
        return Err(ExchangeError::Failed(
            "it was given up, the server ends or nobody waits".into(),
        ));
    }
    Ok(())
}
