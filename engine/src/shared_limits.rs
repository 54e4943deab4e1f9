//! Limits that hold for all nodes of a cluster, as a shard sees them: it asks the coordinator and goes on, and never waits for an answer.
//!
//! Mail that goes out needs moments that were reserved (`ringpost_queue`'s quota); mail that comes in is counted first and told then: a
//! shard lets through what it may owe at a moment, and hears with the answer for how long nothing more may pass.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};

use ringpost_config::{Config, WithoutValkey};
use ringpost_queue::{Apart, DestinationId, Rate, Reservation, Reserved, SharedRate};

use crate::{admission::Site, shard::Shard, share::Share};

/// Counted flows remembered at once. When there are more, those about which there is nothing to say are forgotten; then new ones pass.
const FLOWS_MAX: usize = 65_536;
/// An answer that does not come within this was lost.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// A flow that is shut and has no mail for so long is forgotten when there is no room.
const SHUT_KEPT: Duration = Duration::from_secs(60);
const MINUTE_MS: u64 = 60_000;

/// Whose mail is counted as it comes in.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Counted {
    /// An IPv4 address, or the /64 of an IPv6 address.
    Source(Site),
    /// The tag of a listener.
    Tenant(Arc<str>),
}

impl std::fmt::Display for Counted {
    /// A name that is the same on all nodes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Counted::Source(Site::V4(octets)) => write!(f, "source/{}", Ipv4Addr::from(*octets)),
            Counted::Source(Site::V6(octets)) => {
                let mut address = [0; 16];
                address[..8].copy_from_slice(octets);
                write!(f, "source/{}/64", Ipv6Addr::from(address))
            }
            Counted::Tenant(tag) => write!(f, "tenant/{tag}"),
        }
    }
}

/// What a shard asks about a limit of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LimitAsk {
    /// For mail that goes out.
    Reserve(Reservation),
    /// For mail that came in.
    Charge {
        /// Whose.
        counted: Counted,
        /// Its limit.
        limit: SharedRate,
        /// So many messages.
        messages: u32,
    },
}

/// What it is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LimitAnswer {
    /// To [`LimitAsk::Reserve`].
    Reserved(DestinationId, Reserved),
    /// To [`LimitAsk::Charge`]: nothing more may pass for so long.
    Charged(Counted, Duration),
    /// To [`LimitAsk::Charge`]: nothing may pass while Valkey does not answer about this one, as its limit says. It is to be asked again.
    Shut(Counted),
    /// Without a question: Valkey is away, or is back.
    Apart(bool),
}

/// A shard's way to the coordinator; false when it takes no more just now. Never waits.
pub type AskLimits = Box<dyn Fn(LimitAsk) -> bool + Send>;

/// The limits of the config that mail is counted by as it comes in.
#[derive(Clone, Debug, Default)]
pub(crate) struct CountedLimits {
    source: Option<SharedRate>,
    /// By listener, in the order of the config.
    tenants: Vec<Option<(Arc<str>, SharedRate)>>,
}

impl CountedLimits {
    pub(crate) fn new(config: &Config) -> Self {
        let limit = |messages: Option<u32>, without| messages.map(|messages| per_minute(messages, without));
        let tenants = config.listeners.iter().map(|listener| {
            let limit = limit(listener.cluster_messages_per_minute, listener.cluster_messages_without_valkey)?;
            Some((Arc::from(listener.tag.as_deref()?), limit))
        });
        CountedLimits {
            source: limit(config.smtp.cluster_messages_per_minute, config.smtp.cluster_messages_without_valkey),
            tenants: tenants.collect(),
        }
    }
}

fn per_minute(messages: u32, without: WithoutValkey) -> SharedRate {
    SharedRate { rate: Rate { messages, per_ms: MINUTE_MS, burst: messages }, apart: apart(without) }
}

/// The config's word in the queue's.
pub(crate) fn apart(without: WithoutValkey) -> Apart {
    match without {
        WithoutValkey::Share => Apart::Share,
        WithoutValkey::Open => Apart::Open,
        WithoutValkey::Closed => Apart::Closed,
    }
}

/// What a shard knows of one counted flow.
#[derive(Default)]
struct Flow {
    /// Let through and not told yet.
    untold: u32,
    /// Told, and since when the answer is awaited.
    told: Option<(u32, Instant)>,
    closed_until: Option<Instant>,
    /// Nothing passes; what is refused asks again at times.
    is_shut: bool,
}

/// Counts what comes in.
#[derive(Default)]
pub(crate) struct SharedLimits {
    flows: RefCell<HashMap<Counted, Flow>>,
    /// The nodes cannot agree just now.
    is_apart: Cell<bool>,
}

