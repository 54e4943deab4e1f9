//! Settings that change while the shard runs: swapped whole, between two commands; no session is dropped.
//!
//! A session keeps the limits it began with. Who may send to whom is asked for each recipient, and has the present answer.

use ringpost_config::Config;

/// What differs between two configs and cannot be changed while the process runs: the names of the sections.
///
/// `[relay]`, `[[domain]]`, `[[route]]`, `[queue]`, `[delivery]` and `[smtp]` can.
pub fn unchangeable(running: &Config, wanted: &Config) -> Vec<&'static str> {
    let differs = [
        ("hostname", running.hostname != wanted.hostname),
        ("[shards]", running.shards != wanted.shards),
        ("[spool]", running.spool != wanted.spool),
        ("[control]", running.control != wanted.control),
        ("[[listener]]", running.listeners != wanted.listeners),
        ("[bounce]", running.bounce != wanted.bounce),
        ("[dns]", running.dns != wanted.dns),
        ("delivery.mode", running.delivery.mode != wanted.delivery.mode),
        ("delivery.deliver", running.delivery.deliver != wanted.delivery.deliver),
        ("[log]", running.log != wanted.log),
        ("[memory]", running.memory != wanted.memory),
        ("[admin]", running.admin != wanted.admin),
        ("[cluster]", running.cluster != wanted.cluster),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("x.toml")).unwrap()
    }

    #[test]
    fn policy_and_limits_change_while_it_runs_and_the_rest_is_named() {
        let running = config("");
        let relay = "[relay]\nnetworks = [\"10.0.0.0/8\"]\n[smtp]\nrecipients_max = 200\n[[domain]]\nname = \"x.test\"\n";
        assert!(unchangeable(&running, &config(relay)).is_empty());
        let rest = "hostname = \"a.test\"\n[spool]\nprepared_segments = 9\n[[listener]]\naddress = \"127.0.0.1:1\"\n";
        assert_eq!(unchangeable(&running, &config(rest)), ["hostname", "[spool]", "[[listener]]"]);
    }
}
