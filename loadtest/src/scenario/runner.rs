//! One scenario from its start to its result: engine, next hops, load, accounts, verdict.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    cli::{Failure, say},
    diff::{Difference, QueuedMail, compare_with_queue},
    engine::version_of,
    leash::Folder,
    live::{Beside, SourceRun, Viewer, add_end_to_end, run_source},
    machine::Machine,
    process::tree_use,
    random::Random,
    run_result::{Bounds, Load, RunFacts, RunResult},
    scenario::{
        Scenario,
        arrivals::wait_for_arrivals,
        background::Background,
        running_engine::RunningEngine,
        seeds::Seeds,
        under_test::{UnderTest, check_settings, death, hold},
    },
    server_cpu::CpuByPhase,
    signals::StopSignal,
    sink::{Sink, SinkOptions, SinkReport},
    source::{
        arguments::Cores,
        summary::{fates, interrupted_text, load_of, never_begun_text},
    },
};

/// Where a scenario runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// The server under test.
    pub server: Server,
    /// Cores of the generator; the next hop takes them, too.
    pub cores: Cores,
    /// The folder that holds spools and ledgers, on the disk that is measured.
    pub folder: PathBuf,
    /// Keep what a run leaves there.
    pub keep: bool,
    /// Instead of the scenario's seconds ([`Scenario::within`]).
    pub seconds: Option<f64>,
    /// What all that is drawn follows from; none: one is chosen for each run.
    pub seed: Option<u64>,
}

/// The server under test.
#[derive(Debug, Clone)]
pub enum Server {
    /// An engine of one's own.
    Own {
        /// The binary.
        binary: PathBuf,
        /// Its cores.
        cores: Vec<usize>,
    },
    /// One that runs.
    Running {
        /// Where it listens.
        to: SocketAddr,
        /// Where it sends what it accepts, if that is to be us.
        next_hop: Option<SocketAddr>,
        /// Its process, when it is on this machine.
        pid: Option<u32>,
        /// How many cores it has, where that was said.
        cores: Option<u32>,
        /// What it says of itself in its banner.
        banner: String,
        /// Which one it is, where it is one of ours and that is known.
        engine: Option<RunningEngine>,
    },
}

impl Place {
    /// Can these scenarios run here? Asked before the first of them does, as the last may be an hour away.
    ///
    /// # Errors
    /// [`Failure::Data`] with scenario, key and value. [`Failure::Io`]: the folder takes no file.
    pub fn check(&self, scenarios: &[Scenario]) -> Result<(), Failure> {
        for scenario in scenarios.iter().filter(|scenario| self.cannot_run(scenario).is_none()) {
            scenario.check_here(self.cores.0.len()).map_err(Failure::Data)?;
            if let Server::Own { binary, cores } = &self.server {
                check_settings(scenario, binary, cores, &self.folder)?;
            }
        }
        Ok(())
    }

    /// Why this scenario cannot run here, if so.
    pub fn cannot_run(&self, scenario: &Scenario) -> Option<&'static str> {
        match self.server {
            Server::Running { next_hop, .. } => running_cannot(scenario, next_hop),
            Server::Own { .. } => None,
        }
    }
}

/// Why this scenario cannot run against a server that runs already, if so.
pub fn running_cannot(scenario: &Scenario, next_hop: Option<SocketAddr>) -> Option<&'static str> {
    if scenario.engine.kill_after_s.is_some() {
        return Some("a server that runs elsewhere is not killed (leave out --to)");
    }
    // Without the ledgers it would pass whatever became of the mail.
    (scenario.sink.is_some() && next_hop.is_none())
        .then_some("it compares what was accepted with what arrives at the next hop (say --next-hop HOST:PORT, where the server sends it)")
}

/// What became of the next hops and their ledger.
struct Deliveries {
    sinks: Vec<SinkReport>,
    difference: Option<Difference>,
    drain_s: Option<f64>,
    /// Nothing that was accepted is still to be delivered, or there is no next hop that it is for.
    is_drained: bool,
    failures: Vec<String>,
}

