//! Who holds the connections: at the bound, whoever holds most gives one back.
//!
//! A holder is a tenant, once a request showed its key, and an address before that. An idle connection of
//! the largest holder is closed, else one that is slow to send. What is being worked on or appended is left
//! alone, and so are those who hold no more than their even share.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tidegate_event::TenantId;

use super::connection::Pulse;

/// Connections of a holder that are looked at to find one to close, from where the last look ended on.
const LOOKED_AT: usize = 64;

/// Whose a connection is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Holder {
    Address(IpAddr),
    Tenant(TenantId),
}

/// IPv6 hosts have a whole /64.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// All connections, by holder.
#[derive(Debug, Default)]
pub(super) struct Crowd(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    holders: HashMap<Holder, BTreeMap<u64, Arc<Pulse>>>,
    /// Every holder with how many it has.
    largest: BTreeSet<(usize, Holder)>,
    /// Connections in all.
    members: usize,
    /// Where the next look for one to close begins.
    look_from: u64,
    /// How many came from where, those that wait to come in too.
    origins: HashMap<IpAddr, usize>,
}

/// A connection that is there, whether it came in yet or not.
#[derive(Debug)]
pub(super) struct Arrival {
    crowd: Arc<Crowd>,
    origin: IpAddr,
}

impl Arrival {
    /// True where those from its address have no more than an even share of `places`.
    pub(super) fn within_share(&self, places: usize) -> bool {
        let state = self.crowd.state();
        let from_there = state.origins.get(&self.origin).copied().unwrap_or(0);
        from_there.saturating_mul(state.origins.len()) <= places
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut state = self.crowd.state();
        if let Some(from_there) = state.origins.get_mut(&self.origin) {
            *from_there -= 1;
            if *from_there == 0 {
                state.origins.remove(&self.origin);
            }
        }
    }
}

/// One connection's place; given up when dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    id: u64,
    holder: Mutex<Holder>,
}

impl State {
    fn add(&mut self, holder: &Holder, id: u64, pulse: Arc<Pulse>) {
        let members = self.holders.entry(holder.clone()).or_default();
        self.largest.remove(&(members.len(), holder.clone()));
        members.insert(id, pulse);
        self.members += 1;
        self.largest.insert((members.len(), holder.clone()));
    }

    fn remove(&mut self, holder: &Holder, id: u64) -> Option<Arc<Pulse>> {
        let members = self.holders.get_mut(holder)?;
        let before = members.len();
        let pulse = members.remove(&id)?;
        self.members -= 1;
        self.largest.remove(&(before, holder.clone()));
        if members.is_empty() {
            self.holders.remove(holder);
        } else {
            self.largest.insert((before - 1, holder.clone()));
        }
        Some(pulse)
    }

    /// The connection to close: of the largest holder that has one which waits, and more than its share.
    fn one_to_close(&mut self) -> Option<Arc<Pulse>> {
        let (from, members, holders) = (self.look_from, self.members, self.holders.len());
        let largest = self.largest.iter().rev().take(LOOKED_AT);
        let above_share = largest.take_while(|(count, _)| members <= count.saturating_mul(holders));
        let mut chosen = None;
        for held in above_share.filter_map(|(_, holder)| self.holders.get(holder)) {
            (self.look_from, chosen) = look_at(held, from);
            if chosen.is_some() {
                break;
            }
        }
        chosen
    }
}

/// Looks at some of `held` from `from` on, then from the beginning: where that ended, and which can be closed.
fn look_at(held: &BTreeMap<u64, Arc<Pulse>>, from: u64) -> (u64, Option<Arc<Pulse>>) {
    let round = || held.range(from..).chain(held.range(..from)).take(LOOKED_AT);
    let idle = round().find(|(_, pulse)| pulse.is_idle());
    let found = idle.or_else(|| round().find(|(_, pulse)| pulse.is_receiving()));
    let last = found.or_else(|| round().last());
    (last.map_or(from, |(id, _)| id + 1), found.map(|(_, pulse)| Arc::clone(pulse)))
}

impl Crowd {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection from `address` wants to come in.
    pub(super) fn arrive(self: &Arc<Self>, address: IpAddr) -> Arrival {
        let origin = origin(address);
        *self.state().origins.entry(origin).or_default() += 1;
        Arrival { crowd: Arc::clone(self), origin }
    }

    /// A new connection.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, pulse: &Arc<Pulse>) -> Place {
        let holder = Holder::Address(origin(address));
        let mut state = self.state();
        state.next += 1;
        let id = state.next;
        state.add(&holder, id, Arc::clone(pulse));
        Place { crowd: Arc::clone(self), id, holder: Mutex::new(holder) }
    }

    /// Tells one connection of the largest holder to end; false where none can.
    pub(super) fn make_room(&self) -> bool {
        let chosen = self.state().one_to_close();
        chosen.is_some_and(|pulse| {
            pulse.close();
            true
        })
    }
}

