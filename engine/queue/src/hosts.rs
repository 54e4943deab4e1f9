//! The hosts of a destination: which of them are alive, and which one the next connection goes to.

use std::hash::{Hash, Hasher};

use crate::breaker::{Breaker, BreakerSettings, Circuit};
use crate::retry::{Jitter, back_off_ms};
use crate::route::{HOSTS_MAX, NextHop};

/// A host of a destination. When the hosts change, it means the same one while that stays, and never another.
#[derive(Clone, Copy, Debug)]
pub struct HostIndex {
    serial: u32,
    /// Where it was; it moves when others leave.
    slot: u8,
}

impl HostIndex {
    /// Its position among the destination's hosts when it was chosen.
    pub fn position(self) -> usize {
        self.slot.into()
    }
}

impl PartialEq for HostIndex {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial
    }
}

impl Eq for HostIndex {}

impl Hash for HostIndex {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.serial.hash(state);
    }
}

/// A host that has enough connections is passed over for so long where another one may be tried, doubling until it greets.
const CROWDED_FIRST_MS: u64 = 1_000;
const CROWDED_MAX_MS: u64 = 30_000;
const CROWDED_JITTER_PERCENT: u8 = 20;

/// Hosts that may put one attempt off, RFC 5321 5.1: at least two are to be tried. Each may be silent for minutes before it does, and is a
/// connection that the message's destination is charged with. The last is drawn from all that are left, whatever their preference, so that
/// over several attempts each has its turn, however many there are.
const HOSTS_ASKED_MAX: u8 = 3;

/// The hosts that an attempt has tried; a fresh one for each attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostsTried {
    /// One bit for each slot.
    slots: u32,
    /// How many put it off.
    asked: u8,
    /// One bit for each slot: the others come first.
    later: u32,
}

/// Whose word it is that put an attempt off: what the other addresses of the same name would say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutOffBy {
    /// The host's, by whichever of its addresses.
    Host,
    /// That of the machine at this address, or of the line to it.
    Address,
}

const _: () = assert!(HOSTS_MAX <= 32, "one bit per host");

#[derive(Debug)]
struct Host {
    hop: NextHop,
    /// Its number among all that this destination ever had.
    serial: u32,
    circuit: Circuit,
    /// It has enough connections: others come first until then (unix ms), and how often it said so since it greeted.
    crowded_until: u64,
    crowded_times: u32,
    /// An attempt has tried it in vain since the last round of all hosts.
    is_in_round: bool,
}

impl Host {
    fn new(hop: NextHop, serial: u32) -> Self {
        Self { hop, serial, circuit: Circuit::new(), crowded_until: 0, crowded_times: 0, is_in_round: false }
    }
}

#[derive(Debug)]
pub(crate) struct Hosts {
    hosts: Vec<Host>,
    next_serial: u32,
}

