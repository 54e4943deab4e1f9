//! Who is in the cluster and how each node is, from the heartbeats that Valkey keeps.
//!
//! Pure. Ages are by the server's clock, which stamps every heartbeat. A stamp that lies ahead of it, since it was stepped back, is aged by
//! the reader's own clock.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    boot_time::BootTime,
    identity::{Epoch, Incarnation, NodeId, Role},
    shares::Shares,
};

mod view;

pub(crate) use view::view;
pub use view::{MemberCounts, NodeView};

/// The longest record of one heartbeat, in bytes of JSON.
pub const RECORD_BYTES_MAX: usize = 4096;

/// What a node says of itself with each heartbeat.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub id: NodeId,
    /// Which life of the process.
    pub incarnation: String,
    /// Where clients and other nodes reach it.
    pub address: String,
    /// What it may become.
    pub role: Role,
    /// The program's version.
    pub version: String,
    /// The highest epoch it has accepted.
    pub epoch: Epoch,
    /// The pushed config it runs; 0: its own file alone.
    pub config_version: u64,
    /// Why it refused a later one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_refused: Option<ConfigRefused>,
    /// SMTP sessions.
    pub connections: u64,
    /// Messages in its queue.
    pub queue_depth: u64,
    /// 0.0 idle to 1.0 at its bounds.
    pub load: f64,
    /// Takes no new mail, or less of it.
    pub shedding: bool,
    /// What is wrong, if it can tell: the node calls itself degraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Neither leads nor stands, though it is there.
    #[serde(default)]
    pub unfit: bool,
    /// One running number a shard: how often it answered.
    pub progress: Vec<u64>,
    /// Into how many parts it divides shared limits while it is cut off; 0: an older program, which has none.
    #[serde(default)]
    pub shares: u32,
    /// Anything else that operators attach.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl NodeRecord {
    /// Of a process that has nothing to say of itself yet.
    pub fn new(me: &Incarnation, role: Role) -> NodeRecord {
        NodeRecord {
            id: me.node().clone(),
            incarnation: me.to_string(),
            address: String::new(),
            role,
            version: String::new(),
            epoch: Epoch(0),
            config_version: 0,
            config_refused: None,
            connections: 0,
            queue_depth: 0,
            load: 0.0,
            shedding: false,
            last_error: None,
            unfit: false,
            progress: Vec::new(),
            shares: 0,
            metadata: BTreeMap::new(),
        }
    }
}

/// A config version that a node did not take.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConfigRefused {
    /// Which.
    pub version: u64,
    /// Why, as for `ringpost check`.
    pub reason: String,
    /// It passes by itself: the node tries again until it has taken this version, or another is current.
    #[serde(default, skip_serializing_if = "is_false")]
    pub waits: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// How a node is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Its heartbeats come.
    Healthy,
    /// They come and say that something is wrong.
    Degraded,
    /// Two were missed: none came for two and a half intervals.
    Unhealthy,
    /// None for `node_ttl`.
    Offline,
    /// Nobody can say: the list of nodes could not be read for too long, as while Valkey is away.
    Unknown,
}

/// A record as Valkey keeps it.
#[derive(Clone, PartialEq, Debug)]
pub struct Member {
    /// What the node said last.
    pub record: NodeRecord,
    /// When that was, in milliseconds of the server's clock.
    pub last_seen_ms: u64,
    /// When this life of the node was first heard, by the same clock.
    pub started_at_ms: u64,
}

/// What changed between two looks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MemberEvent {
    /// A node that was not there.
    Joined(NodeId),
    /// A node left in order, or was forgotten.
    Left(NodeId),
    /// From one status to another.
    HealthChanged(NodeId, Status, Status),
}

/// Up to so many nodes are read with each heartbeat; twice as many with each second one, and so on.
const MEMBERS_PER_HEARTBEAT: usize = 64;

/// The nodes as last read.
#[derive(Clone, Debug)]
pub struct Members {
    heartbeat_interval: Duration,
    node_ttl: Duration,
    nodes: BTreeMap<NodeId, Seen>,
    /// When they were read, by this node's clock, and by the server's in milliseconds.
    read: Option<(BootTime, u64)>,
    /// Before the first reading: since when there could have been one.
    unread_since: Option<(BootTime, u64)>,
}

/// A node as last read, and how it was then.
#[derive(Clone, Debug)]
struct Seen {
    member: Member,
    status: Status,
    /// Since when, by this node's clock, its last heartbeat has been ahead of the server's.
    ahead_since: Option<BootTime>,
}

