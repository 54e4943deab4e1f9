//! The domains of a site that have ready mail, by the priority of their best; behind all others those with nothing but mail of avoided senders.
//!
//! Where many wait for an avoided sender, a poll that went round them for each message of another one would look at thousands: such a domain is set
//! aside, as groups are in a ready queue ([`ReadyQueue`](crate::ready::ReadyQueue)), and looked at once for each cause.

use std::collections::VecDeque;

use crate::message::PRIORITY_MAX;
use crate::queue::Queue;
use crate::site::{Role, Step};

const PRIORITIES: usize = PRIORITY_MAX as usize + 1;

/// A site forgets who has left it only when there are more entries than this in its lists, of those in turn or of those set aside, and than its
/// domains can have: one for each priority. So each of the two is never longer than this and ten times the domains that it had when one came last.
const ENTRIES_MIN: usize = 64;

/// Where a domain is queued at its site. A greater one comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum QueuedAt {
    /// Set aside, under this priority.
    Aside(u8),
    /// In turn, under this priority.
    InTurn(u8),
}

/// A domain in a list of its site's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) slot: u32,
    /// Tells what a domain left behind when it went from what it has since it came again.
    pub(crate) joining: u32,
}

/// One list per priority, each in the order of coming. A domain that is queued elsewhere by now, or not at all, may still be in one: it is in each
/// of them once at most while it is at the site ([`Listed`](crate::site::Listed)).
#[derive(Debug, Default)]
struct Lists {
    domains: [VecDeque<Entry>; PRIORITIES],
    entries: usize,
}

#[derive(Debug, Default)]
pub(crate) struct QueuedDomains {
    in_turn: Lists,
    aside: Option<Box<Aside>>,
}

#[derive(Debug)]
struct Aside {
    lists: Lists,
    /// Names the cause, so that those of an earlier one are told from them.
    cause: u64,
}

impl QueuedDomains {
    pub(crate) fn is_empty(&self) -> bool {
        self.in_turn.entries + self.entries_aside() == 0
    }

    /// A domain whose turn comes soon.
    pub(crate) fn foremost(&self) -> Option<u32> {
        self.foremost_lists().domains.iter().rev().find_map(VecDeque::front).map(|entry| entry.slot)
    }

    /// The highest priority of a domain whose turn may be next.
    pub(crate) fn best_priority(&self) -> Option<u8> {
        let domains = &self.foremost_lists().domains;
        (0..=PRIORITY_MAX).rev().find(|priority| !domains[usize::from(*priority)].is_empty())
    }

    /// The first of each priority, the highest first: of those that were set aside only when there is no other.
    pub(crate) fn first_of_each(&self) -> impl Iterator<Item = (QueuedAt, Entry)> {
        let at: fn(u8) -> QueuedAt = if self.in_turn.entries > 0 { QueuedAt::InTurn } else { QueuedAt::Aside };
        let domains = &self.foremost_lists().domains;
        (0..=PRIORITY_MAX).rev().filter_map(move |priority| Some((at(priority), *domains[usize::from(priority)].front()?)))
    }

    pub(crate) fn push(&mut self, domain: Entry, priority: u8) {
        self.in_turn.push(domain, priority);
    }

    /// Those for another cause have [left](QueuedDomains::pop_outdated) first.
    pub(crate) fn set_aside(&mut self, domain: Entry, priority: u8, cause: u64) {
        let aside = self.aside.get_or_insert_with(|| Box::new(Aside { lists: Lists::default(), cause }));
        assert_eq!(aside.cause, cause, "those of another cause have left");
        aside.lists.push(domain, priority);
    }

    /// Set aside, those that have moved on among them.
    fn entries_aside(&self) -> usize {
        self.aside.as_ref().map_or(0, |aside| aside.lists.entries)
    }

    /// The longer of what is in turn and what is set aside, those that have moved on among them.
    fn entries_most(&self) -> usize {
        self.in_turn.entries.max(self.entries_aside())
    }

    /// Forgets those that have left.
    fn retain(&mut self, is_there: impl Fn(Entry, QueuedAt) -> bool) {
        self.in_turn.retain(|domain, priority| is_there(domain, QueuedAt::InTurn(priority)));
        if let Some(aside) = &mut self.aside {
            aside.lists.retain(|domain, priority| is_there(domain, QueuedAt::Aside(priority)));
        }
        self.aside.take_if(|aside| aside.lists.entries == 0);
    }

    /// Takes out the first of these.
    pub(crate) fn pop(&mut self, at: QueuedAt) -> Option<Entry> {
        match at {
            QueuedAt::InTurn(priority) => self.in_turn.pop(priority),
            QueuedAt::Aside(priority) => {
                let popped = self.aside.as_mut()?.lists.pop(priority);
                self.aside.take_if(|aside| aside.lists.entries == 0);
                popped
            }
        }
    }

