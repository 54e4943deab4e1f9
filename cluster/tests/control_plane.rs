//! Election, heartbeats, configs and limits on a real Valkey, and what the driver does when that is slow, away or wrong.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ringpost_cluster::{
    control_plane::{ControlPlane, Fetched, Heartbeat, Published, Pulse},
    election::{Answer, Step},
    fence::{Fence, Verdict},
    identity::{Epoch, Incarnation, Leadership, Role},
    keyspace::Keyspace,
    membership::NodeRecord,
    script::Scripts,
    shares::{Division, Shares},
    target::Target,
    throttle::{Account, Flow, Reserved},
    valkey::Valkey,
    valkey_error::ValkeyError,
    work_item::ItemKey,
    work_queue::{QueueBounds, WorkQueue},
};
use ringpost_valkey_server::{Durability, Server};

const TTL: Duration = Duration::from_secs(60);

fn keyspace() -> Keyspace {
    Keyspace::new("ringpost:test").unwrap()
}

fn target(server: &Server) -> Target {
    Target::parse(&server.url(), None, None).unwrap()
}

fn me(number: u128) -> Incarnation {
    Incarnation::new(format!("n{number}").parse().unwrap(), number)
}

fn record(me: &Incarnation) -> NodeRecord {
    NodeRecord { queue_depth: 2, ..NodeRecord::new(me, Role::Master) }
}

fn on_server<T>(test: impl AsyncFnOnce(&mut Server, ControlPlane) -> T) -> T {
    on_server_with(Scripts::shipped(), test)
}

fn on_server_with<T>(scripts: &'static Scripts, test: impl AsyncFnOnce(&mut Server, ControlPlane) -> T) -> T {
    let mut server = Server::start(Durability::None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let valkey = Valkey::with_scripts(target(&server), scripts, Duration::from_secs(5));
        let control = ControlPlane::new(valkey, keyspace());
        test(&mut server, control).await
    })
}

async fn acquire(control: &ControlPlane, who: u128, floor: u64) -> Answer {
    control.elect(&me(who), &Step::Acquire(Epoch(floor)), TTL, 0).await
}

async fn pulse(control: &ControlPlane, who: u128, floor: u64, is_first: bool) -> Pulse {
    let rival_ttl = if is_first { Duration::ZERO } else { TTL };
    match control.heartbeat(&me(who), Epoch(floor), &record(&me(who)), rival_ttl).await.unwrap() {
        Heartbeat::Taken(pulse) => *pulse,
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
        let taken = control.heartbeat(&successor, Epoch(0), &record(&successor), Duration::ZERO).await.unwrap();
        assert!(matches!(taken, Heartbeat::Taken(_)));
        assert_eq!(control.heartbeat(&me(1), Epoch(0), &record(&me(1)), TTL).await.unwrap(), Heartbeat::Displaced(successor.to_string()));
        control.leave(&me(1)).await.unwrap();
        assert_eq!(control.members().await.unwrap().1.len(), 1, "it is not its to leave");
        control.leave(&successor).await.unwrap();
        assert_eq!(control.members().await.unwrap().1.len(), 0);
    });
}

