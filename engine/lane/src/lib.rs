//! Bounded lock-free lanes between threads, with wakers.
