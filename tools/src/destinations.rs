//! A thousand destinations by Zipf's law, some of them dead, slow or greylisting: the healthy ones must not notice.
//!
//! Two runs in turn with the same schedule, seed and next hops: in the first only the mail for healthy destinations is sent, in the
//! second all of it. A flush of a shared disk that takes long moves a p99 below a millisecond by more than what is looked for, so the
//! medians of several rounds are compared. What counts is the time from a message's content to its arrival at a healthy next hop, and what the next
//! hops themselves saw of limits and of connections.

pub(crate) mod hops;
pub(crate) mod source;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use ringpost_loadtest::pinning::raise_open_files;

use crate::destinations::hops::{Hops, Temper};
use crate::destinations::source::{Due, Sent, schedule, send};
use crate::engine::{Engine, EngineOptions, Route, rig_base, rig_folder};
use crate::heading::Heading;

/// The healthy ones' p99 may grow by this factor.
const P99_RATIO_MAX: f64 = 1.5;
/// Connections of one destination.
const CONNECTIONS_MAX: u32 = 5;
/// The domain whose rate is limited, and how.
const RATED: usize = 0;
const RATE_PER_S: usize = 20;
/// Connections that one of the 50 largest sees in a run, on average: twice as many as it may have at once.
const CONNECTIONS_IN_ALL_MAX: f64 = 2.0 * CONNECTIONS_MAX as f64;
/// The mail of good next hops must all have arrived so long after the last was sent.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to measure.
#[derive(Debug, Args)]
pub struct DestinationsArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Destinations.
    #[arg(long, default_value_t = 1000)]
    destinations: usize,
    /// Messages per second.
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// Seconds of each run.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Runs of each kind, in turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Sessions of the source.
    #[arg(long, default_value_t = 50)]
    sessions: usize,
    /// Decides who gets what.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What came of one run.
struct Run {
    delays_us: Vec<u64>,
    delivered: u64,
    sent_healthy: u64,
    /// Accepted, taken by whichever next hop, and still queued at the end.
    account: [u64; 3],
    /// To each of the healthy ones among the 50 largest, on average.
    connections_of_large: f64,
    messages_per_connection: f64,
    open_max: u32,
    rated_max_per_s: usize,
    rated: u64,
    late_max: Duration,
    breakers_opened: u64,
    pool: String,
}

/// Runs both; true when the healthy destinations did not notice and no limit was exceeded.
pub fn run(arguments: &DestinationsArguments) -> Result<bool, Box<dyn std::error::Error>> {
    raise_open_files();
    let tempers: Vec<Temper> = (0..arguments.destinations).map(temper).collect();
    let all = schedule(arguments.destinations, arguments.rate, arguments.seconds, arguments.seed);
    let healthy = |domain: usize| tempers[domain] == Temper::Healthy && domain != RATED;
    let only_good: Vec<Due> =
        all.iter().map(|due| Due { domain: due.domain.filter(|&domain| tempers[domain] == Temper::Healthy), ..*due }).collect();
    Heading::observe(&arguments.engine, &rig_base()).say(false)?;
    let count = |wanted: &[Temper]| tempers.iter().filter(|temper| wanted.contains(temper)).count();
    println!(
        "{} destinations by Zipf's law: {} refuse or are silent, {} are slow, {} greylist; {} messages/s for {} s, seed {}",
        arguments.destinations,
        count(&[Temper::Refusing, Temper::Silent]),
        count(&[Temper::Slow]),
        count(&[Temper::Greylisting]),
        arguments.rate,
        arguments.seconds,
        arguments.seed
    );
    let (mut good, mut p99s) = (true, [Vec::new(), Vec::new()]);
    for _ in 0..arguments.rounds.max(1) {
        for ((name, due), p99s) in [("without the bad ones", &only_good), ("with them", &all)].into_iter().zip(&mut p99s) {
            let run = one_run(arguments, &tempers, due.clone(), &healthy)?;
            print(name, &run);
            p99s.push(percentile(&run.delays_us, 0.99));
            if run.delivered < run.sent_healthy {
                println!("{} messages for healthy destinations did not arrive", run.sent_healthy - run.delivered);
                good = false;
            }
            let [sent, taken, queued] = run.account;
            if taken + queued != sent {
                println!("of {sent} messages {taken} were taken, and {queued} are queued");
                good = false;
            }
            if run.connections_of_large > CONNECTIONS_IN_ALL_MAX {
                println!(
                    "{:.1} connections to each of the largest, at most {CONNECTIONS_IN_ALL_MAX}: they are hardly used again",
                    run.connections_of_large
                );
                good = false;
            }
            if run.open_max > CONNECTIONS_MAX || run.rated_max_per_s > RATE_PER_S + 1 {
                println!("a limit was exceeded");
                good = false;
            }
        }
    }
    let [before, after] = p99s.each_mut().map(|p99s| {
        p99s.sort_unstable();
        p99s[p99s.len() / 2]
    });
    let ratio = after as f64 / before.max(1) as f64;
    println!(
        "p99 of the healthy, medians of {}: {before} us without, {after} us with; {ratio:.2} times (at most {P99_RATIO_MAX})",
        p99s[0].len()
    );
    good &= ratio <= P99_RATIO_MAX;
    println!("{}", if good { "destinations: OK" } else { "destinations: FAILED" });
    Ok(good)
}

