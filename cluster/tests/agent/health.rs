//! What agents say of each other and of themselves while Valkey is away or full, or another has their name.

use super::*;

#[test]
fn nobody_leads_as_far_as_anybody_says_once_valkey_is_away() {
    with_nodes(&[Role::Master, Role::Worker], async |rig| {
        wait_for("a leader", || rig.nodes.iter().all(|node| node.leader().as_deref() == Some("n0"))).await;
        rig.server.kill();
        let began = Instant::now();
        wait_for("their forgetting it", || rig.nodes.iter().all(|node| node.leader().is_none())).await;
        // The worker heard of it with its last heartbeat; a busy machine looks late.
        assert!(began.elapsed() < LEADER_TTL + HEARTBEAT * 2 + Duration::from_secs(2), "{:?}", began.elapsed());
        rig.server.restart();
        wait_for("a leader again", || rig.nodes.iter().all(|node| node.leader().as_deref() == Some("n0"))).await;
    });
}

/// As far as anybody could see all nodes were well for as long as Valkey was away.
#[test]
fn how_other_nodes_are_is_unknown_once_valkey_is_away() {
    with_nodes(&[Role::Master, Role::Worker], async |rig| {
        let all_well = |rig: &Rig| rig.nodes.iter().all(|node| node.handle.stats().counts.healthy_nodes == 2);
        wait_for("two healthy nodes", || all_well(rig)).await;
        rig.server.kill();
        wait_for("their not knowing", || rig.nodes.iter().all(|node| node.handle.stats().counts.unknown_nodes == 1)).await;
        for (own, node) in rig.nodes.iter().enumerate() {
            let (stats, nodes) = (node.handle.stats(), node.handle.nodes_now());
            assert_eq!((stats.counts.healthy_nodes, stats.counts.total_nodes, stats.local_node_status), (1, 2, Status::Healthy));
            assert_eq!((nodes[own].status, nodes[1 - own].status), (Status::Healthy, Status::Unknown), "it knows of itself");
            // All that is shown was so when it was read, and the other lived then.
            let since = stats.nodes_unknown_since.unwrap();
            assert!(nodes.iter().all(|node| node.unknown_since == Some(since) && node.last_seen <= since));
        }
        rig.server.restart();
        wait_for("their knowing", || all_well(rig)).await;
        assert!(rig.nodes.iter().all(|node| node.handle.stats().nodes_unknown_since.is_none()));
    });
}

/// Another process had its name, and its good health: the node that was none to the others said that it was well.
#[test]
fn a_node_whose_name_another_has_does_not_look_well_to_itself() {
    with_nodes(&[Role::Worker], async |rig| {
        wait_for("its health", || rig.nodes[0].handle.stats().counts.healthy_nodes == 1).await;
        let rival = Node::start(0, rig, Role::Worker);
        // By its own word: others may have missed heartbeats of it on a busy machine.
        let is_ousted = |error: String| error.ends_with(&rival.handle.me().to_string());
        wait_for("its word", || {
            let stats = rig.nodes[0].handle.stats();
            stats.local_node_status == Status::Unhealthy && stats.local_last_error.is_some_and(is_ousted)
        })
        .await;
        wait_for("the other's health", || {
            let stats = rival.handle.stats();
            (stats.local_node_status, stats.local_last_error) == (Status::Healthy, None)
        })
        .await;
        rival.handle.leave().await;
        wait_for("its health again", || rig.nodes[0].handle.stats().local_node_status == Status::Healthy).await;
    });
}

