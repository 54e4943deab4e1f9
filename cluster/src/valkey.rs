//! The one place that talks to Valkey: a connection for calls, one for those that carry much, one for writes that replicas must have, one for
//! messages, a deadline for each call and circuits.
//!
//! Calls made at the same time share a connection and travel together. Only the coordinator's thread waits here.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, Value, cluster_routing::Slot};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::{
    boot_time::BootTime,
    breaker::Failure,
    circuits::{Circuits, Extent},
    script::{Script, Scripts},
    target::{Place, Target},
    valkey_error::ValkeyError,
};

mod channels;
mod complaints;
mod connection;
mod eviction;
mod messages;
mod refusals;
mod replicas;
mod reply_meter;
mod secrets;
mod stream;

use channels::RefusedChannels;
use complaints::{Complaints, Word};
use connection::Connection;
pub use messages::Message;
use refusals::Refusals;
use secrets::Secrets;
pub use secrets::TargetSource;
use stream::ANSWER_BYTES_MAX;
pub(crate) use stream::roots_of;

/// No call waits longer for its answer (Q17), but for what it carries.
pub const CALL_DEADLINE: Duration = Duration::from_millis(50);
/// What a call carries may take so long: a network of 100 Mbit/s, and other traffic on it.
const BYTES_PER_SECOND: u64 = 8 * 1024 * 1024;
/// A call that came to nothing may take so many times as long the next time: what a line carries in time is found in few calls, each of which fills it.
const PATIENCE_GROWTH: u32 = 4;
/// The longest that any call may take: 4 MiB, the largest that is offered, on a line of 70 KB/s.
pub const PATIENCE_MAX: Duration = Duration::from_secs(60);
/// A call that carries more goes by a connection of its own kind: answers come in order, and those of small calls would be late.
const SMALL_BYTES_MAX: usize = 64 * 1024;
/// A connection may take longer than a call: TLS, Sentinel and the cluster's map come first.
const CONNECT_DEADLINE: Duration = Duration::from_millis(500);

/// One connection, made when it is needed and made anew after a failure.
#[derive(Default)]
struct Line {
    held: tokio::sync::Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// With the number of its making, so that a late failure does not drop its successor.
    connection: Option<(u64, Connection)>,
    /// When the last attempt to make it came to nothing, and why.
    failed: Option<(BootTime, ValkeyError)>,
}

/// What a call is given beside what it carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Allowance {
    /// The longest answer, for which there is time.
    pub answer_bytes_max: usize,
    /// How often it came to nothing. One that did goes by a connection of its own, with more time each time; whoever makes such calls makes one at a
    /// time, or they wait for one another.
    pub tries: u32,
    /// The most time that one that did may have, but for what any call of its size may take; `None`: [`PATIENCE_MAX`].
    pub patience_max: Option<Duration>,
}

/// How the calls went, for metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Calls that were answered.
    pub answered: AtomicU64,
    /// Calls that failed for want of a sound server.
    pub outages: AtomicU64,
    /// Calls that were refused or not understood.
    pub refused: AtomicU64,
    /// Calls that were not sent since their circuit was open.
    pub skipped: AtomicU64,
    /// Times a circuit opened.
    pub opened: AtomicU64,
    /// Times one closed again.
    pub closed: AtomicU64,
    /// Connections made.
    pub connections: AtomicU64,
    /// Messages dropped because nobody took them.
    pub messages_dropped: AtomicU64,
}

/// The driver. Cheap to share; all users see the same circuits.
pub struct Valkey {
    /// As it was at first: where it leads to stays, what is secret of it is read anew (`secrets`).
    target: Target,
    secrets: Secrets,
    scripts: &'static Scripts,
    call_deadline: Duration,
    small: Line,
    bulk: Line,
    /// For those that may take long: others do not wait behind them. None of them is a probe, so whoever has one waits for those.
    patient: Line,
    /// Waiting for replicas stops whatever comes behind it on a connection.
    replicated: Line,
    circuits: Mutex<Circuits>,
    channels: Mutex<RefusedChannels>,
    /// What the last call came to that failed for want of a sound server.
    last_outage: Mutex<Option<ValkeyError>>,
    refusals: Mutex<Refusals>,
    complaints: Mutex<Complaints>,
    /// See [`Counters`].
    pub counters: Counters,
}

impl Valkey {
    /// Connects at the first call.
    pub fn new(target: Target) -> Arc<Valkey> {
        Valkey::with_scripts(target, Scripts::shipped(), CALL_DEADLINE)
    }

