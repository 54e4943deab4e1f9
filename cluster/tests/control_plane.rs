//! Election, heartbeats, configs and limits on a real Valkey, and what the driver does when that is slow, away or wrong.

mod server;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use ringpost_cluster::{
    control_plane::{ControlPlane, Fetched, Heartbeat, Published, Pulse},
    election::{Answer, Step},
    identity::{Epoch, Incarnation, Leadership, Role},
    membership::NodeRecord,
    script::Scripts,
    target::Target,
    valkey::Valkey,
    valkey_error::ValkeyError,
};
use server::{Durability, Server};

const TTL: Duration = Duration::from_secs(60);

fn me(number: u128) -> Incarnation {
    Incarnation::new(format!("n{number}").parse().unwrap(), number)
}

fn record(me: &Incarnation) -> NodeRecord {
    NodeRecord {
        id: me.node().clone(),
        incarnation: me.to_string(),
        address: "127.0.0.1:2525".to_owned(),
        role: Role::Master,
        version: "test".to_owned(),
        epoch: Epoch(0),
        config_version: 0,
        config_refused: None,
        connections: 1,
        queue_depth: 2,
        load: 0.25,
        shedding: false,
        last_error: None,
        progress: vec![1],
        metadata: BTreeMap::new(),
    }
}

fn on_server<T>(test: impl AsyncFnOnce(&mut Server, ControlPlane) -> T) -> T {
    on_server_with(Scripts::shipped(), test)
}

fn on_server_with<T>(scripts: &'static Scripts, test: impl AsyncFnOnce(&mut Server, ControlPlane) -> T) -> T {
    let mut server = Server::start(Durability::None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let valkey = Valkey::with_scripts(server.target(), scripts, Duration::from_secs(5));
        let control = ControlPlane::new(valkey, Server::keyspace());
        test(&mut server, control).await
    })
}

async fn acquire(control: &ControlPlane, who: u128, floor: u64) -> Answer {
    control.elect(&me(who), &Step::Acquire(Epoch(floor)), TTL, 0).await
}

async fn pulse(control: &ControlPlane, who: u128, floor: u64, is_first: bool) -> Pulse {
    match control.heartbeat(&me(who), Epoch(floor), &record(&me(who)), is_first).await.unwrap() {
        Heartbeat::Taken(pulse) => pulse,
        Heartbeat::Displaced(by) => panic!("displaced by {by}"),
    }
}

/// What must hold of the scripts that fence; Err says what does not.
async fn fencing(server: &mut Server, control: ControlPlane) -> Result<(), String> {
    let first = acquire(&control, 1, 0).await;
    if first != Answer::Acquired(Epoch(1)) {
        return Err(format!("first: {first:?}"));
    }
    let Answer::Held(holder, left) = acquire(&control, 2, 0).await else { return Err("two leaders at once".to_owned()) };
    assert!(holder.incarnation == me(1) && left <= TTL && left > TTL / 2);
    let mine = Leadership { incarnation: me(1), epoch: Epoch(1) };
    assert_eq!(control.elect(&me(1), &Step::Renew(mine.clone()), TTL, 0).await, Answer::Renewed);
    let forged = Leadership { incarnation: me(2), epoch: Epoch(1) };
    assert_eq!(control.elect(&me(2), &Step::Renew(forged.clone()), TTL, 0).await, Answer::Lost(Epoch(1)));
    assert_eq!(control.elect(&me(2), &Step::Release(forged), TTL, 0).await, Answer::Released);
    assert_eq!(control.elect(&me(1), &Step::Renew(mine.clone()), TTL, 0).await, Answer::Renewed, "another's release changes nothing");
    // A node that has accepted epoch 6 raises it; the leader of 1 is outranked everywhere.
    assert_eq!(pulse(&control, 3, 6, true).await.epoch, Epoch(6));
    if control.write_plan(Epoch(1), "stale").await.unwrap() != Err(Epoch(6)) {
        return Err("a stale leader's word was accepted".to_owned());
    }
    assert_eq!(control.prune_members(Epoch(1), Duration::ZERO).await.unwrap(), Err(Epoch(6)));
    assert_eq!(control.elect(&me(1), &Step::Renew(mine.clone()), TTL, 0).await, Answer::Lost(Epoch(6)));
    assert_eq!(control.elect(&me(1), &Step::Release(mine), TTL, 0).await, Answer::Released);
    assert_eq!(acquire(&control, 2, 0).await, Answer::Acquired(Epoch(7)));
    assert!(control.write_plan(Epoch(7), "fresh").await.unwrap().is_ok());
    assert_eq!(pulse(&control, 3, 6, false).await.plan, "fresh");
    // Valkey loses everything: the epoch jumps forward, it is not repeated.
    server.command("FLUSHALL");
    let after = acquire(&control, 2, 7).await;
    if after != Answer::Acquired(Epoch(8)) {
        return Err(format!("after the loss: {after:?}"));
    }
    Ok(())
}

