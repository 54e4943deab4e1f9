//! Runs that never took place, for tests: latencies and rates from a seeded model of a noisy machine.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use crate::{
    machine::Machine,
    measurement::{Measurement, Recorder},
    phase::Phase,
    process::{Look, ProcessSample},
    random::Random,
    run_result::{Bounds, Fates, Load, RunFacts, RunResult},
};

/// The model.
#[derive(Clone, Debug)]
pub struct SampleRun {
    /// Seed of everything random.
    pub seed: u64,
    /// 1.0 is the ordinary speed; 1.15 takes 15 % longer.
    pub slowness: f64,
    /// Standard deviation between runs, relative.
    pub noise: f64,
    /// Seconds of the run.
    pub seconds: u64,
    /// Connections open all the time.
    pub connections: u64,
}

impl Default for SampleRun {
    fn default() -> Self {
        SampleRun { seed: 1, slowness: 1.0, noise: 0.0, seconds: 10, connections: 8 }
    }
}

impl SampleRun {
    /// The result of such a run: 8 sessions in a closed loop, a wait of about 0.4 ms for the 250.
    pub fn result(&self) -> RunResult {
        RunResult::new(self.measurement(), self.facts())
    }

    /// What was measured of it.
    pub fn measurement(&self) -> Measurement {
        let mut random = Random::part(self.seed, 0);
        let pace = self.slowness * (random.normal() * self.noise).exp();
        let tail = (random.normal() * self.noise * 2.0).exp();
        let mut run = Measurement::new();
        for second in 0..self.seconds {
            let mut recorder = Recorder::new();
            let messages = (400.0 / pace * (random.normal() * 0.02).exp()) as u64;
            for _ in 0..messages {
                let slow = if random.unit() < 0.02 { 6.0 * tail } else { 1.0 };
                let dot = 400_000.0 * pace * (random.normal() * 0.2).exp() * slow;
                recorder.sent();
                recorder.acknowledged(4096);
                recorder.record_ns(Phase::Mail, (30_000.0 * pace) as u64);
                recorder.record_ns(Phase::DotTo250, dot as u64);
                recorder.record_ns(Phase::Transaction, (dot + 100_000.0 * pace) as u64);
            }
            run.add(second, &recorder.take(8, self.connections));
            let cpu = Duration::from_secs_f64((60.0 + random.normal()) / 100.0);
            let engine = Look { cpu, wall: Duration::from_secs(1), memory_bytes: 50_000_000 + second * 10_000 };
            run.sample(second, Some(engine), Some(ProcessSample { cpu_percent: 40.0, memory_bytes: 9_000_000 }));
        }
        run
    }

    /// What is known of it beside what was measured.
    pub fn facts(&self) -> RunFacts {
        RunFacts {
            test_name: "baseline".into(),
            started: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + self.seed % 1_000_000),
            duration_s: self.seconds as f64,
            failures: vec![],
            interrupted: false,
            fates: Fates::default(),
            load: Load { sessions: 8, generator_threads: 1, server_cores: Some(1), pipelined: true, ..Load::default() },
            bounds: Bounds::default(),
            settings: serde_json::json!({"size": "4 KiB"}),
            initial_metrics: BTreeMap::new(),
            final_metrics: BTreeMap::new(),
            server_cpu_s: Some(self.seconds as f64 * 0.6),
            server_cpu_by_phase: None,
            generator_cpu_s: self.seconds as f64 * 0.4,
            server_memory_before: Some(40_000_000),
            machine: Machine { cores: 2, cores_allowed: 2, memory_mib: 1000, kernel: "Linux 6.1".into(), ..Machine::default() },
        }
    }
}
