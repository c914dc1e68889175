//! Starts everything, waits for a signal, and stops everything in order.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use tidegate_event::TenantId;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{
    Division, Pipeline,
    load::{load_schemas, load_tenants, open_jobs, open_promoter},
    log::OpenedLog,
    roles::{self, Contact, Next, Serving},
};
use crate::{
    admin,
    books::{Books, UnloggedLedger},
    budget::Budget,
    clock::{Clock, SystemClock},
    config::{self, Config, ConfigError, Role, Size},
    control::Control,
    edge::{self, Behind, EdgeConfig, EdgeParts, protocol::PROTOCOLS},
    log::LogHandle,
    normalize::{Normalizer, SchemaStore},
    quota::{self, Quotas},
    replay::{jobs::Jobs, promote::Promoter},
    sink::{self, SinkConfig, SinkParts, source::LogSource},
    storage::{Disk, Storage},
    tenants::Tenants,
    writer::{Append, LogWriter, WriterSettings},
};

/// The fixed key of `--dev` on loopback.
const DEV_KEY: &str = "tgk_dev";

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Run without a configuration: tenant `dev`, lake under the data folder.
    pub dev: bool,
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// Over `log.dir`.
    pub data_dir: Option<PathBuf>,
    /// Over `edge.listen`.
    pub listen: Option<String>,
    /// Over `admin.listen`.
    pub admin: Option<String>,
    /// Over `role`.
    pub role: Option<Role>,
    /// Over `hop.listen`.
    pub hop: Option<String>,
}

/// Why it did not start, or did not stop well.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// A part of it, with what to mend.
    #[error("{what}: {why}")]
    Part {
        /// Which part.
        what: &'static str,
        /// Why.
        why: String,
    },
}

pub(super) fn part<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> StartError {
    move |error| StartError::Part { what, why: error.to_string() }
}

pub(super) fn parts<E: std::fmt::Display>(what: &'static str) -> impl Fn(Vec<E>) -> StartError {
    move |faults| {
        let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
        StartError::Part { what, why: lines.join("\n") }
    }
}

/// The configuration that the command line asks for.
fn configured(options: &Options) -> Result<Config, StartError> {
    let mut config = config::load(options.config.as_deref())?;
    if let Some(dir) = &options.data_dir {
        config.log.dir.clone_from(dir);
    }
    if let Some(listen) = &options.listen {
        config.edge.listen.clone_from(listen);
    }
    if let Some(listen) = &options.admin {
        config.admin.listen.clone_from(listen);
    }
    if let Some(listen) = &options.hop {
        config.hop.listen.clone_from(listen);
    }
    config.role = options.role.unwrap_or(config.role);
    if options.dev && config.sink.is_empty() {
        let url = config.log.dir.join("lake").display().to_string();
        config.sink.push(SinkConfig::lake("lake", &url));
    }
    match config::check(&config) {
        faults if faults.is_empty() => Ok(roles::narrowed(config)),
        faults => Err(ConfigError::Faults(faults).into()),
    }
}

