//! The lock beside a history, which one command at a time has while it adds.

use std::{
    fs::{File, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
};

use crate::{cli::Failure, permissions, report::format::printable};

/// The longest wait for the lock: to add takes far less, however many runs wait for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// After so long it is said what is waited for.
const QUIET: Duration = Duration::from_secs(1);

/// Pace of trying again: a file lock tells nobody that it is free.
const AGAIN: Duration = Duration::from_millis(20);

/// Its owner reads and writes a lock.
const OWNERS: u32 = 0o600;

/// Takes the lock of this history, `FILE.lock`, which is created and is theirs whose history it is; it is free when what comes back is dropped. Waits for it as long as
/// `patience` says, after a second not without a word on standard error.
///
/// # Errors
/// [`Failure::Unavailable`]: somebody else had it for all that time. [`Failure::Io`]: the file cannot be created or locked.
pub(super) fn lock(history: &Path, patience: Duration) -> Result<File, Failure> {
    let mut name = history.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    let about = || format!("{}: its lock {}", history.display(), path.display());
    let file = open(&path, history).map_err(|reason| Failure::io(about(), reason))?;
    let (began, mut is_told) = (Instant::now(), false);
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(reason) => return Err(Failure::io(about(), reason)),
        }
        let waited = began.elapsed();
        if waited >= patience {
            return Err(Failure::Unavailable(format!(
                "{}: another process has had this lock for {} s: end it, or try again when it is done",
                about(),
                patience.as_secs()
            )));
        }
        if waited >= QUIET && !is_told {
            is_told = true;
            let text = format!("{}: waiting for {}, a lock that another process has", history.display(), path.display());
            let _unread = writeln!(io::stderr(), "ringpost-load: {}", printable(&text, &[]));
        }
        thread::sleep(AGAIN);
    }
}

/// Opens the file of a lock, or creates it with owner and mode of the history that it is for: one that root left would shut the owner out.
fn open(path: &Path, history: &Path) -> io::Result<File> {
    // One that is there keeps what it holds and whose it is. It is no link to something else, and no pipe is waited for.
    let as_it_is = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let mut options = File::options();
    options.write(true).custom_flags(as_it_is);
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            permissions::take_over(history, &file)?;
            let mode = file.metadata()?.mode() & 0o777;
            // A history may be read-only: it is replaced. Its lock is opened to be written, as locks over NFS want it.
            if mode & OWNERS != OWNERS {
                file.set_permissions(Permissions::from_mode(mode | OWNERS))?;
            }
            Ok(file)
        }
        Err(reason) if reason.kind() == io::ErrorKind::AlreadyExists => match options.open(path) {
            // One of somebody else, as root left it before: to lock it on a disk of this machine it need not be written.
            Err(reason) if reason.kind() == io::ErrorKind::PermissionDenied => File::options().read(true).custom_flags(as_it_is).open(path),
            opened => opened,
        },
        Err(reason) => Err(reason),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{chown, symlink},
    };

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

    fn lock_of(history: &Path) -> fs::Metadata {
        lock(history, Duration::ZERO).unwrap();
        let metadata = fs::metadata(history.with_added_extension("lock")).unwrap();
        fs::remove_file(history.with_added_extension("lock")).unwrap();
        metadata
    }

    /// What happened: root added to a user's history, and from then on the user could not: the lock was root's.
    #[test]
    fn a_lock_has_the_owner_and_the_mode_of_its_history() {
        let folder = tempfile::tempdir().unwrap();
        let history = folder.path().join("history.jsonl");
        fs::write(&history, "").unwrap();
        for (of_history, of_lock) in [(0o600, 0o600), (0o664, 0o664), (0o444, 0o644), (0o400, 0o600)] {
            fs::set_permissions(&history, Permissions::from_mode(of_history)).unwrap();
            assert_eq!(lock_of(&history).mode() & 0o777, of_lock, "{of_history:o}");
        }
        match chown(&history, Some(12_345), Some(12_346)) {
            Ok(()) => {
                let known = lock_of(&history);
                assert_eq!((known.uid(), known.gid(), known.mode() & 0o777), (12_345, 12_346, 0o600));
            }
            // Only root may give files away, and what it creates is what this is about.
            Err(reason) => println!("whose the lock is was not tested: giving the history away: {reason}"),
        }
    }

    /// What happened: a link of that name led root's lock to whatever it named, which was empty then.
    #[test]
    fn a_lock_is_no_link_and_what_is_there_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (history, path, other) = (folder.path().join("h"), folder.path().join("h.lock"), folder.path().join("other"));
        fs::write(&other, "mine").unwrap();
        symlink(&other, &path).unwrap();
        assert!(matches!(lock(&history, Duration::ZERO), Err(Failure::Io(text)) if text.contains("h.lock")));
        assert_eq!(fs::read_to_string(&other).unwrap(), "mine");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "kept").unwrap();
        lock(&history, Duration::ZERO).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    }
}
