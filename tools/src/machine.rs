//! What the rigs ask of the machine they run on: cores, limits, processes.

use std::io;
use std::path::Path;
use std::time::Duration;

pub use ringpost_loadtest::free_port::free_port;
use ringpost_loadtest::pinning;

/// Binds the calling thread to a core; nothing for `None`.
pub(crate) fn run_on(core: Option<usize>) -> io::Result<()> {
    core.map_or(Ok(()), pinning::pin)
}

/// Splits the cores into those for the engine's shards and the one for the rig: the last, where there is more than one.
pub fn shares() -> io::Result<(Vec<usize>, Option<usize>)> {
    let mut cores = pinning::cores()?;
    let own = if cores.len() > 1 { cores.pop() } else { None };
    Ok((cores, own))
}

/// The core of the rig, which is the engine's, too, where there is no other.
pub fn own_core() -> io::Result<usize> {
    let (shards, own) = shares()?;
    own.or_else(|| shards.first().copied()).ok_or_else(|| io::Error::other("no core is allowed to this process"))
}

/// CPU time a process has used in all its threads, io_uring's workers and ended threads included (`utime + stime` of its stat).
pub fn process_cpu(pid: u32) -> io::Result<Duration> {
    Ok(ringpost_loadtest::process::process_use(pid)?.cpu)
}

/// CPU time of a process, of all below it, and of those of them that have ended (Postfix starts and ends processes all the time).
pub fn tree_cpu(root: u32) -> io::Result<Duration> {
    Ok(ringpost_loadtest::process::tree_use(root)?.cpu)
}

/// A figure of `/proc/PID/status` in KiB, such as `VmRSS`.
pub fn status_kib(pid: u32, key: &str) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("/proc/{pid}/status has no {key}")))
}

/// Octets free for this user on the file system of `path`.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// One line that names the machine, for every table of figures.
pub fn description() -> String {
    let uname = rustix::system::uname();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let model = std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("model name").map(|rest| rest.trim_matches([' ', '\t', ':']).to_string()))
        })
        .unwrap_or_else(|| "unknown processor".into());
    format!("{} {}, {cores} cores, {model}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy())
}

/// True when this process may mount and make loop devices.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_cpu_and_memory() {
        let pid = std::process::id();
        assert!(process_cpu(pid).unwrap() <= tree_cpu(pid).unwrap());
        assert!(status_kib(pid, "VmRSS").unwrap() > 100);
        assert!(status_kib(pid, "VmNothing").is_err());
    }

    #[test]
    fn the_rig_takes_one_core_and_leaves_the_others() {
        let (shards, own) = shares().unwrap();
        assert!(!shards.is_empty());
        assert!(own.is_none_or(|core| !shards.contains(&core)));
    }
}
