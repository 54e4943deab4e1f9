//! Which reverse-paths are of one sender, for a destination that refuses it.
//!
//! A list that is to know whose mail came back writes with another reverse-path for each recipient (VERP: `list+b=y.test@x.test`), a host that is
//! to know its own bounces with another one each day (BATV: `prvs=0123abcdef=a@x.test`). By the address each message would be of a sender that
//! nobody has refused yet, and each of them was tried, and paused the destination, before anybody else's mail. So what stands behind a `+` and
//! the mark of BATV are not looked at; and of the many other ways to write such addresses the domain is what stays: one of which several
//! senders were refused is avoided as a whole.

/// Senders of one domain that are told apart; with the next one it is the domain that is avoided. Each has had the destination pause, for 10 s,
/// 20 s, 40 s and 80 s: one that writes each message with an address of its own keeps others for two and a half minutes, and a domain of many
/// good senders is avoided for nobody's sake before the fourth of them was refused.
pub(crate) const OF_DOMAIN_MAX: usize = 3;

/// Before the key of BATV.
const TAG: &[u8] = b"prvs=";

/// What is looked at of a reverse-path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sender<'a> {
    local: &'a [u8],
    domain: &'a [u8],
}

impl<'a> Sender<'a> {
    /// Of a reverse-path without brackets; the null one is a sender of its own.
    pub(crate) fn of(reverse_path: &'a [u8]) -> Self {
        let (local, domain) = match reverse_path.iter().rposition(|&byte| byte == b'@') {
            Some(at) => (&reverse_path[..at], &reverse_path[at + 1..]),
            None => (reverse_path, &[][..]),
        };
        let local = without_tag(local);
        // Something has to be left.
        let end = local.iter().skip(1).position(|&byte| byte == b'+').map_or(local.len(), |at| at + 1);
        Self { local: &local[..end], domain }
    }
}

/// Without the mark of BATV: `prvs=`, a key of digits and letters, and `=` before the address.
fn without_tag(local: &[u8]) -> &[u8] {
    let has_mark = local.get(..TAG.len()).is_some_and(|mark| mark.eq_ignore_ascii_case(TAG));
    let end_of_key = || local.iter().skip(TAG.len()).position(|byte| !byte.is_ascii_alphanumeric());
    match end_of_key().filter(|_| has_mark).map(|at| TAG.len() + at) {
        Some(at) if local[at] == b'=' && at + 1 < local.len() => &local[at + 1..],
        _ => local,
    }
}

/// One or all senders of a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SenderGroup {
    /// None: whoever it is.
    local: Option<Box<[u8]>>,
    domain: Box<[u8]>,
}

impl SenderGroup {
    pub(crate) fn of(sender: Sender<'_>) -> Self {
        Self { local: Some(sender.local.into()), domain: sender.domain.into() }
    }

    pub(crate) fn domain_of(sender: Sender<'_>) -> Self {
        Self { local: None, domain: sender.domain.into() }
    }

    #[inline]
    pub(crate) fn has(&self, sender: Sender<'_>) -> bool {
        self.is_of_domain(sender) && self.local.as_deref().is_none_or(|local| local == sender.local)
    }

    #[inline]
    pub(crate) fn is_of_domain(&self, sender: Sender<'_>) -> bool {
        self.domain.eq_ignore_ascii_case(sender.domain)
    }

    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.domain.eq_ignore_ascii_case(&other.domain) && (self.local.is_none() || self.local == other.local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_with_an_address_for_each_recipient_is_one() {
        for (address, local) in [
            ("news@x.test", "news"),
            ("news+b=y.test@x.test", "news"),
            ("news+1+2@x.test", "news"),
            ("prvs=0123abcdef=news@x.test", "news"),
            ("PRVS=0123abcdef=news+b=y.test@X.TEST", "news"),
            ("prvs=0123abcdef=@x.test", "prvs=0123abcdef="),
            ("prvs=@x.test", "prvs="),
            ("prvs@x.test", "prvs"),
            ("+news@x.test", "+news"),
            ("+@x.test", "+"),
            ("\"a@b\"@x.test", "\"a@b\""),
        ] {
            let sender = Sender::of(address.as_bytes());
            assert_eq!(sender.local, local.as_bytes(), "{address}");
            assert!(SenderGroup::domain_of(Sender::of(b"z@x.test")).has(sender), "{address}");
        }
        let null = SenderGroup::of(Sender::of(b""));
        assert!(null.has(Sender::of(b"")) && !null.has(Sender::of(b"a@x.test")));
    }
}