/// A Valkey that went back in time knew the process before this one: the node was counted as gone, and did not lead, for up to twenty times
/// `node_ttl`, until the leader forgot the record.
#[test]
fn a_process_that_is_gone_stands_in_the_way_of_the_next_for_node_ttl_at_most() {
    on_server(async |server, control| {
        let node_ttl = Duration::from_millis(200);
        let (gone, me) = (Incarnation::new("n1".parse().unwrap(), 99), me(1));
        let beat = async |who: &Incarnation, rival_ttl| control.heartbeat(who, Epoch(0), &record(who), rival_ttl).await.unwrap();
        assert!(matches!(beat(&me, Duration::ZERO).await, Heartbeat::Taken(_)));
        // The record of before is put back.
        let began = Instant::now();
        assert!(matches!(beat(&gone, Duration::ZERO).await, Heartbeat::Taken(_)));
        assert_eq!(beat(&me, TTL).await, Heartbeat::Displaced(gone.to_string()), "it may live");
        while !matches!(beat(&me, node_ttl).await, Heartbeat::Taken(_)) {
            assert!(began.elapsed() < TTL, "still displaced");
        }
        // The server counts whole milliseconds.
        assert!(began.elapsed() + Duration::from_millis(2) >= node_ttl, "it may have lived until then");
        // So does one whose last heartbeat lies ahead, of a clock that was stepped back since.
        assert!(matches!(beat(&gone, Duration::ZERO).await, Heartbeat::Taken(_)));
        server.command(&format!("ZADD {} 99999999999999 n1", keyspace().members()));
        assert!(matches!(beat(&me, node_ttl).await, Heartbeat::Taken(_)));
        assert_eq!(beat(&gone, node_ttl).await, Heartbeat::Displaced(me.to_string()));
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

/// Whoever could write to Valkey ran any settings on all nodes, whatever key they shared.
#[test]
fn a_config_that_was_not_pushed_with_the_clusters_key_is_not_run() {
    on_server(async |_, stranger| {
        let keyed = |key: &[u8]| stranger.clone().with_key(ItemKey::new(key));
        let (ours, others) = (keyed(b"one of sixteen octets"), keyed(b"another of sixteen octets"));
        let open = "[relay]\nnetworks = [\"0.0.0.0/0\"]\n";
        assert_eq!(stranger.publish_config(open, "eve", 0, 0, None).await.unwrap(), Published::Version(1));
        for node in [&ours, &others] {
            assert!(matches!(node.read_config(None, "").await, Err(ValkeyError::Malformed(_))));
        }
        assert_eq!(ours.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap(), Published::Version(2));
        assert_eq!(ours.read_config(None, "").await.unwrap().config().unwrap().1, "a = 1\n");
        assert!(matches!(others.read_config(None, "").await, Err(ValkeyError::Malformed(_))));
    });
}

/// A config that a program of before had pushed has no seal. Each error said to push it again, which came to "unchanged" for the same text, so
/// that no node of this version ever took it.
#[test]
fn a_config_without_a_seal_is_mended_by_pushing_it_again_or_by_a_node_that_runs_it() {
    on_server(async |server, control| {
        let (key, control) = ("{ringpost:test:c}:configs", control.with_key(ItemKey::new(b"one of sixteen octets")));
        assert_eq!(control.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap(), Published::Version(1));
        server.command(&format!("HDEL {key} s1"));
        assert!(control.read_config(None, "").await.is_err());
        assert_eq!(control.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap(), Published::Version(2));
        assert_eq!(control.read_config(None, "").await.unwrap().config().unwrap().0.version, 2);
        assert_eq!(control.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap(), Published::Same(2));
        server.command(&format!("HDEL {key} s2"));
        for (version, text) in [(1, "a = 1\n"), (2, "a = 2\n")] {
            assert_eq!(control.restore_config(version, text).await.unwrap(), Published::Overtaken(2), "{version} {text}");
            assert!(control.read_config(None, "").await.is_err(), "that is not what is current");
        }
        assert_eq!(control.restore_config(2, "a = 1\n").await.unwrap(), Published::Version(2));
        assert_eq!(control.read_config(None, "").await.unwrap().config().unwrap().0.version, 2);
        assert_eq!(control.restore_config(2, "a = 1\n").await.unwrap(), Published::Overtaken(2), "once is enough");
    });
}

/// What had been pushed once was signed for ever: whoever could write to Valkey made it current again, under any number.
#[test]
fn a_config_is_current_under_the_number_that_it_was_pushed_with_and_no_other() {
    on_server(async |server, control| {
        let control = control.with_key(ItemKey::new(b"one of sixteen octets"));
        for (version, text) in [(1, "a = 1\n"), (2, "a = 2\n"), (3, "a = 1\n")] {
            assert_eq!(control.publish_config(text, "ann", 0, 0, None).await.unwrap(), Published::Version(version));
        }
        let current = control.read_config(None, "").await.unwrap().config().unwrap().0;
        assert_eq!(control.read_config(None, &current.hash).await.unwrap(), Fetched::Unchanged(3));
        let key = "{ringpost:test:c}:configs";
        server.command(&format!("COPY {key} kept"));
        // Under another number, with its text or without, with another's signature or none.
        for forged in [
            "eval \"return redis.call('HSET',KEYS[1],'current','9','v9',redis.call('HGET',KEYS[1],'v3'),'s9',redis.call('HGET',KEYS[1],'s3'))\" 1",
            "eval \"return redis.call('HSET',KEYS[1],'current','9','v9',redis.call('HGET',KEYS[1],'v2'))\" 1",
            "eval \"return redis.call('HDEL',KEYS[1],'s3')\" 1",
        ] {
            server.command(&format!("{forged} {key}"));
            for known in ["", current.hash.as_str()] {
                let read = control.read_config(None, known).await;
                assert!(matches!(read, Err(ValkeyError::Malformed(_))), "{forged}: {read:?}");
            }
            server.command(&format!("COPY kept {key} REPLACE"));
        }
        // An operator may ask for each that is kept.
        assert_eq!(control.read_config(Some(2), "").await.unwrap().config().unwrap().1, "a = 2\n");
        // What is no number is as good as lost.
        for damage in ["x", "-1", "1e300", "nan"] {
            server.command(&format!("HSET {key} current {damage} poll_ms {damage}"));
            let seen = pulse(&control, 1, 0, true).await;
            assert_eq!((seen.config_version, seen.poll), (0, None), "{damage}");
            assert_eq!(control.restore_config(3, "a = 1\n").await.unwrap(), Published::Version(3), "{damage}");
            assert_eq!(control.read_config(None, "").await.unwrap().config().unwrap().0.version, 3);
        }
    });
}

#[test]
fn moments_of_a_shared_limit_are_given_once_whoever_asks() {
    on_server(async |_, control| {
        let flow = Flow { units: 1000, per: Duration::from_secs(1), burst: 5 };
        let began = Instant::now();
        // The first may use the burst; then each goes on where the other ended, up to a second ahead.
        let mut ahead_us = 0;
        let mut given = 0;
        loop {
            match control.reserve("*/mx.example.org", flow, 100).await.unwrap() {
                Reserved::Moments { count, first_in_us } => {
                    assert!(given > 0 || first_in_us == -4_000, "{first_in_us}");
                    given += count;
                    ahead_us = first_in_us;
                }
                Reserved::Later(wait) => {
                    assert!(wait <= Duration::from_millis(1), "{wait:?}");
                    break;
                }
            }
            assert!(began.elapsed() < Duration::from_secs(20), "it ends at the horizon");
        }
        // A second ahead, the burst, and what came due while it was asked.
        let due = u32::try_from(began.elapsed().as_millis()).unwrap();
        assert!((1005..=1006 + due).contains(&given), "{given}, {due} ms");
        assert!(ahead_us > 0 && ahead_us <= 1_000_000);
        // Another limit is another account, and its name may be anything.
        let other = control.reserve(&"{x}".repeat(100), flow, 1).await.unwrap();
        assert_eq!(other, Reserved::Moments { count: 1, first_in_us: -4_000 });
        let none = Flow { units: 0, ..flow };
        assert!(matches!(control.reserve("x", none, 1).await, Err(ValkeyError::Refused(_))));
        assert!(matches!(control.charge("x", none, 1).await, Err(ValkeyError::Refused(_))));
    });
}

#[test]
fn the_scripts_of_shared_limits_do_what_the_rule_says() {
    on_server(async |_, control| {
        // An hour to a unit: the server's clock moves by next to nothing meanwhile.
        let hour = Duration::from_secs(3600);
        let flow = Flow { units: 1, per: hour, burst: 5 };
        let (mut account, near) = (Account::default(), |a: Duration, b: Duration| a.abs_diff(b) < Duration::from_secs(30));
        for cost in [1, 2, 1, 1, 3, 1, 100, 1] {
            let (said, expected) = (control.charge("a", flow, cost).await.unwrap(), account.charge(flow, cost, 1 << 50));
            assert!(near(said, expected), "{cost}: {said:?} {expected:?}");
        }
        let mut account = Account::default();
        for wanted in [2, 1, 7, 1] {
            let (said, expected) = (control.reserve("b", flow, wanted).await.unwrap(), account.reserve(flow, wanted, 1 << 50));
            match (said, expected) {
                (Reserved::Moments { count, first_in_us }, Reserved::Moments { count: other, first_in_us: at }) => {
                    assert!(count == other && first_in_us.abs_diff(at) < 30_000_000, "{said:?} {expected:?}");
                }
                (Reserved::Later(wait), Reserved::Later(other)) => assert!(near(wait, other), "{wait:?} {other:?}"),
                _ => panic!("{said:?} {expected:?}"),
            }
        }
    });
}

#[test]
fn moments_given_twice_would_be_noticed() {
    // The control: nothing is written down.
    let scripts = mutant("throttle_reserve", "redis.call('SET', KEYS[1]", "redis.call('SET', KEYS[1] .. 'x'");
    let twice = on_server_with(scripts, async |_, control| {
        let flow = Flow { units: 1, per: Duration::from_secs(3600), burst: 1 };
        let first = control.reserve("a", flow, 1).await.unwrap();
        first == control.reserve("a", flow, 1).await.unwrap()
    });
    assert!(twice);
}

#[test]
fn charges_that_are_forgotten_would_be_noticed() {
    // The control: nothing is written down, and what follows a full charge may pass.
    let passes = |scripts| {
        on_server_with(scripts, async |_, control| {
            let flow = Flow { units: 1, per: Duration::from_secs(3600), burst: 2 };
            control.charge("a", flow, 2).await.unwrap();
            control.charge("a", flow, 1).await.unwrap() <= Duration::from_secs(3600)
        })
    };
    assert!(!passes(Scripts::shipped()), "three of two: closed for two hours");
    assert!(passes(mutant("throttle_charge", "redis.call('SET', KEYS[1]", "redis.call('SET', KEYS[1] .. 'x'")));
}

#[test]
fn only_the_leader_divides_shared_limits() {
    on_server(async |server, control| {
        let leader = |epoch| Leadership { incarnation: me(2), epoch: Epoch(epoch) };
        assert_eq!(pulse(&control, 1, 4, true).await.shares, None);
        assert_eq!(control.write_shares(&leader(3), Shares::of(3, 1)).await.unwrap(), Err(Epoch(4)));
        let said = Division { by: leader(4), shares: Shares { nodes: 3, connected_permille: 666 } };
        for _ in 0..2 {
            assert!(control.write_shares(&leader(4), Shares::of(3, 1)).await.unwrap().is_ok());
            assert_eq!(pulse(&control, 1, 4, false).await.shares.as_ref(), Some(&said));
        }
        // A Valkey that lost the epoch takes a former leader's word until the first heartbeat; each node knows whose it is.
        server.restart();
        while control.write_shares(&leader(3), Shares::of(2, 0)).await.is_err() {}
        let said = pulse(&control, 1, 4, true).await.shares.unwrap();
        assert_eq!(said.shares, Shares::of(2, 0));
        assert_eq!(Fence::new(Some(leader(4))).judge(&said.by), Verdict::Stale(Epoch(4)));
    });
}

/// Two replicas were asked for and one was waited for, so that hardly anybody ever led; and a connection that was made between the election
/// and the question counted replicas that had heard of neither.
#[test]
fn a_lease_counts_once_as_many_replicas_have_it_as_are_required() {
    on_server(async |primary, control| {
        let follow = || Server::start_with(Durability::None, &["--replicaof", "127.0.0.1", &primary.port().to_string()]);
        let replicas = [follow(), follow()];
        let linked = |count: usize| primary.command("INFO replication").matches("state=online").count() == count;
        let began = Instant::now();
        while !linked(2) {
            assert!(began.elapsed() < Duration::from_secs(30), "the replicas do not link");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let ttl = Duration::from_secs(12);
        let acquire = async |floor: u64, required: u32| control.elect(&me(1), &Step::Acquire(Epoch(floor)), ttl, required).await;
        let release = async |epoch: u64| {
            let mine = Leadership { incarnation: me(1), epoch: Epoch(epoch) };
            control.elect(&me(1), &Step::Release(mine), ttl, 0).await
        };
        // One is late, by less than a node has patience.
        let mut epoch = 0;
        let answer = loop {
            epoch += 1;
            replicas[1].pause(true);
            let (answer, ()) = tokio::join!(acquire(0, 2), async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                replicas[1].pause(false);
            });
            // On a busy machine it can be later.
            match answer {
                Answer::NotReplicated(_) if epoch < 5 => {}
                answer => break answer,
            }
        };
        assert_eq!(answer, Answer::Acquired(Epoch(epoch)));
        assert_eq!(release(epoch).await, Answer::Released);
        replicas[1].pause(true);
        epoch += 1;
        assert_eq!(acquire(0, 2).await, Answer::NotReplicated(Epoch(epoch)), "one is not two");
        assert_eq!(primary.command("GET {ringpost:test:c}:leader").trim(), "$-1", "and the lease was given back");
        replicas[0].pause(true);
        let began = Instant::now();
        let (elected, other) = tokio::join!(acquire(0, 1), async {
            let answer = control.members().await;
            (answer, began.elapsed())
        });
        assert_eq!(elected, Answer::NotReplicated(Epoch(epoch + 1)));
        assert!(other.0.is_ok() && other.1 < ttl / 12, "other calls do not wait for replicas: {:?}", other.1);
        // Cut off in between: nothing is known of what replicas have.
        let (written, _) = control.valkey().script_to_replicate("config_poll", &[keyspace().configs()], &[b"1"]).await.unwrap();
        primary.command("CLIENT KILL TYPE normal");
        let began = Instant::now();
        while control.members().await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(30));
        }
        for _ in 0..2 {
            let count = control.valkey().replicas_of(written, 1, Duration::from_millis(50)).await;
            assert!(count.is_err(), "{count:?}");
        }
        replicas.iter().for_each(|replica| replica.pause(false));
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
        let valkey = Valkey::new(target(server));
        let control = ControlPlane::new(valkey.clone(), keyspace());
        pulse(&control, 1, 0, true).await;
        server.pause(true);
        for _ in 0..3 {
            let began = Instant::now();
            let failed = control.heartbeat(&me(1), Epoch(0), &record(&me(1)), TTL).await.unwrap_err();
            assert!(matches!(failed, ValkeyError::Unreachable(_)), "{failed}");
            // The first waits for its call, the others for a connection.
            assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
        }
        assert!(valkey.is_away());
        let began = Instant::now();
        assert_eq!(control.heartbeat(&me(1), Epoch(0), &record(&me(1)), TTL).await, Err(ValkeyError::CircuitOpen));
        assert!(began.elapsed() < Duration::from_millis(5));
        server.pause(false);
        let began = Instant::now();
        while control.heartbeat(&me(1), Epoch(0), &record(&me(1)), TTL).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "the way back is not found");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!valkey.is_away());
    });
}

