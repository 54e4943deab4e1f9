//! The line of those who wait for room in the batch that gathers: first come, first served.
//!
//! A batch holds a few large records, and a thousand sessions may have one to write. Were all of them woken by each completion, most would
//! find none and wait again, which costs more than writing does; and whoever comes by at the right moment would go before those who wait. So
//! only as many are called as there is room for, in their order, and who comes by while others wait stands behind them.
//!
//! This knows nothing of the log: the [`Committer`](crate::committer::Committer) says when there may be room, and how much.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    task::{Context, Poll, Waker},
};

struct Standing {
    waker: Waker,
    bytes: u32,
}

/// Where a writer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// It has not waited yet.
    Outside,
    /// In line, or called since and not come by.
    Standing(u64),
    Called(u64),
}

/// What the writer of one record holds of the line. It is to be given back with [`RoomLine::leave`].
///
/// Each session's task has one: 0, or its number from 1 on, doubled, and 1 more once it was called.
#[derive(Default, Debug)]
pub(crate) struct Place(u64);

impl Place {
    fn at(&self) -> At {
        match (self.0 / 2, self.0 % 2) {
            (0, _) => At::Outside,
            (number, 0) => At::Standing(number),
            (number, _) => At::Called(number),
        }
    }

    fn set(&mut self, at: At) {
        self.0 = match at {
            At::Outside => 0,
            At::Standing(number) => number * 2,
            At::Called(number) => number * 2 + 1,
        };
    }
}

/// The line. Numbers are drawn once: who was called and found no room stands where it stood.
#[derive(Default)]
pub(crate) struct RoomLine {
    standing: RefCell<BTreeMap<u64, Standing>>,
    drawn: Cell<u64>,
    /// Called, and neither gone nor back in line.
    called: Cell<usize>,
    /// Somebody found no room, and nothing has made any since.
    is_full: Cell<bool>,
    is_closed: Cell<bool>,
}

impl RoomLine {
    /// May it look for room? Whoever was called may, and who has nobody before it.
    pub(crate) fn may_look(&self, place: &Place) -> bool {
        matches!(place.at(), At::Called(_)) || self.is_closed.get() || (self.called.get() == 0 && self.standing.borrow().is_empty())
    }

    /// It looked, and found none: nobody is called until [`RoomLine::room_was_made`].
    pub(crate) fn found_none(&self) {
        self.is_full.set(true);
    }

    /// Something happened that may have made room.
    pub(crate) fn room_was_made(&self) {
        self.is_full.set(false);
    }

    /// Stands in line for `bytes`, at the end or where it stood before, and is ready when it was called. Ready at once when the line is closed.
    pub(crate) fn poll_called(&self, place: &mut Place, bytes: u32, cx: &Context<'_>) -> Poll<()> {
        if self.is_closed.get() {
            return Poll::Ready(());
        }
        let mut standing = self.standing.borrow_mut();
        let number = match place.at() {
            At::Outside => {
                self.drawn.set(self.drawn.get() + 1);
                self.drawn.get()
            }
            At::Called(number) => {
                self.called.set(self.called.get() - 1);
                number
            }
            At::Standing(number) => {
                return match standing.get_mut(&number) {
                    Some(waiting) => {
                        waiting.waker.clone_from(cx.waker());
                        Poll::Pending
                    }
                    None => {
                        place.set(At::Called(number));
                        Poll::Ready(())
                    }
                };
            }
        };
        place.set(At::Standing(number));
        standing.insert(number, Standing { waker: cx.waker().clone(), bytes });
        Poll::Pending
    }

    /// It has written its record, or gave up.
    pub(crate) fn leave(&self, place: &mut Place) {
        match std::mem::take(place).at() {
            At::Outside => {}
            At::Standing(number) if self.standing.borrow_mut().remove(&number).is_some() => {}
            At::Standing(_) | At::Called(_) => self.called.set(self.called.get() - 1),
        }
    }

    /// Is anybody to be called now? Not while those who were called have still to come by: they may take all there is.
    pub(crate) fn wants_call(&self) -> bool {
        self.called.get() == 0 && !self.is_full.get() && !self.standing.borrow().is_empty()
    }

    /// Calls the first, and with it as many as want no more than `left` bytes together. What is left is an estimate: who finds no room
    /// stands in line again.
    pub(crate) fn call(&self, left: usize) {
        if !self.wants_call() {
            return;
        }
        let (mut standing, mut wanted) = (self.standing.borrow_mut(), 0);
        while let Some(first) = standing.first_entry() {
            wanted += first.get().bytes as usize;
            if self.called.get() > 0 && wanted > left {
                return;
            }
            self.called.set(self.called.get() + 1);
            first.remove().waker.wake();
        }
    }

