//! `ringpost-load source`: its command line, and what it prints.

use std::{
    io::{self, IsTerminal, Write},
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgGroup, Args};

use crate::{
    addresses::{DOMAINS_MAX, RecipientPlan, Spread},
    cli::{Failure, say},
    content::{self, ContentKind},
    ingredients::Ingredients,
    live::{Beside, Lines, SourceRun, Viewer, run_source, usual_viewer},
    machine::Machine,
    pinning,
    process::tree_use,
    random::Random,
    run_result::{Bounds, Load, RunFacts, RunResult, check_place},
    schedule::{RATE_FORM, Rate},
    signals::StopSignal,
    sizes::{SIZES_FORM, SizesArgument},
    source::{
        SourceError, SourceOptions,
        host::Stage,
        settings::settings,
        summary::{exit_code, failures, fates, load_of, summary, summary_text},
    },
    template::check_field,
    tui::Tui,
};

/// Arguments of `source`.
#[derive(Args, Debug, Clone)]
#[command(group = ArgGroup::new("end").required(true).multiple(true).args(["messages", "seconds"]))]
pub struct SourceArguments {
    /// Where to: HOST:PORT.
    #[arg(long)]
    pub to: String,
    /// Cores of the generator: 0,1 or 0-3. Default: the last one this process may use.
    #[arg(long, value_parser = parse_cores)]
    pub cores: Option<Cores>,
    /// Connections at once. One that broke is made again after 10 ms where a message of it was acknowledged; else each try waits twice as long
    /// as the one before it, 1 s at most.
    #[arg(long, default_value_t = 10)]
    pub sessions: usize,
    /// End after this many messages.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub messages: Option<u64>,
    /// Begin messages for this long.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Open loop: N, A..B/SECONDS, poisson:N or spikes:BASE:PEAK:EVERY:LENGTH. Latencies count from the scheduled time.
    #[arg(long, help_heading = "Load", long_help = RATE_FORM)]
    pub rate: Option<Rate>,
    /// Octets of a message: 4KiB, 1KiB..5MiB, 4KiB*8,64KiB*2, lognormal:MEDIAN:SIGMA[:LEAST..MOST] or @FILE.
    #[arg(long, default_value = "4KiB", conflicts_with_all = ["template", "header", "attach", "corpus"],
          help_heading = "Load", long_help = sizes_help())]
    pub size: SizesArgument,
    /// Messages per connection; 0: no limit.
    #[arg(long, default_value_t = 0, help_heading = "Load")]
    pub per_connection: u32,
    /// Keep a connection open, silent, behind the last of these messages, until the time is over.
    #[arg(long, requires = "per_connection", help_heading = "Load")]
    pub linger: bool,
    /// Begin no more than 4 connections at once, each until its banner: for listeners with a short backlog.
    #[arg(long, help_heading = "Load")]
    pub gently: bool,
    /// Wait for each reply even where PIPELINING is announced.
    #[arg(long, help_heading = "Load")]
    pub no_pipelining: bool,
    /// BDAT where CHUNKING is announced.
    #[arg(long, help_heading = "Load")]
    pub chunking: bool,
    /// LMTP instead of SMTP.
    #[arg(long, help_heading = "Load")]
    pub lmtp: bool,
    /// Pause of a session between two messages, milliseconds; not with --rate, which says when messages begin.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=MILLISECONDS_MAX), help_heading = "Load")]
    pub think_ms: u64,
    /// Octets per second that a session sends: slow senders.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Load")]
    pub bytes_per_s: Option<u64>,
    /// Give sessions up: STAGE:PROBABILITY with banner, ehlo, mail, rcpt, data, content or dot. May be repeated.
    #[arg(long, value_parser = parse_abort, help_heading = "Load")]
    pub abort: Vec<(Stage, f64)>,
    /// Recipients of each message.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=RECIPIENTS_MAX), help_heading = "Addresses")]
    pub recipients: u32,
    /// Domains they are spread over: d0.DOMAIN, d1.DOMAIN …; with one, DOMAIN itself.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=DOMAINS_MAX as i64), help_heading = "Addresses")]
    pub domains: u32,
    /// How: uniform, zipf or zipf:EXPONENT.
    #[arg(long, default_value = "uniform", help_heading = "Addresses")]
    pub spread: Spread,
    /// Domain of the recipients. Octets beyond ASCII in it or in the sender go with SMTPUTF8, and to no server that does not announce that.
    #[arg(long, default_value = "load.test", value_parser = parse_domain, help_heading = "Addresses")]
    pub domain: String,
    /// Sender of all messages; an empty one is the null reverse-path of bounces.
    #[arg(long, default_value = "sender@load.test", value_parser = parse_sender, help_heading = "Addresses")]
    pub sender: String,
    /// Name in EHLO, in ASCII.
    #[arg(long, default_value = "source.load.test", value_parser = parse_hello, help_heading = "Addresses")]
    pub hello: String,
    /// Local addresses that connections take in turn: more ports, more clients. May be repeated or separated by commas.
    #[arg(long, value_delimiter = ',', help_heading = "Addresses")]
    pub from_address: Vec<IpAddr>,
    /// A message with {{seq}} and {{id}} in it. Not with --corpus, --header, --attach or --size.
    #[arg(long, conflicts_with_all = ["corpus", "header", "attach"], help_heading = "Content")]
    pub template: Option<PathBuf>,
    /// A header field, {{seq}} and {{id}} allowed, 998 octets at most. May be repeated. Date, From, Message-ID, Subject and MIME-Version are written without it, and
    /// one of these names stands in the place of that. Not with --template, --corpus or --size.
    #[arg(long, conflicts_with = "corpus", help_heading = "Content")]
    pub header: Vec<String>,
    /// A file to attach. May be repeated. Not with --template, --corpus or --size.
    #[arg(long, conflicts_with = "corpus", help_heading = "Content")]
    pub attach: Vec<PathBuf>,
    /// A folder of .eml files that are sent in turn. Not with --template, --header, --attach or --size.
    #[arg(long, help_heading = "Content")]
    pub corpus: Option<PathBuf>,
    /// Where acknowledged messages are recorded, a line each; a file that is there is appended to.
    #[arg(long, help_heading = "Results")]
    pub ledger: Option<PathBuf>,
    /// Decides content, sizes, recipients and arrivals; chosen and printed when absent.
    #[arg(long, help_heading = "Results")]
    pub seed: Option<u64>,
    /// How long a connection or a reply is waited for, seconds; when the load is over, what is under way and what an open loop still owes
    /// are waited for as long, at most 30. Without --seconds a load gives up (exit code 69) when nobody was there for as long, and
    /// one of so many --messages also when no message was acknowledged for as long and three connections a session broke meanwhile.
    #[arg(long, default_value_t = 60.0, help_heading = "Results")]
    pub timeout: f64,
    /// Process of the server, when it is on this machine: CPU and memory of it and of all processes below it are measured.
    #[arg(long, help_heading = "Results")]
    pub server_pid: Option<u32>,
    /// Its cores: 0,1 or 0-3. Default: those that the threads may use which do nine tenths of its work, and
    /// each that one may not leave.
    #[arg(long, requires = "server_pid", value_parser = parse_core_list, value_name = "CORES", help_heading = "Results")]
    pub server_cores: Option<Cores>,
    /// Name in the result.
    #[arg(long, default_value = "source", help_heading = "Results")]
    pub name: String,
    /// Write the result as JSON, in place of a file that has this name.
    #[arg(long, help_heading = "Results")]
    pub output: Option<PathBuf>,
    /// Print a summary as one JSON object instead of lines.
    #[arg(long, help_heading = "Results")]
    pub json: bool,
    /// No live line per second (there is none either where standard error is no terminal, unless --live).
    #[arg(long, help_heading = "Results")]
    pub quiet: bool,
    /// A live line per second also where standard error is no terminal.
    #[arg(long, conflicts_with = "quiet", help_heading = "Results")]
    pub live: bool,
    /// A full-screen view: latencies by phase, rates, errors, CPU. Arrows choose the phase of the histogram, h shows it on a narrow terminal, q ends the run.
    #[arg(long, conflicts_with_all = ["quiet", "live"], help_heading = "Results")]
    pub tui: bool,
}

