//! The hosts of a destination: which of them are alive, and which one the next connection goes to.

use std::hash::{Hash, Hasher};

use crate::breaker::{Breaker, BreakerSettings, Circuit};
use crate::destination_id::DestinationId;
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

/// A breaker that changed, for the log and the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BreakerChange {
    /// Of which destination.
    pub destination: DestinationId,
    /// Of which of its hosts.
    pub host: HostIndex,
    /// What it says now.
    pub now: Breaker,
    /// It was open or half-open before, not closed.
    pub was_broken: bool,
}

/// A host of a destination, as operators see it.
#[derive(Clone, Copy, Debug)]
pub struct HostView<'q> {
    /// As [`NextHop::name`].
    pub name: &'q str,
    /// What its breaker says, and until when.
    pub breaker: Breaker,
    /// Why its breaker opened last; empty if it is closed.
    pub reason: &'q str,
}

/// A host that has enough connections is passed over for so long where another one may be tried, doubling until it greets.
const CROWDED_FIRST_MS: u64 = 1_000;
const CROWDED_MAX_MS: u64 = 30_000;
const CROWDED_JITTER_PERCENT: u8 = 20;

/// Longest reason that is kept of a host or a destination, in bytes.
const REASON_BYTES_MAX: usize = 200;

/// Hosts that may put one attempt off, RFC 5321 5.1: at least two are to be tried. Each may be silent for minutes before it does, and is a
/// connection that the message's destination is charged with. The last is drawn from all that are left, whatever their preference, so that
/// over several attempts each has its turn, however many there are. A host that does not offer what the message needs is none of them: it
/// answers EHLO at once, and what it lacks is the word of all only when each was asked.
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
    /// One bit for each slot of a host that does not offer what the message needs, and of which set of hosts they are.
    lacking: u32,
    set: u32,
    /// One put it off and did not ask for less mail.
    said_otherwise: bool,
}

impl HostsTried {
    /// A host put it off for a reason of this message, or of what it offers.
    pub fn note_said_otherwise(&mut self) {
        self.said_otherwise = true;
    }

    /// It was at more than one, or at all addresses of one.
    pub fn are_several(self) -> bool {
        self.slots.count_ones() > 1
    }

    /// See [`HostsTried::note_said_otherwise`].
    pub fn have_said_otherwise(self) -> bool {
        self.said_otherwise
    }
}

/// Whose word it is that put an attempt off: what the other addresses of the same name would say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutOffBy {
    /// The host's, by whichever of its addresses.
    Host,
    /// That of the machine at this address, or of the line to it.
    Address,
    /// Nobody's: the host does not offer what the message needs, by whichever of its addresses.
    Offer,
}

const _: () = assert!(HOSTS_MAX <= 32, "one bit per host");

#[derive(Debug)]
struct Host {
    hop: NextHop,
    /// Its number among all that this destination ever had.
    serial: u32,
    circuit: Circuit,
    /// Why its circuit opened last, in one line of at most [`REASON_BYTES_MAX`].
    reason: Box<str>,
    /// It has enough connections: others come first until then (unix ms), and how often it said so since it greeted.
    crowded_until: u64,
    crowded_times: u32,
    /// An attempt has tried it in vain since the last round of all hosts.
    is_in_round: bool,
}

impl Host {
    fn new(hop: NextHop, serial: u32) -> Self {
        Self { hop, serial, circuit: Circuit::new(), reason: Box::default(), crowded_until: 0, crowded_times: 0, is_in_round: false }
    }
}

#[derive(Debug)]
pub(crate) struct Hosts {
    hosts: Vec<Host>,
    next_serial: u32,
    /// Counts the sets of hosts that it had.
    set: u32,
    /// They are all that the destination has: of no other is it known, or to be found out, that it takes mail.
    is_whole: bool,
}

