//! Schema contents by hash in the state topic, so that every process can read every event.
//!
//! They are written before an event is judged by them, and never change: a hash stands for one text.
//! So nobody owns them, and whoever lacks one reads for it.

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    producer::{BaseRecord, Producer, ThreadedProducer},
};

use super::{
    client::{Clients, Listener},
    state::VALUE_BYTES_MAX,
};
use crate::normalize::SharedContents;

/// How long writing or reading may take.
const WITHIN: Duration = Duration::from_secs(15);
/// Where they lie.
const PARTITION: i32 = 0;
const PREFIX: &str = "schema/";

/// The contents in the state topic.
pub(super) struct TopicContents {
    clients: Clients,
}

/// A hash, and what it stands for.
type Content<'a> = ([u8; 16], &'a [u8]);

impl TopicContents {
    pub fn new(clients: &Clients) -> Arc<Self> {
        Arc::new(Self { clients: clients.clone() })
    }

    fn write(&self, contents: &[Content<'_>]) -> Result<(), KafkaError> {
        let mut config = self.clients.appending(VALUE_BYTES_MAX, 0);
        config.set("statistics.interval.ms", "0");
        let producer: ThreadedProducer<Listener> = self.clients.make(&config)?;
        let topic = self.clients.config.state_topic();
        for (hash, text) in contents {
            let key = key(*hash);
            let message = BaseRecord::to(&topic).partition(PARTITION).key(&key).payload(*text);
            producer.send(message).map_err(|(error, _)| error)?;
        }
        producer.flush(WITHIN)
    }

    /// All that are there, or the one that is wanted.
    fn read(&self, wanted: Option<&str>) -> Result<HashMap<String, Vec<u8>>, KafkaError> {
        let topic = self.clients.config.state_topic();
        let config = self.clients.reading(&format!("{topic}-read"), "read_committed");
        let consumer: BaseConsumer<Listener> = self.clients.make(&config)?;
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(&topic, PARTITION, KafkaOffset::Beginning)?;
        consumer.assign(&from)?;
        let (until, mut found) = (Instant::now() + WITHIN, HashMap::new());
        while Instant::now() < until {
            match consumer.poll(Duration::from_millis(500)) {
                Some(Ok(message)) => {
                    let key = message.key().map(String::from_utf8_lossy).unwrap_or_default();
                    let asked = wanted.map_or(key.starts_with(PREFIX), |wanted| wanted == key);
                    if let Some(text) = message.payload().filter(|_| asked) {
                        found.insert(key.into_owned(), text.to_vec());
                        if wanted.is_some() {
                            break;
                        }
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(_)) | None => {}
            }
        }
        Ok(found)
    }
}

fn key(hash: [u8; 16]) -> String {
    format!("{PREFIX}{}", hex::encode(hash))
}

impl SharedContents for TopicContents {
    fn publish(&self, contents: &[Content<'_>]) -> io::Result<()> {
        let lacking = |there: &HashMap<String, Vec<u8>>| {
            let is_there = |(hash, text): &&Content<'_>| {
                there.get(&key(*hash)).is_none_or(|kept| kept != text)
            };
            contents.iter().filter(is_there).copied().collect::<Vec<_>>()
        };
        let missing = lacking(&self.read(None).map_err(io::Error::other)?);
        if missing.is_empty() {
            return Ok(());
        }
        self.write(&missing).map_err(io::Error::other)?;
        // What did not arrive is not there to be read. What another one begun may hide it for a while.
        let until = Instant::now() + WITHIN;
        while !lacking(&self.read(None).map_err(io::Error::other)?).is_empty() {
            if until < Instant::now() {
                return Err(io::Error::other("Kafka did not take it"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    fn fetch(&self, hash: [u8; 16]) -> io::Result<Option<Vec<u8>>> {
        let key = key(hash);
        Ok(self.read(Some(&key)).map_err(io::Error::other)?.remove(&key))
    }
}
