//! Priorities on the real binary, as the next hop sees them: an urgent message overtakes all that waits, and what is not urgent goes on while
//! urgent mail never ends.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use ringpost_loadtest::schedule::Rate;
use ringpost_loadtest::sink::Sink;
use ringpost_loadtest::source::SourceOptions;

use crate::engine::{Engine, EngineOptions, Route, rig_base, rig_folder};
use crate::heading::Heading;
use crate::machine;
use crate::traffic::{Sent, next_hop, texts};

/// What waits in the first part has the lowest priority there is, and the one that overtakes it the highest.
const LOWEST: u8 = 0;
const HIGHEST: u8 = 9;
/// In the second part one level lies between them: each is worth 30 s of waiting, and a run is to end.
const LOW: u8 = 4;
const HIGH: u8 = 5;
/// Messages a second that leave in the second part, by `delivery.rate`; the urgent ones alone are more than that.
const LEAVING_PER_S: f64 = 100.0;
const HIGH_PER_S: f64 = 110.0;
const LOW_PER_S: f64 = 10.0;
/// Low ones that leave, of those that come, once the first have waited for as long as a level is worth. In the long run it is the share of all
/// that leaves of all that comes, 100 of 120.
const LOW_SHARE_MIN: f64 = 0.5;
/// But for what leaves before urgent mail waits, the first of them leaves when the urgent ones have left that came in its first 30 s, which
/// takes 33 s.
const LOW_GAP_MAX_S: f64 = 40.0;
/// What ends by itself is waited for so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Debug, Args)]
pub struct PrioritiesArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Messages of the lowest priority that wait when the urgent one comes.
    #[arg(long, default_value_t = 100_000)]
    messages: u64,
    /// Seconds of urgent mail without end; below 50 nothing that is not urgent has its turn in them.
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u64).range(50..=3600))]
    seconds: u64,
}

/// Runs both parts; true when the urgent one left first, and the others went on.
pub fn run(arguments: &PrioritiesArguments) -> Result<bool, Box<dyn Error>> {
    Heading::observe(&arguments.engine, &rig_base()).say(false)?;
    let overtakes = overtaking(arguments)?;
    let goes_on = going_on(arguments)?;
    println!("{}", if overtakes && goes_on { "priorities: OK" } else { "priorities: FAILED" });
    Ok(overtakes && goes_on)
}

/// An engine with one connection to a next hop that writes down who came, and a listener for each of two priorities.
struct Setup {
    engine: Engine,
    sink: Sink,
    ledger: PathBuf,
    low: SocketAddr,
    high: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Setup {
    fn start(arguments: &PrioritiesArguments, [low, high]: [u8; 2], delivery: &str) -> Result<Self, Box<dyn Error>> {
        let folder = rig_folder("priorities")?;
        let ledger = folder.path().join("arrived");
        let sink = Sink::start(next_hop(Some(ledger.clone()))?)?;
        let mut options = EngineOptions::new(&arguments.engine, folder.path(), Route::Smarthost(sink.address))?;
        options.lines.push(("delivery", format!("connections_max = 1\nwindow_initial = 1{delivery}")));
        let listeners = [machine::free_port()?, machine::free_port()?];
        for (address, priority) in listeners.iter().zip([low, high]) {
            options.tail.push_str(&format!("[[listener]]\naddress = \"{address}\"\npriority = {priority}\n"));
        }
        let mut engine = Engine::new(options)?;
        engine.start()?;
        let [low, high] = listeners;
        Ok(Self { engine, sink, ledger, low, high, _folder: folder })
    }

    /// Whether each of those that arrived was urgent, in the order of their arrival, and when it came by the next hop's clock (microseconds).
    fn arrived(&self) -> Result<Vec<(bool, u64)>, Box<dyn Error>> {
        self.sink.write_ledger();
        arrivals(&std::fs::read_to_string(&self.ledger)?).ok_or_else(|| format!("{}: not a ledger", self.ledger.display()).into())
    }
}

/// The senders and times in the ledger of a sink.
fn arrivals(ledger: &str) -> Option<Vec<(bool, u64)>> {
    let lines = ledger.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut parts = line.split(' ').skip(3);
            let time = parts.next()?.parse().ok()?;
            Some((parts.nth(2)? == "high@x.test", time))
        })
        .collect()
}

fn load(to: SocketAddr, sender: &str, change: impl FnOnce(SourceOptions) -> SourceOptions) -> Result<Sent, String> {
    let options = texts(to, "256B").map_err(|error| error.to_string())?;
    let sent =
        Sent::run(change(SourceOptions { reverse_path: format!("{sender}@x.test"), ..options })).map_err(|error| error.to_string())?;
    match sent.refused + sent.unknown {
        0 => Ok(sent),
        _ => Err(format!("{} of {sender} were not accepted: {}", sent.refused + sent.unknown, sent.last_trouble)),
    }
}

