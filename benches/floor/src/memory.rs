//! Memory that the kernel may use by address: pages, and the blocks that batches are gathered in.

use std::cell::Cell;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

/// What direct writes are a multiple of.
pub const PAGE_BYTES: usize = 4096;
/// Length of a block, so the longest batch.
pub const BLOCK_BYTES: usize = 1 << 20;
/// Blocks at most: beyond it the load is larger than the floor is made for, and it ends. While it relays, what it takes faster than the next hop
/// does waits in them, some thirty messages in each, for the two seconds of a load; only what was written to is resident.
const BLOCKS_MAX: usize = 8192;

/// Anonymous pages, unmapped when dropped.
#[derive(Debug)]
pub struct Pages {
    base: NonNull<u8>,
    bytes: usize,
}

impl Pages {
    /// Zeroed, touched only when used.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping touches no memory of ours.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base: NonNull::new(base.cast()).expect("mmap does not map at zero"), bytes })
    }

    /// Address of an octet.
    pub fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.bytes, "within the mapping");
        // SAFETY: just asserted to lie inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; owners outlive what the kernel does with it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// A batch's memory. Filled from front to back; what was filled is never changed while somebody holds the block.
#[derive(Debug)]
pub struct Block {
    pages: Pages,
    used: Cell<usize>,
}

impl Block {
    /// Octets filled.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Octets left.
    pub fn room(&self) -> usize {
        BLOCK_BYTES - self.used.get()
    }

    /// Address of a filled octet.
    pub fn at(&self, offset: usize) -> *const u8 {
        self.pages.at(offset)
    }

    /// Copies to the end.
    pub fn append(&self, bytes: &[u8]) {
        let used = self.used.get();
        assert!(bytes.len() <= BLOCK_BYTES - used, "the caller looked for room");
        if bytes.is_empty() {
            return;
        }
        // SAFETY: the octets from `used` on belong to nobody yet (addresses are given out for filled ones only), and there are enough.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.pages.at(used), bytes.len()) };
        self.used.set(used + bytes.len());
    }

    /// Fills up to a whole page with zeros, as a direct write wants it; gives the length.
    pub fn pad(&self) -> usize {
        const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
        self.append(&ZEROS[..self.used.get().next_multiple_of(PAGE_BYTES) - self.used.get()]);
        self.used.get()
    }
}

/// Blocks to be used again. The first free one is taken, so that few stay warm.
#[derive(Debug, Default)]
pub struct Blocks {
    all: Vec<Rc<Block>>,
}

impl Blocks {
    /// An empty block that nobody holds.
    pub fn take(&mut self) -> Rc<Block> {
        if let Some(free) = self.all.iter().find(|block| Rc::strong_count(block) == 1) {
            free.used.set(0);
            return Rc::clone(free);
        }
        assert!(self.all.len() < BLOCKS_MAX, "the load is larger than the floor is made for");
        let pages = Pages::new(BLOCK_BYTES).expect("the machine has memory for a block");
        let block = Rc::new(Block { pages, used: Cell::new(0) });
        self.all.push(Rc::clone(&block));
        block
    }
}
