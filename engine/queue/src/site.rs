//! Destinations that come and go: the domains of mx routes, and the sites that domains share.
//!
//! A domain keeps its own mail; what is ready is queued, as a domain, at its site, whose hosts, window and breaker serve all
//! of its domains in turn. So a domain whose MX set changes moves with all its mail in one step, and none is looked at.
//! ```text
//! unknown -> asked -> known (queued at its site) -> asked anew when the answer has grown old and mail is ready
//!                  -> refused (its mail fails) · unanswered (its mail waits for the next question)
//! ```

use std::num::NonZeroU32;

use crate::away::GuestSite;
use crate::breaker::Breaker;
use crate::destination::Destination;
use crate::destination_id::DestinationId;
use crate::queued_domains::{QueuedAt, QueuedDomains};
use crate::retry::{Jitter, back_off_ms};
use crate::route::{NamedHost, NextHop, Via};
use crate::wait::Wait;

/// First wait after a question that got no answer; doubles up to [`UNANSWERED_MAX_MS`].
const UNANSWERED_FIRST_MS: u64 = 5_000;
const UNANSWERED_MAX_MS: u64 = 900_000;
const UNANSWERED_JITTER_PERCENT: u8 = 20;

/// First wait for the turn of further hosts of a site that has many.
const TURN_FIRST_MS: u64 = 5_000;
const TURN_JITTER_PERCENT: u8 = 20;

/// A question that nobody came back to is put again after this.
const ASKED_MAX_MS: u64 = 120_000;

/// A question that could not be passed on is put again after this.
const NOT_ASKED_MS: u64 = 100;

/// What DNS is to be asked for a destination.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Question {
    /// The hosts that take mail for a domain (RFC 5321 5.1), or the address of a literal.
    Mx {
        /// Lower case; may be an address literal.
        domain: String,
        /// Port of the hosts.
        port: u16,
        /// Which of its hosts, where they are more than are asked for at once: 0 means the best, each further turn other ones beside those.
        turn: u16,
    },
    /// The addresses of the hosts of a route.
    Hosts(Vec<NamedHost>),
}

/// Whose question it is. After a table of routes that names a destination other hosts it is another one, and answers to those before are none to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asking {
    /// Who asks.
    pub destination: DestinationId,
    /// Counts those tables, and begins anew after 65,535 of them.
    pub table: u16,
}

/// A question with the destination that waits for it: ends in [`Queue::resolved`](crate::Queue::resolved) or
/// [`Queue::not_asked`](crate::Queue::not_asked).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lookup {
    /// Who asks.
    pub asking: Asking,
    /// What.
    pub question: Question,
    /// An operator wants it tried again: what was said before does not count.
    pub anew: bool,
}

/// What came of a [`Question`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// The hosts are known.
    Site {
        /// Names the site within its route: the same for all domains with the same MX set.
        key: String,
        /// For people: the first host's name.
        name: String,
        /// At least one, at most [`HOSTS_MAX`](crate::HOSTS_MAX).
        hosts: Vec<NextHop>,
        /// No other takes its mail: none was left out because they are many, or because DNS did not say where it is.
        is_whole: bool,
        /// Asked again for mail that is to be sent later than this (unix ms).
        until: u64,
    },
    /// DNS says for sure that the domain takes no mail: its mail fails with this reply (`550 5.1.2 ...`).
    Refused {
        /// Code, enhanced code, text.
        reply: String,
        /// Unix ms.
        until: u64,
    },
    /// No answer that could be used: its mail waits, and the question is put again after a back-off.
    Unanswered {
        /// `MX of example.org: SERVFAIL`.
        reason: String,
        /// It has hosts that were not asked for, which may have addresses: it is their turn after so many more. 0 where it has none.
        turns: u16,
    },
    /// A refusal counts no more, because somebody asks anew: the answer comes.
    Awaited,
}

