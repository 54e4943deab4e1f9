//! Whole agents on a real Valkey: what they run, say and do when their disk, their shards or Valkey fail.

use std::{
    fs,
    time::{Duration, Instant},
};

use ringpost_cluster::{
    config_watch::NotApplied,
    control_plane::{ControlPlane, Published},
    election::{Answer, Step},
    identity::{EPOCH_MAX, Epoch, Incarnation, Leadership, Role},
    keyspace::Keyspace,
    membership::{NodeRecord, Status},
    script::Scripts,
    valkey::Valkey,
    valkey_error::ValkeyError,
    work_item::ItemKey,
};
use ringpost_valkey_server::{Durability, Server};

mod health;
mod rig;

use rig::*;

/// A full disk: the settings were in force before they were kept, under no number, and the way back was taken for the text that ran.
#[test]
fn what_runs_is_what_is_reported_when_the_disk_takes_nothing() {
    with_nodes(&[Role::Master], async |rig| {
        let node = &rig.nodes[0];
        assert_eq!(node.push("a = 1\n").await, 1);
        wait_for("version 1", || node.handle.config_version() == 1).await;
        // Nothing new can be written.
        fs::create_dir(node.folder.join("pushed.new")).unwrap();
        assert_eq!(node.push("a = 2\n").await, 2);
        let refused = |version: u64| {
            node.handle.nodes().iter().any(|view| view.config_refused.as_ref().is_some_and(|refused| refused.version == version))
        };
        wait_for("the refusal", || refused(2)).await;
        assert_eq!((node.runs().as_str(), node.handle.config_version(), node.kept().0), ("a = 1\n", 1, 1));
        // Back to what runs.
        assert_eq!(node.push("a = 1\n").await, 3);
        wait_for("version 3", || node.handle.config_version() == 3).await;
        assert_eq!(node.runs(), "a = 1\n");
        // The next one is taken as soon as there is room.
        assert_eq!(node.push("a = 4\n").await, 4);
        wait_for("the refusal", || refused(4)).await;
        fs::remove_dir(node.folder.join("pushed.new")).unwrap();
        wait_for("version 4", || node.handle.config_version() == 4).await;
        assert_eq!((node.runs(), node.kept()), ("a = 4\n".to_owned(), (4, Some("a = 4\n".to_owned()))));
    });
}

#[test]
fn what_is_refused_is_not_begun_with() {
    with_nodes(&[Role::Master], async |rig| {
        let node = &rig.nodes[0];
        node.push("a = 1\n").await;
        wait_for("version 1", || node.handle.config_version() == 1).await;
        node.process.lock().unwrap().refuses = Some(NotApplied::Unfit("not here".to_owned()));
        node.push("a = 2\n").await;
        wait_for("the refusal", || node.handle.stats().counters.get("configs_refused") == Some(&1)).await;
        assert_eq!((node.runs(), node.kept()), ("a = 1\n".to_owned(), (1, Some("a = 1\n".to_owned()))));
    });
}

