//! The times that an envelope asks for, as points in time: release (RFC 4865) and delivery (RFC 2852). Pure.

use ringpost_smtp::{
    envelope::EnvelopeView,
    extension::{ByMode, DeliverBy, Hold},
};

/// When a held message is released, unix milliseconds; `None` for one that is not held.
pub fn release_at_ms(envelope: &EnvelopeView<'_>, accepted_at_ms: u64) -> Option<u64> {
    match envelope.hold()? {
        Hold::For(seconds) => Some(accepted_at_ms.saturating_add(u64::from(seconds) * 1000)),
        Hold::Until(seconds) => Some(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)).filter(|at| *at > accepted_at_ms),
    }
}

/// When the time of BY is over, unix milliseconds, and what happens then. It counts from the release of a held message (RFC 4865 4).
pub fn deliver_by_ms(envelope: &EnvelopeView<'_>, accepted_at_ms: u64) -> Option<(u64, ByMode)> {
    let by = envelope.deliver_by()?;
    let from = release_at_ms(envelope, accepted_at_ms).unwrap_or(accepted_at_ms);
    Some((from.saturating_add_signed(i64::from(by.seconds) * 1000), by.mode))
}

/// BY as it is passed on: the sender's seconds less those that have passed in full (RFC 2852 4.1.3), so that what is left of one is one. 0 and
/// less: the time is over.
pub fn deliver_by_left(envelope: &EnvelopeView<'_>, accepted_at_ms: u64, now_ms: u64) -> Option<DeliverBy> {
    let (at, _) = deliver_by_ms(envelope, accepted_at_ms)?;
    let left_ms = i64::try_from(at).unwrap_or(i64::MAX) - i64::try_from(now_ms).unwrap_or(i64::MAX);
    let whole = left_ms.div_euclid(1000) + i64::from(left_ms.rem_euclid(1000) > 0);
    let seconds = i32::try_from(whole).unwrap_or(if left_ms < 0 { i32::MIN } else { i32::MAX });
    Some(DeliverBy { seconds, ..envelope.deliver_by()? })
}

#[cfg(test)]
mod tests {
    use ringpost_smtp::{
        envelope::{Envelope, Origin, Protocol},
        extension::MailParameters,
    };

    use super::*;

    const NOW: u64 = 1_790_000_000_000;

    fn envelope(hold: Option<Hold>, seconds: Option<i32>) -> Envelope {
        let origin = Origin { peer: "192.0.2.7:25".parse().unwrap(), protocol: Protocol::Esmtp, helo: "x" };
        let deliver_by = seconds.map(|seconds| DeliverBy { seconds, mode: ByMode::Notify, trace: true });
        Envelope::build(&origin, "", &MailParameters { hold, deliver_by, ..MailParameters::default() }, []).unwrap()
    }

    #[test]
    fn the_time_for_delivery_counts_from_the_release() {
        let second = |at: u64| i64::try_from(at / 1000).unwrap();
        for (hold, released) in [
            (None, None),
            (Some(Hold::For(60)), Some(NOW + 60_000)),
            (Some(Hold::Until(second(NOW) + 5)), Some(NOW + 5_000)),
            (Some(Hold::Until(second(NOW) - 5)), None),
            (Some(Hold::Until(-1)), None),
        ] {
            let plain = envelope(hold, None);
            assert_eq!(release_at_ms(&plain.view(), NOW), released, "{hold:?}");
            assert_eq!(deliver_by_left(&plain.view(), NOW, NOW), None);
            let timed = envelope(hold, Some(10));
            let end = released.unwrap_or(NOW) + 10_000;
            assert_eq!(deliver_by_ms(&timed.view(), NOW), Some((end, ByMode::Notify)));
            let left = |now| deliver_by_left(&timed.view(), NOW, now).map(|by| (by.seconds, by.trace));
            assert_eq!(left(end - 10_000), Some((10, true)));
            assert_eq!(left(end - 9_999), Some((10, true)), "nothing that a sender counts has passed");
            // Until 2026 what was left of a second counted as nothing: with BY=1;R mail came back a millisecond after it had come.
            assert_eq!(left(end - 1), Some((1, true)));
            assert_eq!(left(end), Some((0, true)));
            assert_eq!(left(end + 1000), Some((-1, true)));
        }
    }
}