impl SharedLimits {
    /// May a message of this site (None: a relay network) through this listener pass now? Counts it, and tells `ask`.
    pub(crate) fn message(
        &self,
        limits: &CountedLimits,
        site: Option<Site>,
        listener: usize,
        share: Share,
        now: Instant,
        ask: &AskLimits,
    ) -> bool {
        let tenant = limits.tenants.get(listener).and_then(Option::as_ref);
        let source = limits.source.zip(site).map(|(limit, site)| (Counted::Source(site), limit));
        if tenant.is_none() && source.is_none() {
            return true;
        }
        let tenant = tenant.map(|(tag, limit)| (Counted::Tenant(tag.clone()), *limit));
        let counted = [source, tenant];
        counted.iter().flatten().for_each(|(flow, limit)| self.ask_again(flow, *limit, now, ask));
        // Both or none: what one limit refuses is not counted against the other.
        counted.iter().flatten().all(|(flow, limit)| self.is_open(flow, *limit, share, now))
            && counted.into_iter().flatten().all(|(flow, limit)| {
                self.count(flow, limit, now, ask);
                true
            })
    }

    fn is_open(&self, counted: &Counted, limit: SharedRate, share: Share, now: Instant) -> bool {
        if self.is_apart.get() && limit.apart != Apart::Share {
            return limit.apart == Apart::Open;
        }
        let flows = self.flows.borrow();
        let Some(flow) = flows.get(counted) else { return true };
        if flow.is_shut {
            return false;
        }
        let owed = flow.untold + flow.told.filter(|(_, since)| now.duration_since(*since) < ANSWER_MAX).map_or(0, |(messages, _)| messages);
        flow.closed_until.is_none_or(|until| now >= until) && owed < owed_max(limit, share.shards)
    }

    /// Mail for a flow that is shut is refused, and asks whether it still is.
    fn ask_again(&self, counted: &Counted, limit: SharedRate, now: Instant, ask: &AskLimits) {
        let mut flows = self.flows.borrow_mut();
        if let Some(flow) = flows.get_mut(counted).filter(|flow| flow.is_shut) {
            flow.untold = 1;
            flow.tell(counted.clone(), limit, now, ask);
        }
    }

    fn count(&self, counted: Counted, limit: SharedRate, now: Instant, ask: &AskLimits) {
        let mut flows = self.flows.borrow_mut();
        if flows.len() >= FLOWS_MAX && !flows.contains_key(&counted) {
            let is_awaited = |flow: &Flow| {
                flow.told.is_some_and(|(_, since)| !flow.is_shut || now.duration_since(since) < SHUT_KEPT)
                    || flow.untold > 0 && !flow.is_shut
            };
            flows.retain(|_, flow| is_awaited(flow) || flow.closed_until.is_some_and(|until| until > now));
            if flows.len() >= FLOWS_MAX {
                return;
            }
        }
        let flow = flows.entry(counted.clone()).or_default();
        flow.untold = flow.untold.saturating_add(1);
        flow.tell(counted, limit, now, ask);
    }

    /// Takes in an answer.
    pub(crate) fn charged(&self, limits: &CountedLimits, counted: Counted, closed_for: Duration, now: Instant, ask: &AskLimits) {
        let mut flows = self.flows.borrow_mut();
        let Some(flow) = flows.get_mut(&counted) else { return };
        flow.told = None;
        if std::mem::take(&mut flow.is_shut) {
            // What asked was refused.
            flow.untold = 0;
        }
        flow.closed_until = (!closed_for.is_zero()).then(|| now + closed_for);
        let limit = match &counted {
            Counted::Source(_) => limits.source,
            Counted::Tenant(tag) => limits.tenants.iter().flatten().find(|(other, _)| other == tag).map(|(_, limit)| *limit),
        };
        match limit {
            Some(limit) if flow.untold > 0 => flow.tell(counted, limit, now, ask),
            Some(_) if flow.closed_until.is_some() => {}
            // Nothing is known that a new account would not say.
            _ => drop(flows.remove(&counted)),
        }
    }

    /// Takes in that nothing may pass. The question counts as under way for its time: so long none is asked.
    pub(crate) fn shut(&self, counted: &Counted) {
        if let Some(flow) = self.flows.borrow_mut().get_mut(counted) {
            (flow.is_shut, flow.untold) = (true, 0);
        }
    }
}

impl Shard {
    /// May a message of this site through this listener pass, by the limits over all nodes? Counts it.
    pub(crate) fn shared_limits_allow(&self, site: Option<Site>, listener: usize) -> bool {
        let present = self.inbound.present();
        self.shared_limits.message(&present.counted, site, listener, self.share, self.ring.now(), &self.ask_limits)
    }

