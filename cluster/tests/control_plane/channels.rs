//! A Valkey whose rights refuse channels: what nobody may be told of is done all the same, and found by asking.

use ringpost_cluster::work_queue::{Completed, Enqueued, Retry};
use tokio::time::timeout;

use super::*;

fn item(id: &str) -> ringpost_cluster::work_item::NewItem {
    let (id, owner, data) = (id.to_owned(), "n1".parse().unwrap(), b"x".to_vec());
    ringpost_cluster::work_item::NewItem { id, owner, priority: 5, max_attempts: 3, delay_ms: 0, expires_in_ms: 0, data }
}

/// Scripts came to their end where they tell others, after all that they had written: an election was nobody's, mail that was in the queue counted as
/// not taken, and after three such answers the node went on alone.
#[test]
fn what_no_message_may_tell_of_is_done_all_the_same() {
    on_server(async |server, control| {
        let valkey = control.valkey().clone();
        let bounds = QueueBounds { partitions: 1, capacity: 10, dead_max: 10 };
        let queue = WorkQueue::new(valkey.clone(), keyspace(), "mail", bounds, ItemKey::new(b"k"), me(1)).unwrap();
        assert!(server.command("ACL SETUSER default resetchannels").starts_with("+OK"));
        let mut messages = valkey.subscribe(vec![control.events_channel(), queue.work_channel()]);
        let next = async |messages: &mut tokio::sync::mpsc::Receiver<ringpost_cluster::valkey::Message>| {
            timeout(Duration::from_secs(20), messages.recv()).await.expect("a message comes").unwrap().channel
        };
        assert_eq!(next(&mut messages).await, "", "whoever cannot listen is told to ask");

        pulse(&control, 1, 0, true).await;
        assert_eq!(acquire(&control, 1, 0).await, Answer::Acquired(Epoch(1)));
        let mine = Leadership { incarnation: me(1), epoch: Epoch(1) };
        let announce = [mine.to_string(), control.events_channel()];
        valkey.script("leader_announce", &[keyspace().leader()], &announce.each_ref().map(|text| text.as_bytes())).await.unwrap();
        assert_eq!(control.elect(&me(1), &Step::Release(mine), TTL, 0).await, Answer::Released);
        control.leave(&me(1)).await.unwrap();
        assert_eq!(queue.enqueue(0, &[item("a"), item("b")]).await.unwrap().1, [Enqueued::Added; 2]);
        let leased = queue.lease(0, 2, 1000, 60_000, 1000).await.unwrap().1;
        assert_eq!(queue.complete(0, &[(&leased[0].id, &leased[0].token, "n1")]).await.unwrap().1, [Completed::Done]);
        queue.fail(&leased[1].id, &leased[1].token, Retry::Never, "no luck").await.unwrap();
        assert_eq!(queue.requeue(0, &["b"]).await.unwrap(), 1);
        assert!(!valkey.is_away());
        let mut refused = [control.events_channel(), queue.work_channel(), keyspace().done_channel("mail")];
        refused.sort_unstable();
        assert_eq!(valkey.refused_channels(), refused);

        // With the right to it everything is heard again, without another connection.
        assert!(server.command("ACL SETUSER default allchannels").starts_with("+OK"));
        assert_eq!(next(&mut messages).await, "", "what was said meanwhile is to be asked for");
        assert_eq!(queue.enqueue(0, &[item("c")]).await.unwrap().1, [Enqueued::Added]);
        assert_eq!(next(&mut messages).await, queue.work_channel());
        pulse(&control, 2, 0, true).await;
        assert_eq!(next(&mut messages).await, control.events_channel());
        assert_eq!(valkey.refused_channels(), [keyspace().done_channel("mail")], "of that one nothing was said since");
    });
}
