//! Recipients that a next hop is not asked for, because they need what it does not offer while the rest of their message does not.

use ringpost_queue::Envelope;
use ringpost_smtp::{
    client::{NEEDS_SMTPUTF8, SuccessReport, Verdict},
    envelope::EnvelopeView,
    reply::Reply,
};

use crate::attempt::{AttemptStorage, RecipientOutcome};

/// The recipients, by their numbers in the message in rising order, whose own address or ORCPT needs SMTPUTF8 (RFC 6531 3.2), for a next hop without
/// it. Empty where the sender or a header needs it, so that nobody can be sent it, and where all of them need it: then the transaction fails as a
/// whole. `recipients` as from the queue.
pub(crate) fn beyond_ascii<'q>(
    envelope: &Envelope<'_>,
    has_header_beyond_ascii: bool,
    recipients: impl Iterator<Item = (u16, &'q [u8])>,
    view: Option<&EnvelopeView<'_>>,
) -> Vec<u16> {
    if !envelope.smtputf8 || has_header_beyond_ascii || !envelope.reverse_path.is_ascii() {
        return Vec::new();
    }
    // Both are in the order of the recipients' numbers.
    let mut said = (0..).zip(view.into_iter().flat_map(EnvelopeView::recipients));
    let (mut withheld, mut count) = (Vec::new(), 0);
    for (number, path) in recipients {
        let original = said.find(|(at, _)| *at == number).and_then(|(_, said)| said.original);
        count += 1;
        if !path.is_ascii() || original.is_some_and(|original| !original.is_ascii()) {
            withheld.push(number);
        }
    }
    if withheld.len() == count { Vec::new() } else { withheld }
}

/// Decides them.
pub(crate) fn decide(withheld: &[u16], storage: &mut AttemptStorage) {
    let outcome = |&recipient: &u16| RecipientOutcome {
        recipient,
        verdict: Verdict::Failed,
        reply: Reply::local(NEEDS_SMTPUTF8),
        success_report: SuccessReport::Delivered,
    };
    storage.outcomes.extend(withheld.iter().map(outcome));
}
