//! Questions of the shards about DNS, answered on the coordinator. No shard waits: it asks, goes on, and hears the answer as a command.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ringpost_engine::{control::Command, request_lane::RequestLane, request_lane::RequestRefused};
use ringpost_queue::{Asking, Lookup, Question, Resolution};
use tokio::{sync::mpsc, task::JoinSet};
use tracing::{debug, warn};

use crate::{
    answers::{Answers, Asked, Asker},
    dns::{Dns, about},
    lookup_backlog::{Ask, LookupBacklog},
};

/// Questions that may wait for the coordinator; a shard asks a further one a little later.
const QUESTIONS_MAX: usize = 4096;
/// Answers in one command to a shard.
const ANSWERS_PER_COMMAND: usize = 256;
/// A full lane to a shard is tried again after this.
const LANE_RETRY: Duration = Duration::from_millis(5);
/// How long named hosts keep old addresses when DNS does not answer, before it is asked again.
const STALE_MS: u64 = 30_000;

/// A question of a shard.
struct Request {
    shard: u16,
    lookup: Lookup,
}

/// Where shards put their questions.
#[derive(Clone)]
pub struct Questions {
    sender: mpsc::Sender<Request>,
}

impl Questions {
    /// What a shard calls to ask; false when there is no room just now.
    pub fn of_shard(&self, shard: u16) -> Box<dyn Fn(Lookup) -> bool + Send> {
        let sender = self.sender.clone();
        Box::new(move |lookup| sender.try_send(Request { shard, lookup }).is_ok())
    }
}

/// What was asked and answered, for `ringpost stats`.
#[derive(Default)]
pub struct DnsCounters {
    questions: AtomicU64,
    hits: AtomicU64,
    joined: AtomicU64,
    lookups: AtomicU64,
    unanswered: AtomicU64,
    waiting: AtomicU64,
    answers: AtomicU64,
}

impl DnsCounters {
    /// Names and values.
    pub fn snapshot(&self) -> [(&'static str, u64); 7] {
        [
            ("dns_questions", self.questions.load(Ordering::Relaxed)),
            ("dns_hits", self.hits.load(Ordering::Relaxed)),
            ("dns_joined", self.joined.load(Ordering::Relaxed)),
            ("dns_lookups", self.lookups.load(Ordering::Relaxed)),
            ("dns_unanswered", self.unanswered.load(Ordering::Relaxed)),
            ("dns_waiting", self.waiting.load(Ordering::Relaxed)),
            ("dns_answers", self.answers.load(Ordering::Relaxed)),
        ]
    }
}

/// Answers the questions of all shards.
pub struct Resolver {
    requests: mpsc::Receiver<Request>,
    answers: Answers,
    counters: Arc<DnsCounters>,
    began: Instant,
    backlog: LookupBacklog,
    /// Answers that wait for room in the lane to their shard.
    outboxes: Vec<VecDeque<(Asking, Resolution)>>,
}

impl Resolver {
    /// For so many shards; at most `cache_max` answers are kept.
    pub fn new(shards: usize, cache_max: usize) -> (Questions, Resolver) {
        let (sender, requests) = mpsc::channel(QUESTIONS_MAX);
        let resolver = Resolver {
            requests,
            answers: Answers::new(cache_max),
            counters: Arc::default(),
            began: Instant::now(),
            backlog: LookupBacklog::default(),
            outboxes: (0..shards).map(|_| VecDeque::new()).collect(),
        };
        (Questions { sender }, resolver)
    }

    /// Counts for as long as the resolver runs.
    pub fn counters(&self) -> Arc<DnsCounters> {
        self.counters.clone()
    }

