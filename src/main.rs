//! The `ringpost` command. What each call does is in the module it names; nothing imports this crate.
#![forbid(unsafe_code)]

mod admin;
mod admin_connections;
mod answers;
mod change_cli;
mod chores;
mod cli;
mod cluster;
mod cluster_cli;
mod cluster_queue_cli;
mod cluster_queue_server;
mod cluster_server;
mod cluster_wire;
mod control_client;
mod control_server;
mod control_wire;
mod counter_sums;
mod dns;
mod dns_cli;
mod drain_cli;
mod ended;
mod handover;
mod in_turn;
mod limit_keeper;
mod lines;
mod log_cli;
mod logging;
mod lookup_backlog;
mod mail_log_entry;
mod mail_log_reader;
mod mail_log_writer;
mod node;
mod partitions_server;
mod pause_cli;
mod pauser;
mod queue_account;
mod queue_cli;
mod queue_filter;
mod reloader;
mod resolver;
mod secret_advice;
mod shard_call;
mod socket;
mod spool_cli;
mod spool_supply;
mod topology;
mod unanswered_limits;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::CommandFactory;
use cli::{Cli, Command, ConfigCall, ConfigFile, Control, EXIT_CONFIG, EXIT_IO, EXIT_OK, LogCall, LogPlace};
use node::StartConfig;
use ringpost_config::{Config, MailOutput};
use ringpost_smtp::shown::shown_lines;
use secret_advice::secret_advice;
use topology::CorePlan;

#[cfg(not(feature = "count-allocations"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "count-allocations")]
#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<std::alloc::System> = &stats_alloc::INSTRUMENTED_SYSTEM;

fn main() -> ExitCode {
    match run(Cli::of_process()) {
        Ok(code) => code,
        Err(Failure { message, code }) => {
            eprintln!("ringpost: {}", shown_lines(&message));
            ExitCode::from(code)
        }
    }
}

/// What ends a command early.
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn config(message: impl ToString) -> Self {
        Failure { message: message.to_string(), code: EXIT_CONFIG }
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Serve(file) => serve(&file),
        Command::Check(file) => {
            let config = read_config(&file)?;
            let plan = CorePlan::new(&config).map_err(Failure::config)?;
            cluster::check_secrets(&config).map_err(Failure::config)?;
            plan.warnings.iter().for_each(|warning| eprintln!("ringpost: warning: {warning}"));
            config.advice().iter().for_each(|advice| eprintln!("ringpost: warning: {advice}"));
            secret_advice(&config).iter().for_each(|advice| eprintln!("ringpost: warning: {advice}"));
            queue_cli::say("the config is good");
            Ok(ExitCode::from(EXIT_OK))
        }
        Command::Topology { config, output } => {
            let plan = CorePlan::new(&read_config(&config)?).map_err(Failure::config)?;
            if output.json {
                queue_cli::say(&serde_json::to_string(&plan).expect("a plan is plain data"));
            } else {
                queue_cli::say(plan.to_string().trim_end());
            }
            Ok(ExitCode::from(EXIT_OK))
        }
        Command::Config { call: ConfigCall::Default } => {
            queue_cli::say(ringpost_config::DEFAULT_TOML.trim_end());
            Ok(ExitCode::from(EXIT_OK))
        }
        Command::Spool { call } => spool_cli::spool(call, |file| read_config(file).map_err(|failure| failure.message)),
        Command::Queue { control, call } => {
            // A config that cannot be read keeps nobody from asking at a socket that is named.
            let mail_output = read_config(&control.config).ok().map(|config| config.log.mail_output);
            Ok(queue_cli::queue(&socket_path(&control)?, call, mail_output.as_ref()))
        }
        Command::Log { call } => {
            let (LogCall::Follow { place, .. } | LogCall::Grep { place, .. }) = &call;
            log_cli::log(&mail_log_file(place)?, call)
        }
        Command::Reload { control, output } => Ok(queue_cli::reload(&socket_path(&control)?, output)),
        // The flag names the one place there is; without it clap has said so.
        Command::Drain { to_cluster: _, control, output } => Ok(drain_cli::drain(&socket_path(&control)?, output)),
        Command::Stats { control, output } => Ok(queue_cli::stats(&socket_path(&control)?, output)),
        Command::Dns { config, output, domain, sender } => {
            dns_cli::dns(&start_config(&config)?, &domain, sender.as_deref(), output).map_err(Failure::config)
        }
        Command::Cluster { control, call } => Ok(cluster_cli::cluster(&socket_path(&control)?, call)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ringpost", &mut script);
            queue_cli::say(String::from_utf8_lossy(&script).trim_end());
            Ok(ExitCode::from(EXIT_OK))
        }
        Command::Man { dir } => man(dir.as_deref()),
    }
}