/// What `--help` says of sizes.
fn sizes_help() -> String {
    format!(
        "Octets of a message: {SIZES_FORM}. A message that says what it is has {} octets at least: sizes below that are refused, and what a \
         log-normal distribution draws below it is raised to it and counted (sizes_raised in the result)",
        content::text_bytes_least()
    )
}

/// Recipients of a message.
pub const RECIPIENTS_MAX: i64 = 10_000;

/// A pause in milliseconds that nobody means: ten days.
pub const MILLISECONDS_MAX: u64 = 864_000_000;

/// Cores as an argument: clap takes a list type of its own for one value.
#[derive(Debug, Clone)]
pub struct Cores(pub Vec<usize>);

/// Reads cores for clap; refuses those that a thread cannot be pinned to.
pub fn parse_cores(text: &str) -> Result<Cores, String> {
    let cores = pinning::parse_cores(text)?;
    pinning::check(&cores).map_err(|error| error.to_string())?;
    Ok(Cores(cores))
}

/// Reads cores of another process for clap: this one need not be allowed to use them.
pub fn parse_core_list(text: &str) -> Result<Cores, String> {
    pinning::parse_cores(text).map(Cores)
}

/// Reads a domain for clap: what may stand in a command without ending it (RFC 5321 4.1.2), address literals included.
fn parse_domain(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 255 {
        return Err("a domain has 1 to 255 octets".into());
    }
    parse_path(text)
}

