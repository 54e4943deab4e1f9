//! Leases that ran out, and when what they held is due again.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ringpost_cluster::work_queue::Swept;

use super::{
    fixture::{item, keyspace, on_server},
    queue,
};

const ITEMS: usize = 64;
const JITTER_MS: u64 = 500;

/// Q10: what ran out at one moment comes back one after another, not as a herd.
#[test]
fn what_is_taken_back_at_once_is_due_at_different_times_within_the_jitter() {
    on_server(async |server| {
        let (owner, worker) = (queue(server, "n1"), queue(server, "n2"));
        let items: Vec<_> = (0..ITEMS).map(|number| item(&format!("w{number}"), "n1")).collect();
        owner.enqueue(0, &items).await.unwrap();
        let leased = worker.lease(0, ITEMS, 1, 1, 1 << 20).await.unwrap().1;
        assert_eq!(leased.len(), ITEMS);
        let now_ms = || {
            let time = server.command("TIME");
            let numbers: Vec<u64> = time.split("\r\n").filter_map(|line| line.parse().ok()).collect();
            numbers[0] * 1000 + numbers[1] / 1000
        };
        let (began, mut before) = (Instant::now(), now_ms());
        let swept = loop {
            let swept = owner.recover(0, JITTER_MS).await.unwrap();
            if swept != Swept::default() {
                break swept;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "their leases do not end");
            before = now_ms();
        };
        let after = now_ms();
        assert_eq!(swept, Swept { waiting: ITEMS as u64, died: 0, dropped: 0 }, "they were leased by one call, and end at one moment");
        let scheduled = server.command(&format!("ZRANGE {} 0 -1 WITHSCORES", keyspace().queue("mail", 0)[2]));
        let due: Vec<u64> = scheduled.split("\r\n").filter_map(|line| line.parse().ok()).collect();
        assert_eq!(due.len(), ITEMS, "{scheduled}");
        assert!(due.iter().all(|due| (before..after + JITTER_MS).contains(due)), "{before} {after} {due:?}");
        // Half of them would do for no herd: two may meet by chance.
        let moments = BTreeSet::from_iter(&due).len();
        assert!(moments > ITEMS / 2, "{moments} moments: {due:?}");
        assert!(due.iter().max().unwrap() - due.iter().min().unwrap() > JITTER_MS / 2, "{due:?}");
    });
}
