//! The table of odd and hostile next hops: what each does, and what must come of its three recipients a, b and c.

use super::End::{self, AtLeastOnce, Deferred, Failed, Once};
use super::server::{Moment, Point, Reading, Say, Script, good};

/// A hop and what must come of mail for it.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) script: Script,
    pub(super) reading: Reading,
    /// Of a, b and c.
    pub(super) ends: [End; 3],
}

const fn case(name: &'static str, ends: [End; 3], script: Script) -> Case {
    Case { name, script, reading: Reading::Smtp, ends }
}

const fn store(name: &'static str, ends: [End; 3], script: Script) -> Case {
    Case { name, script, reading: Reading::Lmtp, ends }
}

/// Says this at its first connection's point, and is good ever after.
fn once(moment: Moment<'_>, point: Point, say: impl Into<Say>) -> Say {
    if moment.point == point && moment.connection == 0 { say.into() } else { good(moment) }
}

/// Says this whenever the point comes.
fn always(moment: Moment<'_>, point: Point, say: impl Into<Say>) -> Say {
    if moment.point == point { say.into() } else { good(moment) }
}

/// Says this when the point (and recipient) comes for the first time.
fn first(moment: Moment<'_>, point: Point, to: &str, say: impl Into<Say>) -> Say {
    if moment.point == point && moment.before == 0 && (to.is_empty() || moment.to == to) { say.into() } else { good(moment) }
}

