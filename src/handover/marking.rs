//! When a node that runs writes and clears the mark that its mail may be in the cluster's queue.

use std::{
    io,
    sync::{Arc, MutexGuard, atomic::Ordering},
    time::Duration,
};

use ringpost_cluster::boot_time::BootTime;
use tracing::{error, info, warn};

use super::{
    Driver, RECONCILE_EVERY, TICK,
    offer_mark::{OfferMark, Offering},
};

/// A mark that could not be written is not tried again before: with the round that offers what was kept back, whatever else asks for it.
const AGAIN_AFTER: Duration = RECONCILE_EVERY.saturating_sub(TICK);

/// The mark of a node that runs: who has taken back what earlier runs had offered clears it, unless the node is being emptied.
#[derive(Debug)]
pub struct Marking {
    mark: OfferMark,
    is_kept: bool,
    /// It says that all mail may be in the queue, as this run or an earlier one was emptied or delivers nothing.
    drained: bool,
    /// When it could not be written last.
    failed_at: Option<BootTime>,
}

impl Marking {
    /// Not kept so far. `drained`: as in this run's [`Offering`].
    pub fn new(mark: OfferMark, drained: bool) -> Marking {
        Marking { mark, is_kept: false, drained, failed_at: None }
    }

    /// As [`OfferMark::set`]; `None`: that has failed a moment ago, and is not tried yet.
    pub fn set(&mut self, offering: &Offering, now: BootTime) -> Option<io::Result<()>> {
        if self.failed_at.is_some_and(|at| now.since(at) < AGAIN_AFTER) {
            return None;
        }
        let written = self.mark.set(&Offering { drained: self.drained, ..offering.clone() });
        self.failed_at = written.is_err().then_some(now);
        Some(written)
    }

    /// The node is being emptied: as [`OfferMark::set`], says so, and stays for this process's life.
    pub fn keep(&mut self, offering: &Offering) -> io::Result<()> {
        self.mark.set(&Offering { drained: true, ..offering.clone() })?;
        (self.is_kept, self.drained) = (true, true);
        Ok(())
    }

    /// What an earlier run offered as it was emptied is settled or taken back: the mark says so no longer, unless this one is being emptied.
    /// False: it does say so.
    pub fn drain_is_over(&mut self, offering: &Offering) -> io::Result<bool> {
        if !self.is_kept {
            self.mark.set(&Offering { drained: false, ..offering.clone() })?;
            self.drained = false;
        }
        Ok(!self.is_kept)
    }

    /// As [`OfferMark::clear`]; false: it is kept.
    pub fn clear_unless_kept(&mut self) -> io::Result<bool> {
        if !self.is_kept {
            self.mark.clear()?;
        }
        Ok(!self.is_kept)
    }
}

