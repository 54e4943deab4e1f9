//! From which change on a metric counts.

use clap::Args;
use serde::Serialize;

/// The largest threshold of a metric that can become worse without an end.
const PERCENT_MORE_MAX: f64 = 1000.0;

/// From which change on a metric counts as regressed (or, the other way, improved), in percent, and whether a test may be missing.
#[derive(Args, Clone, Debug, Serialize)]
pub struct Thresholds {
    /// Fewer messages per second by so many percent
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0, value_parser = percent)]
    pub throughput: f64,
    /// Longer median by so many percent
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0, value_parser = percent_more)]
    pub p50: f64,
    /// Longer 95th percentile by so many percent
    #[arg(long, value_name = "PERCENT", default_value_t = 15.0, value_parser = percent_more)]
    pub p95: f64,
    /// Longer 99th percentile by so many percent
    #[arg(long, value_name = "PERCENT", default_value_t = 20.0, value_parser = percent_more)]
    pub p99: f64,
    /// More memory for each connection by so many percent
    #[arg(long, value_name = "PERCENT", default_value_t = 20.0, value_parser = percent_more)]
    pub memory: f64,
    /// More CPU for each message by so many percent
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0, value_parser = percent_more)]
    pub cpu: f64,
    /// Transactions that fail: more by so many percent of all
    #[arg(long, value_name = "POINTS", default_value_t = 1.0, value_parser = percent)]
    pub errors: f64,
    /// Noise of one run, percent, where there are no repeated runs [default: 30 % of the metric's threshold, or what the run shows]
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub noise: Option<f64>,
    /// A test that only A has is no regression
    #[arg(long)]
    pub allow_missing: bool,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            throughput: 10.0,
            p50: 10.0,
            p95: 15.0,
            p99: 20.0,
            memory: 20.0,
            cpu: 10.0,
            errors: 1.0,
            noise: None,
            allow_missing: false,
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value < 100.0 => Ok(value),
        _ => Err("a number above 0 and below 100 is wanted".to_owned()),
    }
}

/// The same of what has no upper end: ten times as long is a threshold, too.
fn percent_more(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= PERCENT_MORE_MAX => Ok(value),
        _ => Err(format!("a number above 0 and up to {PERCENT_MORE_MAX} is wanted")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happened: no threshold could be 100 % or more, though a p99 can become three times as long.
    #[test]
    fn only_what_can_become_worse_without_end_may_have_a_threshold_of_several_hundred_percent() {
        assert_eq!((percent_more("250"), percent_more("1000")), (Ok(250.0), Ok(1000.0)));
        for wrong in ["0", "-5", "1001", "nan", "inf", "x"] {
            assert!(percent_more(wrong).unwrap_err().contains("up to 1000"), "{wrong}");
        }
        assert!(percent("100").is_err(), "no throughput can fall by all of it and more");
    }
}