/// Runs a scenario that can run here ([`Place::cannot_run`]).
///
/// # Errors
/// What makes a run impossible. A run that shows something bad is a result with `success` false.
pub fn run(scenario: &Scenario, place: &Place, stop: &StopSignal, viewer: &mut dyn Viewer) -> Result<RunResult, Failure> {
    // The result has the course that ran, and how long it was meant to be.
    let planned_s = scenario.seconds;
    let scenario = &scenario.within(place.seconds.unwrap_or(planned_s));
    let folder = Folder::new(&format!("ringpost-{}-", scenario.name), &place.folder);
    let mut folder = folder.map_err(|error| Failure::io(place.folder.display(), error))?;
    if place.keep {
        folder.keep();
        say(&format!("{}: keeps {}", scenario.name, folder.path().display()))?;
    }
    let machine = Machine::observe(folder.path(), &place.server.version());
    let (accepted, delivered) = (folder.path().join("accepted.ledger"), folder.path().join("delivered.ledger"));
    let seed = place.seed.unwrap_or_else(Random::fresh_seed);
    let (sinks, seeds) = start_sinks(scenario, place, &delivered, seed)?;
    let mut under_test = UnderTest::start(scenario, place, folder.path(), sinks.iter().map(|sink| sink.address).collect())?;
    let seconds = scenario.seconds;
    let data = |error: String| Failure::Data(format!("{}: {error}", scenario.name));
    let mut options = scenario.load.options(&scenario.folder, under_test.address, &place.cores, seconds).map_err(data)?;
    (options.ledger, options.seed) = (Some(accepted.clone()), seeds.load);
    let initial_metrics = under_test.counters();
    let cpu_before = under_test.cpu();
    let background = match &scenario.background {
        Some(plan) => {
            let mut options = plan.options(&scenario.folder, under_test.address, &place.cores, seconds + 5.0).map_err(data)?;
            // Nobody measures it, and yet its mail is mail that must arrive.
            (options.ledger, options.seed) = (Some(accepted.clone()), seeds.background);
            Some(Background::start(options)?)
        }
        None => None,
    };
    let server_memory_before = under_test.pid().and_then(|pid| Some(tree_use(pid).ok()?.memory_bytes));
    under_test.kill_later(scenario.engine.kill_after_s);
    let pid = || under_test.pid();
    let beside = Beside { server_pid: Some(&pid), sinks: &sinks };
    let mut ran = run_source(options.clone(), beside, stop, viewer)?;
    let (cpu_loaded, loaded) = (under_test.cpu(), Instant::now());
    let bounds = match &place.server {
        Server::Own { .. } => Bounds::of_engine(&scenario.engine.settings, folder.path(), machine.memory_mib << 20),
        Server::Running { .. } => Bounds::default(),
    };
    // The noise in the background ends with what was measured.
    let in_background = background.map(Background::end);
    let recovery_s = under_test.killed()?;
    let deliveries = account(scenario, &mut under_test, sinks, stop, &mut ran, (&accepted, &delivered))?;
    let drain_lasted_s = loaded.elapsed().as_secs_f64();
    let used = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64();
    // Of one that has died behind the load what it used there is not known, and what its mail would have cost neither.
    let server_cpu_by_phase = match (cpu_before, cpu_loaded, under_test.cpu()) {
        (Some(before), Some(loaded), Some(after)) => Some(CpuByPhase {
            load_s: used(before, loaded),
            drain_s: used(loaded, after),
            drain_lasted_s,
            messages: ran.report.acknowledged + in_background.as_ref().map_or(0, |fared| fared.acknowledged),
            is_drained: deliveries.is_drained,
        }),
        _ => None,
    };
    let final_metrics = under_test.counters_since(&initial_metrics);
    let mut failures = judge(scenario, &ran, &deliveries);
    failures.extend(in_background.iter().flat_map(|fared| fared.failures(&scenario.expect)));
    failures.extend(under_test.end().filter(|failure| !deliveries.failures.contains(failure)));
    let load = Load { server_cores: place.server.cores().or(ran.server_cores), ..load_of(&options, &ran.report) };
    let settings = json!({
        "scenario": scenario, "seconds": seconds, "planned_s": planned_s, "seed": seed, "seeds": seeds, "server": place.server.describe(), "recovery_s": recovery_s,
        "sinks": deliveries.sinks, "difference": deliveries.difference, "drain_s": deliveries.drain_s,
        "last_trouble": ran.report.last_trouble, "background": in_background,
    });
    let facts = RunFacts {
        test_name: scenario.name.clone(),
        started: ran.started,
        duration_s: ran.report.lasted.as_secs_f64(),
        failures,
        interrupted: ran.interrupted,
        fates: fates(&ran.report),
        load,
        bounds,
        settings,
        initial_metrics,
        final_metrics,
        server_cpu_s: server_cpu_by_phase.map(|cpu| cpu.load_s),
        server_cpu_by_phase,
        generator_cpu_s: ran.cpu.as_secs_f64(),
        server_memory_before,
        machine,
    };
    Ok(RunResult::new(ran.measurement, facts))
}

