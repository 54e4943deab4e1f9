//! A time within a run, and what happened in it: what results keep of a measurement beside its totals.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{
    encoded_histogram::{EncodedHistogram, latency_histogram},
    error_kind::ErrorCounts,
    phase::Phase,
    process::ProcessSample,
};

/// One interval of a run, as results keep it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Interval {
    /// Seconds since the run began.
    pub start_s: u64,
    /// Seconds it covers.
    pub length_s: u64,
    /// Transactions begun.
    pub sent: u64,
    /// Transactions acknowledged.
    pub acknowledged: u64,
    /// Content bytes of the acknowledged.
    pub acknowledged_bytes: u64,
    /// Transactions open at its end.
    pub in_flight: u64,
    /// Most connections open at once within it.
    pub connections: u64,
    /// What went wrong.
    pub errors: ErrorCounts,
    /// Latencies by phase; phases without any are absent.
    pub histograms: BTreeMap<Phase, EncodedHistogram>,
    /// The engine's process, when it is on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<ProcessSample>,
    /// The generator's own process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<ProcessSample>,
}

impl Interval {
    /// Latencies of a phase; empty when there are none or they cannot be read.
    pub fn histogram(&self, phase: Phase) -> Histogram<u64> {
        self.histograms.get(&phase).and_then(|encoded| encoded.decode().ok()).unwrap_or_else(latency_histogram)
    }

    /// Becomes longer by one that came behind it.
    pub(crate) fn merge_later(&mut self, later: &Interval) {
        let (own_s, later_s) = (self.length_s as f64, later.length_s as f64);
        let mean = |a: Option<ProcessSample>, b: Option<ProcessSample>| match (a, b) {
            (Some(a), Some(b)) => {
                let cpu_percent = (a.cpu_percent * own_s + b.cpu_percent * later_s) / (own_s + later_s);
                Some(ProcessSample { cpu_percent, memory_bytes: b.memory_bytes })
            }
            (a, b) => b.or(a),
        };
        self.length_s += later.length_s;
        self.sent += later.sent;
        self.acknowledged += later.acknowledged;
        self.acknowledged_bytes += later.acknowledged_bytes;
        self.in_flight = later.in_flight;
        self.connections = self.connections.max(later.connections);
        self.errors.merge(&later.errors);
        self.engine = mean(self.engine, later.engine);
        self.generator = mean(self.generator, later.generator);
        for &phase in later.histograms.keys() {
            let mut sum = self.histogram(phase);
            sum.add(later.histogram(phase)).expect("both have this crate's bounds");
            self.histograms.insert(phase, EncodedHistogram::new(&sum));
        }
    }
}
