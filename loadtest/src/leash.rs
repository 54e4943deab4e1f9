//! Processes that end with this one: an engine that goes on after its load takes a port and a core.
//!
//! Where `setpriv` (util-linux) is at hand the kernel ends them when the thread that started them ends, be it by SIGKILL; elsewhere
//! they outlive a SIGKILL of this process, and nothing else.

use std::{
    ffi::OsStr,
    ops::{Deref, DerefMut},
    path::Path,
    process::{Child, Command},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process};

/// Those that run. One for each engine under test, which is one at a time.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Kills all that run; for whoever ends this process at once.
pub fn kill_all() {
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