/// Runs until SIGTERM, SIGINT or an operator's drain; returns once all that was taken is durable and
/// flushed.
///
/// # Errors
/// [`StartError`] with the part that would not start, before anything was answered; or that would
/// not stop well.
pub async fn run(options: Options) -> Result<(), StartError> {
    let mut config = configured(&options)?;
    let admin_listen = config.admin.listen.clone();
    let loopback = is_loopback(&config.edge.listen).await;
    let dev_key = options.dev.then(|| if loopback { DEV_KEY.to_owned() } else { random_key() });
    if options.dev && loopback {
        open_to_dev(&mut config);
    }
    if options.dev {
        config.edge.optional_listen = otlp_ports(&config.edge);
    }
    let building = Building { config, options, dev_key: dev_key.clone() };
    let runtime = tokio::runtime::Handle::current();
    // Recovery reads files and may take a while: not on a thread that serves.
    let built = tokio::task::spawn_blocking(move || building.build(runtime)).await;
    let built = built.map_err(part("start"))??;
    // Only now: what a second start on the same folder is told is that the folder is in use.
    let admin_listener = bind(&admin_listen, "admin.listen").await?;
    let (pipeline, serving, fleet) = built.listen().await?;
    let fleet = fleet.map(|fleet| tokio::spawn(take_leases(fleet, Arc::clone(&pipeline))));

    let admin_address = admin_listener.local_addr().map_err(part("admin.listen"))?;
    let (stop_admin, stopped) = tokio::sync::oneshot::channel::<()>();
    let stop = async {
        stopped.await.ok();
    };
    let admin = tokio::spawn(admin::serve(admin_listener, Arc::clone(&pipeline), stop));
    hello(&pipeline, serving.local_addr(), admin_address, dev_key.as_deref());
    pipeline.jobs.start(&pipeline.writers).map_err(part("replays"))?;
    let promoter = Arc::clone(&pipeline.promoter);
    // Not waited for at the end: wherever it is cut the next start goes on.
    let thread = std::thread::Builder::new().name("promotions".to_owned());
    thread.spawn(move || promoter.keep_on()).map_err(part("replays"))?;
    let serving = tokio::spawn(serving.serve());
    let books = tokio::spawn(keep_books(Arc::clone(&pipeline)));
    let tenants = tokio::spawn(Arc::clone(&pipeline.tenants).watch());

    wait_for_the_end(&pipeline).await?;
    pipeline.promoter.end();
    let result = stop_all(&pipeline, serving).await;
    tenants.abort();
    if let Some(fleet) = fleet {
        // Gives back what is left; what it cannot give back lapses.
        tokio::time::timeout(Duration::from_secs(1), fleet).await.ok();
    }
    stop_admin.send(()).ok();
    match tokio::time::timeout(Duration::from_secs(2), admin).await {
        Ok(Ok(Err(error))) => tracing::warn!(%error, "the admin side ended with an error"),
        Ok(_) => {}
        // A tail that somebody still follows: nothing is lost by cutting it.
        Err(_) => tracing::info!("open admin requests were cut"),
    }
    books.abort();
    // A record that is being written now comes before the last one or not at all.
    books.await.ok();
    let closing = Arc::clone(&pipeline);
    let closed = tokio::task::spawn_blocking(move || closing.close_books()).await;
    result.and(closed.map_err(part("books"))?.map_err(part("books")))
}

async fn bind(listen: &str, what: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(listen)
        .await
        .map_err(|error| StartError::Part { what, why: format!("{listen}: {error}") })
}

/// True where nobody but this machine reaches the address.
async fn is_loopback(listen: &str) -> bool {
    match tokio::net::lookup_host(listen).await {
        Ok(mut addresses) => addresses.all(|address| address.ip().is_loopback()),
        Err(_) => false,
    }
}

/// What may come without a key is `dev`'s, for who tries it on this machine.
fn open_to_dev(config: &mut Config) {
    let Ok(dev) = TenantId::new("dev") else { return };
    for protocol in PROTOCOLS.iter().filter(|protocol| protocol.login.may_be_open) {
        config.edge.open.entry(protocol.name.to_owned()).or_insert_with(|| dev.clone());
    }
}

/// The ports that OTLP's clients send to where nobody tells them, on the host of `edge.listen`.
fn otlp_ports(edge: &EdgeConfig) -> Vec<String> {
    match (&edge.also_listen, edge.listen.rsplit_once(':')) {
        (None, Some((host, _))) => [4317, 4318].map(|port| format!("{host}:{port}")).into(),
        _ => Vec::new(),
    }
}

fn random_key() -> String {
    format!("tgk_dev_{}", hex::encode(rand::random::<[u8; 24]>()))
}

struct Building {
    config: Config,
    options: Options,
    dev_key: Option<String>,
}

/// All but the edge, which needs its socket.
struct Built {
    config: Config,
    config_path: Option<PathBuf>,
    admin_token: Option<String>,
    log_id: String,
    recovery: Vec<String>,
    logs: Vec<Arc<dyn LogSource>>,
    embedded: Vec<LogHandle>,
    writers: Arc<dyn LogWriter>,
    sinks: Arc<sink::Sinks>,
    tenants: Arc<Tenants>,
    schemas: Arc<SchemaStore>,
    normalizer: Arc<Normalizer>,
    /// The folder of a role without a log, which stays locked.
    folder: Option<roles::RoleFolder>,
    books: Arc<Books>,
    control: Arc<Control>,
    jobs: Arc<Jobs>,
    promoter: Arc<Promoter>,
    clock: Arc<dyn Clock>,
    unlogged: UnloggedLedger,
    budget: Arc<Budget>,
    division: Division,
    quotas: Arc<Quotas>,
    fleet: Option<quota::Fleet>,
}