impl Members {
    /// None yet. `node_ttl` is at least three times `heartbeat_interval`, or nodes go from healthy to offline at once.
    pub fn new(heartbeat_interval: Duration, node_ttl: Duration) -> Members {
        Members { heartbeat_interval, node_ttl, nodes: BTreeMap::new(), read: None, unread_since: None }
    }

    /// It could be read since then: by this node's clock and in milliseconds of the world's.
    pub(crate) fn unread_since(self, now: BootTime, unix_ms: u64) -> Members {
        Members { unread_since: Some((now, unix_ms)), ..self }
    }

    /// Takes the whole list as read `now`, at `server_now_ms`, and says what changed.
    pub fn update(&mut self, members: Vec<Member>, server_now_ms: u64, now: BootTime) -> Vec<MemberEvent> {
        let mut events = Vec::new();
        let mut nodes = BTreeMap::new();
        for member in members {
            let id = member.record.id.clone();
            let before = self.nodes.get(&id);
            let same_heartbeat = before.filter(|before| before.member.last_seen_ms == member.last_seen_ms);
            // Once ahead, always: when the server's clock comes to such a stamp, the node is as gone as before.
            let is_ahead = member.last_seen_ms > server_now_ms;
            let ahead_since = same_heartbeat.and_then(|before| before.ahead_since).or_else(|| is_ahead.then_some(now));
            let age = match ahead_since {
                Some(since) => now.since(since),
                None => Duration::from_millis(server_now_ms.saturating_sub(member.last_seen_ms)),
            };
            let status = self.status(&member.record, age);
            match before {
                None => events.push(MemberEvent::Joined(id.clone())),
                Some(before) if before.status != status => events.push(MemberEvent::HealthChanged(id.clone(), before.status, status)),
                Some(_) => {}
            }
            nodes.insert(id, Seen { member, status, ahead_since });
        }
        let left = self.nodes.keys().filter(|id| !nodes.contains_key(*id));
        events.extend(left.map(|id| MemberEvent::Left(id.clone())));
        (self.nodes, self.read) = (nodes, Some((now, server_now_ms)));
        events
    }

    /// How many heartbeats pass between two readings: all nodes read all, so that of a large cluster each reads less often.
    pub(crate) fn heartbeats_per_reading(count: usize) -> u32 {
        u32::try_from(count / MEMBERS_PER_HEARTBEAT).unwrap_or(u32::MAX)
    }

    /// Since when, in milliseconds of the server's clock, it is not to be known how the nodes are; `None`: it is known. Two readings may fail, as two
    /// heartbeats may.
    pub fn unknown_since(&self, now: BootTime) -> Option<u64> {
        let (read_at, server_ms) = self.read.or(self.unread_since)?;
        // A reading comes late by a quarter at most.
        let pause = self.heartbeat_interval.saturating_mul(Members::heartbeats_per_reading(self.nodes.len())) * 5 / 4;
        (now.since(read_at) > self.heartbeat_interval * 7 / 2 + pause).then_some(server_ms)
    }

    fn status(&self, record: &NodeRecord, age: Duration) -> Status {
        if age >= self.node_ttl {
            Status::Offline
        } else if age > self.heartbeat_interval * 5 / 2 {
            // The one after a lost one comes two intervals after its predecessor, and what makes it late comes on top.
            Status::Unhealthy
        } else if record.last_error.is_some() || record.shedding {
            Status::Degraded
        } else {
            Status::Healthy
        }
    }

    /// Whether a node that may lead sends heartbeats; standby nodes stand when none does.
    pub fn masters_alive(&self) -> bool {
        let may_lead = |record: &NodeRecord| record.role == Role::Master && !record.unfit;
        self.nodes.values().any(|node| may_lead(&node.member.record) && node.status < Status::Unhealthy)
    }

    /// The nodes, by name.
    pub fn views(&self) -> Vec<NodeView> {
        self.nodes.values().map(|node| view(&node.member, node.status)).collect()
    }

    /// The status of one node; None when it is not known.
    pub fn status_of(&self, id: &NodeId) -> Option<Status> {
        self.nodes.get(id).map(|node| node.status)
    }

    /// What the other nodes that are there say of themselves by a name.
    pub(crate) fn said_by_others(&self, me: &NodeId, name: &str) -> BTreeMap<NodeId, String> {
        let others = self.nodes.iter().filter(|(id, node)| *id != me && node.status != Status::Offline);
        others.filter_map(|(id, node)| Some((id.clone(), node.member.record.metadata.get(name)?.clone()))).collect()
    }

