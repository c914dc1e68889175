//! Delivers one batch at a time: sends it until it is kept or known not to be.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;

use super::{Batch, Settings, Tally};
use crate::ctl::{
    admin::describe,
    client::{NoAnswer, Reply, Sender, request},
    fault::Fault,
    public::{Kept, asks_again, retry_after, wait},
};

/// Owns one connection.
#[derive(Debug)]
pub struct Worker {
    settings: Rc<Settings>,
    tally: Rc<RefCell<Tally>>,
    connection: Option<Sender>,
}

/// What to do after one try.
enum Next {
    /// It is known what became of every event.
    Settled,
    /// Not now: the same again, after what the server asks for.
    Again { asked: Option<Duration>, why: String },
    /// Too large as it is.
    Halve(Reply),
}

impl Worker {
    /// Not connected yet.
    pub fn new(settings: Rc<Settings>, tally: Rc<RefCell<Tally>>) -> Self {
        Self { settings, tally, connection: None }
    }

    /// Sends a batch, in halves where it is too large, until all of it is settled.
    ///
    /// # Errors
    /// What makes sending the rest senseless: the batch is noted as unsent.
    pub async fn deliver(&mut self, batch: Batch) -> Result<(), Fault> {
        let mut left = vec![batch];
        while let Some(batch) = left.pop() {
            match self.settle(&batch).await {
                Ok(None) => {}
                Ok(Some(reply)) => match batch.halves() {
                    Some((first, second)) => left.extend([second, first]),
                    None => self.tally.borrow_mut().refused(&batch, &reply),
                },
                Err(fault) => {
                    let mut tally = self.tally.borrow_mut();
                    left.push(batch);
                    left.iter().for_each(|batch| tally.unsent(batch));
                    return Err(fault);
                }
            }
        }
        Ok(())
    }

    /// Tries until it is settled (`None`) or too large (the answer that says so).
    async fn settle(&mut self, batch: &Batch) -> Result<Option<Reply>, Fault> {
        let body = self.settings.compression.pack(batch.body.clone())?;
        let started = Instant::now();
        let mut tries = 0;
        loop {
            tries += 1;
            let (asked, why) = match self.attempt(batch, &body).await? {
                Next::Settled => return Ok(None),
                Next::Halve(reply) => return Ok(Some(reply)),
                Next::Again { asked, why } => (asked, why),
            };
            let pause = wait(tries, asked, rand::random());
            if started.elapsed() + pause > self.settings.retry_for {
                let (first, last) = batch.span();
                return Err(Fault::failed(
                    format!("gave up on lines {first} to {last} after {tries} tries: {why}"),
                    "see `ingestctl status`; give it longer with --retry-for",
                ));
            }
            self.tally.borrow_mut().retried(&why, pause);
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&mut self, batch: &Batch, body: &Bytes) -> Result<Next, Fault> {
        let reply = match self.ask(batch, body).await? {
            Ok(reply) => reply,
            Err(no_answer) => {
                self.connection = None;
                self.tally.borrow_mut().no_answer(&no_answer);
                return Ok(Next::Again { asked: None, why: no_answer.to_string() });
            }
        };
        self.tally.borrow_mut().answered(reply.status);
        let failed = |mend: &str| {
            let what = format!("{}: {}", self.settings.target.shown(), describe(&reply));
            Err(Fault::failed(what, mend))
        };
        match reply.status {
            StatusCode::OK => {
                let kept = Kept::read(&reply.body)?;
                let key = self.idempotency_key(batch);
                let event_type = self.settings.event_type.as_deref();
                self.tally.borrow_mut().kept(batch, &kept, &key, event_type)?;
                Ok(Next::Settled)
            }
            status if asks_again(status) => {
                Ok(Next::Again { asked: retry_after(&reply.headers), why: describe(&reply) })
            }
            StatusCode::PAYLOAD_TOO_LARGE => Ok(Next::Halve(reply)),
            // These speak about the events; a type that this key may not send (403) is one of them.
            StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::UNPROCESSABLE_ENTITY => {
                self.tally.borrow_mut().refused(batch, &reply);
                Ok(Next::Settled)
            }
            StatusCode::UNAUTHORIZED => failed("check --key (TIDEGATE_KEY)"),
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => failed(
                "check that --url is the public address of ingestd (its default port is 8080)",
            ),
            _ => failed(""),
        }
    }

    fn idempotency_key(&self, batch: &Batch) -> String {
        format!("{}-{}", self.settings.idempotency_key, batch.name)
    }

    /// One request on the connection, which is opened if there is none.
    async fn ask(&mut self, batch: &Batch, body: &Bytes) -> Result<Result<Reply, NoAnswer>, Fault> {
        let request = self.request(batch, body)?;
        let timeout = self.settings.timeout;
        if self.connection.as_ref().is_none_or(Sender::is_closed) {
            match self.settings.target.open().await {
                Ok(sender) => self.connection = Some(sender),
                Err(e) => return Ok(Err(e)),
            }
        }
        match &mut self.connection {
            Some(sender) => Ok(sender.ask(request, timeout).await),
            None => Ok(Err(NoAnswer::Cut("no connection".to_owned()))),
        }
    }

    fn request(&self, batch: &Batch, body: &Bytes) -> Result<Request<Full<Bytes>>, Fault> {
        let settings = &self.settings;
        let mut builder = request(&settings.target, Method::POST, "/v1/events")
            .header(header::AUTHORIZATION, format!("Bearer {}", settings.key))
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .header("idempotency-key", self.idempotency_key(batch));
        if let Some(coding) = settings.compression.header() {
            builder = builder.header(header::CONTENT_ENCODING, coding);
        }
        if let Some(event_type) = &settings.event_type {
            builder = builder.header("x-event-type", event_type);
        }
        builder.body(Full::new(body.clone())).map_err(|e| {
            Fault::Usage(format!("cannot make a request: {e} (is the key one line of text?)"))
        })
    }
}