impl Server {
    fn version(&self) -> String {
        match self {
            Server::Own { binary, .. } => version_of(binary),
            Server::Running { banner, engine, .. } => engine.as_ref().and_then(RunningEngine::version).unwrap_or_else(|| banner.clone()),
        }
    }

    fn cores(&self) -> Option<u32> {
        match self {
            Server::Own { cores, .. } => Some(cores.len() as u32),
            Server::Running { cores, .. } => *cores,
        }
    }

    fn describe(&self) -> String {
        match self {
            Server::Own { binary, cores } => format!("{} on cores {cores:?}", binary.display()),
            Server::Running { to, .. } => to.to_string(),
        }
    }
}

/// Starts the next hops, where there are some, and says what all parts draw from.
fn start_sinks(scenario: &Scenario, place: &Place, ledger: &Path, seed: u64) -> Result<(Vec<Sink>, Seeds), Failure> {
    let listen = match (&scenario.sink, &place.server) {
        // A server that runs sends mail on in every scenario: what nobody took of one would come as foreign to the next.
        (_, Server::Running { next_hop: Some(address), .. }) => *address,
        (None, _) | (_, Server::Running { next_hop: None, .. }) => return Ok((Vec::new(), Seeds::new(seed, 0))),
        (Some(_), Server::Own { .. }) => SocketAddr::from(([127, 0, 0, 1], 0)),
    };
    let plan = scenario.sink.clone().unwrap_or_default();
    let (faults, flapping) = plan.parts().map_err(Failure::Data)?;
    let options = SinkOptions {
        cores: place.cores.0.clone(),
        ledger: Some(ledger.to_path_buf()),
        faults,
        flapping,
        reply_delay: plan.delay_ms.0,
        greylist: plan.greylist_s.map(Duration::from_secs_f64),
        connections_max: plan.connections_max,
        per_client_max: plan.per_client_max,
        read_bytes_per_s: plan.read_bytes_per_s,
        ..SinkOptions::new(listen, place.cores.0[0])
    };
    let hosts = if matches!(place.server, Server::Own { .. }) { plan.hosts } else { 1 };
    let seeds = Seeds::new(seed, hosts);
    let sinks = seeds.sinks.iter().map(|&seed| Sink::start(SinkOptions { seed, ..options.clone() }));
    Ok((sinks.collect::<Result<_, _>>()?, seeds))
}

