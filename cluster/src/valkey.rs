//! The one place that talks to Valkey: a connection for calls, one for those that carry much, one for messages, a deadline for each call
//! and a breaker.
//!
//! Calls made at the same time share a connection and travel together. Only the coordinator's thread waits here.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_lite::StreamExt;
use redis::{
    AsyncConnectionConfig, Client, Cmd, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClientBuilder,
    cluster_async::ClusterConnection,
    io::tcp::TcpSettings,
    sentinel::{Sentinel, SentinelNodeConnectionInfo},
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tracing::{info, warn};

use crate::{
    boot_time::BootTime,
    breaker::{Breaker, GAP_MAX},
    script::{Script, Scripts},
    target::{Place, Target},
    valkey_error::ValkeyError,
};

/// No call waits longer for its answer (Q17), but for what it carries.
pub const CALL_DEADLINE: Duration = Duration::from_millis(50);
/// What a call carries may take so long: a network of 100 Mbit/s, and other traffic on it.
const BYTES_PER_SECOND: u64 = 8 * 1024 * 1024;
/// A call that carries more goes by a connection of its own kind: answers come in order, and those of small calls would be late.
const SMALL_BYTES_MAX: usize = 64 * 1024;
/// A connection may take longer than a call: TLS, Sentinel and the cluster's map come first.
const CONNECT_DEADLINE: Duration = Duration::from_millis(500);
/// One server of several: the others must still be asked in time when it swallows what it is sent.
const SERVER_CONNECT_DEADLINE: Duration = Duration::from_millis(150);
/// What is sent is given up when the other end has not confirmed for so long that it came. A call that is cut off on its way would else be
/// carried out when the network is whole again, up to two minutes later: mail would come into the queue that its owner has delivered by then.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(1);
/// Messages that wait for their reader; further ones are dropped, since everything they say is found by polling, too.
const MESSAGES_MAX: usize = 4096;
/// How soon the subscriber tries again, at least.
const SUBSCRIBE_GAP: Duration = Duration::from_millis(200);

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

#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    async fn run(&mut self, command: &Cmd) -> redis::RedisResult<Value> {
        match self {
            Connection::One(connection) => connection.req_packed_command(command).await,
            Connection::Cluster(connection) => connection.req_packed_command(command).await,
        }
    }
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
    /// Calls that were not sent since the circuit was open.
    pub skipped: AtomicU64,
    /// Times the circuit opened.
    pub opened: AtomicU64,
    /// Connections made.
    pub connections: AtomicU64,
    /// Messages dropped because nobody took them.
    pub messages_dropped: AtomicU64,
}

/// A message of a channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Where it came from.
    pub channel: String,
    /// What it says.
    pub payload: String,
}

/// The driver. Cheap to share; all users see one breaker.
pub struct Valkey {
    target: Target,
    scripts: &'static Scripts,
    call_deadline: Duration,
    small: Line,
    bulk: Line,
    breaker: Mutex<Breaker>,
    /// See [`Counters`].
    pub counters: Counters,
}

impl Valkey {
    /// Connects at the first call.
    pub fn new(target: Target) -> Arc<Valkey> {
        Valkey::with_scripts(target, Scripts::shipped(), CALL_DEADLINE)
    }

    /// With other scripts or another deadline: for tests.
    pub fn with_scripts(target: Target, scripts: &'static Scripts, call_deadline: Duration) -> Arc<Valkey> {
        if target.uses_tls {
            // The client takes the process's cryptography and panics where none was chosen; one that was chosen before stays.
            let _chosen_before = rustls::crypto::ring::default_provider().install_default();
        }
        Arc::new(Valkey {
            target,
            scripts,
            call_deadline,
            small: Line::default(),
            bulk: Line::default(),
            breaker: Mutex::new(Breaker::default()),
            counters: Counters::default(),
        })
    }

