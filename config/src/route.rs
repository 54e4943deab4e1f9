//! `[[route]]`: where mail goes from here.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use toml::de::DeValue;

use crate::choice::refuse;
use crate::delivery::{DEAD_DESTINATION, MESSAGES_PER_CONNECTION_MAX};
use crate::destination_policy::{CONNECTIONS_MAX, DestinationPolicy, PolicyOverrides};
use crate::mailboxes::{StoreAddress, UnknownMailbox, read_maildir, read_stores};
use crate::name::{canonical, compare, parse_domain};
use crate::queue::RetryOverrides;
use crate::section::Section;
use crate::sender::{SenderPattern, read_senders};
use crate::setting::{Setting, text};
use crate::smarthost::{SMTP_PORT, Smarthost, read_hosts, smarthosts};
use crate::{Delivery, Queue, Retry};

/// Longest name of a route, as the queue's records can keep it.
pub const ROUTE_NAME_BYTES_MAX: usize = 255;
/// Names of routes at most, over all routes.
pub(crate) const ROUTE_NAMES_MAX: usize = 65_534;

/// `[[route]]`: what happens to mail for the domains it names, of all senders or of some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The domains, at least one.
    pub domains: Vec<DomainPattern>,
    /// The senders; empty: whoever sends.
    pub senders: Vec<SenderPattern>,
    /// What happens to their mail.
    pub via: Via,
    /// Limits of this route; what it does not set is as in `[delivery]`.
    pub overrides: RouteOverrides,
    /// Of mail that says nothing itself, 0 to 9.
    pub priority: Option<u32>,
    /// Retries of this route, with what it does not set as in `[queue]`.
    pub retry: Retry,
}

/// What happens to mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// To one of these hosts; 1 to [`SMARTHOSTS_MAX`](crate::SMARTHOSTS_MAX).
    Smarthost {
        /// Each next hop.
        hosts: Vec<Smarthost>,
    },
    /// To the first of these stores of mailboxes that answers, by LMTP (RFC 2033); at least one.
    Lmtp {
        /// Where each listens.
        hosts: Vec<StoreAddress>,
    },
    /// Into maildirs.
    Maildir {
        /// Of each recipient's, with `{local}` and `{domain}` in it.
        path: PathBuf,
        /// What becomes of mail for one that is not there.
        unknown: UnknownMailbox,
    },
    /// To the hosts that DNS names for each domain.
    Mx {
        /// TCP port of all of them, 25 but for tests.
        port: u16,
    },
    /// Accepted and thrown away.
    Discard,
    /// Kept in the queue while the route says so.
    Hold,
}

impl Via {
    /// The word as written in the file.
    pub fn as_str(&self) -> &'static str {
        match self {
            Via::Smarthost { .. } => "smarthost",
            Via::Lmtp { .. } => "lmtp",
            Via::Maildir { .. } => "maildir",
            Via::Mx { .. } => "mx",
            Via::Discard => "discard",
            Via::Hold => "hold",
        }
    }
}

/// Limits a route sets for itself; None: as in `[delivery]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteOverrides {
    /// Connections to one destination of this route.
    pub connections_max: Option<u32>,
    /// Connections to one destination of this route to begin with.
    pub window_initial: Option<u32>,
    /// How long a destination of this route is left alone at most.
    pub dead_destination: Option<Duration>,
    /// Messages over one connection; `Some(None)`: "off", whatever `[delivery]` says.
    pub messages_per_connection: Option<Option<u32>>,
    /// How a destination of this route is treated.
    pub policy: PolicyOverrides,
}

impl Route {
    /// All mail is kept: what holds for a file without a route.
    pub(crate) fn held() -> Route {
        Route {
            domains: vec![DomainPattern::Any],
            senders: Vec::new(),
            via: Via::Hold,
            overrides: RouteOverrides::default(),
            priority: None,
            retry: Retry::default(),
        }
    }

