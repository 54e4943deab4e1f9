//! CPU and memory of a process, the engine's or our own.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// What a process used within one interval.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ProcessSample {
    /// CPU time by wall time: 100 is one core kept busy. All threads, io_uring's workers included.
    pub cpu_percent: f64,
    /// Resident memory at the end of the interval, bytes.
    pub memory_bytes: u64,
}

/// CPU time and memory of a process since it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessUse {
    /// CPU time of all threads, ended ones included.
    pub cpu: Duration,
    /// Resident memory, bytes.
    pub memory_bytes: u64,
}

/// Looks at one process again and again.
#[derive(Debug)]
pub struct ProcessMeter {
    pid: u32,
    last: ProcessUse,
    last_at: Instant,
}

impl ProcessMeter {
    /// Fails when there is no such process.
    pub fn new(pid: u32) -> io::Result<Self> {
        Ok(ProcessMeter { pid, last: process_use(pid)?, last_at: Instant::now() })
    }

    /// This process.
    pub fn own() -> io::Result<Self> {
        Self::new(std::process::id())
    }

    /// What it used since the last look. Fails when it has ended.
    pub fn sample(&mut self) -> io::Result<ProcessSample> {
        let (now, used) = (Instant::now(), process_use(self.pid)?);
        let wall = now.duration_since(self.last_at).as_secs_f64();
        let cpu = used.cpu.saturating_sub(self.last.cpu).as_secs_f64();
        (self.last, self.last_at) = (used, now);
        Ok(ProcessSample { cpu_percent: if wall > 0.0 { cpu / wall * 100.0 } else { 0.0 }, memory_bytes: used.memory_bytes })
    }
}

/// CPU time and memory of a process; fails when there is no such process.
pub fn process_use(pid: u32) -> io::Result<ProcessUse> {
    let broken = |file: &str| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/{file} is not as expected"));
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = cpu_ticks(&stat).ok_or_else(|| broken("stat"))?;
    let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok()).ok_or_else(|| broken("statm"))?;
    Ok(ProcessUse {
        cpu: Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64),
        memory_bytes: pages * rustix::param::page_size() as u64,
    })
}

/// utime and stime of a stat line. The name in parentheses may hold spaces and parentheses; fields are counted behind it.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_a_process_that_is_not_is_an_error() {
        assert!(ProcessMeter::own().unwrap().sample().unwrap().memory_bytes > 100_000);
        assert!(ProcessMeter::new(u32::MAX).is_err());
        assert_eq!(cpu_ticks("7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"), Some(11 + 12));
        assert_eq!(cpu_ticks("7 (a"), None);
    }
}
