//! By which schemas a plan's events are judged: today's, a candidate's, or none.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    plan::{Judging, LaneCount, SchemaPin},
    request::{JudgingBy, PlanRequest},
};
use crate::{
    config::Role,
    normalize::{Schema, SchemaEntry, SchemaFault, UnknownTypes, check_entries, succession},
    pipeline::Pipeline,
};

/// Where the schemas come from.
pub(super) enum Judges {
    /// From what is live.
    Today,
    /// From these.
    Candidate(Vec<SchemaEntry>),
    /// Nowhere: nothing is judged.
    AsRecorded,
}

impl Judges {
    /// As it is asked for.
    ///
    /// # Errors
    /// Sentences that say what would be right.
    pub fn of(pipeline: &Pipeline, request: &PlanRequest) -> Result<Self, Vec<String>> {
        let has_schemas = !request.schemas.is_empty();
        match request.judging {
            JudgingBy::Candidate if has_schemas => Self::candidate(pipeline, request),
            JudgingBy::Candidate => {
                Err(vec!["--schemas: there is no schema in that folder".to_owned()])
            }
            _ if has_schemas => {
                Err(vec!["schemas come with a candidate alone: leave them away".to_owned()])
            }
            JudgingBy::AsRecorded => Ok(Self::AsRecorded),
            // A writer of a fleet may have none: its normalizers judge.
            JudgingBy::Today
                if pipeline.config.role == Role::Writer && pipeline.config.schemas.dir.is_none() =>
            {
                Err(vec!["this writer has no schemas of its own ([schemas] dir): write --schemas DIR or --as-recorded".to_owned()])
            }
            JudgingBy::Today => Ok(Self::Today),
        }
    }

    fn candidate(pipeline: &Pipeline, request: &PlanRequest) -> Result<Self, Vec<String>> {
        let (mut entries, mut faults): (_, Vec<SchemaFault>) = (Vec::new(), Vec::new());
        for schema in &request.schemas {
            let file = match &schema.tenant {
                None => format!("{}.json", schema.event_type),
                Some(tenant) => format!("{tenant}/{}.json", schema.event_type),
            };
            match Schema::parse(&file, schema.text.as_bytes()) {
                Err(mut found) => faults.append(&mut found),
                Ok(parsed) => entries.push(SchemaEntry {
                    tenant: schema.tenant.clone(),
                    event_type: schema.event_type.clone(),
                    schema: Arc::new(parsed),
                }),
            }
        }
        entries.sort_by(|a: &SchemaEntry, b| {
            (&a.tenant, &a.event_type).cmp(&(&b.tenant, &b.event_type))
        });
        faults.extend(check_entries(&entries));
        let live = pipeline.normalizer.schemas();
        let before = live.entries().iter().map(|entry| (entry.file(), Arc::clone(&entry.schema)));
        faults.extend(succession(&entries, before.collect()).0);
        if faults.is_empty() {
            Ok(Self::Candidate(entries))
        } else {
            Err(faults.iter().map(|fault| format!("--schemas: {fault}")).collect())
        }
    }

    /// The schema of each tenant and type that was met.
    pub fn pin(&self, pipeline: &Pipeline, counts: &[LaneCount]) -> Judging {
        let live = pipeline.normalizer.schemas();
        let refuse_unknown = pipeline.config.schemas.unknown_types == UnknownTypes::Refuse;
        let pins = |find: &dyn Fn(&LaneCount) -> Option<SchemaEntry>| {
            let mut pins = BTreeMap::new();
            for count in counts {
                let Some(entry) = find(count) else { continue };
                let pin = SchemaPin {
                    tenant: count.lane.tenant.clone(),
                    event_type: count.lane.event_type.clone(),
                    version: entry.schema.version(),
                    hash: hex::encode(entry.schema.hash()),
                };
                pins.insert(pin, entry.schema.canonical().to_owned());
            }
            pins
        };
        match self {
            Self::AsRecorded => Judging::AsRecorded,
            Self::Today => {
                let found = pins(&|count| {
                    live.get(&count.lane.tenant, count.lane.event_type.as_str()).cloned()
                });
                Judging::Today { schemas: found.into_keys().collect(), refuse_unknown }
            }
            Self::Candidate(entries) => {
                let found = pins(&|count| {
                    let of = |entry: &&SchemaEntry| entry.event_type == count.lane.event_type;
                    let own =
                        |entry: &&SchemaEntry| entry.tenant.as_ref() == Some(&count.lane.tenant);
                    let mut fitting = entries.iter().filter(of);
                    let own = fitting.clone().find(own);
                    own.or_else(|| fitting.find(|entry| entry.tenant.is_none())).cloned()
                });
                let contents =
                    found.iter().map(|(pin, text)| (pin.hash.clone(), text.clone())).collect();
                Judging::Candidate {
                    schemas: found.into_keys().collect(),
                    refuse_unknown,
                    contents,
                }
            }
        }
    }
}