impl Building {
    fn build(self, runtime: tokio::runtime::Handle) -> Result<Built, StartError> {
        let Self { config, options, dev_key } = self;
        let storage: Arc<dyn Storage> = Arc::new(Disk);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let dir = config.log.dir.clone();
        let division = Division::of(&config);
        division.lowered(&config).iter().for_each(|what| tracing::warn!("{what}"));
        let admin_token = admin::token_of(&config.admin).map_err(part("configuration"))?;

        let (opened, folder) = open_log(&config, &storage, &clock, &runtime)?;
        let recovery = opened.recovery.clone();
        recovery.iter().for_each(|what| tracing::info!("{what}"));

        let (schemas, normalizer) = load_schemas(&config, &storage, opened.contents())?;
        let tenants = load_tenants(&config, dev_key.as_deref(), &clock)?;

        let control = Arc::new(Control::open(Arc::clone(&storage), &dir));
        let books = Arc::new(Books::default());
        let log_id = opened.log_id.clone();
        let (logs, embedded) = (opened.sources.clone(), opened.handles.clone());
        // Without a log nothing tells that there was a run before.
        let log_is_empty = opened.is_empty();
        let (disk, now) = (Arc::clone(&storage), clock.now());
        let unlogged = UnloggedLedger::open(disk, &dir, &log_id, log_is_empty, &books, now)
            .map_err(part("books"))?;
        let sink_parts = SinkParts {
            logs: logs.clone(),
            shared_as: opened.shared_as().map(str::to_owned),
            schemas: Arc::<SchemaStore>::clone(&schemas),
            storage,
            clock: Arc::clone(&clock),
            data_dir: dir,
            backlog_bytes: config.log.backlog_bytes.0,
            sink_delay: config.budget.sink_delay.0,
            memory_bytes: division.sinks,
            runtime,
            background: false,
        };
        let sinks = sink::start(&config.sink, &sink_parts).map_err(part("sinks"))?;
        let budget = Budget::new(division.pool);
        let settings = writer_settings(&config, &division, &budget, &tenants);
        let sinks = Arc::new(sinks);
        // Before the writers begin: what jobs are to read is held then.
        let promoter = open_promoter(&sinks, &sink_parts);
        let jobs = open_jobs(&config, sink_parts, &schemas, &tenants, &budget)?;
        let writers = opened.begin(&sinks, &books, &clock, &settings)?;
        let (quotas, fleet) = quota::open(&config.quota_store, &log_id, Arc::clone(&clock))
            .map_err(part("configuration"))?;
        restore_quotas(&quotas, &tenants, &books, &unlogged);
        Ok(Built {
            config,
            config_path: options.config,
            admin_token,
            log_id,
            recovery,
            logs,
            embedded,
            writers,
            sinks,
            tenants,
            schemas,
            folder,
            normalizer: Arc::new(normalizer),
            books,
            control,
            jobs,
            promoter,
            clock,
            unlogged,
            budget,
            division,
            quotas,
            fleet,
        })
    }
}

/// The log, or the folder of a role that has none.
fn open_log(
    config: &Config,
    storage: &Arc<dyn Storage>,
    clock: &Arc<dyn Clock>,
    runtime: &tokio::runtime::Handle,
) -> Result<(OpenedLog, Option<roles::RoleFolder>), StartError> {
    if !config.role.has_log() {
        let folder = roles::RoleFolder::open(&**storage, &config.log.dir);
        let folder = folder.map_err(part("log.dir"))?;
        return Ok((OpenedLog::none(&folder.id), Some(folder)));
    }
    Ok((OpenedLog::open(config, storage, clock, runtime)?, None))
}

/// What the writers are told, each of them.
fn writer_settings(
    config: &Config,
    division: &Division,
    budget: &Arc<Budget>,
    tenants: &Arc<Tenants>,
) -> WriterSettings {
    let each = division.pool / u64::from(config.log.partitions.max(1));
    let queue_bytes = usize::try_from(each).unwrap_or(usize::MAX);
    let mut settings = WriterSettings::new(&config.log, queue_bytes, config.budget.delay.0);
    settings.budget = Some(Arc::clone(budget));
    settings.dedup_ids = division.dedup_ids;
    settings.dedup_ids_all = division.dedup_ids_all;
    let known = Arc::clone(tenants);
    settings.weight = Arc::new(move |tenant| known.get(tenant).map_or(1, |tenant| tenant.weight()));
    settings
}