    /// Where it connects to, without password.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether the server is taken for gone.
    pub fn is_away(&self) -> bool {
        self.breaker().is_open()
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().expect("no panic happens under this lock")
    }

    /// Runs a script by its hash, and by its text once if the server does not know it (Q15).
    ///
    /// Fails within the deadlines; see [`ValkeyError`] for what that says about whether it was done.
    pub async fn script(&self, name: &'static str, keys: &[String], args: &[&[u8]]) -> Result<Value, ValkeyError> {
        self.script_for(name, keys, args, 0).await
    }

    /// As [`Valkey::script`], where the answer can be long: up to `answer_bytes_max`, for which there is time.
    pub async fn script_for(
        &self,
        name: &'static str,
        keys: &[String],
        args: &[&[u8]],
        answer_bytes_max: usize,
    ) -> Result<Value, ValkeyError> {
        let script = self.scripts.get(name);
        let bytes = args.iter().map(|arg| arg.len()).sum::<usize>() + answer_bytes_max;
        let build = |command: &str, body: &str| {
            let mut built = redis::cmd(command);
            built.arg(body).arg(keys.len()).arg(keys).arg(args);
            built
        };
        let by_hash = self.call(&build("EVALSHA", script.hash()), bytes).await;
        match by_hash {
            Err(ValkeyError::NoScript) => self.call(&build("EVAL", Script::source(script)), bytes).await,
            answer => answer,
        }
    }

    /// Runs one command under the deadline and the breaker.
    pub async fn command(&self, command: &Cmd) -> Result<Value, ValkeyError> {
        self.call(command, 0).await
    }

