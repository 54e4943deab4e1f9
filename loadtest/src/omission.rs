//! Coordinated omission, shown: a server that stands still now and then is measured by an open and by a closed loop.
//!
//! A closed loop sends nothing while it waits, so a second of standstill costs it one slow message per session, which its percentiles
//! forget. An open loop counts from the time at which each message was due, so that all that should have come meanwhile are late.

use std::{
    io::{self, BufRead, BufReader},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStderr, Command, Stdio},
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use clap::Args;
use rustix::process::Pid;

use crate::{
    cli::{EXIT_INTERRUPTED, EXIT_NEGATIVE, EXIT_OK, Failure, say},
    content::ContentKind,
    leash::Stopped,
    live::{Beside, Lines, run_source, shown, usual_viewer},
    measurement::Part,
    percentile::told,
    phase::Phase,
    schedule::Rate,
    signals::StopSignal,
    sizes::Sizes,
    source::{
        SourceOptions,
        arguments::{check_server_pid, last_core, resolve, seconds, seconds_above_zero},
    },
};

/// A connection takes no longer, or nobody is there.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// `ringpost-load omission …`
#[derive(Args, Debug, Clone)]
pub struct OmissionArguments {
    /// A server that runs: HOST:PORT. Default: a sink of one's own.
    #[arg(long, requires = "server_pid")]
    pub to: Option<String>,
    /// With --to: the process that is stopped and continued (SIGSTOP, SIGCONT).
    #[arg(long, requires = "to")]
    pub server_pid: Option<u32>,
    /// Seconds of each of the two loads.
    #[arg(long, default_value_t = 30.0)]
    pub seconds: f64,
    /// Seconds from one standstill to the next.
    #[arg(long, default_value_t = 10.0)]
    pub every: f64,
    /// Seconds of each standstill.
    #[arg(long, default_value_t = 1.0)]
    pub stall: f64,
    /// Messages per second of the open loop.
    #[arg(long, default_value_t = 1000.0)]
    pub rate: f64,
    /// Sessions of both. Of few messages those that a standstill holds up are more than 0.1 %: then the closed loop hides nothing.
    #[arg(long, default_value_t = 5)]
    pub sessions: usize,
    /// No live line per second.
    #[arg(long)]
    pub quiet: bool,
}

