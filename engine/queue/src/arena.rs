//! Short slices in size classes: addresses, replies and recipients of queued messages, without an allocation per message.

/// Classes up to so many steps grow by one step, then four per doubling (a quarter is wasted at most).
const STEPS: usize = 16;

/// Bytes that a page of small slots takes at least.
const PAGE_BYTES: usize = 16 * 1024;

/// Bits of a [`Span`]'s length; its class lies above them.
const LENGTH_BITS: u32 = 24;

/// Names a slice of an [`Arena`]. The empty slice takes no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    slot: u32,
    /// The length in the lower bits, the class in the upper: looking is then a few instructions.
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

/// Slices of `T`, each in a slot of the smallest class that holds it. Memory is kept for reuse until [`Arena::trim`].
#[derive(Debug)]
pub(crate) struct Arena<T> {
    /// Elements by which the smallest classes differ, as a power of two: dividing by a variable costs more than all the rest.
    step_bits: u32,
    classes: Vec<Class<T>>,
    used: usize,
}

#[derive(Debug)]
struct Class<T> {
    slot_length: usize,
    /// Slots of a page, as a power of two.
    page_bits: u32,
    pages: Vec<Box<[T]>>,
    free: Vec<u32>,
}

impl<T: Copy + Default> Arena<T> {
    /// An empty one. `step`, a power of two, is the length of its smallest slots.
    pub(crate) const fn new(step: usize) -> Self {
        assert!(step.is_power_of_two(), "lengths are divided by it");
        Self { step_bits: step.trailing_zeros(), classes: Vec::new(), used: 0 }
    }

    /// Takes a slice of `length` elements, whose values are whatever its last user left.
    pub(crate) fn take(&mut self, length: usize) -> Span {
        if length == 0 {
            return Span::default();
        }
        assert!(length < 1 << LENGTH_BITS, "the caller bounds slices to 16 MiB");
        let (index, _) = self.class_of(length);
        while self.classes.len() <= index {
            let slot_length = self.class_length(self.classes.len());
            let slots_per_page = PAGE_BYTES.div_ceil(slot_length * size_of::<T>()).next_power_of_two();
            self.classes.push(Class { slot_length, page_bits: slots_per_page.trailing_zeros(), pages: Vec::new(), free: Vec::new() });
        }
        self.used += 1;
        Span { slot: self.classes[index].take(), length: (index as u32) << LENGTH_BITS | length as u32 }
    }

    /// Gives a slice back.
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
        let class = &self.classes[usize::from(span.class())];
        let (page, start) = class.place(span.slot);
        &class.pages[page][start..start + span.len()]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, span: Span) -> &mut [T] {
        if span.length == 0 {
            return &mut [];
        }
        let class = &mut self.classes[usize::from(span.class())];
        let (page, start) = class.place(span.slot);
        &mut class.pages[page][start..start + span.len()]
    }

    /// Drops all memory if nothing is in use.
    pub(crate) fn trim(&mut self) {
        if self.used == 0 {
            self.classes = Vec::new();
        }
    }

    /// The class for a length and the length of its slots.
    fn class_of(&self, length: usize) -> (usize, usize) {
        let steps = (length + (1 << self.step_bits) - 1) >> self.step_bits;
        if steps <= STEPS {
            return (steps - 1, steps << self.step_bits);
        }
        // Above: four classes per doubling. `shift` scales the length to 5..=8 quarters.
        let shift = (usize::BITS - (steps - 1).leading_zeros()) as usize - 3;
        let quarters = (steps + (1 << shift) - 1) >> shift;
        (STEPS + (shift - 2) * 4 + quarters - 5, quarters << shift << self.step_bits)
    }

    fn class_length(&self, index: usize) -> usize {
        if index < STEPS {
            return (index + 1) << self.step_bits;
        }
        let shift = (index - STEPS) / 4 + 2;
        ((index - STEPS) % 4 + 5) << shift << self.step_bits
    }
}

impl<T: Copy + Default> Class<T> {
    fn take(&mut self) -> u32 {
        if self.free.is_empty() {
            let first = self.pages.len() << self.page_bits;
            self.pages.push(vec![T::default(); self.slot_length << self.page_bits].into_boxed_slice());
            let slots = self.pages.len() << self.page_bits;
            self.free.extend((first as u32..slots as u32).rev());
        }
        self.free.pop().expect("a page was just added")
    }

    fn place(&self, slot: u32) -> (usize, usize) {
        let slot = slot as usize;
        (slot >> self.page_bits, (slot & ((1 << self.page_bits) - 1)) * self.slot_length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_fits_its_class_and_wastes_a_quarter_at_most() {
        let arena = Arena::<u8>::new(16);
        let mut last = 0;
        for length in 1..70_000 {
            let (index, slot) = arena.class_of(length);
            assert_eq!(arena.class_length(index), slot, "{length}");
            assert!(slot >= length && (slot < length + 16 || slot * 4 <= length * 5 + 64), "{length} in {slot}");
            assert!(index == last || index == last + 1 || length == 1, "{length}");
            last = index;
        }
    }

    #[test]
    fn slices_do_not_overlap_and_are_used_again() {
        let mut arena = Arena::<u8>::new(16);
        let spans: Vec<_> = (0..2000usize).map(|n| (arena.take(n % 700), n as u8)).collect();
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
