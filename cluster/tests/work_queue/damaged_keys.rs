//! Keys of the work queue that are lost or damaged while their items are there, on a real Valkey.

use ringpost_cluster::{
    identity::Epoch,
    script::Scripts,
    work_item::NewItem,
    work_queue::{Enqueued, Known, Leased, Retry, Swept, WorkQueue},
};

use super::{
    ROOMY,
    fixture::{self, item, keyspace, on_server, valkey},
    queue,
};

/// One item of each state; those that are leased.
async fn one_of_each(queue: &WorkQueue) -> [Leased; 2] {
    let items = ["dead", "held", "timed", "ready"].map(|id| item(id, "n1"));
    queue.enqueue(0, &items).await.unwrap();
    queue.enqueue(0, &[NewItem { delay_ms: 60_000, ..item("scheduled", "n1") }]).await.unwrap();
    let dead = queue.lease(0, 1, 1000, 60_000, 100).await.unwrap().1.remove(0);
    queue.fail(&dead.id, &dead.token, Retry::Never, "poison").await.unwrap();
    let held = queue.lease(0, 1, 60_000, 0, 100).await.unwrap().1.remove(0);
    let timed = queue.lease(0, 1, 1000, 60_000, 100).await.unwrap().1.remove(0);
    assert_eq!([&*dead.id, &*held.id, &*timed.id], ["dead", "held", "timed"]);
    [held, timed]
}

/// Keys of the queue were lost, or a script came to its end at one that was damaged: items that were in none of them were never leased again, the
/// statistics counted none, and their owners, who asked only whether they were there, left them there for ever.
#[test]
fn items_that_are_in_no_place_are_put_back_when_their_owner_asks() {
    on_server(async |server| {
        let queue = queue(server, "n1");
        one_of_each(&queue).await;
        let raw = valkey(server, Scripts::shipped());
        for key in keyspace().queue("mail", 0).iter().take(7) {
            raw.command(redis::cmd("DEL").arg(key)).await.unwrap();
        }
        assert!(queue.lease(0, 64, 1000, 60_000, 100).await.unwrap().1.is_empty());
        let ids = ["ready", "scheduled", "held", "timed", "dead"];
        let states = [Known::Waiting, Known::Waiting, Known::Leased, Known::Leased, Known::Dead];
        for _ in 0..2 {
            assert_eq!(queue.known(0, &ids).await.unwrap().1, states);
        }
        let stats = queue.stats().await.unwrap();
        assert_eq!((stats.pending, stats.processing, stats.failed), (2, 2, 1));
        assert_eq!(queue.recover(0, 0).await.unwrap(), Swept { waiting: 2, died: 0, dropped: 0 });
        let mut leased: Vec<String> = queue.lease(0, 64, 1000, 60_000, 100).await.unwrap().1.into_iter().map(|item| item.id).collect();
        leased.sort_unstable();
        assert_eq!(leased, ["held", "ready", "scheduled", "timed"]);
        assert_eq!(queue.requeue(0, &["dead"]).await.unwrap(), 1);
    });
}

