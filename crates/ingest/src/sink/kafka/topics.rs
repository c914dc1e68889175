//! Topics that are there, are made, or are missed.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    config::FromClientConfigAndContext,
    error::{KafkaError, RDKafkaErrorCode},
};
use tokio::runtime::Handle;

use super::{
    client::{Clients, Listener},
    config::{CreateTopics, Settings},
};

/// How long a question may take.
const ASK: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
const POLICY: &str = "cleanup.policy";
/// The markers' topic: few bytes, compacted often, so that they are read quickly.
const PROGRESS: &[(&str, &str)] = &[
    (POLICY, "compact"),
    ("segment.bytes", "16777216"),
    ("segment.ms", "3600000"),
    ("min.cleanable.dirty.ratio", "0.1"),
];

/// What is known of topics.
pub struct Topics {
    clients: Clients,
    progress: String,
    create: Option<CreateTopics>,
    runtime: Handle,
    known: Mutex<HashSet<String>>,
}

/// One client, for as long as something is asked.
type Admin = AdminClient<Listener>;

impl Topics {
    /// Asks nothing.
    pub fn new(clients: &Clients, settings: &Settings, runtime: Handle) -> Self {
        Self {
            clients: clients.clone(),
            progress: settings.progress_topic.clone(),
            create: settings.create_topics,
            runtime,
            known: Mutex::default(),
        }
    }

    /// Makes sure that a topic of events is there.
    ///
    /// # Errors
    /// Why it is not, and what to do.
    pub fn ensure(&self, topic: &str) -> Result<(), String> {
        if self.known().contains(topic) {
            return Ok(());
        }
        let admin = self.admin()?;
        if !is_there(&admin, topic)? {
            let make = self.create.ok_or_else(|| {
                "the topic is not there; make it, or set options.create_topics".to_owned()
            })?;
            self.make(&admin, topic, i32::from(make.partitions), make, &[])?;
        }
        self.known().insert(topic.to_owned());
        Ok(())
    }

    /// Makes sure that the topic of markers is there and keeps the last one of each lane.
    ///
    /// # Errors
    /// Why it does not, and what to do.
    pub fn ensure_progress(&self) -> Result<(), String> {
        let topic = &self.progress;
        let fault = |cause: String| format!("{topic}: {cause}");
        let admin = self.admin().map_err(fault)?;
        if !is_there(&admin, topic).map_err(fault)? {
            let make = self.create.ok_or_else(|| {
                fault(format!(
                    "the topic of markers is not there; make it with one partition and {POLICY}=compact, \
                     or set options.create_topics"
                ))
            })?;
            self.make(&admin, topic, 1, make, PROGRESS).map_err(fault)?;
        }
        let policy = self.policy(&admin).map_err(fault)?;
        if policy != "compact" {
            return Err(fault(format!(
                "{POLICY} is {policy:?}: markers would be lost with time, and events doubled; set it to compact"
            )));
        }
        Ok(())
    }

    /// Looks at the topic again before the next write.
    pub fn forget(&self, topic: &str) {
        self.known().remove(topic);
    }

    /// Asks whether a broker answers.
    ///
    /// # Errors
    /// Its own words, or that none did.
    pub fn answers(&self) -> Result<(), String> {
        let admin = self.admin()?;
        admin.inner().fetch_metadata(Some(&self.progress), ASK).map(drop).map_err(|e| words(&e))
    }

    fn known(&self) -> MutexGuard<'_, HashSet<String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admin(&self) -> Result<Admin, String> {
        let listener = self.clients.listener();
        Admin::from_config_and_context(self.clients.asking(), listener).map_err(|e| words(&e))
    }

    fn make(
        &self,
        admin: &Admin,
        topic: &str,
        partitions: i32,
        make: CreateTopics,
        settings: &[(&str, &str)],
    ) -> Result<(), String> {
        let copies = TopicReplication::Fixed(i32::from(make.replication));
        let mut new = NewTopic::new(topic, partitions, copies);
        for (name, value) in settings {
            new = new.set(name, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(ASK)).request_timeout(Some(ASK));
        let made = self.runtime.block_on(admin.create_topics([&new], &options));
        for result in made.map_err(|e| words(&e))? {
            match result {
                Ok(_) => tracing::info!(topic, "the topic was made"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(format!("the topic cannot be made: {code}")),
            }
        }
        let until = Instant::now() + ASK;
        while !is_there(admin, topic)? {
            if until < Instant::now() {
                return Err("the topic was made and is not there".to_owned());
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn policy(&self, admin: &Admin) -> Result<String, String> {
        let options = AdminOptions::new().request_timeout(Some(ASK));
        let of = ResourceSpecifier::Topic(&self.progress);
        let asked = self.runtime.block_on(admin.describe_configs([&of], &options));
        for resource in asked.map_err(|e| words(&e))? {
            let resource = resource.map_err(|code| format!("its settings: {code}"))?;
            if let Some(value) = resource.get(POLICY).and_then(|entry| entry.value.clone()) {
                return Ok(value);
            }
        }
        Err(format!("its settings have no {POLICY}"))
    }
}

/// True for a topic of which every partition has a leader.
fn is_there(admin: &Admin, topic: &str) -> Result<bool, String> {
    let found = admin.inner().fetch_metadata(Some(topic), ASK).map_err(|e| words(&e))?;
    let Some(found) = found.topics().first() else { return Ok(false) };
    match found.error().map(RDKafkaErrorCode::from) {
        None => Ok(!found.partitions().is_empty()),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            Ok(false)
        }
        Some(code) => Err(code.to_string()),
    }
}

/// An error as one line.
pub fn words(error: &KafkaError) -> String {
    match error {
        KafkaError::Transaction(error) => error.string(),
        error => error.rdkafka_error_code().map_or_else(|| error.to_string(), |c| c.to_string()),
    }
}
