//! The hops between roles over real sockets: real roles with scripted neighbours.

mod answers;
mod callers;
mod lost;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Method, Response};
use serde_json::{Value, json};
use tidegate_event::{
    BatchEncoder, EncodedBatch, EventTime, EventType, ReceivedAt, SchemaRef, TenantId,
    record::Record,
};
use tidegate_ingest::{
    hop::{
        self, APPEND, Call, Dial, Errand, HopConfig, Peer, Pool, Service,
        frame::{Frames, Script},
        outcome::Outcome,
        state::State,
    },
    writer::BoxFuture,
};
use tokio::{runtime::Runtime, time::Instant};

use crate::server::{Server, wait_for};

/// What a scripted writer does with a batch.
pub enum Act {
    /// Says so.
    Says(Outcome),
    /// Reads it, and never answers.
    IsSilent,
}

/// A writer that does as it is told, and counts the batches that came.
pub struct FakeWriter {
    pub address: SocketAddr,
    pub batches: Arc<AtomicUsize>,
    /// The `traceparent` of each call, if it had one.
    pub traces: Arc<Mutex<Vec<Option<String>>>>,
    acts: Arc<Mutex<VecDeque<Act>>>,
    /// Everything of it ends with this.
    runtime: Option<Runtime>,
}

/// Its side of the hop.
struct Scripted {
    batches: Arc<AtomicUsize>,
    traces: Arc<Mutex<Vec<Option<String>>>>,
    acts: Arc<Mutex<VecDeque<Act>>>,
}

impl Service for Scripted {
    fn call(&self, call: Call) -> BoxFuture<'static, Response<Script>> {
        let (batches, acts) = (Arc::clone(&self.batches), Arc::clone(&self.acts));
        let trace = call.request.headers().get("traceparent");
        let trace = trace.map(|value| value.to_str().unwrap().to_owned());
        self.traces.lock().unwrap().push(trace);
        Box::pin(async move {
            let Call { request, underway } = call;
            let body = Frames::new(request.into_body()).rest(1 << 30, None).await.unwrap();
            EncodedBatch::read(body).unwrap();
            batches.fetch_add(1, Ordering::SeqCst);
            let act = acts.lock().unwrap().pop_front().expect("no batch that was not expected");
            let _underway = underway;
            match act {
                Act::Says(outcome) => Response::new(Script::default().bare(outcome.encode())),
                Act::IsSilent => std::future::pending().await,
            }
        })
    }

    fn state(&self) -> State {
        State::default()
    }
}

