//! What the work queue costs Valkey in memory, for docs/cluster.md: by item, by size, by state. Prints figures; what it asserts is that they stay
//! of their order.

use std::time::Duration;

use ringpost_cluster::{
    identity::Incarnation,
    keyspace::Keyspace,
    script::Scripts,
    target::Target,
    valkey::{Valkey, random_u64},
    work_item::{ItemKey, NewItem},
    work_queue::{ITEMS_PER_CALL, QueueBounds, Retry, WorkQueue},
};
use ringpost_valkey_server::{Durability, Server};

const ITEMS: usize = 6400;
/// Beside its data, of which the server's allocator makes up to a quarter more, an item that waits takes less than this.
const WAITING_BYTES_MAX: u64 = 900;
/// As does one that is completed and not settled, of which the data is gone.
const COMPLETED_BYTES_MAX: u64 = 700;

fn used(server: &Server) -> u64 {
    let text = server.command("INFO memory");
    let line = text.lines().find_map(|line| line.strip_prefix("used_memory_dataset:")).expect("it says so");
    line.trim().parse().unwrap()
}

/// Bytes that nothing makes smaller, as of mail with attachments.
fn noise(bytes: usize) -> Vec<u8> {
    std::iter::repeat_with(random_u64).flat_map(u64::to_le_bytes).take(bytes).collect()
}

fn name(number: usize) -> String {
    format!("n1:0123456789abcdef:{number:016X}")
}

#[test]
fn an_offered_mail_costs_valkey_its_compressed_size_and_less_than_a_kilobyte() {
    for bytes in [1024, 16 * 1024] {
        let server = Server::start(Durability::None);
        let valkey = Valkey::with_scripts(Target::parse(&server.url(), None, None).unwrap(), Scripts::shipped(), Duration::from_secs(5));
        let bounds = QueueBounds { partitions: 1, capacity: 100_000, dead_max: 100_000 };
        let me = Incarnation::new("n1".parse().unwrap(), 7);
        let queue =
            WorkQueue::new(valkey, Keyspace::new("ringpost:test").unwrap(), "email_delivery", bounds, ItemKey::new(b"k"), me).unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            queue.probe(0).await.unwrap();
            let empty = used(&server);
            let data = noise(bytes);
            for first in (0..ITEMS).step_by(ITEMS_PER_CALL) {
                let item = |number| NewItem {
                    id: name(number),
                    owner: "n1".parse().unwrap(),
                    priority: 5,
                    max_attempts: 5,
                    delay_ms: 0,
                    expires_in_ms: 3_600_000,
                    data: data.clone(),
                };
                queue.enqueue(0, &(first..first + ITEMS_PER_CALL).map(item).collect::<Vec<_>>()).await.unwrap();
            }
            let per_item = |from: u64| used(&server).saturating_sub(from) / ITEMS as u64;
            let waiting = per_item(empty);
            println!("data of {bytes} bytes: {waiting} bytes for an item that waits, {} beside its data", waiting - bytes as u64);
            assert!(waiting <= bytes as u64 * 5 / 4 + WAITING_BYTES_MAX, "{waiting}");
            let mut leased = Vec::new();
            while leased.len() < ITEMS {
                leased.extend(queue.lease(0, ITEMS_PER_CALL, 60_000, 60_000, 1 << 20).await.unwrap().1);
            }
            println!("  leased: {}", per_item(empty));
            for items in leased[..ITEMS / 2].chunks(ITEMS_PER_CALL) {
                let leases: Vec<_> = items.iter().map(|item| (item.id.as_str(), item.token.as_str(), "n2 0123456789ABCDEF")).collect();
                queue.complete(0, &leases).await.unwrap();
            }
            for item in &leased[ITEMS / 2..] {
                queue.fail(&item.id, &item.token, Retry::Never, "no").await.unwrap();
            }
            let with_both = used(&server);
            let ids: Vec<&str> = leased[..ITEMS / 2].iter().map(|item| item.id.as_str()).collect();
            for ids in ids.chunks(ITEMS_PER_CALL) {
                queue.settled(0, ids).await.unwrap();
            }
            let completed = with_both.saturating_sub(used(&server)) / (ITEMS as u64 / 2);
            println!(
                "  completed and not settled: {completed}; a dead letter: {}",
                used(&server).saturating_sub(empty) / (ITEMS as u64 / 2)
            );
            assert!(completed <= COMPLETED_BYTES_MAX, "{completed}");
        });
    }
}