/// What stood in the way for some seconds, as connections of earlier limits do, had a node run the former settings for good.
#[test]
fn what_cannot_be_taken_now_is_told_and_taken_once_it_can() {
    with_nodes(&[Role::Master, Role::Worker], async |rig| {
        let [node, other] = &rig.nodes[..] else { panic!("two") };
        node.push("a = 1\n").await;
        wait_for("version 1", || node.handle.config_version() == 1).await;
        let refuses = |why: Option<&str>| node.process.lock().unwrap().refuses = why.map(|why| NotApplied::NotNow(why.to_owned()));
        let told = |version: u64| {
            let nodes = other.handle.nodes();
            let refused = nodes.iter().find(|view| view.id.as_str() == "n0").and_then(|view| view.config_refused.clone());
            refused.is_some_and(|refused| refused.waits && refused.version == version && refused.reason == "connections end first")
        };
        let put_off = || node.handle.stats().counters.get("configs_put_off").copied().unwrap_or_default();
        refuses(Some("connections end first"));
        node.push("a = 2\n").await;
        wait_for("the other's knowing", || told(2)).await;
        wait_for("two more tries", || put_off() >= 3).await;
        assert_eq!((node.runs(), node.kept()), ("a = 1\n".to_owned(), (1, Some("a = 1\n".to_owned()))));
        refuses(None);
        wait_for("version 2", || node.handle.config_version() == 2).await;
        assert_eq!((node.runs(), node.kept()), ("a = 2\n".to_owned(), (2, Some("a = 2\n".to_owned()))));
        wait_for("the end of its word", || !told(2)).await;

        // A later version takes the place of what waits, at once.
        refuses(Some("connections end first"));
        node.push("a = 3\n").await;
        wait_for("the other's knowing", || told(3)).await;
        refuses(None);
        node.push("a = 4\n").await;
        wait_for("version 4", || node.handle.config_version() == 4).await;
        assert_eq!(node.runs(), "a = 4\n");
        assert!(!node.handle.stats().counters.contains_key("configs_refused"));
    });
}

/// A failover lost a version after one node had taken it; the number was given again, and the two nodes ran different settings for good.
#[test]
fn two_texts_under_one_number_end_as_the_one_that_valkey_has() {
    with_nodes(&[Role::Master], async |rig| {
        let node = &rig.nodes[0];
        node.push("a = 1\n").await;
        wait_for("version 1", || node.handle.config_version() == 1).await;
        // As another server has it, to which version 1 had not come when another text was pushed.
        let (text, elsewhere) = ("a = 2\n", Keyspace::new("other").unwrap());
        let other = ControlPlane::new(node.handle.control().valkey().clone(), elsewhere.clone()).with_key(ItemKey::new(KEY));
        assert_eq!(other.publish_config(text, "ann", 0, 0, None).await.unwrap(), Published::Version(1));
        rig.copy(&elsewhere.configs(), &keyspace().configs());
        wait_for("the text that Valkey has", || node.runs() == text).await;
        wait_for("its being kept", || node.kept() == (1, Some(text.to_owned()))).await;
        assert_eq!(node.handle.config_version(), 1);
    });
}

