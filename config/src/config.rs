//! The whole of the settings.

use std::path::Path;

use crate::name::parse_mail_domain;
use crate::section::{Document, Section};
use crate::source::Source;
use crate::{
    Admin, Bounce, Cluster, ConfigError, ConfigErrors, Control, Delivery, Dns, Domain, Domains, Listener, Log, Memory, OFFERED_CONTENT_MAX,
    Queue, Relay, Route, Routes, Shards, Smtp, Spool, Via, check,
};

/// All settings of one file. Two are equal when their settings are, wherever they stand in their files.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name in the banner, EHLO and Received; None: the machine's own name, which the caller looks up.
    pub hostname: Option<String>,
    /// `[shards]`
    pub shards: Shards,
    /// `[spool]`
    pub spool: Spool,
    /// `[control]`
    pub control: Control,
    /// `[[listener]]`, in the order of the file; absent, 127.0.0.1:2525. Never empty, no address twice.
    pub listeners: Vec<Listener>,
    /// `[relay]`
    pub relay: Relay,
    /// `[[domain]]`
    pub domains: Domains,
    /// `[[route]]`; absent, all mail is held.
    pub routes: Routes,
    /// `[smtp]`
    pub smtp: Smtp,
    /// `[queue]`
    pub queue: Queue,
    /// `[bounce]`
    pub bounce: Bounce,
    /// `[delivery]`
    pub delivery: Delivery,
    /// `[dns]`
    pub dns: Dns,
    /// `[log]`
    pub log: Log,
    /// `[memory]`
    pub memory: Memory,
    /// `[admin]`
    pub admin: Admin,
    /// `[cluster]`
    pub cluster: Cluster,
    source: Source,
}

impl Config {
    /// What stands in a file with these bytes, for [`Config::parse`].
    ///
    /// # Errors
    /// Where it stops being UTF-8, which TOML is.
    pub fn text(bytes: Vec<u8>, path: &Path) -> Result<String, ConfigError> {
        String::from_utf8(bytes).map_err(|error| {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            let line = Some(u32::try_from(line).unwrap_or(u32::MAX));
            let message = "is not UTF-8 here: save the file with that encoding".to_owned();
            ConfigError { path: path.to_owned(), line, key: String::new(), value: None, message }
        })
    }

