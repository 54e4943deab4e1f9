//! Which messages an operator means, found along the shortest list that holds them all, a bounded number at a time.

use std::sync::Arc;

use thiserror::Error;

use crate::destination_id::DestinationId;
use crate::domain_name::{after_at, canonical_address};
use crate::index::TAG_BYTES_MAX;
use crate::message::Flags;
use crate::queue::Queue;
use crate::queue_id::QueueId;
use crate::site::Role;
use crate::slab::NONE;
use crate::terms::TermKind;
use crate::view::{MessageView, RecipientView, State};
use crate::walks::{Chain, Position};

/// Messages looked at by one call of [`Queue::page`] at most, so that listing a long queue never stalls delivery.
const LOOKS_PER_PAGE: usize = 4096;

/// Recipients of messages visited by one call of [`Queue::page`], from which it ends: what is said of each costs about a microsecond.
const RECIPIENTS_PER_PAGE: usize = 1000;

/// New messages put into lists by one call of [`Queue::page`], as long as there are more than [`FEW_FRESH`].
const LINKS_PER_PAGE: usize = 2048;
const FEW_FRESH: usize = 256;

/// Which messages to list; absent parts match everything. With a destination, a domain or a tag only messages under it are looked at.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Exactly this message.
    pub id: Option<QueueId>,
    /// Reverse-path, in any case; empty is the null reverse-path.
    pub sender: Option<String>,
    /// Domain of the reverse-path, in any case; empty is the null reverse-path.
    pub sender_domain: Option<String>,
    /// A tag, exactly.
    pub tag: Option<String>,
    /// Accepted at this time (unix ms) or before.
    pub accepted_until: Option<u64>,
    /// Not of this boot and shard with this number or a later one: what was given its number behind the beginning of a walk does not prolong it.
    pub older_than: Option<QueueId>,
    /// Domain of at least one recipient, in any case. This and the next two are to be met by the same recipient.
    pub recipient_domain: Option<String>,
    /// Where at least one recipient leads: to one of these, or a domain whose site is one of them. Empty: wherever.
    pub destinations: Vec<DestinationId>,
    /// State of at least one recipient.
    pub state: Option<State>,
    /// Of [`State::Ready`]: a recipient that was given out to the home shard of its destination, too. It may wait for its turn there.
    pub or_given_out: bool,
}

impl Filter {
    /// Does it ask for anything of single recipients?
    pub fn is_about_recipients(&self) -> bool {
        self.recipient_domain.is_some() || !self.destinations.is_empty() || self.state.is_some()
    }
}

/// Where a listing goes on. Outlives any change of the queue; thirty-two listings can be under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursor(u64);

/// The listing was too long ago: so many others were begun since.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("too many listings at once: this one was given up; begin it again")]
pub struct CursorLost;

/// Where a [`Cursor`] stands: the upper half says in what.
enum Stand {
    /// At a message's slot.
    Slot(u32),
    /// On a walk along lists.
    Walk(u32),
}

impl Cursor {
    /// A cursor from its [`Cursor::position`], for listings that go on in a later call from outside.
    pub fn at(position: u64) -> Self {
        Self(position)
    }

    /// Where it stands.
    pub fn position(self) -> u64 {
        self.0
    }

    fn stand(self) -> Stand {
        let number = self.0 as u32;
        if self.0 >> 32 == 0 { Stand::Slot(number) } else { Stand::Walk(number) }
    }

    fn walk(number: u32) -> Self {
        Self(1 << 32 | u64::from(number))
    }
}

