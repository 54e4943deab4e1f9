//! How an owner hears that another has its mail, on a real Valkey: by a message, soon; and by a word that is signed.

use std::time::{Duration, Instant};

use ringpost_cluster::{
    identity::Incarnation,
    keyspace::Keyspace,
    target::Target,
    valkey::Valkey,
    work_item::{ItemKey, NewItem},
    work_queue::{Completed, Enqueued, Known, OUTCOME_KEPT, QueueBounds, WorkQueue},
};
use ringpost_valkey_server::{Durability, Server};

const ITEMS: usize = 300;

fn keyspace() -> Keyspace {
    Keyspace::new("ringpost:test").unwrap()
}

fn target(server: &Server) -> Target {
    Target::parse(&server.url(), None, None).unwrap()
}

fn queue(server: &Server, node: &str, number: u128) -> (std::sync::Arc<Valkey>, WorkQueue) {
    keyed_queue(server, node, number, b"key")
}

fn keyed_queue(server: &Server, node: &str, number: u128, key: &[u8]) -> (std::sync::Arc<Valkey>, WorkQueue) {
    let valkey = Valkey::new(target(server));
    let bounds = QueueBounds { partitions: 1, capacity: 10_000, dead_max: 10 };
    let me = Incarnation::new(node.parse().unwrap(), number);
    let queue = WorkQueue::new(valkey.clone(), keyspace(), "mail", bounds, ItemKey::new(key), me).unwrap();
    (valkey, queue)
}

fn item(id: &str) -> NewItem {
    NewItem {
        id: id.to_owned(),
        owner: "n1".parse().unwrap(),
        priority: 5,
        max_attempts: 3,
        delay_ms: 0,
        expires_in_ms: 0,
        data: vec![1; 2000],
    }
}

#[test]
fn owners_hear_of_each_completion_by_a_message() {
    let server = Server::start(Durability::None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut delays = runtime.block_on(async {
        let (valkey, owner) = queue(&server, "n1", 1);
        let (_, worker) = queue(&server, "n2", 2);
        let mut messages = valkey.subscribe(vec![owner.done_channel()]);
        // The word that the subscription stands.
        assert_eq!(messages.recv().await.unwrap().channel, "");
        let mut delays = Vec::new();
        for number in 0..ITEMS {
            owner.enqueue(0, &[item(&format!("n1:{number}"))]).await.unwrap();
            let (_, leased) = worker.lease(0, 1, 3000, 3000, 1 << 20).await.unwrap();
            let began = Instant::now();
            let (_, answers) = worker.complete(0, &[(&leased[0].id, &leased[0].token, "n2 0001")]).await.unwrap();
            assert_eq!(answers, [Completed::Done]);
            let message = messages.recv().await.unwrap();
            delays.push(began.elapsed());
            assert_eq!(message.channel, owner.done_channel());
            assert!(message.payload.starts_with(&format!("n1:{number} n2 0001 ")), "{}", message.payload);
        }
        delays
    });
    delays.sort_unstable();
    let (median, high, most) = (delays[ITEMS / 2], delays[ITEMS * 99 / 100], delays[ITEMS - 1]);
    println!("{ITEMS} completions heard by their owner, from the call on: median {median:?}, p99 {high:?}, longest {most:?}");
    // The rule asks for 100 ms; what a busy machine adds to single ones is not the queue's.
    assert!(median < Duration::from_millis(100));
}

/// Whoever could write to Valkey could say that mail was taken over, and its owner dropped the last copy.
#[test]
fn a_completion_that_no_worker_signed_is_not_believed_and_gives_way() {
    let server = Server::start(Durability::None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcomes = keyspace().queue("mail", 0)[11].clone();
    let write = |id: &str, record: &str| assert!(server.command(&format!("HSET {outcomes} {id} \"{record}\"")).starts_with(':'));
    let read = |id: &str| server.command(&format!("HGET {outcomes} {id}")).split_once("\r\n").unwrap().1.trim_end().replace('\n', "\\n");
    runtime.block_on(async {
        let (_, owner) = queue(&server, "n1", 1);
        let (_, worker) = queue(&server, "n2", 2);
        let (_, stranger) = keyed_queue(&server, "n3", 3, b"another key");
        let known = async |id: &str| owner.known(0, &[id]).await.unwrap().1.remove(0);
        let complete = async |queue: &WorkQueue, id: &str| {
            owner.enqueue(0, &[item(id)]).await.unwrap();
            let leased = queue.lease(0, 1, 3000, 3000, 1 << 20).await.unwrap().1.remove(0);
            assert_eq!(queue.complete(0, &[(id, &leased.token, "n2 0001")]).await.unwrap().1, [Completed::Done]);
        };
        complete(&worker, "n1:a").await;
        assert_eq!(known("n1:a").await, Known::Completed("n2 0001".to_owned()));
        // Each of these once ended an item.
        complete(&stranger, "n1:b").await;
        write("n1:c", "0123456789abcdef:1\\nn1\\nn2 0001");
        write("n1:d", &read("n1:a"));
        write("n1:e", &format!("0123456789abcdef:1\\nn1\\nn2 {}", "0".repeat(3000)));
        write("n1:f", "\\xff");
        for id in ["n1:b", "n1:c", "n1:d", "n1:e", "n1:f"] {
            let Known::Unproven(record) = known(id).await else { panic!("{id} is believed") };
            assert_eq!(owner.enqueue(0, &[item(id)]).await.unwrap().1, [Enqueued::Completed]);
            // The word of a worker that came in between is not removed in its place.
            assert_eq!(owner.refuse(0, &[(id.to_owned(), b"0:1\nn1\nbefore".to_vec())]).await.unwrap(), [false]);
            assert_eq!(owner.refuse(0, &[(id.to_owned(), record)]).await.unwrap(), [true]);
            assert_eq!(owner.enqueue(0, &[item(id)]).await.unwrap().1, [Enqueued::Added]);
        }
        assert_eq!(owner.stats().await.unwrap().counters["unproven"], 5);
    });
}

/// What is kept for late workers alone counted, once its time was over, as what owners had not heard of.
#[test]
fn outcomes_whose_time_is_over_count_by_whether_their_owners_have_heard_of_them() {
    let server = Server::start(Durability::None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let done = keyspace().queue("mail", 0)[10].clone();
    runtime.block_on(async {
        let (_, queue) = queue(&server, "n1", 1);
        let complete = async |id: &str| {
            queue.enqueue(0, &[item(id)]).await.unwrap();
            let leased = queue.lease(0, 1, 3000, 3000, 1 << 20).await.unwrap().1.remove(0);
            assert_eq!(queue.complete(0, &[(id, &leased.token, "n2 0001")]).await.unwrap().1, [Completed::Done]);
        };
        for id in ["n1:heard", "n1:unheard"] {
            complete(id).await;
        }
        assert_eq!(queue.known(0, &["n1:heard"]).await.unwrap().1, [Known::Completed("n2 0001".to_owned())]);
        for id in ["n1:heard", "n1:unheard"] {
            let past = OUTCOME_KEPT.as_millis() + 1;
            assert!(!server.command(&format!("ZINCRBY {done} -{past} {id}")).starts_with('-'));
        }
        complete("n1:last").await;
        let counters = queue.stats().await.unwrap().counters;
        assert_eq!([counters.get("heard_dropped"), counters.get("outcomes_dropped")], [Some(&1), Some(&1)]);
    });
}
