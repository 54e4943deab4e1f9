//! What does the queue cost per delivered message, and with a million others waiting?
//!
//! Expected from a sketch: about ten cache lines of message, group, recipient, timer and index touched in enqueue, dispatch and
//! settle: 200 to 400 ns while they are warm, perhaps three times that when each message is cold.
//! Small under `cargo test`, real under `cargo bench`.

use std::hint::black_box;
use std::time::Instant;

use ringpost_queue::{NewMessage, NewRecipient, Outcome, Queue, QueueId, QueueSettings, RetryPolicy, Route, Routes, Settled, Via, Work};

const START: u64 = 1_790_000_000_000;

fn main() {
    let real = std::env::args().any(|argument| argument == "--bench");
    let (waiting, passing) = if real { (1_000_000, 1_000_000) } else { (1000, 1000) };
    for waiting in [0, waiting] {
        let route = |pattern: &str| Route {
            pattern: pattern.into(),
            via: Via::Smarthost { hosts: vec!["192.0.2.1:25".into()] },
            retry: RetryPolicy::default(),
            limits: Default::default(),
        };
        let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route("*"), route("slow.test")]).unwrap(), 1, START);
        let mut record = Vec::new();
        let slow = queue.route(b"slow.test");
        let begin = Instant::now();
        queue.pause(slow, true, START);
        for sequence in 0..waiting {
            enqueue(&mut queue, 1, sequence, "x@slow.test", START);
        }
        let filled = begin.elapsed();
        let mut rounds = Vec::with_capacity(passing as usize / 100);
        let mut checksum = 0u64;
        for round in 0..passing / 100 {
            let now = START + round;
            let begin = Instant::now();
            for n in 0..100 {
                enqueue(&mut queue, 2, round * 100 + n, "recipient@fast.test", now);
            }
            let mut open = Vec::with_capacity(32);
            loop {
                match queue.poll(now, &mut record) {
                    Some(Work::Attempt(dispatch)) => open.push(dispatch),
                    Some(Work::Expired(_)) => unreachable!("nothing is that old"),
                    None if open.is_empty() => break,
                    None => {
                        for dispatch in open.drain(..) {
                            let key = dispatch.key();
                            checksum =
                                checksum.wrapping_mul(31).wrapping_add(queue.envelope(key).map_or(0, |envelope| envelope.id.sequence));
                            let settled = queue.settle(dispatch, &[(0, Outcome::Delivered { reply: b"250 2.0.0 ok" })], now, &mut record);
                            assert_eq!(settled, Settled::Done);
                            queue.recorded(key);
                        }
                    }
                }
            }
            black_box(queue.next_due(now));
            rounds.push(begin.elapsed().as_nanos() as u64 / 100);
        }
        rounds.sort_unstable();
        println!(
            "waiting {waiting}: filled at {} ns each; enqueue + dispatch + settle: median {} ns, p99 {} ns a message; checksum {checksum:016x}",
            filled.as_nanos() as u64 / waiting.max(1),
            rounds[rounds.len() / 2],
            rounds[rounds.len() * 99 / 100],
        );
    }
}

fn enqueue(queue: &mut Queue, boot: u32, sequence: u64, address: &str, now: u64) {
    let message = NewMessage {
        id: QueueId { boot, shard: 0, sequence },
        location: Default::default(),
        size: 4096,
        accepted_at: now,
        expires_at: None,
        priority: 5,
        eight_bit: false,
        smtputf8: false,
        reverse_path: b"sender@example.org",
    };
    let destination = queue.route(address.split_once('@').map_or("", |parts| parts.1).as_bytes());
    queue.enqueue(&message, [NewRecipient { address: address.as_bytes(), destination }].into_iter(), now);
}
