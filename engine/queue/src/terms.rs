//! Domains and tags under which messages are listed, found by their names.

use std::ops::{Index, IndexMut};

use hashbrown::HashTable;

use crate::arena::{Arena, Span};
use crate::slab::{NONE, Slab};

/// Different tags at once; messages with further ones are listed without them.
pub(crate) const TAG_TERMS_MAX: usize = 65_536;

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

/// A term and the list under it.
#[derive(Debug)]
pub(crate) struct Term {
    pub(crate) kind: TermKind,
    name: Span,
    pub(crate) first: u32,
    pub(crate) last: u32,
    pub(crate) messages: u32,
}

impl Default for Term {
    fn default() -> Self {
        Self { kind: TermKind::Tag, name: Span::default(), first: NONE, last: NONE, messages: 0 }
    }
}

/// All terms of one queue, addressed by a 32-bit index.
#[derive(Debug)]
pub(crate) struct Terms {
    seed: u64,
    terms: Slab<Term>,
    by_name: HashTable<u32>,
    names: Arena<u8, 8>,
    tags: usize,
}

impl Terms {
    /// None yet. `seed` keeps senders from aiming at one slot of the table.
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed: seed | 1, terms: Slab::new(), by_name: HashTable::new(), names: Arena::new(), tags: 0 }
    }

    /// Is there room for a further tag?
    pub(crate) fn takes_tags(&self) -> bool {
        self.tags < TAG_TERMS_MAX
    }

    /// In no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Term> {
        self.by_name.iter().map(|&term| &self.terms[term])
    }

    pub(crate) fn name(&self, term: &Term) -> &[u8] {
        self.names.get(term.name)
    }

    pub(crate) fn find(&self, kind: TermKind, name: &[u8]) -> Option<u32> {
        self.by_name.find(hash(self.seed, kind, name), |&term| self.is_named(term, kind, name)).copied()
    }

    fn is_named(&self, term: u32, kind: TermKind, name: &[u8]) -> bool {
        let term = &self.terms[term];
        term.kind == kind && kind.is_same(self.names.get(term.name), name)
    }

    /// As [`Terms::find_or_take`], looking at `guess` first.
    pub(crate) fn guess_or_take(&mut self, guess: u32, kind: TermKind, name: &[u8]) -> u32 {
        if guess != NONE && self.is_named(guess, kind, name) { guess } else { self.find_or_take(kind, name) }
    }

    /// The term of this name; a new one with an empty list if there is none.
    pub(crate) fn find_or_take(&mut self, kind: TermKind, name: &[u8]) -> u32 {
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
        self.tags += usize::from(kind == TermKind::Tag);
        let (seed, terms, names) = (self.seed, &self.terms, &self.names);
        let hash_of = |&other: &u32| hash(seed, terms[other].kind, names.get(terms[other].name));
        self.by_name.insert_unique(hash(seed, kind, name), term, hash_of);
        term
    }

    /// Nothing is listed under it any more.
    pub(crate) fn give(&mut self, term: u32) {
        let Term { kind, name, .. } = self.terms[term];
        let hash = hash(self.seed, kind, self.names.get(name));
        let entry = self.by_name.find_entry(hash, |&other| other == term);
        entry.expect("a term is found by its name").remove();
        self.names.give(name);
        self.tags -= usize::from(kind == TermKind::Tag);
        self.terms.give(term);
    }
}

impl Index<u32> for Terms {
    type Output = Term;

    #[inline]
    fn index(&self, term: u32) -> &Term {
        &self.terms[term]
    }
}

impl IndexMut<u32> for Terms {
    #[inline]
    fn index_mut(&mut self, term: u32) -> &mut Term {
        &mut self.terms[term]
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
