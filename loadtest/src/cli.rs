//! The command line of `ringpost-load`. Each call's arguments live in the module that does it.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    compare::CompareArguments,
    connections::arguments::{ChurnArguments, IdleArguments, SlowlorisArguments},
    diff::DiffArguments,
    history::HistoryArguments,
    omission::OmissionArguments,
    own_floor::OwnFloorArguments,
    report::{ReportArguments, format::printable},
    scenario::run::RunArguments,
    sink::arguments::SinkArguments,
    source::arguments::SourceArguments,
};

/// The command did what was asked.
pub const EXIT_OK: u8 = 0;
/// The command ran and the answer is no: a regression, lost mail, a scenario that failed.
pub const EXIT_NEGATIVE: u8 = 1;
/// The arguments make no sense together, or one of them for this call; clap ends with the same.
pub const EXIT_USAGE: u8 = 2;
/// An input file is not what it should be (sysexits EX_DATAERR).
pub const EXIT_DATA: u8 = 65;
/// The server under test could not be reached, was gone, or took nothing, until the load gave up; or another process kept the lock of a history
/// (sysexits EX_UNAVAILABLE).
pub const EXIT_UNAVAILABLE: u8 = 69;
/// The disk or the system failed (sysexits EX_IOERR).
pub const EXIT_IO: u8 = 74;

/// It was ended by SIGINT, SIGTERM or SIGHUP, or from its screen, before its time; what was measured until then has been printed and written.
pub const EXIT_INTERRUPTED: u8 = 130;

/// Load for mail servers: send, receive, account, measure, compare.
#[derive(Parser)]
#[command(name = "ringpost-load", version = version(), propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done; 1 the answer is no (a regression, lost mail, a scenario that failed); 2 wrong usage, or an\nargument that does not fit this machine; 65 an input file is wrong; 69 the server is not reachable, was gone, or\ntook nothing, until the load gave up, or another process kept the lock of a history; 74 disk or system error; 130\ninterrupted (SIGINT, SIGTERM, SIGHUP), with the figures until then."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Version and commit, as `--version` prints them and results carry them.
pub fn version() -> &'static str {
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("RINGPOST_COMMIT"), ")")
}

/// The calls of the command line.
#[derive(Subcommand)]
pub enum Command {
    /// Send mail as load, measure it, record what was acknowledged.
    Source(Box<SourceArguments>),
    /// Take mail as a next hop, check every octet, record what arrived.
    Sink(Box<SinkArguments>),
    /// Compare what was acknowledged with what arrived: lost, duplicated, damaged, foreign.
    Diff(DiffArguments),
    /// Open many connections and hold them.
    Idle(IdleArguments),
    /// Hold connections by saying one octet after the other, and see when the server has had enough.
    Slowloris(SlowlorisArguments),
    /// Connect and leave, again and again, as fast as it goes.
    Churn(ChurnArguments),
    /// Show that a server that stands still is seen by an open loop and missed by a closed one (coordinated omission).
    Omission(OmissionArguments),
    /// Measure what this tool adds to latencies, against a server that does nothing.
    OwnFloor(OwnFloorArguments),
    /// Run scenarios against an engine of one's own, or a server that runs, and report.
    Run(Box<RunArguments>),
    /// Turn results into a table, an HTML page, files for HdrHistogram viewers, advice.
    Report(ReportArguments),
    /// Say what changed between two results, or sets of repeated runs; exit 1 when something regressed, or a test of the first is missing.
    Compare(CompareArguments),
    /// Keep the figures of runs, and see how they went.
    History(HistoryArguments),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff), or write all of them into a folder.
    Man {
        /// Write the manual page and one for each command into this folder
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// What ends a command early, and the exit code that says so.
#[derive(thiserror::Error, Debug)]
pub enum Failure {
    /// Arguments that make no sense, or not together.
    #[error("{0}")]
    Usage(String),
    /// What was asked for is not there; the answer is no.
    #[error("{0}")]
    Missing(String),
    /// A file that was given is not what it should be.
    #[error("{0}")]
    Data(String),
    /// The server under test could not be reached, or what another process has was not to be had.
    #[error("{0}")]
    Unavailable(String),
    /// Disk or system.
    #[error("{0}")]
    Io(String),
}

impl Failure {
    /// Says what it is on standard error, after the rule of [`say`]. Standard error may be gone.
    pub fn say(&self) {
        let _unread = writeln!(io::stderr(), "ringpost-load: {}", printable(self.to_string().trim_end(), &['\n', '\t']));
    }

    /// Disk or system, with what it was about.
    pub fn io(about: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Failure::Io(format!("{about}: {reason}"))
    }

    /// The exit code for scripts.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Usage(_) => EXIT_USAGE,
            Failure::Missing(_) => EXIT_NEGATIVE,
            Failure::Data(_) => EXIT_DATA,
            Failure::Unavailable(_) => EXIT_UNAVAILABLE,
            Failure::Io(_) => EXIT_IO,
        })
    }
}

