//! The spool's folder: one process at a time, an identity, a boot number, and a disk that keeps what it is given.
//!
//! ```text
//! spool/lock          flock'ed while a process has the spool; holds its pid and boot number
//! spool/identity      "ringpost-spool 1 <node: 16 hex digits>\n", made once
//! spool/boot          the number of the newest start, synced before an id of it is given out (`boot_number.rs`)
//! spool/self-test     4 KiB that each start overwrites and reads back (S17)
//! spool/shard-NNN/    one log for each shard (docs/spool-format.md), and what it could not read (`doubted_files.rs`)
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, OFlags};
use tracing::warn;

use crate::{
    boot_number::{newest_boot, next_boot},
    folder::sync_folder,
};

/// The folder format this build writes and the newest it reads.
const FORMAT: u32 = 1;
const BLOCK_BYTES: usize = 4096;
/// Room for a pid and a boot number.
const LOCK_LINE_BYTES: usize = 60;

/// Why the spool cannot be used. Each message names the path and the mend.
#[derive(thiserror::Error, Debug)]
pub enum SpoolHomeError {
    /// A system call failed.
    #[error("{path}: cannot {what}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{path}: another process has this spool ({holder}); stop it first, or give this one a `spool.path` of its own")]
    Taken {
        /// The lock file.
        path: PathBuf,
        /// What the lock file says of its holder.
        holder: String,
    },
    /// Written by a newer version.
    #[error(
        "{path}: spool format {found} is newer than the {FORMAT} this version reads; start the version that wrote it, let it empty the queue, then come back"
    )]
    TooNew {
        /// The identity file.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// The identity file is not one.
    #[error(
        "{path}: is not a spool identity ({found:?}); if this folder is a spool, restore the file from a backup, else set `spool.path` to an empty folder"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The first bytes of it.
        found: String,
    },
    /// The file with the number of the newest start cannot be read.
    #[error(
        "{path}: the number of the newest start cannot be read in it ({found}), and ids of mail could be given out twice; restore the file from a backup, or see that this machine's clock is right and remove the file: the next start then counts on from the time of day"
    )]
    BootUnreadable {
        /// The file.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// The clock shows a time that no machine has reached, and starts are counted from the clock.
    #[error(
        "{path}: this machine's clock shows {seconds} seconds since 1970, and this start would use up the numbers of all later ones; set the clock and start again: this start took none"
    )]
    ClockFarOff {
        /// The file with the number of the newest start.
        path: PathBuf,
        /// What the clock shows.
        seconds: u64,
    },
    /// The newest start has the last number there is, or one beyond.
    #[error(
        "{path}: no number is left for another start, and ids of mail would be given out twice; a start with a clock far ahead took them. Set `spool.path` to an empty folder; `ringpost spool ls` and `ringpost spool cat` show the mail that is left in this one"
    )]
    BootsUsedUp {
        /// The file with the number of the newest start.
        path: PathBuf,
    },
    /// The file system forgets.
    #[error(
        "{path}: {file_system} does not keep mail through a power cut; move `spool.path` to ext4 or xfs, or set `spool.allow_unsafe_spool = true` to accept the loss"
    )]
    Unsafe {
        /// The folder.
        path: PathBuf,
        /// Its file system.
        file_system: &'static str,
    },
}

/// How batches reach the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteMode {
    /// O_DIRECT, past the page cache.
    Direct,
    /// Through the page cache, because the file system refuses O_DIRECT (S10).
    Buffered,
}

/// The open spool folder; dropping it gives up the lock.
pub struct SpoolHome {
    path: PathBuf,
    node: u64,
    boot: u32,
    previous_boot: Option<u64>,
    write_mode: WriteMode,
    _lock: File,
}

