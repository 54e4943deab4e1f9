//! Lists of messages by sender domain, recipient domain and tag, so that a few among a million are found without looking at the rest.
//!
//! A term is one such domain or tag with its list. Lists are linked through nodes: two for each message (its sender's domain, its first
//! recipient's), further ones where there are more domains or tags. Most mail is gone before anybody asks for it, so domains are
//! linked only when a message has seen [`FRESH_MAX`](crate::fresh::FRESH_MAX) others come, or when somebody asks. Read [`Index::link`] first.

use std::hint::black_box;

use ringpost_prefetch::prefetch_later;

use crate::domain_name::{DOMAIN_BYTES_MAX, after_at, canonical_domain};
use crate::fresh::Fresh;
use crate::slab::{NONE, Slab};
use crate::terms::{TermKind, Terms};
use crate::walks::{Chain, Walks};

/// Longest tag, in bytes; of a longer one the beginning counts.
pub const TAG_BYTES_MAX: usize = 64;

/// Tags of one message at most.
pub const TAGS_MAX: usize = 4;

/// Marks a node that is not one of the two that each message has.
const EXTRA: u32 = 1 << 31;

#[derive(Clone, Copy, Debug)]
struct Node {
    /// [`NONE`] while it is in no list.
    term: u32,
    previous: u32,
    next: u32,
}

impl Default for Node {
    fn default() -> Self {
        Self { term: NONE, previous: NONE, next: NONE }
    }
}

/// What each message has: addressed by the message's own index. Within one cache line.
#[derive(Debug)]
#[repr(align(32))]
struct Entry {
    nodes: [Node; 2],
    /// The first of its further nodes.
    extras: u32,
}

impl Default for Entry {
    fn default() -> Self {
        Self { nodes: [Node::default(); 2], extras: NONE }
    }
}

#[derive(Debug)]
struct Extra {
    node: Node,
    message: u32,
    sibling: u32,
}

impl Default for Extra {
    fn default() -> Self {
        Self { node: Node::default(), message: NONE, sibling: NONE }
    }
}

/// The lists of all terms of one queue.
#[derive(Debug)]
pub(crate) struct Index {
    terms: Terms,
    entries: Slab<Entry>,
    extras: Slab<Extra>,
    /// Messages whose domains are not linked yet.
    pub(crate) fresh: Fresh,
    /// The term of the sender linked last, or [`NONE`]: mail comes in runs of one sender, which need not be looked for each time.
    sender: u32,
    /// Along these lists, and along those of destinations.
    pub(crate) walks: Walks,
}