    /// May domains be set aside for this cause? Not while others are for an earlier one, see [`QueuedDomains::pop_outdated`].
    pub(crate) fn may_set_aside(&self, cause: u64) -> bool {
        self.aside.as_ref().is_none_or(|aside| aside.cause == cause)
    }

    /// One that was set aside for another cause than `cause`; it is so no more.
    pub(crate) fn pop_outdated(&mut self, cause: Option<u64>) -> Option<(QueuedAt, Entry)> {
        let aside = self.aside.as_ref().filter(|aside| Some(aside.cause) != cause)?;
        let priority = (0..=PRIORITY_MAX).rev().find(|priority| !aside.lists.domains[usize::from(*priority)].is_empty())?;
        self.pop(QueuedAt::Aside(priority)).map(|domain| (QueuedAt::Aside(priority), domain))
    }

    fn foremost_lists(&self) -> &Lists {
        match &self.aside {
            Some(aside) if self.in_turn.entries == 0 => &aside.lists,
            _ => &self.in_turn,
        }
    }
}

impl Lists {
    fn push(&mut self, domain: Entry, priority: u8) {
        self.domains[usize::from(priority)].push_back(domain);
        self.entries += 1;
    }

    fn pop(&mut self, priority: u8) -> Option<Entry> {
        let popped = self.domains[usize::from(priority)].pop_front();
        self.entries -= usize::from(popped.is_some());
        popped
    }

    fn retain(&mut self, is_there: impl Fn(Entry, u8) -> bool) {
        for (priority, domains) in (0..).zip(&mut self.domains) {
            domains.retain(|domain| is_there(*domain, priority));
        }
        self.entries = self.domains.iter().map(VecDeque::len).sum();
    }
}

impl Queue {
    /// Queues a domain with ready mail at its site, or before where it is: aside if all of its mail was, see `avoided.rs`.
    pub(crate) fn queue_at_site(&mut self, slot: u32, site: u32, now: u64) {
        let Role::Site(state) = &self.destinations[site as usize].role else { unreachable!("domains join sites") };
        let queued = &state.queued;
        let ready = &self.destinations[slot as usize].ready;
        let cause = self.avoidance(site).filter(|cause| ready.is_all_aside(*cause) && queued.may_set_aside(*cause));
        let best = ready.best_priority();
        let at = if cause.is_some() { QueuedAt::Aside(best) } else { QueuedAt::InTurn(best) };
        let Role::Domain(domain) = &mut self.destinations[slot as usize].role else { unreachable!("the caller looked") };
        if domain.queued_at.is_some_and(|before| before >= at) {
            return;
        }
        domain.queued_at = Some(at);
        let entry = Entry { slot, joining: domain.joining };
        // It may be in this list already, from when it was queued there before.
        if domain.listed.add(at) {
            let Role::Site(state) = &mut self.destinations[site as usize].role else { unreachable!("domains join sites") };
            match cause {
                None => state.queued.push(entry, best),
                Some(cause) => state.queued.set_aside(entry, best, cause),
            }
            self.bound_queued(site);
        }
        self.refresh(site, now);
    }

    /// Domains that left a site while they were in its lists are forgotten when they are many.
    fn bound_queued(&mut self, site: u32) {
        let Role::Site(state) = &mut self.destinations[site as usize].role else { unreachable!("the caller looked") };
        if state.queued.entries_most() <= ENTRIES_MIN + PRIORITIES * state.members.len() {
            return;
        }
        let mut queued = std::mem::take(&mut state.queued);
        queued.retain(|entry, at| match &self.destinations[entry.slot as usize].role {
            Role::Domain(domain) => domain.joining == entry.joining && domain.listed.has(at),
            Role::Route | Role::Site(_) | Role::Vacant => false,
        });
        let Role::Site(state) = &mut self.destinations[site as usize].role else { unreachable!("the caller looked") };
        state.queued = queued;
    }

    /// The domain whose turn it is at a site, among those with ready mail and an answer that is not old; and where it was: it is no longer
    /// queued.
    pub(crate) fn next_domain(&mut self, site: u32, now: u64) -> Option<(u32, QueuedAt)> {
        loop {
            let Role::Site(state) = &self.destinations[site as usize].role else { unreachable!("the caller looked") };
            let queued = &state.queued;
            let mut best: Option<(u64, QueuedAt)> = None;
            for (at, domain) in queued.first_of_each() {
                let turn = self.turn_of(domain, at).unwrap_or(0);
                if best.is_none_or(|(least, ..)| turn < least) {
                    best = Some((turn, at));
                }
            }
            let (_, at) = best?;
            let Role::Site(state) = &mut self.destinations[site as usize].role else { unreachable!("the caller looked") };
            let queued = &mut state.queued;
            let entry = queued.pop(at).expect("it was the first");
            if !self.leaves_queue(entry, at) {
                continue;
            }
            let slot = entry.slot;
            let state = &self.destinations[slot as usize];
            let Role::Domain(domain) = &state.role else { continue };
            match domain.step(now) {
                Step::Serve { .. } if !state.ready.is_empty() && !state.paused => return Some((slot, at)),
                // It is asked about first, or has nothing to send any more.
                _ => self.refresh(slot, now),
            }
        }
    }

