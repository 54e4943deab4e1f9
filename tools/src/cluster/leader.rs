//! Leaders are stopped for times around their lease, killed, cut off in one direction and asked to go. Whatever they still had in hand:
//! nothing that a leader of a lower epoch does takes effect once a higher one is there, in Valkey or on a node, and epochs only rise.
//!
//! Judged from outside: Valkey's own account of all that was done, in its order ([`Monitor`]), and the files in which nodes keep the
//! leadership that they have accepted.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use ringpost_loadtest::random::Random;
use rustix::process::Signal;

use super::{
    Place,
    monitor::{Call, Monitor},
    network::{Cut, Network},
    nodes::{self, leading, wait_for},
    report::Report,
};
use crate::{
    engine::{Engine, Route},
    valkey_server::{ValkeyOptions, ValkeyServer},
};

const NODES: usize = 3;
/// Where nodes listen in their namespaces.
const PORT: u16 = 2525;
/// With a lease of 3 s another leads within this after a kill, for 99 of 100, and within that after a leader was asked to go.
const AFTER_KILL_MAX: Duration = Duration::from_secs(4);
const AFTER_HAND_OVER_MAX: Duration = Duration::from_millis(500);
/// A leader that is struck when it is about to act is struck within this after it took the lease.
const STRIKE_AT_ONCE_MS: u64 = 12;

/// What happens to a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    /// SIGSTOP, and SIGCONT around the end of its lease.
    Pause,
    /// SIGKILL.
    Kill,
    /// SIGKILL, and the next leader is struck as soon as it is elected.
    KillAndNext,
    /// Its packets to Valkey, or those from it, are dropped for a time.
    CutOff(Cut),
    /// Asked to let another lead.
    HandOver,
    /// SIGTERM.
    Terminate,
}

impl Blow {
    /// One of those of which a number is asked for: what a leader is asked to do it does at a good moment.
    fn is_asked_for(self) -> bool {
        !matches!(self, Blow::HandOver | Blow::Terminate)
    }
}

/// What an outsider knows for certain: every acquisition and every effect, in Valkey's order.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// The highest epoch with which somebody took the lease.
    pub(super) highest: u64,
    /// The highest epoch that Valkey was told of, by an acquisition or by a node that has accepted it elsewhere.
    known: u64,
    /// Who took it with which epoch.
    taken: HashMap<u64, Vec<String>>,
    pub(super) acquisitions: u64,
    /// Acquisitions whose epoch was not above all before.
    pub(super) not_above: u64,
    /// One incarnation took one epoch twice.
    pub(super) repeated: u64,
    /// Things that leaders did.
    pub(super) effects: u64,
    /// Those of a leader whose epoch was not the highest any more.
    pub(super) stale_done: u64,
    /// Those that it tried, and that were refused.
    pub(super) stale_refused: u64,
    /// The call of a leader that is being looked at: its epoch, and the key that it changes.
    open: Option<(u64, String)>,
    /// Nodes that took the lease, in order; for who waits for them.
    elected: Vec<String>,
}

impl Account {
    /// Takes in one command. Calls of leaders are told by their keys: the epoch's first, then what they change.
    pub(super) fn take(&mut self, call: &Call) {
        if call.is_of_script {
            if call.word(0) != "SET" {
                return;
            }
            if call.word(1).ends_with(":leader") {
                self.acquired(call.word(2));
            }
            // The script has passed its check when it writes the epoch.
            if let Some((epoch, _)) = self.open.take_if(|(_, key)| call.word(1) == key) {
                self.effects += 1;
                self.stale_done += u64::from(epoch < self.known);
            }
            if call.word(1).ends_with(":epoch") {
                self.known = self.known.max(call.word(2).parse().unwrap_or(0));
            }
            return;
        }
        self.close();
        if matches!(call.word(0), "EVALSHA" | "EVAL") && call.word(3).ends_with(":epoch") && !call.word(4).ends_with(":leader") {
            let keys: usize = call.word(2).parse().unwrap_or(0);
            if let Ok(epoch) = call.word(3 + keys).parse() {
                self.open = Some((epoch, call.word(3).to_owned()));
            }
        }
    }

    /// The last call is over.
    pub(super) fn close(&mut self) {
        if let Some((epoch, _)) = self.open.take() {
            self.stale_refused += u64::from(epoch < self.known);
        }
    }

