//! Page-aligned memory for content: written by one, then shared by all, then used again.
//!
//! [`PagesMut`] is filled, [`PagesMut::freeze`] makes it [`Pages`], and [`PageSlice`] is a part of that. The last two cross cores. The
//! ring's pool keeps a reference to each block and takes it back when its own is the only one left, so that the steady state
//! allocates nothing. `Ring::trim` gives back to the system what lay unused for a second.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    cell::{Cell, RefCell},
    fmt,
    ops::{Deref, DerefMut, Range},
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::mapping::Mapping;

/// Alignment of every block, and the least there is of one: what O_DIRECT asks for.
pub const PAGE_BYTES: usize = 4096;

/// How long a block lies unused before `trim` gives it back.
const UNUSED_MAX: Duration = Duration::from_secs(1);

/// Blocks of this size and more are mappings of their own, so that giving them back is giving them back to the system.
const MAPPED_BYTES_MIN: usize = 64 << 10;

/// Sizes are powers of two pages: class 0 is 4 KiB, class 19 is 2 GiB.
const CLASSES: usize = 20;

enum Memory {
    Heap(*mut u8, Layout),
    Mapped(Mapping),
}

/// One block. Whoever has it alone may write it.
struct Block {
    memory: Memory,
    bytes: usize,
    /// What all blocks of the pool add up to, wherever they are dropped.
    accounted: Arc<AtomicUsize>,
}

// SAFETY: a block is plain memory. It is written only through `PagesMut`, which holds it alone.
unsafe impl Send for Block {}
// SAFETY: as above; shared, it is only read.
unsafe impl Sync for Block {}

impl Block {
    fn new(bytes: usize, accounted: &Arc<AtomicUsize>) -> Block {
        let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("a block is at most 2 GiB");
        let memory = if bytes >= MAPPED_BYTES_MIN {
            Memory::Mapped(Mapping::new(bytes).unwrap_or_else(|_| handle_alloc_error(layout)))
        } else {
            // SAFETY: the layout is not empty.
            let base = unsafe { alloc_zeroed(layout) };
            if base.is_null() {
                handle_alloc_error(layout);
            }
            Memory::Heap(base, layout)
        };
        accounted.fetch_add(bytes, Ordering::Relaxed);
        Block { memory, bytes, accounted: accounted.clone() }
    }

    fn base(&self) -> *mut u8 {
        match &self.memory {
            Memory::Heap(base, _) => *base,
            Memory::Mapped(mapping) => mapping.at(0),
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.accounted.fetch_sub(self.bytes, Ordering::Relaxed);
        if let Memory::Heap(base, layout) = self.memory {
            // SAFETY: allocated with this layout, and nobody else refers to it.
            unsafe { dealloc(base, layout) };
        }
    }
}

/// Memory that one owner fills: 4 KiB-aligned, initialised, of the length that was asked for.
pub struct PagesMut {
    /// `None` only while it is frozen or dropped. Held alone: the pool has no reference to it before `freeze`.
    block: Option<Arc<Block>>,
    len: usize,
    pool: Weak<Pool>,
}

impl PagesMut {
    /// Ends the writing: from now on the bytes are shared and do not change.
    pub fn freeze(mut self) -> Pages {
        let block = self.block.take().expect("a block until it is frozen");
        if let Some(pool) = self.pool.upgrade() {
            pool.class(block.bytes).borrow_mut().shared.push(block.clone());
        }
        Pages { block, len: self.len }
    }

    /// Bytes that it can hold at all; at least its length, a power of two pages.
    pub fn capacity(&self) -> usize {
        self.block.as_ref().expect("a block until it is frozen").bytes
    }

    fn base(&self) -> *mut u8 {
        self.block.as_ref().expect("a block until it is frozen").base()
    }
}

impl Deref for PagesMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the block has at least `len` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.base(), self.len) }
    }
}