    /// This was taken out of a list of the site's. False if the domain had moved on; else it is queued no longer.
    pub(crate) fn leaves_queue(&mut self, entry: Entry, at: QueuedAt) -> bool {
        let Role::Domain(domain) = &mut self.destinations[entry.slot as usize].role else { return false };
        if domain.joining != entry.joining {
            return false;
        }
        domain.listed.remove(at);
        let is_here = domain.queued_at == Some(at);
        domain.queued_at.take_if(|_| is_here);
        is_here
    }

    /// When the first message of a domain has its turn, if that is where it is queued at the site.
    fn turn_of(&self, entry: Entry, at: QueuedAt) -> Option<u64> {
        let state = &self.destinations[entry.slot as usize];
        let Role::Domain(domain) = &state.role else { return None };
        if domain.queued_at != Some(at) || domain.joining != entry.joining {
            return None;
        }
        let age_step_ms = self.settings.age_step_ms;
        state.ready.first(&self.groups, age_step_ms).map(|group| self.groups[group].turn(age_step_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Asking, DestinationLimits, NewMessage, NewRecipient, Notify, Outcome, QueueId, QueueSettings, Resolution, RetryPolicy, Route,
        Routes, Settled, Via, Work,
    };

    const START: u64 = 1_790_000_000_000;

    fn site_of(key: &str) -> Resolution {
        let hosts = vec![format!("192.0.2.{}:25", key.len()).parse().unwrap()];
        Resolution::Site { key: key.to_owned(), name: key.to_owned(), hosts, is_whole: true, until: START + 100_000_000 }
    }

    /// Each time that a domain left its site while it was set aside, and came again, it was in the list once more: nothing bounded that, it was
    /// looked through at each further one, and the domain had as many turns as places.
    #[test]
    fn a_domain_that_leaves_and_comes_again_is_set_aside_once() {
        let limits = DestinationLimits { connections_max: 1, window_initial: 1, throttle_pause_ms: 10_000, ..DestinationLimits::default() };
        let route = Route { pattern: "*".into(), via: Via::Mx { port: 25 }, retry: RetryPolicy::default(), limits };
        let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, START);
        let enqueue = |queue: &mut Queue, sequence: u64, sender: &str, domain: &str| {
            let id = QueueId { boot: 1, shard: 0, sequence };
            let message = NewMessage { id, accepted_at: START, reverse_path: sender.as_bytes(), ..NewMessage::default() };
            let (address, destination) = (format!("b@{domain}"), queue.route(domain.as_bytes()));
            queue.enqueue(&message, [NewRecipient { address: address.as_bytes(), destination, notify: Notify::UNSAID }].into_iter(), START);
            destination
        };
        enqueue(&mut queue, 1, "bad@x.test", "first.test");
        let leaver = enqueue(&mut queue, 2, "bad@x.test", "leaver.test");
        (3..6).for_each(|sequence| _ = enqueue(&mut queue, sequence, "good@x.test", "good.test"));
        let poll = |queue: &mut Queue, now: u64| loop {
            match queue.poll(now, &mut Vec::new())? {
                Work::Attempt(dispatch) => return Some(dispatch),
                Work::Resolve(lookup) => queue.resolved(lookup.asking, &site_of("all"), now),
                other => panic!("{other:?}"),
            }
        };
        let dispatch = poll(&mut queue, START).unwrap();
        let site = dispatch.destination();
        assert!(poll(&mut queue, START).is_none(), "the others are asked about meanwhile");
        let refused = Outcome::Deferred { reply: b"421 4.7.0 your reputation is bad" };
        let _ = queue.settle(dispatch, &[(0, refused)], START, &mut Vec::new());
        let now = queue.destination(site, START).unwrap().throttled_until.unwrap();
        let good = poll(&mut queue, now).unwrap();
        assert_eq!(queue.envelope(good.key()).unwrap().reverse_path, b"good@x.test");

        let entries = |queue: &Queue| {
            let Role::Site(state) = &queue.destinations[site.index()].role else { unreachable!("it is one") };
            let Role::Domain(domain) = &queue.destinations[leaver.index()].role else { unreachable!("it is one") };
            let entry = Entry { slot: leaver.slot, joining: domain.joining };
            let aside = state.queued.aside.as_ref().expect("it was passed over");
            let here = aside.lists.domains.iter().flatten().filter(|other| **other == entry).count();
            (here, aside.lists.entries, state.members.len())
        };
        assert_eq!(entries(&queue), (1, 1, 3));
        for _ in 0..1000 {
            for key in ["another", "all"] {
                queue.resolved(Asking { destination: leaver, table: 0 }, &site_of(key), now);
            }
            let (here, all, members) = entries(&queue);
            assert!(here == 1 && all <= ENTRIES_MIN + PRIORITIES * members, "{here} of {all}");
        }
        // It has its turn once, when no other is left.
        let _ = queue.settle(good, &[(0, Outcome::Delivered { reply: b"250 ok" })], now, &mut Vec::new());
        let mut senders = Vec::new();
        while let Some(dispatch) = poll(&mut queue, now) {
            senders.push(queue.envelope(dispatch.key()).unwrap().reverse_path.to_vec());
            let _ = queue.settle(dispatch, &[(0, Outcome::Delivered { reply: b"250 ok" })], now, &mut Vec::new());
        }
        assert_eq!(senders, [&b"good@x.test"[..], b"good@x.test", b"bad@x.test"]);
    }

    /// Each time that a domain left its site while it waited for its turn there, and came again, and each time that its mail was taken out and more
    /// came, it was in the list once more: at a site that answers nobody nothing bounded that.
    #[test]
    fn a_domain_waits_for_its_turn_in_one_place_however_often_it_comes() {
        let limits = DestinationLimits { connections_max: 1, window_initial: 1, ..DestinationLimits::default() };
        let route = Route { pattern: "*".into(), via: Via::Mx { port: 25 }, retry: RetryPolicy::default(), limits };
        let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, START);
        let mut sequence = 0;
        let mut enqueue = |queue: &mut Queue, domain: &str| {
            sequence += 1;
            let id = QueueId { boot: 1, shard: 0, sequence };
            let message = NewMessage { id, accepted_at: START, reverse_path: b"a@x.test", ..NewMessage::default() };
            let (address, destination) = (format!("b@{domain}"), queue.route(domain.as_bytes()));
            let recipient = NewRecipient { address: address.as_bytes(), destination, notify: Notify::UNSAID };
            (queue.enqueue(&message, [recipient].into_iter(), START), destination)
        };
        let poll = |queue: &mut Queue| loop {
            match queue.poll(START, &mut Vec::new())? {
                Work::Attempt(dispatch) => return Some(dispatch),
                Work::Resolve(lookup) => queue.resolved(lookup.asking, &site_of("all"), START),
                other => panic!("{other:?}"),
            }
        };
        enqueue(&mut queue, "first.test");
        let open = poll(&mut queue).unwrap();
        let (_, leaver) = enqueue(&mut queue, "leaver.test");
        let (mut key, _) = enqueue(&mut queue, "guest.test");
        assert!(poll(&mut queue).is_none(), "the one connection is in use");
        let entries = |queue: &Queue| {
            let sites = queue.destinations.iter().filter_map(|destination| match &destination.role {
                Role::Site(state) => Some((state.queued.in_turn.entries, state.members.len())),
                _ => None,
            });
            sites.collect::<Vec<_>>()
        };
        assert_eq!(entries(&queue), [(2, 3)]);
        for _ in 0..1000 {
            for name in ["another", "all"] {
                queue.resolved(Asking { destination: leaver, table: 0 }, &site_of(name), START);
            }
            // It counts among the members while it comes.
            for (all, members) in entries(&queue) {
                assert!(all <= ENTRIES_MIN + PRIORITIES * (members + 1), "{all} of {members}");
            }
        }
        let before = entries(&queue)[0].0;
        for _ in 0..1000 {
            assert_eq!(queue.delete(key, START), Some(Settled::Done));
            queue.recorded(key);
            key = enqueue(&mut queue, "guest.test").0;
        }
        assert_eq!(entries(&queue)[0].0, before, "its mail came and went");
        // Each has its turn, and has it once.
        let mut served = Vec::new();
        let mut open = Some(open);
        while let Some(dispatch) = open.take() {
            served.push(queue.recipients(&dispatch).map(|(_, address)| address.to_vec()).next().unwrap());
            let _ = queue.settle(dispatch, &[(0, Outcome::Delivered { reply: b"250 ok" })], START, &mut Vec::new());
            open = poll(&mut queue);
        }
        served.sort_unstable();
        assert_eq!(served, [&b"b@first.test"[..], b"b@guest.test", b"b@leaver.test"]);
    }
}