impl Resolution {
    /// The same with another time until which it holds: clocks of two threads are told apart so.
    pub fn map_until(mut self, change: impl FnOnce(u64) -> u64) -> Self {
        if let Self::Site { until, .. } | Self::Refused { until, .. } = &mut self {
            *until = change(*until);
        }
        self
    }
}

/// What DNS says about the mail of an attempt, instead of hosts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Fail the recipients with this reply.
    Refused(String),
    /// Give the attempt back with [`Queue::unreachable`](crate::Queue::unreachable); the reason is the destination's.
    Unanswered,
}

/// What a destination is. Which of them comes first in memory: mostly nothing else is asked for.
#[derive(Debug)]
#[repr(u8)]
pub(crate) enum Role {
    /// All mail of a route that names its hosts itself, or needs none.
    Route,
    /// Mail of one domain.
    Domain(Domain),
    /// Hosts that domains share.
    Site(Box<Site>),
    /// A free slot.
    Vacant,
}

#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) answer: Answer,
    /// The site of the last answer, and the domain's position among its members, from 1.
    pub(crate) site: Option<(u32, NonZeroU32)>,
    /// Names the time that it is at its site, among all that any domain was at one: 0 while it is at none.
    pub(crate) joining: u32,
    /// Where it is queued at its site.
    pub(crate) queued_at: Option<QueuedAt>,
    /// The lists of its site that it is in, queued there or not.
    pub(crate) listed: Listed,
    /// Questions without an answer in a row.
    pub(crate) unanswered: u8,
    /// Which of its many hosts it asks for, see [`Question::Mx`].
    pub(crate) turn: u16,
    /// The next answer is to be a new one.
    pub(crate) anew: bool,
}

/// Lists of a site that a domain is in: one bit for each priority, so that it is in none twice.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Listed {
    in_turn: u16,
    aside: u16,
}

impl Listed {
    fn bits(&mut self, at: QueuedAt) -> (&mut u16, u16) {
        match at {
            QueuedAt::InTurn(priority) => (&mut self.in_turn, 1 << priority),
            QueuedAt::Aside(priority) => (&mut self.aside, 1 << priority),
        }
    }

    /// False if it is in that one already.
    pub(crate) fn add(&mut self, at: QueuedAt) -> bool {
        let (bits, bit) = self.bits(at);
        let is_new = *bits & bit == 0;
        *bits |= bit;
        is_new
    }

    pub(crate) fn remove(&mut self, at: QueuedAt) {
        let (bits, bit) = self.bits(at);
        *bits &= !bit;
    }

    pub(crate) fn has(mut self, at: QueuedAt) -> bool {
        let (bits, bit) = self.bits(at);
        *bits & bit != 0
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// To be asked as soon as mail is ready.
    Unknown,
    Asked {
        again_at: u64,
    },
    Known {
        until: u64,
    },
    Refused {
        until: u64,
        reply: String,
    },
    /// `told`: one attempt was spent on it, so that the mail log and the message say why it waits.
    Unanswered {
        until: u64,
        told: bool,
    },
}

/// What is to be done for a domain with ready mail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Ask,
    /// An attempt that ends with what DNS said.
    Tell,
    /// Queue it at its site; look again at the time.
    Serve {
        site: u32,
        until: u64,
    },
    Wait {
        until: u64,
    },
}

impl Domain {
    pub(crate) fn new() -> Self {
        Self {
            answer: Answer::Unknown,
            site: None,
            joining: 0,
            queued_at: None,
            listed: Listed::default(),
            unanswered: 0,
            turn: 0,
            anew: false,
        }
    }

    pub(crate) fn step(&self, now: u64) -> Step {
        match self.answer {
            Answer::Unknown => Step::Ask,
            Answer::Asked { again_at: until }
            | Answer::Known { until }
            | Answer::Refused { until, .. }
            | Answer::Unanswered { until, .. }
                if until <= now =>
            {
                Step::Ask
            }
            Answer::Asked { again_at } => Step::Wait { until: again_at },
            Answer::Known { until } => match self.site {
                Some((site, _)) => Step::Serve { site, until },
                None => Step::Ask,
            },
            Answer::Refused { .. } | Answer::Unanswered { told: false, .. } => Step::Tell,
            Answer::Unanswered { until, told: true } => Step::Wait { until },
        }
    }