    /// With a target that `source` gives anew for each connection: a password that was changed is used from the next one on. It leads to the same
    /// place.
    pub fn with_source(target: Target, source: TargetSource) -> Arc<Valkey> {
        Valkey::made(target, Some(source), Scripts::shipped(), CALL_DEADLINE)
    }

    /// With other scripts or another deadline: for tests.
    pub fn with_scripts(target: Target, scripts: &'static Scripts, call_deadline: Duration) -> Arc<Valkey> {
        Valkey::made(target, None, scripts, call_deadline)
    }

    fn made(target: Target, source: Option<TargetSource>, scripts: &'static Scripts, call_deadline: Duration) -> Arc<Valkey> {
        if target.uses_tls {
            // The client takes the process's cryptography and panics where none was chosen; one that was chosen before stays.
            let _chosen_before = rustls::crypto::ring::default_provider().install_default();
        }
        Arc::new(Valkey {
            secrets: Secrets::new(target.clone(), source),
            target,
            scripts,
            call_deadline,
            small: Line::default(),
            bulk: Line::default(),
            patient: Line::default(),
            replicated: Line::default(),
            circuits: Mutex::default(),
            channels: Mutex::default(),
            last_outage: Mutex::default(),
            refusals: Mutex::default(),
            complaints: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// Where it connects to, without password.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether the server is taken for gone, or all servers.
    pub fn is_away(&self) -> bool {
        self.circuits().is_open()
    }

    /// Why it is, by the last call that came to nothing; `None`: it is there.
    pub fn outage(&self) -> Option<ValkeyError> {
        self.last_outage().clone().filter(|_| self.is_away())
    }

    /// What it refuses to do for this node though it answers, the gravest of it; `None`: nothing, as far as this node has asked of late.
    pub fn refusal(&self) -> Option<ValkeyError> {
        self.complaints().gravest(BootTime::now())
    }

    /// Why it does not serve this node, or not in all: [`Valkey::outage`], [`Valkey::refusal`].
    pub fn complaint(&self) -> Option<ValkeyError> {
        self.outage().or_else(|| self.refusal())
    }

    fn last_outage(&self) -> std::sync::MutexGuard<'_, Option<ValkeyError>> {
        self.last_outage.lock().expect("no panic happens under this lock")
    }

    fn complaints(&self) -> std::sync::MutexGuard<'_, Complaints> {
        self.complaints.lock().expect("no panic happens under this lock")
    }

    fn circuits(&self) -> std::sync::MutexGuard<'_, Circuits> {
        self.circuits.lock().expect("no panic happens under this lock")
    }

    /// All that calls go by.
    fn lines(&self) -> [&Line; 4] {
        [&self.small, &self.bulk, &self.patient, &self.replicated]
    }

    /// Whose circuit a call passes.
    fn slot(&self, keys: &[String]) -> Option<Slot> {
        matches!(self.target.place, Place::Cluster(_)).then(|| keys.first().map(Slot::for_key)).flatten()
    }

    /// Runs a script by its hash, and by its text once if the server does not know it (Q15).
    ///
    /// Fails within the deadlines; see [`ValkeyError`] for what that says about whether it was done.
    pub async fn script(&self, name: &'static str, keys: &[String], args: &[&[u8]]) -> Result<Value, ValkeyError> {
        self.script_for(name, keys, args, Allowance::default()).await
    }

    /// As [`Valkey::script`], where the answer can be long, or where the call was made before and came to nothing.
    pub async fn script_for(
        &self,
        name: &'static str,
        keys: &[String],
        args: &[&[u8]],
        allowance: Allowance,
    ) -> Result<Value, ValkeyError> {
        ANSWER_BYTES_MAX.fetch_max(allowance.answer_bytes_max.saturating_mul(2), Ordering::Relaxed);
        let sent_bytes = args.iter().map(|arg| arg.len()).sum::<usize>();
        let line = match allowance.tries {
            1.. => &self.patient,
            0 if sent_bytes + allowance.answer_bytes_max > SMALL_BYTES_MAX => &self.bulk,
            0 => &self.small,
        };
        self.script_on(line, name, keys, args, self.time_by(sent_bytes, allowance)).await.map(|(_, answer)| answer)
    }

    /// How long a call may take that sends so many bytes, with such an allowance.
    pub fn time_by(&self, sent_bytes: usize, Allowance { answer_bytes_max, tries, patience_max }: Allowance) -> Duration {
        let bytes = sent_bytes + answer_bytes_max;
        let most = patience_max.unwrap_or(PATIENCE_MAX).max(self.time_of_call(bytes, 0));
        self.time_of_call(bytes, tries).min(most)
    }