impl Hosts {
    pub(crate) fn new(hops: &[NextHop]) -> Self {
        let hosts: Vec<_> = (0..).zip(hops).map(|(serial, hop)| Host::new(hop.clone(), serial)).collect();
        Self { next_serial: hosts.len() as u32, hosts }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// In the order of their slots.
    pub(crate) fn hops(&self) -> impl Iterator<Item = &NextHop> {
        self.hosts.iter().map(|host| &host.hop)
    }

    pub(crate) fn hop(&self, index: HostIndex) -> Option<&NextHop> {
        self.get(index).map(|host| &host.hop)
    }

    pub(crate) fn circuit(&self, index: HostIndex) -> Option<&Circuit> {
        self.get(index).map(|host| &host.circuit)
    }

    pub(crate) fn circuit_mut(&mut self, index: HostIndex) -> Option<&mut Circuit> {
        self.get_mut(index).map(|host| &mut host.circuit)
    }

    pub(crate) fn circuits(&self) -> impl Iterator<Item = &Circuit> {
        self.hosts.iter().map(|host| &host.circuit)
    }

    pub(crate) fn circuits_mut(&mut self) -> impl Iterator<Item = &mut Circuit> {
        self.hosts.iter_mut().map(|host| &mut host.circuit)
    }

    /// Of all hosts together: open while each of them is.
    pub(crate) fn breaker(&self, now: u64) -> Breaker {
        let mut soonest: Option<u64> = None;
        for circuit in self.circuits() {
            match circuit.breaker(now) {
                Breaker::Closed => return Breaker::Closed,
                Breaker::Open { until } => soonest = Some(soonest.map_or(until, |other| other.min(until))),
                Breaker::HalfOpen => soonest = Some(0),
            }
        }
        match soonest {
            None => Breaker::Closed,
            Some(until) if until <= now => Breaker::HalfOpen,
            Some(until) => Breaker::Open { until },
        }
    }

    /// The host to connect to: of those that may be tried and were not, one of the lowest preference, drawn by weight; of any preference if
    /// it is the last that the attempt may ask. The second value says that this made it half-open.
    pub(crate) fn choose(
        &mut self,
        tried: &mut HostsTried,
        settings: &BreakerSettings,
        now: u64,
        jitter: &mut Jitter,
    ) -> Option<(HostIndex, bool)> {
        let is_open = |slot: usize, host: &Host| tried.slots & (1 << slot) == 0 && host.circuit.may_try(settings, now);
        let later = tried.later;
        let comes_first = |slot: usize, host: &Host| host.crowded_until <= now && later & (1 << slot) == 0;
        let some_come_first = self.hosts.iter().enumerate().any(|(slot, host)| comes_first(slot, host) && is_open(slot, host));
        let may_try = |slot: usize, host: &Host| is_open(slot, host) && (comes_first(slot, host) || !some_come_first);
        let is_last = tried.asked + 1 == HOSTS_ASKED_MAX;
        let (mut open, mut count, mut least) = ([0_u8; HOSTS_MAX], 0, u32::MAX);
        for (slot, host) in self.hosts.iter().enumerate().filter(|(slot, host)| may_try(*slot, host)) {
            if host.hop.preference < least && !is_last {
                (count, least) = (0, host.hop.preference);
            }
            if host.hop.preference == least || is_last {
                open[count] = slot as u8;
                count += 1;
            }
        }
        let slot = usize::from(self.draw(&open[..count], |below| jitter.below(below))?);
        tried.slots |= 1 << slot;
        let Host { serial, circuit, .. } = &mut self.hosts[slot];
        let half_open = circuit.begin(now);
        Some((HostIndex { serial: *serial, slot: slot as u8 }, half_open))
    }

    /// An attempt was put off by `index`, and before by those of `tried`: may it ask another one, which has room and a circuit that may be
    /// tried? Then `tried` has this one, too: all of its addresses, or the one.
    pub(crate) fn has_other(&self, index: HostIndex, by: PutOffBy, tried: &mut HostsTried, settings: &BreakerSettings, now: u64) -> bool {
        let Some(declined) = self.slot(index).filter(|_| tried.asked + 1 < HOSTS_ASKED_MAX) else { return false };
        let number = self.hosts[declined].hop.host;
        let is_it = |(slot, host): &(usize, &Host)| *slot == declined || by == PutOffBy::Host && host.hop.host == number;
        let slots = self.hosts.iter().enumerate().filter(is_it).fold(tried.slots, |slots, (slot, _)| slots | 1 << slot);
        let is_other =
            |(slot, host): (usize, &Host)| slots & (1 << slot) == 0 && host.crowded_until <= now && host.circuit.may_try(settings, now);
        let has = self.hosts.iter().enumerate().any(is_other);
        if has {
            *tried = HostsTried { slots, asked: tried.asked + 1, ..*tried };
        }
        has
    }

    /// The hosts with this name, as attempts name them, come after the others.
    pub(crate) fn later(&self, relay: &[u8], tried: &mut HostsTried) {
        let is_it = |name: &[u8]| name == relay || relay.ends_with(b"[") && name.starts_with(relay);
        let slots = self.hosts.iter().enumerate().filter(|(_, host)| is_it(host.hop.name.as_bytes()));
        tried.later = slots.fold(0, |slots, (slot, _)| slots | 1 << slot);
    }

    /// Is there one that this attempt is to be made at before `index`?
    pub(crate) fn comes_later(&self, index: HostIndex, tried: HostsTried, settings: &BreakerSettings, now: u64) -> bool {
        let comes_first = |(slot, host): (usize, &Host)| {
            (tried.later | tried.slots) & (1 << slot) == 0 && host.crowded_until <= now && host.circuit.may_try(settings, now)
        };
        self.slot(index).is_some_and(|slot| tried.later & (1 << slot) != 0) && self.hosts.iter().enumerate().any(comes_first)
    }

    /// An attempt has tried these in vain. True if all have been, by it and those before it since this was last true.
    pub(crate) fn ends_round(&mut self, tried: HostsTried) -> bool {
        for (slot, host) in self.hosts.iter_mut().enumerate() {
            host.is_in_round |= tried.slots & (1 << slot) != 0;
        }
        let ends = self.hosts.iter().all(|host| host.is_in_round);
        if ends {
            self.hosts.iter_mut().for_each(|host| host.is_in_round = false);
        }
        ends
    }

    /// It has enough connections.
    pub(crate) fn crowded(&mut self, index: HostIndex, now: u64, jitter: &mut Jitter) {
        let Some(host) = self.get_mut(index) else { return };
        host.crowded_times = host.crowded_times.saturating_add(1);
        host.crowded_until = now + back_off_ms(CROWDED_FIRST_MS, CROWDED_MAX_MS, host.crowded_times, CROWDED_JITTER_PERCENT, jitter);
    }

    /// It took a connection.
    pub(crate) fn has_room(&mut self, index: HostIndex) {
        if let Some(host) = self.get_mut(index) {
            (host.crowded_until, host.crowded_times) = (0, 0);
        }
    }

    /// One of these slots: first a host by its weight, then any of its addresses. So a host has its share whether it has one
    /// address or ten, and whether all of them are alive or one. `below(n)` gives a number below `n`.
    fn draw(&self, slots: &[u8], mut below: impl FnMut(u64) -> u64) -> Option<u8> {
        let hop = |slot: u8| &self.hosts[usize::from(slot)].hop;
        let first = *slots.first()?;
        let mut host = hop(first).host;
        if slots.iter().any(|&slot| hop(slot).host != host) {
            let weight = |slot: u8| u64::from(hop(slot).weight.max(1));
            let is_new = |at: usize| slots[..at].iter().all(|&slot| hop(slot).host != hop(slots[at]).host);
            let hosts = || (0..slots.len()).filter(|&at| is_new(at)).map(|at| slots[at]);
            let mut drawn = below(hosts().map(weight).sum());
            for slot in hosts() {
                host = hop(slot).host;
                match drawn.checked_sub(weight(slot)) {
                    Some(rest) => drawn = rest,
                    None => break,
                }
            }
        }
        let mut addresses = slots.iter().copied().filter(|&slot| hop(slot).host == host);
        match addresses.clone().count() {
            1 => addresses.next(),
            count => addresses.nth(below(count as u64) as usize),
        }
    }

    /// Replaces them, at most [`HOSTS_MAX`]: what is known of those that stay is kept. True if something changed.
    pub(crate) fn replace(&mut self, hops: &[NextHop]) -> bool {
        let hops = &hops[..hops.len().min(HOSTS_MAX)];
        if self.hosts.len() == hops.len() && self.hosts.iter().all(|host| hops.contains(&host.hop)) {
            return false;
        }
        let came: Vec<_> = hops.iter().filter(|hop| self.hosts.iter().all(|host| host.hop != **hop)).cloned().collect();
        let serials = self.next_serial..;
        self.next_serial = self.next_serial.wrapping_add(came.len() as u32);
        let mut came = came.into_iter().zip(serials).map(|(hop, serial)| Host::new(hop, serial));
        // Those that stay keep their slots while they can, by which attempts in progress know what they have tried.
        for host in &mut self.hosts {
            if !hops.contains(&host.hop)
                && let Some(new) = came.next()
            {
                *host = new;
            }
        }
        self.hosts.extend(came);
        while let Some(left) = self.hosts.iter().position(|host| !hops.contains(&host.hop)) {
            self.hosts.swap_remove(left);
        }
        true
    }

    /// The host, unless it has left.
    fn get(&self, index: HostIndex) -> Option<&Host> {
        self.slot(index).map(|slot| &self.hosts[slot])
    }

    fn get_mut(&mut self, index: HostIndex) -> Option<&mut Host> {
        self.slot(index).map(|slot| &mut self.hosts[slot])
    }

    fn slot(&self, index: HostIndex) -> Option<usize> {
        let is_it = |host: &Host| host.serial == index.serial;
        match self.hosts.get(index.position()) {
            Some(host) if is_it(host) => Some(index.position()),
            _ => self.hosts.iter().position(is_it),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::HostAddress;

    /// Host number, weight and preference of each address.
    fn hosts(of: &[(u8, u16, u32)]) -> Hosts {
        let hop = |(at, &(host, weight, preference)): (usize, &(u8, u16, u32))| {
            let address: HostAddress = HostAddress::Tcp(([192, 0, 2, at as u8 + 1], 25).into());
            NextHop { host, weight, preference, ..address.into() }
        };
        Hosts::new(&of.iter().enumerate().map(hop).collect::<Vec<_>>())
    }

    /// How often each is chosen first in so many attempts.
    fn chosen(hosts: &mut Hosts, attempts: usize) -> Vec<usize> {
        let (mut jitter, settings) = (Jitter::new(7), BreakerSettings::default());
        let mut counts = vec![0; hosts.hosts.len()];
        for _ in 0..attempts {
            let (index, _) = hosts.choose(&mut HostsTried::default(), &settings, 0, &mut jitter).unwrap();
            counts[index.position()] += 1;
        }
        counts
    }

    fn kill(hosts: &mut Hosts, slot: usize) {
        let settings = BreakerSettings::default();
        assert!(hosts.hosts[slot].circuit.failed(crate::breaker::Break::BeforeGreeting, 1, &settings, 0, &mut Jitter::new(1)));
    }

    /// Four standard deviations of a share of so many.
    fn is_share(count: usize, attempts: usize, share: f64) -> bool {
        let deviation = (attempts as f64 * share * (1.0 - share)).sqrt();
        (count as f64 - attempts as f64 * share).abs() <= 4.0 * deviation
    }

    #[test]
    fn another_host_is_one_of_another_name_that_lives_and_has_room() {
        let mut hosts = hosts(&[(0, 1, 0), (0, 1, 0), (1, 1, 10), (2, 1, 20)]);
        let (mut jitter, settings) = (Jitter::new(7), BreakerSettings::default());
        let mut tried = HostsTried::default();
        let (index, _) = hosts.choose(&mut tried, &settings, 0, &mut jitter).unwrap();
        assert!(hosts.has_other(index, PutOffBy::Host, &mut tried, &settings, 0));
        assert_eq!(tried, HostsTried { slots: 0b0011, asked: 1, later: 0 }, "both addresses of the first");
        let (index, _) = hosts.choose(&mut tried, &settings, 0, &mut jitter).unwrap();
        assert_eq!(index.position(), 2);
        kill(&mut hosts, 3);
        let before = tried;
        assert!(!hosts.has_other(index, PutOffBy::Host, &mut tried, &settings, 0), "the last one is dead");
        assert_eq!(tried, before);
        // Who was served over a kept connection has been to that host only.
        let mut fresh = HostsTried::default();
        assert!(hosts.has_other(index, PutOffBy::Host, &mut fresh, &settings, 0));
        assert_eq!(fresh, HostsTried { slots: 0b0100, asked: 1, later: 0 });
        let all: Vec<_> = std::iter::from_fn(|| hosts.choose(&mut fresh, &settings, 0, &mut jitter)).map(|(index, _)| index).collect();
        all.iter().for_each(|&one| hosts.crowded(one, 0, &mut jitter));
        assert!(!hosts.has_other(index, PutOffBy::Host, &mut HostsTried::default(), &settings, 0), "the others have enough connections");
    }

    #[test]
    fn what_is_of_one_address_leaves_the_others_of_its_name() {
        let mut hosts = hosts(&[(0, 1, 0), (0, 1, 0), (1, 1, 10)]);
        let (mut jitter, settings) = (Jitter::new(7), BreakerSettings::default());
        let mut tried = HostsTried::default();
        let (first, _) = hosts.choose(&mut tried, &settings, 0, &mut jitter).unwrap();
        assert!(hosts.has_other(first, PutOffBy::Address, &mut tried, &settings, 0));
        let (second, _) = hosts.choose(&mut tried, &settings, 0, &mut jitter).unwrap();
        assert_eq!(first.position() + second.position(), 1);
    }

    #[test]
    fn a_host_that_comes_later_is_tried_when_no_other_can_be() {
        let mut hosts = hosts(&[(0, 1, 0), (1, 1, 10), (2, 1, 20)]);
        let (mut jitter, settings) = (Jitter::new(7), BreakerSettings::default());
        let mut tried = HostsTried::default();
        let (first, _) = hosts.choose(&mut HostsTried::default(), &settings, 0, &mut jitter).unwrap();
        hosts.later(b"192.0.2.1:2", &mut tried);
        assert_eq!(tried, HostsTried::default(), "another name");
        hosts.later(b"192.0.2.1:25", &mut tried);
        assert!(hosts.comes_later(first, tried, &settings, 0));
        let order: Vec<_> =
            std::iter::from_fn(|| hosts.choose(&mut tried, &settings, 0, &mut jitter)).map(|(index, _)| index.position()).collect();
        assert_eq!(order, [1, 2, 0]);
        assert!(!hosts.comes_later(first, tried, &settings, 0), "the others were tried");
        hosts.later(b"192.0.2.[", &mut tried);
        assert_eq!(tried.later, 0);
    }

    /// A host that comes third or later by preference had a message never, if those before it put it off each time.
    #[test]
    fn an_attempt_asks_three_hosts_and_each_has_its_turn_over_several_attempts() {
        let of: Vec<_> = (0..8).map(|number| (number, 1, u32::from(number))).collect();
        let (mut hosts, mut jitter, settings) = (hosts(&of), Jitter::new(7), BreakerSettings::default());
        let mut counts = [0; 8];
        for _ in 0..600 {
            let (mut tried, mut asked) = (HostsTried::default(), 0);
            loop {
                let (index, _) = hosts.choose(&mut tried, &settings, 0, &mut jitter).expect("has_other says so");
                counts[index.position()] += 1;
                asked += 1;
                if !hosts.has_other(index, PutOffBy::Host, &mut tried, &settings, 0) {
                    break;
                }
            }
            assert_eq!(asked, 3);
        }
        assert_eq!(counts[..2], [600, 600], "{counts:?}");
        assert!(counts[2..].iter().all(|&count| is_share(count, 600, 1.0 / 6.0)), "{counts:?}");
    }

    /// A host that stayed, and was moved into the place of one that left, was another one for who had a connection to it, and that was closed.
    #[test]
    fn a_host_that_stays_is_the_same_one_wherever_it_stands() {
        let mut hosts = hosts(&[(0, 1, 0), (1, 1, 0), (2, 1, 0)]);
        let hops: Vec<_> = hosts.hops().cloned().collect();
        let (mut tried, mut jitter, settings) = (HostsTried::default(), Jitter::new(7), BreakerSettings::default());
        let mut indices: Vec<_> =
            std::iter::from_fn(|| hosts.choose(&mut tried, &settings, 0, &mut jitter)).map(|(index, _)| index).collect();
        indices.sort_by_key(|index| index.position());
        let [a, b, c] = *indices else { panic!("{indices:?}") };
        assert!(hosts.replace(&hops[1..]));
        assert_eq!([a, b, c].map(|index| hosts.hop(index)), [None, Some(&hops[1]), Some(&hops[2])]);
        hosts.circuit_mut(c).unwrap().failed(crate::breaker::Break::BeforeGreeting, 1, &settings, 0, &mut jitter);
        assert!(!hosts.circuit(c).unwrap().is_closed() && hosts.circuit(b).unwrap().is_closed());
        // One that comes back is not taken for what it was.
        assert!(hosts.replace(&hops));
        assert_eq!([a, b, c].map(|index| hosts.hop(index)), [None, Some(&hops[1]), Some(&hops[2])]);
        assert!(
            (0..100)
                .filter_map(|_| hosts.choose(&mut HostsTried::default(), &settings, 0, &mut jitter))
                .all(|(index, _)| index != a && index != c)
        );
    }

    #[test]
    fn each_host_has_the_share_of_its_weight_however_many_addresses_it_has() {
        // The host of weight 1 has three addresses, that of weight 6 has two, that of weight 3 has one; the last is for worse times.
        let of = [(0, 1, 0), (0, 1, 0), (0, 1, 0), (1, 6, 0), (1, 6, 0), (2, 3, 0), (3, 1000, 1)];
        let counts = chosen(&mut hosts(&of), 30_000);
        for (slot, share) in [1.0 / 30.0, 1.0 / 30.0, 1.0 / 30.0, 0.3, 0.3, 0.3, 0.0].into_iter().enumerate() {
            assert!(is_share(counts[slot], 30_000, share), "{slot}: {counts:?}");
        }
    }

    #[test]
    fn a_dead_address_leaves_its_share_to_its_host_and_a_dead_host_to_the_others() {
        let mut hosts = hosts(&[(0, 1, 0), (0, 1, 0), (1, 2, 0), (2, 1, 0), (3, 1, 1)]);
        kill(&mut hosts, 0);
        let counts = chosen(&mut hosts, 20_000);
        for (slot, share) in [0.0, 0.25, 0.5, 0.25, 0.0].into_iter().enumerate() {
            assert!(is_share(counts[slot], 20_000, share), "{slot}: {counts:?}");
        }
        kill(&mut hosts, 1);
        let counts = chosen(&mut hosts, 20_000);
        for (slot, share) in [0.0, 0.0, 2.0 / 3.0, 1.0 / 3.0, 0.0].into_iter().enumerate() {
            assert!(is_share(counts[slot], 20_000, share), "{slot}: {counts:?}");
        }
        kill(&mut hosts, 2);
        kill(&mut hosts, 3);
        assert_eq!(chosen(&mut hosts, 100), [0, 0, 0, 0, 100], "all of the better ones are dead");
    }

    #[test]
    fn an_attempt_tries_each_address_once_and_the_backup_last() {
        let (mut hosts, settings, mut jitter) =
            (hosts(&[(0, 5, 0), (1, 1, 0), (1, 1, 0), (2, 9, 1)]), BreakerSettings::default(), Jitter::new(3));
        for _ in 0..50 {
            let mut tried = HostsTried::default();
            let mut order: Vec<_> =
                std::iter::from_fn(|| hosts.choose(&mut tried, &settings, 0, &mut jitter)).map(|(index, _)| index.position()).collect();
            assert_eq!(order.pop(), Some(3));
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2]);
        }
    }
}
