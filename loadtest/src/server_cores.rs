//! The cores of a server that runs already: those that the threads may use which do its work.
//!
//! A server that pins its workers has other threads beside them, which may run anywhere and do next to nothing. So the cores that count are
//! those of the busiest threads, and of those that are pinned to a single one: a worker without a session has its core, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

use crate::{
    pinning::parse_cores,
    process::{descendants, thread_ticks},
};

/// Share of the CPU time of all threads that the busiest have, whose cores count.
const BUSIEST_SHARE: f64 = 0.9;

/// CPU time of each thread of a server until now.
#[derive(Debug)]
pub(crate) struct ThreadTimes {
    root: u32,
    /// Ticks by thread; numbers of threads are those of the whole system.
    ticks: BTreeMap<u32, u64>,
}

impl ThreadTimes {
    /// Of a process and all below it.
    ///
    /// # Errors
    /// There is no such process.
    pub(crate) fn of_server(root: u32) -> io::Result<ThreadTimes> {
        let mut ticks = BTreeMap::new();
        for (pid, thread) in threads(root)? {
            // Whoever has just ended uses nothing any more.
            ticks.extend(thread_ticks(pid, thread).ok().map(|used| (thread, used)));
        }
        Ok(ThreadTimes { root, ticks })
    }

    /// How many cores the threads may use that did its work since; none where nothing is known of them.
    pub(crate) fn cores_since(&self) -> Option<u32> {
        let online = fs::read_to_string("/sys/devices/system/cpu/online").ok().and_then(|list| parse_cores(list.trim()).ok());
        let mut used = Vec::new();
        for (pid, thread) in threads(self.root).ok()? {
            let (Ok(ticks), Some(mut cores)) = (thread_ticks(pid, thread), allowed(pid, thread)) else { continue };
            // What is not pinned may run on cores that a machine could have.
            cores.retain(|core| online.as_ref().is_none_or(|online| online.contains(core)));
            used.push((ticks - self.ticks.get(&thread).copied().unwrap_or(0).min(ticks), cores));
        }
        cores_of_busiest(used)
    }
}

/// Cores of the threads that have nine tenths of all CPU time, the busiest first, and of each that may use one core only; of all of them where
/// none has any time.
fn cores_of_busiest(mut used: Vec<(u64, Vec<usize>)>) -> Option<u32> {
    used.sort_by_key(|&(ticks, _)| std::cmp::Reverse(ticks));
    let enough = used.iter().map(|(ticks, _)| ticks).sum::<u64>() as f64 * BUSIEST_SHARE;
    let (mut sum, mut cores) = (0, BTreeSet::new());
    for (ticks, of_thread) in used {
        if enough == 0.0 || (sum as f64) < enough || of_thread.len() == 1 {
            cores.extend(of_thread);
        }
        sum += ticks;
    }
    u32::try_from(cores.len()).ok().filter(|&count| count > 0)
}

/// Process and number of each thread below `root`.
fn threads(root: u32) -> io::Result<Vec<(u32, u32)>> {
    let mut found = Vec::new();
    for pid in descendants(root)? {
        let listed = match fs::read_dir(format!("/proc/{pid}/task")) {
            Err(reason) if pid == root => return Err(reason),
            listed => listed.into_iter().flatten().flatten(),
        };
        found.extend(listed.filter_map(|entry| Some((pid, entry.file_name().to_str()?.parse().ok()?))));
    }
    Ok(found)
}

/// The cores that a thread may use.
fn allowed(pid: u32, thread: u32) -> Option<Vec<usize>> {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    parse_cores(list.trim()).ok()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        process::{Command, Stdio},
    };

    use super::*;
    use crate::pinning;

    #[test]
    fn threads_that_do_next_to_nothing_bring_no_cores() {
        assert_eq!(cores_of_busiest(vec![(4, vec![0, 1, 2, 3]), (96, vec![2])]), Some(1));
        assert_eq!(cores_of_busiest(vec![(50, vec![0]), (45, vec![1]), (5, vec![0, 1, 2])]), Some(2));
        // Where nobody did anything all may.
        assert_eq!(cores_of_busiest(vec![(0, vec![0]), (0, vec![0, 1])]), Some(2));
        assert_eq!(cores_of_busiest(vec![]), None);
    }

    /// What happened: of an engine with four shards, of which one had all the sessions, the cores were one.
    #[test]
    fn a_worker_that_waits_on_a_core_of_its_own_has_that_core() {
        let shards = [(96, vec![0]), (0, vec![1]), (0, vec![2]), (0, vec![3])];
        let beside = |cores: Vec<usize>| cores_of_busiest(shards.iter().cloned().chain([(4, cores)]).collect());
        assert_eq!((beside(vec![0, 1, 2, 3]), beside((0..8).collect())), (Some(4), Some(4)));
    }

    #[test]
    fn a_process_that_is_pinned_has_the_cores_it_is_pinned_to() {
        let core = pinning::cores().unwrap()[0];
        let start = move || {
            // A process may run where the thread may that starts it.
            pinning::pin(core).unwrap();
            let script = "read go; n=0; while [ $n -lt 200000 ]; do n=$((n+1)); done; echo done; read end";
            Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
        };
        let mut shell = std::thread::spawn(start).join().unwrap();
        let before = ThreadTimes::of_server(shell.id()).unwrap();
        shell.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let found = before.cores_since();
        shell.kill().unwrap();
        shell.wait().unwrap();
        assert_eq!(found, Some(1));
        assert_eq!(before.cores_since(), None, "there is no such process any more");
        assert!(ThreadTimes::of_server(u32::MAX).is_err());
    }
}
