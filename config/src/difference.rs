//! Which keys differ between two files, and which of them a running engine can take over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use toml::{Table, Value};

use crate::Config;

/// Sections that a running engine takes over.
const RELOADED: [&str; 7] = ["relay", "domain", "route", "smtp", "queue", "delivery", "bounce"];

/// What of these sections is settled at the start.
pub(crate) const SETTLED: [&str; 6] = [
    "smtp.sessions_max",
    "bounce.enabled",
    "bounce.reports_per_second",
    "bounce.reports_per_minute_and_sender",
    "delivery.mode",
    "delivery.deliver",
];

/// Sections of which a file has several, and the keys by which one of them is known in both files.
const NAMED: [(&str, &str); 3] = [("route", "domain"), ("domain", "name"), ("listener", "address")];

/// Sections of which a file can have thousands: whether a setting means anything else is seen without them.
const MANY: [&str; 2] = ["route", "domain"];

/// Settings of which it is looked whether they mean anything else. Further ones are named wherever their text differs: each takes as long as
/// reading a file.
const LOOKS_MAX: usize = 1000;

/// Keys that differ between two files, with their sections: `queue.expiry`, `route for y.test changed: hosts, via`, `domain for y.test added`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// A running engine takes these over.
    pub reloaded: Vec<String>,
    /// These count from the next start.
    pub restart: Vec<String>,
}

impl Difference {
    /// Between the texts of two files that were read without an error. A key that is in one of them only does not differ where it says what
    /// holds without it, nor one that says the same in other words (`"300s"`, `"5m"`).
    pub fn between(old: &str, new: &str) -> Self {
        let mut keys = BTreeSet::new();
        if let (Ok(old), Ok(new)) = (old.parse::<Table>(), new.parse::<Table>()) {
            let mut comparison = Comparison::new(&new);
            comparison.tables(&old, &new, "");
            keys = comparison.keys;
        }
        let (reloaded, restart) = keys.into_iter().partition(|key: &String| {
            let section = key.split(['.', '[', ' ']).next().unwrap_or_default();
            RELOADED.contains(&section) && !SETTLED.contains(&key.as_str())
        });
        Self { reloaded, restart }
    }
}

struct Comparison {
    keys: BTreeSet<String>,
    /// The new file without [`MANY`].
    few: Table,
    looks_left: usize,
}

type Named<'t> = BTreeMap<String, &'t Table>;

impl Comparison {
    fn new(new: &Table) -> Self {
        let few = new.iter().filter(|(key, _)| !MANY.contains(&key.as_str())).map(|(key, value)| (key.clone(), value.clone())).collect();
        Comparison { keys: BTreeSet::new(), few, looks_left: LOOKS_MAX }
    }

    fn tables(&mut self, old: &Table, new: &Table, prefix: &str) {
        let name = |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
        for (key, value) in old {
            match new.get(key) {
                Some(other) => self.values(value, other, &name(key)),
                None => self.alone(value, &name(key), Some(value)),
            }
        }
        for (key, value) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
            self.alone(value, &name(key), None);
        }
    }

    /// What is in one of the files only (`old`: in the old one): each key of a section, because they do not all count from the same moment.
    fn alone(&mut self, value: &Value, name: &str, old: Option<&Value>) {
        match (value, old) {
            (Value::Table(table), Some(_)) if !table.is_empty() => self.tables(table, &Table::new(), name),
            (Value::Table(table), None) if !table.is_empty() => self.tables(&Table::new(), table, name),
            (_, old) => self.differs(name, old),
        }
    }

    fn values(&mut self, old: &Value, new: &Value, name: &str) {
        match (old, new) {
            (Value::Table(old), Value::Table(new)) => self.tables(old, new, name),
            (Value::Array(olds), Value::Array(news)) if has_tables(olds) && has_tables(news) => {
                if NAMED.iter().any(|(section, _)| *section == name) {
                    return self.named(&by_name(name, olds), &by_name(name, news), name);
                }
                for at in 0..olds.len().max(news.len()) {
                    let name = format!("{name}[{}]", at + 1);
                    match (olds.get(at), news.get(at)) {
                        (Some(old), Some(new)) => self.values(old, new, &name),
                        _ => drop(self.keys.insert(name)),
                    }
                }
            }
            _ if old == new => {}
            _ => self.differs(name, Some(old)),
        }
    }

    /// The text differs. Named, unless the new file would mean the same with what the `old` one has there.
    fn differs(&mut self, name: &str, old: Option<&Value>) {
        let path: Vec<&str> = name.split('.').collect();
        let is_looked_at = !MANY.contains(&path[0]) && !name.contains('[');
        let few = self.few.clone();
        if !is_looked_at || self.means_else(&few, with(&few, &path, old)) {
            self.keys.insert(name.to_owned());
        }
    }

    /// By what each is called: one that is taken out or put in between changes no other.
    fn named(&mut self, old: &Named<'_>, new: &Named<'_>, section: &str) {
        for (name, table) in old {
            let Some(other) = new.get(name) else {
                self.keys.insert(format!("{section} for {name} removed"));
                continue;
            };
            let all: BTreeSet<&String> = table.keys().chain(other.keys()).filter(|key| table.get(*key) != other.get(*key)).collect();
            let changed: Vec<&str> =
                all.into_iter().map(String::as_str).filter(|key| self.element_means_else(section, table, other, key)).collect();
            if !changed.is_empty() {
                self.keys.insert(format!("{section} for {name} changed: {}", changed.join(" and ")));
            }
        }
        for name in new.keys().filter(|name| !old.contains_key(*name)) {
            self.keys.insert(format!("{section} for {name} added"));
        }
    }

    /// Would a route, or one of another section that can stand more than once, mean something else with what the old one had there?
    fn element_means_else(&mut self, section: &str, old: &Table, new: &Table, key: &str) -> bool {
        let whole = |element: Table| {
            let mut whole = self.few.clone();
            whole.insert(section.to_owned(), Value::Array(vec![Value::Table(element)]));
            // Without a network of clients it need not be the route of all mail.
            let networks = Value::Array(Vec::new());
            whole.insert("relay".to_owned(), Value::Table(Table::from_iter([("networks".to_owned(), networks)])));
            whole
        };
        let (now, before) = (whole(new.clone()), whole(with(new, &[key], old.get(key))));
        self.means_else(&now, before)
    }

    /// What cannot be read, because it contradicts what else is there, is something else.
    fn means_else(&mut self, now: &Table, before: Table) -> bool {
        let Some(left) = self.looks_left.checked_sub(1) else { return true };
        self.looks_left = left;
        let read = |table: &Table| Config::parse(&toml::to_string(table).ok()?, Path::new("")).ok();
        match (read(now), read(&before)) {
            (Some(now), Some(before)) => now != before,
            _ => true,
        }
    }
}

