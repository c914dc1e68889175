//! The rows of a window exchanged for a shadow's, in tables: each partition by one `REPLACE PARTITION`
//! (docs/replay.md, "Promote and revert").
//!
//! | table | what it has |
//! | --- | --- |
//! | `<table>__before_<plan id>` | live's rows of the window, from before; kept until the revert |
//! | `<table>_<8 digits>__next_<plan id>` | partitions as they are to be: live's rows outside of the window, and those that come |
//!
//! `look` says which; a partition is made anew from live as it is, while no insert into its table is under way and none
//! begins; so doing it again, after a crash, comes to the same. A statement whose answer was lost may still be run: the
//! tables it names are those of its own attempt, gone by then, and inserts wait until all is done.

mod look;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{PoisonError, RwLockWriteGuard},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use tidegate_event::{EventType, TenantId};

use super::{
    super::{
        SinkContext,
        exchange::{Exchange, ExchangeError, How, Order, Staged, Survey, Turn, Way},
        promoted::Promotions,
    },
    ClickHouse, Server,
    block::literal,
    client::{Fault, Request},
    ddl::{Existing, TableName, quote},
    tables,
};
use crate::replay::{
    PlanId,
    promote::journal::{Journal, Phase},
};

/// An answer about rows.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How long inserts that nobody waits for any more may take to end, and how often that is asked.
const UNDER_WAY: Duration = Duration::from_secs(60);
const ASK: Duration = Duration::from_millis(100);
/// Of every statement: what copies rows is no insert that was made before.
const SETTINGS: &[(&str, &str)] = &[
    ("insert_deduplicate", "0"),
    ("async_insert", "0"),
    ("max_partitions_per_insert_block", "0"),
    ("output_format_json_quote_64bit_integers", "0"),
];

/// One table of one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Piece {
    /// The server, by its address.
    url: String,
    /// Live's table.
    table: String,
    /// Whether live has it.
    is_there: bool,
    /// The rows of it that go: a condition over its columns.
    goes: String,
    /// The shadow's table; `None` where it has none.
    shadow: Option<String>,
    /// The shadow's columns.
    comes: BTreeMap<String, String>,
    /// Live's columns, as they were before.
    columns: BTreeMap<String, String>,
    /// The partitions that change.
    partitions: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ready {
    pieces: Vec<Piece>,
}

#[derive(Deserialize)]
struct LaneLine {
    tenant: TenantId,
    #[serde(default)]
    event_type: Option<EventType>,
    rows: u64,
}

#[derive(Deserialize)]
struct NameLine {
    name: String,
}

#[derive(Deserialize)]
struct CountLine {
    rows: u64,
}

#[derive(Deserialize)]
struct PlaceLine {
    log_partition: u32,
    log_offset: u64,
}

/// Tables into which inserts wait.
#[derive(Debug, Default)]
pub struct Gates {
    /// All of them: an earlier process may have replaced a partition, and may not have heard of it.
    all: bool,
    shut: HashSet<TableName>,
    /// Partitions are being replaced: they stay shut until the promotion is at its end.
    stay: bool,
}

impl Gates {
    /// As an earlier process has left it.
    pub fn at_start(promotions: &Promotions, context: &SinkContext) -> Self {
        let journal = |plan| Journal::load(&*context.storage, &context.data_dir, plan);
        let all = match promotions.open.as_ref().map(journal) {
            None | Some(Ok(None)) => false,
            Some(Ok(Some(journal))) => {
                matches!(journal.phase, Phase::Committed | Phase::Reverting)
            }
            // Whoever goes on with it says so.
            Some(Err(_)) => true,
        };
        Self { all, ..Self::default() }
    }

    /// True where inserts into a table wait.
    pub fn are_shut(&self, table: &TableName) -> bool {
        self.all || self.shut.contains(table)
    }
}

/// Inserts into these tables wait.
struct Gate<'c> {
    sink: &'c ClickHouse,
    tables: Vec<TableName>,
}

impl Gate<'_> {
    /// From now on a statement may be under way that puts old rows over new ones.
    fn stay(&self) {
        self.sink.gates().stay = true;
    }
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        let mut gates = self.sink.gates();
        if !gates.stay {
            gates.shut.retain(|table| !self.tables.contains(table));
        }
    }
}