    /// Reads a file's text. `path` is used for messages, and its folder is where relative paths of the file start.
    ///
    /// Fails with everything that is wrong, in the order of the lines: text that is not TOML, unknown keys, wrong values,
    /// contradictions between sections.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigErrors> {
        let document = Document::new(text, path);
        let tree = document.tree()?;
        let config = Config::read(Section::root(&document, &tree));
        let source = document.finish()?;
        Ok(Config { source, ..config })
    }

    fn read(mut root: Section<'_, '_>) -> Config {
        let hostname = root.optional::<String>("hostname").and_then(|name| match parse_mail_domain(&name) {
            Ok(name) => Some(name),
            Err(message) => {
                root.refuse("hostname", message);
                None
            }
        });
        let shards = Shards::read(root.section("shards"));
        let spool = Spool::read(root.section("spool"));
        let control = Control::read(root.section("control"));
        let listeners: Option<Vec<Option<Listener>>> =
            root.sections("listener").map(|sections| sections.into_iter().map(Listener::read).collect());
        let relay = Relay::read(root.section("relay"));
        let smtp = Smtp::read(root.section("smtp"));
        let queue = Queue::read(root.section("queue"));
        let bounce = Bounce::read(root.section("bounce"));
        let domains: Vec<Option<Domain>> = root.sections("domain").unwrap_or_default().into_iter().map(Domain::read).collect();
        let routes: Option<Vec<Option<Route>>> =
            root.sections("route").map(|sections| sections.into_iter().map(|section| Route::read(section, &queue)).collect());
        let delivery = Delivery::read(root.section("delivery"));
        let dns = Dns::read(root.section("dns"));
        let log = Log::read(root.section("log"));
        let memory = Memory::read(root.section("memory"));
        let admin = Admin::read(root.section("admin"));
        let cluster = Cluster::read(root.section("cluster"));
        let document = root.document;
        root.finish();

        check::listeners(document, listeners.as_deref());
        check::domains(document, &domains);
        check::routes(document, routes.as_deref(), &domains, &relay);
        let first_domain = domains.iter().flatten().next().map(|domain| domain.name().to_owned());
        let default_routes = || vec![Route { retry: queue.retry, ..Route::held() }];
        let mut config = Config {
            hostname,
            shards,
            spool,
            control,
            listeners: listeners.map_or_else(|| vec![Listener::default()], |listeners| listeners.into_iter().flatten().collect()),
            relay,
            domains: Domains::new(domains.into_iter().flatten().collect()),
            routes: Routes::new(routes.map_or_else(default_routes, |routes| routes.into_iter().flatten().collect())),
            smtp,
            queue,
            bounce,
            delivery,
            dns,
            log,
            memory,
            admin,
            cluster,
            source: Source::default(),
        };
        if let (None, Some(domain)) = (&config.smtp.postmaster, first_domain) {
            config.smtp.postmaster = Some(format!("postmaster@{domain}"));
        }
        if !config.delivery.deliver && document.line("smtp.content_max") == 0 {
            config.smtp.content_max = config.smtp.content_max.min(OFFERED_CONTENT_MAX);
        }
        check::sections(document, &config);
        config
    }

    /// What a running engine makes of a new file: that of it which can be taken over, and the rest as it is.
    #[must_use]
    pub fn taking_over(&self, new: &Config) -> Config {
        let Config { relay, domains, routes, smtp, queue, delivery, bounce, .. } = new.clone();
        let content_max = if self.may_take_content_max(new) { smtp.content_max } else { self.smtp.content_max };
        let smtp = Smtp { sessions_max: self.smtp.sessions_max, content_max, ..smtp };
        let bounce = Bounce {
            enabled: self.bounce.enabled,
            reports_per_second: self.bounce.reports_per_second,
            reports_per_minute_and_sender: self.bounce.reports_per_minute_and_sender,
            ..bounce
        };
        let delivery = Delivery { mode: self.delivery.mode, deliver: self.delivery.deliver, ..delivery };
        Config { relay, domains, routes, smtp, queue, delivery, bounce, ..self.clone() }
    }

    /// Does the new largest content go with what counts from the next start? What holds the content of open transactions is as large as it
    /// was, and what a node may offer that does not deliver is less than what one may take that does.
    #[must_use]
    pub fn may_take_content_max(&self, new: &Config) -> bool {
        new.smtp.content_max <= self.spool.open_max && new.delivery.deliver == self.delivery.deliver
    }

    /// May a running engine take `new` over? A file that was emptied or written by half is valid, and all mail would be held: where mail
    /// leads somewhere now, a file without any `[[route]]` is refused. One that says `via = "hold"` itself is not.
    ///
    /// # Errors
    /// What the file lacks, and the mends.
    pub fn may_become(&self, new: &Config) -> Result<(), ConfigError> {
        let leads_somewhere = self.routes.as_slice().iter().any(|route| route.via != Via::Hold);
        if leads_somewhere && new.source.line("route[1]").is_none() {
            return Err(new.error_at(
                "route",
                "there is no [[route]] in it, and all mail would be held: put the routes back, write a route with via = \"hold\", or restart",
            ));
        }
        Ok(())
    }

    /// An error for something that only the caller could see, with the line where `key` (for instance `shards.cores` or
    /// `listener[1].address`, counted from 1) stands in the file. `message` reads on after the value.
    pub fn error_at(&self, key: &str, message: impl Into<String>) -> ConfigError {
        self.source.error(key, message)
    }

    /// The file this was read from, as the caller named it; empty for the defaults.
    pub fn path(&self) -> &Path {
        self.source.path()
    }
}