    fn acquired(&mut self, leadership: &str) {
        let Some((incarnation, epoch)) = leadership.rsplit_once('/') else { return };
        let Ok(epoch) = epoch.parse() else { return };
        self.acquisitions += 1;
        self.not_above += u64::from(epoch <= self.highest);
        let takers = self.taken.entry(epoch).or_default();
        self.repeated += u64::from(takers.iter().any(|taker| taker == incarnation));
        takers.push(incarnation.to_owned());
        self.highest = self.highest.max(epoch);
        self.elected.push(incarnation.split(':').next().unwrap_or_default().to_owned());
    }

    /// Another server goes on, with `epoch` as the highest that it knows: what was above is lost.
    pub(super) fn turned(&mut self, epoch: u64) {
        self.close();
        (self.highest, self.known) = (epoch, epoch);
    }

    /// Epochs that more than one incarnation took.
    pub(super) fn shared_epochs(&self) -> usize {
        self.taken.values().filter(|takers| takers.len() > 1).count()
    }
}

/// What nodes have accepted, from their disks.
#[derive(Debug)]
pub(super) struct Accepted {
    files: Vec<PathBuf>,
    last: Vec<Option<(u64, String)>>,
    /// A node's accepted epoch fell, or it accepted two leaders with one epoch.
    pub(super) broken: Vec<String>,
}

impl Accepted {
    pub(super) fn new(nodes: &[Engine]) -> Accepted {
        let files = nodes.iter().map(|node| node.socket().with_file_name("spool").join("cluster/leadership"));
        Accepted { files: files.collect(), last: vec![None; nodes.len()], broken: Vec::new() }
    }

    pub(super) fn look(&mut self) {
        for (node, file) in self.files.iter().enumerate() {
            // It is replaced whole; before the first election there is none.
            let Ok(text) = std::fs::read_to_string(file) else { continue };
            let Some((incarnation, epoch)) = text.trim().rsplit_once('/') else { continue };
            let Ok(epoch) = epoch.parse::<u64>() else { continue };
            let before = self.last[node].replace((epoch, incarnation.to_owned()));
            let Some((was, by)) = before else { continue };
            if epoch < was || (epoch == was && by != incarnation) {
                self.broken.push(format!("n{} accepted {incarnation}/{epoch} after {by}/{was}", node + 1));
            }
        }
    }
}

/// A running rig.
struct Field<'a> {
    nodes: Vec<Engine>,
    network: Option<&'a Network>,
    valkey: &'a ValkeyServer,
    monitor: Monitor,
    account: Account,
    accepted: Accepted,
    /// Moments at which two nodes said they lead.
    double_claims: u64,
    ttl: Duration,
}

impl Field<'_> {
    fn look(&mut self) {
        for call in self.monitor.rest() {
            self.account.take(&call);
        }
        self.accepted.look();
    }

    /// Waits for a leader other than `not`; the others are looked at all the while.
    fn leader(&mut self, not: Option<usize>) -> io::Result<usize> {
        wait_for("an election", || {
            self.look();
            Ok(leading(&self.nodes, (0..NODES).filter(|node| Some(*node) != not)))
        })
    }

    /// Waits for the leader behind `from`, whose epoch was `epoch` at most when it was asked to go. One that takes the lease and cannot say so in
    /// time gives it back, and then `from` may stand again.
    fn heir(&mut self, from: usize, epoch: u64) -> io::Result<usize> {
        wait_for("an election", || {
            self.look();
            let heir = leading(&self.nodes, (0..NODES).filter(|node| *node != from));
            Ok(heir.or_else(|| if self.account.highest > epoch + 1 { leading(&self.nodes, [from]) } else { None }))
        })
    }

    /// Looks at everything for a while. Nodes that are stopped are not asked.
    fn watch(&mut self, time: Duration, asked: &[usize]) {
        let began = Instant::now();
        while began.elapsed() < time {
            self.look();
            let claims = asked.iter().filter(|node| leading(&self.nodes, [**node]).is_some()).count();
            self.double_claims += u64::from(claims > 1);
            std::thread::sleep(Duration::from_millis(10).min(time.saturating_sub(began.elapsed())));
        }
    }

    /// Waits until all that run name `leader`, which is when they follow it.
    fn known_to_all(&mut self, leader: usize) -> io::Result<()> {
        let name = format!("n{}", leader + 1);
        wait_for("agreement on the leader", || {
            self.look();
            let mut running = self.nodes.iter().filter(|node| node.pid().is_some());
            Ok(running.all(|node| nodes::status(node).is_some_and(|status| status["leader"] == name.as_str())).then_some(()))
        })
    }

    /// The next node that takes the lease, at the moment when it does.
    fn next_elected(&mut self, limit: Duration) -> io::Result<Option<usize>> {
        let (began, seen) = (Instant::now(), self.account.elected.len());
        while began.elapsed() < limit {
            if let Some(call) = self.monitor.next(Duration::from_millis(5))? {
                self.account.take(&call);
            }
            if let Some(name) = self.account.elected.get(seen) {
                let number: usize = name.trim_start_matches('n').parse().map_err(|_| io::Error::other(format!("no node {name}")))?;
                return Ok(Some(number - 1));
            }
        }
        Ok(None)
    }
}