impl DerefMut for PagesMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the block is held by this value alone.
        unsafe { std::slice::from_raw_parts_mut(self.base(), self.len) }
    }
}

impl Drop for PagesMut {
    fn drop(&mut self) {
        if let Some(block) = self.block.take()
            && let Some(pool) = self.pool.upgrade()
        {
            let since = pool.now.get();
            pool.class(block.bytes).borrow_mut().free.push((block, since));
        }
    }
}

impl fmt::Debug for PagesMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PagesMut").field("len", &self.len).finish()
    }
}

/// Frozen memory, counted, for any thread.
#[derive(Clone)]
pub struct Pages {
    block: Arc<Block>,
    len: usize,
}

impl Pages {
    /// A part of it, which keeps the whole alive.
    ///
    /// # Panics
    /// When the range does not lie within.
    pub fn slice(&self, range: Range<usize>) -> PageSlice {
        assert!(range.start <= range.end && range.end <= self.len, "a slice of {range:?} from {} bytes", self.len);
        PageSlice { pages: self.clone(), start: range.start as u32, len: (range.end - range.start) as u32 }
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the block has at least `len` initialised bytes, and nobody writes it while a reference is left.
        unsafe { std::slice::from_raw_parts(self.block.base(), self.len) }
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("len", &self.len).finish()
    }
}

/// Part of some [`Pages`].
#[derive(Clone)]
pub struct PageSlice {
    pages: Pages,
    start: u32,
    len: u32,
}

impl PageSlice {
    /// A part of this part.
    ///
    /// # Panics
    /// When the range does not lie within.
    pub fn slice(&self, range: Range<usize>) -> PageSlice {
        assert!(range.start <= range.end && range.end <= self.len as usize, "a slice of {range:?} from {} bytes", self.len);
        PageSlice { pages: self.pages.clone(), start: self.start + range.start as u32, len: (range.end - range.start) as u32 }
    }
}

impl Deref for PageSlice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages[self.start as usize..][..self.len as usize]
    }
}

impl fmt::Debug for PageSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageSlice").field("start", &self.start).field("len", &self.len).finish()
    }
}

/// So many shared blocks are looked through at each allocation: that costs less than a block more.
const SWEPT_AT_ONCE: usize = 32;

/// Blocks of one size.
#[derive(Default)]
struct Class {
    /// Nobody uses these, since then.
    free: Vec<(Arc<Block>, Instant)>,
    /// These were frozen; ours again when the pool's reference is the only one.
    shared: Vec<Arc<Block>>,
    /// Allocations before `shared` is looked through again, so that looking costs a constant per allocation.
    until_sweep: usize,
}

impl Class {
    fn sweep(&mut self, now: Instant) {
        let mut at = 0;
        while at < self.shared.len() {
            // `get_mut` asks for the count with the ordering that makes the other threads' reads end before our writes.
            if Arc::get_mut(&mut self.shared[at]).is_some() {
                self.free.push((self.shared.swap_remove(at), now));
            } else {
                at += 1;
            }
        }
        self.until_sweep = if self.shared.len() <= SWEPT_AT_ONCE { 0 } else { self.shared.len() / 4 };
    }
}

/// The ring's blocks.
pub(crate) struct Pool {
    classes: [RefCell<Class>; CLASSES],
    accounted: Arc<AtomicUsize>,
    /// The turn's time, kept by the ring.
    pub(crate) now: Cell<Instant>,
}

impl Pool {
    pub(crate) fn new(now: Instant) -> Rc<Pool> {
        Rc::new(Pool { classes: Default::default(), accounted: Arc::default(), now: Cell::new(now) })
    }

    fn class(&self, bytes: usize) -> &RefCell<Class> {
        &self.classes[(bytes / PAGE_BYTES).trailing_zeros() as usize]
    }