/// A leader could renew its lease, and nobody could write a heartbeat: all were offline to each other, the circuits opened and closed, and whoever led
/// lost the lease in between.
#[test]
fn a_valkey_that_is_full_has_a_leader_and_nodes_all_the_same() {
    const HEARTBEATS: u64 = 12;
    with_nodes(&[Role::Master, Role::Standby, Role::Worker], async |rig| {
        let all_follow = |rig: &Rig, leader: &str| rig.nodes.iter().all(|node| node.leader().as_deref() == Some(leader));
        wait_for("a leader", || all_follow(rig, "n0")).await;
        let all_well = |rig: &Rig, count: usize| rig.nodes.iter().all(|node| node.handle.stats().counts.healthy_nodes == count as u64);
        wait_for("three healthy nodes", || all_well(rig, 3)).await;
        assert!(rig.server.command("CONFIG SET maxmemory 1").starts_with("+OK"));
        assert!(rig.server.command("SET any 1").starts_with("-OOM"));
        // For longer than the lease lasts.
        let seen = |rig: &Rig| rig.nodes[2].handle.nodes().iter().map(|node| node.last_seen).min().unwrap();
        let (began, interval) = (seen(rig), u64::try_from(HEARTBEAT.as_millis()).unwrap());
        wait_for("their heartbeats", || seen(rig) >= began + HEARTBEATS * interval).await;
        for node in &rig.nodes {
            assert_eq!(node.handle.stats().counters.get("heartbeats_failed"), None, "each was taken");
        }
        wait_for("the leader and three healthy nodes", || all_follow(rig, "n0") && all_well(rig, 3)).await;
        // Another can be elected.
        rig.nodes[0].handle.leave().await;
        wait_for("the next leader", || rig.nodes[1..].iter().all(|node| node.leader().as_deref() == Some("n1"))).await;
    });
}

/// Other nodes leave owners two seconds to take out of the queue what they have delivered, and a node that started without Valkey, which takes part
/// in the queue with its first heartbeat, sent the next only after a whole interval: what it had delivered itself was delivered again.
#[test]
fn a_first_heartbeat_that_failed_is_not_put_off_for_a_whole_interval() {
    with_nodes(&[], async |rig| {
        rig.server.kill();
        rig.heartbeat = PATIENCE * 100;
        let node = Node::start(0, rig, Role::Master);
        wait_for("a heartbeat that fails", || node.handle.stats().counters.get("heartbeats_failed").is_some_and(|count| *count > 0)).await;
        rig.server.restart();
        wait_for("one that is taken", || node.handle.stats().counts.healthy_nodes == 1).await;
        node.task.abort();
    });
}

/// It was counted, and said in one line of the log: `cluster nodes` showed a healthy node that did not run what all others ran.
#[test]
fn a_config_that_was_pushed_with_another_key_is_what_is_wrong_with_a_node() {
    with_nodes(&[Role::Worker], async |rig| {
        let other = ControlPlane::new(Valkey::new(target(&rig.server)), keyspace()).with_key(ItemKey::new(b"the key of another cluster"));
        wait_for("its health", || rig.nodes[0].handle.stats().counts.healthy_nodes == 1).await;
        other.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap();
        let stats = || rig.nodes[0].handle.stats();
        // That Valkey was late is another word, and may come before.
        let word = || stats().local_last_error.filter(|error| error.starts_with("it does not run the config that was pushed"));
        let error = wait_for_some("its word", word).await;
        assert!(error.contains("cluster.key_file"), "{error}");
        wait_for("its status", || stats().local_node_status == Status::Degraded).await;
        let as_read = || rig.nodes[0].handle.nodes().first().and_then(|node| node.last_error.clone());
        wait_for("its heartbeat", || as_read().as_ref() == Some(&error)).await;
        let version = rig.nodes[0].push("a = 2\n").await;
        wait_for("a config of its own key", || rig.nodes[0].handle.config_version() == version).await;
        wait_for("its health again", || stats().local_node_status == Status::Healthy && stats().local_last_error.is_none()).await;
    });
}

/// That the queue was full hid what kept others from taking what was in it.
#[test]
fn what_makes_the_queue_full_is_told_before_that_it_is() {
    with_nodes(&[Role::Master], async |rig| {
        let node = &rig.nodes[0];
        let told = || node.handle.stats().local_last_error.unwrap_or_default();
        node.process.lock().unwrap().local.symptom = Some("the queue is crowded".to_owned());
        wait_for("what is wrong", || told() == "the queue is crowded").await;
        // Of what it asks by itself the list of nodes alone wants it.
        assert!(rig.server.command("ACL SETUSER default -zrange").starts_with("+OK"));
        wait_for("the cause", || told().contains("'zrange'")).await;
        assert!(rig.server.command("ACL SETUSER default +zrange").starts_with("+OK"));
        wait_for("what is wrong beside it", || told() == "the queue is crowded").await;
    });
}

