//! Calls about the cluster itself: election, heartbeats, members, configs, the leader's word, shared limits.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use redis::Value;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    election::{Answer, Step},
    identity::{Epoch, Incarnation, Leadership, NodeId},
    keyspace::Keyspace,
    membership::{Member, NodeRecord, RECORD_BYTES_MAX},
    partition_count::PartitionCount,
    reply::Reply,
    throttle::{Flow, HORIZON, Reserved},
    valkey::{Allowance, Valkey, random_u64},
    valkey_error::ValkeyError,
    work_item::ItemKey,
};

mod accounts;
mod drains;
mod hand_over;
mod heartbeat;
mod partitions;

pub use heartbeat::{Heartbeat, Pulse};

/// Replicas have this part of a lease to take it over: what is left must do for leading.
const REPLICATION_TTL_PARTS: u32 = 12;
/// The longest config that can be pushed, in bytes of text.
pub const CONFIG_BYTES_MAX: usize = 1024 * 1024;
/// Versions that are kept.
pub const CONFIG_HISTORY: usize = 32;
/// A version further than this above the one that runs is none: whoever can write to Valkey could else use up all numbers in one step.
pub const VERSION_JUMP_MAX: u64 = 1 << 32;
/// How often nodes may ask for a config: what is said otherwise counts as the nearer of these.
pub const CONFIG_POLL_MIN: Duration = Duration::from_millis(100);
/// The other.
pub const CONFIG_POLL_MAX: Duration = Duration::from_secs(3600);
/// Others that publish at the same time come in between so often at most.
const PUBLISH_TRIES_MAX: u32 = 10;
/// The most nodes that are read; far more than a cluster has.
const NODES_MAX: usize = 4096;
const MEMBERS_PAGE: u64 = 256;
/// Pages bring some again that were seen meanwhile.
const MEMBERS_PAGES_MAX: usize = 2 * NODES_MAX / MEMBERS_PAGE as usize;
/// The longest entry of a node: its record, the incarnation and a time.
const MEMBER_BYTES_MAX: usize = RECORD_BYTES_MAX + 256;
/// The longest name of a shared limit that stands in its key as it is.
const THROTTLE_NAME_BYTES_MAX: usize = 128;

/// One version of the pushed config.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConfigVersion {
    /// Which.
    pub version: u64,
    /// SHA-256 of the text, in hexadecimal.
    pub hash: String,
    /// Who pushed it.
    pub author: String,
    /// Unix milliseconds of the server's clock.
    pub at: u64,
    /// The version whose text this is again, after a roll-back; 0: none.
    pub of: u64,
}

/// What asking for a config came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fetched {
    /// There is none, or not that one.
    Nothing,
    /// The current version, whose text the asker knows.
    Unchanged(u64),
    /// With its text.
    Config(ConfigVersion, String),
}

impl Fetched {
    /// The version and its text, if it was sent.
    pub fn config(self) -> Option<(ConfigVersion, String)> {
        match self {
            Fetched::Config(config, text) => Some((config, text)),
            Fetched::Nothing | Fetched::Unchanged(_) => None,
        }
    }
}

/// What publishing came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Published {
    /// It is this version.
    Version(u64),
    /// It is this version, and Valkey's rights let nobody tell the nodes: they find it by asking.
    Untold(u64),
    /// The current version has this text already, and nodes take it.
    Same(u64),
    /// This version came in between; nothing was published.
    Overtaken(u64),
}

/// A text's SHA-256, in hexadecimal.
fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The calls, bound to a keyspace.
#[derive(Clone)]
pub struct ControlPlane {
    valkey: Arc<Valkey>,
    keyspace: Keyspace,
    random: Arc<str>,
    key: Option<ItemKey>,
    partitions: Option<Arc<PartitionCount>>,
}

impl ControlPlane {
    /// Calls under `keyspace`.
    pub fn new(valkey: Arc<Valkey>, keyspace: Keyspace) -> ControlPlane {
        ControlPlane { valkey, keyspace, random: format!("{:016x}{:016x}", random_u64(), random_u64()).into(), key: None, partitions: None }
    }