/// Reads the name in EHLO for clap. RFC 6531 3.7.1: before SMTPUTF8 is known to be there a name is written in ASCII.
fn parse_hello(text: &str) -> Result<String, String> {
    match text.is_ascii() {
        true => parse_domain(text),
        false => Err("EHLO comes before SMTPUTF8 is known to be announced: write the name in ASCII, as xn--… (RFC 6531 3.7.1)".into()),
    }
}

/// Octets of an address between its brackets: RFC 5321 4.5.3.1.3 has 256 with them.
const ADDRESS_BYTES_MAX: usize = 254;

/// Reads a sender for clap.
fn parse_sender(text: &str) -> Result<String, String> {
    if text.len() > ADDRESS_BYTES_MAX {
        return Err(format!("an address has {ADDRESS_BYTES_MAX} octets at most (RFC 5321 4.5.3.1.3), and this one {}", text.len()));
    }
    parse_path(text)
}

/// Reads an address for clap. Odd ones are wanted in tests; what would end the command or leave the brackets is not.
fn parse_path(text: &str) -> Result<String, String> {
    match text.chars().find(|&c| c.is_control() || c.is_whitespace() || matches!(c, '<' | '>')) {
        Some(c) => Err(format!("{c:?} cannot stand in a command's argument (RFC 5321 4.1.2)")),
        None => Ok(text.to_owned()),
    }
}

/// Refuses a process that is not there, before a run that would not measure it. `purpose` says what it was for.
///
/// # Errors
/// [`Failure::Usage`] with its number: the argument does not fit this machine, and no file is wrong.
pub fn check_server_pid(pid: Option<u32>, purpose: &str) -> Result<(), Failure> {
    let Some((pid, Err(error))) = pid.map(|pid| (pid, tree_use(pid))) else { return Ok(()) };
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "there is no such process on this machine".to_owned(),
        _ => error.to_string(),
    };
    Err(Failure::Usage(format!("--server-pid {pid}: {reason}; it names the server's, {purpose}")))
}

/// What a server's process is for, usually.
pub const MEASURED: &str = "whose CPU and memory are measured, with those of all processes below it";

/// Reads `STAGE:PROBABILITY`.
pub fn parse_abort(text: &str) -> Result<(Stage, f64), String> {
    let (stage, probability) = text.split_once(':').unwrap_or((text, "1"));
    let probability = probability.parse().ok().filter(|p: &f64| (0.0..=1.0).contains(p));
    Ok((stage.parse()?, probability.ok_or_else(|| format!("{text:?}: the probability is a number from 0 to 1"))?))
}

