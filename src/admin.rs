//! The admin listener: health, metrics and the cluster's state over HTTP.
//!
//! Loopback by default. Reading needs a token only from elsewhere, writing always. A Host that is not this machine's is refused, so that no
//! page in an operator's browser can ask through it. Nothing here is in the path of a mail.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Request, State, connect_info::Connected},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use ringpost_engine::{
    control::{Answer, Command},
    request_lane::RequestLane,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, oneshot},
    time::{Instant, Sleep, timeout},
};

use crate::cluster::ClusterNode;

/// Connections at once; for a further one, the one that asks nothing for the longest time ends.
const CONNECTIONS_MAX: usize = 64;
/// A new connection has sent the head of its first request after this, or ends.
const FIRST_HEAD_MAX: Duration = Duration::from_secs(5);
/// A connection that was answered has sent the head of its next request after this, or ends.
const NEXT_HEAD_MAX: Duration = Duration::from_secs(10);
/// A connection ends after this, whatever it does: a slow client holds a place for so long at most.
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// A shard answers within this, or is said to hang.
const SHARD_ANSWER_MAX: Duration = Duration::from_secs(1);

/// What the handlers need.
#[derive(Clone)]
pub struct Admin {
    shards: Arc<Vec<Arc<RequestLane>>>,
    cluster: Option<ClusterNode>,
    is_ready: Arc<AtomicBool>,
    token: Option<Arc<str>>,
    is_loopback: bool,
}

impl Admin {
    /// `is_ready` is true while all shards take mail. `token` is what writing needs, and reading where others can reach `address`.
    pub fn new(
        shards: Vec<Arc<RequestLane>>,
        cluster: Option<ClusterNode>,
        is_ready: Arc<AtomicBool>,
        token: Option<String>,
        address: SocketAddr,
    ) -> Admin {
        let is_loopback = address.ip().to_canonical().is_loopback();
        Admin { shards: Arc::new(shards), cluster, is_ready, token: token.map(Into::into), is_loopback }
    }

    /// Serves for ever.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        let router = Router::new()
            .route("/health", get(health))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .route("/api/cluster/stats", get(cluster_stats))
            .route("/api/cluster/nodes", get(cluster_nodes))
            .route("/api/cluster/handover", post(hand_over))
            .route("/api/queue/stats", get(queue_stats))
            .layer(middleware::from_fn_with_state(self.clone(), guard))
            .with_state(self);
        axum::serve(Bounded { listener, places: Arc::default() }, router.into_make_service_with_connect_info::<Place>()).await
    }

    fn may(&self, headers: &HeaderMap, writes: bool) -> Result<(), StatusCode> {
        if self.is_loopback && !headers.get(header::HOST).and_then(|host| host.to_str().ok()).is_some_and(is_this_machine) {
            return Err(StatusCode::FORBIDDEN);
        }
        if self.is_loopback && !writes {
            return Ok(());
        }
        let given =
            headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| value.strip_prefix("Bearer "));
        match (&self.token, given) {
            (Some(token), Some(given)) if equal(token.as_bytes(), given.as_bytes()) => Ok(()),
            (None, _) => Err(StatusCode::FORBIDDEN),
            _ => Err(StatusCode::UNAUTHORIZED),
        }
    }
}

/// Whether a Host header names this machine's loopback.
fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Compares without telling by its time where the difference is.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

async fn guard(State(admin): State<Admin>, ConnectInfo(place): ConnectInfo<Place>, request: Request, next: Next) -> Response {
    let _answering = place.answer();
    let writes = !request.method().is_safe();
    match admin.may(request.headers(), writes) {
        Ok(()) => next.run(request).await,
        Err(StatusCode::UNAUTHORIZED) => {
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], "a token is needed\n").into_response()
        }
        Err(status) => (status, "not allowed: see [admin] in the config\n").into_response(),
    }
}

/// Each shard's counters; None for one that does not answer.
async fn shard_stats(shards: &[Arc<RequestLane>]) -> Vec<Option<Vec<(&'static str, u64)>>> {
    let asked: Vec<_> = shards
        .iter()
        .map(|shard| {
            let (sender, receiver) = oneshot::channel();
            shard.send(Command::Stats, Box::new(move |answer| drop(sender.send(answer)))).ok().map(|()| receiver)
        })
        .collect();
    let deadline = Instant::now() + SHARD_ANSWER_MAX;
    let mut stats = Vec::with_capacity(asked.len());
    for receiver in asked {
        let left = deadline.saturating_duration_since(Instant::now());
        stats.push(match receiver {
            None => None,
            Some(receiver) => match timeout(left, receiver).await {
                Ok(Ok(Answer::Stats(counters))) => Some(counters),
                _ => None,
            },
        });
    }
    stats
}