impl Place {
    /// The connection is `tenant`'s: a request showed its key.
    pub(super) fn belongs_to(&self, tenant: &TenantId) {
        let mut holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*holder, Holder::Tenant(known) if known == tenant) {
            return;
        }
        let mut state = self.crowd.state();
        if let Some(pulse) = state.remove(&holder, self.id) {
            *holder = Holder::Tenant(tenant.clone());
            state.add(&holder, self.id, pulse);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let holder = self.holder.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.crowd.state().remove(holder, self.id);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn enter(crowd: &Arc<Crowd>, address: &str) -> (Arc<Place>, Arc<Pulse>) {
        let pulse = Pulse::new(false);
        (Arc::new(crowd.enter(address.parse().unwrap(), &pulse)), pulse)
    }

    #[test]
    fn the_largest_holder_gives_one_back_the_oldest_that_is_idle() {
        let crowd = Arc::new(Crowd::default());
        let many: Vec<_> = (0..5).map(|_| enter(&crowd, "192.0.2.1")).collect();
        let few: Vec<_> = (0..2).map(|_| enter(&crowd, "192.0.2.2")).collect();
        let (place, pulse) = many.first().unwrap();
        let busy = pulse.request(Arc::clone(place));
        assert!(crowd.make_room());
        let closing: Vec<_> = many.iter().map(|(_, pulse)| pulse.is_closing()).collect();
        assert_eq!(closing, [false, true, false, false, false]);
        assert!(!few.iter().any(|(_, pulse)| pulse.is_closing()));
        drop((busy, many, few));
        assert!(!crowd.make_room());
        assert!(crowd.state().largest.is_empty() && crowd.state().holders.is_empty());
    }

    #[test]
    fn connections_of_one_tenant_count_together_wherever_they_come_from() {
        let crowd = Arc::new(Crowd::default());
        let tenant = TenantId::new("many").unwrap();
        let spread: Vec<_> = (0..9).map(|n| enter(&crowd, &format!("192.0.2.{n}"))).collect();
        spread.iter().for_each(|(place, _)| place.belongs_to(&tenant));
        spread.iter().for_each(|(place, _)| place.belongs_to(&tenant));
        let one: Vec<_> = (0..3).map(|_| enter(&crowd, "198.51.100.7")).collect();
        for _ in 0..5 {
            assert!(crowd.make_room());
        }
        // Those that were told already are not told again.
        assert_eq!(spread.iter().filter(|(_, pulse)| pulse.is_closing()).count(), 5);
        assert!(!one.iter().any(|(_, pulse)| pulse.is_closing()));
    }

    #[test]
    fn one_that_waits_is_found_among_many_at_work() {
        let crowd = Arc::new(Crowd::default());
        let at_work: Vec<_> = (0..300)
            .map(|_| enter(&crowd, "192.0.2.1"))
            .map(|(place, pulse)| pulse.request(place))
            .collect();
        let (_place, idle) = enter(&crowd, "192.0.2.1");
        let looks = (0..=300 / LOOKED_AT).filter(|_| crowd.make_room()).count();
        assert_eq!((looks, idle.is_closing()), (1, true));
        drop(at_work);
    }

    #[test]
    fn who_has_no_more_than_an_even_share_gives_nothing_back() {
        let crowd = Arc::new(Crowd::default());
        let at_work: Vec<_> = (0..9)
            .map(|_| enter(&crowd, "192.0.2.1"))
            .map(|(place, pulse)| pulse.request(place))
            .collect();
        let few: Vec<_> = (0..3).map(|_| enter(&crowd, "192.0.2.2")).collect();
        assert!(!crowd.make_room() && !few.iter().any(|(_, pulse)| pulse.is_closing()));
        drop(at_work);
        assert!(crowd.make_room(), "they are all there is");
    }

    #[test]
    fn an_address_is_within_its_share_until_it_has_its_part_of_all_places() {
        let crowd = Arc::new(Crowd::default());
        let many: Vec<_> = (0..6).map(|_| crowd.arrive("192.0.2.1".parse().unwrap())).collect();
        let one = many.first().unwrap();
        assert!(one.within_share(6) && !one.within_share(5));
        let other = crowd.arrive("2001:db8::1".parse().unwrap());
        let its_neighbour = crowd.arrive("2001:db8::2".parse().unwrap());
        assert!(!one.within_share(6) && other.within_share(4) && !other.within_share(3));
        drop((other, its_neighbour));
        assert!(one.within_share(6));
        drop(many);
        assert!(crowd.state().origins.is_empty());
    }

    #[test]
    fn what_is_worked_on_is_left_alone_and_what_is_slow_to_come_is_not() {
        let crowd = Arc::new(Crowd::default());
        let (place, slow) = enter(&crowd, "2001:db8::1");
        let slow_request = slow.request(place);
        let body = slow_request.receiving();
        assert!(crowd.make_room() && slow.is_closing());
        let (place, at_work) = enter(&crowd, "2001:db8:1::1");
        let request = at_work.request(Arc::clone(&place));
        drop(request.receiving());
        assert!(!crowd.make_room() && !at_work.is_closing());
        drop((body, slow_request, request));
        assert!(crowd.make_room() && at_work.is_closing());
        drop(place);
    }
}
