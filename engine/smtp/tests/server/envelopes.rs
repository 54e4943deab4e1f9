//! Envelopes: what is written is read, and damage is found, never believed.

use std::net::SocketAddr;

use proptest::prelude::*;
use ringpost_smtp::envelope::{ENVELOPE_BYTES_MAX, Envelope, EnvelopeError, EnvelopeView, Origin, Protocol, RECIPIENTS_MAX};
use ringpost_smtp::extension::{Body, ByMode, DeliverBy, Extensions, Hold, MailParameters, Notify, RecipientParameters, Return};

fn origin(peer: &str) -> Origin<'static> {
    Origin { peer: peer.parse().expect("an address"), protocol: Protocol::Esmtp, helo: "client.test" }
}

fn sample() -> Envelope {
    let parameters = MailParameters {
        size: Some(4096),
        body: Body::EightBitMime,
        smtputf8: true,
        ret: Some(Return::Headers),
        envelope_id: Some(b"QQ+2B1"),
        deliver_by: Some(DeliverBy { seconds: -60, mode: ByMode::Notify, trace: true }),
        hold: Some(Hold::For(3600)),
        priority: Some(-3),
    };
    let dsn = RecipientParameters { notify: Notify::NEVER, original_recipient: Some(b"rfc822;b+2Bx@y.test") };
    let recipients = [("b@y.test", dsn), ("müller@y.test", RecipientParameters::default()), ("postmaster", RecipientParameters::default())];
    Envelope::build(&origin("[2001:db8::7]:4711"), "jürgen@x.test", &parameters, recipients).expect("it fits")
}

#[test]
fn what_is_written_is_read() {
    let envelope = sample();
    let view = EnvelopeView::decode(envelope.as_bytes()).expect("whole");
    assert_eq!(view, envelope.view());
    assert_eq!(view.peer(), "[2001:db8::7]:4711".parse::<SocketAddr>().expect("an address"));
    assert_eq!((view.protocol(), view.helo(), view.reverse_path().as_str()), (Protocol::Esmtp, "client.test", "jürgen@x.test"));
    assert_eq!((view.body(), view.smtputf8(), view.declared_size()), (Body::EightBitMime, true, Some(4096)));
    assert_eq!((view.ret(), view.envelope_id(), view.priority()), (Some(Return::Headers), Some("QQ+2B1"), Some(-3)));
    assert_eq!(view.deliver_by(), Some(DeliverBy { seconds: -60, mode: ByMode::Notify, trace: true }));
    assert_eq!(view.hold(), Some(Hold::For(3600)));
    assert_eq!(view.content(), Default::default());
    let recipients: Vec<_> = view.recipients().map(|recipient| (recipient.path.as_str(), recipient.notify, recipient.original)).collect();
    assert_eq!(
        recipients,
        [
            ("b@y.test", Notify::NEVER, Some("rfc822;b+2Bx@y.test")),
            ("müller@y.test", Notify::UNSAID, None),
            ("postmaster", Notify::UNSAID, None)
        ]
    );
    assert_eq!(view.recipient_count(), 3);
}

#[test]
fn a_plain_envelope_says_nothing_that_was_not_said() {
    let envelope = Envelope::build(&origin("192.0.2.7:25"), "", &MailParameters::default(), []).expect("it fits");
    let view = EnvelopeView::decode(envelope.as_bytes()).expect("whole");
    assert!(view.reverse_path().is_null() && view.recipients().next().is_none());
    assert_eq!((view.declared_size(), view.ret(), view.envelope_id(), view.priority()), (None, None, None, None));
    assert_eq!((view.deliver_by(), view.hold(), view.body(), view.smtputf8()), (None, None, Body::SevenBit, false));
    assert_eq!(view.peer(), "192.0.2.7:25".parse::<SocketAddr>().expect("an address"));
}