async fn health(State(admin): State<Admin>) -> Response {
    let hung: Vec<usize> =
        shard_stats(&admin.shards).await.iter().enumerate().filter(|(_, stats)| stats.is_none()).map(|(shard, _)| shard).collect();
    let status = if hung.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if hung.is_empty() { "ok" } else { "hanging" };
    (status, Json(serde_json::json!({ "status": word, "shards": admin.shards.len(), "hanging_shards": hung }))).into_response()
}

async fn ready(State(admin): State<Admin>) -> Response {
    let is_ready = admin.is_ready.load(Ordering::Acquire);
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "ready": is_ready }))).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let mut families: BTreeMap<&'static str, Vec<(usize, u64)>> = BTreeMap::new();
    for (shard, stats) in shard_stats(&admin.shards).await.into_iter().enumerate() {
        for (name, value) in stats.into_iter().flatten() {
            families.entry(name).or_default().push((shard, value));
        }
    }
    let mut text = String::new();
    for (name, values) in families {
        let _ = writeln!(text, "# TYPE mta_{name} untyped");
        for (shard, value) in values {
            let _ = writeln!(text, "mta_{name}{{shard=\"{shard}\"}} {value}");
        }
    }
    if let Some(cluster) = &admin.cluster {
        cluster_metrics(cluster, &mut text);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

fn cluster_metrics(cluster: &ClusterNode, text: &mut String) {
    let stats = cluster.handle.stats();
    let counts = &stats.counts;
    let valkey = &cluster.handle.control().valkey().counters;
    let gauges = [
        ("cluster_nodes{status=\"healthy\"}", counts.healthy_nodes),
        ("cluster_nodes{status=\"degraded\"}", counts.degraded_nodes),
        ("cluster_nodes{status=\"unhealthy\"}", counts.unhealthy_nodes),
        ("cluster_is_leader", u64::from(stats.is_leader)),
        ("cluster_epoch", stats.epoch.0),
        ("cluster_config_version", stats.config_version),
        ("cluster_valkey_available", u64::from(stats.valkey_available)),
        ("valkey_calls_total{outcome=\"answered\"}", valkey.answered.load(Ordering::Relaxed)),
        ("valkey_calls_total{outcome=\"outage\"}", valkey.outages.load(Ordering::Relaxed)),
        ("valkey_calls_total{outcome=\"refused\"}", valkey.refused.load(Ordering::Relaxed)),
        ("valkey_calls_total{outcome=\"skipped\"}", valkey.skipped.load(Ordering::Relaxed)),
        ("valkey_circuit_opened_total", valkey.opened.load(Ordering::Relaxed)),
        ("valkey_connections_total", valkey.connections.load(Ordering::Relaxed)),
    ];
    for (name, value) in gauges {
        let _ = writeln!(text, "mta_{name} {value}");
    }
    for (name, value) in &stats.counters {
        let _ = writeln!(text, "mta_cluster_{name}_total {value}");
    }
}

fn no_cluster() -> Response {
    (StatusCode::NOT_FOUND, Json(serde_json::json!({ "error": "this node is in no cluster" }))).into_response()
}

async fn cluster_stats(State(admin): State<Admin>) -> Response {
    admin.cluster.as_ref().map_or_else(no_cluster, |cluster| Json(cluster.handle.stats()).into_response())
}

async fn cluster_nodes(State(admin): State<Admin>) -> Response {
    admin.cluster.as_ref().map_or_else(no_cluster, |cluster| Json(cluster.handle.nodes()).into_response())
}

async fn queue_stats(State(admin): State<Admin>) -> Response {
    let Some(cluster) = &admin.cluster else { return no_cluster() };
    match cluster.queue.stats().await {
        Ok(stats) => Json(stats).into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({ "error": reason.to_string() }))).into_response(),
    }
}

async fn hand_over(State(admin): State<Admin>) -> Response {
    let Some(cluster) = &admin.cluster else { return no_cluster() };
    match cluster.handle.hand_over().await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({ "error": reason.to_string() }))).into_response(),
    }
}

