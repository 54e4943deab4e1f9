//! Limits over all nodes, kept on the coordinator: it asks Valkey for the shards, and keeps this node's part while that is away.
//!
//! No shard waits: it asks, goes on, and hears the answer as a command. Questions that come at the same time travel together. Without a
//! cluster this node is all nodes, and the limits are its own.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use ringpost_cluster::{
    boot_time::BootTime,
    control_plane::ControlPlane,
    handle::ClusterHandle,
    shares::Shares,
    throttle::{Account, Flow, HORIZON, Reserved},
    valkey::random_u64,
    valkey_error::ValkeyError,
};
use ringpost_engine::{
    control::Command,
    request_lane::{RequestLane, RequestRefused},
    shared_limits::{AskLimits, LimitAnswer, LimitAsk},
};
use ringpost_queue::{Apart, SharedRate, Slots};
use tokio::{sync::mpsc, task::JoinSet};
use tracing::{info, warn};

use crate::unanswered_limits::UnansweredLimits;

/// Questions that may wait for the coordinator; a shard asks a further one a little later.
const QUESTIONS_MAX: usize = 4096;
/// Calls to Valkey under way at once.
const CALLS_MAX: usize = 256;
/// Answers in one command to a shard.
const ANSWERS_PER_COMMAND: usize = 256;
/// How often it is looked whether Valkey is there, and a full lane to a shard is tried again.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Limits of which this node keeps its own account, about 150 bytes each. Beyond it, mail that comes in passes and mail that goes out waits. While Valkey is
/// there, half of them are for what comes in.
const ACCOUNTS_MAX: usize = 65_536;
/// How often it is looked at most which of many accounts say nothing: all of them take some milliseconds, in which no question is answered.
const PRUNE_EVERY: Duration = Duration::from_secs(1);
/// What cannot be had now is asked for again after this.
const AGAIN_MS: u64 = 500;
/// After one call that failed.
const CALL_FAILED_MS: u64 = 50;

struct Question {
    shard: u16,
    ask: LimitAsk,
    /// Messages of the same flow that this node let through alone, and of which Valkey is told with this.
    untold: u32,
}

/// This node's own account of a limit.
struct Own {
    flow: Flow,
    account: Account,
    /// Messages that came in by it and of which Valkey does not know.
    untold: u32,
}

impl Own {
    fn is_idle(&self, now: BootTime) -> bool {
        self.account.is_idle(self.flow, micros(now))
    }
}

/// Where shards put their questions.
#[derive(Clone)]
pub struct LimitQuestions {
    sender: mpsc::Sender<Question>,
}

impl LimitQuestions {
    /// What a shard calls to ask; false when there is no room just now.
    pub fn of_shard(&self, shard: u16) -> AskLimits {
        let sender = self.sender.clone();
        Box::new(move |ask| sender.try_send(Question { shard, ask, untold: 0 }).is_ok())
    }
}

/// Answers the questions of all shards.
pub struct LimitKeeper {
    questions: mpsc::Receiver<Question>,
    /// This node's own accounts, by the limit's name: those of a node without a cluster, or while Valkey is away. Those of mail that comes in are kept
    /// while Valkey is there: what passed then is nothing that passes once more when it goes away.
    accounts: HashMap<String, Own>,
    /// When it was looked last which of them say nothing.
    pruned_at: BootTime,
    /// Since when Valkey is away.
    away_since: Option<BootTime>,
    /// When it came back last.
    returned_at: BootTime,
    /// Limits about which it does not answer though it is there.
    unanswered: UnansweredLimits,
    /// That was told, and some limit is unanswered since.
    has_told_unanswered: bool,
    outboxes: Vec<VecDeque<LimitAnswer>>,
}

impl LimitKeeper {
    /// For so many shards.
    pub fn new(shards: usize) -> (LimitQuestions, LimitKeeper) {
        let (sender, questions) = mpsc::channel(QUESTIONS_MAX);
        let outboxes = (0..shards).map(|_| VecDeque::new()).collect();
        (
            LimitQuestions { sender },
            LimitKeeper {
                questions,
                accounts: HashMap::new(),
                pruned_at: BootTime::default(),
                away_since: None,
                returned_at: BootTime::default(),
                unanswered: UnansweredLimits::default(),
                has_told_unanswered: false,
                outboxes,
            },
        )
    }

