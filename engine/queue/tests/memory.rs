//! What a queued message costs: bytes while it waits, allocations while it passes.

use allocation_counter::measure;
use ringpost_queue::{
    NewMessage, NewRecipient, Notify, Outcome, Queue, QueueId, QueueSettings, RetryPolicy, Route, Routes, Settled, Via, Work,
};

const START: u64 = 1_790_000_000_000;
const SENDER: &[u8] = b"newsletter-bounces@lists.example.org";
const RECIPIENT: &[u8] = b"some.recipient@mail.example.com";

fn queue() -> Queue {
    let route = Route {
        pattern: "*".into(),
        via: Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] },
        retry: RetryPolicy::default(),
        limits: Default::default(),
    };
    Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, START)
}

fn message(sequence: u64, now: u64) -> NewMessage<'static> {
    NewMessage {
        id: QueueId { boot: 1_790_000_000, shard: 1, sequence },
        size: 4096,
        accepted_at: now,
        expires_at: None,
        priority: 5,
        eight_bit: false,
        smtputf8: false,
        reverse_path: SENDER,
        ..NewMessage::default()
    }
}

fn enqueue(queue: &mut Queue, sequence: u64, now: u64) {
    let destination = queue.route(b"mail.example.com");
    queue.enqueue(&message(sequence, now), [NewRecipient { address: RECIPIENT, destination, notify: Notify::UNSAID }].into_iter(), now);
}

#[test]
fn a_queued_message_takes_at_most_250_bytes_and_its_addresses() {
    // Just above a power of two is the worst case of the index by id.
    const MESSAGES: u64 = (1 << 17) * 7 / 8 + 2000;
    let mut queue = queue();
    let info = measure(|| (0..MESSAGES).for_each(|sequence| enqueue(&mut queue, sequence, START)));
    let each = info.bytes_current as f64 / MESSAGES as f64 - (SENDER.len() + RECIPIENT.len()) as f64;
    eprintln!("{each:.1} bytes per message besides its addresses");
    assert!(each <= 250.0, "{each} bytes");
    assert!(info.bytes_max - info.bytes_current as u64 <= 1 << 20, "growing copies little: {info:?}");
}

#[test]
fn a_deferred_message_takes_at_most_250_bytes_its_addresses_and_its_reply() {
    const MESSAGES: u64 = 50_000;
    const REPLY: &[u8] = b"450 4.2.0 mailbox busy";
    let mut queue = queue();
    let mut record = Vec::with_capacity(4096);
    let info = measure(|| {
        for sequence in 0..MESSAGES {
            enqueue(&mut queue, sequence, START);
            let Some(Work::Attempt(dispatch)) = queue.poll(START, &mut record) else { panic!("it is ready") };
            let key = dispatch.key();
            assert_eq!(queue.settle(dispatch, &[(0, Outcome::Deferred { reply: REPLY })], START, &mut record), Settled::Outcome);
            record.clear();
            queue.recorded(key);
        }
    });
    let each = info.bytes_current as f64 / MESSAGES as f64 - (SENDER.len() + RECIPIENT.len() + REPLY.len()) as f64;
    eprintln!("{each:.1} bytes per message besides its addresses and reply");
    assert!(each <= 250.0, "{each} bytes");
}

#[test]
fn passing_messages_do_not_allocate_once_the_pools_are_warm() {
    let mut queue = queue();
    let mut record = Vec::with_capacity(4096);
    let mut sequence = 0;
    let mut pass = |messages: u64| {
        for _ in 0..messages / 8 {
            let now = START + sequence;
            for _ in 0..8 {
                enqueue(&mut queue, sequence, now);
                sequence += 1;
            }
            let mut open = [const { None }; 8];
            let mut count = 0;
            loop {
                let work = queue.poll(now, &mut record);
                if let Some(Work::Attempt(dispatch)) = work {
                    open[count] = Some(dispatch);
                    count += 1;
                    continue;
                }
                if count == 0 {
                    break;
                }
                for dispatch in open[..count].iter_mut().filter_map(Option::take) {
                    let key = dispatch.key();
                    let number = queue.recipients(&dispatch).next().unwrap().0;
                    let settled = queue.settle(dispatch, &[(number, Outcome::Delivered { reply: b"250 2.0.0 ok" })], now, &mut record);
                    assert_eq!(settled, Settled::Done);
                    queue.recorded(key);
                }
                count = 0;
            }
            queue.next_due(now);
        }
    };
    pass(4096);
    let info = measure(|| pass(100_000));
    assert_eq!(info.count_total, 0, "{info:?}");
}