impl Index {
    /// Without terms. `seed` keeps senders from aiming at one slot of the table.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            terms: Terms::new(seed),
            entries: Slab::new(),
            extras: Slab::new(),
            fresh: Fresh::new(),
            sender: NONE,
            walks: Walks::default(),
        }
    }

    /// Brings what is kept of a message into the cache by loads.
    #[inline]
    pub(crate) fn load(&self, message: u32) {
        black_box(self.entries.get(message).map(|entry| (entry.nodes[0].term, entry.extras)));
    }

    /// Asks for what is kept of a message and wanted later.
    #[inline]
    pub(crate) fn prefetch_later(&self, message: u32) {
        if let Some(entry) = self.entries.get(message) {
            prefetch_later(entry);
        }
    }

    /// Puts a message under its sender's domain and its recipients'; once for each domain. Not while it is there.
    pub(crate) fn link<'a>(&mut self, message: u32, sender: &[u8], recipients: impl Iterator<Item = &'a [u8]>) {
        assert!(message < EXTRA / 2, "the caller bounds the number of messages");
        self.sender = self.terms.guess_or_take(self.sender, TermKind::SenderDomain, plain(&canonical_domain(after_at(sender))));
        self.append(self.sender, message * 2);
        let (mut last, mut is_first) = (None, true);
        for address in recipients {
            let own = after_at(address);
            if last == Some(own) {
                continue;
            }
            last = Some(own);
            let term = self.terms.find_or_take(TermKind::RecipientDomain, plain(&canonical_domain(own)));
            let newest = self.terms[term].last;
            if newest != NONE && self.message_of(newest) == message {
                continue;
            }
            if std::mem::take(&mut is_first) {
                self.append(term, message * 2 + 1);
            } else {
                self.append_extra(term, message);
            }
        }
    }

    /// Puts a message under a tag. False when there are too many different ones.
    pub(crate) fn tag(&mut self, message: u32, tag: &[u8]) -> bool {
        let tag = &tag[..tag.len().min(TAG_BYTES_MAX)];
        if !self.terms.takes_tags() && self.terms.find(TermKind::Tag, tag).is_none() {
            return false;
        }
        let term = self.terms.find_or_take(TermKind::Tag, tag);
        let newest = self.terms[term].last;
        if newest == NONE || self.message_of(newest) != message {
            self.append_extra(term, message);
        }
        true
    }

    /// Takes a message out of all lists.
    pub(crate) fn unlink(&mut self, message: u32) {
        if self.entries.slots() <= message as usize {
            return;
        }
        for node in [message * 2, message * 2 + 1] {
            self.remove(node);
        }
        let mut extra = std::mem::replace(&mut self.entries[message].extras, NONE);
        while extra != NONE {
            self.remove(EXTRA | extra);
            let next = self.extras[extra].sibling;
            self.extras[extra].message = NONE;
            self.extras.give(extra);
            extra = next;
        }
    }

    /// The tags of a message.
    pub(crate) fn tags(&self, message: u32) -> impl Iterator<Item = &[u8]> {
        let mut next = self.entries.get(message).map_or(NONE, |entry| entry.extras);
        std::iter::from_fn(move || {
            let extra = (next != NONE).then(|| &self.extras[next])?;
            next = extra.sibling;
            Some(&self.terms[extra.node.term])
        })
        .filter(|term| term.kind == TermKind::Tag)
        .map(|term| self.terms.name(term))
    }

    /// Name and number of messages of each term of a kind, in no order.
    pub(crate) fn terms(&self, kind: TermKind) -> impl Iterator<Item = (&[u8], usize)> {
        self.terms.iter().filter(move |term| term.kind == kind).map(|term| (self.terms.name(term), term.messages as usize))
    }

    /// The first node and the length of a term's list.
    pub(crate) fn list(&self, kind: TermKind, name: &str) -> Option<(u32, usize)> {
        let canonical = canonical_domain(name.as_bytes());
        let name = match kind {
            TermKind::Tag => &name.as_bytes()[..name.len().min(TAG_BYTES_MAX)],
            TermKind::SenderDomain | TermKind::RecipientDomain => plain(&canonical),
        };
        self.terms.find(kind, name).map(|term| (self.terms[term].first, self.terms[term].messages as usize))
    }

    /// The message of a node and the node behind it.
    pub(crate) fn step(&self, node: u32) -> (u32, u32) {
        (self.message_of(node), self.node(node).next)
    }

    fn append_extra(&mut self, term: u32, message: u32) {
        self.entries.cover(message);
        let extra = self.extras.take();
        let first = &mut self.entries[message].extras;
        self.extras[extra] = Extra { node: Node::default(), message, sibling: *first };
        *first = extra;
        self.append(term, EXTRA | extra);
    }

    fn append(&mut self, term: u32, node: u32) {
        if node & EXTRA == 0 {
            self.entries.cover(node / 2);
        }
        let list = &mut self.terms[term];
        let previous = std::mem::replace(&mut list.last, node);
        list.messages += 1;
        if previous == NONE {
            list.first = node;
        }
        *self.node_mut(node) = Node { term, previous, next: NONE };
        if previous != NONE {
            self.node_mut(previous).next = node;
        }
    }

    fn remove(&mut self, node: u32) {
        let Node { term, previous, next } = *self.node(node);
        if term == NONE {
            return;
        }
        self.node_mut(node).term = NONE;
        match previous {
            NONE => self.terms[term].first = next,
            previous => self.node_mut(previous).next = next,
        }
        match next {
            NONE => self.terms[term].last = previous,
            next => self.node_mut(next).previous = previous,
        }
        self.walks.leaves(Chain::Term, node, next);
        self.terms[term].messages -= 1;
        if self.terms[term].messages == 0 {
            self.terms.give(term);
            if self.sender == term {
                self.sender = NONE;
            }
        }
    }

    fn message_of(&self, node: u32) -> u32 {
        if node & EXTRA == 0 { node / 2 } else { self.extras[node & !EXTRA].message }
    }

    fn node(&self, node: u32) -> &Node {
        if node & EXTRA == 0 { &self.entries[node / 2].nodes[(node & 1) as usize] } else { &self.extras[node & !EXTRA].node }
    }

    fn node_mut(&mut self, node: u32) -> &mut Node {
        if node & EXTRA == 0 { &mut self.entries[node / 2].nodes[(node & 1) as usize] } else { &mut self.extras[node & !EXTRA].node }
    }
}

