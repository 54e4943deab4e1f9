//! Random operations beside a simple model, with a printed seed.
#![cfg(not(loom))]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use ringpost_lane::{Endpoint, Full, Incoming, LaneSettings, MeshCredit, MeshPermit, Refusal, ShardId, bell, lane, mailbox, mesh};

/// A small generator (xorshift), so that a seed says everything.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        println!("seed {seed:#x}");
        Random(seed)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Wakes {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn a_lane_is_a_bounded_queue() {
    let mut random = Random::new(0x1a0e_0001);
    for round in 0..200 {
        let slots = 1 << random.below(5);
        let (receiver_bell, mut receiver_listener) = bell();
        let (sender_bell, mut sender_listener) = bell();
        let (mut sender, mut receiver) = lane::<Box<usize>>(slots, receiver_bell, sender_bell);
        let mut model = VecDeque::new();
        // Items taken whose slots the sender may not know of yet.
        let mut unreleased = 0;
        let mut fulls = 0;
        for number in 0..random.below(1000) {
            match random.below(8) {
                0..=3 => match sender.push(Box::new(number)) {
                    Ok(()) => {
                        model.push_back(number);
                        assert!(model.len() <= slots, "round {round}");
                    }
                    Err(Full(item)) => {
                        assert_eq!(*item, number);
                        assert!(model.len() + unreleased >= slots, "round {round}: refused with room");
                        fulls += 1;
                    }
                },
                4..=6 => {
                    let popped = receiver.pop().map(|item| *item);
                    assert_eq!(popped, model.pop_front(), "round {round}");
                    unreleased = if popped.is_some() { unreleased + 1 } else { 0 };
                }
                _ => {
                    receiver.release();
                    unreleased = 0;
                    assert!(sender.has_room(slots - model.len()), "round {round}");
                }
            }
        }
        assert_eq!(sender.full_total(), fulls);
        let mut context = Context::from_waker(Waker::noop());
        let _ = (receiver_listener.poll_ring(&mut context), sender_listener.poll_ring(&mut context));
        drop(sender);
        assert_eq!(receiver.is_finished(), model.is_empty());
        while let Some(item) = receiver.pop() {
            assert_eq!(Some(*item), model.pop_front());
        }
        assert!(model.is_empty() && receiver.is_finished());
        assert!(receiver_listener.poll_ring(&mut context).is_ready(), "the end rings");
    }
}

#[test]
fn items_nobody_took_are_dropped_with_the_lane() {
    let item = Arc::new(());
    let (bell, _listener) = bell();
    let (mut sender, mut receiver) = lane::<Arc<()>>(4, bell.clone(), bell);
    for _ in 0..4 {
        sender.push(item.clone()).unwrap();
    }
    drop(receiver.pop());
    assert_eq!(Arc::strong_count(&item), 4);
    drop(receiver);
    assert!(sender.is_closed());
    drop(sender);
    assert_eq!(Arc::strong_count(&item), 1);
}

#[test]
fn a_batch_wakes_once() {
    let (receiver_bell, mut listener) = bell();
    let (sender_bell, _sender_listener) = bell();
    let (mut sender, mut receiver) = lane::<u32>(64, receiver_bell, sender_bell);
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    let mut context = Context::from_waker(&waker);
    assert!(receiver.poll_recv(&mut listener, &mut context).is_pending());
    // A second poll without a ring keeps the registration.
    assert!(receiver.poll_recv(&mut listener, &mut context).is_pending());
    for number in 0..32 {
        sender.push(number).unwrap();
    }
    assert_eq!(wakes.count(), 0);
    sender.flush();
    sender.flush();
    assert_eq!(wakes.count(), 1);
    for number in 0..32 {
        assert_eq!(receiver.poll_recv(&mut listener, &mut context), Poll::Ready(Some(number)));
        // The receiver is awake: a further item wakes nobody.
        sender.try_send(number + 32).unwrap();
    }
    assert_eq!(wakes.count(), 1);
}

#[test]
fn a_sender_that_found_the_lane_full_is_woken_when_there_is_room() {
    let (receiver_bell, _receiver_listener) = bell();
    let (sender_bell, mut listener) = bell();
    let (mut sender, mut receiver) = lane::<u32>(4, receiver_bell, sender_bell);
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    let mut context = Context::from_waker(&waker);
    for number in 0..4 {
        sender.push(number).unwrap();
    }
    assert!(listener.poll_ring(&mut context).is_pending());
    receiver.pop();
    receiver.release();
    assert_eq!(wakes.count(), 0, "nobody asked for room");
    sender.push(4).unwrap();
    assert_eq!(sender.push(5), Err(Full(5)));
    while receiver.pop().is_some() {}
    assert_eq!(wakes.count(), 1);
    assert!(listener.poll_ring(&mut context).is_ready());
    assert_eq!(sender.push(5), Ok(()));
}

#[test]
fn a_mailbox_is_a_bounded_queue_with_bells() {
    let (receiver_bell, mut receiver_listener) = bell();
    let (sender_bell, mut sender_listener) = bell();
    let (sender, mut receiver) = mailbox::<u32>(2, receiver_bell, sender_bell);
    let other = sender.clone();
    let mut context = Context::from_waker(Waker::noop());
    assert!(receiver.poll_recv(&mut receiver_listener, &mut context).is_pending());
    sender.try_send(1).unwrap();
    other.try_send(2).unwrap();
    assert_eq!(sender.try_send(3), Err(Full(3)));
    assert_eq!(sender.full_total(), 1);
    assert!(sender_listener.poll_ring(&mut context).is_pending());
    assert_eq!(receiver.poll_recv(&mut receiver_listener, &mut context), Poll::Ready(Some(1)));
    assert!(sender_listener.poll_ring(&mut context).is_ready());
    sender.try_send(3).unwrap();
    drop(sender);
    assert_eq!(receiver.pop(), Some(2));
    assert!(!receiver.is_finished());
    drop(other);
    assert_eq!(receiver.poll_recv(&mut receiver_listener, &mut context), Poll::Ready(Some(3)));
    assert_eq!(receiver.poll_recv(&mut receiver_listener, &mut context), Poll::Ready(None));
}

/// One shard of the model: what it still owes, and what it waits for.
struct Shard {
    endpoint: Endpoint<(ShardId, u64), u64>,
    credits: Vec<(u64, MeshCredit)>,
    /// Reserved, and neither sent nor cancelled.
    permits: Vec<MeshPermit>,
    /// By peer: requests without a reply, and the next number.
    open: Vec<VecDeque<u64>>,
    next: Vec<u64>,
    /// By peer: requests received, which come in order.
    seen: Vec<u64>,
}

impl Shard {
    fn reserve(&mut self, peer: ShardId, window: u32) {
        let open = self.open[usize::from(peer.0)].len() + self.permits.iter().filter(|permit| permit.peer() == peer).count();
        match self.endpoint.reserve(peer) {
            Ok(permit) => {
                assert!(open < window as usize);
                self.permits.push(permit);
            }
            Err(Refusal::WindowFull) => assert_eq!(open, window as usize),
            Err(Refusal::LaneFull) => {}
            Err(Refusal::Closed) => panic!("nobody is gone"),
        }
    }

    fn send(&mut self, random: &mut Random) {
        if self.permits.is_empty() {
            return;
        }
        let permit = self.permits.swap_remove(random.below(self.permits.len()));
        let place = usize::from(permit.peer().0);
        let number = self.next[place];
        self.endpoint.send(permit, (self.endpoint.id(), number));
        self.next[place] += 1;
        self.open[place].push_back(number);
    }

    fn receive(&mut self) -> bool {
        let Some((peer, incoming)) = self.endpoint.receive() else { return false };
        let place = usize::from(peer.0);
        match incoming {
            Incoming::Request((from, number), credit) => {
                assert_eq!((from, number), (peer, self.seen[place]));
                assert_eq!(credit.peer(), peer);
                self.seen[place] += 1;
                self.credits.push((number, credit));
            }
            Incoming::Reply(number) => {
                let at = self.open[place].iter().position(|open| *open == number);
                self.open[place].remove(at.expect("a reply belongs to an open request"));
            }
        }
        true
    }

    fn reply(&mut self, random: &mut Random) {
        if !self.credits.is_empty() {
            let (number, credit) = self.credits.swap_remove(random.below(self.credits.len()));
            self.endpoint.reply(credit, number);
        }
    }
}

#[test]
fn every_request_has_one_reply_whatever_is_full() {
    let mut random = Random::new(0x1a0e_0002);
    for round in 0..100 {
        let count = 2 + random.below(4);
        let settings = LaneSettings { slots: 1 << random.below(4), window: 1 + random.below(20) as u32 };
        let shard = |endpoint| Shard {
            endpoint,
            credits: Vec::new(),
            permits: Vec::new(),
            open: vec![VecDeque::new(); count],
            next: vec![0; count],
            seen: vec![0; count],
        };
        let mut shards: Vec<Shard> = mesh(count, settings).into_iter().map(shard).collect();
        let mut cancelled = 0;
        for _ in 0..2000 {
            let at = random.below(count);
            let peer = ShardId(((at + 1 + random.below(count - 1)) % count) as u16);
            let shard = &mut shards[at];
            match random.below(12) {
                0..=2 => shard.reserve(peer, settings.window),
                3..=5 => shard.send(&mut random),
                6..=7 => drop(shard.receive()),
                8..=9 => shard.reply(&mut random),
                10 => shard.endpoint.flush(),
                _ => {
                    if let Some(permit) = shard.permits.pop() {
                        shard.endpoint.cancel(permit);
                        cancelled += 1;
                    }
                }
            }
        }
        assert!(cancelled > 0);
        // In the end everybody reads and replies, and nothing is left anywhere.
        for _ in 0..10_000 {
            for shard in &mut shards {
                while shard.receive() {}
                shard.send(&mut random);
                shard.reply(&mut random);
                shard.endpoint.flush();
            }
        }
        for shard in &shards {
            assert!(shard.open.iter().all(VecDeque::is_empty), "round {round}: a reply is missing");
            assert!(shard.credits.is_empty());
            assert_eq!(shard.endpoint.backlog(), 0);
            assert!(shard.endpoint.ports().all(|(_, port)| port.open() == 0 && port.owed() == 0));
        }
        let sent: u64 = shards.iter().flat_map(|shard| &shard.next).sum();
        let seen: u64 = shards.iter().flat_map(|shard| &shard.seen).sum();
        assert!(sent > 0 && sent == seen, "round {round}: {sent} sent, {seen} seen");
    }
}

#[test]
fn two_full_directions_go_on() {
    let mut endpoints = mesh::<u32, u32>(2, LaneSettings { slots: 4, window: 64 }).into_iter();
    let mut shards = [endpoints.next().unwrap(), endpoints.next().unwrap()];
    let peers = [ShardId(1), ShardId(0)];
    // Both lanes are filled with requests.
    for (shard, peer) in shards.iter_mut().zip(peers) {
        for number in 0..4 {
            let permit = shard.reserve(peer).unwrap();
            shard.send(permit, number);
        }
        assert_eq!(shard.reserve(peer).unwrap_err(), Refusal::LaneFull);
    }
    // The first reads and replies, though nobody reads from it: its replies are not refused.
    let mut credits = Vec::new();
    while let Some((_, incoming)) = shards[0].receive() {
        let Incoming::Request(number, credit) = incoming else { panic!("nobody replied") };
        credits.push((number, credit));
    }
    for (number, credit) in credits {
        shards[0].reply(credit, number);
    }
    shards[0].flush();
    assert_eq!(shards[0].backlog(), 4);
    assert_eq!(shards[0].reserve(peers[0]).unwrap_err(), Refusal::LaneFull, "replies go first");
    // The second reads; the first has room again and is told.
    for expected in 0..4 {
        let Some((_, Incoming::Request(number, credit))) = shards[1].receive() else { panic!("four requests") };
        assert_eq!(number, expected);
        shards[1].reply(credit, number);
    }
    assert!(shards[1].receive().is_none());
    shards[1].flush();
    let mut context = Context::from_waker(Waker::noop());
    assert!(shards[0].poll_ring(&mut context).is_ready());
    assert_eq!(shards[0].backlog(), 0);
    for shard in &mut shards {
        for expected in 0..4 {
            let Some((_, Incoming::Reply(number))) = shard.receive() else { panic!("four replies") };
            assert_eq!(number, expected);
        }
        assert!(shard.receive().is_none());
    }
}

#[test]
fn shards_that_never_talk_have_no_lanes() {
    let mut endpoints = mesh::<u32, u32>(64, LaneSettings::default());
    let permit = endpoints[0].reserve(ShardId(63)).unwrap();
    endpoints[0].send(permit, 7);
    endpoints[0].flush();
    assert!(matches!(endpoints[63].receive(), Some((ShardId(0), Incoming::Request(7, _)))));
    let lanes: Vec<usize> = endpoints.iter().map(|endpoint| endpoint.ports().count()).collect();
    assert_eq!(lanes.iter().sum::<usize>(), 2);
    assert_eq!((lanes[0], lanes[63]), (1, 1));
}

#[test]
fn a_shard_that_is_gone_refuses_requests() {
    let mut endpoints = mesh::<u32, u32>(3, LaneSettings::default());
    let permit = endpoints[0].reserve(ShardId(1)).unwrap();
    endpoints[0].send(permit, 7);
    endpoints.remove(1);
    assert_eq!(endpoints[0].reserve(ShardId(1)).unwrap_err(), Refusal::Closed, "its end was not fetched");
    assert_eq!(endpoints[1].reserve(ShardId(1)).unwrap_err(), Refusal::Closed, "it never had one");
    let mut context = Context::from_waker(Waker::noop());
    assert!(endpoints[0].poll_ring(&mut context).is_ready(), "the end rings");
}
