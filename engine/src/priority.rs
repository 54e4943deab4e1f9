//! How urgent a message is, 0 to 9: what its client said, else its header, its listener, its route.
//!
//! RFC 6710 knows -9 to 9; two of them share one of ours, and what says nothing is [`NORMAL`], as 0 there. A stranger can only
//! lower its own mail: the session caps what it says, and its header is not looked at.

use memchr::memmem;
use ringpost_config::Config;
use ringpost_queue::{PRIORITY_MAX, RouteId};
use ringpost_smtp::envelope::EnvelopeView;

/// Of mail about which nobody says anything.
pub const NORMAL: u8 = 4;

/// Where a message comes from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Which `[[listener]]`, in the order of the config.
    pub listener: usize,
    /// It is a client of the relay networks.
    pub trusted: bool,
}

/// What the config says about priorities.
#[derive(Debug)]
pub struct Priorities {
    header: Option<Vec<u8>>,
    listeners: Vec<Option<u8>>,
    /// By pattern of the routes, in order; empty if none says anything.
    routes: Vec<Option<u8>>,
}

impl Priorities {
    /// From the config, whose routes are numbered in order.
    pub fn new(config: &Config) -> Self {
        let patterns: Vec<_> = config.routes.as_slice().iter().flat_map(|route| route.names()).collect();
        Self::numbered(config, |pattern| patterns.iter().position(|own| own == pattern).map(|number| RouteId(number as u16)))
    }

    /// From the config, whose routes have these numbers by their patterns.
    pub fn numbered(config: &Config, number: impl Fn(&str) -> Option<RouteId>) -> Self {
        let level = |priority: Option<u32>| priority.map(|priority| u8::try_from(priority).unwrap_or(PRIORITY_MAX).min(PRIORITY_MAX));
        let mut routes = Vec::new();
        for route in config.routes.as_slice() {
            for name in route.names() {
                let Some(RouteId(number)) = number(&name) else { continue };
                let number = usize::from(number);
                routes.resize(routes.len().max(number + 1), None);
                routes[number] = level(route.priority);
            }
        }
        Priorities {
            header: config.smtp.priority_header.clone().map(String::into_bytes),
            listeners: config.listeners.iter().map(|listener| level(listener.priority)).collect(),
            routes: if routes.iter().any(Option::is_some) { routes } else { Vec::new() },
        }
    }

    /// What is said about a message itself, and kept with it. `head` is the beginning of its content.
    pub fn stated(&self, envelope: &EnvelopeView<'_>, origin: Origin, head: &[u8]) -> Option<u8> {
        let of_client = envelope.priority().map(level_of);
        let of_header = || self.header.as_deref().filter(|_| origin.trusted).and_then(|name| of_header(name, head));
        of_client.or_else(of_header).or_else(|| self.listeners.get(origin.listener).copied().flatten())
    }

    /// Of a message about which nothing is said: the highest of the routes that it goes by.
    pub fn of_routes(&self, routes: impl Iterator<Item = Option<RouteId>>) -> u8 {
        if self.routes.is_empty() {
            return NORMAL;
        }
        let of_route = |route: RouteId| self.routes.get(usize::from(route.0)).copied().flatten();
        routes.flatten().filter_map(of_route).max().unwrap_or(NORMAL)
    }
}

/// RFC 6710's level as ours: -9 and -8 are 0, 0 is [`NORMAL`], 9 is 9.
fn level_of(priority: i8) -> u8 {
    u8::try_from((i16::from(priority.clamp(-9, 9)) + 9) / 2).unwrap_or(0)
}

/// The value of the first field of this name, if it is one digit; comments and words behind it do not matter.
fn of_header(name: &[u8], head: &[u8]) -> Option<u8> {
    let end = memmem::find(head, b"\r\n\r\n").unwrap_or(head.len());
    let value = head[..end].split(|&byte| byte == b'\n').find_map(|line| {
        let (field, value) = line.split_at_checked(name.len())?;
        field.eq_ignore_ascii_case(name).then(|| value.trim_ascii_start().strip_prefix(b":"))?
    })?;
    match value.trim_ascii() {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        [digit @ b'0'..=b'9', rest, ..] if !rest.is_ascii_alphanumeric() => Some(digit - b'0'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nineteen_levels_become_ten_in_order() {
        let levels: Vec<_> = (-9..=9).map(level_of).collect();
        assert!(levels.is_sorted());
        assert_eq!((levels[0], levels[9], levels[18]), (0, NORMAL, 9));
        assert!(level_of(-1) <= NORMAL && level_of(1) > NORMAL);
        assert_eq!((level_of(i8::MIN), level_of(i8::MAX)), (0, 9));
    }

    #[test]
    fn the_header_says_a_digit_or_nothing() {
        let of = |head: &[u8]| of_header(b"X-Queue-Priority", head);
        assert_eq!(of(b"Subject: x\r\nx-queue-priority: 9\r\n\r\nbody"), Some(9));
        assert_eq!(of(b"X-Queue-Priority:0 (later)\r\n\r\n"), Some(0));
        assert_eq!(of(b"X-Queue-Priority: 3\r\nX-Queue-Priority: 8\r\n"), Some(3));
        for head in [
            &b"X-Queue-Priority: 10\r\n\r\n"[..],
            b"X-Queue-Priority: high\r\n",
            b"X-Queue-Priority:\r\n",
            b"X-Queue-Priority-Not: 5\r\n",
            b"Subject: a\r\n\r\nX-Queue-Priority: 5\r\n",
            b"",
        ] {
            assert_eq!(of(head), None, "{}", String::from_utf8_lossy(head));
        }
    }
}
