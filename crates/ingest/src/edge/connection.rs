//! One connection's pulse: closes those that wait for ever, and ends others without losing answers.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tidegate_event::TenantId;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{Instant, Sleep, sleep},
};

use super::{Timeouts, bare, crowd::Place};
use crate::quota::{Line, Patience};

/// How long, and for how many bytes, a closed connection is read on, so that a client that is still
/// sending gets to read its answer instead of a reset. Many clients send a body whole before they
/// read; to throw away twice the usual largest one costs a few milliseconds.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 32 << 20;
/// The same for a client that showed no live key: nobody gets much read for nothing. The rest is left
/// where it is; a client that reads while it writes still has its answer.
const STRANGER_LINGER_BYTES: usize = 16 << 10;

/// How long a connection that has to make room may take to end by itself.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(250);

/// Who comes so much later than it was told still waited as told: `Retry-After` counts whole seconds,
/// and is spread.
const AS_TOLD: Duration = Duration::from_secs(10);

/// What a connection is waiting for. Times are milliseconds since it began, plus 1; 0: not waiting.
#[derive(Debug)]
pub(super) struct Pulse {
    began: Instant,
    requests: AtomicU32,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    stalled_since: AtomicU64,
    http2: AtomicBool,
    known: AtomicBool,
    /// Requests whose body is being read.
    receiving: AtomicU32,
    closing: AtomicBool,
    close: Notify,
    patience: Mutex<Patience>,
    /// When the last refusal that was for nobody's quota told its client to come again.
    come_again: Mutex<Option<Instant>>,
}

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    Head,
    Idle,
    Reader,
}

impl Pulse {
    pub(super) fn new(http2: bool) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            requests: AtomicU32::new(0),
            idle_since: AtomicU64::new(1),
            head_since: AtomicU64::new(0),
            stalled_since: AtomicU64::new(0),
            http2: AtomicBool::new(http2),
            known: AtomicBool::new(false),
            receiving: AtomicU32::new(0),
            closing: AtomicBool::new(false),
            close: Notify::new(),
            patience: Mutex::default(),
            come_again: Mutex::default(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn start(&self, since: &AtomicU64) {
        // Relaxed: only this connection's task writes, and nothing else is read by it.
        if since.load(Ordering::Relaxed) == 0 {
            since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// A request's head is whole; the guard goes when it is answered.
    pub(super) fn request(self: &Arc<Self>, place: Arc<Place>) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
        Busy { pulse: Arc::clone(self), place }
    }

    /// TLS said so.
    pub(super) fn is_http2(&self) {
        self.http2.store(true, Ordering::Relaxed);
    }

    /// True where it has no request, and was not told to end.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0 && !self.is_closing()
    }

    /// True where all its requests are bodies that still come, and it was not told to end.
    pub(super) fn is_receiving(&self) -> bool {
        let receiving = self.receiving.load(Ordering::Relaxed);
        receiving == self.requests.load(Ordering::Relaxed) && !self.is_closing()
    }

    /// Tells the connection to end now.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.close.notify_one();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Returns once it was told to end.
    pub(super) async fn closed(&self) {
        while !self.is_closing() {
            self.close.notified().await;
        }
    }

    /// What it has waited for too long, if anything.
    pub(super) fn overdue(&self, timeouts: &Timeouts) -> Option<Overdue> {
        let now = self.now();
        let over = |since: &AtomicU64, most: Duration| {
            let since = since.load(Ordering::Relaxed);
            since != 0 && most.as_millis() < u128::from(now.saturating_sub(since))
        };
        if over(&self.stalled_since, timeouts.body_idle.0) {
            return Some(Overdue::Reader);
        }
        if self.requests.load(Ordering::Relaxed) != 0 {
            return None;
        }
        // HTTP/2 clients send settings and pings without a request: those wait as idle ones do.
        let head = !self.http2.load(Ordering::Relaxed);
        if head && over(&self.head_since, timeouts.header.0) {
            return Some(Overdue::Head);
        }
        over(&self.idle_since, timeouts.idle.0).then_some(Overdue::Idle)
    }
}

/// A request in progress.
pub(super) struct Busy {
    pulse: Arc<Pulse>,
    place: Arc<Place>,
}

impl Busy {
    /// The request came with a live key of `tenant`'s.
    pub(super) fn is_known(&self, tenant: &TenantId) {
        self.pulse.known.store(true, Ordering::Relaxed);
        self.place.belongs_to(tenant);
    }

