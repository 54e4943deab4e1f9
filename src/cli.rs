//! The command line: what can be asked of `ringpost`, and the exit codes scripts rely on (2, wrong usage, is clap's own).

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind};
use ringpost_smtp::shown::shown_bytes;

use crate::queue_filter;

/// The command did what was asked.
pub const EXIT_OK: u8 = 0;
/// The command ran and the answer is no: damage found, no such message.
pub const EXIT_NEGATIVE: u8 = 1;
/// The running engine could not be reached, or it could not reach Valkey (sysexits EX_UNAVAILABLE).
pub const EXIT_UNAVAILABLE: u8 = 69;
/// The disk or the system failed (sysexits EX_IOERR).
pub const EXIT_IO: u8 = 74;
/// The config file is wrong (sysexits EX_CONFIG).
pub const EXIT_CONFIG: u8 = 78;

/// A mail engine for people who run mail on their own hardware.
#[derive(Parser)]
#[command(name = "ringpost", version = version(), propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done; 1 the answer is no (damage found, no such message); 2 wrong usage;\n69 the engine is not running, or Valkey is away; 74 disk or system error; 78 the config file is wrong."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// What was asked; wrong usage is said, and ends the process.
    pub fn of_process() -> Cli {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        Cli::read(&arguments).unwrap_or_else(|error| error.exit())
    }

    fn read(arguments: &[OsString]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(arguments).map_err(|error| {
            // clap repeats a wrong argument as it is: it is asked again about what can be shown.
            let shown = arguments.iter().map(|argument| shown_bytes(argument.as_encoded_bytes()));
            if shown.clone().zip(arguments).all(|(shown, argument)| shown.as_bytes() == argument.as_encoded_bytes()) {
                return error;
            }
            let of_shown = || Cli::command().error(ErrorKind::InvalidValue, "an argument has characters that no value here can have");
            Cli::try_parse_from(shown).err().unwrap_or_else(of_shown)
        })
    }
}

/// Version and commit, as `--version` prints them.
pub fn version() -> &'static str {
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("RINGPOST_COMMIT"), ")")
}

