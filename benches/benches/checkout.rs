//! What do a pool checkout and a routing look-up cost? Expected: a look-up in a hash table of 10,000 domains 30 ns (a fast hash of 20 octets
//! and a cold line), a checkout 20 ns (a list of idle connections, two cells); 20 M/s each, however many connections are idle.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::num::NonZeroU16;
use std::path::Path;
use std::rc::Rc;

use ringpost_benches::queued::{DESTINATIONS, Queued};
use ringpost_benches::{Random, Run, Size};
use ringpost_config::Config;
use ringpost_engine::pool::{Acquired, Parked, Pool};
use ringpost_engine::pool_limits::PoolLimits;
use ringpost_engine::share::Share;
use ringpost_queue::{Dispatch, RetryPolicy, Route, Routes, Via};

const BURST: usize = 256;
const GOAL: Option<f64> = Some(20.0);

/// As in the engine.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mut run = Run::begin("checkout", include_str!("checkout.rs"));
    for domains in [10, 10_000] {
        let route = |pattern: String| Route { pattern, via: Via::Discard, retry: RetryPolicy::default(), limits: Default::default() };
        let names: Vec<String> = (0..domains).map(|number| format!("mail{number}.example.com")).collect();
        let patterns = names.iter().cloned().chain(["*".into(), "*.example.net".into()]);
        let routes = Routes::new(patterns.map(route).collect()).expect("the table is valid");
        let mut random = Random::default();
        let asked: Vec<&[u8]> = (0..BURST * 16).map(|_| names[random.below(names.len())].as_bytes()).collect();
        let mut at = 0;
        run.measure(
            &format!("route of a domain, {domains} in the table"),
            GOAL,
            Size { samples: 50_000, operations: BURST as u64 },
            || {
                at = (at + BURST) % asked.len();
                asked[at..at + BURST].iter().map(|domain| black_box(routes.find(black_box(domain))).map_or(0, |id| u64::from(id.0))).sum()
            },
        );
        let unknown: Vec<String> = (0..BURST).map(|number| format!("mx.unknown{number}.org")).collect();
        run.measure(&format!("no route but `*`, {domains} in the table"), None, Size { samples: 20_000, operations: BURST as u64 }, || {
            unknown.iter().map(|domain| black_box(routes.find(black_box(domain.as_bytes()))).map_or(0, |id| u64::from(id.0))).sum()
        });
    }
    let config = Config::parse("hostname = \"bench.example.com\"\n", Path::new("bench.toml")).expect("the defaults are valid");
    for idle in [DESTINATIONS, 1_000] {
        let share = Share { shard: 0, shards: NonZeroU16::MIN };
        let pool = Rc::new(Pool::new(&config, share, Rc::default()));
        let limits = PoolLimits { max_idle: idle, connections_max: u32::MAX, ..pool.limits(None) };
        let mut queued = Queued::new(4 * BURST);
        // Dispatches to many destinations, and for each destination connections that wait.
        let mut dispatches = Vec::new();
        for _ in 0..BURST {
            queued.poll();
            dispatches.extend(queued.take_open());
        }
        // The youngest idle connection of a destination is the one that is handed the attempt.
        let mut parked: Vec<Vec<Rc<Parked<Dispatch>>>> = vec![Vec::new(); DESTINATIONS + 1];
        for number in 0..idle {
            let connection = Rc::new(Parked::default());
            let destination = dispatches[number % BURST].destination();
            pool.park(destination, &connection, &limits);
            parked[destination.index()].push(connection);
        }
        dispatches.retain(|dispatch| !parked[dispatch.destination().index()].is_empty());
        let mut random = Random::default();
        run.measure(&format!("checkout and return, {idle} idle"), GOAL, Size { samples: 20_000, operations: BURST as u64 }, || {
            let mut sum = 0;
            for _ in 0..BURST {
                let dispatch = dispatches.swap_remove(random.below(dispatches.len()));
                let destination = dispatch.destination();
                let acquired = pool.acquire(destination, dispatch, &limits);
                assert!(matches!(acquired, Acquired::Handed), "a connection of each destination is idle");
                let connection = parked[destination.index()].last().expect("as was just seen");
                dispatches.push(connection.take().expect("the youngest is taken"));
                pool.park(destination, connection, &limits);
                sum += destination.index() as u64;
            }
            sum
        });
        // What of it is the bench's: a draw, a dispatch out of a list and back, its connection in two lists. Nothing is subtracted.
        run.measure(&format!("of that the bench's own, {idle} idle"), None, Size { samples: 20_000, operations: BURST as u64 }, || {
            let mut sum = 0;
            for _ in 0..BURST {
                let dispatch = dispatches.swap_remove(random.below(dispatches.len()));
                let destination = dispatch.destination();
                black_box(parked[destination.index()].last().expect("as before"));
                dispatches.push(black_box(dispatch));
                sum += destination.index() as u64;
            }
            sum
        });
        // Dispatches end with the bench: the queue that wants them back ends, too.
        dispatches.clear();
    }
    run.end();
}