async fn first_error(url: &str, password: Option<&str>) -> ValkeyError {
    let valkey: Arc<Valkey> = Valkey::with_scripts(Target::parse(url, password, None).unwrap(), Scripts::shipped(), Duration::from_secs(5));
    ControlPlane::new(valkey, keyspace()).members().await.unwrap_err()
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
        assert!(ControlPlane::new(right, keyspace()).members().await.is_ok());
        // Once this ended the whole node: nobody had chosen the cryptography for TLS.
        let error = first_error(&locked.url().replace("valkey://", "valkeys://"), None).await;
        assert!(error.is_outage(), "{error}");
        let port = locked.port();
        drop(locked);
        let error = first_error(&format!("valkey://127.0.0.1:{port}"), None).await;
        assert!(matches!(error, ValkeyError::Unreachable(_)), "{error}");
    });
}

#[test]
fn an_epoch_that_is_none_is_as_good_as_lost() {
    for damage in ["9007199254740993", "1e300", "-7", "nan", "inf", "no number"] {
        on_server(async |server, control| {
            assert_eq!(acquire(&control, 1, 4).await, Answer::Acquired(Epoch(5)));
            server.command(&format!("SET {{ringpost:test:c}}:epoch \"{damage}\""));
            // The leader goes on until somebody says what was accepted.
            let mine = Leadership { incarnation: me(1), epoch: Epoch(5) };
            assert_eq!(control.elect(&me(1), &Step::Renew(mine.clone()), TTL, 0).await, Answer::Renewed, "{damage}");
            assert_eq!(pulse(&control, 1, 5, true).await.epoch, Epoch(5), "{damage}");
            server.command(&format!("SET {{ringpost:test:c}}:epoch \"{damage}\""));
            assert_eq!(control.elect(&me(1), &Step::Release(mine), TTL, 0).await, Answer::Released);
            assert_eq!(acquire(&control, 2, 5).await, Answer::Acquired(Epoch(6)), "{damage}");
        });
    }
}

