//! Does a result say what can be reckoned from it? Whoever reads a report believes its first fields.

use super::{FORMAT, PhaseSummary, RunResult};
use crate::{percentile::PERCENTILES, phase::Phase};

/// No run is longer: ten years.
const DURATION_MAX_S: f64 = 3.2e8;

/// Is a number of a file the one reckoned again? Texts keep most of their digits, and histograms are 0.1 % coarse.
fn is_about(said: f64, reckoned: f64) -> bool {
    (said - reckoned).abs() <= reckoned.abs() * 0.01 + 1e-6
}

impl RunResult {
    /// Refuses a result of another version's shape, one whose histograms are damaged, as whatever is read from them would be empty, and one
    /// whose fields contradict them.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("format {} is not the one this version reads ({FORMAT})", self.format));
        }
        if !(0.0..=DURATION_MAX_S).contains(&self.duration) || (self.duration == 0.0 && self.emails_sent > 0) {
            return Err(format!("duration: {} s is no time in which {} messages were acknowledged", self.duration, self.emails_sent));
        }
        let per_second = if self.duration > 0.0 { self.emails_sent as f64 / self.duration } else { 0.0 };
        if !is_about(self.emails_per_second, per_second) {
            return Err(format!(
                "emails_per_second: {} contradicts emails_sent and duration, of which it is {per_second}",
                self.emails_per_second
            ));
        }
        if self.success && !self.failures.is_empty() {
            return Err(format!("success: true contradicts failures, of which there are {}", self.failures.len()));
        }
        for (field, said) in [
            ("cpu_usage", self.cpu_usage),
            ("memory_usage_mb", self.memory_usage_mb),
            ("memory_bytes_per_connection", self.memory_bytes_per_connection),
            ("generator_cpu_usage", Some(self.generator_cpu_usage)),
            ("cpu_us_per_message", self.cpu_us_per_message),
            ("paused_s", Some(self.fates.paused_s)),
        ] {
            if let Some(said) = said.filter(|said| !said.is_finite() || *said < 0.0) {
                return Err(format!("{field}: {said} cannot be"));
            }
        }
        if let Some(part) = self.server_cpu_measured
            && !(part.seconds >= 0.0 && part.seconds <= DURATION_MAX_S && part.messages <= self.emails_sent)
        {
            return Err(format!("server_cpu_measured: {} messages in {} s are no part of the run", part.messages, part.seconds));
        }
        if let Some(cpu) = self.server_cpu_by_phase
            && let Some(said) = [cpu.load_s, cpu.drain_s, cpu.drain_lasted_s].into_iter().find(|said| !said.is_finite() || *said < 0.0)
        {
            return Err(format!("server_cpu_by_phase: {said} cannot be"));
        }
        if self.transactions_begun < self.emails_sent {
            return Err(format!(
                "transactions_begun: {} contradicts emails_sent, of which there are {}",
                self.transactions_begun, self.emails_sent
            ));
        }
        for (field, some) in [
            ("transactions_pipelined", self.load.transactions_pipelined),
            ("transactions_chunked", self.load.transactions_chunked),
            ("sizes_raised", self.load.sizes_raised),
        ] {
            if let Some(some) = some.filter(|&some| some > self.transactions_begun) {
                return Err(format!("load.{field}: {some} contradicts transactions_begun, of which there are {}", self.transactions_begun));
            }
        }
        for (phase, summary) in &self.phases {
            summary.check().map_err(|reason| format!("phases.{}.{reason}", phase.name()))?;
        }
        if self.transactions() != self.emails_sent {
            let timed = self.transactions();
            return Err(format!("emails_sent: {} contradicts phases.transaction, whose histogram has {timed} values", self.emails_sent));
        }
        self.check_response_times()?;
        for (at, interval) in self.intervals.iter().enumerate() {
            if interval.length_s == 0 {
                return Err(format!("intervals[{at}].length_s: 0 is no length"));
            }
            for (phase, histogram) in &interval.histograms {
                histogram.decode().map_err(|reason| format!("intervals[{at}].histograms.{}: {reason}", phase.name()))?;
            }
        }
        Ok(())
    }

    /// Are the response times those of whole transactions?
    fn check_response_times(&self) -> Result<(), String> {
        let Some(whole) = self.phases.get(&Phase::Transaction) else { return Ok(()) };
        let at = |name: &str| whole.percentile_ns(name).map(|ns| ns as f64 / 1e9);
        for (field, said, has) in [
            ("avg_response_time", Some(self.avg_response_time), Some(whole.mean_ns / 1e9)),
            ("min_response_time", Some(self.min_response_time), Some(whole.min_ns as f64 / 1e9)),
            ("median_response_time", Some(self.median_response_time), at("p50")),
            ("p95_response_time", self.p95_response_time, at("p95")),
            ("p99_response_time", self.p99_response_time, at("p99")),
            ("max_response_time", Some(self.max_response_time), Some(whole.max_ns as f64 / 1e9)),
        ] {
            if let (Some(said), Some(has)) = (said, has)
                && !is_about(said, has)
            {
                return Err(format!("{field}: {said} contradicts phases.transaction, which has {has}"));
            }
        }
        Ok(())
    }
}

