//! CPU and memory of a process, the engine's or our own, and of a server that is many processes.

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
    /// Memory at the end of the interval, bytes.
    pub memory_bytes: u64,
}

/// What a look at a process tells: what it used since the look before, and its memory now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    /// CPU time of all threads.
    pub cpu: Duration,
    /// How long that was.
    pub wall: Duration,
    /// Memory, bytes.
    pub memory_bytes: u64,
}

impl Look {
    /// As results keep it.
    pub fn sample(&self) -> ProcessSample {
        let (cpu, wall) = (self.cpu.as_secs_f64(), self.wall.as_secs_f64());
        ProcessSample { cpu_percent: if wall > 0.0 { cpu / wall * 100.0 } else { 0.0 }, memory_bytes: self.memory_bytes }
    }
}

/// CPU time and memory of a process, or of a server's processes, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessUse {
    /// CPU time of all threads, ended ones included.
    pub cpu: Duration,
    /// Resident memory, bytes; of processes below the first what they do not share.
    pub memory_bytes: u64,
}

/// Looks at one process, or one and all below it, again and again.
#[derive(Debug)]
pub struct ProcessMeter {
    pid: u32,
    see: fn(u32) -> io::Result<ProcessUse>,
    last: ProcessUse,
    last_at: Instant,
}

impl ProcessMeter {
    /// A server and all processes below it. Fails when there is no such process.
    pub fn server(pid: u32) -> io::Result<Self> {
        Self::new(pid, tree_use)
    }

    /// This process, without those it started.
    pub fn own() -> io::Result<Self> {
        Self::new(std::process::id(), process_use)
    }

    fn new(pid: u32, see: fn(u32) -> io::Result<ProcessUse>) -> io::Result<Self> {
        Ok(ProcessMeter { pid, see, last: see(pid)?, last_at: Instant::now() })
    }

    /// What it used since the last look. Fails when it has ended.
    pub fn look(&mut self) -> io::Result<Look> {
        let (now, used) = (Instant::now(), (self.see)(self.pid)?);
        let (wall, cpu) = (now.duration_since(self.last_at), used.cpu.saturating_sub(self.last.cpu));
        (self.last, self.last_at) = (used, now);
        Ok(Look { cpu, wall, memory_bytes: used.memory_bytes })
    }
}

/// CPU time and memory of a process; fails when there is no such process, also where nobody has waited for one that has ended.
pub fn process_use(pid: u32) -> io::Result<ProcessUse> {
    let ticks = read_living(pid)?.cpu_ticks;
    Ok(ProcessUse { cpu: cpu_of(ticks), memory_bytes: Pages::of(pid)?.resident * page_bytes() })
}

/// CPU time of a process, of all below it, and of those of them that have ended and were waited for; memory of all of them, what they
/// share counted once. Servers such as Postfix start and end processes all the time. Fails when there is no such process, as [`process_use`] does.
pub fn tree_use(root: u32) -> io::Result<ProcessUse> {
    let mut pages = Pages::of(root)?.resident;
    let mut ticks = 0;
    for pid in descendants(root)? {
        let stat = match if pid == root { read_living(pid) } else { read_stat(pid) } {
            Ok(stat) => stat,
            // It would have used nothing.
            Err(reason) if pid == root => return Err(reason),
            // Whoever ended between the listing and now has left its time with its parent.
            Err(_) => continue,
        };
        ticks += stat.cpu_ticks + stat.cpu_ticks_of_ended;
        if pid != root {
            pages += Pages::of(pid).map_or(0, |pages| pages.resident.saturating_sub(pages.shared));
        }
    }
    Ok(ProcessUse { cpu: cpu_of(ticks), memory_bytes: pages * page_bytes() })
}

/// Processes below `root`, itself included and first.
pub fn descendants(root: u32) -> io::Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Whoever has just ended has nobody below it.
        let Ok(stat) = read_stat(pid) else { continue };
        parents.push((pid, stat.parent));
    }
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|&&(pid, of)| of == parent && pid != root).map(|&(pid, _)| pid));
        at += 1;
    }
    Ok(found)
}

/// What a line of `/proc/PID/stat` tells.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// All of it has ended, and its parent has not waited for it: what it used stands there unchanged until then. The first thread of a
    /// process may end before the others, which are counted.
    has_ended: bool,
    parent: u32,
    /// utime and stime.
    cpu_ticks: u64,
    /// cutime and cstime: of children that have ended and were waited for.
    cpu_ticks_of_ended: u64,
}