/// A listener with [`CONNECTIONS_MAX`] places.
struct Bounded {
    listener: TcpListener,
    places: Arc<Places>,
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let (place, told_to_end) = self.places.take().await;
                    return (Connection::new(stream, place, told_to_end), address);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The connections that have a place, by their number.
#[derive(Default)]
struct Places {
    taken: Mutex<Taken>,
    /// One was given back, or its connection can end now.
    changed: Notify,
}

#[derive(Default)]
struct Taken {
    next: u64,
    by_number: BTreeMap<u64, Held>,
}

/// A place that is taken.
struct Held {
    waits: Waits,
    /// Dropped, it tells the connection to end.
    _stays: oneshot::Sender<()>,
}

/// Who is to speak on a connection.
#[derive(Clone, Copy)]
enum Waits {
    /// The client: its next request has begun by `until`.
    ForHead { since: Instant, until: Instant },
    /// The client, for so many answers.
    ForAnswers(u32),
}

impl Places {
    /// A place for a new connection, and what is ready when it is to give it up.
    ///
    /// When all are taken, the connection that asks nothing for the longest time ends; when all are being answered, this waits for one.
    async fn take(self: &Arc<Places>) -> (Place, oneshot::Receiver<()>) {
        loop {
            if let Some(taken) = self.try_take(Instant::now()) {
                // The connections before this one get their turn: many that come at once do not push out one whose request is there.
                tokio::task::yield_now().await;
                return taken;
            }
            self.changed.notified().await;
        }
    }

    fn try_take(self: &Arc<Places>, now: Instant) -> Option<(Place, oneshot::Receiver<()>)> {
        let mut taken = self.lock();
        if taken.by_number.len() >= CONNECTIONS_MAX {
            let idlest = taken.by_number.iter().filter_map(|(number, held)| Some((held.waits.for_head()?.0, *number))).min();
            taken.by_number.remove(&idlest?.1);
        }
        let number = taken.next;
        taken.next += 1;
        let (stays, told_to_end) = oneshot::channel();
        taken.by_number.insert(number, Held { waits: Waits::head(now, FIRST_HEAD_MAX), _stays: stays });
        Some((Place { number, places: self.clone() }, told_to_end))
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waits {
    fn head(since: Instant, most: Duration) -> Waits {
        Waits::ForHead { since, until: since + most }
    }

    /// Since when and until when a request is waited for.
    fn for_head(self) -> Option<(Instant, Instant)> {
        match self {
            Waits::ForHead { since, until } => Some((since, until)),
            Waits::ForAnswers(_) => None,
        }
    }
}

/// The place of one connection; its handlers have it too.
#[derive(Clone)]
struct Place {
    number: u64,
    places: Arc<Places>,
}

impl Place {
    /// The head of a request is there: the connection stays until the answer is made.
    fn answer(&self) -> Answering {
        self.change(|waits| match waits {
            Waits::ForHead { .. } => Waits::ForAnswers(1),
            Waits::ForAnswers(answers) => Waits::ForAnswers(answers + 1),
        });
        Answering(self.clone())
    }

    fn change(&self, to: impl FnOnce(Waits) -> Waits) {
        if let Some(held) = self.places.lock().by_number.get_mut(&self.number) {
            held.waits = to(held.waits);
        }
    }

    /// Until when the head of a request has to be there; None while one is answered.
    fn head_until(&self) -> Option<Instant> {
        self.places.lock().by_number.get(&self.number).and_then(|held| held.waits.for_head()).map(|(_, until)| until)
    }

    fn give_back(&self) {
        self.places.lock().by_number.remove(&self.number);
        self.places.changed.notify_one();
    }
}

impl Connected<IncomingStream<'_, Bounded>> for Place {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Place {
        stream.io().place.clone()
    }
}

/// A request that is being answered.
struct Answering(Place);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.change(|waits| match waits {
            Waits::ForAnswers(answers @ 2..) => Waits::ForAnswers(answers - 1),
            _ => Waits::head(Instant::now(), NEXT_HEAD_MAX),
        });
        self.0.places.changed.notify_one();
    }
}

/// A connection that ends by itself.
struct Connection {
    stream: TcpStream,
    ends: Pin<Box<Sleep>>,
    head: Pin<Box<Sleep>>,
    told_to_end: oneshot::Receiver<()>,
    place: Place,
}

impl Connection {
    fn new(stream: TcpStream, place: Place, told_to_end: oneshot::Receiver<()>) -> Connection {
        let sleep = |most| Box::pin(tokio::time::sleep(most));
        Connection { stream, ends: sleep(CONNECTION_MAX), head: sleep(FIRST_HEAD_MAX), told_to_end, place }
    }

