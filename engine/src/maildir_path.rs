//! Where a recipient's maildir is: the path of the route with the recipient's words put in. Pure.

use std::path::PathBuf;

use ringpost_queue::canonical_domain;

/// Longest name of a folder, in bytes: what file systems take.
const NAME_BYTES_MAX: usize = 255;

/// This recipient cannot have a folder of its name: 553 5.1.3.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("553 5.1.3 this recipient cannot have a mailbox by its name")]
pub struct NoFolder;

/// The folder that all mailboxes of a route are in: what stands before the first brace of its path.
pub fn base_of(path: &str) -> PathBuf {
    let fixed = &path[..path.find('{').unwrap_or(path.len())];
    PathBuf::from(&fixed[..fixed.rfind('/').map_or(0, |at| at + 1)])
}

/// Puts `{local}` and `{domain}` into a path, in one spelling, because two spellings of one address are one mailbox: the domain as it is
/// compared everywhere, A-labels in lower case (RFC 5890, UTS 46), the local part in lower case (of Unicode, too) and else as it was written.
///
/// Nothing that a sender writes may leave the folder or hide in it: no `/`, no NUL or other control character, no leading dot, and no
/// quoted local part, whose blanks and quotes no file name should have.
pub fn maildir_of(path: &str, local_part: &str, domain: &str) -> Result<PathBuf, NoFolder> {
    let domain = canonical_domain(domain.as_bytes());
    let (local, domain) = (name_of(local_part)?, name_of(&String::from_utf8_lossy(&domain))?);
    let (mut full, mut rest) = (String::with_capacity(path.len() + local.len() + domain.len()), path);
    // In one pass: a local part may itself be called {domain}.
    while let Some(at) = rest.find('{') {
        full.push_str(&rest[..at]);
        rest = &rest[at..];
        let (word, behind) = match (rest.strip_prefix("{local}"), rest.strip_prefix("{domain}")) {
            (Some(behind), _) => (local.as_str(), behind),
            (_, Some(behind)) => (domain.as_str(), behind),
            _ => ("{", &rest[1..]),
        };
        full.push_str(word);
        rest = behind;
    }
    full.push_str(rest);
    if full.split('/').any(|name| name.len() > NAME_BYTES_MAX) { Err(NoFolder) } else { Ok(PathBuf::from(full)) }
}

fn name_of(word: &str) -> Result<String, NoFolder> {
    let is_bad = |character: char| character.is_control() || character.is_whitespace() || matches!(character, '/' | '\\' | '"');
    if word.is_empty() || word.starts_with('.') || word.chars().any(is_bad) {
        return Err(NoFolder);
    }
    Ok(word.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_all_mailboxes_stands_before_the_first_brace() {
        for (path, base) in
            [("/var/mail/{domain}/{local}/Maildir", "/var/mail/"), ("/m/u-{local}", "/m/"), ("{local}", ""), ("/m/x", "/m/")]
        {
            assert_eq!(base_of(path), PathBuf::from(base), "{path}");
        }
    }

    #[test]
    fn the_recipients_words_are_put_in_with_their_case_folded() {
        let path = "/var/mail/{domain}/{local}/Maildir";
        for (local, domain, expected) in [
            ("Bob", "Y.test", "/var/mail/y.test/bob/Maildir"),
            ("b+tag", "y.test", "/var/mail/y.test/b+tag/Maildir"),
            ("{domain}", "y.test", "/var/mail/y.test/{domain}/Maildir"),
            ("a..b", "[192.0.2.1]", "/var/mail/[192.0.2.1]/a..b/Maildir"),
        ] {
            assert_eq!(maildir_of(path, local, domain), Ok(PathBuf::from(expected)), "{local}@{domain}");
        }
        assert_eq!(maildir_of("all/{x}{", "b", "y.test"), Ok(PathBuf::from("all/{x}{")));
        assert_eq!(maildir_of("{local}-{domain}", "b", "y.test"), Ok(PathBuf::from("b-y.test")));
    }

    /// One mailbox had a folder for each form in which its domain was written, and its reader looked into one of them.
    #[test]
    fn all_forms_of_a_domain_lead_to_one_folder() {
        let forms = [
            "b\u{fc}cher.test",
            "B\u{dc}CHER.test",
            "bu\u{308}cher.test",
            "BU\u{308}CHER\u{3002}Test",
            "xn--bcher-kva.test",
            "XN--BCHER-KVA.TEST",
        ];
        for form in forms {
            assert_eq!(
                maildir_of("/m/{domain}/{local}", "M\u{dc}LLER", form),
                Ok(PathBuf::from("/m/xn--bcher-kva.test/m\u{fc}ller")),
                "{form}"
            );
        }
    }

    #[test]
    fn no_recipient_leaves_or_hides_in_the_folder() {
        let long = "x".repeat(256);
        for local in ["", ".", "..", ".hidden", "../../etc/cron.d/x", "a/b", "a\0b", "a\nb", "a\\b", "\"a b\"", "\"..\"", "a b", &long] {
            assert_eq!(maildir_of("/m/{domain}/{local}", local, "y.test"), Err(NoFolder), "{local:?}");
        }
        // The last two are slash and dots once they are A-labels.
        for domain in ["", "..", "a/b", ".y.test", "a\u{ff0f}b", "\u{3002}\u{3002}"] {
            assert_eq!(maildir_of("/m/{domain}/{local}", "b", domain), Err(NoFolder), "{domain:?}");
        }
        assert_eq!(maildir_of("/m/{local}{domain}", &long[..200], &long[..100]), Err(NoFolder));
    }
}