    async fn call(&self, command: &Cmd, bytes: usize) -> Result<Value, ValkeyError> {
        if !self.breaker().allows(BootTime::now()) {
            self.counters.skipped.fetch_add(1, Ordering::Relaxed);
            return Err(ValkeyError::CircuitOpen);
        }
        let mut permit = Permit { valkey: self, is_settled: false };
        let answer = self.send(command, bytes).await;
        permit.is_settled = true;
        match &answer {
            Err(error) if error.is_outage() => self.failed(error),
            Err(_) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                self.succeeded();
            }
            Ok(_) => {
                self.counters.answered.fetch_add(1, Ordering::Relaxed);
                self.succeeded();
            }
        }
        answer
    }

    async fn send(&self, command: &Cmd, bytes: usize) -> Result<Value, ValkeyError> {
        let (line, other) = if bytes > SMALL_BYTES_MAX { (&self.bulk, &self.small) } else { (&self.small, &self.bulk) };
        let deadline = self.call_deadline + time_for(bytes);
        let (number, mut connection) = self.connected(line).await?;
        let ended = timeout(deadline, connection.run(command)).await;
        let is_late = ended.is_err();
        let answer = match ended {
            Err(_) => Err(ValkeyError::Unreachable(format!("no answer within {} ms", deadline.as_millis()))),
            Ok(Err(error)) => Err(ValkeyError::of_client(&error)),
            // Scripts that refuse give an error inside a value.
            Ok(Ok(Value::ServerError(error))) => {
                Err(ValkeyError::of_reply(error.code(), format!("{} {}", error.code(), error.details().unwrap_or_default())))
            }
            Ok(Ok(value)) => Ok(value),
        };
        if let Err(ValkeyError::Unreachable(_) | ValkeyError::Unavailable(_) | ValkeyError::Misconfigured(_)) = &answer {
            // The next call connects anew: to the new primary, with another password, or to the same server.
            let mut held = line.held.lock().await;
            if held.connection.as_ref().is_some_and(|(held, _)| *held == number) {
                held.connection = None;
                drop(held);
                // A server that is gone is gone for both; one that is late may be so for what this one carries.
                if !is_late && let Ok(mut held) = other.held.try_lock() {
                    held.connection = None;
                }
            }
        }
        answer
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
        let made = made.inspect_err(|error| held.failed = Some((BootTime::now(), error.clone())))?;
        let number = self.counters.connections.fetch_add(1, Ordering::Relaxed) + 1;
        *held = Held { connection: Some((number, made.clone())), failed: None };
        Ok((number, made))
    }

    async fn connect(&self) -> Result<Connection, ValkeyError> {
        let failed = |error: redis::RedisError| ValkeyError::of_client(&error);
        let mut connection = match &self.target.place {
            Place::Cluster(nodes) => {
                let mut builder = ClusterClientBuilder::new(nodes.clone())
                    .connection_timeout(SERVER_CONNECT_DEADLINE)
                    .tcp_settings(tcp_settings())
                    .retries(3)
                    .min_retry_wait(10)
                    .max_retry_wait(100);
                if let Some(certificates) = &self.target.certificates {
                    builder = builder.certs(certificates.clone());
                }
                let client = builder.build().map_err(failed)?;
                Connection::Cluster(client.get_async_connection().await.map_err(failed)?)
            }
            Place::Single(_) | Place::Sentinel { .. } => {
                let client = self.client().await?;
                let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
                Connection::One(client.get_multiplexed_async_connection_with_config(&config).await.map_err(failed)?)
            }
        };
        self.refuse_eviction(&mut connection).await?;
        Ok(connection)
    }

    /// A client of the server that takes writes: the only one, or the one that Sentinels name.
    async fn client(&self) -> Result<Client, ValkeyError> {
        let failed = |error: redis::RedisError| ValkeyError::of_client(&error);
        let open = |info: &redis::ConnectionInfo| {
            let info = info.clone().set_tcp_settings(tcp_settings());
            match &self.target.certificates {
                Some(certificates) => Client::build_with_tls(info, certificates.clone()),
                None => Client::open(info),
            }
        };
        match &self.target.place {
            Place::Single(info) => open(info).map_err(failed),
            Place::Cluster(nodes) => {
                let node = usize::try_from(random_u64()).unwrap_or(0) % nodes.len();
                open(&nodes[node]).map_err(failed)
            }
            Place::Sentinel { sentinels, name, node } => {
                let mut settings = SentinelNodeConnectionInfo::default()
                    .set_redis_connection_info(node.redis_settings().clone())
                    .set_tcp_settings(tcp_settings());
                if self.target.uses_tls {
                    settings = settings.set_tls_mode(redis::TlsMode::Secure);
                }
                first_answer(sentinels, name, &settings).await.map_err(failed)
            }
        }
    }

    /// Q14: a server that throws keys away when memory is short would throw away leases and epochs.
    async fn refuse_eviction(&self, connection: &mut Connection) -> Result<(), ValkeyError> {
        if let Connection::Cluster(_) = connection {
            return Ok(());
        }
        let mut command = redis::cmd("INFO");
        command.arg("memory");
        let text = match connection.run(&command).await.map_err(|error| ValkeyError::of_client(&error))? {
            Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Value::VerbatimString { text, .. } => text,
            Value::ServerError(error) => {
                return Err(ValkeyError::of_reply(error.code(), format!("{} {}", error.code(), error.details().unwrap_or_default())));
            }
            // A server that tells nothing about its memory is taken at its word.
            _ => return Ok(()),
        };
        let policy = text.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")).unwrap_or("noeviction");
        if policy == "noeviction" {
            return Ok(());
        }
        Err(ValkeyError::Misconfigured(format!(
            "its maxmemory-policy is {policy}: leases and epochs could vanish; set maxmemory-policy noeviction"
        )))
    }

    fn succeeded(&self) {
        if self.breaker().succeeded() {
            info!(valkey = %self.target, "Valkey answers again");
        }
    }

    fn failed(&self, error: &ValkeyError) {
        self.counters.outages.fetch_add(1, Ordering::Relaxed);
        let opened = self.breaker().failed(BootTime::now(), random_u64());
        if let ValkeyError::Misconfigured(reason) = error {
            if opened {
                tracing::error!(valkey = %self.target, reason, "Valkey refuses this node, which goes on alone: mend password, rights or settings");
            }
        } else if opened {
            warn!(valkey = %self.target, reason = %error, "Valkey is away: this node goes on alone");
        }
        if opened {
            self.counters.opened.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Listens to `channels` for ever, over a connection of its own that is made anew as often as it breaks.
    ///
    /// Each (new) connection says so with a message of channel `""`: what was published meanwhile is to be asked for.
    pub fn subscribe(self: &Arc<Self>, channels: Vec<String>) -> mpsc::Receiver<Message> {
        let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
        let valkey = self.clone();
        tokio::spawn(async move {
            let mut gap = SUBSCRIBE_GAP;
            while !sender.is_closed() {
                if let Ok(()) = valkey.listen(&channels, &sender).await {
                    gap = SUBSCRIBE_GAP;
                }
                let jitter = gap / 2 * u32::try_from(random_u64() % 1024).expect("below 1024") / 1024;
                tokio::select! {
                    () = tokio::time::sleep(gap / 2 + jitter) => {}
                    () = sender.closed() => return,
                }
                gap = (gap * 2).min(GAP_MAX);
            }
        });
        receiver
    }

    async fn listen(&self, channels: &[String], sender: &mpsc::Sender<Message>) -> Result<(), ValkeyError> {
        let connect = async {
            let client = self.client().await?;
            let mut connection = client.get_async_pubsub().await.map_err(|error| ValkeyError::of_client(&error))?;
            connection.subscribe(channels).await.map_err(|error| ValkeyError::of_client(&error))?;
            Ok::<_, ValkeyError>(connection)
        };
        let connection =
            timeout(CONNECT_DEADLINE, connect).await.map_err(|_| ValkeyError::Unreachable("no connection for messages".to_owned()))??;
        self.pass(Message { channel: String::new(), payload: String::new() }, sender);
        let (mut sink, mut messages) = connection.split();
        // A connection whose other end is gone without a word is found by asking.
        let mut probe = tokio::time::interval(Duration::from_secs(2));
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => {
                        let payload = String::from_utf8_lossy(message.get_payload_bytes()).into_owned();
                        self.pass(Message { channel: message.get_channel_name().to_owned(), payload }, sender);
                    }
                    None => return Ok(()),
                },
                _ = probe.tick() => match timeout(Duration::from_secs(1), sink.ping::<Value>()).await {
                    Ok(Ok(_)) => {}
                    _ => return Ok(()),
                },
                () = sender.closed() => return Ok(()),
            }
        }
    }

    fn pass(&self, message: Message, sender: &mpsc::Sender<Message>) {
        if sender.try_send(message).is_err() {
            self.counters.messages_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A call that is given up while it waits must not leave the breaker half open for ever.
struct Permit<'v> {
    valkey: &'v Valkey,
    is_settled: bool,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.valkey.failed(&ValkeyError::Unreachable("the call was given up".to_owned()));
        }
    }
}

/// Asks all Sentinels at once, each for itself: the client's own way waits for those before in the list, and one can be silent.
async fn first_answer(
    sentinels: &[redis::ConnectionInfo],
    name: &str,
    settings: &SentinelNodeConnectionInfo,
) -> redis::RedisResult<Client> {
    let mut asked = JoinSet::new();
    for sentinel in sentinels {
        let (sentinel, name, settings) = (sentinel.clone(), name.to_owned(), settings.clone());
        asked.spawn(async move { Sentinel::build(vec![sentinel])?.async_master_for(&name, Some(&settings)).await });
    }
    let mut answer = Err((redis::ErrorKind::InvalidClientConfig, "no Sentinel is named").into());
    while let Some(Ok(next)) = asked.join_next().await {
        answer = next;
        if answer.is_ok() {
            break;
        }
    }
    answer
}

fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_user_timeout(UNCONFIRMED_MAX)
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
