//! Slots of one type in pages that never move: growing copies nothing, and a freed slot is used again.

/// Slots of a page. A page is the unit in which memory is taken: a queue that deepens takes some nine of them for so many messages.
const PAGE_SLOTS: usize = 4096;

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

/// Values addressed by a 32-bit index. Whoever needs to tell uses of a slot apart keeps a generation in the value.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    pages: Vec<Box<[T; PAGE_SLOTS]>>,
    free: Vec<u32>,
}

impl<T: Default> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { pages: Vec::new(), free: Vec::new() }
    }

    /// Takes a free slot, whose value is what its last user left; allocates a page when none is free.
    #[inline]
    pub(crate) fn take(&mut self) -> u32 {
        if self.free.is_empty() {
            self.grow();
        }
        self.free.pop().expect("a page was just added")
    }

    /// Gives a slot back.
    #[inline]
    pub(crate) fn give(&mut self, index: u32) {
        self.free.push(index);
    }

    /// All slots, used and free.
    pub(crate) fn slots(&self) -> usize {
        self.pages.len() * PAGE_SLOTS
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.pages.get(index as usize / PAGE_SLOTS).map(|page| &page[index as usize % PAGE_SLOTS])
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.pages.get_mut(index as usize / PAGE_SLOTS).map(|page| &mut page[index as usize % PAGE_SLOTS])
    }

    /// Makes sure that `index` has a slot, without taking it; for slabs whose indices another slab hands out.
    #[inline]
    pub(crate) fn cover(&mut self, index: u32) {
        if self.pages.len() <= index as usize / PAGE_SLOTS {
            self.grow_to(index);
        }
    }

    #[cold]
    fn grow_to(&mut self, index: u32) {
        while self.slots() <= index as usize {
            self.pages.push(page());
        }
    }

    #[cold]
    fn grow(&mut self) {
        let first = self.slots() as u32;
        assert!(first < NONE - PAGE_SLOTS as u32, "the caller bounds the number of messages");
        self.pages.push(page());
        let slots = self.slots();
        self.free.extend((first..slots as u32).rev());
    }
}

fn page<T: Default>() -> Box<[T; PAGE_SLOTS]> {
    let slots: Box<[T]> = (0..PAGE_SLOTS).map(|_| T::default()).collect();
    slots.try_into().unwrap_or_else(|_| unreachable!("so many were collected"))
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        &self.pages[index as usize / PAGE_SLOTS][index as usize % PAGE_SLOTS]
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.pages[index as usize / PAGE_SLOTS][index as usize % PAGE_SLOTS]
    }
}
