//! CPU time of a server under test, and the part of a run that it is known of: a server that ends during the run is measured until then.

use serde::{Deserialize, Serialize};

use crate::process::Look;

/// CPU time of a server.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct ServerCpu {
    /// Seconds.
    pub cpu_s: f64,
    /// What it was used in, and for.
    pub within: MeasuredPart,
}

/// The part of a run in which the server's CPU was measured.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct MeasuredPart {
    /// How long it was.
    pub seconds: f64,
    /// Messages acknowledged in it.
    pub messages: u64,
}

/// CPU time of a server during the load and behind it, of a run whose queue was waited for.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct CpuByPhase {
    /// Seconds of CPU from the beginning of the load to its last reply.
    pub load_s: f64,
    /// Seconds of CPU from then on, until what was owed to the next hop had come or was not waited for any more.
    pub drain_s: f64,
    /// How long that took, seconds.
    pub drain_lasted_s: f64,
    /// Messages acknowledged by then, those of the background too: what all of it was used for.
    pub messages: u64,
    /// All of these were settled. If not, some were accepted only, and what a whole one costs is not known.
    pub is_drained: bool,
}

impl CpuByPhase {
    /// Microseconds for each message, from its MAIL to its delivery; none where some had still to be delivered, or there was none.
    pub fn us_per_message(&self) -> Option<f64> {
        let cpu_s = self.load_s + self.drain_s;
        (self.is_drained && cpu_s > 0.0 && self.messages > 0).then(|| cpu_s * 1e6 / self.messages as f64)
    }

    /// How many times what was used during the load was used in all; 1 where nothing was.
    pub fn whole_by_load(&self) -> f64 {
        if self.load_s > 0.0 { (self.load_s + self.drain_s) / self.load_s } else { 1.0 }
    }
}

impl ServerCpu {
    /// Adds what was used since the look before, for so many acknowledged messages.
    pub fn add(&mut self, look: &Look, messages: u64) {
        self.cpu_s += look.cpu.as_secs_f64();
        self.within.seconds += look.wall.as_secs_f64();
        self.within.messages += messages;
    }

    /// Percent of one core; none where nothing was used.
    pub fn percent(&self) -> Option<f64> {
        (self.cpu_s > 0.0 && self.within.seconds > 0.0).then(|| self.cpu_s / self.within.seconds * 100.0)
    }

    /// Microseconds for each acknowledged message; none where there was none.
    pub fn us_per_message(&self) -> Option<f64> {
        (self.cpu_s > 0.0 && self.within.messages > 0).then(|| self.cpu_s * 1e6 / self.within.messages as f64)
    }
}

impl MeasuredPart {
    /// Messages acknowledged per second.
    pub fn per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.messages as f64 / self.seconds } else { 0.0 }
    }
}