impl SpoolHome {
    /// Takes the lock, reads or makes the identity, counts the boot and proves that the disk can be written (S16 to S18).
    ///
    /// `node_if_new` are 64 random bits for a spool that has no identity yet.
    pub fn open(path: &Path, node_if_new: u64, allow_unsafe: bool) -> Result<SpoolHome, SpoolHomeError> {
        fs::create_dir_all(path).map_err(io_error(path, "create the spool folder"))?;
        let path = path.canonicalize().map_err(io_error(path, "resolve the spool folder"))?;
        let lock = take_lock(&path)?;
        refuse_forgetful(&path, allow_unsafe)?;
        let node = identity(&path, node_if_new)?;
        let previous_boot = newest_boot(&path);
        let boot = next_boot(&path)?;
        let write_mode = self_test(&path)?;
        // For whoever finds the spool taken. It overwrites the line before, padded to a length that never grows; without room for it the
        // lock itself still holds.
        let holder = format!("{:<LOCK_LINE_BYTES$}\n", format!("pid {} boot {boot}", std::process::id()));
        if let Err(reason) = lock.write_all_at(holder.as_bytes(), 0) {
            warn!(path = %path.join("lock").display(), %reason, "the lock file does not say who has the spool");
        }
        if write_mode == WriteMode::Buffered {
            warn!(path = %path.display(), "the file system refuses O_DIRECT: batches are written through the page cache, slower and as durable");
        }
        Ok(SpoolHome { path, node, boot, previous_boot, write_mode, _lock: lock })
    }

    /// Numbers of the logs here that no shard below `shards` has: they are adopted until they are empty (S18).
    pub fn logs_beyond(&self, shards: u16) -> Result<Vec<u16>, SpoolHomeError> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(io_error(&self.path, "list"))? {
            let entry = entry.map_err(io_error(&self.path, "list"))?;
            let number = entry.file_name().to_str().and_then(|name| name.strip_prefix("shard-")?.parse::<u16>().ok());
            numbers.extend(number.filter(|number| *number >= shards));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The folder, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of a log, which may not be there yet.
    pub fn log_directory(&self, number: u16) -> PathBuf {
        self.path.join(format!("shard-{number:03}"))
    }

    /// 64 random bits made with the spool.
    pub fn node(&self) -> u64 {
        self.node
    }

    /// This start's number: larger than every earlier one of this spool.
    pub fn boot(&self) -> u32 {
        self.boot
    }

    /// The number of the start before this one; `None` for the first, or when that is not sure.
    pub fn previous_boot(&self) -> Option<u64> {
        self.previous_boot
    }

    /// How batches are written here.
    pub fn write_mode(&self) -> WriteMode {
        self.write_mode
    }
}

pub(crate) fn io_error(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> SpoolHomeError {
    let path = path.to_owned();
    move |source| SpoolHomeError::Io { path, what, source }
}

fn take_lock(spool: &Path) -> Result<File, SpoolHomeError> {
    let path = spool.join("lock");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_error(&path, "open the lock file"))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let _ = (&mut lock).take(128).read_to_string(&mut holder);
            let holder = holder.trim();
            Err(SpoolHomeError::Taken {
                path,
                holder: if holder.is_empty() { "it has just started".to_owned() } else { holder.to_owned() },
            })
        }
        Err(error) => Err(io_error(&path, "lock")(error.into())),
    }
}

fn refuse_forgetful(spool: &Path, allow_unsafe: bool) -> Result<(), SpoolHomeError> {
    // Magic numbers of statfs(2).
    const FORGETFUL: [(i64, &str); 4] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs"), (0x6969, "NFS"), (0xff53_4d42, "CIFS")];
    const DOUBTFUL: [(i64, &str); 2] = [(0x794c_7630, "overlayfs"), (0x9123_683e, "btrfs")];
    let kind = rustix::fs::statfs(spool).map_err(|error| io_error(spool, "ask for the file system")(error.into()))?.f_type;
    // f_type is a signed word on some machines: the magic number is its low half.
    let kind = i64::from(u32::try_from(kind & 0xffff_ffff).unwrap_or_default());
    if let Some((_, name)) = FORGETFUL.iter().find(|(magic, _)| *magic == kind) {
        if !allow_unsafe {
            return Err(SpoolHomeError::Unsafe { path: spool.to_owned(), file_system: name });
        }
        warn!(path = %spool.display(), file_system = name, "the spool does not survive a power cut: allow_unsafe_spool is set");
    }
    if let Some((_, name)) = DOUBTFUL.iter().find(|(magic, _)| *magic == kind) {
        warn!(path = %spool.display(), file_system = name, "the spool is proven on ext4 and xfs; this file system is slower and less tried");
    }
    Ok(())
}