pub(super) fn run(place: &Place<'_>, report: &mut Report) -> io::Result<()> {
    let mut random = Random::new(place.seed);
    let lacking = Network::lacking();
    let network = if lacking.is_none() { Some(Network::new(NODES)?) } else { None };
    if let Some(lacking) = lacking {
        report.left_out(&format!("ways that are cut: {lacking}"));
    }
    let mut options = ValkeyOptions::new(&place.folder)?;
    if let Some(network) = &network {
        options.ip = network.own().into();
    }
    let valkey = ValkeyServer::start(options)?;
    let mut setup = nodes::NodeSetup::new(place.engine, &place.folder, valkey.url(), Route::Hold);
    if place.is_smoke {
        setup.leader_ttl = Duration::from_secs(1);
    }
    let monitor = Monitor::start(&valkey)?;
    let mut running = Vec::new();
    for number in 1..=NODES {
        let mut options = setup.node(number, true)?;
        if let Some(network) = &network {
            options.namespace = Some(network.namespace(number - 1).to_owned());
            options.address = Some(SocketAddr::new(network.address(number - 1).into(), PORT));
        }
        let mut node = Engine::new(options)?;
        node.start()?;
        running.push(node);
    }
    let accepted = Accepted::new(&running);
    let (account, ttl) = (Account::default(), setup.leader_ttl);
    let mut field = Field { nodes: running, network: network.as_ref(), valkey: &valkey, monitor, account, accepted, double_claims: 0, ttl };

    let mut done: BTreeMap<Blow, u64> = BTreeMap::new();
    let mut gaps = Gaps::default();
    // Struck as soon as it has the lease, when its first orders are on their way; or at any time of its reign.
    let (mut strikes_next, mut struck_at_once) = (false, 0_u64);
    for (number, blow) in (0_u64..).zip(blows(place.disturbances, field.network.is_some())) {
        let struck = if strikes_next { field.next_elected(ttl * 2)? } else { None };
        let struck = match struck {
            Some(node) => {
                struck_at_once += 1;
                // To cut a way takes as long as an election's flush by itself.
                if blow == Blow::Pause {
                    field.watch(Duration::from_millis(random.below(STRIKE_AT_ONCE_MS)), &[]);
                }
                node
            }
            None => {
                let node = field.leader(None)?;
                field.watch(Duration::from_millis(random.below(ttl.as_millis() as u64)), &[0, 1, 2]);
                node
            }
        };
        *done.entry(blow).or_default() += 1;
        strikes_next = strike(&mut field, blow, struck, &mut random, &mut gaps)?;
        if (number + 1).is_multiple_of(20) {
            report.note(&format!("{} disturbances, epoch {}", number + 1, field.account.highest));
        }
    }
    field.leader(None)?;
    field.watch(ttl, &[0, 1, 2]);
    field.account.close();

    for (blow, count) in &done {
        report.figure(&format!("{blow:?}"), *count);
    }
    let (struck, in_order): (Vec<_>, Vec<_>) = done.iter().partition(|(blow, _)| blow.is_asked_for());
    let sum = |blows: Vec<(&Blow, &u64)>| blows.into_iter().map(|(_, count)| count).sum::<u64>();
    report.figure("pauses_kills_and_cuts", sum(struck));
    report.figure("hand_overs_and_stops_in_order", sum(in_order));
    let account = &field.account;
    report.figure("valkey", valkey.version());
    report.figure("struck_when_just_elected", struck_at_once);
    report.figure("leader_ttl_ms", ttl.as_millis() as u64);
    report.figure("elections", account.acquisitions);
    report.figure("leaders_effects", account.effects);
    report.figure("stale_effects_done", account.stale_done);
    report.figure("stale_effects_refused", account.stale_refused);
    report.figure("epochs_not_above_all_before", account.not_above);
    report.figure("epochs_of_two_nodes", account.shared_epochs());
    report.figure("moments_with_two_that_say_they_lead", field.double_claims);
    let kill_p99 = report.times("new_leader_after_kill", &gaps.after_kill);
    report.times("new_leader_after_hand_over", &gaps.after_hand_over);
    let hand_over_p99 = report.times("known_to_all_after_hand_over", &gaps.until_known);
    report.must(account.stale_done == 0, format!("{} stale effects", account.stale_done));
    report.must(account.repeated == 0, format!("{} times a node took the same epoch again", account.repeated));
    report.must(account.not_above == 0, format!("{} epochs fell or came again", account.not_above));
    report.must(account.effects >= account.acquisitions / 4, "leaders did too little for a verdict");
    report.must(field.accepted.broken.is_empty(), field.accepted.broken.join("; "));
    // A short run says what is wrong, not how fast a busy machine is.
    report.must(place.is_smoke || kill_p99 <= AFTER_KILL_MAX, format!("a new leader after a kill: p99 {kill_p99:?}"));
    let is_quick = place.is_smoke || hand_over_p99 <= AFTER_HAND_OVER_MAX;
    report.must(is_quick, format!("a new leader after a hand-over: p99 {hand_over_p99:?}"));
    Ok(())
}