    /// There will be no room again: whoever waits, or comes, is told so by the log.
    pub(crate) fn close(&self) {
        self.is_closed.set(true);
        let standing = std::mem::take(&mut *self.standing.borrow_mut());
        self.called.set(self.called.get() + standing.len());
        standing.into_values().for_each(|standing| standing.waker.wake());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use super::*;

    /// Writers of 100 bytes each that count how often they were woken.
    struct Writers {
        line: RoomLine,
        places: Vec<Place>,
        woken: Vec<Arc<Count>>,
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    impl Writers {
        fn new(count: usize) -> Self {
            let woken = (0..count).map(|_| Arc::default()).collect();
            Writers { line: RoomLine::default(), places: (0..count).map(|_| Place::default()).collect(), woken }
        }

        fn is_called(&mut self, who: usize) -> bool {
            let waker = Waker::from(self.woken[who].clone());
            self.line.poll_called(&mut self.places[who], 100, &Context::from_waker(&waker)).is_ready()
        }

        fn stand(&mut self, who: impl IntoIterator<Item = usize>) {
            who.into_iter().for_each(|who| assert!(!self.is_called(who)));
        }

        fn leave(&mut self, who: usize) {
            self.line.leave(&mut self.places[who]);
        }

        fn woken(&self) -> Vec<usize> {
            self.woken.iter().map(|count| count.0.swap(0, Relaxed)).collect()
        }
    }

    #[test]
    fn as_many_are_called_as_there_is_room_for_in_their_order() {
        let mut writers = Writers::new(5);
        writers.stand([3, 0, 1, 2, 4]);
        writers.line.call(250);
        assert_eq!(writers.woken(), [1, 0, 0, 1, 0]);
        writers.line.call(1000);
        assert_eq!(writers.woken(), [0; 5], "who was called comes by first");
        assert!(writers.is_called(3) && writers.is_called(0));
        writers.leave(3);
        assert!(!writers.line.wants_call());
        writers.leave(0);
        assert!(writers.line.wants_call());
        writers.line.call(0);
        assert_eq!(writers.woken(), [0, 1, 0, 0, 0], "the first always: the room that is left is an estimate");
    }

    #[test]
    fn who_comes_by_stands_behind_those_who_wait() {
        let mut writers = Writers::new(3);
        assert!(writers.line.may_look(&writers.places[0]), "nobody waits");
        writers.stand([0]);
        assert!(!writers.line.may_look(&writers.places[1]));
        writers.line.call(1000);
        assert!(!writers.line.may_look(&writers.places[1]), "the one that was called has not come by yet");
        assert!(writers.is_called(0) && writers.line.may_look(&writers.places[0]));
        writers.stand([1]);
        writers.leave(0);
        assert!(!writers.line.may_look(&writers.places[2]));
    }

    #[test]
    fn who_finds_none_stands_where_it_stood_and_nobody_is_called_until_there_is_room() {
        let mut writers = Writers::new(4);
        writers.stand([0, 1, 2]);
        writers.line.call(200);
        assert!(writers.is_called(0) && writers.is_called(1));
        writers.line.found_none();
        writers.stand([0]);
        writers.line.found_none();
        writers.stand([1, 3]);
        assert!(!writers.line.wants_call());
        writers.woken();
        writers.line.room_was_made();
        writers.line.call(200);
        assert_eq!(writers.woken(), [1, 1, 0, 0]);
    }

    #[test]
    fn who_gives_up_holds_up_nobody() {
        let mut writers = Writers::new(4);
        writers.stand([0, 1, 2, 3]);
        writers.leave(1);
        writers.line.call(100);
        writers.woken();
        writers.leave(0);
        assert!(writers.line.wants_call(), "it was called and went without coming by");
        writers.line.call(100);
        assert_eq!(writers.woken(), [0, 0, 1, 0]);
        assert!(writers.is_called(2));
        writers.leave(2);
        writers.leave(3);
        assert!(writers.line.may_look(&Place::default()) && !writers.line.wants_call());
    }

    #[test]
    fn a_closed_line_lets_all_go() {
        let mut writers = Writers::new(3);
        writers.stand([0, 1]);
        writers.line.call(100);
        writers.line.close();
        assert_eq!(writers.woken(), [1, 1, 0]);
        for who in 0..3 {
            assert!(writers.is_called(who) && writers.line.may_look(&writers.places[who]));
            writers.leave(who);
        }
        assert!(!writers.line.wants_call());
    }
}