impl Driver {
    pub(super) fn marking(&self) -> MutexGuard<'_, Marking> {
        self.marking.lock().expect("no panic happens under this lock")
    }

    /// Before this node's mail goes into the queue, or that of others into its spool: the next start is to know that, and where. False: the spool
    /// cannot note it, and nothing may go.
    pub(super) async fn marks(self: &Arc<Self>) -> bool {
        if self.is_marked.load(Ordering::Acquire) {
            return true;
        }
        let driver = self.clone();
        let marked = tokio::task::spawn_blocking(move || driver.marking().set(&driver.offering, BootTime::now())).await;
        match marked.unwrap_or_else(|_| Some(Err(io::Error::other("given up")))) {
            Some(Ok(())) => {
                self.is_marked.store(true, Ordering::Release);
                if self.has_told_unmarked.swap(false, Ordering::Relaxed) {
                    info!(
                        "that mail is offered is noted in cluster/offers of the spool: mail goes into the cluster's queue, and is taken of others, again"
                    );
                }
            }
            Some(Err(reason)) if !self.has_told_unmarked.swap(true, Ordering::Relaxed) => {
                error!(%reason, delivers = self.node.delivers, "that mail is offered cannot be noted in cluster/offers of the spool, so none is offered and \
                    none is taken of others: let the engine's user write that file, and give the disk room. It is tried again every ten seconds; \
                    this node delivers its mail itself meanwhile where it delivers");
            }
            None | Some(Err(_)) => {}
        }
        self.is_marked.load(Ordering::Acquire)
    }

    /// Nothing of this node's mail is in the queue any more.
    pub(super) fn has_retracted(&self) {
        self.is_retracting.store(false, Ordering::Relaxed);
        match self.marking().clear_unless_kept() {
            Ok(true) => info!("nothing that this node has, or has settled, is in the cluster's queue"),
            Ok(false) => {}
            Err(reason) => warn!(%reason, "the next start looks once more for mail in the cluster's queue"),
        }
    }

    /// Nothing is in the queue any more that only a run that was emptied offers.
    pub(super) fn drain_is_over(&self) {
        match self.marking().drain_is_over(&self.offering) {
            Ok(false) => {}
            Ok(true) => info!("what this node had offered when it was emptied is settled or taken back"),
            Err(reason) => warn!(%reason, "the next start takes back once more what was offered when this node was emptied"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::handover::offer_mark::Place;

    fn offering() -> Offering {
        let place = Place { database: 0, keyspace: "ringpost:cluster".to_owned(), url: "valkey://127.0.0.1:6379".to_owned() };
        Offering { node: "n1".to_owned(), partitions: 4, named_since: 0, spread_since: Some(0), place: Some(place), drained: false }
    }

    /// It was said that it is tried each ten seconds, and it was with each mail and each lease: a disk that was full was asked for a sync each time.
    #[test]
    fn a_mark_that_cannot_be_written_is_tried_again_with_the_next_round_and_not_before() {
        let at = |ms| BootTime::after_boot(Duration::from_secs(100) + Duration::from_millis(ms));
        let folder = tempfile::tempdir().unwrap();
        let in_the_way = folder.path().join("cluster");
        fs::write(&in_the_way, "").unwrap();
        let mut marking = Marking::new(OfferMark::new(in_the_way.clone()), false);
        assert!(marking.set(&offering(), at(0)).is_some_and(|written| written.is_err()));
        fs::remove_file(&in_the_way).unwrap();
        for ms in [0, 5000, 9000] {
            assert!(marking.set(&offering(), at(ms)).is_none(), "{ms}");
        }
        assert!(marking.set(&offering(), at(10_000)).is_some_and(|written| written.is_ok()));
        assert!(marking.set(&offering(), at(10_001)).is_some_and(|written| written.is_ok()), "nothing keeps it from being looked at");
    }

    /// It was cleared while a drain began, by what had taken back an earlier run's mail: the next start would have delivered what was in the
    /// queue by then.
    #[test]
    fn a_mark_is_kept_while_the_node_is_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let mark = OfferMark::new(folder.path().join("cluster"));
        let mut marking = Marking::new(mark.clone(), false);
        mark.set(&offering()).unwrap();
        assert!(marking.clear_unless_kept().unwrap() && !mark.is_set());
        marking.keep(&offering()).unwrap();
        assert!(!marking.clear_unless_kept().unwrap() && mark.is_set(), "kept");
        // What could not be noted is not kept.
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let mut marking = Marking::new(OfferMark::new(file), false);
        assert!(marking.keep(&offering()).is_err() && !marking.is_kept);
    }

    /// The next start delivered what had been tried before the drain, as nothing said that it had been offered.
    #[test]
    fn a_mark_says_that_a_node_was_emptied_until_what_it_offered_is_settled_or_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let mark = OfferMark::new(folder.path().join("cluster"));
        let mut marking = Marking::new(mark.clone(), false);
        assert!(marking.set(&offering(), BootTime::default()).is_some_and(|written| written.is_ok()) && !mark.was_drained());
        marking.keep(&offering()).unwrap();
        // What says that mail is offered, and that an earlier drain is over, says nothing else of this one.
        assert!(marking.set(&offering(), BootTime::default()).is_some_and(|written| written.is_ok()));
        assert!(!marking.drain_is_over(&offering()).unwrap() && mark.was_drained());
        let mut next = Marking::new(mark.clone(), true);
        assert!(next.set(&offering(), BootTime::default()).is_some_and(|written| written.is_ok()) && mark.was_drained());
        assert!(next.drain_is_over(&offering()).unwrap() && !mark.was_drained() && mark.is_set());
        next.keep(&offering()).unwrap();
        assert!(mark.was_drained(), "emptied once more");
    }
}
