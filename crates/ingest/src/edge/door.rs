//! Who comes in once all places are taken.
//!
//! A newcomer whose address has less than its even share of the places comes in at once: whoever holds
//! most gives a connection back for it. All others wait in one line, the first of which is let in that way
//! every [`STEP`]: a client that opens thousands, and each again as soon as it is closed, goes round no
//! faster than that, and is nobody's work meanwhile.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout_at},
};

use super::{
    connection::LAST_WORDS,
    crowd::{Arrival, Crowd},
};
use crate::budget::{Budget, Permit};

/// Between two connections that are given back for those who wait in line.
const STEP: Duration = Duration::from_millis(10);
/// How many may wait in line; those beyond are closed. A socket that nobody reads costs the system some
/// kilobytes, and us a task.
const LINE_MAX: usize = 4096;

/// The way in.
pub(super) struct Door {
    slots: Arc<Semaphore>,
    places: usize,
    /// What a connection takes of the budget.
    bytes: u64,
    budget: Arc<Budget>,
    crowd: Arc<Crowd>,
    /// Held by the first in line; the others get it in the order they came.
    first: Mutex<()>,
    waiting: AtomicUsize,
    /// Newcomers that come in before the line does.
    preferred: AtomicUsize,
}

/// What a connection holds besides its socket.
pub(super) struct Room {
    _slot: OwnedSemaphorePermit,
    _memory: Permit,
    _arrival: Arrival,
}

/// Counts one that waits while it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(counter: &'a AtomicUsize, most: usize) -> Option<Self> {
        let this = (counter.fetch_add(1, Ordering::Relaxed) < most, Self(counter));
        this.0.then_some(this.1)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Door {
    /// `places` connections, each of which takes `bytes` of `budget`.
    pub(super) fn new(places: usize, bytes: u64, budget: Arc<Budget>) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(places)),
            places,
            bytes,
            budget,
            crowd: Arc::default(),
            first: Mutex::const_new(()),
            waiting: AtomicUsize::new(0),
            preferred: AtomicUsize::new(0),
        }
    }

    /// Who is in.
    pub(super) fn crowd(&self) -> &Arc<Crowd> {
        &self.crowd
    }

    /// What a connection takes of the budget.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns once all are gone.
    pub(super) async fn empty(&self) {
        let all = u32::try_from(self.places).unwrap_or(u32::MAX);
        // It fails only where the semaphore is closed, and nobody does that.
        let _all = self.slots.acquire_many(all).await;
    }

    /// Room for a connection from `address`; `None` where the line is full, or did not move for `patience`.
    pub(super) async fn room(&self, address: IpAddr, patience: Duration) -> Option<Room> {
        let arrival = self.crowd.arrive(address);
        let others_wait = [&self.waiting, &self.preferred].map(|c| c.load(Ordering::Relaxed) != 0);
        if others_wait == [false, false]
            && let Some((slot, memory)) = self.place()
        {
            return Some(Room { _slot: slot, _memory: memory, _arrival: arrival });
        }
        // Thousands that came together are not to go, and come again, together.
        let until = Instant::now() + patience.mul_f64(rand::random_range(0.5..1.0));
        let (slot, memory) = if arrival.within_share(self.places) {
            timeout_at(until, self.ahead_of_the_line()).await.ok()
        } else {
            let _waiting = Waiting::enter(&self.waiting, LINE_MAX)?;
            timeout_at(until, self.in_line()).await.ok()
        }?;
        Some(Room { _slot: slot, _memory: memory, _arrival: arrival })
    }

    fn place(&self) -> Option<(OwnedSemaphorePermit, Permit)> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        let memory = self.budget.unshared().try_take(self.bytes).ok()?;
        Some((slot, memory))
    }

    /// One is given back for this newcomer; another only where that one took too long.
    async fn ahead_of_the_line(&self) -> (OwnedSemaphorePermit, Permit) {
        let _ahead = Waiting::enter(&self.preferred, usize::MAX);
        loop {
            if let Some(place) = self.place() {
                return place;
            }
            self.crowd.make_room();
            let again = Instant::now() + LAST_WORDS;
            while Instant::now() < again {
                sleep(STEP).await;
                if let Some(place) = self.place() {
                    return place;
                }
            }
        }
    }

    async fn in_line(&self) -> (OwnedSemaphorePermit, Permit) {
        let _first = self.first.lock().await;
        loop {
            if self.preferred.load(Ordering::Relaxed) == 0
                && let Some(place) = self.place()
            {
                return place;
            }
            self.crowd.make_room();
            sleep(STEP).await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::edge::{connection::Pulse, crowd::Place};

    const PATIENCE: Duration = Duration::from_secs(60);
    const LITTLE: Duration = Duration::from_millis(100);

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    /// A door whose four places are taken by one address, each by an idle connection.
    async fn full() -> (Arc<Door>, Vec<(Room, Place, Arc<Pulse>)>) {
        let door = Arc::new(Door::new(4, 1, Budget::new(1 << 20)));
        let mut inside = Vec::new();
        for _ in 0..4 {
            let (room, pulse) = (door.room(address(1), PATIENCE).await.unwrap(), Pulse::new(false));
            inside.push((room, door.crowd().enter(address(1), &pulse), pulse));
        }
        (door, inside)
    }

    fn closing(inside: &[(Room, Place, Arc<Pulse>)]) -> usize {
        inside.iter().filter(|(_, _, pulse)| pulse.is_closing()).count()
    }

    #[tokio::test]
    async fn who_has_less_than_its_share_comes_in_before_the_line() {
        let (door, mut inside) = full().await;
        let spawn = |from| {
            let door = Arc::clone(&door);
            tokio::spawn(async move { door.room(address(from), PATIENCE).await })
        };
        let in_line = spawn(1);
        sleep(STEP / 2).await;
        let newcomer = spawn(2);
        sleep(STEP).await;
        assert!(!in_line.is_finished() && !newcomer.is_finished() && closing(&inside) != 0);
        inside.pop();
        sleep(STEP * 4).await;
        assert!(!in_line.is_finished());
        let room = newcomer.await.unwrap().unwrap();
        drop(room);
        assert!(in_line.await.unwrap().is_some());
    }

    #[tokio::test]
    async fn who_waits_in_vain_is_sent_away() {
        let (door, inside) = full().await;
        assert!(door.room(address(1), LITTLE).await.is_none());
        assert_ne!(closing(&inside), 0, "one was asked to go");
        assert!(door.room(address(2), LITTLE).await.is_none());
        drop(inside);
        assert!(door.room(address(1), PATIENCE).await.is_some());
        door.empty().await;
    }
}