#[test]
fn leaders_are_fenced_and_epochs_never_repeat() {
    on_server(fencing).unwrap();
}

fn mutant(script: &'static str, text: &'static str, by: &'static str) -> &'static Scripts {
    Box::leak(Box::new(Scripts::changed(|name, source| {
        assert!(name != script || source.contains(text), "{script} has {text}");
        if name == script { source.replace(text, by) } else { source.to_owned() }
    })))
}

#[test]
fn an_unchecked_epoch_is_noticed() {
    let scripts = mutant("leader_write", "mine < seen", "false");
    assert_eq!(on_server_with(scripts, fencing), Err("a stale leader's word was accepted".to_owned()));
}

#[test]
fn an_ignored_floor_is_noticed() {
    let scripts = mutant("leader_acquire", "math.max(epoch, floor)", "epoch");
    assert!(on_server_with(scripts, fencing).unwrap_err().starts_with("after the loss"));
}

#[test]
fn nodes_join_leave_and_are_not_two_of_one_name() {
    on_server(async |_, control| {
        let mut events = control.valkey().subscribe(vec![control.events_channel()]);
        assert_eq!(events.recv().await.unwrap().channel, "", "connected");
        let first = pulse(&control, 1, 0, true).await;
        assert_eq!(events.recv().await.unwrap().payload, "joined n1");
        let again = pulse(&control, 1, 0, false).await;
        assert_eq!(first.generation, again.generation);
        let (_, members) = control.members().await.unwrap();
        assert_eq!((members.len(), members[0].record.queue_depth), (1, 2));
        // A new process of the same node takes the name over; the old one hears of it.
        let successor = Incarnation::new("n1".parse().unwrap(), 99);
        let taken = control.heartbeat(&successor, Epoch(0), &record(&successor), true).await.unwrap();
        assert!(matches!(taken, Heartbeat::Taken(_)));
        assert_eq!(control.heartbeat(&me(1), Epoch(0), &record(&me(1)), false).await.unwrap(), Heartbeat::Displaced(successor.to_string()));
        control.leave(&me(1)).await.unwrap();
        assert_eq!(control.members().await.unwrap().1.len(), 1, "it is not its to leave");
        control.leave(&successor).await.unwrap();
        assert_eq!(control.members().await.unwrap().1.len(), 0);
    });
}

#[test]
fn an_election_and_its_end_are_told_at_once() {
    on_server(async |_, control| {
        let mut events = control.valkey().subscribe(vec![control.events_channel()]);
        assert_eq!(events.recv().await.unwrap().channel, "", "connected");
        assert_eq!(acquire(&control, 1, 4).await, Answer::Acquired(Epoch(5)));
        let mine = Leadership { incarnation: me(1), epoch: Epoch(5) };
        assert_eq!(events.recv().await.unwrap().payload, format!("elected {mine}"));
        assert!(matches!(acquire(&control, 2, 4).await, Answer::Held(..)), "who is not elected tells nothing");
        assert_eq!(control.elect(&me(1), &Step::Release(mine), TTL, 0).await, Answer::Released);
        assert_eq!(events.recv().await.unwrap().payload, "released");
    });
}

#[test]
fn configs_have_versions_history_and_a_way_back() {
    on_server(async |server, control| {
        assert_eq!(control.read_config(None, "").await.unwrap(), Fetched::Nothing);
        assert_eq!(control.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap(), Published::Version(1));
        assert_eq!(control.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap(), Published::Same(1));
        assert_eq!(control.publish_config("a = 2\n", "bob", 0, 1, Some(1)).await.unwrap(), Published::Version(2));
        assert_eq!(control.publish_config("a = 3\n", "eve", 0, 1, Some(1)).await.unwrap(), Published::Overtaken(2));
        let (config, text) = control.read_config(None, "").await.unwrap().config().unwrap();
        assert_eq!((config.version, config.author.as_str(), text.as_str()), (2, "bob", "a = 2\n"));
        assert_eq!(control.read_config(None, &config.hash).await.unwrap(), Fetched::Unchanged(2));
        assert_eq!(control.read_config(Some(1), "").await.unwrap().config().unwrap().1, "a = 1\n");
        assert_eq!(control.publish_config("a = 1\n", "bob", 1, 2, Some(2)).await.unwrap(), Published::Version(3));
        let (current, history) = control.config_history().await.unwrap();
        assert_eq!(
            (current, history.iter().map(|config| (config.version, config.of)).collect::<Vec<_>>()),
            (3, vec![(3, 1), (2, 0), (1, 0)])
        );
        for n in 0..40 {
            control.publish_config(&format!("n = {n}\n"), "loop", 0, 0, None).await.unwrap();
        }
        assert_eq!(control.config_history().await.unwrap().1.len(), ringpost_cluster::control_plane::CONFIG_HISTORY);
        // After a loss versions go on above what a node runs, and one can give the lost version back.
        server.command("FLUSHALL");
        assert_eq!(control.restore_config(43, "n = 39\n").await.unwrap(), Published::Version(43));
        assert_eq!(control.restore_config(42, "n = 38\n").await.unwrap(), Published::Overtaken(43));
        assert_eq!(control.publish_config("b = 1\n", "ann", 0, 50, None).await.unwrap(), Published::Version(51));
        control.set_config_poll(Duration::from_secs(9)).await.unwrap();
        let seen = pulse(&control, 1, 0, true).await;
        assert_eq!((seen.config_version, seen.poll), (51, Some(Duration::from_secs(9))));
    });
}

#[test]
fn a_shared_limit_lets_a_burst_pass_and_then_its_rate() {
    on_server(async |_, control| {
        let hour = Duration::from_secs(3600);
        for _ in 0..5 {
            assert_eq!(control.throttle("mx.example.org", hour, 5, 1).await.unwrap(), Ok(()));
        }
        let wait = control.throttle("mx.example.org", hour, 5, 1).await.unwrap().unwrap_err();
        assert!(wait <= hour && wait > hour - Duration::from_secs(60), "{wait:?}");
        assert_eq!(control.throttle("another", hour, 5, 5).await.unwrap(), Ok(()));
        assert!(matches!(control.throttle("another", hour, 5, 6).await, Err(ValkeyError::Refused(_))));
    });
}

#[test]
fn a_restarted_server_gets_the_scripts_again() {
    on_server(async |server, control| {
        assert_eq!(acquire(&control, 1, 0).await, Answer::Acquired(Epoch(1)));
        server.command("SCRIPT FLUSH");
        assert!(matches!(acquire(&control, 2, 0).await, Answer::Held(..)));
        server.restart();
        let mut answers = Vec::new();
        while !matches!(answers.last(), Some(Answer::Acquired(_))) && answers.len() < 100 {
            answers.push(acquire(&control, 2, 1).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(answers.last(), Some(&Answer::Acquired(Epoch(2))), "one call may fail while the connection is made anew: {answers:?}");
    });
}

#[test]
fn a_frozen_server_costs_a_deadline_and_then_nothing() {
    on_server(async |server, _| {
        let valkey = Valkey::new(server.target());
        let control = ControlPlane::new(valkey.clone(), Server::keyspace());
        pulse(&control, 1, 0, true).await;
        server.pause(true);
        for _ in 0..3 {
            let began = Instant::now();
            let failed = control.heartbeat(&me(1), Epoch(0), &record(&me(1)), false).await.unwrap_err();
            assert!(matches!(failed, ValkeyError::Unreachable(_)), "{failed}");
            // The first waits for its call, the others for a connection.
            assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
        }
        assert!(valkey.is_away());
        let began = Instant::now();
        assert_eq!(control.heartbeat(&me(1), Epoch(0), &record(&me(1)), false).await, Err(ValkeyError::CircuitOpen));
        assert!(began.elapsed() < Duration::from_millis(5));
        server.pause(false);
        let began = Instant::now();
        while control.heartbeat(&me(1), Epoch(0), &record(&me(1)), false).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "the way back is not found");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!valkey.is_away());
    });
}

async fn first_error(url: &str, password: Option<&str>) -> ValkeyError {
    let valkey: Arc<Valkey> = Valkey::with_scripts(Target::parse(url, password, None).unwrap(), Scripts::shipped(), Duration::from_secs(5));
    ControlPlane::new(valkey, Server::keyspace()).members().await.unwrap_err()
}

#[test]
fn wrong_settings_are_told_from_outages() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let evicting = Server::start_with(Durability::None, &["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
        let error = first_error(&evicting.url(), None).await;
        assert!(matches!(&error, ValkeyError::Misconfigured(why) if why.contains("allkeys-lru")), "{error}");
        let locked = Server::start(Durability::None);
        locked.command("CONFIG SET requirepass secret");
        for password in [None, Some("wrong")] {
            let error = first_error(&locked.url(), password).await;
            assert!(matches!(error, ValkeyError::Misconfigured(_)), "{error}");
        }
        let right = Valkey::new(Target::parse(&locked.url(), Some("secret"), None).unwrap());
        assert!(ControlPlane::new(right, Server::keyspace()).members().await.is_ok());
        let port = locked.port();
        drop(locked);
        let error = first_error(&format!("valkey://127.0.0.1:{port}"), None).await;
        assert!(matches!(error, ValkeyError::Unreachable(_)), "{error}");
    });
}
