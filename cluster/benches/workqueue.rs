//! How many items a second pass through the shared work queue: enqueue, lease and complete, in batches, over one coordinator's one
//! connection? Expected: the server is the bound, which is one core and needs some 5 us for each step of an item; what valkey-benchmark
//! gets out of the same scripts is the ceiling, and a coordinator that signs, packs and checks items reaches more than half of it.
//!
//! Needs `valkey-server`, and for the ceiling `valkey-benchmark` and `valkey-cli`.
#![forbid(unsafe_code)]

use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringpost_cluster::identity::{Incarnation, NodeId};
use ringpost_cluster::keyspace::Keyspace;
use ringpost_cluster::script::Scripts;
use ringpost_cluster::target::Target;
use ringpost_cluster::valkey::Valkey;
use ringpost_cluster::work_item::{ItemKey, NewItem};
use ringpost_cluster::work_queue::{Completed, Enqueued, ITEMS_PER_CALL, QueueBounds, WorkQueue};
use ringpost_valkey_server::{Durability, Server};
use tokio::sync::Semaphore;

const PARTITIONS: u16 = 4;
/// Batches under way at once.
const IN_FLIGHT: usize = 8;
/// Content of an item; it does not compress.
const ITEM_BYTES: usize = 512;
const QUEUE: &str = "bench";
/// Of the ceiling.
const GOAL: f64 = 0.5;

/// Longest call that is told apart, in nanoseconds.
const NANOSECONDS_MAX: u64 = 60_000_000_000;

fn target(server: &Server) -> Target {
    Target::parse(&server.url(), None, None).unwrap()
}