    /// Whose part of shared limits is whose: nodes that were not heard of for two heartbeats may be alive and keep theirs.
    pub fn shares(&self) -> Shares {
        let nodes = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let gone = self.nodes.values().filter(|node| node.status >= Status::Unhealthy).map(|node| &node.member);
        Shares::keeping(nodes, gone.map(|member| if member.record.shares == 0 { nodes } else { member.record.shares }))
    }

    /// Counts over all.
    pub fn counts(&self) -> MemberCounts {
        let mut counts = MemberCounts::default();
        let (mut load, mut alive) = (0.0, 0_u32);
        for Seen { member, status, .. } in self.nodes.values() {
            counts.total_nodes += 1;
            match status {
                Status::Healthy => counts.healthy_nodes += 1,
                Status::Degraded => counts.degraded_nodes += 1,
                Status::Unhealthy | Status::Offline => counts.unhealthy_nodes += 1,
                Status::Unknown => counts.unknown_nodes += 1,
            }
            // What nodes say of themselves is not signed.
            counts.total_queue_depth = counts.total_queue_depth.saturating_add(member.record.queue_depth);
            if *status != Status::Offline {
                counts.total_connections = counts.total_connections.saturating_add(member.record.connections);
                load += member.record.load.clamp(0.0, 1.0);
                alive += 1;
            }
        }
        counts.avg_load = if alive == 0 { 0.0 } else { load / f64::from(alive) };
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, last_seen_ms: u64) -> Member {
        let me = Incarnation::new(id.parse().unwrap(), 0);
        let record = NodeRecord { connections: 2, queue_depth: 10, load: 0.5, ..NodeRecord::new(&me, Role::Master) };
        Member { record, last_seen_ms, started_at_ms: 0 }
    }

    fn at(ms: u64) -> BootTime {
        BootTime::after_boot(Duration::from_millis(50_000 + ms))
    }

    /// The clock of Valkey's host was stepped back by an hour: a node that had died looked healthy for that hour.
    #[test]
    fn a_dead_node_ages_though_the_servers_clock_was_stepped_back() {
        let mut members = Members::new(Duration::from_secs(1), Duration::from_secs(5));
        let status = |members: &Members, id: &str| members.status_of(&id.parse().unwrap()).unwrap();
        members.update(vec![member("n1", 3_610_000), member("n2", 3_610_000)], 3_610_100, at(0));
        // Of the two only n2 beats on.
        for (ms, expected) in [(500, Status::Healthy), (3000, Status::Healthy), (3001, Status::Unhealthy), (5500, Status::Offline)] {
            members.update(vec![member("n1", 3_610_000), member("n2", 10_000 + ms)], 10_100 + ms, at(ms));
            assert_eq!((status(&members, "n1"), status(&members, "n2")), (expected, Status::Healthy), "{ms}");
        }
        // An hour later its last heartbeat is not young again.
        members.update(vec![member("n1", 3_610_000)], 3_610_100, at(3_600_000));
        assert_eq!(status(&members, "n1"), Status::Offline);
        members.update(vec![member("n1", 3_610_300)], 3_610_400, at(3_600_300));
        assert_eq!(status(&members, "n1"), Status::Healthy, "it is back");
    }

    /// The heartbeat after a lost one is some milliseconds late, as all are: until it came the node was unhealthy, and with the only master so a
    /// standby stood.
    #[test]
    fn one_lost_heartbeat_makes_no_node_unhealthy() {
        let mut members = Members::new(Duration::from_secs(1), Duration::from_secs(5));
        members.update(vec![member("n1", 10_000)], 10_000, at(0));
        assert_eq!(members.update(vec![member("n1", 10_000)], 12_060, at(2060)), []);
        assert!(members.masters_alive());
        assert_eq!(members.update(vec![member("n1", 12_070)], 12_080, at(2080)), []);
    }

