//! Threads on cores: where they run and what they used.

use std::{io, time::Duration};

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

/// Cores this process may use, in order.
pub fn cores() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
}

/// Binds the calling thread to a core.
///
/// # Errors
/// A core that is not there or not allowed; the message names it.
pub fn pin(core: usize) -> io::Result<()> {
    let wrong = |error: io::Error| {
        io::Error::new(error.kind(), format!("core {core} cannot be used ({error}); this process may use {}", shown_cores()))
    };
    if core >= CpuSet::MAX_CPU {
        return Err(wrong(io::ErrorKind::InvalidInput.into()));
    }
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(|error| wrong(error.into()))
}

/// Fails as [`pin`] would for one of these; the calling thread stays where it is.
///
/// # Errors
/// The first that cannot be used, or no thread to try it in.
pub fn check(cores: &[usize]) -> io::Result<()> {
    std::thread::scope(|scope| {
        let tried = std::thread::Builder::new().spawn_scoped(scope, || cores.iter().try_for_each(|&core| pin(core)))?;
        tried.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

fn shown_cores() -> String {
    let words: Vec<String> = cores().unwrap_or_default().iter().map(usize::to_string).collect();
    words.join(",")
}

/// Allows as many open files as the system permits, and says how many that is.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // Where even that is refused, the limit stays, and whoever needs more is told by what is returned.
    let _kept_as_it_was = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// CPU time the calling thread has used.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time this process has used, all threads.
pub fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Cores as they are given: `0,1` or `0-3,8`; each once, in order.
///
/// # Errors
/// A sentence that names the part that is none.
pub fn parse_cores(text: &str) -> Result<Vec<usize>, String> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let wrong = || format!("{part:?} is no core; cores are given as 0,1 or 0-3,8");
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().map_err(|_| wrong())?, last.trim().parse().map_err(|_| wrong())?);
        if first > last || last >= CpuSet::MAX_CPU {
            return Err(wrong());
        }
        cores.extend(first..=last);
    }
    cores.sort_unstable();
    cores.dedup();
    Ok(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_read_in_lists_and_ranges() {
        assert_eq!(parse_cores("3,0-2,2"), Ok(vec![0, 1, 2, 3]));
        for text in ["", "a", "2-1", "1,", "99999999"] {
            assert!(parse_cores(text).is_err(), "{text}");
        }
    }
}
