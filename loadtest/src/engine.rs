//! An engine of one's own: its config file and what it says of itself. It is an [`EngineProcess`].

pub mod process;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use self::process::EngineProcess;
use crate::{free_port::free_port, leash};

/// How long SIGTERM is given.
pub const STOP_MAX: Duration = Duration::from_secs(60);

/// Where the engine sends what it accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// To these next hops, one at least: domain number k (`d<k>.load.test`) of so many to hop k modulo their number, all other domains to
    /// the first.
    Smarthosts {
        /// The next hops.
        hops: Vec<SocketAddr>,
        /// Domains that are spread over them.
        domains: usize,
    },
    /// Nowhere: accepted mail stays queued.
    Hold,
    /// Accepted, durable, and settled without a delivery.
    Discard,
}

/// How an engine is set up; what is not here is its default.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The binary.
    pub binary: PathBuf,
    /// Holds config, log and spool.
    pub folder: PathBuf,
    /// Cores of the shards.
    pub cores: Vec<usize>,
    /// The route of all mail.
    pub route: Route,
    /// Settings by section, as TOML; a key here wins over what this module writes.
    pub settings: toml::Table,
}

/// Finds the engine: what was given, else `ringpost` beside this program.
///
/// # Errors
/// A sentence that says where it was looked for.
pub fn find_binary(given: Option<&Path>) -> Result<PathBuf, String> {
    let path = match given {
        Some(path) => path.to_path_buf(),
        None => std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?.with_file_name("ringpost"),
    };
    let hint = "build it with `cargo build --release -p ringpost`, or say --engine PATH, or --to HOST:PORT for a server that runs";
    let nothing = |reason: &dyn std::fmt::Display| format!("no engine at {}: {reason}; {hint}", path.display());
    let found = path.canonicalize().map_err(|error| nothing(&error))?;
    let known = found.metadata().map_err(|error| nothing(&error))?;
    if known.is_file() && known.permissions().mode() & 0o111 != 0 { Ok(found) } else { Err(nothing(&"it is no program")) }
}

/// What `ringpost --version` says; empty when it says nothing.
pub fn version_of(binary: &Path) -> String {
    let output = Command::new(binary).arg("--version").stdin(Stdio::null()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string()).unwrap_or_default()
}

/// Writes the config file of an engine that listens on a free port of loopback. It is not started.
///
/// # Errors
/// A folder or port that cannot be had, or settings that are no TOML.
pub fn prepare(options: &EngineOptions) -> io::Result<EngineProcess> {
    let engine = EngineProcess::new(&options.binary, &options.folder, free_port()?)?;
    std::fs::write(engine.config(), config_text(options, engine.address)?)?;
    Ok(engine)
}

/// Starts it and waits for its banner; how long that took. It ends with the thread that calls this, at the latest (see `leash`).
///
/// # Errors
/// As [`EngineProcess::start`].
pub fn start(engine: &mut EngineProcess) -> io::Result<Duration> {
    let mut command = leash::command(engine.binary().as_os_str());
    // A group of its own: Ctrl-C at the terminal ends the run, which ends the engine when the load is over; see `leash` for ends by force.
    command.process_group(0);
    engine.start(command)
}

/// Its counters; empty when it does not answer.
pub fn counters(engine: &EngineProcess) -> BTreeMap<String, f64> {
    flattened(&engine.stats())
}

/// Counters as `ringpost stats --json` has them, by their path.
pub fn flattened(stats: &serde_json::Value) -> BTreeMap<String, f64> {
    let mut counters = BTreeMap::new();
    flatten("", stats, &mut counters);
    counters
}

fn config_text(options: &EngineOptions, listen: SocketAddr) -> io::Result<String> {
    let cores: Vec<String> = options.cores.iter().map(usize::to_string).collect();
    let route = routes(&options.route);
    let own = format!(
        "hostname = \"engine.load.test\"\n[shards]\ncores = \"{}\"\n[spool]\npath = \"spool\"\n[control]\nsocket = \"ringpost.sock\"\n\
         [log]\nmail_output = \"mail.log\"\n[[listener]]\naddress = \"{listen}\"\n[relay]\nnetworks = [\"127.0.0.0/8\", \"::1/128\"]\n\
         {route}",
        cores.join(",")
    );
    let invalid = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, format!("the engine's settings: {error}"));
    let mut table: toml::Table = own.parse().map_err(|error| invalid(&error))?;
    for (section, value) in &options.settings {
        match (table.get_mut(section).and_then(toml::Value::as_table_mut), value.as_table()) {
            (Some(known), Some(given)) => known.extend(given.clone()),
            _ => drop(table.insert(section.clone(), value.clone())),
        }
    }
    let mut text = String::new();
    write!(text, "{}", toml::to_string(&table).map_err(|error| invalid(&error))?).expect("writing to a string does not fail");
    Ok(text)
}

