//! Counts what frames hold, per tenant and type.

use std::collections::BTreeMap;

use tidegate_event::{BatchView, EventType, Offset, RecordView, TenantId};

use crate::writer::Totals;

/// Which event lies at an offset.
pub(super) struct LastSeen {
    pub offset: Offset,
    pub base_id: [u8; 16],
    pub index: u32,
}

/// Counts per tenant and type. Most events are of the same as the one before.
#[derive(Default)]
pub(super) struct Tally {
    types: BTreeMap<(TenantId, EventType), Totals>,
    last: Option<((TenantId, EventType), Totals)>,
}

impl Tally {
    /// What is counted of them; `None` for what is no name.
    fn of(&mut self, tenant: &str, event_type: &str) -> Option<&mut Totals> {
        let same = |((of, kind), _): &((TenantId, EventType), Totals)| {
            of.as_str() == tenant && kind.as_str() == event_type
        };
        if !self.last.as_ref().is_some_and(same) {
            let key = (TenantId::new(tenant).ok()?, EventType::new(event_type).ok()?);
            self.put_away();
            self.last = Some((key, Totals::default()));
        }
        self.last.as_mut().map(|(_, totals)| totals)
    }

    fn put_away(&mut self) {
        if let Some((key, totals)) = self.last.take() {
            crate::books::Counts::merge(self.types.entry(key).or_default(), &totals);
        }
    }

    /// All of it.
    pub fn finish(mut self) -> BTreeMap<(TenantId, EventType), Totals> {
        self.put_away();
        self.types
    }
}

/// Adds a frame's events; which was the last, `None` where it is no batch.
pub(super) fn count(
    body: &[u8],
    base: Offset,
    types: &mut Tally,
    is_duplicate: &mut impl FnMut(&str, &RecordView<'_>) -> bool,
) -> Option<LastSeen> {
    let view = BatchView::parse(body).ok()?;
    let mut last = None;
    for record in view.records() {
        let record = record.ok()?;
        let is_duplicate = is_duplicate(view.tenant, &record);
        let totals = types.of(view.tenant, record.kind.name)?;
        match record.dead {
            _ if is_duplicate => totals.deduplicated += 1,
            None => totals.accepted += 1,
            Some(_) => totals.dead_lettered += 1,
        }
        let (offset, base_id) = (record.offset(base), view.base_id);
        last = Some(LastSeen { offset, base_id, index: record.index });
    }
    last
}
