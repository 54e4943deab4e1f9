//! SIGINT and SIGTERM end a run in order: once asks for the end, twice ends at once, the engine under test and its folder with it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::leash;

/// Whether somebody asked for the end.
#[derive(Debug, Clone)]
pub struct StopSignal(Arc<AtomicBool>);

impl StopSignal {
    /// Listens from now on, in a thread of its own.
    ///
    /// # Errors
    /// The system gives no handler or no thread.
    pub fn listen() -> io::Result<StopSignal> {
        let asked = Arc::new(AtomicBool::new(false));
        let (mut signals, flag) = (Signals::new([SIGINT, SIGTERM])?, asked.clone());
        let listen = move || {
            for signal in signals.forever() {
                if flag.swap(true, Relaxed) {
                    leash::kill_all();
                    for (path, error) in leash::remove_all() {
                        eprintln!("{} stays: {error}", path.display());
                    }
                    std::process::exit(128 + signal);
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen)?;
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