    /// With the cluster's key: configs are published and run only with what it says of them.
    #[must_use]
    pub fn with_key(self, key: ItemKey) -> ControlPlane {
        ControlPlane { key: Some(key), ..self }
    }

    /// Heartbeats say how many partitions the work queue has, and hear it.
    #[must_use]
    pub fn with_partitions(self, partitions: Arc<PartitionCount>) -> ControlPlane {
        ControlPlane { partitions: Some(partitions), ..self }
    }

    /// The hash by which configs are told apart, 64 characters in hexadecimal. With a key nobody else can make one; without, it is the
    /// text's SHA-256.
    pub fn config_hash(&self, text: &str) -> String {
        self.key.as_ref().map_or_else(|| sha256(text), |key| key.text_mac(text))
    }

    /// What signs a version's number together with its text's hash; empty without a key. No text that can be pushed has it as its hash: this is
    /// no TOML.
    fn config_seal(&self, version: u64, hash: &str) -> String {
        self.key.as_ref().map_or_else(String::new, |key| key.text_mac(&format!("config version {version}\n{hash}")))
    }

    /// The driver below.
    pub fn valkey(&self) -> &Arc<Valkey> {
        &self.valkey
    }

    /// The channel of joins, leaves, elections, releases and configs.
    pub fn events_channel(&self) -> String {
        self.keyspace.events()
    }

    async fn run(&self, script: &'static str, keys: &[String], args: &[&str]) -> Result<Value, ValkeyError> {
        let args: Vec<&[u8]> = args.iter().map(|text| text.as_bytes()).collect();
        self.valkey.script(script, keys, &args).await
    }

    /// Sends what the election asks for. Every error is [`Answer::Unknown`]: it may have happened.
    ///
    /// `replicas` above 0 asks for so many replicas to have the lease before it counts (L7).
    pub async fn elect(&self, me: &Incarnation, step: &Step, ttl: Duration, replicas: u32) -> Answer {
        self.try_elect(me, step, ttl, replicas).await.unwrap_or(Answer::Unknown)
    }

    async fn try_elect(&self, me: &Incarnation, step: &Step, ttl: Duration, replicas: u32) -> Result<Answer, ValkeyError> {
        let patience = ttl / REPLICATION_TTL_PARTS;
        let ttl = ttl.as_millis().to_string();
        let keys = [self.keyspace.leader(), self.keyspace.epoch()];
        match step {
            Step::Wait(_) => Ok(Answer::Unknown),
            Step::Look => Ok(Answer::Seen(self.holder().await?)),
            Step::Acquire(floor) => {
                // Who hears of an election acts on it: of one that may not last nobody does.
                let channel = if replicas == 0 { self.keyspace.events() } else { String::new() };
                let args = [&me.to_string(), &floor.to_string(), &ttl, &channel];
                let args = args.map(String::as_bytes);
                let (written, answer) = match replicas {
                    0 => (None, self.valkey.script("leader_acquire", &keys, &args).await?),
                    _ => self
                        .valkey
                        .script_to_replicate("leader_acquire", &keys, &args)
                        .await
                        .map(|(written, answer)| (Some(written), answer))?,
                };
                let mut reply = Reply::new(answer)?;
                if reply.number()? == 1 {
                    let epoch = reply.epoch()?;
                    self.announced(&mut reply)?;
                    let Some(written) = written else { return Ok(Answer::Acquired(epoch)) };
                    let mine = Leadership { incarnation: me.clone(), epoch }.to_string();
                    let have = self.valkey.replicas_of(written, replicas, patience).await;
                    if have.is_ok_and(|have| have >= u64::from(replicas)) {
                        // Whom this does not reach hears of it with the next heartbeat.
                        let announced = self.run("leader_announce", &keys[..1], &[&mine, &self.keyspace.events()]).await;
                        let _unheard = announced.and_then(|answer| self.was_announced(answer));
                        return Ok(Answer::Acquired(epoch));
                    }
                    // A lease that could not be given back runs out by itself.
                    let _unheard = self.run("leader_release", &keys[..1], &[&mine, ""]).await;
                    return Ok(Answer::NotReplicated(epoch));
                }
                let holder = reply.text()?.parse().map_err(|_| ValkeyError::Malformed("a leader"))?;
                Ok(Answer::Held(holder, Duration::from_millis(u64::try_from(reply.number()?).unwrap_or(0))))
            }
            Step::Renew(mine) => {
                let mut reply = Reply::new(self.run("leader_renew", &keys, &[&mine.to_string(), &mine.epoch.to_string(), &ttl]).await?)?;
                if reply.number()? == 1 { Ok(Answer::Renewed) } else { Ok(Answer::Lost(reply.epoch()?)) }
            }
            Step::Release(mine) => {
                self.was_announced(self.run("leader_release", &keys[..1], &[&mine.to_string(), &self.keyspace.events()]).await?)?;
                Ok(Answer::Released)
            }
        }
    }