impl OmissionArguments {
    /// Measures twice and prints both. The exit code: 0 the open loop's p99.9 shows the standstill and the closed loop's does not,
    /// 130 it was interrupted, 1 otherwise, as where too few messages were measured for a p99.9.
    ///
    /// # Errors
    /// No server, or one that acknowledges nothing; a process that cannot be stopped, or must not be.
    pub fn run(&self) -> Result<u8, Failure> {
        let (every, stall) = (seconds(self.every, "--every")?, seconds(self.stall, "--stall")?);
        let duration = seconds_above_zero(self.seconds, "--seconds")?;
        if stall >= every || stall.is_zero() || !(self.rate > 0.0 && self.rate <= 1e6) {
            return Err(Failure::Usage("--stall is above 0 and below --every, --rate above 0".into()));
        }
        if self.sessions == 0 {
            return Err(Failure::Usage("--sessions 0: a load has a session at least".into()));
        }
        if let Some(pid) = self.server_pid.filter(|&pid| pid == 1 || pid == std::process::id()) {
            return Err(Failure::Usage(format!("--server-pid {pid}: init and this program itself are not stopped")));
        }
        check_server_pid(self.server_pid, "which is stopped and continued")?;
        let sink = match &self.to {
            Some(_) => None,
            None => Some(SinkProcess::start().map_err(|error| Failure::io("a sink", error))?),
        };
        let (to, pid) = match (&sink, &self.to) {
            (Some(sink), _) => (sink.address, sink.child.id()),
            (None, to) => (resolve(to.as_deref().unwrap_or_default())?, self.server_pid.unwrap_or_default()),
        };
        let stop = StopSignal::listen().map_err(|error| Failure::io("signals", error))?;
        TcpStream::connect_timeout(&to, CONNECT_MAX).map_err(|error| Failure::Unavailable(format!("{to}: {error}")))?;
        say(&format!("the server stands still for {stall:?} of every {every:?}; {} sessions, {} s each", self.sessions, self.seconds))?;
        let mut p999 = Vec::new();
        for rate in [None, Some(Rate::Fixed(self.rate))] {
            let options = SourceOptions {
                sessions: self.sessions,
                duration: Some(duration),
                rate,
                ..SourceOptions::new(to, last_core()?, ContentKind::Text(Sizes::fixed(1024)))
            };
            let stalls = Stalls::start(pid, every, stall, duration)?;
            let mut viewer = usual_viewer(self.quiet, Lines::of_source());
            let ran = run_source(options, Beside::default(), &stop, &mut *viewer)?;
            let count = stalls.end()?;
            if ran.interrupted {
                say("interrupted: what an open and a closed loop see of a standstill is not compared")?;
                return Ok(EXIT_INTERRUPTED);
            }
            if ran.report.acknowledged == 0 {
                let trouble = ran.report.last_trouble.unwrap_or_else(|| "no error either".into());
                return Err(Failure::Unavailable(format!("{to}: no message was acknowledged; the last trouble: {trouble}")));
            }
            let totals = ran.measurement.totals();
            let name = if rate.is_some() { "open loop, from the scheduled time" } else { "closed loop" };
            say(&line(name, totals, Phase::Transaction, count))?;
            if rate.is_some() {
                say(&line("open loop, from when it was sent", totals, Phase::TransactionNaive, count))?;
            }
            let latency = totals.histogram(Phase::Transaction);
            if rate.is_none()
                && let Some(text) = too_few(latency.len(), self.sessions as u64 * u64::from(count))
            {
                say(&text)?;
            }
            p999.push(told(latency, 99.9));
        }
        let stall_ns = stall.as_nanos() as u64;
        // A dash above is no figure to judge by.
        let (Some(closed), Some(open)) = (p999[0], p999[1]) else {
            say("no verdict: p99.9 is that of 10000 messages at least, in each loop: say more --seconds or a higher --rate")?;
            return Ok(EXIT_NEGATIVE);
        };
        let (hidden, seen) = (closed < stall_ns / 4, open > stall_ns / 2);
        let verdict = |holds: bool, yes: &'static str, no: &'static str| if holds { yes } else { no };
        say(&format!(
            "p99.9: the open loop {} the standstill, the closed loop {} it",
            verdict(seen, "shows", "does not show"),
            verdict(hidden, "hides", "does not hide")
        ))?;
        Ok(if hidden && seen { EXIT_OK } else { EXIT_NEGATIVE })
    }
}

/// A sentence where so many messages of a closed loop, of which each standstill holds up one of every session, are too few for a p99.9 that
/// does not see it.
fn too_few(messages: u64, held_up: u64) -> Option<String> {
    let share = held_up as f64 / messages.max(1) as f64;
    (share > 0.001).then(|| {
        format!(
            "up to {held_up} of {messages} messages of the closed loop were held up ({:.2} %, more than the 0.1 % that lie beyond p99.9): it may \
             not hide the standstill. More --seconds, or standstills that are fewer (--every), show it.",
            share * 100.0
        )
    })
}

fn line(name: &str, totals: &Part, phase: Phase, stalls: u32) -> String {
    let latency = totals.histogram(phase);
    let at = |percentile: f64| shown(latency, percentile);
    format!(
        "{name:<36}{:>9} messages, {stalls} standstills: p50 {}, p90 {}, p99 {}, p99.9 {}, p99.99 {}, max {}",
        latency.len(),
        at(50.0),
        at(90.0),
        at(99.0),
        at(99.9),
        at(99.99),
        at(100.0)
    )
}