    /// Its body is being read, until the guard goes: until then nothing of it is kept, and it may be
    /// cut off.
    pub(super) fn receiving(&self) -> Receiving {
        self.pulse.receiving.fetch_add(1, Ordering::Relaxed);
        Receiving(Arc::clone(&self.pulse))
    }

    /// The request is answered, and its body still comes.
    pub(super) fn still_coming(&self) -> (Self, Receiving) {
        (self.pulse.request(Arc::clone(&self.place)), self.receiving())
    }

    /// The slot that its connection was promised is for others.
    pub(super) fn lets_slot_go(&self) {
        self.pulse.patience.lock().unwrap_or_else(PoisonError::into_inner).lets_slot_go();
    }

    /// What its client was told when it was refused for its quota.
    pub(super) fn patience(&self) -> &Mutex<Patience> {
        &self.pulse.patience
    }

    /// Its client is told to come again after so long.
    pub(super) fn is_sent_away(&self, after: Duration) {
        *self.come_again() = Some(Instant::now() + after);
    }

    /// True where its client was sent away, and comes when it was told to. Said once.
    pub(super) fn comes_as_told(&self) -> bool {
        let now = Instant::now();
        self.come_again().take().is_some_and(|then| then <= now && now <= then + AS_TOLD)
    }

    fn come_again(&self) -> MutexGuard<'_, Option<Instant>> {
        self.pulse.come_again.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests in a row that came before they were told to.
    pub(super) fn impolite(&self) -> u32 {
        self.pulse.patience.lock().unwrap_or_else(PoisonError::into_inner).impolite()
    }

    /// The connection ends once what is under way is answered.
    pub(super) fn ends_connection(&self) {
        self.pulse.close();
    }

