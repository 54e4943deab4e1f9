//! What stands above the figures of benches and rigs: machine, kernel, disk, programs with their commits, command. A figure without it is a rumour.

use std::fmt;
use std::path::Path;

use ringpost_loadtest::engine::version_of;
use ringpost_loadtest::machine::Machine;
use serde::Serialize;

/// Where and how figures were measured.
#[derive(Debug, Clone, Serialize)]
pub struct Heading {
    /// This machine, the disk of the rig's folder, version and commit of the engine and of these tools.
    pub machine: Machine,
    /// The call, as it was made.
    pub command: String,
}

impl Heading {
    /// Looks at this machine; `folder` is on the disk that is used, `engine` the binary that is measured.
    pub fn observe(engine: &Path, folder: &Path) -> Self {
        Self { machine: Machine::observe(folder, &version_of(engine)), command: command_line(std::env::args()) }
    }

    /// Prints it above a table, or as the first of the JSON objects: `{"measured_on": …}`.
    pub fn say(&self, json: bool) -> serde_json::Result<()> {
        if json {
            println!("{}", serde_json::to_string(&serde_json::json!({ "measured_on": self }))?);
        } else {
            println!("{self}");
        }
        Ok(())
    }
}

impl fmt::Display for Heading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { engine, tool, load_average, .. } = &self.machine;
        writeln!(f, "{}, load average {load_average:.2}", self.machine.line())?;
        write!(f, "{engine}; tools {tool}\ncommand: {}", self.command)
    }
}

/// A call as a shell takes it.
pub fn command_line(arguments: impl Iterator<Item = String>) -> String {
    let plain = |octet: u8| octet.is_ascii_alphanumeric() || b"-_./:=,@+%".contains(&octet);
    let quoted = |word: String| {
        if !word.is_empty() && word.bytes().all(plain) { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
    };
    arguments.map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tables named the machine only: whoever copied a figure could not say of which commit or disk it was, or how to measure it again.
    #[test]
    fn a_table_names_machine_disk_commit_and_command() {
        let heading = Heading::observe(Path::new("/nowhere/ringpost"), Path::new("/"));
        let text = heading.to_string();
        for part in [&heading.machine.kernel, &heading.machine.disk, &heading.machine.tool, &heading.command] {
            assert!(!part.is_empty() && text.contains(part.as_str()), "{part:?} in {text}");
        }
        assert!(heading.machine.tool.ends_with(')') && heading.machine.disk.contains(" on "), "{heading:?}");
    }

    #[test]
    fn a_call_can_be_made_again() {
        let words = ["bench", "--size", "4096", "--only", "it's two", ""];
        assert_eq!(command_line(words.map(String::from).into_iter()), r"bench --size 4096 --only 'it'\''s two' ''");
    }
}