fn main() {
    // Small under `cargo test`.
    let is_real = std::env::args().any(|argument| argument == "--bench");
    let (batches, calls) = if is_real { (4000, 4000) } else { (8, 8) };
    let server = Server::start(Durability::None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ours = runtime.block_on(tokio::task::LocalSet::new().run_until(pass(&server, batches)));
    let per_s = ours.items as f64 / ours.spent.as_secs_f64();
    let at = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
    println!("{PARTITIONS} partitions, {ITEMS_PER_CALL} items a call, {IN_FLIGHT} batches under way, {ITEM_BYTES} octets an item");
    println!("one coordinator: {per_s:.0} items/s enqueued, leased, completed and settled ({} items)", ours.items);
    for (name, histogram) in [("enqueue", &ours.enqueue), ("lease", &ours.lease), ("complete", &ours.complete), ("all three", &ours.all)] {
        println!("  {name:10} of a batch: p50 {:.2} ms, p99 {:.2} ms", at(histogram, 0.5), at(histogram, 0.99));
    }
    let installed = |name: &&&str| Command::new(**name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let Some(program) = ["valkey-benchmark", "redis-benchmark"].iter().find(installed) else {
        return println!("valkey-benchmark is missing: nothing to compare with");
    };
    let ceiling = ceiling(program, &server, calls).unwrap_or_else(|reason| panic!("{program}: {reason}"));
    println!(
        "{program}, the same scripts and batches: enqueue {:.0}, lease {:.0}, complete {:.0}, settle {:.0} calls/s",
        ceiling[0], ceiling[1], ceiling[2], ceiling[3]
    );
    let seconds: f64 = ceiling.iter().map(|calls_per_s| 1.0 / calls_per_s).sum();
    let items = ITEMS_PER_CALL as f64 / seconds;
    let ratio = per_s / items;
    let verdict = match ratio >= GOAL {
        _ if !is_real => "",
        true => ": reached",
        false => ": MISSED",
    };
    println!("which is {items:.0} items/s; ratio {ratio:.2}, goal {GOAL}{verdict}");
}

fn nanoseconds() -> Histogram<u64> {
    Histogram::new_with_bounds(1, NANOSECONDS_MAX, 3).expect("the bounds are constants in order")
}

struct Passed {
    items: usize,
    spent: Duration,
    enqueue: Histogram<u64>,
    lease: Histogram<u64>,
    complete: Histogram<u64>,
    all: Histogram<u64>,
}

fn queue(server: &Server) -> WorkQueue {
    let valkey = Valkey::with_scripts(target(server), Scripts::shipped(), Duration::from_secs(5));
    let bounds = QueueBounds { partitions: PARTITIONS, capacity: 1_000_000, dead_max: 1000 };
    let me = Incarnation::of_this_process("n1".parse().expect("a node id"));
    WorkQueue::new(valkey, Keyspace::new("ringpost:bench").expect("a keyspace"), QUEUE, bounds, ItemKey::new(b"bench"), me).expect("a name")
}

/// Octets that do not compress (splitmix64), the same in each run.
fn content() -> Vec<u8> {
    let mix = |value: u64| (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (0..ITEM_BYTES as u64).map(|number| (mix(number.wrapping_mul(0x9E37_79B9_7F4A_7C15)) >> 40) as u8).collect()
}

/// Batches of items through the queue: whoever enqueues one leases one of that partition, completes it and settles it as its owner.
async fn pass(server: &Server, batches: usize) -> Passed {
    let queue = Rc::new(queue(server));
    let owner = "n1".parse::<NodeId>().expect("a node id");
    let (permits, content) = (Arc::new(Semaphore::new(IN_FLIGHT)), Rc::new(content()));
    let mut tasks = Vec::new();
    let began = Instant::now();
    for batch in 0..batches {
        let permit = permits.clone().acquire_owned().await.expect("it is not closed");
        let (queue, owner, content) = (queue.clone(), owner.clone(), content.clone());
        tasks.push(tokio::task::spawn_local(async move {
            let partition = u16::try_from(batch % usize::from(PARTITIONS)).expect("few partitions");
            // What varies stands first: the last characters of a name hardly move it to another partition.
            let ids = (0_usize..).map(|number| format!("{number}:{batch}:of-a-bench")).filter(|id| queue.partition(id) == partition);
            let items: Vec<NewItem> = ids
                .take(ITEMS_PER_CALL)
                .map(|id| NewItem {
                    id,
                    owner: owner.clone(),
                    priority: 5,
                    max_attempts: 5,
                    delay_ms: 0,
                    expires_in_ms: 0,
                    data: content.to_vec(),
                })
                .collect();
            let begun = Instant::now();
            let (_, added) = queue.enqueue(partition, &items).await.expect("the server answers");
            assert!(added.iter().all(|answer| *answer == Enqueued::Added));
            let enqueued = Instant::now();
            let (_, leased) = queue.lease(partition, ITEMS_PER_CALL, 30_000, 30_000, 1 << 20).await.expect("the server answers");
            assert_eq!(leased.len(), ITEMS_PER_CALL, "as many as were added by then");
            assert!(leased.iter().all(|item| item.data.as_ref().is_ok_and(|data| data.len() == ITEM_BYTES)));
            let leases_at = Instant::now();
            let leases: Vec<_> = leased.iter().map(|item| (item.id.as_str(), item.token.as_str(), "n1 done")).collect();
            let (_, completed) = queue.complete(partition, &leases).await.expect("the server answers");
            assert!(completed.iter().all(|answer| *answer == Completed::Done));
            let ended = Instant::now();
            let ids: Vec<&str> = leased.iter().map(|item| item.id.as_str()).collect();
            assert_eq!(queue.settled(partition, &ids).await.expect("the server answers"), ITEMS_PER_CALL as u64);
            drop(permit);
            [enqueued - begun, leases_at - enqueued, ended - leases_at, ended - begun]
        }));
    }
    let mut passed = Passed {
        items: batches * ITEMS_PER_CALL,
        spent: Duration::ZERO,
        enqueue: nanoseconds(),
        lease: nanoseconds(),
        complete: nanoseconds(),
        all: nanoseconds(),
    };
    for task in tasks {
        let [enqueue, lease, complete, all] = task.await.expect("no batch fails");
        for (histogram, took) in
            [(&mut passed.enqueue, enqueue), (&mut passed.lease, lease), (&mut passed.complete, complete), (&mut passed.all, all)]
        {
            histogram.saturating_record(took.as_nanos() as u64);
        }
    }
    passed.spent = began.elapsed();
    let stats = queue.stats().await.expect("the server answers");
    assert_eq!((stats.total, stats.unsettled), (0, 0), "everything went through");
    passed
}

/// Calls a second of each script with a batch each: enqueue of new items, lease of them, and complete by tokens that are stale, which is
/// less work than an honest completion: the ceiling is too high rather than too low.
fn ceiling(program: &str, server: &Server, calls: usize) -> Result<[f64; 4], String> {
    let keys = Keyspace::new("ringpost:bench").expect("a keyspace").queue("ceiling", 0);
    let body = "x".repeat(ITEM_BYTES + 40);
    let mut enqueue: Vec<String> = ["random", "100000000", "channel"].map(str::to_owned).into();
    let mut complete: Vec<String> = ["random", "channel", "604800000"].map(str::to_owned).into();
    let mut settle = vec!["n1".to_owned()];
    for _ in 0..ITEMS_PER_CALL {
        settle.push("n1:__rand_int__".to_owned());
        enqueue.extend(["n1:__rand_int__", "n1", "5", "5", "0", "0", &body].map(str::to_owned));
        complete.extend(["n1:__rand_int__", "stale", "n1 done"].map(str::to_owned));
    }
    let count = ITEMS_PER_CALL.to_string();
    // What such a body says that it unpacks to is anything.
    let lease = ["random", "worker", &count, "token", "30000", "30000", "1000", "4194304", "1000000000000"].map(str::to_owned);
    let measure = |script: &'static str, args: &[String]| -> Result<f64, String> {
        let source = Scripts::shipped().named(script).source();
        let loaded = Command::new(program.replace("benchmark", "cli"))
            .args(["-p", &server.port().to_string(), "SCRIPT", "LOAD", source])
            .output()
            .map_err(|error| error.to_string())?;
        let hash = String::from_utf8_lossy(&loaded.stdout).trim().to_owned();
        let output = Command::new(program)
            .args(["-p", &server.port().to_string(), "-n", &calls.to_string(), "-c", "1", "-P", &IN_FLIGHT.to_string()])
            .args(["-r", "1000000000", "-q", "EVALSHA", &hash, &keys.len().to_string()])
            .args(&keys)
            .args(args)
            .output()
            .map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "\n");
        let line = text.lines().rev().find_map(|line| line.split_once(" requests per second"));
        let figure = line.and_then(|(before, _)| before.rsplit(' ').next()?.parse().ok());
        figure.ok_or_else(|| format!("{}{}", text.lines().last().unwrap_or_default(), String::from_utf8_lossy(&output.stderr)))
    };
    Ok([
        measure("queue_enqueue", &enqueue)?,
        measure("queue_lease", &lease)?,
        measure("queue_complete", &complete)?,
        measure("queue_settled", &settle)?,
    ])
}
