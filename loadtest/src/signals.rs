//! SIGINT and SIGTERM end a run in order: once asks for the end, twice ends at once.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

/// Whether somebody asked for the end.
#[derive(Debug, Clone)]
pub struct StopSignal(Arc<AtomicBool>);

impl StopSignal {
    /// Listens from now on.
    pub fn listen() -> io::Result<StopSignal> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag unset, the second one set.
            flag::register_conditional_shutdown(signal, 128 + signal, asked.clone())?;
            flag::register(signal, asked.clone())?;
        }
        Ok(StopSignal(asked))
    }

    /// For those who don't listen.
    pub fn never() -> StopSignal {
        StopSignal(Arc::new(AtomicBool::new(false)))
    }

    /// Has somebody asked?
    pub fn is_asked(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// Asks for the end from inside.
    pub fn ask(&self) {
        self.0.store(true, Relaxed);
    }
}
