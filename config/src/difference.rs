//! Which keys differ between two files, and which of them a running engine can take over.

use std::collections::{BTreeMap, BTreeSet};

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

/// Sections of which a file has several, and the keys by which one of them is known in both files.
const NAMED: [(&str, &str); 3] = [("route", "domain"), ("domain", "name"), ("listener", "address")];

/// Keys that differ between two files, with their sections: `queue.expiry`, `route for y.test changed: hosts, via`, `domain for y.test added`.
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
            let section = key.split(['.', '[', ' ']).next().unwrap_or_default();
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
        (DeValue::Array(old), DeValue::Array(new))
            if has_tables(old) && has_tables(new) && NAMED.iter().any(|(section, _)| *section == name) =>
        {
            named(&by_name(name, old), &by_name(name, new), name, keys);
        }
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

type Named<'t, 'i> = BTreeMap<String, &'t DeTable<'i>>;

/// By what each is called: one that is taken out or put in between changes no other.
fn named(old: &Named<'_, '_>, new: &Named<'_, '_>, section: &str, keys: &mut BTreeSet<String>) {
    for (name, table) in old {
        let Some(other) = new.get(name) else {
            keys.insert(format!("{section} for {name} removed"));
            continue;
        };
        let mut changed = BTreeSet::new();
        tables(table, other, "", &mut changed);
        if !changed.is_empty() {
            keys.insert(format!("{section} for {name} changed: {}", Vec::from_iter(changed).join(" and ")));
        }
    }
    for name in new.keys().filter(|name| !old.contains_key(*name)) {
        keys.insert(format!("{section} for {name} added"));
    }
}

/// A route is called by its first domain, and by its senders where it has some; no two files that are read without an error have two of
/// one name.
fn by_name<'t, 'i>(section: &str, array: &'t toml::de::DeArray<'i>) -> Named<'t, 'i> {
    let (_, key) = NAMED.iter().find(|(named, _)| *named == section).expect("the caller asked");
    let first = |value: &DeValue<'_>| match value {
        DeValue::Array(array) => array.first().map(|item| item.get_ref().as_str().unwrap_or_default().to_owned()),
        value => value.as_str().map(str::to_owned),
    };
    let tables = array.iter().filter_map(|item| item.get_ref().as_table());
    let name = |table: &DeTable<'_>| {
        let own = table.get(*key).and_then(|value| first(value.get_ref())).unwrap_or_default();
        match table.get("sender").and_then(|value| first(value.get_ref())) {
            Some(sender) if section == "route" => format!("{own} from {sender}"),
            _ => own,
        }
    };
    tables.map(|table| (name(table), table)).collect()
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
        let reloaded = ["domain", "route for w.test added", "route for x.test changed: domain", "smtp.idle_timeout", "smtp.recipients_max"];
        assert_eq!(difference.reloaded, reloaded);
        let restart = ["hostname", "listener for 0.0.0.0:25 removed", "listener for 0.0.0.0:26 added", "smtp.sessions_max", "spool.path"];
        assert_eq!(difference.restart, restart);
    }

    /// They were named by their numbers, and one that was taken out changed all behind it.
    #[test]
    fn a_route_that_is_taken_out_changes_no_other() {
        let routes: Vec<String> = (0..100)
            .map(|number| format!("[[route]]\ndomain = \"d{number}.test\"\nvia = \"smarthost\"\nhosts = [\"192.0.2.{number}\"]\n"))
            .collect();
        let old = routes.concat()
            + "[[route]]\ndomain = \"*\"\nsender = [\"a@x.test\"]\nvia = \"hold\"\n[[route]]\ndomain = \"*\"\nvia = \"mx\"\n";
        let new = old.replace(&routes[7], "").replace("\"192.0.2.50\"", "\"192.0.2.51\"]\nretry_base = \"1m\"\nx = [");
        let new = new.replace("via = \"hold\"", "via = \"discard\"") + "[[route]]\ndomain = \"new.test\"\nvia = \"hold\"\n";
        let expected = [
            "route for * from a@x.test changed: via",
            "route for d50.test changed: hosts and retry_base and x",
            "route for d7.test removed",
            "route for new.test added",
        ];
        assert_eq!(Difference::between(&old, &new).reloaded, expected);
        let reversed: String = routes.iter().rev().map(String::as_str).collect();
        assert_eq!(Difference::between(&routes.concat(), &reversed), Difference::default());
    }
}