    /// How the connection stands where it stays open after a refusal (`keeps`).
    pub(super) fn line(&self, keeps: bool) -> Line {
        let multiplexed = self.pulse.http2.load(Ordering::Relaxed);
        Line { keeps: keeps || multiplexed, multiplexed }
    }
}

/// A body that is being read.
pub(super) struct Receiving(Arc<Pulse>);

impl Drop for Receiving {
    fn drop(&mut self) {
        self.0.receiving.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let now = self.pulse.now();
        self.pulse.idle_since.store(now, Ordering::Relaxed);
        self.pulse.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that tells its pulse what happens on it.
pub(super) struct Watched<S> {
    stream: S,
    pulse: Arc<Pulse>,
    first: Vec<u8>,
    ended: bool,
    linger: Option<(Pin<Box<Sleep>>, usize)>,
    /// Our own text in place of the HTTP library's, and how much of it is written.
    instead: Option<(Vec<u8>, usize)>,
}

const PREFACE: &[u8] = b"PRI";

impl<S> Watched<S> {
    pub(super) fn new(stream: S, pulse: Arc<Pulse>) -> Self {
        let first = Vec::with_capacity(PREFACE.len());
        Self { stream, pulse, first, ended: false, linger: None, instead: None }
    }

    fn on_read(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.ended = true;
            return;
        }
        if self.first.len() < PREFACE.len() {
            let missing = PREFACE.len() - self.first.len();
            self.first.extend(bytes.iter().take(missing));
            if self.first == PREFACE {
                self.pulse.http2.store(true, Ordering::Relaxed);
            }
        }
        if self.pulse.requests.load(Ordering::Relaxed) == 0 {
            self.pulse.start(&self.pulse.head_since);
        }
    }

    fn on_write<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &result {
            Poll::Pending => self.pulse.start(&self.pulse.stalled_since),
            Poll::Ready(_) => self.pulse.stalled_since.store(0, Ordering::Relaxed),
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = buf.filled().get(before..).unwrap_or_default();
        self.on_read(read);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    /// Writes ours where `buf` is an answer of the HTTP library's own; `None` where it is not.
    fn poll_instead(
        &mut self,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Option<Poll<io::Result<usize>>> {
        if self.instead.is_none() && !self.pulse.http2.load(Ordering::Relaxed) {
            self.instead = bare::instead_of(buf).map(|ours| (ours, 0));
        }
        let (ours, done) = self.instead.as_mut()?;
        while let Some(left) = ours.get(*done..).filter(|left| !left.is_empty()) {
            match Pin::new(&mut self.stream).poll_write(cx, left) {
                Poll::Ready(Ok(0)) => {
                    return Some(Poll::Ready(Err(io::ErrorKind::WriteZero.into())));
                }
                Poll::Ready(Ok(written)) => *done += written,
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => return Some(Poll::Pending),
            }
        }
        self.instead = None;
        Some(Poll::Ready(Ok(buf.len())))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(written) = self.poll_instead(cx, buf) {
            return self.on_write(written);
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.on_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [head] = bufs
            && let Some(written) = self.poll_instead(cx, head)
        {
            return self.on_write(written);
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.on_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.on_write(flushed)
    }

    /// Sends the end, then reads what the client still sends, for a while.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            let shut = Pin::new(&mut this.stream).poll_shutdown(cx);
            ready!(this.on_write(shut))?;
            let known = this.pulse.known.load(Ordering::Relaxed);
            let bytes = if known { LINGER_BYTES } else { STRANGER_LINGER_BYTES };
            this.linger = Some((Box::pin(sleep(LINGER)), bytes));
        }
        let Some((timer, left)) = &mut this.linger else { return Poll::Ready(Ok(())) };
        let mut waste = [0; 16 << 10];
        while !this.ended {
            if timer.as_mut().poll(cx).is_ready() {
                break;
            }
            if *left == 0 {
                // Read no further, but not closed yet: that would be a reset, and take back an answer
                // that the client has not read.
                return Poll::Pending;
            }
            let mut buf = ReadBuf::new(&mut waste);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {
                    *left = left.saturating_sub(buf.filled().len());
                }
                // The end, or a reset: nothing more comes.
                Ok(()) | Err(_) => this.ended = true,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::edge::crowd::Crowd;

    /// How much of 100 KiB is read from a client that is still sending when its connection is ended.
    async fn read_at_the_end(known: bool) -> usize {
        let (mut client, server) = duplex(100 << 10);
        client.write_all(&[b'x'; 100 << 10]).await.unwrap();
        let pulse = Pulse::new(false);
        if known {
            let crowd = Arc::new(Crowd::default());
            let place = Arc::new(crowd.enter([192, 0, 2, 1].into(), &pulse));
            pulse.request(place).is_known(&TenantId::new("acme").unwrap());
        }
        let mut watched = Watched::new(server, pulse);
        watched.shutdown().await.unwrap();
        let mut left = Vec::new();
        let Watched { mut stream, .. } = watched;
        drop(client);
        stream.read_to_end(&mut left).await.unwrap();
        (100 << 10) - left.len()
    }

    #[tokio::test]
    async fn who_has_no_key_gets_next_to_nothing_read() {
        let (known, stranger) = tokio::join!(read_at_the_end(true), read_at_the_end(false));
        assert_eq!((known, stranger), (100 << 10, STRANGER_LINGER_BYTES));
    }

    #[tokio::test]
    async fn a_bodiless_refusal_of_the_library_goes_out_as_ours_in_any_pieces() {
        let bare = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        let (mut client, server) = duplex(7);
        let mut watched = Watched::new(server, Pulse::new(false));
        let reader = tokio::spawn(async move {
            let mut text = String::new();
            client.read_to_string(&mut text).await.unwrap();
            text
        });
        watched.write_all(bare).await.unwrap();
        drop(watched);
        let text = reader.await.unwrap();
        assert!(text.contains("x-request-id") && text.ends_with('}'), "{text}");
    }
}
