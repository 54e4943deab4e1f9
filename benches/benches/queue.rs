//! How many queue operations does a core do, with real entries in random order over 64 destinations, while 1e3 to 1e7 messages wait?
//! Expected: about six cache lines over enqueue, poll and settle; 50 ns each while they are warm (20 M/s at 1e4), 200 ns when each
//! message is cold (5 M/s at 1e6). Up to 1e4 instructions decide (see `instructions`). Beyond, messages have left the cache when they are
//! linked and when they are polled: each is then loaded along with others, so that one wait is shared by eight or sixteen.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use ringpost_benches::queued::Queued;
use ringpost_benches::{Run, nanoseconds};
use ringpost_tools::machine::status_kib;

/// Operations of one kind between two looks at the clock.
const BURST: u64 = 64;
/// Attempts that stay open, so that what is settled is not what was started last.
const OPEN: usize = 512;
/// Memory of a waiting message, index and addresses included, generously.
const MESSAGE_BYTES: usize = 500;

/// As in the engine.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mut run = Run::begin("queue", include_str!("queue.rs"));
    let room = available_bytes();
    let depths: &[usize] = run.of(&[1_000, 10_000, 100_000, 1_000_000, 10_000_000], &[1_000]);
    for &depth in depths {
        if depth * MESSAGE_BYTES > room / 2 {
            println!("depth {depth}: left out, {} MiB are free", room >> 20);
            continue;
        }
        let goal = match depth {
            10_000 => Some(20.0),
            1_000_000 => Some(5.0),
            _ => None,
        };
        let mut queued = Queued::new(depth.max(2 * OPEN));
        (0..OPEN).for_each(|_| queued.poll());
        // Slots are used again in random order once every message has passed.
        let rounds = run.of((depth as u64 / BURST).clamp(3_000, 40_000), 3);
        passes(&mut queued, run.of(rounds, 1), |_, _, _| ());
        let mut each = [nanoseconds(), nanoseconds(), nanoseconds()];
        let (mut all, mut times) = (nanoseconds(), [Duration::ZERO; 3]);
        passes(&mut queued, rounds, |kind, took, whole| {
            each[kind].saturating_record(took.as_nanos() as u64 / BURST);
            times[kind] += took;
            if let Some(whole) = whole {
                all.saturating_record(whole.as_nanos() as u64 / (3 * BURST));
            }
        });
        let sum = queued.checksum;
        for (kind, name) in ["enqueue", "poll", "settle"].into_iter().enumerate() {
            run.report(&format!("depth {depth}: {name}"), None, &each[kind], rounds * BURST, times[kind], sum);
        }
        run.report(&format!("depth {depth}: all"), goal, &all, 3 * rounds * BURST, times.iter().sum(), sum);
        let mut deferred = nanoseconds();
        let defer_burst = |queued: &mut Queued| {
            for _ in 0..BURST {
                queued.poll();
                queued.defer();
            }
        };
        // The first of all brings code and the room for replies into memory, which is the p99 where there are only a few.
        defer_burst(&mut queued);
        let begun = Instant::now();
        for _ in 0..rounds.min(depth as u64 / (2 * BURST)) {
            let begun = Instant::now();
            defer_burst(&mut queued);
            deferred.saturating_record(begun.elapsed().as_nanos() as u64 / (2 * BURST));
        }
        let operations = 2 * BURST * rounds.min(depth as u64 / (2 * BURST));
        run.report(&format!("depth {depth}: poll and defer"), None, &deferred, operations, begun.elapsed(), queued.checksum);
    }
    run.end();
}

/// Bursts of enqueue, poll, settle; `note` is told how long each took, and behind a settle how long all three.
fn passes(queued: &mut Queued, rounds: u64, mut note: impl FnMut(usize, Duration, Option<Duration>)) {
    for _ in 0..rounds {
        let mut whole = Duration::ZERO;
        for (kind, operation) in [Queued::enqueue, Queued::poll, Queued::settle].into_iter().enumerate() {
            let begun = Instant::now();
            (0..BURST).for_each(|_| operation(queued));
            let took = begun.elapsed();
            whole += took;
            note(kind, took, (kind == 2).then_some(whole));
        }
    }
}

fn available_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    let own = status_kib(std::process::id(), "VmRSS").unwrap_or(0) as usize;
    (line.unwrap_or(0) + own) << 10
}
