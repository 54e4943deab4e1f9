//! The admin listener: health, metrics and the cluster's state over HTTP.
//!
//! Loopback by default. Reading needs a token only from elsewhere, writing always. A Host that is not this machine's is refused, so that no
//! page in an operator's browser can ask through it. Nothing here is in the path of a mail.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use ringpost_cluster::{handle::COUNTERS, work_queue::QueueStats};
use ringpost_engine::request_lane::RequestLane;
use tokio::net::TcpListener;

use crate::{
    admin_connections::{Bounded, Place},
    cluster::ClusterNode,
    queue_account::OwnQueue,
    shard_call::counters,
};

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
        axum::serve(Bounded::new(listener), router.into_make_service_with_connect_info::<Place>()).await
    }

    fn may(&self, headers: &HeaderMap, writes: bool) -> Result<(), StatusCode> {
        let is_meant = match headers.get(header::HOST) {
            Some(host) => host.to_str().is_ok_and(is_this_machine),
            // Health checks speak HTTP/1.0. No browser leaves it out, and so none can be led here.
            None => !writes,
        };
        if self.is_loopback && !is_meant {
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

async fn health(State(admin): State<Admin>) -> Response {
    let hung: Vec<usize> = counters(&admin.shards, SHARD_ANSWER_MAX)
        .await
        .iter()
        .enumerate()
        .filter(|(_, stats)| stats.is_none())
        .map(|(shard, _)| shard)
        .collect();
    let status = if hung.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if hung.is_empty() { "ok" } else { "hanging" };
    (status, Json(serde_json::json!({ "status": word, "shards": admin.shards.len(), "hanging_shards": hung }))).into_response()
}

async fn ready(State(admin): State<Admin>) -> Response {
    let runs = admin.is_ready.load(Ordering::Acquire);
    let why_not = if runs { why_not_ready(&counters(&admin.shards, SHARD_ANSWER_MAX).await) } else { None };
    let is_ready = runs && why_not.is_none();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut answer = serde_json::json!({ "ready": is_ready });
    if let Some(reason) = why_not {
        answer["reason"] = reason.into();
    }
    // Mail is taken with a cluster and without: how that is says nothing of being ready, and is said beside it.
    if let Some(cluster) = &admin.cluster {
        let stats = cluster.handle.stats();
        answer["local_node_status"] = serde_json::json!(stats.local_node_status);
        answer["valkey_available"] = serde_json::json!(stats.valkey_available);
        if let Some(reason) = stats.local_last_error {
            answer["local_last_error"] = serde_json::json!(reason);
        }
        if let Some(since) = stats.nodes_unknown_since {
            answer["nodes_unknown_since"] = serde_json::json!(since);
        }
    }
    (status, Json(answer)).into_response()
}

/// Why the node is not ready though all of its shards run; `None` if it is.
fn why_not_ready(stats: &[Option<Vec<(&'static str, u64)>>]) -> Option<&'static str> {
    if all_say(stats, "own_log_closed") {
        return Some("the logs of the spool cannot be opened for want of segments: new mail gets 452, and what is in them waits");
    }
    if all_say(stats, "spool_reserve") {
        return Some("the disk has no more than spool.min_free_bytes and spool.min_free_inodes left: new mail gets 452");
    }
    all_say(stats, "mail_log_blocks")
        .then_some("the mail log, which log.mail requires, cannot be written, or not as fast as mail comes: new mail gets 452")
}

/// Whether whatever shard a connection comes to turns its mail away for this: each that answers says so.
fn all_say(stats: &[Option<Vec<(&'static str, u64)>>], gauge: &str) -> bool {
    let mut answered = stats.iter().flatten().peekable();
    answered.peek().is_some() && answered.all(|counters| counters.iter().any(|(name, value)| *name == gauge && *value > 0))
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let mut families: BTreeMap<&'static str, Vec<(usize, u64)>> = BTreeMap::new();
    for (shard, stats) in counters(&admin.shards, SHARD_ANSWER_MAX).await.into_iter().enumerate() {
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
        // Valkey that is away costs a call's deadline here, and nothing once its circuit is open.
        if let Ok(stats) = cluster.queue.stats().await {
            queue_metrics(&stats, &mut text);
        }
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
        ("cluster_nodes{status=\"unknown\"}", counts.unknown_nodes),
        ("cluster_is_leader", u64::from(stats.is_leader)),
        ("cluster_epoch", stats.epoch.0),
        ("cluster_config_version", stats.config_version),
        ("cluster_valkey_available", u64::from(stats.valkey_available)),
        ("valkey_calls_total{outcome=\"answered\"}", valkey.answered.load(Ordering::Relaxed)),
        ("valkey_calls_total{outcome=\"outage\"}", valkey.outages.load(Ordering::Relaxed)),
        ("valkey_calls_total{outcome=\"refused\"}", valkey.refused.load(Ordering::Relaxed)),
        ("valkey_calls_total{outcome=\"skipped\"}", valkey.skipped.load(Ordering::Relaxed)),
        ("valkey_circuit_opened_total", valkey.opened.load(Ordering::Relaxed)),
        ("valkey_circuit_closed_total", valkey.closed.load(Ordering::Relaxed)),
        ("valkey_messages_dropped_total", valkey.messages_dropped.load(Ordering::Relaxed)),
        ("valkey_connections_total", valkey.connections.load(Ordering::Relaxed)),
    ];
    for (name, value) in gauges {
        let _ = writeln!(text, "mta_{name} {value}");
    }
    // What has not come yet is 0, or nobody could see its first time.
    let mut counters: BTreeMap<&str, u64> = COUNTERS.into_iter().map(|name| (name, 0)).collect();
    counters.extend(stats.counters.iter().map(|(name, value)| (name.as_str(), *value)));
    for (name, value) in counters {
        let _ = writeln!(text, "mta_cluster_{name}_total {value}");
    }
}

/// Of the queue that all nodes share, partitions that do not answer left out.
fn queue_metrics(stats: &QueueStats, text: &mut String) {
    for (state, count) in
        [("pending", stats.pending), ("processing", stats.processing), ("dead", stats.failed), ("unsettled", stats.unsettled)]
    {
        let _ = writeln!(text, "mta_cluster_queue_items{{state=\"{state}\"}} {count}");
    }
    for (state, age_ms) in [("ready", stats.oldest_ready_age_ms), ("dead", stats.oldest_dead_age_ms)] {
        let _ = writeln!(text, "mta_cluster_queue_oldest_seconds{{state=\"{state}\"}} {}", Duration::from_millis(age_ms).as_secs_f64());
    }
    let _ = writeln!(text, "mta_cluster_queue_partitions_unanswered {}", stats.unanswered.len());
    for name in ["died", "dead_full", "unproven", "outcomes_dropped", "damaged", "quarantined", "counters_reset"] {
        let _ = writeln!(text, "mta_cluster_{name}_total {}", stats.counters.get(name).copied().unwrap_or(0));
    }
}

fn no_cluster() -> Response {
    (StatusCode::NOT_FOUND, Json(serde_json::json!({ "error": "this node is in no cluster" }))).into_response()
}

async fn cluster_stats(State(admin): State<Admin>) -> Response {
    admin.cluster.as_ref().map_or_else(no_cluster, |cluster| Json(cluster.handle.stats()).into_response())
}

async fn cluster_nodes(State(admin): State<Admin>) -> Response {
    admin.cluster.as_ref().map_or_else(no_cluster, |cluster| Json(cluster.handle.nodes_now()).into_response())
}

/// What does not answer (partitions, shards) is named in it: see [`OwnQueue`].
async fn queue_stats(State(admin): State<Admin>) -> Response {
    let own = OwnQueue::of(&counters(&admin.shards, SHARD_ANSWER_MAX).await);
    let Some(cluster) = &admin.cluster else { return Json(own.alone()).into_response() };
    let stats = cluster.queue.stats().await.map_err(|reason| reason.to_string());
    Json(own.in_cluster(cluster.shares, cluster.queue.bounds().partitions, stats)).into_response()
}

async fn hand_over(State(admin): State<Admin>) -> Response {
    let Some(cluster) = &admin.cluster else { return no_cluster() };
    match cluster.handle.hand_over().await {
        Ok(Some(_)) => StatusCode::ACCEPTED.into_response(),
        Ok(None) => (StatusCode::CONFLICT, Json(serde_json::json!({ "error": "nobody leads" }))).into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({ "error": reason.to_string() }))).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::timeout,
    };

    use super::*;
    use crate::admin_connections::CONNECTIONS_MAX;

    /// A balancer went on sending mail to a node that answered each MAIL with 452.
    #[test]
    fn a_node_of_which_all_shards_keep_the_disks_reserve_is_not_ready() {
        let shard = |reserve| Some(vec![("sessions", 3), ("spool_reserve", reserve)]);
        let all_keep = |stats: &[_]| all_say(stats, "spool_reserve");
        assert!(all_keep(&[shard(1), shard(1)]) && all_keep(&[shard(1), None]));
        assert!(!all_keep(&[shard(1), shard(0)]) && !all_keep(&[None]) && !all_keep(&[]));
    }

    /// It said that it was ready, while each MAIL got 452.
    #[test]
    fn a_node_none_of_whose_logs_can_be_opened_is_not_ready() {
        let shard = |own_log_closed| Some(vec![("spool_reserve", 0), ("logs_closed", 1), ("own_log_closed", own_log_closed)]);
        assert_eq!(why_not_ready(&[shard(0), shard(1), None]), None, "it takes mail");
        assert!(why_not_ready(&[shard(1), shard(1)]).is_some_and(|reason| reason.contains("cannot be opened")));
        let reserve = Some(vec![("spool_reserve", 1), ("own_log_closed", 0)]);
        assert!(why_not_ready(&[reserve]).is_some_and(|reason| reason.contains("min_free_bytes")));
    }

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
        // A health check that speaks HTTP/1.0 was refused.
        assert_eq!(local.may(&HeaderMap::new(), false), Ok(()));
        let token = HeaderMap::from_iter([(header::AUTHORIZATION, "Bearer secret".parse().unwrap())]);
        assert_eq!(admin("127.0.0.1:8080", Some("secret")).may(&token, true), Err(StatusCode::FORBIDDEN));
        assert_eq!(admin("192.0.2.1:8080", Some("secret")).may(&HeaderMap::new(), false), Err(StatusCode::UNAUTHORIZED));
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
}
