//! Which destinations there are: found by route, domain and site; created at first use, dropped when nobody has used them for
//! a while.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;

use hashbrown::HashTable;

use crate::destination::Destination;
use crate::destination_id::DestinationId;
use crate::dispatch::Dispatch;
use crate::domain_name::{DOMAIN_BYTES_MAX, canonical_domain};
use crate::hosts::HostIndex;
use crate::message::MessageKey;
use crate::names::Names;
use crate::queue::{Queue, Work};
use crate::route::{NextHop, RouteId, Via};
use crate::routes::Mail;
use crate::site::{Answer, Asking, Domain, Listed, Lookup, Question, Resolution, Role, Site, Step, Verdict, later_turn};
use crate::slab::NONE;

/// How long a destination without mail is kept, so that its answer, its window and its breaker are still known to the next.
const IDLE_MS: u64 = 600_000;

/// Destinations without mail that are kept at most, besides the sites of such domains; a further one is dropped at once.
const IDLE_MAX: usize = 4096;

/// The dynamic destinations by route and name.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    entries: HashTable<u32>,
    /// Domains come from outside and are put in: nobody is to choose those that collide, or to learn which do from how long look-ups
    /// take, which faster hashers do not promise.
    hasher: RandomState,
    vacant: Vec<u32>,
    idle: usize,
    /// Of domains to sites.
    joinings: u32,
    pub(crate) names: Names,
}

impl Queue {
    /// The destination for a recipient of some mail; [`DestinationId::UNROUTED`] when no route matches. That of an mx route is
    /// made at its first use, and dropped when it has had no mail for ten minutes.
    pub fn route_mail(&mut self, mail: Mail<'_>) -> DestinationId {
        self.routes.find_mail(mail).map_or(DestinationId::UNROUTED, |route| self.destination_by(route, mail.domain))
    }

    /// As [`Queue::route_mail`], for mail of a sender that no route names.
    pub fn route(&mut self, domain: &[u8]) -> DestinationId {
        self.routes.find(domain).map_or(DestinationId::UNROUTED, |route| self.destination_by(route, domain))
    }

    /// The destination for a domain by a route that was chosen already.
    pub(crate) fn destination_by(&mut self, route: RouteId, domain: &[u8]) -> DestinationId {
        match self.routes.all()[usize::from(route.0)].via {
            Via::Mx { .. } => self.domain_by(route, domain),
            // One for the whole route.
            Via::Named { .. } => self.named_by(route),
            Via::Smarthost { .. } | Via::Lmtp { .. } | Via::Maildir { .. } | Via::Discard | Via::Hold => {
                self.id(self.route_slots[usize::from(route.0)])
            }
        }
    }

    /// Does a route match this mail? So that a policy can refuse a recipient. Does not allocate.
    pub fn has_route(&self, mail: Mail<'_>) -> bool {
        self.routes.find_mail(mail).is_some()
    }

    /// The route of a destination; `None` for what is unrouted or was dropped.
    pub fn route_of(&self, destination: DestinationId) -> Option<RouteId> {
        self.live(destination).and_then(|destination| destination.route)
    }

