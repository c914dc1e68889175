//! ClickHouse: one synchronous insert for the rows of one lane, day and schema (docs/clickhouse.md).
//!
//! | file | purpose |
//! | --- | --- |
//! | `config` | what `[sink.options]` may hold |
//! | `client` | HTTP: a statement, an answer of bounded size, what is known after a fault |
//! | `ddl` | statements of tables, and what a table must be like |
//! | `tables` | looks at tables, makes and widens them |
//! | `block` | which rows are one insert; its token; the question whether they are there |
//! | `native` | a block as bytes |
//! | `pace` | how many inserts a second are made |
//! | `reconcile` | which rows a table lacks, and putting them back |
//! | `shard` | which server has which tenant |
//! | `verdict` | which exceptions blame rows |
//! | `visible` | which rows can be read |
//! | `back` | rows of some offsets, and sums over them |
//! | `exchange` | a window's rows exchanged for a shadow's |
//!
//! Exactly once, in short: an insert is one block in one partition, so it is there whole or not at all.
//! Its token follows from its rows, so the server takes it once, while it remembers the token. Before an
//! insert that may have been tried before (the lane's first of a process, and the next after every
//! failure, until one is not there) the server is asked which of its rows are there: what is there is not
//! inserted again.

mod back;
mod block;
mod client;
mod config;
mod ddl;
mod exchange;
mod native;
mod pace;
mod reconcile;
mod shard;
mod tables;
mod verdict;
mod visible;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use siphasher::sip128::{Hasher128, SipHasher13};
use tidegate_event::{Partition, ReceivedAt};
use url::Url;

use super::{
    Found, Lane, LaneRows, Pause, Sink, SinkConfig, SinkConfigError, SinkContext, SinkKind,
    WriteError,
    exchange::Exchange,
    freshness::Mark,
    lake::{self, Schemas, columns::Table, table},
    promoted::Promotions,
    rows::Row,
    shadow::{self, Erase},
};
pub use back::{BackRows, Reader as ClickHouseReader, Stretch, Sum};
use block::{Block, Presence, There};
use client::{Client, Fault, Request};
use config::Settings;
use ddl::TableName;
use pace::Inserts;
use tables::Tables;

pub(super) const KIND: SinkKind = SinkKind {
    name: "clickhouse",
    check: |config| Settings::read(config).map(drop),
    open: |config, context| Ok(Arc::new(ClickHouse::open(config, context)?)),
    shadow: |config, _| {
        let settings = Settings::read(config)?;
        let urls: Vec<_> = settings.urls.iter().map(Url::as_str).collect();
        Ok(format!("{}: {}.<event type>{}", urls.join(", "), settings.database, settings.suffix))
    },
    side_by_side: true,
};

/// The servers and databases that a configuration names, if it is one of this kind: no two sinks share
/// one, since each would ask about rows that the other inserts.
pub(super) fn places(config: &SinkConfig) -> Vec<(String, String)> {
    let settings = (config.kind == KIND.name).then(|| Settings::read(&config.own()).ok()).flatten();
    let places = |settings: Settings| {
        let place =
            |url: &Url| (url.as_str().trim_end_matches('/').to_owned(), settings.database.clone());
        settings.urls.iter().map(place).collect()
    };
    settings.map_or_else(Vec::new, places)
}

/// What an insert's or a count's answer may have.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// How many offsets are read at most where sums cannot tell.
const OFFSETS_MAX: usize = 4 << 20;
/// How many inserts one write may cost that looks for guilty rows.
const INSERTS_MAX: u32 = 1_000;

