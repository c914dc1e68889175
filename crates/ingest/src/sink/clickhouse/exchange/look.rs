//! Which tables and partitions are touched, what goes and comes, and what may not be.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_event::{EventType, Offset, Partition};

use super::{
    super::{
        super::{
            exchange::{ExchangeError, Marked, Order, Survey},
            promoted::Span,
            rows::Lane,
        },
        ClickHouse, Server,
        block::literal,
        config::Settings,
        ddl::{Existing, TableName, quote},
    },
    LaneLine, Piece, PlaceLine,
};

/// What is exchanged of one server, and what came of looking at it.
pub struct Looked {
    pub pieces: Vec<Piece>,
    /// Offsets of the shadow, as a subquery.
    places: Option<String>,
}

impl ClickHouse {
    /// The tables of one server that are touched. Changes nothing.
    pub(super) fn look_at(
        &self,
        server: &Server,
        order: &Order<'_>,
    ) -> Result<Looked, ExchangeError> {
        let settings = Settings::read(&order.shadow.own())
            .map_err(|e| ExchangeError::Refused(e.to_string()))?;
        if settings.urls != self.settings.urls || settings.database != self.settings.database {
            return Err(ExchangeError::Refused(
                "the shadow's tables are on another server or in another database than live's: \
                 REPLACE PARTITION cannot reach there"
                    .to_owned(),
            ));
        }
        let types: BTreeSet<&EventType> = order.lanes.iter().map(|lane| &lane.event_type).collect();
        let lane = order.lanes.first();
        let mut wanted: Vec<(EventType, bool)> =
            types.iter().map(|name| ((*name).clone(), false)).collect();
        wanted.extend(lane.map(|lane| (lane.event_type.clone(), true)));
        let mut found = Vec::new();
        for (event_type, dead) in wanted {
            let name =
                |suffix: &str| TableName::named(&self.settings.database, &event_type, dead, suffix);
            let (live, shadow) = (name(""), name(&settings.suffix));
            let (there, theirs) = (server.look(&live)?, server.look(&shadow)?);
            if there.is_some() || theirs.is_some() {
                check(&live, there.as_ref(), theirs.as_ref())?;
                found.push((live, there, theirs.map(|theirs| (shadow, theirs)), dead));
            }
        }
        let places: Vec<String> = found
            .iter()
            .filter_map(|(_, _, shadow, _)| shadow.as_ref())
            .map(|(shadow, _)| format!("SELECT log_partition, log_offset FROM {}", shadow.quoted()))
            .collect();
        let places = (!places.is_empty()).then(|| places.join(" UNION ALL "));
        let mut pieces = Vec::new();
        for (live, there, shadow, dead) in found {
            let goes = goes(order, dead.then_some(&types), places.as_deref());
            let mut partitions = BTreeSet::new();
            if there.is_some() {
                partitions.extend(server.partitions(&live.quoted(), &goes)?);
            }
            if let Some((shadow, _)) = &shadow {
                partitions.extend(server.partitions(&shadow.quoted(), "1")?);
            }
            pieces.push(Piece {
                url: server.client.url().to_string(),
                table: live.table,
                is_there: there.is_some(),
                goes,
                shadow: shadow.as_ref().map(|(shadow, _)| shadow.table.clone()),
                comes: shadow.map(|(_, theirs)| theirs.columns).unwrap_or_default(),
                columns: there.map(|there| there.columns).unwrap_or_default(),
                partitions,
            });
        }
        Ok(Looked { pieces, places })
    }

    /// Counts what goes and comes, and refuses what would be lost.
    pub(super) fn count(
        &self,
        server: &Server,
        order: &Order<'_>,
        looked: &Looked,
        lanes: &mut BTreeMap<Lane, (u64, u64)>,
        survey: &mut Survey,
    ) -> Result<(), ExchangeError> {
        let by = |dead: bool| if dead { "tenant, event_type" } else { "tenant" };
        for piece in &looked.pieces {
            let dead = piece.table == "_dead_letters";
            let mut add = |from: &str, condition: &str, comes: bool| {
                let asked = format!(
                    "SELECT {by}, uniqExact(log_partition, log_offset) AS rows FROM {from} WHERE {condition} \
                     GROUP BY {by} FORMAT JSONEachRow",
                    by = by(dead)
                );
                for line in server.tell::<LaneLine>(&asked)? {
                    let event_type = match line.event_type {
                        Some(event_type) => event_type,
                        None => EventType::new(&piece.table)
                            .map_err(|e| ExchangeError::Refused(e.to_string()))?,
                    };
                    let sums =
                        lanes.entry(Lane { tenant: line.tenant, event_type, dead }).or_default();
                    if comes { sums.1 += line.rows } else { sums.0 += line.rows }
                }
                Ok::<_, ExchangeError>(())
            };
            let live = self.named(&piece.table).quoted();
            if piece.is_there {
                add(&live, &piece.goes, false)?;
            }
            if let Some(shadow) = &piece.shadow {
                add(&self.named(shadow).quoted(), "1", true)?;
            }
            for partition in &piece.partitions {
                survey.changes.places += 1;
                let name = format!("{} {partition}", piece.table);
                let inside = format!("_partition_id = {}", literal(partition));
                let kept = match piece.is_there {
                    true => server.count(&live, &format!("{inside} AND NOT ({})", piece.goes))?,
                    false => 0,
                };
                survey.changes.rows_kept += kept;
                if 0 < kept { survey.changes.cut.push(name) } else { survey.changes.go.push(name) }
            }
        }
        self.refuse_losses(server, order, looked)?;
        self.look_for_gained(server, order, looked, survey)
    }