/// Waits until the queue is empty, ends the next hops and compares the ledgers. Where the wait is interrupted, or the engine has died, there is
/// nothing to compare: what did not come is in the queue.
fn account(
    scenario: &Scenario,
    under_test: &mut UnderTest,
    sinks: Vec<Sink>,
    stop: &StopSignal,
    ran: &mut SourceRun,
    (accepted, delivered): (&Path, &Path),
) -> Result<Deliveries, Failure> {
    let mut deliveries =
        Deliveries { sinks: Vec::new(), difference: None, drain_s: None, is_drained: sinks.is_empty(), failures: Vec::new() };
    if sinks.is_empty() {
        return Ok(deliveries);
    }
    let (began, patience) = (Instant::now(), Duration::from_secs_f64(scenario.expect.drain_s_max.clamp(0.1, 1e6)));
    let arrived = || sinks.iter().map(Sink::messages).sum();
    let (mut dead, mut queued) = (None, QueuedMail::default());
    let waited = match &under_test.engine {
        Some(engine) => {
            let mut engine = hold(engine);
            match engine.drain_unless(patience, arrived, || stop.is_asked()) {
                Ok(true) => {
                    deliveries.drain_s = Some(began.elapsed().as_secs_f64());
                    true
                }
                Ok(false) => false,
                Err(error) => {
                    dead = death(&mut engine);
                    if dead.is_none() {
                        // Of a queue that cannot be had nothing is known to wait.
                        queued = engine.queued().unwrap_or_default();
                        deliveries.failures.push(error.to_string());
                    }
                    true
                }
            }
        }
        None => wait_for_arrivals(scenario, &sinks, (accepted, delivered), stop),
    };
    sinks.iter().for_each(Sink::stop);
    for sink in sinks {
        let first = sink.second_of(ran.began);
        let (report, parts) = sink.join()?;
        add_end_to_end(&mut ran.measurement, first, parts);
        deliveries.sinks.push(report);
    }
    if let Some(death) = dead {
        deliveries.failures.push(death);
        deliveries.failures.push(
            "what was accepted and what arrived is not compared: what did not come may be in the spool of the engine that is gone".into(),
        );
    } else if waited {
        let difference = compare_with_queue(&[accepted], delivered, queued)?;
        deliveries.is_drained = if under_test.engine.is_some() { deliveries.drain_s.is_some() } else { difference.lost == 0 };
        if difference.lost > 0 && under_test.engine.is_none() {
            deliveries.failures.push(format!(
                "nothing more came for {} s: what is lost may wait in the server's queue, whose retries are its own and not the scenario's",
                patience.as_secs_f64()
            ));
        }
        deliveries.difference = Some(difference);
    } else {
        ran.interrupted = true;
        deliveries.failures.push("the wait for the queue was interrupted: what was accepted and what arrived is not compared".into());
    }
    Ok(deliveries)
}

/// What did not hold, as sentences.
fn judge(scenario: &Scenario, ran: &SourceRun, deliveries: &Deliveries) -> Vec<String> {
    let (expect, totals, report) = (&scenario.expect, ran.measurement.totals(), &ran.report);
    let mut failures = deliveries.failures.clone();
    failures.extend(report.ledger_trouble.clone());
    if ran.interrupted {
        failures.push(interrupted_text(ran));
    }
    let errors = totals.errors.total();
    if errors as f64 > expect.error_share_max * totals.sent.max(1) as f64 {
        failures.push(totals.errors.told(totals.sent, expect.error_share_max, "error_share_max", report.last_trouble.as_deref()));
    }
    for code in &expect.codes {
        if totals.errors.of(crate::error_kind::ErrorKind::Reply(*code)) == 0 {
            failures.push(format!(
                "nothing was answered {code}, so the limit was not met; a server that runs (--to) has its own settings, not those of the scenario"
            ));
        }
    }
    let per_second = report.acknowledged as f64 / report.lasted.as_secs_f64().max(1e-9);
    if per_second < expect.messages_per_s_min {
        failures.push(format!("{per_second:.1} messages per second are fewer than {}", expect.messages_per_s_min));
    }
    failures.extend(never_begun_text(report));
    if let Some(difference) = &deliveries.difference {
        let misplaced = difference.lost + difference.foreign + difference.delivered_though_refused;
        let bad = difference.damaged + if expect.account { misplaced } else { 0 };
        if bad > 0 {
            failures.push(format!(
                "lost {}, damaged {}, foreign {}, delivered though answered 5xx {}: {}",
                difference.lost,
                difference.damaged,
                difference.foreign,
                difference.delivered_though_refused,
                difference.examples.join("; ")
            ));
        }
        if difference.queued > 0 {
            failures.push(format!("{} of {} deliveries are still queued at the server", difference.queued, difference.owed));
        }
        let (twice, deferred, owed) = (difference.duplicated, difference.delivered_though_deferred, difference.owed);
        if (twice + deferred) as f64 > expect.duplicate_share_max * owed as f64 {
            let again = if deferred > 0 { format!("; {deferred} more came though they were answered 4xx") } else { String::new() };
            failures.push(format!("{twice} of {owed} deliveries came twice{again}"));
        }
    }
    failures
}
