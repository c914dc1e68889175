//! Which rows of a lane a table lacks, and putting these back.

use tidegate_event::ReceivedAt;

use super::{
    super::{LaneRows, WriteError, reconcile::Found},
    Attempt, ClickHouse,
    block::Block,
};

/// Where it fails: what was found until then, if all was asked.
type Fault = (Option<Found>, WriteError);

impl ClickHouse {
    /// Asks for the offsets of every block, and with `repair` inserts the rows that are missing under a
    /// token of their own: the server may remember the one they had longer than it kept them.
    pub(super) fn hold_against(
        &self,
        rows: &LaneRows<'_>,
        repair: Option<&str>,
        now: ReceivedAt,
    ) -> Result<Found, Fault> {
        let server = self.server(rows.lane.tenant.as_str()).map_err(|error| (None, error))?;
        let table = self.settings.table(rows.lane);
        let ttl = self.settings.ttl.map(|ttl| i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX));
        let kept_since = ttl.map_or(i64::MIN, |ttl| now.0.saturating_sub(ttl));
        let (mut found, mut lacking) = (Found::default(), Vec::new());
        // A server that lost all it had has no table either.
        let there =
            server.tables.is_there(&server.client, &table).map_err(|error| (None, error))?;
        for block in Block::of(rows) {
            let block = block.received_since(kept_since);
            if block.len() == 0 {
                continue;
            }
            let offsets = if there {
                server.offsets(&block, &table).map_err(|error| (None, error))?
            } else {
                Vec::new()
            };
            let (missing, twice) = block.hold_against(&offsets);
            found.rows += block.len() as u64;
            found.missing += missing.len() as u64;
            found.twice += twice;
            lacking.extend((!missing.is_empty()).then(|| block.only(missing)));
        }
        let Some(repair) = repair else { return Ok(found) };
        for block in lacking {
            let block = block.repairing(repair);
            let mut attempt = Attempt::default();
            self.put(&block, false, &mut attempt).map_err(|error| (Some(found), error))?;
            let refused = attempt.guilty.len() as u64;
            found.refused += refused;
            found.repaired += block.len() as u64 - refused;
        }
        Ok(found)
    }
}