    /// The last element of an answer says how it went with what there was to say to all nodes.
    fn announced(&self, reply: &mut Reply) -> Result<(), ValkeyError> {
        self.valkey.announced(&self.keyspace.events(), reply.number()?);
        Ok(())
    }

    /// The same of an answer that else has a code alone.
    fn was_announced(&self, answer: Value) -> Result<(), ValkeyError> {
        let mut reply = Reply::new(answer)?;
        reply.number()?;
        self.announced(&mut reply)
    }

    /// All nodes, each once as it was seen last, and the server's time. Records that cannot be read are left out.
    pub async fn members(&self) -> Result<(u64, Vec<Member>), ValkeyError> {
        let keys = [self.keyspace.members(), self.keyspace.nodes()];
        let (mut members, mut now_ms, mut last) = (BTreeMap::new(), 0, (String::new(), 0));
        for _ in 0..MEMBERS_PAGES_MAX {
            let args = [&last.0, &last.1.to_string(), &MEMBERS_PAGE.to_string()];
            let mut reply = Reply::new(self.run("members", &keys, &args.map(String::as_str)).await?)?;
            now_ms = reply.count()?;
            let mut page = 0;
            while !reply.is_empty() {
                let (id, last_seen_ms, record) = (reply.text()?, reply.count()?, reply.text()?);
                page += 1;
                let found = member(&id, last_seen_ms, &record);
                last = (id.clone(), last_seen_ms);
                members.insert(id, found);
            }
            if page < MEMBERS_PAGE || members.len() >= NODES_MAX {
                break;
            }
        }
        Ok((now_ms, members.into_values().flatten().collect()))
    }

    /// The leader forgets nodes that were not seen for `older_than`. Err(epoch): another leads.
    pub async fn prune_members(&self, epoch: Epoch, older_than: Duration) -> Result<Result<u64, Epoch>, ValkeyError> {
        let keys = [self.keyspace.epoch(), self.keyspace.members(), self.keyspace.nodes()];
        fenced(self.run("members_prune", &keys, &[&epoch.to_string(), &older_than.as_millis().to_string()]).await?)
    }

    /// Publishes `text` as the next version, above `floor` (the version this node runs). `expected`: only if that is current.
    ///
    /// The number is signed with the text, so that it is settled here, and the call repeated where another came in between.
    pub async fn publish_config(
        &self,
        text: &str,
        author: &str,
        of: u64,
        floor: u64,
        expected: Option<u64>,
    ) -> Result<Published, ValkeyError> {
        let mut current = expected.unwrap_or(floor);
        for _ in 0..PUBLISH_TRIES_MAX {
            if current > floor.saturating_add(VERSION_JUMP_MAX) {
                return Err(ValkeyError::Malformed(
                    "the config's version is far above what this node runs: it is damaged or forged; restore the key configs, or remove it",
                ));
            }
            match self.publish("next", current.max(floor) + 1, text, author, of, current).await? {
                Published::Overtaken(now) if expected.is_none() => current = now,
                published => return Ok(published),
            }
        }
        Ok(Published::Overtaken(current))
    }