pub(super) const CASES: &[Case] = &[
    case("a good one", [Once; 3], good),
    // The connection and the greeting.
    case("resets at once, then well", [Once; 3], |m| once(m, Point::Banner, Say::Reset)),
    case("closes at once, then well", [Once; 3], |m| once(m, Point::Banner, Say::Close)),
    case("never speaks, then well", [Once; 3], |m| once(m, Point::Banner, Say::Silence)),
    case("421 for a banner, then well", [Once; 3], |m| once(m, Point::Banner, Say::Last("421 4.3.2 busy\r\n"))),
    case("554 for a banner, then well", [Once; 3], |m| once(m, Point::Banner, "554 5.3.2 go away")),
    case("554 for a banner for ever", [Deferred("554 5.3.2"); 3], |m| always(m, Point::Banner, "554 5.3.2 go away")),
    case("a banner of 1 MiB, then well", [Once; 3], |m| {
        let huge = if m.point == Point::Banner { format!("220 {}\r\n", "x".repeat(1 << 20)) } else { String::new() };
        once(m, Point::Banner, Say::Text(huge))
    }),
    case("an endless banner, then well", [Once; 3], |m| once(m, Point::Banner, Say::Endless)),
    case("a banner at one octet a second", [Once; 3], |m| once(m, Point::Banner, Say::Slowly("220 hop.test takes its time\r\n"))),
    case("speaks HTTP, then well", [Once; 3], |m| once(m, Point::Banner, "HTTP/1.1 400 Bad Request\r\n\r\n")),
    case("knows HELO only", [Once; 3], |m| always(m, Point::Ehlo, "502 5.5.1 what?")),
    case("closes at EHLO, then well", [Once; 3], |m| once(m, Point::Ehlo, Say::Close)),
    case("421 at EHLO, then well", [Once; 3], |m| once(m, Point::Ehlo, Say::Last("421 4.3.2 later\r\n"))),
    case("an endless EHLO reply, then well", [Once; 3], |m| once(m, Point::Ehlo, Say::Endless)),
    case("two codes in one EHLO reply, then well", [Once; 3], |m| once(m, Point::Ehlo, "250-a\r\n550 b")),
    case("SIZE smaller than the message", [Failed("5.3.4"); 3], |m| always(m, Point::Ehlo, "250-hop.test\r\n250 SIZE 10")),
    case("RCPTMAX=1", [Once; 3], |m| always(m, Point::Ehlo, "250-hop.test\r\n250-PIPELINING\r\n250 LIMITS RCPTMAX=1")),
    // MAIL.
    case("451 at MAIL, accepts the rest, then well", [Once; 3], |m| first(m, Point::Mail, "", "451 4.3.0 later")),
    case("550 at MAIL, accepts the rest", [Failed("5.7.1"); 3], |m| always(m, Point::Mail, "550 5.7.1 not you")),
    case("421 at MAIL, then well", [Once; 3], |m| once(m, Point::Mail, Say::Last("421 4.3.2 closing\r\n"))),
    case("closes at MAIL, then well", [Once; 3], |m| once(m, Point::Mail, Say::Close)),
    case("silent at MAIL, then well", [Once; 3], |m| once(m, Point::Mail, Say::Silence)),
    case("one octet a second at MAIL, then well", [Once; 3], |m| once(m, Point::Mail, Say::Slowly("250 2.1.0 sender is very well\r\n"))),
    case("354 at MAIL, then well", [Once; 3], |m| once(m, Point::Mail, "354 go on")),
    // RCPT.
    case("greylists each recipient", [Once; 3], |m| first(m, Point::Rcpt, "", "450 4.7.1 greylisted")),
    case("greylists b, refuses c", [Once, Once, Failed("5.1.1")], |m| match m.to {
        "c" => always(m, Point::Rcpt, "550 5.1.1 no such user"),
        _ => first(m, Point::Rcpt, "b", "450 4.7.1 greylisted"),
    }),
    case("452 from the second recipient on", [Once; 3], |m| {
        if m.point == Point::Rcpt && m.accepted >= 1 { "452 4.5.3 too many recipients".into() } else { good(m) }
    }),
    case("552 from the second recipient on", [Once; 3], |m| {
        if m.point == Point::Rcpt && m.accepted >= 1 { "552 too many recipients".into() } else { good(m) }
    }),
    case("421 at the second recipient, then well", [Once; 3], |m| first(m, Point::Rcpt, "b", Say::Last("421 4.3.2 closing\r\n"))),
    case("closes at the second recipient, then well", [Once; 3], |m| first(m, Point::Rcpt, "b", Say::Close)),
    case("an unknown 2yz and an unknown 5yz", [Once, Failed("5.0.0"), Once], |m| match (m.point, m.to) {
        (Point::Rcpt, "b") => "599 never".into(),
        (Point::Rcpt, _) => "299 fine".into(),
        _ => good(m),
    }),
    case("enhanced codes of the wrong class", [Once, Failed("5.0.0"), Once], |m| match (m.point, m.to) {
        (Point::Rcpt, "b") => "550 2.1.5 no".into(),
        (Point::Rcpt, _) => "250 5.1.1 yes".into(),
        _ => good(m),
    }),
    case("a reply that forges log lines", [Failed("5.1.1"); 3], |m| {
        let forged = "550 5.1.1 no\x1b[2J\" outcome=delivered\rqueue_id=0 event=attempt to=<a@x>";
        if m.point == Point::Rcpt { Say::Text(format!("{forged}\r\n")) } else { good(m) }
    }),
    case("two replies to one RCPT, then well", [Once; 3], |m| first(m, Point::Rcpt, "a", "250 2.1.5 ok\r\n250 2.1.5 ok")),
    case("all replies before the commands, then well", [Once; 3], |m| {
        once(m, Point::Banner, "220 x\r\n250 x\r\n250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n250 2.0.0 taken")
    }),
    Case { name: "PIPELINING lied about", script: good, reading: Reading::Forgetful, ends: [Deferred("4.4.2"); 3] },
    // DATA.
    case("451 at DATA, then well", [Once; 3], |m| first(m, Point::Data, "", "451 4.3.0 later")),
    case("550 at DATA", [Failed("5.7.1"); 3], |m| always(m, Point::Data, "550 5.7.1 not this")),
    case("421 at DATA, then well", [Once; 3], |m| once(m, Point::Data, Say::Last("421 4.3.2 closing\r\n"))),
    case("closes at DATA, then well", [Once; 3], |m| once(m, Point::Data, Say::Close)),
    case("250 in place of 354, then well", [Once; 3], |m| once(m, Point::Data, "250 2.0.0 ok")),
    case("354 although all were refused", [Failed("5.1.1"); 3], |m| match m.point {
        Point::Rcpt => "550 5.1.1 no".into(),
        Point::Data => "354 go on".into(),
        _ => good(m),
    }),
    case("354 and 250 in one, then well", [Once; 3], |m| once(m, Point::Data, "354 go on\r\n250 2.0.0 taken")),
    // The content.
    case("554 after the dot", [Failed("5.6.0"); 3], |m| always(m, Point::Dot, "554 5.6.0 spam")),
    case("451 after the dot, then well", [Once; 3], |m| first(m, Point::Dot, "", "451 4.3.0 later")),
    case("421 after the dot, then well", [Once; 3], |m| once(m, Point::Dot, Say::Last("421 4.3.2 closing\r\n"))),
    case("354 after the dot, then well", [Once; 3], |m| once(m, Point::Dot, "354 more")),
    case("closes after the dot, has nothing, then well", [Once; 3], |m| once(m, Point::Dot, Say::Close)),
    case("closes after the dot, has it, then well", [AtLeastOnce; 3], |m| once(m, Point::Dot, Say::TakeAndClose)),
    case("silent after the dot, has it, then well", [AtLeastOnce; 3], |m| once(m, Point::Dot, Say::TakeInSilence)),
    case("one octet a second after the dot", [Once; 3], |m| once(m, Point::Dot, Say::Slowly("250\r\n"))),
    case("250 after the dot and 421 at once", [Once; 3], |m| always(m, Point::Dot, "250 2.0.0 taken\r\n421 4.3.2 closing")),
    case("250 after the dot and closes", [Once; 3], |m| always(m, Point::Dot, Say::Last("250 2.0.0 taken\r\n"))),
    case("never answers QUIT", [Once; 3], |m| always(m, Point::Quit, Say::Silence)),
    // Stores.
    store("LMTP: one defers, one refuses", [Once, Once, Failed("5.2.1")], |m| match m.to {
        "c" => always(m, Point::Dot, "550 5.2.1 disabled"),
        _ => first(m, Point::Dot, "b", "452 4.2.2 over quota"),
    }),
    store("LMTP: closes between its answers, then well", [Once; 3], |m| first(m, Point::Dot, "b", Say::Close)),
    store("LMTP: 421 between its answers, then well", [Once; 3], |m| first(m, Point::Dot, "b", Say::Last("421 4.3.2 closing\r\n"))),
    store("LMTP: knows SMTP only", [Deferred("502"); 3], |m| always(m, Point::Ehlo, "502 5.5.1 what?")),
];
