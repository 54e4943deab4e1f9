//! `ringpost-load sink`: its command line, and what it prints.

use std::{
    fs,
    io::{Write, stderr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use time::OffsetDateTime;

use crate::{
    cli::{EXIT_NEGATIVE, EXIT_OK, Failure, say},
    live::{Lines, shown_ns, usual_viewer, watch_sink},
    machine::Machine,
    percentile::PERCENTILES,
    pinning,
    random::Random,
    report::write_measured,
    run_result::check_place,
    signals::StopSignal,
    sink::{
        Flapping, Sink, SinkOptions, SinkReport,
        announcement::Announcement,
        delay::{DELAY_FORM, ReplyDelay},
        fault::{FAULT_HELP, Fault, Faults},
    },
    sizes::parse_bytes,
    source::arguments::{Cores, last_core, parse_cores, resolve, seconds, seconds_above_zero},
};

/// Arguments of `sink`.
#[derive(Args, Debug, Clone)]
pub struct SinkArguments {
    /// Where to listen: HOST:PORT; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:2600")]
    pub listen: String,
    /// Cores: 0,1 or 0-3. Default: the last one this process may use.
    #[arg(long, value_parser = parse_cores)]
    pub cores: Option<Cores>,
    /// LMTP instead of SMTP.
    #[arg(long)]
    pub lmtp: bool,
    /// Where arrivals are recorded, a line each, before they are answered; a file that is there is appended to.
    #[arg(long)]
    pub ledger: Option<PathBuf>,
    /// End after this many messages.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub messages: Option<u64>,
    /// End after this many seconds. Without both: at SIGINT or SIGTERM.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// What goes wrong: STAGE:WHAT:PROBABILITY. May be repeated.
    #[arg(long, long_help = FAULT_HELP, help_heading = "Behaviour")]
    pub fault: Vec<Fault>,
    /// Answer 451 to a sender and recipient until this many seconds after they first came.
    #[arg(long, help_heading = "Behaviour")]
    pub greylist: Option<f64>,
    /// Connections at once; further ones get 421.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Behaviour")]
    pub connections_max: Option<u64>,
    /// Connections at once from one address; further ones get 421.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Behaviour")]
    pub per_client_max: Option<u64>,
    /// Go up and down: UP:DOWN, seconds.
    #[arg(long, value_parser = parse_flapping, help_heading = "Behaviour")]
    pub flap: Option<Flapping>,
    /// Be down while this file exists: connections are reset, those there are and those that come. A message whose reply was held back then stands in the
    /// ledger: whoever sends it again doubles it, rightly.
    #[arg(long, value_name = "FILE", help_heading = "Behaviour")]
    pub down: Option<PathBuf>,
    /// Octets per second that each connection is read with.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Behaviour")]
    pub read_bytes_per_s: Option<u64>,
    /// Milliseconds that replies are held back: 20, 5..50 or lognormal:MEDIAN:SIGMA:MOST (the last may be left out).
    #[arg(long, default_value = "0", long_help = DELAY_FORM, help_heading = "Behaviour")]
    pub delay_ms: ReplyDelay,
    /// Extensions that are not announced: pipelining, chunking, 8bitmime, smtputf8. May be repeated or separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = ["pipelining", "chunking", "8bitmime", "smtputf8"], help_heading = "Behaviour")]
    pub without: Vec<String>,
    /// Octets of a message; more are refused with 552, at MAIL where SIZE= tells, else behind the content. Announced as SIZE; 0: any number.
    #[arg(long, default_value = "512MiB", value_parser = parse_bytes, help_heading = "Behaviour")]
    pub size_max: u64,
    /// Decides which faults happen when.
    #[arg(long, help_heading = "Behaviour")]
    pub seed: Option<u64>,
    /// Write latencies end to end for HdrHistogram viewers into this folder: sink-end_to_end.hgrm and sink.hlog.
    #[arg(long, value_name = "DIR")]
    pub hgrm: Option<PathBuf>,
    /// Print the summary as one JSON object.
    #[arg(long)]
    pub json: bool,
    /// No live line per second.
    #[arg(long)]
    pub quiet: bool,
    /// A live line per second also where standard error is no terminal.
    #[arg(long, conflicts_with = "quiet")]
    pub live: bool,
}

/// Reads `UP:DOWN` in seconds.
pub fn parse_flapping(text: &str) -> Result<Flapping, String> {
    let time = |word: &str| word.parse().ok().filter(|s: &f64| *s > 0.0 && *s < 1e6).map(Duration::from_secs_f64);
    let times = text.split_once(':').and_then(|(up, down)| Some(Flapping { up: time(up)?, down: time(down)? }));
    times.ok_or_else(|| format!("{text:?} is not UP:DOWN in seconds, such as 5:1"))
}

impl SinkArguments {
    /// The options that these arguments describe.
    ///
    /// # Errors
    /// A host without address.
    pub fn options(&self) -> Result<SinkOptions, Failure> {
        let announced = |name: &str| !self.without.iter().any(|word| word == name);
        Ok(SinkOptions {
            listen: resolve(&self.listen)?,
            cores: match &self.cores {
                Some(cores) => cores.0.clone(),
                None => vec![last_core()?],
            },
            announcement: Announcement {
                lmtp: self.lmtp,
                size_max: self.size_max,
                pipelining: announced("pipelining"),
                chunking: announced("chunking"),
                eight_bit: announced("8bitmime"),
                smtputf8: announced("smtputf8"),
                ..Announcement::default()
            },
            ledger: self.ledger.clone(),
            faults: Faults::new(self.fault.clone()),
            greylist: self.greylist.map(|number| seconds(number, "--greylist")).transpose()?,
            connections_max: self.connections_max,
            per_client_max: self.per_client_max,
            flapping: self.flap,
            down_file: self.down.clone(),
            read_bytes_per_s: self.read_bytes_per_s,
            reply_delay: self.delay_ms,
            idle_timeout: Duration::from_secs(300),
            messages: self.messages,
            seed: self.seed.unwrap_or_else(Random::fresh_seed),
        })
    }

    /// Takes mail until its end, and prints what came. The exit code: 0 no message was damaged, 1 some were.
    ///
    /// # Errors
    /// An address that cannot be had, a ledger that cannot be written.
    pub fn run(&self) -> Result<u8, Failure> {
        let options = self.options()?;
        pinning::raise_open_files();
        let stop = StopSignal::listen().map_err(|error| Failure::io("signals", error))?;
        let limit = self.seconds.map(|number| seconds_above_zero(number, "--seconds")).transpose()?;
        if let Some(folder) = &self.hgrm {
            fs::create_dir_all(folder).map_err(|error| Failure::io(folder.display(), error))?;
            check_place(&folder.join("sink.hlog"))?;
        }
        let machine = Machine::observe(Path::new("."), "");
        let started = OffsetDateTime::now_utc();
        let sink = Sink::start(options.clone())?;
        // Whoever started it and does not listen knows the address.
        let _unread = writeln!(stderr(), "listening on {}", sink.address);
        let mut lines = Lines::of_sink();
        let mut viewer = usual_viewer(self.quiet, Lines::of_sink());
        let viewer = if self.live { &mut lines } else { &mut *viewer };
        let mut measured = watch_sink(&sink, options.cores.len(), limit, &stop, viewer);
        sink.stop();
        let (report, rest) = sink.join()?;
        rest.iter().for_each(|part| measured.add(part.second, &part.part));
        // Both are tried: files that cannot be written do not cost the summary.
        let written = self.hgrm.as_ref().map_or(Ok(()), |folder| write_measured(folder, "sink", &machine, started, measured));
        if self.json {
            say(&serde_json::to_string(&report).expect("a report is plain data"))?;
        } else {
            say(&report_text(&report))?;
        }
        written.map(|()| if report.damaged_all() == 0 { EXIT_OK } else { EXIT_NEGATIVE })
    }
}

/// What came, as lines.
fn report_text(report: &SinkReport) -> String {
    let mut lines = Vec::new();
    lines.push(format!(
        "{} messages, {} deliveries in {:.2} s: {:.0} messages/s; intact {}, damaged {}, foreign {}, bare CR or LF {}",
        report.messages,
        report.deliveries,
        report.seconds,
        report.messages_per_second,
        report.intact,
        report.damaged_all(),
        report.foreign,
        report.bare_line_ends
    ));
    if report.accepts_failed > 0 {
        lines.push(format!("{} times no connection could be taken: the descriptors of this process were used up", report.accepts_failed));
    }
    report.damaged.iter().for_each(|(name, count)| lines.push(format!("damaged, {name}: {count}")));
    lines.push(format!(
        "{} connections, at most {} at once, {} refused, {} dropped; messages per connection {:.1}, at most {}{}",
        report.connections,
        report.concurrent_max,
        report.connections_refused,
        report.dropped,
        report.messages_per_connection_mean,
        report.messages_per_connection_max,
        if report.messages > 0 { format!("; {:.2} us of own CPU per message", report.cpu_us_per_message) } else { String::new() }
    ));
    for (address, client) in &report.clients {
        lines.push(format!(
            "{address}: {} connections, at most {} at once, {} messages",
            client.connections, client.concurrent_max, client.messages
        ));
    }
    report.refusals.iter().for_each(|(code, count)| lines.push(format!("refused with {code}: {count}")));
    // What few messages would make of a percentile is left out.
    let words =
        PERCENTILES.iter().filter_map(|&(name, _)| Some(format!("{name} {}", shown_ns((*report.end_to_end_us.get(name)?)? * 1000))));
    let words: Vec<String> = words.collect();
    if report.intact > 0 {
        lines.push(format!("end to end: {}", words.join(", ")));
    }
    lines.join("\n")
}