    pub(crate) fn asked(&mut self, now: u64) {
        self.answer = Answer::Asked { again_at: now + ASKED_MAX_MS };
    }

    pub(crate) fn not_asked(&mut self, now: u64) {
        self.answer = Answer::Asked { again_at: now + NOT_ASKED_MS };
    }

    pub(crate) fn answered(&mut self, answer: Answer) {
        (self.unanswered, self.anew) = (0, false);
        self.answer = answer;
    }

    /// `turns`: as in [`Resolution::Unanswered`].
    pub(crate) fn no_answer(&mut self, turns: u16, now: u64, jitter: &mut Jitter) {
        self.unanswered = self.unanswered.saturating_add(1);
        self.anew = false;
        self.turn = self.turn.wrapping_add(turns);
        let wait = back_off_ms(UNANSWERED_FIRST_MS, UNANSWERED_MAX_MS, self.unanswered.into(), UNANSWERED_JITTER_PERCENT, jitter);
        self.answer = Answer::Unanswered { until: now + wait, told: false };
    }

    /// DNS is being asked, or gave no answer that can be used.
    pub(crate) fn is_asked(&self) -> bool {
        matches!(self.answer, Answer::Asked { .. } | Answer::Refused { .. } | Answer::Unanswered { .. })
    }

    /// What its mail waits for, if that is DNS.
    pub(crate) fn wait(&self, now: u64) -> Option<Wait> {
        match self.answer {
            Answer::Known { until } if now < until => None,
            Answer::Refused { .. } => Some(Wait::Turn),
            Answer::Unanswered { until, .. } => Some(Wait::Unanswered { until }),
            Answer::Unknown | Answer::Asked { .. } | Answer::Known { .. } => Some(Wait::Asking),
        }
    }

    /// When a new answer is to be asked for that was not yet, with mail or without: who else goes by what was said before is to hear, too.
    pub(crate) fn asks_anew_at(&self) -> Option<u64> {
        match self.answer {
            _ if !self.anew => None,
            Answer::Unknown => Some(0),
            // The question was put off, or nobody came back to it.
            Answer::Asked { again_at } => Some(again_at),
            Answer::Known { .. } | Answer::Refused { .. } | Answer::Unanswered { .. } => None,
        }
    }

    /// A refusal counts no more. False if it was none.
    pub(crate) fn await_answer(&mut self, now: u64) -> bool {
        let is_refused = matches!(self.answer, Answer::Refused { .. });
        if is_refused {
            self.asked(now);
        }
        is_refused
    }

