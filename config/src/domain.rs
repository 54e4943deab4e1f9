//! `[[domain]]`: the domains mail is accepted for from everybody.

use crate::name::{canonical, compare, parse_local_part, parse_mail_domain};
use crate::section::Section;

/// `[[domain]]`: one domain of ours and its recipients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    name: String,
    /// In order, lower case; None: every local part.
    recipients: Option<Vec<String>>,
}

impl Domain {
    /// The domain, in lower case.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The listed local parts in order, in lower case; None: every local part is accepted.
    pub fn recipients(&self) -> Option<&[String]> {
        self.recipients.as_deref()
    }

    /// Whether this domain has such a recipient, without regard to ASCII case. `postmaster` always is one (RFC 5321 4.5.1).
    ///
    /// `local_part` is the meaning of the local part, without quotes and backslashes.
    pub fn accepts(&self, local_part: &str) -> bool {
        match &self.recipients {
            None => true,
            Some(listed) => {
                local_part.eq_ignore_ascii_case("postmaster") || listed.binary_search_by(|lower| compare(lower, local_part)).is_ok()
            }
        }
    }

    pub(crate) fn read(mut section: Section<'_, '_>) -> Option<Domain> {
        if !section.has("name") {
            section.refuse("name", "is missing: write for instance name = \"example.org\"");
        }
        let name = section.optional::<String>("name").and_then(|name| match parse_mail_domain(&name) {
            Ok(name) => Some(name),
            Err(message) => {
                section.refuse("name", message);
                None
            }
        });
        let mut recipients = section.list("recipients", parse_local_part);
        if let Some(listed) = &mut recipients {
            listed.sort_unstable();
            listed.dedup();
        }
        section.finish();
        name.map(|name| Domain { name, recipients })
    }
}

/// All own domains, found by name in logarithmic time and without copying.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domains {
    /// In the order of their names.
    sorted: Vec<Domain>,
}

impl Domains {
    pub(crate) fn new(mut domains: Vec<Domain>) -> Domains {
        domains.sort_by(|a, b| a.name.cmp(&b.name));
        Domains { sorted: domains }
    }

    /// The own domain of this name, without regard to case, in U-labels or A-labels.
    pub fn get(&self, name: &str) -> Option<&Domain> {
        let name = canonical(name);
        self.sorted.binary_search_by(|domain| compare(&domain.name, &name)).ok().map(|index| &self.sorted[index])
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Domain> {
        self.sorted.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(name: &str, recipients: Option<&[&str]>) -> Domain {
        let recipients = recipients.map(|listed| listed.iter().map(|local| (*local).to_owned()).collect());
        Domain { name: name.to_owned(), recipients }
    }

    #[test]
    fn listed_recipients_and_postmaster_are_accepted() {
        let listed = domain("y.test", Some(&["b", "c"]));
        assert!(listed.accepts("b") && listed.accepts("C") && listed.accepts("PostMaster"));
        assert!(!listed.accepts("a") && !listed.accepts("") && !listed.accepts("bc"));
        assert!(domain("y.test", None).accepts("anybody"));
        let empty = domain("y.test", Some(&[]));
        assert!(empty.accepts("postmaster") && !empty.accepts("b"));
    }

    #[test]
    fn a_domain_is_found_without_regard_to_case() {
        let domains = Domains::new(vec![domain("z.test", None), domain("a.test", None), domain("m.test", None)]);
        assert_eq!(domains.get("M.Test").map(Domain::name), Some("m.test"));
        let domains_of_books = Domains::new(vec![domain("xn--bcher-kva.test", None)]);
        for form in ["xn--bcher-kva.test", "bücher.test", "BÜCHER.TEST"] {
            assert!(domains_of_books.get(form).is_some(), "{form}");
        }
        assert!(domains.get("x.m.test").is_none() && domains.get("").is_none());
    }
}