    /// Answers for ever.
    pub async fn run(mut self, cluster: Option<ClusterHandle>, shards: &[Arc<RequestLane>]) {
        let mut calls: JoinSet<(Question, Result<LimitAnswer, ValkeyError>)> = JoinSet::new();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(question) = self.questions.recv(), if calls.len() < CALLS_MAX => self.take(question, cluster.as_ref(), &mut calls),
                Some(done) = calls.join_next() => match done {
                    Ok((question, Ok(answer))) => self.answered(question, answer, cluster.as_ref()),
                    Ok((question, Err(error))) => self.not_answered(question, &error, cluster.as_ref()),
                    Err(reason) => warn!(%reason, "a question about a limit of the cluster was given up"),
                },
                // A node alone that has sent its answers sleeps.
                _ = looks.tick(), if cluster.is_some() || self.outboxes.iter().any(|outbox| !outbox.is_empty()) => if let Some(cluster) = &cluster {
                    self.look(cluster.control().valkey().is_away());
                },
                // All shards have ended.
                else => std::future::pending().await,
            }
            self.send(shards);
        }
    }

    fn take(
        &mut self,
        mut question: Question,
        cluster: Option<&ClusterHandle>,
        calls: &mut JoinSet<(Question, Result<LimitAnswer, ValkeyError>)>,
    ) {
        match cluster {
            Some(cluster) if !cluster.control().valkey().is_away() => {
                self.look(false);
                let (name, now) = (name_of(&question.ask), BootTime::now());
                if !self.unanswered.asks(&name, now) {
                    return self.answer_alone(&question, Some(cluster));
                }
                let (control, shares) = (cluster.control().clone(), cluster.shares());
                let since_return = self.unanswered.since_return(&name, now).unwrap_or_else(|| now.since(self.returned_at));
                question.untold = self.untold(&name, now);
                calls.spawn(async move {
                    let answer = ask_valkey(&control, shares, since_return, &question).await;
                    (question, answer)
                });
            }
            cluster => {
                if cluster.is_some() {
                    self.look(true);
                }
                self.answer_alone(&question, cluster);
            }
        }
    }

    fn answered(&mut self, question: Question, answer: LimitAnswer, cluster: Option<&ClusterHandle>) {
        let name = name_of(&question.ask);
        if self.unanswered.answered(&name, BootTime::now()) {
            self.has_told_unanswered = false;
            if let LimitAsk::Reserve(_) = question.ask {
                // Moments of the own part may still be used.
                self.answer_alone(&question, cluster);
                self.accounts.remove(&name);
                return;
            }
        }
        if let LimitAsk::Charge { limit, messages, .. } = question.ask {
            self.counted(name, limit, messages, cluster);
        }
        self.outboxes[usize::from(question.shard)].push_back(answer);
    }

    /// A call failed. One alone costs a moment, or a message that nobody counted. A few in a row mean that Valkey is away, or what it has of
    /// this limit: then what the limit says of that holds.
    fn not_answered(&mut self, question: Question, error: &ValkeyError, cluster: Option<&ClusterHandle>) {
        if let Some(own) = self.accounts.get_mut(&name_of(&question.ask)) {
            own.untold = own.untold.saturating_add(question.untold);
        }
        if cluster.is_none_or(|cluster| cluster.control().valkey().is_away()) {
            if cluster.is_some() {
                self.look(true);
            }
            return self.answer_alone(&question, cluster);
        }
        let name = name_of(&question.ask);
        // A Valkey that is full opens no circuit, and has room for no limit: three calls would tell no more than one.
        let is_full = matches!(error, ValkeyError::Full(_));
        if self.unanswered.failed(&name, is_full, BootTime::now()) {
            if !std::mem::replace(&mut self.has_told_unanswered, true) {
                warn!(limit = name, reason = %error, "limits of the cluster: Valkey answers, but not about this one, and perhaps others: this node goes by its own part of them");
            }
            return self.answer_alone(&question, cluster);
        }
        let answer = match question.ask {
            LimitAsk::Reserve(reservation) => {
                LimitAnswer::Reserved(reservation.destination, ringpost_queue::Reserved::Later(CALL_FAILED_MS))
            }
            LimitAsk::Charge { counted, .. } => LimitAnswer::Charged(counted, Duration::ZERO),
        };
        self.outboxes[usize::from(question.shard)].push_back(answer);
    }

    /// Valkey went away, or came back.
    fn look(&mut self, is_away: bool) {
        if is_away == self.away_since.is_some() {
            return;
        }
        let now = BootTime::now();
        self.away_since = is_away.then_some(now);
        if !is_away {
            self.returned_at = now;
        }
        // What Valkey knows counts again. Moments of mail that goes out are given once, by the one account or by the other; what came in is in both, or an
        // outage would begin with a whole part each time, and end with a whole limit.
        self.accounts.retain(|name, _| !is_of_destination(name));
        self.unanswered.clear();
        self.has_told_unanswered = false;
        self.outboxes.iter_mut().for_each(|outbox| outbox.push_back(LimitAnswer::Apart(is_away)));
        if is_away {
            info!("limits of the cluster: this node goes by its own part until Valkey answers");
        }
    }

    fn answer_alone(&mut self, question: &Question, cluster: Option<&ClusterHandle>) {
        let parts = cluster.map_or(1, |cluster| cluster.shares().nodes);
        // A node that is no part of a cluster cannot be cut off from it.
        let of_limit = |limit: SharedRate| (flow(limit).divided(parts), if cluster.is_some() { limit.apart } else { Apart::Share });
        let now = BootTime::now();
        let answer = match &question.ask {
            LimitAsk::Reserve(reservation) => {
                let reserved = match of_limit(reservation.limit) {
                    (_, Apart::Closed) => ringpost_queue::Reserved::Shut(AGAIN_MS),
                    (_, Apart::Open) => slots(Reserved::Moments { count: reservation.slots, first_in_us: 0 }, 0),
                    (flow, Apart::Share) => match self.own(&destination_name(&reservation.name), flow, now) {
                        Some(own) => slots(own.account.reserve(flow, reservation.slots, micros(now)), flow.step_ns()),
                        None => ringpost_queue::Reserved::Later(AGAIN_MS),
                    },
                };
                LimitAnswer::Reserved(reservation.destination, reserved)
            }
            LimitAsk::Charge { counted, limit, messages } => match of_limit(*limit) {
                // While all of Valkey is away shards know it, and refuse by themselves.
                (_, Apart::Closed) if self.away_since.is_none() => LimitAnswer::Shut(counted.clone()),
                (_, Apart::Closed | Apart::Open) => LimitAnswer::Charged(counted.clone(), Duration::ZERO),
                (flow, Apart::Share) => {
                    let own = self.own(&counted.to_string(), flow, now);
                    let closed_for = own.map_or(Duration::ZERO, |own| {
                        own.untold = own.untold.saturating_add(*messages);
                        own.account.charge(flow, *messages, micros(now))
                    });
                    LimitAnswer::Charged(counted.clone(), closed_for)
                }
            },
        };
        self.outboxes[usize::from(question.shard)].push_back(answer);
    }

    /// Whether there are fewer accounts than so many. Those that say nothing make room, and are looked for once in [`PRUNE_EVERY`].
    fn has_room(&mut self, accounts_max: usize, now: BootTime) -> bool {
        if self.accounts.len() >= accounts_max && now.since(self.pruned_at) >= PRUNE_EVERY {
            self.accounts.retain(|_, own| !own.is_idle(now));
            self.pruned_at = now;
        }
        self.accounts.len() < accounts_max
    }

    /// This node's own account of a limit; `None` when there are too many.
    fn own(&mut self, name: &str, flow: Flow, now: BootTime) -> Option<&mut Own> {
        if !self.accounts.contains_key(name) {
            if !self.has_room(ACCOUNTS_MAX, now) {
                return None;
            }
            // Moments that were reserved before may still be used: the own part begins behind them.
            let since = self.away_since.or_else(|| self.unanswered.apart_since(name));
            let account = since.map_or_else(Account::default, |since| Account::beginning_at(micros(since + HORIZON)));
            self.accounts.insert(name.to_owned(), Own { flow, account, untold: 0 });
        }
        let own = self.accounts.get_mut(name)?;
        own.flow = flow;
        Some(own)
    }

    /// Takes in what came in and was counted by Valkey. Where there are too many accounts it is not: of that an outage begins with a whole part.
    fn counted(&mut self, name: String, limit: SharedRate, messages: u32, cluster: Option<&ClusterHandle>) {
        let now = BootTime::now();
        let has_room = self.has_room(ACCOUNTS_MAX / 2, now);
        if limit.apart != Apart::Share || !has_room && !self.accounts.contains_key(&name) {
            return;
        }
        let flow = flow(limit).divided(cluster.map_or(1, |cluster| cluster.shares().nodes));
        let own = self.accounts.entry(name).or_insert_with(|| Own { flow, account: Account::default(), untold: 0 });
        own.flow = flow;
        own.account.counted(flow, messages, micros(now));
    }

    /// What came in by the own account, Valkey does not know of, and time has not made good.
    fn untold(&mut self, name: &str, now: BootTime) -> u32 {
        let Some(own) = self.accounts.get_mut(name) else { return 0 };
        std::mem::take(&mut own.untold).min(own.account.outstanding(own.flow, micros(now)))
    }

    fn send(&mut self, shards: &[Arc<RequestLane>]) {
        for (shard, outbox) in shards.iter().zip(&mut self.outboxes) {
            while !outbox.is_empty() {
                let count = outbox.len().min(ANSWERS_PER_COMMAND);
                let answers: Vec<_> = outbox.iter().take(count).cloned().collect();
                match shard.send(Command::Limits(answers), Box::new(|_| ())) {
                    Ok(()) => drop(outbox.drain(..count)),
                    Err(RequestRefused::Full) => break,
                    Err(RequestRefused::Ended) => outbox.clear(),
                }
            }
        }
    }
}