    /// What commands, logs and the queue's records call it: a name for each of its domains, and for each of its senders where it has
    /// some: `example.org`, `example.org from news@example.net`.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let nobody = self.senders.is_empty().then_some(None);
        let senders: Vec<_> = nobody.into_iter().chain(self.senders.iter().map(Some)).collect();
        self.domains.iter().flat_map(move |domain| {
            senders.clone().into_iter().map(move |sender| match sender {
                None => domain.to_string(),
                Some(sender) => format!("{domain} from {sender}"),
            })
        })
    }

    /// Connections to one destination of this route, over all shards.
    pub fn connections_max(&self, delivery: &Delivery) -> u32 {
        self.overrides.connections_max.unwrap_or(delivery.connections_max)
    }

    /// Connections to one destination of this route to begin with, at most [`Route::connections_max`].
    pub fn window_initial(&self, delivery: &Delivery) -> u32 {
        self.overrides.window_initial.unwrap_or(delivery.window_initial).min(self.connections_max(delivery))
    }

    /// How long a destination of this route that fails, or asks for less, is left alone at most.
    pub fn dead_destination(&self, delivery: &Delivery) -> Duration {
        self.overrides.dead_destination.unwrap_or(delivery.dead_destination)
    }

    /// Messages over one connection of this route; None: as many as its lifetime allows.
    pub fn messages_per_connection(&self, delivery: &Delivery) -> Option<u32> {
        self.overrides.messages_per_connection.unwrap_or(delivery.messages_per_connection)
    }

    /// How each destination of this route is treated.
    pub fn policy(&self, delivery: &Delivery) -> DestinationPolicy {
        self.overrides.policy.over(delivery.policy)
    }

    pub(crate) fn read(mut section: Section<'_, '_>, queue: &Queue) -> Option<Route> {
        if !section.has("domain") {
            section.refuse("domain", "is missing: write for instance domain = \"*\"");
        }
        let domains = section.one_or_list("domain", str::parse);
        if domains.as_ref().is_some_and(Vec::is_empty) && section.has_empty_list("domain") {
            section.refuse("domain", "names no domain: write for instance domain = \"*\"");
        }
        let senders = read_senders(&mut section);
        if !section.has("via") {
            section.refuse("via", "is missing: write via = \"mx\", \"smarthost\", \"lmtp\", \"maildir\", \"discard\" or \"hold\"");
        }
        let word: Option<ViaWord> = section.optional("via");
        let via = Route::read_via(&mut section, word);
        let has_messages = section.has("messages_per_connection");
        let messages_per_connection = section.word_or_within("messages_per_connection", "off", None, 1..=MESSAGES_PER_CONNECTION_MAX);
        let overrides = RouteOverrides {
            connections_max: section.optional_within("connections_max", 1..=CONNECTIONS_MAX),
            window_initial: section.optional_within("window_initial", 1..=CONNECTIONS_MAX),
            dead_destination: section.optional_within("dead_destination", DEAD_DESTINATION),
            messages_per_connection: has_messages.then_some(messages_per_connection),
            policy: PolicyOverrides::read(&mut section),
        };
        if let (Some(window), Some(most)) = (overrides.window_initial, overrides.connections_max)
            && window > most
        {
            section.refuse("window_initial", format!("is more than connections_max of this route, which is {most}"));
        }
        // Against the defaults: what [delivery] says is read after the routes, and is checked by itself.
        overrides.policy.check(&section, DestinationPolicy::default());
        let priority = section.optional_within("priority", 0..=9);
        let retry = RetryOverrides::read(&mut section).over(queue.retry);
        section.finish();
        Some(Route { domains: domains.filter(|domains| !domains.is_empty())?, senders, via: via?, overrides, priority, retry })
    }

    fn read_via(section: &mut Section<'_, '_>, word: Option<ViaWord>) -> Option<Via> {
        let path = section.optional("path");
        if path.is_some() && word.is_some_and(|word| word != ViaWord::Maildir) {
            section.refuse("path", "is used by via = \"maildir\" only");
        }
        let unknown: Option<UnknownMailbox> = section.optional("unknown_mailbox");
        if unknown.is_some() && word.is_some_and(|word| word != ViaWord::Maildir) {
            section.refuse("unknown_mailbox", "is used by via = \"maildir\" only");
        }
        if word == Some(ViaWord::Lmtp) {
            return read_stores(section).map(|hosts| Via::Lmtp { hosts });
        }
        let hosts = read_hosts(section);
        let port = section.optional_within("port", 1..=u32::from(u16::MAX));
        if port.is_some() && word.is_some_and(|word| word != ViaWord::Mx) {
            section.refuse("port", "is used by via = \"mx\" only: elsewhere it stands behind the host");
        }
        match word? {
            ViaWord::Maildir if hosts.is_none() => {
                read_maildir(section, path).map(|path| Via::Maildir { path, unknown: unknown.unwrap_or(UnknownMailbox::Create) })
            }
            ViaWord::Mx if hosts.is_none() => Some(Via::Mx { port: port.and_then(|port| u16::try_from(port).ok()).unwrap_or(SMTP_PORT) }),
            ViaWord::Smarthost => smarthosts(section, hosts).map(|hosts| Via::Smarthost { hosts }),
            word => {
                if hosts.is_some() {
                    let via = match word {
                        ViaWord::Maildir => "maildir",
                        ViaWord::Mx => "mx",
                        ViaWord::Discard => "discard",
                        _ => "hold",
                    };
                    section.refuse("hosts", format!("is not used by via = \"{via}\": only smarthost and lmtp have hosts"));
                }
                Some(if word == ViaWord::Discard { Via::Discard } else { Via::Hold })
            }
        }
    }
}

/// The word of `via`, before its hosts are known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ViaWord {
    Mx,
    Smarthost,
    Lmtp,
    Maildir,
    Discard,
    Hold,
}

