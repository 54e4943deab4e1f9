//! How many claims of others' mail are not decided, for who empties the node: it holds no mail only when none is, and none comes any more.
//!
//! The worker counts a lease before it looks whether the node is being emptied, and who empties it says so before it looks at the count: either the
//! worker leases nothing, or what it leases is counted. The count falls after what was decided is in its shard's queue, so who reads it before it looks
//! through the shards finds each of them in one of the two.

use std::sync::atomic::{AtomicU64, Ordering};

/// Before the shards have told what earlier runs have left.
const UNKNOWN: u64 = u64::MAX;

/// Claims, and a lease that is under way.
#[derive(Debug)]
pub(super) struct OpenClaims(AtomicU64);

impl Default for OpenClaims {
    fn default() -> OpenClaims {
        OpenClaims(AtomicU64::new(UNKNOWN))
    }
}

impl OpenClaims {
    /// `None`: not known yet.
    pub(super) fn count(&self) -> Option<u64> {
        Some(self.0.load(Ordering::SeqCst)).filter(|count| *count != UNKNOWN)
    }

    /// The worker's alone: so many are not decided, and no lease is under way.
    pub(super) fn are(&self, claims: usize) {
        self.0.store(claims as u64, Ordering::SeqCst);
    }

    /// The worker's alone: one more may be, as it is about to lease. To be called before it looks whether it may.
    pub(super) fn may_be_one_more(&self, claims: usize) {
        self.0.store(claims as u64 + 1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Barrier, atomic::AtomicBool},
        thread,
    };

    use super::*;

    /// What was leased counted only once the worker came round again: a node that was emptied meanwhile was said to be empty while the owner of that mail
    /// had settled it with this node.
    #[test]
    fn a_lease_is_counted_or_not_made_whenever_a_drain_begins() {
        for _ in 0..2000 {
            let (claims, is_draining) = (Arc::new(OpenClaims::default()), Arc::new(AtomicBool::new(false)));
            claims.are(0);
            let both = Arc::new(Barrier::new(2));
            let worker = thread::spawn({
                let (claims, is_draining, both) = (claims.clone(), is_draining.clone(), both.clone());
                move || {
                    both.wait();
                    claims.may_be_one_more(0);
                    !is_draining.load(Ordering::SeqCst)
                }
            });
            both.wait();
            is_draining.store(true, Ordering::SeqCst);
            let seen = claims.count();
            let leases = worker.join().unwrap();
            assert!(!leases || seen == Some(1), "it leases, and {seen:?} claims are seen");
        }
    }

    #[test]
    fn nothing_is_known_before_the_shards_have_told() {
        let claims = OpenClaims::default();
        assert_eq!(claims.count(), None);
        claims.are(2);
        assert_eq!(claims.count(), Some(2));
        claims.may_be_one_more(2);
        assert_eq!(claims.count(), Some(3));
    }
}
