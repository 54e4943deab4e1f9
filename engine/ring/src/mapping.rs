//! Memory that the kernel gives in whole pages.

use std::{io, ptr};

/// Anonymous memory, aligned to pages, which cost nothing until touched.
pub(crate) struct Mapping {
    base: *mut u8,
    len: usize,
}

impl Mapping {
    pub(crate) fn new(len: usize) -> io::Result<Mapping> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_ANONYMOUS | libc::MAP_PRIVATE);
        // SAFETY: a fresh private mapping touches nothing that exists.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { base: base.cast(), len })
    }

    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.len, "an offset into the mapping");
        // SAFETY: the offset lies inside the mapping.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and its owner hands out no reference that outlives it.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}