/// Three of each ten ranks are bad, so that some of the largest destinations are.
fn temper(rank: usize) -> Temper {
    match rank % 10 {
        3 if (rank / 10).is_multiple_of(2) => Temper::Silent,
        3 => Temper::Refusing,
        5 => Temper::Slow,
        7 => Temper::Greylisting,
        _ => Temper::Healthy,
    }
}

fn one_run(
    arguments: &DestinationsArguments,
    tempers: &[Temper],
    schedule: Vec<Due>,
    healthy: &impl Fn(usize) -> bool,
) -> Result<Run, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let began = Instant::now();
        let hops = Hops::start(tempers, began).await?;
        let folder = rig_folder("destinations")?;
        let mut options = EngineOptions::new(&arguments.engine, folder.path(), Route::Discard)?;
        options.lines.push(("delivery", format!("connections_max = {CONNECTIONS_MAX}\nwindow_initial = 2\nbanner_timeout = \"5s\"")));
        let mut routes = String::new();
        for (number, address) in hops.addresses.iter().enumerate() {
            let rate = if number == RATED { format!("rate = \"{RATE_PER_S}/s\"\n") } else { String::new() };
            write!(routes, "[[route]]\ndomain = \"d{number}.test\"\nvia = \"smarthost\"\nhosts = [\"{address}\"]\n{rate}")?;
        }
        options.routes = routes;
        let mut engine = Engine::new(options)?;
        // Blocking, with nothing else to do on this thread yet.
        engine.start()?;
        let sent_all = schedule.iter().filter(|due| due.domain.is_some()).count() as u64;
        let sent_healthy = schedule.iter().filter(|due| due.domain.is_some_and(healthy)).count() as u64;
        let sent = Rc::new(Sent::default());
        // Connections first, then the schedule: its first message is due in a moment.
        let start = Instant::now() + Duration::from_millis(500);
        let shift = start.duration_since(began);
        let shifted: Vec<Due> = schedule.into_iter().map(|due| Due { at: due.at + shift, ..due }).collect();
        send(engine.address, Rc::new(shifted), arguments.sessions, began, sent.clone()).await?;
        let delivered =
            || -> u64 { (0..tempers.len()).filter(|&number| healthy(number)).map(|number| hops.accounts[number].messages.get()).sum() };
        let waiting = Instant::now();
        while delivered() < sent_healthy && waiting.elapsed() < PATIENCE {
            engine.must_run()?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let taken = || -> u64 { hops.accounts.iter().map(|account| account.messages.get()).sum() };
        let count = |name: &str| engine.stats()[name].as_u64().unwrap_or_default();
        // What slow ones have taken is settled a moment later, and counted on both sides until then.
        while taken() + count("queue_messages") != sent_all && waiting.elapsed() < 2 * PATIENCE {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let account = [sent_all, taken(), count("queue_messages")];
        let stats = engine.stats();
        let stat = |name: &str| stats[name].as_u64().unwrap_or_default();
        let mut delays_us = Vec::new();
        let (mut messages, mut connections, mut large) = (0, 0, 0);
        for (number, account) in hops.accounts.iter().enumerate().filter(|(number, _)| healthy(*number)) {
            delays_us.extend_from_slice(&account.delays_us.borrow());
            // Of destinations that had few messages far apart no reuse can be asked.
            if number < 50 {
                messages += account.messages.get();
                connections += account.connections.get();
                large += 1;
            }
        }
        delays_us.sort_unstable();
        Ok(Run {
            delivered: delivered(),
            sent_healthy,
            account,
            delays_us,
            connections_of_large: connections as f64 / f64::from(large.max(1)),
            messages_per_connection: messages as f64 / connections.max(1) as f64,
            open_max: hops.accounts.iter().map(|account| account.open_max.get()).max().unwrap_or_default(),
            rated_max_per_s: most_within_a_second(&hops.accounts[RATED].arrivals.borrow()),
            rated: hops.accounts[RATED].messages.get(),
            late_max: sent.late_max.get(),
            breakers_opened: stat("breakers_opened"),
            pool: format!(
                "created {}, reused {}, idle time-outs {}, waits {}",
                stat("pool_created"),
                stat("pool_reused"),
                stat("pool_idle_timeouts"),
                stat("pool_wait_count")
            ),
        })
    })
}

/// The most arrivals within any second.
fn most_within_a_second(arrivals: &[Instant]) -> usize {
    let mut end = 0;
    let mut most = 0;
    for (start, from) in arrivals.iter().enumerate() {
        while arrivals.get(end).is_some_and(|at| at.duration_since(*from) < Duration::from_secs(1)) {
            end += 1;
        }
        most = most.max(end - start);
    }
    most
}

fn percentile(sorted: &[u64], share: f64) -> u64 {
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

fn print(name: &str, run: &Run) {
    let ms = |share| percentile(&run.delays_us, share) as f64 / 1000.0;
    println!(
        "{name}: {} of {} healthy messages; content to delivered p50 {:.2} ms, p90 {:.2}, p99 {:.2}, p99.9 {:.2}, max {:.2}",
        run.delivered,
        run.sent_healthy,
        ms(0.5),
        ms(0.9),
        ms(0.99),
        ms(0.999),
        ms(1.0)
    );
    println!(
        "    {:.1} messages per connection at the 50 largest; most connections of one destination {} (limit {CONNECTIONS_MAX}); \
         most messages within a second at the limited one {} of {} (limit {RATE_PER_S}/s)",
        run.messages_per_connection, run.open_max, run.rated_max_per_s, run.rated
    );
    println!("    breakers opened {}; pool: {}; source late by {:.1?} at most", run.breakers_opened, run.pool, run.late_max);
}
