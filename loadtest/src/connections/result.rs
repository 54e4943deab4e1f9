//! A run of connections as a result: what counts as a message is a connection that was greeted, and its response is the opening.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::{ConnectionsOptions, ConnectionsReport, Mode, arguments::us};
use crate::{
    machine::Machine,
    measurement::Measurement,
    run_result::{Bounds, Fates, Load, RunFacts, RunResult},
};

/// What a result needs beside what the connections saw.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) started: SystemTime,
    pub(super) lasted_s: f64,
    pub(super) failures: Vec<String>,
    pub(super) interrupted: bool,
    pub(super) server_cpu_s: Option<f64>,
    pub(super) server_cores: Option<u32>,
    pub(super) server_memory_before: Option<u64>,
    pub(super) machine: Machine,
}

impl Mode {
    /// Its name, what it is about, and what it was told.
    fn described(&self) -> (&'static str, &'static str, Value) {
        match *self {
            Mode::Idle { noop_every } => {
                ("idle", "Connections that are opened and held.", json!({ "noop_every_s": noop_every.map(|every| every.as_secs_f64()) }))
            }
            Mode::Slowloris { octet_every, in_content } => (
                "slowloris",
                "Connections that are held by one octet after the other.",
                json!({ "octet_every_s": octet_every.as_secs_f64(), "in_content": in_content }),
            ),
            Mode::Churn => ("churn", "Connections that come and go.", json!({})),
        }
    }
}

/// The result of a run.
pub(super) fn result(options: &ConnectionsOptions, report: &ConnectionsReport, measurement: Measurement, facts: Facts) -> RunResult {
    let (mode, about, mut load) = options.mode.described();
    load["connections"] = options.connections.into();
    load["timeout_s"] = options.timeout.as_secs_f64().into();
    let seconds = options.duration.as_secs_f64();
    let settings = json!({
        // What was asked for is where a scenario has it, and what came of it beside that.
        "scenario": { "name": mode, "about": about, "seconds": seconds, "load": load },
        "seconds": seconds,
        "server": options.to.to_string(),
        "connections": {
            "greeted": report.greeted, "greeted_per_second": report.greeted_per_second(), "failed": report.failed,
            "open_max": report.open_max, "open_at_end": report.open_at_end, "closed_by_server": report.closed_by_server,
            "closed_after_us": report.closed_after.map(|(least, most)| [us(least), us(most)]), "told_421": report.told_421,
            "last_trouble": report.last_trouble,
        },
    });
    let facts = RunFacts {
        test_name: facts.name,
        started: facts.started,
        duration_s: facts.lasted_s,
        failures: facts.failures,
        interrupted: facts.interrupted,
        fates: Fates { unsent: report.failed, ..Fates::default() },
        load: Load {
            sessions: options.connections as u64,
            generator_threads: options.cores.len().min(options.connections) as u32,
            server_cores: facts.server_cores,
            ..Load::default()
        },
        bounds: Bounds::default(),
        settings,
        initial_metrics: Default::default(),
        final_metrics: Default::default(),
        server_cpu_s: facts.server_cpu_s,
        server_cpu_by_phase: None,
        generator_cpu_s: report.cpu.as_secs_f64(),
        server_memory_before: facts.server_memory_before,
        machine: facts.machine,
    };
    RunResult::new(measurement, facts)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        compare::{
            comparison::{Verdict, compare},
            thresholds::Thresholds,
        },
        error_kind::ErrorKind,
        measurement::Recorder,
        phase::Phase,
    };

    /// Of 1000 connections that were greeted after a millisecond, of which the server closed some.
    fn slowloris(closed: u64, failed: u64) -> RunResult {
        let options = ConnectionsOptions {
            to: ([127, 0, 0, 1], 25).into(),
            cores: vec![0],
            connections: 1000,
            duration: Duration::from_secs(10),
            mode: Mode::Slowloris { octet_every: Duration::from_secs(1), in_content: false },
            addresses: Vec::new(),
            timeout: Duration::from_secs(10),
        };
        let report = ConnectionsReport { greeted: 1000 - failed, failed, closed_by_server: closed, ..ConnectionsReport::default() };
        let mut recorder = Recorder::new();
        (0..1000).for_each(|_| recorder.sent());
        for _ in 0..report.greeted {
            recorder.acknowledged(0);
            recorder.record_ns(Phase::Transaction, 1_000_000);
        }
        (0..closed + failed).for_each(|_| recorder.error(ErrorKind::Reply(421)));
        let mut measurement = Measurement::new();
        measurement.add(0, &recorder.take(0, report.greeted));
        let facts = Facts {
            name: "slowloris".into(),
            started: SystemTime::UNIX_EPOCH,
            lasted_s: 10.0,
            failures: Vec::new(),
            interrupted: false,
            server_cpu_s: None,
            server_cores: None,
            server_memory_before: None,
            machine: Machine::default(),
        };
        result(&options, &report, measurement, facts)
    }

    /// What happened: where no connection had failed the result was taken for one that was written before there were fates, and each that the
    /// server closed, as is its right, for one that had failed.
    #[test]
    fn connections_that_the_server_closed_have_not_failed() {
        let (none, some, failed) = (slowloris(0, 0), slowloris(100, 0), slowloris(100, 50));
        assert_eq!((some.errors.total(), some.transactions_failed()), (100, 0));
        let verdict =
            |a: &RunResult, b: &RunResult| compare(std::slice::from_ref(a), std::slice::from_ref(b), &Thresholds::default()).verdict;
        assert_eq!((verdict(&none, &some), verdict(&some, &none)), (Verdict::Same, Verdict::Same));
        assert_eq!((failed.transactions_failed(), verdict(&some, &failed)), (50, Verdict::Regressed));
    }
}