/// The first address of HOST:PORT.
///
/// # Errors
/// [`Failure::Usage`] for another form, [`Failure::Unavailable`] for a name without address.
pub fn resolve(host_port: &str) -> Result<SocketAddr, Failure> {
    if !host_port.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        return Err(Failure::Usage(format!("{host_port:?} is not HOST:PORT")));
    }
    let wrong = |reason: &dyn std::fmt::Display| Failure::Unavailable(format!("{host_port}: {reason} (HOST:PORT is wanted)"));
    host_port.to_socket_addrs().map_err(|error| wrong(&error))?.next().ok_or_else(|| wrong(&"no address"))
}

/// Ten years: nothing here is meant to last longer, and clocks can still add it.
pub const SECONDS_MAX: f64 = 315_576_000.0;

/// Seconds from a command line; refuses what is no time.
pub fn seconds(number: f64, what: &str) -> Result<Duration, Failure> {
    let length = Duration::try_from_secs_f64(number).ok().filter(|length| length.as_secs_f64() <= SECONDS_MAX);
    length.ok_or_else(|| Failure::Usage(format!("{what}: {number:?} is no number of seconds up to {SECONDS_MAX:?}")))
}

/// The same, and refuses a time of nothing.
pub fn seconds_above_zero(number: f64, what: &str) -> Result<Duration, Failure> {
    let length = seconds(number, what)?;
    if length.is_zero() { Err(Failure::Usage(format!("{what}: {number:?} is no time above 0"))) } else { Ok(length) }
}

/// The core for a generator that was not told one: the last allowed, as servers begin with the first.
pub fn last_core() -> Result<usize, Failure> {
    let cores = pinning::cores().map_err(|error| Failure::io("the cores of this machine", error))?;
    cores.last().copied().ok_or_else(|| Failure::Io("no core is allowed to this process".into()))
}