/// Settings of every insert. Those of the server or the user must not change what an insert is.
const INSERT: &[(&str, &str)] = &[
    ("async_insert", "0"),
    ("insert_deduplicate", "1"),
    ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    // What is sent is one block and stays one.
    ("max_insert_threads", "1"),
    ("max_insert_block_size", "4294967296"),
    ("min_insert_block_size_rows", "0"),
    ("min_insert_block_size_bytes", "0"),
    // A column that a table has with another type takes our values or refuses them.
    ("input_format_null_as_default", "0"),
];
/// Settings of every question: a replica answers only if it has all that was inserted.
const SELECT: &[(&str, &str)] =
    &[("select_sequential_consistency", "1"), ("output_format_json_quote_64bit_integers", "0")];

/// Which lanes' last write is known to be done; all others are asked about first.
type Settled = HashSet<(Partition, Lane)>;

/// Inserts lanes into tables.
pub struct ClickHouse {
    servers: Vec<Server>,
    settings: Settings,
    schemas: Arc<dyn Schemas>,
    settled: Mutex<Settled>,
    inserts: Inserts,
    /// Tables whose rows are being exchanged; inserts hold it to be read.
    gates: RwLock<exchange::Gates>,
    /// Those that held at the start: only a start finds a cursor that was set back.
    promotions: Promotions,
}

/// A shard, or the only server.
struct Server {
    client: Client,
    tables: Tables,
}

/// One write on its way: what it has found out so far.
#[derive(Default)]
struct Attempt {
    guilty: Vec<(usize, String)>,
    inserts: u32,
    /// Some rows were there already.
    found: bool,
}

impl ClickHouse {
    fn open(config: &SinkConfig, context: &SinkContext) -> Result<Self, SinkConfigError> {
        let settings = Settings::read(config)?;
        let server = |url: &Url| {
            let client = Client::open(&settings, url, context.runtime.clone())?;
            Ok(Server { client, tables: Tables::default() })
        };
        let servers = settings.urls.iter().map(server).collect::<Result<_, SinkConfigError>>()?;
        let promotions = Promotions::load(&*context.storage, &context.data_dir, &config.name);
        let promotions = promotions.map_err(|e| SinkConfigError(e.to_string()))?;
        Ok(Self {
            servers,
            inserts: Inserts::new(settings.inserts_per_second),
            settings,
            schemas: Arc::clone(&context.schemas),
            settled: Mutex::default(),
            gates: RwLock::new(exchange::Gates::at_start(&promotions, context)),
            promotions,
        })
    }

    fn settled(&self) -> MutexGuard<'_, Settled> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server that has a tenant's rows.
    fn server(&self, tenant: &str) -> Result<&Server, WriteError> {
        let urls = self.servers.iter().map(|server| server.client.url().as_str());
        let server = shard::of(tenant, urls).and_then(|at| self.servers.get(at));
        server.ok_or_else(|| WriteError::Retry { cause: "there is no server".to_owned() })
    }

    /// Puts a block into its table, if it may be that it is not there.
    fn put(&self, block: &Block<'_>, doubt: bool, attempt: &mut Attempt) -> Result<(), WriteError> {
        let schema = lake::splitter(&*self.schemas, block.rows, &block.plan)?;
        let made = match table::build(block.rows, &block.plan, schema.as_deref()) {
            Ok(made) => made,
            Err(rows) => return Err(WriteError::Reject { rows }),
        };
        let table = self.settings.table(block.rows.lane);
        let columns = ddl::columns(block.rows.lane.dead, schema.as_deref());
        let server = self.server(block.rows.lane.tenant.as_str())?;
        server.tables.ensure(&server.client, &self.settings, &table, &columns)?;
        if doubt {
            let presence = server.presence(block, &table)?;
            attempt.found |= presence != Presence::None;
            match presence {
                Presence::All => return Ok(()),
                Presence::None => {}
                Presence::Part => return self.put_halves(block, attempt),
                Presence::Doubled => {
                    let cause =
                        format!("{}: rows of {} are there twice", table.quoted(), block.token());
                    return Err(WriteError::Conflict { cause });
                }
            }
        }
        attempt.inserts += 1;
        self.inserts.count(Instant::now());
        let inserted = {
            let gates = self.gates.read().unwrap_or_else(PoisonError::into_inner);
            if gates.are_shut(&table) {
                let cause = format!("{}: rows of it are being exchanged", table.quoted());
                return Err(WriteError::Retry { cause });
            }
            server.insert(block, &table, made.table)
        };
        let Err(fault) = inserted else { return Ok(()) };
        let Some(cause) = verdict::blames_rows(&fault) else {
            server.tables.forget(&table);
            return Err(WriteError::Retry { cause: format!("{}: {fault}", table.quoted()) });
        };
        if let [index] = block.plan.rows.as_slice() {
            attempt.guilty.push((*index as usize, cause));
            return Ok(());
        }
        self.put_halves(block, attempt)
    }