    /// How long a call may take that carries so many bytes and came to nothing so often: [`PATIENCE_MAX`] at most, but for what any call of its size may
    /// take.
    pub fn time_of_call(&self, bytes: usize, tries: u32) -> Duration {
        let first = self.call_deadline + time_for(bytes);
        first.saturating_mul(PATIENCE_GROWTH.saturating_pow(tries)).min(PATIENCE_MAX.max(first))
    }

    async fn script_on(
        &self,
        line: &Line,
        name: &'static str,
        keys: &[String],
        args: &[&[u8]],
        deadline: Duration,
    ) -> Result<(u64, Value), ValkeyError> {
        let script = self.scripts.get(name);
        let build = |command: &str, body: &str| {
            let mut built = redis::cmd(command);
            built.arg(body).arg(keys.len()).arg(keys).arg(args);
            built
        };
        let slot = self.slot(keys);
        let by_hash = self.call(line, slot, &build("EVALSHA", script.hash()), deadline).await;
        let answer = match by_hash {
            Err(ValkeyError::NoScript) => self.call(line, slot, &build("EVAL", Script::source(script)), deadline).await,
            answer => answer,
        };
        let word = self.complaints().ended(name, slot, answer.as_ref().err(), BootTime::now());
        match word {
            Some(Word::Refused(reason)) => {
                warn!(valkey = %self.target, call = name, reason, "Valkey answers, and refuses what this node asks: it goes on without that")
            }
            Some(Word::Over) => info!(valkey = %self.target, "Valkey refuses nothing of what this node asks any more"),
            None => {}
        }
        answer
    }

    /// Runs one command, of no slot, under the deadline and the circuit.
    pub async fn command(&self, command: &Cmd) -> Result<Value, ValkeyError> {
        self.call(&self.small, None, command, self.call_deadline).await.map(|(_, answer)| answer)
    }

