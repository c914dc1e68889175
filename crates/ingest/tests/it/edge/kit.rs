//! A running edge, its fakes, and a client that writes bytes.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidegate_event::{
    Code, EncodedBatch, EventType, Offset, OffsetRange, Partition, Reason, SchemaRef, TenantId,
};
use tidegate_ingest::{
    books::{Books, Open, Outcome},
    budget::Budget,
    clock::SystemClock,
    edge::{
        Behind, EdgeConfig, EdgeHandle, EdgeParts, bind,
        judge::{Judge, JudgeSession},
    },
    json::ScanLimits,
    normalize::{Item, JudgeContext, Judged, Normalizer, SchemaStore, SchemasConfig, Verdict},
    quota::Quotas,
    shed::{Pressure, ShedReason},
    storage::Disk,
    tenants::{NewTenant, Quota, Tenants},
    writer::{Append, AppendError, Appended, BoxFuture},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
};

/// Follows the normalizer's contract for types, ids and objects; `"bad":true` is a dead letter.
struct FakeJudge;

impl Judge for FakeJudge {
    fn session(&self) -> Box<dyn JudgeSession + '_> {
        Box::new(FakeSession)
    }
}

struct FakeSession;

impl JudgeSession for FakeSession {
    fn judge<'s>(&'s mut self, context: &JudgeContext<'s>, item: &Item<'s>) -> Judged<'s> {
        let parsed = serde_json::from_slice::<serde_json::Value>(item.raw);
        let field = |name: &str| {
            let value = parsed.as_ref().ok()?.get(name).filter(|_| item.reserved)?;
            value.as_str().map(str::to_owned)
        };
        let name = field("event_type").or(item.event_type.map(str::to_owned)).unwrap_or_default();
        let event_type = match EventType::mapped(&name) {
            Some(mapped) if item.map_names => mapped,
            _ => EventType::new(&name).unwrap_or(EventType::unnamed()),
        };
        let allowed = context.key_types.is_none_or(|t| t.iter().any(|n| n == event_type.as_str()));
        let verdict = match &parsed {
            Err(error) => Verdict::Rejected(Reason::new(Code::InvalidJson, "", error.to_string())),
            Ok(value) if !value.is_object() => {
                Verdict::Rejected(Reason::new(Code::NotAnObject, "", "not an object"))
            }
            Ok(_) if !allowed => Verdict::Rejected(Reason::new(Code::TypeForbidden, "", "no")),
            Ok(value) if value.get("bad").is_some() => {
                Verdict::DeadLetter(Reason::new(Code::TypeMismatch, "/bad", "bad"))
            }
            Ok(_) => Verdict::Accepted,
        };
        Judged {
            event_type,
            schema: SchemaRef::default(),
            client_id: field("event_id").or(item.event_id.map(str::to_owned)).map(Into::into),
            event_time: context.received_at.as_event_time(),
            pii_changed: false,
            note: "".into(),
            raw: item.raw.into(),
            verdict,
        }
    }
}

/// The real normalizer, without schemas.
pub fn normalizer() -> Arc<Normalizer> {
    let dir = tempfile::tempdir().unwrap();
    let store = SchemaStore::open(Arc::new(Disk), dir.path().to_owned()).unwrap();
    let limits = ScanLimits { depth: 32, fields: 512 };
    let config = SchemasConfig::default();
    Arc::new(Normalizer::load(&config, Arc::new(store), limits).unwrap())
}

/// Keeps batches in memory; answers as told.
pub struct FakeLog {
    pub batches: Mutex<Vec<EncodedBatch>>,
    pub refuse: Mutex<Option<AppendError>>,
    pub known: Mutex<Vec<u32>>,
    /// Appends wait for a permit where there are none.
    pub gate: Semaphore,
    pub waiting: std::sync::atomic::AtomicUsize,
}