#[test]
fn a_server_that_lies_about_epochs_is_not_believed() {
    let scripts = Scripts::changed(|name, text| match name {
        "leader_acquire" => "return {1, 9007199254740992}".to_owned(),
        "leader_renew" | "leader_write" => "return {0, 9007199254740992}".to_owned(),
        _ => text.to_owned(),
    });
    on_server_with(Box::leak(Box::new(scripts)), async |server, control| {
        // Kept in the spool it would be refused by the next start.
        assert_eq!(acquire(&control, 1, 0).await, Answer::Unknown);
        let mine = Leadership { incarnation: me(1), epoch: Epoch(5) };
        assert_eq!(control.elect(&me(1), &Step::Renew(mine), TTL, 0).await, Answer::Unknown);
        assert!(matches!(control.write_plan(Epoch(5), "x").await, Err(ValkeyError::Malformed(_))));
        // A leader that is none does not keep nodes from saying that they live.
        server.command("SET {ringpost:test:c}:leader n1:0000000000000000000000000000feed/9007199254740992");
        assert_eq!(pulse(&control, 1, 0, true).await.leader, None);
    });
}

#[test]
fn counts_that_are_damaged_end_no_process() {
    let server = Server::start(Durability::None);
    let valkey = Valkey::with_scripts(target(&server), Scripts::shipped(), Duration::from_secs(5));
    let bounds = QueueBounds { partitions: 4, capacity: 10, dead_max: 10 };
    let queue = WorkQueue::new(valkey, keyspace(), "mail", bounds, ItemKey::new(b"k"), me(1)).unwrap();
    for partition in 0..4 {
        server.command(&format!("HSET {} enqueued 9000000000000000000", keyspace().queue("mail", partition)[9]));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(queue.stats()).unwrap().counters["enqueued"], u64::MAX);
}
