//! What tests of the work queue begin with: a Valkey of their own, a queue of one partition, and items for it.

use std::{sync::Arc, time::Duration};

use ringpost_cluster::{
    identity::Incarnation,
    keyspace::Keyspace,
    script::Scripts,
    target::Target,
    valkey::Valkey,
    work_item::{ItemKey, NewItem},
    work_queue::{QueueBounds, WorkQueue},
};
use ringpost_valkey_server::{Durability, Server};

/// Of all tests.
pub fn keyspace() -> Keyspace {
    Keyspace::new("ringpost:test").unwrap()
}

/// As `cluster.valkey_url` has it.
pub fn target(server: &Server) -> Target {
    Target::parse(&server.url(), None, None).unwrap()
}

/// With patience: the machine that tests run on may be busy, and deadlines have tests of their own.
pub fn valkey(server: &Server, scripts: &'static Scripts) -> Arc<Valkey> {
    Valkey::with_scripts(target(server), scripts, Duration::from_secs(5))
}

/// Mail, as `node` sees it.
pub fn queue(server: &Server, scripts: &'static Scripts, node: &str, bounds: QueueBounds) -> WorkQueue {
    let me = Incarnation::new(node.parse().unwrap(), 7);
    WorkQueue::new(valkey(server, scripts), keyspace(), "mail", bounds, ItemKey::new(b"k"), me).unwrap()
}

/// Due at once, for good, and its name is its data.
pub fn item(id: &str, owner: &str) -> NewItem {
    let (id, data) = (id.to_owned(), id.as_bytes().to_vec());
    NewItem { id, owner: owner.parse().unwrap(), priority: 5, max_attempts: 3, delay_ms: 0, expires_in_ms: 0, data }
}

/// On a Valkey that forgets all with its end.
pub fn on_server<T>(test: impl AsyncFnOnce(&mut Server) -> T) -> T {
    let mut server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test(&mut server))
}