    /// Gives Valkey a version back that it has lost, or what signs the current one where that is missing.
    pub async fn restore_config(&self, version: u64, text: &str) -> Result<Published, ValkeyError> {
        self.publish("restore", version, text, "restored", 0, 0).await
    }

    async fn publish(&self, mode: &str, number: u64, text: &str, author: &str, of: u64, expected: u64) -> Result<Published, ValkeyError> {
        if text.len() > CONFIG_BYTES_MAX {
            return Err(ValkeyError::Malformed("the config is too long"));
        }
        let author: String = author.chars().filter(|c| !c.is_control()).take(128).collect();
        let hash = self.config_hash(text);
        let args = [
            mode,
            &number.to_string(),
            &hash,
            &author,
            text,
            &of.to_string(),
            &expected.to_string(),
            &CONFIG_HISTORY.to_string(),
            &self.keyspace.events(),
            &self.config_seal(number, &hash),
            &self.config_seal(expected, &hash),
        ];
        let mut reply = Reply::new(self.run("config_publish", &[self.keyspace.configs()], &args).await?)?;
        let code = reply.number()?;
        let version = reply.count()?;
        if matches!(code, 1 | 3) {
            self.valkey.announced(&self.keyspace.events(), i64::from(code == 1));
        }
        match code {
            1 => Ok(Published::Version(version)),
            3 => Ok(Published::Untold(version)),
            2 => Ok(Published::Same(version)),
            0 => Ok(Published::Overtaken(version)),
            _ => Err(ValkeyError::Malformed("a code of publish")),
        }
    }

    /// A version (None: the current one) with its text, unless the current one has `known_hash`. What has which number is told by who has the
    /// key: without it what was pushed before cannot be made current again, nor be shown or rolled back to in another's place.
    pub async fn read_config(&self, version: Option<u64>, known_hash: &str) -> Result<Fetched, ValkeyError> {
        let version = version.map_or(String::new(), |version| version.to_string());
        let args = [version.as_bytes(), known_hash.as_bytes()];
        let mut reply = Reply::new(
            self.valkey
                .script_for(
                    "config_read",
                    &[self.keyspace.configs()],
                    &args,
                    Allowance { answer_bytes_max: CONFIG_BYTES_MAX, ..Allowance::default() },
                )
                .await?,
        )?;
        let version = reply.count()?;
        if reply.is_empty() {
            return Ok(Fetched::Nothing);
        }
        let seal = reply.text()?;
        let is_sealed = |hash: &str| self.config_seal(version, hash) == seal;
        const FORGED: ValkeyError = ValkeyError::Malformed(
            "it is not signed with this node's cluster.key_file: another key was in that of the node that pushed it, or it was forged or damaged",
        );
        if reply.is_empty() {
            return if is_sealed(known_hash) { Ok(Fetched::Unchanged(version)) } else { Err(FORGED) };
        }
        let blob = reply.text()?;
        let mut parts = blob.splitn(5, '\n');
        let found = config_head(version, &mut parts)?;
        let text = parts.next().ok_or(ValkeyError::Malformed("a config without text"))?;
        // What was damaged or forged on its way is not run.
        if self.config_hash(text) != found.hash || !is_sealed(&found.hash) {
            return Err(FORGED);
        }
        Ok(Fetched::Config(found, text.to_owned()))
    }

    /// The current version and what is kept, the newest first.
    pub async fn config_history(&self) -> Result<(u64, Vec<ConfigVersion>), ValkeyError> {
        let mut reply = Reply::new(self.run("config_history", &[self.keyspace.configs()], &[]).await?)?;
        let current = reply.count()?;
        let mut versions = Vec::new();
        while !reply.is_empty() {
            let (version, head) = (reply.count()?, reply.text()?);
            versions.push(config_head(version, &mut head.splitn(4, '\n'))?);
        }
        Ok((current, versions))
    }

    /// How often nodes ask for a config when they hear of none.
    pub async fn set_config_poll(&self, poll: Duration) -> Result<(), ValkeyError> {
        self.run("config_poll", &[self.keyspace.configs()], &[&poll.as_millis().to_string(), "set"]).await.map(drop)
    }