impl PartialEq for Config {
    fn eq(&self, other: &Config) -> bool {
        let Config {
            hostname,
            shards,
            spool,
            control,
            listeners,
            relay,
            domains,
            routes,
            smtp,
            queue,
            bounce,
            delivery,
            dns,
            log,
            memory,
            admin,
            cluster,
            source: _,
        } = self;
        *hostname == other.hostname
            && *shards == other.shards
            && *spool == other.spool
            && *control == other.control
            && *listeners == other.listeners
            && *relay == other.relay
            && *domains == other.domains
            && *routes == other.routes
            && *smtp == other.smtp
            && *queue == other.queue
            && *bounce == other.bounce
            && *delivery == other.delivery
            && *dns == other.dns
            && *log == other.log
            && *memory == other.memory
            && *admin == other.admin
            && *cluster == other.cluster
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            hostname: None,
            shards: Shards::default(),
            spool: Spool::default(),
            control: Control::default(),
            listeners: vec![Listener::default()],
            relay: Relay::default(),
            domains: Domains::default(),
            routes: Routes::default(),
            smtp: Smtp::default(),
            queue: Queue::default(),
            bounce: Bounce::default(),
            delivery: Delivery::default(),
            dns: Dns::default(),
            log: Log::default(),
            memory: Memory::default(),
            admin: Admin::default(),
            cluster: Cluster::default(),
            source: Source::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::DEFAULT_TOML;
    use crate::destination_policy::ROUTE_LIMITS;

    #[test]
    fn what_is_not_utf8_names_its_line() {
        let path = Path::new("ringpost.toml");
        assert_eq!(Config::text(b"# gr\xC3\xBC\xC3\x9Fe\n".to_vec(), path).unwrap(), "# gr\u{fc}\u{df}e\n");
        let refused = Config::text(b"[spool]\n# gr\xFC\xDFe\n".to_vec(), path).unwrap_err().to_string();
        assert_eq!(refused, "ringpost.toml:2: is not UTF-8 here: save the file with that encoding");
    }

    #[test]
    fn an_emptied_file_is_not_taken_over_where_mail_leads_somewhere() {
        let parse = |text: &str| Config::parse(text, Path::new("ringpost.toml")).unwrap();
        let leads = parse("[[route]]\ndomain = \"*\"\nvia = \"mx\"\n");
        let held = parse("[[route]]\ndomain = \"*\"\nvia = \"hold\"\n");
        let refused = leads.may_become(&parse("")).unwrap_err().to_string();
        assert!(refused.contains("ringpost.toml: route: there is no [[route]]"), "{refused}");
        leads.may_become(&held).unwrap();
        held.may_become(&parse("")).unwrap();
        // What is in force counts, not what the first file said.
        assert!(held.taking_over(&leads).may_become(&parse("")).is_err());
    }

    #[test]
    fn every_key_is_documented_in_the_defaults() {
        let text = format!("{DEFAULT_TOML}\n[[domain]]\nname = \"example.org\"\n");
        let document = Document::new(&text, Path::new("default.toml"));
        let tree = document.tree().unwrap();
        Config::read(Section::root(&document, &tree));
        let known = document.known.borrow().clone();
        assert!(known.len() > 80, "{}", known.len());
        for key in known {
            let (section, name) = key.rsplit_once('.').unwrap_or(("", &key));
            let is_documented = match section.split_once('[') {
                // In a section that can stand more than once, keys without a default are commented out.
                Some(_) => text.contains(&format!("\n{name} = ")) || text.contains(&format!("\n# {name} = ")),
                None => document.line(&key) > 0 || text.contains(&format!("\n# {name} = ")),
            };
            assert!(is_documented, "{key}");
        }
    }

    /// A key that a route takes over from `[delivery]` is a limit of what it sends: one that is added is to be told of, too.
    #[test]
    fn each_limit_of_a_route_that_holds_is_spoken_of() {
        let text = format!("{}\n[[domain]]\nname = \"example.org\"\n", DEFAULT_TOML);
        let document = Document::new(&text, Path::new("default.toml"));
        let tree = document.tree().unwrap();
        Config::read(Section::root(&document, &tree));
        let known = document.known.borrow();
        let of_both = known.iter().filter_map(|key| key.strip_prefix("route[1].")).filter(|key| known.contains(&format!("delivery.{key}")));
        assert_eq!(of_both.collect::<BTreeSet<_>>(), BTreeSet::from(ROUTE_LIMITS));
    }
}
