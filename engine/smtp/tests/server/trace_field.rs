//! The `Received` field: what it says, and what it never says.

use ringpost_smtp::envelope::{Envelope, Origin, Protocol};
use ringpost_smtp::extension::{MailParameters, RecipientParameters};
use ringpost_smtp::header::{DateText, RECEIVED_BYTES_MAX, Trace, write_received};

fn received(peer: &str, protocol: Protocol, helo: &str, smtputf8: bool, recipients: &[&str]) -> String {
    let origin = Origin { peer: peer.parse().expect("an address"), protocol, helo };
    let parameters = MailParameters { smtputf8, ..MailParameters::default() };
    let recipients = recipients.iter().map(|&path| (path, RecipientParameters::default()));
    let envelope = Envelope::build(&origin, "a@x.test", &parameters, recipients).expect("it fits");
    let mut out = Vec::new();
    let date = DateText::new(1_795_475_613);
    write_received(&envelope.view(), &Trace { hostname: "mx1.example.test", id: "7F3A", date: &date }, &mut out);
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn it_names_peer_protocol_id_and_date() {
    assert_eq!(
        received("192.0.2.7:4711", Protocol::Esmtp, "client.test", false, &["b@y.test"]),
        "Received: from client.test ([192.0.2.7])\r\n\tby mx1.example.test with ESMTP id 7F3A\r\n\tfor <b@y.test>;\r\n\tMon, 23 Nov 2026 23:13:33 +0000\r\n"
    );
    assert!(
        received("[2001:db8::7]:1", Protocol::Smtp, "c", false, &[])
            .starts_with("Received: from c ([IPv6:2001:db8::7])\r\n\tby mx1.example.test with SMTP id")
    );
    assert!(received("[::ffff:192.0.2.7]:1", Protocol::Smtp, "c", false, &[]).starts_with("Received: from c ([192.0.2.7])"));
    assert!(
        received("192.0.2.7:1", Protocol::Esmtp, "c", true, &["müller@y.test"])
            .contains(" with UTF8SMTP id 7F3A\r\n\tfor <müller@y.test>;")
    );
}

#[test]
fn several_recipients_do_not_learn_of_each_other() {
    let field = received("192.0.2.7:1", Protocol::Esmtp, "c", false, &["b@y.test", "secret@y.test"]);
    assert!(!field.contains("for ") && !field.contains("y.test"), "{field}");
}

#[test]
fn no_name_of_a_peer_writes_a_comment_or_a_field_of_its_own() {
    let field = received("192.0.2.7:1", Protocol::Esmtp, "a)(b<c>;\"\\\r\nX: y,@%{}", false, &[]);
    assert!(field.starts_with("Received: from a??b?c????????:?y?????") || field.starts_with("Received: from a??b?c?"), "{field}");
    assert_eq!(field.matches("\r\n").count(), 3, "{field}");
    let first = field.lines().next().expect("a line");
    assert_eq!(first.matches(['(', ')', '<', '>', ';', '"', '\\', '@', ',']).count(), 2, "only our own parentheses: {first}");
}

#[test]
fn the_longest_field_fits_and_no_line_is_too_long() {
    let path = format!("{}@{}", "a".repeat(64), "d".repeat(188));
    let field = received("[2001:db8:1111:2222:3333:4444:5555:6666]:1", Protocol::Esmtp, &"h".repeat(255), true, &[&path]);
    // Host name and id may be 255 octets; here they are 20 together.
    assert!(field.len() + 2 * 255 - 20 <= RECEIVED_BYTES_MAX, "{}", field.len());
    assert!(field.lines().all(|line| line.len() <= 998));
}

#[test]
fn dates_are_those_of_rfc_5322() {
    for (unix_s, text) in [
        (0, "Thu, 01 Jan 1970 00:00:00 +0000"),
        (951_782_399, "Mon, 28 Feb 2000 23:59:59 +0000"),
        (951_827_696, "Tue, 29 Feb 2000 12:34:56 +0000"),
        (4_102_444_800, "Fri, 01 Jan 2100 00:00:00 +0000"),
        (i64::MAX, "Fri, 31 Dec 9999 23:59:59 +0000"),
    ] {
        assert_eq!(DateText::new(unix_s).as_bytes(), text.as_bytes());
    }
    let mut date = DateText::new(0);
    date.advance(951_827_696);
    assert_eq!(date, DateText::new(951_827_696));
}