/// All wait, as the destination is paused; then the urgent one comes, and they may go, one after the other.
fn overtaking(arguments: &PrioritiesArguments) -> Result<bool, Box<dyn Error>> {
    let mut setup = Setup::start(arguments, [LOWEST, HIGHEST], "")?;
    setup.engine.ask(&["queue", "pause", "--all"])?;
    let began = Instant::now();
    load(setup.low, "low", |options| SourceOptions { sessions: 100, messages: Some(arguments.messages), ..options })?;
    load(setup.high, "high", |options| SourceOptions { messages: Some(1), ..options })?;
    let (filled, queued) = (began.elapsed(), setup.engine.stats()["queue_messages"].as_u64());
    if setup.sink.messages() > 0 || queued != Some(arguments.messages + 1) {
        return Err(format!("{queued:?} wait and {} have arrived, though the destination is paused", setup.sink.messages()).into());
    }
    setup.engine.ask(&["queue", "resume", "--all"])?;
    let resumed = Instant::now();
    let place = loop {
        if let Some(place) = setup.arrived()?.iter().position(|(is_high, _)| *is_high) {
            break place + 1;
        }
        setup.engine.must_run()?;
        if resumed.elapsed() > PATIENCE {
            return Err(format!("the urgent one has not arrived among the first {}", setup.sink.messages()).into());
        }
        thread::sleep(Duration::from_millis(20));
    };
    println!(
        "{} messages of priority {LOWEST} waited (queued in {:.0} s), and one of priority {HIGHEST} came last: it arrived as number {place}",
        arguments.messages,
        filled.as_secs_f64()
    );
    setup.engine.kill()?;
    setup.sink.stop();
    setup.sink.join()?;
    Ok(place == 1)
}

/// More urgent mail comes than leaves, and a little that is not urgent.
fn going_on(arguments: &PrioritiesArguments) -> Result<bool, Box<dyn Error>> {
    let mut setup = Setup::start(arguments, [LOW, HIGH], &format!("\nrate = \"{LEAVING_PER_S}/s\""))?;
    let open = |to, sender: &'static str, per_s: f64| {
        let duration = Some(Duration::from_secs(arguments.seconds));
        move || load(to, sender, |options| SourceOptions { sessions: 4, duration, rate: Some(Rate::Fixed(per_s)), ..options })
    };
    let (low, high) = (open(setup.low, "low", LOW_PER_S), open(setup.high, "high", HIGH_PER_S));
    let (low, high) = thread::scope(|scope| {
        let (low, high) = (scope.spawn(low), scope.spawn(high));
        (low.join().expect("a load does not panic"), high.join().expect("a load does not panic"))
    });
    let (low, high, arrived) = (low?, high?, setup.arrived()?);
    setup.engine.must_run()?;
    let first = arrived.first().ok_or("nothing has arrived")?.1;
    let at_s = |time: u64| time.saturating_sub(first) as f64 / 1e6;
    // From the first of all on.
    let lows: Vec<f64> = std::iter::once(0.0).chain(arrived.iter().filter(|(is_high, _)| !is_high).map(|(_, time)| at_s(*time))).collect();
    let gap = lows.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    let left = |is_wanted: bool| arrived.iter().filter(|(is_high, _)| *is_high == is_wanted).count() as f64;
    let waiting = high.acknowledged as f64 - left(true);
    println!(
        "for {} s {HIGH_PER_S}/s of priority {HIGH} and {LOW_PER_S}/s of priority {LOW} came, and {LEAVING_PER_S}/s could leave; in 10 s each left of both:",
        arguments.seconds
    );
    let mut last = 0.0;
    for from in (0..arguments.seconds).step_by(10) {
        let within = |time: u64| (from as f64..from as f64 + 10.0).contains(&at_s(time));
        let count = |is_wanted: bool| arrived.iter().filter(|(is_high, time)| *is_high == is_wanted && within(*time)).count() as f64 / 10.0;
        println!("  {from:>4} s {:>6.1}/s {:>6.1}/s", count(true), count(false));
        if from + 10 <= arguments.seconds {
            last = count(false);
        }
    }
    println!(
        "none of priority {LOW} left for {gap:.1} s, and then {last:.1} each second; {:.0} of {} have left, and {waiting:.0} of priority {HIGH} still wait",
        left(false),
        low.acknowledged
    );
    setup.engine.kill()?;
    setup.sink.stop();
    setup.sink.join()?;
    // Without urgent mail that waits all the while it would say nothing.
    Ok(waiting > 0.0 && gap <= LOW_GAP_MAX_S && last >= LOW_PER_S * LOW_SHARE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_tells_who_came_and_when() {
        let ledger = "# run 00 low@x.test\nid 256 sum 1000 intact b@y.test low@x.test\nid 256 sum 2000 intact b@y.test high@x.test\n";
        assert_eq!(arrivals(ledger), Some(vec![(false, 1000), (true, 2000)]));
        assert_eq!(arrivals("no ledger\n"), None);
    }
}