fn identity(spool: &Path, node_if_new: u64) -> Result<u64, SpoolHomeError> {
    match read_identity(spool) {
        Err(SpoolHomeError::Io { path, source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            write_synced(spool, "identity", &format!("ringpost-spool {FORMAT} {node_if_new:016x}\n")).map_err(io_error(&path, "write"))?;
            Ok(node_if_new)
        }
        result => result,
    }
}

/// The node number in a spool's identity file; an `Io` error when there is none.
pub fn read_identity(spool: &Path) -> Result<u64, SpoolHomeError> {
    let path = spool.join("identity");
    let text = read_bounded(&path).map_err(io_error(&path, "read"))?;
    let unreadable = || SpoolHomeError::Unreadable { path: path.clone(), found: text.chars().take(64).collect() };
    let mut words = text.split_whitespace();
    let (Some("ringpost-spool"), Some(format), Some(node), None) = (words.next(), words.next(), words.next(), words.next()) else {
        return Err(unreadable());
    };
    match format.parse() {
        Ok(found) if found > FORMAT => Err(SpoolHomeError::TooNew { path: path.clone(), found }),
        Ok(_) => u64::from_str_radix(node, 16).map_err(|_| unreadable()),
        Err(_) => Err(unreadable()),
    }
}

/// Write, flush, rename, folder flush, read back, and whether O_DIRECT works: what the log will need later is needed now (S17).
///
/// The file stays, so that only the first start needs room for it: a full disk is no reason not to deliver what is in the spool.
fn self_test(spool: &Path) -> Result<WriteMode, SpoolHomeError> {
    let (kept, renamed) = (spool.join("self-test"), spool.join("self-test.tmp"));
    let failed = |what| io_error(&kept, what);
    // A start that was cut short leaves the other name.
    match fs::rename(&kept, &renamed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("rename")(error)),
        _ => (),
    }
    let page = vec![(std::process::id() as u8) | 1; BLOCK_BYTES];
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&renamed).map_err(failed("create a file"))?;
    file.write_all_at(&page, 0).map_err(failed("write"))?;
    file.sync_data().map_err(failed("flush"))?;
    fs::rename(&renamed, &kept).map_err(failed("rename"))?;
    sync_folder(spool).map_err(failed("flush the folder"))?;
    let mut back = vec![0; BLOCK_BYTES];
    File::open(&kept).and_then(|file| file.read_exact_at(&mut back, 0)).map_err(failed("read back"))?;
    if back != page {
        return Err(failed("read back what was written")(io::ErrorKind::InvalidData.into()));
    }
    let direct = OpenOptions::new().read(true).write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(&kept);
    Ok(if direct.is_ok() { WriteMode::Direct } else { WriteMode::Buffered })
}

fn read_bounded(path: &Path) -> io::Result<String> {
    const TEXT_BYTES_MAX: u64 = 256;
    let mut text = String::new();
    File::open(path)?.take(TEXT_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Replaces a small file so that a crash leaves the old or the new one, and the new one is durable on return.
fn write_synced(spool: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = spool.join(format!("{name}.tmp"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, spool.join(name))?;
    sync_folder(spool)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<SpoolHome, SpoolHomeError> {
        SpoolHome::open(path, 0x1234, true)
    }

    #[test]
    fn the_identity_stays_and_the_boot_grows() {
        let folder = tempfile::tempdir().unwrap();
        let (first, boot) = { open(folder.path()).map(|home| (home.node(), home.boot())).unwrap() };
        let again = SpoolHome::open(folder.path(), 0x9999, true).unwrap();
        assert_eq!(again.node(), first);
        assert!(again.boot() > boot);
        assert_eq!(again.previous_boot(), Some(u64::from(boot)));
    }

    #[test]
    fn a_second_process_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _held = open(folder.path()).unwrap();
        assert!(matches!(open(folder.path()), Err(SpoolHomeError::Taken { holder, .. }) if holder.contains("pid")));
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("identity"), "ringpost-spool 9 00000000000000aa\n").unwrap();
        assert!(matches!(open(folder.path()), Err(SpoolHomeError::TooNew { found: 9, .. })));
        fs::write(folder.path().join("identity"), "something else").unwrap();
        assert!(matches!(open(folder.path()), Err(SpoolHomeError::Unreadable { .. })));
    }
}
