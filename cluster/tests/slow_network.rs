//! Items of several megabytes over a network that takes its time for them.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use ringpost_cluster::{
    boot_time::BootTime,
    identity::Incarnation,
    keyspace::Keyspace,
    lease_load::LeaseLoad,
    target::Target,
    valkey::{Valkey, random_u64},
    valkey_error::ValkeyError,
    work_item::{ItemKey, NewItem},
    work_queue::{Completed, Enqueued, Known, QueueBounds, QueueError, WorkQueue},
};
use ringpost_valkey_server::{Durability, Server};

const PATIENCE: Duration = Duration::from_secs(30);
/// Twice what is counted on, and a third of what four megabytes within 50 ms would need.
const BYTES_PER_SECOND: usize = 16 << 20;
const CONTENT: usize = 4 << 20;

fn keyspace() -> Keyspace {
    Keyspace::new("ringpost:test").unwrap()
}

fn target(server: &Server) -> Target {
    Target::parse(&server.url(), None, None).unwrap()
}

/// The way to the server. Each connection has a line of its own: what these tests say of small calls is that they stand behind no large one, not that a line that
/// all share has room for them.
fn slow_way_to(server: u16, bytes_per_second: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", server)).unwrap());
            let (back, forth) = ((server.try_clone().unwrap(), client.try_clone().unwrap()), (client, server));
            for (from, to) in [back, forth] {
                std::thread::spawn(move || pass_slowly(from, to, bytes_per_second));
            }
        }
    });
    port
}

fn pass_slowly(mut from: TcpStream, mut to: TcpStream, bytes_per_second: usize) {
    to.set_nodelay(true).unwrap();
    let mut part = vec![0; 16 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut part) {
        std::thread::sleep(Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64));
        if to.write_all(&part[..bytes]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Content that does not shrink.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = random_u64() | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_ne_bytes()
    };
    (0..bytes / 8).flat_map(|_| next()).collect()
}

fn item(id: &str, data: Vec<u8>) -> NewItem {
    NewItem { id: id.to_owned(), owner: "n1".parse().unwrap(), priority: 5, max_attempts: 100, delay_ms: 0, expires_in_ms: 0, data }
}

#[test]
fn large_items_have_the_time_they_take_and_delay_no_small_call() {
    let server = Server::start(Durability::None);
    let way = slow_way_to(server.port(), BYTES_PER_SECOND);
    let valkey = Valkey::new(Target::parse(&format!("valkey://127.0.0.1:{way}"), None, None).unwrap());
    let (bounds, me) = (QueueBounds { partitions: 1, capacity: 1000, dead_max: 100 }, Incarnation::new("n1".parse().unwrap(), 7));
    let queue = WorkQueue::new(valkey, keyspace(), "mail", bounds, ItemKey::new(b"k"), me).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let began = Instant::now();
        let mut number = 0;
        let in_time = || assert!(began.elapsed() < PATIENCE, "no call is in time");
        // A machine that is busy can make a call late now and then, but not each.
        loop {
            number += 1;
            let items = [item(&format!("large-{number}"), noise(CONTENT))];
            let (enqueued, known) = tokio::join!(queue.enqueue(0, &items), queue.known(0, &["large-0"]));
            if let (Ok((_, enqueued)), Ok((_, known))) = (enqueued, known) {
                assert_eq!((enqueued, known), (vec![Enqueued::Added], vec![Known::Unknown]));
                break;
            }
            in_time();
        }
        loop {
            let (leased, known) = tokio::join!(queue.lease(0, 32, 60_000, 60_000, CONTENT + 1000), queue.known(0, &["large-0"]));
            if let (Ok((_, leased)), Ok(_)) = (leased, known) {
                assert_eq!(leased.len(), 1, "a large item comes alone");
                assert_eq!(leased[0].data.as_ref().unwrap().len(), CONTENT);
                break;
            }
            queue.enqueue(0, &[item(&format!("more-{number}"), noise(CONTENT))]).await.ok();
            number += 1;
            in_time();
        }
    });
}

