//! Valkey fails over and loses what was written last, again and again: a replica that is behind takes over, or the server comes back
//! empty. Elections of the lost time are among what is lost, so that its server would give their epochs again. No process takes one
//! epoch twice, and what a node has accepted never falls.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use ringpost_loadtest::random::Random;

use super::{
    Place,
    leader::{Accepted, Account},
    monitor::Monitor,
    nodes::{self, NodeSetup, leading, wait_for},
    relay::Relay,
    report::Report,
};
use crate::{
    engine::{Engine, Route},
    valkey_server::{ValkeyOptions, ValkeyServer},
};

const NODES: usize = 3;
const TTL: Duration = Duration::from_secs(1);
/// One failover in so many is a restart without data; the others promote a replica that is behind.
const EMPTY_EVERY: u64 = 5;

struct Field {
    nodes: Vec<Engine>,
    relay: Relay,
    primary: ValkeyServer,
    replica: ValkeyServer,
    monitor: Monitor,
    account: Account,
    accepted: Accepted,
}

impl Field {
    fn look(&mut self) {
        for call in self.monitor.rest() {
            self.account.take(&call);
        }
        self.accepted.look();
    }

    fn leader(&mut self) -> io::Result<usize> {
        wait_for("an election", || {
            self.look();
            Ok(leading(&self.nodes, 0..NODES))
        })
    }

    fn watch(&mut self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            self.look();
            std::thread::sleep(Duration::from_millis(10).min(time.saturating_sub(began.elapsed())));
        }
    }

    /// The replica has all that the primary has.
    fn in_step(&self) -> io::Result<()> {
        wait_for("replication", || {
            let info: String = self.replica.ask(&["INFO", "replication"])?;
            Ok((info.contains("role:slave") && info.contains("master_link_status:up")).then_some(()))
        })
    }

    /// The highest epoch that a server knows.
    fn epoch(server: &ValkeyServer) -> io::Result<u64> {
        Ok(server.ask::<Option<u64>>(&["GET", "{ringpost:cluster:c}:epoch"])?.unwrap_or(0))
    }

    /// From now on `account` is that of another server, which may know less than the last one did.
    fn turn(&mut self) -> io::Result<()> {
        self.look();
        self.account.turned(Self::epoch(&self.primary)?);
        self.monitor = Monitor::start(&self.primary)?;
        self.relay.turn_to(self.primary.address);
        Ok(())
    }

    /// The replica hears nothing from now on; it takes over when the primary is killed.
    fn promote(&mut self, random: &mut Random) -> io::Result<u64> {
        self.in_step()?;
        let () = self.replica.ask(&["REPLICAOF", "NO", "ONE"])?;
        self.lose_an_election(random)?;
        self.look();
        let lost = Self::epoch(&self.primary)?;
        self.primary.kill();
        std::mem::swap(&mut self.primary, &mut self.replica);
        let lost = lost.saturating_sub(Self::epoch(&self.primary)?);
        self.turn()?;
        self.replica.spawn()?;
        Ok(lost)
    }

    /// The server comes back with nothing.
    fn empty(&mut self, random: &mut Random) -> io::Result<u64> {
        self.lose_an_election(random)?;
        let lost = Self::epoch(&self.primary)?;
        self.primary.kill();
        self.primary.spawn()?;
        self.turn()?;
        Ok(lost)
    }

    /// Three times in four the leader changes in the time that is about to be lost.
    fn lose_an_election(&mut self, random: &mut Random) -> io::Result<()> {
        if !random.one_in(4) {
            let (before, asked) = (self.account.acquisitions, random.below(NODES as u64) as usize);
            let mut ask_at = Instant::now();
            wait_for("the election that is to be lost", || {
                self.look();
                // Whoever leads may not have subscribed again yet behind the failover before this one: then it does not hear, and is asked again.
                if self.account.acquisitions == before && Instant::now() >= ask_at {
                    nodes::hand_over(&self.nodes[asked])?;
                    ask_at = Instant::now() + TTL;
                }
                Ok((self.account.acquisitions > before).then_some(()))
            })?;
        }
        // At once, when the winner may not have heard of its election, or later.
        self.watch(Duration::from_millis(random.below(TTL.as_millis() as u64 / 2)));
        Ok(())
    }
}

pub(super) fn run(place: &Place<'_>, report: &mut Report) -> io::Result<()> {
    let mut random = Random::new(place.seed);
    let server = |name: &str| -> io::Result<ValkeyServer> {
        let folder = place.folder.join(name);
        std::fs::create_dir_all(&folder)?;
        ValkeyServer::start(ValkeyOptions::new(&folder)?)
    };
    let (primary, replica) = (server("a")?, server("b")?);
    follow(&replica, &primary)?;
    let relay = Relay::start(primary.address)?;
    let setup = NodeSetup::new(place.engine, &place.folder, format!("valkey://{}", relay.address), Route::Hold);
    let monitor = Monitor::start(&primary)?;
    let nodes = NodeSetup { leader_ttl: TTL, ..setup }.start(NODES, 0)?;
    let (account, accepted) = (Account::default(), Accepted::new(&nodes));
    let mut field = Field { nodes, relay, primary, replica, monitor, account, accepted };

    let (mut kinds, mut lost_epochs, mut with_loss, mut gaps) = (BTreeMap::<&str, u64>::new(), 0, 0_u64, Vec::new());
    for number in 0..place.failovers {
        field.leader()?;
        let is_empty = number % EMPTY_EVERY == EMPTY_EVERY - 1;
        *kinds.entry(if is_empty { "restarts_without_data" } else { "promoted_while_behind" }).or_default() += 1;
        let lost = if is_empty { field.empty(&mut random)? } else { field.promote(&mut random)? };
        lost_epochs += lost;
        with_loss += u64::from(lost > 0);
        let began = Instant::now();
        field.leader()?;
        gaps.push(began.elapsed());
        follow(&field.replica, &field.primary)?;
        field.watch(Duration::from_millis(random.below(TTL.as_millis() as u64)));
        if (number + 1).is_multiple_of(20) {
            report.note(&format!("{} failovers, epoch {}", number + 1, field.account.highest));
        }
    }
    field.watch(TTL * 2);
    field.account.close();

    kinds.iter().for_each(|(kind, count)| report.figure(kind, *count));
    report.figure("valkey", field.primary.version());
    report.figure("failovers_that_lost_an_election", with_loss);
    report.figure("epochs_lost", lost_epochs);
    report.figure("elections", field.account.acquisitions);
    report.figure("epochs_of_two_nodes", field.account.shared_epochs());
    report.figure("epochs_taken_twice_by_one", field.account.repeated);
    report.figure("stale_effects_done", field.account.stale_done);
    report.figure("stale_effects_refused", field.account.stale_refused);
    report.times("leader_after_failover", &gaps);
    let wanted = if place.is_smoke { 1 } else { place.failovers.div_ceil(2) };
    report.must(with_loss >= wanted, "most failovers lost no election: they prove little");
    report.must(field.account.repeated == 0, format!("{} epochs were taken twice by one process", field.account.repeated));
    report.must(field.account.stale_done == 0, format!("{} stale effects", field.account.stale_done));
    report.must(field.account.not_above == 0, format!("{} epochs were not above what their server knew", field.account.not_above));
    report.must(field.accepted.broken.is_empty(), field.accepted.broken.join("; "));
    Ok(())
}

fn follow(replica: &ValkeyServer, primary: &ValkeyServer) -> io::Result<()> {
    let (ip, port) = (primary.address.ip().to_string(), primary.address.port().to_string());
    replica.ask(&["REPLICAOF", &ip, &port])
}