/// Leases were written into the items first, and then the script came to its end at the key for their ends: they were leased to nobody, for ever.
#[test]
fn a_key_that_is_damaged_ends_a_script_before_it_changes_anything() {
    on_server(async |server| {
        // Where a damaged key can be put aside the call is made again.
        let without_quarantine =
            Scripts::changed(|name, source| if name == "queue_quarantine" { "return {}".to_owned() } else { source.to_owned() });
        let queue = fixture::queue(server, Box::leak(Box::new(without_quarantine)), "n1", ROOMY);
        let [held, timed] = one_of_each(&queue).await;
        queue.enqueue(0, &[item("done", "n1")]).await.unwrap();
        let (keys, raw) = (keyspace().queue("mail", 0), valkey(server, Scripts::shipped()));
        let run = async |words: &[&str]| {
            let mut command = redis::cmd(words[0]);
            for word in &words[1..] {
                command.arg(*word);
            }
            raw.command(&command).await
        };
        for key in &keys {
            let rest: Vec<&String> = keys.iter().filter(|other| *other != key).collect();
            let all = async || {
                let mut dumps = Vec::new();
                for key in &rest {
                    dumps.push(run(&["DUMP", key]).await.unwrap());
                }
                dumps
            };
            let before = all().await;
            let was_there = run(&["RENAME", key, "aside"]).await.is_ok();
            run(&["XADD", key, "*", "damage", "1"]).await.unwrap();
            assert!(queue.enqueue(0, &[item("new", "n1")]).await.is_err(), "{key}");
            assert!(queue.lease(0, 64, 1000, 60_000, 100).await.is_err(), "{key}");
            assert!(queue.lease(0, 64, 60_000, 0, 100).await.is_err(), "{key}");
            assert!(queue.complete(0, &[("timed", &timed.token, "n1"), ("held", &held.token, "n1")]).await.is_err(), "{key}");
            assert!(queue.fail("timed", &timed.token, Retry::Never, "x").await.is_err(), "{key}");
            assert!(queue.extend("held", &held.token, 1).await.is_err(), "{key}");
            assert!(queue.recover(0, 0).await.is_err(), "{key}");
            assert!(queue.withdraw(0, &["ready"]).await.is_err(), "{key}");
            assert!(queue.end(0, &["ready"]).await.is_err(), "{key}");
            assert!(queue.requeue(0, &["dead"]).await.is_err(), "{key}");
            assert!(queue.purge(0, &["dead"]).await.is_err(), "{key}");
            assert!(queue.retire(0, Epoch(1), 0, 0).await.is_err(), "{key}");
            assert!(queue.restore(0, Epoch(1), "0").await.is_err(), "{key}");
            assert!(queue.settled(0, &["ready"]).await.is_err(), "{key}");
            assert!(all().await == before, "with {key} damaged");
            run(&["DEL", key]).await.unwrap();
            if was_there {
                run(&["RENAME", "aside", key]).await.unwrap();
            }
        }
        let leased = queue.lease(0, 64, 1000, 60_000, 100).await.unwrap().1;
        assert_eq!(leased.len(), 2, "all goes on");
    });
}

/// Looks through the whole partition as a leader does, and says how many were put back.
async fn restore(queue: &WorkQueue, epoch: u64) -> Result<u64, Epoch> {
    let (mut cursor, mut restored) = ("0".to_owned(), 0);
    loop {
        let (next, count) = queue.restore(0, Epoch(epoch), &cursor).await.unwrap()?;
        (cursor, restored) = (next, restored + count);
        if cursor == "0" {
            return Ok(restored);
        }
    }
}

/// Only their owners had items put back, and one that was gone for good asked for none: its mail lay in Valkey, in no place, with nobody to find it.
#[test]
fn items_of_an_owner_that_is_gone_are_put_back_by_the_leader() {
    const MORE: usize = 1500;
    on_server(async |server| {
        one_of_each(&queue(server, "n1")).await;
        let more: Vec<NewItem> = (0..MORE).map(|number| item(&format!("n1:{number}"), "n1")).collect();
        for items in more.chunks(64) {
            queue(server, "n1").enqueue(0, items).await.unwrap();
        }
        for key in keyspace().queue("mail", 0).iter().take(7) {
            server.command(&format!("DEL {key}"));
        }
        let leader = queue(server, "n2");
        assert_eq!(leader.stats().await.unwrap().total, 0);
        assert_eq!(restore(&leader, 7).await, Ok(MORE as u64 + 5));
        let stats = leader.stats().await.unwrap();
        assert_eq!((stats.pending, stats.processing, stats.failed), (MORE as u64 + 2, 2, 1));
        assert_eq!(restore(&leader, 7).await, Ok(0), "again, and nothing is changed");
        assert_eq!(restore(&leader, 6).await, Err(Epoch(7)), "another leads");
        assert_eq!(leader.recover(0, 0).await.unwrap(), Swept { waiting: 2, died: 0, dropped: 0 });
        assert_eq!(leader.requeue(0, &["dead"]).await.unwrap(), 1);
        let mut delivered = 0;
        loop {
            let leased = leader.lease(0, 64, 1000, 60_000, 100).await.unwrap().1;
            if leased.is_empty() {
                break;
            }
            assert!(leased.iter().all(|item| item.data.as_deref() == Ok(item.id.as_bytes())), "with its content");
            delivered += leased.len();
        }
        assert_eq!(delivered, MORE + 5);
    });
}