/// All kinds in turn. What follows a [`Blow::KillAndNext`] strikes a leader that is about to give its first orders: those of one that is cut
/// off then go out when its way is whole again.
const BLOWS: [Blow; 16] = [
    Blow::Pause,
    Blow::Kill,
    Blow::KillAndNext,
    Blow::CutOff(Cut::Sent),
    Blow::HandOver,
    Blow::KillAndNext,
    Blow::Pause,
    Blow::Terminate,
    Blow::CutOff(Cut::Received),
    Blow::Kill,
    Blow::Pause,
    Blow::HandOver,
    Blow::CutOff(Cut::Sent),
    Blow::KillAndNext,
    Blow::CutOff(Cut::Received),
    Blow::Terminate,
];

/// So many pauses, kills and cuts, and what is done in order between them on top.
fn blows(wanted: u64, can_cut: bool) -> impl Iterator<Item = Blow> {
    let possible = move |blow| if matches!(blow, Blow::CutOff(_)) && !can_cut { Blow::Pause } else { blow };
    let mut left = wanted;
    BLOWS.into_iter().cycle().map(possible).take_while(move |blow| {
        let goes_on = left > 0;
        left -= u64::from(goes_on && blow.is_asked_for());
        goes_on
    })
}

/// Times without a leader.
#[derive(Debug, Default)]
struct Gaps {
    after_kill: Vec<Duration>,
    after_hand_over: Vec<Duration>,
    /// After a hand-over, until all nodes follow the new leader.
    until_known: Vec<Duration>,
}

impl Gaps {
    fn handed_over(&mut self, field: &mut Field<'_>, from: usize, epoch: u64, began: Instant) -> io::Result<()> {
        let leader = field.heir(from, epoch)?;
        self.after_hand_over.push(began.elapsed());
        field.known_to_all(leader)?;
        self.until_known.push(began.elapsed());
        Ok(())
    }
}

