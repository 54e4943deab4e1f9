//! Valkey does not answer, and nothing says that it is gone: every packet to it and from it is dropped while mail comes in. Acceptance must
//! not notice, no sender may be turned away for it, and soon after the way is whole again all is as before.

use std::{
    collections::HashMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ringpost_loadtest::{
    schedule::Rate,
    sink::{Sink, SinkOptions},
    source::SourceOptions,
};

use super::{
    Place,
    network::{Cut, Network},
    nodes::{self, NodeSetup, wait_for},
    report::Report,
};
use crate::{
    engine::{Engine, Route},
    machine,
    traffic::{Sent, difference, texts},
    valkey_server::{ValkeyOptions, ValkeyServer},
};

const NODES: usize = 3;
/// Where nodes listen in their namespaces.
const PORT: u16 = 2525;
/// Octets of a message.
const SIZE: &str = "4KiB";
/// Messages a second for each of the two nodes that accept.
const RATE: f64 = 100.0;
/// Without Valkey acceptance keeps at least this share, and its p99 grows at most to so many times.
const SHARE_MIN: f64 = 0.95;
const P99_TIMES_MAX: f64 = 1.2;
/// What was accepted before is delivered, and the cluster is whole, within this after the way is.
const RECONCILED_MAX: Duration = Duration::from_secs(10);

/// A load on the two accepting nodes, and what came of it.
struct Phase {
    name: &'static str,
    /// Of n1, which only offers, and n2, which delivers, too.
    sent: Vec<Sent>,
}

impl Phase {
    fn run(name: &'static str, place: &Place<'_>, targets: &[SocketAddr], seconds: u64) -> io::Result<Phase> {
        let sent: io::Result<Vec<Sent>> = thread::scope(|scope| {
            let loads: Vec<_> = targets
                .iter()
                .enumerate()
                .map(|(node, target)| {
                    scope.spawn(move || {
                        Sent::run(SourceOptions {
                            sessions: 8,
                            rate: Some(Rate::Fixed(RATE)),
                            duration: Some(Duration::from_secs(seconds)),
                            ledger: Some(ledger(&place.folder, node)),
                            ..texts(*target, SIZE)?
                        })
                    })
                })
                .collect();
            loads.into_iter().map(|load| load.join().unwrap_or_else(|_| Err(io::Error::other("a source panicked")))).collect()
        });
        Ok(Phase { name, sent: sent? })
    }

    fn accepted_per_s(&self) -> f64 {
        self.sent.iter().map(|sent| sent.messages_per_s).sum()
    }

    fn turned_away(&self) -> u64 {
        self.sent.iter().map(|sent| sent.refused + sent.unknown).sum()
    }

    /// The slower node's.
    fn p99_us(&self) -> u64 {
        self.sent.iter().map(|sent| sent.latency_us.p99).max().unwrap_or(0)
    }

    fn tell(&self, report: &mut Report) {
        report.figure(&format!("{}_accepted_per_s", self.name), (self.accepted_per_s() * 10.0).round() / 10.0);
        report.figure(&format!("{}_turned_away", self.name), self.turned_away());
        report.figure(&format!("{}_dot_to_250_p50_us", self.name), self.sent.iter().map(|sent| sent.latency_us.p50).max());
        report.figure(&format!("{}_dot_to_250_p99_us", self.name), self.p99_us());
    }
}

fn ledger(folder: &Path, node: usize) -> PathBuf {
    folder.join(format!("sent-{}", node + 1))
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

pub(super) fn run(place: &Place<'_>, report: &mut Report) -> io::Result<()> {
    if let Some(lacking) = Network::lacking() {
        report.left_out(&lacking);
        return Ok(());
    }
    let network = Network::new(NODES)?;
    let received = place.folder.join("received");
    let own = network.own();
    let hop = SocketAddr::new(own.into(), machine::free_port()?.port());
    let sink = Sink::start(SinkOptions { ledger: Some(received.clone()), ..SinkOptions::new(hop, machine::own_core()?) })?;
    let valkey = ValkeyServer::start(ValkeyOptions { ip: own.into(), ..ValkeyOptions::new(&place.folder)? })?;
    let setup = NodeSetup { is_shared: true, ..NodeSetup::new(place.engine, &place.folder, valkey.url(), Route::Smarthost(sink.address)) };
    let mut cluster = Vec::new();
    for node in 0..NODES {
        let mut options = setup.node(node + 1, node > 0)?;
        options.namespace = Some(network.namespace(node).to_owned());
        options.address = Some(SocketAddr::new(network.address(node).into(), PORT));
        let mut engine = Engine::new(options)?;
        engine.start()?;
        cluster.push(engine);
    }
    whole(&cluster)?;
    let targets: Vec<SocketAddr> = cluster.iter().take(2).map(|node| node.address).collect();
    let seconds = place.seconds;

    // The first mails of a process take longer: they are not what is compared with.
    Phase::run("warm", place, &targets, 2)?;
    let before = Phase::run("before", place, &targets, seconds)?;
    for node in 0..NODES {
        for cut in [Cut::Sent, Cut::Received] {
            network.cut(node, valkey.address.port(), cut)?;
        }
    }
    report.note(&format!("Valkey is out of reach for {seconds} s"));
    let hole = Phase::run("without_valkey", place, &targets, seconds)?;
    let away = cluster.iter().filter(|node| nodes::status(node).is_some_and(|status| status["valkey_available"] == false)).count();
    for node in 0..NODES {
        network.heal(node)?;
    }
    let (healed, healed_us) = (Instant::now(), now_us());
    let (healing, made_whole) = thread::scope(|scope| {
        let watched = scope.spawn(|| whole(&cluster).map(|()| healed.elapsed()));
        let phase = Phase::run("healing", place, &targets, RECONCILED_MAX.as_secs());
        (phase, watched.join().unwrap_or_else(|_| Err(io::Error::other("the watcher panicked"))))
    });
    let (healing, made_whole) = (healing?, made_whole?);
    let after = Phase::run("after", place, &targets, seconds)?;
    for node in &mut cluster {
        node.drain(RECONCILED_MAX, || sink.messages())?;
        node.terminate(Duration::from_secs(30))?;
    }
    sink.stop();
    sink.join()?;
    let ledgers = [ledger(&place.folder, 0), ledger(&place.folder, 1)];
    let result = difference(&[&ledgers[0], &ledgers[1]], &received)?;
    let last = last_arrival(&ledgers, &received, healed_us)?;

    [&before, &hole, &healing, &after].into_iter().for_each(|phase| phase.tell(report));
    let normal = (before.accepted_per_s() + after.accepted_per_s()) / 2.0;
    let normal_p99 = (before.p99_us() + after.p99_us()) as f64 / 2.0;
    let times = hole.p99_us() as f64 / normal_p99.max(1.0);
    report.figure("p99_times_normal", (times * 100.0).round() / 100.0);
    report.figure("cluster_whole_after_ms", made_whole.as_millis() as u64);
    report.figure("earlier_mail_delivered_after_ms", last.as_millis() as u64);
    report.figure("accepted", result.accepted);
    report.figure("lost", result.lost);
    report.figure("damaged", result.damaged);
    report.figure("duplicates", result.duplicated);
    report.must(away == NODES, format!("{away} of {NODES} nodes noticed that Valkey is away"));
    report.must(hole.accepted_per_s() >= SHARE_MIN * normal, format!("acceptance fell from {normal:.1} to {:.1}/s", hole.accepted_per_s()));
    let turned_away = hole.turned_away() + healing.turned_away();
    report.must(turned_away == 0, format!("{turned_away} messages were turned away: {}", hole.sent[0].last_trouble));
    // A short run beside other work says nothing of hundredths.
    report.must(place.is_smoke || times <= P99_TIMES_MAX, format!("p99 grew to {times:.2} times"));
    report.must(made_whole <= RECONCILED_MAX && last <= RECONCILED_MAX, "not reconciled in time");
    report.must(result.is_intact(), format!("lost {}, damaged {}: {:?}", result.lost, result.damaged, result.examples));
    Ok(())
}

/// All nodes have Valkey and a leader, and count each other as healthy.
fn whole(cluster: &[Engine]) -> io::Result<()> {
    wait_for("a whole cluster", || {
        let is_whole = |node: &Engine| {
            nodes::status(node).is_some_and(|status| {
                status["valkey_available"] == true && !status["leader"].is_null() && status["healthy_nodes"].as_u64() == Some(NODES as u64)
            })
        };
        Ok(cluster.iter().all(is_whole).then_some(()))
    })
}

/// How long after `healed_us` the last message arrived that was accepted before: first arrivals count.
fn last_arrival(sent: &[PathBuf], received: &Path, healed_us: u64) -> io::Result<Duration> {
    let mut earlier: HashMap<String, u64> = HashMap::new();
    let fields = |line: &str| -> Option<(String, u64)> {
        let words: Vec<&str> = line.split(' ').collect();
        Some(((*words.first()?).to_owned(), words.get(3)?.parse().ok()?))
    };
    for path in sent {
        let text = fs::read_to_string(path)?;
        earlier.extend(text.lines().filter_map(fields).filter(|(_, at)| *at < healed_us));
    }
    let mut first: HashMap<String, u64> = HashMap::new();
    for (id, at) in fs::read_to_string(received)?.lines().filter_map(fields) {
        if earlier.contains_key(&id) {
            first.entry(id).and_modify(|seen| *seen = at.min(*seen)).or_insert(at);
        }
    }
    Ok(Duration::from_micros(first.values().max().copied().unwrap_or(0).saturating_sub(healed_us)))
}