/// What shows a source: a full screen, lines, or nothing.
///
/// # Errors
/// [`Failure::Usage`]: no terminal for a full screen. [`Failure::Io`]: one that cannot be used.
pub fn viewer(title: &str, tui: bool, live: bool, quiet: bool) -> Result<Box<dyn Viewer>, Failure> {
    if tui && !io::stdout().is_terminal() {
        return Err(Failure::Usage("--tui wants a terminal as standard output".into()));
    }
    match (tui, live) {
        (true, _) => Ok(Box::new(Tui::start(title).map_err(|error| Failure::io("the terminal", error))?)),
        (false, true) => Ok(Box::new(Lines::of_source())),
        (false, false) => Ok(usual_viewer(quiet, Lines::of_source())),
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Failure {
        match error {
            SourceError::Options(text) => Failure::Usage(text),
            other => Failure::Io(other.to_string()),
        }
    }
}

impl SourceArguments {
    fn content(&self) -> Result<ContentKind, Failure> {
        let (corpus, template) = (self.corpus.as_ref(), self.template.as_ref());
        self.header.iter().try_for_each(|field| check_field(field)).map_err(|error| Failure::Usage(format!("--header: {error}")))?;
        let size = self.size.read().map_err(Failure::Data)?;
        content::check_sizes(&size).map_err(|error| match &self.size {
            SizesArgument::Given(_) => Failure::Usage(format!("--size {error}")),
            SizesArgument::Mix(path) => Failure::Data(format!("the mix file {}: {error}", path.display())),
        })?;
        let ingredients = Ingredients { folder: Path::new(""), corpus, template, header: &self.header, attach: &self.attach, size: &size };
        ingredients.read().map_err(Failure::Data)
    }

    /// The options that these arguments describe.
    ///
    /// # Errors
    /// A host without address, a file that cannot be read, a time that is none.
    pub fn options(&self) -> Result<SourceOptions, Failure> {
        Ok(SourceOptions {
            to: resolve(&self.to)?,
            cores: match &self.cores {
                Some(cores) => cores.0.clone(),
                None => vec![last_core()?],
            },
            sessions: self.sessions,
            messages: self.messages,
            duration: self.seconds.map(|number| seconds_above_zero(number, "--seconds")).transpose()?,
            rate: self.rate,
            content: self.content()?,
            recipients: RecipientPlan {
                per_message: self.recipients as usize,
                domains: self.domains as usize,
                spread: self.spread,
                domain: self.domain.clone(),
                ..RecipientPlan::default()
            },
            reverse_path: self.sender.clone(),
            hello: self.hello.clone(),
            lmtp: self.lmtp,
            pipelining: !self.no_pipelining,
            chunking: self.chunking,
            per_connection: (self.per_connection > 0).then_some(self.per_connection),
            linger: self.linger,
            gently: self.gently,
            addresses: self.from_address.clone(),
            think: Duration::from_millis(self.think_ms),
            bytes_per_s: self.bytes_per_s,
            aborts: self.abort.clone(),
            ledger: self.ledger.clone(),
            seed: self.seed.unwrap_or_else(Random::fresh_seed),
            timeout: seconds_above_zero(self.timeout, "--timeout")?,
            drain: Duration::from_secs(30),
        })
    }

    /// Sends, shows, prints. The exit code: 0 all that was due was acknowledged; 69 nobody took a connection, or it gave up;
    /// 130 it was interrupted; 1 something else did not go well.
    ///
    /// # Errors
    /// What makes a run impossible.
    pub fn run(&self) -> Result<u8, Failure> {
        let options = self.options()?;
        check_server_pid(self.server_pid, MEASURED)?;
        self.output.as_deref().map_or(Ok(()), check_place)?;
        let machine = Machine::observe(Path::new("."), "");
        pinning::raise_open_files();
        let stop = StopSignal::listen().map_err(|error| Failure::io("signals", error))?;
        let mut viewer = viewer(&self.name, self.tui, self.live, self.quiet || self.json)?;
        let server_memory_before = self.server_pid.and_then(|pid| Some(tree_use(pid).ok()?.memory_bytes));
        let server_pid = || self.server_pid;
        let beside = Beside { server_pid: Some(&server_pid), sinks: &[] };
        let run = run_source(options.clone(), beside, &stop, &mut *viewer)?;
        drop(viewer);
        // What it used is known until then, and looks as if it were that of the whole run.
        let gone = self.server_pid.filter(|&pid| tree_use(pid).is_err());
        let text = if self.json { summary(&options, &run).to_string() } else { summary_text(&options, &run) };
        let failures = failures(&run);
        let code = exit_code(&run, &failures);
        // Both places are tried: one that cannot be written does not cost the figures of the other.
        let written = match &self.output {
            Some(path) => self.result(&options, run, failures, server_memory_before, machine).write(path),
            None => Ok(()),
        };
        say(&text)?;
        if let Some(pid) = gone {
            let text = format!("--server-pid {pid}: the process ended before the run did: its CPU and memory are those until then");
            let _unread = writeln!(io::stderr(), "ringpost-load: {text}");
        }
        written.map(|()| code)
    }

    fn result(
        &self,
        options: &SourceOptions,
        run: SourceRun,
        failures: Vec<String>,
        server_memory_before: Option<u64>,
        machine: Machine,
    ) -> RunResult {
        let facts = RunFacts {
            test_name: self.name.clone(),
            started: run.started,
            duration_s: run.report.lasted.as_secs_f64(),
            failures,
            interrupted: run.interrupted,
            fates: fates(&run.report),
            load: Load {
                server_cores: self.server_cores.as_ref().map(|cores| cores.0.len() as u32).or(run.server_cores),
                ..load_of(options, &run.report)
            },
            bounds: Bounds::default(),
            settings: settings(self, options),
            initial_metrics: Default::default(),
            final_metrics: Default::default(),
            server_cpu_s: run.server_cpu.map(|cpu| cpu.as_secs_f64()),
            server_cpu_by_phase: None,
            generator_cpu_s: run.cpu.as_secs_f64(),
            server_memory_before,
            machine,
        };
        RunResult::new(run.measurement, facts)
    }
}
