//! Lists of messages by sender domain, recipient domain and tag, so that a few among a million are found without looking at the rest.
//!
//! A term is one such domain or tag with its list. Lists are linked through nodes: two for each message (its sender's domain, its first
//! recipient's), further ones where there are more domains or tags. Most mail is gone before anybody asks for it, so domains are
//! linked only when a message has seen [`FRESH_MAX`](crate::fresh::FRESH_MAX) others come, or when somebody asks. Read [`Index::link`] first.

use std::hint::black_box;

use hashbrown::HashTable;
use ringpost_prefetch::prefetch_later;

use crate::arena::{Arena, Span};
use crate::domain_name::{DOMAIN_BYTES_MAX, after_at, canonical_domain};
use crate::fresh::Fresh;
use crate::slab::{NONE, Slab};
use crate::walks::{Chain, Walks};

/// Longest tag, in bytes; of a longer one the beginning counts.
pub const TAG_BYTES_MAX: usize = 64;

/// Tags of one message at most.
pub const TAGS_MAX: usize = 4;

/// Different tags at once; messages with further ones are listed without them.
const TAG_TERMS_MAX: usize = 65_536;

/// Marks a node that is not one of the two that each message has.
const EXTRA: u32 = 1 << 31;

/// What a term is the name of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TermKind {
    /// Domain of the reverse-path, lower case; empty for the null reverse-path.
    SenderDomain,
    /// Domain of a forward-path, lower case.
    RecipientDomain,
    /// A tag, as it was given.
    Tag,
}

impl TermKind {
    /// Case is nothing to domains: they are compared and hashed as they come, and kept in lower case.
    fn is_domain(self) -> bool {
        self != Self::Tag
    }

    fn is_same(self, kept: &[u8], name: &[u8]) -> bool {
        if self.is_domain() { kept.eq_ignore_ascii_case(name) } else { kept == name }
    }
}

#[derive(Debug)]
struct Term {
    kind: TermKind,
    name: Span,
    first: u32,
    last: u32,
    messages: u32,
}

impl Default for Term {
    fn default() -> Self {
        Self { kind: TermKind::Tag, name: Span::default(), first: NONE, last: NONE, messages: 0 }
    }
}

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

/// All terms of one queue.
#[derive(Debug)]
pub(crate) struct Index {
    seed: u64,
    terms: Slab<Term>,
    by_name: HashTable<u32>,
    names: Arena<u8, 8>,
    entries: Slab<Entry>,
    extras: Slab<Extra>,
    tag_terms: usize,
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
            seed: seed | 1,
            terms: Slab::new(),
            by_name: HashTable::new(),
            names: Arena::new(),
            entries: Slab::new(),
            extras: Slab::new(),
            tag_terms: 0,
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
        self.sender = self.term_or(self.sender, TermKind::SenderDomain, plain(&canonical_domain(after_at(sender))));
        self.append(self.sender, message * 2);
        let (mut last, mut is_first) = (None, true);
        for address in recipients {
            let own = after_at(address);
            if last == Some(own) {
                continue;
            }
            last = Some(own);
            let term = self.term(TermKind::RecipientDomain, plain(&canonical_domain(own)));
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
        if self.tag_terms >= TAG_TERMS_MAX && self.find(TermKind::Tag, tag).is_none() {
            return false;
        }
        let term = self.term(TermKind::Tag, tag);
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
        .map(|term| self.names.get(term.name))
    }

    /// Name and number of messages of each term of a kind, in no order.
    pub(crate) fn terms(&self, kind: TermKind) -> impl Iterator<Item = (&[u8], usize)> {
        self.by_name
            .iter()
            .map(|&term| &self.terms[term])
            .filter(move |term| term.kind == kind)
            .map(|term| (self.names.get(term.name), term.messages as usize))
    }