/// Small files are none here, and nothing else touches old rows.
struct Nothing;

impl Turn for Nothing {}

impl Server {
    fn tell<T: DeserializeOwned>(&self, statement: &str) -> Result<Vec<T>, ExchangeError> {
        let answer = self.order(statement)?;
        tables::lines(&answer).map_err(|fault| self.failed(statement, &fault))
    }

    fn order(&self, statement: &str) -> Result<Vec<u8>, ExchangeError> {
        let id = format!("tidegate-{}", uuid::Uuid::now_v7());
        let request = Request {
            id: &id,
            statement,
            settings: SETTINGS,
            body: None,
            answer_bytes_max: ANSWER_BYTES_MAX,
        };
        self.client.ask(request).map_err(|fault| self.failed(statement, &fault))
    }

    fn failed(&self, statement: &str, fault: &Fault) -> ExchangeError {
        let shown: String = statement.chars().take(100).collect();
        ExchangeError::Failed(format!("{}: {shown}…: {fault}", self.client.url()))
    }

    fn count(&self, from: &str, condition: &str) -> Result<u64, ExchangeError> {
        let asked =
            format!("SELECT count() AS rows FROM {from} WHERE {condition} FORMAT JSONEachRow");
        Ok(self.tell::<CountLine>(&asked)?.first().map_or(0, |line| line.rows))
    }

    fn partitions(&self, from: &str, condition: &str) -> Result<Vec<String>, ExchangeError> {
        let asked = format!(
            "SELECT DISTINCT _partition_id AS name FROM {from} WHERE {condition} FORMAT JSONEachRow"
        );
        Ok(self.tell::<NameLine>(&asked)?.into_iter().map(|line| line.name).collect())
    }

    fn look(&self, table: &TableName) -> Result<Option<Existing>, ExchangeError> {
        tables::look(&self.client, table).map_err(|fault| self.failed("looking at tables", &fault))
    }
}

fn listed<'n>(names: impl Iterator<Item = &'n String>) -> String {
    names.map(|name| quote(name)).collect::<Vec<_>>().join(", ")
}

impl ClickHouse {
    /// To be changed; waits for the inserts that are under way.
    fn gates(&self) -> RwLockWriteGuard<'_, Gates> {
        self.gates.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table of one attempt.
    fn next(&self, piece: &Piece, (plan, attempt): (&PlanId, &str)) -> TableName {
        self.beside(&format!("{}_{attempt}", piece.table), "next", plan)
    }

    fn beside(&self, table: &str, word: &str, plan: &PlanId) -> TableName {
        let database = self.settings.database.clone();
        TableName { database, table: format!("{table}__{word}_{plan}") }
    }

    fn named(&self, table: &str) -> TableName {
        TableName { database: self.settings.database.clone(), table: table.to_owned() }
    }

    fn server_at(&self, url: &str) -> Result<&Server, ExchangeError> {
        let found = self.servers.iter().find(|server| server.client.url().as_str() == url);
        found.ok_or_else(|| {
            ExchangeError::Refused(format!(
                "the server {url} is not configured any more: put it back"
            ))
        })
    }

    /// Keeps what goes.
    fn keep(&self, piece: &Piece, plan: &PlanId) -> Result<(), ExchangeError> {
        if !piece.is_there {
            return Ok(());
        }
        let server = self.server_at(&piece.url)?;
        let live = self.named(&piece.table).quoted();
        let before = self.beside(&piece.table, "before", plan).quoted();
        let columns = listed(piece.columns.keys());
        server.order(&format!("CREATE TABLE {before} AS {live}"))?;
        server.order(&format!(
            "INSERT INTO {before} ({columns}) SELECT {columns} FROM {live} WHERE {}",
            piece.goes
        ))?;
        let (kept, wanted) = (server.count(&before, "1")?, server.count(&live, &piece.goes)?);
        if kept != wanted {
            return Err(ExchangeError::Failed(format!(
                "{before} has {kept} rows, live {wanted} in the window"
            )));
        }
        Ok(())
    }