/// CPU time of one thread, in ticks of the system's clock. Fails when there is no such thread.
pub(crate) fn thread_ticks(pid: u32, thread: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat"))?;
    parse_stat(&text).map(|stat| stat.cpu_ticks).ok_or_else(|| broken(pid, "task/stat"))
}

fn read_stat(pid: u32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| broken(pid, "stat"))
}

/// One that has ended and still has a number uses nothing more, and has no parts below it: that is no figure.
fn read_living(pid: u32) -> io::Result<Stat> {
    let stat = read_stat(pid)?;
    let gone = || io::Error::new(io::ErrorKind::NotFound, format!("process {pid} has ended"));
    if stat.has_ended { Err(gone()) } else { Ok(stat) }
}

/// The name in parentheses may hold spaces and parentheses; fields are counted behind it (state is number 3, utime number 14, num_threads
/// number 20).
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let ticks = |number: usize| field(number)?.parse::<u64>().ok();
    Some(Stat {
        has_ended: matches!(field(3)?, "Z" | "X") && field(20)?.parse::<u32>().ok()? <= 1,
        parent: field(4)?.parse().ok()?,
        cpu_ticks: ticks(14)? + ticks(15)?,
        cpu_ticks_of_ended: ticks(16)? + ticks(17)?,
    })
}

struct Pages {
    resident: u64,
    /// With files and other processes.
    shared: u64,
}

impl Pages {
    fn of(pid: u32) -> io::Result<Pages> {
        let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
        let mut fields = text.split_ascii_whitespace().skip(1).map_while(|field| field.parse().ok());
        let pages = fields.next().zip(fields.next());
        pages.map(|(resident, shared)| Pages { resident, shared }).ok_or_else(|| broken(pid, "statm"))
    }
}

fn broken(pid: u32, file: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/{file} is not as expected"))
}

fn cpu_of(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn this_process_has_memory_and_a_process_that_is_not_is_an_error() {
        assert!(ProcessMeter::own().unwrap().look().unwrap().memory_bytes > 100_000);
        assert!(ProcessMeter::server(u32::MAX).is_err());
        let stat =
            |state: &str, threads: u32| parse_stat(&format!("7 (a ) b) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 {threads} 18"));
        let read = |has_ended| Some(Stat { has_ended, parent: 1, cpu_ticks: 11 + 12, cpu_ticks_of_ended: 13 + 14 });
        assert_eq!((stat("S", 1), stat("Z", 1), stat("X", 0)), (read(false), read(true), read(true)));
        assert_eq!(stat("Z", 2), read(false), "other threads than its first go on");
        assert_eq!(parse_stat("7 (a"), None);
    }

    /// What happened: an engine that was killed under a run was measured to the end of it, as nobody waits for a child before: CPU time of
    /// none in half a minute, of which its share of a core was a part.
    #[test]
    fn a_process_that_has_ended_is_none_though_nobody_has_waited_for_it() {
        let mut child = Command::new("sh").args(["-c", "read line"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut meter = ProcessMeter::server(child.id()).unwrap();
        meter.look().unwrap();
        drop(child.stdin.take());
        let exited = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(rustix::process::Pid::from_child(&child)), exited).unwrap();
        let kinds = [meter.look().map(drop), process_use(child.id()).map(drop)].map(|outcome| outcome.unwrap_err().kind());
        assert!(child.wait().unwrap().code().is_some());
        assert_eq!(kinds, [io::ErrorKind::NotFound; 2]);
    }

    #[test]
    fn a_server_is_its_process_and_all_below_it_ended_ones_too() {
        // The shell's child counts to a hundred thousand and is waited for; another one waits to be read to.
        let script = "sh -c 'n=0; while [ $n -lt 100000 ]; do n=$((n+1)); done'; exec 3<&0; cat <&3 & echo ready; wait";
        let mut shell = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(shell.stdout.take().unwrap()), &mut line).unwrap();
        let (alone, tree) = (process_use(shell.id()).unwrap(), tree_use(shell.id()).unwrap());
        let below = descendants(shell.id()).unwrap();
        drop(shell.stdin.take());
        shell.kill().unwrap();
        shell.wait().unwrap();
        assert!(below.len() >= 2 && below[0] == shell.id(), "{below:?}");
        assert!(tree.cpu > alone.cpu && tree.memory_bytes > alone.memory_bytes, "{alone:?} {tree:?}");
    }
}
