//! Which way mail goes, by its recipient's domain and its sender.

use std::collections::HashMap;

use thiserror::Error;

use crate::domain_name::{DOMAIN_BYTES_MAX, canonical_domain, canonical_pattern, is_domain};
use crate::home::number_of;
use crate::route::{HOSTS_MAX, Route, RouteId, Via};
use crate::senders::{Sender, Senders};

/// Longest pattern: its length is one byte of the record of a re-routed message.
const PATTERN_BYTES_MAX: usize = 255;

/// Most routes of a table.
const ROUTES_MAX: usize = u16::MAX as usize - 1;

/// What a route is chosen by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mail<'a> {
    /// Without brackets; empty is the null reverse-path.
    pub reverse_path: &'a [u8],
    /// The part of the forward-path after the last `@`.
    pub domain: &'a [u8],
}

/// What a table of patterns is looked up by. Each process has a seed of its own. SipHash is not needed here: what comes from outside is only
/// looked up, and never put in, so that nobody can make the table worse than its patterns, which are the operator's, make it.
pub(crate) type ByPattern<V> = HashMap<Box<[u8]>, V, foldhash::fast::RandomState>;

/// The routing table.
///
/// The recipient's domain comes first: the most specific pattern wins (exact, then the longest `*.suffix`, then `*`), so that mail for
/// own mailboxes goes there whoever sends it. Among routes for the same domain the most specific sender wins (address, domain,
/// the longest `@*.suffix`), then the route without one. A domain whose routes are all for other senders is looked up further.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    routes: Vec<Route>,
    /// Of their patterns, by which they are told from those of another queue.
    numbers: Vec<u64>,
    exact: ByPattern<Senders>,
    below: ByPattern<Senders>,
    all: Senders,
}

/// The table is refused; the configuration names the pattern to the operator.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RouteError {
    /// Two routes have the same pattern, so one would never be used.
    #[error("{0:?} has two routes")]
    Twice(String),
    /// Neither a domain, nor `*.domain`, nor `*`, or what follows ` from ` is no sender, or it is longer than 255 bytes.
    #[error("{0:?} is not a domain, \"*.domain\" or \"*\", with or without \" from \" and a sender")]
    Pattern(String),
    /// A route by smarthost or lmtp needs 1 to [`HOSTS_MAX`] hosts.
    #[error("route for {0:?} needs 1 to {HOSTS_MAX} hosts")]
    Hosts(String),
    /// More than 65,534 routes.
    #[error(
        "too many routes: with those that earlier configs had since the start there are more than {ROUTES_MAX}; a restart forgets what is gone"
    )]
    TooMany,
    /// So many tables have followed each other while connections beyond their limits had work to end: nothing was changed.
    #[error("connections of earlier limits have not ended yet; try again when they have")]
    ChangingOver,
}

impl Routes {
    /// Builds the table.
    pub fn new(routes: Vec<Route>) -> Result<Self, RouteError> {
        let matched = 0..routes.len();
        Self::build(routes, matched)
    }

    /// The table that follows this one: routes with the same pattern keep their [`RouteId`], further ones come behind, and what is gone
    /// keeps its place and matches nothing.
    pub(crate) fn replaced(&self, new: Vec<Route>) -> Result<Self, RouteError> {
        let mut numbers: HashMap<String, usize> =
            self.routes.iter().enumerate().map(|(number, route)| (canonical_pattern(&route.pattern), number)).collect();
        let (mut routes, mut matched) = (self.routes.clone(), Vec::with_capacity(new.len()));
        for route in new {
            let number = *numbers.entry(canonical_pattern(&route.pattern)).or_insert(routes.len());
            match routes.get_mut(number) {
                Some(old) => *old = route,
                None => routes.push(route),
            }
            matched.push(number);
        }
        Self::build(routes, matched)
    }