    /// Puts each half of a block by itself: one that was refused, or is there in part. Cut in the middle
    /// always, so that a half has the same token whenever it is tried.
    fn put_halves(&self, block: &Block<'_>, attempt: &mut Attempt) -> Result<(), WriteError> {
        if INSERTS_MAX <= attempt.inserts {
            return Err(self.enough(attempt));
        }
        let middle = block.len() / 2;
        self.put(&block.part(0..middle), true, attempt)?;
        self.put(&block.part(middle..block.len()), true, attempt)
    }

    /// Ends a search that takes too long with what it has found.
    fn enough(&self, attempt: &mut Attempt) -> WriteError {
        if attempt.guilty.is_empty() {
            let cause = format!("not whole after {INSERTS_MAX} inserts of parts of it");
            return WriteError::Retry { cause };
        }
        WriteError::Reject { rows: std::mem::take(&mut attempt.guilty) }
    }
}

impl Server {
    fn presence(&self, block: &Block<'_>, table: &TableName) -> Result<Presence, WriteError> {
        let retry = |fault: Fault| WriteError::Retry {
            cause: format!("{}: asked which rows are there: {fault}", table.quoted()),
        };
        let ask = |statement: &str, answer_bytes_max| {
            let id = format!("tidegate-{}", uuid::Uuid::now_v7());
            let request =
                Request { id: &id, statement, settings: SELECT, body: None, answer_bytes_max };
            self.client.ask(request).map_err(retry)
        };
        let answer = ask(&block.question(table), ANSWER_BYTES_MAX)?;
        let there = tables::lines::<There>(&answer).map_err(retry)?.pop().unwrap_or_default();
        if let Some(presence) = block.judge(&there) {
            return Ok(presence);
        }
        let most = usize::try_from(there.rows).unwrap_or(usize::MAX).min(OFFSETS_MAX);
        let answer = ask(&block.question_for_offsets(table, most), most * 8)?;
        Ok(block.judge_offsets(read_offsets(&answer)))
    }

    /// The offsets of the lane between the block's first and last that its table has, in order.
    fn offsets(&self, block: &Block<'_>, table: &TableName) -> Result<Vec<u64>, WriteError> {
        // Others of the lane may lie between: as many as offsets do, and twice each.
        let most = block.span().saturating_mul(2).min(OFFSETS_MAX);
        let id = format!("tidegate-{}", uuid::Uuid::now_v7());
        let request = Request {
            id: &id,
            statement: &block.question_for_offsets(table, most),
            settings: SELECT,
            body: None,
            answer_bytes_max: most * 8,
        };
        let answer = self.client.ask(request).map_err(|fault| WriteError::Retry {
            cause: format!("{}: asked which rows are there: {fault}", table.quoted()),
        })?;
        let mut offsets = read_offsets(&answer);
        offsets.sort_unstable();
        Ok(offsets)
    }