    /// `len` bytes, zero where `zeroed`, else whatever an earlier use left.
    pub(crate) fn take(self: &Rc<Self>, len: usize, zeroed: bool) -> PagesMut {
        let bytes = len.max(1).next_power_of_two().max(PAGE_BYTES);
        assert!(bytes.ilog2() - PAGE_BYTES.ilog2() < CLASSES as u32, "a block is at most 2 GiB");
        let mut class = self.class(bytes).borrow_mut();
        if class.free.is_empty() && !class.shared.is_empty() {
            match class.until_sweep.checked_sub(1) {
                Some(left) => class.until_sweep = left,
                None => class.sweep(self.now.get()),
            }
        }
        let used = class.free.pop();
        drop(class);
        let fresh = used.is_none();
        let block = used.map_or_else(|| Arc::new(Block::new(bytes, &self.accounted)), |(block, _)| block);
        let mut pages = PagesMut { block: Some(block), len, pool: Rc::downgrade(self) };
        if zeroed && !fresh {
            pages.fill(0);
        }
        pages
    }

    /// Bytes of all blocks there are, in use or not.
    pub(crate) fn bytes(&self) -> usize {
        self.accounted.load(Ordering::Relaxed)
    }

    /// Gives back what nobody has used for a second.
    pub(crate) fn trim(&self, now: Instant) {
        for class in &self.classes {
            let mut class = class.borrow_mut();
            class.sweep(now);
            class.free.retain(|(_, since)| now.saturating_duration_since(*since) < UNUSED_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned_and_zeroed_also_when_used_again() {
        let pool = Pool::new(Instant::now());
        for bytes in [1, 4096, 5000, 64 << 10, 200_000] {
            let mut pages = pool.take(bytes, true);
            assert_eq!(pages.len(), bytes);
            assert_eq!(pages.as_ptr() as usize % PAGE_BYTES, 0);
            assert!(pages.iter().all(|b| *b == 0));
            pages.fill(7);
            drop(pages);
            assert!(pool.take(bytes, true).iter().all(|b| *b == 0));
            assert!(pool.take(bytes, false).iter().all(|b| *b == 0), "the block of the line before");
        }
    }

    #[test]
    fn a_block_comes_back_when_its_last_slice_is_gone_wherever_that_was() {
        let pool = Pool::new(Instant::now());
        let pages = pool.take(8192, true).freeze();
        let address = pages.as_ptr();
        let slice = pages.slice(10..20).slice(2..4);
        drop(pages);
        let other = pool.take(8192, true);
        assert_ne!(other.as_ptr(), address, "a slice still reads it");
        assert_eq!(pool.bytes(), 16384);
        std::thread::spawn(move || assert_eq!(&*slice, &[0, 0])).join().unwrap();
        assert_eq!(pool.take(8192, true).as_ptr(), address);
        assert_eq!(pool.bytes(), 16384, "nothing was allocated");
    }

    #[test]
    fn holding_many_pages_does_not_make_each_allocation_look_at_all_of_them() {
        let pool = Pool::new(Instant::now());
        let mut held = Vec::new();
        for _ in 0..1000 {
            held.push(pool.take(4096, true).freeze());
        }
        held.clear();
        // At most a quarter more is allocated before the pool looks and finds all of them.
        let again: Vec<_> = (0..1000).map(|_| pool.take(4096, true)).collect();
        assert!(pool.bytes() <= 1300 * 4096, "{}", pool.bytes());
        drop(again);
    }

    #[test]
    fn unused_pages_are_given_back_after_a_second_and_not_before() {
        let start = Instant::now();
        let pool = Pool::new(start);
        drop(pool.take(256 << 10, true));
        let kept = pool.take(4096, true).freeze();
        pool.trim(start + Duration::from_millis(900));
        assert_eq!(pool.bytes(), (256 << 10) + 4096);
        pool.trim(start + Duration::from_millis(1100));
        assert_eq!(pool.bytes(), 4096, "what is in use stays");
        drop(pool);
        assert_eq!(kept.len(), 4096);
    }
}
