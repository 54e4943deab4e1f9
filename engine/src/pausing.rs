//! Destinations are paused and resumed on a shard: a bounded number at a time between other tasks.

use std::rc::Rc;

use ringpost_queue::Pauses;

use crate::shard::Shard;

/// Destinations looked at before other tasks get their turn: each takes a quarter of a microsecond, and some microseconds where it changes.
const DESTINATIONS_PER_TURN: usize = 1024;

/// From now on these are paused and nothing else is. When it returns no attempt begins at what is paused.
pub(crate) async fn pause(shard: &Rc<Shard>, pauses: Pauses) {
    // What is made from here on is paused from its start.
    shard.queue.borrow_mut().set_pauses(pauses);
    let mut done = 0;
    loop {
        {
            let (mut queue, now) = (shard.queue.borrow_mut(), shard.now_ms());
            queue.follow_pauses(done..done + DESTINATIONS_PER_TURN, now);
            done += DESTINATIONS_PER_TURN;
            if done >= queue.destination_slots() {
                break;
            }
        }
        shard.delivery.kick();
        shard.ring.yield_now().await;
    }
    shard.ungreeted.call(|_| true);
    shard.delivery.kick();
}