    /// `matched` are the routes that domains are compared with.
    fn build(routes: Vec<Route>, matched: impl IntoIterator<Item = usize>) -> Result<Self, RouteError> {
        let mut table = Self::default();
        if routes.len() > ROUTES_MAX {
            return Err(RouteError::TooMany);
        }
        for index in matched {
            let (id, route) = (RouteId(index as u16), &routes[index]);
            let hosts = match &route.via {
                Via::Smarthost { hosts } | Via::Lmtp { hosts } => Some(hosts.len()),
                Via::Named { hosts } => Some(hosts.len()),
                Via::Mx { .. } | Via::Maildir { .. } | Via::Discard | Via::Hold => None,
            };
            if hosts.is_some_and(|hosts| !(1..=HOSTS_MAX).contains(&hosts)) {
                return Err(RouteError::Hosts(route.pattern.clone()));
            }
            let pattern = canonical_pattern(&route.pattern);
            let parsed = Pattern::parse(&pattern).filter(|_| pattern.len() <= PATTERN_BYTES_MAX);
            let Some(Pattern { domain, sender }) = parsed else { return Err(RouteError::Pattern(route.pattern.clone())) };
            let senders = match domain {
                DomainPart::All => &mut table.all,
                DomainPart::Below(suffix) => table.below.entry(suffix.as_bytes().into()).or_default(),
                DomainPart::Exact(exact) => table.exact.entry(exact.as_bytes().into()).or_default(),
            };
            let before = senders.insert(sender, id);
            if before.is_some() {
                return Err(RouteError::Twice(route.pattern.clone()));
            }
        }
        table.numbers = routes.iter().map(|route| number_of(&canonical_pattern(&route.pattern))).collect();
        table.routes = routes;
        Ok(table)
    }

    /// Is it more than the place of a route that is gone?
    pub(crate) fn is_matched(&self, route: RouteId) -> bool {
        self.routes.get(usize::from(route.0)).is_some_and(|own| self.by_pattern(&own.pattern) == Some(route))
    }

    /// The route of mail for a recipient's domain from a sender that no route names, or none. Does not allocate for ASCII.
    pub fn find(&self, domain: &[u8]) -> Option<RouteId> {
        self.find_by(domain, None)
    }

    /// The route of mail, its domain and sender in any case, or none. Does not allocate for ASCII.
    pub fn find_mail(&self, mail: Mail<'_>) -> Option<RouteId> {
        self.find_by(mail.domain, Some(mail.reverse_path))
    }

    /// The routes for senders that are named, of those that mail for this domain can go by; in the order of the table.
    pub fn find_for_senders(&self, domain: &[u8]) -> impl Iterator<Item = RouteId> {
        let numbered = (0..).map(RouteId).zip(&self.routes);
        numbered.filter_map(move |(id, route)| {
            let pattern = canonical_pattern(&route.pattern);
            let (_, sender) = pattern.split_once(" from ")?;
            // What stands for a whole domain finds its route as if it were an address there that nobody names.
            let reverse_path = if sender == "<>" { "" } else { sender }.as_bytes();
            (self.find_mail(Mail { reverse_path, domain }) == Some(id)).then_some(id)
        })
    }

    fn find_by(&self, domain: &[u8], reverse_path: Option<&[u8]>) -> Option<RouteId> {
        let mut lower = [0; DOMAIN_BYTES_MAX];
        let domain = canonical_domain(domain.strip_suffix(b".").unwrap_or(domain));
        let Some(lower) = lower.get_mut(..domain.len()) else { return self.all.find(reverse_path) };
        lower.copy_from_slice(&domain);
        lower.make_ascii_lowercase();
        if let Some(id) = self.exact.get(&*lower).and_then(|senders| senders.find(reverse_path)) {
            return Some(id);
        }
        if !self.below.is_empty() {
            let mut rest = &*lower;
            while let Some(dot) = rest.iter().position(|&b| b == b'.') {
                rest = &rest[dot + 1..];
                if let Some(id) = self.below.get(rest).and_then(|senders| senders.find(reverse_path)) {
                    return Some(id);
                }
            }
        }
        self.all.find(reverse_path)
    }

    /// The route with this pattern, in any case; not what a domain of that name would match.
    pub fn by_pattern(&self, pattern: &str) -> Option<RouteId> {
        let pattern = canonical_pattern(pattern);
        let Pattern { domain, sender } = Pattern::parse(&pattern)?;
        let senders = match domain {
            DomainPart::All => &self.all,
            DomainPart::Below(suffix) => self.below.get(suffix.as_bytes())?,
            DomainPart::Exact(exact) => self.exact.get(exact.as_bytes())?,
        };
        senders.get(sender)
    }

    /// What a route of this table is found by in that of another queue, see [`Routes::found_as`].
    pub(crate) fn number(&self, route: RouteId) -> u64 {
        self.numbers.get(usize::from(route.0)).copied().unwrap_or_default()
    }