/// Heartbeats failed from the start, what is only read was answered: the node said that it was healthy, and nothing said what was wrong.
#[test]
fn a_valkey_that_takes_no_writes_is_what_is_wrong_with_a_node() {
    with_nodes(&[], async |rig| {
        assert!(rig.server.command("REPLICAOF 127.0.0.1 1").starts_with("+OK"));
        let node = Node::start(0, rig, Role::Master);
        let stats = || node.handle.stats();
        wait_for("its word", || stats().local_last_error.is_some_and(|error| error.contains("READONLY"))).await;
        wait_for("its status", || stats().local_node_status == Status::Degraded).await;
        wait_for("the same of the nodes", || {
            node.handle.nodes_now().pop().and_then(|itself| itself.last_error).is_some_and(|error| error.contains("READONLY"))
        })
        .await;
        assert!(rig.server.command("REPLICAOF NO ONE").starts_with("+OK"));
        wait_for("its health", || stats().local_node_status == Status::Healthy && stats().local_last_error.is_none()).await;
        node.task.abort();
    });
}

/// Its election's calls need fewer rights than its heartbeats: it led, and was offline to all others.
#[test]
fn a_node_that_may_not_send_heartbeats_says_why_and_neither_leads_nor_stands() {
    with_nodes(&[Role::Master], async |rig| {
        let node = &rig.nodes[0];
        let stats = || node.handle.stats();
        wait_for("its leadership", || node.handle.is_leader()).await;
        assert!(rig.server.command("ACL SETUSER default -time").starts_with("+OK"));
        // A chore of the leader asks the time as well, and may be refused, and told of, before a heartbeat is.
        let word = || stats().local_last_error.filter(|error| error.starts_with("its heartbeats are refused"));
        let error = wait_for_some("its word", word).await;
        assert!(error.contains("'time'") && !error.contains("default"), "{error}");
        wait_for("the end of its leadership", || !node.handle.is_leader()).await;
        // For longer than a lease lasts, by heartbeats.
        let failed = || stats().counters.get("heartbeats_failed").copied().unwrap_or(0);
        let (before, elected) = (failed(), stats().counters["elected"]);
        wait_for("heartbeats in vain", || failed() > before + 2 * u64::try_from(LEADER_TTL.as_millis() / HEARTBEAT.as_millis()).unwrap())
            .await;
        assert_eq!((stats().counters["elected"], node.handle.is_leader()), (elected, false));
        assert!(rig.server.command("ACL SETUSER default +time").starts_with("+OK"));
        wait_for("its leadership again", || node.handle.is_leader() && stats().local_last_error.is_none()).await;
    });
}

/// `cluster status` and `nodes` said that Valkey was away, and the reason, as a certificate that is not trusted, was in the log alone.
#[test]
fn why_valkey_is_away_is_told_and_its_return() {
    with_nodes(&[Role::Master], async |rig| {
        let stats = || rig.nodes[0].handle.stats();
        wait_for("its health", || stats().counts.healthy_nodes == 1).await;
        rig.server.kill();
        wait_for("its word", || stats().local_last_error.is_some_and(|error| error.contains("Connection refused"))).await;
        wait_for("the same of the nodes", || {
            let itself = rig.nodes[0].handle.nodes_now().pop().unwrap();
            itself.last_error.is_some_and(|error| error.contains("Connection refused"))
        })
        .await;
        assert_eq!(stats().local_node_status, Status::Healthy, "that is Valkey's state, and not its own");
        rig.server.restart();
        wait_for("its return", || stats().counts.healthy_nodes == 1 && stats().local_last_error.is_none()).await;
        wait_for("its own list", || rig.nodes[0].handle.nodes_now().pop().is_some_and(|itself| itself.last_error.is_none())).await;
    });
}