    /// Whether its time is over or another one got its place.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.ends.as_mut().poll(cx).is_ready() || Pin::new(&mut self.told_to_end).poll(cx).is_ready()
    }

    /// Whether the head of a request has not come in time.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(until) = self.place.head_until() else { return false };
        if self.head.deadline() != until {
            self.head.as_mut().reset(until);
        }
        // The timer may be a tick behind, and a client that sends octet after octet gains nothing by it.
        Instant::now() >= until || self.head.as_mut().poll(cx).is_ready()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.place.give_back();
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_over(cx) || self.is_late(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::oneshot::error::TryRecvError,
    };

    use super::*;

    fn headers(host: &str, token: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(token) = token {
            headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        }
        headers
    }

    fn admin(address: &str, token: Option<&str>) -> Admin {
        Admin::new(Vec::new(), None, Arc::default(), token.map(str::to_owned), address.parse().unwrap())
    }

    #[test]
    fn writing_always_needs_the_token_and_reading_does_from_elsewhere() {
        let local = admin("127.0.0.1:8080", Some("secret"));
        assert_eq!(local.may(&headers("localhost:8080", None), false), Ok(()));
        assert_eq!(local.may(&headers("localhost:8080", None), true), Err(StatusCode::UNAUTHORIZED));
        assert_eq!(local.may(&headers("localhost:8080", Some("secret")), true), Ok(()));
        assert_eq!(admin("127.0.0.1:8080", None).may(&headers("localhost", None), true), Err(StatusCode::FORBIDDEN));
        let open = admin("192.0.2.1:8080", Some("secret"));
        assert_eq!(open.may(&headers("mx1.example.org", None), false), Err(StatusCode::UNAUTHORIZED));
        assert_eq!(open.may(&headers("mx1.example.org", Some("secreT")), false), Err(StatusCode::UNAUTHORIZED));
        assert_eq!(open.may(&headers("mx1.example.org", Some("secret")), true), Ok(()));
    }

    #[test]
    fn a_name_that_was_bent_to_loopback_is_refused() {
        let local = admin("[::1]:8080", None);
        for host in ["localhost", "localhost:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080"] {
            assert_eq!(local.may(&headers(host, None), false), Ok(()), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:8080", "localhost.evil.example", "[::2]"] {
            assert_eq!(local.may(&headers(host, None), false), Err(StatusCode::FORBIDDEN), "{host}");
        }
        assert_eq!(local.may(&HeaderMap::new(), false), Err(StatusCode::FORBIDDEN));
    }

    /// How long a test waits for what is to happen at once: less than any deadline of a connection.
    const AT_ONCE: Duration = Duration::from_secs(4);

    async fn ask(address: SocketAddr) -> String {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Connections that ask nothing once made health unreachable for as long as they stayed: they held all places for a minute each.
    #[tokio::test]
    async fn a_request_is_answered_while_others_connect_and_ask_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(admin("127.0.0.1:8080", None).serve(listener));
        let mut idle = Vec::new();
        for _ in 0..2 * CONNECTIONS_MAX {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let answer = timeout(AT_ONCE, ask(address)).await.expect("answered at once");
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        let mut octets = [0; 1];
        let oldest = timeout(AT_ONCE, idle[0].read(&mut octets)).await.expect("the idlest ended");
        assert!(matches!(oldest, Ok(0) | Err(_)), "{oldest:?}");
    }

    #[tokio::test]
    async fn a_connection_that_sends_no_head_in_time_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"GET /hea").await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let places = Arc::new(Places::default());
        let (place, told_to_end) = places.try_take(Instant::now() - FIRST_HEAD_MAX).unwrap();
        let mut connection = Connection::new(stream, place.clone(), told_to_end);
        let mut octets = [0; 100];
        let answering = place.answer();
        assert_eq!(connection.read(&mut octets).await.unwrap(), 8, "nothing is waited for while it is answered");
        drop(answering);
        let left = place.head_until().unwrap() - Instant::now();
        assert!(left > FIRST_HEAD_MAX && left <= NEXT_HEAD_MAX, "{left:?}");
        place.change(|_| Waits::head(Instant::now() - NEXT_HEAD_MAX, NEXT_HEAD_MAX));
        client.write_all(b"l").await.unwrap();
        let late = timeout(AT_ONCE, connection.read(&mut octets)).await.expect("ends at once");
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(connection);
        assert!(places.lock().by_number.is_empty());
    }

    #[test]
    fn a_connection_that_is_answered_keeps_its_place() {
        let places = Arc::new(Places::default());
        let now = Instant::now();
        let mut taken: Vec<_> = (0..CONNECTIONS_MAX).map(|_| places.try_take(now).unwrap()).collect();
        let answering: Vec<_> = taken[1..].iter().map(|(place, _)| place.answer()).collect();
        assert!(matches!(taken[0].1.try_recv(), Err(TryRecvError::Empty)));
        let newest = places.try_take(now).expect("the first asks nothing");
        assert!(matches!(taken[0].1.try_recv(), Err(TryRecvError::Closed)));
        let _newest_too = newest.0.answer();
        assert!(places.try_take(now).is_none(), "all are answered");
        assert!(taken[1..].iter_mut().all(|(_, told)| matches!(told.try_recv(), Err(TryRecvError::Empty))));
        drop(answering);
        assert!(places.try_take(now).is_some());
    }
}
