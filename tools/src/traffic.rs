//! Mail for the rigs: the source and the sink of `ringpost-load`, set up as the rigs want them.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use ringpost_loadtest::content::ContentKind;
use ringpost_loadtest::diff::{Difference, compare};
use ringpost_loadtest::live::{Beside, Quiet, run_source};
use ringpost_loadtest::percentile::told;
use ringpost_loadtest::phase::Phase;
use ringpost_loadtest::signals::StopSignal;
use ringpost_loadtest::sink::SinkOptions;
use ringpost_loadtest::source::{Source, SourceOptions};
use serde::Serialize;

use crate::machine;

/// Above this share of its core the source, not the server, decides a rate.
const OWN_CORE_PERCENT_MAX: f64 = 95.0;

/// A next hop on the rig's core and a port that nobody takes while it is down.
pub fn next_hop(ledger: Option<PathBuf>) -> io::Result<SinkOptions> {
    Ok(SinkOptions { ledger, ..SinkOptions::new(machine::free_port()?, machine::own_core()?) })
}

/// One session on the rig's core that goes on until it is stopped, with messages of these sizes (as `ringpost-load` reads them).
/// Panics when the text is none; rigs give constants.
pub fn texts(to: SocketAddr, sizes: &str) -> io::Result<SourceOptions> {
    let sizes = sizes.parse().expect("rigs give sizes that can be read");
    Ok(SourceOptions::new(to, machine::own_core()?, ContentKind::Text(sizes)))
}

/// Cuts the connections of all loads, or lets them connect again.
pub fn hold(loads: &[Source], hold: bool) {
    loads.iter().for_each(|load| load.hold(hold));
}

/// Messages that all loads together have seen a 250 for.
pub fn acknowledged(loads: &[Source]) -> u64 {
    loads.iter().map(Source::acknowledged).sum()
}

/// What went wrong last, for people.
pub fn trouble(loads: &[Source]) -> String {
    loads.iter().filter_map(Source::last_trouble).collect::<Vec<_>>().join("; ")
}

/// What the ledgers of some loads and of the next hop say. Fails on one that cannot be read: it proves nothing.
pub fn difference(sent: &[&Path], received: &Path) -> io::Result<Difference> {
    compare(sent, received).map_err(io::Error::other)
}

/// What came of a load that ran to its end.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    /// Messages answered with 250.
    pub acknowledged: u64,
    /// Messages answered with 4xx or 5xx.
    pub refused: u64,
    /// Messages whose connection ended between their end and the answer.
    pub unknown: u64,
    /// From the start to the last answer.
    pub seconds: f64,
    /// Acknowledged messages per second.
    pub messages_per_s: f64,
    /// Share of its core that the source used.
    pub own_core_percent: f64,
    /// The source was the bottleneck: the rate says nothing about the server.
    pub is_void: bool,
    /// Dot to 250.
    pub latency_us: Latency,
    /// The whole transaction: of a closed loop from its first command, of an open one from when it was due.
    pub transaction_us: Told,
    /// Messages that were due and that no session was free for until the end.
    pub never_begun: u64,
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

/// Percentiles in microseconds, without those that too few values lie beyond ([`ringpost_loadtest::percentile`]).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Told {
    /// Of so many values.
    pub values: u64,
    /// Half are faster.
    pub p50: Option<u64>,
    /// 99 of 100 are faster.
    pub p99: Option<u64>,
    /// 999 of 1000 are faster.
    pub p999: Option<u64>,
    /// 9,999 of 10,000 are faster.
    pub p9999: Option<u64>,
    /// The slowest.
    pub max: Option<u64>,
}

impl Told {
    /// What a histogram of nanoseconds tells.
    pub fn of(nanoseconds: &Histogram<u64>) -> Self {
        let at = |percentile| told(nanoseconds, percentile).map(|ns| ns / 1000);
        Self { values: nanoseconds.len(), p50: at(50.0), p99: at(99.0), p999: at(99.9), p9999: at(99.99), max: at(100.0) }
    }

    /// Milliseconds in columns of nine, in the order of [`Told::HEAD`]; a dash for what is not told.
    pub fn columns(&self) -> String {
        let column = |us: Option<u64>| us.map_or(format!("{:>9}", "-"), |us| format!("{:>9.2}", us as f64 / 1000.0));
        [self.p50, self.p99, self.p999, self.p9999, self.max].map(column).concat()
    }

    /// What stands above [`Told::columns`].
    pub const HEAD: &str = "      p50      p99    p99.9   p99.99      max";
}

impl Sent {
    /// Runs a load to its end on one core.
    pub fn run(options: SourceOptions) -> io::Result<Self> {
        let ran = run_source(options, Beside::default(), &StopSignal::never(), &mut Quiet)?;
        let (report, totals) = (ran.report, ran.measurement.totals());
        let latency = totals.histogram(Phase::DotTo250);
        let seconds = report.lasted.as_secs_f64().max(1e-9);
        let own_core_percent = 100.0 * report.cpu.as_secs_f64() / seconds;
        let at = |quantile| latency.value_at_quantile(quantile) / 1000;
        Ok(Self {
            acknowledged: report.acknowledged,
            refused: report.refused,
            unknown: report.unknown,
            seconds,
            messages_per_s: report.acknowledged as f64 / seconds,
            own_core_percent,
            is_void: own_core_percent > OWN_CORE_PERCENT_MAX,
            latency_us: Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: latency.max() / 1000 },
            transaction_us: Told::of(totals.histogram(Phase::Transaction)),
            never_begun: report.never_begun,
            last_trouble: report.last_trouble.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_too_few_values_lie_beyond_is_a_dash() {
        let mut histogram = Histogram::new(3).unwrap();
        (1..=2_000u64).for_each(|number| histogram.record(number * 1_000_000).unwrap());
        let told = Told::of(&histogram);
        assert_eq!((told.values, told.p999, told.p9999), (2_000, None, None), "two of 2,000 lie beyond p99.9");
        assert!(told.p99.is_some_and(|us| us.abs_diff(1_980_000) < 2_000) && told.max.is_some());
        let columns = told.columns();
        assert_eq!(columns.len(), Told::HEAD.len());
        assert_eq!(columns.split_ascii_whitespace().filter(|column| *column == "-").count(), 2, "{columns}");
        assert_eq!(Told::of(&Histogram::new(3).unwrap()), Told::default());
    }
}