impl Append for FakeLog {
    fn append(
        &self,
        batch: EncodedBatch,
        mut entry: Open,
    ) -> BoxFuture<'_, Result<Appended, AppendError>> {
        Box::pin(async move {
            self.waiting.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let turn = self.gate.acquire().await.unwrap();
            drop(turn);
            self.waiting.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            if let Some(error) = self.refuse.lock().unwrap().clone() {
                entry.shed(error.reason());
                return Err(error);
            }
            for tally in &batch.tallies {
                entry.settle(&tally.event_type, Outcome::Accepted, tally.accepted);
                entry.settle(&tally.event_type, Outcome::DeadLettered, tally.dead_lettered);
            }
            let range = OffsetRange::new(Offset(0), Offset(u64::from(batch.count)));
            self.batches.lock().unwrap().push(batch);
            let deduplicated = self.known.lock().unwrap().clone();
            Ok(Appended { partition: Partition(0), range, deduplicated })
        })
    }
}

/// What is shed, and whether those who waited as told are taken all the same.
#[derive(Default)]
pub struct FakePressure(pub Mutex<Option<(ShedReason, Duration)>>, pub AtomicBool);

impl Pressure for FakePressure {
    fn shed(&self, _: &TenantId, waited: bool) -> Option<(ShedReason, Duration)> {
        self.0.lock().unwrap().filter(|_| !(waited && self.1.load(Ordering::SeqCst)))
    }
    fn ready(&self) -> bool {
        self.0.lock().unwrap().is_none()
    }
}

/// A running edge with one tenant, `acme`.
pub struct Server {
    pub address: SocketAddr,
    pub handle: EdgeHandle,
    pub served: tokio::task::JoinHandle<()>,
    pub key: String,
    pub log: Arc<FakeLog>,
    pub books: Arc<Books>,
    pub tenants: Arc<Tenants>,
    pub pressure: Arc<FakePressure>,
    pub budget: Arc<Budget>,
    pub dir: tempfile::TempDir,
}

pub struct Setup {
    pub config: EdgeConfig,
    pub quota: Quota,
    pub strict: bool,
    pub budget: u64,
    pub judge: Arc<dyn Judge>,
}

pub async fn start() -> Server {
    start_with(|_| {}).await
}

pub async fn start_with(change: impl FnOnce(&mut Setup)) -> Server {
    let config = EdgeConfig { listen: "127.0.0.1:0".to_owned(), ..EdgeConfig::default() };
    let mut setup = Setup {
        config,
        quota: Quota::default(),
        strict: false,
        budget: 256 << 20,
        judge: Arc::new(FakeJudge),
    };
    change(&mut setup);
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(SystemClock);
    let tenants = Tenants::load(dir.path(), Quota::default(), clock.clone()).unwrap();
    let id = TenantId::new("acme").unwrap();
    let new = NewTenant { id, quota: setup.quota, strict: setup.strict };
    let key = tenants.add(&new).unwrap();
    let tenants = Arc::new(tenants);
    let log = Arc::new(FakeLog {
        batches: Mutex::default(),
        refuse: Mutex::default(),
        known: Mutex::default(),
        gate: Semaphore::new(1_000_000),
        waiting: Default::default(),
    });
    let (books, pressure) = (Arc::new(Books::default()), Arc::new(FakePressure::default()));
    let budget = Budget::new(setup.budget);
    let edge = bind(EdgeParts {
        config: setup.config,
        tenants: tenants.clone(),
        behind: Behind::Here { judge: setup.judge, log: log.clone() },
        books: books.clone(),
        clock,
        budget: budget.clone(),
        pressure: pressure.clone(),
        quotas: Quotas::new(Arc::new(SystemClock)),
    })
    .await
    .unwrap();
    let (address, handle) = (edge.local_addr(), edge.handle());
    let served = tokio::spawn(edge.serve());
    Server { address, handle, served, key, log, books, tenants, pressure, budget, dir }
}

