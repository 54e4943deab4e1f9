//! Election, heartbeats, configs and limits on a real Valkey, and what the driver does when that is slow, away or wrong.

use std::{
    cell::Cell,
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
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
    work_item::{ItemKey, NewItem},
    work_queue::{QueueBounds, WorkQueue},
};
use ringpost_valkey_server::{Durability, Server};

mod channels;
mod configs;
mod limits;
mod partitions;
mod secrets;

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

/// Pages were told apart by their places in the order of who was seen last, in which a heartbeat between two of them moves all that come after its node: of
/// more than 256 nodes one or another was always missing, and counted as gone.
#[test]
fn a_heartbeat_between_two_pages_of_the_list_hides_no_node() {
    const NODES: u128 = 300;
    // Behind each page one is seen: whoever was seen longest ago, or the last of the page.
    const OLDEST: &str = "redis.call('ZADD', KEYS[1], answer[1] + 1, redis.call('ZRANGE', KEYS[1], 0, 0)[1])\nreturn answer";
    const LAST: &str = "redis.call('ZADD', KEYS[1], answer[1] + 1, seen[#seen - 1])\nreturn answer";
    for (behind, at_once) in [(OLDEST, false), (LAST, false), (OLDEST, true)] {
        on_server_with(mutant("members", "return answer", behind), async |server, control| {
            for number in 0..NODES {
                pulse(&control, number, 0, true).await;
                if at_once {
                    server.command(&format!("ZADD {} 1000 n{number}", keyspace().members()));
                }
            }
            let (_, members) = control.members().await.unwrap();
            let ids: HashSet<_> = members.iter().map(|member| member.record.id.clone()).collect();
            assert_eq!((members.len(), ids.len()), (NODES as usize, NODES as usize), "each once: {behind}, at once: {at_once}");
        });
    }
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
            // It goes on once the primary waits for it.
            let (began, has_ended) = (Instant::now(), Cell::new(false));
            let elected = async {
                let answer = acquire(0, 2).await;
                has_ended.set(true);
                answer
            };
            let (answer, ()) = tokio::join!(elected, async {
                while !has_ended.get() && !primary.command("INFO clients").contains("blocked_clients:1\r") {
                    assert!(began.elapsed() < Duration::from_secs(30), "nobody waits for the replica");
                    tokio::task::yield_now().await;
                }
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
            assert!(failed.is_unreachable(), "{failed}");
            // The first waits for its call, the others for a connection.
            assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
        }
        assert!(valkey.is_away());
        let began = Instant::now();
        let refused = control.heartbeat(&me(1), Epoch(0), &record(&me(1)), TTL).await.unwrap_err();
        assert!(matches!(&refused, ValkeyError::CircuitOpen(last) if last.starts_with("Valkey cannot be reached: no ")), "{refused}");
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

/// It was looked at for each connection alone: one that stood went on, with leases and epochs that could vanish.
#[test]
fn a_policy_that_is_changed_while_a_connection_stands_ends_it() {
    on_server(async |server, control| {
        let valkey = control.valkey().clone();
        assert!(control.members().await.is_ok());
        let bounds = QueueBounds { partitions: 1, capacity: 10, dead_max: 10 };
        let queue = WorkQueue::new(valkey.clone(), keyspace(), "mail", bounds, ItemKey::new(b"k"), me(1)).unwrap();
        let large = NewItem {
            id: "large".to_owned(),
            owner: "n1".parse().unwrap(),
            priority: 5,
            max_attempts: 3,
            delay_ms: 0,
            expires_in_ms: 0,
            data: vec![],
        };
        // By the connection of calls that may take long.
        assert!(queue.enqueue_again(0, std::slice::from_ref(&large), 1).await.is_ok());
        valkey.check_policy().await;
        assert!(server.command("CONFIG SET maxmemory-policy allkeys-lru").starts_with("+OK"));
        assert!(control.members().await.is_ok(), "nobody has looked");
        valkey.check_policy().await;
        let error = control.members().await.unwrap_err();
        assert!(matches!(&error, ValkeyError::Misconfigured(why) if why.contains("allkeys-lru")), "{error}");
        assert_eq!(valkey.refusal(), Some(error));
        assert!(server.command("CONFIG SET maxmemory-policy noeviction").starts_with("+OK"));
        let began = Instant::now();
        while control.members().await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "the way back is not found");
            tokio::task::yield_now().await;
        }
        assert_eq!(valkey.refusal(), None);
        let made = valkey.counters.connections.load(Ordering::Relaxed);
        assert!(queue.enqueue_again(0, &[large], 1).await.is_ok());
        assert_eq!(valkey.counters.connections.load(Ordering::Relaxed), made + 1, "each connection was given up");
    });
}

/// What was said of the next outage was what had come of a call of the one before, where nothing was heard of calls that were given up.
#[test]
fn an_outage_that_is_over_says_nothing_of_the_next() {
    on_server(async |server, control| {
        let valkey = control.valkey().clone();
        assert!(control.members().await.is_ok());
        server.kill();
        let began = Instant::now();
        while !valkey.is_away() {
            assert!(control.members().await.is_err() && began.elapsed() < Duration::from_secs(10));
        }
        let refused = valkey.outage().expect("it is away").to_string();
        assert!(refused.contains("refused"), "{refused}");
        server.restart();
        while control.members().await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "the way back is not found");
            tokio::task::yield_now().await;
        }
        server.pause(true);
        while !valkey.is_away() {
            let given_up = tokio::time::timeout(Duration::from_millis(5), control.members()).await;
            assert!(given_up.is_err() && began.elapsed() < Duration::from_secs(30));
        }
        let outage = valkey.outage().expect("it is away").to_string();
        server.pause(false);
        assert!(outage.ends_with("the call was given up"), "{outage}");
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
