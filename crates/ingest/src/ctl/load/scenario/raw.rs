//! Connections that do not speak HTTP to its end: bodies that dribble, half a head, readers that never read.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    party::ATTACKERS,
    report::{float, share},
    server::Tenant,
};
use crate::ctl::{
    client::Target,
    fault::Fault,
    load::engine::{be_nice, runtime},
};

/// A connection that was closed, or could not be made, is opened again after this long.
const REOPEN_AFTER: Duration = Duration::from_millis(200);
/// The length that a slow body declares.
const DECLARED_BYTES: usize = 65_536;

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Declares a body and sends one byte of it at a time.
    SlowBody {
        /// The time between two bytes.
        gap: Duration,
    },
    /// Sends half of a request's head, and no more.
    HalfHead,
    /// Sends a request a second and reads no answer.
    NeverReads,
}

impl Kind {
    /// The time after which a connection does the same again.
    fn gap(self) -> Duration {
        match self {
            Self::SlowBody { gap } => gap,
            Self::HalfHead | Self::NeverReads => Duration::from_secs(1),
        }
    }

    /// As the report calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SlowBody { .. } => "slow bodies",
            Self::HalfHead => "half heads",
            Self::NeverReads => "never read",
        }
    }
}

/// Many connections of one kind.
#[derive(Clone, Debug)]
pub struct Raw {
    /// What each does.
    pub kind: Kind,
    /// How many there are at once.
    pub connections: usize,
    /// Whose key they carry.
    pub tenant: Tenant,
}

/// What came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections made.
    pub opened: u64,
    /// Connections that could not be made.
    pub not_opened: u64,
    /// Ended by the server.
    pub ended: u64,
    /// Requests begun.
    pub offered: u64,
}

impl Counts {
    /// Adds another phase's.
    pub fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.not_opened += other.not_opened;
        self.ended += other.ended;
        self.offered += other.offered;
    }
}

#[derive(Debug, Default)]
struct Shared {
    opened: AtomicU64,
    not_opened: AtomicU64,
    ended: AtomicU64,
    offered: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Connections under way.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    handle: JoinHandle<Result<(), Fault>>,
}

impl Running {
    /// Opens them, on a thread of their own, until `end`.
    ///
    /// # Errors
    /// [`Fault::Usage`] where the key is no text.
    pub fn start(raw: &Raw, target: &Target, end: Instant, niceness: i32) -> Result<Self, Fault> {
        let shared = Arc::new(Shared::default());
        let words = Arc::new(Words::new(raw, target)?);
        let (target, counted) = (target.clone().from(ATTACKERS), Arc::clone(&shared));
        let (kind, connections) = (raw.kind, raw.connections);
        let handle = std::thread::spawn(move || {
            be_nice(niceness)?;
            runtime()?.block_on(async {
                let mut tasks = JoinSet::new();
                for number in 0..connections {
                    let (target, counted) = (target.clone(), Arc::clone(&counted));
                    let words = Arc::clone(&words);
                    // As clients that know nothing of each other: spread over the time after which each
                    // does the same again.
                    let pause =
                        kind.gap().mul_f64(share(float(number as u64), float(connections as u64)));
                    tasks.spawn(async move {
                        sleep(pause).await;
                        keep_open(kind, &target, &words, &counted).await;
                    });
                }
                // At the end they are cut, as those of a client that is killed.
                sleep(end.saturating_duration_since(Instant::now())).await;
                tasks.shutdown().await;
            });
            Ok(())
        });
        Ok(Self { shared, handle })
    }

    /// True once all are closed.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// [`Fault::Failed`] where the thread died.
    pub fn join(self) -> Result<Counts, Fault> {
        let died = |_| Fault::failed("a thread of the load died", "this is a fault of ingestctl");
        self.handle.join().map_err(died)??;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(Counts {
            opened: of(&self.shared.opened),
            not_opened: of(&self.shared.not_opened),
            ended: of(&self.shared.ended),
            offered: of(&self.shared.offered),
        })
    }
}

/// What they say, made once.
struct Words {
    head: Vec<u8>,
    half: usize,
    event: Vec<u8>,
}

impl Words {
    fn new(raw: &Raw, target: &Target) -> Result<Self, Fault> {
        let key = raw.tenant.authorization.to_str();
        let key =
            key.map_err(|_| Fault::Usage("a key is one line of printable text".to_owned()))?;
        let event = br#"{"event_type":"slow","text":"one byte at a time"}"#.to_vec();
        let length = match raw.kind {
            Kind::NeverReads => event.len(),
            Kind::SlowBody { .. } | Kind::HalfHead => DECLARED_BYTES,
        };
        let mut head = String::new();
        let host = target.host_header().unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(
            head,
            "POST /v1/events HTTP/1.1\r\nhost: {host}\r\nauthorization: {key}\r\n\
             content-type: application/x-ndjson\r\ncontent-length: {length}\r\n\r\n"
        );
        let half = head.len() / 2;
        Ok(Self { head: head.into_bytes(), half, event })
    }
}

/// One connection, opened again whenever it ends.
async fn keep_open(kind: Kind, target: &Target, words: &Words, counted: &Shared) {
    loop {
        match target.tcp().await {
            Ok(stream) => {
                count(&counted.opened);
                speak(kind, stream, words, counted).await;
                count(&counted.ended);
            }
            Err(_) => count(&counted.not_opened),
        }
        sleep(REOPEN_AFTER).await;
    }
}

/// Speaks until the server ends the connection.
async fn speak(kind: Kind, mut stream: TcpStream, words: &Words, counted: &Shared) {
    let _ = stream.set_nodelay(true);
    match kind {
        Kind::HalfHead => {
            let half = words.head.get(..words.half).unwrap_or_default();
            if stream.write_all(half).await.is_ok() {
                count(&counted.offered);
                let mut answer = [0; 1024];
                while matches!(stream.read(&mut answer).await, Ok(1..)) {}
            }
        }
        Kind::SlowBody { gap } => {
            if stream.write_all(&words.head).await.is_err() {
                return;
            }
            count(&counted.offered);
            let mut answer = [0; 1024];
            for byte in words.event.iter().cycle() {
                // An answer this early is a refusal: read to its end.
                match timeout(gap, stream.read(&mut answer)).await {
                    Ok(Ok(1..)) => continue,
                    Ok(Ok(0) | Err(_)) => return,
                    Err(_) => {}
                }
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
            }
        }
        Kind::NeverReads => loop {
            let request = [words.head.as_slice(), &words.event].concat();
            // Once the answers fill both sides' buffers the server reads no more, and this waits.
            if stream.write_all(&request).await.is_err() {
                return;
            }
            count(&counted.offered);
            sleep(kind.gap()).await;
        },
    }
}
