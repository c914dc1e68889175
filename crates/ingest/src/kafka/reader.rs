//! Reads one partition from an offset on: each message is a frame of its own.
//!
//! So the same offsets are the same frames whoever reads them, from wherever, and however Kafka put
//! them together: a window that is read again is the same window. Offsets that Kafka gave to no event
//! (marks of transactions, what compaction took) are told as empty, once a later message proves it:
//! at the end of a partition alone nobody can tell them from events that are not visible yet.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers},
};
use tidegate_event::{Offset, OffsetRange, Partition};

use super::{
    client::Listener,
    cluster::{Cluster, number},
    message::{Decoder, HEADER_BYTES},
};
use crate::{
    metrics,
    sink::source::{SourceEntry, SourceError, SourceFrame, SourceReader},
};

/// How long what must be there may take to come.
const COMES_WITHIN: Duration = Duration::from_secs(5);
/// How long one look for it takes.
const POLL: Duration = Duration::from_millis(100);

/// One partition, from an offset on.
pub(super) struct Reader {
    cluster: Arc<Cluster>,
    partition: Partition,
    /// `None` only while it is dropped.
    consumer: Option<BaseConsumer<Listener>>,
    /// The next offset.
    at: Offset,
    /// Read already, behind offsets that were told first.
    ahead: Option<SourceEntry>,
    /// All below this was decided before this fetch began,
    decided: Offset,
    /// and it came to the end without it: what is left may be no events at all.
    tail: bool,
    /// It did not give what it must have: nobody is lent this consumer again.
    doubtful: bool,
    decoder: Decoder,
}

/// What a poll gave.
enum Polled {
    Nothing,
    End,
    Entry(Offset, SourceEntry),
    Failed(KafkaError),
}

impl Reader {
    pub fn open(
        cluster: Arc<Cluster>,
        partition: Partition,
        from: Offset,
    ) -> Result<Self, SourceError> {
        let earliest = cluster.earliest(partition);
        if from < earliest {
            return Err(SourceError::Gone { earliest });
        }
        if cluster.latest(partition) < from {
            let end = cluster.ask(partition).map_err(|e| unreadable(&e))?;
            if end < from && cluster.latest(partition) < from {
                let cause = format!("it ends at {end}, before {from}");
                return Err(SourceError::Read { cause });
            }
        }
        let consumer = cluster.borrow().map_err(|e| unreadable(&e))?;
        let mut reader = Self {
            cluster,
            partition,
            consumer: Some(consumer),
            at: from,
            ahead: None,
            decided: from,
            tail: false,
            doubtful: false,
            decoder: Decoder::default(),
        };
        reader.begin()?;
        Ok(reader)
    }

    /// Fetches from `at` on, anew.
    fn begin(&mut self) -> Result<(), SourceError> {
        let Some(consumer) = &self.consumer else { return Ok(()) };
        let mut wanted = TopicPartitionList::new();
        let at = KafkaOffset::Offset(i64::try_from(self.at.0).unwrap_or(i64::MAX));
        wanted
            .add_partition_offset(&self.cluster.topic, number(self.partition), at)
            .and_then(|()| consumer.assign(&wanted))
            .map_err(|e| unreadable(&e))
    }

    fn poll(&mut self, timeout: Duration) -> Polled {
        let Some(consumer) = &self.consumer else { return Polled::Nothing };
        match consumer.poll(timeout) {
            None => Polled::Nothing,
            Some(Err(KafkaError::PartitionEOF(_))) => Polled::End,
            Some(Err(error)) => Polled::Failed(error),
            Some(Ok(message)) => {
                let offset = Offset(u64::try_from(message.offset()).unwrap_or(0));
                if message.partition() != number(self.partition) || offset < self.at {
                    return Polled::Nothing;
                }
                let entry = entry(&mut self.decoder, &message, offset);
                self.cluster.saw((message.payload_len() + HEADER_BYTES) as u64);
                Polled::Entry(offset, entry)
            }
        }
    }