    #[test]
    fn missed_heartbeats_make_a_node_unhealthy_and_then_offline() {
        let id: NodeId = "n1".parse().unwrap();
        let mut members = Members::new(Duration::from_secs(1), Duration::from_secs(5));
        assert_eq!(members.update(vec![member("n1", 10_000)], 10_500, at(0)), [MemberEvent::Joined(id.clone())]);
        assert_eq!(members.update(vec![member("n1", 10_000)], 12_500, at(0)), []);
        let unhealthy = MemberEvent::HealthChanged(id.clone(), Status::Healthy, Status::Unhealthy);
        assert_eq!(members.update(vec![member("n1", 10_000)], 12_501, at(0)), [unhealthy]);
        assert!(!members.masters_alive());
        let offline = MemberEvent::HealthChanged(id.clone(), Status::Unhealthy, Status::Offline);
        assert_eq!(members.update(vec![member("n1", 10_000)], 15_000, at(0)), [offline]);
        assert_eq!((members.counts().total_connections, members.counts().total_queue_depth), (0, 10));
        assert_eq!(members.update(Vec::new(), 16_000, at(0)), [MemberEvent::Left(id)]);
        assert_eq!(members.counts().total_nodes, 0);
    }

    /// With Valkey away all nodes were healthy for ever, as they had been seen last.
    #[test]
    fn what_was_read_too_long_ago_is_not_known() {
        let mut members = Members::new(Duration::from_secs(1), Duration::from_secs(5));
        assert_eq!(members.unknown_since(at(60_000)), None, "none was read, and none is shown");
        members.update(vec![member("n1", 10_000), member("n2", 10_000)], 10_100, at(1000));
        assert_eq!([4500, 4501].map(|ms| members.unknown_since(at(ms))), [None, Some(10_100)]);
        let counts = members.counts().of_unknown(Some(Status::Degraded));
        assert_eq!((counts.healthy_nodes, counts.degraded_nodes, counts.unknown_nodes, counts.total_nodes), (0, 1, 1, 2));
        assert_eq!(members.counts().of_unknown(None).unknown_nodes, 2);
        // Of many nodes each reads the list less often.
        let many = (0..256).map(|number| member(&format!("n{number}"), 10_000)).collect();
        members.update(many, 10_100, at(10_000));
        assert_eq!([18_500, 18_501].map(|ms| members.unknown_since(at(ms))), [None, Some(10_100)]);
    }

    #[test]
    fn a_node_that_is_silent_keeps_its_part_of_shared_limits_and_one_that_left_does_not() {
        let mut members = Members::new(Duration::from_secs(1), Duration::from_secs(5));
        let all = |late: u64| vec![member("n1", 10_000), member("n2", late), member("n3", 10_000)];
        members.update(all(10_000), 10_100, at(0));
        assert_eq!(members.shares(), Shares { nodes: 3, connected_permille: 1000 });
        members.update(all(7_000), 10_100, at(0));
        assert_eq!(members.shares(), Shares { nodes: 3, connected_permille: 666 });
        members.update(vec![member("n1", 10_000), member("n3", 10_000)], 10_100, at(0));
        assert_eq!(members.shares(), Shares { nodes: 2, connected_permille: 1000 });
    }

    #[test]
    fn nodes_that_boast_end_no_process() {
        let mut members = Members::new(Duration::from_secs(1), Duration::from_secs(5));
        let boasting = |id: &str| {
            let mut member = member(id, 10_000);
            (member.record.queue_depth, member.record.connections, member.record.load) = (u64::MAX, u64::MAX, f64::MAX);
            (member.record.shares, member.last_seen_ms) = (u32::MAX, u64::MAX);
            member
        };
        members.update(vec![boasting("n1"), boasting("n2")], 10_100, at(0));
        assert_eq!((members.counts().total_connections, members.counts().total_queue_depth), (u64::MAX, u64::MAX));
        assert_eq!((members.views().len(), members.shares().nodes, members.counts().avg_load), (2, 2, 1.0));
    }

    #[test]
    fn a_master_without_a_disk_is_none_to_a_standby() {
        let mut members = Members::new(Duration::from_secs(1), Duration::from_secs(5));
        let mut unfit = member("n1", 10_000);
        unfit.record.unfit = true;
        members.update(vec![unfit.clone()], 10_100, at(0));
        assert!(!members.masters_alive());
        members.update(vec![unfit, member("n2", 10_000)], 10_100, at(0));
        assert!(members.masters_alive());
    }

    #[test]
    fn a_node_that_says_so_is_degraded() {
        let mut members = Members::new(Duration::from_secs(1), Duration::from_secs(5));
        let mut ill = member("n2", 10_000);
        ill.record.last_error = Some("disk".to_owned());
        members.update(vec![member("n1", 10_000), ill], 10_100, at(0));
        let counts = members.counts();
        assert_eq!((counts.healthy_nodes, counts.degraded_nodes, counts.unhealthy_nodes), (1, 1, 0));
        assert!(members.masters_alive());
    }
}
