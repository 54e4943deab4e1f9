//! The lock beside a history, which one command at a time has while it adds.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{cli::Failure, report::format::printable};

/// The longest wait for the lock: to add takes far less, however many runs wait for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// After so long it is said what is waited for.
const QUIET: Duration = Duration::from_secs(1);

/// Pace of trying again: a file lock tells nobody that it is free.
const AGAIN: Duration = Duration::from_millis(20);

/// Takes the lock of this history, `FILE.lock`, which is created; it is free when what comes back is dropped. Waits for it as long as
/// `patience` says, after a second not without a word on standard error.
///
/// # Errors
/// [`Failure::Unavailable`]: somebody else had it for all that time. [`Failure::Io`]: the file cannot be created or locked.
pub(super) fn lock(history: &Path, patience: Duration) -> Result<File, Failure> {
    let mut name = history.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    let file = File::create(&path).map_err(|reason| Failure::io(path.display(), reason))?;
    let (began, mut is_told) = (Instant::now(), false);
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(reason) => return Err(Failure::io(path.display(), reason)),
        }
        let waited = began.elapsed();
        if waited >= patience {
            return Err(Failure::Unavailable(format!(
                "{}: another process has had this lock for {} s: end it, or try again when it is done",
                path.display(),
                patience.as_secs()
            )));
        }
        if waited >= QUIET && !is_told {
            is_told = true;
            let text = format!("waiting for {}, a lock that another process has", path.display());
            let _unread = writeln!(io::stderr(), "ringpost-load: {}", printable(&text, &[]));
        }
        thread::sleep(AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happened: a lock that was never given back was waited for without an end and without a word.
    #[test]
    fn a_lock_that_another_has_is_given_up_and_can_be_had_when_it_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let history = folder.path().join("history.jsonl");
        let held = lock(&history, Duration::ZERO).unwrap();
        let refused = lock(&history, Duration::ZERO).unwrap_err();
        assert!(matches!(&refused, Failure::Unavailable(text) if text.contains("history.jsonl.lock: another process")), "{refused}");
        drop(held);
        lock(&history, Duration::ZERO).unwrap();
    }
}
