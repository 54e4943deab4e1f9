//! A config that was pushed to all nodes, over this node's own file.

use std::path::Path;

use toml::{Table, Value};

use crate::Config;

/// Sections that say what a node is, not what the cluster does: they stay in the node's own file.
pub const NODE_SECTIONS: [&str; 6] = ["shards", "spool", "control", "listener", "admin", "cluster"];

impl Config {
    /// The settings of the file `own` (at `path`) with every section of `pushed` in the place of its own.
    ///
    /// Fails with a sentence for each thing that is wrong: text that is no TOML, a section of [`NODE_SECTIONS`] by its name, and
    /// whatever [`Config::parse`] says of the whole.
    pub fn overlay(own: &str, path: &Path, pushed: &str) -> Result<Config, String> {
        Config::overlay_text(own, path, pushed).map(|(config, _)| config)
    }

    /// As [`Config::overlay`], with the text of the whole, by which two configs are compared ([`Difference`](crate::Difference)).
    pub fn overlay_text(own: &str, path: &Path, pushed: &str) -> Result<(Config, String), String> {
        let pushed: Table = pushed.parse().map_err(|error: toml::de::Error| format!("it is not TOML: {}", error.message()))?;
        let foreign: Vec<String> =
            NODE_SECTIONS.iter().filter(|name| pushed.contains_key(**name)).map(|name| shown(name, &pushed[*name])).collect();
        if !foreign.is_empty() {
            return Err(format!(
                "{} belong{} to one node and cannot be pushed",
                foreign.join(", "),
                if foreign.len() == 1 { "s" } else { "" }
            ));
        }
        let mut whole: Table =
            own.parse().map_err(|error: toml::de::Error| format!("{}: is not TOML: {}", path.display(), error.message()))?;
        for (name, section) in pushed {
            whole.insert(name, section);
        }
        let text = toml::to_string(&whole).map_err(|error| error.to_string())?;
        // Lines would be those of the text made here, which nobody has seen: the keys say where.
        match Config::parse(&text, path) {
            Ok(config) => Ok((config, text)),
            Err(errors) => Err(errors.0.iter().map(|error| error.without_place()).collect::<Vec<_>>().join("; ")),
        }
    }
}

fn shown(name: &str, section: &Value) -> String {
    if section.is_array() { format!("[[{name}]]") } else { format!("[{name}]") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "hostname = \"mx1.example.org\"\n[relay]\nnetworks = []\n[[listener]]\naddress = \"127.0.0.1:2626\"\n[smtp]\nrecipients_max = 100\n";

    #[test]
    fn pushed_sections_take_the_place_of_the_own_ones() {
        let config = Config::overlay(OWN, Path::new("/x/own.toml"), "[smtp]\nrecipients_max = 200\n").unwrap();
        assert_eq!((config.smtp.recipients_max, config.listeners[0].address.port()), (200, 2626));
        assert_eq!(config.hostname.as_deref(), Some("mx1.example.org"));
    }

    #[test]
    fn sections_of_one_node_are_refused_by_name() {
        for name in NODE_SECTIONS {
            let (text, written) = match name {
                "listener" => ("[[listener]]\naddress = \"127.0.0.1:1\"\n".to_owned(), "[[listener]]".to_owned()),
                name => (format!("[{name}]\n"), format!("[{name}]")),
            };
            let refused = Config::overlay(OWN, Path::new("own.toml"), &text).unwrap_err();
            assert!(refused.starts_with(&written) && refused.contains("one node"), "{refused}");
        }
    }

    #[test]
    fn a_pushed_config_is_checked_whole() {
        let refused = Config::overlay(OWN, Path::new("own.toml"), "[smtp]\nrecipients_max = 0\ncolour = 1\n").unwrap_err();
        assert!(refused.contains("smtp.recipients_max") && refused.contains("smtp.colour"), "{refused}");
        assert!(Config::overlay(OWN, Path::new("own.toml"), "[smtp").unwrap_err().contains("not TOML"));
    }
}