    /// Lets no insert into these tables begin, and waits until none is under way.
    fn close(
        &self,
        pieces: &[Piece],
        plan: &PlanId,
        how: &How<'_>,
    ) -> Result<Gate<'_>, ExchangeError> {
        let tables: Vec<_> = pieces.iter().map(|piece| self.named(&piece.table)).collect();
        self.gates().shut.extend(tables.iter().cloned());
        let gate = Gate { sink: self, tables };
        let until = Instant::now() + UNDER_WAY;
        let ours = literal(&format!("__next_{plan}"));
        for piece in pieces {
            let server = self.server_at(&piece.url)?;
            let insert = literal(&format!("INSERT INTO {} ", self.named(&piece.table).quoted()));
            // Besides: what an earlier attempt has sent.
            let asked = format!(
                "startsWith(query, {insert}) OR \
                 (position(query, {ours}) > 0 AND NOT startsWith(query, 'SELECT '))"
            );
            while 0 < server.count("system.processes", &asked)? {
                if (how.stop)() || until < Instant::now() {
                    return Err(ExchangeError::Failed(format!(
                        "an insert into {} is still under way",
                        piece.table
                    )));
                }
                std::thread::sleep(ASK);
            }
        }
        Ok(gate)
    }

    /// Removes the partitions-to-be of all attempts.
    fn drop_next(&self, plan: &PlanId) -> Result<(), ExchangeError> {
        for server in &self.servers {
            let suffix = format!("__next_{plan}");
            tables::drop_all(&server.client, &self.settings.database, &suffix)
                .map_err(|fault| server.failed("dropping tables", &fault))?;
        }
        Ok(())
    }

    /// Makes the partitions of a table as they are to be, in a table of their own.
    fn make_next(
        &self,
        piece: &Piece,
        (plan, attempt): (&PlanId, &str),
        way: Way,
    ) -> Result<(), ExchangeError> {
        let server = self.server_at(&piece.url)?;
        let (table, next) = (self.named(&piece.table), self.next(piece, (plan, attempt)));
        let (live, next) = (table.quoted(), next.quoted());
        let come = match way {
            Way::Forward => piece.shadow.as_ref().map(|name| (self.named(name), &piece.comes)),
            Way::Back => {
                piece.is_there.then(|| (self.beside(&piece.table, "before", plan), &piece.columns))
            }
        };
        if let (false, Some((from, _))) =
            (piece.is_there, come.as_ref().filter(|_| way == Way::Forward))
        {
            server.order(&format!("CREATE TABLE IF NOT EXISTS {live} AS {}", from.quoted()))?;
        }
        let Some(mut there) = server.look(&table)? else { return Ok(()) };
        if way == Way::Forward {
            let lacking = piece.comes.iter().filter(|(name, _)| !there.columns.contains_key(*name));
            let add: Vec<_> = lacking
                .map(|(name, ty)| format!("ADD COLUMN IF NOT EXISTS {} {ty}", quote(name)))
                .collect();
            if !add.is_empty() {
                server.order(&format!("ALTER TABLE {live} {}", add.join(", ")))?;
                there = server.look(&table)?.unwrap_or(there);
            }
        }
        server.order(&format!("CREATE TABLE {next} AS {live}"))?;
        let own = listed(there.columns.keys());
        for partition in &piece.partitions {
            let inside = format!("_partition_id = {}", literal(partition));
            let stays = format!("{inside} AND NOT ({})", piece.goes);
            server.order(&format!(
                "INSERT INTO {next} ({own}) SELECT {own} FROM {live} WHERE {stays}"
            ))?;
            let mut wanted = server.count(&live, &stays)?;
            if let Some((from, columns)) = &come {
                let (from, columns) = (from.quoted(), listed(columns.keys()));
                server.order(&format!(
                    "INSERT INTO {next} ({columns}) SELECT {columns} FROM {from} WHERE {inside}"
                ))?;
                wanted += server.count(&from, &inside)?;
            }
            let made = server.count(&next, &inside)?;
            if made != wanted {
                return Err(ExchangeError::Failed(format!(
                    "{next} has {made} rows in partition {partition}, not {wanted}"
                )));
            }
        }
        Ok(())
    }

    fn replace(&self, piece: &Piece, attempt: (&PlanId, &str)) -> Result<(), ExchangeError> {
        let server = self.server_at(&piece.url)?;
        let table = self.named(&piece.table);
        if server.look(&table)?.is_none() {
            return Ok(());
        }
        let (live, next) = (table.quoted(), self.next(piece, attempt).quoted());
        for partition in &piece.partitions {
            let id = literal(partition);
            let change = match server.count(&next, &format!("_partition_id = {id}"))? {
                0 => format!("ALTER TABLE {live} DROP PARTITION ID {id}"),
                _ => format!("ALTER TABLE {live} REPLACE PARTITION ID {id} FROM {next}"),
            };
            server.order(&change)?;
        }
        server.tables.forget(&table);
        Ok(())
    }

    fn read_ready(staged: &Staged) -> Result<Ready, ExchangeError> {
        let damaged = |e: serde_json::Error| format!("the promotion's journal cannot be read: {e}");
        serde_json::from_value(staged.clone()).map_err(|e| ExchangeError::Refused(damaged(e)))
    }
}