#[test]
fn whatever_is_to_be_passed_on_beside_addresses_makes_an_envelope_extended() {
    let plain =
        MailParameters { size: Some(4096), body: Body::EightBitMime, smtputf8: true, hold: Some(Hold::For(60)), ..Default::default() };
    let is_extended = |mail: &MailParameters<'_>, recipient: RecipientParameters<'_>| {
        let recipients = [("a@y.test", RecipientParameters::default()), ("b@y.test", recipient)];
        Envelope::build(&origin("192.0.2.7:25"), "s@x.test", mail, recipients).expect("it fits").view().is_extended()
    };
    assert!(!is_extended(&plain, RecipientParameters::default()));
    for mail in [
        MailParameters { ret: Some(Return::Full), ..plain },
        MailParameters { envelope_id: Some(b"x"), ..plain },
        MailParameters { priority: Some(0), ..plain },
        MailParameters { body: Body::BinaryMime, ..plain },
        MailParameters { deliver_by: Some(DeliverBy { seconds: 1, mode: ByMode::Return, trace: false }), ..plain },
    ] {
        assert!(is_extended(&mail, RecipientParameters::default()), "{mail:?}");
    }
    assert!(is_extended(&plain, RecipientParameters { notify: Notify::NEVER, ..Default::default() }));
    assert!(is_extended(&plain, RecipientParameters { original_recipient: Some(b"rfc822;b@y.test"), ..Default::default() }));
}

#[test]
fn another_version_or_length_is_refused() {
    let bytes = sample().as_bytes().to_vec();
    assert_eq!(EnvelopeView::decode(&[]), Err(EnvelopeError::Damaged));
    for length in 1..bytes.len() {
        assert_eq!(EnvelopeView::decode(&bytes[..length]), Err(EnvelopeError::Damaged), "cut to {length}");
    }
    assert_eq!(EnvelopeView::decode(&[&bytes[..], b"x"].concat()), Err(EnvelopeError::Damaged));
    assert_eq!(EnvelopeView::decode(&[&[2], &bytes[1..]].concat()), Err(EnvelopeError::Version(2)));
}

#[test]
fn too_much_is_refused() {
    let long = format!("{}@x.test", "a".repeat(600));
    assert_eq!(Envelope::build(&origin("192.0.2.7:25"), &long, &MailParameters::default(), []).err(), Some(EnvelopeError::Full));
    let many = (0..=RECIPIENTS_MAX).map(|_| ("b@y.test", RecipientParameters::default()));
    assert_eq!(Envelope::build(&origin("192.0.2.7:25"), "", &MailParameters::default(), many).err(), Some(EnvelopeError::Full));
    let all = (0..RECIPIENTS_MAX).map(|_| ("b@y.test", RecipientParameters::default()));
    let full = Envelope::build(&origin("192.0.2.7:25"), "", &MailParameters::default(), all).expect("as many as may be");
    assert!(full.as_bytes().len() <= ENVELOPE_BYTES_MAX);
    assert_eq!(EnvelopeView::decode(full.as_bytes()).map(|view| view.recipients().count()), Ok(RECIPIENTS_MAX));
}

/// Calls everything that can be asked.
fn ask_everything(view: &EnvelopeView<'_>) -> usize {
    let mut sum = view.recipients().map(|recipient| recipient.path.as_str().len() + recipient.original.map_or(0, str::len)).sum::<usize>();
    sum += view.helo().len() + view.reverse_path().as_str().len() + view.envelope_id().map_or(0, str::len);
    let _ = (view.peer(), view.protocol(), view.body(), view.ret(), view.priority(), view.deliver_by(), view.hold(), view.content());
    sum
}

#[test]
fn no_single_wrong_octet_makes_a_decoded_envelope_panic() {
    let bytes = sample().as_bytes().to_vec();
    let mut accepted = 0;
    for at in 0..bytes.len() {
        for wrong in 0..=255 {
            let mut damaged = bytes.clone();
            damaged[at] = wrong;
            if let Ok(view) = EnvelopeView::decode(&damaged) {
                accepted += ask_everything(&view).min(1);
            }
        }
    }
    assert!(accepted > 0, "what looks right is read");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_octets_make_a_decoded_envelope_panic(mut bytes in prop::collection::vec(any::<u8>(), 1..300)) {
        bytes[0] = 1;
        if let Ok(view) = EnvelopeView::decode(&bytes) {
            ask_everything(&view);
        }
    }
}

#[test]
fn extensions_have_no_bits_in_common() {
    assert!(!Extensions::NONE.has(Extensions::DSN) && Extensions::NONE.with(Extensions::DSN).has(Extensions::DSN));
    assert_eq!(Extensions::DEFAULT.with(Extensions::FUTURE_RELEASE).without(Extensions::FUTURE_RELEASE), Extensions::DEFAULT);
}
