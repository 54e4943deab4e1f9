//! The driver with Sentinels and with a cluster of servers: calls work, and go on after a primary was killed.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use ringpost_cluster::{
    control_plane::ControlPlane,
    election::{Answer, Step},
    identity::{Epoch, Incarnation},
    keyspace::Keyspace,
    script::Scripts,
    target::Target,
    valkey::Valkey,
    valkey_error::ValkeyError,
    work_item::{ItemKey, NewItem},
    work_queue::{Enqueued, QueueBounds, QueueError, WorkQueue},
};
use ringpost_valkey_server::{Durability, Sentinel, Server, cluster};

const PATIENCE: Duration = Duration::from_secs(60);

fn keyspace() -> Keyspace {
    Keyspace::new("ringpost:test").unwrap()
}

fn me() -> Incarnation {
    Incarnation::new("n1".parse().unwrap(), 7)
}

fn valkey(url: &str) -> std::sync::Arc<Valkey> {
    // The machine that tests run on may be busy; deadlines have a test of their own.
    Valkey::with_scripts(Target::parse(url, None, None).unwrap(), Scripts::shipped(), Duration::from_secs(2))
}

/// Asks for the lease until a server answers; returns the epoch and how long that took.
async fn lead(control: &ControlPlane, floor: u64) -> (Epoch, Duration) {
    let began = Instant::now();
    loop {
        match control.elect(&me(), &Step::Acquire(Epoch(floor)), Duration::from_millis(500), 0).await {
            Answer::Acquired(epoch) => return (epoch, began.elapsed()),
            _ => assert!(began.elapsed() < PATIENCE, "no server answers"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn enqueue_everywhere(queue: &WorkQueue, name: &str) {
    for partition in 0..queue.bounds().partitions {
        let id = (0..).map(|n| format!("{name}-{n}")).find(|id| queue.partition(id) == partition).unwrap();
        let item =
            NewItem { id, owner: "n1".parse().unwrap(), priority: 5, max_attempts: 3, delay_ms: 0, expires_in_ms: 0, data: b"x".to_vec() };
        let began = Instant::now();
        loop {
            match queue.enqueue(partition, std::slice::from_ref(&item)).await {
                Ok((_, answers)) => {
                    assert!(matches!(answers[..], [Enqueued::Added | Enqueued::Present]), "{answers:?}");
                    break;
                }
                Err(error) => assert!(began.elapsed() < PATIENCE, "partition {partition}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn work_queue(valkey: std::sync::Arc<Valkey>, partitions: u16) -> WorkQueue {
    let bounds = QueueBounds { partitions, capacity: 1000, dead_max: 100 };
    WorkQueue::new(valkey, keyspace(), "mail", bounds, ItemKey::new(b"k"), me()).unwrap()
}

#[test]
fn sentinels_lead_to_the_new_primary() {
    const PACE: &str = "sentinel down-after-milliseconds mail 1000\nsentinel failover-timeout mail 5000\n";
    let mut primary = Server::start(Durability::None);
    let replica = Server::start_with(Durability::None, &["--replicaof", &format!("127.0.0.1 {}", primary.port())]);
    let began = Instant::now();
    while !replica.command("INFO replication").contains("master_link_status:up") {
        assert!(began.elapsed() < PATIENCE, "the replica does not follow");
        std::thread::sleep(Duration::from_millis(20));
    }
    let sentinels: Vec<_> = (0..3).map(|_| Sentinel::start(primary.port(), 2, PACE)).collect();
    let hosts: Vec<String> = sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let valkey = valkey(&format!("valkey+sentinel://{}/mail/3", hosts.join(",")));
        let control = ControlPlane::new(valkey.clone(), keyspace());
        let (first, _) = lead(&control, 0).await;
        assert!(primary.command("INFO keyspace").contains("db3:"), "in the database that the URL names");
        // They must know of each other and of the replica before they can elect one.
        let began = Instant::now();
        let knows = |port: u16| {
            let text = ask(port, "SENTINEL MASTER mail");
            text.contains("num-slaves\r\n$1\r\n1") && text.contains("num-other-sentinels\r\n$1\r\n2")
        };
        while !sentinels.iter().all(|sentinel| knows(sentinel.port())) {
            assert!(began.elapsed() < PATIENCE, "the sentinels do not find each other");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        primary.kill();
        let (second, took) = lead(&control, first.0).await;
        println!("the new primary gave the lease after {took:?}");
        assert!(second > first);
        enqueue_everywhere(&work_queue(valkey, 4), "after").await;
        assert!(replica.command("INFO replication").contains("role:master"));
    });
}

fn ask(port: u16, command: &str) -> String {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let (mut text, mut part) = (Vec::new(), [0; 16384]);
    while let Ok(length @ 1..) = stream.read(&mut part) {
        text.extend_from_slice(&part[..length]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Three primaries, and the URL that leads to them.
fn three_primaries(extra: &[&str]) -> (Vec<Server>, String) {
    let extra = [&["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"], extra].concat();
    let servers: Vec<Server> = (0..3).map(|_| Server::start_with(Durability::None, &extra)).collect();
    cluster::form(&servers);
    let hosts: Vec<String> = servers.iter().map(|server| format!("127.0.0.1:{}", server.port())).collect();
    let url = format!("valkey+cluster://{}", hosts.join(","));
    (servers, url)
}

#[test]
fn a_cluster_takes_every_script_where_its_keys_are() {
    let (servers, url) = three_primaries(&[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let valkey = valkey(&url);
        let control = ControlPlane::new(valkey.clone(), keyspace());
        assert_eq!(lead(&control, 0).await.0, Epoch(1));
        let queue = work_queue(valkey, 16);
        enqueue_everywhere(&queue, "spread").await;
        let stats = queue.stats().await.unwrap();
        assert_eq!(stats.pending, 16);
        let mut leased = 0;
        for partition in 0..16 {
            for item in queue.lease(partition, 8, 60_000, 0, 1000).await.unwrap().1 {
                queue.complete(partition, &[(&item.id, &item.token, "n1")]).await.unwrap();
                leased += 1;
            }
        }
        assert_eq!(leased, 16);
        // The work is spread: each server has keys.
        assert!(servers.iter().all(|server| !server.command("DBSIZE").starts_with(":0")));
    });
}

/// The circuit was one for all servers: three calls in a row that failed for a dead one kept everything from those that lived.
#[test]
fn a_primary_that_is_dead_stops_no_call_to_the_others() {
    let (mut servers, url) = three_primaries(&["--cluster-require-full-coverage", "no"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let valkey = valkey(&url);
        let queue = work_queue(valkey.clone(), 16);
        enqueue_everywhere(&queue, "before").await;
        // All keys of a partition are where its first one is.
        let asks = |server: &Server, partition: u16| server.command(&format!("EXISTS {}", keyspace().queue("mail", partition)[7]));
        let has = |server: &Server, partition: u16| asks(server, partition).starts_with(":1");
        let (dead, alive) = (0..16).partition::<Vec<u16>, _>(|partition| has(&servers[2], *partition));
        assert!(!dead.is_empty() && !alive.is_empty(), "{dead:?} {alive:?}");
        servers[2].kill();
        for round in 0..4 {
            // As many as open a circuit, with no answer in between.
            for _ in 0..3 {
                assert!(queue.probe(dead[0]).await.is_err(), "round {round}");
            }
            for partition in &alive {
                // A connection may be new to the loss of one of its servers; the circuit is closed.
                let answer = queue.probe(*partition).await;
                assert!(!matches!(answer, Err(QueueError::Valkey(ValkeyError::CircuitOpen(_)))), "round {round}, partition {partition}");
            }
        }
        assert!(valkey.counters.skipped.load(Ordering::Relaxed) > 0, "nor is the dead one asked all the time");
        let mut there = Vec::new();
        let began = Instant::now();
        while there.len() < alive.len() {
            assert!(began.elapsed() < PATIENCE, "only {there:?} of {alive:?} answer");
            for partition in &alive {
                if queue.probe(*partition).await.is_ok() && !there.contains(partition) {
                    there.push(*partition);
                }
            }
        }
        assert!(!valkey.is_away());
        // Back, and found by its probes.
        servers[2].restart();
        let began = Instant::now();
        while queue.probe(dead[0]).await.is_err() {
            assert!(began.elapsed() < PATIENCE, "what is back is not found");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

/// All primaries were asked for the replicas of what one of them had written, and the fewest counted: a replica that another lacked, and nobody
/// led.
#[test]
fn replicas_of_the_server_that_has_the_lease_count_and_of_no_other() {
    let (servers, url) = three_primaries(&[]);
    let leader = keyspace().leader();
    let slot: u16 = servers[0].command(&format!("CLUSTER KEYSLOT {leader}")).trim().trim_start_matches(':').parse().unwrap();
    let primary = (0..3).find(|index| usize::from(slot) < (index + 1) * 16384 / 3).unwrap();
    let id = servers[primary].command("CLUSTER MYID").lines().nth(1).unwrap().to_owned();
    let replica = Server::start_with(Durability::None, &["--cluster-enabled", "yes"]);
    replica.command(&format!("CLUSTER MEET 127.0.0.1 {}", servers[0].port()));
    servers[primary].command("CONFIG SET repl-diskless-sync-delay 0");
    let wait_for = |what: &str, holds: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < PATIENCE, "{what} does not happen");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait_for("its following", &|| replica.command(&format!("CLUSTER REPLICATE {id}")).starts_with("+OK"));
    wait_for("its having all", &|| servers[primary].command("INFO replication").contains("state=online"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let control = ControlPlane::new(valkey(&url), keyspace());
        let ttl = Duration::from_secs(12);
        let began = Instant::now();
        loop {
            match control.elect(&me(), &Step::Acquire(Epoch(0)), ttl, 1).await {
                Answer::Acquired(_) => break,
                // A busy machine.
                answer => assert!(began.elapsed() < ttl, "{answer:?}"),
            }
        }
        let mine = control.elect(&me(), &Step::Acquire(Epoch(0)), ttl, 2).await;
        assert!(matches!(mine, Answer::Held(..)), "{mine:?}");
    });
}

/// The user that docs/cluster.md gives a node, with its rights.
fn documented_user() -> String {
    let text = include_str!("../../docs/cluster.md");
    let (_, user) = text.split_once("`ACL SETUSER ringpost ").expect("it says how a user is made");
    let user = user.split('`').next().expect("it ends").replace("PASSWORD", "secret").replace("ringpost:cluster", "ringpost:test");
    format!("ACL SETUSER ringpost {user}")
}

/// With the rights that the documentation gave, a node could use neither a cluster of servers nor a database of its own.
#[test]
fn the_documented_rights_are_enough_for_a_cluster_and_for_a_database_of_ones_own() {
    let (servers, url) = three_primaries(&[]);
    let single = Server::start(Durability::None);
    for server in servers.iter().chain([&single]) {
        assert!(server.command(&documented_user()).starts_with("+OK"), "{}", documented_user());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let with_user = |url: &str| valkey(&url.replace("://", "://ringpost:secret@"));
        for (url, partitions) in [(url, 16), (single.url() + "/2", 2), (single.url(), 2)] {
            let valkey = with_user(&url);
            let control = ControlPlane::new(valkey.clone(), keyspace());
            lead(&control, 0).await;
            let mut messages = valkey.subscribe(vec![control.events_channel()]);
            assert_eq!(messages.recv().await.unwrap().channel, "", "{url}: the subscription stands");
            let queue = work_queue(valkey, partitions);
            enqueue_everywhere(&queue, "by-user").await;
            for partition in 0..partitions {
                for item in queue.lease(partition, 8, 60_000, 0, 1000).await.unwrap().1 {
                    queue.complete(partition, &[(&item.id, &item.token, "n1")]).await.unwrap();
                }
                queue.recover(partition, 0).await.unwrap();
            }
            assert_eq!(queue.stats().await.unwrap().unsettled, u64::from(partitions), "{url}");
        }
    });
}

/// Of a cluster no server was asked for its policy: one that throws keys away was used.
#[test]
fn a_cluster_with_a_primary_that_throws_keys_away_is_refused() {
    let (mut servers, url) = three_primaries(&["--cluster-require-full-coverage", "no"]);
    assert!(servers[2].command("CONFIG SET maxmemory-policy allkeys-lru").starts_with("+OK"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ping = redis::cmd("PING");
        let error = loop {
            match valkey(&url).command(&ping).await {
                Err(error) if error.is_unreachable() => {}
                other => break other.unwrap_err(),
            }
        };
        assert!(matches!(&error, ValkeyError::Misconfigured(why) if why.contains("allkeys-lru")), "{error}");
        // One that does not answer keeps nobody from the others.
        servers[2].kill();
        let began = Instant::now();
        while valkey(&url).command(&ping).await.is_err() {
            assert!(began.elapsed() < PATIENCE, "the others do not serve");
        }
    });
}