/// Prints to standard output; a reader that went away is no failure. Of what servers and files say, lines and tabs are all that a terminal
/// obeys.
pub fn say(text: &str) -> Result<(), Failure> {
    let text = printable(text, &['\n', '\t']);
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match write!(io::stdout(), "{text}{end}").and_then(|()| io::stdout().flush()) {
        Err(reason) if reason.kind() != io::ErrorKind::BrokenPipe => Err(Failure::io("standard output", reason)),
        _ => Ok(()),
    }
}

impl Cli {
    /// Reads the command line of this process; ends it where that is wrong, or asks for help. Numbers below zero are values and no options,
    /// so that whoever reads them says what is wrong with them.
    pub fn read() -> Cli {
        let below_zero = |argument: Arg| match argument.get_action().takes_values() {
            true => argument.allow_negative_numbers(true),
            false => argument,
        };
        let command = Cli::command().mut_subcommands(|call| call.mut_args(below_zero));
        let read = command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
        read.unwrap_or_else(|error| refuse(&error))
    }

    /// Does what was asked; the exit code is [`EXIT_OK`] or [`EXIT_NEGATIVE`].
    pub fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Source(arguments) => arguments.run().map(ExitCode::from),
            Command::Sink(arguments) => arguments.run().map(ExitCode::from),
            Command::Diff(arguments) => arguments.run().map(ExitCode::from),
            Command::Idle(arguments) => arguments.run().map(ExitCode::from),
            Command::Slowloris(arguments) => arguments.run().map(ExitCode::from),
            Command::Churn(arguments) => arguments.run().map(ExitCode::from),
            Command::Omission(arguments) => arguments.run().map(ExitCode::from),
            Command::OwnFloor(arguments) => arguments.run().map(ExitCode::from),
            Command::Run(arguments) => arguments.run().map(ExitCode::from),
            Command::Report(arguments) => arguments.run().map(ExitCode::from),
            Command::Compare(arguments) => arguments.run().map(ExitCode::from),
            Command::History(arguments) => arguments.run().map(ExitCode::from),
            Command::Completions { shell } => say(&completions(shell)).map(|()| ExitCode::from(EXIT_OK)),
            Command::Man { dir } => man(dir.as_deref()).map(|()| ExitCode::from(EXIT_OK)),
        }
    }
}

/// Says what is wrong with the command line, or helps, and ends the process. A value that holds what a terminal obeys is shown without that.
fn refuse(error: &clap::Error) -> ! {
    let text = error.render().to_string();
    let shown = printable(&text, &['\n', '\t']);
    if !error.use_stderr() || shown == text {
        error.exit();
    }
    let _unread = write!(io::stderr(), "{shown}");
    std::process::exit(error.exit_code())
}

/// The completion script for a shell.
fn completions(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ringpost-load", &mut script);
    let script = String::from_utf8(script).expect("what is made of texts is text");
    // clap_complete 4.6 goes to states of bash by the first name and describes them under the second, as the program's name has a hyphen.
    script.replace("ringpost__subcmd__load__subcmd__", "ringpost__load__subcmd__")
}

fn man(folder: Option<&Path>) -> Result<(), Failure> {
    if let Some(folder) = folder {
        fs::create_dir_all(folder).map_err(|reason| Failure::io(folder.display(), reason))?;
        return clap_mangen::generate_to(Cli::command(), folder).map_err(|reason| Failure::io(folder.display(), reason));
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page).expect("memory takes every page");
    say(&String::from_utf8_lossy(&page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_command_has_a_page() {
        Cli::command().debug_assert();
        let folder = tempfile::tempdir().unwrap();
        man(Some(&folder.path().join("man"))).unwrap();
        for call in Cli::command().get_subcommands() {
            assert!(folder.path().join("man").join(format!("ringpost-load-{}.1", call.get_name())).exists(), "{}", call.get_name());
        }
    }

    #[test]
    fn the_version_names_version_and_commit() {
        assert!(version().starts_with(env!("CARGO_PKG_VERSION")) && version().ends_with(')'));
    }

    /// What happened: which options of content exclude each other was told by the refusal alone, that sizes are raised by the result, and what
    /// a log-normal distribution is cut to by nobody.
    #[test]
    fn the_help_of_content_says_what_excludes_what_and_what_becomes_of_small_sizes() {
        let mut command = Cli::command();
        let help = command.find_subcommand_mut("source").unwrap().render_long_help().to_string();
        let of = |option: &str| {
            let rest = &help[help.find(&format!("\n      --{option} ")).unwrap()..];
            rest[..rest[2..].find("\n      --").map_or(rest.len(), |at| at + 2)].split_whitespace().collect::<Vec<_>>().join(" ")
        };
        for (option, others) in [
            ("template", "--corpus, --header, --attach"),
            ("corpus", "--template, --header, --attach"),
            ("attach", "--template, --corpus"),
            ("header", "--template, --corpus"),
        ] {
            assert!(of(option).contains(&format!("Not with {others}")), "{option}: {}", of(option));
        }
        assert!(of("size").contains("256..25MiB where it is left out") && of("size").contains("sizes_raised"), "{}", of("size"));
    }
}