    /// Gives Valkey back how often nodes ask, where it has lost that.
    pub async fn restore_config_poll(&self, poll: Duration) -> Result<(), ValkeyError> {
        self.run("config_poll", &[self.keyspace.configs()], &[&poll.as_millis().to_string(), "restore"]).await.map(drop)
    }

    /// Reserves up to `wanted` moments of a flow that all nodes share; each is given once. `name` is the limit's.
    pub async fn reserve(&self, name: &str, flow: Flow, wanted: u32) -> Result<Reserved, ValkeyError> {
        let horizon_us = HORIZON.as_micros().to_string();
        let [units, per_us, burst] = flow_args(flow);
        let key = [self.keyspace.throttle(&throttle_name(name))];
        let mut reply =
            Reply::new(self.run("throttle_reserve", &key, &[&units, &per_us, &burst, &wanted.to_string(), &horizon_us]).await?)?;
        let count = u32::try_from(reply.count()?).map_err(|_| ValkeyError::Malformed("a number of moments"))?;
        let at_us = reply.number()?;
        Ok(if count == 0 {
            Reserved::Later(Duration::from_micros(u64::try_from(at_us).unwrap_or(0)))
        } else {
            Reserved::Moments { count, first_in_us: at_us }
        })
    }

    /// Counts what was let through of a flow that all nodes share, and says for how long nothing more is.
    pub async fn charge(&self, name: &str, flow: Flow, cost: u32) -> Result<Duration, ValkeyError> {
        let [units, per_us, burst] = flow_args(flow);
        let key = [self.keyspace.throttle(&throttle_name(name))];
        let mut reply = Reply::new(self.run("throttle_charge", &key, &[&units, &per_us, &burst, &cost.to_string()]).await?)?;
        Ok(Duration::from_micros(reply.count()?))
    }

    /// For a node id of `text`, if it is one.
    pub fn node_id(text: &str) -> Option<NodeId> {
        text.parse().ok()
    }
}

fn flow_args(flow: Flow) -> [String; 3] {
    [flow.units.to_string(), flow.per.as_micros().max(1).to_string(), flow.burst.to_string()]
}

/// A name as it can stand in a key: braces would move the hash slot, and what is long is told apart by its hash.
fn throttle_name(name: &str) -> String {
    if name.len() > THROTTLE_NAME_BYTES_MAX || name.chars().any(|c| matches!(c, '{' | '}') || c.is_control()) {
        return sha256(name);
    }
    name.to_owned()
}

fn fenced(value: Value) -> Result<Result<u64, Epoch>, ValkeyError> {
    let mut reply = Reply::new(value)?;
    if reply.number()? == 1 { Ok(Ok(if reply.is_empty() { 0 } else { reply.count()? })) } else { Ok(Err(reply.epoch()?)) }
}

fn config_head<'b>(version: u64, parts: &mut impl Iterator<Item = &'b str>) -> Result<ConfigVersion, ValkeyError> {
    let mut part = || parts.next().ok_or(ValkeyError::Malformed("a config's head"));
    let (hash, author) = (part()?.to_owned(), part()?.to_owned());
    let mut number = || part()?.parse().map_err(|_| ValkeyError::Malformed("a number of a config's head"));
    Ok(ConfigVersion { version, hash, author, at: number()?, of: number()? })
}

/// `None` for what no node of this version writes.
fn member(id: &str, last_seen_ms: u64, text: &str) -> Option<Member> {
    if text.len() > MEMBER_BYTES_MAX {
        return None;
    }
    let mut parts = text.splitn(3, '\n');
    let (incarnation, started, json) = (parts.next()?, parts.next()?, parts.next()?);
    let record: NodeRecord = serde_json::from_str(json).ok()?;
    let is_sound = record.id.as_str() == id && record.incarnation == incarnation;
    is_sound.then_some(Member { record, last_seen_ms, started_at_ms: started.parse().ok()? })
}
