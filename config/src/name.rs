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
    if !is_domain(text) {
        return Err("is not a domain name, for instance \"example.org\"".to_owned());
    }
    let name = canonical(text).to_ascii_lowercase();
    // Conversion may leave a label empty, or make it too long.
    if name.is_ascii() && is_domain(&name) { Ok(name) } else { Err("has labels that no domain can have (UTS 46)".to_owned()) }
}

fn is_domain(text: &str) -> bool {
    let label_is_valid = |label: &str| {
        let chars_are_valid = label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_' || !c.is_ascii());
        !label.is_empty() && label.len() <= LABEL_BYTES_MAX && !label.starts_with('-') && !label.ends_with('-') && chars_are_valid
    };
    text.len() <= DOMAIN_BYTES_MAX && text.split('.').all(label_is_valid)
}

/// A name that mail can be sent to, and that a greeting can have (RFC 5321 4.1.2): without `_`, which names of machines may have that are only
/// looked up. In the form of [`parse_domain`].
pub(crate) fn parse_mail_domain(text: &str) -> Result<String, String> {
    let name = parse_domain(text)?;
    if name.contains('_') {
        Err("has a \"_\", which no name in a mail address or a greeting can have (RFC 5321)".to_owned())
    } else {
        Ok(name)
    }
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

/// An address of ASCII that needs no quotes, with its domain in the form of [`parse_domain`].
pub(crate) fn parse_address(text: &str) -> Option<String> {
    let (local, domain) = text.rsplit_once('@')?;
    let is_atom =
        |atom: &str| !atom.is_empty() && atom.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte));
    let is_plain = parse_local_part(local).is_ok() && local.split('.').all(is_atom);
    is_plain.then_some(())?;
    Some(format!("{local}@{}", parse_domain(domain).ok()?))
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

    /// The config was good, and the engine could not start: a greeting has a stricter grammar than a look-up.
    #[test]
    fn names_of_mail_have_no_underscores_and_no_labels_that_conversion_breaks() {
        assert_eq!(parse_domain("mx_1.example.org"), Ok("mx_1.example.org".to_owned()));
        assert!(parse_mail_domain("mx_1.example.org").is_err());
        assert_eq!(parse_mail_domain("BÜCHER.example"), Ok("xn--bcher-kva.example".to_owned()));
        // Of 58 octets, and of more than 63 as an A-label; and one that is nothing but a soft hyphen.
        for text in ["äöüäöüäöüäöüäöüäöüäöüäöüäöüzz\u{4e00}\u{ac00}.example", "a.\u{ad}.example"] {
            assert!(parse_domain(text).is_ok_and(|name| is_domain(&name)) || parse_domain(text).is_err(), "{text}");
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
    fn addresses_are_plain_ones() {
        assert_eq!(parse_address("Post.Master@Example.ORG").as_deref(), Some("Post.Master@example.org"));
        for text in ["postmaster", "@a.test", "a@", "a b@a.test", "a..b@a.test", "\"a\"@a.test", "a@b@c.test", "ä@a.test", "<a@b.test>"] {
            assert_eq!(parse_address(text), None, "{text}");
        }
    }

    #[test]
    fn names_compare_without_case() {
        assert_eq!(compare("example.org", "EXAMPLE.org"), Ordering::Equal);
        assert_eq!(compare("a", "B"), Ordering::Less);
        assert_eq!(compare("ab", "A"), Ordering::Greater);
    }
}