/// What tenants have named and used in earlier runs.
fn restore_quotas(quotas: &Quotas, tenants: &Tenants, books: &Books, unlogged: &UnloggedLedger) {
    let pages = books.copy();
    for tenant in tenants.list() {
        if let Some(page) = pages.get(&tenant.id) {
            quotas.restore_types(&tenant, page.types.keys());
        }
        if let Some(usage) = unlogged.usage().get(&tenant.id) {
            quotas.restore_usage(&tenant, *usage);
        }
    }
}

impl Built {
    /// What this role answers, and to whom.
    async fn serving(&self) -> Result<(Serving, Option<Next>), StartError> {
        let contact = Contact::of(&self.config).map_err(part("configuration"))?;
        let next = contact.next(&self.config);
        let timeout = self.config.hop.timeout.0;
        let serving = match (self.config.role, &next) {
            (Role::Normalizer, Some(Next { pool, .. })) => {
                let schemas = Arc::clone(&self.schemas);
                let log = roles::RemoteLog::new(Arc::clone(pool), schemas, timeout);
                let service = roles::NormalizerService::new(roles::NormalizerParts {
                    judge: Arc::<Normalizer>::clone(&self.normalizer),
                    log: Arc::new(log),
                    pool: Arc::clone(pool),
                    books: Arc::clone(&self.books),
                    budget: Arc::clone(&self.budget),
                    tenants: Arc::clone(&self.tenants),
                    timeout,
                });
                contact.serve(&self.config, service).await.map_err(part("hop"))?
            }
            (Role::Writer, _) => {
                let service = roles::WriterService::new(roles::WriterParts {
                    writers: Arc::clone(&self.writers),
                    schemas: Arc::clone(&self.schemas),
                    books: Arc::clone(&self.books),
                    budget: Arc::clone(&self.budget),
                    pressure: Arc::<sink::Sinks>::clone(&self.sinks),
                    tenants: Arc::clone(&self.tenants),
                    timeout,
                });
                contact.serve(&self.config, service).await.map_err(part("hop"))?
            }
            (Role::All | Role::Edge | Role::Normalizer, next) => {
                let pool = next.as_ref().map(|next| Arc::clone(&next.pool));
                Serving::Clients(self.edge(pool, timeout).await?)
            }
        };
        Ok((serving, next))
    }

    /// The public side, over the stages of this process or over the normalizers of `pool`.
    async fn edge(
        &self,
        pool: Option<Arc<crate::hop::Pool>>,
        timeout: Duration,
    ) -> Result<edge::Edge, StartError> {
        let mut config = self.config.edge.clone();
        config.limits.decoded_bytes = Size(self.division.decoded_bytes);
        config.limits.body_bytes = Size(self.division.body_bytes);
        config.limits.connections = self.division.connections;
        let (behind, pressure): (_, Arc<dyn crate::shed::Pressure>) = match pool {
            None => {
                let judge = Arc::<Normalizer>::clone(&self.normalizer);
                let log = Arc::clone(&self.writers) as Arc<dyn Append>;
                (Behind::Here { judge, log }, Arc::<sink::Sinks>::clone(&self.sinks))
            }
            Some(pool) => {
                let stages = Arc::new(roles::RemoteStages::new(pool, timeout));
                (Behind::Away(Arc::<roles::RemoteStages>::clone(&stages)), stages)
            }
        };
        let parts = EdgeParts {
            config,
            tenants: Arc::clone(&self.tenants),
            behind,
            books: Arc::clone(&self.books),
            clock: Arc::clone(&self.clock),
            budget: Arc::clone(&self.budget),
            pressure,
            quotas: Arc::clone(&self.quotas),
        };
        let edge = edge::bind(parts).await.map_err(part("edge"))?;
        edge.also_addrs().for_each(|also| tracing::info!(listen = %also, "listening here, too"));
        Ok(edge)
    }

    async fn listen(self) -> Result<(Arc<Pipeline>, Serving, Option<quota::Fleet>), StartError> {
        let (serving, next) = self.serving().await?;
        let (draining, _) = watch::channel(false);
        let pipeline = Pipeline {
            serving: serving.handle(),
            next,
            _folder: self.folder,
            config: self.config,
            config_path: self.config_path,
            admin_token: self.admin_token,
            log_id: self.log_id,
            recovery: self.recovery,
            logs: self.logs,
            embedded: self.embedded,
            writers: self.writers,
            sinks: self.sinks,
            tenants: self.tenants,
            normalizer: self.normalizer,
            books: self.books,
            control: self.control,
            jobs: self.jobs,
            promoter: self.promoter,
            clock: self.clock,
            quotas: self.quotas,
            budget: self.budget,
            division: self.division,
            runtime: tokio::runtime::Handle::current(),
            started: Instant::now(),
            redrives: tokio::sync::Mutex::new(()),
            unlogged: std::sync::Mutex::new(self.unlogged),
            generation: AtomicU64::new(1),
            draining,
        };
        Ok((Arc::new(pipeline), serving, self.fleet))
    }
}

