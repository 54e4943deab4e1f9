//! System calls of processes, counted by the kernel through `perf stat`: all of them, and those that flush.

use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ALL: &str = "raw_syscalls:sys_enter";
const SYNCS: [&str; 2] = ["syscalls:sys_enter_fsync", "syscalls:sys_enter_fdatasync"];
/// It attaches meanwhile.
const ATTACHING: Duration = Duration::from_millis(150);

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Syscalls {
    /// All of them.
    pub all: u64,
    /// `fsync` and `fdatasync`. What is flushed through a ring is no system call, and not among them.
    pub syncs: u64,
}

/// Counts until it is stopped.
pub struct Counter {
    perf: Child,
}

impl Counter {
    /// Begins to count those of these processes and of all that they start. `None` where there is no `perf`.
    pub fn attach(processes: &[u32]) -> io::Result<Option<Self>> {
        let processes: Vec<String> = processes.iter().map(u32::to_string).collect();
        let events = [&[ALL], &SYNCS[..]].concat().join(",");
        let mut command = Command::new("perf");
        command.args(["stat", "-x", ",", "-e", &events, "-p", &processes.join(",")]);
        let Ok(perf) = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn() else { return Ok(None) };
        // A load that runs is what it counts, so it may begin late but not end early.
        std::thread::sleep(ATTACHING);
        Ok(Some(Self { perf }))
    }

    /// Ends it. `None` where `perf` may not count, or the kernel has not these events.
    pub fn stop(mut self) -> io::Result<Option<Syscalls>> {
        let pid = rustix::process::Pid::from_raw(self.perf.id() as i32).expect("a child has a process id");
        if self.perf.try_wait()?.is_none() {
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        }
        let mut text = String::new();
        if let Some(mut errors) = self.perf.stderr.take() {
            errors.read_to_string(&mut text)?;
        }
        self.perf.wait()?;
        Ok(counts(&text))
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _already_ended = self.perf.kill();
        let _reaped = self.perf.wait();
    }
}

/// What `perf stat -x ,` printed: lines `COUNT,UNIT,EVENT,…`, with `<not counted>` or `<not supported>` for a count that there is not.
fn counts(text: &str) -> Option<Syscalls> {
    let count = |event: &str| {
        let line = text.lines().find(|line| line.split(',').nth(2) == Some(event))?;
        line.split(',').next()?.parse::<u64>().ok()
    };
    Some(Syscalls { all: count(ALL)?, syncs: SYNCS.iter().map(|event| count(event)).sum::<Option<u64>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_calls_and_those_that_flush_are_read_apart() {
        let text = "\n113,,raw_syscalls:sys_enter,632645,100.00,,\n4,,syscalls:sys_enter_fsync,632645,100.00,,\n\
                    1,,syscalls:sys_enter_fdatasync,632645,100.00,,\n";
        assert_eq!(counts(text), Some(Syscalls { all: 113, syncs: 5 }));
        assert_eq!(counts(&text.replace("4,,", "<not counted>,,")), None);
        assert_eq!(counts("event syntax error: 'syscalls:sys_enter_fsync'"), None);
    }
}