impl Queue {
    /// Visits up to `limit` messages that match, fewer where they have many recipients, from `cursor` on ([`Cursor::default`] begins), and returns where to go on;
    /// `None` at the end. Bounded work per call, so a page can be short or empty before the end. No message that stays is missed or
    /// visited twice; one that comes meanwhile may be visited. Done messages are not listed.
    pub fn page(
        &mut self,
        filter: &Filter,
        cursor: Cursor,
        limit: usize,
        mut visit: impl FnMut(MessageView<'_>),
    ) -> Result<Option<Cursor>, CursorLost> {
        if let Some(id) = filter.id {
            if let Some(view) = self.find_id(id).map(|index| MessageView { queue: self, index }).filter(|view| view.is_listed(filter)) {
                visit(view);
            }
            return Ok(None);
        }
        let mut position = match cursor.stand() {
            Stand::Slot(0) if filter.has_list() => {
                if !self.catch_up() {
                    return Ok(Some(cursor));
                }
                match self.shortest_list(filter) {
                    None => return Ok(None),
                    Some(begin) => begin,
                }
            }
            Stand::Slot(slot) => return Ok(self.page_of_slots(filter, slot, limit, visit)),
            Stand::Walk(number) => self.index.walks.resume(number).ok_or(CursorLost)?,
        };
        let (mut found, mut recipients, mut looks) = (0, 0, 0);
        while found < limit && recipients < RECIPIENTS_PER_PAGE && looks < LOOKS_PER_PAGE {
            looks += 1;
            if position.at == NONE {
                if !self.enter_next_list(&mut position) {
                    return Ok(None);
                }
                continue;
            }
            let (index, next) = self.step(&position);
            let view = MessageView { queue: self, index };
            if self.is_first_place(&position, index) && view.is_listed(filter) {
                recipients += self.messages.recipients(index).len();
                visit(view);
                found += 1;
            }
            position.at = next;
        }
        let is_at_end = position.at == NONE && position.list + 1 >= position.lists.len();
        Ok((!is_at_end).then(|| Cursor::walk(self.index.walks.rest(position))))
    }

    /// Puts new messages into the lists. False when there are too many for one call.
    fn catch_up(&mut self) -> bool {
        for _ in 0..LINKS_PER_PAGE {
            let Some(index) = self.index.fresh.pop() else { return true };
            self.list(index);
        }
        if self.index.fresh.len() > FEW_FRESH {
            return false;
        }
        while let Some(index) = self.index.fresh.pop() {
            self.list(index);
        }
        true
    }

    /// The beginning of the shortest list, or set of lists, that holds all messages that can match; `None` when none can.
    fn shortest_list(&self, filter: &Filter) -> Option<Position> {
        let of_sender = filter.sender.as_ref().map(|sender| sender.rsplit_once('@').map_or("", |(_, domain)| domain));
        let terms = [
            (TermKind::SenderDomain, of_sender),
            (TermKind::SenderDomain, filter.sender_domain.as_deref()),
            (TermKind::RecipientDomain, filter.recipient_domain.as_deref()),
            (TermKind::Tag, filter.tag.as_deref()),
        ];
        let mut shortest: Option<(usize, Position)> = None;
        if !filter.destinations.is_empty() {
            let lists = self.lists_of(&filter.destinations);
            let first = self.live(*lists.first()?)?.oldest_group;
            let count = lists.iter().map(|id| self.destinations[id.index()].groups).sum();
            shortest = Some((count, Position { chain: Chain::Groups, at: first, lists, list: 0 }));
        }
        for (kind, name) in terms {
            let Some(name) = name else { continue };
            let (first, count) = self.index.list(kind, name)?;
            if shortest.as_ref().is_none_or(|(least, _)| count < *least) {
                shortest = Some((count, Position::in_term(first)));
            }
        }
        shortest.map(|(_, begin)| begin)
    }

    /// The destinations whose own mail leads to any of these, by slot: mail of a site is its domains'.
    fn lists_of(&self, destinations: &[DestinationId]) -> Arc<[DestinationId]> {
        let mut lists = Vec::with_capacity(destinations.len());
        for &id in destinations {
            match self.live(id).map(|destination| &destination.role) {
                None => {}
                Some(Role::Site(site)) => lists.extend(site.members.iter().map(|&member| self.id(member))),
                Some(_) => lists.push(id),
            }
        }
        lists.sort_unstable_by_key(|id| id.index());
        lists.dedup();
        lists.into()
    }

    /// False when there is no further one.
    fn enter_next_list(&self, position: &mut Position) -> bool {
        let Some(&id) = position.lists.get(position.list + 1) else { return false };
        position.list += 1;
        // One that was dropped meanwhile has no mail.
        position.at = self.live(id).map_or(NONE, |destination| destination.oldest_group);
        true
    }

    /// A message with recipients in several of the lists is looked at in one of them.
    fn is_first_place(&self, position: &Position, index: u32) -> bool {
        if position.lists.len() < 2 {
            return true;
        }
        let mut group = self.messages[index].first_group;
        while group != NONE && group != position.at {
            let id = self.id(self.groups[group].destination);
            if position.lists.binary_search_by_key(&id.index(), |list| list.index()).is_ok_and(|at| position.lists[at] == id) {
                return false;
            }
            group = self.groups[group].next_in_message;
        }
        true
    }

    /// The message of the element that a walk stands on, and the element behind it.
    fn step(&self, Position { chain, at, .. }: &Position) -> (u32, u32) {
        match chain {
            Chain::Term => self.index.step(*at),
            Chain::Groups => (self.groups[*at].message, self.groups[*at].next_here),
        }
    }

    fn page_of_slots(&self, filter: &Filter, slot: u32, limit: usize, mut visit: impl FnMut(MessageView<'_>)) -> Option<Cursor> {
        let end = (slot as usize + LOOKS_PER_PAGE).min(self.messages.slots()) as u32;
        let (mut found, mut recipients) = (0, 0);
        for index in slot..end {
            if found == limit || recipients >= RECIPIENTS_PER_PAGE {
                return Some(Cursor(index.into()));
            }
            let view = MessageView { queue: self, index };
            if view.is_listed(filter) {
                recipients += self.messages.recipients(index).len();
                visit(view);
                found += 1;
            }
        }
        ((end as usize) < self.messages.slots()).then_some(Cursor(end.into()))
    }
}

impl Filter {
    /// Is there a list of all that can match?
    fn has_list(&self) -> bool {
        self.sender.is_some()
            || self.sender_domain.is_some()
            || self.recipient_domain.is_some()
            || self.tag.is_some()
            || !self.destinations.is_empty()
    }
}

impl MessageView<'_> {
    /// Is it to be listed? A done message is not.
    fn is_listed(&self, filter: &Filter) -> bool {
        let flags = self.queue.messages[self.index].flags;
        flags.has(Flags::QUEUED) && !flags.has(Flags::CLOSING) && self.matches(filter)
    }

    /// Does it meet a filter, its id aside?
    pub fn matches(&self, filter: &Filter) -> bool {
        let envelope = self.envelope();
        let is = |wanted: &Option<String>, own: &[u8]| wanted.as_ref().is_none_or(|wanted| is_name(wanted, own));
        let is_older =
            |than: QueueId| (envelope.id.boot, envelope.id.shard) != (than.boot, than.shard) || envelope.id.sequence < than.sequence;
        filter.accepted_until.is_none_or(|until| envelope.accepted_at <= until)
            && filter.older_than.is_none_or(is_older)
            && is(&filter.sender, envelope.reverse_path)
            && is(&filter.sender_domain, after_at(envelope.reverse_path))
            && filter.tag.as_ref().is_none_or(|tag| self.tags().any(|own| own == cut_tag(tag)))
            && (!filter.is_about_recipients() || self.recipients().any(|recipient| recipient.matches(filter)))
    }
}

/// Case does not matter, nor a final dot, nor whether a domain is said in U-labels or A-labels.
fn is_name(wanted: &str, own: &[u8]) -> bool {
    let (wanted, own) = (canonical_address(wanted.as_bytes()), canonical_address(own));
    let plain = |name: &'_ [u8]| name.strip_suffix(b".").map_or(name.len(), <[u8]>::len);
    wanted[..plain(&wanted)].eq_ignore_ascii_case(&own[..plain(&own)])
}

fn cut_tag(tag: &str) -> &[u8] {
    &tag.as_bytes()[..tag.len().min(TAG_BYTES_MAX)]
}

impl RecipientView<'_> {
    /// Does it meet what a filter asks of single recipients?
    pub fn matches(&self, filter: &Filter) -> bool {
        filter.recipient_domain.as_ref().is_none_or(|domain| is_name(domain, self.domain()))
            && (filter.destinations.is_empty() || filter.destinations.iter().any(|destination| self.leads_to(*destination)))
            && filter.state.is_none_or(|state| self.state() == state || filter.or_given_out && state == State::Ready && self.is_given_out())
    }

    /// Is it out at another shard?
    fn is_given_out(&self) -> bool {
        self.state() == State::Attempting && self.message.queue.acting(self.home()).away.is_some()
    }

    /// Also the site of its domain.
    fn leads_to(&self, destination: DestinationId) -> bool {
        let queue = self.message.queue;
        let site = match &queue.destinations[self.home() as usize].role {
            Role::Domain(domain) => domain.site.map(|(site, _)| site),
            Role::Route | Role::Site(_) | Role::Vacant => None,
        };
        self.destination() == destination || site.is_some_and(|site| queue.id(site) == destination)
    }
}