/// The table with this value at a place, or with none.
fn with(table: &Table, path: &[&str], value: Option<&Value>) -> Table {
    let mut table = table.clone();
    match path {
        [] => {}
        [key] => {
            match value {
                Some(value) => table.insert((*key).to_owned(), value.clone()),
                None => table.remove(*key),
            };
        }
        [section, rest @ ..] => {
            let inner = table
                .get(*section)
                .and_then(Value::as_table)
                .map_or_else(|| with(&Table::new(), rest, value), |inner| with(inner, rest, value));
            table.insert((*section).to_owned(), Value::Table(inner));
        }
    }
    table
}

/// A route is called by its first domain, and by its senders where it has some; no two files that are read without an error have two of
/// one name.
fn by_name<'t>(section: &str, array: &'t [Value]) -> Named<'t> {
    let (_, key) = NAMED.iter().find(|(named, _)| *named == section).expect("the caller asked");
    let first = |value: &Value| match value {
        Value::Array(array) => array.first().map(|item| item.as_str().unwrap_or_default().to_owned()),
        value => value.as_str().map(str::to_owned),
    };
    let name = |table: &Table| {
        let own = table.get(*key).and_then(first).unwrap_or_default();
        // As `Route::names` has it.
        let one = |key: &str| table.get(key).filter(|_| section == "route").and_then(first);
        let sender = one("sender").map(|sender| if sender.is_empty() { "<>".to_owned() } else { sender });
        match sender.or_else(|| one("sender_domain").map(|domain| format!("@{domain}"))) {
            Some(sender) => format!("{own} from {sender}"),
            None => own,
        }
    };
    array.iter().filter_map(Value::as_table).map(|table| (name(table), table)).collect()
}

fn has_tables(array: &[Value]) -> bool {
    array.iter().all(Value::is_table)
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

    /// A key that said what the default is was named as a change, and so was one that said the same in another unit.
    #[test]
    fn what_means_the_same_has_not_changed() {
        let same = [
            ("", "[queue]\nretry_base = \"300s\"\nexpiry = \"5d\"\n[delivery]\nconnections_max = 20\n[smtp]\n"),
            ("[memory]\nmax_memory = \"1 GiB\"\n", "[memory]\nmax_memory = \"1024 MiB\"\n"),
            ("", "[[listener]]\naddress = \"127.0.0.1:2525\"\n"),
            (
                "[[route]]\ndomain = \"y.test\"\nvia = \"mx\"\nexpiry = \"1d\"\n",
                "[[route]]\ndomain = [\"y.test\"]\nvia = \"mx\"\nport = 25\nexpiry = \"24h\"\n",
            ),
        ];
        for (old, new) in same {
            assert_eq!(Difference::between(old, new), Difference::default(), "{new}");
            assert_eq!(Difference::between(new, old), Difference::default(), "{old}");
        }
        let [default, ..] = same;
        let mixed = format!("{}sessions_max = 7\n", default.1);
        assert_eq!(Difference::between("", &mixed), Difference { reloaded: vec![], restart: vec!["smtp.sessions_max".into()] });
        // What is at the default now was not before.
        assert_eq!(Difference::between("[queue]\nexpiry = \"4d\"\n", default.1).reloaded, ["queue.expiry"]);
        // The whole of the defaults, but for what a file can have several of.
        let whole = Difference::between("", crate::DEFAULT_TOML);
        assert!(whole.restart.is_empty() && whole.reloaded.iter().all(|key| key == "route"), "{whole:?}");
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

    /// Routes for one domain that differ by `sender_domain` only had one name: of the first a reload said that nothing had changed.
    #[test]
    fn routes_for_domains_of_senders_are_told_apart() {
        let route = |sender: &str, via: &str| format!("[[route]]\ndomain = \"*\"\n{sender}\nvia = \"{via}\"\n");
        let text = |first: &str, second: &str, third: &str| {
            route("sender_domain = \"a.test\"", first) + &route("sender_domain = [\"*.b.test\"]", second) + &route("sender = \"\"", third)
        };
        let old = text("hold", "hold", "hold");
        for (new, said) in [
            (text("mx", "hold", "hold"), "route for * from @a.test changed: via"),
            (text("hold", "mx", "hold"), "route for * from @*.b.test changed: via"),
            (text("hold", "hold", "mx"), "route for * from <> changed: via"),
        ] {
            assert_eq!(Difference::between(&old, &new).reloaded, [said]);
        }
    }
}
