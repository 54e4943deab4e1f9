//! Keys of the work queue that are lost or damaged while their items are there, on a real Valkey.

use ringpost_cluster::{
    script::Scripts,
    work_item::NewItem,
    work_queue::{Known, Leased, Retry, Swept, WorkQueue},
};

use super::{
    fixture::{item, keyspace, on_server, valkey},
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
        let queue = queue(server, "n1");
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
            assert!(queue.purge(0, None, 0, &["dead"]).await.is_err(), "{key}");
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