    fn insert(&self, block: &Block<'_>, table: &TableName, rows: Table) -> Result<(), Fault> {
        let token = block.token();
        let lane = block.rows.lane;
        let mut constants = vec![native::Constant { name: "tenant", text: lane.tenant.as_str() }];
        if lane.dead {
            let text = lane.event_type.as_str();
            constants.push(native::Constant { name: "event_type", text });
        }
        let names =
            constants.iter().map(|c| c.name).chain(rows.columns.iter().map(|c| c.name.as_str()));
        let statement = Block::insert(table, names);
        let settings: Vec<_> = INSERT
            .iter()
            .copied()
            .chain([("insert_deduplication_token", token.as_str())])
            .collect();
        let body = native::encode(&constants, rows);
        let request = Request {
            id: &query_id(table, &token),
            statement: &statement,
            settings: &settings,
            body: Some(body),
            answer_bytes_max: ANSWER_BYTES_MAX,
        };
        self.client.ask(request).map(drop)
    }
}

fn read_offsets(answer: &[u8]) -> Vec<u64> {
    let offset = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?));
    answer.chunks_exact(8).filter_map(offset).collect()
}

/// The id of an insert: the same insert, the same id, so that the server refuses a second one while the
/// first, whose answer nobody waits for any more, is still at work.
fn query_id(table: &TableName, token: &str) -> String {
    let mut hasher = SipHasher13::new();
    std::hash::Hash::hash(table, &mut hasher);
    std::hash::Hash::hash(token, &mut hasher);
    format!("tidegate-{:032x}", hasher.finish128().as_u128())
}

impl ClickHouse {
    fn write_all(&self, rows: &LaneRows<'_>) -> Result<(), WriteError> {
        let lane = (rows.partition, rows.lane.clone());
        // Whatever happens now, this lane is asked about next time unless it ends well.
        let doubt = !self.settled().remove(&lane);
        let mut attempt = Attempt::default();
        for block in Block::of(rows) {
            match self.put(&block, doubt, &mut attempt) {
                Ok(()) => {}
                Err(WriteError::Reject { rows }) => attempt.guilty.extend(rows),
                Err(other) => return Err(other),
            }
        }
        if attempt.guilty.is_empty() {
            // Behind rows that were there already there may be more, in windows that were cut otherwise: those
            // of a cursor that was set back. A lane is written in order, so what is not there ends them.
            if !attempt.found {
                self.settled().insert(lane);
            }
            return Ok(());
        }
        attempt.guilty.sort_unstable_by_key(|(index, _)| *index);
        Err(WriteError::Reject { rows: attempt.guilty })
    }

    /// Of a cursor that was set back: the places of those rows that no promotion has put there.
    fn not_promoted(&self, rows: &LaneRows<'_>) -> Option<Vec<usize>> {
        if self.promotions.applied.is_empty() {
            return None;
        }
        let is_there = |row: &Row<'_>| {
            let offset = row.offset(rows.heads);
            self.promotions.has(rows.log_id, rows.partition, rows.lane, offset)
        };
        let left = rows.rows.iter().enumerate().filter(|(_, row)| !is_there(row));
        let left: Vec<usize> = left.map(|(index, _)| index).collect();
        (left.len() < rows.rows.len()).then_some(left)
    }
}

impl Sink for ClickHouse {
    fn write(&self, rows: &LaneRows<'_>) -> Result<(), WriteError> {
        shadow::refuse_shadows_names(rows)?;
        if let Some(left) = self.not_promoted(rows) {
            if left.is_empty() {
                return Ok(());
            }
            let some: Vec<Row<'_>> =
                left.iter().filter_map(|i| rows.rows.get(*i).copied()).collect();
            return self.write_all(&LaneRows { rows: &some, ..*rows }).map_err(
                |error| match error {
                    WriteError::Reject { rows } => {
                        let place = |(index, why)| Some((*left.get(index)?, why));
                        WriteError::Reject { rows: rows.into_iter().filter_map(place).collect() }
                    }
                    other => other,
                },
            );
        }
        self.write_all(rows)
    }

