//! A Valkey without room, or a partition: nothing is written into the queue, and what is in it can be ended.

use ringpost_cluster::{
    script::Scripts,
    valkey_error::ValkeyError,
    work_queue::{Completed, Enqueued, QueueBounds, QueueError},
};

use super::{
    ROOMY,
    fixture::{self, item, on_server},
    queue,
};

/// What an enqueue took away first made room for all that came after, so that items were added beyond `maxmemory` for as long as anybody offered.
/// After three refusals nothing was asked for a while, whoever asked: a leader lost its lease, and took it again with the next probe, in turns.
#[test]
fn what_has_no_room_is_asked_on_and_its_word_is_the_last_that_was_said() {
    on_server(async |server| {
        let queue = queue(server, "n1");
        queue.enqueue(0, &[item("a", "n1"), item("b", "n1")]).await.unwrap();
        queue.enqueue(0, &[item("back", "n1")]).await.unwrap();
        let leased = queue.lease(0, 1, 1000, 60_000, 1000).await.unwrap().1;
        assert_eq!(queue.withdraw(0, &["back"]).await.unwrap(), [true]);
        assert!(server.command("CONFIG SET maxmemory 1").starts_with("+OK"));
        for id in ["c", "back"].iter().cycle().take(10) {
            let refused = queue.enqueue(0, &[item(id, "n1")]).await;
            assert!(matches!(refused, Err(QueueError::Valkey(ValkeyError::Full(_)))), "{refused:?}");
        }
        assert!(queue.is_full().is_some_and(|reason| reason.contains("maxmemory")));
        // Reading is no word of room.
        assert_eq!(queue.stats().await.unwrap().pending, 1);
        assert!(queue.is_full().is_some());
        assert_eq!(queue.complete(0, &[("a", &leased[0].token, "n1")]).await.unwrap().1, [Completed::Done]);
        assert_eq!(queue.withdraw(0, &["b"]).await.unwrap(), [true]);
        assert!(server.command("CONFIG SET maxmemory 0").starts_with("+OK"));
        queue.probe(0).await.unwrap();
        assert_eq!(queue.is_full(), None);
    });
}

/// Mail stayed with its node for hours, and neither a log nor a command said why.
#[test]
fn a_partition_that_has_as_many_items_as_there_may_be_is_told() {
    on_server(async |server| {
        let queue = fixture::queue(server, Scripts::shipped(), "n1", QueueBounds { capacity: 2, ..ROOMY });
        let added = queue.enqueue(0, &[item("a", "n1"), item("b", "n1")]).await.unwrap().1;
        assert_eq!((added, queue.crowded()), (vec![Enqueued::Added; 2], None));
        assert_eq!(queue.enqueue(0, &[item("c", "n1")]).await.unwrap().1, [Enqueued::Full]);
        let words = queue.clone().crowded().expect("it is crowded");
        assert!(words.contains("1 of 1 partitions have cluster.queue_capacity (2) items") && words.ends_with(": 0"), "{words}");
        // An account of another number of partitions has no part in it.
        assert_eq!(queue.over(3).crowded(), None);
    });
}