    /// The first node and the length of a term's list.
    pub(crate) fn list(&self, kind: TermKind, name: &str) -> Option<(u32, usize)> {
        let canonical = canonical_domain(name.as_bytes());
        let name = match kind {
            TermKind::Tag => &name.as_bytes()[..name.len().min(TAG_BYTES_MAX)],
            TermKind::SenderDomain | TermKind::RecipientDomain => plain(&canonical),
        };
        self.find(kind, name).map(|term| (self.terms[term].first, self.terms[term].messages as usize))
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
            self.forget(term);
        }
    }

    fn forget(&mut self, term: u32) {
        let Term { kind, name, .. } = self.terms[term];
        let hash = self.hash(kind, self.names.get(name));
        let entry = self.by_name.find_entry(hash, |&other| other == term);
        entry.expect("a term is found by its name").remove();
        self.names.give(name);
        if self.sender == term {
            self.sender = NONE;
        }
        self.tag_terms -= usize::from(kind == TermKind::Tag);
        self.terms.give(term);
    }

    fn find(&self, kind: TermKind, name: &[u8]) -> Option<u32> {
        self.by_name.find(self.hash(kind, name), |&term| self.is_named(term, kind, name)).copied()
    }

    fn is_named(&self, term: u32, kind: TermKind, name: &[u8]) -> bool {
        let term = &self.terms[term];
        term.kind == kind && kind.is_same(self.names.get(term.name), name)
    }

    /// As [`Index::term`], looking at `guess` first.
    fn term_or(&mut self, guess: u32, kind: TermKind, name: &[u8]) -> u32 {
        if guess != NONE && self.is_named(guess, kind, name) { guess } else { self.term(kind, name) }
    }

    fn term(&mut self, kind: TermKind, name: &[u8]) -> u32 {
        if let Some(term) = self.find(kind, name) {
            return term;
        }
        let span = self.names.take(name.len());
        self.names.get_mut(span).copy_from_slice(name);
        if kind.is_domain() {
            self.names.get_mut(span).make_ascii_lowercase();
        }
        let term = self.terms.take();
        self.terms[term] = Term { kind, name: span, ..Term::default() };
        self.tag_terms += usize::from(kind == TermKind::Tag);
        let (seed, terms, names) = (self.seed, &self.terms, &self.names);
        let hash_of = |&other: &u32| hash(seed, terms[other].kind, names.get(terms[other].name));
        self.by_name.insert_unique(hash(seed, kind, name), term, hash_of);
        term
    }

    fn hash(&self, kind: TermKind, name: &[u8]) -> u64 {
        hash(self.seed, kind, name)
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

/// A seeded hash by folded multiplication, eight bytes at a time; of domains, as if they were in lower case.
fn hash(seed: u64, kind: TermKind, name: &[u8]) -> u64 {
    let fold = |a: u64, b: u64| {
        let wide = u128::from(a) * u128::from(b);
        wide as u64 ^ (wide >> 64) as u64
    };
    let word = |chunk: [u8; 8]| match kind.is_domain() {
        true => lower_case(u64::from_le_bytes(chunk)),
        false => u64::from_le_bytes(chunk),
    };
    let mut state = seed ^ (kind as u64) << 56 ^ name.len() as u64;
    for chunk in name.as_chunks::<8>().0 {
        state = fold(state ^ word(*chunk), 0x9E37_79B9_7F4A_7C15 ^ seed);
    }
    // What is left over with some bytes before it, where there are any: copied without a loop.
    let last = name.last_chunk().copied().unwrap_or_else(|| {
        let mut last = [0; 8];
        last[..name.len()].copy_from_slice(name);
        last
    });
    fold(state ^ word(last), 0xD6E8_FEB8_6659_FD93 ^ seed.rotate_left(32))
}

/// 1 in each byte of a word.
const EACH: u64 = 0x0101_0101_0101_0101;

/// Eight characters in lower case; what is not ASCII stays as it is.
fn lower_case(word: u64) -> u64 {
    let low = word & (0x7F * EACH);
    // The highest bit of a byte says that it is at least `A`, and more than `Z`; nothing is carried from one to the next.
    let (from_a, beyond_z) = (low + (0x80 - b'A' as u64) * EACH, low + (0x7F - b'Z' as u64) * EACH);
    let upper = from_a & !beyond_z & !word & (0x80 * EACH);
    word | upper >> 2
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
    fn a_word_in_lower_case_is_that_of_its_bytes() {
        for byte in 0..=u8::MAX {
            for place in 0..8 {
                let mut bytes = *b"aZ@[`{\xC1z";
                bytes[place] = byte;
                assert_eq!(lower_case(u64::from_le_bytes(bytes)).to_le_bytes(), bytes.map(|byte| byte.to_ascii_lowercase()));
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
