//! A config that was pushed to all nodes, over this node's own file.

use std::path::Path;

use toml::{Table, Value};

use crate::Config;
use crate::difference::SETTLED;

/// Sections that say what a node is, not what the cluster does: they stay in the node's own file.
pub const NODE_SECTIONS: [&str; 6] = ["shards", "spool", "control", "listener", "admin", "cluster"];

/// The same of single keys; those of [`NODE_SECTIONS`] are not among them.
const NODE_KEYS: [&str; 3] = ["hostname", "delivery.mode", "delivery.deliver"];

impl Config {
    /// The settings of the file `own` (at `path`) with every section of `pushed` in the place of its own. What is settled at the start
    /// stays as the node has it, where the section that is pushed says nothing of it.
    ///
    /// Fails with a sentence for each thing that is wrong: text that is no TOML, a section of [`NODE_SECTIONS`] by its name, and
    /// whatever [`Config::parse`] says of the whole.
    pub fn overlay(own: &str, path: &Path, pushed: &str) -> Result<Config, String> {
        Config::overlay_text(own, path, pushed).map(|(config, _)| config)
    }

    /// Whether what is pushed has only what nodes share. Asked before it is published: nodes go on with a version that says of such a key what
    /// they say themselves.
    ///
    /// # Errors
    /// The keys that belong to one node.
    pub fn shareable(pushed: &str) -> Result<(), String> {
        let Ok(pushed) = pushed.parse::<Table>() else { return Ok(()) };
        let has = |key: &&str| match key.split_once('.') {
            Some((section, key)) => pushed.get(section).is_some_and(|section| section.get(key).is_some()),
            None => pushed.contains_key(*key),
        };
        let foreign: Vec<&str> = NODE_KEYS.into_iter().filter(has).collect();
        if foreign.is_empty() {
            return Ok(());
        }
        let (verb, they) = if foreign.len() == 1 { ("belongs", "it") } else { ("belong", "them") };
        Err(format!(
            "{} {verb} to one node and cannot be pushed: leave {they} out, and set {they} in the node's own file",
            foreign.join(", ")
        ))
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
        for (name, mut section) in pushed {
            if let (Some(section), Some(own)) = (section.as_table_mut(), whole.get(&name).and_then(Value::as_table)) {
                keep_settled(&name, section, own);
            }
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

/// Gives a pushed section what nodes differ in by their own files.
fn keep_settled(name: &str, section: &mut Table, own: &Table) {
    for key in SETTLED.iter().filter_map(|key| key.strip_prefix(name)?.strip_prefix('.')) {
        if let (false, Some(value)) = (section.contains_key(key), own.get(key)) {
            section.insert(key.to_owned(), value.clone());
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

    /// Limits for `[delivery]` could not be pushed where a node only offers: without its `mode` and `deliver` they changed, and with them those of
    /// the other nodes did.
    #[test]
    fn what_is_settled_at_the_start_stays_as_the_node_has_it() {
        let front =
            "[cluster]\nenabled = true\n[delivery]\nmode = \"shared\"\ndeliver = false\nrate = \"1/s\"\n[smtp]\nsessions_max = 50\n";
        let own = Config::parse(front, Path::new("own.toml")).unwrap();
        let pushed = "[delivery]\nconnections_max = 7\n[smtp]\nrecipients_max = 200\n[bounce]\n";
        let config = Config::overlay(front, Path::new("own.toml"), pushed).unwrap();
        assert_eq!((config.delivery.mode, config.delivery.deliver), (own.delivery.mode, false));
        assert_eq!((config.delivery.connections_max, config.smtp.recipients_max, config.smtp.sessions_max), (7, 200, Some(50)));
        assert_eq!(config.delivery.policy, crate::Delivery::default().policy, "the rest of the section is what was pushed");
        assert_eq!(own.taking_over(&config), config, "and a running node takes it over");
        // What is pushed all the same is what counts.
        assert_eq!(Config::overlay(front, Path::new("own.toml"), "[smtp]\nsessions_max = 60\n").unwrap().smtp.sessions_max, Some(60));
    }

    #[test]
    fn keys_of_one_node_are_not_for_all() {
        assert_eq!(Config::shareable("[delivery]\nconnections_max = 7\n[[route]]\ndomain = \"*\"\n"), Ok(()));
        let refused = Config::shareable("[delivery]\nmode = \"shared\"\ndeliver = true\n").unwrap_err();
        assert!(
            refused.starts_with("delivery.mode, delivery.deliver belong to one node and cannot be pushed: leave them out"),
            "{refused}"
        );
        assert!(Config::shareable("hostname = \"a.test\"\n").unwrap_err().starts_with("hostname belongs to one node"));
    }

    #[test]
    fn a_pushed_config_is_checked_whole() {
        let refused = Config::overlay(OWN, Path::new("own.toml"), "[smtp]\nrecipients_max = 0\ncolour = 1\n").unwrap_err();
        assert!(refused.contains("smtp.recipients_max") && refused.contains("smtp.colour"), "{refused}");
        assert!(Config::overlay(OWN, Path::new("own.toml"), "[smtp").unwrap_err().contains("not TOML"));
    }
}
