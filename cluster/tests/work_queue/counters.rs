//! Counts of the work queue that are no numbers.

use ringpost_cluster::{
    identity::Epoch,
    work_queue::{Completed, Ending, Enqueued, Failed, Retry, Swept},
};

use super::{
    fixture::{item, keyspace, on_server},
    queue,
};

const COUNTS: [&str; 16] = [
    "sequence",
    "turns",
    "enqueued",
    "leased",
    "completed",
    "stale",
    "failed",
    "died",
    "recovered",
    "withdrawn",
    "purged",
    "damaged",
    "unproven",
    "dead_full",
    "heard_dropped",
    "outcomes_dropped",
];

/// The name of the last damaged item stood among the counts, where a node of a version that did not know it took it for a count that was damaged.
#[test]
fn the_name_of_a_damaged_item_is_none_of_the_counts() {
    on_server(async |server| {
        let queue = queue(server, "n1");
        let keys = keyspace().queue("mail", 0);
        let (metas, counts) = (&keys[7], &keys[9]);
        let last = async || queue.stats().await.unwrap().damaged_last;
        let is_a_count = || server.command(&format!("HEXISTS {counts} damaged_last")).trim() == ":1";
        let find_damaged = async |id: &str| {
            assert!(server.command(&format!("HSET {metas} {id} damaged")).starts_with(":1"));
            queue.known(0, &[id]).await.unwrap();
        };
        assert_eq!(last().await, None);
        find_damaged("n1:a").await;
        assert_eq!((last().await.as_deref(), is_a_count()), (Some("n1:a"), false));
        // A node of such a version found another, and the leader's next look moves its name.
        server.command(&format!("HSET {counts} damaged_last n1:b"));
        assert_eq!(last().await.as_deref(), Some("n1:b"));
        queue.retire(0, Epoch(1), 60_000, 0).await.unwrap().unwrap();
        assert_eq!((last().await.as_deref(), is_a_count()), (Some("n1:b"), false));
        find_damaged("n1:c").await;
        assert_eq!((last().await.as_deref(), queue.stats().await.unwrap().counters["damaged"]), (Some("n1:c"), 2));
    });
}

/// Scripts came to their end at a count that was no number, after they had taken items out of their places: those were leased to nobody, and each
/// further call of that kind failed as well.
#[test]
fn a_count_that_is_no_number_ends_no_script() {
    for damage in ["damage", "1.5", "9223372036854775807", ""] {
        on_server(async |server| {
            let queue = queue(server, "n1");
            let damage_all = || {
                for name in COUNTS {
                    let answer = server.command(&format!("HSET {} {name} \"{damage}\"", keyspace().queue("mail", 0)[9]));
                    assert!(answer.starts_with(':'), "{answer}");
                }
            };
            let lease = async |count| {
                damage_all();
                queue.lease(0, count, 1000, 60_000, 1000).await.unwrap().1
            };
            queue.enqueue(0, &["first", "second"].map(|id| item(id, "n1"))).await.unwrap();
            for id in ["third", "fourth", "fifth"] {
                damage_all();
                assert_eq!(queue.enqueue(0, &[item(id, "n1")]).await.unwrap().1, [Enqueued::Added], "{damage}");
            }
            let leased = lease(4).await;
            let ids: Vec<&str> = leased.iter().map(|item| item.id.as_str()).collect();
            assert_eq!(ids, ["first", "second", "third", "fourth"], "{damage}: in the order of their coming");
            let token = |index: usize| leased[index].token.as_str();
            damage_all();
            assert_eq!(
                queue.complete(0, &[("first", token(0), "n1"), ("second", "other", "n1")]).await.unwrap().1,
                [Completed::Done, Completed::Refused]
            );
            damage_all();
            assert_eq!(queue.fail("second", token(1), Retry::Never, "no luck").await.unwrap(), Failed::Dead);
            damage_all();
            assert_eq!(queue.fail("third", token(2), Retry::Free(60_000), "later").await.unwrap(), Failed::Waits);
            damage_all();
            assert_eq!(queue.requeue(0, &["second"]).await.unwrap(), 1);
            damage_all();
            assert_eq!(queue.withdraw(0, &["third"]).await.unwrap(), [true]);
            assert!(queue.extend("fourth", token(3), 0).await.unwrap());
            let mut swept = Swept::default();
            while swept.waiting == 0 {
                damage_all();
                swept = queue.recover(0, 0).await.unwrap();
            }
            damage_all();
            assert_eq!(queue.end(0, &["fifth"]).await.unwrap(), [Ending::Out]);
            let ids: Vec<String> = lease(64).await.into_iter().map(|item| item.id).collect();
            assert_eq!(ids, ["fourth", "second"], "{damage}");
            let stats = queue.stats().await.unwrap();
            assert_eq!((stats.pending, stats.processing, stats.counters["leased"]), (0, 2, 2), "{damage}");
            assert!(stats.counters["counters_reset"] > 0, "{damage}");
        });
    }
}
