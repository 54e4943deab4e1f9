//! The numbers of a run that the rules of an advice rest on.

use crate::run_result::RunResult;

/// Numbers that several rules use.
pub(super) struct Numbers {
    pub(super) generator_threads: u32,
    /// Of its threads, 0 to 1.
    pub(super) generator_share: f64,
    pub(super) server_cores: u32,
    /// All of the machine, as nobody said how many are the server's.
    cores_assumed: bool,
    /// Of its cores, 0 to 1; none when the server's CPU was not measured.
    pub(super) server_share: Option<f64>,
    /// Of all cores, server and generator, 0 to 1.
    pub(super) machine_share: f64,
    pub(super) accepted: f64,
    pub(super) batches: Option<f64>,
}

impl Numbers {
    pub(super) fn new(run: &RunResult) -> Self {
        let cores = run.machine.cores_allowed.max(1);
        let generator_threads = run.load.generator_threads.max(1);
        let server_cores = run.load.server_cores.unwrap_or(cores).max(1);
        let delta = |name: &str| Some(run.final_metrics.get(name)? - run.initial_metrics.get(name).copied().unwrap_or(0.0));
        Numbers {
            generator_threads,
            generator_share: run.generator_cpu_usage / 100.0 / f64::from(generator_threads),
            server_cores,
            cores_assumed: run.load.server_cores.is_none(),
            server_share: run.cpu_usage.map(|percent| percent / 100.0 / f64::from(server_cores)),
            machine_share: (run.cpu_usage.unwrap_or(0.0) + run.generator_cpu_usage) / 100.0 / f64::from(cores),
            accepted: delta("accepted").unwrap_or(run.emails_sent as f64),
            batches: delta("batches").filter(|&batches| batches > 0.0),
        }
    }

    /// The server's cores, in words.
    pub(super) fn cores_text(&self) -> String {
        format!("{} core(s){}", self.server_cores, if self.cores_assumed { " (assumed)" } else { "" })
    }

    /// What an assumption of its cores means, where its CPU was measured.
    pub(super) fn assumed_text(&self) -> Option<String> {
        (self.cores_assumed && self.server_share.is_some()).then(|| {
            format!(
                "How many cores the server may use is not known: all {} of this machine are assumed. If it has fewer, it was busier than that \
                 and carries less; say --server-cores.",
                self.server_cores
            )
        })
    }
}