impl PhaseSummary {
    /// Is what it says that of its histogram?
    ///
    /// # Errors
    /// A sentence that begins with the field.
    fn check(&self) -> Result<(), String> {
        let histogram = self.histogram.decode().map_err(|reason| format!("histogram: {reason}"))?;
        if histogram.len() != self.count {
            return Err(format!("histogram: it has {} values, and the count says {}", histogram.len(), self.count));
        }
        let said = |name: &str, said: f64, has: f64| match is_about(said, has) {
            true => Ok(()),
            false => Err(format!("{name}: {said} contradicts its histogram, which has {has}")),
        };
        said("min_ns", self.min_ns as f64, histogram.min() as f64)?;
        said("max_ns", self.max_ns as f64, histogram.max() as f64)?;
        said("mean_ns", self.mean_ns, histogram.mean())?;
        // Those of a few values, which older results have, are not told and not looked at.
        for &(name, at) in &PERCENTILES {
            if let Some(ns) = self.percentile_ns(name) {
                said(&format!("percentiles_ns.{name}"), ns as f64, histogram.value_at_percentile(at) as f64)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_run::SampleRun;

    /// What happened: a report and a comparison believed whatever stood in the fields that everybody reads first.
    #[test]
    fn a_field_that_contradicts_the_histogram_is_refused_by_name() {
        let good = serde_json::to_value(SampleRun { seconds: 3, ..SampleRun::default() }.result()).unwrap();
        RunResult::parse(&good.to_string()).unwrap();
        for (at, value, field) in [
            ("/duration", serde_json::json!(0.0), "duration"),
            ("/duration", serde_json::json!(-3.0), "duration"),
            ("/duration", serde_json::json!(1e300), "duration"),
            ("/duration", serde_json::json!(6.0), "emails_per_second"),
            ("/emails_sent", serde_json::json!(7), "emails_per_second"),
            ("/emails_per_second", serde_json::json!(1e6), "emails_per_second"),
            ("/phases/transaction/percentiles_ns/p99", serde_json::json!(1), "phases.transaction.percentiles_ns.p99"),
            ("/phases/transaction/max_ns", serde_json::json!(1), "phases.transaction.max_ns"),
            ("/phases/transaction/mean_ns", serde_json::json!(1.0), "phases.transaction.mean_ns"),
            ("/p99_response_time", serde_json::json!(0.5), "p99_response_time"),
            ("/median_response_time", serde_json::json!(0.5), "median_response_time"),
            ("/min_response_time", serde_json::json!(1e3), "min_response_time"),
            ("/phases/transaction/min_ns", serde_json::json!(9_000_000_000_u64), "phases.transaction.min_ns"),
            ("/success", serde_json::json!(true), "success"),
            ("/cpu_usage", serde_json::json!(-1.0), "cpu_usage"),
            ("/memory_usage_mb", serde_json::json!(-1.0), "memory_usage_mb"),
            ("/cpu_us_per_message", serde_json::json!(-1.0), "cpu_us_per_message"),
            ("/generator_cpu_usage", serde_json::json!(-1.0), "generator_cpu_usage"),
            ("/intervals/1/length_s", serde_json::json!(0), "intervals[1].length_s"),
        ] {
            let mut bad = good.clone();
            if at == "/success" {
                bad["failures"] = serde_json::json!(["lost 3"]);
            }
            *bad.pointer_mut(at).unwrap() = value;
            let error = RunResult::parse(&bad.to_string()).unwrap_err();
            assert!(error.starts_with(field), "{at}: {error}");
        }
        let mut both = good;
        both["emails_sent"] = 3.into();
        both["emails_per_second"] = 1.0.into();
        assert!(RunResult::parse(&both.to_string()).unwrap_err().starts_with("emails_sent: 3 contradicts phases.transaction"));
    }

    /// What happened: a result of a thousand messages of which two thousand were pipelined was believed.
    #[test]
    fn a_part_of_the_messages_that_is_more_than_all_is_refused_by_name() {
        let good = serde_json::to_value(SampleRun { seconds: 3, ..SampleRun::default() }.result()).unwrap();
        let begun = good["transactions_begun"].as_u64().unwrap();
        for field in ["transactions_pipelined", "transactions_chunked", "sizes_raised"] {
            let with = |count: u64| {
                let mut result = good.clone();
                result["load"][field] = count.into();
                RunResult::parse(&result.to_string())
            };
            assert!(with(begun).is_ok(), "{field}");
            let error = with(begun + 1).unwrap_err();
            assert!(error.starts_with(&format!("load.{field}: {} ", begun + 1)) && error.contains(&begun.to_string()), "{error}");
        }
        let mut bad = good;
        bad["transactions_begun"] = 3.into();
        assert!(RunResult::parse(&bad.to_string()).unwrap_err().starts_with("transactions_begun: 3 "), "fewer than were acknowledged");
    }
}
