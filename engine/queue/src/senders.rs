//! Which senders a route is for, and the route among several for the same domain that a reverse-path leads to.

use crate::domain_name::{after_at, canonical_address, is_domain};
use crate::route::RouteId;
use crate::routes::ByPattern;

/// Longest reverse-path that is compared as a whole, in bytes; a longer one matches by its domain only.
const ADDRESS_BYTES_MAX: usize = 512;

/// The senders that a route is for, of those that can be named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Sender<'a> {
    /// `<>`: the null reverse-path, so reports.
    Null,
    /// `news@example.org`, lower case.
    Address(&'a str),
    /// `@example.org`: that domain, lower case; without the `@`.
    Domain(&'a str),
    /// `@*.example.org`: every domain below it, lower case; without the `@*.`.
    Below(&'a str),
}

impl<'a> Sender<'a> {
    /// `None` if it is none of these.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        if text == "<>" {
            return Some(Self::Null);
        }
        let (local_part, domain) = text.rsplit_once('@')?;
        match (local_part, domain.strip_prefix("*.")) {
            ("", Some(parent)) if is_domain(parent) => Some(Self::Below(parent)),
            ("", None) if is_domain(domain) => Some(Self::Domain(domain)),
            (_, None) if !local_part.is_empty() && is_domain(domain) => Some(Self::Address(text)),
            _ => None,
        }
    }
}

/// Routes for the same domain by sender.
#[derive(Clone, Debug, Default)]
pub(crate) struct Senders {
    /// For all that no other route names.
    any: Option<RouteId>,
    /// Few tables have any.
    named: Option<Box<Named>>,
}

#[derive(Clone, Debug, Default)]
struct Named {
    null: Option<RouteId>,
    addresses: ByPattern<RouteId>,
    domains: ByPattern<RouteId>,
    below: ByPattern<RouteId>,
}

impl Senders {
    /// Puts a route in; gives back the one that was there for the same sender.
    pub(crate) fn insert(&mut self, sender: Option<Sender<'_>>, route: RouteId) -> Option<RouteId> {
        let Some(sender) = sender else { return self.any.replace(route) };
        let named = self.named.get_or_insert_default();
        match sender {
            Sender::Null => named.null.replace(route),
            Sender::Address(address) => named.addresses.insert(address.as_bytes().into(), route),
            Sender::Domain(domain) => named.domains.insert(domain.as_bytes().into(), route),
            Sender::Below(parent) => named.below.insert(parent.as_bytes().into(), route),
        }
    }

    /// The route that was put in for this sender.
    pub(crate) fn get(&self, sender: Option<Sender<'_>>) -> Option<RouteId> {
        let Some(sender) = sender else { return self.any };
        let named = self.named.as_ref()?;
        match sender {
            Sender::Null => named.null,
            Sender::Address(address) => named.addresses.get(address.as_bytes()).copied(),
            Sender::Domain(domain) => named.domains.get(domain.as_bytes()).copied(),
            Sender::Below(parent) => named.below.get(parent.as_bytes()).copied(),
        }
    }

    /// The route of mail with this reverse-path: for the address, else its domain, else the closest domain above it, else that for all.
    pub(crate) fn find(&self, reverse_path: Option<&[u8]>) -> Option<RouteId> {
        let of_sender = || self.named.as_ref()?.find(reverse_path?);
        of_sender().or(self.any)
    }
}

impl Named {
    fn find(&self, reverse_path: &[u8]) -> Option<RouteId> {
        if reverse_path.is_empty() {
            return self.null;
        }
        let mut buffer = [0; ADDRESS_BYTES_MAX];
        let reverse_path = &*canonical_address(reverse_path.strip_suffix(b".").unwrap_or(reverse_path));
        // What is longer is no address of anybody's; the domain at its end may be somebody's all the same.
        let from = reverse_path.len().saturating_sub(ADDRESS_BYTES_MAX);
        let lower = &mut buffer[..reverse_path.len() - from];
        lower.copy_from_slice(&reverse_path[from..]);
        // Local parts differ by case only in theory (RFC 5321 2.4): nobody means two senders by them.
        lower.make_ascii_lowercase();
        if from == 0
            && let Some(route) = self.addresses.get(&*lower)
        {
            return Some(*route);
        }
        let domain = after_at(lower);
        if let Some(route) = self.domains.get(domain) {
            return Some(*route);
        }
        let mut rest = domain;
        while let Some(dot) = rest.iter().position(|&byte| byte == b'.') {
            rest = &rest[dot + 1..];
            if let Some(route) = self.below.get(rest) {
                return Some(*route);
            }
        }
        None
    }
}
