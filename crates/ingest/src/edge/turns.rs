//! Whose turn it is to be worked on: decoding and judging are shared by all tenants, fairly by bytes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidegate_event::TenantId;
use tokio::sync::oneshot;

use crate::fair::Fair;

/// As many turns as there are processors, given to those that wait by deficit round robin.
#[derive(Clone, Debug)]
pub(crate) struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    waiting: Fair<TenantId, oneshot::Sender<Turn>>,
}

/// The right to work; given on when dropped.
#[derive(Debug)]
pub(crate) struct Turn(Option<Turns>);

impl Turns {
    pub(crate) fn new(count: usize) -> Self {
        Self(Arc::new(Mutex::new(State { free: count.max(1), waiting: Fair::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn. Whoever goes away meanwhile loses nothing for others.
    pub(crate) async fn take(&self, tenant: &TenantId, weight: u64, bytes: u64) -> Option<Turn> {
        let (give, mut given) = oneshot::channel();
        self.state().waiting.push(tenant, weight, bytes, give);
        // Everybody who is ready by now gets to stand in line before anybody works: else the order
        // would be that of the connections.
        tokio::task::yield_now().await;
        self.give();
        match given.try_recv() {
            Ok(turn) => Some(turn),
            // It fails only where all turns are gone with the server.
            Err(_) => given.await.ok(),
        }
    }

    /// Gives the free turns to those whose turn it is.
    fn give(&self) {
        loop {
            let next = {
                let mut state = self.state();
                if state.free == 0 {
                    return;
                }
                let Some(next) = state.waiting.pop() else { return };
                state.free -= 1;
                next
            };
            // Nobody waits for it any more: the turn is dropped, and given on.
            if let Err(mut turn) = next.send(Turn(Some(self.clone()))) {
                turn.0 = None;
                self.state().free += 1;
            }
        }
    }

    #[cfg(test)]
    fn free(&self) -> usize {
        self.state().free
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.state().free += 1;
            turns.give();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    #[tokio::test]
    async fn a_tenant_with_one_request_does_not_wait_for_all_of_anothers() {
        let turns = Turns::new(1);
        let first = turns.take(&tenant("many"), 1, 1).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for name in std::iter::repeat_n("many", 50).chain(["one"]) {
            let (turns, order) = (turns.clone(), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let _turn = turns.take(&tenant(name), 1, 200 << 10).await.unwrap();
                order.lock().unwrap().push(name);
            }));
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        let place = order.lock().unwrap().iter().position(|name| *name == "one").unwrap();
        assert!(place <= 2, "{place}");
        assert_eq!(turns.free(), 1);
    }

    #[tokio::test]
    async fn who_goes_away_while_waiting_keeps_no_turn() {
        let turns = Turns::new(1);
        let first = turns.take(&tenant("a"), 1, 1).await.unwrap();
        let waiting = {
            let turns = turns.clone();
            tokio::spawn(async move { turns.take(&tenant("b"), 1, 1).await })
        };
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        waiting.abort();
        assert!(waiting.await.is_err());
        drop(first);
        assert_eq!(turns.free(), 1);
        assert!(turns.take(&tenant("c"), 1, 1).await.is_some());
    }
}