    /// Takes in the coordinator's answers.
    pub(crate) fn heard_of_limits(&self, answers: Vec<LimitAnswer>) {
        let (present, now) = (self.inbound.present(), self.ring.now());
        for answer in answers {
            match answer {
                LimitAnswer::Reserved(destination, reserved) => self.queue.borrow_mut().reserved(destination, reserved, self.now_ms()),
                LimitAnswer::Charged(counted, closed_for) => {
                    self.shared_limits.charged(&present.counted, counted, closed_for, now, &self.ask_limits);
                }
                LimitAnswer::Shut(counted) => self.shared_limits.shut(&counted),
                LimitAnswer::Apart(is_apart) => self.shared_limits.is_apart.set(is_apart),
            }
        }
        self.delivery.kick();
    }
}

impl Flow {
    /// Tells what is not told, one message of the lane at a time.
    fn tell(&mut self, counted: Counted, limit: SharedRate, now: Instant, ask: &AskLimits) {
        if self.told.is_some_and(|(_, since)| now.duration_since(since) < ANSWER_MAX) || self.untold == 0 {
            return;
        }
        if ask(LimitAsk::Charge { counted, limit, messages: self.untold }) {
            self.told = Some((self.untold, now));
            self.untold = 0;
        }
    }
}

/// What one shard may let through of a flow before it hears of the others: with all shards of a node a quarter of the limit. Less would
/// refuse a client that sends faster than Valkey answers.
fn owed_max(limit: SharedRate, shards: NonZeroU16) -> u32 {
    (limit.rate.burst / 4 / u32::from(shards.get())).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn lane() -> (AskLimits, Arc<Mutex<Vec<LimitAsk>>>) {
        let asked: Arc<Mutex<Vec<LimitAsk>>> = Arc::default();
        let into = asked.clone();
        (
            Box::new(move |ask| {
                into.lock().unwrap().push(ask);
                true
            }),
            asked,
        )
    }

    fn share() -> Share {
        Share { shard: 0, shards: NonZeroU16::new(2).unwrap() }
    }

    fn limits(text: &str) -> CountedLimits {
        CountedLimits::new(&Config::parse(text, "x.toml".as_ref()).unwrap())
    }

    fn site(last: u8) -> Option<Site> {
        Some(Site::V4([192, 0, 2, last]))
    }

    #[test]
    fn a_shard_lets_through_what_it_may_owe_and_goes_on_when_it_hears() {
        let limits = limits("[smtp]\ncluster_messages_per_minute = 64\n");
        let (shared, (ask, asked), now) = (SharedLimits::default(), lane(), Instant::now());
        let passed = |now| (0..10).filter(|_| shared.message(&limits, site(1), 0, share(), now, &ask)).count();
        assert_eq!(passed(now), 8, "64 / 4 / 2 shards");
        let charge = |messages| LimitAsk::Charge {
            counted: Counted::Source(Site::V4([192, 0, 2, 1])),
            limit: per_minute(64, WithoutValkey::Share),
            messages,
        };
        assert_eq!(*asked.lock().unwrap(), [charge(1)], "one question at a time");
        assert!(shared.message(&limits, site(2), 0, share(), now, &ask), "another network is another flow");
        assert!(shared.message(&limits, None, 0, share(), now, &ask), "relay networks are not counted");
        // The answer: there is room. What was not told is told.
        shared.charged(&limits, Counted::Source(Site::V4([192, 0, 2, 1])), Duration::ZERO, now, &ask);
        assert_eq!(asked.lock().unwrap().last(), Some(&charge(7)));
        assert_eq!(passed(now), 1);
        // Closed for a second, then open again.
        shared.charged(&limits, Counted::Source(Site::V4([192, 0, 2, 1])), Duration::from_secs(1), now, &ask);
        shared.charged(&limits, Counted::Source(Site::V4([192, 0, 2, 1])), Duration::from_secs(1), now, &ask);
        assert_eq!((passed(now), passed(now + Duration::from_secs(1))), (0, 8));
        assert_eq!(Counted::Source(Site::V4([192, 0, 2, 1])).to_string(), "source/192.0.2.1");
    }

    #[test]
    fn tenants_are_counted_by_tag_and_a_refusal_counts_for_nobody() {
        let text = "[[listener]]\naddress = \"127.0.0.1:1\"\ntag = \"bulk\"\ncluster_messages_per_minute = 8\n\
                    [[listener]]\naddress = \"127.0.0.1:2\"\ntag = \"bulk\"\ncluster_messages_per_minute = 8\n\
                    [[listener]]\naddress = \"127.0.0.1:3\"\n[smtp]\ncluster_messages_per_minute = 80\n";
        let limits = limits(text);
        let (shared, (ask, asked), now) = (SharedLimits::default(), lane(), Instant::now());
        assert!(shared.message(&limits, site(1), 0, share(), now, &ask));
        assert!(!shared.message(&limits, site(1), 1, share(), now, &ask), "the other listener's tag is the same");
        assert_eq!(asked.lock().unwrap().len(), 2);
        assert!(shared.message(&limits, site(1), 2, share(), now, &ask));
        shared.charged(&limits, Counted::Tenant("bulk".into()), Duration::ZERO, now, &ask);
        assert!(shared.message(&limits, None, 1, share(), now, &ask), "relay networks are tenants, too");
        assert_eq!(shared.flows.borrow().len(), 2);
        shared.charged(&limits, Counted::Tenant("bulk".into()), Duration::ZERO, now, &ask);
        assert_eq!(shared.flows.borrow().len(), 1, "what is quiet is forgotten");
    }

    #[test]
    fn a_limit_that_fails_open_or_closed_does_so_while_the_nodes_cannot_agree() {
        for (word, passes) in [("share", true), ("open", true), ("closed", false)] {
            let limits = limits(&format!("[smtp]\ncluster_messages_per_minute = 8\ncluster_messages_without_valkey = \"{word}\"\n"));
            let (shared, (ask, _), now) = (SharedLimits::default(), lane(), Instant::now());
            shared.is_apart.set(true);
            let passed = (0..5).filter(|_| shared.message(&limits, site(1), 0, share(), now, &ask)).count();
            assert_eq!((passed > 0, passed == 5), (passes, word == "open"), "{word}");
            shared.is_apart.set(false);
            assert!(shared.message(&limits, site(2), 0, share(), now, &ask));
        }
    }

    /// With the part of Valkey away that has it, a limit that is to be closed then let all mail through.
    #[test]
    fn a_flow_that_is_shut_lets_nothing_through_and_asks_until_it_is_not() {
        let limits = limits("[smtp]\ncluster_messages_per_minute = 64\ncluster_messages_without_valkey = \"closed\"\n");
        let (shared, (ask, asked), now) = (SharedLimits::default(), lane(), Instant::now());
        let passes = |now| shared.message(&limits, site(1), 0, share(), now, &ask);
        let counted = Counted::Source(Site::V4([192, 0, 2, 1]));
        assert!(passes(now));
        shared.shut(&counted);
        assert!((0..5).all(|_| !passes(now)), "shut");
        assert_eq!(asked.lock().unwrap().len(), 1, "and not asked about at once");
        let later = now + ANSWER_MAX;
        assert!(!passes(later) && !passes(later));
        assert_eq!(asked.lock().unwrap().len(), 2, "but at times");
        assert!(shared.message(&limits, site(2), 0, share(), now, &ask), "others pass");
        shared.charged(&limits, counted, Duration::ZERO, later, &ask);
        assert!(passes(later), "it is answered again");
    }

    /// They were kept like those whose answer is awaited: with as many of them as are kept at all, no further flow was counted.
    #[test]
    fn flows_that_are_shut_make_room_when_they_have_had_no_mail_for_long() {
        let limits = limits("[smtp]\ncluster_messages_per_minute = 64\ncluster_messages_without_valkey = \"closed\"\n");
        let (shared, (ask, asked), now) = (SharedLimits::default(), lane(), Instant::now());
        let site = |number: usize| Site::V4([10, (number >> 16) as u8, (number >> 8) as u8, number as u8]);
        for number in 0..FLOWS_MAX {
            assert!(shared.message(&limits, Some(site(number)), 0, share(), now, &ask));
            shared.shut(&Counted::Source(site(number)));
        }
        let is_counted = |now| {
            asked.lock().unwrap().clear();
            assert!(shared.message(&limits, Some(site(FLOWS_MAX)), 0, share(), now, &ask));
            !asked.lock().unwrap().is_empty()
        };
        assert!(!is_counted(now + SHUT_KEPT - Duration::from_millis(1)), "there is no room");
        assert!(is_counted(now + SHUT_KEPT), "there is again");
    }

    #[test]
    fn an_answer_that_is_lost_closes_nothing_for_ever() {
        let limits = limits("[smtp]\ncluster_messages_per_minute = 8\n");
        let (shared, (ask, asked), now) = (SharedLimits::default(), lane(), Instant::now());
        assert!(shared.message(&limits, site(1), 0, share(), now, &ask));
        assert!(!shared.message(&limits, site(1), 0, share(), now, &ask));
        assert!(shared.message(&limits, site(1), 0, share(), now + ANSWER_MAX, &ask));
        assert_eq!(asked.lock().unwrap().len(), 2);
    }
}