impl Server {
    /// What another edge over the same things is made of.
    pub fn parts(&self) -> EdgeParts {
        EdgeParts {
            config: EdgeConfig { listen: "127.0.0.1:0".to_owned(), ..EdgeConfig::default() },
            tenants: self.tenants.clone(),
            behind: Behind::Here { judge: Arc::new(FakeJudge), log: self.log.clone() },
            books: self.books.clone(),
            clock: Arc::new(SystemClock),
            budget: self.budget.clone(),
            pressure: self.pressure.clone(),
            quotas: Quotas::new(Arc::new(SystemClock)),
        }
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The head of a POST with the tenant's key.
    pub fn head(&self, headers: &str) -> String {
        format!(
            "POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n{headers}",
            self.key
        )
    }

    pub async fn raw(&self, request: &[u8]) -> Reply {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        read_reply(&mut stream).await
    }

    /// Posts `body` with the tenant's key; `headers` in whole lines.
    pub async fn post(&self, headers: &str, body: &[u8]) -> Reply {
        let head = format!("{}Content-Length: {}\r\n\r\n", self.head(headers), body.len());
        self.raw(&[head.as_bytes(), body].concat()).await
    }

    pub async fn json(&self, body: &str) -> Reply {
        self.post("Content-Type: application/json\r\n", body.as_bytes()).await
    }

    /// Every event kept so far: type, id if the client gave one, bytes.
    pub fn kept(&self) -> Vec<(String, Option<String>, String)> {
        let batches = self.log.batches.lock().unwrap();
        let mut kept = Vec::new();
        for batch in batches.iter() {
            let view = tidegate_event::BatchView::parse(&batch.body).unwrap();
            for record in view.records() {
                let record = record.unwrap();
                kept.push((
                    record.kind.name.to_owned(),
                    record.client_id.map(str::to_owned),
                    String::from_utf8(record.raw.to_vec()).unwrap(),
                ));
            }
        }
        kept
    }

    /// The books of `acme` balance, nothing is in flight, and only connections hold memory.
    pub async fn is_balanced(&self) {
        for _ in 0..500 {
            let stats = self.handle.stats();
            if stats.requests == 0 && self.budget.held() == stats.connection_bytes {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.budget.held(), self.handle.stats().connection_bytes);
        for page in self.books.copy().values() {
            assert_eq!(page.in_flight, 0);
            assert!(page.types.values().all(|tally| tally.unsettled() == 0), "{page:?}");
        }
    }

    pub fn page(&self) -> tidegate_ingest::books::PageCopy {
        self.books.copy().remove(&TenantId::new("acme").unwrap()).unwrap_or_default()
    }
}

/// An answer, read.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: serde_json::Value,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// An error as the contract has it.
    #[track_caller]
    pub fn is_problem(&self, status: u16, code: &str) -> &Self {
        assert_eq!((self.status, self.code()), (status, code), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert!(self.header("x-request-id").is_some(), "{self:?}");
        assert_eq!(self.body["status"], status);
        assert!(!self.body["title"].as_str().unwrap().is_empty());
        assert!(!self.body["detail"].as_str().unwrap().is_empty());
        self
    }

    /// A refusal that may be sent again.
    #[track_caller]
    pub fn is_shed(&self, reason: ShedReason) -> &Self {
        self.is_problem(reason.status(), reason.as_str());
        assert_eq!(self.header("x-shed-reason"), Some(reason.as_str()));
        let seconds: u64 = self.header("retry-after").unwrap().parse().unwrap();
        assert!(1 <= seconds, "{self:?}");
        self
    }

    #[track_caller]
    pub fn counts(&self, accepted: u64, dead_lettered: u64, rejected: u64) -> &Self {
        assert_eq!(self.status, 200, "{self:?}");
        assert_eq!(self.body["accepted"], accepted, "{self:?}");
        assert_eq!(self.body["dead_lettered"], dead_lettered, "{self:?}");
        assert_eq!(self.body["rejected"], rejected, "{self:?}");
        self
    }
}

/// Reads one answer; panics where there is none.
pub async fn read_reply(stream: &mut (impl AsyncRead + Unpin)) -> Reply {
    try_read_reply(stream).await.expect("an answer")
}

/// Reads one answer; `None` where the connection ends before one.
pub async fn try_read_reply(stream: &mut (impl AsyncRead + Unpin)) -> Option<Reply> {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let is_length = name.eq_ignore_ascii_case("content-length");
                is_length.then(|| value.trim().parse::<usize>().unwrap())
            });
            let end = at + 4 + length.unwrap_or(0);
            while bytes.len() < end {
                if stream.read_buf(&mut bytes).await.unwrap() == 0 {
                    panic!("answer cut short: {head}");
                }
            }
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            let body = serde_json::from_slice(&bytes[at + 4..end]).unwrap_or_default();
            return Some(Reply { status, head, body });
        }
        match stream.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// True once the peer has closed; fails the test after a generous while.
pub async fn is_closed(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let mut waste = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut waste)).await;
    assert!(end.is_ok(), "the connection is still open");
}