/// Does it, and waits until all is whole again. True: the next election is about to come, and its winner is to be struck.
fn strike(field: &mut Field<'_>, blow: Blow, struck: usize, random: &mut Random, gaps: &mut Gaps) -> io::Result<bool> {
    let others: Vec<usize> = (0..NODES).filter(|node| *node != struck).collect();
    // From half of the lease to twice as long.
    let around = field.ttl / 2 + field.ttl * u32::try_from(random.below(1500)).expect("below 1500") / 1000;
    match blow {
        Blow::Pause => {
            field.nodes[struck].signal(Signal::STOP)?;
            field.watch(around, &others);
            field.nodes[struck].signal(Signal::CONT)?;
            field.watch(field.ttl / 4, &[0, 1, 2]);
        }
        Blow::CutOff(cut) => {
            let network = field.network.expect("there is one where ways are cut");
            network.cut(struck, field.valkey.address.port(), cut)?;
            field.watch(around, &[0, 1, 2]);
            network.heal(struck)?;
            field.watch(field.ttl / 2, &[0, 1, 2]);
        }
        Blow::Kill => {
            // One that was struck at its election may not lead yet.
            let struck = field.leader(None)?;
            let began = Instant::now();
            field.nodes[struck].kill()?;
            field.leader(Some(struck))?;
            gaps.after_kill.push(began.elapsed());
            field.nodes[struck].start()?;
        }
        Blow::KillAndNext => {
            field.nodes[struck].kill()?;
            field.nodes[struck].start()?;
            return Ok(true);
        }
        Blow::HandOver => {
            let leads = field.leader(None)?;
            let asked = (leads + 1 + random.below(2) as usize) % NODES;
            field.look();
            let (epoch, began) = (field.account.highest, Instant::now());
            nodes::hand_over(&field.nodes[asked])?;
            gaps.handed_over(field, leads, epoch, began)?;
        }
        Blow::Terminate => {
            let leads = field.leader(None)?;
            let began = Instant::now();
            // It ends by itself meanwhile, and is no longer asked.
            let mut leaving = field.nodes.remove(leads);
            leaving.signal(Signal::TERM)?;
            let heir = wait_for("an election", || Ok(leading(&field.nodes, 0..field.nodes.len())));
            gaps.after_hand_over.push(began.elapsed());
            let status = leaving.wait(Duration::from_secs(30))?;
            field.nodes.insert(leads, leaving);
            heir?;
            if !status.success() {
                return Err(io::Error::other(format!("SIGTERM: {status}: {}", field.nodes[leads].last_words())));
            }
            field.nodes[leads].start()?;
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_script(words: &[&str]) -> Call {
        Call { at: 0.0, is_of_script: true, words: words.iter().map(|word| (*word).to_owned()).collect() }
    }

    fn write(epoch: &str) -> Call {
        Call { is_of_script: false, ..of_script(&["EVALSHA", "0abc", "2", "{k:c}:epoch", "{k:c}:plan", epoch, "text"]) }
    }

    /// Of 200 disturbances 50 were hand-overs and stops in order, of which none had been asked for.
    #[test]
    fn a_number_of_disturbances_is_one_of_pauses_kills_and_cuts() {
        for (wanted, can_cut) in [(0, true), (1, true), (8, true), (200, true), (200, false)] {
            let all: Vec<Blow> = blows(wanted, can_cut).collect();
            let asked = all.iter().filter(|blow| blow.is_asked_for()).count();
            assert_eq!(asked as u64, wanted);
            assert!(all.last().is_none_or(|last| last.is_asked_for()) && all.len() <= 2 * asked, "{wanted}: {all:?}");
            let cuts = all.iter().filter(|blow| matches!(blow, Blow::CutOff(_))).count();
            assert_eq!(cuts > 0, can_cut && wanted >= 8, "{wanted}: {all:?}");
        }
    }

    #[test]
    fn stale_effects_are_told_from_refused_ones() {
        let mut account = Account::default();
        account.take(&of_script(&["SET", "{k:c}:epoch", "5"]));
        account.take(&of_script(&["SET", "{k:c}:leader", "n1:a/5", "PX", "3000"]));
        account.take(&write("5"));
        account.take(&of_script(&["GET", "{k:c}:epoch"]));
        account.take(&of_script(&["SET", "{k:c}:epoch", "5"]));
        account.take(&of_script(&["SET", "{k:c}:plan", "text"]));
        account.take(&of_script(&["SET", "{k:c}:epoch", "6"]));
        account.take(&of_script(&["SET", "{k:c}:leader", "n2:b/6", "PX", "3000"]));
        account.take(&write("5"));
        account.take(&of_script(&["GET", "{k:c}:epoch"]));
        account.take(&write("5"));
        account.take(&of_script(&["SET", "{k:c}:epoch", "5"]));
        account.close();
        assert_eq!((account.effects, account.stale_done, account.stale_refused), (2, 1, 1));
        assert_eq!((account.acquisitions, account.not_above, account.repeated, account.shared_epochs()), (2, 0, 0, 0));
        account.take(&of_script(&["SET", "{k:c}:leader", "n2:b/6", "PX", "3000"]));
        account.take(&of_script(&["SET", "{k:c}:leader", "n1:a/6", "PX", "3000"]));
        assert_eq!((account.not_above, account.repeated, account.shared_epochs()), (2, 1, 1));
        account.turned(4);
        account.take(&write("4"));
        account.take(&of_script(&["SET", "{k:c}:epoch", "4"]));
        assert_eq!((account.effects, account.stale_done), (3, 1), "that server knows of nothing higher");
    }
}
