//! One role a process: what each is made of, and what it tells of the others.
//!
//! | file | what is there |
//! | --- | --- |
//! | `edge` | the stages behind an edge: normalizers, and the writers that those reach |
//! | `normalizer` | judges for edges, has writers append |
//! | `remote_log` | the log as a normalizer has it: the writers |
//! | `writer` | appends for normalizers |
//! | `folder` | the data folder of a role without a log |

mod edge;
mod folder;
mod normalizer;
mod remote_log;
mod writer;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde_json::{Value, json};

pub(super) use edge::RemoteStages;
pub(super) use folder::RoleFolder;
#[cfg(feature = "kafka")]
pub(super) use folder::instance;
pub(super) use normalizer::{NormalizerParts, NormalizerService};
pub(super) use remote_log::RemoteLog;
pub(super) use writer::{WriterParts, WriterService};

use crate::{
    config::{Config, Role},
    edge::{Edge, EdgeHandle},
    hop::{Dial, HopError, HopHandle, HopServer, Pool, Service},
    quota::QuotaStoreConfig,
};

/// What a role does not have is taken out of its configuration, so that no memory is kept for it.
#[must_use]
pub(super) fn narrowed(mut config: Config) -> Config {
    if !config.role.has_log() {
        config.sink.clear();
        config.log.dedup_ids = 0;
        config.log.dedup_windows.clear();
    }
    if matches!(config.role, Role::Normalizer | Role::Writer) {
        // Quotas are the edges'.
        config.quota_store = QuotaStoreConfig::default();
    }
    config
}

/// What listens for clients, or for the role before.
pub(super) enum Serving {
    /// For clients.
    Clients(Edge),
    /// For the role before.
    Roles(HopServer),
}

impl Serving {
    /// Where.
    pub fn local_addr(&self) -> SocketAddr {
        match self {
            Self::Clients(edge) => edge.local_addr(),
            Self::Roles(server) => server.local_addr(),
        }
    }

    /// Until it is drained.
    pub async fn serve(self) {
        match self {
            Self::Clients(edge) => edge.serve().await,
            Self::Roles(server) => server.serve().await,
        }
    }

    /// For ending it while it serves.
    pub fn handle(&self) -> ServingHandle {
        match self {
            Self::Clients(edge) => ServingHandle::Clients(edge.handle()),
            Self::Roles(server) => ServingHandle::Roles(server.handle()),
        }
    }
}

/// Steers what listens.
pub(super) enum ServingHandle {
    /// For clients.
    Clients(EdgeHandle),
    /// For the role before.
    Roles(HopHandle),
}

impl ServingHandle {
    /// Begins the end: nothing new is taken.
    pub fn drain(&self) {
        match self {
            Self::Clients(edge) => edge.drain(),
            Self::Roles(server) => server.drain(),
        }
    }

    /// The public side, where this process is one.
    pub fn edge(&self) -> Option<&EdgeHandle> {
        match self {
            Self::Clients(edge) => Some(edge),
            Self::Roles(_) => None,
        }
    }
}

/// The role behind this one.
pub(super) struct Next {
    /// What the replicas are, in the plural.
    pub what: &'static str,
    /// The replicas.
    pub pool: Arc<Pool>,
}

impl Next {
    /// Why nothing could be handed on now.
    pub fn not_ready(&self) -> Vec<String> {
        let peers = self.pool.peers();
        let able = |state: &crate::hop::state::State| {
            !state.draining
                && (self.what == "writers" || state.writers.values().any(|w| !w.draining))
        };
        if peers.iter().any(|peer| peer.state().is_some_and(|state| able(&state))) {
            return Vec::new();
        }
        let one = |peer: &Arc<crate::hop::Peer>| match peer.state() {
            Some(state) if state.draining => format!("{} shuts down", peer.name()),
            Some(_) => format!("{} reaches no writer", peer.name()),
            None => format!("{}: {}", peer.name(), peer.why()),
        };
        let each: Vec<String> = peers.iter().map(one).collect();
        let each = if each.is_empty() { "no address is known".to_owned() } else { each.join("; ") };
        vec![format!("unreachable: none of the {} takes anything: {each}", self.what)]
    }

    /// Each replica, for operators.
    pub fn status(&self) -> Value {
        let one = |peer: &Arc<crate::hop::Peer>| {
            let state = peer.state();
            json!({
                "name": peer.name(),
                "role": self.what.trim_end_matches('s'),
                "reached": state.is_some(),
                "draining": state.as_ref().is_some_and(|state| state.draining),
                "in_flight": peer.in_flight(),
                "why": state.is_none().then(|| peer.why()),
            })
        };
        self.pool.peers().iter().map(one).collect()
    }
}

/// How the next role is called, and what callers must show.
pub(super) struct Contact {
    /// What callers must present.
    pub token: Option<String>,
    /// How others are called.
    pub dial: Dial,
}

impl Contact {
    /// As `[hop]` says.
    pub fn of(config: &Config) -> Result<Self, String> {
        let token = config.hop.secret()?;
        let dial = Dial::new(&config.hop, token.clone()).map_err(|e| format!("hop.tls: {e}"))?;
        Ok(Self { token, dial })
    }

    /// The role behind this one.
    pub fn next(&self, config: &Config) -> Option<Next> {
        let hop = &config.hop;
        match config.role {
            Role::Edge => {
                let pool = Pool::of_addresses(&hop.normalizers, &self.dial);
                Some(Next { what: "normalizers", pool })
            }
            Role::Normalizer => {
                let pool = Pool::of_names(&hop.writers, &self.dial);
                Some(Next { what: "writers", pool })
            }
            Role::All | Role::Writer => None,
        }
    }

    /// Listens for the role before.
    pub async fn serve(
        &self,
        config: &Config,
        service: Arc<dyn Service>,
    ) -> Result<Serving, HopError> {
        let grace: Duration = config.edge.timeouts.drain.0;
        let bound = crate::hop::bind(&config.hop, self.token.clone(), grace, service).await?;
        Ok(Serving::Roles(bound))
    }
}
