//! How soon an owner hears that another has its mail: by a message, on a real Valkey.

mod server;

use std::time::{Duration, Instant};

use ringpost_cluster::{
    identity::Incarnation,
    valkey::Valkey,
    work_item::{ItemKey, NewItem},
    work_queue::{Completed, QueueBounds, WorkQueue},
};
use server::{Durability, Server};

const ITEMS: usize = 300;

fn queue(server: &Server, node: &str, number: u128) -> (std::sync::Arc<Valkey>, WorkQueue) {
    let valkey = Valkey::new(server.target());
    let bounds = QueueBounds { partitions: 1, capacity: 10_000, dead_max: 10 };
    let me = Incarnation::new(node.parse().unwrap(), number);
    let queue = WorkQueue::new(valkey.clone(), Server::keyspace(), "mail", bounds, ItemKey::new(b"key"), me).unwrap();
    (valkey, queue)
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
            let item = NewItem {
                id: format!("n1:{number}"),
                owner: "n1".parse().unwrap(),
                priority: 5,
                max_attempts: 3,
                delay_ms: 0,
                expires_in_ms: 0,
                data: vec![1; 2000],
            };
            owner.enqueue(0, &[item]).await.unwrap();
            let (_, leased) = worker.lease(0, 1, 3000, 3000, 1 << 20).await.unwrap();
            let began = Instant::now();
            let (_, answers) = worker.complete(0, &[(&leased[0].id, &leased[0].token, "n2 0001")]).await.unwrap();
            assert_eq!(answers, [Completed::Done]);
            let message = messages.recv().await.unwrap();
            delays.push(began.elapsed());
            assert_eq!((message.channel, message.payload), (owner.done_channel(), format!("n1:{number} n2 0001")));
        }
        delays
    });
    delays.sort_unstable();
    let (median, high, most) = (delays[ITEMS / 2], delays[ITEMS * 99 / 100], delays[ITEMS - 1]);
    println!("{ITEMS} completions heard by their owner, from the call on: median {median:?}, p99 {high:?}, longest {most:?}");
    // The rule asks for 100 ms; what a busy machine adds to single ones is not the queue's.
    assert!(median < Duration::from_millis(100));
}
