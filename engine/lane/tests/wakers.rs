//! The executors of the shards and of the coordinator, asleep, are reached from other threads.
#![cfg(not(loom))]

use std::thread;

use glommio::{LocalExecutorBuilder, Placement};
use ringpost_lane::{Endpoint, Incoming, LaneSettings, ShardId, bell, mailbox, mesh};
use ringpost_ring::{PREEMPT_TIMER, Ring, RingConfig};

/// Items of each direction; small, as each may be a sleep and a wake.
const COUNT: u32 = 2_000;

/// Runs a shard of `work` on a thread of its own, as the engine does.
fn shard<F: Future<Output = ()> + 'static>(work: impl FnOnce(Ring) -> F + Send + 'static) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let executor = LocalExecutorBuilder::new(Placement::Unbound).preempt_timer(PREEMPT_TIMER).make().expect("io_uring is here");
        executor.run(async {
            let ring = Ring::start(RingConfig::default()).expect("io_uring is here");
            ring.watch(work(ring.clone())).await;
            ring.shutdown();
        });
    })
}

/// Asks the peer one question after the other, and answers the peer's.
async fn talk(ring: Ring, mut endpoint: Endpoint<u32, u32>, peer: ShardId) {
    let (mut sent, mut replies, mut answered) = (0, 0, 0);
    while replies < COUNT || answered < COUNT || endpoint.backlog() > 0 {
        // One at a time: each question finds the other asleep or about to be.
        if sent == replies
            && sent < COUNT
            && let Ok(permit) = endpoint.reserve(peer)
        {
            endpoint.send(permit, sent);
            sent += 1;
        }
        let mut received = 0;
        while let Some((_, incoming)) = endpoint.receive() {
            received += 1;
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
        if received == 0 {
            ring.hear(endpoint.wait()).await;
        }
    }
}

#[test]
fn sleeping_shards_wake_each_other() {
    let mut endpoints = mesh(2, LaneSettings::default()).into_iter();
    let (first, second) = (endpoints.next().unwrap(), endpoints.next().unwrap());
    let threads = [shard(move |ring| talk(ring, first, ShardId(1))), shard(move |ring| talk(ring, second, ShardId(0)))];
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_sleeping_shard_and_the_coordinator_wake_each_other() {
    let (shard_bell, mut shard_listener) = bell();
    let (coordinator_bell, mut coordinator_listener) = bell();
    let (to_shard, mut from_coordinator) = mailbox::<u32>(4, shard_bell.clone(), coordinator_bell.clone());
    let (to_coordinator, mut from_shard) = mailbox::<u32>(4, coordinator_bell, shard_bell);
    let shard = shard(move |ring| async move {
        while let Some(number) = ring.hear(from_coordinator.recv(&mut shard_listener)).await {
            to_coordinator.try_send(number).unwrap();
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async move {
        for number in 0..COUNT {
            to_shard.try_send(number).unwrap();
            assert_eq!(from_shard.recv(&mut coordinator_listener).await, Some(number));
        }
        drop(to_shard);
        assert_eq!(from_shard.recv(&mut coordinator_listener).await, None);
    });
    shard.join().unwrap();
}