    /// Asks again at once what got no answer, or a refusal; the domain may have been mended since.
    pub(crate) fn revive(&mut self) {
        if matches!(self.answer, Answer::Unanswered { .. } | Answer::Refused { .. }) {
            self.answer = Answer::Unknown;
            self.anew = true;
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Site {
    /// What it is found by, within its route.
    pub(crate) key: String,
    /// The shard whose guest told the hosts, if one did.
    pub(crate) told_by: Option<u16>,
    /// Which of many its hosts are, see [`Question::Mx`].
    pub(crate) turn: u16,
    /// No host answers, and there are more: when it is the turn of others (unix ms). 0 where it is not to come.
    turns_at: u64,
    /// Domains whose last answer led here.
    pub(crate) members: Vec<u32>,
    /// Domains with ready mail; one whose `queued_at` says otherwise has moved on.
    pub(crate) queued: QueuedDomains,
}

impl Destination {
    /// DNS told this to the shard of a guest. What it told this shard comes before; of what it told others, whose answers may differ, that of
    /// one stays while any of it is of use: if the hosts went to and fro, no connection to them could be kept. Of a site with many hosts those
    /// of a later turn are taken when all that it has are dead, whoever tells them.
    pub(crate) fn take_hosts_of_guest(&mut self, told: &GuestSite, owner: u16, now: u64) {
        let knows_any = self.hops().any(|own| told.hosts.iter().any(|told| told.address == own.address));
        let (is_whole, is_alive) = (self.hosts.is_whole(), self.breaker(now) == Breaker::Closed);
        let is_part = !is_whole && !told.is_whole;
        let Role::Site(site) = &mut self.role else { return };
        let is_taken = if is_part && told.turn != site.turn {
            !is_alive && later_turn(site.turn, told.turn) == told.turn
        } else {
            // That they are dead says nothing of the turn of others.
            let is_of_use = knows_any && (is_alive || is_part);
            let is_mended = told.is_whole && !is_whole && !is_alive;
            (site.members.is_empty() || is_mended) && (!is_of_use || site.told_by.is_none_or(|by| by == owner))
        };
        if is_taken {
            (site.told_by, site.turn) = (Some(owner), if told.is_whole { 0 } else { told.turn });
            self.set_hosts(&told.hosts, told.is_whole);
        }
    }
}

impl Destination {
    /// DNS told this shard the hosts, of which those were asked for whose turn is `turn`. Where a site has too many to be asked for at once it
    /// keeps those that it has, while one of them lives or if they came later: its domains, each with a time of its own to ask at, would exchange
    /// them with each answer. Returns the turn of those that it has.
    pub(crate) fn take_hosts_of_turn(&mut self, hosts: &[NextHop], is_whole: bool, turn: u16, now: u64) -> u16 {
        let (is_part, is_alive) = (!is_whole && !self.hosts.is_whole(), self.breaker(now) == Breaker::Closed);
        let Role::Site(site) = &mut self.role else { unreachable!("domains join sites") };
        if is_part && turn != site.turn && (is_alive || later_turn(site.turn, turn) != turn) {
            return site.turn;
        }
        let before = std::mem::replace(&mut site.turn, if is_whole { 0 } else { turn });
        let turn = site.turn;
        self.set_hosts(hosts, is_whole);
        if let Some(away) = &mut self.away
            && before != turn
        {
            // Its homes hear of it with the next guest, and try them at once.
            away.site = None;
            away.hosts_changed();
        }
        turn
    }

    /// An attempt found that none of its hosts answers. Where it has others: when to ask for those (unix ms). The time doubles from turn to
    /// turn up to that for which a host counts as dead at most, for those of a new turn are tried at once.
    pub(crate) fn awaits_turn(&mut self, now: u64, jitter: &mut Jitter) -> Option<u64> {
        if self.hosts.is_whole() || !matches!(self.via, Via::Mx { .. }) || self.breaker(now) == Breaker::Closed {
            return None;
        }
        let most = self.limits.breaker.timeout_max_ms.max(TURN_FIRST_MS);
        let Role::Site(site) = &mut self.role else { return None };
        if site.turns_at == 0 {
            let wait = back_off_ms(TURN_FIRST_MS, most, u32::from(site.turn).saturating_add(1), TURN_JITTER_PERCENT, jitter);
            site.turns_at = now + wait;
        }
        Some(site.turns_at)
    }

    /// Whose turn it is when DNS is asked now: that of others if it has come, and none of these has answered.
    pub(crate) fn take_turn(&mut self, now: u64) -> u16 {
        let is_dead = self.away.is_some() || self.breaker(now) != Breaker::Closed;
        let Role::Site(site) = &mut self.role else { return 0 };
        if site.turns_at == 0 || site.turns_at > now {
            return site.turn;
        }
        site.turns_at = 0;
        site.turn.wrapping_add(u16::from(is_dead))
    }
}

/// The one that comes after the other.
pub(crate) fn later_turn(one: u16, other: u16) -> u16 {
    if one.wrapping_sub(other).cast_signed() > 0 { one } else { other }
}

impl Site {
    pub(crate) fn new(key: String) -> Self {
        Self { key, ..Self::default() }
    }
}
