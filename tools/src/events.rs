//! Nothing is looked for, everything is told: how long a lone message waits for its first attempt, how exactly a retry comes, and
//! how often an idle engine wakes.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;

use crate::destinations::hops::{Hops, Temper};
use crate::destinations::source::{Due, Sent, send};
use crate::engine::{Engine, EngineOptions, Route, rig_base, rig_folder};
use crate::heading::Heading;

/// From the 250 to MAIL at the next hop over a kept connection, half of them; both ends are one thread of the rig.
const FIRST_ATTEMPT_MAX: Duration = Duration::from_millis(1);
/// A retry comes so much after its time at most, half of them.
const RETRY_LATE_MAX: Duration = Duration::from_millis(3);
/// 99 of 100 of both: what they wait for is an event, and the rest is this machine. Whoever looked for work ten times a second would be beyond it.
const P99_MAX: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_secs(1);
/// Wake-ups of a shard in a second without mail.
const WAKEUPS_PER_S_MAX: f64 = 0.5;
const IDLE: Duration = Duration::from_secs(8);

/// What to measure.
#[derive(Debug, Args)]
pub struct EventsArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Lone messages to a next hop whose connection is kept, and to one that greylists.
    #[arg(long, default_value_t = 200)]
    messages: usize,
}

/// Measures; true when all of it is in time.
pub fn run(arguments: &EventsArguments) -> Result<bool, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, measure(arguments))
}

async fn measure(arguments: &EventsArguments) -> Result<bool, Box<dyn std::error::Error>> {
    let began = Instant::now();
    let hops = Hops::start(&[Temper::Healthy, Temper::Greylisting], began).await?;
    let folder = rig_folder("events")?;
    let mut options = EngineOptions::new(&arguments.engine, folder.path(), Route::Discard)?;
    options.lines.retain(|(section, _)| *section != "queue");
    options.lines.push(("queue", format!("retry_base = \"{}s\"\nretry_jitter = \"0 %\"", RETRY.as_secs())));
    for (number, address) in hops.addresses.iter().enumerate() {
        write!(options.routes, "[[route]]\ndomain = \"d{number}.test\"\nvia = \"smarthost\"\nhosts = [\"{address}\"]\n")?;
    }
    let mut engine = Engine::new(options)?;
    engine.start()?;
    Heading::observe(&arguments.engine, &rig_base()).say(false)?;

    // One at a time, far apart: each finds an idle engine and a kept connection. Each second one is greylisted.
    let start = began.elapsed() + Duration::from_millis(500);
    let due = |number: usize| Due { at: start + Duration::from_millis(30) * number as u32, domain: Some(number % 2) };
    let sent = Rc::new(Sent::default());
    send(engine.address, Rc::new((0..2 * arguments.messages).map(due).collect()), 1, began, sent.clone()).await?;
    let waiting = Instant::now();
    while hops.accounts[1].messages.get() < arguments.messages as u64 && waiting.elapsed() < Duration::from_secs(30) {
        engine.must_run()?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answered: HashMap<usize, Instant> = sent.answered.borrow().iter().copied().collect();
    let mut first: Vec<Duration> = hops.accounts[0].mails.borrow().iter().map(|(number, at)| at.duration_since(answered[number])).collect();
    let greylisted: HashMap<usize, Instant> = hops.accounts[1].greylisted.borrow().iter().copied().collect();
    let mails = hops.accounts[1].mails.borrow().clone();
    let mut late: Vec<Duration> = mails
        .iter()
        .filter_map(|(number, at)| at.checked_duration_since(*greylisted.get(number)?))
        .filter(|since| *since > RETRY / 2)
        .map(|since| since.saturating_sub(RETRY))
        .collect();
    first.sort_unstable();
    late.sort_unstable();
    if first.len() < arguments.messages || late.len() < arguments.messages {
        return Err(format!("{} of {} messages came, {} retries", first.len(), arguments.messages, late.len()).into());
    }
    let at = |sorted: &[Duration], share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];
    let shown = |sorted: &[Duration]| format!("p50 {:.2?}, p99 {:.2?}, max {:.2?}", at(sorted, 0.5), at(sorted, 0.99), at(sorted, 1.0));
    println!("250 to MAIL at the next hop, {} lone messages over a kept connection: {}", first.len(), shown(&first));
    println!("retries after their {RETRY:?}, {} of them: {}", late.len(), shown(&late));

    // Connections time out, memory is given back; then nothing is left to do.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let pid = engine.pid().ok_or("the engine has ended")?;
    let before = shard_switches(pid)?;
    tokio::time::sleep(IDLE).await;
    let wakeups = shard_switches(pid)? - before;
    println!("wake-ups of the shard in {IDLE:?} without mail: {wakeups}");
    let good = at(&first, 0.5) <= FIRST_ATTEMPT_MAX
        && at(&late, 0.5) <= RETRY_LATE_MAX
        && at(&first, 0.99).max(at(&late, 0.99)) <= P99_MAX
        && wakeups as f64 / IDLE.as_secs_f64() <= WAKEUPS_PER_S_MAX;
    println!("{}", if good { "events: OK" } else { "events: FAILED" });
    Ok(good)
}

/// How often the shards of an engine have gone to sleep.
fn shard_switches(pid: u32) -> Result<u64, Box<dyn std::error::Error>> {
    let mut switches = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        if std::fs::read_to_string(task.join("comm"))?.starts_with("shard-") {
            let status = std::fs::read_to_string(task.join("status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            switches += line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or_default();
        }
    }
    Ok(switches)
}