impl FakeWriter {
    pub fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let (batches, acts, traces) = <(Arc<_>, Arc<_>, Arc<_>)>::default();
        let service = Scripted {
            batches: Arc::clone(&batches),
            traces: Arc::clone(&traces),
            acts: Arc::clone(&acts),
        };
        let config = HopConfig { listen: "127.0.0.1:0".to_owned(), ..HopConfig::default() };
        let second = Duration::from_secs(1);
        let server = runtime.block_on(hop::bind(&config, None, second, Arc::new(service))).unwrap();
        let address = server.local_addr();
        runtime.spawn(server.serve());
        Self { address, batches, traces, acts, runtime: Some(runtime) }
    }

    pub fn will(&self, act: Act) {
        self.acts.lock().unwrap().push_back(act);
    }

    pub fn batches(&self) -> usize {
        self.batches.load(Ordering::SeqCst)
    }

    /// Its connections end at once, as those of a process that is killed.
    pub fn die(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for FakeWriter {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A real edge and a real normalizer before `writers`.
pub struct Front {
    pub edge: Server,
    pub normalizer: Server,
    pub key: String,
}

impl Front {
    pub fn before(dir: &Path, writers: &[SocketAddr], hop: &str) -> Self {
        let writers: Vec<String> = writers.iter().map(ToString::to_string).collect();
        let normalizer = format!("[hop]\nwriters = {writers:?}\n{hop}\n");
        let normalizer = Server::role(dir, "normalizer", &normalizer);
        let edge = format!("[hop]\nnormalizers = [\"{}\"]\n{hop}\n", normalizer.public);
        let edge = Server::role(dir, "edge", &edge);
        let added = edge.admin_post("/api/v1/tenants", &json!({"tenant": "acme"})).json();
        let key = added["key"].as_str().unwrap().to_owned();
        wait_for("the edge to be ready", || edge.admin_get("/readyz").status == 200);
        Self { edge, normalizer, key }
    }

    pub fn send(&self, body: &str) -> Reply {
        self.send_with(("x-nothing", "more"), body)
    }

    pub fn send_with(&self, header: (&str, &str), body: &str) -> Reply {
        let authorization = format!("Bearer {}", self.key);
        let json = ("content-type", "application/json");
        let headers = [("authorization", &*authorization), json, header];
        let answer = crate::server::request(
            self.edge.public,
            "POST",
            "/v1/events",
            &headers,
            body.as_bytes(),
        );
        Reply { status: answer.status, body: answer.json() }
    }

    /// The books of acme at the edge: received, shed for this reason, requests refused uncounted.
    pub fn booked(&self, reason: &str) -> (u64, u64, u64) {
        for server in [&self.edge, &self.normalizer] {
            wait_for("nothing to be in flight", || {
                let books = server.admin_get("/api/v1/books").json();
                assert_eq!(books["difference"], 0, "{books:#}");
                books["in_flight"] == 0
            });
        }
        let books = self.edge.admin_get("/api/v1/books").json();
        let page = &books["tenants"]["acme"];
        let sum = |name: &str| -> u64 {
            let types = page["types"].as_object().into_iter().flatten();
            types.map(|(_, tally)| tally[name].as_u64().unwrap()).sum()
        };
        let reasons = page["reasons"].as_object().into_iter().flatten();
        let shed = reasons.map(|(_, r)| r["shed"][reason].as_u64().unwrap_or(0)).sum();
        (sum("received"), shed, page["refused_requests"].as_u64().unwrap_or(0))
    }
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: Value,
}

/// A batch of one event.
pub fn batch(tenant: &str) -> EncodedBatch {
    let tenant = TenantId::new(tenant).unwrap();
    let received_at = ReceivedAt(1_772_323_200_000_000);
    let mut batch = BatchEncoder::new(tenant, "events", received_at, [0; 16], 0);
    batch.push(&Record {
        index: 0,
        event_type: &EventType::new("view").unwrap(),
        schema: SchemaRef::default(),
        client_id: None,
        event_time: EventTime(1),
        dead: None,
        pii_changed: false,
        note: "",
        raw: b"{\"event_type\":\"view\"}",
    });
    batch.finish()
}

/// A caller of a real writer, as a normalizer is one.
pub struct Caller {
    pub runtime: Runtime,
    pub pool: Arc<Pool>,
}

impl Caller {
    pub fn of(address: SocketAddr, config: &HopConfig) -> Self {
        let runtime = Runtime::new().unwrap();
        let dial = Dial::new(config, config.secret().unwrap()).unwrap();
        let _inside = runtime.enter();
        let pool = Pool::of_names(&[address.to_string()], &dial);
        drop(_inside);
        Self { runtime, pool }
    }

    pub fn peer(&self) -> Arc<Peer> {
        Arc::clone(&self.pool.peers()[0])
    }

    pub fn is_taken(&self) -> Arc<Peer> {
        let peer = self.peer();
        wait_for("the writer to be reached", || peer.state().is_some());
        peer
    }

    /// Posts bytes in the name of `tenant`, which waits for so long; the status, and the outcome.
    pub fn append(&self, tenant: &str, body: Vec<u8>, wait: Duration) -> (u16, Option<Outcome>) {
        let peer = self.is_taken();
        let until = Instant::now().into_std() + wait;
        let errand = Errand {
            tenant: TenantId::new(tenant).unwrap(),
            until: Instant::from_std(until),
            traceparent: None,
        };
        let mut request = peer.request(Method::POST, APPEND);
        errand.write(request.headers_mut());
        *request.body_mut() = Script::default().bare(body);
        self.runtime.block_on(async {
            let patience = Instant::now() + Duration::from_secs(30);
            let answer = peer.send(request, patience).await.unwrap();
            let status = answer.status().as_u16();
            let body = Frames::new(answer.into_body()).rest(1 << 20, None).await.unwrap();
            (status, Outcome::decode(&body).ok())
        })
    }
}

/// How many events a writer's log has.
pub fn given(writer: &Server) -> Value {
    writer.admin_get("/api/v1/offsets").json()["partitions"][0]["latest"].clone()
}