    /// The route that is `route` in another queue, and has this number there. Mostly it is so here: one that has refused a table that another had for
    /// a while knows nothing of the places of its new routes.
    pub(crate) fn found_as(&self, route: RouteId, number: u64) -> Option<RouteId> {
        if self.numbers.get(usize::from(route.0)) == Some(&number) {
            return Some(route);
        }
        self.numbers.iter().position(|own| *own == number).map(|at| RouteId(at as u16))
    }

    /// All routes, by [`RouteId`].
    pub fn all(&self) -> &[Route] {
        &self.routes
    }
}

/// A pattern in its parts, lower case.
struct Pattern<'a> {
    domain: DomainPart<'a>,
    sender: Option<Sender<'a>>,
}

enum DomainPart<'a> {
    All,
    Below(&'a str),
    Exact(&'a str),
}

impl<'a> Pattern<'a> {
    fn parse(pattern: &'a str) -> Option<Self> {
        // No domain has a space in it, a local part may.
        let (domain, sender) = match pattern.split_once(" from ") {
            Some((domain, sender)) => (domain, Some(Sender::parse(sender)?)),
            None => (pattern, None),
        };
        let domain = match domain.strip_prefix("*.") {
            _ if domain == "*" => DomainPart::All,
            Some(suffix) if is_domain(suffix) => DomainPart::Below(suffix),
            None if is_domain(domain) => DomainPart::Exact(domain),
            _ => return None,
        };
        Some(Self { domain, sender })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::RetryPolicy;
    use crate::route::DestinationLimits;

    fn route(pattern: &str) -> Route {
        Route { pattern: pattern.into(), via: Via::Discard, retry: RetryPolicy::default(), limits: DestinationLimits::default() }
    }

    #[test]
    fn the_most_specific_pattern_wins_in_any_case() {
        let routes = Routes::new(["*", "*.a.test", "A.test", "*.b.a.test", "[192.0.2.1]"].map(route).into()).unwrap();
        let long = [b'x'; 400];
        for (domain, expected) in [
            (&b"other.test"[..], 0),
            (b"a.TEST", 2),
            (b"a.test.", 2),
            (b"x.a.test", 1),
            (b"y.x.A.test", 1),
            (b"b.a.test", 1),
            (b"c.B.a.test", 3),
            (b"xa.test", 0),
            (b"[192.0.2.1]", 4),
            (b"", 0),
            (&long, 0),
        ] {
            assert_eq!(routes.find(domain), Some(RouteId(expected)), "{}", String::from_utf8_lossy(domain));
        }
        for (pattern, expected) in [("*", Some(0)), ("*.a.TEST", Some(1)), ("a.test", Some(2)), ("x.a.test", None), ("*.x.a.test", None)] {
            assert_eq!(routes.by_pattern(pattern), expected.map(RouteId), "{pattern}");
        }
        assert_eq!(Routes::new(vec![route("a.test")]).unwrap().find(b"b.test"), None);
    }

    /// They were two domains, and mail for the form that stands not in the config was refused.
    #[test]
    fn u_labels_and_a_labels_are_one_domain() {
        let routes = Routes::new(["bücher.test", "*.xn--bcher-kva.test", "* from @bücher.test"].map(route).into()).unwrap();
        for (domain, expected) in [("xn--bcher-kva.test", 0), ("BÜCHER.test.", 0), ("a.bücher.test", 1)] {
            assert_eq!(routes.find(domain.as_bytes()), Some(RouteId(expected)), "{domain}");
        }
        for reverse_path in ["a@bücher.test", "a@XN--BCHER-KVA.test", "ü@BÜCHER.test"] {
            let mail = Mail { reverse_path: reverse_path.as_bytes(), domain: b"y.test" };
            assert_eq!(routes.find_mail(mail), Some(RouteId(2)), "{reverse_path}");
        }
        assert_eq!(routes.by_pattern("xn--bcher-kva.test"), Some(RouteId(0)));
        assert_eq!(
            Routes::new(["bücher.test", "xn--bcher-kva.test"].map(route).into()).unwrap_err(),
            RouteError::Twice("xn--bcher-kva.test".into())
        );
    }

    #[test]
    fn a_table_that_contradicts_itself_is_refused() {
        assert_eq!(Routes::new(vec![route("a.test"), route("A.TEST")]).unwrap_err(), RouteError::Twice("A.TEST".into()));
        for pattern in ["", "*a.test", "*.", "a b", "x@y", "a.*"] {
            assert_eq!(Routes::new(vec![route(pattern)]).unwrap_err(), RouteError::Pattern(pattern.into()));
        }
        let nowhere = Route { via: Via::Smarthost { hosts: vec![] }, ..route("*") };
        assert_eq!(Routes::new(vec![nowhere]).unwrap_err(), RouteError::Hosts("*".into()));
    }

    #[test]
    fn the_domain_decides_first_and_then_the_most_specific_sender() {
        let patterns = [
            "*",
            "* from @x.test",
            "* from @*.x.test",
            "* from News@X.test",
            "* from <>",
            "y.test from @x.test",
            "*.z.test from <>",
            "*.z.test from @*.a.x.test",
            "own.test",
            "only.test from bob@x.test",
        ];
        let routes = Routes::new(patterns.map(route).into()).unwrap();
        let long_local = format!("{}@x.test", "l".repeat(600));
        for (reverse_path, domain, expected) in [
            ("bob@q.test", "any.test", 0),
            ("bob@x.test", "any.test", 1),
            ("bob@X.TEST.", "any.test", 1),
            (long_local.as_str(), "any.test", 1),
            ("bob@m.x.test", "any.test", 2),
            ("bob@n.m.x.test", "any.test", 2),
            ("bob@notx.test", "any.test", 0),
            ("NEWS@x.test", "any.test", 3),
            ("news@m.x.test", "any.test", 2),
            ("news", "any.test", 0),
            ("", "any.test", 4),
            // An exact domain before all others, for the senders that it names.
            ("bob@x.test", "y.test", 5),
            ("news@x.test", "Y.test", 5),
            ("bob@q.test", "y.test", 0),
            ("", "y.test", 4),
            ("", "a.z.test", 6),
            ("bob@b.a.x.test", "a.z.test", 7),
            ("bob@x.test", "a.z.test", 1),
            // Own mailboxes, whoever sends.
            ("", "own.test", 8),
            ("news@x.test", "own.test", 8),
            ("bob@x.test", "only.test", 9),
            ("bob@q.test", "only.test", 0),
        ] {
            let mail = Mail { reverse_path: reverse_path.as_bytes(), domain: domain.as_bytes() };
            assert_eq!(routes.find_mail(mail), Some(RouteId(expected)), "{reverse_path} to {domain}");
        }
        assert_eq!(routes.find(b"y.test"), Some(RouteId(0)), "no sender, no route for senders");
        for (domain, expected) in [
            ("any.test", &[1, 2, 3, 4][..]),
            // The route for all of x.test comes before that for one address there, whose domain is any.
            ("y.test", &[2, 4, 5]),
            ("a.z.test", &[1, 2, 3, 6, 7]),
            ("own.test", &[]),
            ("ONLY.test.", &[1, 2, 3, 4, 9]),
        ] {
            let found: Vec<u16> = routes.find_for_senders(domain.as_bytes()).map(|RouteId(number)| number).collect();
            assert_eq!(found, expected, "{domain}");
        }
        for (number, pattern) in patterns.iter().enumerate() {
            assert_eq!(routes.by_pattern(&pattern.to_uppercase().replace(" FROM ", " from ")), Some(RouteId(number as u16)), "{pattern}");
        }
        for pattern in ["* from", "y.test", "* from @y.test", "* from bob@x.test", "*.z.test", "* from news@x.test from <>"] {
            assert_eq!(routes.by_pattern(pattern), None, "{pattern}");
        }
        assert_eq!(Routes::new(vec![route("a.test from @x.test")]).unwrap().find_mail(Mail { reverse_path: b"", domain: b"a.test" }), None);
    }

    #[test]
    fn senders_that_are_none_or_named_twice_are_refused() {
        let long = format!("* from {}@{}.test", "l".repeat(64), "x".repeat(190));
        for pattern in ["* from x", "* from @", "* from bob@", "* from @*.", "* from a@*.x.test", "* from ", "a b from <>", &long] {
            assert_eq!(Routes::new(vec![route(pattern)]).unwrap_err(), RouteError::Pattern(pattern.into()));
        }
        assert_eq!(Routes::new(["* from <>", "* from <>"].map(route).into()).unwrap_err(), RouteError::Twice("* from <>".into()));
    }
}
