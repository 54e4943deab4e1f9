//! The senders that a route is for.

use std::fmt;

use crate::name::{parse_domain, parse_local_part};
use crate::section::Section;

/// A sender or several. The most exact one wins: an address before its domain, that before `*.name`, a longer `*.name` before a shorter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SenderPattern {
    /// The null reverse-path, of reports.
    Null,
    /// `news@example.org`, in lower case.
    Address(String),
    /// Every address of `example.org`, in lower case.
    Domain(String),
    /// Every address of a domain below `example.org`, not of itself; held without `*.`, in lower case.
    Below(String),
}

impl fmt::Display for SenderPattern {
    /// As in the name of a route.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SenderPattern::Null => f.write_str("<>"),
            SenderPattern::Address(address) => f.write_str(address),
            SenderPattern::Domain(domain) => write!(f, "@{domain}"),
            SenderPattern::Below(parent) => write!(f, "@*.{parent}"),
        }
    }
}

/// `sender` and `sender_domain` of a route; empty when neither is there.
pub(crate) fn read_senders(section: &mut Section<'_, '_>) -> Vec<SenderPattern> {
    let addresses = section.one_or_list("sender", parse_address);
    let domains = section.one_or_list("sender_domain", parse_domains);
    for (key, example) in [("sender", "news@example.org"), ("sender_domain", "example.org")] {
        if section.has_empty_list(key) {
            section.refuse(key, format!("names no sender: write for instance {key} = \"{example}\", or leave it out"));
        }
    }
    addresses.into_iter().chain(domains).flatten().collect()
}

/// An address, or nothing for the null reverse-path.
fn parse_address(text: &str) -> Result<SenderPattern, String> {
    if text.is_empty() || text == "<>" {
        return Ok(SenderPattern::Null);
    }
    let wrong =
        || "is not an address: write \"news@example.org\", or \"\" for reports, which have none; sender_domain takes domains".to_owned();
    let (local_part, domain) = text.rsplit_once('@').ok_or_else(wrong)?;
    match (parse_local_part(local_part), parse_domain(domain)) {
        (Ok(local_part), Ok(domain)) => Ok(SenderPattern::Address(format!("{local_part}@{domain}"))),
        _ => Err(wrong()),
    }
}

fn parse_domains(text: &str) -> Result<SenderPattern, String> {
    let pattern = match text.strip_prefix("*.") {
        Some(parent) => parse_domain(parent).map(SenderPattern::Below),
        None => parse_domain(text).map(SenderPattern::Domain),
    };
    pattern.map_err(|_| "is not a domain: write \"example.org\" or \"*.example.org\"; sender takes addresses".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_are_addresses_domains_or_nobody() {
        for (text, shown) in [("News@Example.ORG", "news@example.org"), ("", "<>"), ("<>", "<>"), ("a+b@x.test", "a+b@x.test")] {
            assert_eq!(parse_address(text).map(|sender| sender.to_string()), Ok(shown.to_owned()), "{text}");
        }
        for (text, shown) in [("Example.ORG", "@example.org"), ("*.example.org", "@*.example.org")] {
            assert_eq!(parse_domains(text).map(|sender| sender.to_string()), Ok(shown.to_owned()), "{text}");
        }
        for text in ["example.org", "@example.org", "a@", "a@b@c", "<a@x.test>", "a@*.x.test", "*"] {
            assert!(parse_address(text).unwrap_err().contains("is not an address"), "{text}");
        }
        for text in ["", "*", "a@x.test", "@x.test", "*.*.x"] {
            assert!(parse_domains(text).unwrap_err().contains("is not a domain"), "{text}");
        }
    }
}