/// What took longer than a network of 100 Mbit/s would was sent again with the same time, for ever.
#[test]
fn an_item_that_came_to_nothing_has_more_time_and_small_calls_do_not_wait_for_it() {
    let server = Server::start(Durability::None);
    let way = slow_way_to(server.port(), 1 << 20);
    let valkey = Valkey::new(Target::parse(&format!("valkey://127.0.0.1:{way}"), None, None).unwrap());
    let (bounds, me) = (QueueBounds { partitions: 1, capacity: 1000, dead_max: 100 }, Incarnation::new("n1".parse().unwrap(), 7));
    let queue = WorkQueue::new(valkey.clone(), keyspace(), "mail", bounds, ItemKey::new(b"k"), me).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        // Half a second on its way, of which a first call has a quarter.
        let items = [item("large", noise(512 << 10))];
        let late = queue.enqueue(0, &items).await;
        assert!(matches!(late, Err(QueueError::Valkey(ValkeyError::Late(_)))), "{late:?}");
        let mut tries = 1;
        let small = async {
            loop {
                let began = Instant::now();
                if queue.known(0, &["other"]).await.is_ok() {
                    return began.elapsed();
                }
            }
        };
        let (_, small) = tokio::join!(
            async {
                while let Err(error) = queue.enqueue_again(0, &items, tries).await {
                    assert!(tries < 5, "{error}");
                    tries += 1;
                }
            },
            small
        );
        assert!(small < Duration::from_millis(100), "{small:?}");
        assert_eq!(valkey.time_of_call(512 << 10, tries), (Duration::from_millis(50) + Duration::from_micros(62_500)) * 4u32.pow(tries));
        assert_eq!(valkey.time_of_call(25 << 20, 9), Duration::from_secs(60), "it is bounded");
    });
}

/// It was the only one that went through an open circuit, and had a minute: until then no heartbeat was sent.
#[test]
fn a_call_that_may_take_long_is_no_probe() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let valkey = Valkey::new(Target::parse(&format!("valkey://127.0.0.1:{nobody}"), None, None).unwrap());
    let (bounds, me) = (QueueBounds { partitions: 1, capacity: 1000, dead_max: 100 }, Incarnation::new("n1".parse().unwrap(), 7));
    let queue = WorkQueue::new(valkey.clone(), keyspace(), "mail", bounds, ItemKey::new(b"k"), me).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let items = [item("large", noise(1024))];
        let (began, mut probes) = (Instant::now(), 0);
        while !valkey.is_away() {
            let refused = queue.enqueue(0, &items).await;
            assert!(matches!(refused, Err(QueueError::Valkey(ValkeyError::Unreachable(_)))), "its time was not over: {refused:?}");
        }
        while probes < 3 {
            let answer = queue.enqueue_again(0, &items, 1).await;
            assert!(matches!(answer, Err(QueueError::Valkey(ValkeyError::CircuitOpen(_)))), "{answer:?}");
            probes += u32::from(!matches!(queue.known(0, &["a"]).await, Err(QueueError::Valkey(ValkeyError::CircuitOpen(_)))));
            assert!(began.elapsed() < PATIENCE, "nothing is a probe");
        }
    });
}