/// Shares the quotas with other edges until the end.
async fn take_leases(fleet: quota::Fleet, pipeline: Arc<Pipeline>) {
    let mut draining = pipeline.draining.subscribe();
    let stop = async move {
        draining.wait_for(|draining| *draining).await.ok();
    };
    fleet.run(Arc::clone(&pipeline.tenants), stop).await;
}

/// Once a second: writes what left nothing in the log, and says how the books stand.
async fn keep_books(pipeline: Arc<Pipeline>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        let writing = Arc::clone(&pipeline);
        let write = move || {
            let written = writing.write_books();
            writing.books_standing();
            written
        };
        let done = tokio::task::spawn_blocking(write).await;
        if let Ok(Err(error)) = done {
            tracing::error!(%error, "the ledger of refusals could not be written; tried again in a second");
        }
    }
}

async fn wait_for_the_end(pipeline: &Arc<Pipeline>) -> Result<(), StartError> {
    let listen = |kind| signal(kind).map_err(part("signals"));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut draining = pipeline.draining.subscribe();
    loop {
        tokio::select! {
            _ = terminate.recv() => pipeline.begin_drain("SIGTERM"),
            _ = interrupt.recv() => pipeline.begin_drain("SIGINT"),
            _ = hangup.recv() => {
                let reloading = Arc::clone(pipeline);
                // What it says is in the log; the generation before stays live.
                tokio::task::spawn_blocking(move || reloading.reload().ok());
            }
            _ = draining.changed() => return Ok(()),
        }
    }
}

/// Edge, writers, sinks, books, in this order; all of it within the grace period.
async fn stop_all(
    pipeline: &Arc<Pipeline>,
    serving: tokio::task::JoinHandle<()>,
) -> Result<(), StartError> {
    let grace = pipeline.config.edge.timeouts.drain.0;
    let deadline = Instant::now() + grace;
    let left = || deadline.saturating_duration_since(Instant::now());
    pipeline.serving.drain();
    if tokio::time::timeout(left(), serving).await.is_err() {
        tracing::warn!(
            "requests were still under way at the end of the grace period; they were cut, unanswered"
        );
    }
    // What is replayed goes on at the next start; live has the time that is left.
    let jobs = Arc::clone(&pipeline.jobs);
    tokio::task::spawn_blocking(move || jobs.stop()).await.map_err(part("replays"))?;
    let writers = Arc::clone(&pipeline.writers);
    let closed = tokio::task::spawn_blocking(move || writers.close()).await;
    closed.map_err(part("log"))?;
    pipeline.sinks.drain(left()).await;
    let writers = Arc::clone(&pipeline.writers);
    tokio::task::spawn_blocking(move || writers.leave()).await.map_err(part("log"))?;
    tracing::info!("stopped: all that was answered is in the log");
    Ok(())
}

fn hello(pipeline: &Pipeline, public: SocketAddr, admin: SocketAddr, dev_key: Option<&str>) {
    let scheme = if pipeline.config.edge.tls.is_some() { "https" } else { "http" };
    let role = pipeline.config.role.as_str();
    tracing::info!(listen = %public, admin = %admin, log_id = pipeline.log_id, role, "ready");
    let Some(key) = dev_key else { return };
    let lake = pipeline.config.sink.iter().find_map(|s| s.url.clone()).unwrap_or_default();
    let lake = Path::new(&lake).join("events");
    let text = format!(
        "\n  Tidegate is ready.  Send a first event:\n\n    \
         curl {scheme}://{public}/v1/events -H 'Authorization: Bearer {key}' \\\n         \
         -H 'Content-Type: application/json' -d '{{\"event_type\":\"hello\",\"name\":\"world\"}}'\n\n  \
         Look at it (in the lake within 5 seconds):\n\n    \
         ingestctl --admin http://{admin} status\n    \
         duckdb -c \"select * from read_parquet('{}/**/*.parquet', hive_partitioning = true)\"\n",
        lake.display()
    );
    #[expect(clippy::print_stdout, reason = "the greeting of --dev is for a person at a terminal")]
    {
        println!("{text}");
    }
}
