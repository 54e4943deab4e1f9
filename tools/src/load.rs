//! What a load is, what can be watched of it while it runs, and what came of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::content::{HashKind, SizeRange};

/// What to send.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where to.
    pub to: SocketAddr,
    /// Connections at once.
    pub sessions: usize,
    /// End after this many acknowledgements.
    pub messages: Option<u64>,
    /// End after this long.
    pub duration: Option<Duration>,
    /// Octets of content.
    pub sizes: SizeRange,
    /// Send ahead where the server pipelines.
    pub pipeline: bool,
    /// Messages per connection, 0 keeps it.
    pub per_connection: u32,
    /// A connection stays open, silent, after its `per_connection` messages, until the load is stopped.
    pub linger: bool,
    /// Recipients per message: `b@DOMAIN`, `b1@DOMAIN` ...
    pub recipients: usize,
    /// Their domain.
    pub domain: String,
    /// Messages per second at most.
    pub rate: Option<f64>,
    /// Use BDAT where the server announces CHUNKING.
    pub bdat: bool,
    /// Which sum messages carry.
    pub hash: HashKind,
    /// Where acknowledgements are recorded.
    pub ledger: Option<PathBuf>,
    /// Decides the content.
    pub seed: u64,
    /// Run on this core only.
    pub core: Option<usize>,
}

impl LoadOptions {
    /// One kept session, messages of 4 KiB, until told to stop.
    pub fn new(to: SocketAddr) -> Self {
        Self {
            to,
            sessions: 1,
            messages: None,
            duration: None,
            sizes: SizeRange(4096..=4096),
            pipeline: false,
            per_connection: 0,
            linger: false,
            recipients: 1,
            domain: "y.test".into(),
            rate: None,
            bdat: false,
            hash: HashKind::Sha256,
            ledger: None,
            seed: 1,
            core: None,
        }
    }
}

/// Counters and switches shared with whoever runs the load.
#[derive(Debug, Default)]
pub struct LoadState {
    /// Messages answered with 250.
    pub acknowledged: AtomicU64,
    /// Messages answered with 4xx or 5xx after their end.
    pub refused: AtomicU64,
    /// Messages whose connection broke before the answer.
    pub unknown: AtomicU64,
    /// Connections that broke or were refused.
    pub broken: AtomicU64,
    /// Connections that answered EHLO.
    pub connected: AtomicU64,
    /// Set: no new messages, then the end.
    pub stop: AtomicBool,
    /// Set: no new messages until it is cleared; connections stay.
    pub pause: AtomicBool,
    /// Set: connections are cut and none is tried until it is cleared.
    pub hold: AtomicBool,
    /// The last refusal or failure, for people.
    pub last_trouble: Mutex<String>,
    /// Latencies (microseconds, dot to 250) since somebody last took them.
    pub recent: Mutex<Option<Histogram<u32>>>,
}

/// What came of a load.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// Messages answered with 250.
    pub acknowledged: u64,
    /// Messages answered with 4xx or 5xx after their end.
    pub refused: u64,
    /// Messages whose connection broke before the answer.
    pub unknown: u64,
    /// Connections that broke or were refused.
    pub broken: u64,
    /// From the first connection to the last answer.
    pub seconds: f64,
    /// Acknowledged messages per second.
    pub messages_per_s: f64,
    /// CPU of the sender itself.
    pub own_cpu_us_per_message: f64,
    /// Share of one core the sender used.
    pub own_core_percent: f64,
    /// The sender was the bottleneck: the rate says nothing about the server.
    pub is_void: bool,
    /// Dot to 250.
    pub latency_us: Latency,
    /// The last refusal or failure.
    pub last_trouble: String,
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Latency {
    /// Half are faster.
    pub p50: u64,
    /// 9 of 10 are faster.
    pub p90: u64,
    /// 99 of 100 are faster.
    pub p99: u64,
    /// 999 of 1000 are faster.
    pub p999: u64,
    /// The slowest.
    pub max: u64,
}

impl Latency {
    /// Reads them from a histogram.
    pub fn of(histogram: &Histogram<u32>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: histogram.max() }
    }
}

/// A histogram for microseconds up to an hour.
pub fn latencies() -> Histogram<u32> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("the bounds are constants in order")
}