/// A lease that lasts as long as its worker had no end once it was forgotten who lives.
#[test]
fn what_a_worker_holds_that_nobody_knows_any_more_is_taken_back() {
    on_server(async |server| {
        let queue = queue(server, "n1");
        queue.enqueue(0, &[item("held", "n1")]).await.unwrap();
        queue.lease(0, 1, 60_000, 0, 100).await.unwrap();
        server.command(&format!("DEL {}", keyspace().queue("mail", 0)[5]));
        assert_eq!(queue.recover(0, 0).await.unwrap(), Swept::default());
        assert_eq!(restore(&queue, 1).await, Ok(1));
        assert_eq!(queue.recover(0, 0).await.unwrap().waiting, 1);
    });
}

/// One key of another type than it has to be stopped its partition until an operator removed it: mail of nodes that only offer lay there.
#[test]
fn a_key_that_is_damaged_is_put_aside_and_its_partition_goes_on() {
    const ITEMS: [&str; 5] = ["ready", "scheduled", "held", "timed", "dead"];
    for (number, key) in keyspace().queue("mail", 0).iter().enumerate() {
        on_server(async |server| {
            let queue = queue(server, "n1");
            one_of_each(&queue).await;
            let generation = queue.probe(0).await.unwrap();
            server.command(&format!("DEL {key}"));
            assert!(server.command(&format!("XADD {key} * damage 1")).starts_with('$'));
            assert_eq!(queue.enqueue(0, &[item("new", "n1")]).await.unwrap().1, [Enqueued::Added], "{key}");
            assert!(server.command(&format!("TYPE {key}:quarantined")).starts_with("+stream"), "{key}: for who wants to look");
            // Whether something was lost that only owners have is told as with any loss.
            let is_lost = [7, 8, 11, 12, 14].contains(&number);
            assert_eq!(queue.probe(0).await.unwrap() != generation, is_lost, "{key}");
            restore(&queue, 1).await.unwrap();
            queue.recover(0, 0).await.unwrap();
            let mut leased = queue.lease(0, 64, 1000, 60_000, 100).await.unwrap().1;
            assert!(leased.iter().any(|item| item.id == "new"), "{key}");
            // The owner asks, and offers again what is not there.
            for (id, known) in ITEMS.iter().zip(queue.known(0, &ITEMS).await.unwrap().1) {
                if known == Known::Unknown {
                    assert!([7, 8].contains(&number), "{key}: {id}");
                    assert_eq!(queue.enqueue(0, &[item(id, "n1")]).await.unwrap().1, [Enqueued::Added]);
                }
            }
            leased.extend(queue.lease(0, 64, 1000, 60_000, 100).await.unwrap().1);
            assert!(leased.iter().any(|item| item.id == "ready" && item.data.is_ok()), "{key}");
            assert_eq!(queue.stats().await.unwrap().counters["quarantined"], 1, "{key}");
        });
    }
}

/// An item that waits was scheduled as well by a trace of a lease of it, and leased twice.
#[test]
fn a_trace_of_a_lease_schedules_nothing_that_waits() {
    on_server(async |server| {
        let queue = queue(server, "n1");
        let (keys, raw) = (keyspace().queue("mail", 0), valkey(server, Scripts::shipped()));
        let timed = &keys[4];
        queue.enqueue(0, &[item("ready", "n1")]).await.unwrap();
        raw.command(redis::cmd("ZADD").arg(timed).arg(1).arg("ready")).await.unwrap();
        assert_eq!(queue.recover(0, 0).await.unwrap(), Swept { waiting: 0, died: 0, dropped: 0 });
        assert_eq!(queue.stats().await.unwrap().pending, 1);
        assert_eq!(raw.command(redis::cmd("ZCARD").arg(timed)).await.unwrap(), redis::Value::Int(0));
    });
}
