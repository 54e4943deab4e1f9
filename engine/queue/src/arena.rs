//! Short slices in size classes: addresses, replies and recipients of queued messages, without an allocation per message.

use std::hint::black_box;

use ringpost_prefetch::prefetch_ends_later;

/// Classes up to so many steps grow by one step, then four per doubling (a quarter is wasted at most).
const STEPS: usize = 16;

/// Bytes that a page of small slots takes at least.
const PAGE_BYTES: usize = 16 * 1024;

/// Bits of a [`Span`]'s length; its class lies above them.
const LENGTH_BITS: u32 = 24;

/// Bits of a slot that tell where in its page it begins, in steps; its page lies above them. A page of several slots has less than
/// twice [`PAGE_BYTES`] before its last one, and a step is 8 bytes at least.
const START_BITS: u32 = 12;
const _: () = assert!(2 * PAGE_BYTES / 8 <= 1 << START_BITS);

/// Names a slice of an [`Arena`]. The empty slice takes no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    /// The page in the upper bits, the beginning in the lower: looking is then a few instructions, and needs no class.
    slot: u32,
    /// The length in the lower bits, the class in the upper.
    length: u32,
}

impl Span {
    pub(crate) fn slot(self) -> u32 {
        self.slot
    }

    /// Its class in the arena, which [`Span::from_parts`] wants back.
    pub(crate) fn class(self) -> u8 {
        (self.length >> LENGTH_BITS) as u8
    }

    /// The span with these parts; for holders that have no room for a whole one.
    pub(crate) fn from_parts(slot: u32, class: u8, length: u8) -> Self {
        Self { slot, length: u32::from(class) << LENGTH_BITS | u32::from(length) }
    }

    pub(crate) fn len(self) -> usize {
        (self.length & ((1 << LENGTH_BITS) - 1)) as usize
    }
}

/// Slices of `T`, each in a slot of the smallest class that holds it; the smallest classes differ by `STEP` elements, a power of two.
/// Memory is kept for reuse until [`Arena::trim`].
#[derive(Debug)]
pub(crate) struct Arena<T, const STEP: usize> {
    classes: Vec<Class>,
    /// Of all classes; each holds slots of one.
    pages: Vec<Box<[T]>>,
    used: usize,
}

#[derive(Debug)]
struct Class {
    slot_length: usize,
    free: Vec<u32>,
}

impl<T: Copy + Default, const STEP: usize> Arena<T, STEP> {
    /// An empty one.
    pub(crate) const fn new() -> Self {
        const { assert!(STEP.is_power_of_two() && STEP * size_of::<T>() >= 8, "beginnings are counted in steps") };
        Self { classes: Vec::new(), pages: Vec::new(), used: 0 }
    }

    /// Takes a slice of `length` elements, whose values are whatever its last user left.
    #[inline]
    pub(crate) fn take(&mut self, length: usize) -> Span {
        if length == 0 {
            return Span::default();
        }
        assert!(length < 1 << LENGTH_BITS, "the caller bounds slices to 16 MiB");
        let (class, _) = Self::class_of(length);
        let slot = match self.classes.get_mut(class).and_then(|class| class.free.pop()) {
            Some(slot) => slot,
            None => self.grow(class),
        };
        self.used += 1;
        Span { slot, length: (class as u32) << LENGTH_BITS | length as u32 }
    }

    /// Gives a slice back.
    #[inline]
    pub(crate) fn give(&mut self, span: Span) {
        if span.length > 0 {
            self.classes[usize::from(span.class())].free.push(span.slot);
            self.used -= 1;
        }
    }

    #[inline]
    pub(crate) fn get(&self, span: Span) -> &[T] {
        if span.length == 0 {
            return &[];
        }
        let (page, start) = Self::place(span);
        &self.pages[page][start..][..span.len()]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, span: Span) -> &mut [T] {
        if span.length == 0 {
            return &mut [];
        }
        let (page, start) = Self::place(span);
        &mut self.pages[page][start..][..span.len()]
    }