async fn ask_valkey(
    control: &ControlPlane,
    shares: Shares,
    since_return: Duration,
    question: &Question,
) -> Result<LimitAnswer, ValkeyError> {
    match &question.ask {
        LimitAsk::Reserve(reservation) => {
            let Some(flow) = flow(reservation.limit).reduced(shares.connected_permille).after_return(since_return) else {
                let later = slots(Reserved::Later(HORIZON.saturating_sub(since_return)), 0);
                return Ok(LimitAnswer::Reserved(reservation.destination, later));
            };
            let reserved = control.reserve(&destination_name(&reservation.name), flow, reservation.slots).await?;
            Ok(LimitAnswer::Reserved(reservation.destination, slots(reserved, flow.step_ns())))
        }
        LimitAsk::Charge { counted, limit, messages } => {
            let flow = flow(*limit).reduced(shares.connected_permille);
            let messages = messages.saturating_add(question.untold);
            Ok(LimitAnswer::Charged(counted.clone(), control.charge(&counted.to_string(), flow, messages).await?))
        }
    }
}

/// The limit's name, in Valkey and among the own accounts.
fn name_of(ask: &LimitAsk) -> String {
    match ask {
        LimitAsk::Reserve(reservation) => destination_name(&reservation.name),
        LimitAsk::Charge { counted, .. } => counted.to_string(),
    }
}