    fn exchange(&self) -> Result<&dyn Exchange, &'static str> {
        Ok(self)
    }

    fn begins_with(&self, partition: Partition) {
        self.settled().retain(|(of, _)| *of != partition);
    }

    /// One server that answers is enough: the lanes of one that does not wait alone.
    fn probe(&self) -> Result<(), String> {
        let mut faults = Vec::new();
        for server in &self.servers {
            match server.probe() {
                Ok(()) => return Ok(()),
                Err(fault) => faults.push(fault),
            }
        }
        Err(faults.join("; "))
    }

    /// A row is there within a second where there are few.
    fn flush_age(&self) -> Duration {
        Duration::from_millis(700)
    }

    fn asks(&self) -> bool {
        true
    }

    fn are_visible(&self, marks: &[Mark]) -> Result<Vec<bool>, String> {
        let mut visible = vec![false; marks.len()];
        for server in &self.servers {
            // Those of the server's own tenants, and where each of them stands among all.
            let own = |mark: &Mark| {
                let home = self.server(mark.lane.tenant.as_str());
                home.is_ok_and(|home| std::ptr::eq(home, server))
            };
            let (places, own): (Vec<usize>, Vec<Mark>) = marks
                .iter()
                .enumerate()
                .filter(|(_, mark)| own(mark))
                .map(|(at, m)| (at, m.clone()))
                .unzip();
            if own.is_empty() {
                continue;
            }
            for (at, is_visible) in
                places.into_iter().zip(server.are_visible(&self.settings, &own)?)
            {
                if let Some(visible) = visible.get_mut(at) {
                    *visible = is_visible;
                }
            }
        }
        Ok(visible)
    }

    fn can_reconcile(&self) -> bool {
        true
    }

    fn reconcile(
        &self,
        rows: &LaneRows<'_>,
        repair: Option<&str>,
        now: ReceivedAt,
    ) -> Result<Found, (Option<Found>, WriteError)> {
        self.hold_against(rows, repair, now)
    }

    /// Drops the tables with its suffix: never a live one's, which has none.
    fn erase(&self, _: &Erase) -> Result<(), String> {
        let suffix = &self.settings.suffix;
        if suffix.is_empty() {
            return Err("this is no shadow".to_owned());
        }
        for server in &self.servers {
            let dropped = tables::drop_all(&server.client, &self.settings.database, suffix);
            dropped.map_err(|fault| format!("{}: {fault}", server.client.url()))?;
        }
        Ok(())
    }

    fn pause(&self) -> Option<Pause> {
        let until = self.inserts.until(Instant::now())?;
        let most = self.settings.inserts_per_second;
        let why = format!("more than {most} inserts a second (options.inserts_per_second)");
        Some(Pause { until, why })
    }
}

impl Server {
    fn are_visible(&self, settings: &Settings, marks: &[Mark]) -> Result<Vec<bool>, String> {
        let id = format!("tidegate-{}", uuid::Uuid::now_v7());
        let statement = visible::question(settings, marks);
        // As whoever queries asks: any replica, whatever it has.
        let request = Request {
            id: &id,
            statement: &statement,
            settings: &[],
            body: None,
            answer_bytes_max: ANSWER_BYTES_MAX,
        };
        let answer = self.client.ask(request).map_err(|fault| fault.to_string())?;
        let none = || format!("{} gave no answer to what is visible", self.client.url());
        visible::answer(&answer, marks.len()).ok_or_else(none)
    }

    fn probe(&self) -> Result<(), String> {
        let url = self.client.url();
        let id = format!("tidegate-{}", uuid::Uuid::now_v7());
        let request = Request {
            id: &id,
            statement: "SELECT 1 FORMAT TabSeparated",
            settings: &[],
            body: None,
            answer_bytes_max: ANSWER_BYTES_MAX,
        };
        match self.client.ask(request) {
            Ok(answer) if answer.trim_ascii() == b"1" => Ok(()),
            Ok(_) => Err(format!("{url} says that 1 is not 1")),
            Err(fault) => Err(format!("{url}: {fault}")),
        }
    }
}
