//! Processes that end with this one, folders that go with it, and a process that goes on when it ends: an engine that goes on after its
//! load takes a port and a core, its spool the disk, and a server that was stopped for a time serves nobody.
//!
//! Where `setpriv` (util-linux) is at hand the kernel ends them when the thread that started them ends, be it by SIGKILL; elsewhere
//! they outlive a SIGKILL of this process, and nothing else.

use std::{
    ffi::OsStr,
    io,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Those that run. One for each engine under test, which is one at a time.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// The one that is stopped for a time.
static STOPPED: Mutex<Option<Pid>> = Mutex::new(None);

/// Folders that are to go. One for each engine.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A killed engine ends what it has begun; a folder that cannot be removed for so long stays.
const REMOVAL_MAX: Duration = Duration::from_secs(2);

/// Pace of trying again.
const AGAIN: Duration = Duration::from_millis(5);

fn folders() -> MutexGuard<'static, Vec<PathBuf>> {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn running() -> MutexGuard<'static, Vec<Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stopped() -> MutexGuard<'static, Option<Pid>> {
    STOPPED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives a program what lets the kernel end a child with the thread of its parent.
const SETPRIV: &str = "/usr/bin/setpriv";

/// A command that runs this program; start it from a thread that lives as long as the program is to.
pub fn command(program: &OsStr) -> Command {
    if !Path::new(SETPRIV).exists() {
        return Command::new(program);
    }
    let mut command = Command::new(SETPRIV);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A child on the leash until this is dropped; drop it when the child was waited for.
#[derive(Debug)]
pub struct Leashed(Child);

impl Leashed {
    /// Takes a child that was just started.
    pub fn new(child: Child) -> Leashed {
        running().push(Pid::from_child(&child));
        Leashed(child)
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        let own = Pid::from_child(&self.0);
        running().retain(|&pid| pid != own);
    }
}

impl Deref for Leashed {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Leashed {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

/// A process that stands still (SIGSTOP) until this is dropped, or until [`kill_all`]. One at a time.
#[derive(Debug)]
pub struct Stopped(Pid);

impl Stopped {
    /// Stops it.
    ///
    /// # Errors
    /// It is gone, or somebody else's.
    pub fn new(pid: Pid) -> io::Result<Stopped> {
        // The list is held meanwhile, so that whoever ends this process at once finds it there.
        let mut listed = stopped();
        kill_process(pid, Signal::STOP)?;
        *listed = Some(pid);
        Ok(Stopped(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        let _gone = kill_process(self.0, Signal::CONT);
        *stopped() = None;
    }
}

/// A folder that is removed when this is dropped, or by [`remove_all`].
#[derive(Debug)]
pub struct Folder {
    // Dropped in this order: until it is removed it is listed.
    folder: TempDir,
    listed: Listed,
}

#[derive(Debug)]
struct Listed(PathBuf);

impl Folder {
    /// A new folder in `parent` whose name begins with `prefix`.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(prefix: &str, parent: &Path) -> io::Result<Folder> {
        let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
        let listed = Listed(folder.path().to_owned());
        folders().push(listed.0.clone());
        Ok(Folder { folder, listed })
    }

    /// It stays, however this process ends.
    pub fn keep(&mut self) {
        self.folder.disable_cleanup(true);
        self.listed.strike();
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Listed {
    fn strike(&self) {
        folders().retain(|path| *path != self.0);
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.strike();
    }
}

/// Removes all folders, those that cannot be removed apart: they are returned. For whoever ends this process at once, behind [`kill_all`].
pub fn remove_all() -> Vec<(PathBuf, io::Error)> {
    let began = Instant::now();
    let removed = |path: PathBuf| loop {
        match std::fs::remove_dir_all(&path) {
            Ok(()) => return None,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.exists() => return None,
            Err(error) if began.elapsed() > REMOVAL_MAX => return Some((path, error)),
            Err(_) => std::thread::sleep(AGAIN),
        }
    };
    let all = std::mem::take(&mut *folders());
    all.into_iter().filter_map(removed).collect()
}

/// Kills all that run, and lets go on what is stopped; for whoever ends this process at once.
pub fn kill_all() {
    if let Some(pid) = *stopped() {
        let _gone = kill_process(pid, Signal::CONT);
    }
    for pid in running().iter() {
        // It may have ended by itself.
        let _gone = kill_process(*pid, Signal::KILL);
    }
}

/// Lets a panic, which ends this process, kill them too.
pub fn kill_on_panic() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        kill_all();
    }));
}