    /// Answers for ever.
    pub async fn run(mut self, dns: Dns, shards: &[Arc<RequestLane>]) {
        let mut lookups: JoinSet<(Question, bool, Resolution)> = JoinSet::new();
        loop {
            let is_stuck = self.outboxes.iter().any(|outbox| !outbox.is_empty());
            tokio::select! {
                Some(request) = self.requests.recv() => {
                    self.take(request);
                    // What else has come goes with it.
                    for _ in 0..ANSWERS_PER_COMMAND {
                        let Ok(request) = self.requests.try_recv() else { break };
                        self.take(request);
                    }
                }
                Some(done) = lookups.join_next() => match done {
                    Ok((question, was_again, resolution)) => {
                        self.backlog.ended(&question, was_again, !matches!(resolution, Resolution::Unanswered { .. }));
                        self.answer(question, resolution);
                    }
                    Err(reason) => warn!(%reason, "a lookup ended without an answer"),
                },
                () = tokio::time::sleep(LANE_RETRY), if is_stuck => {}
                // All shards have ended, and nothing is left to be looked up for them.
                else => std::future::pending().await,
            }
            while let Some(Ask { question, anew, is_again }) = self.backlog.next() {
                let dns = dns.clone();
                self.counters.lookups.fetch_add(1, Ordering::Relaxed);
                lookups.spawn(async move { (question.clone(), is_again, dns.resolve_as(question, anew).await) });
            }
            self.send(shards);
            self.counters.waiting.store(self.answers.waiting() as u64, Ordering::Relaxed);
            self.counters.answers.store(self.answers.len() as u64, Ordering::Relaxed);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn take(&mut self, request: Request) {
        let Request { shard, lookup: Lookup { asking, question, anew } } = request;
        self.counters.questions.fetch_add(1, Ordering::Relaxed);
        let asked = self.answers.ask(&question, anew, Asker { shard, asking }, self.now());
        for Asker { shard, asking } in self.answers.take_revoked() {
            self.outboxes[usize::from(shard)].push_back((asking, Resolution::Awaited));
        }
        match asked {
            Asked::Known(resolution) => {
                self.counters.hits.fetch_add(1, Ordering::Relaxed);
                self.outboxes[usize::from(shard)].push_back((asking, resolution));
            }
            Asked::Waits => drop(self.counters.joined.fetch_add(1, Ordering::Relaxed)),
            Asked::Ask if self.backlog.push(question.clone(), anew) => {}
            Asked::Ask => {
                let reason = format!("{}: too many questions are waiting", about(&question));
                self.answer(question, Resolution::Unanswered { reason, turns: 0 });
            }
        }
    }

    fn answer(&mut self, question: Question, resolution: Resolution) {
        if let Resolution::Unanswered { reason, .. } = &resolution {
            self.counters.unanswered.fetch_add(1, Ordering::Relaxed);
            debug!(reason, "DNS gave no answer");
        }
        let now = self.now();
        let (askers, resolution) = self.answers.answered(question, resolution, STALE_MS, now);
        for Asker { shard, asking } in askers {
            self.outboxes[usize::from(shard)].push_back((asking, resolution.clone()));
        }
    }

    fn send(&mut self, shards: &[Arc<RequestLane>]) {
        for (shard, outbox) in shards.iter().zip(&mut self.outboxes) {
            while !outbox.is_empty() {
                let count = outbox.len().min(ANSWERS_PER_COMMAND);
                let answers: Vec<_> = outbox.iter().take(count).cloned().collect();
                match shard.send(Command::Resolved(answers), Box::new(|_| ())) {
                    Ok(()) => drop(outbox.drain(..count)),
                    Err(RequestRefused::Full) => break,
                    Err(RequestRefused::Ended) => outbox.clear(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ringpost_config::Config;

    use super::*;

    #[tokio::test]
    async fn a_resolver_whose_shards_have_ended_waits() {
        let (questions, resolver) = Resolver::new(1, 16);
        drop(questions);
        let dns = Dns::new(&Config::default(), "here.test").unwrap();
        assert!(tokio::time::timeout(Duration::ZERO, resolver.run(dns, &[])).await.is_err());
    }
}
