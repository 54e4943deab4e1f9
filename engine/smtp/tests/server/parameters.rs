//! Parameters of MAIL and RCPT, value by value.

use ringpost_smtp::extension::{
    Body, ByMode, DeliverBy, Extensions, Hold, MailParameters, Notify, ParameterError, RecipientParameters, Return, decode_xtext,
};

const ALL: Extensions = Extensions::DEFAULT
    .with(Extensions::BINARY_MIME)
    .with(Extensions::DSN)
    .with(Extensions::DELIVER_BY)
    .with(Extensions::FUTURE_RELEASE)
    .with(Extensions::MT_PRIORITY);

fn mail(text: &str) -> Result<MailParameters<'_>, ParameterError> {
    MailParameters::parse(text.as_bytes(), ALL)
}

fn rcpt(text: &str) -> Result<RecipientParameters<'_>, ParameterError> {
    RecipientParameters::parse(text.as_bytes(), ALL, false)
}

#[test]
fn values_are_read() {
    assert_eq!(mail("").unwrap(), MailParameters::default());
    assert_eq!(mail("size=18446744073709551616").unwrap().size, Some(u64::MAX), "too many for 64 bits is too large, not wrong");
    assert_eq!(mail("SIZE=0").unwrap().size, None);
    assert_eq!(mail("BODY=binarymime").unwrap().body, Body::BinaryMime);
    assert_eq!(mail("BODY=7BIT").unwrap().body, Body::SevenBit);
    assert!(mail("SMTPUTF8").unwrap().smtputf8);
    assert_eq!(mail("RET=FULL ENVID=a+2Bb").unwrap().ret, Some(Return::Full));
    assert_eq!(mail("ENVID=a+2Bb").unwrap().envelope_id, Some(&b"a+2Bb"[..]));
    assert_eq!(mail("BY=120;R").unwrap().deliver_by, Some(DeliverBy { seconds: 120, mode: ByMode::Return, trace: false }));
    assert_eq!(mail("BY=-5;nt").unwrap().deliver_by, Some(DeliverBy { seconds: -5, mode: ByMode::Notify, trace: true }));
    assert_eq!(mail("HOLDFOR=86400").unwrap().hold, Some(Hold::For(86400)));
    assert_eq!(mail("HOLDUNTIL=1970-01-02T01:00:00+01:00").unwrap().hold, Some(Hold::Until(86400)));
    // The fraction was cut off, and the mail left up to a second before its time.
    for (time, seconds) in [("1970-01-02T00:00:00.000Z", 86_400), ("1970-01-02T00:00:00.001Z", 86_401), ("1969-12-31T23:59:58.5Z", -1)] {
        assert_eq!(mail(&format!("HOLDUNTIL={time}")).unwrap().hold, Some(Hold::Until(seconds)), "{time}");
    }
    assert_eq!(mail("MT-PRIORITY=-9").unwrap().priority, Some(-9));
    assert_eq!(mail("MT-PRIORITY=9").unwrap().priority, Some(9));
    let notify = rcpt("NOTIFY=success,Delay").unwrap().notify;
    assert!(notify.has(Notify::SUCCESS) && notify.has(Notify::DELAY) && !notify.has(Notify::FAILURE) && !notify.has(Notify::NEVER));
    assert_eq!(rcpt("ORCPT=rfc822;b+2Bx@y.test").unwrap().original_recipient, Some(&b"rfc822;b+2Bx@y.test"[..]));
    let utf8 = RecipientParameters::parse("ORCPT=utf-8;m\u{fc}ller@y.test".as_bytes(), ALL, true).unwrap();
    assert_eq!(utf8.original_recipient, Some("utf-8;müller@y.test".as_bytes()));
}

#[test]
fn wrong_values_are_refused() {
    for text in [
        "SIZE",
        "SIZE=",
        "SIZE=-1",
        "SIZE=1k",
        "SIZE=111111111111111111111",
        "BODY=",
        "BODY=8BIT",
        "SMTPUTF8=",
        "RET=ALL",
        "RET",
        "RET=FULL RET=FULL",
        "ENVID=",
        "ENVID=a=b",
        "ENVID=a+2b",
        "ENVID=+",
        "ENVID=a ENVID=b",
        "BY=60",
        "BY=60;X",
        "BY=0;R",
        "BY=-1;R",
        "BY=1234567890;R",
        "BY=;N",
        "BY=--1;N",
        "BY=60;RX",
        "HOLDFOR=0",
        "HOLDFOR=-1",
        "HOLDFOR=1234567890",
        "HOLDFOR=1 HOLDUNTIL=1970-01-02T01:00:00Z",
        "HOLDUNTIL=tomorrow",
        "HOLDUNTIL=1970-13-02T01:00:00Z",
        "MT-PRIORITY=10",
        "MT-PRIORITY=-0",
        "MT-PRIORITY=+1",
        "MT-PRIORITY=",
    ] {
        assert_eq!(mail(text), Err(ParameterError::Value), "{text}");
    }
    let long = format!("ENVID={}", "x".repeat(101));
    assert_eq!(mail(&long), Err(ParameterError::Value));
    for text in [
        "NOTIFY",
        "NOTIFY=",
        "NOTIFY=NEVER,SUCCESS",
        "NOTIFY=SUCCESS,",
        "NOTIFY=ALWAYS",
        "NOTIFY=SUCCESS NOTIFY=DELAY",
        "ORCPT=",
        "ORCPT=b@y.test",
        "ORCPT=;b@y.test",
        "ORCPT=rfc822;",
        "ORCPT=rfc822;a=b",
        "ORCPT=rf c;b",
        "ORCPT=utf-8;m\u{fc}ller@y.test",
    ] {
        assert!(matches!(rcpt(text), Err(ParameterError::Value | ParameterError::Unknown)), "{text}");
    }
}

#[test]
fn what_is_not_announced_is_unknown_each_by_itself() {
    for (extension, text) in [
        (Extensions::SIZE, "SIZE=1"),
        (Extensions::EIGHT_BIT_MIME, "BODY=7BIT"),
        (Extensions::SMTPUTF8, "SMTPUTF8"),
        (Extensions::BINARY_MIME, "BODY=BINARYMIME"),
        (Extensions::DSN, "RET=FULL"),
        (Extensions::DSN, "ENVID=x"),
        (Extensions::DELIVER_BY, "BY=1;R"),
        (Extensions::FUTURE_RELEASE, "HOLDFOR=1"),
        (Extensions::FUTURE_RELEASE, "HOLDUNTIL=2030-01-01T00:00:00Z"),
        (Extensions::MT_PRIORITY, "MT-PRIORITY=1"),
    ] {
        assert!(mail(text).is_ok(), "{text}");
        assert_eq!(MailParameters::parse(text.as_bytes(), ALL.without(extension)), Err(ParameterError::Unknown), "{text}");
    }
    assert_eq!(mail(&"X ".repeat(100)), Err(ParameterError::Unknown));
}

#[test]
fn xtext_is_decoded_or_refused() {
    let mut out = Vec::new();
    assert!(decode_xtext(b"a+2Bb+3D+20", &mut out));
    assert_eq!(out, b"a+b= ");
    for wrong in [&b"+"[..], b"+2", b"+2b", b"+GG", b"a b", b"a=b", b"\xfc"] {
        assert!(!decode_xtext(wrong, &mut Vec::new()), "{}", wrong.escape_ascii());
    }
}