/// The calls of the command line.
#[derive(Subcommand)]
pub enum Command {
    /// Carry mail: accept by SMTP, make durable, deliver onward.
    Serve(ConfigFile),
    /// Read the config file and the files with secrets that it names, say what is wrong with them, and stop.
    Check(ConfigFile),
    /// Print which core does what, and warn of what would slow it down.
    Topology {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        output: Output,
    },
    /// Print the config file's defaults, documented.
    Config {
        #[command(subcommand)]
        call: ConfigCall,
    },
    /// Look into the spool, of a running engine or a stopped one.
    Spool {
        #[command(subcommand)]
        call: SpoolCall,
    },
    /// See and steer queued messages of the running engine.
    Queue {
        #[command(flatten)]
        control: Control,
        #[command(subcommand)]
        call: QueueCall,
    },
    /// Read the mail log's file.
    Log {
        #[command(subcommand)]
        call: LogCall,
    },
    /// Let the running engine read its config file again; says what was taken over and what needs a restart.
    Reload {
        #[command(flatten)]
        control: Control,
        #[command(flatten)]
        output: Output,
    },
    /// Empty a node that is to be retired: what it holds goes to other nodes, and it takes no more of theirs. It goes on accepting; stop it
    /// when it is empty. Exit 1 if something is left that does not go by itself, or if nobody takes it, and 69 while Valkey is away.
    Drain {
        /// Into the cluster's queue, from which nodes with delivery.mode = "shared" take it
        #[arg(long, required = true)]
        to_cluster: bool,
        #[command(flatten)]
        control: Control,
        #[command(flatten)]
        output: Output,
    },
    /// Print the running engine's counters.
    Stats {
        #[command(flatten)]
        control: Control,
        #[command(flatten)]
        output: Output,
    },
    /// Say where mail for a domain goes by the config file and what was pushed to all nodes: its hosts in order, asked of DNS as the engine
    /// would, or why it goes nowhere. Exit 1 if there is nowhere to go.
    Dns {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        output: Output,
        /// A domain, or an address literal in brackets
        #[arg(value_parser = crate::dns_cli::domain)]
        domain: String,
        /// From this sender; "" is the null sender [default: one that no route names]
        #[arg(long, value_name = "ADDRESS", value_parser = queue_filter::sender)]
        sender: Option<String>,
    },
    /// See and steer the cluster this node is in.
    Cluster {
        #[command(flatten)]
        control: Control,
        #[command(subcommand)]
        call: crate::cluster_cli::ClusterCommand,
    },
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

/// Where the config file is.
#[derive(Args, Clone, Default)]
pub struct ConfigFile {
    /// The config file [default: ./ringpost.toml, then /etc/ringpost/ringpost.toml, then the embedded defaults]
    #[arg(short = 'c', long = "config", value_name = "FILE", global = true)]
    pub file: Option<PathBuf>,
}

/// How to find the running engine.
#[derive(Args, Clone, Default)]
pub struct Control {
    #[command(flatten)]
    pub config: ConfigFile,
    /// The control socket [default: `control.socket` of the config file]
    #[arg(long, value_name = "PATH", global = true)]
    pub socket: Option<PathBuf>,
}

/// Text for people or JSON for programs.
#[derive(Args, Clone, Copy, Default)]
pub struct Output {
    /// JSON instead of text; lists print one object per line
    #[arg(long, global = true)]
    pub json: bool,
}

/// `ringpost config …`
#[derive(Subcommand)]
pub enum ConfigCall {
    /// Print the embedded default config file.
    Default,
}

/// `ringpost spool …`
#[derive(Subcommand)]
pub enum SpoolCall {
    /// Check every batch and record; exit 1 if an acknowledged one is damaged.
    Verify {
        #[command(flatten)]
        place: SpoolPlace,
        #[command(flatten)]
        output: Output,
    },
    /// List the messages that the spool holds and that are not settled.
    Ls {
        #[command(flatten)]
        place: SpoolPlace,
        #[command(flatten)]
        output: Output,
    },
    /// Print one message's content as it was accepted.
    Cat {
        /// The queue id.
        #[arg(value_parser = queue_filter::queue_id)]
        id: String,
        #[command(flatten)]
        place: SpoolPlace,
    },
    /// Write segments ahead, so that a burst finds them ready.
    Prepare {
        /// Segments to add for each shard.
        #[arg(default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
        segments: u32,
        #[command(flatten)]
        config: ConfigFile,
    },
}

/// Which spool.
#[derive(Args, Clone)]
pub struct SpoolPlace {
    #[command(flatten)]
    pub config: ConfigFile,
    /// The spool's folder [default: `spool.path` of the config file]
    #[arg(long, value_name = "DIR")]
    pub path: Option<PathBuf>,
}

/// `ringpost queue …`
#[derive(Subcommand)]
pub enum QueueCall {
    /// List queued messages.
    Ls {
        #[command(flatten)]
        filter: ListFilter,
        #[command(flatten)]
        output: Output,
    },
    /// Show one message: each recipient, its attempts, the last reply, and why it is still here.
    Show {
        /// The queue id.
        #[arg(value_parser = queue_filter::queue_id)]
        id: String,
        #[command(flatten)]
        output: Output,
    },
    /// Say in a sentence why a message is still here, or when and how it ended.
    Why {
        /// The queue id.
        #[arg(value_parser = queue_filter::queue_id)]
        id: String,
        #[command(flatten)]
        output: Output,
    },
    /// Show what is stuck: each destination with its mail, the oldest of it, the last reply and what it waits for.
    Summary {
        /// Only destinations of this name
        #[arg(long, value_name = "NAME", value_parser = queue_filter::named)]
        destination: Option<String>,
        /// At most so many destinations, those with most mail [default: 40, with --json all]
        #[arg(long, value_name = "N", value_parser = queue_filter::count)]
        limit: Option<usize>,
        #[command(flatten)]
        output: Output,
    },
    /// Begin no attempts at destinations until they are resumed, also after a restart. Mail for them is accepted and waits; what is being
    /// attempted runs to its end.
    Pause {
        #[command(flatten)]
        which: PauseArguments,
        /// Pause nothing, and say what is paused
        #[arg(long)]
        list: bool,
        #[command(flatten)]
        output: Output,
    },
    /// End a pause.
    Resume {
        #[command(flatten)]
        which: PauseArguments,
        #[command(flatten)]
        output: Output,
    },
    /// Try now instead of at the scheduled time; where --domain, --destination or --state chooses among a message's recipients, those alone.
    Retry(Selection),
    /// Keep from being delivered until released. Messages are held whole: where a filter matches only some of the recipients nothing is done
    /// without --whole-messages.
    Hold(WholeSelection),
    /// End a hold, of whole messages as with `hold`.
    Release(WholeSelection),
    /// Give up: the recipients that match fail, and their sender is told; what is being attempted when that has ended, unless it is delivered.
    Bounce {
        /// What the sender is told, in one line of at most 190 bytes
        #[arg(long, value_name = "TEXT", value_parser = queue_filter::reason, default_value = "returned by the operator of this system")]
        reason: String,
        #[command(flatten)]
        selection: Selection,
    },
    /// Remove the recipients that match for good and tell nobody; what is being attempted when that has ended, unless it is delivered.
    #[command(alias = "delete")]
    Purge(Selection),
    /// Send by another route than the one of the recipients' domains; they are tried there at once. Where --domain, --destination or
    /// --state chooses among a message's recipients, those alone go there.
    Reroute {
        /// The route, named by its `domain` as it stands in the config
        #[arg(long, value_name = "ROUTE", value_parser = queue_filter::named)]
        to: String,
        #[command(flatten)]
        selection: Selection,
    },
    /// Set when messages expire: so long from now ("2d", "12h"), or a time ("2026-12-04T12:00:00Z"). Of whole messages, as with `hold`.
    SetExpiry {
        /// The queue ids, if any, and last the time from now, or the time
        #[arg(value_name = "ID... TIME", required = true)]
        words: Vec<String>,
        #[command(flatten)]
        matching: Matching,
        /// Every message in the queue
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        whole: WholeMessages,
        #[command(flatten)]
        output: Output,
    },
}

/// May recipients that the filter does not match go along?
#[derive(Args, Clone, Copy, Default)]
pub struct WholeMessages {
    /// Also where --domain, --destination or --state matches only some of a message's recipients: the others go along
    #[arg(long)]
    pub whole_messages: bool,
}

/// Which messages a command is about that is done with messages as a whole.
#[derive(Args, Clone)]
pub struct WholeSelection {
    #[command(flatten)]
    pub selection: Selection,
    #[command(flatten)]
    pub whole: WholeMessages,
}

/// Which destinations.
#[derive(Args, Clone)]
pub struct PauseArguments {
    /// Destinations as `queue summary` names them, routes by their `domain` in the config, or "*.example.org": every domain below it that has
    /// a destination of its own
    #[arg(value_name = "DESTINATION", value_parser = queue_filter::destination)]
    pub names: Vec<String>,
    /// Every destination that there is or that mail comes for; a resume also ends the pauses of those that were named
    #[arg(long)]
    pub all: bool,
}

/// Which messages; several of these narrow it down.
#[derive(Args, Clone, Default)]
pub struct Matching {
    /// Only messages with a recipient in this state
    #[arg(long, value_enum)]
    pub state: Option<State>,
    /// Only messages from this sender address; "" is the null sender
    #[arg(long, value_name = "ADDRESS", value_parser = queue_filter::sender)]
    pub sender: Option<String>,
    /// Only messages from senders in this domain
    #[arg(long, value_name = "DOMAIN", value_parser = queue_filter::sender_domain)]
    pub sender_domain: Option<String>,
    /// Only messages with a recipient in this domain
    #[arg(long, value_name = "DOMAIN", value_parser = queue_filter::domain)]
    pub domain: Option<String>,
    /// Only messages with a recipient that leads to this destination, as `queue summary` names it
    #[arg(long, value_name = "NAME", value_parser = queue_filter::named)]
    pub destination: Option<String>,
    /// Only messages with this tag, at most 64 bytes
    #[arg(long, value_name = "TAG", value_parser = queue_filter::tag)]
    pub tag: Option<String>,
    /// Only messages that are at least so old ("90s", "10m", "4h", "2d")
    #[arg(long, value_name = "TIME", value_parser = ringpost_config::parse_duration)]
    pub older_than: Option<Duration>,
}

/// `ringpost log …`
#[derive(Subcommand)]
pub enum LogCall {
    /// Print lines as they come, also when the file is rotated.
    ///
    /// With --json what is no line of a mail log is an object with the whole of it as `raw`.
    Follow {
        /// Only lines about this queue id or address
        #[arg(value_name = "ID|ADDRESS")]
        id: Option<String>,
        #[command(flatten)]
        place: LogPlace,
        #[command(flatten)]
        output: Output,
    },
    /// Print the lines about a message or an address, rotated files included.
    Grep {
        /// A queue id or an address
        #[arg(value_name = "ID|ADDRESS")]
        word: String,
        #[command(flatten)]
        place: LogPlace,
        #[command(flatten)]
        output: Output,
    },
}

/// Which mail log.
#[derive(Args, Clone)]
pub struct LogPlace {
    #[command(flatten)]
    pub config: ConfigFile,
    /// The mail log's file [default: `log.mail_output` of the config file]
    #[arg(id = "log_file", long = "file", value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// What `queue ls` shows.
#[derive(Args, Clone, Default)]
pub struct ListFilter {
    #[command(flatten)]
    pub matching: Matching,
    /// At most so many
    #[arg(long, value_name = "N", value_parser = queue_filter::count)]
    pub limit: Option<usize>,
}

/// A recipient's state, as users name it.
#[derive(Clone, Copy, ValueEnum, PartialEq, Eq, Debug)]
pub enum State {
    /// May be tried now.
    Ready,
    /// Waits for its next attempt.
    Deferred,
    /// An attempt is under way.
    Active,
    /// Held by route or by command.
    Held,
    /// In the cluster's queue.
    Offered,
    /// Refused for good, or expired.
    Failed,
}

/// Which messages a command is about: ids, or filters, or all.
#[derive(Args, Clone)]
pub struct Selection {
    /// The queue ids.
    #[arg(value_name = "ID", value_parser = queue_filter::queue_id)]
    pub ids: Vec<String>,
    #[command(flatten)]
    pub matching: Matching,
    /// Every message in the queue
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub output: Output,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An escape sequence in a wrong argument reached the terminal.
    #[test]
    fn wrong_arguments_are_shown_without_what_steers_a_terminal() {
        for arguments in [
            &["dns", "x\u{1b}[31m.test"][..],
            &["dns", "y.test", "--sender", "\u{1b}[31m"],
            &["dns", "y.test", "z\u{1b}[31m"],
            &["dns", "--\u{1b}[31m"],
            &["\u{1b}[31m"],
            &["queue", "ls", "--older-than", "\u{1b}[31m"],
            &["queue", "ls", "--tag", "\u{1b}[31m", "--older-than", "x"],
        ] {
            let arguments: Vec<OsString> = ["ringpost"].iter().chain(arguments).map(OsString::from).collect();
            let Err(error) = Cli::read(&arguments) else { panic!("{arguments:?} is wrong") };
            let said = error.to_string();
            assert!(!said.contains('\u{1b}'), "{}", said.escape_debug());
            assert_eq!(error.exit_code(), 2);
        }
        let bidi: Vec<OsString> = ["ringpost", "dns", "a\u{202e}b@y.test"].map(OsString::from).into();
        assert!(Cli::read(&bidi).err().unwrap().to_string().contains("a\\xe2\\x80\\xaeb@y.test"));
    }
}