    /// The end of the partition, as this fetch found it. Where there should be more, it is fetched
    /// anew, once: then it may be offsets of no event, and nobody waits for those.
    fn at_end(&mut self) -> Result<(), SourceError> {
        if self.at < self.decided {
            self.tail = true;
        } else if self.at < self.cluster.latest(self.partition) {
            let decided = self.cluster.ask(self.partition).map_err(|e| unreadable(&e))?;
            if self.at < decided {
                self.decided = decided;
                self.begin()?;
            }
        }
        Ok(())
    }

    fn failed(&self, error: &KafkaError) -> Result<(), SourceError> {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                self.cluster.ask(self.partition).map_err(|e| unreadable(&e))?;
                let earliest = self.cluster.earliest(self.partition);
                if self.at < earliest {
                    return Err(SourceError::Gone { earliest });
                }
                let cause = format!("Kafka has no offset {} in it", self.at);
                Err(SourceError::Read { cause })
            }
            // It tries again by itself.
            Some(
                RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::Resolve,
            ) => Ok(()),
            _ => Err(unreadable(error)),
        }
    }
}

impl SourceReader for Reader {
    fn next(&mut self) -> Result<Option<SourceEntry>, SourceError> {
        if let Some(entry) = self.ahead.take() {
            return Ok(Some(entry));
        }
        let began = Instant::now();
        loop {
            let expected = !self.tail && self.at < self.cluster.latest(self.partition);
            let left = COMES_WITHIN.saturating_sub(began.elapsed());
            if expected && left.is_zero() {
                self.doubtful = true;
                let error = self.cluster.clients.heard.error().unwrap_or_default();
                let cause = format!("Kafka gives nothing from offset {} on {error}", self.at);
                return Err(SourceError::Read { cause: cause.trim_end().to_owned() });
            }
            let wait = match (expected, self.tail) {
                (true, _) => left.min(POLL),
                (false, true) => POLL,
                (false, false) => Duration::ZERO,
            };
            match self.poll(wait) {
                Polled::Nothing if expected => {}
                Polled::Nothing => return Ok(None),
                Polled::Failed(error) => self.failed(&error)?,
                Polled::End => {
                    self.at_end()?;
                    if !expected || self.tail {
                        return Ok(None);
                    }
                }
                Polled::Entry(offset, entry) => {
                    let empty = OffsetRange::new(self.at, offset);
                    self.at = offset.plus(1);
                    self.tail = false;
                    self.cluster.reaches(self.partition, self.at);
                    let Some(empty) = empty else { return Ok(Some(entry)) };
                    self.ahead = Some(entry);
                    return Ok(Some(SourceEntry::Empty(empty)));
                }
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(consumer) = self.consumer.take()
            && !self.doubtful
        {
            self.cluster.give_back(consumer);
        }
    }
}

fn entry(decoder: &mut Decoder, message: &BorrowedMessage<'_>, offset: Offset) -> SourceEntry {
    let headers = message.headers();
    let each = headers.into_iter().flat_map(|headers| headers.iter().map(|h| (h.key, h.value)));
    match decoder.batch(each, message.payload().unwrap_or_default()) {
        Ok((received_at, body)) => {
            SourceEntry::Frame(SourceFrame { base: offset, count: 1, received_at, body })
        }
        Err(error) => {
            metrics::kafka_foreign_messages(1);
            tracing::error!(partition = message.partition(), offset = offset.0, %error, "a message of the topic is passed over");
            let one = OffsetRange::new(offset, offset.plus(1));
            one.map_or(
                SourceEntry::Frame(SourceFrame {
                    base: offset,
                    count: 1,
                    received_at: tidegate_event::ReceivedAt(0),
                    body: bytes::Bytes::new(),
                }),
                SourceEntry::Quarantined,
            )
        }
    }
}

fn unreadable(error: &KafkaError) -> SourceError {
    SourceError::Read { cause: error.to_string() }
}
