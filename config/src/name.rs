//! Domain names and local parts as they stand in the file.

use std::borrow::Cow;
use std::cmp::Ordering;

/// Longest domain name, in octets (RFC 5321 4.5.3.1.2).
const DOMAIN_BYTES_MAX: usize = 255;
/// Longest label of a domain name, in octets (RFC 1035 2.3.4).
const LABEL_BYTES_MAX: usize = 63;
/// Longest local part, in octets (RFC 5321 4.5.3.1.1).
const LOCAL_PART_BYTES_MAX: usize = 64;

/// A domain name in the form in which domains are compared: lower case, and A-labels where U-labels are written (RFC 5890, UTS 46).
pub(crate) fn parse_domain(text: &str) -> Result<String, String> {
    let label_is_valid = |label: &str| {
        let chars_are_valid = label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_' || !c.is_ascii());
        !label.is_empty() && label.len() <= LABEL_BYTES_MAX && !label.starts_with('-') && !label.ends_with('-') && chars_are_valid
    };
    if text.len() > DOMAIN_BYTES_MAX || !text.split('.').all(label_is_valid) {
        return Err("is not a domain name, for instance \"example.org\"".to_owned());
    }
    let name = canonical(text).to_ascii_lowercase();
    if name.is_ascii() { Ok(name) } else { Err("has labels that no domain can have (UTS 46)".to_owned()) }
}

/// U-labels as A-labels; what is ASCII, or no domain, as it is.
pub(crate) fn canonical(domain: &str) -> Cow<'_, str> {
    let ascii = (!domain.is_ascii()).then(|| idna::domain_to_ascii(domain).ok()).flatten();
    ascii.filter(|ascii| !ascii.is_empty()).map_or(Cow::Borrowed(domain), Cow::Owned)
}

/// A local part, in lower case (ASCII); what follows an @ is refused, the domain stands above the list.
pub(crate) fn parse_local_part(text: &str) -> Result<String, String> {
    if text.contains('@') {
        return Err("has a domain: write the part before the @ only".to_owned());
    }
    if text.is_empty() || text.len() > LOCAL_PART_BYTES_MAX || text.chars().any(|c| c.is_control() || c == '<' || c == '>') {
        return Err(format!("is not a local part: 1 to {LOCAL_PART_BYTES_MAX} octets without control characters, < and >"));
    }
    Ok(text.to_ascii_lowercase())
}

/// Orders names without regard to ASCII case and without copying; `lower` is in lower case.
pub(crate) fn compare(lower: &str, name: &str) -> Ordering {
    lower.bytes().cmp(name.bytes().map(|byte| byte.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domain_names_are_lowered_and_checked() {
        assert_eq!(parse_domain("Example.ORG"), Ok("example.org".to_owned()));
        assert_eq!(parse_domain("localhost"), Ok("localhost".to_owned()));
        for form in ["bücher.example", "BÜCHER.example", "xn--bcher-kva.example", "XN--BCHER-KVA.EXAMPLE"] {
            assert_eq!(parse_domain(form), Ok("xn--bcher-kva.example".to_owned()), "{form}");
            assert_eq!(canonical(form).to_ascii_lowercase(), "xn--bcher-kva.example");
        }
        let long = format!("{}.org", "a".repeat(64));
        for text in ["", ".", "a..b", "example.org.", "-a.org", "a b.org", "a@b", "[192.0.2.1]", "*.org", &long, &"a.".repeat(200)] {
            assert!(parse_domain(text).is_err(), "{text}");
        }
    }

    #[test]
    fn local_parts_carry_no_domain() {
        assert_eq!(parse_local_part("Ann.Other+x"), Ok("ann.other+x".to_owned()));
        for text in ["", "a@b", "a\n", "<a>", &"a".repeat(65)] {
            assert!(parse_local_part(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_compare_without_case() {
        assert_eq!(compare("example.org", "EXAMPLE.org"), Ordering::Equal);
        assert_eq!(compare("a", "B"), Ordering::Less);
        assert_eq!(compare("ab", "A"), Ordering::Greater);
    }
}