/// A node whose shard hung called itself healthy, by a list that it read no more, and led on.
#[test]
fn a_node_whose_shard_hangs_says_so_and_leads_no_longer() {
    with_nodes(&[Role::Master, Role::Master], async |rig| {
        let leading = |rig: &Rig| rig.nodes.iter().position(|node| node.handle.is_leader());
        wait_for("a leader", || leading(rig).is_some()).await;
        wait_for("two nodes", || rig.nodes.iter().all(|node| node.handle.stats().counts.healthy_nodes == 2)).await;
        let hung = leading(rig).unwrap();
        let (hung, other) = (&rig.nodes[hung], &rig.nodes[1 - hung]);
        hung.process.lock().unwrap().local.stalled = Some("shard 0 has not answered for 3 s".to_owned());
        wait_for("another leader", || other.handle.is_leader() && hung.leader() == other.leader()).await;
        assert_ne!(hung.handle.stats().local_node_status, Status::Healthy);
        // It learns what becomes of others, and of itself.
        other.handle.leave().await;
        wait_for("the other's leaving", || hung.handle.nodes().len() == 1).await;
        wait_for("its own silence", || hung.handle.stats().local_node_status == Status::Offline).await;
        let began = Instant::now();
        while began.elapsed() < LEADER_TTL * 2 {
            assert!(!hung.handle.is_leader(), "nobody leads rather than a node that hangs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        hung.process.lock().unwrap().local.stalled = None;
        wait_for("its return", || hung.handle.is_leader() && hung.handle.stats().local_node_status == Status::Healthy).await;
    });
}

/// With heartbeats as by default a standby stood 13 s after the last master was killed, when it had missed two of them.
#[test]
fn a_standby_leads_soon_after_the_only_master_was_killed() {
    with_nodes(&[], async |rig| {
        rig.heartbeat = Duration::from_secs(5);
        rig.nodes.push(Node::start(0, rig, Role::Master));
        wait_for("a leader", || rig.nodes[0].handle.is_leader()).await;
        rig.nodes.push(Node::start(1, rig, Role::Standby));
        let standby = &rig.nodes[1].handle;
        wait_for("both", || standby.stats().counts.healthy_nodes == 2 && standby.stats().leader.as_deref() == Some("n0")).await;
        // Others see it as it was for two and a half heartbeats.
        rig.nodes[0].task.abort();
        let killed = Instant::now();
        wait_for("another leader", || standby.is_leader()).await;
        let took = killed.elapsed();
        println!("a standby led {took:?} after the kill");
        // 1.5 times its length and a second, and as long again for a machine that has other work: heartbeats take 12.5 s.
        assert!(took < (LEADER_TTL * 3 / 2 + Duration::from_secs(1)) * 2, "{took:?}");
    });
}

/// A leader whose disk had failed led on, for as long as it was kept for inspection.
#[test]
fn a_node_whose_disk_failed_leads_no_longer_and_is_there_all_the_same() {
    with_nodes(&[Role::Master, Role::Standby], async |rig| {
        let (failed, other) = (&rig.nodes[0], &rig.nodes[1]);
        wait_for("a leader", || failed.handle.is_leader()).await;
        {
            let local = &mut failed.process.lock().unwrap().local;
            (local.unfit, local.last_error) = (true, Some("its spool failed".to_owned()));
        }
        wait_for("another leader", || other.handle.is_leader() && failed.leader() == other.leader()).await;
        let is_degraded =
            || other.handle.nodes().iter().any(|node| node.id == *failed.handle.me().node() && node.status == Status::Degraded);
        wait_for("its word", is_degraded).await;
        other.handle.leave().await;
        let began = Instant::now();
        while began.elapsed() < LEADER_TTL * 2 {
            assert!(!failed.handle.is_leader(), "nobody leads rather than a node without a disk");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        failed.process.lock().unwrap().local.unfit = false;
        wait_for("its return", || failed.handle.is_leader()).await;
    });
}

/// Each was elected, gave the lease back, and said both aloud, whereupon all asked at once: 23 elections in 6 s, without end.
#[test]
fn while_replicas_are_missing_elections_are_few_and_nobody_is_told_of_them() {
    with_nodes_and_replicas(&[Role::Master; 3], 1, async |rig| {
        let control = rig.nodes[0].handle.control();
        let mut messages = control.valkey().subscribe(vec![control.events_channel()]);
        let mut said = async || {
            let mut said = Vec::new();
            while let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(1), messages.recv()).await {
                said.extend(["elected", "released"].into_iter().find(|word| message.payload.starts_with(word)));
            }
            said
        };
        wait_for("three nodes", || rig.nodes.iter().all(|node| node.handle.stats().counts.healthy_nodes == 3)).await;
        let epoch = || match rig.run(redis::cmd("GET").arg(keyspace().epoch())) {
            redis::Value::BulkString(epoch) => String::from_utf8(epoch).unwrap().parse::<u64>().unwrap(),
            _ => 0,
        };
        wait_for("an election", || epoch() > 0).await;
        let (began, before) = (Instant::now(), epoch());
        while began.elapsed() < LEADER_TTL * 3 {
            assert!(rig.nodes.iter().all(|node| !node.handle.is_leader()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let ttls = began.elapsed().as_secs_f64() / LEADER_TTL.as_secs_f64();
        let elections = epoch() - before;
        assert!(elections as f64 <= (ttls + 1.0) * 3.0, "{elections} elections of three nodes in {ttls} times leader_ttl");
        assert_eq!(said().await, [""; 0]);
        assert!(rig.nodes.iter().all(|node| node.handle.stats().counters.contains_key("elections_not_replicated")));
        // With a replica one of them leads, and says so.
        rig.run(redis::cmd("CONFIG").arg("SET").arg("repl-diskless-sync-delay").arg(0));
        let _replica = Server::start_with(Durability::None, &["--replicaof", "127.0.0.1", &rig.server.port().to_string()]);
        wait_for("a leader", || rig.nodes.iter().any(|node| node.handle.is_leader())).await;
        wait_for("agreement", || rig.nodes.iter().all(|node| node.leader().is_some())).await;
        let said = said().await;
        assert!(said.contains(&"elected"), "{said:?}");
    });
}

/// Whoever could write to Valkey, or only publish a message, could use up all epochs and all versions at once: nodes kept the number in their
/// spools, and no later leader was followed and no later push applied, whatever was restored.
#[test]
fn what_is_forged_is_over_when_valkey_is_restored() {
    with_nodes(&[Role::Master, Role::Master], async |rig| {
        let (keys, events) = (keyspace(), rig.nodes[0].handle.control().events_channel());
        rig.nodes[0].push("a = 1\n").await;
        wait_for("version 1", || rig.nodes.iter().all(|node| node.handle.config_version() == 1)).await;
        wait_for("a leader", || rig.nodes.iter().any(|node| node.handle.is_leader())).await;
        rig.copy(&keys.configs(), "backup");
        let count = |node: &Node, counter: &str| node.handle.stats().counters.get(counter).copied().unwrap_or(0);
        for (round, forged) in [EPOCH_MAX, 1 << 40].into_iter().enumerate() {
            let before: Vec<u64> = rig.nodes.iter().map(|node| count(node, "epochs_out_of_reach")).collect();
            let nobody = format!("x:000000000000000000000000deadbeef/{forged}");
            for key in [keys.leader(), keys.plan()] {
                rig.run(redis::cmd("SET").arg(key).arg(&nobody));
            }
            rig.run(redis::cmd("SET").arg(keys.epoch()).arg(forged));
            rig.run(redis::cmd("PUBLISH").arg(&events).arg(format!("elected {nobody}")));
            // What was once pushed and signed, under a number that nobody can follow.
            let redis::Value::BulkString(blob) = rig.run(redis::cmd("HGET").arg(keys.configs()).arg("v1")) else { panic!("version 1") };
            let redis::Value::BulkString(seal) = rig.run(redis::cmd("HGET").arg(keys.configs()).arg("s1")) else { panic!("its seal") };
            let fields = [format!("v{forged}"), format!("s{forged}")];
            rig.run(redis::cmd("HSET").arg(keys.configs()).arg("current").arg(forged).arg(&fields[0]).arg(blob).arg(&fields[1]).arg(seal));
            rig.run(redis::cmd("PUBLISH").arg(&events).arg(format!("config {forged} zz")));
            wait_for("the end of leadership", || rig.nodes.iter().all(|node| !node.handle.is_leader())).await;
            wait_for("refusals", || {
                // Several, by which time the lease has been asked for again.
                let refused = rig.nodes.iter().zip(&before).all(|(node, before)| count(node, "epochs_out_of_reach") > before + 20);
                refused && rig.nodes.iter().all(|node| count(node, "configs_not_ours") > 0)
            })
            .await;
            let pushed = rig.nodes[0].handle.control().publish_config("a = 0\n", "ann", 0, 1, None).await;
            assert!(matches!(pushed, Err(ValkeyError::Malformed(_))), "{pushed:?}");
            assert!(rig.nodes.iter().all(|node| node.handle.stats().epoch.0 < 1000 && node.handle.config_version() == 1 + round as u64));
            // Restored.
            for key in [keys.leader(), keys.plan(), keys.epoch()] {
                rig.run(redis::cmd("DEL").arg(key));
            }
            rig.copy("backup", &keys.configs());
            wait_for("a leader", || rig.nodes.iter().any(|node| node.handle.is_leader())).await;
            let leader = || rig.nodes.iter().find(|node| node.handle.is_leader()).map(|node| node.handle.stats().local_node_id);
            wait_for("agreement", || leader().is_some_and(|leader| rig.nodes.iter().all(|node| node.leader().as_ref() == Some(&leader))))
                .await;
            assert!(rig.nodes.iter().all(|node| node.handle.stats().epoch.0 < 1000));
            let version = rig.nodes[1].push(&format!("a = {}\n", round + 2)).await;
            wait_for("the push", || rig.nodes.iter().all(|node| node.handle.config_version() == version)).await;
            assert_eq!(version, round as u64 + 2);
            rig.copy(&keys.configs(), "backup");
        }
    });
}

/// A leader that had just started divided shared limits by the list of nodes that it had not read yet: all of a limit for each node.
#[test]
fn a_leader_divides_limits_by_a_list_that_it_has_read_since_its_election() {
    with_nodes(&[], async |rig| {
        let control = ControlPlane::new(Valkey::with_scripts(target(&rig.server), Scripts::shipped(), Duration::from_secs(1)), keyspace());
        for number in 1..=3 {
            let me = Incarnation::of_this_process(format!("other{number}").parse().unwrap());
            control.heartbeat(&me, Epoch(0), &NodeRecord::new(&me, Role::Worker), Duration::ZERO).await.unwrap();
        }
        // Its shards do not answer the question about their state, so that nothing comes of heartbeats.
        let node = Node::start_in(0, rig, Role::Master, Process { is_silent: true, ..Process::default() });
        rig.nodes.push(node);
        let divided = || match rig.run(redis::cmd("GET").arg(keyspace().shares())) {
            redis::Value::BulkString(text) => String::from_utf8(text).unwrap(),
            _ => String::new(),
        };
        wait_for("the division", || !divided().is_empty()).await;
        assert!(divided().ends_with(" 3 1000"), "{}", divided());
    });
}

/// Who was stopped between asking for the lease and leading with it kept it for its whole time, and nobody led.
#[test]
fn who_is_stopped_in_the_moment_of_its_election_keeps_no_lease() {
    with_nodes(&[], async |rig| {
        let has_leader = || rig.run(redis::cmd("EXISTS").arg(keyspace().leader())) == redis::Value::Int(1);
        let mut caught = 0;
        for round in 0..40 {
            let node = Node::start(round, rig, Role::Master);
            // From before the call to after the answer.
            for _ in 0..round {
                tokio::time::sleep(Duration::from_micros(100)).await;
            }
            node.handle.leave().await;
            node.task.await.unwrap();
            assert!(!has_leader(), "round {round}");
            caught += u32::from(node.handle.stats().epoch == Epoch(0));
        }
        println!("{caught} of 40 left before they led");
    });
}

/// A warning at each poll, until the lease ended.
#[test]
fn a_lease_that_does_not_run_out_is_told_once() {
    with_nodes(&[Role::Master], async |rig| {
        let count = |what: &str| rig.nodes[0].handle.stats().counters.get(what).copied().unwrap_or(0);
        wait_for("its election", || rig.nodes[0].handle.is_leader()).await;
        // A lease of more than four times its time is cut at the first look.
        let lease_ms = u64::try_from((LEADER_TTL * 4).as_millis()).unwrap() - 100;
        rig.run(redis::cmd("SET").arg(keyspace().leader()).arg("other:00000000000000000000000000000001/9").arg("PX").arg(lease_ms));
        wait_for("the word", || count("frozen_leases") == 1).await;
        let began = Instant::now();
        while began.elapsed() < LEADER_TTL {
            assert_eq!(count("frozen_leases"), 1);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

/// Right behind a failover its connection for messages was just being made anew: who asked was told that it was asked, and it led on.
#[test]
fn a_leader_that_does_not_listen_yet_is_asked_again() {
    with_nodes(&[Role::Worker], async |rig| {
        let control = ControlPlane::new(Valkey::new(target(&rig.server)), keyspace());
        let leader = Incarnation::of_this_process("n9".parse().unwrap());
        let lease = Duration::from_secs(60);
        let Answer::Acquired(epoch) = control.elect(&leader, &Step::Acquire(Epoch(0)), lease, 0).await else { panic!("not elected") };
        let leadership = Leadership { incarnation: leader.clone(), epoch };
        assert_eq!(rig.nodes[0].handle.hand_over().await, Ok(Some(leadership.clone())));
        let mut messages = control.valkey().subscribe(vec![control.events_channel()]);
        let asked = async { while messages.recv().await.unwrap().payload != format!("handover {leadership}") {} };
        tokio::time::timeout(PATIENCE, asked).await.expect("it is asked again");
    });
}

/// Whoever had asked a leader that was dead heard that it was asked, and nothing else.
#[test]
fn who_follows_a_leader_is_waited_for() {
    with_nodes(&[Role::Worker], async |rig| {
        let control = rig.nodes[0].handle.control();
        let (soon, long) = (Duration::from_millis(200), Duration::from_secs(60));
        let elect = async |node: &str| {
            let leader = Incarnation::of_this_process(node.parse().unwrap());
            let Answer::Acquired(epoch) = control.elect(&leader, &Step::Acquire(Epoch(0)), long, 0).await else { panic!("not elected") };
            Leadership { incarnation: leader, epoch }
        };
        let dead = elect("n8").await;
        assert_eq!(control.successor(&dead, 0, soon, soon).await, Ok(Some(dead.clone())), "it has the lease still");
        let delete = || rig.run(redis::cmd("DEL").arg(keyspace().leader()));
        delete();
        assert_eq!(control.successor(&dead, 0, soon, soon).await, Ok(None));
        let following = control.successor(&dead, 0, soon, PATIENCE);
        let (found, next) = tokio::join!(following, elect("n9"));
        assert_eq!(found, Ok(Some(next.clone())));
        delete();
        let again = elect("n9").await;
        assert!(again.epoch > next.epoch);
        assert_eq!(control.successor(&next, 0, soon, soon).await, Ok(Some(again.clone())), "the same node, elected anew");
        // Whose lease must be with replicas has it before it is elected, and gives it back: it was named as the next leader. Not within the patience is it
        // elected, however busy the machine is.
        let gives_back = async {
            rig.looks_for_leader().await;
            delete();
        };
        let (found, ()) = tokio::join!(control.successor(&next, 1, long, soon), gives_back);
        assert_eq!(found, Ok(None), "it was never elected");
        // Who is elected after the patience, and had the lease before its end, was told as nobody.
        let (ttl, stays) = (Duration::from_secs(3), elect("n9").await);
        assert_eq!(control.successor(&next, 1, ttl, Duration::from_millis(1)).await, Ok(Some(stays.clone())));
        assert_eq!(control.successor(&next, 1, ttl, PATIENCE).await, Ok(Some(stays)));
    });
}

/// The same word, said again for a leader of before, is none to the next one.
#[test]
fn only_the_leader_that_is_asked_hands_over() {
    with_nodes(&[Role::Master], async |rig| {
        wait_for("its election", || rig.nodes[0].handle.is_leader()).await;
        let me = rig.nodes[0].handle.control().ask_hand_over().await.unwrap().unwrap();
        wait_for("its hand-over", || !rig.nodes[0].handle.is_leader()).await;
        wait_for("its next election", || rig.nodes[0].handle.is_leader()).await;
        let events = keyspace().events();
        rig.run(redis::cmd("PUBLISH").arg(&events).arg(format!("handover {me}")));
        // What is said behind it is heard after it.
        rig.nodes[0].push("a").await;
        wait_for("the config", || rig.nodes[0].runs() == "a").await;
        assert!(rig.nodes[0].handle.is_leader());
        rig.run(redis::cmd("PUBLISH").arg(&events).arg("handover"));
        wait_for("a hand-over for a version before", || !rig.nodes[0].handle.is_leader()).await;
    });
}