impl Exchange for ClickHouse {
    fn turn(&self, _stop: &dyn Fn() -> bool) -> Result<Box<dyn Turn + '_>, ExchangeError> {
        Ok(Box::new(Nothing))
    }

    fn survey(&self, order: &Order<'_>) -> Result<Survey, ExchangeError> {
        let (mut survey, mut lanes) = (Survey::default(), BTreeMap::new());
        let mut hash = Sha256::new();
        for server in &self.servers {
            let looked = self.look_at(server, order)?;
            self.count(server, order, &looked, &mut lanes, &mut survey)?;
            hash.update(format!("{:?}", looked.pieces));
        }
        survey.changes.set_lanes(&lanes);
        hash.update(format!("{:?}", survey.changes.lanes));
        survey.changes.hash =
            hex::encode(hash.finalize().iter().take(8).copied().collect::<Vec<_>>());
        Ok(survey)
    }

    fn stage(&self, order: &Order<'_>) -> Result<Staged, ExchangeError> {
        let mut ready = Ready::default();
        for server in &self.servers {
            for piece in self.look_at(server, order)?.pieces {
                (order.tell)(&format!("{}: what goes is kept", piece.table));
                self.keep(&piece, order.plan)?;
                ready.pieces.push(piece);
            }
        }
        serde_json::to_value(ready).map_err(|e| ExchangeError::Refused(e.to_string()))
    }

    fn discard(&self, plan: &PlanId, _staged: Option<&Staged>) -> Result<(), ExchangeError> {
        for server in &self.servers {
            for word in ["before", "next"] {
                let suffix = format!("__{word}_{plan}");
                tables::drop_all(&server.client, &self.settings.database, &suffix)
                    .map_err(|fault| server.failed("dropping tables", &fault))?;
            }
        }
        Ok(())
    }

    fn check_kept(&self, staged: &Staged) -> Result<(), ExchangeError> {
        for piece in &Self::read_ready(staged)?.pieces {
            let server = self.server_at(&piece.url)?;
            let shadow = piece.shadow.as_ref().map(|name| self.named(name));
            if piece.is_there && server.look(&self.named(&piece.table))?.is_none() {
                return Err(ExchangeError::Refused(format!("{} is gone", piece.table)));
            }
            if let Some(shadow) = shadow
                && server.look(&shadow)?.is_none()
            {
                return Err(ExchangeError::Refused(format!("{} is gone", shadow.quoted())));
            }
        }
        Ok(())
    }

    fn exchange(
        &self,
        plan: &PlanId,
        staged: &Staged,
        how: &How<'_>,
        books: &mut dyn FnMut() -> Result<(), ExchangeError>,
    ) -> Result<(), ExchangeError> {
        let ready = Self::read_ready(staged)?;
        (how.tell)("inserts into these tables wait");
        let gate = self.close(&ready.pieces, plan, how)?;
        self.drop_next(plan)?;
        let attempt = uuid::Uuid::now_v7().simple().to_string();
        // Its last digits are of chance.
        let attempt = (plan, attempt.get(24..).unwrap_or(&attempt));
        for piece in &ready.pieces {
            (how.tell)(&format!("{}: its partitions are made anew", piece.table));
            self.make_next(piece, attempt, how.way)?;
        }
        gate.stay();
        for piece in &ready.pieces {
            self.replace(piece, attempt)?;
        }
        books()?;
        self.drop_next(plan)
    }

    fn ended(&self) {
        *self.gates() = Gates::default();
    }
}