impl Setting for ViaWord {
    fn read(value: &DeValue<'_>) -> Result<ViaWord, String> {
        const NOW: [&str; 6] = ["mx", "smarthost", "lmtp", "maildir", "discard", "hold"];
        match text(value, "a word in quotes")? {
            "mx" => Ok(ViaWord::Mx),
            "smarthost" => Ok(ViaWord::Smarthost),
            "lmtp" => Ok(ViaWord::Lmtp),
            "maildir" => Ok(ViaWord::Maildir),
            "discard" => Ok(ViaWord::Discard),
            "hold" => Ok(ViaWord::Hold),
            word => Err(refuse(word, &NOW)),
        }
    }
}

/// The domains a route is for. The most exact pattern wins: a name before `*.name`, a longer `*.name` before a shorter, `*` last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DomainPattern {
    /// `example.org`: this domain, in lower case.
    Exact(String),
    /// `*.example.org`: every domain below it, not itself; held without `*.`, in lower case.
    Below(String),
    /// `*`: every domain without another route, address literals too.
    Any,
}

impl FromStr for DomainPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<DomainPattern, String> {
        if text == "*" {
            return Ok(DomainPattern::Any);
        }
        let pattern = match text.strip_prefix("*.") {
            Some(parent) => parse_domain(parent).map(DomainPattern::Below),
            None => parse_domain(text).map(DomainPattern::Exact),
        };
        pattern.map_err(|_| "is not a domain: write \"*\", \"example.org\" or \"*.example.org\"".to_owned())
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DomainPattern::Exact(name) => f.write_str(name),
            DomainPattern::Below(parent) => write!(f, "*.{parent}"),
            DomainPattern::Any => f.write_str("*"),
        }
    }
}

/// All routes; those for all senders are found by domain in logarithmic time and without copying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    /// In the order of the file; an index into it names a route for as long as this table lives.
    routes: Vec<Route>,
    /// By name.
    exact: Vec<(String, usize)>,
    /// By name of the parent.
    below: Vec<(String, usize)>,
    any: Option<usize>,
}

impl Routes {
    /// Of two equal patterns the first wins; `Config::parse` refuses them.
    pub(crate) fn new(routes: Vec<Route>) -> Routes {
        let mut table = Routes { routes, exact: Vec::new(), below: Vec::new(), any: None };
        for (index, route) in table.routes.iter().enumerate().filter(|(_, route)| route.senders.is_empty()) {
            for pattern in &route.domains {
                match pattern {
                    DomainPattern::Exact(name) => table.exact.push((name.clone(), index)),
                    DomainPattern::Below(parent) => table.below.push((parent.clone(), index)),
                    DomainPattern::Any => table.any = table.any.or(Some(index)),
                }
            }
        }
        for names in [&mut table.exact, &mut table.below] {
            names.sort();
            names.dedup_by(|later, earlier| later.0 == earlier.0);
        }
        table
    }

    /// Index of the route for a domain, whoever sends, without regard to ASCII case; None: no route fits.
    pub fn index_of(&self, domain: &str) -> Option<usize> {
        let find = |names: &[(String, usize)], name: &str| {
            let found = names.binary_search_by(|(lower, _)| compare(lower, name)).ok();
            found.map(|at| names[at].1)
        };
        let domain = canonical(domain);
        if let Some(index) = find(&self.exact, &domain) {
            return Some(index);
        }
        let mut rest = &*domain;
        while let Some((label, parent)) = rest.split_once('.') {
            if !label.is_empty()
                && let Some(index) = find(&self.below, parent)
            {
                return Some(index);
            }
            rest = parent;
        }
        self.any
    }

    /// The route for a domain, whoever sends, without regard to ASCII case; None: no route fits.
    pub fn get(&self, domain: &str) -> Option<&Route> {
        self.index_of(domain).map(|index| &self.routes[index])
    }

    /// All routes in the order of the file.
    pub fn as_slice(&self) -> &[Route] {
        &self.routes
    }
}

impl Default for Routes {
    /// Mail is kept in the queue until the file has a route.
    fn default() -> Routes {
        Routes::new(vec![Route::held()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(patterns: &[&str]) -> Routes {
        let route = |pattern: &&str| Route {
            domains: vec![pattern.parse().unwrap()],
            senders: Vec::new(),
            via: Via::Hold,
            overrides: RouteOverrides::default(),
            priority: None,
            retry: Retry::default(),
        };
        Routes::new(patterns.iter().map(route).collect())
    }

    #[test]
    fn the_most_exact_pattern_wins() {
        let table = routes(&["*", "*.example.org", "mx.example.org", "*.a.example.org", "example.org"]);
        let cases = [
            ("other.test", 0),
            ("b.example.org", 1),
            ("c.b.Example.Org", 1),
            ("mx.example.org", 2),
            ("x.mx.example.org", 1),
            ("x.a.example.org", 3),
            ("a.example.org", 1),
            ("EXAMPLE.org", 4),
            ("notexample.org", 0),
            (".example.org", 0),
            ("[192.0.2.1]", 0),
        ];
        for (domain, index) in cases {
            assert_eq!(table.index_of(domain), Some(index), "{domain}");
        }
        assert_eq!(routes(&["example.org"]).index_of("other.test"), None);
    }
}
