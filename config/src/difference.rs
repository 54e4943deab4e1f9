//! Which keys differ between two files, and which of them a running engine can take over.

use std::collections::BTreeSet;

use toml::de::{DeTable, DeValue};

/// Sections that a running engine takes over.
const RELOADED: [&str; 7] = ["relay", "domain", "route", "smtp", "queue", "delivery", "bounce"];

/// What of these sections is settled at the start.
const SETTLED: [&str; 6] = [
    "smtp.sessions_max",
    "bounce.enabled",
    "bounce.reports_per_second",
    "bounce.reports_per_minute_and_sender",
    "delivery.mode",
    "delivery.deliver",
];

/// Keys that differ between two files, with their sections: `queue.expiry`, `route[2].hosts`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// A running engine takes these over.
    pub reloaded: Vec<String>,
    /// These count from the next start.
    pub restart: Vec<String>,
}

impl Difference {
    /// Between the texts of two files that were read without an error. A key that is not in one of them differs, even when it says what
    /// the default is.
    pub fn between(old: &str, new: &str) -> Self {
        let mut keys = BTreeSet::new();
        if let (Ok(old), Ok(new)) = (DeTable::parse(old), DeTable::parse(new)) {
            tables(old.get_ref(), new.get_ref(), "", &mut keys);
        }
        let (reloaded, restart) = keys.into_iter().partition(|key: &String| {
            let section = key.split(['.', '[']).next().unwrap_or_default();
            RELOADED.contains(&section) && !SETTLED.contains(&key.as_str())
        });
        Self { reloaded, restart }
    }
}

fn tables(old: &DeTable<'_>, new: &DeTable<'_>, prefix: &str, keys: &mut BTreeSet<String>) {
    let name = |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
    for (key, value) in old {
        let key = key.get_ref();
        match new.get(key.as_ref()) {
            Some(other) => values(value.get_ref(), other.get_ref(), &name(key), keys),
            None => alone(value.get_ref(), &name(key), keys),
        }
    }
    for (key, value) in new {
        if old.get(key.get_ref().as_ref()).is_none() {
            alone(value.get_ref(), &name(key.get_ref()), keys);
        }
    }
}

/// What is in one of the files only: each key of a section, because they do not all count from the same moment.
fn alone(value: &DeValue<'_>, name: &str, keys: &mut BTreeSet<String>) {
    match value {
        DeValue::Table(table) if !table.is_empty() => tables(table, &DeTable::new(), name, keys),
        _ => drop(keys.insert(name.to_owned())),
    }
}

fn values(old: &DeValue<'_>, new: &DeValue<'_>, name: &str, keys: &mut BTreeSet<String>) {
    match (old, new) {
        (DeValue::Table(old), DeValue::Table(new)) => tables(old, new, name, keys),
        (DeValue::Array(old), DeValue::Array(new)) if has_tables(old) && has_tables(new) => {
            for at in 0..old.len().max(new.len()) {
                let name = format!("{name}[{}]", at + 1);
                match (old.get(at), new.get(at)) {
                    (Some(old), Some(new)) => values(old.get_ref(), new.get_ref(), &name, keys),
                    _ => drop(keys.insert(name)),
                }
            }
        }
        _ if plain(old) == plain(new) => {}
        _ => drop(keys.insert(name.to_owned())),
    }
}

fn has_tables(array: &toml::de::DeArray<'_>) -> bool {
    array.iter().all(|item| matches!(item.get_ref(), DeValue::Table(_)))
}

/// The value without its place in the file.
fn plain(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Array(array) => array.iter().map(|item| plain(item.get_ref()) + ",").collect(),
        DeValue::Table(table) => table.iter().map(|(key, value)| format!("{}={},", key.get_ref(), plain(value.get_ref()))).collect(),
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(time) => time.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "hostname = \"a.test\"\n[spool]\npath = \"s\"\n[smtp]\nsessions_max = 10\nrecipients_max = 100\n[[listener]]\naddress = \"0.0.0.0:25\"\n\
                       [[route]]\ndomain = [\"x.test\", \"y.test\"]\nvia = \"hold\"\n[[route]]\ndomain = \"*\"\nvia = \"hold\"\n[relay]\nnetworks = []\n";

    #[test]
    fn who_delivers_is_settled_at_the_start() {
        let difference = Difference::between("", "[delivery]\nmode = \"shared\"\ndeliver = false\nrate = \"1/s\"\n");
        assert_eq!(difference.reloaded, ["delivery.rate"]);
        assert_eq!(difference.restart, ["delivery.deliver", "delivery.mode"]);
    }

    #[test]
    fn each_changed_key_is_named_once_with_what_becomes_of_it() {
        assert_eq!(Difference::between(OLD, OLD), Difference::default());
        let moved = format!("# a comment\n\n{OLD}");
        assert_eq!(Difference::between(OLD, &moved), Difference::default());
        let new = OLD
            .replace("\"a.test\"", "\"b.test\"")
            .replace("sessions_max = 10", "sessions_max = 11")
            .replace("recipients_max = 100", "recipients_max = 101\nidle_timeout = \"5s\"")
            .replace("\"y.test\"", "\"z.test\"")
            .replace("0.0.0.0:25", "0.0.0.0:26")
            .replace("path = \"s\"\n", "")
            + "[[domain]]\nname = \"z.test\"\n[[route]]\ndomain = \"w.test\"\nvia = \"hold\"\n";
        let difference = Difference::between(OLD, &new);
        assert_eq!(difference.reloaded, ["domain", "route[1].domain", "route[3]", "smtp.idle_timeout", "smtp.recipients_max"]);
        assert_eq!(difference.restart, ["hostname", "listener[1].address", "smtp.sessions_max", "spool.path"]);
    }
}