/// A domain without a final dot, cut where no domain goes on.
fn plain(domain: &[u8]) -> &[u8] {
    let domain = domain.strip_suffix(b".").unwrap_or(domain);
    &domain[..domain.len().min(DOMAIN_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::Jitter;
    use crate::terms::TAG_TERMS_MAX;
    use crate::walks::{Position, WALKS_MAX};

    struct Model {
        kind: TermKind,
        name: String,
        messages: Vec<u32>,
    }

    fn walk(index: &Index, kind: TermKind, name: &str) -> Vec<u32> {
        let Some((mut node, count)) = index.list(kind, name) else { return Vec::new() };
        let mut messages = Vec::new();
        while node != NONE {
            let (message, next) = index.step(node);
            messages.push(message);
            node = next;
        }
        assert_eq!(messages.len(), count);
        messages
    }

    /// Every list is the Vec that a model keeps, whatever comes, leaves and is listed meanwhile; a listing under way sees each message that
    /// stays exactly once.
    #[test]
    fn lists_agree_with_vectors_while_messages_come_and_go() {
        const DOMAINS: [&str; 5] = ["a.test", "b.test", "c.test", "", "A.Test."];
        for seed in 0..30 {
            let mut random = Jitter::new(seed);
            let mut index = Index::new(seed);
            let mut models: Vec<Model> = Vec::new();
            let mut live: Vec<u32> = Vec::new();
            // A walk under way: its term, what is still to come for certain, and its number.
            let mut walks: Vec<(usize, Vec<u32>, u32)> = Vec::new();
            let note = |models: &mut Vec<Model>, kind, name: &str, message| {
                let name = if kind == TermKind::Tag { name.to_owned() } else { name.trim_end_matches('.').to_lowercase() };
                match models.iter_mut().find(|model| model.kind == kind && model.name == name) {
                    Some(model) if model.messages.contains(&message) => {}
                    Some(model) => model.messages.push(message),
                    None => models.push(Model { kind, name, messages: vec![message] }),
                }
            };
            for _ in 0..1500 {
                match random.below(10) {
                    0..=4 => {
                        let message = (0..).find(|message| !live.contains(message)).unwrap();
                        live.push(message);
                        let address = |random: &mut Jitter| match DOMAINS[random.below(5) as usize] {
                            "" => "postmaster".to_owned(),
                            domain => format!("x@y@{domain}"),
                        };
                        let sender = address(&mut random);
                        let count = 1 + random.below(6);
                        let recipients: Vec<String> = (0..count).map(|_| address(&mut random)).collect();
                        index.link(message, sender.as_bytes(), recipients.iter().map(|address| address.as_bytes()));
                        note(&mut models, TermKind::SenderDomain, sender.rsplit_once('@').map_or("", |(_, domain)| domain), message);
                        for address in &recipients {
                            note(
                                &mut models,
                                TermKind::RecipientDomain,
                                address.rsplit_once('@').map_or("", |(_, domain)| domain),
                                message,
                            );
                        }
                        for tag in &["Bulk", "bulk"][..random.below(3) as usize] {
                            assert!(index.tag(message, tag.as_bytes()) && index.tag(message, tag.as_bytes()));
                            note(&mut models, TermKind::Tag, tag, message);
                            assert!(index.tags(message).any(|own| own == tag.as_bytes()));
                        }
                    }
                    5..=7 if !live.is_empty() => {
                        let message = live.swap_remove(random.below(live.len() as u64) as usize);
                        index.unlink(message);
                        models.iter_mut().for_each(|model| model.messages.retain(|&other| other != message));
                        walks.iter_mut().for_each(|(_, rest, _)| rest.retain(|&other| other != message));
                    }
                    8 if !models.is_empty() => {
                        let model = random.below(models.len() as u64) as usize;
                        let name = models[model].name.clone();
                        if let Some((first, _)) = index.list(models[model].kind, &name) {
                            walks.push((model, models[model].messages.clone(), index.walks.rest(Position::in_term(first))));
                        }
                        if walks.len() > WALKS_MAX {
                            let (_, _, number) = walks.remove(0);
                            assert!(index.walks.resume(number).is_none(), "the oldest was ended");
                        }
                    }
                    _ => {
                        for (model, rest, number) in &mut walks {
                            let at = index.walks.resume(*number).expect("it is known").at;
                            assert_eq!(at == NONE, rest.is_empty() && at == NONE);
                            let mut at = at;
                            if at != NONE {
                                let (message, next) = index.step(at);
                                // What came after the listing began may be seen, too.
                                if rest.first() == Some(&message) {
                                    rest.remove(0);
                                } else {
                                    assert!(models[*model].messages.contains(&message) && rest.is_empty(), "seed {seed}");
                                }
                                at = next;
                            } else {
                                assert!(rest.is_empty(), "seed {seed}: {rest:?} missed");
                            }
                            *number = index.walks.rest(Position::in_term(at));
                        }
                    }
                }
                for model in &models {
                    assert_eq!(walk(&index, model.kind, &model.name), model.messages, "seed {seed}: {:?} {:?}", model.kind, model.name);
                }
                for kind in [TermKind::SenderDomain, TermKind::RecipientDomain, TermKind::Tag] {
                    let known = models.iter().filter(|model| model.kind == kind && !model.messages.is_empty()).count();
                    assert_eq!(index.terms(kind).count(), known);
                }
            }
        }
    }

    #[test]
    fn a_flood_of_tags_stays_bounded() {
        let mut index = Index::new(1);
        for number in 0..TAG_TERMS_MAX as u32 {
            assert!(index.tag(number, format!("tag {number}").as_bytes()));
        }
        assert!(!index.tag(70_000, b"one more") && index.tag(70_000, b"tag 7"));
        index.unlink(9);
        assert!(index.tag(70_000, b"one more"));
        let long = "x".repeat(500);
        index.unlink(10);
        assert!(index.tag(3, long.as_bytes()) && index.tags(3).any(|tag| tag == &long.as_bytes()[..TAG_BYTES_MAX]));
    }
}
