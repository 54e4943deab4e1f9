//! A recipient that one transaction names more than once gets one copy.

use std::ops::Range;

use super::{Envelope, RECIPIENT_BYTES, u16_at};

/// So few recipients are compared each with each: that allocates nothing, and most mail has no more.
const FEW: usize = 16;

impl Envelope {
    /// Leaves out each recipient that stands in front already with the same address, NOTIFY and ORCPT. One with others stays: its sender
    /// wants to hear of it by itself (RFC 3461 5.2), and no record says two things.
    pub(crate) fn drop_repeats(&mut self) {
        let count = self.recipient_count();
        if count < 2 || count <= FEW && !self.has_repeat() {
            return;
        }
        // Two recipients are the same when their records are, octet by octet: addresses are canonical.
        let mut records: Vec<(usize, Range<usize>)> = self.records().enumerate().collect();
        records.sort_unstable_by(|(at, one), (behind, other)| self.bytes[one.clone()].cmp(&self.bytes[other.clone()]).then(at.cmp(behind)));
        let mut is_repeat = vec![false; count];
        for pair in records.windows(2) {
            is_repeat[pair[1].0] = self.bytes[pair[0].1.clone()] == self.bytes[pair[1].1.clone()];
        }
        if is_repeat.contains(&true) {
            self.bytes = self.view().with_recipients(|position| !is_repeat[position]);
            self.last_recipient = self.records().last().expect("the first of each stays").start;
        }
    }

    fn has_repeat(&self) -> bool {
        let is_same = |one: &Range<usize>, other: &Range<usize>| self.bytes[one.clone()] == self.bytes[other.clone()];
        self.records().enumerate().any(|(at, one)| self.records().take(at).any(|other| is_same(&one, &other)))
    }

    /// Where the record of each recipient stands.
    fn records(&self) -> impl Iterator<Item = Range<usize>> {
        let mut next = self.view().recipients_at();
        std::iter::from_fn(move || {
            let start = next;
            let head = self.bytes.get(start..start + RECIPIENT_BYTES)?;
            next += RECIPIENT_BYTES + usize::from(u16_at(head, 0)) + usize::from(u16_at(head, 2));
            Some(start..next)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{EnvelopeView, Origin, Protocol};
    use crate::extension::{MailParameters, Notify, RecipientParameters};

    fn envelope<'r>(recipients: impl IntoIterator<Item = (&'r str, RecipientParameters<'r>)>) -> Envelope {
        let origin = Origin { peer: "192.0.2.1:25".parse().unwrap(), protocol: Protocol::Esmtp, helo: "mx.test" };
        let parameters = MailParameters { envelope_id: Some(b"QQ"), ..MailParameters::default() };
        Envelope::build(&origin, "a@x.test", &parameters, recipients).unwrap()
    }

    #[test]
    fn what_is_left_is_the_first_of_each_in_its_order() {
        let plain = RecipientParameters::default();
        let told = |notify| RecipientParameters { notify, original_recipient: None };
        let known_as = |original| RecipientParameters { notify: Notify::UNSAID, original_recipient: Some(original) };
        let all = [
            ("c@y.test", plain),
            ("b@y.test", plain),
            ("c@y.test", plain),
            ("b@y.test", told(Notify::NEVER)),
            ("b@y.test", known_as(b"rfc822;b@z.test")),
            ("B@y.test", plain),
            ("b@y.test", plain),
            ("b@y.test", told(Notify::NEVER)),
            ("b@y.test", known_as(b"rfc822;b@z.test")),
            ("bb@y.test", plain),
        ];
        // As few as are compared each with each, and more.
        for others in [0, 3, 500] {
            let others: Vec<String> = (0..others).map(|number| format!("{number}@z.test")).collect();
            let others = || others.iter().map(|path| (&**path, plain)).chain(others.iter().map(|path| (&**path, plain)));
            let mut given = envelope(all.into_iter().chain(others()));
            given.drop_repeats();
            let firsts = [0, 1, 3, 4, 5, 9].map(|at| all[at]);
            let expected = envelope(firsts.into_iter().chain(others().take(others().count() / 2)));
            assert_eq!(EnvelopeView::decode(given.as_bytes()).unwrap(), expected.view());
            assert_eq!(given.last_recipient(), expected.last_recipient());
            given.drop_repeats();
            assert_eq!(given.as_bytes(), expected.as_bytes(), "nothing is left to be left out");
        }
    }
}
