//! Bringing into the cache what is read soon, without waiting for it.
//!
//! An ordinary load of what is not in the cache holds up the instructions behind it, though nobody uses its value: they cannot leave the
//! processor before it does. A prefetch can. Why this is a crate: decision 0060.

/// Octets that come together.
pub const LINE_BYTES: usize = 64;

/// Asks for the cache lines of a value, counted from where it begins: of one that is aligned to a line, all. Nothing follows from it but
/// that reading the value soon takes less time.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    for at in (0..size_of::<T>().max(1)).step_by(LINE_BYTES) {
        line(std::ptr::from_ref(value).cast::<i8>().wrapping_add(at));
    }
}

/// As [`prefetch`], of what is read later than that: it takes no room of the first-level cache until then.
#[inline(always)]
pub fn prefetch_later<T>(value: &T) {
    for at in (0..size_of::<T>().max(1)).step_by(LINE_BYTES) {
        line_later(std::ptr::from_ref(value).cast::<i8>().wrapping_add(at));
    }
}

/// As [`prefetch_later`], for the lines of the first and the last octet of so many that begin with this one. It need not be known that there
/// are so many.
#[inline(always)]
pub fn prefetch_ends_later(first: &u8, count: usize) {
    let first = std::ptr::from_ref(first).cast::<i8>();
    line_later(first);
    line_later(first.wrapping_add(count.saturating_sub(1)));
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(unsafe_code)]
fn line(address: *const i8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: the instruction reads and writes no memory of the program and never faults, whatever the address; SSE, which it needs, is a
    // part of every x86_64 target.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address) }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(unsafe_code)]
fn line_later(address: *const i8) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: as in `line`.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address) }
}

/// There is none in stable Rust: what is read is waited for when it is read.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn line(_: *const i8) {}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn line_later(_: *const i8) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_any_size_are_asked_for_and_stay_as_they_are() {
        let (small, large) = (7_u8, [7_u64; 100]);
        prefetch(&small);
        prefetch(&large);
        prefetch(&());
        prefetch_later(&large);
        prefetch_ends_later(&small, 0);
        prefetch_ends_later(&small, usize::MAX);
        assert_eq!((small, large), (7, [7; 100]));
    }
}