fn man(folder: Option<&Path>) -> Result<ExitCode, Failure> {
    let failure = |error: std::io::Error| Failure { message: error.to_string(), code: EXIT_IO };
    match folder {
        Some(folder) => clap_mangen::generate_to(Cli::command(), folder).map_err(failure)?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(failure)?;
            queue_cli::say(String::from_utf8_lossy(&page).trim_end());
        }
    }
    Ok(ExitCode::from(EXIT_OK))
}

fn serve(file: &ConfigFile) -> Result<ExitCode, Failure> {
    let ended = |error: node::NodeError| Failure { message: error.to_string(), code: error.exit_code() };
    let hearing = node::Hearing::start().map_err(ended)?;
    let start = start_config(file)?;
    logging::start(&start.config.log);
    if let Some(reason) = &start.unfit {
        tracing::warn!(reason, "the config that was pushed to all nodes does not go with this file any more and is left out");
    }
    let plan = CorePlan::new(&start.config).map_err(Failure::config)?;
    node::serve(hearing, start, plan).map_err(ended)
}

/// The file, with the config that was pushed to all nodes before the last stop, if there is one.
fn start_config(file: &ConfigFile) -> Result<StartConfig, Failure> {
    let (config, own) = read_with_text(file)?;
    let alone = |config, own| StartConfig { config: Arc::new(config), own, pushed: String::new(), unfit: None };
    if !config.cluster.enabled {
        return Ok(alone(config, own));
    }
    let pushed = ringpost_cluster::pushed_config::PushedConfig::open(&cluster::cluster_folder(&config)).map_err(Failure::config)?;
    Ok(match pushed.text() {
        None => alone(config, own),
        Some(text) => match Config::overlay(&own, config.path(), &text) {
            Ok(whole) => StartConfig { config: Arc::new(whole), own, pushed: text, unfit: None },
            // What ran yesterday may contradict a file that was edited since: say so, and carry mail by the file.
            Err(reason) => StartConfig { unfit: Some(reason), ..alone(config, own) },
        },
    })
}

/// Where the engine is asked. A file in which something else is wrong keeps nobody from that: it is said, and the engine has an earlier one.
fn socket_path(control: &Control) -> Result<PathBuf, Failure> {
    if let Some(path) = &control.socket {
        return Ok(path.clone());
    }
    let Some((path, bytes)) = read_config_file(&control.config)? else { return Ok(Config::default().control.socket) };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let wrong = match Config::text(bytes, &path).map_err(|error| error.to_string()) {
        Ok(text) => match Config::parse(&text, &path) {
            Ok(config) => return Ok(config.control.socket),
            Err(errors) => errors.to_string(),
        },
        Err(error) => error,
    };
    let socket = ringpost_config::Control::alone(&text, &path).map_err(Failure::config)?.socket;
    wrong.lines().for_each(|line| eprintln!("ringpost: warning: {}", shown_lines(line)));
    Ok(socket)
}

fn mail_log_file(place: &LogPlace) -> Result<PathBuf, Failure> {
    if let Some(file) = &place.file {
        return Ok(file.clone());
    }
    match read_config(&place.config)?.log.mail_output {
        MailOutput::File(file) => Ok(file),
        MailOutput::Stdout | MailOutput::Stderr => {
            Err(Failure::config("log.mail_output is no file: name one with --file, or set log.mail_output to one"))
        }
    }
}

/// The file named, else the first of the usual places, else the defaults.
fn read_config(file: &ConfigFile) -> Result<Config, Failure> {
    read_with_text(file).map(|(config, _)| config)
}

/// With the text that it was read from; empty: there is no file.
fn read_with_text(file: &ConfigFile) -> Result<(Config, String), Failure> {
    let Some((path, bytes)) = read_config_file(file)? else { return Ok((Config::default(), String::new())) };
    let text = Config::text(bytes, &path).map_err(Failure::config)?;
    Ok((Config::parse(&text, &path).map_err(Failure::config)?, text))
}

/// What is in it; `None`: there is none, and the defaults hold.
fn read_config_file(file: &ConfigFile) -> Result<Option<(PathBuf, Vec<u8>)>, Failure> {
    const USUAL: [&str; 2] = ["ringpost.toml", "/etc/ringpost/ringpost.toml"];
    let usual = || USUAL.iter().map(PathBuf::from).find(|path| path.exists());
    let Some(path) = file.file.clone().or_else(usual) else { return Ok(None) };
    let bytes =
        std::fs::read(&path).map_err(|error| Failure::config(format!("{}: cannot read the config file: {error}", path.display())))?;
    Ok(Some((path, bytes)))
}
