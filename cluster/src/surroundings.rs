//! What the agent needs of the process around it, and what it is told at its start.

use std::{collections::BTreeMap, future::Future, path::PathBuf, pin::Pin, time::Duration};

use crate::{
    config_watch::{ConfigWatch, NotApplied},
    handle::Known,
    identity::{Epoch, Incarnation, Leadership, Role},
    membership::{NodeRecord, RECORD_BYTES_MAX},
    valkey_error::ValkeyError,
};

/// What the cluster section of the config says, and what the process is.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// This process.
    pub me: Incarnation,
    /// What it may become.
    pub role: Role,
    /// Where clients and other nodes reach it.
    pub address: String,
    /// The program's version.
    pub version: String,
    /// What else others are to know at first, in the form of the admin API's field of this name.
    pub metadata: BTreeMap<String, String>,
    /// Between two heartbeats.
    pub heartbeat_interval: Duration,
    /// Without one for so long a node is offline.
    pub node_ttl: Duration,
    /// The leader's lease.
    pub leader_ttl: Duration,
    /// Replicas that must have the lease; 0: none is asked.
    pub replicas_required: u32,
    /// How often to ask for a config when none was heard of.
    pub config_poll: Duration,
    /// Where the accepted leadership and the pushed config are kept.
    pub folder: PathBuf,
    /// Why the pushed config that was kept does not run, if it does not.
    pub pushed_unfit: Option<String>,
}

/// What the node says of itself when it is asked.
#[derive(Clone, Debug, Default)]
pub struct LocalState {
    /// SMTP sessions.
    pub connections: u64,
    /// Messages in the queue.
    pub queue_depth: u64,
    /// 0.0 to 1.0.
    pub load: f64,
    /// Takes less mail, or none.
    pub shedding: bool,
    /// What is wrong.
    pub last_error: Option<String>,
    /// What comes of something that is wrong, here or elsewhere: told where nothing else is, as that would be its cause.
    pub symptom: Option<String>,
    /// Neither leads nor stands, though it is there: what a leader has to keep may be lost with its disk.
    pub unfit: bool,
    /// How often each shard answered.
    pub progress: Vec<u64>,
    /// A shard that does not move: no heartbeat is sent.
    pub stalled: Option<String>,
}

impl LocalState {
    /// As it goes into the heartbeat; texts and lists are cut to what a record may hold.
    pub(crate) fn record(&self, settings: &AgentSettings, epoch: Epoch, config: &ConfigWatch, known: &Known) -> NodeRecord {
        let refused = config.refused();
        let mut record = NodeRecord {
            id: settings.me.node().clone(),
            incarnation: settings.me.to_string(),
            address: cut(&settings.address, ADDRESS_BYTES_MAX).to_owned(),
            role: settings.role,
            version: settings.version.clone(),
            epoch,
            config_version: config.running(),
            config_refused: refused.cloned(),
            connections: self.connections,
            queue_depth: self.queue_depth,
            load: self.load,
            shedding: self.shedding,
            last_error: known.last_error(self, settings.me.node()),
            unfit: self.unfit,
            progress: self.progress.iter().copied().take(PROGRESS_MAX).collect(),
            shares: known.shares.nodes,
            metadata: known.metadata.clone(),
        };
        // What is quoted in JSON is longer than it is: half of it is tried, and half of that.
        let mut text_bytes_max = TEXT_BYTES_MAX;
        loop {
            let texts = record.config_refused.iter_mut().map(|refused| &mut refused.reason);
            let texts = texts.chain(record.last_error.iter_mut()).chain(record.metadata.values_mut());
            texts.for_each(|text| text.truncate(cut(text, text_bytes_max).len()));
            let bytes = serde_json::to_string(&record).expect("a record is plain data").len();
            if bytes <= RECORD_BYTES_MAX || text_bytes_max == 0 {
                return record;
            }
            text_bytes_max /= 2;
        }
    }
}

/// The longest text of a heartbeat's record, in bytes, and the longest address.
const TEXT_BYTES_MAX: usize = 1000;
/// As long as a host's name may be, with a port.
const ADDRESS_BYTES_MAX: usize = 262;
/// Shards whose counters go into a record.
const PROGRESS_MAX: usize = 64;

/// At most so many bytes of it, and whole characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A future on the heap.
pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the agent needs of the process around it.
pub trait Surroundings: Send + Sync + 'static {
    /// How the node is. Within a second, whatever the shards do.
    fn observe(&self) -> Boxed<LocalState>;
    /// Runs with this pushed config from now on, or says why not and changes nothing.
    fn apply(&self, version: u64, text: String) -> Boxed<Result<(), NotApplied>>;
    /// What this node does as the leader beside the agent's own chores: idempotent, each effect fenced by the epoch. Answers how much
    /// was done, or the higher epoch that refused it.
    fn chores(&self, leadership: Leadership) -> Boxed<Result<Result<u64, Epoch>, ValkeyError>>;
    /// This node leads from now on, or no longer.
    fn leads(&self, leadership: Option<Leadership>);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config_watch::ConfigName, identity::EPOCH_MAX, membership::Members, shares::Shares};

    /// A reason in another script than Latin was cut by characters: the record was too long, and the node was offline without a word.
    #[test]
    fn a_record_is_never_too_long_whatever_is_said_in_it() {
        for filler in ["x", "\u{1F4EC}", "\"", "\u{1}"] {
            let text = filler.repeat(5000);
            let me = Incarnation::new("n".repeat(64).parse().unwrap(), u128::MAX);
            let settings = AgentSettings {
                me,
                role: Role::Master,
                address: "a".repeat(5000),
                version: "1.2.3".to_owned(),
                metadata: BTreeMap::new(),
                heartbeat_interval: Duration::from_secs(1),
                node_ttl: Duration::from_secs(3),
                leader_ttl: Duration::from_secs(3),
                replicas_required: 0,
                config_poll: Duration::from_secs(3),
                folder: PathBuf::new(),
                pushed_unfit: None,
            };
            let local =
                LocalState { last_error: Some(text.clone()), progress: vec![u64::MAX; 500], load: 1.0 / 3.0, ..LocalState::default() };
            let config = ConfigWatch::refusing(ConfigName::new(u64::MAX, "aa"), text.clone(), Duration::from_secs(3));
            let known = Known {
                members: Members::new(Duration::from_secs(1), Duration::from_secs(3)),
                own: None,
                leader: None,
                is_leader: false,
                epoch: Epoch(0),
                local: LocalState::default(),
                config_version: 0,
                generation: String::new(),
                counters: BTreeMap::new(),
                shares: Shares::default(),
                ousted: None,
                config_unusable: None,
                metadata: BTreeMap::from([("leases_none".to_owned(), text.clone()), ("takes_mail".to_owned(), "yes".to_owned())]),
            };
            let record = local.record(&settings, Epoch(EPOCH_MAX), &config, &known);
            let bytes = serde_json::to_string(&record).unwrap().len();
            assert!(bytes <= RECORD_BYTES_MAX, "{filler:?}: {bytes}");
            assert_eq!(record.metadata["takes_mail"], "yes");
            assert!(record.last_error.unwrap().starts_with(filler), "{filler:?}: something is left");
        }
    }
}
