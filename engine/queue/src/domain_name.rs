//! The names of domains: what can be one, where it stands in an address, and the one form in which they are compared.
//!
//! That is A-labels in lower case (RFC 5890, UTS 46), so that `bücher.example`, `BÜCHER.example` and `xn--bcher-kva.example` are one
//! domain. What is ASCII is that already, but for its case, which its users fold.

use std::borrow::Cow;

/// Longest domain that is told from others, in bytes (RFC 5321 4.5.3.1.2); of routes a longer one matches only `*`.
pub(crate) const DOMAIN_BYTES_MAX: usize = 255;

/// A domain as it is compared, but for the case of what is ASCII already; what cannot be one stays as it is.
pub fn canonical_domain(domain: &[u8]) -> Cow<'_, [u8]> {
    if domain.is_ascii() {
        return Cow::Borrowed(domain);
    }
    let ascii = std::str::from_utf8(domain).ok().and_then(|domain| idna::domain_to_ascii(domain).ok());
    ascii.filter(|ascii| !ascii.is_empty()).map_or(Cow::Borrowed(domain), |ascii| Cow::Owned(ascii.into_bytes()))
}

/// The same of what stands behind the last `@`, or of all where there is none.
pub(crate) fn canonical_address(address: &[u8]) -> Cow<'_, [u8]> {
    if address.is_ascii() {
        return Cow::Borrowed(address);
    }
    let start = address.iter().rposition(|&byte| byte == b'@').map_or(0, |at| at + 1);
    match canonical_domain(&address[start..]) {
        Cow::Borrowed(_) => Cow::Borrowed(address),
        Cow::Owned(domain) => Cow::Owned([&address[..start], &domain].concat()),
    }
}

/// The same of the domains in a route's pattern (`*.bücher.example from @x.test`), all in lower case.
pub(crate) fn canonical_pattern(pattern: &str) -> String {
    let part = |part: &str| {
        let start = part.rfind('@').map_or(0, |at| at + 1);
        let start = start + if part[start..].starts_with("*.") { 2 } else { 0 };
        let domain = canonical_domain(&part.as_bytes()[start..]);
        format!("{}{}", &part[..start], String::from_utf8_lossy(&domain))
    };
    let whole = match pattern.split_once(" from ") {
        Some((domain, sender)) => format!("{} from {}", part(domain), part(sender)),
        None => part(pattern),
    };
    whole.to_ascii_lowercase()
}

/// Is it what a domain can be, or an address literal?
pub(crate) fn is_domain(text: &str) -> bool {
    !text.is_empty() && text.len() <= DOMAIN_BYTES_MAX && !text.contains('*') && text.bytes().all(|b| b > b' ' && b != b'@' && b != 0x7F)
}

/// What follows the last `@`; empty if there is none.
pub(crate) fn after_at(address: &[u8]) -> &[u8] {
    address.iter().rposition(|&byte| byte == b'@').map_or(&[][..], |at| &address[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_a_domain_are_one() {
        for form in ["bücher.test", "BÜCHER.test", "bücher.test", "Bücher。test", "xn--bcher-kva.test"] {
            assert_eq!(canonical_domain(form.as_bytes()), &b"xn--bcher-kva.test"[..], "{form}");
            assert_eq!(canonical_address(format!("Müller@{form}").as_bytes()), "Müller@xn--bcher-kva.test".as_bytes());
            assert_eq!(canonical_pattern(&format!("*.{form} from A@{form}")), "*.xn--bcher-kva.test from a@xn--bcher-kva.test");
            assert_eq!(canonical_pattern(&format!("{form} from @*.{form}")), "xn--bcher-kva.test from @*.xn--bcher-kva.test");
        }
        for same in [&b"y.test"[..], b"Y.test.", b"", b"[192.0.2.1]", b"\xff.test", "a bü.test\0".as_bytes()] {
            assert!(matches!(canonical_domain(same), Cow::Borrowed(_)) || !same.is_ascii(), "{}", same.escape_ascii());
        }
    }
}
