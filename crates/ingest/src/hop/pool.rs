//! All replicas of the next role: found by their names, and chosen from.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tidegate_event::TenantId;
use tokio::task::JoinHandle;

use super::{
    HopConfig, Peer,
    state::{Pressed, ranked},
    tls::{HopTls, HopTlsError},
};

/// How often names are looked up again.
const LOOK_UP_EVERY: Duration = Duration::from_secs(2);

/// How the next role is called.
#[derive(Clone)]
pub struct Dial {
    pub(super) token: Option<String>,
    pub(super) tls: Option<Arc<HopTls>>,
}

impl Dial {
    /// As `[hop]` says.
    ///
    /// # Errors
    /// [`HopTlsError`]
    pub fn new(config: &HopConfig, token: Option<String>) -> Result<Self, HopTlsError> {
        let tls = config.tls.as_ref().map(HopTls::load).transpose()?;
        Ok(Self { token, tls })
    }
}

/// The replicas of a role.
pub struct Pool {
    peers: ArcSwap<Vec<Arc<Peer>>>,
    next: AtomicUsize,
    tasks: Mutex<BTreeMap<String, JoinHandle<()>>>,
}

impl Drop for Pool {
    fn drop(&mut self) {
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        tasks.values().for_each(JoinHandle::abort);
    }
}

impl Pool {
    /// One replica for each name: they are not alike, each has a log of its own. Needs a runtime.
    #[must_use]
    pub fn of_names(names: &[String], dial: &Dial) -> Arc<Self> {
        let pool = Arc::new(Self::empty());
        let peers = names.iter().map(|name| pool.start(name, dial)).collect();
        pool.peers.store(Arc::new(peers));
        pool.watch_tls(dial);
        pool
    }

    /// One replica for each address that a name has, now or later: they are all alike. Needs a
    /// runtime.
    #[must_use]
    pub fn of_addresses(names: &[String], dial: &Dial) -> Arc<Self> {
        let pool = Arc::new(Self::empty());
        for name in names {
            let (weak, name, dial) = (Arc::downgrade(&pool), name.clone(), dial.clone());
            let label = format!("look up {name}");
            let task = tokio::spawn(async move {
                loop {
                    let found = tokio::net::lookup_host(&name).await;
                    let Some(pool) = weak.upgrade() else { return };
                    match found {
                        Ok(found) => pool.has_addresses(&name, found.collect(), &dial),
                        Err(error) => tracing::warn!(name, %error, "a name cannot be looked up"),
                    }
                    drop(pool);
                    tokio::time::sleep(LOOK_UP_EVERY).await;
                }
            });
            pool.tasks().insert(label, task);
        }
        pool.watch_tls(dial);
        pool
    }

    fn empty() -> Self {
        Self { peers: ArcSwap::default(), next: AtomicUsize::new(0), tasks: Mutex::default() }
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, JoinHandle<()>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch_tls(&self, dial: &Dial) {
        if let Some(tls) = &dial.tls {
            let task = tokio::spawn(Arc::clone(tls).watch());
            self.tasks().insert("certificates".to_owned(), task);
        }
    }

    fn start(&self, name: &str, dial: &Dial) -> Arc<Peer> {
        let peer = Arc::new(Peer::new(name, dial));
        let task = tokio::spawn(Arc::clone(&peer).tend(name.to_owned(), dial.clone()));
        self.tasks().insert(name.to_owned(), task);
        peer
    }

    /// Takes addresses that are new, and lets go of those that are neither found nor reached.
    fn has_addresses(&self, name: &str, found: Vec<SocketAddr>, dial: &Dial) {
        let found: Vec<String> = found.iter().map(|address| format!("{name}@{address}")).collect();
        let known = self.peers.load_full();
        let of_name = |peer: &Peer| peer.name().split('@').next() == Some(name);
        let gone = |peer: &Peer| {
            of_name(peer) && peer.state().is_none() && !found.iter().any(|f| f == peer.name())
        };
        let mut peers: Vec<_> = known.iter().filter(|peer| !gone(peer)).cloned().collect();
        for label in &found {
            if !peers.iter().any(|peer| peer.name() == label) {
                peers.push(self.start(label, dial));
            }
        }
        for peer in known.iter().filter(|peer| gone(peer)) {
            if let Some(task) = self.tasks().remove(peer.name()) {
                task.abort();
            }
        }
        self.peers.store(Arc::new(peers));
    }

    /// All of them, reached or not.
    #[must_use]
    pub fn peers(&self) -> Arc<Vec<Arc<Peer>>> {
        self.peers.load_full()
    }

    /// Of those that are reached, the one with least to do that was not `tried`: one that reaches the
    /// role behind it comes first, one that shuts down last.
    #[must_use]
    pub fn least_busy(&self, tried: &[Arc<Peer>]) -> Option<Arc<Peer>> {
        let peers = self.peers.load();
        // Whoever is equal takes turns.
        let first = self.next.fetch_add(1, Ordering::Relaxed) % peers.len().max(1);
        let turned = peers.iter().skip(first).chain(peers.iter().take(first));
        let able = turned.filter_map(|peer| {
            let state = peer.state()?;
            let fresh = !tried.iter().any(|other| Arc::ptr_eq(other, peer));
            let rank = (state.writers.is_empty(), state.draining, peer.in_flight());
            fresh.then_some((rank, peer))
        });
        able.min_by_key(|(rank, _)| *rank).map(|(_, peer)| Arc::clone(peer))
    }

    /// Those that are reached, in the order in which the tenant prefers them; those that shut down
    /// last.
    #[must_use]
    pub fn for_tenant(&self, tenant: &TenantId) -> Vec<Arc<Peer>> {
        let peers = self.peers.load();
        let order = ranked(tenant, peers.iter().map(|peer| peer.name()));
        let named = |name: &str| peers.iter().find(|peer| peer.name() == name);
        let mut able: Vec<(bool, Arc<Peer>)> = Vec::with_capacity(peers.len());
        for peer in order.into_iter().filter_map(named) {
            if let Some(state) = peer.state() {
                able.push((state.draining, Arc::clone(peer)));
            }
        }
        able.sort_by_key(|(draining, _)| *draining);
        able.into_iter().map(|(_, peer)| peer).collect()
    }

    /// How each that is reached said it is pressed: what a normalizer tells of its writers.
    #[must_use]
    pub fn pressed(&self) -> BTreeMap<String, Pressed> {
        let peers = self.peers.load();
        let told = |peer: &Arc<Peer>| {
            let state = peer.state()?;
            let draining = state.draining || state.pressed.draining;
            Some((peer.name().to_owned(), Pressed { draining, ..state.pressed.clone() }))
        };
        peers.iter().filter_map(told).collect()
    }
}