    fn refuse_losses(
        &self,
        server: &Server,
        order: &Order<'_>,
        looked: &Looked,
    ) -> Result<(), ExchangeError> {
        if order.selection.dead_letters_only {
            return Ok(());
        }
        let mut lost = 0;
        for piece in looked.pieces.iter().filter(|piece| piece.is_there) {
            let condition = match &looked.places {
                Some(places) => {
                    format!("({}) AND (log_partition, log_offset) NOT IN ({places})", piece.goes)
                }
                None => piece.goes.clone(),
            };
            lost += server.count(&self.named(&piece.table).quoted(), &condition)?;
        }
        if 0 < lost {
            return Err(ExchangeError::Refused(format!(
                "{lost} rows of live lie in the window and are not in the shadow: promoting would \
                 remove them. `ingestctl replay compare` names them; replay the window again"
            )));
        }
        Ok(())
    }

    /// Offsets that the shadow has and live has not.
    fn look_for_gained(
        &self,
        server: &Server,
        order: &Order<'_>,
        looked: &Looked,
        survey: &mut Survey,
    ) -> Result<(), ExchangeError> {
        let Some(places) = &looked.places else { return Ok(()) };
        let there = looked.pieces.iter().filter(|piece| piece.is_there);
        let live: Vec<_> = there
            .map(|piece| {
                let live = self.named(&piece.table).quoted();
                format!("SELECT log_partition, log_offset FROM {live} WHERE {}", piece.goes)
            })
            .collect();
        let but = match live.as_slice() {
            [] => "1".to_owned(),
            live => format!("(log_partition, log_offset) NOT IN ({})", live.join(" UNION ALL ")),
        };
        let asked = format!(
            "SELECT log_partition, log_offset FROM ({places}) WHERE {but} FORMAT JSONEachRow"
        );
        for line in server.tell::<PlaceLine>(&asked)? {
            let partition = Partition(line.log_partition);
            let Some(span) = order.span(partition) else { continue };
            let marked = match survey.gained.entry(partition) {
                std::collections::btree_map::Entry::Occupied(marked) => marked.into_mut(),
                std::collections::btree_map::Entry::Vacant(free) => free.insert(
                    Marked::none_of(span).map_err(|e| ExchangeError::Refused(e.to_string()))?,
                ),
            };
            if !marked.add(Offset(line.log_offset)) {
                return Err(ExchangeError::Refused(
                    "the shadow has an offset twice: remove it and replay the window again".into(),
                ));
            }
        }
        Ok(())
    }
}

/// What can be done with these tables.
fn check(
    live: &TableName,
    there: Option<&Existing>,
    theirs: Option<&Existing>,
) -> Result<(), ExchangeError> {
    let refused = |why: String| Err(ExchangeError::Refused(format!("{}: {why}", live.quoted())));
    for table in there.into_iter().chain(theirs) {
        if table.engine != "MergeTree" {
            return refused(format!(
                "its engine is {}, and only MergeTree is promoted: on replicated tables do it by hand with \
                 the shadow's table, REPLACE PARTITION and the sink stopped, or name other sinks with --sink",
                table.engine
            ));
        }
    }
    let Some((there, theirs)) = there.zip(theirs) else { return Ok(()) };
    if there.partition_key != theirs.partition_key {
        return refused(format!(
            "it is partitioned by {}, its shadow by {}: make the shadow's table beforehand as live's is",
            there.partition_key, theirs.partition_key
        ));
    }
    for (name, ty) in &theirs.columns {
        if there.columns.get(name).is_some_and(|own| own != ty) {
            return refused(format!(
                "its column {} is of another type than the shadow's",
                quote(name)
            ));
        }
    }
    Ok(())
}

/// Which rows of a table go. `types`: of the table of all dead letters.
fn goes(order: &Order<'_>, types: Option<&BTreeSet<&EventType>>, places: Option<&str>) -> String {
    let span = |span: &Span| {
        format!(
            "(log_partition = {} AND log_offset >= {} AND log_offset < {})",
            span.partition, span.from, span.to
        )
    };
    let spans: Vec<_> = order.window.iter().map(span).collect();
    let mut parts = vec![
        format!("log_id = {}", literal(order.log_id)),
        format!("({})", if spans.is_empty() { "0".to_owned() } else { spans.join(" OR ") }),
    ];
    if !order.selection.tenants.is_empty() {
        let names: Vec<_> = order.selection.tenants.iter().map(|t| literal(t.as_str())).collect();
        parts.push(format!("tenant IN ({})", names.join(", ")));
    }
    if let Some(types) = types {
        let names: Vec<_> = types.iter().map(|name| literal(name.as_str())).collect();
        parts.push(format!("event_type IN ({})", names.join(", ")));
    }
    if order.selection.dead_letters_only {
        parts.push(places.map_or_else(
            || "0".to_owned(),
            |places| format!("(log_partition, log_offset) IN ({places})"),
        ));
    }
    parts.join(" AND ")
}