fn routes(route: &Route) -> String {
    let to = |domain: &str, how: &str| format!("[[route]]\ndomain = {domain}\n{how}\n");
    match route {
        Route::Hold => to("\"*\"", "via = \"hold\""),
        Route::Discard => to("\"*\"", "via = \"discard\""),
        Route::Smarthosts { hops, domains } => {
            let how = |hop: &SocketAddr| format!("via = \"smarthost\"\nhosts = [\"{hop}\"]");
            let mut text = hops.first().map(|hop| to("\"*\"", &how(hop))).unwrap_or_default();
            for (at, hop) in hops.iter().enumerate().skip(1) {
                let names: Vec<String> = (at..*domains).step_by(hops.len()).map(|k| format!("\"d{k}.load.test\"")).collect();
                if !names.is_empty() {
                    text.push_str(&to(&format!("[{}]", names.join(", ")), &how(hop)));
                }
            }
            text
        }
    }
}

/// Numbers by their path in a JSON object.
fn flatten(path: &str, value: &serde_json::Value, counters: &mut BTreeMap<String, f64>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, value, counters);
            }
        }
        other => {
            if let Some(number) = other.as_f64() {
                counters.insert(path.to_string(), number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_win_over_what_is_written_by_itself() {
        let options = EngineOptions {
            binary: "/bin/true".into(),
            folder: "/tmp/x".into(),
            cores: vec![0, 2],
            route: Route::Hold,
            settings: "[shards]\nsmt = \"use\"\n[smtp]\nsessions_max = 10\n[log]\nmail_output = \"stdout\"\n".parse().unwrap(),
        };
        let text = config_text(&options, SocketAddr::from(([127, 0, 0, 1], 25))).unwrap();
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["shards"]["cores"].as_str(), Some("0,2"));
        assert_eq!(table["shards"]["smt"].as_str(), Some("use"));
        assert_eq!(table["smtp"]["sessions_max"].as_integer(), Some(10));
        assert_eq!(table["log"]["mail_output"].as_str(), Some("stdout"));
        assert_eq!(table["route"][0]["via"].as_str(), Some("hold"));
    }

    #[test]
    fn domains_are_spread_over_the_next_hops() {
        let hops = [25, 26, 27].map(|port| SocketAddr::from(([127, 0, 0, 1], port))).to_vec();
        let table: toml::Table = routes(&Route::Smarthosts { hops, domains: 5 }).parse().unwrap();
        let routes = table["route"].as_array().unwrap();
        assert_eq!(routes.len(), 3);
        assert_eq!(routes[0]["domain"].as_str(), Some("*"));
        let names: Vec<&str> = routes[1]["domain"].as_array().unwrap().iter().filter_map(toml::Value::as_str).collect();
        assert_eq!(names, ["d1.load.test", "d4.load.test"]);
        assert_eq!(routes[2]["hosts"][0].as_str(), Some("127.0.0.1:27"));
    }

    #[test]
    fn an_engine_that_is_not_there_is_named_with_the_mend() {
        let error = find_binary(Some(Path::new("/nowhere/ringpost"))).unwrap_err();
        assert!(error.contains("/nowhere/ringpost") && error.contains("--to"), "{error}");
        assert!(find_binary(Some(Path::new("/"))).unwrap_err().contains("it is no program"));
    }

    #[test]
    fn counters_are_numbers_by_their_path() {
        let counters = flattened(&serde_json::json!({"a": 1, "b": {"c": 2.5, "d": "x"}}));
        assert_eq!(counters, BTreeMap::from([("a".into(), 1.0), ("b.c".into(), 2.5)]));
    }
}