    /// Brings a slice into the cache by loads, of a long one its ends.
    #[inline]
    pub(crate) fn load(&self, span: Span) {
        let slice = self.get(span);
        black_box((slice.first().copied(), slice.last().copied()));
    }

    /// Drops all memory if nothing is in use.
    pub(crate) fn trim(&mut self) {
        if self.used == 0 {
            (self.classes, self.pages) = (Vec::new(), Vec::new());
        }
    }

    /// The page of a span, and where in it it begins.
    #[inline]
    fn place(span: Span) -> (usize, usize) {
        ((span.slot >> START_BITS) as usize, (span.slot % (1 << START_BITS)) as usize * STEP)
    }

    /// Adds a page to a class without a free slot, and takes a slot of it.
    #[cold]
    fn grow(&mut self, class: usize) -> u32 {
        while self.classes.len() <= class {
            self.classes.push(Class { slot_length: Self::class_length(self.classes.len()), free: Vec::new() });
        }
        let Class { slot_length, free } = &mut self.classes[class];
        let slots = PAGE_BYTES.div_ceil(*slot_length * size_of::<T>()).next_power_of_two();
        assert!(self.pages.len() < 1 << (u32::BITS - START_BITS), "the caller bounds the number of messages");
        let page = (self.pages.len() as u32) << START_BITS;
        self.pages.push(vec![T::default(); *slot_length * slots].into_boxed_slice());
        free.extend((0..slots).rev().map(|slot| page | (slot * *slot_length / STEP) as u32));
        free.pop().expect("a page was just added")
    }

    /// The class for a length and the length of its slots.
    #[inline]
    fn class_of(length: usize) -> (usize, usize) {
        let steps = length.div_ceil(STEP);
        if steps <= STEPS {
            return (steps - 1, steps * STEP);
        }
        Self::class_of_many(steps)
    }

    /// Above [`STEPS`]: four classes per doubling. `shift` scales the length to 5..=8 quarters.
    fn class_of_many(steps: usize) -> (usize, usize) {
        let shift = (usize::BITS - (steps - 1).leading_zeros()) as usize - 3;
        let quarters = (steps + (1 << shift) - 1) >> shift;
        (STEPS + (shift - 2) * 4 + quarters - 5, (quarters << shift) * STEP)
    }

    fn class_length(index: usize) -> usize {
        if index < STEPS {
            return (index + 1) * STEP;
        }
        let shift = (index - STEPS) / 4 + 2;
        (((index - STEPS) % 4 + 5) << shift) * STEP
    }
}

impl<const STEP: usize> Arena<u8, STEP> {
    /// Asks for a slice that is wanted later, of a long one for its ends.
    #[inline]
    pub(crate) fn prefetch_later(&self, span: Span) {
        let (page, start) = Self::place(span);
        if let Some(first) = self.pages.get(page).and_then(|page| page.get(start)) {
            prefetch_ends_later(first, span.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_fits_its_class_and_wastes_a_quarter_at_most() {
        let mut last = 0;
        for length in 1..70_000 {
            let (index, slot) = Arena::<u8, 16>::class_of(length);
            assert_eq!(Arena::<u8, 16>::class_length(index), slot, "{length}");
            assert!(slot >= length && (slot < length + 16 || slot * 4 <= length * 5 + 64), "{length} in {slot}");
            assert!(index == last || index == last + 1 || length == 1, "{length}");
            last = index;
        }
    }

    #[test]
    fn slices_do_not_overlap_and_are_used_again() {
        let mut arena = Arena::<u8, 16>::new();
        let length = |n: usize| if n < 1600 { n % 700 } else { n * n % 60_000 };
        let spans: Vec<_> = (0..2000).map(|n| (arena.take(length(n)), n as u8)).collect();
        for &(span, fill) in &spans {
            arena.get_mut(span).fill(fill);
        }
        for &(span, fill) in &spans {
            assert!(arena.get(span).iter().all(|&b| b == fill));
        }
        let freed = spans[100].0;
        arena.give(freed);
        assert_eq!(arena.take(100).slot, freed.slot);
    }
}
