//! SIGINT and SIGTERM end a run in order: once asks for the end, twice ends at once, the engine under test and its folder with it.
//! SIGHUP, a terminal that is gone, asks for the end too, unless it is ignored (`nohup`).

use std::{
    fs,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
    flag,
    iterator::Signals,
};

use crate::leash;

/// A file that reaches the limit of files (`ulimit -f`) is from now on an error of the write, which names it, and not the end of this process.
/// Programs that it starts are not changed by that.
///
/// # Errors
/// The system gives no handler.
pub fn outlive_file_size_limit() -> io::Result<()> {
    // Nobody looks at the flag: the write itself fails.
    flag::register(SIGXFSZ, Arc::default()).map(drop)
}

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
        if !is_ignored(SIGHUP) {
            signals.add_signal(SIGHUP)?;
        }
        let listen = move || {
            for signal in signals.forever() {
                // The kernel and the shell each tell of a terminal that is gone: twice is no impatience there.
                if flag.swap(true, Relaxed) && signal != SIGHUP {
                    leash::kill_all();
                    for (path, error) in leash::remove_all() {
                        // Standard error may be gone, and this thread still has to end the process.
                        let _unread = writeln!(io::stderr(), "{} stays: {error}", path.display());
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

/// Has whoever started this process asked that it take no notice of a signal?
fn is_ignored(signal: i32) -> bool {
    ignored_in(&fs::read_to_string("/proc/self/status").unwrap_or_default(), signal)
}

/// The same of a process's `status`.
fn ignored_in(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_are_ignored_stand_in_the_status_as_bits() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert!(ignored_in(status, SIGHUP) && !ignored_in(status, SIGINT) && !ignored_in("", SIGHUP));
    }
}