    /// The answer, and the number of the connection that it came by.
    async fn call(&self, line: &Line, slot: Option<Slot>, command: &Cmd, deadline: Duration) -> Result<(u64, Value), ValkeyError> {
        let sent_at = BootTime::now();
        let is_patient = std::ptr::eq(line, &self.patient);
        let is_allowed = {
            let mut circuits = self.circuits();
            if is_patient { circuits.are_closed(slot) } else { circuits.allows(slot, sent_at) }
        };
        if !is_allowed {
            self.counters.skipped.fetch_add(1, Ordering::Relaxed);
            let last = self.last_outage().as_ref().map_or_else(String::new, ToString::to_string);
            return Err(ValkeyError::CircuitOpen(last));
        }
        let mut permit = Permit { valkey: self, slot, sent_at, is_settled: false };
        let answer = self.send(line, slot, command, deadline).await;
        permit.is_settled = true;
        match &answer {
            // What has no room for one call answers others, and who leads by it goes on leading.
            Err(error) if error.is_outage() && !matches!(error, ValkeyError::Full(_)) => self.failed(slot, sent_at, error),
            Err(_) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                self.succeeded(slot);
            }
            Ok(_) => {
                self.counters.answered.fetch_add(1, Ordering::Relaxed);
                self.succeeded(slot);
            }
        }
        answer
    }

    async fn send(&self, line: &Line, slot: Option<Slot>, command: &Cmd, deadline: Duration) -> Result<(u64, Value), ValkeyError> {
        let (number, mut connection) = self.connected(line).await?;
        let answer = match timeout(deadline, connection.run(command, slot)).await {
            Err(_) => Err(ValkeyError::Late(deadline)),
            Ok(Err(error)) => Err(ValkeyError::of_client(&error)),
            // Scripts that refuse give an error inside a value.
            Ok(Ok(Value::ServerError(error))) => {
                Err(ValkeyError::of_reply(error.code(), format!("{} {}", error.code(), error.details().unwrap_or_default())))
            }
            Ok(Ok(value)) => Ok(value),
        };
        if let Err(ValkeyError::Unreachable(_) | ValkeyError::Late(_) | ValkeyError::Unavailable(_) | ValkeyError::Misconfigured(_)) =
            &answer
        {
            // The next call connects anew: to the new primary, with another password, or to the same server.
            let mut held = line.held.lock().await;
            if held.connection.as_ref().is_some_and(|(held, _)| *held == number) {
                held.connection = None;
                drop(held);
                let is_late = matches!(answer, Err(ValkeyError::Late(_)));
                // A server that is gone is gone for all; one that is late may be so for what this one carries.
                let others = self.lines().into_iter().filter(|other| !is_late && !std::ptr::eq(*other, line));
                others.filter_map(|other| other.held.try_lock().ok()).for_each(|mut held| held.connection = None);
            }
        }
        answer.map(|answer| (number, answer))
    }

    async fn connected(&self, line: &Line) -> Result<(u64, Connection), ValkeyError> {
        let asked_at = BootTime::now();
        let mut held = line.held.lock().await;
        if let Some(connection) = &held.connection {
            return Ok(connection.clone());
        }
        // Who waited for an attempt that failed does not wait for another: many such, one after another, would take minutes.
        if let Some((failed_at, error)) = &held.failed
            && *failed_at >= asked_at
        {
            return Err(error.clone());
        }
        let late = || ValkeyError::Unreachable(format!("no connection within {} ms", CONNECT_DEADLINE.as_millis()));
        let made = timeout(CONNECT_DEADLINE, self.connect()).await.unwrap_or_else(|_| Err(late()));
        self.complaints().connecting(made.as_ref().err());
        let made = made.inspect_err(|error| held.failed = Some((BootTime::now(), error.clone())))?;
        let number = self.counters.connections.fetch_add(1, Ordering::Relaxed) + 1;
        *held = Held { connection: Some((number, made.clone())), failed: None };
        Ok((number, made))
    }

    fn succeeded(&self, slot: Option<Slot>) {
        let now = BootTime::now();
        let mut circuits = self.circuits();
        let (closed, is_whole) = (circuits.succeeded(slot, now), circuits.is_whole());
        drop(circuits);
        if closed.is_some() {
            self.counters.closed.fetch_add(1, Ordering::Relaxed);
        }
        if is_whole {
            // Of the next outage that says nothing.
            self.last_outage().take();
        }
        if self.refusals().answered(closed == Some(Extent::All), now) {
            info!(valkey = %self.target, "Valkey answers again");
        }
        if closed == Some(Extent::Part) {
            info!(valkey = %self.target, "all of Valkey answers again");
        }
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, Refusals> {
        self.refusals.lock().expect("no panic happens under this lock")
    }

    fn failed(&self, slot: Option<Slot>, sent_at: BootTime, error: &ValkeyError) {
        self.counters.outages.fetch_add(1, Ordering::Relaxed);
        // That a call was given up says less than what others were answered.
        let is_given_up = matches!(error, ValkeyError::Unreachable(reason) if reason == GIVEN_UP);
        let mut last = self.last_outage();
        if !is_given_up || last.is_none() {
            *last = Some(error.clone());
        }
        drop(last);
        let failed_at = BootTime::now();
        self.refusals().failed(matches!(error, ValkeyError::Misconfigured(_)), failed_at);
        let opened = self.circuits().failed(slot, Failure { sent_at, failed_at }, random_u64());
        let Some(extent) = opened else { return };
        self.counters.opened.fetch_add(1, Ordering::Relaxed);
        match (extent, error) {
            (_, ValkeyError::Misconfigured(reason)) => {
                if !self.refusals().opened(reason, failed_at) {
                    return;
                }
                error!(valkey = %self.target, reason, "Valkey refuses this node, which goes on alone: mend password, rights or settings");
            }
            (Extent::All, error) => warn!(valkey = %self.target, reason = %error, "Valkey is away: this node goes on alone"),
            (Extent::Part, error) => {
                warn!(valkey = %self.target, reason = %error, "a part of Valkey is away: this node goes on without it")
            }
        }
    }
}

/// What a call came to for which nobody waits any more.
const GIVEN_UP: &str = "the call was given up";

/// A call that is given up while it waits must not leave its circuit half open for ever.
struct Permit<'v> {
    valkey: &'v Valkey,
    slot: Option<Slot>,
    sent_at: BootTime,
    is_settled: bool,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.valkey.failed(self.slot, self.sent_at, &ValkeyError::Unreachable(GIVEN_UP.to_owned()));
        }
    }
}

/// How long so many bytes may take on the way.
fn time_for(bytes: usize) -> Duration {
    Duration::from_micros((bytes as u64).saturating_mul(1_000_000) / BYTES_PER_SECOND)
}

/// Random bits for jitter and for names.
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    u64::from_ne_bytes(bytes)
}