/// A worker asked for half a megabyte in two thirds of a second, whatever came of it: on a line of half a megabyte a second it got nothing, held 32 items at a
/// time for the length of a lease, and made dead letters of them all.
#[test]
fn a_worker_on_a_slow_line_gets_its_leases_and_no_item_loses_many_of_its_attempts() {
    const ITEMS: usize = 32;
    const LEASE: Duration = Duration::from_secs(3);
    let server = Server::start(Durability::None);
    let way = slow_way_to(server.port(), 500_000);
    let (bounds, me) = (QueueBounds { partitions: 1, capacity: 1000, dead_max: 100 }, Incarnation::new("n1".parse().unwrap(), 7));
    let queue = |port: u16| {
        let target = Target::parse(&format!("valkey://127.0.0.1:{port}"), None, None).unwrap();
        WorkQueue::new(Valkey::new(target), keyspace(), "mail", bounds, ItemKey::new(b"k"), me.clone()).unwrap()
    };
    let (owner, worker) = (queue(server.port()), queue(way));
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        for number in 0..ITEMS {
            let items = [item(&format!("i{number}"), noise(16 << 10))];
            let began = Instant::now();
            while owner.enqueue(0, &items).await.is_err() {
                assert!(began.elapsed() < PATIENCE, "it does not come in");
            }
        }
        let (mut load, mut had, mut attempts) = (LeaseLoad::new(LEASE), 0, 0);
        let (began, lease_ms) = (Instant::now(), u64::try_from(LEASE.as_millis()).unwrap());
        while had < ITEMS {
            assert!(began.elapsed() < PATIENCE, "{had} are there");
            let (asked_at, next) = (BootTime::now(), load.next(BootTime::now()));
            let answer = worker.lease_by(0, ITEMS, lease_ms, lease_ms, CONTENT + 1000, next).await;
            let now = BootTime::now();
            match answer {
                Ok((_, items)) => {
                    let bytes = items.iter().map(|item| item.body_bytes).sum();
                    load.carried(bytes, now.since(asked_at), worker.time_of_lease(CONTENT + 1000, next), now);
                    for item in items {
                        attempts = attempts.max(item.attempts);
                        // What a machine that is busy does not end in time comes again.
                        let done = owner.complete(0, &[(&item.id, &item.token, "n1")]).await;
                        had += usize::from(matches!(done, Ok((_, answers)) if answers == [Completed::Done]));
                    }
                }
                Err(QueueError::Valkey(ValkeyError::Late(_))) => {
                    load.late(now);
                }
                Err(_) => {}
            }
            owner.recover(0, 0).await.ok();
        }
        assert!(attempts <= 2, "{attempts} leases of one item");
    });
}

#[test]
fn a_large_item_that_others_overtake_has_its_turn_all_the_same() {
    let server = Server::start(Durability::None);
    let valkey = Valkey::with_scripts(target(&server), ringpost_cluster::script::Scripts::shipped(), Duration::from_secs(2));
    let (bounds, me) = (QueueBounds { partitions: 1, capacity: 1000, dead_max: 100 }, Incarnation::new("n1".parse().unwrap(), 7));
    let queue = WorkQueue::new(valkey, keyspace(), "mail", bounds, ItemKey::new(b"k"), me).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        queue.enqueue(0, &[NewItem { priority: 9, ..item("oldest", noise(CONTENT)) }]).await.unwrap();
        let urgent: Vec<_> = (0..40).map(|number| NewItem { priority: 0, ..item(&format!("urgent-{number}"), b"x".to_vec()) }).collect();
        queue.enqueue(0, &urgent).await.unwrap();
        let mut calls = Vec::new();
        while calls.last() != Some(&vec!["oldest".to_owned()]) {
            assert!(calls.len() < 3, "each eighth lease is the oldest's: {calls:?}");
            let (_, leased) = queue.lease(0, 32, 60_000, 60_000, CONTENT + 1000).await.unwrap();
            calls.push(leased.into_iter().map(|item| item.id).collect());
        }
    });
}

#[test]
fn one_lease_brings_half_a_megabyte_or_one_item() {
    let server = Server::start(Durability::None);
    let valkey = Valkey::with_scripts(target(&server), ringpost_cluster::script::Scripts::shipped(), Duration::from_secs(2));
    let (bounds, me) = (QueueBounds { partitions: 1, capacity: 1000, dead_max: 100 }, Incarnation::new("n1".parse().unwrap(), 7));
    let queue = WorkQueue::new(valkey, keyspace(), "mail", bounds, ItemKey::new(b"k"), me).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        for (number, kib) in [200, 200, 200, 900, 10].into_iter().enumerate() {
            queue.enqueue(0, &[item(&format!("i{number}"), noise(kib << 10))]).await.unwrap();
        }
        let mut counts = Vec::new();
        while counts.iter().sum::<usize>() < 5 {
            counts.push(queue.lease(0, 32, 60_000, 60_000, 1 << 20).await.unwrap().1.len());
        }
        assert_eq!(counts, [2, 1, 1, 1]);
    });
}
