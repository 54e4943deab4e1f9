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