    /// A number that is the same for this destination in every queue with the same routes, and spread evenly: for choosing
    /// one of several homes. 0 for what was dropped.
    pub fn spread(&self, destination: DestinationId) -> u64 {
        let Some(state) = self.live(destination) else { return 0 };
        let route = state.route.map_or("", |route| &self.routes.all()[usize::from(route.0)].pattern);
        let own = match &state.role {
            Role::Domain(_) => state.name.as_str(),
            Role::Site(site) => site.key.as_str(),
            Role::Route | Role::Vacant => "",
        };
        // FNV-1a, then one round of mixing: stable between processes, which the standard hashers are not.
        let bytes = route.bytes().chain([0, state.role.tag()]).chain(own.bytes());
        let hash = bytes.fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3));
        (hash ^ hash >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    /// Takes in an answer to a [`Lookup`]. What was asked for a destination that was dropped meanwhile is ignored, and so is what was asked before a
    /// reload that names other hosts.
    pub fn resolved(&mut self, asking: Asking, resolution: &Resolution, now: u64) {
        if !self.is_asking(asking) {
            return;
        }
        let Asking { destination, .. } = asking;
        let slot = destination.slot;
        // Its turn was reckoned by other hosts than it has now: the best of these are asked for first.
        if let (
            Resolution::Site { key, is_whole: false, .. },
            Some(Destination { role: Role::Domain(Domain { site: Some((site, _)), turn: 1.., .. }), .. }),
        ) = (resolution, self.live(destination))
            && matches!(&self.destinations[*site as usize].role, Role::Site(site) if site.key != *key)
        {
            if let Role::Domain(domain) = &mut self.destinations[slot as usize].role {
                // Those that were before it were of the other hosts.
                (domain.turn, domain.unanswered) = (0, 0);
            }
            self.join(slot, None, now);
            let changed = Resolution::Unanswered { reason: "its MX have changed: they are asked for anew".into(), turns: 0 };
            return self.resolved(asking, &changed, now);
        }
        let Some(Destination { role: Role::Domain(domain), reason, route, .. }) = self.live_mut(destination) else { return };
        let (route, turn) = (*route, domain.turn);
        match resolution {
            Resolution::Site { key, name, hosts, is_whole, until } => {
                reason.clear();
                domain.answered(Answer::Known { until: *until });
                let route = route.expect("a domain has a route");
                let site = self.site_of(route, key, name);
                let turn = self.destinations[site as usize].take_hosts_of_turn(hosts, *is_whole, turn, now);
                self.set_turn(slot, turn);
                self.join(slot, Some(site), now);
                self.refresh(site, now);
            }
            Resolution::Refused { reply, until } => {
                reason.clone_from(reply);
                domain.answered(Answer::Refused { until: *until, reply: reply.clone() });
                domain.turn = 0;
                self.join(slot, None, now);
            }
            Resolution::Awaited => {
                if domain.await_answer(now) {
                    reason.clear();
                }
            }
            Resolution::Unanswered { reason: why, turns } => {
                reason.clone_from(why);
                let mut jitter = self.jitter.clone();
                if let Role::Domain(domain) = &mut self.destinations[slot as usize].role {
                    domain.no_answer(*turns, now, &mut jitter);
                }
                self.jitter = jitter;
            }
        }
        self.refresh(slot, now);
    }

    /// Is it a domain that is there, and are its hosts to be asked for as they were then?
    fn is_asking(&self, Asking { destination, table }: Asking) -> bool {
        self.live(destination).is_some_and(|state| matches!(state.role, Role::Domain(_)) && state.table == table)
    }

    fn set_turn(&mut self, slot: u32, turn: u16) {
        if let Role::Domain(domain) = &mut self.destinations[slot as usize].role {
            domain.turn = turn;
        }
    }

    /// None of the hosts of a domain's site answers: if that has others, DNS is asked for them when it is their turn.
    pub(crate) fn await_turn(&mut self, home: u32, now: u64) {
        let Role::Domain(Domain { site: Some((site, _)), answer: Answer::Known { .. }, .. }) = self.destinations[home as usize].role else {
            return;
        };
        let Some(at) = self.destinations[site as usize].awaits_turn(now, &mut self.jitter) else { return };
        if let Role::Domain(Domain { answer: Answer::Known { until }, .. }) = &mut self.destinations[home as usize].role {
            *until = at.min(*until);
        }
        self.refresh(home, now);
    }

    /// A [`Lookup`] could not be passed on: it comes again soon.
    pub fn not_asked(&mut self, asking: Asking, now: u64) {
        let Asking { destination, .. } = asking;
        if self.is_asking(asking)
            && let Some(Destination { role: Role::Domain(domain), .. }) = self.live_mut(destination)
        {
            domain.not_asked(now);
            self.refresh(destination.slot, now);
        }
    }

    /// What DNS says about the mail of an attempt, if its destination is a domain that has no hosts.
    pub fn verdict(&self, dispatch: &Dispatch) -> Option<Verdict> {
        match &self.destinations[dispatch.destination.index()].role {
            Role::Domain(Domain { answer: Answer::Refused { reply, .. }, .. }) => Some(Verdict::Refused(reply.clone())),
            Role::Domain(_) => Some(Verdict::Unanswered),
            Role::Route | Role::Site(_) | Role::Vacant => None,
        }
    }

    /// Replaces the hosts of a destination, at most [`HOSTS_MAX`](crate::HOSTS_MAX); what is known of those that stay is kept.
    pub fn set_hosts(&mut self, destination: DestinationId, hosts: &[NextHop], now: u64) {
        if let Some(state) = self.live_mut(destination)
            && state.set_hosts(hosts, true)
        {
            self.refresh(destination.slot, now);
        }
    }

    /// The hosts of a destination, in no particular order.
    pub fn hosts(&self, destination: DestinationId) -> impl Iterator<Item = &NextHop> {
        self.live(destination).into_iter().flat_map(Destination::hops)
    }

    /// What an attempt connects to, and its name for people; `None` if the host is no longer one of the destination's.
    pub fn host_address(&self, destination: DestinationId, host: HostIndex) -> Option<&NextHop> {
        self.live(destination).and_then(|destination| destination.hop(host))
    }

    /// All messages with recipients that lead to a destination, at a site those of its domains; in the order in which they came. A
    /// message comes once for each of its domains at a site.
    pub fn messages_of(&self, destination: DestinationId) -> impl Iterator<Item = MessageKey> {
        let (members, own) = match self.live(destination).map(|destination| &destination.role) {
            Some(Role::Site(site)) => (&site.members[..], None),
            Some(_) => (&[][..], Some(destination.slot)),
            None => (&[][..], None),
        };
        members.iter().copied().chain(own).flat_map(move |home| {
            let group = |index: u32| (index != NONE).then_some(index);
            let all =
                std::iter::successors(group(self.destinations[home as usize].oldest_group), move |&at| group(self.groups[at].next_here));
            all.map(|group| self.key(self.groups[group].message))
        })
    }

    pub(crate) fn id(&self, slot: u32) -> DestinationId {
        DestinationId { slot, generation: self.destinations[slot as usize].generation }
    }

    pub(crate) fn live(&self, id: DestinationId) -> Option<&Destination> {
        self.destinations.get(id.index()).filter(|destination| destination.generation == id.generation)
    }

    pub(crate) fn live_mut(&mut self, id: DestinationId) -> Option<&mut Destination> {
        self.destinations.get_mut(id.index()).filter(|destination| destination.generation == id.generation)
    }

    /// The destination whose hosts, window and breaker decide about the mail of `home`.
    pub(crate) fn acting(&self, home: u32) -> &Destination {
        &self.destinations[self.acting_slot(home) as usize]
    }

    /// Its slot.
    pub(crate) fn acting_slot(&self, home: u32) -> u32 {
        match self.destinations[home as usize].role {
            Role::Domain(Domain { site: Some((site, _)), answer: Answer::Known { .. }, .. }) => site,
            _ => home,
        }
    }

    /// Asks and probes at once what the mail of `home` waits for.
    pub(crate) fn revive_home(&mut self, home: u32, now: u64) {
        let mut acting = home;
        if let Role::Domain(domain) = &mut self.destinations[home as usize].role {
            domain.revive();
            acting = domain.site.map_or(home, |(site, _)| site);
        }
        self.destinations[acting as usize].revive(now);
        self.refresh(acting, now);
        self.refresh(home, now);
    }

    /// The domain's destination in an mx route.
    fn named_by(&mut self, route: RouteId) -> DestinationId {
        let pattern = &self.routes.all()[usize::from(route.0)].pattern;
        let slot = match self.look_up(Role::DOMAIN, route, pattern.as_bytes()) {
            Some(slot) => slot,
            None => {
                let slot = self.create(route, Role::Domain(Domain::new()), pattern.clone());
                self.serve(slot);
                slot
            }
        };
        self.id(slot)
    }

    fn domain_by(&mut self, route: RouteId, domain: &[u8]) -> DestinationId {
        let domain = &*canonical_domain(domain.strip_suffix(b".").unwrap_or(domain));
        let mut buffer = [0; DOMAIN_BYTES_MAX];
        // What is longer than DNS allows is cut: it is no domain, and DNS says so.
        let lower = &mut buffer[..domain.len().min(DOMAIN_BYTES_MAX)];
        lower.copy_from_slice(&domain[..lower.len()]);
        lower.make_ascii_lowercase();
        let name = String::from_utf8_lossy(lower);
        let slot = match self.look_up(Role::DOMAIN, route, name.as_bytes()) {
            Some(slot) => slot,
            None => {
                let slot = self.create(route, Role::Domain(Domain::new()), name.into_owned());
                // Looked at by the next poll: if no mail comes of it, it is dropped in time.
                self.serve(slot);
                slot
            }
        };
        self.id(slot)
    }

    pub(crate) fn site_of(&mut self, route: RouteId, key: &str, name: &str) -> u32 {
        let found = self.look_up(Role::SITE, route, key.as_bytes());
        found.unwrap_or_else(|| self.create(route, Role::Site(Box::new(Site::new(key.to_owned()))), name.to_owned()))
    }

    fn look_up(&self, tag: u8, route: RouteId, name: &[u8]) -> Option<u32> {
        let is_it = |slot: &u32| {
            let state = &self.destinations[*slot as usize];
            state.role.tag() == tag && state.route == Some(route) && state.key() == name
        };
        self.directory.entries.find(self.directory.hasher.hash_one((tag, route, name)), is_it).copied()
    }

    fn create(&mut self, route: RouteId, role: Role, name: String) -> u32 {
        let of_route = &self.routes.all()[usize::from(route.0)];
        let mut state = Destination::new(Some(route), of_route.via.clone(), of_route.limits, of_route.retry, name);
        state.role = role;
        let hash = self.directory.hasher.hash_one((state.role.tag(), route, state.key()));
        let slot = self.add_destination(state);
        let (destinations, hasher) = (&self.destinations, &self.directory.hasher);
        let rehash = |&slot: &u32| {
            let state = &destinations[slot as usize];
            hasher.hash_one((state.role.tag(), state.route.expect("it was made for one"), state.key()))
        };
        self.directory.entries.insert_unique(hash, slot, rehash);
        self.assign_first_homes(slot);
        slot
    }

    /// Gives a destination a slot.
    pub(crate) fn add_destination(&mut self, mut state: Destination) -> u32 {
        state.paused = self.is_to_be_paused(&state);
        let slot = match self.directory.vacant.pop() {
            Some(slot) => {
                state.generation = self.destinations[slot as usize].generation;
                self.destinations[slot as usize] = state;
                slot
            }
            None => {
                self.destinations.push(state);
                self.destinations.len() as u32 - 1
            }
        };
        self.directory.names.insert(slot, &self.destinations);
        slot
    }

    fn forget(&mut self, slot: u32, now: u64) {
        self.join(slot, None, now);
        let state = &mut self.destinations[slot as usize];
        let hash = self.directory.hasher.hash_one((state.role.tag(), state.route.expect("it was made for one"), state.key()));
        let entry = self.directory.entries.find_entry(hash, |&other| other == slot);
        entry.expect("a dynamic destination is found by its name").remove();
        self.directory.names.remove(slot, &state.name);
        self.destination_timers.cancel(slot);
        let generation = state.generation.wrapping_add(1);
        *state = Destination::new(None, Via::Hold, state.limits, state.retry, String::new());
        (state.role, state.generation) = (Role::Vacant, generation);
        self.directory.vacant.push(slot);
    }

    /// Links a domain to the site of its answer, or to none.
    fn join(&mut self, slot: u32, site: Option<u32>, now: u64) {
        let Role::Domain(domain) = &mut self.destinations[slot as usize].role else { return };
        let before = domain.site;
        if before.map(|(site, _)| site) == site {
            return;
        }
        (domain.site, domain.joining, domain.queued_at, domain.listed) = (None, 0, None, Listed::default());
        if let Some((left, position)) = before {
            let Role::Site(old) = &mut self.destinations[left as usize].role else { unreachable!("domains join sites") };
            let place = position.get() as usize - 1;
            old.members.swap_remove(place);
            if let Some(&moved) = old.members.get(place)
                && let Role::Domain(domain) = &mut self.destinations[moved as usize].role
            {
                domain.site = Some((left, position));
            }
            self.refresh(left, now);
        }
        if let Some(joined) = site {
            let Role::Site(new) = &mut self.destinations[joined as usize].role else { unreachable!("domains join sites") };
            new.members.push(slot);
            let position = NonZeroU32::new(new.members.len() as u32).expect("there is this one");
            if let Role::Domain(domain) = &mut self.destinations[slot as usize].role {
                domain.site = Some((joined, position));
                self.directory.joinings = self.directory.joinings.checked_add(1).unwrap_or(1);
                domain.joining = self.directory.joinings;
            }
        }
    }

    /// Destinations in use or kept.
    pub(crate) fn destinations_len(&self) -> usize {
        self.destinations.len() - self.directory.vacant.len()
    }

    /// Puts a destination into the list of those that [`Queue::poll`] looks at.
    pub(crate) fn serve(&mut self, slot: u32) {
        if !std::mem::replace(&mut self.destinations[slot as usize].listed, true) {
            self.serving.push_back(slot);
        }
    }

    /// What [`Queue::refresh`] is for a domain.
    pub(crate) fn refresh_domain(&mut self, slot: u32, now: u64) {
        let state = &mut self.destinations[slot as usize];
        let Role::Domain(domain) = &mut state.role else { unreachable!("the caller looked") };
        if state.ready.is_empty() || state.paused {
            domain.queued_at = None;
            // No mail would bring a question back: it has a time of its own.
            return match domain.asks_anew_at().filter(|_| !state.paused) {
                Some(at) if at <= now => self.serve(slot),
                Some(at) => self.destination_timers.set(slot, at),
                None => self.rest(slot, now),
            };
        }
        self.directory.idle -= usize::from(std::mem::take(&mut state.idle_since) > 0);
        match domain.step(now) {
            Step::Ask | Step::Tell => self.serve(slot),
            Step::Wait { until } => self.destination_timers.set(slot, until),
            Step::Serve { site, until } => {
                self.queue_at_site(slot, site, now);
                // Mail that waits for a dead site is not to wait there for ever: its domain may have another one by now.
                self.destination_timers.set(slot, until);
            }
        }
    }

    /// A dynamic destination that has nothing to do is dropped when that has lasted.
    pub(crate) fn rest(&mut self, slot: u32, now: u64) {
        let state = &mut self.destinations[slot as usize];
        // One that is paused may go: when it is made again it is paused again.
        let in_use = state.groups > 0 || state.in_flight > 0 || !state.guests.is_empty();
        let is_idle = !in_use && matches!(&state.role, Role::Domain(_))
            || matches!(&state.role, Role::Site(site) if site.members.is_empty() && !in_use);
        if !is_idle {
            self.directory.idle -= usize::from(state.idle_since > 0);
            state.idle_since = 0;
            return self.destination_timers.cancel(slot);
        }
        if state.idle_since == 0 {
            state.idle_since = now.max(1);
            self.directory.idle += 1;
        }
        let until = if self.directory.idle > IDLE_MAX { now } else { state.idle_since + IDLE_MS };
        if until <= now && !state.listed {
            self.directory.idle -= 1;
            return self.forget(slot, now);
        }
        self.destination_timers.set(slot, until.max(now + 1));
    }

    /// A domain's turn in the list of [`Queue::poll`].
    pub(crate) fn serve_domain(&mut self, slot: u32, now: u64) -> Option<Work> {
        let state = &mut self.destinations[slot as usize];
        let Role::Domain(domain) = &mut state.role else { unreachable!("the caller looked") };
        let is_due = !state.ready.is_empty() || domain.asks_anew_at().is_some_and(|at| at <= now);
        let work = if !is_due || state.paused {
            None
        } else {
            match domain.step(now) {
                Step::Ask => {
                    domain.asked(now);
                    if let (Some((site, _)), own) = (domain.site, domain.turn) {
                        // Its own is later where none of those that it asked for last had an address.
                        let of_site = self.destinations[site as usize].take_turn(now);
                        self.set_turn(slot, later_turn(own, of_site));
                    }
                    let state = &self.destinations[slot as usize];
                    let Role::Domain(domain) = &state.role else { unreachable!("the caller looked") };
                    let question = match &state.via {
                        Via::Mx { port } => Question::Mx { domain: state.name.clone(), port: *port, turn: domain.turn },
                        Via::Named { hosts } => Question::Hosts(hosts.clone()),
                        _ => unreachable!("other routes need no DNS"),
                    };
                    let (anew, table) = (domain.anew, state.table);
                    Some(Work::Resolve(Lookup { asking: Asking { destination: self.id(slot), table }, question, anew }))
                }
                Step::Tell => {
                    if let Answer::Unanswered { told, .. } = &mut domain.answer {
                        *told = true;
                    }
                    self.take(slot, slot, now).map(Work::Attempt)
                }
                Step::Serve { .. } | Step::Wait { .. } => None,
            }
        };
        self.refresh(slot, now);
        work
    }
}

impl Role {
    const DOMAIN: u8 = 1;
    const SITE: u8 = 2;

    fn tag(&self) -> u8 {
        match self {
            Self::Route | Self::Vacant => 0,
            Self::Domain(_) => Self::DOMAIN,
            Self::Site(_) => Self::SITE,
        }
    }
}

impl Destination {
    /// What DNS is asked about, for people.
    pub(crate) fn asked_about(&self) -> &str {
        match &self.via {
            Via::Named { hosts } => hosts.first().map_or("", |host| &host.name),
            _ => &self.name,
        }
    }

    /// What it is found by within its route.
    fn key(&self) -> &[u8] {
        match &self.role {
            Role::Site(site) => site.key.as_bytes(),
            _ => self.name.as_bytes(),
        }
    }
}