impl Hosts {
    pub(crate) fn new(hops: &[NextHop]) -> Self {
        let hosts: Vec<_> = (0..).zip(hops).map(|(serial, hop)| Host::new(hop.clone(), serial)).collect();
        Self { next_serial: hosts.len() as u32, hosts, set: 0, is_whole: true }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// See [`Hosts::replace`].
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
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

    /// Each of them, in the order of their slots.
    pub(crate) fn views(&self, now: u64) -> impl Iterator<Item = HostView<'_>> {
        self.hosts.iter().map(move |host| {
            let breaker = host.circuit.breaker(now);
            let reason = if breaker == Breaker::Closed { "" } else { &*host.reason };
            HostView { name: &host.hop.name, breaker, reason }
        })
    }

    /// Its circuit has opened for this reason.
    pub(crate) fn opened(&mut self, index: HostIndex, reason: &str) {
        if let Some(host) = self.get_mut(index) {
            host.reason = shortened(reason).into();
        }
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
    /// tried? Then `tried` has this one, too: all of its addresses, or the one. What it lacks `tried` has in any case.
    pub(crate) fn has_other(&self, index: HostIndex, by: PutOffBy, tried: &mut HostsTried, settings: &BreakerSettings, now: u64) -> bool {
        let Some(declined) = self.slot(index) else { return false };
        let of_it = if by == PutOffBy::Address { 1 << declined } else { self.slots_of(declined) };
        let asked = match by {
            PutOffBy::Offer => {
                self.note_lack(of_it, tried);
                tried.asked
            }
            PutOffBy::Host | PutOffBy::Address => tried.asked + 1,
        };
        let slots = tried.slots | of_it;
        let is_other =
            |(slot, host): (usize, &Host)| slots & (1 << slot) == 0 && host.crowded_until <= now && host.circuit.may_try(settings, now);
        let has = asked < HOSTS_ASKED_MAX && self.hosts.iter().enumerate().any(is_other);
        if has {
            *tried = HostsTried { slots, asked, ..*tried };
        }
        has
    }

    /// All addresses of the host in this slot.
    fn slots_of(&self, slot: usize) -> u32 {
        let number = self.hosts[slot].hop.host;
        let of_it = self.hosts.iter().enumerate().filter(|(_, host)| host.hop.host == number);
        of_it.fold(1 << slot, |slots, (slot, _)| slots | 1 << slot)
    }

    /// The hosts in these slots do not offer what the message of an attempt needs. Of another set than the attempt knows nothing is known.
    fn note_lack(&self, slots: u32, tried: &mut HostsTried) {
        let known = if tried.set == self.set { tried.lacking } else { 0 };
        (tried.lacking, tried.set) = (known | slots, self.set);
    }

    /// What an attempt knows that `index` put off, for the sake of some recipients, for what it does not offer. It may have put off others for
    /// other reasons, so that the attempt does not keep it.
    pub(crate) fn lacking(&self, index: HostIndex, mut tried: HostsTried) -> HostsTried {
        if let Some(slot) = self.slot(index) {
            self.note_lack(self.slots_of(slot), &mut tried);
        }
        tried
    }

    /// Each host that the destination has was asked by this attempt, and none offers what the message needs. That is final; as long as one
    /// could not be asked, because it is dead, has no room, or has no address just now, nothing is.
    pub(crate) fn all_lack(&self, tried: HostsTried) -> bool {
        !self.is_empty() && self.is_whole && tried.set == self.set && (0..self.hosts.len()).all(|slot| tried.lacking & (1 << slot) != 0)
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

    /// Replaces them, at most [`HOSTS_MAX`]: what is known of those that stay is kept. True if something changed. `is_whole`: the destination has
    /// no other.
    pub(crate) fn replace(&mut self, hops: &[NextHop], is_whole: bool) -> bool {
        self.is_whole = is_whole && hops.len() <= HOSTS_MAX;
        let hops = &hops[..hops.len().min(HOSTS_MAX)];
        if self.hosts.len() == hops.len() && self.hosts.iter().all(|host| hops.contains(&host.hop)) {
            return false;
        }
        self.set = self.set.wrapping_add(1);
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

/// A reason in one line of at most [`REASON_BYTES_MAX`].
pub(crate) fn shortened(reason: &str) -> String {
    let line = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)];
    line.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests;