/// A sink in a process of its own, so that it can be stopped alone.
struct SinkProcess {
    child: Child,
    address: SocketAddr,
    /// Kept, or the sink's writes to it would fail.
    _words: BufReader<ChildStderr>,
}

impl SinkProcess {
    fn start() -> io::Result<SinkProcess> {
        let core = crate::pinning::cores()?.first().copied().unwrap_or_default();
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["sink", "--listen", "127.0.0.1:0", "--quiet", "--cores", &core.to_string()]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut words = BufReader::new(child.stderr.take().expect("it was piped"));
        let mut line = String::new();
        words.read_line(&mut line)?;
        match line.trim().strip_prefix("listening on ").and_then(|address| address.parse().ok()) {
            Some(address) => Ok(SinkProcess { child, address, _words: words }),
            None => {
                let _ended = child.kill();
                child.wait()?;
                Err(io::Error::other(format!("the sink did not say where it listens: {line:?}")))
            }
        }
    }
}

impl Drop for SinkProcess {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Stops and continues a process, in a thread of its own, until the load is over or this is dropped.
struct Stalls {
    /// The thread ends when it is gone.
    cancel: Option<Sender<()>>,
    thread: Option<JoinHandle<io::Result<u32>>>,
}

impl Stalls {
    /// No standstill begins that would not be over within `load`.
    fn start(pid: u32, every: Duration, stall: Duration, load: Duration) -> Result<Stalls, Failure> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| Failure::Usage(format!("{pid} is no process")))?;
        let (cancel, cancelled) = channel::<()>();
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let mut next = every / 2;
            let mut count = 0;
            // Whoever lets go of the sender has no load any more, however it ended.
            let goes_on = |wait| cancelled.recv_timeout(wait) == Err(RecvTimeoutError::Timeout);
            while next + stall <= load {
                if !goes_on((began + next).saturating_duration_since(Instant::now())) {
                    break;
                }
                let stopped = Stopped::new(pid)?;
                let still_on = goes_on(stall);
                drop(stopped);
                count += 1;
                if !still_on {
                    break;
                }
                next += every;
            }
            Ok(count)
        });
        Ok(Stalls { cancel: Some(cancel), thread: Some(thread) })
    }

    fn end(mut self) -> Result<u32, Failure> {
        self.cancel = None;
        let thread = self.thread.take().expect("only this and the drop take it");
        let count = thread.join().map_err(|_| Failure::Io("the thread that stops the server panicked".into()))?;
        count.map_err(|error| Failure::io("stopping the server", error))
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.cancel = None;
        // It lets the server go on before it ends.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").spawn().unwrap()
    }

    fn stands_still(pid: u32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ")
    }

    /// What happened: where a load failed nobody called the standstills off, and the server was stopped and continued as fast as it went.
    #[test]
    fn standstills_end_with_the_load_however_it_ends_and_leave_the_server_going() {
        let mut server = sleeper();
        let (pid, long) = (server.id(), Duration::from_secs(600));
        let stalls = Stalls::start(pid, Duration::from_millis(2), long, 2 * long).unwrap();
        while !stands_still(pid) {
            std::thread::yield_now();
        }
        drop(stalls);
        let dropped = stands_still(pid);
        // The load is over before the second one would be, and nobody says so.
        let (every, stall) = (Duration::from_millis(20), Duration::from_millis(1));
        let mut stalls = Stalls::start(pid, every, stall, every).unwrap();
        let count = stalls.thread.take().unwrap().join().unwrap();
        let over = stands_still(pid);
        server.kill().unwrap();
        server.wait().unwrap();
        assert_eq!((dropped, over, count.unwrap()), (false, false, 1));
    }

    #[test]
    fn a_closed_loop_of_few_messages_is_told_that_it_may_hide_nothing() {
        assert!(too_few(100_000, 15).is_none());
        assert!(too_few(1000, 5).unwrap().starts_with("up to 5 of 1000 messages of the closed loop were held up (0.50 %"));
    }
}
