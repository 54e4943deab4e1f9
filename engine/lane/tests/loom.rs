//! Every interleaving of small cases, by loom.
//!
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release -p ringpost-lane --test loom`
#![cfg(loom)]

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Wake, Waker};

use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread::{self, Thread};
use ringpost_lane::{Endpoint, Full, Incoming, LaneSettings, ShardId, bell, lane, mesh};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread, asleep between polls: a wake that is lost is a deadlock, which loom reports.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(std::sync::Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        thread::park();
    }
}

/// `preemptions` bounds how often a thread is interrupted where it could go on; None: no bound.
fn model(preemptions: Option<usize>, case: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(case);
}

#[test]
fn a_ring_before_or_after_the_wait_is_heard() {
    model(None, || {
        let (bell, mut listener) = bell();
        let ringer = thread::spawn(move || bell.ring());
        block_on(listener.wait());
        ringer.join().unwrap();
    });
}

#[test]
fn what_each_of_two_ringers_wrote_is_seen_after_the_ring() {
    model(Some(3), || {
        let (bell, mut listener) = bell();
        let written = Arc::new(AtomicUsize::new(0));
        let ringers = [1, 2].map(|bit| {
            let (bell, written) = (bell.clone(), written.clone());
            thread::spawn(move || {
                written.fetch_or(bit, Ordering::Relaxed);
                bell.ring();
            })
        });
        block_on(async {
            while written.load(Ordering::Relaxed) != 3 {
                listener.wait().await;
            }
        });
        for ringer in ringers {
            ringer.join().unwrap();
        }
    });
}

#[test]
fn a_listener_may_leave_while_it_is_rung() {
    model(None, || {
        let (bell, mut listener) = bell();
        let ringer = thread::spawn(move || bell.ring());
        let waker = Waker::noop();
        let _ = listener.poll_ring(&mut Context::from_waker(waker));
        // A second poll takes the waker back, or meets the ringer, or the ring; a third registers after the ringer has left.
        let _ = listener.poll_ring(&mut Context::from_waker(waker));
        let _ = listener.poll_ring(&mut Context::from_waker(waker));
        drop(listener);
        ringer.join().unwrap();
    });
}

/// Sends `count` numbers through a lane of `slots`, waiting for room, and receives them in order.
fn pass(slots: usize, count: usize) {
    let (receiver_bell, mut receiver_listener) = bell();
    let (sender_bell, mut sender_listener) = bell();
    let (mut sender, mut receiver) = lane::<usize>(slots, receiver_bell, sender_bell);
    let producer = thread::spawn(move || {
        block_on(async move {
            for number in 0..count {
                let mut item = number;
                while let Err(Full(back)) = sender.try_send(item) {
                    item = back;
                    sender_listener.wait().await;
                }
            }
        });
    });
    block_on(async {
        for number in 0..count {
            assert_eq!(receiver.recv(&mut receiver_listener).await, Some(number));
        }
        assert_eq!(receiver.recv(&mut receiver_listener).await, None);
    });
    producer.join().unwrap();
}

#[test]
fn items_pass_in_order_through_one_slot() {
    model(Some(2), || pass(1, 3));
}

#[test]
fn items_pass_in_order_through_two_slots() {
    model(Some(2), || pass(2, 4));
}

#[test]
fn a_lane_dropped_on_both_sides_drops_each_item_once() {
    model(None, || {
        let (bell, _listener) = bell();
        let (mut sender, mut receiver) = lane::<Arc<()>>(2, bell.clone(), bell);
        let item = Arc::new(());
        let copy = item.clone();
        let producer = thread::spawn(move || {
            let _ = sender.push(copy.clone());
            let _ = sender.push(copy);
        });
        drop(receiver.pop());
        drop(receiver);
        producer.join().unwrap();
        assert_eq!(Arc::strong_count(&item), 1);
    });
}

/// Sends `count` requests and is done when each has its reply and as many requests of the peer were replied to.
async fn exchange(mut endpoint: Endpoint<usize, usize>, peer: ShardId, count: usize) {
    let (mut sent, mut replies, mut answered) = (0, 0, 0);
    let is_done = |replies, answered, endpoint: &Endpoint<usize, usize>| replies == count && answered == count && endpoint.backlog() == 0;
    while !is_done(replies, answered, &endpoint) {
        while sent < count
            && let Ok(permit) = endpoint.reserve(peer)
        {
            endpoint.send(permit, sent);
            sent += 1;
        }
        while let Some((from, incoming)) = endpoint.receive() {
            assert_eq!(from, peer);
            match incoming {
                Incoming::Request(number, credit) => {
                    assert_eq!(number, answered);
                    answered += 1;
                    endpoint.reply(credit, number);
                }
                Incoming::Reply(number) => {
                    assert_eq!(number, replies);
                    replies += 1;
                }
            }
        }
        endpoint.flush();
        if !is_done(replies, answered, &endpoint) {
            endpoint.wait().await;
        }
    }
}

/// Two shards open the way to each other at once and fill both directions of lanes with one slot.
fn two_shards(window: u32, count: usize) {
    let mut endpoints = mesh(2, LaneSettings { slots: 1, window }).into_iter();
    let (first, second) = (endpoints.next().unwrap(), endpoints.next().unwrap());
    let other = thread::spawn(move || block_on(exchange(second, ShardId(0), count)));
    block_on(exchange(first, ShardId(1), count));
    other.join().unwrap();
}

#[test]
fn two_shards_that_speak_at_once_share_one_pair_of_lanes() {
    model(Some(2), || two_shards(1, 1));
}

#[test]
fn two_full_directions_do_not_deadlock() {
    model(Some(1), || two_shards(2, 2));
}
