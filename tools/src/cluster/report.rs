//! What a rig of the cluster saw: figures, and what must hold of them.

use std::time::Duration;

use serde_json::{Map, Value, json};

/// One rig's figures, gathered while it runs.
#[derive(Debug)]
pub(super) struct Report {
    name: &'static str,
    figures: Map<String, Value>,
    wrong: Vec<String>,
}

impl Report {
    pub(super) fn new(name: &'static str) -> Report {
        Report { name, figures: Map::new(), wrong: Vec::new() }
    }

    /// What happens, for whoever waits.
    pub(super) fn note(&self, text: &str) {
        eprintln!("{}: {text}", self.name);
    }

    /// A figure; its name ends in its unit.
    pub(super) fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }

    /// p50, p99 and the largest of some times, in milliseconds. Returns p99.
    pub(super) fn times(&mut self, name: &str, times: &[Duration]) -> Duration {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        // The smallest time that so many hundredths of all do not exceed.
        let at = |hundredths: usize| sorted.get((sorted.len() * hundredths).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default();
        let ms = |time: Duration| time.as_millis() as u64;
        self.figure(name, json!({ "count": sorted.len(), "p50_ms": ms(at(50)), "p99_ms": ms(at(99)), "max_ms": ms(at(100)) }));
        at(99)
    }

    /// A rig, or a part of it, that cannot run here.
    pub(super) fn left_out(&mut self, why: &str) {
        self.figure("left_out", why);
    }

    /// Something that must hold.
    pub(super) fn must(&mut self, holds: bool, what: impl Into<String>) {
        if !holds {
            self.wrong.push(what.into());
        }
    }

    /// A rig that could not go on.
    pub(super) fn failed(&mut self, error: &dyn std::error::Error) {
        self.wrong.push(error.to_string());
    }

    /// Prints all and returns whether it is as it must be.
    pub(super) fn print(mut self, as_json: bool) -> bool {
        let good = self.wrong.is_empty();
        if as_json {
            self.figures.insert("rig".into(), self.name.into());
            self.figures.insert("ok".into(), good.into());
            self.figures.insert("wrong".into(), self.wrong.into());
            println!("{}", Value::Object(self.figures));
            return good;
        }
        for (name, value) in &self.figures {
            println!("  {name:<44} {value}");
        }
        self.wrong.iter().for_each(|what| println!("  WRONG: {what}"));
        println!("{}: {}", self.name, if good { "OK" } else { "FAILED" });
        good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_times_that_were_seen() {
        let mut report = Report::new("x");
        let times: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(report.times("t", &times), Duration::from_millis(198));
        assert_eq!(report.figures["t"], json!({ "count": 200, "p50_ms": 100, "p99_ms": 198, "max_ms": 200 }));
        assert_eq!(report.times("none", &[]), Duration::ZERO);
        report.must(true, "holds");
        assert!(report.wrong.is_empty());
        report.must(false, "does not");
        assert!(!report.print(true));
    }
}