/// Before the name of a limit of mail that goes out.
const DESTINATION: &str = "destination/";

fn destination_name(name: &str) -> String {
    format!("{DESTINATION}{name}")
}

fn is_of_destination(name: &str) -> bool {
    name.starts_with(DESTINATION)
}

fn flow(limit: SharedRate) -> Flow {
    Flow { units: limit.rate.messages, per: Duration::from_millis(limit.rate.per_ms.max(1)), burst: limit.rate.burst }
}

fn slots(reserved: Reserved, step_ns: u64) -> ringpost_queue::Reserved {
    match reserved {
        Reserved::Moments { count, first_in_us } => ringpost_queue::Reserved::Slots(Slots { count, first_in_us, step_ns }),
        // Nodes that wait for the same limit do not all come at once.
        Reserved::Later(wait) => {
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            ringpost_queue::Reserved::Later(wait_ms.saturating_add(1 + random_u64() % (wait_ms / 8 + 5)))
        }
    }
}

fn micros(time: BootTime) -> u64 {
    u64::try_from(time.since(BootTime::default()).as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With all accounts in use each question about a further limit, as each new sender's is in a flood, went through all of them, and mail of all shards
    /// waited.
    #[test]
    fn room_among_many_accounts_is_looked_for_once_a_second() {
        let (_questions, mut keeper) = LimitKeeper::new(1);
        let at = |ms| BootTime::after_boot(Duration::from_secs(100_000) + Duration::from_millis(ms));
        let flow = Flow { units: 1, per: Duration::from_secs(3600), burst: 1 };
        for number in 0..ACCOUNTS_MAX {
            let own = keeper.own(&number.to_string(), flow, at(0)).expect("there is room");
            own.account.charge(flow, 1, micros(at(0)));
        }
        assert!(keeper.own("one more", flow, at(0)).is_none(), "all are in use");
        keeper.accounts.get_mut("7").expect("it is there").account = Account::default();
        assert!(keeper.own("one more", flow, at(999)).is_none(), "it was looked for less than a second ago");
        assert!(keeper.own("7", flow, at(999)).is_some(), "those that are there have their accounts");
        keeper.own("one more", flow, at(1000)).expect("there is room").account.charge(flow, 1, micros(at(1000)));
        assert!(keeper.own("another", flow, at(2000)).is_none(), "as many as there may be");
    }
}
